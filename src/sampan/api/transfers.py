"""Bodies of any length: a request's into a verb's pool thread, a verb's out to the client.

receive(body)       -> engine.pipes.ByteInlet, fed while the verb reads it
send_outlet(outlet) <- engine.pipes.ByteOutlet, written as the client reads
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sampan.api.call import Call
from sampan.api.exchange import Body, Headers
from sampan.api.progress import finish_cleanly
from sampan.engine.pipes import ByteInlet, ByteOutlet


@asynccontextmanager
async def receive(body: Body) -> AsyncIterator[ByteInlet]:
    """The body as something a pool thread can read; feeding ends with the block."""
    inlet = ByteInlet()
    task = asyncio.ensure_future(_feed(body, inlet))
    try:
        yield inlet
    finally:
        await finish_cleanly(task)


async def _feed(body: Body, inlet: ByteInlet) -> None:
    try:
        while chunk := await body.read_some():
            await inlet.feed(chunk)
        inlet.finish()
    except asyncio.CancelledError:
        inlet.fail(ConnectionAbortedError("the upload was cut off"))
        raise
    except Exception as error:  # noqa: BLE001 - the reader is the one who must see it
        inlet.fail(error)


async def send_outlet(
    call: Call, outlet: ByteOutlet, content_type: str, headers: Headers = ()
) -> None:
    """Stream it. The first piece is awaited before the head, so that an early failure has a status."""
    try:
        pieces = aiter(outlet)
        first = await anext(pieces, b"")
        await call.reply.start(200, content_type, headers)
        await call.reply.write(first)
        async for piece in pieces:
            await call.reply.write(piece)
        await call.reply.finish()
    finally:
        await outlet.aclose()
