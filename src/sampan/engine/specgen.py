"""A container's OCI spec, built by an ordered list of small contributors. Pure: no root, no file is read.

    ContainerRecord + Sources + SharedFacts ──CONTRIBUTORS──► Spec (a dict, config.json of runtime-spec 1.2)

A feature is a function and a line in CONTRIBUTORS. What had to be looked up on the host (user ids, mount sources,
device numbers, other containers' namespaces) comes in through `Sources`, made by resources.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sampan.engine.records import ContainerRecord, MountRecord, SharedFacts
from sampan.engine.users import ExecUser
from sampan.engine.validate import parse_device_rule
from sampan.engine.words import granted_capabilities
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import HostConfig, Resources, ThrottleDevice
from sampan.spec.runtime import (
    OCI_VERSION,
    DeviceRule,
    IDMapping,
    LinuxResources,
    LinuxSeccomp,
    Mount,
    Namespace,
    Process,
    Spec,
)
from sampan.spec.runtime import Capabilities as CapabilitySets

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CPU_PERIOD = 100_000
ALL_IDS = (1 << 32) - 1


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device of the host, looked up."""

    path: str  # in the container
    type: str  # "c" or "b"
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str = "rwm"


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What was found on the host for one start."""

    rootfs: str
    user: ExecUser
    files: dict[str, str] = {}  # /etc/hosts -> host path of the container's own copy
    mounts: tuple[MountRecord, ...] = ()  # sources resolved
    extra_mounts: tuple[Mount, ...] = ()  # already in OCI form: image mounts, shared /dev/shm
    devices: tuple[DeviceNode, ...] = ()
    namespaces: dict[str, str] = {}  # ipc, pid, network, uts -> /proc path of the one to join
    device_numbers: dict[str, tuple[int, int]] = {}  # host path -> numbers, for blkio
    seccomp: LinuxSeccomp | None = None
    link_env: tuple[str, ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    cgroup_path: str = ""
    shm_from_host: bool = False


def generate(record: ContainerRecord, sources: Sources, facts: SharedFacts) -> Spec:
    """The whole spec."""
    spec: Spec = {"ociVersion": OCI_VERSION, "linux": {}}
    for contribute in CONTRIBUTORS:
        contribute(spec, record, sources, facts)
    return spec


# -- the process -----------------------------------------------------------------------------------


def _process(spec: Spec, record: ContainerRecord, sources: Sources, facts: SharedFacts) -> None:
    config, host = record.config, record.host_config
    process: Process = {
        "terminal": config.tty,
        "args": [record.path, *record.args],
        "env": environment(record, sources.user, sources.link_env),
        "cwd": config.working_dir or "/",
        "user": sources.user.as_oci(facts),
        "oomScoreAdj": host.oom_score_adj,
    }
    if config.tty and any(host.console_size):
        height, width = host.console_size[:2]
        process["consoleSize"] = {"height": height, "width": width}
    spec["process"] = process


def environment(
    record: ContainerRecord, user: ExecUser, link_env: tuple[str, ...] = ()
) -> list[str]:
    """PATH, HOSTNAME, TERM, links, then the configured ones over them, and HOME where nobody set it."""
    merged: dict[str, str] = {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": f"HOSTNAME={record.config.hostname}",
    }
    if record.config.tty:
        merged["TERM"] = "TERM=xterm"
    for text in link_env:
        merged[text.partition("=")[0]] = text
    return complete_environment(merged, record.config.env, user)


def complete_environment(
    merged: dict[str, str], wanted: list[str] | None, user: ExecUser
) -> list[str]:
    for text in wanted or ():
        name, equals, _ = text.partition("=")
        if equals:
            merged[name] = text
        else:
            merged.pop(name, None)  # "-e NAME" without a value anywhere takes it away
    home = merged.get("HOME", "HOME=")
    if home == "HOME=":
        merged["HOME"] = f"HOME={user.home}"
    return list(merged.values())


def _root(spec: Spec, record: ContainerRecord, sources: Sources, _facts: SharedFacts) -> None:
    spec["root"] = {"path": sources.rootfs, "readonly": record.host_config.readonly_rootfs}


def _names(spec: Spec, record: ContainerRecord, _sources: Sources, _facts: SharedFacts) -> None:
    if record.host_config.uts_mode != "host":
        spec["hostname"] = record.config.hostname
        if record.config.domainname:
            spec["domainname"] = record.config.domainname


# -- namespaces ------------------------------------------------------------------------------------


def _namespaces(spec: Spec, record: ContainerRecord, sources: Sources, _facts: SharedFacts) -> None:
    host = record.host_config
    shared = {
        "network": host.network_mode == "host",
        "pid": host.pid_mode == "host",
        "ipc": host.ipc_mode == "host",
        "uts": host.uts_mode == "host",
        "cgroup": host.cgroupns_mode == "host",
    }
    kinds: tuple[Any, ...] = ("mount", "network", "uts", "pid", "ipc", "cgroup")
    namespaces: list[Namespace] = []
    for kind in kinds:
        path = sources.namespaces.get(kind)
        if path:
            namespaces.append({"type": kind, "path": path})
        elif not shared.get(kind, False):
            namespaces.append({"type": kind})
    spec["linux"]["namespaces"] = namespaces


# -- mounts ----------------------------------------------------------------------------------------


def _mounts(spec: Spec, record: ContainerRecord, sources: Sources, facts: SharedFacts) -> None:
    """System mounts first, then by depth, so that nothing hides what lies below it."""
    mounts = _system_mounts(record, facts)
    own = [
        *(mount_of(m) for m in sources.mounts),
        *_file_mounts(record, sources),
        *sources.extra_mounts,
        *_shm_mounts(record, sources),
    ]
    own = _without_shadowed(own)
    replaced = {m["destination"] for m in own}
    mounts = [m for m in mounts if m["destination"] not in replaced]
    mounts += sorted(
        own, key=lambda m: m["destination"].count("/") if m["destination"] != "/" else 0
    )
    spec["mounts"] = mounts
    propagation = _rootfs_propagation(sources.mounts)
    if propagation:
        spec["linux"]["rootfsPropagation"] = propagation


def _system_mounts(record: ContainerRecord, facts: SharedFacts) -> list[Mount]:
    host = record.host_config
    open_sys = "rw" if host.privileged else "ro"
    mounts: list[Mount] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/sys",
            "type": "sysfs",
            "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", open_sys],
        },
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [open_sys, "nosuid", "noexec", "nodev"],
        },
    ]  # fmt: skip
    if host.ipc_mode != "host":
        mounts.append(
            {
                "destination": "/dev/mqueue",
                "type": "mqueue",
                "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            }
        )
    if facts.rootless:
        for mount in mounts:
            if mount["destination"] == "/dev/pts":
                mount["options"] = [o for o in mount["options"] if not o.startswith("gid=")]
    return mounts


def mount_of(mount: MountRecord) -> Mount:
    """One of the user's mounts in OCI words."""
    if mount.type == "tmpfs":
        return {
            "destination": mount.destination,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": list(mount.options) or ["noexec", "nosuid", "nodev"],
        }
    options = ["bind" if mount.non_recursive else "rbind"]
    if not mount.writable:
        alone = mount.non_recursive or mount.read_only_non_recursive
        options.append("ro" if alone else "rro")
    # No "rw": it would make what the host has mounted read-only writable.
    options.append(mount.propagation or "rprivate")
    made: Mount = {
        "destination": mount.destination,
        "type": "bind",
        "source": mount.source,
        "options": options,
    }
    if mount.owners:
        options.append("idmap" if mount.non_recursive else "ridmap")
        made["uidMappings"] = exchanged(*mount.owners[0])
        made["gidMappings"] = exchanged(*mount.owners[1])
    return made


