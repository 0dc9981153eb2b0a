"""Mounts of running containers: a bind, a volume or a tmpfs put in and taken out without a restart. Docker cannot
do this.

A mount that was added belongs to the container from then on: `inspect` shows it, a restart makes it again, it
keeps its volume from being removed. Of a container that does not run only the record changes.

The source is opened here, once, and what was opened is what the container gets; the destination is resolved inside
the container by a process that has joined its mounts (`runtime/live_mounts.py`).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan.engine import mounts as words
from sampan.engine import volumes
from sampan.engine.records import MountRecord
from sampan.engine.resources import make_bind_sources
from sampan.engine.specgen import mount_of
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.spec.engine.container import MountRequest
from sampan.spec.runtime import Mount

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

MOST_MOUNTS = 64
_TYPES = ("bind", "volume", "tmpfs")


async def add(
    engine: Engine, ref: str, binds: list[str], requests: list[MountRequest]
) -> tuple[MountRecord, ...]:
    """Mount all or none of `-v` and `--mount` wishes; what was mounted."""
    container = engine.containers.find(ref)
    wanted = [words.parse_bind(text) for text in binds]
    wanted += [words.from_request(request) for request in requests]
    async with container.lock:
        _check(container, wanted)
        with ExitStack() as undo:
            with volumes.told(engine, tuple(wanted)):
                made = await engine.run_blocking(_take, engine, container.id, wanted, undo)
            if container.is_running:
                await _ask(container, "mount", made)
            try:
                container.save_record(mounts=(*container.record.mounts, *made))
            except Internal:  # a full disk: what nobody knows of must not stay mounted
                if container.is_running:
                    await _ask(container, "unmount", made)
                raise
            undo.pop_all()
        _tell(engine, container)
        return made


async def remove(engine: Engine, ref: str, destinations: list[str]) -> None:
    """Take mounts away, wherever they came from; a volume stays what it is."""
    container = engine.containers.find(ref)
    async with container.lock:
        record = container.record
        doomed = [_find(container, destination) for destination in destinations]
        if not doomed:
            raise InvalidArgument("which mount is to be taken away? (destination=/path)")
        if container.is_running:
            await _ask(container, "unmount", tuple(doomed))
        left = tuple(mount for mount in record.mounts if mount not in doomed)
        container.save_record(mounts=left)
        await engine.run_blocking(_give_back, engine, container.id, doomed, left)
        _tell(engine, container)


def _check(container: Container, wanted: list[MountRecord]) -> None:
    if not 0 < len(wanted) <= MOST_MOUNTS:
        raise InvalidArgument(f"between 1 and {MOST_MOUNTS} mounts can be added at once")
    if container.removed or container.state.removing:
        raise Conflict(f"Container {container.id} is marked for removal")
    taken = {mount.destination for mount in container.record.mounts}
    for mount in wanted:
        if mount.type not in _TYPES:
            raise InvalidArgument(
                f"a mount of type {mount.type} cannot be added to a container that exists"
            )
        if mount.destination in taken:
            raise Conflict(f"Duplicate mount point: {mount.destination}")
        taken.add(mount.destination)


def _find(container: Container, destination: str) -> MountRecord:
    for mount in container.record.mounts:
        if mount.destination == (destination.rstrip("/") or "/"):
            return mount
    raise NotFound(f"nothing is mounted on {destination} in container {container.name}")


def _take(
    engine: Engine, container_id: str, wanted: list[MountRecord], undo: ExitStack
) -> tuple[MountRecord, ...]:
    """Blocking: sources exist and are mounted. What was taken when this fails is on `undo`."""
    container = engine.containers.find(container_id)
    before = container.record.mounts
    undo.callback(_give_back, engine, container_id, wanted, before)
    found = []
    for mount in wanted:
        if mount.type == "volume":
            # Filling it from the image is for the first start: what is there now the container may have changed.
            mount = volumes.prepared(engine, msgspec.structs.replace(mount, no_copy=True))
            engine.volumes.hold(mount.name, container_id)
            if container.is_running:
                source = engine.volumes.mount(mount.name, container_id, subpath=mount.subpath)
                mount = msgspec.structs.replace(mount, source=str(source))
        found.append(mount)
    make_bind_sources(tuple(found))
    return tuple(found)


def _give_back(
    engine: Engine, container_id: str, mounts: list[MountRecord], left: tuple[MountRecord, ...]
) -> None:
    """Blocking: a volume that the container has at no other place is not held any more."""
    kept = {mount.name for mount in left if mount.type == "volume"}
    for mount in mounts:
        if mount.type == "volume" and mount.name not in kept:
            engine.volumes.let_go(mount.name, container_id)


async def _ask(container: Container, op: str, mounts: tuple[MountRecord, ...]) -> None:
    """The shim does it; with each mount goes a descriptor of what it shows."""
    if container.shim is None:
        raise Conflict(f"container {container.id} is not running")
    entries: list[Mount] = []
    places: list[int] = []
    fds: list[int] = []
    try:
        for mount in mounts:
            entry = mount_of(mount)
            entries.append(entry)
            fd = _open_source(entry, must_exist=op == "mount")
            places.append(len(fds) if fd >= 0 else -1)
            if fd >= 0:
                fds.append(fd)
        await container.shim.call({"op": op, "mounts": entries, "sources": places}, fds)
    finally:
        for fd in fds:
            os.close(fd)


def _open_source(entry: Mount, *, must_exist: bool) -> int:
    if entry["type"] != "bind":
        return -1
    try:
        return os.open(entry["source"], os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if must_exist:
            raise
        return -1


def _tell(engine: Engine, container: Container) -> None:
    engine.events.tell("container", "update", container.id, container.attributes())
