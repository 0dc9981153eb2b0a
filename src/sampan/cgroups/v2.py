"""The v2 manager: one directory in the unified hierarchy.

    /sys/fs/cgroup/sampan/<id>/memory.max
                  |      `- the container: holds processes
                  `- holds cgroups only, and passes the controllers on (cgroup.subtree_control)

A cgroup that passes controllers on must not hold processes itself ("no internal processes"). On a host the
root is exempt; in a nested engine the mount's root is an ordinary cgroup with everybody in it, so they are moved
to a cgroup /init first, as Docker's own dind image does.

Joining: the child is born inside (CLONE_INTO_CGROUP, Linux 5.7): no migration, no global lock.

Source: cgroup-v2.rst; clone(2); runtime-spec config-linux.md.
"""

from __future__ import annotations

import posix
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, ENOTSUP, EPERM, EROFS, ESRCH
from select import poll
from time import monotonic

from . import devices, v2_plan, v2_stats
from .files import (
    exists,
    make_directories,
    pids_of,
    read,
    read_or,
    remove_tree,
    signal_each,
    walk,
    write,
)
from .host import CgroupHost
from .stats import Stats, parse_flat, parse_int
from .v1_plan import Write
from .watch import POLLERR, POLLPRI, OomWatch, oom_kills, v2_oom_watch
from .words import FROZEN_MEANWHILE, discarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Resources = dict[str, Any]

SIGKILL = 9
FREEZE_LIMIT = 10.0
EMPTY_LIMIT = 2.0
NO_RIGHT = (EPERM, EACCES, EROFS)
ABSENT = (ENOENT, ENODEV)
INIT_CGROUP = "init"
# Controllers worth a css per container; the rest (debug, dmem, ...) stays where it is.
WANTED = frozenset(("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"))


