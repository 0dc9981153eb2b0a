"""Chosen files of one tree into another: what COPY and ADD of a Dockerfile do, by descriptor on both sides.

    source root, path or pattern  ──select()──►  Selected entries  ──place()──►  target root, destination

Both roots may be hostile: paths are resolved as a process chrooted there would, and what is walked is walked by
descriptor, so neither side's links lead out (CVE-2024-23652, CVE-2024-1753). The rules are BuildKit's: of a directory
its content is copied; the destination keeps its attributes but for the time, directories in it get the source's; a
link named as the source itself is followed, one inside a directory is copied.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sampan.errors import InvalidArgument, NotFound
from sampan.linux.paths import open_in_root
from sampan.storage.copying import copy_data, set_xattrs
from sampan.storage.globs import component_pattern
from sampan.storage.tree import (
    DIRECTORY_FLAGS,
    FILE_FLAGS,
    Walker,
    open_directory,
    xattrs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_CLOEXEC

MAX_LINKS = 255
MAX_HELD = 256  # directories held open for the hard links that begin in them


def _inode(info: os.stat_result) -> Inode:
    return (info.st_dev, info.st_ino)


Inode = tuple[int, int]
Name = tuple[Inode, bytes]  # in a directory of the target


@dataclass(frozen=True, kw_only=True)
class TransferRules:
    """How what is copied differs from what it was."""

    owner: tuple[int, int] | None = None
    mode: Callable[[int, bool], int] | None = None  # (permission bits, is it a directory) -> bits
    created_ns: int | None = None  # time of directories that are made on the way; None: now
    # Where files are ours and will never be written again, the copy may be another name of the same file: the inodes
    # that have one in this layer already, and must not get another.
    lent: set[Inode] | None = None


class Selected(NamedTuple):
    """One entry that a pattern chose. `path` is from the source's root, without a slash in front."""

    path: str
    is_directory: bool


def has_wildcard(path: str) -> bool:
    """Whether it is a pattern: an unescaped * ? or [."""
    return re.search(r"(?<!\\)[*?\[]", path) is not None


def select(root: int, path: str) -> list[Selected]:
    """What a source names: one entry, or everything that a pattern matches, sorted.

    Raises NotFound where a plain path is not there. A pattern that matches nothing gives nothing.
    """
    clean = os.path.normpath("/" + path).lstrip("/")
    if not has_wildcard(clean):
        return [_one(root, clean.replace("\\", "") if "\\" in clean else clean)]
    found = [""]
    for part in clean.split("/"):
        found = [name for above in found for name in _matching(root, above, part)]
    return [_one(root, name) for name in sorted(found)]


def _matching(root: int, above: str, part: str) -> list[str]:
    front = above + "/" if above else ""
    if not has_wildcard(part):
        name = front + part.replace("\\", "")
        return [name] if _exists(root, name) else []
    try:
        directory = open_in_root(root, above or ".", _DIRECTORY)
    except OSError:
        return []
    try:
        listed = os.listdir(directory)
    finally:
        os.close(directory)
    expression = component_pattern(part)
    return [front + name for name in listed if expression.fullmatch(name)]


