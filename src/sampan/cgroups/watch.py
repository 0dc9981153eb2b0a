"""Learning that the kernel killed for want of memory: one descriptor to poll, one counter to read.

    v1   an eventfd registered with memory.oom_control through cgroup.event_control: readable at each
         time the cgroup runs into its limit; the kills are counted by `oom_kill` in memory.oom_control
    v2   memory.events: poll(2) reports POLLPRI when it changes; `oom_kill` in it counts the kills

Either way: poll `fileno()` for `POLL_EVENTS`, then ask `kills()`, which is the number since the cgroup was made.
A container that ended is judged by the same counter, so it must be read before the cgroup is removed.

Source: cgroup-v1/memory.rst section 10; cgroup-v2.rst "memory.events".
"""

from __future__ import annotations

import posix

from .files import read_or, write
from .stats import parse_flat

POLLIN = 1
POLLPRI = 2
POLLERR = 8


class OomWatch:
    """A descriptor that wakes a poll when the cgroup ran out of memory; closed by close()."""

    __slots__ = ("_fd", "counter_file", "poll_events")

    def __init__(self, fd: int, poll_events: int, counter_file: str) -> None:
        self._fd = fd
        self.poll_events = poll_events
        self.counter_file = counter_file

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Make the descriptor quiet again until the next event."""
        if self.poll_events & POLLIN:
            try:
                posix.read(self._fd, 8)
            except BlockingIOError:
                pass
        else:
            posix.lseek(self._fd, 0, 0)
            posix.read(self._fd, 4096)

    def kills(self) -> int:
        return oom_kills(self.counter_file)

    def close(self) -> None:
        if self._fd >= 0:
            posix.close(self._fd)
            self._fd = -1


def oom_kills(counter_file: str) -> int:
    """How many processes the kernel has killed in this cgroup; zero where it does not count."""
    return parse_flat(read_or(counter_file)).get("oom_kill", 0)


def v1_oom_watch(memory_directory: str) -> OomWatch:
    control = posix.open(f"{memory_directory}/memory.oom_control", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        event = posix.eventfd(0, posix.EFD_CLOEXEC | posix.EFD_NONBLOCK)
        try:
            write(f"{memory_directory}/cgroup.event_control", f"{event} {control}")
        except OSError:
            posix.close(event)
            raise
    finally:
        posix.close(control)
    return OomWatch(event, POLLIN, f"{memory_directory}/memory.oom_control")


def v2_oom_watch(directory: str) -> OomWatch:
    """Recursive unless the kernel is too old for memory.events.local; children's kills count too."""
    file = f"{directory}/memory.events"
    fd = posix.open(file, posix.O_RDONLY | posix.O_CLOEXEC)
    posix.read(fd, 4096)  # the first poll is ready until the file was read once
    return OomWatch(fd, POLLPRI | POLLERR, file)
