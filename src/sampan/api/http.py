"""HTTP/1.1 on asyncio: parse, answer, stream, hand the connection over. Knows no route.

    Listener socket
        | accept
    Connection          one per client; parses heads (http_head.py) and bodies (http_body.py)
        | one task per request, one request at a time
    handler(Request, Reply)   exchange.py
        | reply.send(...)                      an answer with its length
        | reply.start(...); reply.write(...)   a stream, chunked, headers flushed at once
        | reply.hijack(...) -> RawStream       the connection itself, as a descriptor

Rules held here:
- Back-pressure both ways: an unread body stops the reading of the socket, an unread answer stops the
  handler in `write`.
- A client that goes away cancels its handler. One that only shut down its sending side (a unix socket
  tells the two apart) still gets its answer.
- Whatever a client sends too slowly, too much or malformed ends its own connection and nothing else.

Sources: RFC 9112; for what Docker's clients rely on, docs/api.md.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import termios
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import cast

from sampan.api.exchange import BODY_BUFFER, Body, Headers, RawStream, Reply, Request, reason
from sampan.api.http_body import Framing, framing_of
from sampan.api.http_head import BadRequest, Head, find_end, parse
from sampan.api.tls import Pump
from sampan.errors import Cancelled, InvalidArgument

HEAD_SECONDS = 30  # from a head's first byte to its last
IDLE_SECONDS = 600  # between requests
SWEEP_SECONDS = 5
PIPELINE_BUFFER = 128 * 1024  # unread bytes behind a running request
LINGER_SECONDS = 0.5
DRAIN_UNREAD = 256 * 1024  # an answered request's unread body: read on up to here, else close
READ_CHECKS, READ_CHECK_SECONDS = 200, 0.0005

Handler = Callable[[Request, Reply], Awaitable[None]]


class HttpServer:
    """What all connections of an engine share: the handler, the common headers, the sweep of slow clients."""

    def __init__(
        self, handler: Handler, common_headers: Headers, max_connections: int = 8192
    ) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self.max_connections = max_connections
        self._common = [f"{name}: {value}" for name, value in common_headers]
        self._kept: set[asyncio.Task[None]] = set()
        self._date = ""
        self._date_second = 0
        self._sweeper: asyncio.TimerHandle | None = None

    def common_lines(self) -> list[str]:
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}"
        return [*self._common, self._date]

    def keep(self, task: asyncio.Task[None] | None) -> None:
        """A handler whose connection was given away: nobody else holds its task."""
        if task is not None:
            self._kept.add(task)
            task.add_done_callback(self._kept.discard)

    def start_sweeping(self) -> None:
        self._sweep()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_pace(now)
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def add(self, connection: Connection) -> None:
        self.connections.add(connection)
        if len(self.connections) > self.max_connections:
            idle = [c for c in self.connections if c.is_idle and c is not connection]
            victim = min(idle, key=lambda c: c.active_at, default=connection)
            victim.abort()

    async def close(self, grace_seconds: float = 5) -> None:
        """End those who only watch, let other answers finish for a while, then end them too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.stop_when_idle()
        tasks = [c.task for c in self.connections if c.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._kept):
            task.cancel()


