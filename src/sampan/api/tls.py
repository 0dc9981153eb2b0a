"""TLS below a Connection, with half-close; and the pump that stands in for a socket that cannot be handed over.

asyncio's own TLS closes both directions when the client closes one, and so would lose the output of
`echo x | docker -H tcp://... run -i`. Here the client's close_notify is the end of its input, no more.

    raw transport <-> TlsProtocol (ssl over memory buffers) <-> Connection, or Pump after a hijack

Sources: RFC 8446 section 6.1 (close_notify), Python's ssl.MemoryBIO documentation.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

HANDSHAKE_SECONDS = 20
READ_SIZE = 256 * 1024
PUMP_BUFFER = 256 * 1024


class TlsProtocol(asyncio.Protocol):
    """Decrypts for the protocol inside; the other direction is TlsTransport."""

    def __init__(self, context: ssl.SSLContext, make_inner: Callable[[], asyncio.Protocol]) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self.outgoing, server_side=True)
        self._make_inner = make_inner
        self.inner: asyncio.Protocol | None = None
        self.raw: asyncio.Transport = cast("asyncio.Transport", None)  # until connection_made
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.raw = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(HANDSHAKE_SECONDS, self.raw.abort)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        try:
            if self.inner is None and not self._shake_hands():
                return
            self._deliver()
        except ssl.SSLError:  # a fault in the peer's records: tell it (the alert), then give up
            self.flush()
            self.raw.abort()

    def _shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        self.flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self.inner = self._make_inner()
        self.inner.connection_made(TlsTransport(self))
        return True

    def _deliver(self) -> None:
        """Hand in what can be decrypted."""
        while not self._ended:
            try:
                plain = self.tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                plain = b""
            if not plain:
                self._end_of_input()
            elif self.inner is not None:
                self.inner.data_received(plain)
        self.flush()

    def _end_of_input(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self.inner is None or not self.inner.eof_received():
            self.raw.close()

    def eof_received(self) -> bool:
        self._end_of_input()
        return not self.raw.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self.inner is not None:
            self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self.inner is not None:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        if self.inner is not None:
            self.inner.resume_writing()

    def flush(self) -> None:
        data = self.outgoing.read()
        if data and not self.raw.is_closing():
            self.raw.write(data)

    def say_goodbye(self) -> None:
        """Send our close_notify; the peer's answer is not waited for."""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.flush()


class TlsTransport(asyncio.Transport):
    """What the protocol inside writes to."""

    def __init__(self, outer: TlsProtocol) -> None:
        super().__init__()
        self._outer = outer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._outer.tls.write(data)
        self._outer.flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._outer.say_goodbye()

    def close(self) -> None:
        if not self.is_closing():
            self._outer.say_goodbye()
            self._outer.raw.close()

    def abort(self) -> None:
        self._outer.raw.abort()

    def is_closing(self) -> bool:
        return self._outer.raw.is_closing()

    def pause_reading(self) -> None:
        self._outer.raw.pause_reading()

    def resume_reading(self) -> None:
        self._outer.raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._outer.raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._outer.raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._outer.inner = cast("asyncio.Protocol", protocol)


class Pump(asyncio.Protocol):
    """Carries bytes between a transport and our end of a socketpair, half-closes included."""

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self._transport = transport
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()  # from the client, for the socket
        self._client_ended = False
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._from_socket)

    # client -> socket

    def data_received(self, data: bytes) -> None:
        self._pending += data
        self._to_socket()

    def _to_socket(self) -> None:
        if self._closed:
            return
        try:
            while self._pending:
                del self._pending[: self._sock.send(self._pending)]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._to_socket)
            if len(self._pending) > PUMP_BUFFER:
                self._transport.pause_reading()
            return
        except OSError:  # the stream does not read any more: what the client says is lost
            self._pending.clear()
        self._loop.remove_writer(self._sock)
        if self._client_ended:
            self._shut_socket()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        self._client_ended = True
        self._to_socket()
        return True

    def _shut_socket(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    # socket -> client

    def _from_socket(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._transport.write(data)
            return
        self._loop.remove_reader(self._sock)
        self._transport.close()

    def pause_writing(self) -> None:
        self._loop.remove_reader(self._sock)

    def resume_writing(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._from_socket)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
