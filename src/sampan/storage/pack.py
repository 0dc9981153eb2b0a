"""A directory tree as a tar stream: layers, exports, `docker cp` out, volume backups, build contexts.

The same tree gives the same bytes: sorted by the bytes of names, parents first, times exact, no host names. The tree
may change while it is read (a running container): an entry that vanished is left out, a file that shrank is filled
with zeros, nothing is followed, fifos are never opened.

A file with several names is stored under the first of them; the others are hard links to it. Sockets are left out,
as every peer does: they mean nothing without the process that listens.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sampan.storage.extract import OPAQUE, WHITEOUT, is_foreign_xattr
from sampan.storage.tar import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Entry,
)
from sampan.storage.tar_writer import END, file_data, header, sparse_header
from sampan.storage.tree import FILE_FLAGS, Walker, holes, proc_path, xattrs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFIFO: FIFO,
}
_BATCH = 256 << 10
_SPARSE_FROM = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackRules:
    """What goes into the archive, and in which shape."""

    # the tree is an overlay upper directory: device 0:0 and opaque marks become `.wh.` files
    whiteouts: bool = False
    # it has them as `.wh.` files already, which go where the names they hide would
    markers: bool = False
    # paths for which a whiteout is put in, at their places
    gone: tuple[bytes, ...] = ()
    # files with holes in GNU's sparse form (image-spec, layer.md: layers SHOULD NOT)
    sparse: bool = False
    # what is mounted below is left out, its mount point kept
    one_file_system: bool = False
    # instead of what the files have
    owner: tuple[int, int] | None = None
    # by path in the tree; a directory left out takes all below with it
    select: Callable[[bytes], bool] | None = None


_DEFAULT = PackRules()


def archive(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Entries as a complete archive, small pieces gathered into larger ones."""
    batch: list[bytes] = []
    size = 0
    for chunk in chunks:
        if len(chunk) >= _BATCH:
            if batch:
                yield b"".join(batch)
                batch, size = [], 0
            yield chunk
            continue
        batch.append(chunk)
        size += len(chunk)
        if size >= _BATCH:
            yield b"".join(batch)
            batch, size = [], 0
    batch.append(END)
    yield b"".join(batch)


def pack(
    fd: int, *, prefix: bytes = b"", with_root: bool = False, rules: PackRules = _DEFAULT
) -> Iterator[bytes]:
    """All in the directory, as entries named `prefix/...`; with one for the directory itself if asked."""
    if with_root:
        yield _directory_header(fd, prefix or b"./", rules)
    yield from _Packer(fd, rules).tree(fd, prefix.rstrip(b"/") + b"/" if prefix else b"")


