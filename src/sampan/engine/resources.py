"""What a start takes from the host, on an ExitStack: mounts of volumes, network, looked-up users and devices.

    record ──take()──► Resources(sources for specgen, rootfs mounts, namespace fd, release stack)

Only this module looks at the host on the way to a spec, so only it needs undoing. A start that fails closes the
stack; a start that succeeds drops it, because what a running container holds is given back at its exit by id
(`release`), which also works when another engine process took it.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sampan.cgroups.manager import open_manager
from sampan.engine import image_mounts, networking, seccomp, users
from sampan.engine.records import ContainerRecord, ContainerState, MountRecord
from sampan.engine.specgen import DeviceNode, Sources
from sampan.engine.volumes import mount_volumes, release_volume_mounts
from sampan.engine.words import granted_capabilities
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.images import builtin
from sampan.spec.engine.container import DeviceMapping, HostConfig
from sampan.spec.runtime import LinuxSeccomp, Mount
from sampan.storage.access import opened_root, read_small

if TYPE_CHECKING:
    from sampan.cgroups.manager import Manager
    from sampan.engine.context import Engine

__all__ = ["Resources", "make_bind_sources", "release", "take"]

log = logging.getLogger("sampan.engine")

MAX_PROFILE = seccomp.MAX_BYTES


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one start has in its hands."""

    sources: Sources
    rootfs_mounts: list[Mount]
    connected: networking.Connected
    mounts: tuple[MountRecord, ...]
    seccomp_default: bool


def take(engine: Engine, record: ContainerRecord, undo: ExitStack) -> Resources:
    """Blocking: everything a start needs. What was taken when this fails is on `undo`."""
    run_dir = engine.run_dir(record.id)
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    rootfs = run_dir / "rootfs"
    rootfs.mkdir(mode=0o755, exist_ok=True)
    rootfs_mounts = engine.snapshots.mounts(record.id)
    rootfs_mounts += _host_image_mounts(engine, record)
    undo.callback(release_volume_mounts, engine, record.id, record.mounts)
    mounts = mount_volumes(engine, record)
    make_bind_sources(mounts)
    user = resolve_user(engine, record, rootfs_mounts)
    mounts = tuple(with_owners(mount, user) for mount in mounts)
    undo.callback(networking.release, engine, record.id)
    connected = networking.connect_all(engine, record)
    if connected.netns_fd >= 0:
        undo.callback(os.close, connected.netns_fd)
    profile, is_default = seccomp_profile(engine, record.host_config)
    undo.callback(image_mounts.release, engine, record.id)
    extra = [*image_mounts.take(engine, record.id, mounts), *_shared_memory(engine, record)]
    sources = Sources(
        rootfs=str(rootfs),
        user=user,
        files=networking.file_sources(engine, record),
        mounts=tuple(m for m in mounts if m.type != "image"),
        extra_mounts=tuple(extra),
        devices=tuple(_devices(record.host_config)),
        namespaces=_joined_namespaces(engine, record),
        device_numbers=_block_devices(record.host_config),
        seccomp=profile,
        link_env=tuple(_link_environment(engine, record)),
        ulimits=_ulimits(engine, record.host_config),
        cgroup_path=cgroup_path(engine, record),
    )
    return Resources(
        sources=sources,
        rootfs_mounts=rootfs_mounts,
        connected=connected,
        mounts=mounts,
        seccomp_default=is_default,
    )


def release(engine: Engine, record: ContainerRecord) -> None:
    """Blocking: give back what a running container held. Safe to call twice, and after a crash."""
    networking.release(engine, record.id)
    release_volume_mounts(engine, record.id, record.mounts)
    engine.volumes.drop_shared_memory(record.id)
    image_mounts.release(engine, record.id)


def cgroup_of(engine: Engine, record: ContainerRecord, pid: int = 0) -> Manager:
    """The handle to a container's cgroup; `pid` is its process 1 for engines that have no cgroups."""
    return open_manager(
        cgroup_path(engine, record),
        driver=engine.config.cgroup_driver,
        host=engine.cgroup_host,
        pid=pid,
    )


