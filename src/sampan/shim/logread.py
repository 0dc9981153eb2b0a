"""Reading a container's log back: from any file of it, from the end, and on and on while it grows.

    reader = LogReader(path, "json-file", tail=10)
    while runs := reader.read():          # at most about a megabyte of log a call
        ...
    # nothing more now; call read() again when the file grew (logwatch.py) or never

A reader holds one open file at a time and its position. The writer only appends and renames, so what is open stays
readable; when the file at `path` is another one than ours, ours is finished and the next is found among the rotated
ones: by inode, or, where it was compressed or deleted meanwhile, by skipping what is not newer than the last record.

Used by the engine for `logs` and by the shim for `attach` with replay.
"""

from __future__ import annotations

import posix
import zlib

from sampan.shim.logformat import (
    Run,
    decode_json,
    decode_local,
    format_time_fixed,
    whole_local_records,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 256 * 1024
_MAX_RECORD = 8 * 1024 * 1024  # a "record" longer than this is damage


class LogReader:
    """The records of a log in order, as runs of output."""

    def __init__(
        self,
        path: str,
        driver: str,
        *,
        tail: int = -1,
        since_ns: int = 0,
        until_ns: int = 0,
        streams: tuple[str, ...] = ("stdout", "stderr"),
    ) -> None:
        """`tail` counts lines, -1 all; `since_ns` is included, `until_ns` too, 0 none. A log that does not exist yet
        is an empty one."""
        self._path = path
        self._local = driver == "local"
        self._decode: Callable[[bytes], Iterator[Run]] = (
            decode_local if self._local else decode_json
        )
        self._since = since_ns
        self._until = until_ns
        self._streams = streams
        self._source: _Source | None = None
        self._rest = b""
        self._last_ns = 0
        self._skip_to_ns = 0
        self._skip_lines = 0
        self._queue: list[str] = []  # older files still to come, oldest first
        self.ended = False  # a record after until_ns was seen: nothing more will come
        self._begin(tail)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
        self.ended = True

    # --- where to begin ----------------------------------------------------------------------------------------

    def _begin(self, tail: int) -> None:
        names = _files(self._path)
        if self._since:
            names = [name for name in names if _modified(name) >= self._since] or names[-1:]
        if tail < 0:
            self._queue = names
            return
        self._queue, offset = self._find_tail(names, tail)
        self._advance()
        if offset and self._source is not None:
            self._source.seek(offset)

    def _find_tail(self, names: list[str], tail: int) -> tuple[list[str], int]:
        """The files that hold the last `tail` lines (of both streams, as Docker counts), and where in the first of them to begin.

        A file is searched backwards block by block; a compressed one is decoded whole and its surplus skipped.
        """
        wanted = tail
        for index in range(len(names) - 1, -1, -1):
            name = names[index]
            if name.endswith(".gz") or self._local:
                count = self._count_lines(name)
                if count >= wanted:
                    self._skip_lines = count - wanted
                    return names[index:], 0
                wanted -= count
                continue
            offset, wanted = self._search_backwards(name, wanted)
            if wanted <= 0:
                return names[index:], offset
        return names, 0

    def _count_lines(self, name: str) -> int:
        source = _Source(name)
        count = 0
        rest = b""
        try:
            while block := source.read():
                whole, rest = self._split(rest + block)
                count += sum(run.data.count(b"\n") for run in self._decode(whole))
        finally:
            source.close()
        return count

    def _search_backwards(self, name: str, wanted: int) -> tuple[int, int]:
        """(offset of the record where the last `wanted` lines begin, how many lines are still missing before it)."""
        fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            end = posix.fstat(fd).st_size
            size = end
            step = 16 * 1024
            if wanted == 0:
                return _whole_lines_end(fd, size), 0
            while True:
                start = max(0, size - step)
                block = posix.pread(fd, end - start, start)
                first = 0 if start == 0 else block.find(b"\n") + 1
                whole = block[first : block.rfind(b"\n") + 1]
                lines = _line_offsets(whole, self._decode)
                # One more than asked for, so that the pieces of a long first line are all there.
                if len(lines) > wanted:
                    return start + first + lines[len(lines) - wanted], 0
                if start == 0:
                    return 0, wanted - len(lines)
                step *= 4
        finally:
            posix.close(fd)

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self) -> list[Run]:
        """The next runs, in order; empty at the end of what is written now."""
        while not self.ended:
            if self._source is None and not self._advance():
                return []
            block = self._source.read() if self._source is not None else b""
            if not block:
                if not self._next_file():
                    return []
                continue
            whole, self._rest = self._split(self._rest + block)
            runs = self._select(whole)
            if runs:
                return runs
        return []

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        """(whole records, the beginning of one)."""
        end = whole_local_records(data) if self._local else data.rfind(b"\n") + 1
        if end == 0 and len(data) > _MAX_RECORD:
            return b"", b""
        return data[:end], data[end:]

    def _select(self, whole: bytes) -> list[Run]:
        runs = []
        for run in self._decode(whole):
            if run.ns <= self._skip_to_ns or run.ns < self._since:
                continue
            self._skip_to_ns = 0
            if self._until and run.ns > self._until:
                self.close()
                break
            self._last_ns = run.ns
            if self._skip_lines:
                run.data = self._skip(run.data)
            if run.data and run.stream in self._streams:
                runs.append(run)
        return runs

    def _skip(self, data: bytes) -> bytes:
        """Drop lines that come before the tail."""
        position = 0
        while self._skip_lines and position < len(data):
            newline = data.find(b"\n", position)
            if newline < 0:
                return b""
            position = newline + 1
            self._skip_lines -= 1
        return data[position:]

    # --- from file to file -------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Open the next file of the queue, or the current one if it exists now."""
        self._rest = b""
        while self._queue:
            name = self._queue.pop(0)
            try:
                self._source = _Source(name)
                return True
            except FileNotFoundError:  # rotated away between listing and opening: look again
                self._queue = self._newer_than_last()
        if self._source is None:
            try:
                self._source = _Source(self._path)
                return True
            except FileNotFoundError:
                return False
        return False

    def _next_file(self) -> bool:
        """At the end of the open file: is there a newer one? (Ours has been read after it was renamed, so it is done.)"""
        source = self._source
        if source is None:
            return False
        if self._queue:
            source.close()
            self._source = None
            return self._advance()
        if not source.replaced(self._path):
            return False
        if source.more():  # written between our last read and the rename
            return True
        names = _files(self._path)
        for index, name in enumerate(names):
            if source.is_file(name):
                self._queue = names[index + 1 :]
                break
        else:
            self._queue = self._newer_than_last()
        source.close()
        self._source = None
        return self._advance()

    def _newer_than_last(self) -> list[str]:
        self._skip_to_ns = self._last_ns
        return [name for name in _files(self._path) if _modified(name) >= self._last_ns]


