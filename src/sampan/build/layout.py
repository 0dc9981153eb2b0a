"""Images as an archive that is written while it is sent: an OCI image layout, for Docker with its manifest.json too.

    oci-layout  index.json  [manifest.json  repositories]  blobs/sha256/...

Layers are compressed as asked; their digests must stand in the manifest, which comes first, so a layer that has to be
compressed lies in a file of ours meanwhile. Source: OCI image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

from sampan.build.result import Built
from sampan.errors import InvalidArgument
from sampan.images.catalog import Catalog
from sampan.images.compress import Compressor
from sampan.spec.image import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    Descriptor,
    Manifest,
    encode,
    make_index,
    parse_manifest,
)
from sampan.spec.reference import Reference, digest_hex, digest_of
from sampan.storage.snapshots import chain_ids
from sampan.storage.tar import DIRECTORY, FILE, Entry
from sampan.storage.tar_writer import TarWriter

CHUNK = 1 << 20
COMPRESSIONS = ("gzip", "uncompressed")
Opener = Callable[[], BinaryIO]


class Blob:
    """Bytes to be written: a document, or a layer that is opened when its turn comes."""

    def __init__(self, descriptor: Descriptor, open_: Opener | bytes) -> None:
        self.descriptor = descriptor
        self.open = open_

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.open, bytes):
            yield self.open
            return
        with self.open() as file:
            while chunk := file.read(CHUNK):
                yield chunk


class Packed:
    """An image in the form in which it leaves: its manifest and every blob."""

    def __init__(self, built: Built, manifest: Manifest, blobs: list[Blob]) -> None:
        self.built = built
        self.manifest = manifest
        self.blobs = blobs

    @property
    def descriptor(self) -> Descriptor:
        return msgspec.structs.replace(self.manifest.descriptor(), platform=self.built.platform)


class Packer:
    """Prepares images to leave. Blocking; `with` it, for it holds files."""

    def __init__(
        self, catalog: Catalog, *, compression: str, oci: bool, force: bool = False
    ) -> None:
        if compression not in COMPRESSIONS:
            raise InvalidArgument(f"unsupported compression type {compression}")
        self._catalog = catalog
        self._gzip = compression == "gzip"
        self._oci = oci
        self._force = force
        self._held = ExitStack()
        self._done: dict[str, Blob] = {}

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def pack(self, built: Built, annotations: dict[str, str] | None = None) -> Packed:
        """One image."""
        ids = chain_ids([layer.diff_id for layer in built.layers])
        layers = [
            self.layer(layer.descriptor, chain_id)
            for layer, chain_id in zip(built.layers, ids, strict=True)
        ]
        config = msgspec.structs.replace(
            built.manifest.config,
            media_type=built.manifest.config.media_type if self._oci else DOCKER_CONFIG,
        )
        body = {
            "schemaVersion": 2,
            "mediaType": built.manifest.media_type if self._oci else DOCKER_MANIFEST,
            "config": config,
            "layers": [blob.descriptor for blob in layers],
        }
        if annotations:
            body["annotations"] = annotations
        manifest = parse_manifest(encode(body))
        documents = [
            Blob(manifest.descriptor(), manifest.raw),
            Blob(config, built.document.raw),
        ]
        return Packed(built, manifest, [*documents, *layers])

    def layer(self, descriptor: Descriptor, chain_id: str) -> Blob:
        """A layer in the form in which it leaves; each is prepared once."""
        done = self._done.get(descriptor.digest)
        if done is None:
            done = self._done[descriptor.digest] = self._prepared(descriptor, chain_id)
        return done

    def _prepared(self, descriptor: Descriptor, chain_id: str) -> Blob:
        plain = not descriptor.media_type.endswith(("gzip", "zstd"))

        def opened() -> BinaryIO:
            return self._catalog.open_layer(descriptor, chain_id)

        if not plain and (self._gzip or not self._force):
            kind = descriptor.media_type
            return Blob(msgspec.structs.replace(descriptor, media_type=kind), opened)
        if plain and not self._gzip:
            kind = OCI_LAYER if self._oci else DOCKER_LAYER
            return Blob(msgspec.structs.replace(descriptor, media_type=kind), opened)
        if not self._gzip:
            return Blob(descriptor, opened)
        return self._compressed(opened)

    def _compressed(self, opened: Opener) -> Blob:
        file = self._held.enter_context(
            tempfile.TemporaryFile(dir=self._catalog.blobs.root, prefix=".export-")
        )
        total, size = hashlib.sha256(), 0
        compressor = Compressor()
        with opened() as source:
            pieces = (compressor.compress(chunk) for chunk in iter(lambda: source.read(CHUNK), b""))
            for piece in _and_then(pieces, compressor.flush):
                total.update(piece)
                size += len(piece)
                file.write(piece)
        file.flush()
        kind = OCI_LAYER_GZIP if self._oci else DOCKER_LAYER_GZIP
        descriptor = Descriptor(media_type=kind, digest="sha256:" + total.hexdigest(), size=size)

        def reopened() -> BinaryIO:
            return (Path("/proc/self/fd") / str(file.fileno())).open("rb")

        return Blob(descriptor, reopened)


def _and_then(pieces: Iterable[bytes], last: Callable[[], bytes]) -> Iterator[bytes]:
    yield from pieces
    yield last()


def write_layout(
    packed: list[Packed],
    names: list[Reference],
    write: Callable[[bytes], object],
    *,
    docker: bool = False,
) -> Descriptor:
    """The archive; what its index lists first: the image's manifest, or an index of all platforms."""
    top, extra = _top(packed)
    lines = [_named(top, name) for name in names] or [top]
    more = {}
    if docker:
        more["manifest.json"] = encode([_archive_line(each, names) for each in packed])
    blobs = [*extra, *(blob for each in packed for blob in each.blobs)]
    write_blobs(lines, blobs, write, more)
    return top


