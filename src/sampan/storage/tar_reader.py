"""Reads tar archives from a stream: ustar, GNU (long names, long links, sparse), PAX (all sparse forms), V7, star.

    stream ──► buffer ──► header ──► extensions (x, L, K: applied to the next) ──► Entry ──► data

    for entry in TarReader(stream, limits):
        reader.copy_to(fd)      # or chunks(); what is left unread is skipped

One pass, never a seek (unless the stream has `skip`), memory bounded by the buffer and `Limits.header`. Every
field is checked before it is used; a bad one raises `TarError`, which names the entry and the byte.

Where dialects differ we do what Go's archive/tar does, since it is what wrote and will read nearly every layer:
links, devices and directories carry no data whatever their size says; a file whose name ends in a slash is a
directory; global PAX headers are checked and ignored (Docker does, and one archive must not mean two things).
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING

from sampan.storage.tar import (
    AS_BAD_HEADER,
    AS_CUT_OFF,
    BLOCK,
    BLOCK_DEVICE,
    CHAR,
    DEFAULT_LIMITS,
    DIRECTORY,
    FIFO,
    FILE,
    KIND_NAMES,
    LINK,
    MAX_ID,
    SYMLINK,
    ZERO_BLOCK,
    Entry,
    Limits,
    Readable,
    TarError,
    bound_time,
    check_sparse,
    checksum,
    decimal,
    number,
    pax_records,
    show,
    signed_checksum,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 20
_HEADER = Struct("100s8s8s8s12s12s8s1s100s8s64x8s8s155s12x")
_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \0"
# type flags to kinds; "7" is a contiguous file, which POSIX lets us treat as a plain one
_KINDS = {b"\0": FILE, b"7": FILE, **{kind: kind for kind in KIND_NAMES}}
_DEVICES = (CHAR, BLOCK_DEVICE)
_NAMED = frozenset((b"path", b"linkpath"))
_SPARSE_PAIRS = {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}
_XATTR = b"SCHILY.xattr."


class TarReader:
    """Iterates over the entries of one archive. Not for several threads."""

    def __init__(self, stream: Readable, limits: Limits | None = None) -> None:
        self._stream = stream
        self._limits = limits or DEFAULT_LIMITS
        self._skip = getattr(stream, "skip", None)
        self._buffer = b""
        self._view = memoryview(b"")
        self._position = 0  # in the buffer
        self._base = 0  # of the buffer in the stream
        self._remaining = 0  # stored bytes of the current entry not yet read
        self._padding = 0
        self._current: Entry | None = None
        self._ended = False
        self.entries = 0

    # -- entries -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, or None at the end of the archive."""
        if self._ended:
            return None
        self._leave_entry()
        pending = _Pending()
        while True:
            start = self._base + self._position
            block = self._header_block(pending)
            if block is None:
                self._ended = True
                return None
            try:
                entry = self._parse(block, start, pending)
            except ValueError as error:
                raise TarError(
                    str(error),
                    entry=pending.name or _name_of(block),
                    offset=start,
                    as_docker=AS_BAD_HEADER,
                ) from None
            if entry is not None:
                break
        self.entries += 1
        if self.entries > self._limits.entries:
            raise TarError(f"more than {self._limits.entries} entries", entry=entry.name)
        self._current = entry
        return entry

    def drain(self) -> int:
        """Read the stream to its very end (padding, garbage), so that who hashes it has seen all; returns its length."""
        self._leave_entry()
        self._ended = True
        self._position = len(self._buffer)
        while self._more():
            self._position = len(self._buffer)
        return self._base + self._position

    # -- data ----------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[memoryview]:
        """The stored bytes of the current entry, each piece valid until the next is asked for."""
        while self._remaining:
            yield self._piece()

    def copy_to(self, fd: int) -> None:
        """Write the stored bytes of the current entry at the descriptor's position."""
        while self._remaining:
            piece = self._piece()
            while (done := os.write(fd, piece)) < len(piece):
                piece = piece[done:]

    def read(self, limit: int) -> bytes:
        """All stored bytes of the current entry, at most `limit` (else TarError)."""
        if self._remaining > limit:
            raise TarError(
                f"larger than {limit} bytes", entry=self._current.name if self._current else None
            )
        return b"".join(bytes(piece) for piece in self.chunks())

    def data_reader(self) -> EntryStream:
        """The stored bytes of the current entry as a `Readable`."""
        return EntryStream(self)

    def piece(self, size: int) -> bytes:
        """Up to `size` next stored bytes of the current entry; empty at its end."""
        return bytes(self._piece(size)) if self._remaining else b""

    def _piece(self, size: int = CHUNK) -> memoryview:
        available = len(self._buffer) - self._position
        if not available:
            if not self._more():
                raise self._cut_off()
            available = len(self._buffer) - self._position
        length = min(available, self._remaining, size)
        piece = self._view[self._position : self._position + length]
        self._position += length
        self._remaining -= length
        return piece

    # -- the buffer ----------------------------------------------------------------------------------------------

    def _more(self) -> bool:
        """Replace the spent part of the buffer by the next chunk of the stream; False at its end."""
        chunk = self._stream.read(CHUNK)
        if not chunk:
            return False
        left = self._buffer[self._position :]
        self._base += self._position
        self._position = 0
        self._buffer = left + chunk if left else chunk
        self._view = memoryview(self._buffer)
        if self._base > self._limits.bytes:
            raise TarError(
                f"more than {self._limits.bytes} bytes",
                entry=self._current.name if self._current else None,
            )
        return True

    def _exactly(self, size: int, what: str) -> bytes:
        while len(self._buffer) - self._position < size:
            if not self._more():
                raise TarError(
                    f"unexpected end of the archive in {what}",
                    offset=self._base + self._position,
                    as_docker=AS_CUT_OFF,
                )
        data = self._buffer[self._position : self._position + size]
        self._position += size
        return data

    def _leave_entry(self) -> None:
        """Skip what was not read of the entry, and its padding."""
        left = self._remaining + self._padding
        self._remaining = self._padding = 0
        while left:
            available = len(self._buffer) - self._position
            if available >= left:
                self._position += left
                return
            self._position += available
            left -= available
            if self._skip is not None and left > CHUNK:
                self._skip(
                    left - BLOCK
                )  # the last block is read, so that a file cut short is noticed
                self._base += left - BLOCK
                left = BLOCK
            if not self._more():
                raise self._cut_off()

    def _cut_off(self) -> TarError:
        return TarError(
            "unexpected end of the archive",
            entry=self._current.name if self._current else None,
            as_docker=AS_CUT_OFF,
        )

    # -- headers -------------------------------------------------------------------------------------------------

    def _header_block(self, pending: _Pending) -> bytes | None:
        """The next header, or None at the end: two zero blocks, one at the very end, or the stream's end."""
        if not self._at_least(BLOCK):
            if self._position == len(self._buffer) and not pending.started:
                return None
            raise TarError(
                "unexpected end of the archive in a header",
                offset=self._base + self._position,
                as_docker=AS_CUT_OFF,
            )
        block = self._buffer[self._position : self._position + BLOCK]
        self._position += BLOCK
        if block != ZERO_BLOCK:
            return block
        if pending.started:
            raise TarError("extended header without an entry", offset=self._base + self._position)
        if not self._at_least(BLOCK):
            return None
        if self._buffer[self._position : self._position + BLOCK] != ZERO_BLOCK:
            raise TarError("data after a zero block", offset=self._base + self._position)
        self._position += BLOCK
        return None

    def _at_least(self, size: int) -> bool:
        while len(self._buffer) - self._position < size:
            if not self._more():
                return False
        return True

    def _parse(self, block: bytes, start: int, pending: _Pending) -> Entry | None:
        """One header: an entry, or None where it only extends the next one. ValueError says what is wrong."""
        (name, mode, uid, gid, size, mtime, total, flag, linkname, magic, major, minor, prefix) = (
            _HEADER.unpack(block)
        )
        if number(total) != checksum(block) and number(total) != signed_checksum(block):
            raise ValueError("wrong header checksum")
        stored = number(size)
        if not 0 <= stored <= self._limits.bytes:
            raise ValueError(f"size {stored} is out of range")
        if flag in b"xgLKX":
            self._extension(flag, stored, pending)
            return None

        kind = FILE if flag == b"S" else _KINDS.get(flag)
        if kind is None:
            raise ValueError(f"unhandled tar entry type {flag!r}")
        entry = Entry(name.split(b"\0", 1)[0], kind)
        if magic == _POSIX_MAGIC and prefix[0]:
            # star keeps its times in the last 24 bytes of the prefix and signs with "tar\0" at the very end
            prefix = prefix[:131] if block[508:] == b"tar\0" else prefix
            entry.name = prefix.split(b"\0", 1)[0] + b"/" + entry.name
        entry.header_offset = start
        entry.linkname = linkname.split(b"\0", 1)[0]
        entry.mode = number(mode) & 0o7777
        entry.uid = number(uid)
        entry.gid = number(gid)
        entry.mtime_ns = bound_time(number(mtime) * 1_000_000_000)
        if kind in _DEVICES:
            entry.major, entry.minor = number(major), number(minor)
        entry.size = entry.stored = stored
        if pending.started:
            pending.apply(entry)
        if entry.kind == FILE and entry.name.endswith(b"/"):
            entry.kind = DIRECTORY
        if entry.kind != FILE:
            entry.size = entry.stored = 0
        self._check(entry)

        self._remaining = entry.stored
        self._padding = -entry.stored % BLOCK
        if flag == b"S":
            self._old_gnu_sparse(block, entry)
        elif pending.sparse:
            self._pax_sparse(entry, pending)
        entry.offset = self._base + self._position
        return entry

    def _check(self, entry: Entry) -> None:
        if not 0 <= entry.uid <= MAX_ID or not 0 <= entry.gid <= MAX_ID:
            raise ValueError(f"owner {entry.uid}:{entry.gid} is out of range")
        if len(entry.name) > self._limits.name or len(entry.linkname) > self._limits.name:
            raise ValueError(f"name is longer than {self._limits.name} bytes")
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise ValueError(f"device {entry.major}:{entry.minor} is out of range")
        if not 0 <= entry.size <= self._limits.bytes:
            raise ValueError(f"size {entry.size} is out of range")

    def _extension(self, flag: bytes, size: int, pending: _Pending) -> None:
        """A header whose data describes the entry that follows."""
        pending.started = True
        pending.bytes += size
        if pending.bytes > self._limits.header:
            raise ValueError(f"extended headers of more than {self._limits.header} bytes")
        data = self._exactly(size + -size % BLOCK, "an extended header")[:size]
        if flag == b"L":
            pending.name = data.split(b"\0", 1)[0]
        elif flag == b"K":
            pending.linkname = data.split(b"\0", 1)[0]
        elif flag == b"g":
            for _ in pax_records(data):
                pass  # only whether they are well-formed
            pending.started = (
                pending.name is not None or pending.linkname is not None or bool(pending.pax)
            )
        else:
            pending.add_pax(data, self._limits)

    # -- sparse files --------------------------------------------------------------------------------------------

    def _old_gnu_sparse(self, block: bytes, entry: Entry) -> None:
        """Four pieces in the header, then blocks of 21 (GNU tar manual, "Old GNU Format")."""
        pieces: list[tuple[int, int]] = []
        _add_pieces(pieces, block[386:482])
        more = block[482]
        while more:
            extra = self._exactly(BLOCK, "a sparse map")
            _add_pieces(pieces, extra[:504])
            more = extra[504]
            if len(pieces) > self._limits.fragments:
                raise ValueError(f"more than {self._limits.fragments} pieces in a sparse file")
        entry.size = number(block[483:495])
        if not 0 <= entry.size <= self._limits.bytes:
            raise ValueError(f"size {entry.size} is out of range")
        entry.sparse = check_sparse(pieces, size=entry.size, stored=entry.stored)

    def _pax_sparse(self, entry: Entry, pending: _Pending) -> None:
        """Forms 0.0 and 0.1 keep the map in PAX records, 1.0 in front of the data."""
        sparse = pending.sparse
        if entry.kind != FILE:
            raise ValueError(f"sparse map on a {KIND_NAMES[entry.kind]}")
        size_text = sparse.get(b"GNU.sparse.realsize", sparse.get(b"GNU.sparse.size"))
        if size_text is None:
            raise ValueError("sparse file without a size")
        entry.size = decimal(size_text, self._limits.bytes)
        if sparse.get(b"GNU.sparse.major") == b"1" and sparse.get(b"GNU.sparse.minor") == b"0":
            numbers = self._sparse_map_in_data()
            entry.stored = self._remaining
        elif b"GNU.sparse.map" in sparse:
            numbers = [decimal(text) for text in sparse[b"GNU.sparse.map"].split(b",") if text]
        else:
            numbers = pending.sparse_numbers
        if len(numbers) % 2:
            raise ValueError("sparse map with an odd number of values")
        if len(numbers) > 2 * self._limits.fragments:
            raise ValueError(f"more than {self._limits.fragments} pieces in a sparse file")
        pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        entry.sparse = check_sparse(pieces, size=entry.size, stored=entry.stored)

    def _sparse_map_in_data(self) -> list[int]:
        """Form 1.0: count, then offset and length of each piece, a number a line, filled up to whole blocks."""
        text = b""
        wanted: int | None = None
        lines: list[bytes] = []
        while wanted is None or len(lines) < wanted:
            if self._remaining < BLOCK:
                raise ValueError("sparse map cut short")
            text += self._exactly(BLOCK, "a sparse map")
            self._remaining -= BLOCK
            *complete, text = text.split(b"\n")
            lines += complete
            if wanted is None and lines:
                wanted = 1 + 2 * decimal(lines[0], self._limits.fragments)
            if len(text) > 20 and (wanted is None or len(lines) < wanted):
                raise ValueError("sparse map with a number too long")
        return [decimal(line) for line in lines[1:wanted]]


