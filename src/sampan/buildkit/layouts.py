"""Images that a client has as an OCI layout on its disk: `--build-context NAME=oci-layout://DIRECTORY`.

    context:NAME = oci-layout://STORE[:TAG]@DIGEST        the client offers the layout's blobs as a store of that name
    content.py, over the session ──► the image's blobs as an archive ──► images/archive.py ──► an image here

The image has no name and stays in the engine's store until it is pruned, as one that was loaded without a name.
Source: moby/buildkit, client/solve.go and source/containerimage/.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from sampan.buildkit.content import ContentStore
from sampan.buildkit.session import Session
from sampan.engine.pipes import ByteInlet
from sampan.errors import NotFound
from sampan.images import archive
from sampan.images.platform import choose, parse_platform
from sampan.spec.image import Descriptor, Index, parse_manifest_or_index
from sampan.storage.tar import Entry
from sampan.storage.tar_writer import header, padded

if TYPE_CHECKING:
    from sampan.engine.context import Engine

SCHEME = "oci-layout://"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


async def load(engine: Engine, session: Session, source: str, platform: str) -> str:
    """Bring the image of `STORE[:TAG]@DIGEST` here; its id. Raises NotFound, GrpcError, InvalidArgument."""
    name, _, digest = source.removeprefix(SCHEME).partition("@")
    store = name.partition(":")[0]  # a tag behind it says how the client found the digest
    inlet = ByteInlet()
    feeding = asyncio.ensure_future(
        _feed(inlet, ContentStore(session, f"oci:{store}"), digest, platform)
    )
    try:
        images = await engine.run_blocking(archive.load, engine.catalog, inlet, quiet=True)
        await feeding
    finally:
        inlet.close()
        feeding.cancel()
        await asyncio.wait((feeding,))
    return images[0].id


async def _feed(inlet: ByteInlet, store: ContentStore, digest: str, platform: str) -> None:
    try:
        async for piece in _archive(store, digest, platform):
            await inlet.feed(piece)
        inlet.finish()
    except asyncio.CancelledError:
        inlet.fail(ConnectionAbortedError("the build was cancelled"))
        raise
    except Exception as error:
        inlet.fail(error)
        raise


async def _archive(store: ContentStore, digest: str, platform: str) -> AsyncIterator[bytes]:
    """An OCI layout as a tar that holds one platform's image."""
    manifest = parse_manifest_or_index(await store.document(digest))
    if isinstance(manifest, Index):
        found = choose(manifest.manifests, parse_platform(platform))
        manifest = parse_manifest_or_index(await store.document(found.digest))
        if isinstance(manifest, Index):
            raise NotFound(f"{digest}: an index within an index")
    index = {"schemaVersion": 2, "manifests": [msgspec.to_builtins(_plain(manifest.descriptor()))]}
    for name, data in (
        ("oci-layout", LAYOUT),
        ("index.json", msgspec.json.encode(index)),
        (_path(manifest.digest), manifest.raw),
    ):
        yield header(Entry(name=name.encode(), size=len(data), mode=0o644)) + padded(data)
    for blob in (manifest.config, *manifest.layers):
        yield header(Entry(name=_path(blob.digest).encode(), size=blob.size, mode=0o644))
        async for piece in store.blob(blob):
            yield piece
        yield bytes(-blob.size % 512)
    yield bytes(1024)


def _plain(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)