def write_blobs(
    lines: list[Descriptor],
    blobs: list[Blob],
    write: Callable[[bytes], object],
    more: dict[str, bytes] | None = None,
) -> None:
    """An OCI layout with these lines in its index."""
    tar = TarWriter(write)
    _file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _file(tar, "index.json", make_index(tuple(lines)))
    for name, data in (more or {}).items():
        _file(tar, name, data)
    for directory in (b"blobs/", b"blobs/sha256/"):
        tar.add(Entry(directory, DIRECTORY, mode=0o755))
    written: set[str] = set()
    for blob in blobs:
        if blob.descriptor.digest not in written:
            written.add(blob.descriptor.digest)
            path = _blob_name(blob.descriptor.digest).encode()
            tar.add(Entry(path, FILE, mode=0o644, size=blob.descriptor.size), blob.chunks())
    tar.close()


def _top(packed: list[Packed]) -> tuple[Descriptor, list[Blob]]:
    if len(packed) == 1:
        return packed[0].descriptor, []
    index = index_of(packed)
    return index.descriptor, [index]


def index_of(packed: list[Packed]) -> Blob:
    """The document that lists every platform's image."""
    raw = make_index(tuple(each.descriptor for each in packed))
    return Blob(Descriptor(media_type=OCI_INDEX, digest=digest_of(raw), size=len(raw)), raw)


def _named(top: Descriptor, name: Reference) -> Descriptor:
    annotations = {ANNOTATION_CONTAINERD_NAME: str(name), ANNOTATION_REF_NAME: name.tag}
    return msgspec.structs.replace(top, annotations=annotations)


def _archive_line(packed: Packed, names: list[Reference]) -> dict[str, object]:
    return {
        "Config": _blob_name(packed.manifest.config.digest),
        "RepoTags": [name.familiar() for name in names] or None,
        "Layers": [_blob_name(layer.digest) for layer in packed.manifest.layers],
    }


def _blob_name(digest: str) -> str:
    return "blobs/sha256/" + digest_hex(digest)


def _file(tar: TarWriter, name: str, data: bytes) -> None:
    tar.add(Entry(name.encode(), FILE, mode=0o644, size=len(data)), data)
