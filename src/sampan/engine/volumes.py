"""Volume verbs, and a container's part in volumes: made at create, mounted at start, given back at exit.

`storage/volumes.py` keeps and mounts them. Who uses a volume is asked of the containers' records, not counted: a
count that a crash leaves wrong makes a volume that nobody can remove.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.engine.filters import Filters, accepts_labels, check_filters, one_bool
from sampan.engine.pipes import ByteInlet, ByteOutlet
from sampan.engine.records import ContainerRecord, MountRecord
from sampan.engine.words import NO_SWARM
from sampan.errors import Conflict, InvalidArgument, NotFound, Unavailable
from sampan.spec.engine.volume import (
    Volume,
    VolumeCreateRequest,
    VolumeList,
    VolumesPruned,
    VolumeUsage,
)
from sampan.storage.access import opened_root
from sampan.units import parse_bool, rfc3339nano

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.storage.volumes import VolumeRecord

log = logging.getLogger("sampan.engine")

LIST_FILTERS = ("dangling", "driver", "label", "label!", "name")
PRUNE_FILTERS = ("label", "label!", "all")
ANONYMOUS = "com.docker.volume.anonymous"


# -- verbs -----------------------------------------------------------------------------------------


async def create_volume(engine: Engine, request: VolumeCreateRequest) -> Volume:
    """Make a volume; one that is there under this name and driver is given back."""
    if request.cluster_volume_spec is not None:
        raise Unavailable(NO_SWARM)
    if request.driver not in ("", "local"):
        raise NotFound(
            f"create {request.name}: error looking up volume plugin {request.driver}: "
            f'plugin "{request.driver}" not found'
        )
    is_new = not request.name or find(engine, request.name) is None
    record = await engine.run_blocking(
        engine.volumes.create,
        request.name or ids.new_id(),
        driver=request.driver or "local",
        options=dict(request.driver_opts),
        labels=dict(request.labels),
        anonymous=not request.name,
    )
    if is_new:
        engine.events.tell("volume", "create", record.name, {"driver": record.driver})
    return _body(record)


def labels_of(record: VolumeRecord) -> dict[str, str]:
    """With the one that tells a volume without a name of its own."""
    return {**record.labels, ANONYMOUS: ""} if record.anonymous else dict(record.labels)


def _body(record: VolumeRecord, usage: VolumeUsage | None = None) -> Volume:
    return Volume(
        created_at=rfc3339nano(record.created_ns // 10**9 * 10**9),
        driver=record.driver,
        labels=labels_of(record) or None,
        mountpoint=str(record.mountpoint),
        name=record.name,
        options=dict(record.options) or None,
        usage_data=usage,
    )


async def inspect_volume(engine: Engine, name: str) -> Volume:
    return _body(engine.volumes.get(name))


async def export_volume(engine: Engine, name: str) -> ByteOutlet:
    """What the volume holds, as a tar that `import_volume` restores."""
    engine.volumes.get(name)

    def produce(outlet: ByteOutlet) -> None:
        for piece in engine.volumes.export_tar(name):
            outlet.write(piece)

    return ByteOutlet().start(engine.pool, produce)


async def import_volume(engine: Engine, name: str, source: ByteInlet) -> None:
    """Unpack a tar over what the volume holds."""
    engine.volumes.get(name)
    try:
        await engine.run_blocking(engine.volumes.import_tar, name, source)
    finally:
        source.close()


async def list_volumes(engine: Engine, filters: Filters) -> VolumeList:
    check_filters(filters, LIST_FILTERS)
    dangling = one_bool(filters, "dangling")
    used = users_by_volume(engine)
    rows = []
    for record in engine.volumes.list():
        if dangling is not None and (record.name not in used) != dangling:
            continue
        if "driver" in filters and record.driver not in filters["driver"]:
            continue
        if "name" in filters and not any(text in record.name for text in filters["name"]):
            continue
        if accepts_labels(labels_of(record), filters):
            rows.append(_body(record))
    return VolumeList(volumes=sorted(rows, key=lambda row: row.name))


def find(engine: Engine, name: str) -> VolumeRecord | None:
    try:
        return engine.volumes.get(name)
    except NotFound:
        return None


def users_by_volume(engine: Engine) -> dict[str, list[str]]:
    """Volume name -> ids of the containers that have it, running or not."""
    users: dict[str, list[str]] = {}
    for container in engine.containers:
        for mount in container.record.mounts:
            if mount.type == "volume":
                users.setdefault(mount.name, []).append(container.id)
    return users


async def remove_volume(engine: Engine, name: str, *, force: bool = False) -> None:
    record = find(engine, name)
    if record is None:
        if force:
            return
        raise NotFound(f"get {name}: no such volume")
    users = users_by_volume(engine).get(name)
    if users:
        raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
    await engine.run_blocking(engine.volumes.remove, name)
    engine.events.tell("volume", "destroy", name, {"driver": record.driver})


def _wants_all(filters: Filters) -> bool:
    values = filters.get("all") or ["false"]
    if len(values) > 1:
        raise InvalidArgument(f"invalid filter 'all={values}': only one value is expected")
    wanted = parse_bool(values[0])
    if wanted is None:
        raise InvalidArgument(
            f"invalid filter 'all': strconv.ParseBool: parsing \"{values[0]}\": invalid syntax"
        )
    return wanted


async def prune_volumes(
    engine: Engine, filters: Filters, *, version: tuple[int, int] = (1, 51)
) -> VolumesPruned:
    """Remove unused volumes: the nameless ones, since 1.42 the named ones only when asked."""
    check_filters(filters, PRUNE_FILTERS)
    everything = _wants_all(filters) or version < (1, 42)
    if "volume" in engine.pruning:
        raise Conflict("a prune operation is already running")
    engine.pruning.add("volume")
    deleted, space = [], 0
    try:
        for record in engine.volumes.list():
            if record.name in users_by_volume(engine) or not accepts_labels(
                labels_of(record), filters
            ):
                continue
            if not (everything or record.anonymous):
                continue
            space += await engine.run_blocking(engine.volumes.size, record.name)
            await engine.run_blocking(engine.volumes.remove, record.name)
            engine.events.tell("volume", "destroy", record.name, {"driver": record.driver})
            deleted.append(record.name)
    finally:
        engine.pruning.discard("volume")
    engine.events.tell("volume", "prune", "", {"reclaimed": str(space)})
    return VolumesPruned(volumes_deleted=deleted or None, space_reclaimed=space)


def usage_rows(engine: Engine, users: dict[str, list[str]]) -> list[Volume]:
    """Blocking: every volume with its size, for `system df`."""
    return [
        _body(
            record,
            VolumeUsage(
                ref_count=len(users.get(record.name, ())), size=engine.volumes.size(record.name)
            ),
        )
        for record in engine.volumes.list()
    ]


# -- a container's volumes -------------------------------------------------------------------------


def prepare_volumes(engine: Engine, record: ContainerRecord) -> tuple[MountRecord, ...]:
    """Blocking, at create: the volumes exist afterwards; returns the mounts with their sources filled in."""
    mounts = tuple(prepared(engine, mount) for mount in record.mounts)
    for mount in mounts:
        if mount.type == "volume":
            engine.volumes.hold(mount.name, record.id)
    return mounts


def prepared(engine: Engine, mount: MountRecord) -> MountRecord:
    """Blocking: a volume mount's volume exists, and the mount says where."""
    if mount.type != "volume":
        return mount
    volume = engine.volumes.create(
        mount.name,
        driver=mount.driver or "local",
        options=mount.volume_options,
        labels=mount.volume_labels,
        anonymous=mount.anonymous,
    )
    return msgspec.structs.replace(mount, source=str(volume.mountpoint), driver=volume.driver)