def sweep_cgroup(engine: Engine, record: ContainerRecord) -> None:
    """Blocking: what a killed shim could not tidy up: processes that are left, and the cgroup itself."""
    manager = cgroup_of(engine, record)
    try:
        if manager.exists():
            manager.kill_all()
            manager.destroy()
    except OSError as error:
        log.warning("container %s: its cgroup stays: %s", record.id[:12], error)


# -- user ------------------------------------------------------------------------------------------


def resolve_user(
    engine: Engine, record: ContainerRecord, rootfs_mounts: list[Mount]
) -> users.ExecUser:
    """Who the container runs as. A root file system that nobody has written to is read once per image."""
    additional = tuple(record.host_config.group_add or ())
    key = (record.chain_id, record.config.user, additional)
    pristine = engine.snapshots.is_pristine(record.id)
    if pristine and key in engine.user_cache:
        return engine.user_cache[key]
    with opened_root(rootfs_mounts[:1]) as root:
        user = users.resolve(
            record.config.user,
            passwd=read_database(root, users.PASSWD),
            group=read_database(root, users.GROUP),
            additional=additional,
        )
    if pristine:
        if len(engine.user_cache) > 1000:
            engine.user_cache.clear()
        engine.user_cache[key] = user
    return user


@contextmanager
def running_root(state: ContainerState) -> Iterator[int]:
    """A descriptor of the root directory that a running container's process 1 sees."""
    fd = os.open(f"/proc/{state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if process_start_time(state.pid) != state.start_time:
            raise Conflict("the container has just ended")  # the number is another process's by now
        yield fd
    finally:
        os.close(fd)


def process_start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid it names one process for ever; 0 where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def read_database(root_fd: int, path: str) -> str:
    """passwd or group of a container; none there is an empty one, and so is what is no regular file."""
    data = read_small(root_fd, path, users.MAX_BYTES)
    return "" if data is None else data.decode("utf-8", "surrogateescape")


# -- mounts ----------------------------------------------------------------------------------------


def _host_image_mounts(engine: Engine, record: ContainerRecord) -> list[Mount]:
    """The image made of this host's own system directories mounts them; every other image adds nothing."""
    image = (
        engine.catalog.find(record.image_id) if record.image_id else None
    )  # a build's step has none
    if image is None:
        return []
    return builtin.host_mounts(engine.catalog, image, f"{engine.container_dir(record.id)}/host")


def with_owners(mount: MountRecord, user: users.ExecUser) -> MountRecord:
    """Blocking: of a mount with `U`, whose ids are to change places."""
    if not mount.map_owner:
        return mount
    owner = os.stat(mount.source)
    owners = ((owner.st_uid, user.uid), (owner.st_gid, user.gid))
    return msgspec.structs.replace(mount, owners=owners)


def make_bind_sources(mounts: tuple[MountRecord, ...]) -> None:
    """Blocking: what binds show is there afterwards, made where Docker makes it."""
    for mount in mounts:
        if mount.type != "bind":
            continue
        if mount.propagation in ("shared", "rshared", "slave", "rslave"):
            _check_propagation(mount)
        source = Path(mount.source)
        if source.exists():
            continue
        if not mount.create_source:
            raise InvalidArgument(
                f'invalid mount config for type "bind": bind source path does not exist: {source}'
            )
        try:
            source.mkdir(parents=True)
        except OSError as error:
            raise Internal(
                f"error while creating mount source path '{source}': mkdir {source}: "
                f"{(error.strerror or 'failed').lower()}"
            ) from error


def _check_propagation(mount: MountRecord) -> None:
    """A mount cannot share what its source's own mount does not: said here, where the words can be clear."""
    point, optional = mount_of_path(os.path.realpath(mount.source))
    is_shared = any(field.startswith("shared:") for field in optional)
    is_slave = any(field.startswith("master:") for field in optional)
    if mount.propagation.endswith("shared"):
        if not is_shared:
            raise Internal(
                f"path {mount.source} is mounted on {point} but it is not a shared mount"
            )
    elif not (is_shared or is_slave):
        raise Internal(
            f"path {mount.source} is mounted on {point} but it is not a shared or slave mount"
        )


def mount_of_path(path: str) -> tuple[str, list[str]]:
    """(mount point, optional fields) of the mount that holds a path: proc_pid_mountinfo(5)."""
    best: tuple[str, list[str]] = ("/", [])
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            point = fields[4].replace("\\040", " ")
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, fields[6 : fields.index("-")])
    return best


