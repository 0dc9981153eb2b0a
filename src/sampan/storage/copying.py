"""Copies directory trees by descriptor: volume copy-up, plain-copy snapshots, layers merged without overlayfs.

Everything that a layer can hold is kept: owners, modes, times to the nanosecond, xattrs and capabilities, hard links
among the copied, holes, devices, fifos. Blocks are shared where the file system can (copy_file_range(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sampan.storage.extract import META, OPAQUE, WHITEOUT, is_foreign_xattr
from sampan.storage.tree import (
    FILE_FLAGS,
    PATH_FLAGS,
    Step,
    Walker,
    copy_range,
    exists,
    holes,
    names,
    open_directory,
    proc_path,
    remove_tree,
    xattrs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTR_REFUSALS = frozenset((errno.ENOTSUP, errno.EPERM, errno.ENODATA, errno.EINVAL))


@dataclass(frozen=True, kw_only=True)
class CopyRules:
    """How a tree is copied."""

    whiteouts: bool = (
        False  # the source is a layer with `.wh.` files: apply them to what the target has
    )
    replace: bool = False  # whether an entry that is there is replaced (else it is an error)
    keep_owners: bool = True
    owner: tuple[int, int] | None = None  # instead of what the files have
    devices: bool = True
    check: Callable[[], None] | None = None  # called for every entry; raises to stop the copy


_DEFAULT = CopyRules()


def copy_tree(
    source: int, target: int, *, rules: CopyRules = _DEFAULT, with_root: bool = True
) -> None:
    """What is in one directory into another; with the attributes of the directory itself."""
    copier = _Copier(rules)
    try:
        copier.tree(source, target)
        if with_root:
            copier.attributes(source, target, os.fstat(source))
    finally:
        copier.close()


def copy_attributes(source: int, target: int, *, rules: CopyRules = _DEFAULT) -> None:
    """Owner, mode, xattrs and times of one open file or directory to another."""
    _Copier(rules).attributes(source, target, os.fstat(source))


class _Copier:
    def __init__(self, rules: CopyRules) -> None:
        self._rules = rules
        # a second name of a file is linked from the first: kept by an O_PATH descriptor of its directory
        self._links: dict[tuple[int, int], tuple[int, bytes]] = {}

    def close(self) -> None:
        for fd, _ in self._links.values():
            os.close(fd)
        self._links.clear()

    def tree(self, source: int, target: int) -> None:
        """What is in one directory into another."""
        targets = [os.dup(target)]  # a stack beside the walker's
        try:
            with Walker(source, leave=True) as walker:
                self._clear_opaque(source, targets[-1])
                for step in walker:
                    if step.leaving:
                        self.attributes(step.child, targets[-1], os.fstat(step.child))
                        os.close(targets.pop())
                    elif self._rules.whiteouts and step.name.startswith(WHITEOUT):
                        walker.prune()
                        self._whiteout(step, targets[-1])
                    elif step.child >= 0:
                        targets.append(self._subdirectory(targets[-1], step.name))
                        self._clear_opaque(step.child, targets[-1])
                    else:
                        self._entry(step.directory, targets[-1], step.name, step.info)
                    if self._rules.check is not None:
                        self._rules.check()
        finally:
            for fd in targets:
                os.close(fd)

    def _clear_opaque(self, source: int, target: int) -> None:
        if self._rules.whiteouts and exists(source, OPAQUE):
            for name in names(target):
                remove_tree(name, target)

    def _whiteout(self, step: Step, target: int) -> None:
        hidden = step.name[len(WHITEOUT) :]
        if not step.name.startswith(META) and not exists(step.directory, hidden):
            remove_tree(hidden, target)

    def _entry(self, source: int, target: int, name: bytes, info: os.stat_result) -> None:
        kind = stat.S_IFMT(info.st_mode)
        if self._rules.replace:
            remove_tree(name, target)
        if info.st_nlink > 1 and self._linked(target, name, info):
            return
        if kind == stat.S_IFREG:
            self._file(source, target, name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            self._name_attributes(source, target, name, info)
        elif kind == stat.S_IFIFO or (self._rules.devices and kind in (stat.S_IFCHR, stat.S_IFBLK)):
            os.mknod(name, kind | 0o600, info.st_rdev, dir_fd=target)
            self._name_attributes(source, target, name, info)
        else:
            return
        if info.st_nlink > 1:
            self._links[(info.st_dev, info.st_ino)] = (os.dup(target), name)

    def _linked(self, target: int, name: bytes, info: os.stat_result) -> bool:
        first = self._links.get((info.st_dev, info.st_ino))
        if first is None:
            return False
        os.link(first[1], name, src_dir_fd=first[0], dst_dir_fd=target, follow_symlinks=False)
        return True

    def _subdirectory(self, target: int, name: bytes) -> int:
        """The directory of that name in the target, new or already there, opened."""
        try:
            os.mkdir(name, 0o700, dir_fd=target)
        except FileExistsError:
            if not self._rules.replace:
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=target, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=target)
                os.mkdir(name, 0o700, dir_fd=target)
        return open_directory(name, target)

    def _file(self, source: int, target: int, name: bytes) -> None:
        original = os.open(name, FILE_FLAGS, dir_fd=source)
        try:
            info = os.fstat(original)
            if not stat.S_ISREG(info.st_mode):
                return
            copy = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                copy_data(original, copy, info)
                self.attributes(original, copy, info)
            finally:
                os.close(copy)
        finally:
            os.close(original)

    def attributes(self, source: int, target: int, info: os.stat_result) -> None:
        if self._rules.keep_owners:
            os.fchown(target, *(self._rules.owner or (info.st_uid, info.st_gid)))
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        set_xattrs(target, xattrs_of(source), follow=True)
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))

    def _name_attributes(self, source: int, target: int, name: bytes, info: os.stat_result) -> None:
        if self._rules.keep_owners:
            uid, gid = self._rules.owner or (info.st_uid, info.st_gid)
            os.chown(name, uid, gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            fd = os.open(name, PATH_FLAGS, dir_fd=target)
            try:
                os.chmod(proc_path(fd), stat.S_IMODE(info.st_mode))
            finally:
                os.close(fd)
        set_xattrs(proc_path(target, name), xattrs_of(source, name), follow=False)
        os.utime(
            name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False
        )


def copy_data(original: int, copy: int, info: os.stat_result) -> None:
    """The bytes of one open file to another, holes kept."""
    pieces = holes(original, info.st_size) if info.st_blocks * 512 < info.st_size else None
    if pieces is None:
        copy_range(original, copy, info.st_size)
        return
    for offset, length in pieces:
        copy_range(original, copy, offset + length, start=offset)
    os.ftruncate(copy, info.st_size)


def set_xattrs(target: int | bytes, xattrs: dict[bytes, bytes], *, follow: bool) -> None:
    """Set those that may be carried; what the file system refuses is passed over."""
    for key, value in xattrs.items():
        if not is_foreign_xattr(key):
            try:
                os.setxattr(target, key, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _XATTR_REFUSALS:
                    raise