class _Source:
    """One open file, plain or gzip."""

    def __init__(self, name: str) -> None:
        self._fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
        stat = posix.fstat(self._fd)
        self._identity = (stat.st_dev, stat.st_ino)
        self._unpack = zlib.decompressobj(31) if name.endswith(".gz") else None
        self._packed = b""

    def close(self) -> None:
        posix.close(self._fd)

    def seek(self, offset: int) -> None:
        posix.lseek(self._fd, offset, 0)

    def read(self) -> bytes:
        """The next bytes of log; empty at the end, or at the first damage of a compressed file."""
        if self._unpack is None:
            return posix.read(self._fd, BLOCK)
        while True:
            if not self._packed:
                self._packed = posix.read(self._fd, BLOCK)
                if not self._packed:
                    return b""
            try:
                data = self._unpack.decompress(self._packed, 4 * BLOCK)
            except zlib.error:
                return b""
            self._packed = self._unpack.unconsumed_tail
            if data:
                return data
            if self._unpack.eof:
                return b""

    def replaced(self, path: str) -> bool:
        """The name now belongs to another file (or, for a moment, to none)."""
        try:
            stat = posix.stat(path)
        except FileNotFoundError:
            return False
        return (stat.st_dev, stat.st_ino) != self._identity

    def is_file(self, name: str) -> bool:
        try:
            stat = posix.stat(name)
        except FileNotFoundError:
            return False
        return (stat.st_dev, stat.st_ino) == self._identity

    def more(self) -> bool:
        if self._unpack is not None:
            return False
        return posix.lseek(self._fd, 0, 1) < posix.fstat(self._fd).st_size


def _files(path: str) -> list[str]:
    """The files of a log that exist, oldest first."""
    names = []
    number = 1
    missing = 0
    while missing < 2 and number < 100_000:
        for name in (f"{path}.{number}", f"{path}.{number}.gz"):
            if _exists(name):
                names.append(name)
                missing = 0
                break
        else:
            missing += 1
        number += 1
    names.reverse()
    if _exists(path):
        names.append(path)
    return names


