from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable

import pytest

from sampan.errors import InvalidArgument
from sampan.storage.decompress import _ZlibDecoder, open_stream
from sampan.storage.streams import ChunkReader, HashingReader, ReadAhead

zstd = pytest.importorskip("backports.zstd")

DATA = os.urandom(300_000) + bytes(5_000_000)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstd.compress,
}


def inflate(source: object) -> bytes:
    stream = open_stream(source)  # type: ignore[arg-type]
    pieces: list[bytes] = []
    while piece := stream.read(1 << 20):
        assert len(piece) <= 1 << 20
        pieces.append(piece)
    return b"".join(pieces)


class Dribble(io.BytesIO):
    """A source that gives a few bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 7, 7))


@pytest.mark.parametrize("kind", PACKERS)
class TestEachKind:
    def test_is_recognised_and_inflated(self, kind: str) -> None:
        packed = PACKERS[kind](DATA)
        assert open_stream(io.BytesIO(packed)).kind == kind
        assert inflate(io.BytesIO(packed)) == DATA

    def test_members_in_a_row_are_one_stream(self, kind: str) -> None:
        assert (
            inflate(io.BytesIO(PACKERS[kind](b"one") + PACKERS[kind](b"") + PACKERS[kind](b"two")))
            == b"onetwo"
        )

    def test_source_in_small_pieces(self, kind: str) -> None:
        assert inflate(Dribble(PACKERS[kind](b"small" * 100) * 2)) == b"small" * 200

    def test_zeros_at_the_end_are_padding_and_all_else_is_refused(self, kind: str) -> None:
        assert inflate(io.BytesIO(PACKERS[kind](b"x") + bytes(700))) == b"x"
        with pytest.raises(InvalidArgument, match="garbage"):
            inflate(io.BytesIO(PACKERS[kind](b"x") + b"something"))

    def test_cut_short_is_an_error_wherever_it_is_cut(self, kind: str) -> None:
        packed = PACKERS[kind](os.urandom(3000))
        for length in (8, len(packed) // 2, len(packed) - 1):
            with pytest.raises(InvalidArgument, match=kind):
                inflate(io.BytesIO(packed[:length]))

    def test_bomb_does_not_fill_memory(self, kind: str) -> None:
        stream = open_stream(io.BytesIO(PACKERS[kind](bytes(8 << 20))))
        assert len(stream.read(1 << 16)) <= 1 << 16


def test_plain_data_passes_through() -> None:
    assert inflate(io.BytesIO(b"x")) == b"x"
    assert inflate(io.BytesIO(b"")) == b""
    assert inflate(Dribble(b"not compressed")) == b"not compressed"


def test_source_that_fails_fails_as_itself() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 10:
                raise OSError(5, "Input/output error")
            return super().read(8)

    with pytest.raises(OSError, match="Input/output"):
        inflate(Failing(gzip.compress(DATA)))


def test_zlib_stands_in_where_isal_is_missing() -> None:
    packed = gzip.compress(DATA)
    decoder = _ZlibDecoder()
    found = b""
    position = 0
    while not decoder.eof:
        piece = b""
        if decoder.needs_input:
            piece, position = packed[position : position + 1000], position + 1000
        found += decoder.decompress(piece, 4096)
    assert found == DATA


class TestStages:
    def test_hashing_is_of_everything_read(self) -> None:
        import hashlib

        for data in (b"small", DATA):
            with HashingReader(io.BytesIO(data)) as stream:
                while stream.read(1 << 17):
                    pass
                assert stream.digest() == "sha256:" + hashlib.sha256(data).hexdigest()
                assert stream.count == len(data)

    def test_reading_ahead_gives_the_same_bytes(self) -> None:
        with ReadAhead(io.BytesIO(DATA), 1000) as stream:
            pieces = []
            while piece := stream.read(333):
                pieces.append(piece)
        assert b"".join(pieces) == DATA
        assert stream.read(1) == b""

    def test_reading_ahead_hands_errors_on(self) -> None:
        class Failing:
            def read(self, size: int, /) -> bytes:
                raise OSError(5, "Input/output error")

        with ReadAhead(Failing()) as stream, pytest.raises(OSError, match="Input/output"):
            stream.read(1)

    def test_closing_early_lets_the_thread_go(self) -> None:
        stream = ReadAhead(io.BytesIO(bytes(50 << 20)))
        stream.read(10)
        stream.close()
        stream._thread.join(5)
        assert not stream._thread.is_alive()

    def test_chunks_as_a_stream(self) -> None:
        stream = ChunkReader([b"ab", b"", b"cde"])
        assert [stream.read(2) for _ in range(4)] == [b"ab", b"cd", b"e", b""]