def mount_volumes(engine: Engine, record: ContainerRecord) -> tuple[MountRecord, ...]:
    """Blocking, at start: volumes mounted, an empty one filled with what the image has at its place."""
    found = []
    for mount in record.mounts:
        if mount.type == "volume":
            # It may have been removed by hand, or with the store: made again, as Docker does.
            mount = prepared(engine, mount)
            source = engine.volumes.mount(mount.name, record.id, subpath=mount.subpath)
            if not mount.no_copy and engine.volumes.is_empty(mount.name):
                with opened_root(engine.snapshots.mounts(record.id)) as root:
                    engine.volumes.copy_up(mount.name, root, mount.destination)
            mount = msgspec.structs.replace(mount, source=str(source))
        found.append(mount)
    return tuple(found)


@contextmanager
def told(engine: Engine, mounts: tuple[MountRecord, ...]) -> Iterator[None]:
    """Loop thread only: which of a container's volumes came or went meanwhile is an event of each, also where
    what was begun then failed."""
    names = dict.fromkeys(mount.name for mount in mounts if mount.type == "volume")
    before = {name: find(engine, name) for name in names}
    try:
        yield
    finally:
        for name, old in before.items():
            now = find(engine, name)
            if old is None and now is not None:
                engine.events.tell("volume", "create", name, {"driver": now.driver})
            elif old is not None and now is None:
                engine.events.tell("volume", "destroy", name, {"driver": old.driver})


def tell_mounted(engine: Engine, record: ContainerRecord) -> None:
    for mount in record.mounts:
        if mount.type == "volume":
            attributes = {
                "container": record.id,
                "destination": mount.destination,
                "driver": mount.driver,
                "propagation": mount.propagation,
                "read/write": str(mount.writable).lower(),
            }
            engine.events.tell("volume", "mount", mount.name, attributes)


def tell_unmounted(engine: Engine, record: ContainerRecord) -> None:
    for mount in record.mounts:
        if mount.type == "volume":
            attributes = {"container": record.id, "driver": mount.driver}
            engine.events.tell("volume", "unmount", mount.name, attributes)


def release_volume_mounts(engine: Engine, record_id: str, mounts: tuple[MountRecord, ...]) -> None:
    """Blocking, at exit: this container holds no volume mounted any more (but it still has them)."""
    for mount in mounts:
        if mount.type == "volume":
            engine.volumes.unmount(mount.name, record_id)


def hold_volumes(engine: Engine, record: ContainerRecord) -> None:
    """At the engine's start: who has which volume is known again."""
    for mount in record.mounts:
        if mount.type == "volume" and find(engine, mount.name) is not None:
            engine.volumes.hold(mount.name, record.id)


def release_volumes(
    engine: Engine,
    container_id: str,
    mounts: tuple[MountRecord, ...],
    *,
    with_anonymous: bool = True,
) -> None:
    """Blocking, at `rm`: it has no volume any more; with `-v` its anonymous ones go, unless others have them too."""
    engine.volumes.release(container_id)
    for mount in mounts:
        if not (with_anonymous and mount.type == "volume" and mount.anonymous):
            continue
        others = [
            c.id for c in engine.containers if c.id != container_id and _has(c.record, mount.name)
        ]
        if others:
            continue
        try:
            engine.volumes.remove(mount.name)
        except (NotFound, Conflict) as error:
            log.info("volume %s stays: %s", mount.name, error)


def _has(record: ContainerRecord, name: str) -> bool:
    return any(m.type == "volume" and m.name == name for m in record.mounts)
