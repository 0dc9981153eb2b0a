"""INIT: the new process, from its birth by clone to execve, as one straight recipe.

Everything it does was decided before it was born (`LaunchPlan`), every module it needs is imported, and it
leaves by execve or by `_exit`. It is Python inside somebody else's root, so it imports nothing and looks
nothing up by name there (rule P2): `sys.meta_path` is empty from the first line on.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import posix
import sys

from sampan.linux.process import set_dumpable
from sampan.linux.syscalls import close_range

from . import channel, execution
from .channel import LaunchError, describe_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .plan import LaunchPlan
    from .steps import Stage


def run_init(plan: LaunchPlan, stage: Stage) -> NoReturn:
    """The child's whole life. Never returns, never raises."""
    try:
        _recipe(plan, stage)
    except BaseException as error:  # noqa: BLE001 - the boundary of the process
        report(stage, error)
    posix._exit(1)


def _recipe(plan: LaunchPlan, stage: Stage) -> None:
    stage.now = "become a process of our own"
    forbid_imports()
    # Until the id maps are written the parent must be able to open our /proc files; nobody else is here yet.
    set_dumpable(plan.maps_ids)
    if not plan.keeps_session:
        posix.setsid()
    posix.umask(
        0
    )  # what is made on the way has exactly the mode it is given; the program gets its own later
    arrange_stdio(stage)
    _keep_only(stage)

    if not plan.two_stage:
        stage.run(plan.first)
    stage.run(plan.before)

    stage.now = "find the executable"
    stage.environ = environ = list(plan.environ)
    argv = list(plan.args)
    execution.set_home(stage, environ, plan.uid)
    execution.find_executable(stage, argv[0], environ)
    if plan.reaper:
        execution.put_reaper_in_front(stage, argv)
    for warning in stage.warnings:
        channel.send(stage.channel, channel.WARNING, warning)

    channel.send(stage.channel, channel.READY)
    stage.now = "wait for start"
    _wait_for_start(stage)

    if plan.springboard:
        execution.put_springboard_under(stage)
    prepared = execution.prepare(stage, argv, environ)
    _close_all_but(stage, plan.preserve_fds)
    stage.run(plan.finish)
    # Programs of the image: with the rights of the container's program, and not with ours.
    stage.run(plan.hooks_at_start)
    execution.execute(stage, prepared)


def forbid_imports() -> None:
    """No module is ever looked for in the image's directories."""
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path.clear()


def arrange_stdio(stage: Stage) -> None:
    """Put the three given descriptors at 0, 1, 2. With a terminal there are none yet."""
    wanted = stage.stdio
    if not wanted or wanted == (0, 1, 2):
        return
    # A wanted descriptor may sit where another must go: lift all above first.
    lifted = [_lift(fd) for fd in wanted]
    for number, fd in enumerate(lifted):
        posix.dup2(fd, number, True)
        posix.close(fd)


def _lift(fd: int) -> int:
    from_here = posix.dup(fd)
    if from_here > 2:
        return from_here
    higher = _lift(from_here)
    posix.close(from_here)
    return higher


def _keep_only(stage: Stage) -> None:
    """Close what the parent had open and we do not need: sockets of other containers, logs, directories."""
    keep = {
        0,
        1,
        2,
        stage.channel.fileno(),
        stage.console_socket,
        stage.start_listener,
    }
    keep.update(stage.handles.values())
    keep.update(stage.preserved)
    close_except(keep)


def close_except(keep: set[int]) -> None:
    """close_range(2) over the gaps."""
    first = 0
    for fd in sorted(keep):
        if fd < 0:
            continue
        close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def _wait_for_start(stage: Stage) -> None:
    if stage.start_listener >= 0:
        stage.channel.close()
        for number in _ENDING_SIGNALS:
            _signal.signal(number, _end)
        listener = _socket.socket(fileno=stage.start_listener)
        stage.channel = accept(listener)
        listener.close()
        stage.start_listener = -1
    kind, _, _ = channel.receive(stage.channel)
    if kind != channel.START:
        posix._exit(1)  # whoever would have started us is gone


# Process 1 of a pid namespace gets only signals that it catches; `kill` of a created container is to end it.
_ENDING_SIGNALS = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM)


def _end(number: int, _frame: object) -> NoReturn:
    posix._exit(128 + number)


def accept(listener: _socket.socket) -> _socket.socket:
    """One connection, close-on-exec. (`_socket.socket._accept` gives a bare descriptor.)"""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return _socket.socket(fileno=fd)


def _close_all_but(stage: Stage, preserve: tuple[int, ...]) -> None:
    """stdio and the preserved descriptors stay; the channel is close-on-exec and tells the parent of success."""
    keep = {0, 1, 2, *preserve, stage.channel.fileno(), stage.proc_fd, stage.reaper_fd}
    close_except(keep | {stage.springboard_fd, stage.report_fd})
    for number in preserve:
        posix.set_inheritable(number, True)


def report(stage: Stage, error: BaseException) -> None:
    if isinstance(error, LaunchError):
        number, step, text = error.errno, error.step or stage.now, error.message
    else:
        number, why = describe_error(error)
        step, text = stage.now, f"{stage.now}: {why}"
        if isinstance(error, OSError) and error.filename and str(error.filename) not in text:
            text = f"{stage.now}: {error.filename}: {why}"
    try:
        channel.send_failure(stage.channel, number=number, step=step, text=text)
    except OSError:
        pass  # nobody listens


__all__ = ["accept", "arrange_stdio", "close_except", "forbid_imports", "report", "run_init"]
