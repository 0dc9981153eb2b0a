"""Directories over a stream: fsutil's protocol, as receiver (build contexts) and as sender (`--output type=local`).

    sender                                  receiver
    STAT a, STAT a/b, STAT c ... STAT(empty)     every entry, parents first; entries are numbered from 0
                              <── REQ 1, REQ 2   the files whose content is wanted
    DATA 1 ..., DATA 1 (empty) ...               each file's bytes in pieces, an empty piece ends it
                              <── FIN            all there
    FIN

The receiver works by descriptor and makes each entry exactly once, never through a link: nothing that a client names
lies outside the directory. Entries are owned by 0:0. Sockets and devices are passed over, as in contexts sent as tar.
Both halves block and are fed in the pool; `receive` and `send` are the coroutines around them.

Source: tonistiigi/fsutil, receive.go, send.go, diskwriter.go.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from sampan.buildkit.faults import GrpcError
from sampan.buildkit.link import Stream
from sampan.buildkit.messages import (
    PACKET_DATA,
    PACKET_ERROR,
    PACKET_FIN,
    PACKET_REQUEST,
    PACKET_STAT,
    Packet,
    Stat,
)
from sampan.buildkit.wire import decode, encode
from sampan.storage.files import go_mode
from sampan.storage.tree import FILE_FLAGS, Walker, remove_tree, xattrs_of

MAX_DEPTH = 256
MAX_OPEN = 64  # files under way at a time; senders have four
BATCH = 512
PIECE = 32 << 10
GO_TYPE = 0x8F280000  # Go's mode bits that say which kind of entry: none of them, a regular file
GO_DIRECTORY, GO_LINK, GO_FIFO = 1 << 31, 1 << 27, 1 << 25
GO_SETUID, GO_SETGID, GO_STICKY = 1 << 23, 1 << 22, 1 << 20
KEPT_XATTRS = ("user.", "security.capability")

Blocking = Callable[..., Awaitable[Any]]  # Engine.run_blocking


class TransferFault(GrpcError):
    """The other side does not keep to the protocol, or asks for what must not be."""


def posix_mode(mode: int) -> int:
    """Go's permission bits as chmod(2) takes them."""
    value = mode & 0o777
    for go_bit, bit in ((GO_SETUID, 0o4000), (GO_SETGID, 0o2000), (GO_STICKY, 0o1000)):
        if mode & go_bit:
            value |= bit
    return value


# --- receiving


class _File(NamedTuple):
    path: str
    mode: int
    mtime_ns: int


class _Directory(NamedTuple):
    name: str
    fd: int
    mode: int
    mtime_ns: int


class Known(NamedTuple):
    """An entry that is there from an earlier transfer."""

    mode: int  # st_mode
    size: int
    mtime_ns: int
    link: str
    is_shared: bool  # other names lead to the same file


def known_entries(root: int) -> dict[str, Known]:
    """What a directory holds. Blocking."""
    found: dict[str, Known] = {}
    with Walker(root) as walker:
        for step in walker:
            info = step.info
            is_link = stat.S_ISLNK(info.st_mode)
            found[os.fsdecode(step.path)] = Known(
                mode=info.st_mode, size=info.st_size, mtime_ns=info.st_mtime_ns,
                link=os.fsdecode(os.readlink(step.name, dir_fd=step.directory)) if is_link else "",
                is_shared=info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode),
            )  # fmt: skip
    return found


