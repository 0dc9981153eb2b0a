"""Where this host keeps its cgroup controllers.

    v1        each controller in a hierarchy of its own:    memory -> /sys/fs/cgroup/memory
    v2        all controllers in one hierarchy:             ''     -> /sys/fs/cgroup
    hybrid    v1, and beside it a unified hierarchy that holds the rest (often none) of the controllers:
              memory -> /sys/fs/cgroup/memory, '' -> /sys/fs/cgroup/unified

Nothing is assumed about directories: the mount table says which controller is where, so a host that joins
`cpu,cpuacct` or keeps only hugetlb on the unified side comes out right. Named hierarchies without a
controller (systemd's `name=systemd`) are hierarchies like the others, since tools look a process up there.

Source: proc_pid_mountinfo(5), cgroups(7).
"""

from __future__ import annotations

import posix
import select

from .files import read, read_or

MODE_V1 = "v1"
MODE_V2 = "v2"
MODE_HYBRID = "hybrid"
MODE_NONE = "none"

CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
    "net_cls", "net_prio", "perf_event", "rdma", "misc",
)  # fmt: skip


class CgroupHost:
    """The mounts: one per controller (v1), one for the unified hierarchy, and where we ourselves are."""

    __slots__ = ("mode", "mounts", "own", "roots", "unified", "unified_controllers")

    def __init__(
        self,
        *,
        mode: str,
        mounts: dict[str, str],
        roots: dict[str, str],
        unified: str,
        unified_controllers: frozenset[str],
        own: dict[str, str],
    ) -> None:
        self.mode = mode
        self.mounts = mounts  # v1 controller or 'name=x' -> mount point
        self.roots = (
            roots  # mount point -> the cgroup that is its root ('/' but in a nested engine)
        )
        self.unified = unified  # mount point of the v2 hierarchy, '' without one
        self.unified_controllers = unified_controllers
        self.own = own  # controller ('' for v2) -> our own cgroup, as /proc/self/cgroup has it

    def hierarchies(self) -> list[str]:
        """Each v1 mount point once, in mount order: joined controllers share one."""
        return list(dict.fromkeys(self.mounts.values()))

    def has(self, controller: str) -> bool:
        """Whether a limit of this controller can be set anywhere (v1's name for it)."""
        if controller in self.mounts:
            return True
        if not self.unified:
            return False
        if self.mode == MODE_V2 and controller in ("devices", "freezer"):
            return True
        v2_name = {"blkio": "io", "cpuacct": "cpu"}.get(controller, controller)
        return v2_name in self.unified_controllers


def detect(
    mountinfo: str | None = None,
    own_cgroup: str | None = None,
    unified_controllers: str | None = None,
) -> CgroupHost:
    """Read the mount table (or the text given) into a CgroupHost."""
    if mountinfo is None:
        mountinfo = read("/proc/self/mountinfo")
    if own_cgroup is None:
        own_cgroup = read_or("/proc/self/cgroup")
    mounts: dict[str, str] = {}
    roots: dict[str, str] = {}
    unified = ""
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        if not dash or not right.startswith("cgroup"):
            continue
        fields, (fstype, _, options) = left.split(" "), right.split(" ", 2)
        root, point = unescape(fields[3]), unescape(fields[4])
        if fstype == "cgroup2":
            if not unified or point == "/sys/fs/cgroup":
                unified = point
                roots[point] = root
        elif fstype == "cgroup":
            for option in options.split(","):
                if (option in CONTROLLERS or option.startswith("name=")) and option not in mounts:
                    mounts[option] = point
                    roots[point] = root
    if unified and unified_controllers is None:
        unified_controllers = read_or(f"{unified}/cgroup.controllers")
    has_v1 = any(not name.startswith("name=") for name in mounts)
    mode = (MODE_HYBRID if unified else MODE_V1) if has_v1 else (MODE_V2 if unified else MODE_NONE)
    return CgroupHost(
        mode=mode,
        mounts=mounts,
        roots=roots,
        unified=unified,
        unified_controllers=frozenset((unified_controllers or "").split()),
        own=parse_own_cgroups(own_cgroup),
    )


class HostWatch:
    """The CgroupHost of now without reading the mount table each time: the kernel says when that has changed.

    An open mountinfo file is POLLERR once after each change, proc_pid_mounts(5).
    """

    def __init__(self) -> None:
        self._fd = posix.open("/proc/self/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._host = detect()

    def host(self) -> CgroupHost:
        if self._poll.poll(0):
            self._host = detect()
        return self._host


def parse_own_cgroups(text: str) -> dict[str, str]:
    """/proc/PID/cgroup as controller -> path ('' is the unified hierarchy)."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            for controller in controllers.split(","):
                own[controller] = path
    return own


def unescape(field: str) -> str:
    r"""Undo the mount table's octal escapes of blank, tab, newline and backslash."""
    if "\\" not in field:
        return field
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field
