"""Is a config.json what the specification says? First its types, by one table, then what must fit together.

Every refusal is one line that begins with the field: `process.args: expected a list of strings, got number`.
Unknown fields are ignored (config.md "Extensibility": runtimes MUST NOT generate an error). Checks are a list
of small functions; a new rule is a function and a line in CHECKS.
"""

from __future__ import annotations

from sampan.errors import InvalidArgument
from sampan.linux import constants as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime import Spec

# Types: a word, a one-element list (list of), a dict (object with these fields), ("map", T) (any keys).
_IDS = [{"containerID": "uint32", "hostID": "uint32", "size": "uint32"}]
_THROTTLE = [{"major": "int", "minor": "int", "rate": "uint"}]
_HOOKS = [{"path": "string", "args": ["string"], "env": ["string"], "timeout": "int"}]
PROCESS: dict[str, Any] = {
    "terminal": "bool",
    "consoleSize": {"height": "uint16", "width": "uint16"},
    "user": {
        "uid": "uint32", "gid": "uint32", "umask": "uint32", "additionalGids": ["uint32"], "username": "string",
    },
    "args": ["string"],
    "env": ["string"],
    "cwd": "string",
    "capabilities": {
        "bounding": ["string"], "effective": ["string"], "inheritable": ["string"],
        "permitted": ["string"], "ambient": ["string"],
    },
    "rlimits": [{"type": "string", "soft": "uint", "hard": "uint"}],
    "noNewPrivileges": "bool",
    "apparmorProfile": "string",
    "selinuxLabel": "string",
    "oomScoreAdj": "int",
    "scheduler": {
        "policy": "string", "nice": "int", "priority": "int", "flags": ["string"],
        "runtime": "uint", "deadline": "uint", "period": "uint",
    },
    "ioPriority": {"class": "string", "priority": "int"},
    "execCPUAffinity": {"initial": "string", "final": "string"},
}  # fmt: skip
RESOURCES: dict[str, Any] = {
    "devices": [{"allow": "bool", "type": "string", "major": "int", "minor": "int", "access": "string"}],
    "memory": {
        "limit": "int", "reservation": "int", "swap": "int", "kernel": "int", "kernelTCP": "int",
        "swappiness": "uint", "disableOOMKiller": "bool", "useHierarchy": "bool", "checkBeforeUpdate": "bool",
    },
    "cpu": {
        "shares": "uint", "quota": "int", "burst": "uint", "period": "uint", "realtimeRuntime": "int",
        "realtimePeriod": "uint", "cpus": "string", "mems": "string", "idle": "int",
    },
    "pids": {"limit": "int"},
    "blockIO": {
        "weight": "uint16", "leafWeight": "uint16",
        "weightDevice": [{"major": "int", "minor": "int", "weight": "uint16", "leafWeight": "uint16"}],
        "throttleReadBpsDevice": _THROTTLE, "throttleWriteBpsDevice": _THROTTLE,
        "throttleReadIOPSDevice": _THROTTLE, "throttleWriteIOPSDevice": _THROTTLE,
    },
    "hugepageLimits": [{"pageSize": "string", "limit": "uint"}],
    "network": {"classID": "uint32", "priorities": [{"name": "string", "priority": "uint32"}]},
    "rdma": ("map", {"hcaHandles": "uint32", "hcaObjects": "uint32"}),
    "unified": ("map", "string"),
}  # fmt: skip
SPEC: dict[str, Any] = {
    "ociVersion": "string",
    "root": {"path": "string", "readonly": "bool"},
    "mounts": [
        {
            "destination": "string", "type": "string", "source": "string", "options": ["string"],
            "uidMappings": _IDS, "gidMappings": _IDS,
        }
    ],
    "process": PROCESS,
    "hostname": "string",
    "domainname": "string",
    "hooks": dict.fromkeys(
        ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"), _HOOKS
    ),
    "annotations": ("map", "string"),
    "linux": {
        "namespaces": [{"type": "string", "path": "string"}],
        "uidMappings": _IDS,
        "gidMappings": _IDS,
        "timeOffsets": ("map", {"secs": "int", "nanosecs": "uint32"}),
        "devices": [
            {
                "path": "string", "type": "string", "major": "int", "minor": "int",
                "fileMode": "uint32", "uid": "uint32", "gid": "uint32",
            }
        ],
        "netDevices": ("map", {"name": "string"}),
        "cgroupsPath": "string",
        "resources": RESOURCES,
        "intelRdt": {
            "closID": "string", "schemata": ["string"], "l3CacheSchema": "string", "memBwSchema": "string",
            "enableMonitoring": "bool",
        },
        "memoryPolicy": {"mode": "string", "nodes": "string", "flags": ["string"]},
        "sysctl": ("map", "string"),
        "seccomp": {
            "defaultAction": "string", "defaultErrnoRet": "uint32", "architectures": ["string"],
            "flags": ["string"], "listenerPath": "string", "listenerMetadata": "string",
            "syscalls": [
                {
                    "names": ["string"], "action": "string", "errnoRet": "uint32",
                    "args": [{"index": "uint32", "value": "uint", "valueTwo": "uint", "op": "string"}],
                }
            ],
        },
        "rootfsPropagation": "string",
        "maskedPaths": ["string"],
        "readonlyPaths": ["string"],
        "mountLabel": "string",
        "personality": {"domain": "string", "flags": ["string"]},
    },
}  # fmt: skip