def exchanged(there: int, inside: int) -> list[IDMapping]:
    """All ids as they are, but for two that change places: an owner on disk and who it is to be in the container."""
    low, high = sorted((there, inside))
    rows = [(0, 0, ALL_IDS)]
    if low != high:
        rows = [
            (0, 0, low),
            (low, high, 1),
            (low + 1, low + 1, high - low - 1),
            (high, low, 1),
            (high + 1, high + 1, ALL_IDS - high - 1),
        ]
    return [
        {"containerID": first, "hostID": shown, "size": size} for first, shown, size in rows if size
    ]


def _file_mounts(record: ContainerRecord, sources: Sources) -> list[Mount]:
    """The container's own /etc/hosts, hostname and resolv.conf, unless the user put something there."""
    taken = {mount.destination for mount in sources.mounts}
    access = "ro" if record.host_config.readonly_rootfs else "rw"
    return [
        {
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": ["rbind", access, "rprivate"],
        }
        for destination, source in sources.files.items()
        if destination not in taken
    ]


def _shm_mounts(record: ContainerRecord, sources: Sources) -> list[Mount]:
    host = record.host_config
    if host.ipc_mode == "none" or any(m.destination == "/dev/shm" for m in sources.mounts):
        return []
    if any(m["destination"] == "/dev/shm" for m in sources.extra_mounts):
        return []
    if host.ipc_mode == "host":
        return [
            {
                "destination": "/dev/shm",
                "type": "bind",
                "source": "/dev/shm",
                "options": ["rbind", "rw", "rprivate"],
            }
        ]
    return [
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", f"size={host.shm_size}"],
        }
    ]


