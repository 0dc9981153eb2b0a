"""An indexed layer on disk: made, mounted, taken apart.

    layers/<hex>/layer.tar      the layer itself: a hard link to its blob where that is an uncompressed tar
                 index.erofs    see erofs.py
                 fs/            the index is mounted here (in the engine's mount namespace) when first needed

One mount serves every container that has the layer: its pages are cached once. overlayfs keeps its own reference to
a lower mount, so unmounting `fs` never disturbs a container that runs.
"""

from __future__ import annotations

import io
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from sampan.linux import constants as c
from sampan.linux.mounts import attach, new_filesystem
from sampan.linux.syscalls import umount2
from sampan.storage import erofs
from sampan.storage.erofs_tree import Tree
from sampan.storage.tar import Entry
from sampan.storage.tar_reader import FileStream, TarReader
from sampan.storage.tar_writer import END, header, padded
from sampan.storage.tree import copy_range, open_directory, remove_tree

if TYPE_CHECKING:
    from sampan.storage.tar import Limits, Readable

TAR, INDEX, SHOWN = "layer.tar", "index.erofs", "fs"
# Nobody on the host is meant to run or open anything through this mount; overlayfs' own mount decides for containers.
_ATTRIBUTES = c.MOUNT_ATTR_RDONLY | c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NODEV


class Indexed(NamedTuple):
    """What was learnt while indexing."""

    tree: Tree
    inodes: int


class Spool:
    """Passes a stream through and keeps a copy in a file."""

    def __init__(self, source: Readable, fd: int) -> None:
        self._source = source
        self._fd = fd

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return data


def take_tar(directory: str, layer: Readable, blob: str) -> tuple[int, Readable]:
    """The layer's tar into its directory; returns a descriptor of it, and the stream to index it from."""
    path = os.path.join(directory, TAR)
    if blob:
        try:
            os.link(blob, path)
        except OSError:  # another file system, or no more links
            source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
            try:
                target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
                try:
                    copy_range(source, target, os.fstat(source).st_size)
                finally:
                    os.close(target)
            finally:
                os.close(source)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return fd, FileStream(fd)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    return fd, Spool(layer, fd)


def write_index(directory: str, tar: int, stream: Readable, limits: Limits | None) -> Indexed:
    """Index a tar while it arrives; erofs_tree.NotIndexable when it was read to its end but cannot be indexed."""
    reader = TarReader(stream, limits)
    tree = Tree(limits)
    try:
        tree.read(reader)
    finally:
        if isinstance(stream, Spool):
            reader.drain()  # whatever happens, who hashes the stream sees all of it, and the copy is whole
    index = erofs.build(tree.root, os.fstat(tar).st_size)
    with open(os.path.join(directory, INDEX), "xb") as file:
        file.writelines(index.parts)
    return Indexed(tree, index.inodes)


def is_mounted(directory: str) -> bool:
    """Whether the layer's index is mounted."""
    return os.stat(os.path.join(directory, SHOWN)).st_dev != os.stat(directory).st_dev


def mount_layer(directory: str) -> None:
    """Show the layer under fs/."""
    mount = _detached(directory)
    try:
        target = os.open(
            os.path.join(directory, SHOWN),
            os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
        )
        try:
            attach(mount, target)
        finally:
            os.close(target)
    finally:
        os.close(mount)


def unmount_layer(directory: str) -> None:
    """Safe where it is not mounted, or not even there."""
    with suppress(FileNotFoundError):
        if is_mounted(directory):
            umount2(os.path.join(directory, SHOWN), c.MNT_DETACH)


def _detached(directory: str) -> int:
    """The mount, not attached anywhere yet. fsconfig(2) takes 255 bytes: longer paths go by descriptor."""
    files = [
        os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC) for name in (INDEX, TAR)
    ]
    try:
        index, tar = (
            os.path.join(directory, name) if len(directory) < 200 else f"/proc/self/fd/{fd}"
            for name, fd in zip((INDEX, TAR), files, strict=True)
        )
        return new_filesystem("erofs", [f"device={tar}"], _ATTRIBUTES, source=index, read_only=True)
    finally:
        for fd in files:
            os.close(fd)


def probe(root: str | os.PathLike[str]) -> str:
    """Why layers cannot be indexed on this host; empty where they can. Mounts one, detached, and reads it."""
    base = os.fspath(root)
    directory = os.path.join(base, f".probe-{secrets.token_hex(4)}")
    content = b"read through the index"
    tar = header(Entry(b"file", size=len(content))) + padded(content) + END
    try:
        os.mkdir(directory, 0o700)
        fd, stream = take_tar(directory, io.BytesIO(tar), "")
        try:
            write_index(directory, fd, stream, None)
        finally:
            os.close(fd)
        mount = _detached(directory)
        try:
            file = os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
            try:
                return "" if os.read(file, 100) == content else "file contents came out wrong"
            finally:
                os.close(file)
        finally:
            os.close(mount)
    except OSError as error:
        return "; ".join([error.strerror or str(error), *getattr(error, "__notes__", ())])
    finally:
        parent = open_directory(base)
        try:
            remove_tree(os.path.basename(directory), parent)
        finally:
            os.close(parent)
