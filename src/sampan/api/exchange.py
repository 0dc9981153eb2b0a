"""One request and its answer, as a handler sees them: Body, Request, Reply; and RawStream, what a hijack gives.

What they need of the connection below is `Carrier`; http.Connection is one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus
from typing import Protocol

from sampan.api.http_head import Head
from sampan.errors import InvalidArgument

BODY_BUFFER = 512 * 1024  # unread body bytes at which the connection stops reading its socket
JSON_LIMIT = 8 * 1024 * 1024
# Clients that lose nothing between the head of a hijacked answer and the stream (http.Connection.detach).
EXACT_READERS = ("Docker-Client/", "Sampan-Client/")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Headers = Iterable[tuple[str, str]]


class Carrier(Protocol):
    """A connection, as the exchange on it uses it."""

    @property
    def check_origin(self) -> bool:
        """Whether a browser's page could reach this listener."""

    def common_lines(self) -> list[str]:
        """Header lines of every answer."""

    def write_now(self, data: bytes) -> None:
        """Queue for sending; Cancelled when the client is gone."""

    async def drained(self) -> None:
        """Until the client has taken enough of what was queued."""

    def resume(self) -> None:
        """Read the socket again."""

    async def detach(self, head: bytes, *, wait_until_read: bool = False) -> RawStream:
        """Give the socket away, after `head`."""


class Body:
    """A request's body, for one reader."""

    def __init__(self, connection: Carrier, head: Head) -> None:
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._fault: Exception | None = None
        self._continue_due = head.expects_continue and head.body_length != 0
        self.length = head.body_length
        self.buffered = 0
        self.ended = head.body_length == 0

    async def read_some(self) -> bytes:
        """The next bytes as they came; b"" at the end."""
        if self._continue_due:
            self._continue_due = False
            self._connection.write_now(CONTINUE)
        while not self._chunks:
            if self._fault is not None:
                raise self._fault
            if self.ended:
                return b""
            self._connection.resume()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        self.buffered -= len(chunk)
        if self.buffered < BODY_BUFFER:
            self._connection.resume()
        return chunk

    async def read_all(self, limit: int = JSON_LIMIT) -> bytes:
        """The whole body, when it is a document and not a stream."""
        if self.length > limit:
            raise InvalidArgument(f"request body too large: more than {limit} bytes")
        pieces, size = [], 0
        while chunk := await self.read_some():
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                raise InvalidArgument(f"request body too large: more than {limit} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read_some():
            yield chunk

    @property
    def unasked(self) -> bool:
        """The client waits for `100 Continue`, which nobody has sent: no body is on its way."""
        return self._continue_due

    def put(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self.buffered += len(chunk)
        self._wake()

    def end(self, fault: Exception | None = None) -> None:
        self.ended = True
        self._fault = fault
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Request:
    """What was asked, by whom."""

    __slots__ = ("body", "connection", "head")

    def __init__(self, connection: Carrier, head: Head) -> None:
        self.connection = connection
        self.head = head
        self.body = Body(connection, head)


class RawStream:
    """A hijacked connection: a stream socket's descriptor, and what the client sent already.

    Whoever takes it closes the descriptor.
    """

    __slots__ = ("fd", "preread")

    def __init__(self, fd: int, preread: bytes) -> None:
        self.fd = fd
        self.preread = preread


class Reply:
    """The answer to one request. Exactly one of send, start...finish, hijack."""

    def __init__(self, connection: Carrier, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._chunked = False
        self.started = False
        self.finished = False
        self.keep_alive = head.keep_alive
        self.only_watches = False  # nothing is under way: an engine that stops need not wait for it

    async def send(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Headers = (),
    ) -> None:
        """An answer with its length. 204 and 304 have no body, HEAD sends none."""
        self.started = self.finished = True
        lines = list(headers)
        if status not in (204, 304):
            if body:
                lines.append(("Content-Type", content_type))
            if not (self._head.method == "HEAD" and not body):
                lines.append(("Content-Length", str(len(body))))
        payload = b"" if self._head.method == "HEAD" or status in (204, 304) else body
        self._connection.write_now(self._top(status, lines) + payload)
        await self._connection.drained()

    async def start(
        self, status: int = 200, content_type: str = "application/json", headers: Headers = ()
    ) -> None:
        """The head of a stream, flushed at once: some clients wait for it before they go on."""
        self.started = True
        self._chunked = self._head.minor == 1
        lines = [("Content-Type", content_type), *headers]
        if self._chunked:
            lines.append(("Transfer-Encoding", "chunked"))
        else:
            self.keep_alive = False
        self._connection.write_now(self._top(status, lines))
        await self._connection.drained()

    async def write(self, data: bytes) -> None:
        """A piece of the stream; waits while the client does not read."""
        if data:
            framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
            self._connection.write_now(framed)
            await self._connection.drained()

    async def finish(self) -> None:
        """The stream's regular end."""
        if not self.finished:
            self.finished = True
            if self._chunked:
                self._connection.write_now(b"0\r\n\r\n")
            await self._connection.drained()

    async def hijack(self, content_type: str) -> RawStream:
        """The connection itself, after the head that tells the client so.

        With an Upgrade header the answer is 101, without one 200 and no length; then raw bytes flow.
        """
        upgrade = self._head.upgrade
        if upgrade:
            lines = [f"Content-Type: {content_type}", "Connection: Upgrade", f"Upgrade: {upgrade}"]
            status_line = "HTTP/1.1 101 UPGRADED"
        else:
            lines = [f"Content-Type: {content_type}"]
            status_line = "HTTP/1.1 200 OK"
        head = "\r\n".join([status_line, *lines, "", ""]).encode()
        exact = self._head.headers.get("user-agent", "").startswith(EXACT_READERS)
        return await self.take_over(head, wait_until_read=not exact)

    async def take_over(self, head: bytes, *, wait_until_read: bool = False) -> RawStream:
        """The connection, once `head` (if any) is on its way, or even read."""
        self.started = self.finished = True
        self.keep_alive = False
        return await self._connection.detach(head, wait_until_read=wait_until_read)

    def _top(self, status: int, lines: Headers) -> bytes:
        said = [f"HTTP/1.1 {status} {reason(status)}", *self._connection.common_lines()]
        said += [f"{name}: {value}" for name, value in lines]
        if not self.keep_alive:
            said.append("Connection: close")
        elif self._head.minor == 0:
            said.append("Connection: keep-alive")
        return "\r\n".join([*said, "", ""]).encode("utf-8", "replace")


def reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
