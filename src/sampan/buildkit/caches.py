"""Caches in directories of the client's: `--cache-from type=local,src=DIR` and `--cache-to type=local,dest=DIR`.

from   the store `local:DIR`, the digest that the client found in its index.json ──► a layout here (build/sharing.py)
to     an archive of a layout (build/caching.py) ──► its blobs into the store `local:DIR`; the client writes index.json
       by what Solve answers as `cache.manifest`
"""

from __future__ import annotations

import os

import msgspec

from sampan.build.context import Context
from sampan.build.request import CacheOption
from sampan.buildkit.content import ContentStore
from sampan.buildkit.faults import GrpcError
from sampan.buildkit.filesync import Blocking
from sampan.buildkit.session import Session
from sampan.errors import InvalidArgument
from sampan.spec.image import Index, parse_manifest_or_index
from sampan.spec.reference import digest_hex

MANIFEST = "cache.manifest"  # the key in Solve's answer


def _store(session: Session, directory: str) -> ContentStore:
    return ContentStore(session, f"local:{directory}")


async def fetch(
    session: Session, option: CacheOption, into: Context, run_blocking: Blocking
) -> None:
    """Fill a directory with the layout that an import names. Blobs are checked by whoever reads them."""
    store = _store(session, option.attrs.get("src", ""))
    digest = option.attrs.get("digest", "")
    if not digest:
        raise InvalidArgument("local cache importer requires explicit digest")
    raw = await store.document(digest)
    manifest = parse_manifest_or_index(raw)
    blobs = into.path / "blobs/sha256"
    blobs.mkdir(parents=True)
    (blobs / digest_hex(digest)).write_bytes(raw)
    parts = (
        manifest.manifests if isinstance(manifest, Index) else (manifest.config, *manifest.layers)
    )
    for part in dict.fromkeys(parts):
        with (blobs / digest_hex(part.digest)).open("wb") as file:
            async for piece in store.blob(part):
                await run_blocking(file.write, piece)
    (into.path / "index.json").write_bytes(_index(manifest.media_type, digest, len(raw)))


def _index(media_type: str, digest: str, size: int) -> bytes:
    line = {"mediaType": media_type, "digest": digest, "size": size}
    return msgspec.json.encode({"schemaVersion": 2, "manifests": [line]})


class _Line(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Layout(msgspec.Struct):
    manifests: list[_Line]


async def give(session: Session, directory: str, layout: Context) -> str:
    """Write an unpacked layout's blobs to the client; the manifest's descriptor as JSON."""
    index = layout.read("index.json")
    if index is None:
        raise GrpcError("the cache has no index")
    line = msgspec.json.decode(index, type=_Layout).manifests[0]
    store = _store(session, directory)
    for path in sorted((layout.path / "blobs/sha256").iterdir()):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await store.write(f"sha256:{path.name}", fd)
        finally:
            os.close(fd)
    return msgspec.json.encode(line).decode()