def _without_shadowed(mounts: list[Mount]) -> list[Mount]:
    """The last mount of a destination wins, as it would be the only one seen."""
    last = {mount["destination"]: mount for mount in mounts}
    return [mount for mount in mounts if last[mount["destination"]] is mount]


def _rootfs_propagation(mounts: tuple[MountRecord, ...]) -> str:
    """A shared or slave mount only works below a root that is one."""
    words = {mount.propagation for mount in mounts}
    if words & {"shared", "rshared"}:
        return "shared"
    return "slave" if words & {"slave", "rslave"} else ""


# -- devices and limits ----------------------------------------------------------------------------


def _rule(kind: str, major: int | None, minor: int | None, access: str) -> DeviceRule:
    rule: DeviceRule = {"allow": True, "type": kind, "access": access}
    if major is not None:
        rule["major"] = major
    if minor is not None:
        rule["minor"] = minor
    return rule


# Deny all, then: making any node (not opening it), and null, zero, full, random, urandom, tty, console, ptmx, pts.
_DEFAULT_DEVICE_RULES: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("c", None, None, "m"), ("b", None, None, "m"), ("c", 1, 3, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 7, "rwm"),
    ("c", 1, 8, "rwm"), ("c", 1, 9, "rwm"), ("c", 5, 0, "rwm"), ("c", 5, 1, "rwm"), ("c", 5, 2, "rwm"),
    ("c", 136, None, "rwm"),
)  # fmt: skip


def device_rules(record: ContainerRecord, devices: tuple[DeviceNode, ...]) -> list[DeviceRule]:
    host = record.host_config
    if host.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[DeviceRule] = [{"allow": False, "access": "rwm"}]
    rules += [_rule(*numbers) for numbers in _DEFAULT_DEVICE_RULES]
    rules += [_rule(d.type, d.major, d.minor, d.access) for d in devices]
    for text in host.device_cgroup_rules or ():
        kind, major, minor, access = parse_device_rule(text)
        if kind == "a":
            rules.append({"allow": True, "access": access})
        else:
            rules.append(_rule(kind, major, minor, access))
    return rules


def _devices(spec: Spec, _record: ContainerRecord, sources: Sources, _facts: SharedFacts) -> None:
    if sources.devices:
        spec["linux"]["devices"] = [
            {
                "path": d.path, "type": d.type, "major": d.major, "minor": d.minor,
                "fileMode": d.mode, "uid": d.uid, "gid": d.gid,
            }
            for d in sources.devices
        ]  # fmt: skip


