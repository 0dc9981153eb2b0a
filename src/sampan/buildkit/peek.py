"""Looking into a build's result: a file, a directory, a path's facts. Blocking, by descriptor, inside the root."""

from __future__ import annotations

import fnmatch
import os
import stat

from sampan.buildkit.faults import GrpcError
from sampan.buildkit.messages import FileRange, Stat
from sampan.storage.files import go_mode
from sampan.storage.transfer import real_path
from sampan.storage.tree import proc_path

MAX_READ = 8 << 20  # bytes that one answer holds


def read_file(root: int, path: str, wanted: FileRange) -> bytes:
    """A regular file's bytes, all of them where the range has no length. Raises GrpcError for what is none."""
    fd = real_path(root, path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise GrpcError(f"read {path}: not a regular file")
        file = os.open(proc_path(fd), os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    try:
        return os.pread(file, min(wanted.length or MAX_READ, MAX_READ), max(wanted.offset, 0))
    finally:
        os.close(file)


def list_directory(root: int, path: str, include: str) -> list[Stat]:
    """The entries, sorted; those whose names the pattern fits, where there is one."""
    fd = real_path(root, path)
    try:
        directory = os.open(proc_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    try:
        names = sorted(os.listdir(directory))
        return [
            _entry(name, os.stat(name, dir_fd=directory, follow_symlinks=False))
            for name in names
            if not include or fnmatch.fnmatchcase(name, include)
        ]
    finally:
        os.close(directory)


def look_at(root: int, path: str) -> Stat:
    """What is there."""
    fd = real_path(root, path)
    try:
        return _entry(path.rstrip("/").rpartition("/")[2], os.fstat(fd))
    finally:
        os.close(fd)


def _entry(name: str, info: os.stat_result) -> Stat:
    return Stat(
        path=name, mode=go_mode(info.st_mode), uid=info.st_uid, gid=info.st_gid, size=info.st_size,
        mtime_ns=info.st_mtime_ns,
    )  # fmt: skip
