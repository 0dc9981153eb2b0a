"""Reading a container's log back: from any file of it, from the end, and on and on while it grows.

    reader = LogReader(path, "json-file", tail=10)
    while runs := reader.read():          # at most about a megabyte of log a call
        ...
    # nothing more now; call read() again when the file grew (logwatch.py) or never

A reader holds one open file at a time and its position. The writer only appends and renames, so what is open stays
readable; when the file at `path` is another one than ours, ours is finished and the next is the one beside it
(logfiles.py), or, where ours was deleted meanwhile, the oldest with a record that is newer than the last.

Used by the engine for `logs` and by the shim for `attach` with replay.
"""

from __future__ import annotations

import posix

from sampan.shim.logfiles import (
    BLOCK,
    COARSE_NS,
    Source,
    listing,
    open_at,
    open_beside,
    open_since,
)
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
        self._source: Source | None = None
        self._rest = b""
        self._last_ns = 0
        self._skip_to_ns = 0
        self._skip_lines = 0
        self.ended = False  # a record after until_ns was seen: nothing more will come
        self._begin(tail)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
        self.ended = True

    # --- where to begin ----------------------------------------------------------------------------------------

    def _begin(self, tail: int) -> None:
        if tail < 0:
            self._source = open_since(self._path, self._since) if self._since else None
            self._source = self._source or open_at(self._path, 0)
        else:
            self._begin_at_tail(tail)

    def _begin_at_tail(self, wanted: int) -> None:
        """Open the file that the last `wanted` lines begin in (of both streams, as Docker counts), at their place.

        A file is searched backwards block by block; a compressed one is decoded whole and its surplus skipped.
        """
        source = open_at(self._path, -1)
        while source is not None:
            self._source = source
            if source.packed or self._local:
                count = self._count_lines(source)
                offset, self._skip_lines, wanted = 0, max(count - wanted, 0), wanted - count
            else:
                offset, wanted = self._search_backwards(source.fd, wanted)
            source.seek(offset)
            if wanted <= 0:
                return
            try:
                older = open_beside(self._path, source, -1)
            except LookupError:  # rotated out under our eyes: nothing older is left
                return
            if older is not None and older.modified_ns < self._since - COARSE_NS:
                older.close()
                return
            if older is not None:
                source.close()
            source = older

    def _count_lines(self, source: Source) -> int:
        count = 0
        rest = b""
        while block := source.read():
            whole, rest = self._split(rest + block)
            count += sum(run.data.count(b"\n") for run in self._decode(whole))
        return count

    def _search_backwards(self, fd: int, wanted: int) -> tuple[int, int]:
        """(offset of the record where the last `wanted` lines begin, how many lines are still missing before it)."""
        end = posix.fstat(fd).st_size
        step = min(16 * 1024, 256 * (wanted + 1))  # most lines are short
        if wanted == 0:
            return _whole_lines_end(fd, end), 0
        while True:
            start = max(0, end - step)
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

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self) -> list[Run]:
        """The next runs, in order; empty at the end of what is written now."""
        while not self.ended:
            if self._source is None:
                self._source = open_at(self._path, 0)
                if self._source is None:
                    return []
            block = self._source.read()
            if not block:
                if not self._next_file(self._source):
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

    def _next_file(self, source: Source) -> bool:
        """At the end of the open file: is there more, there or in a newer one?"""
        if source.is_newest(self._path):
            return False
        if source.more():  # written between our last read and the rename
            return True
        try:
            following = open_beside(self._path, source, 1)
        except LookupError:
            self._skip_to_ns = self._last_ns
            following = open_since(self._path, self._last_ns)
        if following is None:
            return False
        source.close()
        self._source, self._rest = following, b""
        return True


def log_size(path: str) -> int:
    """Bytes that a container's log takes on disk."""
    total = 0
    for name in log_files(path):
        try:
            total += posix.stat(name).st_size
        except FileNotFoundError:
            pass
    return total


def log_files(path: str) -> list[str]:
    """Every file of a log, oldest first: what `rm` deletes."""
    return [name for name, _, _ in listing(path)]


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
