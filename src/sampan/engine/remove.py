"""Remove containers, one or all that are not needed.

What is taken away, in this order (each step can be repeated, so that a crash in between is repaired by removing
again): process, network and volume mounts, snapshot, anonymous volumes (with `-v`), directories, record and name.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from sampan.engine import resources, stop, supervise
from sampan.engine.filters import Filters, accepts_labels, check_filters, until_ns
from sampan.engine.streams import close_pending
from sampan.engine.volumes import release_volumes, told
from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.images import removal
from sampan.spec.engine.container import ContainersPruned

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

GONE_TIMEOUT_S = 10.0


async def remove(
    engine: Engine, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False
) -> None:
    """Remove a container; with `force` also a running one."""
    if link:
        await _remove_link(engine, ref)
        return
    container = engine.containers.find(ref)
    if container.state.removing and not container.broken and container.lock.locked() and not force:
        raise Conflict(f"removal of container {container.id} is already in progress")
    await remove_container(engine, container, force=force, volumes=volumes, ref=ref)


async def _remove_link(engine: Engine, ref: str) -> None:
    """`rm --link PARENT/ALIAS` takes the alias away from a container of the default bridge."""
    name, _, alias = ref.removeprefix("/").rpartition("/")
    engine.containers.find(name or ref)
    if not name or not alias:
        raise InvalidArgument("Conflict, cannot remove the default link name of the container")
    import msgspec

    container = engine.containers.find(name)
    host = container.record.host_config
    links = [text for text in host.links or () if text.rpartition(":")[2] != alias]
    if len(links) == len(host.links or ()):
        raise NotFound(f"Could not get parent {name} for name {alias}")
    async with container.lock:
        container.save_record(host_config=msgspec.structs.replace(host, links=links))


async def remove_container(
    engine: Engine, container: Container, *, force: bool, volumes: bool, ref: str = ""
) -> None:
    ref = ref or container.name
    async with container.lock:
        if container.removed:
            return
        _refuse(container, ref, force=force)
        supervise.cancel_restart(container)
        container.save_state(removing=True)
        try:
            await stop.kill_locked(engine, container)
            await _take_away(engine, container, volumes=volumes)
        except BaseException:
            container.save_state(removing=False, dead=not container.is_running)
            raise
    _tell_removed(engine, container)


async def remove_ended(engine: Engine, container: Container) -> None:
    """`--rm`, after the exit: who waits is answered first, the files go after.

    Unmounting an overlay writes its whole upper file system to the disk; whoever ran a command and has its exit code
    need not wait for that. From the answer on nothing finds the container and its name is free. Its record stays in the
    store, marked, until the last file is gone: an engine that starts in between goes on with the removal.
    With volumes there is no such haste: they must be free, or gone, when `run --rm` returns. If the files cannot be
    taken away it is found again, dead, so that `rm` and `prune` can try once more.
    """
    if any(mount.type == "volume" for mount in container.record.mounts):
        volumes = (
            container.record.host_config.auto_remove
        )  # else this is an `rm` that a crash cut short
        await remove_container(engine, container, force=False, volumes=volumes)
        return
    async with container.lock:
        if container.removed or container.is_running:
            return
        supervise.cancel_restart(container)
        await container.settled.wait()
        engine.containers.leave(container)
        _tell_removed(engine, container)
        try:
            await _take_away(engine, container, volumes=True)
        except Exception:
            engine.containers.come_back(container)
            container.save_state(removing=False, dead=True)
            raise


def _tell_removed(engine: Engine, container: Container) -> None:
    container.answer_removal()
    engine.events.tell("container", "destroy", container.id, container.attributes())


def _refuse(container: Container, ref: str, *, force: bool) -> None:
    if force:
        return
    state = container.state
    subject = f'cannot remove container "/{container.record.name}"'
    if state.paused:
        raise Conflict(f"{subject}: container is paused and must be unpaused first")
    if state.is_running or state.restarting:
        word = "running" if state.is_running else "restarting"
        raise Conflict(
            f"{subject}: container is {word}: stop the container before removing or force remove"
        )


async def _take_away(engine: Engine, container: Container, *, volumes: bool) -> None:
    close_pending(container)
    await container.settled.wait()
    try:
        await asyncio.wait_for(container.gone.wait(), GONE_TIMEOUT_S)
    except TimeoutError:
        raise Conflict(
            f"container {container.id}: something still holds its file system",
            hint="it is tried again with the next `rm`",
        ) from None
    with told(engine, container.record.mounts):
        await engine.run_blocking(_take_away_blocking, engine, container, volumes)
    for exec_id in tuple(container.execs):
        engine.execs.pop(exec_id, None)
    if container.shim is not None:
        container.shim.close()
        container.shim = None
    engine.containers.forget(container)
    if not engine.catalog.has(container.record.image_id):
        # Its image was removed by force: the layers stayed for this container alone.
        await engine.run_blocking(removal.collect_layers, engine.catalog)


def _take_away_blocking(engine: Engine, container: Container, volumes: bool) -> None:
    record = container.record
    resources.release(engine, record)
    try:
        engine.snapshots.remove(record.id)
    except NotFound:
        pass
    release_volumes(engine, record.id, record.mounts, with_anonymous=volumes)
    shutil.rmtree(engine.run_dir(record.id), ignore_errors=True)
    shutil.rmtree(engine.container_dir(record.id), ignore_errors=True)


# -- prune -----------------------------------------------------------------------------------------

PRUNE_FILTERS = ("until", "label", "label!")


async def prune(engine: Engine, filters: Filters) -> ContainersPruned:
    """Remove every container that does not run."""
    check_filters(filters, PRUNE_FILTERS)
    before = until_ns(filters)
    if "container" in engine.pruning:
        raise Conflict("a prune operation is already running")
    engine.pruning.add("container")
    deleted: list[str] = []
    space = 0
    try:
        for container in engine.containers:
            if not _prunable(container, filters, before):
                continue
            size = await engine.run_blocking(_size, engine, container.id)
            try:
                await remove_container(engine, container, force=False, volumes=False)
            except Conflict:
                continue  # started in between
            deleted.append(container.id)
            space += size
    finally:
        engine.pruning.discard("container")
    engine.events.tell("container", "prune", "", {"reclaimed": str(space)})
    return ContainersPruned(containers_deleted=deleted or None, space_reclaimed=space)


def _size(engine: Engine, key: str) -> int:
    try:
        return engine.snapshots.usage(key).bytes
    except NotFound:
        return 0


def _prunable(container: Container, filters: Filters, before_ns: int | None) -> bool:
    state = container.state
    if state.is_running or state.restarting or state.removing:
        return False
    if before_ns is not None and container.record.created_ns > before_ns:
        return False
    return accepts_labels(container.record.config.labels, filters)
