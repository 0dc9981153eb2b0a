"""The init layer: mount points and files that every container finds, in a layer of their own under its writable one.

A container's /dev, /proc, /sys and /etc/hosts are mounts. What they are mounted on must exist, and making it in the
container's own layer would show in `docker diff` and be committed; so it is made once per image, below.

    /dev/pts /dev/shm /proc /sys    directories
    /dev/console /etc/hosts /etc/hostname /etc/resolv.conf /.dockerenv     empty files
    /etc/mtab -> /proc/mounts

Only what the image lacks is made. Directories that must be repeated to hold something (/etc) look like the
image's. Where the image has something unexpected in the way (a link, a file) nothing is made: mounting then finds it,
safely or not at all (CVE-2019-19921 and its kin are the mounter's to refuse).
"""

from __future__ import annotations

import os
import stat

from sampan.storage.copying import copy_attributes
from sampan.storage.layers import lower_directories, visible
from sampan.storage.tree import exists, open_directory

_DIRECTORIES = (b"dev/pts", b"dev/shm", b"proc", b"sys", b"etc")
_FILES = (b".dockerenv", b"dev/console", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf")
_LINKS = ((b"etc/mtab", b"/proc/mounts"),)


def fill(target: int, lowers: list[int]) -> None:
    """Write the init layer for a stack of layers (topmost first) into an empty directory."""
    for path in _DIRECTORIES:
        _make(target, lowers, path, b"")
    for path in _FILES:
        _make(target, lowers, path, None)
    for path, to in _LINKS:
        _make(target, lowers, path, to)


def _make(target: int, lowers: list[int], path: bytes, content: bytes | None) -> None:
    """One object: a directory for b"", an empty file for None, else a link with this target."""
    first, _, rest = path.partition(b"/")
    below = visible(lowers, first)
    if rest:
        if below is not None and not stat.S_ISDIR(below.st_mode):
            return
        _descend(target, lowers, first, rest, content)
        return
    if below is not None or exists(target, first):
        return
    if content == b"":
        os.mkdir(first, 0o755, dir_fd=target)
        os.chmod(first, 0o755, dir_fd=target)
    elif content is None:
        # Docker's mode for these is 0755; nothing ever executes them
        fd = os.open(
            first,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o755,
            dir_fd=target,
        )
        os.fchmod(fd, 0o755)
        os.close(fd)
    else:
        os.symlink(content, first, dir_fd=target)


def _descend(
    target: int, lowers: list[int], name: bytes, rest: bytes, content: bytes | None
) -> None:
    children = lower_directories(lowers, name)
    try:
        if (
            visible(children, rest) is not None
        ):  # `rest` is one name: no path here is deeper than two
            return
        if not exists(target, name):
            os.mkdir(name, 0o755, dir_fd=target)
            fresh = open_directory(name, target)
            try:
                if children:
                    copy_attributes(children[0], fresh)
                else:
                    os.fchmod(fresh, 0o755)
            finally:
                os.close(fresh)
        try:
            fd = open_directory(name, target)
        except NotADirectoryError:  # a plain-copy snapshot is its own lower layer
            return
        try:
            before = os.fstat(fd)
            _make(fd, children, rest, content)
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(fd)
    finally:
        for child in children:
            os.close(child)
