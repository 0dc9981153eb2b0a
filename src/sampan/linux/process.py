"""Processes by pidfd: make, wait, signal, name a signal, and put back what Python changed.

Makers of processes that enter containers use `clone3` (re-exported from syscalls) directly; helpers
that only run a program use `spawn` (posix_spawn: its cost does not grow with our own memory).
"""

from __future__ import annotations

import posix

from . import constants as c
from .syscalls import (
    clone3,
    default_signal,
    pidfd_open,
    pidfd_send_signal,
    prctl,
    prlimit,
    unblock_all_signals,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DIGITS = "0123456789"
SIGNAL_NAMES = {number: name for name, number in reversed(c.SIGNALS.items())}


def fork() -> int:
    """A plain child of this single-threaded process: 0 in it, its pid here."""
    return clone3(0)[0]


def decode_status(status: int) -> int:
    """wait(2)'s status word as the shell's code: the exit code, or 128 + the signal."""
    if posix.WIFSIGNALED(status):
        return 128 + posix.WTERMSIG(status)
    return posix.WEXITSTATUS(status)


def wait(pid: int) -> int:
    """Wait for a child; the shell's code."""
    return decode_status(posix.waitpid(pid, 0)[1])


def wait_pidfd(pidfd: int) -> int:
    """Wait for a child by its pidfd; the shell's code."""
    result = posix.waitid(posix.P_PIDFD, pidfd, posix.WEXITED)
    if result is None:  # only with WNOHANG
        raise AssertionError("waitid returned nothing")
    if result.si_code == posix.CLD_EXITED:
        return result.si_status
    return 128 + result.si_status


def signal_number(text: str | int) -> int:
    """15, "15", "TERM", "SIGTERM", "sigterm", "RTMIN+3" as a number; ValueError for anything else."""
    if isinstance(text, int):
        number = text
    elif text and len(text) <= 3 and all(digit in _DIGITS for digit in text):
        number = int(text)
    else:
        number = _named_signal(text)
    if not 0 <= number <= c.SIGRTMAX:
        raise ValueError(f"unknown signal {text!r}")
    return number


def _named_signal(text: str) -> int:
    name = text.upper()
    if not name.startswith("SIG"):
        name = "SIG" + name
    if name in c.SIGNALS:
        return c.SIGNALS[name]
    for base, start in (("SIGRTMIN", c.SIGRTMIN), ("SIGRTMAX", c.SIGRTMAX)):
        rest = name[len(base) :]
        if not name.startswith(base):
            continue
        if not rest:
            return start
        sign, digits = rest[0], rest[1:]
        if sign in "+-" and 0 < len(digits) <= 2 and all(digit in _DIGITS for digit in digits):
            number = start + int(sign + digits)
            if c.SIGRTMIN <= number <= c.SIGRTMAX:
                return number
    raise ValueError(f"unknown signal {text!r}")


def signal_name(number: int) -> str:
    """15 -> "SIGTERM", 34 -> "SIGRTMIN", 37 -> "SIGRTMIN+3"."""
    if number in SIGNAL_NAMES:
        return SIGNAL_NAMES[number]
    if c.SIGRTMIN <= number <= c.SIGRTMAX:
        return "SIGRTMIN" + (f"+{number - c.SIGRTMIN}" if number > c.SIGRTMIN else "")
    return str(number)


def reset_signals() -> None:
    """Every signal to its default and none blocked: CPython ignores SIGPIPE and SIGXFSZ, glibc's posix_spawn
    leaves its own 32 and 33 ignored, and execve keeps ignored signals ignored (security rule P4)."""
    for number in range(1, c.SIGRTMAX + 1):
        if number not in (c.SIGNALS["SIGKILL"], c.SIGNALS["SIGSTOP"]):
            default_signal(number)
    unblock_all_signals()


def set_subreaper(on: bool = True) -> None:
    """Orphans among our descendants become our children."""
    prctl(c.PR_SET_CHILD_SUBREAPER, int(on))


def set_dumpable(on: bool) -> None:
    """With 0 nobody inside a container we join can read our memory, maps, exe or descriptors (rule P3)."""
    prctl(c.PR_SET_DUMPABLE, int(on))


def set_parent_death_signal(number: int) -> None:
    prctl(c.PR_SET_PDEATHSIG, number)


def set_name(name: str) -> None:
    """What ps and /proc/PID/comm show; 15 bytes of it."""
    prctl(c.PR_SET_NAME, name.encode()[:15] + b"\0")


def set_oom_score_adj(value: int, pid: int | str = "self") -> None:
    from .paths import write_file

    write_file(f"/proc/{pid}/oom_score_adj", b"%d" % value)


def open_pidfd(pid: int, started: int) -> int:
    """A pidfd of exactly the process (pid, start time); ProcessLookupError when it is gone."""
    from .procfs import is_alive

    fd = pidfd_open(pid)
    if not is_alive(pid, started):
        posix.close(fd)
        raise ProcessLookupError(3, posix.strerror(3))
    return fd


def spawn(
    path: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    stdin: int = -1,
    stdout: int = -1,
    stderr: int = -1,
) -> int:
    """Run a host program with default signals; -1 gives it /dev/null. Its pid."""
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = []
    for number, fd in enumerate((stdin, stdout, stderr)):
        if fd < 0:
            mode = posix.O_RDONLY if number == 0 else posix.O_WRONLY
            actions.append((posix.POSIX_SPAWN_OPEN, number, "/dev/null", mode, 0))
        else:
            actions.append((posix.POSIX_SPAWN_DUP2, fd, number))
    defaults = [n for n in range(1, 32) if n not in (9, 19)]
    return posix.posix_spawn(
        path, list(argv), environ, file_actions=actions, setsigdef=defaults, setsigmask=[]
    )


__all__ = [
    "clone3", "decode_status", "fork", "open_pidfd", "pidfd_open", "pidfd_send_signal", "prlimit",
    "reset_signals", "set_dumpable", "set_name", "set_oom_score_adj", "set_parent_death_signal",
    "set_subreaper", "signal_name", "signal_number", "spawn", "wait", "wait_pidfd",
]  # fmt: skip
