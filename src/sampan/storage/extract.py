"""Puts the entries of a tar archive into a directory, and nowhere else.

    name ──clean──► (parent, base) ──openat2──► descriptor of the parent ──one-component *at call──► the object

The parent is opened by openat2(2) with RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS under the root's descriptor: links in
the archive are followed as a chroot would follow them, and `..` stops at the root. What is then created, replaced,
linked or given an owner is a single name in that directory, never followed. So there is no check that a later
step could outrun, and no path is ever joined (CVE-2014-6407, -9356, 2018-15664, 2021-32760, 2025-4517).

A few hundred parent descriptors are kept open, since archives list a directory's files together; they are dropped
whenever a directory or a link is replaced. Directory times are set at the end, when nothing is written there any more.

What an archive cannot bring in, whoever made it: `trusted.*` (overlayfs reads redirect and opaque marks there),
`user.overlay.*` (the same, unprivileged) and `security.selinux` (labels are the host's business).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sampan.linux.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from sampan.linux.syscalls import openat2
from sampan.storage.tar import (
    AS_CUT_OFF,
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Entry,
    Limits,
    TarError,
    show,
)
from sampan.storage.tree import PATH_FLAGS, proc_path, remove_tree

if TYPE_CHECKING:
    from sampan.storage.tar_reader import TarReader

WHITEOUT = b".wh."
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
_CACHED_PARENTS = 192
_RESOLVE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_PARENT = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# the archive's own fault, as opposed to a full or failing disk
_ARCHIVE_FAULTS = frozenset(
    (
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.EXDEV,
        errno.EFBIG,
        errno.EOVERFLOW,
    )
)
# what a file system or an unprivileged user may be unable to store; Docker passes over these too
_XATTR_REFUSALS = frozenset((errno.ENOTSUP, errno.EPERM, errno.ENODATA, errno.EINVAL))


class Whiteouts(enum.Enum):
    """What becomes of names that begin with `.wh.` (OCI image-spec, layer.md "Whiteouts")."""

    PLAIN = "plain"  # nothing special: an archive that is no layer
    OVERLAY = "trusted"  # character device 0:0, trusted.overlay.opaque
    OVERLAY_USER = "user"  # the same with user.overlay.opaque, for mounts with `userxattr`
    FILES = "files"  # kept as empty files of that name


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How an archive is put into place; the defaults are those of a layer."""

    whiteouts: Whiteouts = Whiteouts.OVERLAY
    owner: tuple[int, int] | None = None  # instead of what the archive says
    keep_owners: bool = True  # False: everything stays ours (a user without subordinate ids)
    devices: bool = True  # False: pass over them (in a user namespace they could not be made)
    touch_root: bool = True  # whether an entry for "." changes the root directory itself
    replace_kinds: bool = (
        True  # False: never a directory by something else or the reverse (`docker cp`)
    )
    new_directory_mode: int = 0o755  # of parents that the archive does not list
    destination: str = "/"  # what messages call the directory
    skip: frozenset[bytes] = field(default_factory=frozenset)  # top-level names to pass over


LAYER_RULES = Rules()


