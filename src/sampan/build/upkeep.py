"""What the build cache holds, as `system df` shows it: a row for each layer that a step made, and each cache mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampan.build.cache import CacheRecord
from sampan.spec.engine.image import BuildCacheRecord
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.build.builder import Builder


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
