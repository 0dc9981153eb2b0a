"""The person's terminal: raw while a container has it, restored whatever happens, and its size."""

from __future__ import annotations

import posix
import termios


class Raw:
    """Input raw until `restore`; output keeps its newline translation off, as docker has it."""

    __slots__ = ("_fd", "_saved")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[object] | None = termios.tcgetattr(fd)
        mode = termios.tcgetattr(fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR
            | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)

    def restore(self) -> None:
        if self._saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)  # type: ignore[arg-type]
            except termios.error:
                pass  # the terminal is gone
            self._saved = None


def size(fd: int) -> tuple[int, int]:
    """(height, width), zeros where there is no terminal."""
    try:
        window = posix.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return window.lines, window.columns
