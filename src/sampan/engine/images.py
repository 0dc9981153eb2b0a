"""Image verbs: pull, push, load, save, import, tag, remove, prune, list, inspect, history, commit; their events.

`images/` does the work, synchronously; here it is run in the pool, asked who uses an image, and told about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.engine import image_views
from sampan.engine.commit import commit
from sampan.engine.filters import Filters, accepts_labels, check_filters, one_bool, until_ns
from sampan.engine.pipes import ByteInlet, ByteOutlet
from sampan.errors import Conflict, InvalidArgument
from sampan.images import archive, builtin, remote, removal, rootfs
from sampan.images import history as histories
from sampan.images import push as pushes
from sampan.images import save as saving
from sampan.images.auth import Credentials
from sampan.images.cancel import Cancel
from sampan.images.platform import native_platform
from sampan.spec.engine.image import (
    DeleteItem,
    DistributionInspect,
    HistoryItem,
    ImageInspect,
    ImagesPruned,
    ImageSummary,
    SearchResult,
)
from sampan.spec.reference import parse_normalized

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.images.catalog import Image

Progress = Callable[[dict[str, Any]], None]
Auth = dict[str, str] | None

LIST_FILTERS = ("dangling", "label", "label!", "before", "since", "reference", "until")
PRUNE_FILTERS = ("dangling", "until", "label", "label!")
FEW_IMAGES = 32


# -- helpers ---------------------------------------------------------------------------------------


async def resolve(engine: Engine, ref: str, *, platform: str = "") -> Image:
    """An image that is here; the two that need no registry are made when they are asked for."""
    catalog = engine.catalog
    found = catalog.find(ref)
    if found is None:
        found = await engine.run_blocking(builtin.ensure, catalog, ref)
    if found is None or platform:
        return await engine.run_blocking(catalog.resolve, ref, platform)
    return found


def platform_warnings(engine: Engine, image: Image, platform: str) -> list[str]:
    """An image for another processor may still run (binfmt), so it is a warning."""
    have, host = image.platform, native_platform()
    if platform or have.architecture == host.architecture:
        return []
    return [
        f"The requested image's platform ({str(have) or 'unknown'}) does not match the detected host platform "
        f"({host}) and no specific platform was requested"
    ]


def _credentials(auth: Auth) -> Credentials | None:
    """What the X-Registry-Auth header said, lower-case keys."""
    if not auth:
        return None
    return Credentials(
        username=auth.get("username", ""),
        password=auth.get("password", ""),
        identity_token=auth.get("identitytoken", ""),
        registry_token=auth.get("registrytoken", ""),
        server_address=auth.get("serveraddress", ""),
    )


def on_loop(progress: Progress) -> Progress:
    """Progress from pool threads, delivered on the loop's thread and in order."""
    loop = asyncio.get_running_loop()

    def report(message: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(progress, message)

    return report


async def _cancellable(cancel: Cancel, work: Coroutine[Any, Any, Any]) -> Any:
    """When the client goes away the work in the pool is told to stop, and waited for."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel.set()
        await asyncio.wait({task}, timeout=30)
        if task.done() and not task.cancelled():
            task.exception()  # seen: nobody is left to be told
        raise
    finally:
        # Messages that the worker queued last reach the client before the answer ends.
        await asyncio.sleep(0)


def users_of(engine: Engine) -> removal.Users:
    """Who needs an image: every container made from it. Made on the loop, asked in a thread."""
    by_image: dict[str, list[removal.Use]] = {}
    for container in engine.containers:
        use = removal.Use(container_id=container.id, running=container.is_running)
        by_image.setdefault(container.record.image_id, []).append(use)
    return lambda image_id: by_image.get(image_id, [])


def _tell(engine: Engine, action: str, ident: str, name: str, **more: str) -> None:
    labels: dict[str, str] = {}
    image = engine.catalog.find(ident)
    if image is not None:
        labels = dict(image.labels)
    engine.events.tell("image", action, ident, {**labels, "name": name, **more})


# -- pull and push ---------------------------------------------------------------------------------


async def pull(
    engine: Engine,
    *,
    image: str,
    tag: str = "",
    platform: str = "",
    auth: Auth = None,
    progress: Progress,
) -> None:
    """One image, or every tag of a repository where neither tag nor digest is given."""
    reference = parse_normalized(image)
    if tag:
        is_digest = ":" in tag
        reference = reference.with_digest(tag) if is_digest else reference.with_tag(tag)
    cancel = Cancel()
    await _cancellable(
        cancel,
        engine.run_blocking(
            engine.puller.pull,
            reference,
            all_tags=reference.is_name_only,
            platform=platform,
            auth=_credentials(auth),
            progress=on_loop(progress),
            cancel=cancel,
        ),
    )
    _tell(engine, "pull", reference.familiar(), reference.familiar_name)


async def push(
    engine: Engine,
    name: str,
    *,
    tag: str = "",
    platform: str = "",
    auth: Auth = None,
    progress: Progress,
) -> None:
    reference = parse_normalized(name)
    if tag:
        reference = reference.with_tag(tag)
    if platform:  # there is one image under a name: it is of that platform, or nothing is
        await resolve(engine, reference.familiar(), platform=platform)
    cancel = Cancel()
    await _cancellable(
        cancel,
        engine.run_blocking(
            pushes.push,
            engine.catalog,
            engine.registries,
            reference,
            all_tags=reference.is_name_only,
            auth=_credentials(auth),
            progress=on_loop(progress),
            cancel=cancel,
        ),
    )
    _tell(engine, "push", reference.familiar(), reference.familiar_name)


async def search(
    engine: Engine,
    *,
    term: str,
    limit: int = 0,
    filters: Filters,
    auth: Auth = None,
) -> list[SearchResult]:
    check_filters(filters, ("is-official", "stars", "is-automated"))
    if limit and not 1 <= limit <= 100:
        raise InvalidArgument(f"limit {limit} is outside the range of [1, 100]")
    found = await engine.run_blocking(
        remote.search, engine.registries, term, limit or 25, filters, _credentials(auth)
    )
    return msgspec.convert(found, list[SearchResult])


async def distribution(engine: Engine, name: str, auth: Auth) -> DistributionInspect:
    reference = parse_normalized(name).with_default_tag()
    found = await engine.run_blocking(
        remote.inspect_distribution, engine.registries, reference, _credentials(auth)
    )
    return DistributionInspect(
        descriptor=msgspec.to_builtins(found.descriptor),
        platforms=msgspec.to_builtins(found.platforms),
    )


# -- archives --------------------------------------------------------------------------------------


async def load(
    engine: Engine,
    source: ByteInlet,
    *,
    quiet: bool = False,
    platform: str = "",
    progress: Progress,
) -> None:
    cancel = Cancel()
    try:
        loaded = await _cancellable(
            cancel,
            engine.run_blocking(
                archive.load,
                engine.catalog,
                source,
                platform=platform,
                quiet=quiet,
                progress=on_loop(progress),
                cancel=cancel,
            ),
        )
    finally:
        source.close()
    for image in loaded:
        _tell(engine, "load", image.id, image.id)


async def save(engine: Engine, names: list[str], platform: str = "") -> ByteOutlet:
    """The archive as a stream; a name that does not exist fails before anything is sent."""
    selected = await engine.run_blocking(saving.select, engine.catalog, names, platform)
    for one in selected:
        _tell(engine, "save", one.image.id, one.image.id)
    outlet = ByteOutlet()
    return outlet.start(engine.pool, lambda out: saving.save(engine.catalog, selected, out.write))


async def import_(
    engine: Engine,
    source: ByteInlet | str,
    *,
    repo: str = "",
    tag: str = "",
    message: str = "",
    changes: list[str],
    platform: str = "",
    progress: Progress,
) -> None:
    """An image of one layer from a tar of a root file system: a stream, or a web address that the engine fetches."""
    cancel = Cancel()
    verb = (
        partial(rootfs.import_from_url, engine.catalog, engine.registries, source)
        if isinstance(source, str)
        else partial(rootfs.import_rootfs, engine.catalog, source)
    )
    try:
        image = await _cancellable(
            cancel,
            engine.run_blocking(
                verb,
                repo=repo,
                tag=tag,
                message=message,
                changes=changes,
                platform=platform,
                progress=on_loop(progress),
                cancel=cancel,
            ),
        )
    finally:
        if not isinstance(source, str):
            source.close()
    for name in image.repo_tags:
        _tell(engine, "tag", image.id, name)
    _tell(engine, "import", image.id, image.id)


# -- names and removal -----------------------------------------------------------------------------


async def tag(engine: Engine, name: str, *, repo: str, tag: str = "") -> None:
    source = await resolve(engine, name)
    if not repo:
        raise InvalidArgument(
            "invalid reference format: repository name must have at least one component"
        )
    target = parse_normalized(repo)
    if target.digest:
        raise InvalidArgument("refusing to create a tag with a digest reference")
    target = target.with_tag(tag) if tag else target.with_default_tag()
    await engine.run_blocking(engine.catalog.tag, source, target)
    _tell(engine, "tag", source.id, target.familiar())


async def remove(
    engine: Engine, name: str, *, force: bool = False, noprune: bool = False
) -> list[DeleteItem]:
    items = await engine.run_blocking(
        removal.delete,
        engine.catalog,
        name,
        force=force,
        noprune=noprune,
        users=users_of(engine),
    )
    return _told(engine, items)


def _told(engine: Engine, items: list[removal.DeleteItem]) -> list[DeleteItem]:
    for item in items:
        if not item.image_id:
            continue
        action = "untag" if item.untagged else "delete"
        engine.events.tell("image", action, item.image_id, {"name": item.image_id})
    return [DeleteItem(untagged=item.untagged, deleted=item.deleted) for item in items]


async def prune(engine: Engine, filters: Filters) -> ImagesPruned:
    """Remove images that no container uses: the nameless ones, or with dangling=false all."""
    check_filters(filters, PRUNE_FILTERS)
    dangling_only = one_bool(filters, "dangling") is not False
    before = until_ns(filters)
    if "image" in engine.pruning:
        raise Conflict("a prune operation is already running")

    def wanted(image: Image) -> bool:
        if before is not None and image.created_ns > before:
            return False
        return accepts_labels(image.labels, filters)

    engine.pruning.add("image")
    try:
        items, space = await engine.run_blocking(
            removal.prune,
            engine.catalog,
            wanted=wanted,
            dangling_only=dangling_only,
            users=users_of(engine),
        )
    finally:
        engine.pruning.discard("image")
    deleted = _told(engine, items)
    engine.events.tell("image", "prune", "", {"reclaimed": str(space)})
    return ImagesPruned(images_deleted=deleted or None, space_reclaimed=space)


# -- looking ---------------------------------------------------------------------------------------


async def list_images(
    engine: Engine,
    *,
    everything: bool = False,
    filters: Filters,
    shared_size: bool = False,
    digests: bool = False,
    manifests: bool = False,
    version: tuple[int, int] = (1, 51),
) -> list[ImageSummary]:
    check_filters(filters, LIST_FILTERS)
    del digests  # they are always there
    use = image_views.uses(engine) if version >= (1, 51) else None
    rows = partial(
        image_views.rows,
        engine.catalog,
        filters,
        everything=everything,
        shared_size=shared_size,
        manifests=manifests,
        version=version,
        uses=use,
    )
    # What rows are made of is in memory after the first time: for a few, a thread costs more than the work.
    if len(engine.catalog.table.entries) <= FEW_IMAGES and not shared_size:
        return rows()
    return await engine.run_blocking(rows)


async def inspect(
    engine: Engine,
    name: str,
    *,
    platform: str = "",
    manifests: bool = False,
    version: tuple[int, int] = (1, 51),
) -> ImageInspect:
    image = await resolve(engine, name, platform=platform)
    # One small document, and in memory after the first time.
    return image_views.inspect_body(engine, image, manifests=manifests, version=version)


async def history(engine: Engine, name: str, platform: str = "") -> list[HistoryItem]:
    await resolve(engine, name)
    steps = await engine.run_blocking(histories.history, engine.catalog, name, platform)
    return [
        HistoryItem(
            id=step.id,
            created=step.created,
            created_by=step.created_by,
            tags=list(step.tags) or None,
            size=step.size,
            comment=step.comment,
        )
        for step in steps
    ]


__all__ = [
    "commit", "distribution", "history", "import_", "inspect", "list_images", "load", "prune", "pull", "push",
    "remove", "resolve", "save", "search", "tag",
]  # fmt: skip
