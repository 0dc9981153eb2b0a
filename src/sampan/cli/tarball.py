"""Tar streams on the client's side: what `build` and `cp` send is made here, what `cp` receives is unpacked here.

The archive that comes out of a container was written by whoever controls the container. It is unpacked by descriptor:
every directory on the way is opened below the one before it without following links, so that neither a name with
`..` nor a link planted by an earlier entry leads out of the destination (docker's CVE-2018-15664 and its kin).

Format: POSIX ustar, with pax records for what does not fit (long names, large files); GNU long names are read too.
"""

from __future__ import annotations

import os
import stat

from sampan.cli.failures import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BLOCK = 512
CHUNK = 1 << 18
MOST_PAX = 1 << 20
REGULAR, HARD_LINK, SYMBOLIC, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
)


class Entry:
    """A header: what a member is, without its data."""

    __slots__ = ("gid", "kind", "link", "major", "minor", "mode", "mtime", "name", "size", "uid")

    def __init__(self, name: str, kind: str, *, mode: int = 0o644, size: int = 0) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.size = size
        self.mtime = 0.0
        self.uid = self.gid = self.major = self.minor = 0
        self.link = ""


# -- writing ------------------------------------------------------------------------------------------------------


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def _fits(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) of ustar's 155 and 100 bytes, or None."""
    if len(name) <= 100:
        return b"", name
    cut = name[:156].rfind(b"/")
    if 0 < cut <= 155 and 0 < len(name) - cut - 1 <= 100:
        return name[:cut], name[cut + 1 :]
    return None


def header(entry: Entry) -> bytes:
    """The entry's blocks: pax records first where ustar is too small."""
    name = entry.name.encode("utf-8", "surrogateescape")
    link = entry.link.encode("utf-8", "surrogateescape")
    records = b""
    split = _fits(name)
    if split is None:
        records += _record(b"path", name)
        split = b"", name[:100]
    if len(link) > 100:
        records += _record(b"linkpath", link)
        link = link[:100]
    for key, value, most in (
        (b"size", entry.size, 1 << 33),
        (b"uid", entry.uid, 1 << 21),
        (b"gid", entry.gid, 1 << 21),
    ):
        if value >= most:
            records += _record(key, b"%d" % value)
    blocks = b""
    if records:
        blocks = _block(
            (b"", b"PaxHeaders/x"), b"x", 0o644, 0, 0, len(records), 0, b"", 0, 0
        ) + _padded(records)
    return blocks + _block(
        split, entry.kind.encode(), entry.mode, entry.uid % (1 << 21), entry.gid % (1 << 21),
        entry.size if entry.size < 1 << 33 else 0, int(entry.mtime), link, entry.major, entry.minor,
    )  # fmt: skip


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    if len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % BLOCK)


def _block(
    split: tuple[bytes, bytes], kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes,
    major: int, minor: int,
) -> bytes:  # fmt: skip
    prefix, name = split
    fields = (
        name.ljust(100, b"\0"), _octal(mode & 0o7777, 8), _octal(uid, 8), _octal(gid, 8), _octal(size, 12),
        _octal(max(mtime, 0), 12), b"        ", kind, link.ljust(100, b"\0"), b"ustar\x0000", b"\0" * 64,
        _octal(major, 8), _octal(minor, 8), prefix.ljust(155, b"\0"), b"\0" * 12,
    )  # fmt: skip
    block = bytearray(b"".join(fields))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry_of(path: str, name: str) -> Entry:
    """The header of a file of ours, stored under `name`."""
    facts = os.stat(path, follow_symlinks=False)
    kinds = (
        (stat.S_ISREG, REGULAR), (stat.S_ISDIR, DIRECTORY), (stat.S_ISLNK, SYMBOLIC), (stat.S_ISCHR, CHARACTER),
        (stat.S_ISBLK, BLOCK_DEVICE), (stat.S_ISFIFO, FIFO),
    )  # fmt: skip
    kind = next((letter for test, letter in kinds if test(facts.st_mode)), "")
    entry = Entry(name + "/" if kind == DIRECTORY and not name.endswith("/") else name, kind)
    entry.mode, entry.uid, entry.gid = stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid
    entry.mtime = facts.st_mtime
    if kind == REGULAR:
        entry.size = facts.st_size
    elif kind == SYMBOLIC:
        entry.link = os.readlink(path)
    elif kind in (CHARACTER, BLOCK_DEVICE):
        entry.major, entry.minor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
    return entry