class Connection(asyncio.Protocol):
    """One client. A connection reads a head, runs the handler, reads the next."""

    def __init__(
        self, server: HttpServer, *, secure: bool = False, check_origin: bool = False
    ) -> None:
        self.server = server
        self.secure = secure
        self.check_origin = check_origin
        self.active_at = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport = cast(
            "asyncio.Transport", None
        )  # until connection_made
        self._buffer = bytearray()  # what follows the current request
        self._searched = 0
        self._head_since = 0.0
        self._framing: Framing | None = None
        self._body: Body | None = None
        self._reply: Reply | None = None
        self._paused_reading = False
        self._writable: asyncio.Future[None] | None = None
        self._eof = False
        self._closing = False
        self._detached = False
        self._lingering = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.server.add(self)

    def data_received(self, data: bytes) -> None:
        self.active_at = time.monotonic()
        if self._lingering:
            return
        if self._framing is not None:
            self._feed_body(data)
            return
        self._buffer += data
        if self.task is None:
            self._next_request()
        elif len(self._buffer) > PIPELINE_BUFFER:
            self._pause()

    def eof_received(self) -> bool:
        self._eof = True
        if self.task is None:
            return False  # closes, once what was written is sent
        if self._has_left():
            self._client_gone()
            return False
        if self._body is not None and not self._body.ended:
            self._body.end(InvalidArgument("unexpected EOF"))
            self._framing = None
        return True  # keep the sending side

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.pause_over()
        if not self._detached:
            self._client_gone()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self.pause_over()

    def pause_over(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- exchange.Carrier ---

    def common_lines(self) -> list[str]:
        return self.server.common_lines()

    def write_now(self, data: bytes) -> None:
        if self._transport.is_closing() or self._detached:
            raise Cancelled("client is gone")
        self._transport.write(data)

    async def drained(self) -> None:
        if self._writable is not None:
            await self._writable

    def resume(self) -> None:
        if self._paused_reading and not self._eof and not self._transport.is_closing():
            self._paused_reading = False
            self._transport.resume_reading()

    def _pause(self) -> None:
        if not self._paused_reading and not self._transport.is_closing():
            self._paused_reading = True
            self._transport.pause_reading()

    async def detach(self, head: bytes, *, wait_until_read: bool = False) -> RawStream:
        """Give the socket away: everything of ours is sent, everything of theirs that we read goes along."""
        self._transport.set_write_buffer_limits(0)
        self.write_now(head)
        await self.drained()
        if wait_until_read:
            await self._until_read()
        self._pause()
        self._detached = True
        self.server.keep(self.task)
        if self.secure:
            return self._pumped()
        fd = os.dup(self._socket().fileno())
        self._transport.abort()  # closes its own descriptor; the socket lives on in ours
        return RawStream(fd, self._leftover())

    async def _until_read(self) -> None:
        """Until the client has taken what we sent, for a while at most. Only unix sockets tell.

        docker-py reads the head through a buffer and the stream past it: what arrives together with the head
        is lost to it. Docker is never that quick.
        """
        sock = self._socket()
        if self.secure or sock.family != socket.AF_UNIX:
            return
        for _ in range(READ_CHECKS):
            if not int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), "little"):
                return
            await asyncio.sleep(READ_CHECK_SECONDS)

    def _pumped(self) -> RawStream:
        """A TLS connection cannot leave this process: the other end of a pump goes instead."""
        ours, theirs = socket.socketpair()
        pump = Pump(self._transport, ours)
        self._transport.set_protocol(pump)
        self._transport.set_write_buffer_limits()
        self.server.connections.discard(self)
        if self._eof:
            pump.eof_received()
        else:
            self._transport.resume_reading()
        return RawStream(theirs.detach(), self._leftover())

    def _leftover(self) -> bytes:
        preread = bytes(self._buffer)
        self._buffer.clear()
        return preread

    def _socket(self) -> socket.socket:
        return cast("socket.socket", self._transport.get_extra_info("socket"))

    # --- pace ---

    @property
    def is_idle(self) -> bool:
        return self.task is None

    def check_pace(self, now: float) -> None:
        """Called every few seconds: end what is too slow, notice who went away after half-closing."""
        if self.task is None:
            slow_head = self._head_since and now - self._head_since > HEAD_SECONDS
            if slow_head or now - self.active_at > IDLE_SECONDS:
                self.abort()
        elif self._eof and self._has_left():
            self._client_gone()

    def stop_when_idle(self) -> None:
        self._closing = True
        if self.task is None:
            self.abort()
        elif self._reply is not None and self._reply.only_watches:
            self.task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def _has_left(self) -> bool:
        """Whether a client that ended its sending side is gone altogether.

        A unix socket tells (POLLHUP is both directions). Elsewhere a close looks like a half-close: there a
        client that ends while we stream to it counts as gone, and one that waits for its answer does not.
        """
        sock = self._socket()
        if self.secure or sock.family != socket.AF_UNIX:
            return self._reply is None or self._reply.started
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def _client_gone(self) -> None:
        if self._body is not None and not self._body.ended:
            self._body.end(Cancelled("client is gone"))
        if self.task is not None:
            self.task.cancel()
        if not self._transport.is_closing():
            self._transport.abort()

    # --- requests ---

    def _next_request(self) -> None:
        """Start on the head in the buffer, if it is complete."""
        while self._buffer[:2] == b"\r\n":  # RFC 9112 2.2: blank lines between requests
            del self._buffer[:2]
        if not self._buffer:
            self._head_since = 0.0
            return
        if not self._head_since:
            self._head_since = time.monotonic()
        try:
            end = find_end(self._buffer, self._searched)
            if end < 0:
                self._searched = len(self._buffer)
                return
            head = parse(bytes(self._buffer[:end]))
        except BadRequest as fault:
            self._refuse(fault)
            return
        del self._buffer[:end]
        self._searched = 0
        self._head_since = 0.0
        self._begin(head)

    def _begin(self, head: Head) -> None:
        request, reply = Request(self, head), Reply(self, head)
        self._body, self._reply = request.body, reply
        if head.body_length != 0:
            self._framing = framing_of(head.body_length)
        self.task = asyncio.get_running_loop().create_task(self._run(request, reply))
        if self._framing is not None and self._buffer:
            self._feed_body(self._leftover())

    def _feed_body(self, data: bytes) -> None:
        framing, body = self._framing, self._body
        assert framing is not None and body is not None
        try:
            for payload in framing.feed(data):
                body.put(payload)
        except BadRequest as fault:
            self._framing = None
            self._closing = True
            body.end(InvalidArgument(str(fault)))
            return
        if framing.done:
            self._framing = None
            self._buffer += framing.rest
            body.end()
        elif body.buffered > BODY_BUFFER:
            self._pause()

    async def _run(self, request: Request, reply: Reply) -> None:
        """One request from its head to the end of its answer."""
        try:
            await self.server.handler(request, reply)
            if reply.started and not reply.finished:
                await reply.finish()
        except Cancelled:
            self._closing = True
        except asyncio.CancelledError:
            self._closing = True
        if self._detached:
            self.task = None
        elif not reply.finished:  # cut off in the middle of a stream: the client must see that
            self.task = None
            self.abort()
        else:
            await self._settle(request, reply)

    async def _settle(self, request: Request, reply: Reply) -> None:
        """After the answer: get past an unread body, go on with the next request or close."""
        body = request.body
        if body.unasked or not await self._drained_body(body):
            self._closing = True
        self.task = None
        self._body = self._reply = self._framing = None
        self.active_at = time.monotonic()
        if self._closing:
            self._linger()
            return
        if not reply.keep_alive:
            self._transport.close()
            return
        self.resume()
        self._next_request()
        if self._eof and self.task is None:
            self._transport.close()

    async def _drained_body(self, body: Body) -> bool:
        """Whether the rest of a body that nobody read was short, and is gone."""
        dropped = 0
        try:
            while not (body.ended and body.buffered == 0):
                async with asyncio.timeout(1):
                    dropped += len(await body.read_some())
                if dropped > DRAIN_UNREAD:
                    return False
        except (InvalidArgument, Cancelled, TimeoutError, asyncio.CancelledError):
            return False
        return True

    def _refuse(self, fault: BadRequest) -> None:
        """A head that cannot be understood: say so, and close."""
        body = b"%d %b: %b" % (fault.status, reason(fault.status).encode(), str(fault).encode())
        lines = [
            f"HTTP/1.1 {fault.status} {reason(fault.status)}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            "",
        ]
        self._closing = True
        self._transport.write("\r\n".join(lines).encode() + body)
        self._linger()

    def _linger(self) -> None:
        """Close, but read on for a moment: closing with unread input would take our last answer away."""
        if self._eof or self._transport.is_closing():
            self._transport.close()
            return
        self._lingering = True
        self._buffer.clear()
        self.resume()
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)
