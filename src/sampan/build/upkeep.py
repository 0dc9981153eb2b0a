"""Looking after the build cache: what it holds, and pruning it by age, use and size.

Filters are Docker's: until, id, parent, type, description, inuse, shared, private. `keep_bytes` leaves the most
recently used records whose layers fit; what an image or a container uses is never deleted, only forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from sampan.build.cache import CacheRecord
from sampan.errors import InvalidArgument
from sampan.spec.engine.image import BuildCachePruned, BuildCacheRecord
from sampan.units import parse_duration, rfc3339nano

if TYPE_CHECKING:
    from sampan.build.builder import Builder

FILTERS = (
    "until",
    "unused-for",
    "id",
    "parent",
    "type",
    "description",
    "inuse",
    "shared",
    "private",
)
Filters = Mapping[str, Sequence[str]]


class Prune(msgspec.Struct, frozen=True, kw_only=True):
    """What POST /build/prune says."""

    everything: bool = False
    keep_bytes: int = 0
    filters: dict[str, list[str]] = {}


def rows(builder: Builder) -> list[BuildCacheRecord]:
    """Blocking: every record that stands for a layer, and every cache mount."""
    used = _used_by_images(builder)
    found = [
        _row(key, record, shared=record.chain_id in used)
        for key, record in builder.cache.records()
        if record.type == "regular"
    ]
    for mount in builder.cache.mount_records():
        found.append(
            BuildCacheRecord(
                id=builder.cache.mount_path(mount.id).name[:25], type="exec.cachemount",
                description=f"cached mount {mount.id}", size=builder.cache.mount_size(mount.id),
                created_at=rfc3339nano(mount.created_ns), last_used_at=rfc3339nano(mount.used_ns),
                usage_count=mount.uses,
            )
        )  # fmt: skip
    return found


def _row(key: str, record: CacheRecord, *, shared: bool) -> BuildCacheRecord:
    return BuildCacheRecord(
        id=short_id(key), type=record.type, description=record.description, shared=shared,
        size=record.bytes, created_at=rfc3339nano(record.created_ns),
        last_used_at=rfc3339nano(record.used_ns), usage_count=record.uses,
    )  # fmt: skip


def short_id(key: str) -> str:
    """What people see and name."""
    return key.removeprefix("sha256:")[:25]


def _used_by_images(builder: Builder) -> frozenset[str]:
    return frozenset(c for image in builder.engine.catalog.images() for c in image.chain_ids)


def prune(builder: Builder, wish: Prune) -> BuildCachePruned:
    """Blocking. Raises InvalidArgument for an unknown filter or a malformed time."""
    for name in wish.filters:
        if name not in FILTERS:
            raise InvalidArgument(f"invalid filter '{name}'")
    used = _used_by_images(builder)
    wanted = [
        (key, record)
        for key, record in builder.cache.records()
        if _matches(key, record, wish.filters, used)
    ]
    wanted.sort(key=lambda item: -item[1].used_ns)
    kept = 0
    gone: list[str] = []
    for key, record in wanted:
        if wish.keep_bytes and kept + record.bytes <= wish.keep_bytes:
            kept += record.bytes
        else:
            gone.append(key)
    shown = [
        short_id(key) for key, record in wanted if key in set(gone) and record.type == "regular"
    ]
    freed = builder.cache.remove(gone, used_by_images=used | _used_by_containers(builder))
    if wish.everything and not wish.filters and not wish.keep_bytes:
        for mount in builder.cache.mount_records():
            freed += builder.cache.remove_mount(mount.id)
            shown.append(mount.id)
    return BuildCachePruned(caches_deleted=shown or None, space_reclaimed=freed)


def _used_by_containers(builder: Builder) -> frozenset[str]:
    return frozenset(c.record.chain_id for c in builder.engine.containers)


def _matches(key: str, record: CacheRecord, filters: Filters, used: frozenset[str]) -> bool:
    shared = record.chain_id in used
    for name, values in filters.items():
        if name in ("until", "unused-for"):
            if not all(_older(record, value) for value in values):
                return False
        elif name == "id":
            if not any(short_id(key).startswith(value) for value in values):
                return False
        elif name == "type":
            if record.type not in values:
                return False
        elif name == "description":
            if not any(value in record.description for value in values):
                return False
        elif name == "parent":
            if not any(record.parent.removeprefix("sha256:").startswith(v) for v in values):
                return False
        elif name in ("inuse", "shared"):
            if not shared:
                return False
        elif shared:  # private
            return False
    return True


def _older(record: CacheRecord, text: str) -> bool:
    try:
        age = parse_duration(text)
    except InvalidArgument:
        raise InvalidArgument(
            f"invalid until filter {text!r}: it must be a duration, such as 24h"
        ) from None
    return record.used_ns < time.time_ns() - age
