"""The descriptors of a process's stdio: pipes in pairs, the size of a terminal."""

from __future__ import annotations

import posix
import struct

from sampan.linux.fds import close_quietly
from sampan.linux.syscalls import ioctl

_TIOCSWINSZ = 0x5414  # asm-generic/ioctls.h


class Pipes:
    """The pipes of a process without a tty: its ends and ours."""

    def __init__(self, *, stdin: bool, output: bool = True) -> None:
        self.outputs: dict[int, str] = {}
        self.stdin = -1
        theirs: list[int] = []
        try:
            if stdin:
                reader, self.stdin = posix.pipe2(posix.O_CLOEXEC)
                theirs.append(reader)
            else:
                theirs.append(posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC))
            for name in ("stdout", "stderr"):
                if output:
                    reader, writer = posix.pipe2(posix.O_CLOEXEC)
                    self.outputs[reader] = name
                    theirs.append(writer)
                else:
                    theirs.append(posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC))
        except OSError:
            close_quietly(*theirs)
            self.close_ours()
            raise
        self.theirs = (theirs[0], theirs[1], theirs[2])

    def close_theirs(self) -> None:
        close_quietly(*self.theirs)
        self.theirs = (-1, -1, -1)

    def close_ours(self) -> None:
        close_quietly(self.stdin, *self.outputs)
        self.stdin = -1
        self.outputs = {}


def set_window_size(fd: int, height: int, width: int) -> None:
    size = bytearray(struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))
    ioctl(fd, _TIOCSWINSZ, bytes(size))
