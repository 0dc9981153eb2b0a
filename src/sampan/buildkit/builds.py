"""Builds under way and of late: what happened in each, for Status; its results, for the client that drives it.

    Solve begins a build ── events ── Status tells them, from the first, to whoever asks by the build's ref
          │
          └─ a client may drive it: gateway.py puts results here, `returned` says which one counts

A step's output is clipped, as BuildKit does it, so that a build's events are bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

from sampan.build import progress
from sampan.buildkit.faults import GrpcError
from sampan.buildkit.messages import (
    HistoryRecord,
    Position,
    Range,
    ReturnRequest,
    SolveRequest,
    SourceInfo,
    StatusResponse,
    Timestamp,
    Vertex,
    VertexLog,
    VertexStatus,
    VertexWarning,
)

if TYPE_CHECKING:
    from sampan.build.service import Made
    from sampan.buildkit.borrow import Borrowed
    from sampan.buildkit.session import Session

ARRIVAL_SECONDS = 3
KEPT = 32  # builds that have ended
STEP_LOG = 2 << 20
CLIPPED = b"[output clipped, log limit 2MiB reached]\n"


def timestamp(ns: int) -> Timestamp | None:
    """None for a moment that has not come."""
    return Timestamp(seconds=ns // 10**9, nanos=ns % 10**9) if ns else None


class Build:
    """One build. Lives on the loop's thread."""

    def __init__(self, ref: str) -> None:
        self.ref = ref
        self.record = HistoryRecord(ref=ref, created_at=timestamp(time.time_ns()))
        self.client: Borrowed | None = None  # from when its session is there
        self.session: Session | None = None
        self.request = SolveRequest()
        self.sources: dict[str, bytes] = {}  # Dockerfiles by name, for warnings
        self.results: dict[str, asyncio.Task[Made]] = {}  # by ref; done, or in the making
        self.platforms: dict[str, int] = {}  # ref -> which of the result's platforms
        self.lent: dict[str, Made] = {}  # other builds' results, by their refs
        self.returned: asyncio.Future[ReturnRequest] = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[object]] = set()  # calls of the client that work for it
        self.events: list[progress.Event] = []
        self.is_over = False
        self._digests: dict[str, str] = {}  # a vertex's digest -> what clients are told
        self._logged: dict[str, int] = {}
        self._news = asyncio.Event()

    def tell(self, event: progress.Event) -> None:
        """A sink for what happens."""
        if isinstance(event, progress.VertexLog):
            size = self._logged.get(event.vertex, 0)
            if size > STEP_LOG:
                return
            self._logged[event.vertex] = size + len(event.data)
            if size + len(event.data) > STEP_LOG:
                event = progress.VertexLog(
                    vertex=event.vertex,
                    stream=event.stream,
                    data=CLIPPED,
                    timestamp_ns=event.timestamp_ns,
                )
        self.events.append(self._own(event))
        self._wake()

    def _own(self, event: progress.Event) -> progress.Event:
        """A client shows several builds as one and takes equal digests for one vertex: so a step that builds share is
        shown once. What is each build's own matter, such as its transfers and exports, must not be.
        """
        if isinstance(event, progress.Vertex):
            digest = event.digest
            if digest not in self._digests:
                shared = event.name.startswith("[") and "internal]" not in event.name
                own = hashlib.sha256(f"{self.ref} {digest}".encode()).hexdigest()
                self._digests[digest] = digest if shared else f"sha256:{own}"
            inputs = tuple(self._digests.get(each, each) for each in event.inputs)
            return msgspec.structs.replace(event, digest=self._digests[digest], inputs=inputs)
        return msgspec.structs.replace(event, vertex=self._digests.get(event.vertex, event.vertex))

    async def stop(self) -> None:
        """End what is still being made."""
        tasks = [task for task in self.results.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def finish(self) -> None:
        """Nothing more will happen."""
        self.is_over = True
        self.client = None
        for task in (*self.tasks, *self.results.values()):
            task.cancel()
        if not self.returned.done():
            self.returned.cancel()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def news(self) -> None:
        """Until something has happened since."""
        await self._news.wait()


class Builds:
    """Those that one may ask about."""

    def __init__(self) -> None:
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._change = asyncio.Event()

    def begin(self, ref: str) -> Build:
        """Raises GrpcError where a build of that name is under way."""
        known = self._builds.get(ref)
        if not ref or (known is not None and not known.is_over):
            raise GrpcError(f"job ID {ref} exists")
        build = self._builds[ref] = Build(ref)
        self._builds.move_to_end(ref)
        self.changed()
        return build

    def end(self, build: Build) -> None:
        """It is over; it can be asked about for a while."""
        build.finish()
        over = [ref for ref, each in self._builds.items() if each.is_over]
        for ref in over[: max(0, len(over) - KEPT)]:
            del self._builds[ref]
        self.changed()

    def changed(self) -> None:
        """Wake those who wait for news about builds."""
        self._change.set()
        self._change = asyncio.Event()

    async def any_change(self) -> None:
        """Until a build begins, ends or is dropped."""
        await self._change.wait()

    async def find(self, ref: str) -> Build:
        """A build by name, waited for a while: a client asks for it as it begins. Raises GrpcError."""
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while ref not in self._builds:
                    await self._change.wait()
        except TimeoutError:
            raise GrpcError(f"no such job {ref}") from None
        return self._builds[ref]

    def drop(self, ref: str) -> None:
        """Forget one that is over."""
        build = self._builds.get(ref)
        if build is not None and build.is_over:
            del self._builds[ref]
            self.changed()

    def all(self) -> list[Build]:
        return list(self._builds.values())


def told(build: Build, events: list[progress.Event]) -> StatusResponse:
    """Events as a message of the Status stream."""
    answer = StatusResponse(vertexes=[], statuses=[], logs=[], warnings=[])
    for event in events:
        if isinstance(event, progress.Vertex):
            answer.vertexes.append(
                Vertex(
                    digest=event.digest, inputs=list(event.inputs), name=event.name, cached=event.cached,
                    started=timestamp(event.started_ns), completed=timestamp(event.completed_ns), error=event.error,
                )
            )  # fmt: skip
        elif isinstance(event, progress.VertexStatus):
            answer.statuses.append(
                VertexStatus(
                    id=event.id, vertex=event.vertex, name=event.name, current=event.current, total=event.total,
                    timestamp=timestamp(event.timestamp_ns), started=timestamp(event.started_ns),
                    completed=timestamp(event.completed_ns),
                )
            )  # fmt: skip
        elif isinstance(event, progress.VertexLog):
            answer.logs.append(
                VertexLog(
                    vertex=event.vertex, timestamp=timestamp(event.timestamp_ns or time.time_ns()),
                    stream=event.stream, data=event.data,
                )
            )  # fmt: skip
        else:
            answer.warnings.append(_warning(build, event))
    return answer


def _warning(build: Build, event: progress.VertexWarning) -> VertexWarning:
    name = event.source or "Dockerfile"
    return VertexWarning(
        vertex=event.vertex,
        level=event.level,
        short=event.short.encode(),
        detail=[line.encode() for line in event.detail],
        url=event.url,
        info=SourceInfo(filename=name, data=build.sources.get(name, b""), language="Dockerfile"),
        ranges=[Range(start=Position(line=event.start), end=Position(line=event.end))]
        if event.start
        else [],
    )
