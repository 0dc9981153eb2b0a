"""Streams endpoints: attach, exec, logs, stats, wait: what flows while a container runs.

Attach and exec take the connection over. On a unix or tcp socket the descriptor itself goes to the verb
(and by it to the shim), so that not a byte of output passes through this process and the stream outlives
it; a TLS connection is pumped (handover.py).
"""

from __future__ import annotations

from typing import Protocol

from sampan.api.call import Call
from sampan.api.progress import json_lines
from sampan.api.router import Route, get, post
from sampan.api.websocket import attach_websocket
from sampan.engine import exec as execs
from sampan.engine import logs, stats, stop, streams
from sampan.engine.logs import LogsOptions
from sampan.engine.streams import AttachOptions
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import ExecConfig, ExecStart
from sampan.spec.engine.wire import encode
from sampan.units import parse_timestamp

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"


def stream_type(call: Call, *, tty: bool) -> str:
    """How the bytes are framed, said since API 1.42."""
    return MULTIPLEXED if not tty and call.version >= (1, 42) else RAW


class Stream(Protocol):
    """What attach and exec give: something that lives on a socket."""

    @property
    def tty(self) -> bool: ...

    async def run(self, fd: int, preread: bytes) -> None:
        """Take the descriptor; return when this process has no more part in it."""


async def hand_over(call: Call, stream: Stream) -> None:
    """The connection becomes the container's."""
    upgraded = call.request.head.upgrade != ""
    raw = await call.reply.hijack(stream_type(call, tty=stream.tty) if upgraded else RAW)
    await stream.run(raw.fd, raw.preread)


async def attach_container(call: Call) -> None:
    await hand_over(call, await streams.attach(call.engine, call.id, attach_options(call)))


async def attach_container_websocket(call: Call) -> None:
    stream = await streams.attach(call.engine, call.id, attach_options(call))
    await attach_websocket(call, stream)


def attach_options(call: Call) -> AttachOptions:
    return AttachOptions(
        stream=call.flag("stream"),
        stdin=call.flag("stdin"),
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        logs=call.flag("logs"),
        detach_keys=call.text("detachKeys"),
    )


async def container_logs(call: Call) -> None:
    options = LogsOptions(
        follow=call.flag("follow"),
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        since_ns=_moment(call, "since"),
        until_ns=_moment(call, "until"),
        timestamps=call.flag("timestamps"),
        tail=_tail(call.text("tail", "all")),
        details=call.flag("details"),
    )
    if not (options.stdout or options.stderr):
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    stream = await logs.logs(call.engine, call.id, options)
    call.reply.only_watches = options.follow
    try:
        await call.reply.start(content_type=stream_type(call, tty=stream.tty))
        async for piece in stream:
            await call.reply.write(piece)
        await call.reply.finish()
    finally:
        await stream.aclose()


def _moment(call: Call, key: str) -> int | None:
    text = call.text(key)
    return parse_timestamp(text) if text and text != "0" else None


def _tail(text: str) -> int | None:
    """A number of lines; None for all of them, as also for what is no number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


async def container_stats(call: Call) -> None:
    streaming = call.flag("stream", True)
    samples = await stats.stats(
        call.engine, call.id, stream=streaming, one_shot=call.flag("one-shot")
    )
    call.reply.only_watches = streaming
    await json_lines(call, samples)


async def wait_container(call: Call) -> None:
    """The head goes out at once: `docker run` waits for it before it starts the container."""
    condition = call.text("condition", "not-running") if call.version >= (1, 30) else "not-running"
    waiter = await stop.wait(call.engine, call.id, condition=condition)
    call.reply.only_watches = True
    try:
        await call.reply.start()
        await call.reply.write(encode(await waiter.result()) + b"\n")
        await call.reply.finish()
    finally:
        waiter.cancel()


# --- exec ---


async def create_exec(call: Call) -> None:
    config = await call.body(ExecConfig)
    await call.json(await execs.create(call.engine, call.id, config), 201)


async def start_exec(call: Call) -> None:
    options = await call.body(ExecStart)
    stream = await execs.start(call.engine, call.id, options)
    if stream is None:
        await call.empty(200)
    else:
        await hand_over(call, stream)


async def resize_exec(call: Call) -> None:
    height, width = call.size("h"), call.size("w")
    await execs.resize(call.engine, call.id, height=height, width=width)
    await call.empty(200)


async def inspect_exec(call: Call) -> None:
    await call.json(await execs.inspect(call.engine, call.id))


ROUTES: tuple[Route, ...] = (
    get("/containers/{id}/logs", container_logs),
    get("/containers/{id}/stats", container_stats),
    get("/containers/{id}/attach/ws", attach_container_websocket),
    post("/containers/{id}/attach", attach_container),
    post("/containers/{id}/wait", wait_container),
    post("/containers/{id}/exec", create_exec),
    post("/exec/{id}/start", start_exec),
    post("/exec/{id}/resize", resize_exec),
    get("/exec/{id}/json", inspect_exec),
)