_RANGES = {
    "int": (-(1 << 63), (1 << 63) - 1),
    "uint": (0, (1 << 64) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint16": (0, (1 << 16) - 1),
}


def validate(spec: Any) -> Spec:
    """The spec itself, when it is one; InvalidArgument naming the first field that is wrong."""
    if not isinstance(spec, dict):
        raise _wrong("config.json", "an object", spec)
    check_types(spec, SPEC, "")
    for check in CHECKS:
        check(spec)
    return spec  # type: ignore[return-value]


def validate_process(process: Any) -> None:
    """What `exec --process` reads."""
    check_types(process, PROCESS, "process")
    _check_process({"process": process})


# ------------------------------------------------------------------------------------------- types


def check_types(value: Any, kind: Any, field: str) -> None:
    """Hold a decoded JSON value to a table of types. null counts as absent, as Go has it."""
    if value is None:
        return
    if isinstance(kind, dict):
        _check_object(value, kind, field)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise _wrong(field, _describe(kind), value)
        item_kind = kind[0]
        if item_kind == "string":
            for item in value:
                if not isinstance(item, str):
                    raise _wrong(field, "a list of strings", item)
                if "\0" in item:
                    raise InvalidArgument(f"{field}: a string holds a NUL byte")
            return
        for index, item in enumerate(value):
            if item is None:
                raise _wrong(f"{field}[{index}]", _describe(item_kind), None)
            check_types(item, item_kind, f"{field}[{index}]")
    elif isinstance(kind, tuple):
        if not isinstance(value, dict):
            raise _wrong(field, "an object", value)
        for name, item in list(value.items()):
            if item is None:
                del value[name]
            else:
                check_types(item, kind[1], f"{field}.{name}")
    else:
        _check_scalar(value, kind, field)


def _check_object(value: Any, kind: dict[str, Any], field: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(field or "config.json", "an object", value)
    prefix = field + "." if field else ""
    for name, item in list(value.items()):
        if item is None:
            del value[name]  # absent, as Go has it
            continue
        if name not in kind:
            name = _as_spelled(value, name, kind)
        if name in kind:
            check_types(item, kind[name], prefix + name)


def _as_spelled(value: dict[str, Any], name: str, kind: dict[str, Any]) -> str:
    """Engines written in Go read `pagesize` for `pageSize`, so such a field means what its writer saw it do."""
    for known in kind:
        if known.lower() == name.lower() and known not in value:
            value[known] = value.pop(name)
            return known
    return name


def _check_scalar(value: Any, kind: str, field: str) -> None:
    if kind == "string":
        if not isinstance(value, str):
            raise _wrong(field, "a string", value)
        if "\0" in value:
            raise InvalidArgument(f"{field}: holds a NUL byte")
    elif kind == "bool":
        if not isinstance(value, bool):
            raise _wrong(field, "true or false", value)
    else:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(field, "an integer", value)
        low, high = _RANGES[kind]
        if not low <= value <= high:
            raise InvalidArgument(f"{field}: {value} is out of range")


def _describe(kind: Any) -> str:
    if isinstance(kind, list):
        return "a list of strings" if kind[0] == "string" else "a list"
    if isinstance(kind, (dict, tuple)):
        return "an object"
    return {"string": "a string", "bool": "true or false"}.get(kind, "an integer")


def _wrong(field: str, expected: str, value: Any) -> InvalidArgument:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return InvalidArgument(f"{field}: expected {expected}, got {names.get(type(value), 'null')}")


# ------------------------------------------------------------------------------------------ checks


def _check_version(spec: Any) -> None:
    """Semantic versioning: any 1.x is understood, its unknown fields ignored."""
    version = spec.get("ociVersion")
    if not version:
        raise InvalidArgument("ociVersion: required")
    numbers = version.split("+")[0].split("-")[0].split(".")
    if len(numbers) != 3 or not all(n.isascii() and n.isdigit() for n in numbers):
        raise InvalidArgument(f"ociVersion: {version!r} is not a semantic version")
    if numbers[0] != "1":
        raise InvalidArgument(
            f"ociVersion: unsupported version {version!r}, this runtime knows 1.x"
        )


def _check_root(spec: Any) -> None:
    root = spec.get("root")
    if not root or not root.get("path"):
        raise InvalidArgument("root.path: required")


def _check_process(spec: Any) -> None:
    process = spec.get("process")
    if process is None:
        raise InvalidArgument("process property must not be empty")
    if not process.get("cwd"):
        raise InvalidArgument("process.cwd: Cwd property must not be empty")
    if not process["cwd"].startswith("/"):
        raise InvalidArgument("process.cwd: Cwd must be an absolute path")
    if not process.get("args"):
        raise InvalidArgument("process.args: args must not be empty")
    seen = set()
    for limit in process.get("rlimits") or ():
        kind = limit.get("type")
        if kind not in c.RLIMITS:
            raise InvalidArgument(f"process.rlimits: unknown limit {kind!r}")
        if kind in seen:
            raise InvalidArgument(f"process.rlimits: {kind} is listed twice")
        if "soft" not in limit or "hard" not in limit:
            raise InvalidArgument(f"process.rlimits: {kind} needs soft and hard")
        seen.add(kind)
    score = process.get("oomScoreAdj")
    if score is not None and not -1000 <= score <= 1000:
        raise InvalidArgument(f"process.oomScoreAdj: {score} is out of range, -1000 to 1000")
    umask = (process.get("user") or {}).get("umask")
    if umask is not None and umask > 0o7777:
        raise InvalidArgument(f"process.user.umask: {umask} is out of range")
    _check_capabilities(process.get("capabilities") or {})
    _check_scheduling(process)


def _check_capabilities(capabilities: dict[str, list[str]]) -> None:
    for which, names in capabilities.items():
        for name in names or ():
            if name not in c.CAPS:
                raise InvalidArgument(f"process.capabilities.{which}: unknown capability {name!r}")


def _check_scheduling(process: Any) -> None:
    scheduler = process.get("scheduler")
    if scheduler:
        policy = scheduler.get("policy")
        if not policy:
            raise InvalidArgument("process.scheduler.policy: scheduler policy is required")
        if policy not in c.SCHED_POLICIES:
            raise InvalidArgument(f"process.scheduler.policy: unknown value {policy!r}")
        if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= scheduler.get("nice", 0) <= 19:
            raise InvalidArgument(f"process.scheduler.nice: {scheduler['nice']} is out of range")
        if scheduler.get("priority") and policy not in ("SCHED_FIFO", "SCHED_RR"):
            raise InvalidArgument("process.scheduler.priority: only for SCHED_FIFO and SCHED_RR")
        _check_deadline(scheduler, policy)
        for flag in scheduler.get("flags") or ():
            if flag not in c.SCHED_FLAGS:
                raise InvalidArgument(f"process.scheduler.flags: unknown value {flag!r}")
    priority = process.get("ioPriority")
    if priority:
        if priority.get("class") not in c.IOPRIO_CLASSES:
            raise InvalidArgument(
                f"process.ioPriority.class: unknown value {priority.get('class')!r}"
            )
        if not 0 <= priority.get("priority", 0) <= 7:
            raise InvalidArgument(
                f"process.ioPriority.priority: {priority['priority']} is out of range, 0 to 7"
            )


MIN_DEADLINE_NS, MAX_DEADLINE_NS = (
    1024,
    (1 << 63) - 1,
)  # kernel/sched/deadline.c: DL_SCALE, the sign bit


def _check_deadline(scheduler: Any, policy: str) -> None:
    """The kernel's only answer to these is EINVAL; say which it is."""
    times = {name: scheduler.get(name) for name in ("runtime", "deadline", "period")}
    if policy != "SCHED_DEADLINE":
        if any(times.values()):
            raise InvalidArgument(
                "process.scheduler: runtime, deadline and period are only for SCHED_DEADLINE"
            )
        return
    field = "process.scheduler: sched_setattr: `SCHED_DEADLINE`"
    for name in ("runtime", "deadline"):
        if times[name] is None:
            raise InvalidArgument(f"{field} requires `{name}`")
    runtime, deadline = times["runtime"], times["deadline"]
    period = times["period"] or deadline
    if runtime == 0:
        raise InvalidArgument(f"{field} runtime must be greater than 0")
    if not MIN_DEADLINE_NS <= runtime <= MAX_DEADLINE_NS:
        raise InvalidArgument(
            f"{field} runtime {runtime} must be between {MIN_DEADLINE_NS} and {MAX_DEADLINE_NS}"
        )
    if runtime > deadline:
        raise InvalidArgument(f"{field} runtime ({runtime}) must be <= deadline ({deadline})")
    if deadline > period:
        raise InvalidArgument(f"{field} deadline ({deadline}) must be <= period ({period})")


def _check_mounts(spec: Any) -> None:
    for index, mount in enumerate(spec.get("mounts") or ()):
        destination = mount.get("destination")
        if not destination:
            raise InvalidArgument(f"mounts[{index}].destination: required")
        if not destination.startswith("/"):
            raise InvalidArgument(
                f"mounts[{index}].destination: {destination!r} is not an absolute path"
            )


def _check_namespaces(spec: Any) -> None:
    linux = spec.get("linux") or {}
    kinds = set()
    for index, namespace in enumerate(linux.get("namespaces") or ()):
        kind = namespace.get("type")
        if kind not in c.NAMESPACE_FLAGS:
            raise InvalidArgument(f"linux.namespaces[{index}].type: unknown value {kind!r}")
        if kind in kinds:
            raise InvalidArgument(f"linux.namespaces[{index}].type: {kind} is listed twice")
        if namespace.get("path") and not namespace["path"].startswith("/"):
            raise InvalidArgument(
                f"linux.namespaces[{index}].path: {namespace['path']!r} is not an absolute path"
            )
        kinds.add(kind)
    if spec.get("hostname") and "uts" not in kinds:
        raise InvalidArgument("hostname: unable to set hostname without a private UTS namespace")
    if spec.get("domainname") and "uts" not in kinds:
        raise InvalidArgument(
            "domainname: unable to set domainname without a private UTS namespace"
        )
    if (linux.get("maskedPaths") or linux.get("readonlyPaths")) and "mount" not in kinds:
        raise InvalidArgument(
            "linux.maskedPaths: unable to restrict sys entries without a private MNT namespace"
        )
    if (linux.get("uidMappings") or linux.get("gidMappings")) and "user" not in kinds:
        raise InvalidArgument(
            "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config"
        )
    if linux.get("timeOffsets") and "time" not in kinds:
        raise InvalidArgument(
            "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config"
        )
    for clock in linux.get("timeOffsets") or ():
        if clock not in ("boottime", "monotonic"):
            raise InvalidArgument(f"linux.timeOffsets: unknown clock {clock!r}")
    _check_net_devices(linux.get("netDevices") or {}, kinds)


def _check_net_devices(devices: Any, kinds: set[str]) -> None:
    if devices and "network" not in kinds:
        raise InvalidArgument(
            "linux.netDevices: unable to move network devices without a NET namespace"
        )
    for name, device in devices.items():
        for text in (name, (device or {}).get("name", name)):
            if (
                not text
                or len(text.encode("utf-8", "replace")) > 15
                or text in (".", "..")
                or any(x in text for x in "/: \t\n")
            ):
                raise InvalidArgument(f"linux.netDevices: invalid network device name {text!r}")


def _check_devices(spec: Any) -> None:
    linux = spec.get("linux") or {}
    for index, device in enumerate(linux.get("devices") or ()):
        if not (device.get("path") or "").startswith("/"):
            raise InvalidArgument(
                f"linux.devices[{index}].path: {device.get('path')!r} is not an absolute path"
            )
        if device.get("type") not in ("c", "u", "b", "p"):
            raise InvalidArgument(
                f"linux.devices[{index}].type: unknown value {device.get('type')!r}"
            )
    for index, rule in enumerate((linux.get("resources") or {}).get("devices") or ()):
        if rule.get("type", "a") not in ("a", "c", "b", "u", "p", ""):
            raise InvalidArgument(
                f"linux.resources.devices[{index}].type: unknown value {rule['type']!r}"
            )
        if any(letter not in "rwm" for letter in rule.get("access") or ""):
            raise InvalidArgument(
                f"linux.resources.devices[{index}].access: unknown value {rule['access']!r}"
            )


def _check_hooks(spec: Any) -> None:
    for kind, hooks in (spec.get("hooks") or {}).items():
        for index, hook in enumerate(hooks or ()):
            if not (hook.get("path") or "").startswith("/"):
                raise InvalidArgument(
                    f"hooks.{kind}[{index}].path: {hook.get('path')!r} is not an absolute path"
                )
            timeout = hook.get("timeout")
            if timeout is not None and timeout <= 0:
                raise InvalidArgument(
                    f"hooks.{kind}[{index}].timeout: {timeout} is not greater than zero"
                )


# sysctls that belong to a namespace; everything else would change the host.
_IPC_SYSCTLS = frozenset(
    {
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
        "kernel.shmmni", "kernel.shm_rmid_forced",
    }
)  # fmt: skip


def _check_sysctls(spec: Any) -> None:
    linux = spec.get("linux") or {}
    kinds = {namespace["type"] for namespace in linux.get("namespaces") or ()}
    for name in linux.get("sysctl") or {}:
        normal = name.replace("/", ".")
        if normal in _IPC_SYSCTLS or normal.startswith("fs.mqueue."):
            if "ipc" not in kinds:
                raise InvalidArgument(
                    f'linux.sysctl: sysctl "{name}" is not allowed in the hosts ipc namespace'
                )
        elif normal.startswith("net."):
            if "network" not in kinds:
                raise InvalidArgument(
                    f'linux.sysctl: sysctl "{name}" not allowed in host network namespace'
                )
        elif normal == "kernel.domainname":
            if "uts" not in kinds:
                raise InvalidArgument(
                    f'linux.sysctl: sysctl "{name}" is not allowed in the hosts uts namespace'
                )
            if spec.get("domainname") not in (None, "", linux["sysctl"][name]):
                raise InvalidArgument(
                    f'linux.sysctl: sysctl "{name}" is not allowed as it conflicts with the OCI "domainname" field'
                )
        elif normal == "kernel.hostname":
            raise InvalidArgument(
                f'linux.sysctl: sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field'
            )
        elif normal.startswith("user."):
            if "user" not in kinds:
                raise InvalidArgument(
                    f"linux.sysctl: setting ucounts without a user namespace not allowed: {name}"
                )
        else:
            raise InvalidArgument(
                f'linux.sysctl: sysctl "{name}" is not in a separate kernel namespace'
            )


def _check_memory_policy(spec: Any) -> None:
    policy = (spec.get("linux") or {}).get("memoryPolicy")
    if policy is not None:
        from .numberlist import memory_policy

        memory_policy(policy)


def _check_intel_rdt(spec: Any) -> None:
    if (spec.get("linux") or {}).get("intelRdt"):
        raise InvalidArgument(
            "linux.intelRdt: is specified in config, but Intel RDT is not enabled"
        )


def _check_personality(spec: Any) -> None:
    personality = (spec.get("linux") or {}).get("personality")
    if not personality:
        return
    if personality.get("domain") not in c.PERSONALITIES:
        raise InvalidArgument(
            f"linux.personality.domain: unknown value {personality.get('domain')!r}"
        )
    for flag in personality.get("flags") or ():
        if flag not in c.PERSONALITY_FLAGS:
            raise InvalidArgument(f"linux.personality.flags: unknown value {flag!r}")


# Lists whose items are of no use without these.
_NEEDED = {
    "hugepageLimits": ("pageSize", "limit"),
    "throttleReadBpsDevice": ("major", "minor", "rate"),
    "throttleWriteBpsDevice": ("major", "minor", "rate"),
    "throttleReadIOPSDevice": ("major", "minor", "rate"),
    "throttleWriteIOPSDevice": ("major", "minor", "rate"),
    "weightDevice": ("major", "minor"),
    "priorities": ("name", "priority"),
}


def _check_resources(spec: Any) -> None:
    check_resources((spec.get("linux") or {}).get("resources") or {}, "linux.resources")


def check_resources(resources: Any, field: str) -> None:
    """What a limit needs to be one; also of `update`."""
    tables = {
        "": resources,
        "blockIO.": resources.get("blockIO"),
        "network.": resources.get("network"),
    }
    for prefix, table in tables.items():
        for name, needed in _NEEDED.items():
            for index, item in enumerate((table or {}).get(name) or ()):
                for key in needed:
                    if item.get(key) is None:
                        raise InvalidArgument(f"{field}.{prefix}{name}[{index}].{key}: required")


CHECKS = (
    _check_version,
    _check_root,
    _check_process,
    _check_mounts,
    _check_namespaces,
    _check_devices,
    _check_resources,
    _check_hooks,
    _check_sysctls,
    _check_memory_policy,
    _check_personality,
    _check_intel_rdt,
)
