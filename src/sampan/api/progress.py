"""Streams of JSON messages: pull, push, load, build, events, stats. One object a line, flushed as it comes.

A verb that reports progress may still fail before its first message; then the answer is a plain error
with its status. After the first message the status is out, and the error goes in-band as Docker's
`{"errorDetail": {"message": ...}, "error": ...}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from sampan.api.call import Call, joined
from sampan.api.router import log, message_of, status_of
from sampan.errors import Cancelled
from sampan.spec.engine.wire import encode

Message = dict[str, Any]
Report = Callable[[Message], None]

# Messages that wait for a client which does not read. Past this, newer counts of a layer replace older ones.
MOST_WAITING = 1000


class _Outbox:
    """Messages between the verb that reports them and the writer that sends them."""

    def __init__(self) -> None:
        self._waiting: list[Message] = []
        self._wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(self, message: Message) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._drop_counts()
        self._waiting.append(message)
        if not self._wake.done():
            self._wake.set_result(None)

    def _drop_counts(self) -> None:
        last = {m.get("id"): n for n, m in enumerate(self._waiting)}
        self._waiting = [
            m
            for n, m in enumerate(self._waiting)
            if not m.get("progressDetail") or last[m.get("id")] == n
        ]

    def take(self) -> list[Message]:
        taken, self._waiting = self._waiting, []
        if self._wake.done():
            self._wake = asyncio.get_running_loop().create_future()
        return taken

    async def something_or(self, task: asyncio.Future[object]) -> None:
        """Until there are messages or the task is done."""
        await asyncio.wait((task, self._wake), return_when=asyncio.FIRST_COMPLETED)


async def progress_stream(
    call: Call, verb: Callable[[Report], Awaitable[object]], *, always_in_band: bool = False
) -> None:
    """Run `verb(report)` and stream what it reports; its failure is the answer, in whichever form is still possible."""
    outbox = _Outbox()
    task = asyncio.ensure_future(verb(outbox.report))
    try:
        while not task.done():
            await outbox.something_or(task)
            await _flush(call, outbox)
        await _flush(call, outbox)
        if always_in_band and not call.reply.started and not task.cancelled():
            await call.reply.start()
        await _conclude(call, task)
    finally:
        await finish_cleanly(task)


async def _flush(call: Call, outbox: _Outbox) -> None:
    messages = outbox.take()
    if messages:
        if not call.reply.started:
            await call.reply.start()
        await call.reply.write(joined(messages))


async def _conclude(call: Call, task: asyncio.Future[object]) -> None:
    error = task.exception()
    if error is None:
        if not call.reply.started:
            await call.reply.start()
        await call.reply.finish()
        return
    if not call.reply.started or not isinstance(error, Exception) or isinstance(error, Cancelled):
        raise error
    if status_of(error) >= 500:
        log.error("%s failed in its stream", call.request.head.path, exc_info=error)
    await call.reply.write(joined([error_line(error)]))
    await call.reply.finish()


def error_line(error: Exception) -> Message:
    """The last message of a stream that failed; a build step's exit code goes along."""
    message = message_of(error)
    detail: Message = {"message": message}
    code = getattr(error, "exit_code", 0)
    if code:
        detail = {"code": code, **detail}
    return {"errorDetail": detail, "error": message}


async def json_lines(
    call: Call, items: AsyncIterator[object], content_type: str = "application/json"
) -> None:
    """One JSON document a line; the head goes out before the first."""
    try:
        await call.reply.start(content_type=content_type)
        async for item in items:
            await call.reply.write(encode(item) + b"\n")
        await call.reply.finish()
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


async def finish_cleanly(task: asyncio.Future[Any]) -> None:
    """Cancel what an endpoint started, if it still runs, and wait for its end."""
    task.cancel()
    try:
        await task
    except (asyncio.CancelledError, Exception):  # noqa: BLE001 - its failure has been told or no longer matters
        pass
