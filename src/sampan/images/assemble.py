"""A new image from parts: what `commit`, `import` and a build end with.

    base image (or nothing)  +  new layers  +  run configuration  +  one history line a step
        ──► configuration document ──► manifest ──► the catalogue

The document is written with sorted keys and only what was given, so the same parts make the same id; times are
the caller's (a reproducible build gives SOURCE_DATE_EPOCH). Sources: OCI image-spec 1.1 config.md, manifest.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from sampan.errors import InvalidArgument
from sampan.images.catalog import Catalog, Image
from sampan.images.platform import host_platform
from sampan.spec.image import (
    LAYER_COUNT_LIMIT,
    OCI_CONFIG,
    Descriptor,
    History,
    ImageDocument,
    Manifest,
    Platform,
    RunConfig,
    encode,
    make_manifest,
    parse_image_document,
)
from sampan.spec.reference import Reference


class NewLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that is in the store and unpacked, or can be made again from what is unpacked."""

    descriptor: Descriptor
    diff_id: str


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an image is made of."""

    config: RunConfig
    layers: tuple[NewLayer, ...]
    history: tuple[History, ...]
    created: str
    author: str = ""
    comment: str = ""
    platform: Platform = msgspec.field(default_factory=host_platform)
    notes: dict[str, Any] = {}  # members of the document that only programs know


def parts_of(image: Image) -> Parts:
    """An existing image, taken apart to build on."""
    document = image.document
    layers = tuple(
        NewLayer(descriptor=descriptor, diff_id=diff_id)
        for descriptor, diff_id in zip(image.manifest.layers, document.diff_ids, strict=True)
    )
    return Parts(
        config=document.config,
        layers=layers,
        history=full_history(document),
        created=document.created,
        author=document.author,
        platform=document.platform,
    )


def full_history(document: ImageDocument) -> tuple[History, ...]:
    """The history, with a line for each layer: some tools leave it out, and Docker counts on it."""
    said = sum(not line.empty_layer for line in document.history)
    missing = len(document.diff_ids) - said
    if missing < 0:
        raise InvalidArgument("too many non-empty layers in History section")
    return document.history + tuple(
        History(created=document.created or None) for _ in range(missing)
    )


def make(parts: Parts) -> tuple[Manifest, ImageDocument]:
    """Parts to documents; nothing is stored."""
    if len(parts.layers) > LAYER_COUNT_LIMIT:
        raise InvalidArgument(
            f"max depth exceeded: {len(parts.layers)} layers, at most {LAYER_COUNT_LIMIT}"
        )
    body: dict[str, Any] = {
        "architecture": parts.platform.architecture,
        "os": parts.platform.os,
        "created": parts.created,
        "config": parts.config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in parts.layers]},
        "history": parts.history,
    }
    optional = {
        "variant": parts.platform.variant,
        "os.version": parts.platform.os_version,
        "author": parts.author,
        "comment": parts.comment,
    }
    body |= {key: value for key, value in optional.items() if value}
    body |= parts.notes
    raw = encode(body)
    document = parse_image_document(raw)
    config = Descriptor(media_type=OCI_CONFIG, digest=document.id, size=len(raw))
    return make_manifest(config, tuple(layer.descriptor for layer in parts.layers)), document


def assemble(
    catalog: Catalog,
    parts: Parts,
    *,
    references: Iterable[Reference] = (),
    parent: str = "",
) -> Image:
    """Make the image and give it its names. The layers are unpacked under their chain ids already."""
    manifest, document = make(parts)
    return catalog.add(manifest, document, references=references, parent=parent)


def extend(
    parts: Parts,
    *,
    config: RunConfig,
    layers: Sequence[NewLayer],
    history: History,
    created: str,
    author: str = "",
    comment: str = "",
) -> Parts:
    """One step further: new layers (none for a step that only changed the configuration) and its history line."""
    return msgspec.structs.replace(
        parts,
        config=config,
        layers=(*parts.layers, *layers),
        history=(*parts.history, msgspec.structs.replace(history, empty_layer=not layers)),
        created=created,
        author=author or parts.author,
        comment=comment,
    )