class EntryStream:
    """The data of one entry as a stream; valid while the reader stands on that entry."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader

    def read(self, size: int, /) -> bytes:
        return self._reader.piece(size)


class FileStream:
    """A regular file as a stream that can skip; does not own the descriptor."""

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, size, self._offset)
        self._offset += len(data)
        return data

    def skip(self, size: int) -> None:
        self._offset += size


class _Pending:
    """What extended headers said about the entry to come."""

    __slots__ = ("bytes", "linkname", "name", "pax", "sparse", "sparse_numbers", "started")

    def __init__(self) -> None:
        self.started = False
        self.bytes = 0
        self.name: bytes | None = None
        self.linkname: bytes | None = None
        self.pax: dict[bytes, bytes] = {}
        self.sparse: dict[bytes, bytes] = {}
        self.sparse_numbers: list[int] = []

    def add_pax(self, data: bytes, limits: Limits) -> None:
        for keyword, value in pax_records(data):
            if keyword in _SPARSE_PAIRS:
                if len(self.sparse_numbers) >= 2 * limits.fragments:
                    raise ValueError(f"more than {limits.fragments} pieces in a sparse file")
                expected = (
                    b"GNU.sparse.numbytes" if len(self.sparse_numbers) % 2 else b"GNU.sparse.offset"
                )
                if keyword != expected:
                    raise ValueError("sparse map out of order")
                self.sparse_numbers.append(decimal(value))
                self.sparse.setdefault(keyword, b"")
            elif keyword.startswith(b"GNU.sparse."):
                self.sparse[keyword] = value
            else:
                if keyword in _NAMED and b"\0" in value:
                    raise ValueError(f"NUL in {keyword.decode()}")
                self.pax[keyword] = value
        if len(self.pax) > limits.xattrs:
            raise ValueError(f"more than {limits.xattrs} extended attributes")

    def apply(self, entry: Entry) -> None:
        """GNU long names first, PAX over them, as GNU tar and Go do. An empty PAX value means: as if not there."""
        if self.name is not None:
            entry.name = self.name
        if self.linkname is not None:
            entry.linkname = self.linkname
        xattrs: dict[bytes, bytes] = {}
        for keyword, value in self.pax.items():
            if keyword.startswith(_XATTR):
                if keyword == _XATTR or len(keyword) - len(_XATTR) > 255 or len(value) > 65536:
                    raise ValueError(f"extended attribute {show(keyword)} out of range")
                xattrs[keyword[len(_XATTR) :]] = value
            elif value:
                setter = _SETTERS.get(keyword)
                if setter is not None:
                    setter(entry, value)
        if b"GNU.sparse.name" in self.sparse:
            entry.name = self.sparse[b"GNU.sparse.name"]
            if b"\0" in entry.name:
                raise ValueError("NUL in GNU.sparse.name")
        entry.xattrs = xattrs or None


def _set_path(entry: Entry, value: bytes) -> None:
    entry.name = value


def _set_linkpath(entry: Entry, value: bytes) -> None:
    entry.linkname = value


def _set_size(entry: Entry, value: bytes) -> None:
    entry.size = entry.stored = decimal(value)


def _set_uid(entry: Entry, value: bytes) -> None:
    entry.uid = decimal(value)


def _set_gid(entry: Entry, value: bytes) -> None:
    entry.gid = decimal(value)


def _set_mtime(entry: Entry, value: bytes) -> None:
    entry.mtime_ns = timestamp(value)


def _set_atime(entry: Entry, value: bytes) -> None:
    entry.atime_ns = timestamp(value)


def _set_major(entry: Entry, value: bytes) -> None:
    if entry.kind in _DEVICES:
        entry.major = decimal(value)


def _set_minor(entry: Entry, value: bytes) -> None:
    if entry.kind in _DEVICES:
        entry.minor = decimal(value)


_SETTERS = {
    b"path": _set_path,
    b"linkpath": _set_linkpath,
    b"size": _set_size,
    b"uid": _set_uid,
    b"gid": _set_gid,
    b"mtime": _set_mtime,
    b"atime": _set_atime,
    b"SCHILY.devmajor": _set_major,
    b"SCHILY.devminor": _set_minor,
}


def _add_pieces(pieces: list[tuple[int, int]], table: bytes) -> None:
    for start in range(0, len(table), 24):
        if table[start] == 0:
            return
        offset, length = number(table[start : start + 12]), number(table[start + 12 : start + 24])
        if offset < 0 or length < 0:
            raise ValueError("negative number in a sparse map")
        pieces.append((offset, length))


def _name_of(block: bytes) -> bytes:
    return block[:100].split(b"\0", 1)[0]


__all__ = ["FIFO", "LINK", "SYMLINK", "EntryStream", "FileStream", "TarReader"]
