"""The HTTP layer over a real socketpair, with handlers of the test's own: framing, streams, hijack, limits."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from sampan.api.exchange import Reply, Request
from sampan.api.http import Connection, HttpServer
from sampan.errors import InvalidArgument

HEADERS = (("Server", "Docker/test (linux)"),)
T = TypeVar("T")
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(request: Request, reply: Reply) -> None:
    body = await request.body.read_all()
    await reply.send(
        200, f"{request.head.method} {request.head.path} ".encode() + body, "text/plain"
    )


async def connect(
    handler: Callable[[Request, Reply], Awaitable[None]],
) -> tuple[Client, HttpServer]:
    server = HttpServer(handler, HEADERS)
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: Connection(server), theirs)
    return await asyncio.open_connection(sock=ours), server


def run(talk: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, and a few rounds more, in which closed transports take their leave."""

    async def main() -> T:
        try:
            return await talk
        finally:
            for _ in range(5):
                await asyncio.sleep(0)

    return asyncio.run(main())


def ask(raw: bytes, handler: Callable[[Request, Reply], Awaitable[None]] = echo) -> bytes:
    """Send, close the sending side, read everything."""

    async def talk() -> bytes:
        (reader, writer), _ = await connect(handler)
        writer.write(raw)
        writer.write_eof()
        async with asyncio.timeout(5):
            data = await reader.read()
        writer.close()
        return data

    return run(talk())


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: docker", *headers, "", ""]).encode() + body


def test_plain_get() -> None:
    answer = ask(request("GET /_ping HTTP/1.1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nServer: Docker/test (linux)\r\nDate: ")
    assert b"\r\nContent-Type: text/plain\r\nContent-Length: 11" in head
    assert body == b"GET /_ping "


def test_body_with_length_and_chunked() -> None:
    fixed = request("POST /a HTTP/1.1", "Content-Length: 5", body=b"hello")
    assert ask(fixed).endswith(b"POST /a hello")
    chunks = b"3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
    assert ask(request("POST /a HTTP/1.1", "Transfer-Encoding: chunked", body=chunks)).endswith(
        b"POST /a hello"
    )


def test_pipelined_requests_are_answered_in_order() -> None:
    one = request("POST /1 HTTP/1.1", "Content-Length: 2", body=b"xy")
    two = request("POST /2 HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\nz\r\n0\r\n\r\n")
    answer = ask(one + two + request("GET /3 HTTP/1.1"))
    assert answer.index(b"POST /1 xy") < answer.index(b"POST /2 z") < answer.index(b"GET /3 ")


def test_requests_that_arrive_byte_by_byte() -> None:
    raw = request("POST /1 HTTP/1.1", "Transfer-Encoding: chunked", body=b"2\r\nzz\r\n0\r\n\r\n")

    async def talk() -> bytes:
        (reader, writer), _ = await connect(echo)
        for byte in raw:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    assert run(talk()).endswith(b"POST /1 zz")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x10\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"H%d: x\r\n" % n for n in range(200))
        + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 70000 + b"\r\n\r\n",
        b"GET /" + b"x" * 70000,
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_malformed_heads_are_refused_and_closed(raw: bytes) -> None:
    answer = ask(raw)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 50")), answer
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1  # nothing behind it was taken for another request


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-1\r\n", b"1\r\nab\r\n", b"1" * 20 + b"\r\n", b"x" * 5000]
)
def test_malformed_chunks_fail_the_request(chunks: bytes) -> None:
    seen: list[str] = []

    async def handler(request: Request, reply: Reply) -> None:
        try:
            await request.body.read_all()
        except InvalidArgument as error:
            seen.append(str(error))
            await reply.send(400)

    answer = ask(request("POST /a HTTP/1.1", "Transfer-Encoding: chunked", body=chunks), handler)
    assert answer.startswith(b"HTTP/1.1 400")
    assert seen