def _shared_memory(engine: Engine, record: ContainerRecord) -> list[Mount]:
    """The /dev/shm of the container whose IPC namespace is joined, or the one others may join."""
    mode = record.host_config.ipc_mode
    owner = record
    if mode.startswith("container:"):
        owner = engine.containers.find(mode.partition(":")[2]).record
    elif mode != "shareable":
        return []
    path = engine.volumes.shared_memory(owner.id, owner.host_config.shm_size)
    return [
        {
            "destination": "/dev/shm",
            "type": "bind",
            "source": str(path),
            "options": ["rbind", "rw", "rprivate"],
        }
    ]


# -- devices ---------------------------------------------------------------------------------------


def _devices(host: HostConfig) -> list[DeviceNode]:
    if host.privileged:
        return list(_all_devices("/dev"))
    found: list[DeviceNode] = []
    for mapping in host.devices or ():
        found += _mapped(mapping)
    return found


def _mapped(mapping: DeviceMapping) -> list[DeviceNode]:
    source, target = mapping.path_on_host, mapping.path_in_container or mapping.path_on_host
    access = mapping.cgroup_permissions or "rwm"
    try:
        # stat, not lstat: /dev/disk/by-id names are links, and the device behind one is meant.
        facts = os.stat(source)
    except OSError as error:
        raise _custom_device_error(source, error.strerror or "failed") from error
    if stat.S_ISDIR(facts.st_mode):
        nodes = [
            msgspec.structs.replace(n, path=target.rstrip("/") + n.path[len(source.rstrip("/")) :], access=access)
            for n in _all_devices(source)
        ]  # fmt: skip
        if nodes:
            return nodes
        raise _custom_device_error(source, "no devices found")
    node = _node(source, target, facts, access)
    if node is None:
        raise _custom_device_error(source, "not a device node")
    return [node]


def _custom_device_error(path: str, reason: str) -> Internal:
    return Internal(
        f'error gathering device information while adding custom device "{path}": {reason.lower()}'
    )


def _node(source: str, target: str, facts: os.stat_result, access: str) -> DeviceNode | None:
    if stat.S_ISCHR(facts.st_mode):
        kind = "c"
    elif stat.S_ISBLK(facts.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        path=target,
        type=kind,
        major=os.major(facts.st_rdev),
        minor=os.minor(facts.st_rdev),
        mode=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
        access=access,
    )


_NOT_PASSED_ON = ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev")


def _all_devices(directory: str) -> list[DeviceNode]:
    """Every node below a directory of devices; links are left out, as are the container's own trees."""
    found: list[DeviceNode] = []
    try:
        entries = sorted(os.scandir(directory), key=lambda e: e.name)
    except OSError:
        return found
    for entry in entries:
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(facts.st_mode):
            if entry.name not in _NOT_PASSED_ON:
                found += _all_devices(entry.path)
        elif entry.name != "console":
            node = _node(entry.path, entry.path, facts, "rwm")
            if node is not None:
                found.append(node)
    return found


def _block_devices(host: HostConfig) -> dict[str, tuple[int, int]]:
    lists = (
        host.blkio_weight_device,
        host.blkio_device_read_bps,
        host.blkio_device_write_bps,
        host.blkio_device_read_iops,
        host.blkio_device_write_iops,
    )
    numbers: dict[str, tuple[int, int]] = {}
    for devices in lists:
        for device in devices or ():
            try:
                facts = os.stat(device.path)
            except OSError as error:
                raise InvalidArgument(
                    f"stat {device.path}: {(error.strerror or 'failed').lower()}"
                ) from error
            numbers[device.path] = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
    return numbers


# -- other containers ------------------------------------------------------------------------------

_JOINED = {"ipc": "ipc_mode", "pid": "pid_mode", "network": "network_mode"}
_PROC_NAMES = {"ipc": "ipc", "pid": "pid", "network": "net"}


