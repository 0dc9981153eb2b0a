"""What a build ends with: an image for each platform, not yet stored anywhere.

    Outcome (configuration, history) + Stack (layers, their times) ──image_of()──► Built (documents)

Times of history entries are those of their layers, an entry without one takes its neighbour's, so that the same
layers make the same image again. Source: BuildKit's image exporter, whose images tools compare ours with.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sampan.build.graph import Outcome
from sampan.build.stack import Stack
from sampan.errors import InvalidArgument
from sampan.images.assemble import NewLayer, Parts, make
from sampan.spec.image import History, ImageDocument, Manifest, Platform
from sampan.spec.reference import Reference, parse_normalized

EXPORTER_COMMENT = "buildkit.exporter.image.v0"
NEVER = "0001-01-01T00:00:00Z"


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """One platform's image."""

    platform: Platform
    manifest: Manifest
    document: ImageDocument
    layers: tuple[NewLayer, ...]
    chain_id: str


def image_of(
    outcome: Outcome,
    stack: Stack,
    platform: Platform,
    epoch: str = "",
    notes: dict[str, Any] | None = None,
) -> Built:
    """The documents of an image."""
    history = _dated(outcome.history, stack)
    created = epoch or next((h.created for h in reversed(history) if h.created), NEVER)
    parts = Parts(
        config=outcome.config, layers=stack.layers, history=history, created=created,
        author=outcome.author, platform=platform, notes=notes or {},
    )  # fmt: skip
    manifest, document = make(parts)
    return Built(
        platform=platform, manifest=manifest, document=document, layers=stack.layers,
        chain_id=stack.chain_id,
    )  # fmt: skip


def _dated(history: tuple[History, ...], stack: Stack) -> tuple[History, ...]:
    entries = list(history)
    said = sum(not entry.empty_layer for entry in entries)
    for time in stack.times[said:]:  # a base image that does not tell of all its layers
        entries.append(History(created=time or None, comment=EXPORTER_COMMENT))
    times = iter(stack.times)
    for number, entry in enumerate(entries):
        if not entry.empty_layer:
            time = next(times, "")
            if not entry.created:
                entries[number] = msgspec.structs.replace(entry, created=time or None)
    return tuple(_filled(entries))


def _filled(entries: list[History]) -> list[History]:
    """Entries without a time get that of the first new layer, later ones that of the layer before them."""
    created: str | None = None
    missing = False
    for entry in entries:
        if entry.created:
            created = entry.created
            if missing:
                break
        else:
            missing = True
    filled, missing = [], False
    for entry in entries:
        if entry.created:
            created = entry.created if missing else created
            filled.append(entry)
        else:
            missing = True
            filled.append(msgspec.structs.replace(entry, created=created))
    return filled


def tag_reference(text: str) -> Reference:
    """A name that an image may get. Raises InvalidArgument for one with a digest."""
    reference = parse_normalized(text)
    if reference.digest:
        raise InvalidArgument("build tag cannot contain a digest")
    return reference.with_default_tag()
