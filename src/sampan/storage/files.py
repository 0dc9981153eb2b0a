"""`docker cp` both ways, stat and export, on a container's tree: found by descriptor, whatever the tree does meanwhile.

    Place(root, mounts)        the container's root as a descriptor, and what is mounted in it as it stops
      .find(path)  ──► Spot    parent descriptor + one name, links followed inside; held open
    stat_path   Spot ──► PathStat      Docker's X-Docker-Container-Path-Stat
    pack_path   Spot ──► tar           entries named after the last component, as Docker does
    extract_into  tar ──► directory    with its rules on directories and other things

A running container may swap any directory for a link between two of our steps (CVE-2018-15664, 2026-41568). Nothing
here depends on that: each component is opened with O_PATH|O_NOFOLLOW relative to the one before, a link is read from
the descriptor that was opened and its text walked from the root's, `..` goes back along descriptors that we hold.
What is found is used through its descriptor and never looked up again.

For a running container the root is a descriptor of /proc/PID/root and `mounts` is empty. For a stopped one it
is the snapshot's detached mount (access.py), and `mounts` names its volumes and binds, which are nowhere mounted.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from sampan.errors import Internal, InvalidArgument, NotFound
from sampan.storage import layers
from sampan.storage.decompress import open_stream
from sampan.storage.extract import Whiteouts
from sampan.storage.pack import PackRules, archive, pack, pack_open
from sampan.storage.stack import default_rules
from sampan.storage.tree import PATH_FLAGS, open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sampan.storage.tar import Limits, Readable

_MAX_LINKS = 255  # as Docker's FollowSymlinkInScope; the kernel stops at 40
_MAX_PATH = 4096
# Go's os.FileMode bits, which Docker puts on the wire
_GO_TYPES = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFREG: 0,
}


class PathStat(NamedTuple):
    """What `docker cp` asks first."""

    name: str
    size: int
    mode: int  # Go's os.FileMode
    mtime_ns: int
    link_target: str


class Mounted(NamedTuple):
    """Something mounted in a tree that the root descriptor does not show."""

    destination: str  # absolute, clean
    fd: int
    writable: bool = True


class Spot:
    """Where a path leads: a directory we hold open and a name in it (empty: the directory itself)."""

    def __init__(
        self, parent: int, name: bytes, path: bytes, *, writable: bool, mounted: bool = False
    ) -> None:
        self.mounted = mounted  # in something mounted, not in the root file system
        self.parent = parent
        self.name = name
        self.path = path  # absolute, without links: what the path means
        self.writable = writable

    def stat(self) -> os.stat_result:
        """lstat; FileNotFoundError where nothing is."""
        if not self.name:
            return os.fstat(self.parent)
        return os.stat(self.name, dir_fd=self.parent, follow_symlinks=False)

    def open(self) -> int:
        """An O_PATH descriptor of exactly what is there, a link too."""
        return os.open(self.name or b".", PATH_FLAGS, dir_fd=self.parent)

    def open_directory(self) -> int:
        """A readable descriptor of the directory there; NotADirectoryError for anything else, a link too."""
        return open_directory(self.name or b".", self.parent)

    def close(self) -> None:
        if self.parent >= 0:
            os.close(self.parent)
            self.parent = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Place:
    """A tree with what is mounted in it. Owns none of the descriptors."""

    def __init__(self, root: int, mounts: Sequence[Mounted] = (), *, writable: bool = True) -> None:
        self._root = root
        self._writable = writable
        self._mounts = {os.fsencode(mount.destination).strip(b"/"): mount for mount in mounts}

    def find(self, path: str | bytes, *, follow: bool = False) -> Spot:
        """Walk a path as a process in the tree would; the last component is followed only if asked.

        The last component need not exist. NotFound where something before it does not.
        """
        text = os.fsencode(path)
        if len(text) > _MAX_PATH or b"\0" in text:
            raise InvalidArgument(f"invalid path {os.fsdecode(text[:100])!r}")
        walk = _Walk(self._root, self._mounts, self._writable)
        try:
            return walk.to(text, follow=follow or text.endswith((b"/", b"/.")))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"Could not find the file {os.fsdecode(text)}") from error
        finally:
            walk.close()


class _Walk:
    """One walk: a stack of directories from the root to where we are, each with its name."""

    def __init__(self, root: int, mounts: dict[bytes, Mounted], writable: bool) -> None:
        self._mounts = mounts
        self._stack: list[tuple[int, bytes, bool]] = [(os.dup(root), b"", writable)]

    def close(self) -> None:
        for fd, _, _ in self._stack:
            os.close(fd)
        self._stack.clear()

    def to(self, path: bytes, *, follow: bool) -> Spot:
        left = path.split(b"/")[::-1]
        links = 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(self._stack) > 1:
                    os.close(self._stack.pop()[0])
                continue
            is_last = not any(part not in (b"", b".") for part in left)
            if is_last and not follow:
                return self._spot(name)
            target = self._step(name, is_last=is_last)
            if target is None:
                continue
            if isinstance(target, Spot):
                return target
            links += 1
            if links > _MAX_LINKS or len(target) + sum(map(len, left)) > 16 * _MAX_PATH:
                raise InvalidArgument(f"too many links in {os.fsdecode(path)}")
            if target.startswith(b"/"):
                while len(self._stack) > 1:
                    os.close(self._stack.pop()[0])
            left += target.split(b"/")[::-1]
        return self._here()

    def _step(self, name: bytes, *, is_last: bool) -> Spot | bytes | None:
        """Into a directory (None), or what a link says, or the end at something that is neither."""
        mount = self._mounts.get(self._path(name).lstrip(b"/"))
        if mount is not None and stat.S_ISDIR(os.fstat(mount.fd).st_mode):
            self._stack.append((os.dup(mount.fd), name, mount.writable))
            return None
        current, _, writable = self._stack[-1]
        try:
            fd = os.open(name, PATH_FLAGS, dir_fd=current)
        except FileNotFoundError:
            if is_last:
                return self._spot(name)
            raise
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            self._stack.append((fd, name, writable))
            return None
        try:
            if stat.S_ISLNK(info.st_mode):
                return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)
        if is_last:
            return self._spot(name)
        raise NotADirectoryError(20, "Not a directory", name)

    def _path(self, name: bytes = b"") -> bytes:
        parts = [part for _, part, _ in self._stack[1:]]
        return b"/" + b"/".join([*parts, name] if name else parts)

    def _spot(self, name: bytes) -> Spot:
        """The last component, not followed; a mount there is the thing itself."""
        mount = self._mounts.get(self._path(name).lstrip(b"/"))
        if mount is not None:
            path = self._path(name)
            if stat.S_ISDIR(os.fstat(mount.fd).st_mode):
                return Spot(os.dup(mount.fd), b"", path, writable=mount.writable, mounted=True)
            return _MountedFile(os.dup(mount.fd), name, path, writable=mount.writable, mounted=True)
        current, _, writable = self._stack[-1]
        return Spot(
            os.dup(current), name, self._path(name), writable=writable, mounted=self._is_mounted()
        )

    def _here(self) -> Spot:
        current, _, writable = self._stack[-1]
        return Spot(
            os.dup(current), b"", self._path(), writable=writable, mounted=self._is_mounted()
        )

    def _is_mounted(self) -> bool:
        here = self._path().lstrip(b"/")
        return any(here == place or here.startswith(place + b"/") for place in self._mounts)


class _MountedFile(Spot):
    """A single file mounted on a name: /etc/hosts, or a bind of a file."""

    def stat(self) -> os.stat_result:
        return os.fstat(self.parent)

    def open(self) -> int:
        return os.dup(self.parent)

    def open_directory(self) -> int:
        raise NotADirectoryError(20, "Not a directory", self.path)


def stat_path(place: Place, path: str) -> PathStat:
    """HEAD /containers/{id}/archive. The last component is not followed, but a link's meaning is told."""
    with place.find(path) as spot:
        try:
            info = spot.stat()
        except FileNotFoundError:
            raise NotFound(f"Could not find the file {path}") from None
        target = ""
        if stat.S_ISLNK(info.st_mode):
            target = _meaning(place, path, spot)
        elif path.endswith("/") and not stat.S_ISDIR(info.st_mode):
            raise Internal(f"lstat {path}: not a directory")
        name = os.fsdecode(_shown_name(path, spot))
        return PathStat(name, info.st_size, go_mode(info.st_mode), info.st_mtime_ns, target)


