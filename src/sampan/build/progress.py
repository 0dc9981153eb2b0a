"""What a build tells while it runs: vertices (a step, a transfer, an export) with their times, counts, output, warnings.

    solver, frontend, exporters ──Board──► events ──► a sink: the classic lines, BuildKit's Status stream, our own CLI

A vertex is told of again whenever something about it changed; the last telling holds. Names are BuildKit's
(`[internal] load build context`, `[build 2/5] RUN make`), for people and programs know them. Pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


class Vertex(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it stands. Times in nanoseconds since the epoch, 0 where that has not come yet."""

    digest: str
    name: str
    inputs: tuple[str, ...] = ()
    started_ns: int = 0
    completed_ns: int = 0
    cached: bool = False
    error: str = ""


class VertexStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A count within a vertex: bytes sent, layers written. `total` 0 where nobody knows it."""

    id: str
    vertex: str
    name: str = ""
    current: int = 0
    total: int = 0
    timestamp_ns: int = 0
    started_ns: int = 0
    completed_ns: int = 0


class VertexLog(msgspec.Struct, frozen=True, kw_only=True):
    """What a step printed: 1 standard output, 2 standard error."""

    vertex: str
    stream: int
    data: bytes
    timestamp_ns: int = 0


class VertexWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something about the Dockerfile that a person should see. Lines count from 1; `source` is the file's name."""

    vertex: str
    level: int = 1
    short: str
    detail: tuple[str, ...] = ()
    url: str = ""
    source: str = ""
    start: int = 0
    end: int = 0


Event = Vertex | VertexStatus | VertexLog | VertexWarning
Sink = Callable[[Event], None]


def silent(_event: Event) -> None:
    """A sink for those who do not look."""


class Task:
    """One vertex while it is worked on. Call only from the loop's thread."""

    def __init__(self, board: Board, vertex: Vertex) -> None:
        self._board = board
        self.vertex = vertex
        self._counts: dict[str, VertexStatus] = {}

    @property
    def digest(self) -> str:
        return self.vertex.digest

    def start(self) -> None:
        """Work begins."""
        if not self.vertex.started_ns:
            self._tell(started_ns=time.time_ns())

    def log(self, stream: int, data: bytes) -> None:
        """Output of the step."""
        self._board.sink(
            VertexLog(vertex=self.digest, stream=stream, data=data, timestamp_ns=time.time_ns())
        )

    def count(self, ident: str, current: int = 0, total: int = 0, *, done: bool = False) -> None:
        """How far something within it is; `ident` is what people see."""
        now = time.time_ns()
        known = self._counts.get(ident)
        status = VertexStatus(
            id=ident, vertex=self.digest, name=ident.partition(" ")[0], current=current, total=total,
            timestamp_ns=now, started_ns=known.started_ns if known else now,
            completed_ns=now if done else 0,
        )  # fmt: skip
        self._counts[ident] = status
        self._board.sink(status)

    def warn(self, warning: VertexWarning) -> None:
        """A warning that belongs to this vertex."""
        self._board.sink(msgspec.structs.replace(warning, vertex=self.digest))

    def finish(self, *, cached: bool = False, error: str = "") -> None:
        """It is over; the first end counts."""
        if self.vertex.completed_ns:
            return
        for count in [] if error else list(self._counts.values()):
            if not count.completed_ns:
                self.count(count.id, count.current, count.total, done=True)
        now = time.time_ns()
        self._tell(
            started_ns=self.vertex.started_ns or now, completed_ns=now, cached=cached, error=error
        )

    def _tell(self, **changes: object) -> None:
        self.vertex = msgspec.structs.replace(self.vertex, **changes)
        self._board.sink(self.vertex)

    def __enter__(self) -> Task:
        self.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.finish(error=str(error) or type(error).__name__ if error is not None else "")


class Board:
    """Makes vertices and tells a sink of them."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def task(self, digest: str, name: str, inputs: tuple[str, ...] = ()) -> Task:
        """A vertex that is known from now on; not started yet."""
        vertex = Vertex(digest=digest, name=name, inputs=inputs)
        self.sink(vertex)
        return Task(self, vertex)
