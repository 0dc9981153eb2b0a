"""The kinds of failure, named by what the caller can do about them.

    SampanError
        InvalidArgument    the request is wrong in itself: change it
        NotFound           the thing named does not exist
        Conflict           the thing is in a state that forbids this now
        NotModified        it already is as wished (not a failure for most clients)
        PermissionDenied   the rules forbid it, whoever asks again
        Unauthenticated    who asks is not known, or the password is wrong
        Unavailable        not now: something needed is down or starting
        Unsupported        this engine or this host cannot do that
        Cancelled          the caller went away or changed its mind
        Internal           a defect of ours, or the host failed us

Each carries `message` (for the person at the prompt, in Docker's words where clients match them),
`hint` (what to do next, may be empty) and `as_docker` (where Docker says it otherwise and less: what the API answers
then). No HTTP status, gRPC code or exit code lives here: three tables
translate (`api/router.py`, `cri/server.py`, `cli/main.py`).
"""

from __future__ import annotations


class SampanError(Exception):
    """The root of every failure that a verb of ours raises on purpose."""

    def __init__(self, message: str, *, hint: str = "", as_docker: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.as_docker = as_docker

    def __str__(self) -> str:
        return self.message


class InvalidArgument(SampanError):
    """The request is wrong in itself."""


class NotFound(SampanError):
    """The thing named does not exist."""


class Conflict(SampanError):
    """The thing is in a state that forbids this now."""


class NotModified(SampanError):
    """It already is as wished."""


class PermissionDenied(SampanError):
    """The rules forbid it."""


class Unauthenticated(SampanError):
    """Who asks is not known."""


class Unavailable(SampanError):
    """Something needed is down or starting."""


class Unsupported(SampanError):
    """This engine or this host cannot do that."""


class Cancelled(SampanError):
    """The caller went away or changed its mind."""


class Internal(SampanError):
    """A defect of ours, or the host failed us."""
