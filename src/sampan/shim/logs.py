"""Writing a container's log: lines out of chunks, records into a file, files that rotate.

    <path>          the newest records
    <path>.1        the ones before (or <path>.1.gz), and so on up to max-file - 1

    chunk of bytes --LineLog--> whole lines, pieces of long lines --logformat--> records --RotatingFile--> disk

Rules: a record is never cut in two; a file grows past max-size by less than one record; the writer never waits for a
compression (it runs in a process of its own, and if rotation outruns it the file stays as it is); a full disk costs
log lines, which are counted, never the container. The defaults for a container that asks for nothing are ten megabytes
in five files, compressed: Docker keeps everything in one file until the disk is full.
"""

from __future__ import annotations

import posix
import time
import zlib

from sampan import errors
from sampan.linux import fds
from sampan.linux.syscalls import clone3, close_range
from sampan.shim.logformat import PIECE, JsonFormat, LocalFormat, whole_local_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    class Format(Protocol):
        """How records look. Contract: tests/contract/test_log_formats.py."""

        name: str

        def lines(self, stream: str, data: bytes, ns: int) -> bytes | memoryview:
            """Records of whole lines (each at most PIECE and its newline), all with the time `ns`."""

        def record(self, stream: str, data: bytes, ns: int) -> bytes:
            """One record: a whole line, or a piece of one (no newline at its end)."""

        def boundary(self, data: bytes | memoryview, at_least: int) -> int:
            """Length of the shortest run of whole records that has `at_least` bytes."""

    class LogWriter(Protocol):
        """What the shim's stdio writes to. Contract: tests/contract/test_log_writers.py."""

        def write(self, stream: str, data: bytes) -> None:
            """Record output as it came from a read. Never raises, never waits for anybody but the disk."""

        def finish(self, stream: str) -> None:
            """The stream has ended: record what is left without a newline."""

        def pending(self, stream: str) -> bytes:
            """The unfinished line that is not in the file yet."""

        def rotate(self) -> None:
            """Begin a new file now."""

        def close(self) -> None: ...

# --- options -------------------------------------------------------------------------------------------------------

DRIVERS = ("json-file", "local", "none")
_SHARED = ("mode", "max-buffer-size")
_ACCEPTED = {
    "json-file": (
        "max-size",
        "max-file",
        "compress",
        "labels",
        "labels-regex",
        "env",
        "env-regex",
        "tag",
        *_SHARED,
    ),
    "local": ("max-size", "max-file", "compress", *_SHARED),
    "none": _SHARED,
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Rotation:
    """When to begin a new file and how many to keep. max_size -1: never."""

    __slots__ = ("compress", "max_files", "max_size")

    def __init__(self, max_size: int, max_files: int, compress: bool) -> None:
        self.max_size = max_size
        self.max_files = max_files
        self.compress = compress

    def __repr__(self) -> str:
        return f"Rotation(max_size={self.max_size}, max_files={self.max_files}, compress={self.compress})"


def rotation(driver: str, options: Mapping[str, str]) -> Rotation:
    """The rotation that a driver's options ask for; InvalidArgument in Docker's words.

    Options that name no size get our default (10m, five files, compressed). Options that do are taken as Docker takes
    them: json-file keeps one file and does not compress unless told so, local keeps five and compresses.
    """
    local = driver == "local"
    ours = "max-size" not in options and "max-file" not in options and "compress" not in options
    if ours and not local:
        return Rotation(10 * 10**6, 5, True)
    max_size = 20 * 10**6 if local else -1
    max_files = 5 if local else 1
    compress = local
    if "max-size" in options:
        max_size = _size(options["max-size"])
        if max_size <= 0 and options["max-size"] != "-1":
            raise errors.InvalidArgument("max-size must be a positive number")
    if "max-file" in options:
        max_files = _count(options["max-file"])
        if max_files < 1:
            raise errors.InvalidArgument("max-file cannot be less than 1")
    if "compress" in options:
        compress = _bool("compress", options["compress"])
    if compress and not local and (max_files == 1 or max_size <= 0):
        raise errors.InvalidArgument(
            "compress cannot be true when max-file is less than 2 or max-size is not set"
        )
    return Rotation(max_size if max_size > 0 else -1, max_files, compress and max_files > 1)


def validate(driver: str, options: Mapping[str, str]) -> None:
    """InvalidArgument unless a container may be created with this log configuration."""
    if driver not in DRIVERS:
        raise errors.InvalidArgument(f"logger: no log driver named '{driver}' is registered")
    for name in options:
        if name not in _ACCEPTED[driver]:
            raise errors.InvalidArgument(f"unknown log opt '{name}' for {driver} log driver")
    mode = options.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking", ""):
        raise errors.InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise errors.InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )
        _size(options["max-buffer-size"])
    if driver != "none":
        rotation(driver, options)