def pack_open(fd: int, *, as_name: bytes, rules: PackRules = _DEFAULT) -> Iterator[bytes]:
    """Whatever an O_PATH descriptor holds, a directory with all below it, under this name."""
    info = os.fstat(fd)
    if stat.S_ISDIR(info.st_mode):
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    elif stat.S_ISREG(info.st_mode):
        opened = os.open(proc_path(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    elif stat.S_IFMT(info.st_mode) in _KINDS:
        entry = entry_of(info, as_name, rules)
        if entry.kind == SYMLINK:
            entry.linkname = os.readlink(b"", dir_fd=fd)
        yield header(entry)
        return
    else:
        return
    try:
        if stat.S_ISDIR(info.st_mode):
            yield from pack(opened, prefix=as_name, with_root=True, rules=rules)
        else:
            yield from _Packer(opened, rules).open_file(opened, as_name)
    finally:
        os.close(opened)


def entry_of(info: os.stat_result, name: bytes, rules: PackRules = _DEFAULT) -> Entry:
    """An entry with the facts of stat(2); the caller adds link target and xattrs."""
    entry = Entry(
        name,
        _KINDS[stat.S_IFMT(info.st_mode)],
        mode=stat.S_IMODE(info.st_mode),
        mtime_ns=info.st_mtime_ns,
    )
    entry.uid, entry.gid = rules.owner or (info.st_uid, info.st_gid)
    if entry.kind == FILE:
        entry.size = entry.stored = info.st_size
    elif entry.kind in (CHAR, BLOCK_DEVICE):
        entry.major, entry.minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return entry


def _whiteout(path: bytes) -> bytes:
    """The marker that hides a path of lower layers. Its time is the epoch, so that equal changes make equal layers."""
    directory, slash, name = path.rpartition(b"/")
    return header(Entry(directory + slash + WHITEOUT + name, FILE, mode=0o600))


def _order(path: bytes) -> list[bytes]:
    """The order of a walk: a directory, all that is in it, its next sibling."""
    return path.split(b"/")


def _hidden_name(name: bytes) -> bytes:
    """The name that a marker stands for; the opaque one comes first."""
    if name == OPAQUE:
        return b""
    return name[len(WHITEOUT) :] if name.startswith(WHITEOUT) else name


class _Packer:
    def __init__(self, top: int, rules: PackRules) -> None:
        self._device = os.fstat(top).st_dev
        self._rules = rules
        self._links: dict[tuple[int, int], bytes] = {}

    def tree(self, fd: int, prefix: bytes) -> Iterator[bytes]:
        """What is in a directory; `prefix` is put in front of every path."""
        gone = sorted(self._rules.gone, key=_order, reverse=True)
        with Walker(fd, key=_hidden_name if self._rules.markers else None) as walker:
            for step in walker:
                while gone and _order(gone[-1]) < _order(step.path):
                    yield _whiteout(prefix + gone.pop())
                if self._rules.select is not None and not self._rules.select(step.path):
                    walker.prune()
                    continue
                as_name = prefix + step.path
                if step.child >= 0:
                    yield _directory_header(step.child, as_name, self._rules)
                    if self._rules.one_file_system and step.info.st_dev != self._device:
                        walker.prune()
                elif self._rules.whiteouts and is_whiteout(step.info):
                    yield _whiteout(as_name)
                elif self._rules.markers and step.name.startswith(WHITEOUT):
                    yield header(Entry(as_name, FILE, mode=0o600))
                else:
                    yield from self.entry(step.directory, step.name, as_name, step.info)
        while gone:
            yield _whiteout(prefix + gone.pop())

    def entry(self, fd: int, name: bytes, as_name: bytes, info: os.stat_result) -> Iterator[bytes]:
        """One entry that is no directory."""
        if stat.S_IFMT(info.st_mode) not in _KINDS or stat.S_ISDIR(info.st_mode):
            return
        if info.st_nlink > 1:
            first = self._links.setdefault((info.st_dev, info.st_ino), as_name)
            if first is not as_name:
                link = entry_of(info, as_name, self._rules)
                link.kind, link.linkname, link.size, link.stored = LINK, first, 0, 0
                yield header(link)
                return
        if not stat.S_ISREG(info.st_mode):
            try:
                yield self._special(fd, name, as_name, info)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):  # gone, or no link any more
                    raise
            return
        try:
            opened = os.open(name, FILE_FLAGS, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return  # replaced between stat and open
            raise
        try:
            yield from self.open_file(opened, as_name)
        finally:
            os.close(opened)

    def open_file(self, fd: int, as_name: bytes) -> Iterator[bytes]:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return
        entry = entry_of(info, as_name, self._rules)
        entry.xattrs = _portable(xattrs_of(fd))
        if (
            self._rules.sparse
            and info.st_size >= _SPARSE_FROM
            and info.st_blocks * 512 < info.st_size
        ):
            entry.sparse = holes(fd, info.st_size)
        if entry.sparse is not None:
            entry.stored = sum(length for _, length in entry.sparse)
            yield sparse_header(entry)
        else:
            yield header(entry)
        yield from file_data(fd, entry)

    def _special(self, fd: int, name: bytes, as_name: bytes, info: os.stat_result) -> bytes:
        entry = entry_of(info, as_name, self._rules)
        if entry.kind == SYMLINK:
            entry.linkname = os.readlink(name, dir_fd=fd)
        entry.xattrs = _portable(xattrs_of(fd, name))
        return header(entry)


def _directory_header(fd: int, as_name: bytes, rules: PackRules) -> bytes:
    """The header of a directory, and where it hides what is below it, the marker that says so."""
    entry = entry_of(os.fstat(fd), as_name, rules)
    attributes = xattrs_of(fd)
    entry.xattrs = _portable(attributes)
    blocks = header(entry)
    if rules.whiteouts and is_opaque(attributes):
        blocks += header(Entry(as_name.rstrip(b"/") + b"/" + OPAQUE, FILE, mode=0o600))
    return blocks


def is_whiteout(info: os.stat_result) -> bool:
    """overlayfs' sign that a name of lower layers is gone."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(attributes: dict[bytes, bytes]) -> bool:
    """Whether overlayfs shows nothing of lower layers in the directory with these attributes."""
    return (
        attributes.get(b"trusted.overlay.opaque") == b"y"
        or attributes.get(b"user.overlay.opaque") == b"y"
    )


def _portable(attributes: dict[bytes, bytes]) -> dict[bytes, bytes] | None:
    return {key: value for key, value in attributes.items() if not is_foreign_xattr(key)} or None