def _meaning(place: Place, path: str, spot: Spot) -> str:
    """The path inside that a link leads to; of a broken one, what it says."""
    try:
        with place.find(path, follow=True) as meant:
            return os.fsdecode(meant.path)
    except (NotFound, InvalidArgument):
        link = os.readlink(spot.name, dir_fd=spot.parent)
        return os.fsdecode(os.path.normpath(os.path.join(os.path.dirname(spot.path), link)))


def pack_path(place: Place, path: str) -> Iterator[bytes]:
    """GET /containers/{id}/archive: what is there, under the path's last component; `dir/.` means what is in it.

    What is found is opened before this returns, so that NotFound can still become a status, and so that what
    is sent is what was found, whatever has the name by then.
    """
    with place.find(path) as spot:
        try:
            fd = spot.open()
        except FileNotFoundError:
            raise NotFound(f"Could not find the file {path}") from None
        info = os.fstat(fd)
        if path.endswith(("/", "/.")) and not stat.S_ISDIR(info.st_mode):
            os.close(fd)
            raise NotFound(f"Could not find the file {path}")
        name = _shown_name(path, spot)
    return _closing(fd, archive(pack_open(fd, as_name=name)))


def _closing(fd: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    finally:
        os.close(fd)


def extract_into(
    place: Place,
    path: str,
    stream: Readable,
    *,
    no_overwrite_dir_non_dir: bool = False,
    owner: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> None:
    """PUT /containers/{id}/archive: a tar, compressed or not, into an existing directory.

    Owners are the archive's; `owner` replaces them (copyUIDGID: the container's user).
    """
    with place.find(path, follow=True) as spot:
        try:
            fd = spot.open_directory()
        except FileNotFoundError:
            raise NotFound(f"Could not find the file {path}") from None
        except NotADirectoryError:
            raise InvalidArgument("extraction point is not a directory") from None
        try:
            if not spot.writable:
                raise _read_only(spot)
            rules = replace(
                default_rules(),
                whiteouts=Whiteouts.PLAIN,
                owner=owner,
                touch_root=False,
                destination=os.fsdecode(spot.path),
                replace_kinds=not no_overwrite_dir_non_dir,
            )
            layers.apply(open_stream(stream), fd, rules=rules, limits=limits)
        except OSError as error:
            if error.errno == errno.EROFS:
                raise _read_only(spot) from error
            raise
        finally:
            os.close(fd)


def _read_only(spot: Spot) -> InvalidArgument:
    what = "mounted volume" if spot.mounted else "container rootfs"
    return InvalidArgument(f"{what} is marked read-only")


def export_tar(root: int) -> Iterator[bytes]:
    """GET /containers/{id}/export: the whole tree, without what is mounted in it."""
    return archive(pack(root, rules=PackRules(one_file_system=True)))


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    value = (mode & 0o777) | _GO_TYPES.get(stat.S_IFMT(mode), 1 << 19)
    for bit, go_bit in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        if mode & bit:
            value |= go_bit
    return value


def _shown_name(path: str, spot: Spot) -> bytes:
    """The last component of the path as given, "." for `dir/.`; the tree's own name for `/` and `..`."""
    if path.endswith("/."):
        return b"."
    name = os.fsencode(path).rstrip(b"/").rpartition(b"/")[2]
    if name in (b"", b".", b".."):
        name = spot.path.rpartition(b"/")[2] or b"/"
    return name
