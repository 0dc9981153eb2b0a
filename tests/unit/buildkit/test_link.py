"""gRPC over HTTP/2: calls both ways, ends of every kind, bounded memory, hostile peers."""

from __future__ import annotations

import asyncio
import socket

import h2.config
import h2.connection
import h2.events
import pytest

from sampan.buildkit import link as links
from sampan.buildkit.faults import Code, GrpcError, detail
from sampan.buildkit.link import Link, Stream
from tests.unit.buildkit.linked import attach, joined


async def echo(stream: Stream) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


def test_messages_go_both_ways_whatever_their_size() -> None:
    async def scenario() -> None:
        async with joined(echo) as (caller, _):
            stream = caller.open("/any")
            for message in (b"", b"x", b"y" * 100_000, b"z" * (3 << 20)):
                sending = asyncio.ensure_future(stream.send(message))
                assert await stream.receive() == message
                await sending
            stream.end()
            assert await stream.receive() is None

    asyncio.run(scenario())


def test_many_calls_at_once_share_a_link() -> None:
    async def call(caller: Link, number: int) -> None:
        stream = caller.open("/any")
        await stream.send(b"%d" % number)
        stream.end()
        assert await stream.receive() == b"%d" % number
        assert await stream.receive() is None

    async def scenario() -> None:
        async with joined(echo) as (caller, _):
            await asyncio.gather(*(call(caller, n) for n in range(100)))

    asyncio.run(scenario())


def test_a_failure_comes_with_code_message_and_details() -> None:
    async def serve(stream: Stream) -> None:
        raise GrpcError("nö: 100%\n", Code.NOT_FOUND, [detail("errdefs.Vertex", {"digest": "d"})])

    async def scenario() -> GrpcError:
        async with joined(serve) as (caller, _):
            stream = caller.open("/any")
            with pytest.raises(GrpcError) as caught:
                await stream.receive()
            return caught.value

    error = asyncio.run(scenario())
    assert (error.message, error.code) == ("nö: 100%\n", Code.NOT_FOUND)
    assert error.details[0].type_url == "github.com/moby/buildkit/errdefs.Vertex+json"
    assert error.details[0].value == b'{"digest":"d"}'


def test_a_failure_after_messages_comes_after_them() -> None:
    async def serve(stream: Stream) -> None:
        await stream.send(b"one")
        raise GrpcError("late")

    async def scenario() -> None:
        async with joined(serve) as (caller, _):
            stream = caller.open("/any")
            assert await stream.receive() == b"one"
            with pytest.raises(GrpcError, match="late"):
                await stream.receive()

    asyncio.run(scenario())


def test_a_cancelled_call_cancels_its_task() -> None:
    async def scenario() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def serve(stream: Stream) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with joined(serve) as (caller, _):
            stream = caller.open("/any")
            await begun.wait()
            stream.cancel()
            await ended.wait()
            with pytest.raises(GrpcError):
                await stream.receive()

    asyncio.run(scenario())


def test_a_lost_link_fails_calls_and_cancels_tasks() -> None:
    async def scenario() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def serve(stream: Stream) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with joined(serve) as (caller, server):
            stream = caller.open("/any")
            await begun.wait()
            server.abort()
            with pytest.raises(GrpcError) as caught:
                await stream.receive()
            assert caught.value.code == Code.UNAVAILABLE
            await ended.wait()
            await server.wait_closed()
            with pytest.raises(GrpcError):
                caller.open("/any")

    asyncio.run(scenario())


def test_a_sender_waits_for_a_reader() -> None:
    """The other side keeps no more than its windows of messages that nobody takes."""

    async def scenario() -> None:
        sent = 0
        go = asyncio.Event()

        async def serve(stream: Stream) -> None:
            await go.wait()
            while await stream.receive() is not None:
                continue

        async def send(stream: Stream) -> None:
            nonlocal sent
            for _ in range(200):
                await stream.send(bytes(64 << 10))
                sent += 1
            stream.end()

        async with joined(serve) as (caller, _):
            stream = caller.open("/any")
            sending = asyncio.ensure_future(send(stream))
            before = -1
            while before != sent:  # until it stands still
                before = sent
                for _ in range(50):
                    await asyncio.sleep(0)
            bound = links.STREAM_WINDOW + links.HELD_MESSAGES + (128 << 10)
            assert 0 < sent <= bound // (64 << 10)
            go.set()
            await sending
            assert await stream.receive() is None

    asyncio.run(scenario())


def test_a_message_that_is_too_long_is_refused_before_it_came() -> None:
    async def scenario() -> None:
        async with joined(echo) as (caller, _):
            stream = caller.open("/any")
            await caller.send_data(stream, b"\0" + (links.MAX_MESSAGE + 1).to_bytes(4, "big"))
            with pytest.raises(GrpcError, match="larger than max") as caught:
                await stream.receive()
            assert caught.value.code == Code.RESOURCE_EXHAUSTED

    asyncio.run(scenario())


def test_a_compressed_message_is_refused() -> None:
    async def scenario() -> None:
        async with joined(echo) as (caller, _):
            stream = caller.open("/any")
            await caller.send_data(stream, b"\1\0\0\0\1x")
            with pytest.raises(GrpcError, match="compressed"):
                await stream.receive()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\0\0\0\0\0\1",  # a frame of 16 MiB
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\4\1\0\0\0\0\1abcd",  # no HPACK
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\4\0\0\0\0\0\3abcd",  # data of no stream
    ],
)
def test_what_is_no_http2_ends_the_link(data: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        link = Link(echo)
        await attach(link, ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        writer.write(data)
        writer.write_eof()
        await link.wait_closed()
        await reader.read()
        writer.close()

    asyncio.run(scenario())


def test_a_flood_of_pings_that_nobody_reads_answers_of_ends_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "MAX_UNSENT", 64 << 10)

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        link = Link(echo)
        await attach(link, ours)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        flood = b"\0\0\x08\6\0\0\0\0\0abcdefgh" * 4000
        await loop.sock_sendall(theirs, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        try:
            while not link.is_lost:
                await loop.sock_sendall(theirs, flood)
        except OSError:
            pass
        await link.wait_closed()
        theirs.close()

    asyncio.run(scenario())


def test_a_call_that_ends_before_its_client_does_is_reset_without_an_error() -> None:
    """As gRPC's Go server does it: trailers, then RST_STREAM with NO_ERROR."""

    async def serve(stream: Stream) -> None:
        await stream.send(b"answer")

    async def scenario() -> list[h2.events.Event]:
        ours, theirs = socket.socketpair()
        link = Link(serve)
        await attach(link, ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        client.send_headers(
            1, [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "x")]
        )
        writer.write(client.data_to_send())
        events: list[h2.events.Event] = []
        while not any(isinstance(event, h2.events.StreamReset) for event in events):
            events += client.receive_data(await reader.read(65536))
            writer.write(client.data_to_send())
        writer.close()
        await link.wait_closed()
        return events

    events = asyncio.run(scenario())
    trailers = next(e for e in events if isinstance(e, h2.events.TrailersReceived))
    assert ("grpc-status", "0") in list(trailers.headers or ())
    reset = next(e for e in events if isinstance(e, h2.events.StreamReset))
    assert reset.error_code == 0
