"""`explain CONTAINER`: what the kernel was given for it, in words and with where each thing can be seen.

Namespaces come from /proc/PID/ns beside our own, control groups from /proc/PID/cgroup and the files below
/sys/fs/cgroup, mounts from /proc/PID/mountinfo, the rest from the spec that the engine launched
(RUN/containers/ID/config.json) where it can be read. The engine must be on this host.
"""

from __future__ import annotations

import os

from sampan.cli import human, wire
from sampan.cli.client import escape
from sampan.cli.failures import Failure
from sampan.cli.session import out, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

NAMESPACES = {
    "mnt": "its own mounts",
    "pid": "its own process numbers",
    "net": "its own network devices, addresses, ports",
    "ipc": "its own shared memory and queues",
    "uts": "its own host name",
    "cgroup": "its own view of control groups",
    "user": "its own user numbers",
    "time": "its own clocks",
}
V1_FILES = {
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.failcnt",
    ),
    "cpu": ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "cpuacct": ("cpuacct.usage",),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "pids": ("pids.max", "pids.current"),
    "blkio": ("blkio.weight",),
    "freezer": ("freezer.state",),
    "hugetlb": (),
    "devices": ("devices.list",),
}
V2_FILES = (
    "memory.max", "memory.current", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus",
    "pids.max", "pids.current", "io.weight", "cgroup.freeze",
)  # fmt: skip


def explain(session: Session, options: Options) -> int:
    found: dict[str, Any] = session.client.json(f"/containers/{escape(options.args[0])}/json")
    state = found["State"]
    pid = state.get("Pid") or 0
    out(f"container  {found['Name'].lstrip('/')}  {found['Id']}")
    out(f"image      {found['Config']['Image']}  {found['Image']}")
    if not pid:
        raise Failure(
            f"container {options.args[0]} is {state['Status']}: it has no process to look at\n(start it first)"
        )
    if not os.path.isdir(f"/proc/{pid}"):
        raise Failure(
            f"process {pid} is not on this host: explain needs to run where the engine does"
        )
    out(f"process    {pid} on this host, {_inside(pid)} inside: {_command_line(pid)}")
    _namespaces(pid)
    _cgroups(pid)
    _mounts(pid)
    _rights(pid, _spec(session, found))
    return 0


def _inside(pid: int) -> str:
    for line in read_file(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1]
    return "?"


def _command_line(pid: int) -> str:
    return " ".join(word for word in read_file(f"/proc/{pid}/cmdline").split("\0") if word)


def _title(text: str, source: str) -> None:
    out(f"\n{text}  ({source})")


def _namespaces(pid: int) -> None:
    _title("namespaces", f"/proc/{pid}/ns")
    for name, meaning in NAMESPACES.items():
        try:
            theirs = os.readlink(f"/proc/{pid}/ns/{name}")
            ours = os.readlink(f"/proc/self/ns/{name}")
        except OSError:
            continue
        shared = theirs == ours
        out(f"  {name:<7} {theirs:<20} {'shared with this shell' if shared else meaning}")


def _cgroup_mounts() -> dict[str, str]:
    """Controller (or '' for the unified tree) -> where it is mounted."""
    found: dict[str, str] = {}
    for line in read_file("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = before.split(" ")[4]
        if kind == "cgroup2":
            found.setdefault("", point)
        elif kind == "cgroup":
            for word in options.split(","):
                found.setdefault(word.removeprefix("name="), point)
    return found


def _cgroups(pid: int) -> None:
    _title("control groups", f"/proc/{pid}/cgroup")
    mounts = _cgroup_mounts()
    for line in read_file(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = [c.removeprefix("name=") for c in controllers.split(",")]
        mount = next((mounts[name] for name in names if name in mounts), "")
        if not mount or path == "/":
            continue
        out(f"  {controllers or 'unified'}: {mount}{path}")
        files = [f for name in names for f in V1_FILES.get(name, ())] if controllers else V2_FILES
        for file in files:
            value = read_file(f"{mount}{path}/{file}").strip()
            if value:
                out(f"      {file:<28} {_shown(file, value)}")


def _shown(file: str, value: str) -> str:
    """The value, and in words where it is a number of bytes."""
    lines = value.splitlines()
    if len(lines) > 1:
        return f"{lines[0]}  (and {len(lines) - 1} more)"
    sized = "memory" in file and value.isdigit()
    if not sized:
        return value
    if int(value) > 1 << 60:
        return f"{value}  (no limit)"
    return f"{value}  ({human.memory(int(value))})" if "failcnt" not in file else value


def _mounts(pid: int) -> None:
    _title("mounts", f"/proc/{pid}/mountinfo")
    for line in read_file(f"/proc/{pid}/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        kind, source, _ = (*after.split(" ", 2), "", "")[:3]
        root = fields[3] if fields[3] != "/" and kind not in ("overlay", "proc", "sysfs") else ""
        where = fields[4].encode().decode("unicode_escape")
        out(f"  {where:<28} {kind:<9} {fields[5].split(',')[0]}  {root or source}")


def _spec(session: Session, found: dict[str, Any]) -> dict[str, Any]:
    """The spec as launched, from the engine's run directory beside its socket."""
    if not session.host.startswith("unix://"):
        return {}
    run = os.path.dirname(session.host.removeprefix("unix://"))
    text = read_file(f"{run}/containers/{found['Id']}/config.json")
    try:
        spec = wire.loads(text) if text else {}
    except ValueError:
        return {}
    return spec if isinstance(spec, dict) else {}


def _rights(pid: int, spec: dict[str, Any]) -> None:
    _title("rights", f"/proc/{pid}/status")
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapEff", "CapBnd")
    for line in read_file(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        if name in wanted:
            out(f"  {name:<11} {_right(name, value.strip())}")
    linux = spec.get("linux") or {}
    if linux.get("maskedPaths"):
        out(f"  hidden      {' '.join(linux['maskedPaths'])}")
    if linux.get("readonlyPaths"):
        out(f"  read-only   {' '.join(linux['readonlyPaths'])}")
    limits = (spec.get("process") or {}).get("rlimits") or []
    for limit in limits:
        out(f"  {limit['type']:<11} {limit['soft']} (at most {limit['hard']})")


def _right(name: str, value: str) -> str:
    if name == "Seccomp":
        return {"0": "off", "1": "strict", "2": "a filter decides about system calls"}.get(
            value, value
        )
    if name == "NoNewPrivs":
        return "set: no program can gain rights" if value == "1" else "not set"
    if name.startswith("Cap"):
        return f"{value}  ({_capabilities(int(value, 16))})"
    return " ".join(value.split())


CAPABILITIES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]


def _capabilities(mask: int) -> str:
    if mask == (1 << len(CAPABILITIES)) - 1:
        return "all"
    return (
        " ".join(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1) or "none"
    )
