"""LaunchPlan: everything that will happen to make a container, decided from its spec before anything happens.

    make_plan(spec, ...) -> LaunchPlan
        clone_flags      namespaces made by clone3 itself
        opens            what the parent opens first: namespaces by path, bind sources under a user namespace
        before           steps of init up to READY    (state created)
        finish           steps of init after START    (credentials, seccomp)
        hooks_at_start   startContainer hooks, then execve

Nothing here touches the system but the seccomp compiler's arithmetic: no root is needed to make or test a
plan. `describe()` is the plan as lines, for `sampan explain` and `run --trace`.
"""

from __future__ import annotations

from sampan.errors import InvalidArgument
from sampan.linux import constants as c
from sampan.linux.procfs import denies_setgroups

from . import conversation, identity, security, springboard
from .demands import (
    capability_sets,
    compile_filter,
    every_cpu,
    finish_steps,
    memory_policy_steps,
    not_ambient,
    personality_steps,
    rlimits,
    scheduling_steps,
    unique,
)
from .rootfs import plan_rootfs
from .steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from sampan.cgroups.host import CgroupHost
    from sampan.spec.runtime import (
        Hooks,
        IDMapping,
        LinuxResources,
        Mount,
        Process,
        Spec,
    )

    from .seccomp_cache import Program

MAKE_BY_CLONE = (
    c.CLONE_NEWNS
    | c.CLONE_NEWUTS
    | c.CLONE_NEWIPC
    | c.CLONE_NEWUSER
    | c.CLONE_NEWPID
    | c.CLONE_NEWNET
)
STRICT_SECCOMP = "run.oci.seccomp_fail_unknown_syscall"  # crun's annotation


class LaunchPlan:
    """See the module's docstring. Mutable only while `make_plan` fills it."""

    __slots__ = (
        "annotations", "args", "before", "bundle", "cgroup_driver", "cgroup_path", "clone_flags",
        "container_id", "environ", "filter", "finish", "first", "gid_map", "hooks", "hooks_at_start",
        "idmaps", "keeps_session", "maps_ids", "net_devices", "netns_fd", "oci_version", "opens", "premade_nodes", "preserve_fds", "reaper", "resources",
        "rlimits", "rootfs", "rootless", "springboard", "terminal", "two_stage", "uid", "uid_map", "warnings",
    )  # fmt: skip

    def __init__(self) -> None:
        self.container_id = ""
        self.bundle = ""
        self.rootfs = ""
        self.oci_version = ""
        self.annotations: dict[str, str] = {}
        self.clone_flags = 0
        self.two_stage = False  # a user namespace is joined by path before others are made in it
        self.netns_fd = -1
        self.uid_map = b""
        self.gid_map = b""
        self.maps_ids = False
        self.opens: list[tuple[str, str, str]] = []  # (name, kind, path)
        self.cgroup_path = ""
        self.cgroup_driver = "cgroupfs"
        self.resources: LinuxResources = {}
        self.rootless = False
        self.idmaps: list[
            tuple[str, bytes, bytes, bool]
        ] = []  # (handle, uid map, gid map, recursive)
        self.premade_nodes: tuple[
            Any, ...
        ] = ()  # device nodes that the parent makes for a user namespace
        self.net_devices: dict[str, Any] = {}
        self.first: tuple[Step, ...] = ()  # steps before new namespaces are final (see two_stage)
        self.before: tuple[Step, ...] = ()
        self.hooks_at_start: tuple[Step, ...] = ()
        self.finish: tuple[Step, ...] = ()
        self.hooks: Hooks = {}
        self.args: tuple[str, ...] = ()
        self.environ: tuple[str, ...] = ()
        self.uid = 0
        self.rlimits: tuple[tuple[int, int, int], ...] = ()
        self.filter: Program | None = None
        self.terminal = False
        self.springboard = False  # the program is executed by springboard.py, not by Python
        self.reaper = False  # --init: the program runs under a reaper of ours as process 1
        self.keeps_session = False
        self.preserve_fds: tuple[int, ...] = ()
        self.warnings: list[str] = []

    def describe(self) -> list[str]:
        """The plan as lines in the order of events."""
        lines = []
        if self.cgroup_path:
            lines.append(f"make cgroup {self.cgroup_path} ({self.cgroup_driver})")
        made = [kind for kind, flag in c.NAMESPACE_FLAGS.items() if self.clone_flags & flag]
        lines.append("clone a process into new namespaces: " + (", ".join(made) or "none"))
        lines += [step.describe() for step in (*self.first, *self.before)]
        lines.append("ready: wait for start")
        lines += [step.describe() for step in (*self.finish, *self.hooks_at_start)]
        lines.append("execute " + " ".join(self.args))
        return lines