def _size(text: str) -> int:
    """Docker's human size, powers of a thousand: "10m", "1.5g", "512 kB"."""
    if text == "-1":
        return -1
    body = text.strip().lower()
    for suffix in ("ib", "b"):
        if body.endswith(suffix):
            body = body[: -len(suffix)]
            break
    unit = body[-1:] if body[-1:] in ("k", "m", "g", "t", "p") else ""
    number = (body[:-1] if unit else body).strip()
    whole, _, fraction = number.partition(".")
    if not _digits(whole) or (fraction and not _digits(fraction)) or len(number) > 18:
        raise errors.InvalidArgument(f"invalid size: '{text}'")
    return int(float(number) * _UNITS[unit]) if fraction else int(whole) * _UNITS[unit]


def _count(text: str) -> int:
    if not _digits(text) or len(text) > 9:
        raise errors.InvalidArgument(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _bool(name: str, text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise errors.InvalidArgument(
            f'strconv.ParseBool: parsing "{text}": invalid syntax', hint=f"log opt {name}"
        )
    return text in _TRUE


# --- the writer ----------------------------------------------------------------------------------------------------

# At most this much text at a time where lines are short: records of two-byte lines are 40 times as long.
_SLICE = 8 * 1024


class LineLog:
    """Cuts chunks into lines and writes their records."""

    def __init__(
        self, log_format: Format, file: RotatingFile, *, now: Callable[[], int] = time.time_ns
    ) -> None:
        self._format = log_format
        self._file = file
        self._now = now
        self._last_ns = 0
        self._rest: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    @property
    def lost(self) -> int:
        """Bytes of records that a failing disk did not take."""
        return self._file.lost

    @property
    def trouble(self) -> str:
        return self._file.trouble

    @property
    def file(self) -> RotatingFile:
        return self._file

    def write(self, stream: str, data: bytes) -> None:
        rest = self._rest[stream]
        if rest:
            data = rest + data
        end = data.rfind(b"\n") + 1
        if end:
            self._lines(stream, data[:end] if end < len(data) else data)
        rest = data[end:] if end else data
        while len(rest) >= PIECE:
            rest = self._piece(stream, rest)
        self._rest[stream] = rest

    def finish(self, stream: str) -> None:
        rest, self._rest[stream] = self._rest[stream], b""
        if rest:
            self._file.append(self._format.record(stream, rest, self._time()), self._format)

    def pending(self, stream: str) -> bytes:
        return self._rest[stream]

    def rotate(self) -> None:
        self._file.rotate()

    def close(self) -> None:
        for stream in self._rest:
            self.finish(stream)
        self._file.close()

    def _time(self) -> int:
        """Now; never the same twice, because readers take records with one timestamp for one write. A clock that is
        set back is followed."""
        ns = self._now()
        if ns == self._last_ns:
            ns += 1
        self._last_ns = ns
        return ns

    def _lines(self, stream: str, data: bytes) -> None:
        """Whole lines, of any length."""
        start = position = 0
        size = len(data)
        while position < size:
            # The last newline that a piece away reaches; so a chunk of short lines takes size / PIECE steps.
            found = data.rfind(b"\n", position, position + PIECE + 1)
            if found >= 0:
                position = found + 1
                continue
            if position > start:
                self._records(stream, data[start:position])
            newline = data.index(b"\n", position) + 1
            line = data[position:newline]
            while len(line) > PIECE:
                line = self._piece(stream, line)
            self._file.append(self._format.record(stream, line, self._time()), self._format)
            start = position = newline
        if start < size:
            self._records(stream, data[start:] if start else data)

    def _records(self, stream: str, data: bytes) -> None:
        """Lines of at most PIECE bytes."""
        start = 0
        if data.count(b"\n") > 2048:
            while len(data) - start > _SLICE:
                end = data.rfind(b"\n", start, start + _SLICE) + 1
                end = end or data.index(b"\n", start) + 1
                self._append_lines(stream, data[start:end])
                start = end
        self._append_lines(stream, data[start:] if start else data)

    def _append_lines(self, stream: str, data: bytes) -> None:
        # No name for the records: they would stay while the next are made, and the allocator, with twice as much
        # to hold, would give the pages back to the kernel and fault them in again at every turn.
        self._file.append(self._format.lines(stream, data, self._time()), self._format)

    def _piece(self, stream: str, data: bytes) -> bytes:
        """Record the first PIECE bytes (less where that would cut a character in two); what remains."""
        cut = PIECE
        while cut > PIECE - 3 and cut < len(data) and data[cut] & 0xC0 == 0x80:
            cut -= 1
        if cut < len(data) and data[cut] & 0xC0 == 0x80:
            cut = PIECE  # not UTF-8 anyway
        self._file.append(self._format.record(stream, data[:cut], self._time()), self._format)
        return data[cut:]


class NoLog:
    """The none driver."""

    lost = 0
    trouble = ""

    def write(self, stream: str, data: bytes) -> None:
        pass

    def finish(self, stream: str) -> None:
        pass

    def pending(self, stream: str) -> bytes:
        return b""

    def rotate(self) -> None:
        pass

    def close(self) -> None:
        pass


class RotatingFile:
    """The newest file of a log, open for appending, and the older ones beside it."""

    # Files that fill faster than this are soon deleted: compressing them would take the processor from the container.
    flood_s = 1.0

    def __init__(
        self, path: str, limits: Rotation, *, mend: Callable[[int], int] | None = None
    ) -> None:
        self.path = path
        self.lost = 0
        self.trouble = ""
        self._limits = limits
        self._rotated_at = 0.0
        self._compressor = -1  # pid
        self._compressing = 0  # which file it reads, counted from 1; moves on with every rotation
        self._fd = self._open(0)
        self._size = posix.fstat(self._fd).st_size
        if self._size and mend is not None:
            self._size = mend(self._fd)

    def _open(self, flags: int) -> int:
        flags |= (
            posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW
        )
        return posix.open(self.path, flags, 0o640)

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: bytes | memoryview, log_format: Format) -> None:
        """Add records, beginning new files where the limit says so."""
        limit = self._limits.max_size
        while limit > 0:
            if self._size >= limit:
                self.rotate()
            room = limit - self._size
            if len(data) < room:
                break
            cut = log_format.boundary(data, room)
            self._write(data[:cut])
            data = data[cut:]
            if not data:
                return
        self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            written = posix.write(self._fd, data)
            while written < len(data):  # a disk that is nearly full takes a part
                written += posix.write(self._fd, data[written:])
            self._size += len(data)
        except OSError as error:
            self._give_up(data, error)

    def _give_up(self, data: bytes | memoryview, error: OSError) -> None:
        """Take back the half-written record, count the loss, go on."""
        self.lost += len(data)
        self.trouble = f"writing {self.path}: {error.strerror}"
        try:
            posix.ftruncate(self._fd, self._size)
        except OSError:
            pass

    def rotate(self) -> None:
        """The newest file becomes number 1. On failure (disk full, directory gone) the old file goes on growing."""
        keep = self._limits.max_files - 1
        try:
            if keep < 1:
                _unlink(self.path)  # a reader in the middle of it keeps its inode
            else:
                self._shift(keep)
            fd = self._open(posix.O_EXCL)
        except OSError as error:
            self.trouble = f"rotating {self.path}: {error.strerror}"
            self._size = posix.fstat(self._fd).st_size if keep < 1 else self._reopen()
            return
        posix.close(self._fd)
        self._fd = fd
        self._size = 0
        now = time.monotonic()
        if keep >= 1 and self._limits.compress and now - self._rotated_at >= self.flood_s:
            self._compress_next()
        self._rotated_at = now

    def _reopen(self) -> int:
        """After a failed rotation: whatever file has the name now, or the one we hold."""
        try:
            fd = self._open(0)
        except OSError:
            return 0  # count anew, so that the next try comes after another max-size bytes
        posix.close(self._fd)
        self._fd = fd
        return posix.fstat(fd).st_size

    def _shift(self, keep: int) -> None:
        """N-1 becomes N and so on; the one past `keep` is deleted."""
        for suffix in ("", ".gz"):
            _unlink(f"{self.path}.{keep}{suffix}")
        for number in range(keep - 1, 0, -1):
            for suffix in ("", ".gz"):
                _rename(f"{self.path}.{number}{suffix}", f"{self.path}.{number + 1}{suffix}")
        posix.rename(self.path, f"{self.path}.1")
        if self._compressing:
            self._compressing += 1

    # --- compression -------------------------------------------------------------------------------------------

    def _compress_next(self) -> None:
        """Compress number 1 in a process of its own, if none is at work. What is skipped stays as it is."""
        if self._compressor >= 0:
            return
        source = target = -1
        try:
            source = posix.open(f"{self.path}.1", posix.O_RDONLY | posix.O_CLOEXEC)
            target = posix.open(
                self._temporary,
                posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC,
                0o640,
            )
            pid, _ = clone3(0)
            if pid == 0:
                _compress(source, target)
            self._compressor, self._compressing = pid, 1
        except OSError as error:
            self.trouble = f"compressing {self.path}.1: {error.strerror}"
        finally:
            fds.close_quietly(source, target)

    @property
    def _temporary(self) -> str:
        return f"{self.path}.tmp.gz"

    def child_ended(self, pid: int, status: int) -> bool:
        """The shim reaped a child: was it the compressor? Puts its result in place of the plain file."""
        if pid != self._compressor:
            return False
        number, self._compressor, self._compressing = self._compressing, -1, 0
        plain = f"{self.path}.{number}"
        try:
            if status == 0 and number < self._limits.max_files:
                stat = posix.stat(plain)
                posix.utime(self._temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))
                posix.rename(self._temporary, f"{plain}.gz")
                posix.unlink(plain)
            else:
                posix.unlink(self._temporary)
        except OSError as error:
            self.trouble = f"compressing {plain}: {error.strerror}"
        return True

    def close(self) -> None:
        """Wait for a compression that is at work, so that nothing is half done."""
        if self._compressor >= 0:
            pid = self._compressor
            try:
                _, status = posix.waitpid(pid, 0)
            except ChildProcessError:
                status = 1
            self.child_ended(pid, status)
        fds.close_quietly(self._fd)
        self._fd = -1


