"""A process that we made, as its maker holds it, and whether its program came to run."""

from __future__ import annotations

import posix
import select

from sampan.linux.fds import close_quietly
from sampan.linux.procfs import start_time
from sampan.linux.syscalls import pidfd_open, pidfd_send_signal

from . import channel, springboard
from .channel import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

SIGKILL = 9
_REAP_MS = 5000


class Child:
    """A process that we made: pid with start time for the record, pidfd for us."""

    __slots__ = ("console_fd", "pid", "pidfd", "start_time")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time(pid)
        self.console_fd = -1

    def replace(self, pid: int) -> None:
        """The first stage made the real process, its sibling, and left."""
        pidfd = pidfd_open(pid)
        self.reap()
        posix.close(self.pidfd)
        self.pid, self.pidfd, self.start_time = pid, pidfd, start_time(pid)

    def hold_mounts(self) -> int:
        """A descriptor of the mount namespace. While it is open, process 1's exit unmounts nothing, so the
        exit status does not wait for overlayfs to sync; close it before the snapshot is used again."""
        return posix.open(f"/proc/{self.pid}/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC)

    def kill(self) -> None:
        """SIGKILL and reap."""
        try:
            pidfd_send_signal(self.pidfd, SIGKILL)
        except OSError:
            pass
        self.reap()

    def reap(self) -> int:
        """Wait; the shell's exit code, or -1 when it is for somebody else to reap."""
        try:
            result = posix.waitid(posix.P_PIDFD, self.pidfd, posix.WEXITED)
        except ChildProcessError:
            end = select.poll()
            end.register(self.pidfd, select.POLLIN)
            end.poll(_REAP_MS)
            return -1
        if result is None:
            return -1
        return result.si_status + (0 if result.si_code == posix.CLD_EXITED else 128)


class Execution:
    """Whether the program came to run where a springboard executes it."""

    def __init__(self) -> None:
        self.path = ""
        self.reader = -1

    def expect(self, path: str, reader: int) -> None:
        """EXECUTING: the springboard will report on this pipe."""
        close_quietly(self.reader)
        self.path, self.reader = path, reader

    def check(self) -> None:
        """At the end of the channel; LaunchError with Go's text when execve failed."""
        if self.reader < 0:
            return
        reader, self.reader = self.reader, -1
        if number := springboard.outcome(reader):
            text = posix.strerror(number)
            raise LaunchError(
                f"exec {self.path}: {text[:1].lower()}{text[1:]}", step="execute", errno=number
            )


def await_execution(sock: socket, pidfd: int, state: dict[str, Any]) -> None:
    """End of file: execve closed the socket. FAILED: it could not. LISTENER: its seccomp agent is to be told."""
    watch = Execution()
    while True:
        kind, text, fds = channel.receive(sock)
        if kind == b"":
            watch.check()
            return
        if kind == channel.EXECUTING:
            watch.expect(text, fds[0])
        if kind == channel.FAILED:
            raise channel.parse_failure(text)
        if kind == channel.LISTENER:
            from .notify import hand_over

            hand_over(sock, pidfd, text, fds, state)
