"""What can go wrong on the client's side of the wire, and the exit status that each carries.

    Failure         a message for the person and a status
        Usage       argv does not fit the table: message, usage line, pointer to --help, status 125
        Refused     the engine answered 4xx or 5xx: `Error response from daemon: ...`, status 1
        Unreachable no engine behind the address

Statuses: 125 the engine or our own use failed, 126 found but not executable, 127 not found, otherwise 1 or what the
container ended with.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options


class Failure(Exception):
    """`message` goes to stderr as it is; an empty one only sets the status.

    `hint`: what to do next, for a person only: it is shown where stderr is a terminal, and docker has no such line.
    """

    def __init__(self, message: str = "", *, status: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.hint = hint


class Usage(Failure):
    """argv does not fit the command's table."""

    def __init__(self, options: Options, message: str) -> None:
        from sampan.cli.args import usage_line

        name = f"sampan {options.name}"
        super().__init__(
            f"{message}\n\nUsage:  {usage_line(options.command, options.name)}\n\n"
            f"Run '{name} --help' for more information",
            status=125,
        )


class Refused(Failure):
    """The engine said no; `code` is the HTTP status, `reason` its own words."""

    def __init__(self, code: int, reason: str, hint: str = "") -> None:
        super().__init__(f"Error response from daemon: {reason}", hint=hint)
        self.code = code
        self.reason = reason


class Unreachable(Failure):
    """Nobody answers at the engine's address."""


class Detached(Exception):
    """The person left the stream with the detach keys."""
