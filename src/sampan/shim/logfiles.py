"""The files of one log while a writer rotates them: which there are, in order, and who comes before and after whom.

    <path>.3.gz  <path>.2.gz  <path>.1  <path>      oldest to newest; with every rotation each moves on by a number

Names say nothing for longer than a moment: what was number 1 is number 2 before it can be opened. A file is therefore known
by its inode, or, once it was compressed, by its time of modification, which the compressor keeps, and its length; a list counts
when two in a row are the same, and what was opened by a name counts when it is the file that was listed.
"""

from __future__ import annotations

import posix
import zlib

BLOCK = 256 * 1024
# Of the kernel's coarse clock, which stamps files, behind the fine one, which stamps records (CONFIG_HZ=100).
COARSE_NS = 20_000_000
_TRIES = 1000

Listed = tuple[str, int, int]  # name, inode, time of modification in ns


def listing(path: str) -> list[Listed]:
    """The files that exist, oldest first."""
    before = _listed(path)
    for _ in range(_TRIES):
        now = _listed(path)
        if [entry[:2] for entry in now] == [entry[:2] for entry in before]:
            break
        before = now
    return before


def _listed(path: str) -> list[Listed]:
    found = []
    number = 1
    missing = 0
    while missing < 2 and number < 100_000:
        for name in (f"{path}.{number}", f"{path}.{number}.gz"):
            entry = _stat(name)
            if entry is not None:
                found.append(entry)
                missing = 0
                break
        else:
            missing += 1
        number += 1
    found.reverse()
    newest = _stat(path)
    if newest is not None:
        found.append(newest)
    return found


def _stat(name: str) -> Listed | None:
    try:
        stat = posix.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return name, stat.st_ino, stat.st_mtime_ns


def open_at(path: str, index: int) -> Source | None:
    """The file at a place of the list (-1: the newest); None where there is none."""
    for _ in range(_TRIES):
        files = listing(path)
        if not -len(files) <= index < len(files):
            return None
        source = _open(files[index])
        if source is not None:
            return source
    return None


def open_since(path: str, since_ns: int) -> Source | None:
    """The oldest file that may hold records from then on; the newest where none does."""
    for _ in range(_TRIES):
        files = listing(path)
        if not files:
            return None
        wanted = [entry for entry in files if entry[2] >= since_ns - COARSE_NS] or files[-1:]
        source = _open(wanted[0])
        if source is not None:
            return source
    return None


def open_beside(path: str, source: Source, step: int) -> Source | None:
    """The file after (1) or before (-1) another one; None where there is none. LookupError: the other is gone."""
    for _ in range(_TRIES):
        files = listing(path)
        # The newest of those that may be it: whatever happens, a reader goes forward.
        places = [place for place, entry in enumerate(files) if source.is_listed(entry)]
        if not places:
            raise LookupError(path)
        index = places[-1]
        if not 0 <= index + step < len(files):
            return None
        found = _open(files[index + step])
        if found is not None:
            return found
    return None


def _open(entry: Listed) -> Source | None:
    """The listed file; None where the name has become another's."""
    try:
        source = Source(entry[0])
    except FileNotFoundError:
        return None
    if source.inode == entry[1]:
        return source
    source.close()
    return None


def _length_inside(name: str) -> int:
    """Of what a gzip file holds (RFC 1952 section 2.3.1, ISIZE); -1 where it cannot be read."""
    try:
        fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except FileNotFoundError:
        return -1
    try:
        end = posix.fstat(fd).st_size
        return int.from_bytes(posix.pread(fd, 4, max(0, end - 4)), "little")
    finally:
        posix.close(fd)


class Source:
    """One open file, plain or gzip."""

    def __init__(self, name: str) -> None:
        self.fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        self.inode = posix.fstat(self.fd).st_ino
        self.packed = name.endswith(".gz")
        self._unpack = zlib.decompressobj(31) if self.packed else None
        self._waiting = b""

    def close(self) -> None:
        posix.close(self.fd)

    def seek(self, offset: int) -> None:
        """Of a plain file; a gzip one can only begin again."""
        posix.lseek(self.fd, offset, 0)
        if self.packed:
            self._unpack = zlib.decompressobj(31)
            self._waiting = b""

    @property
    def modified_ns(self) -> int:
        return posix.fstat(self.fd).st_mtime_ns

    def read(self) -> bytes:
        """The next bytes of log; empty at the end, or at the first damage of a compressed file."""
        if self._unpack is None:
            return posix.read(self.fd, BLOCK)
        while True:
            if not self._waiting:
                self._waiting = posix.read(self.fd, BLOCK)
                if not self._waiting:
                    return b""
            try:
                data = self._unpack.decompress(self._waiting, 4 * BLOCK)
            except zlib.error:
                return b""
            self._waiting = self._unpack.unconsumed_tail
            if data:
                return data
            if self._unpack.eof:
                return b""

    def is_newest(self, path: str) -> bool:
        """Nobody has taken its name (or, in the middle of a rotation, somebody is about to)."""
        entry = _stat(path)
        return entry is None or entry[1] == self.inode

    def is_listed(self, entry: Listed) -> bool:
        """This very file, or what a compressor made of it."""
        if entry[1] == self.inode:
            return True
        if self.packed or not entry[0].endswith(".gz") or entry[2] != self.modified_ns:
            return False
        return _length_inside(entry[0]) == posix.fstat(self.fd).st_size

    def more(self) -> bool:
        """Something was written behind our position."""
        if self.packed:
            return False
        return posix.lseek(self.fd, 0, 1) < posix.fstat(self.fd).st_size
