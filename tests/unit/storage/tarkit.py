"""Makes tar archives byte by byte, also such as no tool would write."""

from __future__ import annotations

import io
from collections.abc import Iterable

from sampan.storage.tar import (
    BLOCK,
    DIRECTORY,
    FILE,
    LINK,
    SYMLINK,
    Entry,
    checksum,
    pax_record,
)
from sampan.storage.tar_writer import END, header, padded


def file(name: bytes, data: bytes = b"", **facts: object) -> bytes:
    return header(Entry(name, FILE, size=len(data), **facts)) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755) -> bytes:
    return header(Entry(name, DIRECTORY, mode=mode))


def symlink(name: bytes, target: bytes) -> bytes:
    return header(Entry(name, SYMLINK, linkname=target, mode=0o777))


def hardlink(name: bytes, target: bytes) -> bytes:
    return header(Entry(name, LINK, linkname=target))


def raw(
    name: bytes = b"x",
    *,
    kind: bytes = b"0",
    size: bytes = b"00000000000\0",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    magic: bytes = b"ustar\x0000",
    linkname: bytes = b"",
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum_off_by: int = 0,
    data: bytes = b"",
) -> bytes:
    """A header whose fields hold exactly these bytes, with a right checksum."""
    block = bytearray(BLOCK)

    def put(at: int, length: int, value: bytes) -> None:
        block[at : at + length] = value[:length].ljust(length, b"\0")

    put(0, 100, name)
    put(100, 8, mode)
    put(108, 8, uid)
    put(116, 8, b"0000000\0")
    put(124, 12, size)
    put(136, 12, mtime)
    put(156, 1, kind)
    put(157, 100, linkname)
    put(257, 8, magic)
    put(345, 155, prefix)
    if tail:
        block[BLOCK - len(tail) :] = tail
    block[148:156] = b"%06o\0 " % (checksum(bytes(block)) + checksum_off_by)
    return bytes(block) + padded(data)


def octal(value: int) -> bytes:
    return b"%011o\0" % value


def base256(value: int, length: int = 12) -> bytes:
    data = bytearray(value.to_bytes(length, "big", signed=True))
    data[0] |= 0x80
    return bytes(data)


def pax(records: Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    data = b"".join(pax_record(key, value) for key, value in records)
    return raw(b"PaxHeaders/x", kind=kind, size=octal(len(data)), data=data)


def pax_raw(data: bytes, kind: bytes = b"x") -> bytes:
    return raw(b"PaxHeaders/x", kind=kind, size=octal(len(data)), data=data)


def stream(*parts: bytes, end: bool = True) -> io.BytesIO:
    return io.BytesIO(b"".join(parts) + (END if end else b""))
