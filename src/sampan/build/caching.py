"""--cache-from and --cache-to: finding caches before a build, giving what was made away after it.

    load()   registry: an artifact, or an image with a note     local: a directory of the caller's
    save()   registry: an artifact pushed                        local: a tar for the caller to unpack

A cache that cannot be had is told of and passed over; one that cannot be written is an error, unless `ignore-error`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sampan.build import sharing
from sampan.build.client import Auth, Client, Wanted
from sampan.build.graph import digest
from sampan.build.layout import Blob, Packer, write_blobs
from sampan.build.progress import Board
from sampan.build.request import CacheOption, Export
from sampan.build.result import Built, tag_reference
from sampan.build.sharing import Found
from sampan.engine.pipes import ByteOutlet
from sampan.errors import InvalidArgument, SampanError
from sampan.images import platform as platforms
from sampan.images.auth import Credentials
from sampan.images.registry import Registry, Repository
from sampan.spec.image import CONFIG_LIMIT, Descriptor, Index, Manifest, parse_manifest_or_index
from sampan.spec.reference import Reference, parse_normalized
from sampan.storage import decompress
from sampan.storage.snapshots import chain_ids

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.build.cache import CacheRecord
    from sampan.engine.context import Engine
    from sampan.storage.tar import Readable

log = logging.getLogger("sampan.build")
LOCAL_IMPORT = "cache-from-"  # a directory of the caller's, by the number of its --cache-from


async def load(
    builder: Builder, client: Client, board: Board, options: tuple[CacheOption, ...]
) -> dict[str, Found]:
    """Everything under its key; the first that has a key wins."""
    found: dict[str, Found] = {}
    for number, option in enumerate(options):
        shown = option.attrs.get("ref") or option.attrs.get("src") or option.type
        title = f"importing cache manifest from {shown}"
        task = board.task(digest(title.encode()), title)
        task.start()
        try:
            more = await _load(builder, client, number, option)
        except SampanError as error:
            task.finish(error=error.message)
            continue
        task.finish()
        found = more | found
    return found


async def _load(
    builder: Builder, client: Client, number: int, option: CacheOption
) -> dict[str, Found]:
    engine = builder.engine
    if option.type == "local":
        directory = await client.directory(f"{LOCAL_IMPORT}{number}", Wanted(), lambda _n: None)
        return await engine.run_blocking(sharing.from_directory, directory)
    if option.type not in ("registry", "inline"):
        raise InvalidArgument(f"unknown cache importer: {option.type}")
    name = option.attrs.get("ref", "")
    image = engine.catalog.find(name)
    if image is not None:
        manifest, chains = image.manifest, image.chain_ids
        return sharing.from_image(
            image.document.raw, lambda n: engine.catalog.open_layer(manifest.layers[n], chains[n])
        )
    reference = parse_normalized(name).with_default_tag()
    auth = await client.credentials(reference.domain)
    return await engine.run_blocking(_from_registry, engine, reference, auth)


def _from_registry(engine: Engine, reference: Reference, auth: Auth | None) -> dict[str, Found]:
    with Registry(engine.registries, reference.domain, credentials(auth)) as registry:
        repository = registry.repository(reference.path)
        manifest = _manifest(repository, reference.digest or reference.tag)

        def read(descriptor: Descriptor) -> bytes:
            return repository.fetch_blob(descriptor, CONFIG_LIMIT, "build cache")

        def opened(descriptor: Descriptor) -> Readable:
            return _Remote(engine, reference, auth, descriptor)

        if manifest.config.media_type == sharing.CACHE_CONFIG:
            return sharing.from_artifact(manifest.raw, read, opened)
        layers = manifest.layers
        return sharing.from_image(read(manifest.config), lambda n: opened(layers[n]))


def _manifest(repository: Repository, name: str) -> Manifest:
    found = repository.fetch_manifest(name).parse()
    if isinstance(found, Index):
        entry = platforms.choose(found.manifests, platforms.host_platform())
        raw = repository.fetch_manifest(entry.digest).raw
        found = parse_manifest_or_index(raw, entry.media_type)
    if not isinstance(found, Manifest):
        raise InvalidArgument("indexes are nested too deep")
    return found


class _Remote:
    """A blob of a registry, opened when it is read."""

    def __init__(
        self, engine: Engine, reference: Reference, auth: Auth | None, descriptor: Descriptor
    ) -> None:
        self._registry = Registry(engine.registries, reference.domain, credentials(auth))
        self._pieces = self._stream(reference.path, descriptor)
        self._left = b""

    def _stream(self, path: str, descriptor: Descriptor) -> Iterator[bytes]:
        response, _ = self._registry.repository(path).open_blob(descriptor)
        with response:
            while piece := response.read_some(1 << 18):
                yield piece
        self._registry.transport.close()

    def read(self, size: int, /) -> bytes:
        if not self._left:
            self._left = next(self._pieces, b"")
        data, self._left = self._left[:size], self._left[size:]
        return data


def plain(found: Found) -> Readable:
    """Blocking: a layer's tar, decompressed."""
    return decompress.open_stream(found.open())


