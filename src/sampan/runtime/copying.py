"""tmpcopyup: what a tmpfs will cover is copied into it first, by descriptor, without following a link.

Source: runtime-spec config.md, "tmpcopyup": copy up the contents of the destination directory.
"""

from __future__ import annotations

import posix

from sampan.linux.paths import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

MAX_DEPTH = 200


def copy_tree(source_fd: int, target_fd: int, depth: int = 0) -> None:
    """Copy the entries of one directory into another, with mode, owner and times."""
    if depth > MAX_DEPTH:
        raise OSError(36, "directories are nested too deeply to be copied up")
    here = posix.open(".", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=source_fd)
    try:
        for name in posix.listdir(here):
            _copy_entry(here, target_fd, name, depth)
    finally:
        posix.close(here)


def _copy_entry(source_fd: int, target_fd: int, name: str, depth: int) -> None:
    status = posix.stat(name, dir_fd=source_fd, follow_symlinks=False)
    kind = status.st_mode & S_IFMT
    if kind == S_IFDIR:
        posix.mkdir(name, 0o700, dir_fd=target_fd)
        flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        child = posix.open(name, flags, dir_fd=source_fd)
        copy = posix.open(name, flags, dir_fd=target_fd)
        try:
            copy_tree(child, copy, depth + 1)
        finally:
            posix.close(child)
            posix.close(copy)
    elif kind == S_IFREG:
        _copy_file(source_fd, target_fd, name)
    elif kind == S_IFLNK:
        posix.symlink(posix.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
    else:
        posix.mknod(name, status.st_mode, status.st_rdev, dir_fd=target_fd)
    posix.chown(name, status.st_uid, status.st_gid, dir_fd=target_fd, follow_symlinks=False)
    if kind != S_IFLNK:
        posix.chmod(name, status.st_mode & 0o7777, dir_fd=target_fd)
    times = (status.st_atime_ns, status.st_mtime_ns)
    posix.utime(name, ns=times, dir_fd=target_fd, follow_symlinks=False)


def _copy_file(source_fd: int, target_fd: int, name: str) -> None:
    read = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
    write = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    source = posix.open(name, read, dir_fd=source_fd)
    try:
        target = posix.open(name, write, 0o600, dir_fd=target_fd)
        try:
            while posix.sendfile(target, source, None, 1 << 20):
                pass
        finally:
            posix.close(target)
    finally:
        posix.close(source)
