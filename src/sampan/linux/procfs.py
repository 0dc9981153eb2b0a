"""What /proc says, parsed into values. Parsers take text; the few readers at the end open the file.

Sources: proc(5), Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import posix

from .paths import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class MountInfo:
    """One line of /proc/PID/mountinfo."""

    __slots__ = (
        "device", "fstype", "mount_id", "options", "parent_id", "path", "propagation", "root", "source",
        "super_options",
    )  # fmt: skip

    def __init__(
        self,
        *,
        mount_id: int,
        parent_id: int,
        device: str,
        root: str,
        path: str,
        options: str,
        propagation: tuple[str, ...],
        fstype: str,
        source: str,
        super_options: str,
    ) -> None:
        self.mount_id = mount_id
        self.parent_id = parent_id
        self.device = device
        self.root = root
        self.path = path
        self.options = options
        self.propagation = propagation
        self.fstype = fstype
        self.source = source
        self.super_options = super_options

    def __repr__(self) -> str:
        return f"MountInfo({self.path!r}, {self.fstype!r}, {self.options!r})"


def unescape(text: str) -> str:
    """Undo the kernel's \\040 for space, \\011 tab, \\012 line end, \\134 backslash."""
    if "\\" not in text:
        return text
    parts = text.split("\\")
    out = [parts[0]]
    for part in parts[1:]:
        digits = part[:3]
        if len(digits) == 3 and all("0" <= digit <= "7" for digit in digits):
            out.append(chr(int(digits, 8)) + part[3:])
        else:
            out.append("\\" + part)
    return "".join(out)


def parse_mountinfo(text: str) -> Iterator[MountInfo]:
    """Each mount, in the kernel's order (a later one at the same path covers the earlier)."""
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        yield MountInfo(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=fields[2],
            root=unescape(fields[3]),
            path=unescape(fields[4]),
            options=fields[5],
            propagation=tuple(fields[6:]),
            fstype=rest[0],
            source=unescape(rest[1]),
            super_options=rest[2],
        )


def parse_cgroup(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as controller -> path; the unified hierarchy has the key "", a named one "name=x"."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            for controller in controllers.split(","):
                paths[controller] = path
    return paths


class Stat:
    """The fields of /proc/PID/stat that somebody here asks for."""

    __slots__ = ("comm", "parent", "pid", "start_time", "state")

    def __init__(self, *, pid: int, comm: str, state: str, parent: int, start_time: int) -> None:
        self.pid = pid
        self.comm = comm
        self.state = state
        self.parent = parent
        self.start_time = start_time


def parse_stat(text: str) -> Stat:
    """comm may hold spaces and brackets, so the fields are counted from the last bracket."""
    head, _, tail = text.rpartition(")")
    number, _, comm = head.partition(" (")
    fields = tail.split()
    return Stat(
        pid=int(number),
        comm=comm,
        state=fields[0],
        parent=int(fields[1]),
        start_time=int(fields[19]),
    )


def parse_status(text: str) -> dict[str, str]:
    """/proc/PID/status as name -> text."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            values[name] = value.strip()
    return values


def parse_id_map(text: str) -> list[tuple[int, int, int]]:
    """uid_map or gid_map as (inside, outside, count) rows."""
    rows = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3:
            rows.append((int(fields[0]), int(fields[1]), int(fields[2])))
    return rows


# ------------------------------------------------------------------------------------------ readers


def _read(path: str) -> str:
    return read_file(path).decode("utf-8", "surrogateescape")


def mounts(pid: int | str = "self") -> list[MountInfo]:
    return list(parse_mountinfo(_read(f"/proc/{pid}/mountinfo")))


def stat(pid: int | str) -> Stat:
    """OSError (ENOENT, ESRCH) when there is no such process."""
    return parse_stat(_read(f"/proc/{pid}/stat"))


def start_time(pid: int) -> int:
    """Clock ticks after boot; with the pid it names a process for ever. 0 when it is gone."""
    try:
        return stat(pid).start_time
    except (OSError, ValueError, IndexError):
        return 0


def is_alive(pid: int, started: int) -> bool:
    """Does (pid, start time) still name a process that has not exited (a zombie has)?"""
    try:
        now = stat(pid)
    except (OSError, ValueError, IndexError):
        return False
    return now.start_time == started and now.state not in "ZX"


def denies_setgroups() -> bool:
    """In a user namespace with a single group id setgroups(2) is refused: user_namespaces(7), /proc/PID/setgroups."""
    try:
        return _read("/proc/self/setgroups").startswith("deny")
    except OSError:
        return False


def cgroup_paths(pid: int | str = "self") -> dict[str, str]:
    return parse_cgroup(_read(f"/proc/{pid}/cgroup"))


def status(pid: int | str = "self") -> dict[str, str]:
    return parse_status(_read(f"/proc/{pid}/status"))


def last_capability() -> int:
    """The highest capability number this kernel knows."""
    try:
        return int(_read("/proc/sys/kernel/cap_last_cap"))
    except (OSError, ValueError):
        return 40


def children(pid: int) -> list[int]:
    """Direct children of a process (of all its threads)."""
    found: list[int] = []
    try:
        threads = posix.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        except OSError:
            continue
    return found
