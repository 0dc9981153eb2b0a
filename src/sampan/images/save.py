"""Saving images: one tar that is a docker-archive and an OCI image layout at once, so that everything reads it.

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            a line for each manifest and name
    manifest.json         configuration, names and layers, for Docker before 25, podman, skopeo
    repositories          name -> tag -> id, for the oldest readers
    blobs/sha256/...      manifests, configurations, layers: the bytes that were pulled, loaded or built

The documents come first and the layers in the order in which they are stacked, so that a reader can work while
it reads. Times and owners are constant: the same images make the same archive, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

import msgspec

from sampan.errors import Internal, InvalidArgument, NotFound
from sampan.images import platform as platforms
from sampan.images.catalog import Catalog, Image
from sampan.images.names import Entry
from sampan.spec.image import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    Descriptor,
    encode,
    make_index,
)
from sampan.spec.reference import Reference, digest_hex, digest_of, parse_normalized
from sampan.storage.tar import DIRECTORY, FILE
from sampan.storage.tar import Entry as TarEntry
from sampan.storage.tar_writer import TarWriter

CHUNK = 1 << 20


class Selected(msgspec.Struct, kw_only=True):
    """One image to save, and the names to save it under."""

    image: Image
    references: list[Reference]


def select(catalog: Catalog, names: list[str], platform: str = "") -> list[Selected]:
    """What a person asked to save. Raises for a name that does not exist before anything is written."""
    if not names:
        raise InvalidArgument("no image to save")
    found: dict[str, Selected] = {}
    for text in names:
        for image, reference in _named(catalog, text):
            if platform:
                platforms.check_offered(text, image.platform, platforms.parse_platform(platform))
            chosen = found.setdefault(image.target.digest, Selected(image=image, references=[]))
            if reference is not None and reference not in chosen.references:
                chosen.references.append(reference)
    return list(found.values())


def save(catalog: Catalog, selected: list[Selected], write: Callable[[bytes], object]) -> None:
    """Write the archive."""
    with catalog.holding() as hold:
        for one in selected:
            manifest = one.image.manifest
            hold.blobs(manifest.digest, one.image.id, *(d.digest for d in manifest.layers))
        tar = TarWriter(write)
        _add_documents(tar, selected)
        written: set[str] = set()
        for one in selected:
            _add_blobs(catalog, tar, one.image, written)
        tar.close()


def _named(catalog: Catalog, text: str) -> Iterator[tuple[Image, Reference | None]]:
    """A repository without a tag means all its tags, as in Docker; an id is saved without a name."""
    image = catalog.find(text)
    if image is not None and catalog.is_id_of(image, text):
        yield image, None
        return
    reference = parse_normalized(text)
    if reference.is_name_only:
        entries = catalog.by_repository(reference)
        if entries:
            yield from ((_at(catalog, entry), entry.reference) for entry in entries)
            return
    image = catalog.find(text)
    if image is None and (reference.tag or reference.digest):
        raise NotFound("reference does not exist", hint=f"there is no image {text}")
    if image is None:
        raise NotFound(f"No such image: {text}")
    yield image, None if reference.digest else reference.with_default_tag()


def _at(catalog: Catalog, entry: Entry) -> Image:
    return catalog.resolve(entry.name)


def _add_documents(tar: TarWriter, selected: list[Selected]) -> None:
    lines: list[Descriptor] = []
    archive_lines = []
    repositories: dict[str, dict[str, str]] = {}
    for one in selected:
        manifest = one.image.manifest
        platform = one.image.platform if one.image.platform.architecture else None
        base = msgspec.structs.replace(manifest.descriptor(), platform=platform)
        for reference in one.references:
            annotations = {
                ANNOTATION_CONTAINERD_NAME: str(reference),
                ANNOTATION_REF_NAME: reference.tag,
            }
            lines.append(msgspec.structs.replace(base, annotations=annotations))
            repositories.setdefault(reference.familiar_name, {})[reference.tag] = digest_hex(
                one.image.id
            )
        if not one.references:
            lines.append(base)
        archive_lines.append(
            {
                "Config": _blob_name(one.image.id),
                "RepoTags": [reference.familiar() for reference in one.references] or None,
                "Layers": [_blob_name(layer.digest) for layer in manifest.layers],
                "LayerSources": {
                    diff_id: _source(layer)
                    for diff_id, layer in zip(one.image.diff_ids, manifest.layers, strict=True)
                },
            }
        )
    _add_file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _add_file(tar, "index.json", make_index(tuple(lines)))
    # in Docker's order: some readers of this file are shell scripts
    _add_file(tar, "manifest.json", msgspec.json.encode(archive_lines) + b"\n")
    if repositories:
        _add_file(tar, "repositories", encode(repositories))


def _source(layer: Descriptor) -> dict[str, str | int]:
    return {"mediaType": layer.media_type, "size": layer.size, "digest": layer.digest}


def _add_blobs(catalog: Catalog, tar: TarWriter, image: Image, written: set[str]) -> None:
    if not written:
        for name in ("blobs/", "blobs/sha256/"):
            tar.add(TarEntry(name.encode(), DIRECTORY, mode=0o755))
    manifest = image.manifest
    for raw in (manifest.raw, image.document.raw):
        if digest_of(raw) not in written:
            written.add(digest_of(raw))
            _add_file(tar, _blob_name(digest_of(raw)), raw)
    for layer, chain_id in zip(manifest.layers, image.chain_ids, strict=True):
        if layer.digest in written:
            continue
        written.add(layer.digest)
        with catalog.open_layer(layer, chain_id) as file:
            entry = TarEntry(_blob_name(layer.digest).encode(), FILE, mode=0o644, size=layer.size)
            tar.add(entry, _exactly(file, layer))


def _exactly(file: BinaryIO, layer: Descriptor) -> Iterator[bytes]:
    """The file's bytes; a layer that has another size than its descriptor would break the archive."""
    left = layer.size
    while chunk := file.read(min(CHUNK, left) if left else 1):
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise Internal(
            f"layer {layer.digest} is damaged on disk: unexpected size",
            hint="pull or load the image again",
        )


def _add_file(tar: TarWriter, name: str, data: bytes) -> None:
    tar.add(TarEntry(name.encode(), FILE, mode=0o644, size=len(data)), data)


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)
