"""The body of an HTTP/1 request: how many of the next bytes are its own. No I/O.

A framing is fed the bytes that arrived, gives back the payload in them, and keeps what lies beyond its
end in `rest` (a pipelined request, or the first bytes of a hijacked stream).

    framing = FixedFraming(11) | ChunkedFraming()
    payload = framing.feed(data); if framing.done: framing.rest

Source: RFC 9112 section 7.1 (chunked coding). Chunk extensions and trailers are read and dropped, both
within limits.
"""

from __future__ import annotations

from sampan.api.http_head import CHUNKED, MAX_HEAD_BYTES, BadRequest

MAX_CHUNK_LINE = 4096
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class FixedFraming:
    """A body whose length the head announced."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        payload = data[: self._left] if len(data) > self._left else data
        self._left -= len(payload)
        if self._left == 0:
            self.done = True
            self.rest = data[len(payload) :]
        return [payload] if payload else []


class ChunkedFraming:
    """A body in chunks, each after a line with its length in hexadecimal.

    States: a size line -> that many bytes -> CRLF -> a size line ...; after size 0, trailer lines up to
    an empty one.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0  # bytes of the chunk still to come
        self._after_data = False  # the CRLF that ends a chunk is due
        self._trailer = False
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        payload: list[bytes] = []
        if not self._buffer and self._left >= len(data):  # the middle of a big chunk: no copy
            self._took(len(data))
            return [data] if data else []
        self._buffer += data
        while not self.done and self._step(payload):
            pass
        return payload

    def _took(self, count: int) -> None:
        self._left -= count
        if count and self._left == 0:
            self._after_data = True

    def _step(self, payload: list[bytes]) -> bool:
        """One state's worth of the buffer; False when it needs more bytes."""
        if self._left:
            return self._take_data(payload)
        if self._after_data:
            return self._take_crlf()
        line = self._take_line()
        if line is None:
            return False
        if self._trailer:
            self._take_trailer(line)
        else:
            self._take_size(line)
        return True

    def _take_data(self, payload: list[bytes]) -> bool:
        piece = bytes(self._buffer[: self._left])
        if not piece:
            return False
        del self._buffer[: len(piece)]
        self._took(len(piece))
        payload.append(piece)
        return True

    def _take_crlf(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer[:2] != b"\r\n":
            raise BadRequest("malformed chunked encoding")
        del self._buffer[:2]
        self._after_data = False
        return True

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", 0, MAX_CHUNK_LINE)
        if end < 0:
            if len(self._buffer) >= MAX_CHUNK_LINE:
                raise BadRequest("chunk line too long")
            return None
        if end == 0 or self._buffer[end - 1] != 0x0D:
            raise BadRequest("malformed chunked encoding")
        line = bytes(self._buffer[: end - 1])
        del self._buffer[: end + 1]
        return line

    def _take_size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > 15 or not _HEX_DIGITS.issuperset(digits):
            raise BadRequest("invalid chunk size")
        self._left = int(digits, 16)
        self._trailer = self._left == 0

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise BadRequest("trailer too large", 431)
        if not line:
            self.done = True
            self.rest = bytes(self._buffer)
            self._buffer.clear()


Framing = FixedFraming | ChunkedFraming


def framing_of(body_length: int) -> Framing:
    return ChunkedFraming() if body_length == CHUNKED else FixedFraming(body_length)
