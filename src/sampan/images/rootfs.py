"""Importing a root filesystem: a tar, compressed or not, becomes an image of one layer.

A tar, a .tar.gz and a .tar.zst are kept as they came, as the layer's blob; other compressions have no media type
and are kept uncompressed. Either way the layer's diff id is of the uncompressed tar.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from sampan import units
from sampan.errors import InvalidArgument
from sampan.images.assemble import NewLayer, Parts, assemble
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Hold, Image
from sampan.images.changes import apply_changes
from sampan.images.endpoints import RegistryConfig
from sampan.images.platform import host_platform, parse_platform
from sampan.images.progress import Progress, silent
from sampan.images.transport import Response, Transport
from sampan.images.unpack import unpack
from sampan.spec.image import (
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    History,
    RunConfig,
)
from sampan.spec.reference import Reference, parse_normalized, quoted
from sampan.storage import decompress
from sampan.storage.blobs import Blob
from sampan.storage.snapshots import chain_ids
from sampan.storage.streams import HashingReader
from sampan.storage.tar import Readable

CHUNK = 1 << 20
_KEPT = {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


def import_rootfs(
    catalog: Catalog,
    stream: Readable,
    *,
    repo: str = "",
    tag: str = "",
    message: str = "",
    source: str = "-",
    changes: Sequence[str] = (),
    platform: str = "",
    config: RunConfig | None = None,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Image:
    """`docker import`. Reports the new id as the last status line."""
    reference = target_reference(repo, tag)
    configured = apply_changes(config or RunConfig(), changes)
    wanted = parse_platform(platform) if platform else host_platform()
    cancel = cancel or Cancel.never()
    with catalog.holding() as hold:
        layer = store_layer(catalog, hold, stream, cancel)
        hold.layers(*chain_ids([layer.diff_id]))
        unpack(catalog, [layer.descriptor], [layer.diff_id], cancel=cancel)
        created = units.rfc3339nano(time.time_ns())
        note = message or f"Imported from {source}"
        image = assemble(
            catalog,
            Parts(
                config=configured,
                layers=(layer,),
                history=(History(created=created, comment=note),),
                created=created,
                comment=note,
                platform=wanted,
            ),
            references=(reference,) if reference else (),
        )
    progress({"status": image.id})
    return image


def import_from_url(
    catalog: Catalog,
    config: RegistryConfig,
    url: str,
    *,
    repo: str = "",
    tag: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    platform: str = "",
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> Image:
    """`docker import URL`: the engine fetches the tar itself."""
    if "://" not in url:
        url = f"http://{url}"
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise InvalidArgument(f"unsupported URL {quoted(url)}: only http and https")
    transport = Transport(config, cancel)
    try:
        with transport.request("GET", url) as response:
            if response.status != 200:
                raise InvalidArgument(f"failed to download: {url}: HTTP status {response.status}")
            progress({"status": f"Downloading from {url}"})
            return import_rootfs(
                catalog,
                _BodyStream(response),
                repo=repo,
                tag=tag,
                message=message,
                source=url,
                changes=changes,
                platform=platform,
                progress=progress,
                cancel=cancel,
            )
    finally:
        transport.close()


class _BodyStream:
    """An HTTP answer's body as a stream."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def read(self, size: int, /) -> bytes:
        return self._response.read_some(size)


def target_reference(repo: str, tag: str = "") -> Reference | None:
    """The name for a new image from the API's `repo` and `tag`."""
    if not repo:
        return None
    reference = parse_normalized(repo)
    return reference.with_tag(tag) if tag else reference.with_default_tag()


def store_layer(catalog: Catalog, hold: Hold, stream: Readable, cancel: Cancel) -> NewLayer:
    """Keep a layer's bytes and learn its diff id."""
    head = _Peeked(stream)
    kind = decompress.detect(head.peek())
    if kind in _KEPT:
        blob = _store(catalog, hold, head, cancel)
        diff_id = blob.digest if kind == "none" else _diff_id(catalog, blob.digest, cancel)
    else:
        blob = _store(catalog, hold, decompress.open_stream(head), cancel)
        diff_id = blob.digest
    media_type = _KEPT.get(kind, OCI_LAYER)
    return NewLayer(
        descriptor=Descriptor(media_type=media_type, digest=blob.digest, size=blob.size),
        diff_id=diff_id,
    )


def _store(catalog: Catalog, hold: Hold, stream: Readable, cancel: Cancel) -> Blob:
    with catalog.blobs.ingest() as ingest:
        while chunk := stream.read(CHUNK):
            cancel.check()
            ingest.write(chunk)
        hold.blobs(ingest.digest)
        return ingest.commit()


def _diff_id(catalog: Catalog, digest: str, cancel: Cancel) -> str:
    with catalog.blobs.open(digest) as file, HashingReader(decompress.open_stream(file)) as hashed:
        while hashed.read(CHUNK):
            cancel.check()
        return hashed.digest()


class _Peeked:
    """A stream whose first bytes were looked at."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._head = b""

    def peek(self) -> bytes:
        while len(self._head) < 16 and (more := self._stream.read(16 - len(self._head))):
            self._head += more
        return self._head

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)