def _exists(root: int, path: str) -> bool:
    try:
        os.close(open_in_root(root, path, _PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _one(root: int, path: str) -> Selected:
    try:
        fd = open_in_root(root, path or ".", _PATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise NotFound(path) from None
        raise
    try:
        return Selected(path, stat.S_ISDIR(os.fstat(fd).st_mode))
    finally:
        os.close(fd)


def real_path(root: int, path: str) -> int:
    """A readable descriptor of what the path names, links followed inside the root.

    An O_PATH one where it is neither a directory nor a regular file: opening a device or a FIFO acts on it.
    """
    fd = open_in_root(root, path or ".", _PATH)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return os.open(f"/proc/self/fd/{fd}", _DIRECTORY)
        if stat.S_ISREG(mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        return os.dup(fd)
    finally:
        os.close(fd)


def root_path(root: int, path: str) -> str:
    """A path of the target with every link in it worked off, inside the root; what is not there stays as it is.

    Raises InvalidArgument where links go round in circles.
    """
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    found: list[str] = []
    for _ in range(MAX_LINKS):
        while waiting:
            part = waiting.pop()
            if part == "..":
                found = found[:-1]
                continue
            link = _link(root, "/".join((*found, part)))
            if link is None:
                found.append(part)
                continue
            if link.startswith("/"):
                found = []
            waiting += [each for each in reversed(link.split("/")) if each not in ("", ".")]
            break
        else:
            return "/" + "/".join(found)
    raise InvalidArgument(f"too many links in {path}")


def _link(root: int, path: str) -> str | None:
    """Where a link leads; None where there is none."""
    try:
        fd = open_in_root(root, path, _PATH | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            return os.readlink("", dir_fd=fd)
        return None
    finally:
        os.close(fd)


class Transfer:
    """Copies into one target root. `with` it, for it holds descriptors."""

    def __init__(self, target_root: int, rules: TransferRules, *, upper: int = -1) -> None:
        """`upper`: where the target's new files really lie, below an overlay; new directories are filled there."""
        self._root = target_root
        self._upper = upper
        self._rules = rules
        self._links: dict[Inode, Name] = {}  # source -> its first copy
        self._first: dict[Name, Inode] = {}  # the same, the other way round
        self._held: dict[Inode, int] = {}  # directories of the target that hold a first link
        self._lent: set[Inode] = set()  # names of one file within one source stay names of one file
        self.entries = 0

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._held.values():
            os.close(fd)
        if self._rules.lent is not None:
            self._rules.lent.update(self._lent)
        self._held.clear()
        self._links.clear()
        self._first.clear()

    # -- the destination

    def directory(self, path: str) -> int:
        """A descriptor of a destination directory, made with its parents (0755, the rules' owner) where missing."""
        current = os.dup(self._root)
        for part in root_path(self._root, path).split("/"):
            if part:
                try:
                    following = self._enter(current, os.fsencode(part))
                finally:
                    os.close(current)
                current = following
        return current

    def _enter(self, parent: int, name: bytes) -> int:
        """The directory of that name, made where it is missing."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISDIR(info.st_mode):
                raise InvalidArgument(f"cannot copy to non-directory: {os.fsdecode(name)}")
            return os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        before = os.fstat(parent)
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        os.fchmod(fd, 0o755)
        if self._rules.owner is not None:
            os.fchown(fd, *self._rules.owner)
        if self._rules.created_ns is not None:
            os.utime(fd, ns=(self._rules.created_ns, self._rules.created_ns))
            if before.st_mtime_ns == self._rules.created_ns:  # it was made on the way too
                os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
        return fd

    def destination_is_directory(self, path: str) -> bool:
        """Whether something is there and is a directory."""
        try:
            fd = open_in_root(self._root, path or ".", _PATH)
        except OSError:
            return False
        try:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    # -- entries

    def contents(
        self, source: int, target_path: str, *, exclude: Callable[[str, bool], bool] | None = None
    ) -> None:
        """What is in an open directory into the directory `target_path`, which takes its time.

        `exclude`: asked with (path from `source`, is it a directory) what to pass over.
        """
        is_new = not self.destination_is_directory(target_path)
        target = self.directory(target_path)
        if is_new and self._upper >= 0:
            os.close(target)
            target = self._in_upper(target_path)
        try:
            self._tree(source, target, exclude)
            info = os.fstat(source)
            os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(target)

    def _in_upper(self, path: str) -> int:
        """A directory that was made just now, without the overlay: nothing of it is below."""
        current = os.dup(self._upper)
        for part in root_path(self._root, path).split("/"):
            if part:
                try:
                    following = os.open(part, DIRECTORY_FLAGS, dir_fd=current)
                finally:
                    os.close(current)
                current = following
        return current

    def file(self, source: int, target_path: str) -> None:
        """An open file (of any kind but a directory) to exactly that path."""
        above, _, name = root_path(self._root, target_path).rpartition("/")
        parent = self.directory(above)
        try:
            self._regular(source, parent, self._final_name(parent, above, name), os.fstat(source))
        finally:
            os.close(parent)

    def _final_name(self, parent: int, above: str, name: str) -> bytes:
        raw = os.fsencode(name)
        if not raw:
            raise InvalidArgument("destination is a directory")
        try:
            info = os.stat(raw, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return raw
        if stat.S_ISDIR(info.st_mode):
            shown = f"{above}/{name}".lstrip("/")
            raise InvalidArgument(f"cannot replace to directory /{shown} with file")
        self._unlink(parent, raw)
        return raw

    def _tree(self, source: int, target: int, exclude: Callable[[str, bool], bool] | None) -> None:
        targets = [os.dup(target)]
        try:
            with Walker(source, leave=True) as walker:
                for step in walker:
                    path = os.fsdecode(step.path)
                    if step.leaving:
                        fd = targets.pop()
                        self._attributes(step.child, fd, os.fstat(step.child), is_directory=True)
                        os.close(fd)
                    elif step.child >= 0:
                        if exclude is not None and exclude(path, True):
                            walker.prune()
                        else:
                            targets.append(self._into(targets[-1], step.name))
                    elif exclude is None or not exclude(path, False):
                        self._entry(step.directory, targets[-1], step.name, step.info)
        finally:
            for fd in targets:
                os.close(fd)

    def _into(self, parent: int, name: bytes) -> int:
        """The directory of that name in the target, made where it is missing."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=parent)
        else:
            if not stat.S_ISDIR(info.st_mode):
                raise InvalidArgument(f"cannot copy to non-directory: {os.fsdecode(name)}")
        return open_directory(name, parent)

    def _entry(self, source: int, target: int, name: bytes, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFSOCK:
            return  # it is nothing without the program behind it
        self._make_way(target, name)
        self.entries += 1
        if kind == stat.S_IFREG and self._lend(source, target, name, info):
            return
        if info.st_nlink > 1 and self._linked(target, name, info):
            return
        if kind == stat.S_IFREG:
            fd = os.open(name, FILE_FLAGS, dir_fd=source)
            try:
                self._regular(fd, target, name, os.fstat(fd))
            finally:
                os.close(fd)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            uid, gid = self._rules.owner or (info.st_uid, info.st_gid)
            os.chown(name, uid, gid, dir_fd=target, follow_symlinks=False)
            times = (info.st_atime_ns, info.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        elif kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK):
            os.mknod(name, kind | stat.S_IMODE(info.st_mode), info.st_rdev, dir_fd=target)
            uid, gid = self._rules.owner or (info.st_uid, info.st_gid)
            os.chown(name, uid, gid, dir_fd=target, follow_symlinks=False)
        if info.st_nlink > 1:
            self._remember_link(target, name, info)

    def _lend(self, source: int, target: int, name: bytes, info: os.stat_result) -> bool:
        """Whether the file itself got a name in the target: what is to be changed, or has one there, is copied."""
        rules = self._rules
        if rules.lent is None or rules.owner is not None or rules.mode is not None:
            return False
        if _inode(info) in rules.lent:
            return False
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError:
            return False  # another file system, or too many names
        self._lent.add(_inode(info))
        return True

    def _linked(self, target: int, name: bytes, info: os.stat_result) -> bool:
        """Whether it became another name of the copy that was made of the same file."""
        first = self._links.get(_inode(info))
        if first is None:
            return False
        directory, known_name = first
        os.link(
            known_name, name, src_dir_fd=self._held[directory], dst_dir_fd=target, follow_symlinks=False
        )  # fmt: skip
        return True

    def _remember_link(self, target: int, name: bytes, info: os.stat_result) -> None:
        """One descriptor a directory, and not without end: beyond that the names become files of their own."""
        directory = _inode(os.fstat(target))
        if directory not in self._held:
            if len(self._held) >= MAX_HELD:
                return
            self._held[directory] = os.dup(target)
        self._links[_inode(info)] = (directory, name)
        self._first[(directory, name)] = _inode(info)

    def _unlink(self, parent: int, name: bytes) -> None:
        """A later source takes the place of this: no other name may be linked to it from now on."""
        os.unlink(name, dir_fd=parent)
        if self._first:
            source = self._first.pop((_inode(os.fstat(parent)), name), None)
            if source is not None:
                del self._links[source]

    def _make_way(self, target: int, name: bytes) -> None:
        try:
            info = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            raise InvalidArgument(f"cannot replace to directory {os.fsdecode(name)} with file")
        self._unlink(target, name)

    def _regular(self, source: int, target: int, name: bytes, info: os.stat_result) -> None:
        copy = os.open(name, _CREATE, 0o600, dir_fd=target)
        try:
            copy_data(source, copy, info)
            self._attributes(source, copy, info, is_directory=False)
        finally:
            os.close(copy)

    def _attributes(
        self, source: int, target: int, info: os.stat_result, *, is_directory: bool
    ) -> None:
        os.fchown(target, *(self._rules.owner or (info.st_uid, info.st_gid)))
        mode = stat.S_IMODE(info.st_mode)
        if self._rules.mode is not None:
            mode = self._rules.mode(mode, is_directory)
        os.fchmod(target, mode)
        set_xattrs(target, xattrs_of(source), follow=True)
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def write_file(
    transfer_root: int, target_path: str, data: bytes, rules: TransferRules, *, mode: int
) -> None:
    """A new regular file with this content: a here-document of COPY."""
    with Transfer(transfer_root, rules) as transfer:
        above, _, name = root_path(transfer_root, target_path).rpartition("/")
        parent = transfer.directory(above)
        try:
            raw = transfer._final_name(parent, above, name)
            fd = os.open(raw, _CREATE, 0o600, dir_fd=parent)
            try:
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(data)
                bits = rules.mode(mode, False) if rules.mode is not None else mode
                os.fchown(fd, *(rules.owner or (0, 0)))
                os.fchmod(fd, bits)
            finally:
                os.close(fd)
        finally:
            os.close(parent)