def make_plan(
    spec: Spec,
    *,
    container_id: str,
    bundle: str,
    rootfs: str | None = None,
    rootfs_mounts: Iterable[Mount] = (),
    image_root: bool = False,
    cgroup_path: str = "",
    cgroup_driver: str = "cgroupfs",
    cgroup_host: CgroupHost | None = None,
    netns_fd: int = -1,
    rootless: bool = False,
    no_pivot: bool = False,
    new_keyring: bool = True,
    preserve_fds: tuple[int, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> LaunchPlan:
    """Turn a validated spec into a plan; InvalidArgument where it contradicts itself.

    rootfs_mounts   mounts that init performs on `rootfs` first, in its own mount namespace (trusted paths)
    image_root      the root is ours to change: symlinks at /proc, /sys, /dev give way to directories
    netns_fd        an open network namespace to join, whatever the spec says
    extra           {"seccomp": "default"}: compile the default profile; {"init": True}: a reaper as process 1;
                    {"die_with_parent": True}: SIGKILL when the process that launched it (a shim) dies
    """
    plan = LaunchPlan()
    process = spec.get("process")
    if process is None:
        raise InvalidArgument("process: required to start a container")
    extra = extra or {}
    plan.container_id = container_id
    plan.bundle = bundle
    plan.oci_version = spec["ociVersion"]
    plan.annotations = spec.get("annotations") or {}
    plan.hooks = spec.get("hooks") or {}
    plan.rootless = rootless
    plan.netns_fd = netns_fd
    plan.preserve_fds = preserve_fds
    plan.cgroup_path = cgroup_path
    plan.cgroup_driver = cgroup_driver
    plan.resources = _resources(spec)

    namespaces = Namespaces(spec, netns_fd)
    plan.clone_flags = namespaces.made & MAKE_BY_CLONE
    _plan_id_maps(plan, spec, namespaces)
    plan.net_devices = dict(spec.get("linux", {}).get("netDevices") or {})
    plan.two_stage = any(kind == "user" for kind, _ in namespaces.joined) and bool(plan.clone_flags)
    plan.first = tuple(_joining_steps(plan, namespaces, process))
    plan.before = (
        *_identity_steps(plan, spec, namespaces),
        *plan_rootfs(
            plan,
            spec,
            namespaces,
            rootfs=rootfs,
            rootfs_mounts=tuple(rootfs_mounts),
            image_root=image_root,
            cgroup_host=cgroup_host,
            no_pivot=no_pivot,
        ),
        *_process_steps(spec, process, container_id, new_keyring),
    )
    _plan_process(plan, spec, process, extra, in_new_userns="user" in namespaces.kinds)
    return plan


# ------------------------------------------------------------------------------------- namespaces


class Namespaces:
    """The spec's namespaces: which are made, which joined."""

    __slots__ = ("joined", "kinds", "made")

    def __init__(self, spec: Spec, netns_fd: int) -> None:
        self.made = 0
        self.joined: list[tuple[str, str]] = []
        self.kinds: set[str] = set()
        for entry in spec.get("linux", {}).get("namespaces") or ():
            kind, path = entry["type"], entry.get("path", "")
            if kind in self.kinds:
                raise InvalidArgument(f"linux.namespaces: {kind} is listed twice")
            self.kinds.add(kind)
            if kind == "network" and netns_fd >= 0:
                continue
            if path:
                self.joined.append((kind, path))
            else:
                self.made |= c.NAMESPACE_FLAGS[kind]
        if netns_fd >= 0:
            self.kinds.add("network")
            self.joined.append(("network", ""))

    def makes(self, kind: str) -> bool:
        return bool(self.made & c.NAMESPACE_FLAGS[kind])


def _plan_id_maps(plan: LaunchPlan, spec: Spec, namespaces: Namespaces) -> None:
    linux = spec.get("linux", {})
    uids, gids = linux.get("uidMappings") or [], linux.get("gidMappings") or []
    if (uids or gids) and "user" not in namespaces.kinds:
        raise InvalidArgument("linux.uidMappings: need a user namespace in linux.namespaces")
    plan.maps_ids = namespaces.makes("user")
    if plan.maps_ids:
        if not uids or not gids:
            raise InvalidArgument(
                "linux.uidMappings: a new user namespace needs uidMappings and gidMappings"
            )
        plan.uid_map = id_map_text(uids)
        plan.gid_map = id_map_text(gids)


def id_map_text(mappings: Iterable[IDMapping]) -> bytes:
    """The lines of uid_map and gid_map."""
    return "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in mappings).encode()


def _joining_steps(plan: LaunchPlan, namespaces: Namespaces, process: Process) -> list[Step]:
    """While the host's file system is still ours to see: cgroup, and namespaces that exist."""
    steps = []
    if "oomScoreAdj" in process:
        value = process["oomScoreAdj"]
        steps.append(Step(f"set oom_score_adj to {value}", security.set_oom_score, value))
    if plan.cgroup_path:
        steps.append(Step("wait for the cgroup", conversation.wait_for_cgroup))
        steps.append(
            Step(
                "join the cgroup",
                identity.join_cgroup,
                blame="unable to apply cgroup configuration",
            )
        )
    steps.append(every_cpu())
    for kind, path in namespaces.joined:
        if path:
            plan.opens.append((f"namespace:{kind}", "namespace", path))
    joined = [kind for kind, _ in namespaces.joined if kind != "pid" or plan.two_stage]
    if joined:
        handles = tuple((kind, f"namespace:{kind}") for kind in joined)
        text = "join namespaces: " + ", ".join(joined)
        steps.append(
            Step(text, identity.join_namespaces, handles, blame="failed to join namespaces")
        )
    return steps


def _identity_steps(plan: LaunchPlan, spec: Spec, namespaces: Namespaces) -> list[Step]:
    """What the new namespaces hold: ids, names, clocks, the loopback device."""
    steps = []
    if plan.maps_ids:
        steps.append(Step("wait for the id maps", identity.wait_for_id_maps))
    if namespaces.makes("time"):  # while /proc/self is still ours to write to
        steps.append(
            Step("make the time namespace", identity.make_time_namespace, _time_offsets(spec))
        )
    if plan.maps_ids:
        steps.append(Step("forbid others to look into this process", identity.allow_nobody))
    if "user" in namespaces.kinds:
        steps.append(Step("become root of the user namespace", identity.become_root))
    if namespaces.makes("cgroup"):
        steps.append(
            Step("make the cgroup namespace", identity.unshare_namespaces, c.CLONE_NEWCGROUP)
        )
    if namespaces.makes("network"):
        steps.append(Step("bring the loopback device up", identity.bring_up_loopback))
    if spec.get("hostname"):
        name = spec["hostname"]
        steps.append(Step(f"set the host name to {name}", identity.set_hostname, name))
    if spec.get("domainname"):
        name = spec["domainname"]
        steps.append(Step(f"set the domain name to {name}", identity.set_domainname, name))
    return steps


def _time_offsets(spec: Spec) -> bytes:
    lines = []
    for clock, offset in (spec.get("linux", {}).get("timeOffsets") or {}).items():
        lines.append(f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}\n")
    return "".join(lines).encode()


def _resources(spec: Spec) -> LinuxResources:
    """The spec's limits, with the device rules that every container has after its own."""
    from .devices import DEFAULT_RULES

    resources = dict(spec.get("linux", {}).get("resources") or {})
    rules: Any = resources.get("devices")
    if rules:
        resources["devices"] = [*rules, *DEFAULT_RULES]
    return resources  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------- process


def _process_steps(
    spec: Spec, process: Process, container_id: str, new_keyring: bool
) -> list[Step]:
    steps = []
    if new_keyring:
        label = process.get("selinuxLabel", "")
        steps.append(
            Step("join a session keyring", security.new_keyring, f"_ses.{container_id}", label)
        )
    steps += scheduling_steps(process, spec)
    return [*steps, *memory_policy_steps(spec), *personality_steps(spec)]


def _plan_process(
    plan: LaunchPlan, spec: Spec, process: Process, extra: Mapping[str, Any], *, in_new_userns: bool
) -> None:
    user = process.get("user") or {}
    linux = spec.get("linux", {})
    plan.args = tuple(process.get("args") or ())
    if not plan.args:
        raise InvalidArgument("process.args: must not be empty")
    plan.environ = unique(process.get("env") or ())
    plan.uid = user.get("uid", 0)
    plan.terminal = process.get("terminal", False)
    plan.reaper = bool(extra.get("init"))
    if plan.reaper:
        from . import reaper  # noqa: F401 - before the fork: init may import nothing
    plan.rlimits = rlimits(process)
    sets = capability_sets(process.get("capabilities"))
    plan.warnings += not_ambient(sets)
    strict = STRICT_SECCOMP in plan.annotations
    plan.filter = compile_filter(linux.get("seccomp"), sets.bounding, extra, strict=strict)
    plan.springboard = not plan.reaper and springboard.is_wanted(process, plan.filter)
    plan.hooks_at_start = tuple(conversation.at_start(plan))
    plan.finish = tuple(
        finish_steps(
            process,
            sets,
            plan.filter,
            rootless=plan.rootless and (in_new_userns or denies_setgroups()),
            die_with_parent=bool(extra.get("die_with_parent")),
            keep_groups=plan.annotations.get("run.oci.keep_original_groups") == "1",
        )
    )
