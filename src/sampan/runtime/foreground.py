"""Staying with a process until it ends: `run` and `exec` without --detach.

Signals that reach us are passed on; a terminal is copied to and from ours, in raw mode, with its size.
Source: runc's documented behaviour (docs/terminals.md there): foreground mode.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix

from sampan.linux.fds import close_quietly, write_all
from sampan.linux.process import pidfd_send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .child import Child
    from .readiness import Readiness

    Handlers = dict[
        int, Callable[[], bool]
    ]  # what to do when a descriptor is readable; False: no more

# Not ours to pass on: those of the kernel about ourselves.
_OWN = frozenset(
    {_signal.SIGCHLD, _signal.SIGKILL, _signal.SIGSTOP, _signal.SIGURG, _signal.SIGSEGV, _signal.SIGBUS,
     _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS, _signal.SIGABRT, _signal.SIGPIPE}
)  # fmt: skip
_FORWARDED = frozenset(range(1, 32)) - _OWN
WAITED = _FORWARDED | {_signal.SIGCHLD}


def block_signals() -> None:
    """Before the child is made, so that no signal is lost between its start and our waiting."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, WAITED)


def stay(child: Child, readiness: Readiness | None = None) -> int:
    """Until the process ends, with its terminal if it has one; its exit code."""
    if child.console_fd >= 0:
        return wait_on_terminal(child, readiness)
    return wait(child, readiness)


def wait(child: Child, readiness: Readiness | None = None) -> int:
    """Pass signals on until the process ends; its exit code as a shell tells it."""
    if readiness is not None:
        return _watch(child, {readiness.fd: readiness.handle})
    while True:
        code = _reap(child)
        if code is not None:
            return code
        number = _signal.sigwaitinfo(WAITED).si_signo
        if number != _signal.SIGCHLD:
            _forward(child, number)


def _forward(child: Child, number: int) -> None:
    try:
        pidfd_send_signal(child.pidfd, number)
    except OSError:
        pass  # it has ended: SIGCHLD is on its way


def _reap(child: Child) -> int | None:
    """Everything that ended (we are a subreaper); the code when it was our child."""
    found = None
    while True:
        try:
            pid, status = posix.waitpid(-1, posix.WNOHANG)
        except ChildProcessError:
            return found if found is not None else 1
        if pid == 0:
            return found
        if pid == child.pid:
            found = (
                128 + posix.WTERMSIG(status)
                if posix.WIFSIGNALED(status)
                else posix.WEXITSTATUS(status)
            )


def wait_on_terminal(
    child: Child, readiness: Readiness | None = None, *, stdin: int = 0, stdout: int = 1
) -> int:
    """The same with a pty: bytes go both ways until it is closed, then the code."""
    console = child.console_fd
    before = _raw(stdin)
    handlers: Handlers = {
        console: lambda: _copy(console, stdout),
        stdin: lambda: _copy(stdin, console),
    }
    if readiness is not None:
        handlers[readiness.fd] = readiness.handle
    try:
        _copy_size(stdin, console)
        return _watch(child, handlers, stdin)
    finally:
        _restore(stdin, before)


def _watch(child: Child, handlers: Handlers, stdin: int = 0) -> int:
    """Serve descriptors and signals until the process has ended and what it wrote last is read."""
    import select

    wakeup, wake = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
    _catch_signals(wake)
    poller = select.poll()
    for fd in (*handlers, wakeup):
        poller.register(fd, select.POLLIN)
    code: int | None = None
    try:
        while code is None or child.console_fd in handlers:
            # Once the process is gone only what it wrote last is left to read.
            events = poller.poll(None if code is None else 50)
            if not events:
                break
            for fd, _ in events:
                if fd == wakeup:
                    _handle_signals(child, wakeup, stdin)
                elif fd in handlers and not handlers[fd]():
                    poller.unregister(fd)
                    del handlers[fd]
            if code is None:
                code = _reap(child)
    finally:
        _signal.set_wakeup_fd(-1)
        close_quietly(wakeup, wake)
    return code if code is not None else 1


def _copy(source: int, target: int) -> bool:
    """One portion; False at the end. A pty whose other side is closed says EIO."""
    try:
        data = posix.read(source, 65536)
    except OSError:
        return False
    if not data:
        return False
    try:
        write_all(target, data)
    except OSError:
        return False
    return True


def _catch_signals(wake: int) -> None:
    _signal.set_wakeup_fd(wake)
    for number in WAITED:
        _signal.signal(number, lambda *_: None)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, WAITED)


def _handle_signals(child: Child, wakeup: int, stdin: int) -> None:
    for number in posix.read(wakeup, 512):
        if number == _signal.SIGWINCH:
            _copy_size(stdin, child.console_fd)
        elif number in _FORWARDED:
            _forward(child, number)


def _copy_size(terminal: int, console: int) -> None:
    try:
        size = posix.get_terminal_size(terminal)
    except OSError:
        return
    from .devices import set_window

    try:
        set_window(console, size.lines, size.columns)
    except OSError:
        pass


def _raw(fd: int) -> Any:
    """Our terminal passes every byte on; the settings before, or None when it is none."""
    if not posix.isatty(fd):
        return None
    import termios

    before = termios.tcgetattr(fd)
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(fd)
    iflag &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])
    return before


def keep_line_ends(console: int) -> None:
    """No carriage returns added: our own terminal, when there is one, adds what it needs (runc's choice)."""
    import termios

    settings = termios.tcgetattr(console)
    settings[1] &= ~termios.ONLCR
    termios.tcsetattr(console, termios.TCSANOW, settings)


def _restore(fd: int, before: Any) -> None:
    if before is not None:
        import termios

        termios.tcsetattr(fd, termios.TCSANOW, before)
