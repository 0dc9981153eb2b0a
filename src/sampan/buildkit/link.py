"""gRPC over one HTTP/2 connection: calls that the other side makes of us, and calls that we make of it.

    bytes ── Link (asyncio.Protocol, HTTP/2 by h2) ── Stream, one per call ── messages as bytes
                                                       served: a task per call      service.py
                                                       opened: by `open`            session.py

A link is either end: `/grpc` makes us HTTP/2's server, `/session` its client, though the client is the one who dialled.

Held here:
- Back-pressure both ways. A stream whose messages nobody takes gets no more credit; a sender waits for the other
  side's credit and for its own socket.
- What a peer may make us keep is bounded: message size, streams at a time, header sizes (h2), answers it does not read.
- A link that ends fails every call on it; a call that is reset cancels its task.

Sources: RFC 9113; gRPC over HTTP2 (grpc/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import cast
from urllib.parse import quote, unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.messages import Status
from sampan.buildkit.wire import WireError, decode, encode

MAX_MESSAGE = 16 << 20  # BuildKit's own limit
MAX_STREAMS = 128
MAX_HEADERS = 64 << 10
STREAM_WINDOW = 1 << 20
LINK_WINDOW = 8 << 20
HELD_MESSAGES = 256 << 10  # bytes of messages nobody took yet, past which a stream gets no credit
MAX_UNSENT = 4 << 20  # answers to control frames that a peer does not read

Metadata = dict[str, list[str]]
Pairs = list[tuple[str, str]]

log = logging.getLogger("sampan.buildkit")


class Stream:
    """One call, from either end. One task reads, one task writes."""

    def __init__(self, link: Link, number: int, path: str, metadata: Metadata) -> None:
        self.link = link
        self.number = number
        self.path = path
        self.metadata = metadata
        self.answer_headers: Pairs = []  # what a service adds to the answer's headers
        self.said_status = False  # our headers are out
        self.remote_ended = False
        self.local_ended = False
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._unacknowledged = 0
        self._fault: GrpcError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._credit: asyncio.Future[None] | None = None

    # --- for whoever has the call

    async def receive(self) -> bytes | None:
        """The next message; None at the regular end. Raises GrpcError for any other end."""
        while not self._messages:
            if self._fault is not None:
                raise self._fault
            if self.remote_ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self._held -= len(message)
        self._acknowledge()
        return message

    def ready(self, most: int) -> list[bytes]:
        """Messages that are there already, in order."""
        taken: list[bytes] = []
        while self._messages and len(taken) < most:
            taken.append(self._messages.popleft())
        self._held -= sum(map(len, taken))
        self._acknowledge()
        return taken

    async def send(self, message: bytes) -> None:
        """Send a message; waits for the other side's credit."""
        await self.link.send_data(self, b"\0" + len(message).to_bytes(4, "big") + message)

    def end(self) -> None:
        """No more messages from us, where we are the caller; a call that we serve ends with its task."""
        self.link.end_stream(self)

    def cancel(self) -> None:
        """We want no more of this call. Idempotent."""
        self.link.reset(self, ErrorCodes.CANCEL)

    def first(self, name: str, default: str = "") -> str:
        """A metadata value."""
        values = self.metadata.get(name)
        return values[0] if values else default

    @property
    def fault(self) -> GrpcError | None:
        return self._fault

    # --- for the link

    def feed(self, data: bytes, credit: int) -> None:
        """Bytes from the other side; `credit` is what they cost of the window."""
        self._buffer += data
        self._unacknowledged += credit
        at = 0
        while len(self._buffer) - at >= 5:
            size = int.from_bytes(self._buffer[at + 1 : at + 5], "big")
            if self._buffer[at]:
                raise GrpcError("compressed messages are not served", Code.UNIMPLEMENTED)
            if size > MAX_MESSAGE:
                raise GrpcError(
                    f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE})",
                    Code.RESOURCE_EXHAUSTED,
                )
            if len(self._buffer) - at - 5 < size:
                break
            self._messages.append(bytes(self._buffer[at + 5 : at + 5 + size]))
            self._held += size
            at += 5 + size
        if at:
            del self._buffer[:at]
            self._wake()
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._unacknowledged and self._held <= HELD_MESSAGES:
            self.link.acknowledge(self, self._unacknowledged)
            self._unacknowledged = 0

    def finish(self, fault: GrpcError | None) -> None:
        """The other side ended the call; the first end counts."""
        if not self.remote_ended:
            self.remote_ended = True
            self._fault = fault
        self._wake()
        self.credit()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def credit(self) -> None:
        """There may be room to send again."""
        if self._credit is not None and not self._credit.done():
            self._credit.set_result(None)

    async def until_credit(self) -> None:
        self._credit = asyncio.get_running_loop().create_future()
        await self._credit