def _joined_namespaces(engine: Engine, record: ContainerRecord) -> dict[str, str]:
    """Kind -> path of the namespace of another container that this one shares."""
    found: dict[str, str] = {}
    for kind, attribute in _JOINED.items():
        mode = getattr(record.host_config, attribute)
        if not mode.startswith("container:"):
            continue
        peer = engine.containers.find(mode.partition(":")[2])
        if not peer.is_running:
            raise Conflict(f"cannot join {kind} of a non running container: {peer.id}")
        if kind == "ipc" and peer.record.host_config.ipc_mode not in ("shareable", "host"):
            raise Conflict(
                f"failed to join IPC namespace: container {peer.id}: non-shareable IPC "
                "(hint: use IpcMode:shareable for the donor container)"
            )
        found[kind] = f"/proc/{peer.state.pid}/ns/{_PROC_NAMES[kind]}"
    return found


def _link_environment(engine: Engine, record: ContainerRecord) -> list[str]:
    """The variables that --link sets on the default bridge."""
    env: list[str] = []
    if record.host_config.network_mode != "bridge":
        return env
    for text in record.host_config.links or ():
        ref, _, alias = text.partition(":")
        peer = engine.containers.find(ref)
        alias = alias.rpartition("/")[2] or peer.name
        prefix = alias.upper().replace("-", "_")
        settings = peer.state.endpoints.get("bridge")
        env.append(f"{prefix}_NAME=/{record.name}/{alias}")
        if settings is None or not settings.ip_address:
            raise NotFound(
                f"Cannot link to a non running container: /{peer.name} AS /{record.name}/{alias}"
            )
        env += _link_ports(prefix, settings.ip_address, list(peer.record.config.exposed_ports))
        env += [
            f"{prefix}_ENV_{text}"
            for text in peer.record.config.env or ()
            if text.partition("=")[0] not in ("HOME", "PATH")
        ]
    return env


def _link_ports(prefix: str, address: str, ports: list[str]) -> list[str]:
    env: list[str] = []
    for position, text in enumerate(sorted(ports)):
        port, _, protocol = text.partition("/")
        protocol = protocol or "tcp"
        url = f"{protocol}://{address}:{port}"
        if position == 0:
            env.append(f"{prefix}_PORT={url}")
        name = f"{prefix}_PORT_{port}_{protocol.upper()}"
        env += [
            f"{name}={url}", f"{name}_ADDR={address}", f"{name}_PORT={port}", f"{name}_PROTO={protocol}",
        ]  # fmt: skip
    return env


# -- limits and security ---------------------------------------------------------------------------


def _ulimits(engine: Engine, host: HostConfig) -> tuple[tuple[str, int, int], ...]:
    limits = {
        name: (name, limit.soft, limit.hard)
        for name, limit in engine.config.default_ulimits.items()
    }
    for limit in host.ulimits or ():
        limits[limit.name] = (limit.name, limit.soft, limit.hard)
    return tuple(limits.values())


def cgroup_path(engine: Engine, record: ContainerRecord) -> str:
    """/sampan/<id>, or below --cgroup-parent; systemd's driver wants slice:prefix:name."""
    parent = record.host_config.cgroup_parent
    if engine.config.cgroup_driver == "none":
        return ""
    if engine.config.cgroup_driver == "systemd":
        return f"{parent or 'system.slice'}:sampan:{record.id}"
    base = parent or engine.config.cgroup_parent
    return f"/{base.strip('/')}/{record.id}"


def seccomp_profile(engine: Engine, host: HostConfig) -> tuple[LinuxSeccomp | None, bool]:
    """(a profile given by the user, whether the built-in one applies)."""
    if host.privileged:
        return None, False
    chosen = engine.config.seccomp_profile
    for text in host.security_opt or ():
        key, _, value = text.partition("=") if "=" in text else text.partition(":")
        if key == "seccomp":
            return _named_profile(engine, host, value, from_client=True)
    return _named_profile(engine, host, chosen, from_client=False)


def _named_profile(
    engine: Engine, host: HostConfig, value: str, *, from_client: bool
) -> tuple[LinuxSeccomp | None, bool]:
    if value in ("builtin", ""):
        return None, True
    if value == "unconfined":
        return None, False
    # A client sends the text of its profile; a path would be a file of this host that the client may not read.
    text = value if from_client else Path(value).read_text()
    capabilities = granted_capabilities(host.cap_add, host.cap_drop, privileged=host.privileged)
    profile = seccomp.from_profile(
        text,
        capabilities=capabilities,
        architecture=engine.facts.architecture,
        kernel=engine.facts.kernel,
    )
    return profile, False