def pack(path: str, name: str) -> Iterator[bytes]:
    """The tree at `path` as an archive whose members begin with `name`; sockets are left out."""
    yield from members(path, name, None, {})
    yield b"\0" * (2 * BLOCK)


def members(
    path: str,
    name: str,
    skip: Callable[[str, bool], bool] | None,
    links: dict[tuple[int, int], str],
    *,
    owner: tuple[int, int] | None = None,
) -> Iterator[bytes]:
    """The members alone. `skip(name, is a directory)` leaves out; `links` remembers files with several names."""
    entry = entry_of(path, name)
    if owner is not None:
        entry.uid, entry.gid = owner
    if not entry.kind:
        return
    if entry.kind == REGULAR:
        yield from _pack_file(path, entry, links)
        return
    yield header(entry)
    if entry.kind != DIRECTORY:
        return
    for child in sorted(os.listdir(path)):
        below = f"{name.rstrip('/')}/{child}"
        full = f"{path}/{child}"
        directory = os.path.isdir(full) and not os.path.islink(full)
        if skip is None or not skip(below, directory):
            yield from members(full, below, skip, links, owner=owner)


def _pack_file(path: str, entry: Entry, links: dict[tuple[int, int], str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        identity = (facts.st_dev, facts.st_ino)
        if facts.st_nlink > 1 and identity in links:
            entry.kind, entry.link, entry.size = HARD_LINK, links[identity], 0
            yield header(entry)
            return
        if facts.st_nlink > 1:
            links[identity] = entry.name
        entry.size = facts.st_size
        yield header(entry)
        left = entry.size
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise Failure(f"{path} became shorter while it was read")
            left -= len(piece)
            yield piece
    yield b"\0" * (-entry.size % BLOCK)


def single(name: str, data: bytes, mode: int = 0o644) -> bytes:
    """One file as a member."""
    entry = Entry(name, REGULAR, mode=mode, size=len(data))
    return header(entry) + _padded(data)


# -- reading ------------------------------------------------------------------------------------------------------


class Reader:
    """Members of a stream, in order; the data of each by `data`, to be read before the next one is asked for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = b""
        self._left = 0
        self._padding = 0

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = next(self._pieces, b"")
            if not piece:
                raise Failure("unexpected EOF in the tar stream")
            self._buffer += piece
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def __iter__(self) -> Iterator[Entry]:
        records: dict[str, str] = {}
        while True:
            for _ in self.data():
                pass
            try:
                block = self._take(BLOCK)
            except Failure:
                if self._buffer:
                    raise
                return  # ended without the two empty blocks, as some writers do
            if block == b"\0" * BLOCK:
                return
            entry = parsed(block)
            if entry.kind in ("x", "g", "L", "K"):
                if entry.size > MOST_PAX:
                    raise Failure("archive/tar: header field too long")
                content = self._take(entry.size)
                self._take(-entry.size % BLOCK)
                if entry.kind == "x":
                    records.update(_pax(content))
                elif entry.kind != "g":
                    records["path" if entry.kind == "L" else "linkpath"] = _text(content)
                continue
            _apply(entry, records)
            records = {}
            self._left = entry.size if entry.kind in (REGULAR, "\0", "7") else 0
            self._padding = -self._left % BLOCK
            yield entry

    def data(self) -> Iterator[bytes]:
        """What is left of the current member's data."""
        while self._left:
            if not self._buffer:
                first = self._take(1)
                self._buffer = first + self._buffer
            piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
            self._left -= len(piece)
            yield piece
        if self._padding:
            self._take(self._padding)
            self._padding = 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b"\0 ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise Failure("archive/tar: invalid tar header") from None


def parsed(block: bytes) -> Entry:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    if _number(block[148:156]) != total:
        raise Failure("archive/tar: invalid tar header")
    entry = Entry(
        _text(block[:100]),
        chr(block[156]),
        mode=_number(block[100:108]),
        size=_number(block[124:136]),
    )
    entry.uid, entry.gid = _number(block[108:116]), _number(block[116:124])
    entry.mtime, entry.link = float(_number(block[136:148])), _text(block[157:257])
    if block[257:262] == b"ustar":
        entry.major, entry.minor = _number(block[329:337]), _number(block[337:345])
        prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
        entry.name = f"{prefix}/{entry.name}" if prefix else entry.name
    return entry


def _pax(content: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            raise Failure("archive/tar: invalid tar header")
        record = content[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return records


def _apply(entry: Entry, records: dict[str, str]) -> None:
    entry.name = records.get("path", entry.name)
    entry.link = records.get("linkpath", entry.link)
    try:
        entry.size = int(records.get("size", entry.size))
        entry.mtime = float(records.get("mtime", entry.mtime))
    except ValueError:
        raise Failure("archive/tar: invalid tar header") from None
    if entry.size < 0:
        raise Failure("archive/tar: invalid tar header")


# -- unpacking ----------------------------------------------------------------------------------------------------


def unpack(pieces: Iterable[bytes], directory: str, rename: Callable[[str], str]) -> None:
    """Members into `directory` under the names that `rename` gives; never outside of it, owners not kept."""
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    later: list[tuple[str, Entry]] = []
    reader = Reader(pieces)
    try:
        for entry in reader:
            name = _inside(rename(entry.name))
            if name:
                _unpack_one(root, name, entry, reader, rename)
            if entry.kind == DIRECTORY:
                later.append((name, entry))
        for name, entry in reversed(later):  # a directory's time changes as it is filled
            _finish_directory(root, name, entry)
    finally:
        os.close(root)


def _inside(name: str) -> str:
    """The name without '.', empty parts and a leading slash; '..' is refused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Failure(f'invalid path in the archive: "{name}"')
    return "/".join(parts)


def _parent(root: int, name: str) -> tuple[int, str]:
    """A descriptor of the directory that holds `name`, made where missing; no link is followed on the way."""
    *way, last = name.split("/")
    current = os.dup(root)
    for part in way:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            following = os.open(part, flags, dir_fd=current)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=current)
            following = os.open(part, flags, dir_fd=current)
        finally:
            previous = current
        os.close(previous)
        current = following
    return current, last


def _unpack_one(
    root: int, name: str, entry: Entry, reader: Reader, rename: Callable[[str], str]
) -> None:
    parent, last = _parent(root, name)
    try:
        existing = _kind_at(parent, last)
        if entry.kind == DIRECTORY:
            if existing is not None and not stat.S_ISDIR(existing):
                raise Failure(
                    f'cannot overwrite non-directory "{name}" with directory "{entry.name}"'
                )
            if existing is None:
                os.mkdir(last, 0o755, dir_fd=parent)
            return
        if existing is not None:
            if stat.S_ISDIR(existing):
                raise Failure(
                    f'cannot overwrite directory "{name}" with non-directory "{entry.name}"'
                )
            os.unlink(last, dir_fd=parent)
        _make(root, parent, last, entry, reader, rename)
    finally:
        os.close(parent)


def _kind_at(parent: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _make(
    root: int, parent: int, last: str, entry: Entry, reader: Reader, rename: Callable[[str], str]
) -> None:
    times = (entry.mtime, entry.mtime)
    if entry.kind in (REGULAR, "\0", "7"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(last, flags, 0o600, dir_fd=parent), "wb") as file:
            for piece in reader.data():
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), entry.mode & 0o7777)
        os.utime(last, times, dir_fd=parent, follow_symlinks=False)
    elif entry.kind == SYMBOLIC:
        os.symlink(entry.link, last, dir_fd=parent)
        os.utime(last, times, dir_fd=parent, follow_symlinks=False)
    elif entry.kind == HARD_LINK:
        target = _inside(rename(entry.link))
        holder, target_name = _parent(root, target)
        try:
            os.link(target_name, last, src_dir_fd=holder, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(holder)
    elif entry.kind in (CHARACTER, BLOCK_DEVICE, FIFO):
        kind = {CHARACTER: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}[entry.kind]
        os.mknod(
            last, kind | (entry.mode & 0o7777), os.makedev(entry.major, entry.minor), dir_fd=parent
        )


def _finish_directory(root: int, name: str, entry: Entry) -> None:
    if not name:
        return
    parent, last = _parent(root, name)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        directory = os.open(last, flags, dir_fd=parent)
        try:
            os.fchmod(directory, entry.mode & 0o7777)
            os.utime(directory, (entry.mtime, entry.mtime))
        finally:
            os.close(directory)
    finally:
        os.close(parent)
