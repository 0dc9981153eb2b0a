"""`builder prune`: forget what builds remembered, oldest use first, and free what nobody else has."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.spec.engine.image import BuildCachePruned
from sampan.units import parse_duration

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.build.cache import CacheRecord

Filters = Mapping[str, list[str]]

FILTERS = frozenset({"until", "unused-for", "id", "type", "description", "label", "label!"})
REGULAR, MOUNT = "regular", "exec.cachemount"


async def prune(
    builder: Builder, filters: Filters, *, everything: bool = False, keep_bytes: int = 0
) -> BuildCachePruned:
    """Without `everything`, only what no image of the store is made of, and no cache mounts."""
    for key in filters:
        if key not in FILTERS:
            raise InvalidArgument(f"failed to prune build cache: invalid filter '{key}'")
    age_ns = _age_ns(filters)
    return await builder.engine.run_blocking(
        _prune, builder, filters, age_ns, everything, keep_bytes
    )


def _age_ns(filters: Filters) -> int:
    """How long something must be unused to go."""
    values = [*filters.get("until", []), *filters.get("unused-for", [])]
    if len(values) > 1:
        raise InvalidArgument("filters expect only one value")
    return parse_duration(values[0]) if values else 0


def _prune(
    builder: Builder, filters: Filters, age_ns: int, everything: bool, keep_bytes: int
) -> BuildCachePruned:
    cache = builder.cache
    in_images = frozenset(
        chain_id for image in builder.engine.catalog.images() for chain_id in image.chain_ids
    )
    before = time.time_ns() - age_ns
    chosen = [
        (key, record)
        for key, record in sorted(cache.records(), key=lambda item: item[1].used_ns)
        if record.used_ns <= before
        and (everything or record.chain_id not in in_images)
        and _accepts(filters, key, record.type, record.description)
    ]
    keys = [key for key, _ in _over_budget(chosen, keep_bytes)]
    freed = cache.remove(keys, used_by_images=in_images)
    mounts, mount_bytes = _prune_mounts(builder, filters, before) if everything else ([], 0)
    return BuildCachePruned(
        caches_deleted=[*keys, *mounts] or None, space_reclaimed=freed + mount_bytes
    )


def _accepts(filters: Filters, ident: str, kind: str, description: str) -> bool:
    if "label" in filters:
        return False  # `system prune` hands its filters on, and nothing of the cache has labels
    wanted = {"id": ident, "type": kind, "description": description}
    return all(value in filters[key] for key, value in wanted.items() if filters.get(key))


def _over_budget(
    chosen: list[tuple[str, CacheRecord]], keep_bytes: int
) -> Iterable[tuple[str, CacheRecord]]:
    """All, or with a budget the least recently used until the rest fits."""
    if not keep_bytes:
        yield from chosen
        return
    total = sum(record.bytes for _, record in chosen)
    for key, record in chosen:
        if total <= keep_bytes:
            return
        total -= record.bytes
        yield key, record


def _prune_mounts(builder: Builder, filters: Filters, before: int) -> tuple[list[str], int]:
    removed, freed = [], 0
    for record in builder.cache.mount_records():
        if record.used_ns > before or not _accepts(filters, record.id, MOUNT, record.id):
            continue
        try:
            freed += builder.cache.remove_mount(record.id)
        except (Conflict, NotFound):
            continue  # a build uses it, or it is gone
        removed.append(record.id)
    return removed, freed
