"""The container's file system as an ordered tuple of steps, from its spec.

Order: decouple our mount tree from the host's; make the root a mount; the spec's mounts in the order listed
(config.md "Mounts": MUST be); /dev; hooks that want both trees; pivot_root; then what narrows: sysctls
before /proc/sys is read-only, masks, read-only paths, the root itself.
Sources: runtime-spec config.md, config-linux.md.
"""

from __future__ import annotations

from sampan.errors import InvalidArgument
from sampan.linux import constants as c
from sampan.linux.paths import S_IFCHR, clean

from . import conversation, devices, mounting, security
from .options import parse_options
from .steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cgroups.host import CgroupHost
    from sampan.spec.runtime import Device, Mount, Process, Spec

    from .plan import LaunchPlan, Namespaces

PROPAGATION = {
    "": 0,
    "private": c.MS_PRIVATE,
    "rprivate": c.MS_PRIVATE | c.MS_REC,
    "slave": c.MS_SLAVE,
    "rslave": c.MS_SLAVE | c.MS_REC,
    "shared": c.MS_SHARED,
    "rshared": c.MS_SHARED | c.MS_REC,
    "unbindable": c.MS_UNBINDABLE,
    "runbindable": c.MS_UNBINDABLE | c.MS_REC,
}


def plan_rootfs(
    plan: LaunchPlan,
    spec: Spec,
    namespaces: Namespaces,
    *,
    rootfs: str | None,
    rootfs_mounts: tuple[Mount, ...],
    image_root: bool,
    cgroup_host: CgroupHost | None,
    no_pivot: bool,
) -> list[Step]:
    """All steps between being in the namespaces and being in the root."""
    root = spec.get("root")
    if rootfs is None:
        if root is None:
            raise InvalidArgument("root: required")
        path = root["path"]
        rootfs = clean(path if path.startswith("/") else plan.bundle + "/" + path)
    plan.rootfs = rootfs
    own_tree = "mount" in namespaces.kinds
    propagation = _propagation(spec)
    steps = _root_steps(plan, spec, rootfs, rootfs_mounts, own_tree, propagation, namespaces)
    if image_root:
        for name in ("/proc", "/sys", "/dev"):
            steps.append(
                Step(f"make sure that {name} is a directory", mounting.make_real_directory, name)
            )
    for index, mount in enumerate(spec.get("mounts") or ()):
        steps += _mount_steps(plan, spec, namespaces, index, mount, cgroup_host)
    steps += _device_steps(plan, spec, namespaces)
    steps += conversation.before_pivot(plan, spec)
    steps += _narrowing_steps(spec)
    if any(
        "ro" in (mount.get("options") or ())
        for mount in spec.get("mounts") or ()
        if mount.get("type") == "tmpfs"
    ):
        steps.append(Step("make tmpfs mounts read-only", mounting.seal))
    steps += _enter_steps(rootfs, own_tree, no_pivot, propagation)
    steps += _final_steps(spec)
    return steps


def _propagation(spec: Spec) -> int:
    word = spec.get("linux", {}).get("rootfsPropagation", "")
    if word not in PROPAGATION:
        raise InvalidArgument(f"linux.rootfsPropagation: unknown value {word!r}")
    return PROPAGATION[word]


def _root_steps(
    plan: LaunchPlan,
    spec: Spec,
    rootfs: str,
    rootfs_mounts: tuple[Mount, ...],
    own_tree: bool,
    propagation: int,
    namespaces: Namespaces,
) -> list[Step]:
    steps = []
    if spec.get("linux", {}).get("maskedPaths"):
        steps.append(Step("open the host's /dev/null", mounting.open_null))
    if own_tree:
        flags = propagation or c.MS_SLAVE | c.MS_REC
        steps.append(
            Step("decouple the mount tree from the host's", mounting.set_tree_propagation, flags)
        )
        steps.append(
            Step("make the mount below the root private", mounting.make_parent_private, rootfs)
        )
    if not rootfs_mounts:
        if "user" in namespaces.kinds and not plan.rootless:
            plan.opens.append(("rootfs", "tree", rootfs))
        blame = f"error mounting {rootfs!r} as the root"
        steps.append(Step(f"mount {rootfs} on itself", mounting.bind_root, rootfs, blame=blame))
    for mount in rootfs_mounts:
        target = _target(plan, spec, mount)
        steps.append(
            Step(f"mount {target.fstype} as the root", mounting.mount_root, rootfs, target,
                 blame=f"error mounting {target.fstype} as the root")
        )  # fmt: skip
    return steps


# ----------------------------------------------------------------------------------------- mounts


