"""Directory trees by descriptor: walk, measure, remove, compare. Never by joined paths, never through a link.

A tree that we walk may be changed by its owner meanwhile (a running container), and was made by a stranger (an
image): every step opens one component, with O_NOFOLLOW, relative to the descriptor of the step before.
"""

from __future__ import annotations

import os
import stat
from array import array
from fcntl import ioctl
from typing import TYPE_CHECKING, NamedTuple

from sampan.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_DEPTH = 512
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a fifo must not wait for its other end (CVE-2024-9676)
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x20000
PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Size(NamedTuple):
    """What a tree takes."""

    apparent: int  # bytes of its files, a hard-linked file once: Docker's "Size"
    disk: int  # bytes allocated for it, directories included
    inodes: int


def open_directory(path: str | bytes, dir_fd: int | None = None) -> int:
    """A readable directory descriptor; refuses a link."""
    return os.open(path, DIRECTORY_FLAGS, dir_fd=dir_fd)


def spread_over_disk(path: str) -> None:
    """Let each directory that is made in this one start in a part of the disk of its own, where the file system can.

    ext4 puts a tree beside its parent. Without a journal it also does not give out inodes that were freed in the last
    minutes, and each new file then costs a scan over all of them: up to a millisecond where some thousand were removed.
    Source: chattr(1) "T"; find_inode_bit() in fs/ext4/ialloc.c.
    """
    fd = open_directory(path)
    try:
        flags = array("l", [0])
        ioctl(fd, _GET_FLAGS, flags)
        flags[0] |= _TOP_DIRECTORY
        ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        pass  # another file system, which has its own ways
    finally:
        os.close(fd)


def names(fd: int) -> list[bytes]:
    """What is in a directory, sorted by bytes."""
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def size_of(fd: int) -> Size:
    """Measure a tree on one file system. Entries that vanish meanwhile are not counted."""
    here = os.fstat(fd)
    apparent, disk, inodes = 0, here.st_blocks * 512, 1
    linked: set[tuple[int, int]] = set()
    with Walker(fd, sort=False) as walker:
        for step in walker:
            info = step.info
            is_directory = stat.S_ISDIR(info.st_mode)
            if is_directory and info.st_dev != here.st_dev:
                walker.prune()
            if info.st_nlink > 1 and not is_directory:
                if (info.st_dev, info.st_ino) in linked:
                    continue
                linked.add((info.st_dev, info.st_ino))
            inodes += 1
            disk += info.st_blocks * 512
            if stat.S_ISREG(info.st_mode):
                apparent += info.st_size
    return Size(apparent, disk, inodes)


def remove_tree(name: str | bytes, dir_fd: int) -> None:
    """Remove `name` and all below it; a success where it is not there. Any depth, no link followed.

    Depth is bounded by memory only: a directory deeper than `_FLAT` is moved up to the top of the tree and
    removed from there, so that neither the stack of calls nor that of descriptors grows with it.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    try:
        top = open_directory(name, dir_fd)
    except NotADirectoryError:
        raise PermissionError(1, "Operation not permitted", name) from None
    except FileNotFoundError:
        return
    try:
        counter = _empty(top, top, 0, 0)
        while counter:  # what was moved up from too deep
            counter = _empty(top, top, 0, 0)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


_FLAT = 64


def _empty(fd: int, top: int, depth: int, moved: int) -> int:
    """Remove what is in a directory; returns how many directories were moved to the top instead."""
    for name in os.listdir(fd):
        try:
            os.unlink(name, dir_fd=fd)
            continue
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError):
            pass
        try:
            child = open_directory(name, fd)
        except NotADirectoryError:
            raise PermissionError(1, "Operation not permitted", name) from None
        except PermissionError:  # not ours to read, as when nobody is root here: make it so
            os.chmod(name, 0o700, dir_fd=fd)
            child = open_directory(name, fd)
        try:
            if depth >= _FLAT:
                _make_writable(child)
                os.rename(
                    name, f".sampan-removing-{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top
                )
                moved += 1
                continue
            _make_writable(child)
            moved = _empty(child, top, depth + 1, moved)
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=fd)
    return moved


def _make_writable(fd: int) -> None:
    """Without CAP_DAC_OVERRIDE a directory must be writable by its owner before anything in it can go."""
    if os.geteuid() != 0:
        mode = os.fstat(fd).st_mode
        if mode & 0o700 != 0o700:
            os.fchmod(fd, stat.S_IMODE(mode) | 0o700)


def exists(fd: int, name: bytes) -> bool:
    """Whether a directory has an entry, whatever it is."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def xattrs_of(fd: int, name: bytes | None = None) -> dict[bytes, bytes]:
    """All extended attributes of an open file, or of `name` (not followed) in an open directory."""
    target: int | bytes = fd if name is None else b"/proc/self/fd/%d/%b" % (fd, name)
    follow = name is None
    found: dict[bytes, bytes] = {}
    try:
        keys = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return found  # no xattrs on this file system, or on this kind of file
    for key in keys:
        try:
            found[os.fsencode(key)] = os.getxattr(target, key, follow_symlinks=follow)
        except OSError:
            continue  # removed meanwhile, or not for us to read
    return found


