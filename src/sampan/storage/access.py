"""Looking into a root filesystem without mounting it anywhere: a detached mount, held by a descriptor.

    with opened_root(driver.mounts(key)) as root:      # nobody else sees this mount; it ends with the descriptor
        text = read_small(root, "/etc/passwd", 10 << 20)

For a container that runs, the descriptor is one of /proc/PID/root instead, and the helpers are the same.

overlayfs wants an upper directory to itself, so for looking on the upper directory is given as the topmost lower
one: several may look at once. For writing it is mounted as the container would have it; the caller makes sure that
the container does not run meanwhile.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sampan.errors import Internal
from sampan.linux import constants as c
from sampan.linux.mounts import attach, clone_tree, new_filesystem, set_attributes
from sampan.linux.paths import open_in_root, read_regular_in_root
from sampan.linux.syscalls import umount2
from sampan.storage.tree import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sampan.spec.runtime import Mount

_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def opened_root(mounts: Sequence[Mount], *, writable: bool = False) -> Iterator[int]:
    """`open_root`, closed at the end."""
    fd = open_root(mounts, writable=writable)
    try:
        yield fd
    finally:
        os.close(fd)


def open_root(mounts: Sequence[Mount], *, writable: bool = False) -> int:
    """The root directory that a snapshot's mounts make, as a readable descriptor."""
    if len(mounts) != 1:
        raise Internal(f"a snapshot of {len(mounts)} mounts cannot be opened")
    mount = mounts[0]
    options = mount.get("options", [])
    if mount.get("type") != "overlay":
        return _open_bind(mount.get("source", ""), writable=writable and "ro" not in options)
    fd = new_filesystem("overlay", options if writable else _for_looking(options))
    try:
        # fsmount(2) gives an O_PATH descriptor; the mount lives on in what is opened through it
        return os.open(".", _READ, dir_fd=fd)
    finally:
        os.close(fd)


def _open_bind(source: str, *, writable: bool) -> int:
    if writable:
        return open_directory(source)
    try:
        fd = clone_tree(source)
    except OSError:  # not allowed to make mounts: then the reader has to be trusted to only read
        return open_directory(source)
    try:
        set_attributes(fd, c.MOUNT_ATTR_RDONLY)
        return os.open(".", _READ, dir_fd=fd)
    finally:
        os.close(fd)


def _for_looking(options: Sequence[str]) -> list[str]:
    """The same tree without an upper directory."""
    upper = next((word.partition("=")[2] for word in options if word.startswith("upperdir=")), None)
    if upper is None:
        return list(options)
    kept = [word for word in options if not word.startswith(("upperdir=", "workdir=", "lowerdir="))]
    lower = next(word.partition("=")[2] for word in options if word.startswith("lowerdir="))
    return [*kept, "ro", f"lowerdir={upper}:{lower}"]


def read_small(root: int, path: str, cap: int) -> bytes | None:
    """A small regular file inside a root, links resolved there; None where there is none.

    A fifo, a device or a larger file is as good as none: it must not hang or fill the engine (CVE-2024-9676).
    """
    try:
        return read_regular_in_root(root, path, cap)
    except OSError:
        return None


def escape(path: str) -> str:
    """A path in overlayfs' options: `:` separates there, and `,` ends an option."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def mount_view(mounts: Sequence[Mount], path: str) -> None:
    """Mount a snapshot's view on a directory of ours, for what can only be given as a path."""
    if len(mounts) != 1:
        raise Internal(f"a snapshot of {len(mounts)} mounts cannot be mounted")
    mount = mounts[0]
    target = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if mount.get("type") == "overlay":
            fd = new_filesystem("overlay", mount.get("options", []))
        else:
            fd = clone_tree(mount.get("source", ""))
            set_attributes(fd, c.MOUNT_ATTR_RDONLY)
        try:
            attach(fd, target)
        finally:
            os.close(fd)
    finally:
        os.close(target)


def mount_part(mounts: Sequence[Mount], subpath: str, path: str) -> None:
    """Mount one directory or file of a snapshot's view at a path, which is made. Links in it lead to its own root.

    The view itself is mounted there for a moment: before Linux 6.15 only what is in a mount tree can be cloned.
    """
    os.mkdir(path, 0o700)
    try:
        mount_view(mounts, path)
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            part = open_in_root(root, subpath, os.O_PATH)
            try:
                tree = clone_tree("", dirfd=part)
                is_directory = stat.S_ISDIR(os.fstat(part).st_mode)
            finally:
                os.close(part)
        finally:
            os.close(root)
            umount2(path, c.MNT_DETACH)
    except BaseException:
        os.rmdir(path)
        raise
    if not is_directory:
        os.rmdir(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        set_attributes(tree, c.MOUNT_ATTR_RDONLY)
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        attach(tree, place)
        os.close(place)
    finally:
        os.close(tree)


def unmount_view(path: str) -> None:
    """Detach what `mount_view` mounted. Idempotent."""
    try:
        umount2(path, c.MNT_DETACH)
    except OSError as error:
        if error.errno not in (22, 2):  # not mounted, or not there
            raise