def _target(plan: LaunchPlan, spec: Spec, mount: Mount) -> mounting.Target:
    options = parse_options(mount)
    source = mount.get("source", "")
    if options.bind and source and not source.startswith("/"):
        source = clean(plan.bundle + "/" + source)
    return mounting.Target(
        destination=mount["destination"],
        fstype="bind" if options.bind else mount.get("type", ""),
        source=source,
        options=options,
        context=_mount_context(spec),
    )


def _mount_context(spec: Spec) -> str:
    """The mount option that carries linux.mountLabel; which one is crun's annotation's to say (mount(8))."""
    label = spec.get("linux", {}).get("mountLabel", "")
    if not label:
        return ""
    kind = (spec.get("annotations") or {}).get("run.oci.mount_context_type", "context")
    if kind not in ("context", "fscontext", "defcontext", "rootcontext"):
        raise InvalidArgument(f"annotations: invalid run.oci.mount_context_type {kind!r}")
    return f"{kind}={label}"


def _mount_steps(
    plan: LaunchPlan,
    spec: Spec,
    namespaces: Namespaces,
    index: int,
    mount: Mount,
    cgroup_host: CgroupHost | None,
) -> list[Step]:
    target = _target(plan, spec, mount)
    kind, place = target.fstype, target.destination
    blame = f'error mounting "{target.source}" to rootfs at "{place}"'
    if target.options.remount:
        return [Step(f"remount {place}", mounting.remount, target, blame=blame)]
    if target.options.bind:
        _open_bind_source(plan, namespaces, index, mount, target)
        return [Step(f"bind {target.source} on {place}", mounting.bind, target, blame=blame)]
    if kind == "cgroup":
        return [_cgroup_step(plan, namespaces, target, cgroup_host, blame)]
    if kind in ("proc", "sysfs"):
        steps = [Step(f"mount {kind} on {place}", mounting.mount_proc_or_sys, target, blame=blame)]
        if kind == "proc" and clean(place) == "/proc":
            steps.append(Step("keep the procfs for later writes", mounting.keep_proc, place))
        return steps
    if not kind:
        raise InvalidArgument(f"mounts[{index}].type: required for {place}")
    return [Step(f"mount {kind} on {place}", mounting.mount_filesystem, target, blame=blame)]


def _open_bind_source(
    plan: LaunchPlan, namespaces: Namespaces, index: int, mount: Mount, target: mounting.Target
) -> None:
    """Under a user namespace the parent copies the tree: container root may not reach the source's path.

    Idmapped mounts need the parent too: it makes a user namespace that has the mapping.
    """
    options = target.options
    idmapped = options.idmap or mount.get("uidMappings") or mount.get("gidMappings")
    if not idmapped and ("user" not in namespaces.kinds or plan.rootless):
        return
    name = f"mount:{index}"
    target.source_handle = name
    kind = "rtree" if options.recursive else "tree"
    if options.source_nofollow:
        kind += "-nofollow"
    plan.opens.append((name, kind, target.source))
    if idmapped:
        plan.idmaps.append((name, *_id_maps(plan, mount, target), options.recursive_idmap))


def _id_maps(plan: LaunchPlan, mount: Mount, target: mounting.Target) -> tuple[bytes, bytes]:
    """The mount's own mappings, or the container's."""
    from .plan import id_map_text

    uids, gids = mount.get("uidMappings"), mount.get("gidMappings")
    if uids or gids:
        if not uids or not gids:
            raise InvalidArgument(
                f"mount {target.destination!r}: uidMappings and gidMappings go together"
            )
        return id_map_text(uids), id_map_text(gids)
    if any(name == "namespace:user" for name, _, _ in plan.opens):
        return b"", b""  # those of the namespace that is joined
    if not plan.uid_map:
        raise InvalidArgument(
            f"mount {target.destination!r}: idmap needs mappings, its own or a user namespace's"
        )
    return plan.uid_map, plan.gid_map


def _cgroup_step(
    plan: LaunchPlan,
    namespaces: Namespaces,
    target: mounting.Target,
    host: CgroupHost | None,
    blame: str,
) -> Step:
    if host is None:
        from sampan.cgroups.host import detect

        host = detect()
    private = "cgroup" in namespaces.kinds
    if host.mode == "v2":
        return Step(
            f"mount cgroup2 on {target.destination}", mounting.mount_cgroup2, target,
            host.unified, plan.cgroup_path if plan.cgroup_path.startswith("/") else "", private, blame=blame,
        )  # fmt: skip
    rows = []
    for point in host.hierarchies():
        names = [name for name, where in host.mounts.items() if where == point]
        own = plan.cgroup_path if plan.cgroup_path.startswith("/") else ""
        rows.append((point.rpartition("/")[2], ",".join(names), point + own))
    return Step(
        f"mount cgroups on {target.destination}",
        mounting.mount_cgroup1,
        target,
        tuple(rows),
        private,
        blame=blame,
    )


