"""Attach over a websocket: what a browser's terminal uses. The stream inside is never framed by us.

    client <- websocket frames -> this pump <- socketpair -> the stream's verb

Source: RFC 6455 (section 4.2 handshake, 5.2 frames, 5.5 control frames).
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import socket
import struct
from base64 import b64decode, b64encode

from sampan.api.call import Call
from sampan.api.frames import FrameReader
from sampan.api.progress import finish_cleanly
from sampan.engine.streams import Stream
from sampan.errors import InvalidArgument

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3: proves that the server understood
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MOST_PAYLOAD = 1024 * 1024
NORMAL_CLOSE = struct.pack(">H", 1000)


async def attach_websocket(call: Call, stream: Stream) -> None:
    accept = _accept(call)
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    raw = await call.reply.take_over(head.encode())
    ours, theirs = socket.socketpair()
    client = socket.socket(fileno=raw.fd)
    for sock in (ours, client):
        sock.setblocking(False)
    with ours, client:
        opcode = BINARY if call.version >= (1, 28) else TEXT
        reading = asyncio.ensure_future(_from_client(client, ours, WebsocketReader(raw.preread)))
        writing = asyncio.ensure_future(_to_client(ours, client, opcode, framed=not stream.tty))
        running = asyncio.ensure_future(stream.run(theirs.detach(), b""))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, writing):
                await finish_cleanly(task)
            ours.close()
            await finish_cleanly(running)


def _accept(call: Call) -> str:
    key = call.header("sec-websocket-key")
    try:
        valid = len(b64decode(key, validate=True)) == 16
    except (ValueError, binascii.Error):
        valid = False
    if call.request.head.upgrade != "websocket" or not valid:
        raise InvalidArgument("not a websocket handshake")
    if call.header("sec-websocket-version") != "13":
        raise InvalidArgument("unsupported websocket version")
    # SHA-1 is what the protocol says; it is no signature here.
    digest = hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()
    return b64encode(digest).decode()


def frame(opcode: int, payload: bytes) -> bytes:
    """One unmasked, final frame: what a server sends."""
    size = len(payload)
    if size < 126:
        top = bytes((0x80 | opcode, size))
    elif size < 65536:
        top = struct.pack(">BBH", 0x80 | opcode, 126, size)
    else:
        top = struct.pack(">BBQ", 0x80 | opcode, 127, size)
    return top + payload


class WebsocketReader:
    """Splits what a client sends into (opcode, payload); continuation frames keep their own opcode 0."""

    def __init__(self, preread: bytes = b"") -> None:
        self._buffer = bytearray(preread)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        self._buffer += data
        frames = []
        while (found := self._next()) is not None:
            frames.append(found)
        return frames

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if not buffer[1] & 0x80:
            raise InvalidArgument("websocket frame without a mask")
        size, at = buffer[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < at + width:
                return None
            size, at = int.from_bytes(buffer[at : at + width]), at + width
        if size > MOST_PAYLOAD:
            raise InvalidArgument("websocket frame too large")
        end = at + 4 + size
        if len(buffer) < end:
            return None
        opcode, payload = (
            buffer[0] & 0x0F,
            _unmask(bytes(buffer[at + 4 : end]), buffer[at : at + 4]),
        )
        del buffer[:end]
        return opcode, payload


def _unmask(payload: bytes, mask: bytes | bytearray) -> bytes:
    """XOR with the repeated mask, as one big number: a loop over bytes would be a thousand times slower."""
    size = len(payload)
    pad = (bytes(mask) * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(size)


async def _from_client(
    client: socket.socket, inner: socket.socket, reader: WebsocketReader
) -> None:
    """Until the client closes: payload in, pings answered. A close ends standard input only."""
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        for opcode, payload in reader.feed(data):
            if opcode == CLOSE:
                return
            if opcode == PING:
                await loop.sock_sendall(client, frame(PONG, payload))
            elif opcode != PONG:
                await loop.sock_sendall(inner, payload)
        data = await loop.sock_recv(client, 65536)
        if not data:
            return


async def _to_client(
    inner: socket.socket, client: socket.socket, opcode: int, *, framed: bool
) -> None:
    """Until the stream ends: output as messages, then a regular close."""
    loop = asyncio.get_running_loop()
    frames = FrameReader()
    while data := await loop.sock_recv(inner, 65536):
        pieces = [payload for _, payload in frames.feed(data)] if framed else [data]
        if pieces:
            await loop.sock_sendall(client, frame(opcode, b"".join(pieces)))
    await loop.sock_sendall(client, frame(CLOSE, NORMAL_CLOSE))
