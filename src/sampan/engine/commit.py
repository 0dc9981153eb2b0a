"""Commit: what a container wrote becomes a layer, and its configuration an image on top of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from sampan.engine import merge
from sampan.engine.image_views import run_config
from sampan.engine.words import parse_signal
from sampan.errors import Conflict, NotFound, SampanError
from sampan.images.assemble import assemble, extend, parts_of
from sampan.images.cancel import Cancel
from sampan.images.changes import apply_changes
from sampan.images.rootfs import store_layer, target_reference
from sampan.images.unpack import unpack
from sampan.shim.client import ShimGone
from sampan.spec.engine.container import ContainerConfig, IdResponse
from sampan.spec.image import History, RunConfig
from sampan.spec.reference import digest_of
from sampan.storage.snapshots import chain_ids
from sampan.storage.streams import ChunkReader
from sampan.units import rfc3339nano

# The digest of an archive of nothing: a container that wrote nothing adds no layer.
EMPTY_TAR = digest_of(bytes(1024))

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container
    from sampan.images.catalog import Image


async def commit(
    engine: Engine,
    *,
    container: str,
    repo: str = "",
    tag: str = "",
    comment: str = "",
    author: str = "",
    pause: bool = True,
    changes: list[str],
    config: ContainerConfig | None = None,
) -> IdResponse:
    """Make the image; a running container is paused meanwhile unless the caller says not to."""
    found = engine.containers.find(container)
    target_reference(repo, tag)
    async with found.lock:
        if found.state.dead or found.state.removing:
            raise Conflict(f"You cannot commit container {found.id} which is Dead")
        frozen = pause and await _freeze(found)
        try:
            image = await engine.run_blocking(
                _commit, engine, found, repo, tag, comment, author, changes, config
            )
        finally:
            if frozen and found.shim is not None:
                try:
                    await found.shim.call({"op": "unpause"})
                except SampanError:
                    pass  # it ended meanwhile
    name = f"{repo}:{tag or 'latest'}" if repo else ""
    if name:
        engine.events.tell("image", "tag", image.id, {**image.labels, "name": name})
    engine.events.tell(
        "container",
        "commit",
        found.id,
        found.attributes(comment=comment, imageID=image.id, imageRef=name),
    )
    return IdResponse(id=image.id)


async def _freeze(container: Container) -> bool:
    """Hold a running container still; one that has just ended is still already."""
    if not container.is_running or container.state.paused or container.shim is None:
        return False
    try:
        await container.shim.call({"op": "pause"})
    except (ShimGone, NotFound):
        return False  # it has just ended
    except Conflict as error:
        if "is not running" not in error.message:
            raise
        return False  # the shim knows of an end before we do
    return True


def _commit(
    engine: Engine,
    container: Container,
    repo: str,
    tag: str,
    comment: str,
    author: str,
    changes: list[str],
    config: ContainerConfig | None,
) -> Image:
    record, catalog = container.record, engine.catalog
    parent = catalog.find(record.image_id)
    if parent is None:
        raise NotFound(f"No such image: {record.image_id}")
    reference = target_reference(repo, tag)
    wanted = _configuration(record.config, config, changes)
    created = rfc3339nano(time.time_ns())
    command = " ".join(record.config.cmd or ())
    with catalog.holding() as hold:
        parts = parts_of(parent)
        stream = ChunkReader(engine.snapshots.diff(record.id))
        layer = store_layer(catalog, hold, stream, Cancel.never())
        parts = extend(
            parts,
            config=wanted,
            layers=[] if layer.diff_id == EMPTY_TAR else [layer],
            history=History(created=created, created_by=command, author=author, comment=comment),
            created=created,
            author=author,
            comment=comment,
        )
        diff_ids = [one.diff_id for one in parts.layers]
        hold.layers(*chain_ids(diff_ids))
        unpack(catalog, [one.descriptor for one in parts.layers], diff_ids)
        return assemble(
            catalog, parts, references=(reference,) if reference else (), parent=parent.id
        )


def _configuration(
    own: ContainerConfig, given: ContainerConfig | None, changes: list[str]
) -> RunConfig:
    """The container's, with what the request's body and `--change` say over it."""
    base = run_config(msgspec.structs.replace(own, hostname="", domainname=""))
    if given is not None and given != ContainerConfig():
        base = run_config(merge.merge(given, base))
    config = apply_changes(base, changes)
    if config.stop_signal != base.stop_signal:
        parse_signal(config.stop_signal)  # raises for one that there is not
    return config