def _limits(spec: Spec, record: ContainerRecord, sources: Sources, _facts: SharedFacts) -> None:
    resources = linux_resources(record.host_config, sources.device_numbers)
    resources["devices"] = device_rules(record, sources.devices)
    spec["linux"]["resources"] = resources
    spec["linux"]["cgroupsPath"] = sources.cgroup_path


def linux_resources(
    wanted: Resources, device_numbers: dict[str, tuple[int, int]] | None = None
) -> LinuxResources:
    """Docker's limits in OCI words; only what was asked for."""
    numbers = device_numbers or {}
    result: LinuxResources = {}
    memory = _memory(wanted)
    if memory:
        result["memory"] = memory
    cpu = _cpu(wanted)
    if cpu:
        result["cpu"] = cpu
    if wanted.pids_limit:
        # Docker's "no limit" is any number below 1; OCI's is -1.
        result["pids"] = {"limit": wanted.pids_limit if wanted.pids_limit > 0 else -1}
    block = _block_io(wanted, numbers)
    if block:
        result["blockIO"] = block
    return result


def _memory(wanted: Resources) -> Any:
    memory: dict[str, Any] = {}
    if wanted.memory:
        memory["limit"] = wanted.memory
    if wanted.memory_reservation:
        memory["reservation"] = wanted.memory_reservation
    if wanted.memory_swap:
        memory["swap"] = wanted.memory_swap
    if wanted.memory_swappiness is not None and wanted.memory_swappiness != -1:
        memory["swappiness"] = wanted.memory_swappiness
    if wanted.oom_kill_disable:
        memory["disableOOMKiller"] = True
    return memory


def _cpu(wanted: Resources) -> Any:
    cpu: dict[str, Any] = {}
    if wanted.cpu_shares:
        cpu["shares"] = wanted.cpu_shares
    if wanted.nano_cpus:
        cpu["period"] = CPU_PERIOD
        cpu["quota"] = wanted.nano_cpus * CPU_PERIOD // 10**9
    if wanted.cpu_period:
        cpu["period"] = wanted.cpu_period
    if wanted.cpu_quota:
        cpu["quota"] = wanted.cpu_quota
    if wanted.cpu_realtime_period:
        cpu["realtimePeriod"] = wanted.cpu_realtime_period
    if wanted.cpu_realtime_runtime:
        cpu["realtimeRuntime"] = wanted.cpu_realtime_runtime
    if wanted.cpuset_cpus:
        cpu["cpus"] = wanted.cpuset_cpus
    if wanted.cpuset_mems:
        cpu["mems"] = wanted.cpuset_mems
    return cpu


def _block_io(wanted: Resources, numbers: dict[str, tuple[int, int]]) -> Any:
    block: dict[str, Any] = {}
    if wanted.blkio_weight:
        block["weight"] = wanted.blkio_weight
    if wanted.blkio_weight_device:
        block["weightDevice"] = [
            {"major": numbers[d.path][0], "minor": numbers[d.path][1], "weight": d.weight}
            for d in wanted.blkio_weight_device
        ]
    throttles: tuple[tuple[str, list[ThrottleDevice] | None], ...] = (
        ("throttleReadBpsDevice", wanted.blkio_device_read_bps),
        ("throttleWriteBpsDevice", wanted.blkio_device_write_bps),
        ("throttleReadIOPSDevice", wanted.blkio_device_read_iops),
        ("throttleWriteIOPSDevice", wanted.blkio_device_write_iops),
    )
    for name, devices in throttles:
        if devices:
            block[name] = [
                {"major": numbers[d.path][0], "minor": numbers[d.path][1], "rate": d.rate}
                for d in devices
            ]
    return block


# -- what it may do --------------------------------------------------------------------------------


def _capabilities(
    spec: Spec, record: ContainerRecord, sources: Sources, _facts: SharedFacts
) -> None:
    host = record.host_config
    names = granted_capabilities(host.cap_add, host.cap_drop, privileged=host.privileged)
    spec["process"]["capabilities"] = capability_sets(names, sources.user.uid)


