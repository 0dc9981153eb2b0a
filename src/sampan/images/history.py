"""An image's history: how each layer, and each step without one, came to be. Newest first, as `docker history` has it."""

from __future__ import annotations

import msgspec

from sampan import units
from sampan.errors import InvalidArgument, NotFound
from sampan.images.catalog import Catalog, Image

MISSING = "<missing>"  # the step is known, the image that it made was never here


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int  # seconds since the epoch
    created_by: str
    tags: tuple[str, ...]
    size: int
    comment: str


def history(catalog: Catalog, text: str, platform: str = "") -> list[HistoryEntry]:
    """Every step of the image that `text` names."""
    return history_of(catalog, catalog.resolve(text, platform))


def history_of(catalog: Catalog, image: Image) -> list[HistoryEntry]:
    layers = iter(image.chain_ids)
    steps: list[tuple[str, str, str, int]] = []
    for step in image.document.history:
        size = 0
        if not step.empty_layer:
            chain_id = next(layers, None)
            if chain_id is None:
                raise InvalidArgument("too many non-empty layers in History section")
            size = catalog.layer_size(chain_id)
        steps.append((step.created or "", step.created_by, step.comment, size))
    ancestors = _ancestors(catalog, image)
    found = []
    for number, (created, created_by, comment, size) in enumerate(reversed(steps)):
        owner = ancestors[number] if number < len(ancestors) else None
        found.append(
            HistoryEntry(
                id=owner.id if owner else MISSING,
                created=_seconds(created),
                created_by=created_by,
                tags=owner.repo_tags if owner else (),
                size=size,
                comment=comment,
            )
        )
    return found


def _ancestors(catalog: Catalog, image: Image) -> list[Image]:
    """The image and those it was made from, step by step, as far as they are here."""
    found = [image]
    while found[-1].parent and len(found) < 1024:
        try:
            found.append(catalog.get(found[-1].parent))
        except NotFound:
            break
    return found


def _seconds(text: str) -> int:
    return (units.parse_time(text) or 0) // 1_000_000_000
