"""Mounts by descriptor: a mount is made detached, configured, and then attached to an open directory.

    fd = new_filesystem("tmpfs", ["size=64m"], attributes)   or  clone_tree("/src", recursive=True)
    set_attributes(fd, ...)                                   nobody sees it yet
    attach(fd, target_fd)                                     no path is looked up: nothing to race with

mount(2) stays for what the new calls cannot do: changing propagation of the whole tree in one call, and
kernels without them (`attach` and `new_filesystem` then go through /proc/self/fd).
Sources: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).
"""

from __future__ import annotations

import posix

from . import constants as c
from .syscalls import (
    ENOSYS,
    fsconfig_create,
    fsconfig_fd,
    fsconfig_flag,
    fsconfig_string,
    fsmount,
    fsopen,
    mount,
    mount_setattr,
    move_mount_fd,
    open_tree,
    pivot_root,
    umount2,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Path = str | bytes

# Superblock flags of fs/fs_context.c (common_set_sb_flag); the others are attributes of the mount.
SUPERBLOCK_OPTIONS = frozenset(
    {"ro", "rw", "sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"}
)


def new_filesystem(
    fstype: str,
    options: Iterable[str] = (),
    attributes: int = 0,
    *,
    source: Path | None = None,
    read_only: bool = False,
) -> int:
    """A detached mount of a new filesystem. `options` are "key=value" or "flag", in order."""
    fs = fsopen(fstype)
    try:
        if source is not None:
            fsconfig_string(fs, "source", source)
        if read_only:
            fsconfig_flag(fs, "ro")
        for option in options:
            configure(fs, option)
        fsconfig_create(fs)
        return fsmount(fs, attributes)
    except OSError as error:
        _explain(fs, error)
        raise
    finally:
        posix.close(fs)


def configure(fs: int, option: str) -> None:
    """One "key=value" or "flag" of a mount's data string."""
    key, separator, value = option.partition("=")
    if not separator:
        fsconfig_flag(fs, key)
        return
    if key == "lowerdir" and ":" in value:
        # One layer a call: `lowerdir` itself may be 255 bytes here, and this has no 4 KiB limit (6.7+).
        try:
            for layer in _split_layers(value):
                fsconfig_string(fs, "lowerdir+", layer)
            return
        except OSError as error:
            if error.errno not in (22,):
                raise
    fsconfig_string(fs, key, value)


def _split_layers(text: str) -> list[str]:
    """overlayfs's own escaping: `\\:` is a colon within a name."""
    layers = [""]
    escaped = False
    for letter in text:
        if escaped:
            layers[-1] += letter
            escaped = False
        elif letter == "\\":
            escaped = True
        elif letter == ":":
            layers.append("")
        else:
            layers[-1] += letter
    return layers


def _explain(fs: int, error: OSError) -> None:
    """The kernel leaves its reasons to be read from the context ("e overlay: No changes allowed...")."""
    try:
        while text := posix.read(fs, 512):
            error.add_note("kernel: " + text.decode("utf-8", "replace").strip())
    except OSError:
        pass


def clone_tree(
    path: Path, *, dirfd: int = c.AT_FDCWD, recursive: bool = False, follow: bool = True
) -> int:
    """A detached copy of the mount at `path` (bind mount); an empty path means what `dirfd` holds."""
    flags = c.OPEN_TREE_CLONE
    if recursive:
        flags |= c.AT_RECURSIVE
    if not follow:
        flags |= c.AT_SYMLINK_NOFOLLOW
    if not path:
        flags |= c.AT_EMPTY_PATH
    return open_tree(dirfd, path, flags)


def set_attributes(
    mount_fd: int, set_: int = 0, clear: int = 0, *, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of a mount held by descriptor."""
    mount_setattr(
        mount_fd,
        "",
        set_attributes=set_,
        clear_attributes=clear,
        propagation=propagation,
        recursive=recursive,
    )


def set_idmap(mount_fd: int, userns_fd: int, *, recursive: bool = False) -> None:
    """Show the owners of a detached mount as the user namespace maps them."""
    mount_setattr(
        mount_fd, "", set_attributes=c.MOUNT_ATTR_IDMAP, userns_fd=userns_fd, recursive=recursive
    )


def attach(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount to the directory or file that `target_fd` holds."""
    move_mount_fd(mount_fd, target_fd)


def bind(source: Path, target_fd: int, *, recursive: bool = True, attributes: int = 0) -> None:
    """Bind a host path on an open directory or file."""
    fd = clone_tree(source, recursive=recursive)
    try:
        if attributes:
            set_attributes(fd, attributes, recursive=recursive)
        attach(fd, target_fd)
    finally:
        posix.close(fd)


def overlay(
    lower: list[str],
    upper: str | None,
    work: str | None,
    options: Iterable[str] = (),
    attributes: int = 0,
) -> int:
    """A detached overlay mount; without an upper directory it is read-only. Topmost layer first."""
    fs = fsopen("overlay")
    try:
        for layer in lower:
            fsconfig_string(fs, "lowerdir+", layer)
        if upper is not None and work is not None:
            fsconfig_string(fs, "upperdir", upper)
            fsconfig_string(fs, "workdir", work)
        for option in options:
            configure(fs, option)
        fsconfig_create(fs)
        return fsmount(fs, attributes)
    except OSError as error:
        _explain(fs, error)
        raise
    finally:
        posix.close(fs)


def set_propagation(path: Path, flags: int) -> None:
    """MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE, with MS_REC for the whole tree."""
    mount(None, path, None, flags)


def pivot_here() -> None:
    """pivot_root(".", "."): the new root is the working directory and the old one is stacked upon it."""
    pivot_root(".", ".")


def move_to_root() -> None:
    """Move the mount at the working directory over /."""
    mount(".", "/", None, c.MS_MOVE)


def cover(path: Path) -> None:
    """Hide a directory that cannot be unmounted below an empty tmpfs."""
    mount("tmpfs", path, "tmpfs", 0)


def detach(path: Path) -> None:
    """Take the mount and all below it out of the tree now; what is busy goes when it is let go."""
    umount2(path, c.MNT_DETACH)


__all__ = [
    "ENOSYS", "SUPERBLOCK_OPTIONS", "attach", "bind", "clone_tree", "configure", "cover", "detach", "fsconfig_fd",
    "move_to_root", "new_filesystem", "overlay", "pivot_here", "set_attributes", "set_idmap", "set_propagation", "umount2",
]  # fmt: skip
