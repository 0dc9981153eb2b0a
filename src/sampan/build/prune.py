"""`builder prune`: forget what builds remembered, least recently used first, and free what nobody else has.

A layer has several keys (`cache.py`); it goes with all of them. Filters are Docker's; a budget leaves the most
recently used that fit into it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from sampan.build.upkeep import short_id
from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.spec.engine.image import BuildCachePruned
from sampan.units import parse_duration

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.build.cache import CacheRecord

Filters = Mapping[str, list[str]]

FILTERS = frozenset(
    {
        "until",
        "unused-for",
        "id",
        "parent",
        "type",
        "description",
        "inuse",
        "shared",
        "private",
        "label",
        "label!",
    }
)
REGULAR, MOUNT = "regular", "exec.cachemount"


class _Layer(msgspec.Struct):
    """A layer with every key that leads to it."""

    chain_id: str
    keys: list[str]
    records: list[CacheRecord]
    shared: bool

    @property
    def used_ns(self) -> int:
        return max(record.used_ns for record in self.records)

    @property
    def bytes(self) -> int:
        return max(record.bytes for record in self.records)

    @property
    def shown(self) -> list[str]:
        """The ids that people know it by."""
        return [
            short_id(k) for k, r in zip(self.keys, self.records, strict=True) if r.type == REGULAR
        ]


async def prune(
    builder: Builder, filters: Filters, *, everything: bool = False, keep_bytes: int = 0
) -> BuildCachePruned:
    """Without `everything`, only what no image of the store is made of, and no cache mounts.

    Raises InvalidArgument for an unknown filter or a malformed time.
    """
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


def _layers(builder: Builder) -> list[_Layer]:
    """All, the least recently used first."""
    in_images = {c for image in builder.engine.catalog.images() for c in image.chain_ids}
    found: dict[str, _Layer] = {}
    for key, record in builder.cache.records():
        layer = found.get(record.chain_id)
        if layer is None:
            shared = record.chain_id in in_images
            layer = found[record.chain_id] = _Layer(record.chain_id, [], [], shared)
        layer.keys.append(key)
        layer.records.append(record)
    return sorted(found.values(), key=lambda layer: layer.used_ns)


def _prune(
    builder: Builder, filters: Filters, age_ns: int, everything: bool, keep_bytes: int
) -> BuildCachePruned:
    before = time.time_ns() - age_ns
    layers = _layers(builder)
    chosen = [
        layer
        for layer in layers
        if layer.used_ns <= before and (everything or not layer.shared) and _accepts(filters, layer)
    ]
    if keep_bytes:
        chosen = _over_budget(chosen, sum(layer.bytes for layer in layers), keep_bytes)
    keys = [key for layer in chosen for key in layer.keys]
    shared = frozenset(layer.chain_id for layer in layers if layer.shared)
    freed = builder.cache.remove(keys, used_by_images=shared)
    shown = [ident for layer in chosen for ident in layer.shown]
    mounts, mount_bytes = (
        _prune_mounts(builder, filters, before) if everything and not keep_bytes else ([], 0)
    )
    return BuildCachePruned(
        caches_deleted=[*shown, *mounts] or None, space_reclaimed=freed + mount_bytes
    )


def _over_budget(chosen: list[_Layer], total: int, keep_bytes: int) -> list[_Layer]:
    """The least recently used until the rest fits."""
    gone = []
    for layer in chosen:
        if total <= keep_bytes:
            break
        total -= layer.bytes
        gone.append(layer)
    return gone


def _accepts(filters: Filters, layer: _Layer) -> bool:
    """Every filter that is given must hold; of several values of one, any."""
    checks: dict[str, Callable[[str], bool]] = {
        "id": lambda value: any(ident.startswith(value) for ident in layer.shown),
        "parent": lambda value: any(value in record.parent for record in layer.records),
        "type": lambda value: value == REGULAR,
        "description": lambda value: any(value in record.description for record in layer.records),
        "inuse": lambda value: layer.shared == _is_true(value),
        "shared": lambda value: layer.shared == _is_true(value),
        "private": lambda value: layer.shared != _is_true(value),
    }
    return all(
        any(check(value) for value in filters[name])
        for name, check in checks.items()
        if filters.get(name)
    )


def _is_true(value: str) -> bool:
    return value.lower() not in ("0", "false", "f")


def _prune_mounts(builder: Builder, filters: Filters, before: int) -> tuple[list[str], int]:
    removed, freed = [], 0
    if any(filters.get(name) for name in ("parent", "inuse", "shared")):
        return [], 0  # nothing stands on a cache mount
    for record in builder.cache.mount_records():
        wanted = {"id": record.id, "type": MOUNT, "description": f"cached mount {record.id}"}
        fits = all(
            any(v in text for v in filters[name])
            for name, text in wanted.items()
            if filters.get(name)
        )
        if record.used_ns > before or not fits:
            continue
        try:
            freed += builder.cache.remove_mount(record.id)
        except (Conflict, NotFound):
            continue  # a build uses it, or it is gone
        removed.append(record.id)
    return removed, freed