def _exists(name: str) -> bool:
    try:
        posix.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _modified(name: str) -> int:
    try:
        return posix.stat(name).st_mtime_ns
    except FileNotFoundError:
        return 0


def log_size(path: str) -> int:
    """Bytes that a container's log takes on disk."""
    total = 0
    for name in _files(path):
        try:
            total += posix.stat(name).st_size
        except FileNotFoundError:
            pass
    return total


def log_files(path: str) -> list[str]:
    """Every file of a log, oldest first: what `rm` deletes."""
    return _files(path)


def _whole_lines_end(fd: int, size: int) -> int:
    """Where the last whole record of a json file ends."""
    start = max(0, size - BLOCK)
    return start + posix.pread(fd, size - start, start).rfind(b"\n") + 1


def _line_offsets(block: bytes, decode: Callable[[bytes], Iterator[Run]]) -> list[int]:
    """Offsets of the records of a json block at which a line begins."""
    offsets = []
    position = 0
    inside: dict[str, bool] = {}  # streams in the middle of a line
    for record in block.split(b"\n")[:-1]:
        for run in decode(record + b"\n"):
            if not inside.get(run.stream):
                offsets.append(position)
            inside[run.stream] = not run.data.endswith(b"\n")
        position += len(record) + 1
    return offsets


# --- as the API sends it -------------------------------------------------------------------------------------------

_STREAM_HEADS = {
    "stdin": b"\x00\x00\x00\x00",
    "stdout": b"\x01\x00\x00\x00",
    "stderr": b"\x02\x00\x00\x00",
}


class Presenter:
    """Runs as bytes for a client: framed or raw, with timestamps and attributes in front of each line."""

    def __init__(self, *, framed: bool, timestamps: bool = False, details: bool = False) -> None:
        self._framed = framed
        self._timestamps = timestamps
        self._details = details
        self._inside: dict[str, bool] = {}  # streams that are in the middle of a long line

    def present(self, runs: list[Run]) -> bytes:
        """One frame a line, because clients iterate over frames and take them for lines."""
        return b"".join([self._run(run) for run in runs])

    def _run(self, run: Run) -> bytes:
        prefix = self._prefix(run)
        if not self._framed and not prefix:
            return run.data
        head = _STREAM_HEADS.get(run.stream, b"\x01\x00\x00\x00") if self._framed else b""
        uniform = _uniform_length(run.data)
        if uniform:
            start = head + (uniform + len(prefix)).to_bytes(4, "big") + prefix if head else prefix
            return start + run.data[:-1].replace(b"\n", b"\n" + start) + b"\n"
        parts: list[bytes] = []
        lines = run.data.split(b"\n")
        last = lines.pop()
        for line in lines:
            if head:
                parts += (head, (len(line) + 1 + len(prefix)).to_bytes(4, "big"))
            parts += (prefix, line, b"\n")
        if last:
            if head:
                parts += (head, (len(last) + len(prefix)).to_bytes(4, "big"))
            parts += (prefix, last)
        return b"".join(parts)

    def _prefix(self, run: Run) -> bytes:
        """What stands before every line of the run; nothing inside a line that was recorded in pieces."""
        if not self._timestamps and not self._details:
            return b""
        inside = self._inside.get(run.stream, False)
        self._inside[run.stream] = not run.data.endswith(b"\n")
        if inside:
            return b""
        prefix = b""
        if self._timestamps:
            prefix = format_time_fixed(run.ns) + b" "
        if self._details:
            prefix += _attributes(run.attrs or {}) + b" "
        return prefix


def _uniform_length(data: bytes) -> int:
    """The length that all lines share (newline included), 0 if they do not."""
    length = data.find(b"\n") + 1
    count, odd = divmod(len(data), length) if length else (0, 1)
    if odd or count < 2 or data[length - 1 :: length] != b"\n" * count:
        return 0
    return length if data.count(b"\n") == count else 0


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


def _attributes(attrs: dict[str, str]) -> bytes:
    """key=value,... with both parts as Go's url.QueryEscape writes them."""
    return b",".join(b"%s=%s" % (_query(key), _query(attrs[key])) for key in sorted(attrs))


def _query(text: str) -> bytes:
    return b"".join(
        bytes((byte,)) if byte in _UNRESERVED else b"+" if byte == 0x20 else b"%%%02X" % byte
        for byte in text.encode("utf-8", "replace")
    )