class Receiver:
    """Makes a directory what the sender's is. Blocking; `take` messages until `finished`, `close` at the end.

    `known` is what it holds already: what looks the same (kind, mode, size, time) stays, what is not named goes.
    """

    def __init__(self, root: int, known: dict[str, Known] | None = None) -> None:
        self._root = root
        self._known = known or {}
        self.entries = 0
        self.bytes = 0
        self._above: list[
            _Directory
        ] = []  # the directories that the last entry was in, from the top
        self._number = 0
        self._stats_over = False
        self._wanted: dict[int, _File] = {}
        self._open: dict[int, int] = {}
        self._said_fin = False
        self.finished = False
        self.size = 0

    def take(self, messages: list[bytes]) -> list[bytes]:
        """Handle what came; the answers. Raises TransferFault, WireError, OSError."""
        answers: list[bytes] = []
        for message in messages:
            self.size += len(message)
            packet = decode(Packet, message)
            if packet.type == PACKET_STAT:
                self._stat(packet.stat, answers)
            elif packet.type == PACKET_DATA:
                self._data(packet)
            elif packet.type == PACKET_FIN:
                if not self._said_fin:
                    raise TransferFault("the sender ended before all files were there")
                self.finished = True
            elif packet.type == PACKET_ERROR:
                text = packet.data.decode("utf-8", "replace")
                raise TransferFault(f"error from sender: {text}")
            else:
                raise TransferFault(f"unexpected packet {packet.type}")
        if self._stats_over and not self._wanted and not self._said_fin:
            self._said_fin = True
            answers.append(encode(Packet(type=PACKET_FIN)))
        return answers

    def close(self) -> None:
        """Idempotent."""
        self._leave(0)
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _stat(self, entry: Stat | None, answers: list[bytes]) -> None:
        if self._stats_over:
            raise TransferFault("an entry after the last")
        if entry is None:
            self._stats_over = True
            self._leave(0)
            self._remove_unnamed()
            return
        number = self._number
        self._number += 1
        self.entries += 1
        self.bytes += max(entry.size, 0)
        parent, name = self._parent(entry.path)
        known = self._known.pop(entry.path, None)
        if known is not None and self._stays(entry, known, parent, name):
            return
        try:
            wants_data = self._make(entry, parent, name)
        except FileExistsError:
            raise TransferFault(f"{entry.path} was sent twice") from None
        if wants_data:
            self._wanted[number] = _File(entry.path, posix_mode(entry.mode), entry.mtime_ns)
            answers.append(encode(Packet(type=PACKET_REQUEST, id=number)))

    def _parent(self, path: str) -> tuple[int, str]:
        """The directory that an entry is in, open, and its name there."""
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise TransferFault(f"invalid path {path!r}")
        if len(parts) > MAX_DEPTH:
            raise TransferFault(f"{path[:100]}... lies deeper than {MAX_DEPTH} directories")
        *above, name = parts
        depth = 0
        while depth < min(len(above), len(self._above)) and self._above[depth].name == above[depth]:
            depth += 1
        self._leave(depth)
        for part in above[depth:]:
            self._enter(part, path)
        return self._top(), name

    def _top(self) -> int:
        return self._above[-1].fd if self._above else self._root

    def _enter(self, name: str, path: str) -> None:
        """Go into a directory that was made before, but not just now."""
        try:
            fd = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._top()
            )  # fmt: skip
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            raise TransferFault(f"{path} is in no directory that was sent") from None
        info = os.fstat(fd)
        self._above.append(_Directory(name, fd, stat.S_IMODE(info.st_mode), info.st_mtime_ns))

    def _leave(self, depth: int) -> None:
        """Leave directories until so many are left; only now do they get their times, for entries changed them."""
        while len(self._above) > depth:
            directory = self._above.pop()
            try:
                os.fchmod(directory.fd, directory.mode)
                os.utime(directory.fd, ns=(directory.mtime_ns, directory.mtime_ns))
            finally:
                os.close(directory.fd)

    def _stays(self, entry: Stat, known: Known, parent: int, name: str) -> bool:
        """Whether the entry that is there is the one that was sent; if not, it is removed."""
        kind = entry.mode & GO_TYPE
        if kind == GO_DIRECTORY and stat.S_ISDIR(known.mode):
            self._enter(name, entry.path)
            entered = self._above.pop()
            self._above.append(_Directory(name, entered.fd, posix_mode(entry.mode), entry.mtime_ns))
            return True
        same = (
            known.mtime_ns == entry.mtime_ns
            and not known.is_shared
            and not any(key.startswith(KEPT_XATTRS) for key in entry.xattrs)
        )
        if kind == GO_LINK:
            same = same and stat.S_ISLNK(known.mode) and known.link == entry.link
        else:
            same = (
                same and kind == 0 and not entry.link and stat.S_ISREG(known.mode)
                and known.size == entry.size and stat.S_IMODE(known.mode) == posix_mode(entry.mode)
            )  # fmt: skip
        if not same:
            remove_tree(name, parent)
        return same

    def _remove_unnamed(self) -> None:
        """What the sender has no longer."""
        if not self._known:
            return
        with Walker(self._root) as walker:
            for step in walker:
                if os.fsdecode(step.path) in self._known:
                    walker.prune()
                    above = os.fstat(step.directory)
                    remove_tree(step.name, step.directory)
                    os.utime(step.directory, ns=(above.st_atime_ns, above.st_mtime_ns))
        self._known.clear()

    def _make(self, entry: Stat, parent: int, name: str) -> bool:
        """Make one entry; whether it has content to ask for."""
        kind = entry.mode & GO_TYPE
        if kind == GO_DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._enter(name, entry.path)
            made = self._above.pop()
            self._above.append(
                _Directory(name, made.fd, posix_mode(entry.mode), entry.mtime_ns)
            )  # fmt: skip
            _set_xattrs(made.fd, entry)
        elif kind == GO_LINK:
            os.symlink(entry.link, name, dir_fd=parent)
            os.utime(
                name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False
            )
        elif kind == GO_FIFO:
            os.mkfifo(name, posix_mode(entry.mode), dir_fd=parent)
        elif kind == 0 and entry.link:
            self._hard_link(entry, parent, name)
        elif kind == 0:
            fd = os.open(
                name, FILE_FLAGS | os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent
            )
            try:
                _set_xattrs(fd, entry)
            finally:
                os.close(fd)
            return True
        return False

    def _hard_link(self, entry: Stat, parent: int, name: str) -> None:
        parts = entry.link.lstrip("/").split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise TransferFault(f"invalid link {entry.link!r}")
        held: list[int] = []
        at = self._root
        try:
            for part in parts[:-1]:
                at = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                held.append(at)
            os.link(parts[-1], name, src_dir_fd=at, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            raise TransferFault(f"{entry.path}: no file {entry.link} to link to") from None
        finally:
            for fd in held:
                os.close(fd)

    def _data(self, packet: Packet) -> None:
        file = self._wanted.get(packet.id)
        if file is None:
            raise TransferFault(f"content of entry {packet.id}, which was not asked for")
        fd = self._open.get(packet.id, -1)
        if fd < 0:
            if len(self._open) >= MAX_OPEN:
                raise TransferFault(f"more than {MAX_OPEN} files at a time")
            # Each directory on the way was made by us and nothing is ever replaced, so this is the file of before.
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = self._open[packet.id] = os.open(file.path, flags, dir_fd=self._root)
        view = memoryview(packet.data)
        while view:
            view = view[os.write(fd, view) :]
        if not packet.data:
            del self._wanted[packet.id], self._open[packet.id]
            try:
                os.fchmod(fd, file.mode)
                os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
            finally:
                os.close(fd)


def _set_xattrs(fd: int, entry: Stat) -> None:
    for key, value in entry.xattrs.items():
        if key.startswith(KEPT_XATTRS):
            try:
                os.setxattr(fd, key, value)
            except OSError:
                continue  # this file system has none, or not this one


async def receive(
    stream: Stream,
    receiver: Receiver,
    run_blocking: Blocking,
    progress: Callable[[int], None],
) -> None:
    """Run a call of FileSync.DiffCopy to its end; `progress` takes the bytes on the wire. Closes the receiver."""
    try:
        async with _Writer(stream) as writer:
            while not receiver.finished:
                messages = await _some(stream)
                if not messages:
                    raise TransferFault("the sender ended before all files were there")
                for answer in await run_blocking(receiver.take, messages):
                    writer.put(answer)
                progress(receiver.size)
        stream.end()
        while await stream.receive() is not None:
            continue
    except BaseException:
        stream.cancel()
        raise
    finally:
        receiver.close()


async def _some(stream: Stream) -> list[bytes]:
    """The messages that are there, waiting for the first; [] at the end."""
    first = await stream.receive()
    if first is None:
        return []
    return [first, *stream.ready(BATCH)]


class _Writer:
    """Sends in a task of its own: who reads must never wait for who writes, for the other side may do likewise."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, message: bytes) -> None:
        if self._task.done() and (error := self._task.exception()) is not None:
            raise error
        self._queue.put_nowait(message)

    async def __aenter__(self) -> _Writer:
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            return
        self._queue.put_nowait(None)
        await self._task

    async def _run(self) -> None:
        while (message := await self._queue.get()) is not None:
            await self._stream.send(message)


# --- sending


class Sender:
    """Tells of a tree's entries and gives the content that is asked for. Blocking.

    Files are opened again by path when they are asked for; nothing changes a finished build's tree.
    """

    def __init__(self, roots: dict[str, int]) -> None:
        self._roots = roots
        self._files: dict[int, tuple[int, bytes]] = {}
        self._entries = self._walk()
        self._number = 0

    def stats(self, most: int) -> list[bytes]:
        """The next entries as messages; [] when all have been told."""
        found: list[bytes] = []
        for entry, root, path in self._entries:
            if not entry.mode & GO_TYPE and not entry.link:
                self._files[self._number] = (root, path)
            self._number += 1
            found.append(encode(Packet(type=PACKET_STAT, stat=entry)))
            if len(found) >= most:
                break
        return found

    def _walk(self) -> Iterator[tuple[Stat, int, bytes]]:
        for top, root in sorted(self._roots.items()):
            if top:
                info = os.fstat(root)
                yield _stat_of(top, info, {}), root, b""
            yield from self._walk_root(f"{top}/" if top else "", root)

    def _walk_root(self, prefix: str, root: int) -> Iterator[tuple[Stat, int, bytes]]:
        links: dict[tuple[int, int], str] = {}
        with Walker(root) as walker:
            for step in walker:
                kind = stat.S_IFMT(step.info.st_mode)
                if kind == stat.S_IFSOCK:
                    continue
                path = prefix + os.fsdecode(step.path)
                entry = _stat_of(path, step.info, _xattrs(step.directory, step.name))
                if kind == stat.S_IFLNK:
                    target = os.fsdecode(os.readlink(step.name, dir_fd=step.directory))
                    entry = _with_link(entry, target)
                elif kind == stat.S_IFREG and step.info.st_nlink > 1:
                    inode = (step.info.st_dev, step.info.st_ino)
                    if inode in links:
                        entry = _with_link(entry, links[inode])
                    links.setdefault(inode, path)
                yield entry, root, step.path

    def content(self, number: int) -> Iterator[bytes]:
        """A file's content as messages, the empty one at the end. Raises TransferFault for what is no file."""
        place = self._files.pop(number, None)
        if place is None:
            raise TransferFault(f"invalid file id {number}")
        root, path = place
        fd = os.open(path, FILE_FLAGS, dir_fd=root)
        try:
            while data := os.read(fd, PIECE):
                yield encode(Packet(type=PACKET_DATA, id=number, data=data))
        finally:
            os.close(fd)
        yield encode(Packet(type=PACKET_DATA, id=number))


def _xattrs(directory: int, name: bytes) -> dict[str, bytes]:
    found = xattrs_of(directory, name)
    return {
        text: value for key, value in found.items() if (text := os.fsdecode(key)).startswith(KEPT_XATTRS)
    }  # fmt: skip


def _stat_of(path: str, info: os.stat_result, xattrs: dict[str, bytes]) -> Stat:
    is_device = stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)
    return Stat(
        path=path, mode=go_mode(info.st_mode), uid=info.st_uid, gid=info.st_gid,
        size=info.st_size if stat.S_ISREG(info.st_mode) else 0, mtime_ns=info.st_mtime_ns,
        major=os.major(info.st_rdev) if is_device else 0, minor=os.minor(info.st_rdev) if is_device else 0,
        xattrs=xattrs,
    )  # fmt: skip


