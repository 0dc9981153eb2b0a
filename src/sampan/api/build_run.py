"""POST /build/run: builds of our own command line; what goes in and comes out stands in build/own.py. And cache mounts.

GET of the same path says that this engine has it: the command line asks before it packs.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sampan.api.call import Call, joined
from sampan.api.progress import error_line, finish_cleanly
from sampan.api.router import Route, delete, get, log, post, status_of
from sampan.api.transfers import receive, send_outlet
from sampan.build import service
from sampan.build.builder import Builder
from sampan.build.calls import excerpt
from sampan.build.own import OwnClient, as_line, read_order
from sampan.engine.pipes import ByteOutlet
from sampan.errors import Cancelled, InvalidArgument
from sampan.units import rfc3339nano

MOST_WAITING = 4 << 20  # bytes of output that wait for a slow reader before the export waits


def routes(builder: Builder) -> tuple[Route, ...]:
    """The routes of one builder."""

    async def run(call: Call) -> None:
        await _run(builder, call)

    async def is_there(call: Call) -> None:
        await call.json({"events": 1})

    async def mounts(call: Call) -> None:
        await call.json(await builder.engine.run_blocking(_mounts, builder))

    async def remove_mount(call: Call) -> None:
        await builder.engine.run_blocking(builder.cache.remove_mount, _named(call))
        await call.empty(204)

    async def export_mount(call: Call) -> None:
        pieces = await builder.engine.run_blocking(builder.cache.export_mount, _named(call))
        outlet = ByteOutlet().start(builder.engine.pool, lambda out: [out.write(p) for p in pieces])
        await send_outlet(call, outlet, "application/x-tar")

    async def import_mount(call: Call) -> None:
        async with receive(call.request.body) as body:
            await builder.engine.run_blocking(builder.cache.import_mount, _named(call), body)
        await call.empty(200)

    return (
        get("/build/run", is_there),
        post("/build/run", run),
        get("/build/mounts", mounts),
        delete("/build/mounts", remove_mount),
        get("/build/mounts/export", export_mount),
        post("/build/mounts/import", import_mount),
    )


def _named(call: Call) -> str:
    """A cache mount is named in the query: its id is often a path."""
    if not call.text("id"):
        raise InvalidArgument("id is required")
    return call.text("id")


def _mounts(builder: Builder) -> list[dict[str, Any]]:
    return [
        {
            "ID": record.id, "Size": builder.cache.mount_size(record.id), "CreatedAt": rfc3339nano(record.created_ns),
            "LastUsedAt": rfc3339nano(record.used_ns), "UsageCount": record.uses,
        }
        for record in builder.cache.mount_records()
    ]  # fmt: skip


class _Lines:
    """Lines between the build and the writer. Events never wait; pieces of outputs wait for a slow reader."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def tell(self, line: dict[str, Any]) -> None:
        self._waiting.append(line)
        self._size += len(line.get("data", ""))
        self._wake.set()

    async def send(self, line: dict[str, Any]) -> None:
        self.tell(line)
        if self._size > MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    async def taken(self, task: asyncio.Future[Any]) -> list[dict[str, Any]]:
        """What there is, once there is something or the task is done."""
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((task, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
        self._wake.clear()
        lines, self._waiting, self._size = self._waiting, [], 0
        self._room.set()
        return lines


async def _run(builder: Builder, call: Call) -> None:
    lines = _Lines()
    async with receive(call.request.body) as body:
        order = await builder.engine.run_blocking(read_order, body)
        request = order.request()
        client = OwnClient(builder, order, lines.send)

        async def work() -> None:
            try:
                await client.receive(body)
                made = await service.make(
                    builder, request, client, lambda e: lines.tell(as_line(e))
                )
                async with made:
                    if request.call:
                        lines.tell({"answer": {k: v.decode() for k, v in made.answer.items()}})
                        return
                    sink = lambda event: lines.tell(as_line(event))  # noqa: E731 - a sink, here only
                    facts = await service.export(builder, made, request.exports, client, sink)
                lines.tell({"result": facts})
            finally:
                await client.close()

        task = asyncio.ensure_future(work())
        try:
            await call.reply.start()
            while not task.done():
                await _write(call, await lines.taken(task))
            await _write(call, await lines.taken(task))
            await _conclude(call, task)
        finally:
            await finish_cleanly(task)


async def _write(call: Call, lines: list[dict[str, Any]]) -> None:
    if lines:
        await call.reply.write(joined(lines))


async def _conclude(call: Call, task: asyncio.Future[None]) -> None:
    error = task.exception()
    if error is not None:
        if not isinstance(error, Exception) or isinstance(error, Cancelled):
            raise error
        if status_of(error) >= 500:
            log.error("a build failed", exc_info=error)
        await call.reply.write(joined([_failure(error)]))
    await call.reply.finish()


def _failure(error: Exception) -> dict[str, Any]:
    """The last line, with the Dockerfile's lines that it is about."""
    line = error_line(error)
    source, start = getattr(error, "source", None), getattr(error, "line", 0)
    if source is not None and start:
        line["lines"] = excerpt(source, start, getattr(error, "end", start))
    for name in ("image", "hint"):
        if value := getattr(error, name, None):
            line[name] = value
    return line
