"""What goes wrong in a build, in BuildKit's words; `classic` has the words of Docker's first builder for its clients.

    CommandFailed     a RUN ended with another status than 0           SourceMissing    COPY of what is not there

Every failure of an instruction carries the Dockerfile's lines (`line`, `end`, from 1) where they are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampan.errors import InvalidArgument, NotFound, SampanError
from sampan.ids import new_id

if TYPE_CHECKING:
    from sampan.build.graph import Run

OOM_HINT = "cannot allocate memory: the step was killed for it"


class CommandFailed(InvalidArgument):
    """A RUN ended with another status than 0."""

    def __init__(self, operation: Run, code: int, *, oom_killed: bool) -> None:
        self.command = " ".join(operation.args)
        end = f"{code}: {OOM_HINT}" if oom_killed else str(code)
        super().__init__(
            f'process "{self.command}" did not complete successfully: exit code: {end}'
        )
        self.exit_code = code
        self.oom_killed = oom_killed
        self.image: dict[str, str] = {}  # what it left, where that was asked for
        self.operation = operation
        self.line = operation.label.start
        self.end = operation.label.end

    @property
    def classic(self) -> str:
        extra = " (it was killed for lack of memory)" if self.oom_killed else ""
        return f"The command '{self.command}' returned a non-zero code: {self.exit_code}{extra}"


class RunRefused(InvalidArgument):
    """A RUN that could not even be started."""

    def __init__(self, operation: Run, reason: str, classic: str = "") -> None:
        command = " ".join(operation.args)
        super().__init__(f'process "{command}" did not complete successfully: {reason}')
        self.classic = classic or reason


class SourceMissing(NotFound):
    """A source of a COPY or ADD is not there."""

    def __init__(self, path: str) -> None:
        self.path = path
        shown = f"{new_id()[:8]}::{new_id()[:25]}"  # BuildKit names what it looked into; nobody can use it
        super().__init__(
            f'failed to calculate checksum of ref {shown}: "/{path.lstrip("/")}": not found'
        )

    @property
    def classic(self) -> str:
        return (
            "COPY failed: file not found in build context or excluded by .dockerignore: "
            f"stat {self.path.lstrip('/') or '/'}: file does not exist"
        )


class DockerfileMissing(NotFound):
    """There is no Dockerfile of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"failed to read dockerfile: open {name}: no such file or directory")
        self.classic = f"Cannot locate specified Dockerfile: {name}"


class DockerfileEmpty(InvalidArgument):
    """There is nothing in it."""

    def __init__(self, name: str, message: str = "the Dockerfile cannot be empty") -> None:
        super().__init__(message)
        self.classic = f"The Dockerfile ({name}) cannot be empty"


def classic_words(error: SampanError) -> str:
    """The message for clients of the classic builder."""
    return str(getattr(error, "classic", error.message))