def _with_link(entry: Stat, target: str) -> Stat:
    return Stat(
        path=entry.path, mode=entry.mode, uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns,
        size=entry.size, link=target, xattrs=entry.xattrs,
    )  # fmt: skip


async def send(stream: Stream, roots: dict[str, int], run_blocking: Blocking) -> None:
    """Send trees ('' for the top, or a directory's name -> open root) over a call of FileSend.DiffCopy."""
    sender = Sender(roots)
    wanted: asyncio.Queue[int | None] = asyncio.Queue()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_tell_and_give(stream, sender, wanted, run_blocking))
            group.create_task(_take_requests(stream, wanted))
    except ExceptionGroup as group_error:
        stream.cancel()
        raise group_error.exceptions[0] from None
    except BaseException:
        stream.cancel()
        raise
    stream.end()
    while await stream.receive() is not None:
        continue


async def _take_requests(stream: Stream, wanted: asyncio.Queue[int | None]) -> None:
    while (message := await stream.receive()) is not None:
        packet = decode(Packet, message)
        if packet.type == PACKET_REQUEST:
            wanted.put_nowait(packet.id)
        elif packet.type == PACKET_FIN:
            wanted.put_nowait(None)
            return
        elif packet.type == PACKET_ERROR:
            text = packet.data.decode("utf-8", "replace")
            raise TransferFault(f"error from receiver: {text}")
        else:
            raise TransferFault(f"unexpected packet {packet.type}")
    raise TransferFault("the receiver ended before all files were sent")


async def _tell_and_give(
    stream: Stream, sender: Sender, wanted: asyncio.Queue[int | None], run_blocking: Blocking
) -> None:
    """One writer: messages of a call must not be mixed. All entries first, then what was asked for meanwhile."""
    while entries := await run_blocking(sender.stats, BATCH):
        for message in entries:
            await stream.send(message)
    await stream.send(encode(Packet(type=PACKET_STAT)))
    while (number := await wanted.get()) is not None:
        pieces = sender.content(number)
        while batch := await run_blocking(_take, pieces, 32):
            for message in batch:
                await stream.send(message)
    await stream.send(encode(Packet(type=PACKET_FIN)))


def _take(pieces: Iterator[bytes], most: int) -> list[bytes]:
    found = []
    for piece in pieces:
        found.append(piece)
        if len(found) >= most:
            break
    return found