def credentials(auth: Auth | None) -> Credentials | None:
    """As the registry client takes them."""
    if not auth:
        return None
    return Credentials(
        username=auth.get("username", ""), password=auth.get("password", ""),
        identity_token=auth.get("identitytoken", ""), registry_token=auth.get("registrytoken", ""),
        server_address=auth.get("serveraddress", ""),
    )  # fmt: skip


# --- export


async def save(
    builder: Builder,
    client: Client,
    board: Board,
    options: tuple[CacheOption, ...],
    used: dict[str, CacheRecord],
    results: tuple[Built, ...],
) -> None:
    """Give the cache away in every way that is asked for; inline went with the image already."""
    for option in options:
        if option.type == "inline":
            continue
        if option.type not in ("registry", "local"):
            raise InvalidArgument(f"unknown cache exporter: {option.type}")
        with board.task(
            digest(b"cache", option.type.encode()), f"exporting cache to {option.type}"
        ):
            try:
                await _save(builder, client, option, _wanted(option, used, results))
            except SampanError:
                if option.attrs.get("ignore-error") != "true":
                    raise
                log.warning("a cache could not be exported", exc_info=True)


def _wanted(
    option: CacheOption, used: dict[str, CacheRecord], results: tuple[Built, ...]
) -> dict[str, CacheRecord]:
    if option.attrs.get("mode", "min") == "max":
        return used
    return sharing.only(
        used, (c for built in results for c in chain_ids([layer.diff_id for layer in built.layers]))
    )


async def _save(
    builder: Builder, client: Client, option: CacheOption, records: dict[str, CacheRecord]
) -> None:
    engine = builder.engine
    compression = option.attrs.get("compression", "gzip")
    with Packer(engine.catalog, compression=compression, oci=True) as packer:
        blobs, top = await engine.run_blocking(sharing.artifact, records, packer)
        if option.type == "registry":
            reference = tag_reference(option.attrs.get("ref", ""))
            auth = await client.credentials(reference.domain)
            await engine.run_blocking(ship, engine, reference, auth, blobs, [], top)
            return
        outlet = ByteOutlet()
        chunks = outlet.start(
            engine.pool, lambda out: write_blobs([top.descriptor], [top, *blobs], out.write)
        )
        export = Export(type="cache", id=option.attrs.get("id", ""), attrs=option.attrs)
        try:
            await client.send_file(export, aiter(chunks))
        finally:
            await chunks.aclose()


def ship(
    engine: Engine,
    reference: Reference,
    auth: Auth | None,
    blobs: list[Blob],
    manifests: list[Blob],
    top: Blob,
) -> None:
    """Blocking: blobs, then manifests by digest, then what gets the name."""
    with Registry(
        engine.registries, reference.domain, credentials(auth), for_push=True
    ) as registry:
        repository = registry.repository(reference.path)
        for blob in {blob.descriptor.digest: blob for blob in blobs}.values():
            if not repository.has_blob(blob.descriptor.digest):
                location = repository.begin_upload()
                repository.upload_whole(location, _Body(blob), blob.descriptor.digest)
        for each in manifests:
            _put(repository, each.descriptor.digest, each)
        _put(repository, reference.tag, top)


def _put(repository: Repository, name: str, blob: Blob) -> None:
    repository.put_manifest(name, b"".join(blob.chunks()), blob.descriptor.media_type)


class _Body:
    """A blob as the body of an upload."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self.length: int | None = blob.descriptor.size

    def rewind(self) -> Iterator[bytes]:
        return self._blob.chunks()
