"""Writes tar archives: ustar where the entry fits in it, PAX records for what does not. The same input gives the
same bytes, always: no clock, no host names, no process ids.

Written for Go's archive/tar, GNU tar and libarchive to read; sizes, owners, times, names and xattrs come out exactly
(sub-second times as a PAX `mtime`). Names that are not UTF-8 are announced by `hdrcharset=BINARY` (POSIX.1-2017 pax).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sampan.storage.tar import (
    BLOCK,
    DIRECTORY,
    FILE,
    Entry,
    checksum,
    pax_record,
    pax_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CHUNK = 1 << 20
_OCTAL_7, _OCTAL_11 = 0o7777777, 0o77777777777
END = bytes(2 * BLOCK)


def header(entry: Entry) -> bytes:
    """The blocks in front of an entry's data: PAX header if needed, then the ustar header."""
    name = entry.name if entry.kind != DIRECTORY or entry.name.endswith(b"/") else entry.name + b"/"
    records: list[tuple[bytes, bytes]] = []
    prefix, short = _split_name(name)
    if short is None:
        records.append((b"path", name))
        prefix, short = b"", _ascii_tail(name)
    linkname = entry.linkname
    if len(linkname) > 100 or not linkname.isascii():
        records.append((b"linkpath", linkname))
        linkname = _ascii_tail(linkname)
    size = entry.stored if entry.kind == FILE else 0
    if size > _OCTAL_11:
        records.append((b"size", b"%d" % size))
    for keyword, value in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if value > _OCTAL_7:
            records.append((keyword, b"%d" % value))
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds <= _OCTAL_11:
        records.append((b"mtime", pax_time(entry.mtime_ns)))
    if entry.xattrs:
        records += [(b"SCHILY.xattr." + key, value) for key, value in sorted(entry.xattrs.items())]
    body = _ustar(
        short,
        prefix,
        linkname,
        entry.kind,
        entry.mode,
        (entry.uid, entry.gid),
        (size, seconds),
        (entry.major, entry.minor),
    )
    return _pax_blocks(name, records) + body if records else body


def sparse_header(entry: Entry) -> bytes:
    """The blocks in front of a sparse file's data, in GNU's PAX form 1.0: map included."""
    pieces = entry.sparse or []
    lines = [b"%d\n" % len(pieces), *(b"%d\n%d\n" % piece for piece in pieces)]
    table = padded(b"".join(lines))
    plain = Entry(
        entry.name,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        xattrs=entry.xattrs,
    )
    plain.name = b"GNUSparseFile.0/" + _ascii_tail(entry.name)
    plain.size = plain.stored = len(table) + entry.stored
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", entry.name),
        (b"GNU.sparse.realsize", b"%d" % entry.size),
    ]
    records += [
        (b"SCHILY.xattr." + key, value) for key, value in sorted((entry.xattrs or {}).items())
    ]
    for keyword, value in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if value > _OCTAL_7:
            records.append((keyword, b"%d" % value))
    seconds, fraction = divmod(entry.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds <= _OCTAL_11:
        records.append((b"mtime", pax_time(entry.mtime_ns)))
    if plain.stored > _OCTAL_11:
        records.append((b"size", b"%d" % plain.stored))
    body = _ustar(
        plain.name,
        b"",
        b"",
        FILE,
        entry.mode,
        (entry.uid, entry.gid),
        (plain.stored, seconds),
        (0, 0),
    )
    return _pax_blocks(entry.name, records) + body + table


def padded(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def file_data(fd: int, entry: Entry) -> Iterator[bytes]:
    """Exactly the bytes the header promised, and the padding.

    A file that shrank meanwhile is filled with zeros, one that grew is cut: a live container's files change while
    they are read, and the archive must stay readable.
    """
    for offset, length in entry.sparse if entry.sparse is not None else ((0, entry.stored),):
        end = offset + length
        while offset < end:
            chunk = os.pread(fd, min(CHUNK, end - offset), offset)
            if not chunk:
                chunk = bytes(min(CHUNK, end - offset))
            offset += len(chunk)
            yield chunk
    if entry.stored % BLOCK:
        yield bytes(-entry.stored % BLOCK)


class TarWriter:
    """Writes entries to a callable, one after the other; `close()` ends the archive."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def add(self, entry: Entry, data: bytes | Iterable[bytes] = b"") -> None:
        """An entry and its data, whose length must be `entry.size`."""
        chunks = (data,) if isinstance(data, bytes) else data
        self._write(header(entry))
        length = 0
        for chunk in chunks:
            self._write(chunk)
            length += len(chunk)
        if entry.kind == FILE:
            if length != entry.size:
                raise ValueError(f"{entry!r} got {length} bytes")
            if length % BLOCK:
                self._write(bytes(-length % BLOCK))

    def close(self) -> None:
        self._write(END)


def _split_name(name: bytes) -> tuple[bytes, bytes | None]:
    """(prefix, name) as ustar has them, or (b"", None) where they do not fit."""
    if not name.isascii():
        return b"", None
    if len(name) <= 100:
        return b"", name
    # the slash between both parts is not stored; a trailing one belongs to the name
    cut = name.rfind(b"/", 0, min(156, len(name) - 1))
    if cut <= 0 or len(name) - cut - 1 > 100:
        return b"", None
    return name[:cut], name[cut + 1 :]


def _ascii_tail(name: bytes) -> bytes:
    """What readers that know no PAX will see."""
    return name[-100:].lstrip(b"/").decode("ascii", "replace").encode("ascii", "replace")[:100]


def _ustar(
    name: bytes,
    prefix: bytes,
    linkname: bytes,
    kind: bytes,
    mode: int,
    owner: tuple[int, int],
    size_and_seconds: tuple[int, int],
    device: tuple[int, int],
) -> bytes:
    uid, gid = (value if value <= _OCTAL_7 else 0 for value in owner)
    size, seconds = (value if 0 <= value <= _OCTAL_11 else 0 for value in size_and_seconds)
    block = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\00000%b%07o\0%07o\0%b" % (
        name.ljust(100, b"\0"),
        mode & 0o7777,
        uid,
        gid,
        size,
        seconds,
        kind,
        linkname.ljust(100, b"\0"),
        bytes(64),
        device[0],
        device[1],
        prefix.ljust(167, b"\0"),
    )
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def _pax_blocks(name: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    if any(
        not _is_utf8(value)
        for keyword, value in records
        if keyword in (b"path", b"linkpath", b"GNU.sparse.name")
    ):
        records = [(b"hdrcharset", b"BINARY"), *records]
    data = b"".join(pax_record(keyword, value) for keyword, value in records)
    directory, _, base = name.rstrip(b"/").rpartition(b"/")
    title = _ascii_tail((directory + b"/" if directory else b"") + b"PaxHeaders.0/" + base)
    return _ustar(title, b"", b"", b"x", 0o644, (0, 0), (len(data), 0), (0, 0)) + padded(data)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