class Extractor:
    """Extracts into one directory. Not for several threads. `close()` it, or use `with`."""

    def __init__(
        self, root_fd: int, *, rules: Rules = LAYER_RULES, limits: Limits | None = None
    ) -> None:
        self._root = root_fd
        self._rules = rules
        self._limits = limits or Limits()
        self._parents: dict[bytes, int] = {}
        self._directory_times: dict[bytes, tuple[int, tuple[int, int]]] = {}  # inode, times
        self._root_times: tuple[int, int] | None = None
        self._now = (0, 0)  # the times of the entry at hand
        self._is_layer = rules.whiteouts is not Whiteouts.PLAIN
        self._makers = {
            FILE: self._file,
            DIRECTORY: self._directory,
            SYMLINK: self._symlink,
            LINK: self._link,
            CHAR: self._node,
            BLOCK_DEVICE: self._node,
            FIFO: self._node,
        }
        self.bytes = 0
        self.entries = 0
        self.opaque_root = False
        self.root_seen = False

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._forget_parents()

    def extract(self, reader: TarReader) -> None:
        """Every entry, then the times of directories. On failure what is there stays there: the caller discards it."""
        while (entry := reader.next()) is not None:
            self.add(entry, reader)
        self.finish()

    def add(self, entry: Entry, reader: TarReader) -> None:
        """One entry; its data is read from `reader`, which stands on it."""
        try:
            self._add(entry, reader)
        except OSError as error:
            if error.errno in _ARCHIVE_FAULTS:
                raise TarError(
                    f"cannot extract: {os.strerror(error.errno or 0)}", entry=entry.name
                ) from error
            raise OSError(error.errno, error.strerror, os.fsdecode(entry.name)) from error

    def _add(self, entry: Entry, reader: TarReader) -> None:
        self.entries += 1
        self.bytes += entry.size
        if self.bytes > self._limits.bytes:
            raise TarError(f"more than {self._limits.bytes} bytes of files", entry=entry.name)
        parent_path, base = split_name(entry.name, self._limits)
        if len(self._parents) > _CACHED_PARENTS:
            self._forget_parents()
        if not base:
            self._root_entry(entry)
            return
        if not parent_path and base in self._rules.skip:
            return
        if self._is_layer and base.startswith(WHITEOUT):
            self._whiteout(entry, parent_path, base)
            return
        self._now = _times(entry)
        self._makers[entry.kind](entry, parent_path, base, reader)

    def finish(self) -> None:
        """Directory times, deepest last written first, so that setting one does not touch another."""
        for path, (inode, times) in reversed(self._directory_times.items()):
            parent, _, base = path.rpartition(b"/")
            try:
                fd = self._parents.get(parent)
                if fd is None:
                    if len(self._parents) > _CACHED_PARENTS:
                        self._forget_parents()
                    fd = openat2(self._root, parent or b".", _PARENT, 0, _RESOLVE)
                    self._parents[parent] = fd
                there = os.stat(base, dir_fd=fd, follow_symlinks=False)
                if there.st_ino == inode and stat.S_ISDIR(there.st_mode):
                    os.utime(base, ns=times, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                # a later entry put something else there
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
        self._directory_times.clear()
        if self._root_times is not None:
            os.utime(self._root, ns=self._root_times)
        self._forget_parents()

    # -- parents -------------------------------------------------------------------------------------------------

    def _parent(self, path: bytes) -> int:
        """The descriptor of a directory below the root, made where it is missing."""
        fd = self._parents.get(path)
        if fd is None:
            try:
                fd = openat2(self._root, path or b".", _PARENT, 0, _RESOLVE)
            except (FileNotFoundError, NotADirectoryError):
                fd = self._make_parents(path)
            self._parents[path] = fd
        return fd

    def _make_parents(self, path: bytes) -> int:
        """Everything that is missing of a path, from the deepest directory that exists."""
        missing: list[tuple[bytes, bytes]] = []
        while True:
            whole = path
            path, _, base = path.rpartition(b"/")
            missing.append((whole, base))
            try:
                fd = openat2(self._root, path or b".", _PARENT, 0, _RESOLVE)
                break
            except (FileNotFoundError, NotADirectoryError):
                if not path:
                    raise
        while missing:
            try:
                whole, base = missing.pop()
                self._new_parent(fd, base)
                inner = os.open(base, _PARENT | os.O_NOFOLLOW, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
            if (
                self._is_layer
            ):  # no clock: the same layer is the same tree, also where the archive says no time
                self._directory_times.setdefault(whole, (os.fstat(fd).st_ino, (0, 0)))
        return fd

    def _new_parent(self, above: int, base: bytes) -> None:
        try:
            os.mkdir(base, 0o700, dir_fd=above)
        except FileExistsError:
            if not self._is_whiteout(above, base):  # a file, or a link to nowhere
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), base) from None
            os.unlink(base, dir_fd=above)
            os.mkdir(base, 0o700, dir_fd=above)
            self._mark_opaque(above, base)
        fd = os.open(
            base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above
        )
        try:
            if self._rules.keep_owners:
                os.fchown(fd, *(self._rules.owner or (0, 0)))
            os.fchmod(fd, self._rules.new_directory_mode)
        finally:
            os.close(fd)

    def _forget_parents(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    # -- one method a kind ---------------------------------------------------------------------------------------

    def _root_entry(self, entry: Entry) -> None:
        if entry.kind != DIRECTORY:
            raise TarError("the root of the archive is not a directory", entry=entry.name)
        self.root_seen = True
        if self._rules.touch_root:
            self._finish_fd(self._root, entry, times=False)
            self._root_times = _times(entry)

    def _file(self, entry: Entry, parent_path: bytes, base: bytes, reader: TarReader) -> None:
        parent = self._parent(parent_path)
        try:
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._make_way(parent, parent_path, base, entry)
            parent = self._parent(parent_path)
            fd = os.open(base, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.sparse is None:
                reader.copy_to(fd)
            else:
                _write_sparse(fd, entry, reader)
            self._finish_fd(fd, entry)
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, parent_path: bytes, base: bytes, reader: TarReader) -> None:
        parent = self._parent(parent_path)
        opaque = False
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
        except FileExistsError:
            there = os.stat(base, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(there.st_mode):
                opaque = self._is_layer and _is_whiteout_device(there)
                self._make_way(parent, parent_path, base, entry)
                parent = self._parent(parent_path)
                os.mkdir(base, 0o700, dir_fd=parent)
        fd = os.open(
            base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
        try:
            self._finish_fd(fd, entry, times=False)
            inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        if opaque:
            self._mark_opaque(parent, base)
        path = parent_path + b"/" + base if parent_path else base
        self._directory_times.pop(path, None)
        self._directory_times[path] = (inode, _times(entry))

    def _symlink(self, entry: Entry, parent_path: bytes, base: bytes, reader: TarReader) -> None:
        parent = self._parent(parent_path)
        try:
            os.symlink(entry.linkname, base, dir_fd=parent)
        except FileExistsError:
            self._make_way(parent, parent_path, base, entry)
            parent = self._parent(parent_path)
            os.symlink(entry.linkname, base, dir_fd=parent)
        self._chown_name(entry, parent, base)
        if entry.xattrs:
            self._xattrs(proc_path(parent, base), entry.xattrs, follow=False)
        os.utime(base, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    def _link(self, entry: Entry, parent_path: bytes, base: bytes, reader: TarReader) -> None:
        source_path, source_base = split_name(entry.linkname, self._limits, of=entry.name)
        if not source_base or (source_path, source_base) == (parent_path, base):
            raise TarError(
                f"hard link to itself or to the root ({show(entry.linkname)})", entry=entry.name
            )
        try:
            source = self._parents.get(source_path)
            if source is None:
                source = openat2(self._root, source_path or b".", _PARENT, 0, _RESOLVE)
                self._parents[source_path] = source
            os.stat(source_base, dir_fd=source, follow_symlinks=False)
        except OSError as error:
            raise TarError(
                f"hard link to {show(entry.linkname)}: {os.strerror(error.errno or 0)}",
                entry=entry.name,
            ) from error
        parent = self._parent(parent_path)
        try:
            os.link(source_base, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            if os.path.samestat(
                os.stat(base, dir_fd=parent, follow_symlinks=False),
                os.stat(source_base, dir_fd=source, follow_symlinks=False),
            ):
                return
            self._make_way(parent, parent_path, base, entry)
            source, parent = self._parent(source_path), self._parent(parent_path)
            os.link(source_base, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def _node(self, entry: Entry, parent_path: bytes, base: bytes, reader: TarReader) -> None:
        if entry.kind != FIFO and not self._rules.devices:
            return
        kind = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}[entry.kind]
        device = os.makedev(entry.major, entry.minor) if entry.kind != FIFO else 0
        parent = self._parent(parent_path)
        try:
            os.mknod(base, kind | 0o600, device, dir_fd=parent)
        except FileExistsError:
            self._make_way(parent, parent_path, base, entry)
            parent = self._parent(parent_path)
            os.mknod(base, kind | 0o600, device, dir_fd=parent)
        self._chown_name(entry, parent, base)
        # chmod(2) and setxattr(2) of exactly this object: by its O_PATH descriptor, since opening a device acts
        fd = os.open(base, PATH_FLAGS, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) == kind:
                os.chmod(proc_path(fd), entry.mode)
                if entry.xattrs:
                    self._xattrs(proc_path(fd), entry.xattrs, follow=True)
        finally:
            os.close(fd)
        os.utime(base, ns=_times(entry), dir_fd=parent, follow_symlinks=False)

    # -- whiteouts -----------------------------------------------------------------------------------------------

    def _whiteout(self, entry: Entry, parent_path: bytes, base: bytes) -> None:
        if base == OPAQUE:
            parent = self._parent(parent_path)
            if not parent_path:
                self.opaque_root = True
            if self._rules.whiteouts is Whiteouts.FILES:
                self._marker_file(parent, base)
            else:
                self._set_opaque(proc_path(parent))
            return
        if base.startswith(META):
            return  # aufs' own bookkeeping, which old layers carry
        hidden = base[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise TarError("whiteout of an impossible name", entry=entry.name)
        parent = self._parent(parent_path)
        if self._rules.whiteouts is Whiteouts.FILES:
            self._marker_file(parent, base)
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            # A whiteout speaks of lower layers only (layer.md: "MUST only apply to resources in lower/parent
            # layers"): what this layer has itself stays; a directory hides what lower layers have in it.
            if stat.S_ISDIR(os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode):
                self._mark_opaque(parent, hidden)

    def _marker_file(self, parent: int, base: bytes) -> None:
        fd = os.open(
            base, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        os.close(fd)

    def _mark_opaque(self, parent: int, base: bytes) -> None:
        if self._rules.whiteouts is Whiteouts.FILES:
            return
        fd = os.open(base, _PARENT | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self._set_opaque(proc_path(fd))
        finally:
            os.close(fd)

    def _set_opaque(self, path: bytes) -> None:
        os.setxattr(path, f"{self._rules.whiteouts.value}.overlay.opaque", b"y")

    def _is_whiteout(self, parent: int, base: bytes) -> bool:
        return self._is_layer and _is_whiteout_device(
            os.stat(base, dir_fd=parent, follow_symlinks=False)
        )

    # -- what is common ------------------------------------------------------------------------------------------

    def _make_way(self, parent: int, parent_path: bytes, base: bytes, entry: Entry) -> None:
        """Remove what stands where the entry goes, as Docker does: a later entry replaces an earlier one."""
        there = os.stat(base, dir_fd=parent, follow_symlinks=False)
        is_directory = stat.S_ISDIR(there.st_mode)
        if not self._rules.replace_kinds and is_directory != (entry.kind == DIRECTORY):
            raise _wrong_kind(entry, is_directory, self._rules.destination)
        if is_directory or stat.S_ISLNK(there.st_mode):
            self._forget_parents()  # what was opened through it is somewhere else now
            parent = self._parent(parent_path)
        if is_directory:
            remove_tree(base, parent)
        else:
            os.unlink(base, dir_fd=parent)

    def _finish_fd(self, fd: int, entry: Entry, *, times: bool = True) -> None:
        """Owner, then mode and capabilities (a change of owner clears both), then times."""
        if self._rules.keep_owners:
            os.fchown(fd, *(self._rules.owner or (entry.uid, entry.gid)))
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            self._xattrs(fd, entry.xattrs, follow=True)
        if times:
            os.utime(fd, ns=_times(entry))

    def _chown_name(self, entry: Entry, parent: int, base: bytes) -> None:
        if self._rules.keep_owners:
            uid, gid = self._rules.owner or (entry.uid, entry.gid)
            os.chown(base, uid, gid, dir_fd=parent, follow_symlinks=False)

    def _xattrs(self, target: int | bytes, xattrs: dict[bytes, bytes], *, follow: bool) -> None:
        for key, value in xattrs.items():
            if not is_foreign_xattr(key):
                try:
                    os.setxattr(target, key, value, follow_symlinks=follow)
                except OSError as error:
                    if error.errno not in _XATTR_REFUSALS:
                        raise


def is_foreign_xattr(key: bytes) -> bool:
    """An extended attribute that belongs to the host or to overlayfs, and neither enters nor leaves by a layer."""
    return (
        key.startswith((b"trusted.", b"user.overlay."))
        or key == b"security.selinux"
        or b"\0" in key
    )


def split_name(name: bytes, limits: Limits, *, of: bytes | None = None) -> tuple[bytes, bytes]:
    """(parent, base) of an entry's name, relative to the root; ("", "") for the root itself.

    `a/../b` is `b`, as Docker cleans names; a name that leads above the root is refused.
    """
    if b"//" not in name and b"/." not in name and name[:1] not in (b"/", b".", b""):
        parent, _, base = (name[:-1] if name[-1] == 0x2F else name).rpartition(b"/")
        if name.count(b"/") < limits.depth:
            return parent, base
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts and not name.startswith(b"/"):
                raise TarError(
                    f"{show(name)} is outside of the root", entry=of if of is not None else name
                )
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    if len(parts) > limits.depth:
        raise TarError(
            f"deeper than {limits.depth} directories", entry=of if of is not None else name
        )
    return b"/".join(parts[:-1]), parts[-1] if parts else b""


def _times(entry: Entry) -> tuple[int, int]:
    return (entry.mtime_ns if entry.atime_ns is None else entry.atime_ns, entry.mtime_ns)


def _is_whiteout_device(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _wrong_kind(entry: Entry, is_directory: bool, destination: str) -> TarError:
    """In Docker's words, which clients look for."""
    error = TarError("wrong kind", entry=entry.name)
    there = f"{destination.rstrip('/')}/{os.fsdecode(entry.name.strip(b'/'))}"
    error.message = (
        f'cannot overwrite directory "{there}" with non-directory "{destination}"'
        if is_directory
        else f'cannot overwrite non-directory "{there}" with directory "{destination}"'
    )
    return error


def _write_sparse(fd: int, entry: Entry, reader: TarReader) -> None:
    """Each piece at its place; the holes between are never written."""
    for offset, length in entry.sparse or ():
        os.lseek(fd, offset, os.SEEK_SET)
        while length:
            piece = reader.piece(min(length, 1 << 20))
            if not piece:
                raise TarError(
                    "unexpected end of the archive", entry=entry.name, as_docker=AS_CUT_OFF
                )
            length -= len(piece)
            while piece:
                piece = piece[os.write(fd, piece) :]
    os.ftruncate(fd, entry.size)