def _compress(source: int, target: int) -> None:
    """The compressor process: gzip `source` into `target`, leave. Straight, with nothing to import."""
    status = 1
    try:
        keep = sorted((source, target))
        if keep[0] > 0:
            close_range(0, keep[0] - 1)
        if keep[1] > keep[0] + 1:
            close_range(keep[0] + 1, keep[1] - 1)
        close_range(keep[1] + 1)
        posix.nice(19)
        packer: Any = zlib.compressobj(3, zlib.DEFLATED, 31)
        while chunk := posix.read(source, 256 * 1024):
            fds.write_all(target, packer.compress(chunk))
        fds.write_all(target, packer.flush())
        status = 0
    finally:
        posix._exit(status)


def _unlink(path: str) -> None:
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass


def _rename(source: str, target: str) -> None:
    try:
        posix.rename(source, target)
    except FileNotFoundError:
        pass


# --- making one ----------------------------------------------------------------------------------------------------


def open_log(log: Mapping[str, Any]) -> LineLog | NoLog:
    """The writer for a protocol.Log. The directory exists; the file is made or continued."""
    driver = log.get("driver", "json-file")
    if driver == "none" or not log:
        return NoLog()
    limits = rotation(driver, log.get("options") or {})
    attrs = log.get("attrs") or None
    if driver == "local":
        return LineLog(LocalFormat(attrs), RotatingFile(log["path"], limits, mend=_mend_local))
    if driver == "json-file":
        return LineLog(JsonFormat(attrs), RotatingFile(log["path"], limits, mend=_mend_json))
    raise errors.InvalidArgument(f"logger: no log driver named '{driver}' is registered")


def _mend_json(fd: int) -> int:
    """A record that was cut by a power loss gets its line end; readers pass over it."""
    size = posix.fstat(fd).st_size
    reader = posix.open(f"/proc/self/fd/{fd}", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        if posix.pread(reader, 1, size - 1) != b"\n":
            size += posix.write(fd, b"\n")
    finally:
        posix.close(reader)
    return size


def _mend_local(fd: int) -> int:
    """Cut off a record that is not whole. The length at the end tells whether there is one to look for."""
    size = posix.fstat(fd).st_size
    reader = posix.open(f"/proc/self/fd/{fd}", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        last = posix.pread(reader, 4, max(0, size - 4))
        start = size - 8 - int.from_bytes(last, "big")
        if len(last) == 4 and start >= 0 and posix.pread(reader, 4, start) == last:
            return size
        whole = whole_local_records(fds.read_all(reader, 1 << 30))
    finally:
        posix.close(reader)
    posix.ftruncate(fd, whole)
    return whole
