"""The v1 manager: one directory per hierarchy, the same path in each.

    /sys/fs/cgroup/memory/sampan/<id>/memory.limit_in_bytes
                  |      |
                  |      `- `path`, the same under every mount
                  `- host.mounts['memory']

On a hybrid host the unified hierarchy is one more directory: it costs one mkdir, the child is born in it
(CLONE_INTO_CGROUP), and it gives an atomic kill (`cgroup.kill`) that v1 lacks.

Joining: the child writes "0" to each `tasks` file itself, never `cgroup.procs`. A thread that moves
itself needs no global lock (Linux 5.5, "cgroup: Optimize single thread migration"); cgroup.procs waits
for an RCU grace period of some 10 ms. Right after clone the process has one thread, so both mean the same.

Source: cgroup-v1/*.rst; runtime-spec config-linux.md.
"""

from __future__ import annotations

import posix
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, EPERM, EROFS
from time import sleep

from . import devices, v1_plan, v1_stats
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
from .stats import Stats, parse_int
from .watch import OomWatch, oom_kills, v1_oom_watch
from .words import FROZEN_MEANWHILE, UNIFIED_ON_V1, discarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = dict[str, Any]

SIGKILL = 9
FREEZE_TRIES = 1000
FREEZE_PAUSE = 0.0005
NO_RIGHT = (EPERM, EACCES, EROFS)
ABSENT = (ENOENT, ENODEV)
# The hierarchies that tell which processes there are, best first; every host has one of them.
REFERENCE = ("pids", "freezer", "memory", "devices", "cpu")