class V2Manager:
    """The cgroup of one container in the unified hierarchy. `path` begins with a slash."""

    needs_pid = False

    def __init__(self, host: CgroupHost, path: str, *, rootless: bool = False) -> None:
        self.host = host
        self.path = path
        self.rootless = rootless
        # '' where there is no cgroup to be had: no hierarchy, or rootless without delegation
        self.directory = host.unified + path if host.unified else ""

    # ------------------------------------------------------------------ making and joining

    def paths(self) -> dict[str, str]:
        return {"": self.directory} if self.directory else {}

    def create(self, resources: Resources, *, pid: int = 0, strict: bool = False) -> list[str]:
        """Make the directory, set the limits, move `pid` in when one is given. Returns warnings.

        What fails takes back the directories that it made.
        """
        made: list[str] = []
        try:
            self._make_directory(made, pid)
            warnings = self.apply(resources, strict=strict, fresh=True)
            if pid:
                self.attach(pid)
        except BaseException:
            for directory in reversed(made):
                remove_tree(directory, tries=1)
            raise
        return warnings

    def _make_directory(self, made: list[str], own: int) -> None:
        if not self.directory:
            return
        try:
            made += make_directories(self.host.unified, self.path)
            enable_controllers(self.host.unified, self.path, WANTED & self.host.unified_controllers)
        except OSError as error:
            if not (self.rootless and error.errno in NO_RIGHT):
                raise
            if not exists(self.directory):
                self.directory = ""
            return
        if self.directory not in made:
            count = len([pid for pid in self.pids(recursive=False) if pid != own])
            if count:
                text = f"container's cgroup is not empty: {count} process(es) found"
                raise OSError(EBUSY, text, self.directory)
            if self.frozen():
                raise OSError(EBUSY, FROZEN_MEANWHILE, self.directory)
        refuse_threaded(self.directory)

    def clone_fd(self) -> int:
        """A descriptor for CLONE_INTO_CGROUP, owned by the caller; -1 where there is no cgroup."""
        if not self.directory:
            return -1
        return posix.open(self.directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def attach_self(self, *, born_inside: bool = False) -> None:
        if self.directory and not born_inside:
            write(f"{self.directory}/cgroup.procs", "0")

    def attach(self, pid: int) -> None:
        if self.directory:
            write(f"{self.directory}/cgroup.procs", str(pid))

    # ------------------------------------------------------------------ limits

    def apply(
        self, resources: Resources, *, strict: bool = False, fresh: bool = False
    ) -> list[str]:
        """Set what `resources` names and leave the rest; returns warnings for what the host cannot hold.

        `strict` makes those errors, but for settings that v2 has no word for. `fresh` says that the cgroup is new:
        the device program is then attached even where the resources do not speak of it.
        """
        warnings = [discarded(*pair) for pair in v2_plan.untranslatable(resources)]
        memory = resources.get("memory") or {}
        usage = parse_int(read_or(f"{self.directory}/memory.current", "0"))
        if refusal := v2_plan.memory_refusal(memory, usage):
            raise OSError(EBUSY, refusal, self.directory)
        for row in v2_plan.plan(resources, self._held(resources)):
            self._perform(row, strict, warnings)
        if fresh or resources.get("devices") is not None:
            self._apply_devices(resources.get("devices"), strict, warnings)
        for row in v2_plan.unified_writes(resources.get("unified") or {}):
            self._perform_unified(row)
        return warnings

    def _held(self, resources: Resources) -> v2_plan.Held:
        """Read only what a half-given setting needs."""
        held = v2_plan.Held()
        cpu = resources.get("cpu") or {}
        if cpu.get("quota") or cpu.get("period"):
            held.cpu_max = read_or(f"{self.directory}/cpu.max", held.cpu_max).strip()
        if (resources.get("memory") or {}).get("swap"):
            held.memory_max = read_or(f"{self.directory}/memory.max", held.memory_max).strip()
        if resources.get("blockIO"):
            held.bfq = exists(f"{self.directory}/io.bfq.weight")
        return held

    def _perform(self, row: Write, strict: bool, warnings: list[str]) -> None:
        try:
            if not self.directory:
                raise OSError(ENOENT, "there is no cgroup to set it in", row.file)
            write(f"{self.directory}/{row.file}", row.text)
        except OSError as error:
            if row.optional and error.errno in ABSENT:
                return
            cannot = error.errno in ABSENT or (self.rootless and error.errno in NO_RIGHT)
            if strict or not cannot:
                raise self._explain(error, row) from None
            sentence = discarded(row.controller, row.file)
            if sentence not in warnings:
                warnings.append(sentence)

    def _explain(self, error: OSError, row: Write) -> OSError:
        """ENOENT says only that a file is missing; the reason is a controller that nobody passed on."""
        if error.errno in ABSENT and row.controller not in self.host.unified_controllers:
            text = f"controller {row.controller!r} not available: cannot {row.describe()}"
            return OSError(error.errno, text, self.directory)
        return error

    def _perform_unified(self, row: Write) -> None:
        """The user named the very file, so a host that lacks it is an error, never a warning."""
        try:
            if not self.directory:
                raise OSError(ENOENT, "there is no cgroup to set it in", row.file)
            write(f"{self.directory}/{row.file}", row.text)
        except OSError as error:
            known = self.host.unified_controllers | {"cgroup"}
            text = f"unable to set unified resource {row.file!r}: {error.strerror}"
            if error.errno in (*ABSENT, *NO_RIGHT) and row.controller not in known:
                text = f"unified resource {row.file!r} can't be set: controller {row.controller!r} not available"
            raise OSError(error.errno, text, self.directory) from None

    def _apply_devices(self, rows: Any, strict: bool, warnings: list[str]) -> None:
        if not self.directory:
            return
        try:
            devices.attach_program(self.directory, devices.effective(rows))
        except OSError as error:
            # In a user namespace bpf(2) is not ours to call, and the nodes cannot be made either.
            if self.rootless and error.errno in NO_RIGHT:
                return
            if strict or error.errno not in (EINVAL, ENOTSUP):
                raise
            warnings.append(discarded("devices", "devices"))

    # ------------------------------------------------------------------ life

    def freeze(self) -> None:
        """Stop every process; returns when the kernel says that all of them stand still."""
        write(f"{self._must_exist()}/cgroup.freeze", "1")
        if not wait_for_event(self.directory, "frozen", 1, FREEZE_LIMIT):
            self.thaw()
            raise OSError(EBUSY, "unable to freeze", self.directory)

    def thaw(self) -> None:
        write(f"{self._must_exist()}/cgroup.freeze", "0")

    def frozen(self) -> bool:
        return bool(self.directory) and read_or(f"{self.directory}/cgroup.freeze").strip() == "1"

    def _must_exist(self) -> str:
        if not self.directory:
            raise OSError(ENOENT, "the container has no cgroup", self.path)
        return self.directory

    def pids(self, *, recursive: bool = True) -> list[int]:
        """The container's processes as the calling process's pid namespace numbers them."""
        if not self.directory:
            return []
        directories = walk(self.directory) if recursive else [self.directory]
        return [pid for directory in directories for pid in pids_in(directory)]

    def kill_all(self, signal: int = SIGKILL) -> None:
        """Signal every process. SIGKILL is one write (cgroup.kill, Linux 5.14), which no fork escapes."""
        if not self.directory:
            return
        if signal == SIGKILL:
            try:
                write(f"{self.directory}/cgroup.kill", "1")
                return
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
        was_frozen = self.frozen()
        if signal == SIGKILL and not was_frozen and self.pids():
            try:
                self.freeze()
            except OSError:
                pass  # a second best: then the loop below runs against forks
        signal_each(self.pids(), signal)
        if signal == SIGKILL and self.frozen():
            self.thaw()

    def stats(self) -> Stats:
        return v2_stats.read_stats(self.directory or "/nonexistent")

    def oom_watch(self) -> OomWatch:
        return v2_oom_watch(self._must_exist())

    def oom_kills(self) -> int:
        return oom_kills(f"{self.directory}/memory.events")

    def exists(self) -> bool:
        return bool(self.directory) and exists(self.directory)

    def destroy(self) -> None:
        """Remove the directory and what the container made below it. Gone already is success."""
        if not self.directory or not exists(self.directory):
            return
        wait_for_event(self.directory, "populated", 0, EMPTY_LIMIT)
        remove_tree(self.directory)


def pids_in(directory: str) -> list[int]:
    """A threaded cgroup refuses cgroup.procs: its processes are listed in its domain's file."""
    try:
        return pids_of(directory)
    except OSError as error:
        if error.errno == ENOTSUP:
            return []
        raise


def wait_for_event(directory: str, name: str, value: int, seconds: float) -> bool:
    """Wait until cgroup.events says `name value`; the kernel wakes the poll at each change."""
    try:
        fd = posix.open(f"{directory}/cgroup.events", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return not exists(directory)
    waiter = poll()
    waiter.register(fd, POLLPRI | POLLERR)
    deadline = monotonic() + seconds
    try:
        while True:
            posix.lseek(fd, 0, 0)
            if parse_flat(posix.read(fd, 4096).decode()).get(name) == value:
                return True
            left = deadline - monotonic()
            if left <= 0:
                return False
            waiter.poll(left * 1000)
    except OSError as error:
        if error.errno in ABSENT:  # removed meanwhile
            return name == "populated"
        raise
    finally:
        posix.close(fd)


def enable_controllers(root: str, path: str, wanted: Iterable[str]) -> None:
    """Have every ancestor of root + path pass the wanted controllers on, from the root down.

    The parent is asked first: when it passes them on already, so do all above it. What an ancestor does not have
    itself cannot be passed on and is left out; the write of the limit will say so.
    """
    missing = set(wanted)
    parent = root + path.rpartition("/")[0]
    if missing <= set(read(f"{parent}/cgroup.subtree_control").split()):
        return
    here = root
    for part in ["", *[name for name in path.split("/") if name][:-1]]:
        here = f"{here}/{part}" if part else here
        have = set(read(f"{here}/cgroup.controllers").split())
        on = set(read(f"{here}/cgroup.subtree_control").split())
        lacking = sorted((missing & have) - on)
        if lacking:
            pass_on(here, lacking, is_root=here == root)


def pass_on(directory: str, controllers: list[str], *, is_root: bool) -> None:
    """All in one write; one by one where the kernel refuses one of them."""
    file = f"{directory}/cgroup.subtree_control"
    try:
        write(file, " ".join(f"+{name}" for name in controllers))
        return
    except OSError as error:
        if error.errno == EBUSY and is_root:
            evacuate(directory)
        elif error.errno == EROFS:
            raise
    for name in controllers:
        try:
            write(file, f"+{name}")
        except OSError as error:
            if error.errno in (EACCES, EROFS):
                raise


def evacuate(directory: str) -> None:
    """Move the processes of a nested engine's root cgroup to one below it, us among them."""
    target = f"{directory}/{INIT_CGROUP}"
    try:
        posix.mkdir(target, 0o755)
    except FileExistsError:
        pass
    for pid in pids_of(directory):
        try:
            write(f"{target}/cgroup.procs", str(pid))
        except OSError as error:
            if error.errno not in (ESRCH, EINVAL):  # gone meanwhile, or a kernel thread
                raise


def refuse_threaded(directory: str) -> None:
    """Below a cgroup with processes of its own a container cannot be limited; say which one it is."""
    kind = read_or(f"{directory}/cgroup.type").strip()
    if kind == "domain invalid":
        text = f"cannot enter cgroupv2 {directory!r} with domain controllers -- it is in an invalid state"
        raise OSError(ENOTSUP, text, directory)
    if kind in ("threaded", "domain threaded"):
        text = (
            f"cannot enter cgroupv2 {directory!r} with domain controllers -- it is in {kind} mode"
        )
        raise OSError(ENOTSUP, text, directory)