Serve = Callable[[Stream], Awaitable[None]]


class Link(asyncio.Protocol):
    """One HTTP/2 connection. With `serve` we answer calls; without, we make them."""

    def __init__(self, serve: Serve | None = None) -> None:
        self._serve = serve
        client = serve is None
        self._h2 = H2Connection(H2Configuration(client_side=client, header_encoding=None))
        self._h2.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS,
                SettingCodes.MAX_FRAME_SIZE: 1 << 14,
            },
        )
        self._streams: dict[int, Stream] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._writable: asyncio.Future[None] | None = None
        self._flushing = False
        self.is_lost = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(LINK_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except H2Error as error:
            log.info("a client's HTTP/2 was refused: %s", error)
            self._flush()
            self.close()
            return
        for event in events:
            self._take(event)
        self._flush()
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.abort()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.resume_writing()
        for stream in list(self._streams.values()):
            stream.finish(GrpcError("the connection was lost", Code.UNAVAILABLE))
        self._streams.clear()
        for task in list(self._tasks.values()):
            task.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    # --- ending

    def close(self) -> None:
        """Say good-bye and close, once what was written is sent."""
        if not self.is_lost and not self._transport.is_closing():
            try:
                self._h2.close_connection()
            except H2Error:
                pass  # it has been said
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Until the connection is gone and the tasks of its calls have ended."""
        await asyncio.shield(self.lost)
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    # --- what the other side says

    def _take(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._data(event)
        elif isinstance(event, RequestReceived):
            self._request(event.stream_id or 0, _read_headers(event.headers or ()))
        elif isinstance(event, ResponseReceived):
            self._response(event.stream_id or 0, _read_headers(event.headers or ()))
        elif isinstance(event, TrailersReceived):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                stream.finish(_status_of(_read_headers(event.headers or ())))
        elif isinstance(event, StreamEnded):
            self._ended(event.stream_id or 0)
        elif isinstance(event, StreamReset):
            self._was_reset(event.stream_id or 0, int(event.error_code or 0))
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            for stream in self._streams.values():
                stream.credit()
        elif isinstance(event, ConnectionTerminated) and not self._streams:
            self._transport.close()  # with calls under way they may still end

    def _data(self, event: DataReceived) -> None:
        number, cost = event.stream_id or 0, event.flow_controlled_length or 0
        stream = self._streams.get(number)
        if stream is None:
            self._h2.acknowledge_received_data(cost, number)
            return
        try:
            stream.feed(event.data or b"", cost)
        except GrpcError as error:
            stream.finish(error)
            if self._serve is None:
                self.reset(stream, ErrorCodes.CANCEL)

    def _request(self, number: int, headers: Metadata) -> None:
        assert self._serve is not None
        path = headers.get(":path", [""])[0]
        stream = Stream(self, number, path, headers)
        self._streams[number] = stream
        task = asyncio.get_running_loop().create_task(self._run(stream))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _run(self, stream: Stream) -> None:
        """One call that we serve, from its headers to its trailers."""
        assert self._serve is not None
        error: GrpcError | None = None
        try:
            await self._serve(stream)
        except GrpcError as fault:
            error = fault
        except asyncio.CancelledError:
            error = GrpcError("context canceled", Code.CANCELLED)
        except Exception:
            log.exception("%s failed", stream.path)
            error = GrpcError("internal error", Code.INTERNAL)
        self._conclude(stream, error)

    def _conclude(self, stream: Stream, error: GrpcError | None) -> None:
        self._streams.pop(stream.number, None)
        if self.is_lost or stream.local_ended:
            return
        stream.local_ended = True
        try:
            if not stream.said_status:
                self._say_headers(stream)
            self._h2.send_headers(stream.number, trailers_of(error), end_stream=True)
            if not stream.remote_ended:
                self._h2.reset_stream(stream.number, ErrorCodes.NO_ERROR)
        except H2Error:
            pass  # the client has reset the call
        self._flush_soon()

    def _say_headers(self, stream: Stream) -> None:
        stream.said_status = True
        self._h2.send_headers(
            stream.number,
            [(":status", "200"), ("content-type", "application/grpc"), *stream.answer_headers],
        )

    def _response(self, number: int, headers: Metadata) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        status = headers.get(":status", [""])[0]
        if status != "200":
            stream.finish(GrpcError(f"unexpected HTTP status {status}", Code.UNKNOWN))
        elif "grpc-status" in headers:  # headers and trailers in one
            stream.finish(_status_of(headers))

    def _ended(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if self._serve is None:
            if not stream.remote_ended:
                stream.finish(GrpcError("the stream ended without a status", Code.INTERNAL))
            self._streams.pop(number, None)
            if not stream.local_ended:  # it wants nothing more of us
                self.reset(stream, ErrorCodes.NO_ERROR)
        else:
            stream.finish(None)

    def _was_reset(self, number: int, code: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        stream.local_ended = True
        if not (stream.remote_ended and code == 0):
            stream.finish(GrpcError("the call was cancelled", Code.CANCELLED))
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    # --- what we say

    def open(self, path: str, metadata: Iterable[tuple[str, str]] = ()) -> Stream:
        """Begin a call of the other side. Raises GrpcError where the link is gone."""
        if self.is_lost or self._transport.is_closing():
            raise GrpcError("the connection was lost", Code.UNAVAILABLE)
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("user-agent", "sampan"),
            ("te", "trailers"),
            *metadata,
        ]
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, headers)
        except H2Error as error:
            raise GrpcError(f"cannot begin a call: {error}", Code.UNAVAILABLE) from None
        stream = Stream(self, number, path, {})
        stream.said_status = True
        self._streams[number] = stream
        self._flush_soon()
        return stream

    async def send_data(self, stream: Stream, data: bytes) -> None:
        """Raises GrpcError when the call has ended meanwhile."""
        view = memoryview(data)
        while view:
            self._check_open(stream)
            try:
                if not stream.said_status:
                    self._say_headers(stream)
                room = min(
                    self._h2.local_flow_control_window(stream.number),
                    self._h2.max_outbound_frame_size,
                )
                if room <= 0:
                    self._flush()
                    await stream.until_credit()
                    continue
                self._h2.send_data(stream.number, bytes(view[:room]))
            except H2Error as error:
                raise GrpcError(f"the call has ended: {error}", Code.CANCELLED) from None
            view = view[room:]
            self._flush_soon()
            if self._writable is not None:
                await self._writable

    def _check_open(self, stream: Stream) -> None:
        if self.is_lost:
            raise GrpcError("the connection was lost", Code.UNAVAILABLE)
        if stream.local_ended or stream.number not in self._streams:
            raise stream.fault or GrpcError("the call has ended", Code.CANCELLED)

    def end_stream(self, stream: Stream) -> None:
        if (
            self._serve is None
            and not stream.local_ended
            and not self.is_lost
            and stream.number in self._streams
        ):
            stream.local_ended = True
            try:
                self._h2.end_stream(stream.number)
            except H2Error:
                return  # the call has ended meanwhile
            self._flush_soon()

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        self._streams.pop(stream.number, None)
        stream.finish(GrpcError("the call was cancelled", Code.CANCELLED))
        if stream.local_ended and stream.remote_ended and code is not ErrorCodes.NO_ERROR:
            return
        stream.local_ended = True
        if self.is_lost:
            return
        try:
            self._h2.reset_stream(stream.number, code)
        except H2Error:
            return  # both sides are through with it
        self._flush_soon()

    def acknowledge(self, stream: Stream, size: int) -> None:
        try:
            self._h2.acknowledge_received_data(size, stream.number)
        except H2Error:
            return  # the connection is ending
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Several small messages of one turn of the loop go out in one write."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if data and not self.is_lost and not self._transport.is_closing():
            self._transport.write(data)


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    found: Metadata = {}
    for name, value in headers:
        key = bytes(name).decode("latin-1")
        found.setdefault(key, []).append(bytes(value).decode("latin-1"))
    return found


def trailers_of(error: GrpcError | None) -> Pairs:
    """How a call ended, as HTTP/2 trailers."""
    if error is None:
        return [("grpc-status", "0")]
    trailers = [
        ("grpc-status", str(error.code)),
        ("grpc-message", quote(error.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")),
    ]
    if error.details:
        status = Status(code=error.code, message=error.message, details=list(error.details))
        text = base64.b64encode(encode(status)).decode().rstrip("=")
        trailers.append(("grpc-status-details-bin", text))
    return trailers


def _status_of(trailers: Metadata) -> GrpcError | None:
    """The end of a call that we made: None where it went well."""
    text = trailers.get("grpc-status", [""])[0]
    if text == "0":
        return None
    code = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else Code.UNKNOWN
    message = unquote(trailers.get("grpc-message", [""])[0])
    raw = trailers.get("grpc-status-details-bin", [""])[0]
    if raw:
        try:
            status = decode(Status, base64.b64decode(raw + "=" * (-len(raw) % 4)))
        except (ValueError, WireError):
            return GrpcError(message, code)
        return GrpcError(message, code, status.details)
    return GrpcError(message, code)