class V1Manager:
    """The cgroups of one container under v1 or hybrid mounts. `path` begins with a slash."""

    needs_pid = False

    def __init__(self, host: CgroupHost, path: str, *, rootless: bool = False) -> None:
        self.host = host
        self.path = path
        self.rootless = rootless
        # mount point -> directory, each hierarchy once; joined controllers share theirs
        self.directories = {point: point + path for point in host.hierarchies()}
        self.unified = host.unified + path if host.unified else ""

    # ------------------------------------------------------------------ making and joining

    def directory(self, controller: str) -> str:
        """The container's directory under a controller; '' where it is not mounted."""
        point = self.host.mounts.get(controller)
        return self.directories.get(point, "") if point else ""

    def paths(self) -> dict[str, str]:
        """Controller -> directory, as runc's state.json has them ('' is the unified one)."""
        found = {
            name: self.directories[point]
            for name, point in self.host.mounts.items()
            if point in self.directories
        }
        if self.unified:
            found[""] = self.unified
        return found

    def create(self, resources: Resources, *, pid: int = 0, strict: bool = False) -> list[str]:
        """Make the directories, set the limits, move `pid` in when one is given. Returns warnings.

        What fails takes back the directories that it made.
        """
        made: list[str] = []
        try:
            self._make_directories(made)
            self._refuse_foreign_processes(made, pid)
            warnings = self.apply(resources, strict=strict, fresh=True)
            if pid:
                self.attach(pid)
        except BaseException:
            for directory in reversed(made):
                remove_tree(directory, tries=1)
            raise
        return warnings

    def _make_directories(self, made: list[str]) -> None:
        cpuset = self.host.mounts.get("cpuset")
        for point in list(self.directories):
            try:
                made += make_directories(point, self.path)
                if point == cpuset:
                    inherit_cpuset(point, self.path)
            except OSError as error:
                if not (self.rootless and error.errno in NO_RIGHT):
                    raise
                del self.directories[point]
        if self.unified:
            try:
                made += make_directories(self.host.unified, self.path)
            except OSError:
                self.unified = ""  # only a convenience beside v1

    def _refuse_foreign_processes(self, made: list[str], own: int) -> None:
        """A directory that was there already may be used again, but not shared with living processes, nor frozen."""
        reference = self._reference()
        if reference and reference not in made:
            count = len([pid for pid in self.pids(recursive=False) if pid != own])
            if count:
                raise OSError(
                    EBUSY, f"container's cgroup is not empty: {count} process(es) found", reference
                )
        if self.frozen():  # itself or one above it: who joins stands still for ever
            raise OSError(EBUSY, FROZEN_MEANWHILE, self.directory("freezer"))

    def _reference(self) -> str:
        for controller in REFERENCE:
            if directory := self.directory(controller):
                return directory
        return next(iter(self.directories.values()), "")

    def clone_fd(self) -> int:
        """A descriptor for CLONE_INTO_CGROUP, owned by the caller; -1 without a unified hierarchy."""
        if not self.unified:
            return -1
        return posix.open(self.unified, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def attach_self(self, *, born_inside: bool = False) -> None:
        """Join with the calling thread, which must be its process's only one.

        `born_inside` says that clone3 had clone_fd(), so the unified side is done already.
        """
        for directory in self.directories.values():
            write(f"{directory}/tasks", "0")
        if self.unified and not born_inside:
            write(f"{self.unified}/cgroup.procs", "0")

    def attach(self, pid: int) -> None:
        """Move another process in, all threads; slow (it takes the kernel's global lock)."""
        for directory in self.directories.values():
            write(f"{directory}/cgroup.procs", str(pid))
        if self.unified:
            write(f"{self.unified}/cgroup.procs", str(pid))

    # ------------------------------------------------------------------ limits

    def apply(
        self, resources: Resources, *, strict: bool = False, fresh: bool = False
    ) -> list[str]:
        """Set what `resources` names and leave the rest; returns warnings for what the host cannot hold.

        `strict` makes those errors. `fresh` says that the cgroup is new: the device list is then set even
        where the resources do not speak of it.
        """
        warnings: list[str] = []
        if resources.get("unified"):
            raise OSError(EINVAL, UNIFIED_ON_V1, self.path)
        if fresh or resources.get("devices") is not None:
            self._apply_devices(resources.get("devices"), fresh, strict, warnings)
        self._apply_memory(resources.get("memory") or {}, strict, warnings)
        self._apply_quota(resources.get("cpu") or {}, strict, warnings)
        for row in v1_plan.plan(resources, self._weight_prefix(resources)):
            self._perform(row, strict, warnings)
        return warnings

    def _perform(self, row: v1_plan.Write, strict: bool, warnings: list[str]) -> None:
        directory = self.directory(row.controller)
        if not directory and row.controller in self.host.unified_controllers and self.unified:
            self._perform_unified(row, strict, warnings)
            return
        try:
            if not directory:
                raise OSError(
                    ENOENT, f"the {row.controller} cgroup controller is not mounted", row.file
                )
            write(f"{directory}/{row.file}", row.text)
        except OSError as error:
            if row.optional and error.errno in ABSENT:
                return
            self._forgive(error, row, strict, warnings)
        else:
            if row.file == "cpu.shares":
                check_shares(directory, int(row.text))

    def _perform_unified(self, row: v1_plan.Write, strict: bool, warnings: list[str]) -> None:
        """A controller that a hybrid host keeps on the unified side (hugetlb, rdma)."""
        from .v2 import enable_controllers

        file = row.file.replace("limit_in_bytes", "max")
        try:
            enable_controllers(self.host.unified, self.path, (row.controller,))
            write(f"{self.unified}/{file}", row.text)
        except OSError as error:
            if row.optional and error.errno in ABSENT:
                return
            self._forgive(error, row, strict, warnings)

    def _forgive(
        self, error: OSError, row: v1_plan.Write, strict: bool, warnings: list[str]
    ) -> None:
        """Turn 'this host cannot' into a warning; everything else stays an error."""
        cannot = error.errno in ABSENT or (self.rootless and error.errno in NO_RIGHT)
        if strict or not cannot:
            raise error
        sentence = discarded(row.controller, row.file)
        if sentence not in warnings:
            warnings.append(sentence)

    def _weight_prefix(self, resources: Resources) -> str:
        """BFQ has its own weight files, and newer kernels only those."""
        if not resources.get("blockIO"):
            return "blkio."
        directory = self.directory("blkio")
        return "blkio.bfq." if directory and exists(f"{directory}/blkio.bfq.weight") else "blkio."

    def _apply_memory(self, memory: Resources, strict: bool, warnings: list[str]) -> None:
        """Limit and memory+swap, in the order that keeps memory <= memory+swap at each moment."""
        limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
        directory = self.directory("memory")
        if memory.get("kernel"):
            warnings.append(discarded("memory", "memory.kmem.limit_in_bytes"))
        if limit == -1 and swap == 0 and exists(f"{directory}/memory.memsw.limit_in_bytes"):
            swap = -1  # memory without a limit under a limited sum would not be without a limit
        rows = []
        if limit:
            rows.append(v1_plan.Write("memory", "memory.limit_in_bytes", str(limit)))
        if swap:
            rows.append(v1_plan.Write("memory", "memory.memsw.limit_in_bytes", str(swap)))
        if len(rows) == 2:
            current = parse_int(read_or(f"{directory}/memory.limit_in_bytes", "0"))
            if swap == -1 or (limit != -1 and current < swap):
                rows.reverse()
        for row in rows:
            try:
                self._perform(row, strict, warnings)
            except OSError as error:
                raise explain_memory(error, directory, row) from None

    def _apply_quota(self, cpu: Resources, strict: bool, warnings: list[str]) -> None:
        """Real-time first: tasks of that class need it to join."""
        for names, files in (
            (("realtimePeriod", "realtimeRuntime"), ("cpu.rt_period_us", "cpu.rt_runtime_us")),
            (("period", "quota"), ("cpu.cfs_period_us", "cpu.cfs_quota_us")),
        ):
            period, share = (
                v1_plan.Write("cpu", file, str(cpu[name])) if cpu.get(name) else None
                for name, file in zip(names, files, strict=True)
            )
            self._apply_share(period, share, strict, warnings)

    def _apply_share(
        self,
        period: v1_plan.Write | None,
        share: v1_plan.Write | None,
        strict: bool,
        warnings: list[str],
    ) -> None:
        """The kernel checks the ratio against the parent's at each write, so where the new period does not fit
        the old share, the share goes first."""
        if period:
            try:
                self._perform(period, strict, warnings)
            except OSError as error:
                if error.errno != EINVAL or not share:
                    raise
                self._perform(share, strict, warnings)
                self._perform(period, strict, warnings)
                return
        if share:
            self._perform(share, strict, warnings)

    def _apply_devices(self, rows: Any, fresh: bool, strict: bool, warnings: list[str]) -> None:
        rules = devices.effective(rows)
        directory = self.directory("devices")
        if not directory:
            self._forgive(
                OSError(ENOENT, "the devices cgroup controller is not mounted", self.path),
                v1_plan.Write("devices", "devices.allow", ""),
                strict,
                warnings,
            )
            return
        if not fresh:
            listed = set(read_or(f"{directory}/devices.list").splitlines())
            if listed == devices.v1_listing(rules):
                return  # a rewrite would shut out a running container for a moment
        try:
            for file, text in devices.v1_writes(rules):
                write(f"{directory}/{file}", text)
        except OSError as error:
            # In a user namespace the list belongs to somebody else, and is no wider than ours.
            if not (self.rootless and error.errno in NO_RIGHT):
                raise

    # ------------------------------------------------------------------ life

    def freeze(self) -> None:
        """Stop every process; returns when the kernel says that all of them stand still."""
        directory = self._freezer()
        for _ in range(FREEZE_TRIES):
            # Written again each round: a process forking meanwhile may have left the state at FREEZING.
            write(f"{directory}/freezer.state", "FROZEN")
            if read(f"{directory}/freezer.state").strip() == "FROZEN":
                return
            sleep(FREEZE_PAUSE)
        write(f"{directory}/freezer.state", "THAWED")
        raise OSError(EBUSY, "unable to freeze", directory)

    def thaw(self) -> None:
        write(f"{self._freezer()}/freezer.state", "THAWED")

    def frozen(self) -> bool:
        directory = self.directory("freezer")
        return bool(directory) and read_or(f"{directory}/freezer.state").strip() in (
            "FROZEN",
            "FREEZING",
        )

    def _freezer(self) -> str:
        directory = self.directory("freezer")
        if not directory:
            raise OSError(ENOENT, "the freezer cgroup controller is not mounted", self.path)
        return directory

    def pids(self, *, recursive: bool = True) -> list[int]:
        """The container's processes as the calling process's pid namespace numbers them."""
        reference = self._reference()
        if not reference:
            return []
        directories = walk(reference) if recursive else [reference]
        return [pid for directory in directories for pid in pids_of(directory)]

    def kill_all(self, signal: int = SIGKILL) -> None:
        """Signal every process. SIGKILL reaches also those that fork meanwhile, and frozen ones."""
        if signal == SIGKILL and self.unified and exists(f"{self.unified}/cgroup.kill"):
            try:
                write(f"{self.unified}/cgroup.kill", "1")
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
        was_frozen = self.frozen()
        if signal == SIGKILL and not was_frozen and self.directory("freezer") and self.pids():
            try:
                self.freeze()
            except OSError:
                pass  # a second best: then the loop below runs against forks
        signal_each(self.pids(), signal)
        if signal == SIGKILL and self.frozen():
            self.thaw()

    def stats(self) -> Stats:
        return v1_stats.read_stats(self.directory, self.unified)

    def oom_watch(self) -> OomWatch:
        directory = self.directory("memory")
        if not directory:
            raise OSError(ENOENT, "the memory cgroup controller is not mounted", self.path)
        return v1_oom_watch(directory)

    def oom_kills(self) -> int:
        return oom_kills(f"{self.directory('memory')}/memory.oom_control")

    def exists(self) -> bool:
        reference = self._reference()
        return bool(reference) and exists(reference)

    def destroy(self) -> None:
        """Remove the directories and what the container made below them. Gone already is success."""
        for directory in self.directories.values():
            remove_tree(directory)
        if self.unified:
            remove_tree(self.unified)


def inherit_cpuset(point: str, path: str) -> None:
    """Fill in an empty cpuset, parents first: no task may join before.

    The parents get clone_children, so that from the second container on the kernel does it.
    """
    leaf = point + path
    if read(f"{leaf}/cpuset.cpus").strip():
        return
    here = point
    for part in path.split("/"):
        if not part:
            continue
        parent, here = here, f"{here}/{part}"
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not read(f"{here}/{file}").strip():
                write(f"{here}/{file}", read(f"{parent}/{file}").strip())
        if here != leaf:
            write(f"{here}/cgroup.clone_children", "1")


def check_shares(directory: str, wanted: int) -> None:
    """The kernel clamps a silly weight without a word; the caller should know."""
    actual = parse_int(read(f"{directory}/cpu.shares"))
    if wanted > actual:
        raise OSError(
            EINVAL, f"the maximum allowed cpu-shares is {actual}", f"{directory}/cpu.shares"
        )
    if wanted < actual:
        raise OSError(
            EINVAL, f"the minimum allowed cpu-shares is {actual}", f"{directory}/cpu.shares"
        )


def explain_memory(error: OSError, directory: str, row: v1_plan.Write) -> OSError:
    """EBUSY of a limit below the usage says little; the two figures say all."""
    if error.errno != EBUSY:
        return error
    usage = parse_int(read_or(f"{directory}/memory.usage_in_bytes", "0"))
    peak = parse_int(read_or(f"{directory}/memory.max_usage_in_bytes", "0"))
    text = f"unable to set memory limit to {row.text} (current usage: {usage}, peak usage: {peak})"
    return OSError(EBUSY, text, error.filename)
