"""moby.buildkit.v1.Control: what buildx asks of an engine: builds, their progress, workers, the cache.

    Solve      frontend given: the build is made here.  None given: the client drives it (gateway.py) and we wait for
               its Return.  Then the exporters write the result.
    Status     what happens in a build, by its ref, from its first event to its end

A build ends when its call is cancelled or its session is lost; everything that it borrowed is given back then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from sampan.build.request import CALLS, BuildRequest, CacheOption, Export, from_attributes
from sampan.buildkit import layouts, workers
from sampan.buildkit import messages as m
from sampan.buildkit.borrow import Borrowed
from sampan.buildkit.builds import Build, Builds, timestamp, told
from sampan.buildkit.contexts import Contexts
from sampan.buildkit.faults import Code, GrpcError, subrequest_detail
from sampan.buildkit.link import Stream
from sampan.buildkit.session import Session, Sessions
from sampan.buildkit.telling import as_grpc
from sampan.images.platform import host_platform
from sampan.units import parse_timestamp

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.build.context import Context
    from sampan.build.exporters import Response
    from sampan.build.frontend import Planned
    from sampan.build.service import Made

FRONTENDS = ("dockerfile.v0", "gateway.v0")
GATHER_SECONDS = 0.01  # events that come together go in one message
MOST_EVENTS = 1000

OnPlans = Callable[[tuple["Planned", ...]], None] | None
Making = asyncio.Task["Made"]


class Control:
    """The service, for all clients of an engine."""

    def __init__(self, builder: Builder, sessions: Sessions, builds: Builds) -> None:
        self.builder = builder
        self.engine = builder.engine
        self.contexts = Contexts(builder.cache.contexts_dir)
        builder.engine.build_cache_rows.append(self.contexts.rows)
        self.sessions = sessions
        self.builds = builds

    # --- who we are

    async def info(self, _stream: Stream, _request: m.Empty) -> m.InfoResponse:
        """Which program this is."""
        return m.InfoResponse(version=workers.version())

    async def list_workers(self, _stream: Stream, _request: m.Empty) -> m.ListWorkersResponse:
        """One: this engine."""
        return m.ListWorkersResponse(record=[await self.worker()])

    async def worker(self) -> m.WorkerRecord:
        """This engine, as one who performs builds."""
        return await self.engine.run_blocking(workers.worker, self.engine)

    # --- builds

    async def solve(self, _stream: Stream, request: m.SolveRequest) -> m.SolveResponse:
        """Make a build, or wait for the client that drives it; export; answer what the exporters say."""
        if request.definition is not None and request.definition.ops:
            raise GrpcError(
                "definitions (LLB) are not served: this engine builds Dockerfiles",
                Code.UNIMPLEMENTED,
            )
        asked: BuildRequest | None = None
        if request.frontend:
            asked = self.asked(request.frontend, request.frontend_attrs, request)
        build = self.builds.begin(request.ref)
        build.request = request
        return m.SolveResponse(exporter_response=await self.perform(build, asked))

    async def perform(
        self, build: Build, asked: BuildRequest | None, uploaded: Context | None = None
    ) -> Response:
        """A build from its session's arrival to its end; `asked` None where the client drives it."""
        try:
            session = await self.sessions.get(build.request.session)
            with _bound(session):
                response = await self._perform(build, session, asked, uploaded)
        except BaseException as error:
            _record(build, error)
            raise
        finally:
            await self._release(build)
        build.record.exporter_response = response
        _record(build, None)
        return response

    async def _release(self, build: Build) -> None:
        self.builds.end(build)
        tasks = list(dict.fromkeys(build.results.values()))
        build.results.clear()
        build.lent.clear()
        for made in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(made, BaseException):
                await made.close()

    async def _perform(
        self,
        build: Build,
        session: Session,
        asked: BuildRequest | None,
        uploaded: Context | None,
    ) -> Response:
        from sampan.build.service import export  # the builder's own modules, loaded when one builds

        async with AsyncExitStack() as held:
            client = Borrowed(self.engine, session, self.contexts, build.lent, uploaded)
            held.push_async_callback(client.close)
            held.push_async_callback(build.stop)
            build.client, build.session = client, session
            self.builds.changed()
            made = await (self.start(build, asked) if asked is not None else _driven(build))
            if made is None:
                return {}
            try:
                exports = exports_of(build.request)
                response = await export(self.builder, made, exports, client, build.tell)
                return response | client.answers
            except Exception as error:
                raise as_grpc(error, build) from error

    async def _with_layouts(self, session: Session, asked: BuildRequest) -> BuildRequest:
        """The request, its contexts that are layouts on the client's disk brought here."""
        contexts = dict(asked.contexts)
        for key, value in contexts.items():
            if value.startswith(layouts.SCHEME):
                platform = key.partition("::")[2] or next(iter(asked.platforms), "")
                image = await layouts.load(
                    self.engine, session, value, platform or str(host_platform())
                )
                contexts[key] = f"docker-image://{image}"
        return msgspec.structs.replace(asked, contexts=contexts)

    def start(self, build: Build, request: BuildRequest, on_plans: OnPlans = None) -> Making:
        """Begin to make it; kept among the build's results until it ends."""
        task = asyncio.ensure_future(self._make(build, request, on_plans))
        build.results[f"result-{len(build.results)}"] = task
        return task

    async def _make(self, build: Build, request: BuildRequest, on_plans: OnPlans) -> Made:
        from sampan.build.service import make

        assert build.client is not None and build.session is not None
        try:
            request = await self._with_layouts(build.session, request)
            build.client.cache_from = request.cache_from
            return await make(self.builder, request, build.client, build.tell, on_plans)
        except Exception as error:
            raise as_grpc(error, build) from error

    def asked(self, frontend: str, attrs: dict[str, str], request: m.SolveRequest) -> BuildRequest:
        """What a frontend's attributes ask for, with what the whole build allows."""
        if frontend not in FRONTENDS:
            raise GrpcError(f"frontend {frontend} not found")
        if frontend == "gateway.v0" and "dockerfile" not in attrs.get("source", ""):
            raise GrpcError(
                f"frontend image {attrs.get('source', '')} is not run: this engine has its own Dockerfile frontend",
                Code.UNIMPLEMENTED,
            )
        cache = request.cache or m.CacheOptions()
        call = attrs.get("requestid", "")
        if call not in CALLS:  # a client that is told so may try another way
            raise GrpcError(f"unsupported request {call}", Code.UNKNOWN, [subrequest_detail(call)])
        asked = from_attributes(attrs)
        imports = tuple(CacheOption(type=each.type, attrs=each.attrs) for each in cache.imports)
        return msgspec.structs.replace(
            asked,
            allow=frozenset(request.entitlements),
            exports=exports_of(request),
            cache_from=asked.cache_from or imports,
            cache_to=tuple(CacheOption(type=each.type, attrs=each.attrs) for each in cache.exports),
        )

    async def status(
        self, stream: Stream, request: m.StatusRequest
    ) -> AsyncIterator[m.StatusResponse]:
        """What happens in a build."""
        stream.answer_headers = [
            ("buildkit-current-timestamp", datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        ]
        build = await self.builds.find(request.ref)
        at = 0
        while True:
            events = build.events[at : at + MOST_EVENTS]
            if events:
                at += len(events)
                yield told(build, events)
            elif build.is_over:
                return
            else:
                await build.news()
                if not build.is_over:
                    await asyncio.sleep(GATHER_SECONDS)

    # --- builds of the past

    async def listen_history(
        self, _stream: Stream, request: m.HistoryRequest
    ) -> AsyncIterator[m.HistoryEvent]:
        """Builds as they are, and, unless the client wants no more, as they change."""
        told_of: dict[str, bool] = {}
        while True:
            builds = {b.ref: b for b in self.builds.all() if request.ref in ("", b.ref)}
            for ref, build in builds.items():
                if told_of.get(ref) is not build.is_over and not (
                    request.active_only and build.is_over and ref not in told_of
                ):
                    told_of[ref] = build.is_over
                    kind = m.HISTORY_COMPLETE if build.is_over else m.HISTORY_STARTED
                    yield m.HistoryEvent(type=kind, record=build.record)
            for ref in set(told_of) - set(builds):
                del told_of[ref]
                yield m.HistoryEvent(type=m.HISTORY_DELETED, record=m.HistoryRecord(ref=ref))
            if request.early_exit:
                return
            await self.builds.any_change()

    async def update_history(self, _stream: Stream, request: m.UpdateHistoryRequest) -> m.Empty:
        """Drop or keep a build of the past."""
        if request.delete:
            self.builds.drop(request.ref)
        return m.Empty()

    # --- the cache

    async def disk_usage(self, _stream: Stream, request: m.DiskUsageRequest) -> m.DiskUsageResponse:
        """What the cache holds."""
        from sampan.build import upkeep

        rows = await self.engine.run_blocking(upkeep.rows, self.builder)
        rows += self.contexts.rows()
        records = [
            m.UsageRecord(
                id=row.id, mutable=row.type == "exec.cachemount", in_use=row.in_use, size=row.size,
                created_at=_moment(row.created_at), last_used_at=_moment(row.last_used_at or ""),
                usage_count=row.usage_count, description=row.description, record_type=row.type,
                shared=row.shared, parents=list(row.parents or ()),
            )
            for row in rows
        ]  # fmt: skip
        return m.DiskUsageResponse(record=[r for r in records if _fits(r, request.filter)])

    async def prune(self, stream: Stream, request: m.PruneRequest) -> AsyncIterator[m.UsageRecord]:
        """Free what the request lets go; each record that went."""
        from sampan.build.prune import prune

        before = await self.disk_usage(stream, m.DiskUsageRequest())
        filters: dict[str, list[str]] = {}
        for text in filter(None, request.filter):
            key, _, value = text.replace("~=", "=").replace("==", "=").partition("=")
            filters.setdefault(key, []).append(value)
        if request.keep_duration:
            filters["until"] = [f"{request.keep_duration}ns"]
        keep = request.reserved_space or request.max_used_space
        await prune(self.builder, filters, everything=request.all, keep_bytes=keep)
        if request.all and not filters:
            await self.engine.run_blocking(self.contexts.clear)
        after = {r.id for r in (await self.disk_usage(stream, m.DiskUsageRequest())).record}
        for record in before.record:
            if record.id not in after:
                yield record


@contextmanager
def _bound(session: Session) -> Iterator[None]:
    """The block's task is cancelled when the session's connection is lost, for then nobody waits for it."""
    task = asyncio.current_task()
    assert task is not None
    ended = False

    def lost(_future: asyncio.Future[None]) -> None:
        if not ended:
            task.cancel()

    session.link.lost.add_done_callback(lost)
    try:
        yield
    except asyncio.CancelledError:
        if session.link.is_lost and task.uncancel() == 0:
            raise GrpcError("the session was lost", Code.CANCELLED) from None
        raise
    finally:
        ended = True
        session.link.lost.remove_done_callback(lost)


async def _driven(build: Build) -> Made | None:
    """What the client that drives the build returns: one of the results that it got from us, or nothing."""
    returned = await build.returned
    if returned.error is not None:
        error = returned.error
        raise GrpcError(error.message, error.code or Code.UNKNOWN, error.details)
    result = returned.result or m.Result()
    refs = [result.old_ref, *(result.old_refs.refs.values() if result.old_refs else ())]
    refs += [result.ref.id] if result.ref else []
    refs += [each.id for each in result.refs.refs.values()] if result.refs else []
    found = [build.results[ref] for ref in refs if ref in build.results]
    return await found[0] if found else None


def exports_of(request: m.SolveRequest) -> tuple[Export, ...]:
    """The exporters; an older client names one only."""
    named = request.exporters
    if not named and request.exporter:
        named = [m.Exporter(type=request.exporter, attrs=request.exporter_attrs)]
    return tuple(
        Export(type=each.type, attrs=_without_push(each), id=str(number))
        for number, each in enumerate(named)
    )


def _without_push(exporter: m.Exporter) -> dict[str, str]:
    """What goes to the engine's own store is pushed by the client afterwards, by another call."""
    if exporter.type != "moby":
        return exporter.attrs
    return {key: value for key, value in exporter.attrs.items() if key != "push"}


def _record(build: Build, error: BaseException | None) -> None:
    record, request = build.record, build.request
    record.frontend, record.frontend_attrs = request.frontend, request.frontend_attrs
    record.exporters = request.exporters
    record.completed_at = timestamp(time.time_ns())
    record.generation += 1
    if isinstance(error, asyncio.CancelledError):
        record.error = m.Status(code=Code.CANCELLED, message="context canceled")
    elif error is not None:
        code = error.code if isinstance(error, GrpcError) else Code.UNKNOWN
        record.error = m.Status(code=code, message=str(error))


def _moment(text: str) -> m.Timestamp | None:
    return timestamp(parse_timestamp(text)) if text else None


def _fits(record: m.UsageRecord, filters: list[str]) -> bool:
    """containerd's filters, as far as `buildx du` sends them: `id==X`, `type==X`, `shared`, `mutable`, `inuse`, `private`."""
    facts = {
        "id": record.id, "type": record.record_type, "description": record.description,
        "shared": _word(record.shared), "mutable": _word(record.mutable), "inuse": _word(record.in_use),
        "private": _word(not record.shared), "immutable": _word(not record.mutable),
    }  # fmt: skip
    return all(_fits_one(facts, text) for each in filters for text in each.split(",") if text)


def _word(value: bool) -> str:
    return "true" if value else "false"


def _fits_one(facts: dict[str, str], text: str) -> bool:
    key, operator, value = text.partition("~=" if "~=" in text else "==" if "==" in text else "=")
    if not operator:
        return facts.get(key) == "true"
    if operator == "~=":
        return value in facts.get(key, "")
    return facts.get(key) == value