# -------------------------------------------------------------------------------------------- /dev


def _device_steps(plan: LaunchPlan, spec: Spec, namespaces: Namespaces) -> list[Step]:
    for mount in spec.get("mounts") or ():
        if clean(mount["destination"]) == "/dev" and parse_options(mount).bind:
            return []  # somebody else's /dev is left as it is
    nodes = {
        f"/dev/{name}": _node(f"/dev/{name}", major, minor)
        for name, major, minor in devices.DEFAULT_DEVICES
    }
    for index, device in enumerate(spec.get("linux", {}).get("devices") or ()):
        node = device_node(device, index)
        nodes[node[0]] = node
    bind = "user" in namespaces.kinds
    if bind and not plan.rootless:
        plan.premade_nodes = tuple(nodes.values())
    return [
        Step(
            "make device nodes",
            devices.make_nodes,
            tuple(nodes.values()),
            bind,
            blame="error creating device nodes",
        ),
        Step("make the links in /dev", devices.make_links),
    ]


def _node(path: str, major: int, minor: int) -> devices.Node:
    return (path, S_IFCHR | 0o666, major, minor, 0, 0)


def device_node(device: Device, index: int) -> devices.Node:
    """linux.devices[i] as (path, mode, major, minor, uid, gid)."""
    kind = device["type"]
    if kind not in devices.KINDS:
        raise InvalidArgument(f"linux.devices[{index}].type: unknown value {kind!r}")
    mode = device.get("fileMode")
    return (
        clean("/" + device["path"]),
        devices.KINDS[kind] | (0o666 if mode is None else mode & 0o7777),
        device.get("major", 0),
        device.get("minor", 0),
        device.get("uid", 0),
        device.get("gid", 0),
    )


# ------------------------------------------------------------------------------- entering, narrowing


def _enter_steps(rootfs: str, own_tree: bool, no_pivot: bool, propagation: int) -> list[Step]:
    if not own_tree:
        steps = [Step("change root", mounting.change_root)]
    elif no_pivot:
        steps = [Step("move the root over /", mounting.move_root, rootfs)]
    else:
        steps = [
            Step(
                "pivot into the root",
                mounting.pivot,
                blame="error jailing process inside rootfs: pivot_root",
            )
        ]
    if propagation and not propagation & (c.MS_PRIVATE | c.MS_SLAVE):
        steps.append(Step("set the root's propagation", mounting.set_root_propagation, propagation))
    return steps


def _narrowing_steps(spec: Spec) -> list[Step]:
    """Before pivot_root, while the host's /dev/null is still in our mount tree and can be copied."""
    linux, process = spec.get("linux", {}), spec["process"]
    steps = []
    sysctls = linux.get("sysctl") or {}
    if sysctls or process.get("selinuxLabel") or process.get("apparmorProfile"):
        steps.append(Step("have a verified procfs", mounting.have_proc))
    steps += _console_steps(process)
    if sysctls:
        values = tuple(sysctls.items())
        steps.append(
            Step("write sysctls", security.write_sysctls, values, blame="error writing sysctl")
        )
    if linux.get("readonlyPaths"):
        paths = tuple(dict.fromkeys(linux["readonlyPaths"]))
        steps.append(
            Step("make paths read-only: " + " ".join(paths), mounting.make_read_only, paths)
        )
    if linux.get("maskedPaths"):
        paths = tuple(dict.fromkeys(linux["maskedPaths"]))
        label = linux.get("mountLabel", "")
        steps.append(Step("mask paths: " + " ".join(paths), mounting.mask, paths, label))
    return steps


def _final_steps(spec: Spec) -> list[Step]:
    steps = _cwd_steps(spec["process"])
    if spec.get("root", {}).get("readonly"):
        steps.append(Step("make the root read-only", mounting.set_root_read_only))
    return steps


def _console_steps(process: Process) -> list[Step]:
    if not process.get("terminal"):
        return []
    size = process.get("consoleSize")
    window = (size["height"], size["width"]) if size else None
    owner = (process.get("user") or {}).get("uid", 0)
    return [Step("make the console", devices.make_console, window, owner, True)]


def _cwd_steps(process: Process) -> list[Step]:
    cwd = process["cwd"]
    blame = f'chdir to cwd ("{cwd}") set in config.json failed'
    return [Step(f"go to {cwd}", security.change_directory, cwd, blame=blame)]
