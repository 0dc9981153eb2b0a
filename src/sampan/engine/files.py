"""`cp` both ways, stat, diff and export: a container's files, running or not.

The tree is held by a descriptor: of process 1's root while the container runs, else of its snapshot, mounted nowhere,
with its volumes and binds opened beside. `storage/files.py` walks it safely whatever the container does meanwhile.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from sampan.engine import resources
from sampan.engine.pipes import ByteInlet, ByteOutlet
from sampan.engine.records import MountRecord
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.spec.engine.container import FilesystemChange, PathStat
from sampan.storage import files as trees
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container


@contextmanager
def place_of(
    engine: Engine, container: Container, *, writable: bool = False
) -> Iterator[trees.Place]:
    """Blocking: the container's tree, for as long as the block runs."""
    read_only = container.record.host_config.readonly_rootfs
    if container.is_running:
        with resources.running_root(container.state) as handle:
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
            try:
                yield trees.Place(root, writable=not read_only)
            finally:
                os.close(root)
        return
    with ExitStack() as opened:
        root = engine.snapshots.open_root(container.id, writable=writable)
        opened.callback(os.close, root)
        yield trees.Place(root, _mounted(engine, container, opened), writable=not read_only)


def _mounted(engine: Engine, container: Container, opened: ExitStack) -> list[trees.Mounted]:
    """The volumes and binds of a stopped container, opened where they are on the host."""
    found: list[trees.Mounted] = []
    for mount in container.record.mounts:
        if mount.type not in ("bind", "volume"):
            continue
        try:
            if mount.type == "volume":
                fd = _open_volume(engine, mount, opened)
            else:
                fd = _readable(os.open(mount.source, os.O_PATH | os.O_CLOEXEC))
        except (OSError, NotFound, InvalidArgument, Internal):
            continue  # the source is gone: what is below it in the image shows
        opened.callback(os.close, fd)
        found.append(trees.Mounted(mount.destination, fd, mount.writable))
    return found


def _open_volume(engine: Engine, mount: MountRecord, opened: ExitStack) -> int:
    """What the container would see there: a volume with options is mounted as long as somebody looks."""
    holder = f"files-{secrets.token_hex(8)}"
    opened.callback(engine.volumes.let_go, mount.name, holder)
    engine.volumes.mount(mount.name, holder)
    return _readable(engine.volumes.open(mount.name, mount.subpath))


def _readable(fd: int) -> int:
    """A directory is opened for listing; of a file the O_PATH descriptor is enough."""
    try:
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except NotADirectoryError:
        return fd
    os.close(fd)
    return listing


def _named(error: NotFound, path: str, ref: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {ref}", hint=error.hint)


# -- verbs -----------------------------------------------------------------------------------------


async def stat(engine: Engine, ref: str, path: str) -> PathStat:
    container = engine.containers.find(ref)

    def look() -> PathStat:
        with place_of(engine, container) as place:
            found = trees.stat_path(place, path)
        return PathStat(
            name=found.name,
            size=found.size,
            mode=found.mode,
            mtime=rfc3339nano(found.mtime_ns),
            link_target=found.link_target,
        )

    async with container.lock:
        try:
            return await engine.run_blocking(look)
        except NotFound as error:
            raise _named(error, path, ref) from None


async def get_archive(engine: Engine, ref: str, path: str) -> tuple[PathStat, ByteOutlet]:
    """A tar of what is at `path`, and its facts for the header."""
    facts = await stat(engine, ref, path)
    container = engine.containers.find(ref)

    def produce(outlet: ByteOutlet) -> None:
        with place_of(engine, container) as place:
            for piece in trees.pack_path(place, path):
                outlet.write(piece)

    outlet = ByteOutlet().start(engine.pool, produce)
    engine.events.tell("container", "archive-path", container.id, container.attributes())
    return facts, outlet


async def put_archive(
    engine: Engine,
    ref: str,
    path: str,
    source: ByteInlet,
    *,
    no_overwrite_dir_non_dir: bool = False,
    copy_uid_gid: bool = False,
) -> None:
    """Extract a tar into the directory at `path`."""
    container = engine.containers.find(ref)

    def extract() -> None:
        owner = _owner(engine, container) if copy_uid_gid else None
        with place_of(engine, container, writable=True) as place:
            trees.extract_into(
                place,
                path,
                source,
                no_overwrite_dir_non_dir=no_overwrite_dir_non_dir,
                owner=owner,
            )

    async with container.lock:
        try:
            await engine.run_blocking(extract)
        except NotFound as error:
            raise _named(error, path, ref) from None
        finally:
            source.close()
    engine.events.tell("container", "extract-to-dir", container.id, container.attributes())


def _owner(engine: Engine, container: Container) -> tuple[int, int]:
    """Blocking: the ids of the container's user."""
    mounts = engine.snapshots.mounts(container.id)
    user = resources.resolve_user(engine, container.record, mounts)
    return user.uid, user.gid


async def changes(engine: Engine, ref: str) -> list[FilesystemChange]:
    """What the container changed against its image."""
    container = engine.containers.find(ref)
    found = await engine.run_blocking(engine.snapshots.changes, container.id)
    hidden = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/console", "/.dockerenv"}
    return [FilesystemChange(path=c.path, kind=c.kind) for c in found if c.path not in hidden]


async def export(engine: Engine, ref: str) -> ByteOutlet:
    """The whole root file system as a tar, without what is mounted in it."""
    container = engine.containers.find(ref)
    if container.state.dead:
        raise Conflict(f"You cannot export container {container.id} which is Dead")

    def produce(outlet: ByteOutlet) -> None:
        root = engine.snapshots.open_root(container.id)
        try:
            for piece in trees.export_tar(root):
                outlet.write(piece)
        finally:
            os.close(root)

    outlet = ByteOutlet().start(engine.pool, produce)
    engine.events.tell("container", "export", container.id, container.attributes())
    return outlet