def capability_sets(names: list[str], uid: int) -> CapabilitySets:
    """Nothing inheritable or ambient (CVE-2022-24769); a user other than root starts with none in effect."""
    if uid != 0:
        return {
            "bounding": names,
            "effective": [],
            "permitted": [],
            "inheritable": [],
            "ambient": [],
        }
    return {
        "bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": [],
    }  # fmt: skip


def no_new_privileges(host: HostConfig) -> bool | None:
    """What --security-opt says, or None where it says nothing."""
    for text in host.security_opt or ():
        key, _, value = text.replace(":", "=").partition("=")
        if key == "no-new-privileges":
            return value != "false"
    return None


def _security(spec: Spec, record: ContainerRecord, sources: Sources, _facts: SharedFacts) -> None:
    if no_new_privileges(record.host_config):
        spec["process"]["noNewPrivileges"] = True
    profile = apparmor_profile(record.host_config)
    if profile:
        spec["process"]["apparmorProfile"] = profile
    if sources.seccomp is not None:
        spec["linux"]["seccomp"] = sources.seccomp


def apparmor_profile(host: HostConfig) -> str:
    """A profile named by the user; none is loaded on the user's behalf."""
    for text in host.security_opt or ():
        key, _, value = text.partition("=") if "=" in text else text.partition(":")
        if key == "apparmor" and value != "unconfined":
            return value
    return ""


def _paths(spec: Spec, record: ContainerRecord, _sources: Sources, _facts: SharedFacts) -> None:
    spec["linux"]["maskedPaths"] = list(record.host_config.masked_paths or [])
    spec["linux"]["readonlyPaths"] = list(record.host_config.readonly_paths or [])


def _sysctls(spec: Spec, record: ContainerRecord, sources: Sources, facts: SharedFacts) -> None:
    host = record.host_config
    settings: dict[str, str] = {}
    own_network = host.network_mode != "host" and "network" not in sources.namespaces
    if own_network:
        settings["net.ipv4.ip_unprivileged_port_start"] = "0"
    if own_network and not facts.rootless:  # a user namespace does not have all these groups
        settings["net.ipv4.ping_group_range"] = "0 2147483647"
    for name in host.sysctls:
        if name.startswith(("net.", "net/")) and host.network_mode == "host":
            raise InvalidArgument(
                "failed to create task for container: failed to create shim task: "
                f'OCI runtime create failed: runc create failed: sysctl "{name}" not allowed in host network namespace: unknown'
            )
    settings |= host.sysctls
    if settings:
        spec["linux"]["sysctl"] = settings


def _rlimits(spec: Spec, _record: ContainerRecord, sources: Sources, facts: SharedFacts) -> None:
    limits = sources.ulimits
    if facts.open_files is not None and all(name != "nofile" for name, _, _ in limits):
        limits = (*limits, ("nofile", *facts.open_files))
    if limits:
        spec["process"]["rlimits"] = [
            {"type": f"RLIMIT_{name.upper()}", "soft": _unlimited(soft), "hard": _unlimited(hard)}
            for name, soft, hard in limits
        ]


def _unlimited(number: int) -> int:
    """-1 is RLIM_INFINITY, which OCI writes as the largest unsigned number."""
    return number if number >= 0 else (1 << 64) - 1


def _annotations(
    spec: Spec, record: ContainerRecord, _sources: Sources, _facts: SharedFacts
) -> None:
    if record.host_config.annotations:
        spec["annotations"] = dict(record.host_config.annotations)


Contributor = Callable[[Spec, ContainerRecord, Sources, SharedFacts], None]

CONTRIBUTORS: tuple[Contributor, ...] = (
    _process, _root, _names, _namespaces, _mounts, _devices, _limits, _capabilities, _security, _paths, _sysctls,
    _rlimits, _annotations,
)  # fmt: skip
