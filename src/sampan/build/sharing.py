"""Caches that travel: what builds remembered, with its layers, as an OCI artifact in a registry or a directory, or as
a note inside an image (inline).

    export   records of this build ──► config (keys, layers) + layer blobs + manifest ──► registry, directory, image
    import   the same, read back   ──► key -> layer; fetched and unpacked only when a step has that very key

Keys name an operation, what it stands on and what it reads, all by content, so a record fits on any machine or nowhere.
Only what the user names with --cache-from is believed (CVE-2024-24557), and every layer is checked by its diff id.
The containers are BuildKit's (`application/vnd.buildkit.cacheconfig.v0`), the keys are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from sampan.build.cache import CacheRecord
from sampan.build.context import Context
from sampan.build.layout import Blob, Packer
from sampan.errors import InvalidArgument
from sampan.spec.image import (
    CONFIG_LIMIT,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    encode,
    parse_index,
    parse_manifest,
)
from sampan.spec.reference import digest_hex, digest_of

if TYPE_CHECKING:
    from sampan.storage.tar import Readable

CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
INLINE = "moby.buildkit.cache.v0"
Opener = Callable[[], BinaryIO]


class Shared(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One record on its way. `layer`: number of the layer in the artifact, or in the image."""

    digest: str
    layer: int
    diff_id: str = ""
    size: int = 0
    created_ns: int = 0
    description: str = ""


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """The artifact's own document."""

    layers: tuple[dict[str, Any], ...] = ()
    records: tuple[Shared, ...] = ()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What an imported cache has under a key."""

    record: Shared
    open: Callable[[], Readable]


# --- export


def artifact(records: Mapping[str, CacheRecord], packer: Packer) -> tuple[list[Blob], Blob]:
    """Blocking: (layers and configuration, the manifest)."""
    blobs: dict[str, Blob] = {}
    shared = []
    for key, record in records.items():
        if record.layer is None:
            continue
        if record.layer.diff_id not in blobs:
            descriptor = Descriptor(
                media_type=OCI_LAYER, digest=record.layer.diff_id, size=record.layer.size
            )
            blobs[record.layer.diff_id] = packer.layer(descriptor, record.chain_id)
        number = list(blobs).index(record.layer.diff_id)
        shared.append(_shared(key, record, number))
    layers = tuple({"blob": blob.descriptor.digest, "parent": -1} for blob in blobs.values())
    raw = msgspec.json.encode(_Config(layers=layers, records=tuple(shared)))
    config = Descriptor(media_type=CACHE_CONFIG, digest=digest_of(raw), size=len(raw))
    manifest = encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": [blob.descriptor for blob in blobs.values()],
        }
    )
    top = Descriptor(media_type=OCI_MANIFEST, digest=digest_of(manifest), size=len(manifest))
    return [*blobs.values(), Blob(config, raw)], Blob(top, manifest)


def _shared(key: str, record: CacheRecord, number: int) -> Shared:
    assert record.layer is not None
    return Shared(
        digest=key, layer=number, diff_id=record.layer.diff_id, size=record.layer.size,
        created_ns=record.created_ns, description=record.description,
    )  # fmt: skip


def inline(records: Mapping[str, CacheRecord], diff_ids: tuple[str, ...]) -> list[Shared]:
    """What an image says of the layers that it has itself."""
    return [
        _shared(key, record, diff_ids.index(record.layer.diff_id))
        for key, record in records.items()
        if record.layer is not None and record.layer.diff_id in diff_ids
    ]


# --- import


def from_image(document: bytes, open_layer: Callable[[int], Readable]) -> dict[str, Found]:
    """What is noted inside an image's configuration; nothing where there is no note."""
    try:
        body = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        notes = msgspec.json.decode(body[INLINE], type=list[Shared])
    except (KeyError, msgspec.MsgspecError):
        return {}
    return {note.digest: Found(record=note, open=partial(open_layer, note.layer)) for note in notes}


def from_artifact(
    manifest: bytes, read: Callable[[Descriptor], bytes], open_: Callable[[Descriptor], Readable]
) -> dict[str, Found]:
    """Blocking: the records of an artifact. Raises InvalidArgument where it is none."""
    parsed = parse_manifest(manifest)
    if parsed.config.media_type != CACHE_CONFIG:
        raise InvalidArgument(f"{parsed.config.media_type} is no build cache")
    try:
        config = msgspec.json.decode(read(parsed.config), type=_Config)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"malformed build cache: {error}") from None
    layers = parsed.layers
    return {
        record.digest: Found(record=record, open=partial(open_, layers[record.layer]))
        for record in config.records
        if 0 <= record.layer < len(layers)
    }


def from_directory(directory: Context) -> dict[str, Found]:
    """Blocking: an OCI layout on disk."""
    index = directory.read("index.json")
    if index is None:
        return {}
    lines = parse_index(index).manifests
    if not lines:
        return {}

    def path(descriptor: Descriptor) -> str:
        return f"blobs/sha256/{digest_hex(descriptor.digest)}"

    def read(descriptor: Descriptor) -> bytes:
        data = directory.read(path(descriptor), limit=CONFIG_LIMIT)
        if data is None or digest_of(data) != descriptor.digest:
            raise InvalidArgument(f"blob {descriptor.digest} of the build cache is damaged")
        return data

    def opened(descriptor: Descriptor) -> BinaryIO:
        return (directory.path / path(descriptor)).open("rb")

    return from_artifact(read(lines[0]), read, opened)


def only(records: Mapping[str, CacheRecord], chain_ids: Iterable[str]) -> dict[str, CacheRecord]:
    """mode=min: what the result itself is made of."""
    wanted = set(chain_ids)
    return {key: record for key, record in records.items() if record.chain_id in wanted}
