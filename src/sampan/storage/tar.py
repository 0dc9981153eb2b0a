"""Tar archives as values: an entry, the limits on what we accept, and the codecs of header fields and PAX records.

Names, link targets and xattr values are bytes throughout: an archive is not obliged to be UTF-8, and what we
read we write back unchanged. Reading is in tar_reader.py, writing in tar_writer.py, the file system in layers.py.

    ┌ 512 bytes ─────────────────────────────────────────────────────────────────────────────┐
    │ name 100 │ mode 8 │ uid 8 │ gid 8 │ size 12 │ mtime 12 │ sum 8 │ type 1 │ linkname 100 │
    │ magic 8 ("ustar\\0" "00" | "ustar  \\0") │ uname 32 │ gname 32 │ major 8 │ minor 8 │     │
    │ prefix 155 (POSIX) | atime.. sparse map (GNU)                                            │
    └────────────────────────────────────────────────────────────────────────────────────────┘

Every number of the header goes through `number()` and every one of a PAX record through `decimal()`: Python's own
`int()` takes '1_0', ' 7', '+7' and Arabic digits, and a negative base-256 size made CPython's tarfile loop for
ever (CVE-2025-8194).

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format"
and "Storing Sparse Files"; star(5) for SCHILY.xattr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol
from zlib import adler32

from sampan.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
KIND_NAMES = {
    FILE: "file",
    LINK: "hard link",
    SYMLINK: "symbolic link",
    CHAR: "character device",
    BLOCK_DEVICE: "block device",
    DIRECTORY: "directory",
    FIFO: "fifo",
}

MAX_ID = 0xFFFFFFFE  # 0xFFFFFFFF is -1, which chown(2) takes as "leave it"
_MAX_OFFSET = (1 << 63) - 1
_MAX_SECONDS = 1 << 40  # some 35,000 years: beyond it every file system clamps anyhow


class Readable(Protocol):
    """All we ask of a stream. An empty answer is its end. A short answer is fine."""

    def read(self, size: int, /) -> bytes: ...


class Limits(NamedTuple):
    """How much an archive may be. Reached limits are errors, never truncation."""

    bytes: int = 1 << 40  # of the whole stream, and of all files together
    entries: int = 5_000_000
    depth: int = 512  # components of a name; tree.MAX_DEPTH, so that what comes in can go out
    name: int = 4095  # PATH_MAX less the NUL: no longer path can be opened in one call
    header: int = 1 << 20  # PAX records and GNU long names of one entry, as in Go's archive/tar
    fragments: int = 1 << 18  # pieces of a sparse file
    xattrs: int = 1024  # of one entry


DEFAULT_LIMITS = Limits()


# What Go's archive/tar, and so Docker, says of any archive that ends early or has a header that is none.
AS_CUT_OFF = "unexpected EOF"
AS_BAD_HEADER = "archive/tar: invalid tar header"


class TarError(InvalidArgument):
    """The archive is malformed, or asks for more than its limits. Names the entry where there is one."""

    def __init__(
        self,
        problem: str,
        *,
        entry: bytes | None = None,
        offset: int | None = None,
        as_docker: str = "",
    ) -> None:
        self.problem = problem
        self.entry = entry
        self.offset = offset
        where = "" if entry is None else f" entry {show(entry)}"
        if offset is not None:
            where += f" at byte {offset}"
        super().__init__(f"invalid tar{where or ' archive'}: {problem}", as_docker=as_docker)


class Entry:
    """One member of an archive, whatever dialect it came in.

    `size` is what the file will have; `stored` is what the archive holds of it (less for a sparse file, 0 for
    all that are not files); `offset` is where those bytes begin in the stream. `sparse` lists (offset, length)
    of the stored pieces in the file.
    """

    __slots__ = (
        "atime_ns",
        "gid",
        "header_offset",
        "kind",
        "linkname",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "offset",
        "size",
        "sparse",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        name: bytes,
        kind: bytes = FILE,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime_ns: int = 0,
        linkname: bytes = b"",
        major: int = 0,
        minor: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime_ns = mtime_ns
        self.atime_ns: int | None = None
        self.linkname = linkname
        self.major = major
        self.minor = minor
        self.xattrs = xattrs
        self.sparse: list[tuple[int, int]] | None = None
        self.stored = size
        self.offset = 0
        self.header_offset = 0

    def __repr__(self) -> str:
        return f"<tar {KIND_NAMES.get(self.kind, self.kind)} {show(self.name)} size={self.size} mode={self.mode:o}>"


def show(name: bytes) -> str:
    """A name for a message: quoted, short, with nothing that a terminal would obey."""
    text = name if len(name) <= 200 else name[:200] + b"..."
    return ascii(text.decode("utf-8", "backslashreplace")).replace("\\\\x", "\\x")


# -- numbers -------------------------------------------------------------------------------------------------------

_seen: dict[
    bytes, int
] = {}  # modes, owners and zeros repeat; parsing them once halves the cost of a header


def number(field: bytes) -> int:
    """An octal or base-256 field. Negative base-256 values come back negative; garbage is a ValueError."""
    value = _seen.get(field)
    if value is None:
        value = _number(field)
        if len(_seen) < 4096:
            _seen[field] = value
    return value


def _number(field: bytes) -> int:
    if (
        field[0] & 0x80
    ):  # GNU base-256: two's complement, the top bit of the first byte being the marker
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(f"not an octal number: {field!r}")
    return int(digits, 8)


def decimal(text: bytes, maximum: int = _MAX_OFFSET) -> int:
    """A plain decimal number from 0 to `maximum`, as PAX writes sizes and ids."""
    if not 0 < len(text) <= 20 or not text.isdigit():
        raise ValueError(f"not a decimal number: {text[:40]!r}")
    value = int(text)
    if value > maximum:
        raise ValueError(f"number out of range: {value}")
    return value


def timestamp(text: bytes) -> int:
    """PAX time, `[-]seconds[.fraction]`, in nanoseconds; digits beyond the ninth are cut."""
    negative = text.startswith(b"-")
    seconds, _, fraction = text[negative:].partition(b".")
    if fraction and not fraction.isdigit():
        raise ValueError(f"not a time: {text[:40]!r}")
    value = decimal(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return bound_time(-value if negative else value)


def bound_time(ns: int) -> int:
    """Times no file system can hold become the epoch, as Docker has it."""
    return ns if abs(ns) <= _MAX_SECONDS * 1_000_000_000 else 0


def checksum(block: bytes) -> int:
    """The sum of a header's bytes, its checksum field taken as spaces.

    adler32's low half is 1 + the sum modulo 65521, in C; pieces of at most 256 bytes never reach the modulus.
    """
    return (
        (adler32(block[:148]) & 0xFFFF)
        + (adler32(block[156:400]) & 0xFFFF)
        + (adler32(block[400:]) & 0xFFFF)
        + 8 * 32
        - 3
    )


def signed_checksum(block: bytes) -> int:
    """The sum that ancient tars made with signed chars."""
    return sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])


# -- PAX -----------------------------------------------------------------------------------------------------------


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (keyword, value) pairs of an extended header, in order. Malformed ones are a ValueError."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 21)
        if space < 0:
            raise ValueError("PAX record without a length")
        end = position + decimal(data[position:space])
        if end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
            raise ValueError("PAX record with a wrong length")
        keyword, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not keyword or b"\0" in keyword:
            raise ValueError("PAX record without a keyword")
        yield keyword, value
        position = end


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """One record; its length counts its own digits."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, keyword, value)


def pax_time(ns: int) -> bytes:
    """A time as PAX writes it, without trailing zeros."""
    sign = "-" if ns < 0 else ""
    seconds, fraction = divmod(abs(ns), 1_000_000_000)
    return f"{sign}{seconds}.{fraction:09d}".rstrip("0").rstrip(".").encode()


# -- sparse maps ---------------------------------------------------------------------------------------------------


def check_sparse(pieces: list[tuple[int, int]], *, size: int, stored: int) -> list[tuple[int, int]]:
    """Pieces in order, apart, inside the file and together what is stored; empty ones dropped. Else ValueError."""
    position = total = 0
    for offset, length in pieces:
        if offset < position or length < 0 or offset + length > size:
            raise ValueError("sparse map out of order or out of bounds")
        position = offset + length
        total += length
    if total != stored:
        raise ValueError(f"sparse map covers {total} bytes, {stored} are stored")
    return [piece for piece in pieces if piece[1]]
