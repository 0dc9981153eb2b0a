"""A plan's unit: a step says what it does (`describe`) and does it (`perform`), and `Stage` is where it acts.

`sampan explain`, `run --trace` and error messages all show the same descriptions. A step holds a function
and its arguments, decided before any process exists; performing needs nothing but what `Stage` holds.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroups.manager import Manager


class Step:
    """One thing to do in a new process. `blame` begins the message when it fails (runc's words)."""

    __slots__ = ("action", "arguments", "blame", "text")

    def __init__(
        self, text: str, action: Callable[..., None], *arguments: Any, blame: str = ""
    ) -> None:
        self.text = text
        self.action = action
        self.arguments = arguments
        self.blame = blame or text

    def describe(self) -> str:
        return self.text

    def perform(self, stage: Stage) -> None:
        self.action(stage, *self.arguments)

    def __repr__(self) -> str:
        return f"Step({self.text!r})"


class Stage:
    """What the steps of one child share: descriptors that are open, and what was found out on the way."""

    __slots__ = (
        "born_inside", "channel", "console_socket", "environ", "executable", "handles", "manager", "now",
        "null_fd", "preserved", "proc_fd", "reaper_fd", "report_fd", "root_fd", "springboard_fd", "start_listener", "stdio", "unsealed", "warnings",
    )  # fmt: skip

    def __init__(self, channel: socket) -> None:
        self.channel = channel
        self.root_fd = -1  # the container's root directory
        self.proc_fd = -1  # a verified procfs of the container's pid namespace
        self.unsealed: list[int] = []  # mounts that become read-only when everything is in them
        self.null_fd = -1  # a verified /dev/null of the host
        self.reaper_fd = -1  # with --init, the program that becomes process 1
        self.springboard_fd = -1  # a sealed program that executes the container's (springboard.py)
        self.report_fd = -1  # where that one says why it could not
        self.console_socket = -1  # where the pty master goes instead of the channel
        self.start_listener = -1  # `create`: a listening socket on which `start` will call
        self.stdio: tuple[int, ...] = (0, 1, 2)
        self.environ: list[str] = []  # the program's
        self.executable = ""  # what execve will run, inside the root
        self.now = ""  # the step under way, for the message when it fails
        self.handles: dict[str, int] = {}  # what the parent opened for us, by name
        self.warnings: list[str] = []
        self.preserved: tuple[int, ...] = ()  # descriptors the program will have beyond stdio
        self.born_inside = False  # clone put us into the unified cgroup already
        self.manager: Manager | None = None  # the container's cgroup

    def run(self, steps: tuple[Step, ...]) -> None:
        """Perform steps in order; the one that fails is named by `now`."""
        for step in steps:
            self.now = step.blame
            step.perform(self)