def proc_path(fd: int, name: bytes | None = None) -> bytes:
    """A path for calls that take no descriptor or no O_PATH one: /proc/self/fd/N, or one component below it."""
    return b"/proc/self/fd/%d" % fd if name is None else b"/proc/self/fd/%d/%b" % (fd, name)


def copy_range(source: int, target: int, size: int, *, start: int = 0) -> None:
    """Copy bytes `start` to `size` of one file to the same place in another, sharing blocks where possible."""
    offset = start
    while offset < size:
        try:
            done = os.copy_file_range(source, target, size - offset, offset, offset)
        except OSError:
            break  # across file systems of two kinds, or not for these files
        if not done:
            return
        offset += done
    while offset < size:
        chunk = os.pread(source, min(1 << 20, size - offset), offset)
        if not chunk:
            return
        written = 0
        while written < len(chunk):
            written += os.pwrite(target, chunk[written:], offset + written)
        offset += len(chunk)


def holes(fd: int, size: int) -> list[tuple[int, int]] | None:
    """The (offset, length) of a sparse file's data, or None where it has no holes (or the file system cannot tell)."""
    pieces: list[tuple[int, int]] = []
    offset = 0
    try:
        while offset < size:
            try:
                start = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == 6:  # ENXIO: nothing but a hole from here on
                    break
                return None
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            pieces.append((start, end - start))
            offset = end
    finally:
        os.lseek(fd, 0, os.SEEK_SET)
    if pieces == [(0, size)] or size == 0:
        return None
    return pieces


class Step:
    """One entry met on a walk. The descriptors are the walker's and valid until the next step."""

    __slots__ = ("child", "directory", "info", "leaving", "name", "path")

    def __init__(
        self,
        directory: int,
        path: bytes,
        name: bytes,
        info: os.stat_result,
        child: int,
        *,
        leaving: bool,
    ) -> None:
        self.directory = directory  # descriptor of the directory it is in
        self.path = path  # from the top of the walk, without a slash in front
        self.name = name
        self.info = info  # lstat; of an opened directory its fstat
        self.child = child  # descriptor of a directory, -1 for all else
        self.leaving = leaving  # second visit of a directory, after all below it


class Walker:
    """Walks a tree, parents first, sorted by the bytes of names; a loop, not a recursion. Use `with`.

    What vanishes or becomes something else between two looks is left out. A tree deeper than MAX_DEPTH is
    refused: it would cost a descriptor a level, and nobody but an attacker makes one.
    """

    def __init__(
        self,
        fd: int,
        *,
        sort: bool = True,
        leave: bool = False,
        key: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._sort = sort
        self._key = key  # what to sort a directory's names by, if not by themselves
        self._leave = leave
        self._pruned = False
        self._unvisited = -1  # the directory that was yielded and not yet gone into
        self._stack: list[tuple[int, bytes, list[bytes], Step | None]] = []
        self._push(os.dup(fd), b"", None)

    def prune(self) -> None:
        """Do not go into the directory that was just yielded."""
        self._pruned = True

    def close(self) -> None:
        if self._unvisited >= 0:
            os.close(self._unvisited)
            self._unvisited = -1
        while self._stack:
            os.close(self._stack.pop()[0])

    def __enter__(self) -> Walker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Step]:
        while self._stack:
            directory, path, left, entered = self._stack[-1]
            if not left:
                if entered is not None and self._leave:
                    entered.leaving = True
                    yield entered
                os.close(directory)
                self._stack.pop()
                continue
            name = left.pop()
            step = self._look(directory, path, name)
            if step is None:
                continue
            self._pruned = False
            self._unvisited = step.child
            yield step
            self._unvisited = -1
            if step.child < 0:
                continue
            if self._pruned:
                os.close(step.child)
            else:
                self._push(step.child, step.path + b"/", step)

    def _look(self, directory: int, path: bytes, name: bytes) -> Step | None:
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            child = -1
            if stat.S_ISDIR(info.st_mode):
                child = open_directory(name, directory)
                info = os.fstat(child)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Step(directory, path + name, name, info, child, leaving=False)

    def _push(self, fd: int, path: bytes, entered: Step | None) -> None:
        if len(self._stack) > MAX_DEPTH:
            os.close(fd)
            raise InvalidArgument(f"directories nested deeper than {MAX_DEPTH}")
        left = [os.fsencode(name) for name in os.listdir(fd)]
        if self._sort:
            left.sort(key=self._key, reverse=True)
        self._stack.append((fd, path, left, entered))