def test_a_body_over_the_limit_is_refused() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        with pytest.raises(InvalidArgument, match="too large"):
            await request.body.read_all(100)
        await reply.send(400)

    assert ask(request("POST /a HTTP/1.1", "Content-Length: 101"), handler).startswith(
        b"HTTP/1.1 400"
    )
    chunks = b"65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n"
    raw = request("POST /a HTTP/1.1", "Transfer-Encoding: chunked", body=chunks)
    assert ask(raw, handler).startswith(b"HTTP/1.1 400")


def test_stream_is_chunked_and_its_head_comes_first() -> None:
    async def talk() -> None:
        go = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            await reply.start()
            await go.wait()
            await reply.write(b"one")
            await reply.finish()

        (reader, writer), _ = await connect(handler)
        writer.write(request("GET /events HTTP/1.1"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        go.set()
        assert await reader.readexactly(13) == b"3\r\none\r\n0\r\n\r\n"
        writer.close()

    run(talk())


def test_http_1_0_gets_no_chunks_and_a_close() -> None:
    async def handler(request: Request, reply: Reply) -> None:
        await reply.start()
        await reply.write(b"one")

    answer = ask(b"GET / HTTP/1.0\r\n\r\n", handler)
    assert answer.endswith(b"\r\n\r\none")
    assert b"chunked" not in answer


def test_expect_continue_is_sent_when_the_body_is_wanted() -> None:
    raw = request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 2")

    async def talk() -> bytes:
        (reader, writer), _ = await connect(echo)
        writer.write(raw)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    assert run(talk()).endswith(b"POST / hi")


def test_expect_continue_not_wanted_closes() -> None:
    async def refuse(request: Request, reply: Reply) -> None:
        await reply.send(404)

    raw = request("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 2")
    answer = ask(raw, refuse)
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("upgrade", [True, False])
def test_hijack_hands_over_the_socket_and_what_was_read(upgrade: bool) -> None:
    async def talk() -> None:
        async def handler(request: Request, reply: Reply) -> None:
            raw = await reply.hijack("application/vnd.docker.raw-stream")
            with socket.socket(fileno=raw.fd) as sock:
                sock.setblocking(True)
                early = raw.preread
                while len(early) < 5:
                    early += await asyncio.to_thread(sock.recv, 100)
                sock.sendall(b"got " + early)

        (reader, writer), server = await connect(handler)
        lines = ["Connection: Upgrade", "Upgrade: tcp"] if upgrade else []
        writer.write(request("POST /attach HTTP/1.1", *lines, body=b"early"))
        head = await reader.readuntil(b"\r\n\r\n")
        if upgrade:
            assert head == (
                b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
                b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
            )
        else:
            assert (
                head
                == b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
            )
        assert await reader.read() == b"got early"
        writer.close()
        assert not server.connections

    run(talk())


def test_a_client_that_leaves_cancels_its_handler() -> None:
    async def talk() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        (_, writer), server = await connect(handler)
        writer.write(request("GET /wait HTTP/1.1"))
        await started.wait()
        writer.close()
        async with asyncio.timeout(5):
            await cancelled.wait()
            while server.connections:
                await asyncio.sleep(0)

    run(talk())


def test_a_half_closed_client_gets_its_answer_and_is_noticed_when_it_leaves() -> None:
    async def talk() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            await reply.start()
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        (_, writer), server = await connect(handler)
        writer.write(request("GET /wait HTTP/1.1"))
        writer.write_eof()
        await started.wait()
        connection = next(iter(server.connections))
        connection.check_pace(0)
        assert not cancelled.is_set()
        writer.close()
        await writer.wait_closed()
        connection.check_pace(0)
        async with asyncio.timeout(5):
            await cancelled.wait()
            while connection.task is not None or server.connections:
                await asyncio.sleep(0)

    run(talk())


def test_slow_heads_are_ended_and_idle_connections_are_not() -> None:
    async def talk() -> None:
        (reader, writer), server = await connect(echo)
        writer.write(b"GET / HT")
        await writer.drain()
        while not (connection := next(iter(server.connections)))._head_since:
            await asyncio.sleep(0)
        connection.check_pace(connection._head_since + 29)
        assert server.connections
        connection.check_pace(connection._head_since + 31)
        assert await reader.read() == b""
        writer.close()

    run(talk())


def test_a_reader_that_stalls_stops_the_writer() -> None:
    async def talk() -> None:
        written = 0

        async def handler(request: Request, reply: Reply) -> None:
            nonlocal written
            await reply.start()
            while True:
                await reply.write(bytes(65536))
                written += 65536

        (_, writer), server = await connect(handler)
        writer.write(request("GET /flood HTTP/1.1"))
        before = -1
        while before != written or not written:
            before = written
            await asyncio.sleep(0.02)
        assert written < 4 * 1024 * 1024
        writer.transport.abort()
        await asyncio.sleep(0)

    run(talk())


def test_an_unread_body_stops_the_client() -> None:
    async def talk() -> None:
        go = asyncio.Event()
        seen = 0

        async def handler(request: Request, reply: Reply) -> None:
            nonlocal seen
            await go.wait()
            async for chunk in request.body:
                seen += len(chunk)
            await reply.send(200)

        (reader, writer), server = await connect(handler)
        size = 8 * 1024 * 1024
        writer.write(request("POST /load HTTP/1.1", f"Content-Length: {size}"))
        sending = asyncio.ensure_future(_send(writer, size))
        while not server.connections or not next(iter(server.connections))._paused_reading:
            await asyncio.sleep(0.01)
        body = next(iter(server.connections))._body
        assert body is not None and body.buffered < 2 * 1024 * 1024
        go.set()
        await sending
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert seen == size
        writer.close()

    async def _send(writer: asyncio.StreamWriter, size: int) -> None:
        for _ in range(size // 65536):
            writer.write(bytes(65536))
            await writer.drain()

    run(talk())


def test_an_unread_short_body_is_skipped_and_a_long_one_closes() -> None:
    async def ignore(request: Request, reply: Reply) -> None:
        await reply.send(200)

    short = request("POST /1 HTTP/1.1", "Content-Length: 2", body=b"xy")
    assert ask(short + request("GET /2 HTTP/1.1"), ignore).count(b"HTTP/1.1 200") == 2
    big = request("POST /1 HTTP/1.1", "Content-Length: 900000", body=bytes(900000))
    assert ask(big + request("GET /2 HTTP/1.1"), ignore).count(b"HTTP/1.1 200") <= 1


def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ask(request("GET / HTTP/1.1"))
        ask(b"bad\r\n\r\n")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_stream_begins_only_when_its_head_was_read() -> None:
    """A client that reads head and stream through different doors must find nothing of the stream in the first."""

    async def talk() -> None:
        handed = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            raw = await reply.hijack("application/vnd.docker.raw-stream")
            handed.set()
            os.close(raw.fd)

        (reader, writer), _ = await connect(handler)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request("POST /attach HTTP/1.1", "User-Agent: docker-sdk-python/7"))
        await asyncio.sleep(0.02)
        assert not handed.is_set()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await handed.wait()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()

    run(talk())


def test_a_stop_ends_watchers_at_once_and_waits_for_what_is_under_way() -> None:
    async def talk() -> None:
        release = asyncio.Event()

        async def handler(request: Request, reply: Reply) -> None:
            reply.only_watches = request.head.path == "/events"
            await reply.start()
            await reply.write(b"begun")
            await (asyncio.Event() if reply.only_watches else release).wait()
            await reply.write(b"done")

        (events, events_writer), server = await connect(handler)
        theirs, ours = socket.socketpair()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Connection(server), theirs)
        pull, pull_writer = await asyncio.open_connection(sock=ours)
        events_writer.write(request("GET /events HTTP/1.1"))
        pull_writer.write(request("POST /images/create HTTP/1.1"))
        await events.readuntil(b"begun\r\n")
        await pull.readuntil(b"begun\r\n")
        closing = asyncio.ensure_future(server.close(grace_seconds=60))
        async with asyncio.timeout(10):
            assert await events.read() == b""
            release.set()
            assert (await pull.read()).endswith(b"done\r\n0\r\n\r\n")
            await closing
        events_writer.close()
        pull_writer.close()

    run(talk())
