"""Pulling: from a reference to an image in the catalogue, its layers unpacked.

    resolve (HEAD)  ->  index?  choose the platform  ->  manifest  ->  configuration
                                                                          │ chain ids are known from here on
        for each layer, several at once:   download ──► decompress ──► stage     (while it arrives)
                                                                          │ every digest and diff id right
                                              publish bottom first  ->  the catalogue, its names

Who pulls the same manifest at the same time shares the work (`flights`), who pulls another with the same layer
shares the download (`download`). A cancelled or failed pull leaves whole blobs and partial ones for the next, and
no image. Lines of progress are Docker's, word for word: its clients read them.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sampan.errors import Internal, InvalidArgument, PermissionDenied, SampanError, Unsupported
from sampan.images import platform as platforms
from sampan.images.auth import Credentials
from sampan.images.builtin import offline_hint
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Image
from sampan.images.download import DamagedPartial, Downloads, Follower
from sampan.images.endpoints import RegistryConfig
from sampan.images.faults import as_failure
from sampan.images.flights import Flights
from sampan.images.platform import native_platform, parse_platform
from sampan.images.progress import Meter, Progress, line, message, short, silent
from sampan.images.registry import Fetched, Registry, Repository
from sampan.images.transport import ConnectionFailed, Response
from sampan.images.unpack import Metered, check_diff_id, publish, stage_blob, stage_stream
from sampan.spec.image import (
    CONFIG_LIMIT,
    Descriptor,
    ImageDocument,
    Index,
    Manifest,
    Platform,
    check_manifest_fits,
    parse_image_document,
    parse_manifest_or_index,
    require_image,
)
from sampan.spec.reference import Reference, parse_normalized
from sampan.storage.snapshots import Staged, chain_ids


class Puller:
    """Pulls for one engine: it knows what is under way."""

    def __init__(self, catalog: Catalog, config: RegistryConfig) -> None:
        self.catalog = catalog
        self.config = config
        self._downloads = Downloads(catalog.blobs, config.concurrent_downloads)
        self._flights: Flights[Image] = Flights()

    def pull(
        self,
        reference: Reference | str,
        *,
        all_tags: bool = False,
        platform: str = "",
        auth: Credentials | None = None,
        progress: Progress = silent,
        cancel: Cancel | None = None,
    ) -> list[Image]:
        """`docker pull NAME[:TAG|@DIGEST]`, or every tag of a repository."""
        reference = _checked(reference)
        reference = reference.name_only() if all_tags else reference.with_default_tag()
        wanted = parse_platform(platform) if platform else None
        cancel = cancel or Cancel.never()
        pulled: list[_Pulled] = []
        with (
            _Translating(reference),
            Registry(self.config, reference.domain, auth, cancel=cancel) as registry,
        ):
            for one in self._each(registry, reference):
                pulled.append(self._pull_one(registry, one, wanted, progress, cancel))
        _tell_status(progress, reference, any(result.is_new for result in pulled))
        for result in pulled:
            if wanted is not None and not result.was_chosen:
                platforms.check_offered(reference.familiar(), result.image.platform, wanted)
        return [result.image for result in pulled]

    def _each(self, registry: Registry, reference: Reference) -> list[Reference]:
        if not reference.is_name_only:
            return [reference]
        return [reference.with_tag(tag) for tag in registry.repository(reference.path).tags()]

    def _pull_one(
        self,
        registry: Registry,
        reference: Reference,
        wanted: Platform | None,
        progress: Progress,
        cancel: Cancel,
    ) -> _Pulled:
        repository = registry.repository(reference.path)
        top, manifest = self._resolve(repository, reference, wanted)
        progress(message(f"Pulling from {reference.path}", id=_shown(reference)))
        before = self.catalog.lookup(reference)

        def work(tell: Progress, stop: Cancel) -> Image:
            # The flight outlives a client that leaves, so its connections are its own.
            with Registry(self.config, reference.domain, registry.credentials, cancel=stop) as own:
                job = _Job(self, own.repository(reference.path), manifest, tell, stop)
                return job.run()

        key = (reference.name, manifest.digest)
        image = self._flights.join(key, work, progress, cancel)
        names = [reference.with_digest(top)]
        if not reference.digest:
            names.append(Reference(domain=reference.domain, path=reference.path, tag=reference.tag))
        image = self.catalog.add(manifest, image.document, references=names, parent=image.parent)
        progress(message(f"Digest: {top}"))
        is_new = before is None or before.image_id != image.id
        return _Pulled(image, is_new, was_chosen=manifest.digest != top)

    def _resolve(
        self, repository: Repository, reference: Reference, wanted: Platform | None
    ) -> tuple[str, Manifest]:
        """The digest that the name stands for, and the manifest for the platform."""
        top = reference.digest
        if not top:
            head = repository.resolve(reference.tag)
            top = head.digest if head is not None else ""
        known = self._known(reference, top, wanted) if top else None
        if known is not None:
            return top, known
        fetched = repository.fetch_manifest(top or reference.tag)
        found = fetched.parse()
        for _ in range(3):
            if isinstance(found, Manifest):
                require_image(found)
                return fetched.digest, found
            entry = platforms.choose(
                (e for e in found.manifests if not (e.platform and e.platform.os == "unknown")),
                wanted or native_platform(),
            )
            found = self._below(repository, found, entry)
        raise InvalidArgument("invalid index: indexes are nested too deep")

    def _below(self, repository: Repository, index: Index, entry: Descriptor) -> Manifest | Index:
        """The manifest that an index lists: what it is must be what the index says it is."""
        if self.catalog.blobs.has(entry.digest):
            raw = self.catalog.blobs.read(entry.digest)
            fetched = Fetched(raw=raw, media_type="", digest=entry.digest)
        else:
            fetched = repository.fetch_manifest(entry.digest)
        if len(fetched.raw) != entry.size:
            raise InvalidArgument(
                f"unexpected size of manifest {entry.digest}: {len(fetched.raw)} bytes, "
                f"index {index.digest} says {entry.size}"
            )
        fetched.parse()
        return parse_manifest_or_index(fetched.raw, entry.media_type)

    def _known(self, reference: Reference, top: str, wanted: Platform | None) -> Manifest | None:
        """The manifest, where this very content was pulled before: then nothing is fetched."""
        entry = self.catalog.lookup(reference.with_digest(top))
        if entry is None:
            return None
        if not self.catalog.blobs.has(entry.target.digest):
            return None  # put aside since, as damaged
        image = self.catalog.get(entry.image_id)
        if not platforms.matches(wanted or native_platform(), image.platform):
            return None
        return self.catalog.manifest(entry.target.digest)


def _shown(reference: Reference) -> str:
    return str(reference) if reference.digest else reference.tag


class _Pulled(NamedTuple):
    image: Image
    is_new: bool
    was_chosen: bool  # from an index, by its platform


class _Job:
    """One manifest's content, fetched and unpacked."""

    def __init__(
        self,
        puller: Puller,
        repository: Repository,
        manifest: Manifest,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        self._catalog = puller.catalog
        self._downloads = puller._downloads
        self._at_once = puller.config.concurrent_downloads
        self._repository = repository
        self._manifest = manifest
        self._progress = progress
        self._cancel = cancel

    def run(self) -> Image:
        manifest = self._manifest
        with self._catalog.holding() as hold:
            hold.blobs(
                manifest.digest, manifest.config.digest, *(d.digest for d in manifest.layers)
            )
            document = self._configuration()
            check_manifest_fits(manifest, document)
            ids = chain_ids(document.diff_ids)
            hold.layers(*ids)
            self._layers(document, ids)
            self._cancel.check()
            # Known without a name until whoever waits gives it theirs.
            return self._catalog.add(manifest, document)

    def _configuration(self) -> ImageDocument:
        descriptor = self._manifest.config
        if self._catalog.blobs.has(descriptor.digest):
            raw = self._catalog.blobs.read(descriptor.digest, limit=CONFIG_LIMIT)
        else:
            raw = self._repository.fetch_blob(descriptor, CONFIG_LIMIT, "image configuration")
        document = parse_image_document(raw)
        if document.os not in {"linux", ""}:
            raise Unsupported(
                f'image operating system "{document.os}" cannot be used on this platform'
            )
        return document

    def _layers(self, document: ImageDocument, ids: list[str]) -> None:
        layers = self._manifest.layers
        missing = [
            n for n, chain_id in enumerate(ids) if not self._is_complete(layers[n], chain_id)
        ]
        if not missing and any(e.image_id == document.id for e in self._catalog.table.entries):
            return  # nothing to tell: it is the image that we have
        for number, layer in enumerate(layers):
            here = number not in missing
            status = "Already exists" if here else "Pulling fs layer"
            self._progress(line(status, id=short(layer.digest)))
        for number in missing[self._at_once :]:
            self._progress(line("Waiting", id=short(layers[number].digest)))
        with (
            self._cancel.child() as inner,
            ThreadPoolExecutor(self._at_once, thread_name_prefix="pull") as pool,
        ):
            futures = {
                n: pool.submit(self._one_layer, layers[n], ids[n], document.diff_ids[n], inner)
                for n in missing
            }
            publish(futures, ids, inner)
        for number in missing:
            self._progress(line("Pull complete", id=short(layers[number].digest)))

    def _is_complete(self, layer: Descriptor, chain_id: str) -> bool:
        return self._catalog.snapshots.exists(chain_id) and self._catalog.blobs.has(layer.digest)

    def _one_layer(
        self, layer: Descriptor, chain_id: str, diff_id: str, cancel: Cancel
    ) -> Staged | None:
        cancel.check()
        if not self._catalog.blobs.has(layer.digest):
            try:
                return self._fetch_layer(layer, chain_id, diff_id, cancel)
            except DamagedPartial:
                return self._fetch_layer(layer, chain_id, diff_id, cancel)
        return self._stage_present(layer, chain_id, diff_id, cancel)

    def _stage_present(
        self, layer: Descriptor, chain_id: str, diff_id: str, cancel: Cancel
    ) -> Staged | None:
        if self._catalog.snapshots.exists(chain_id):
            return None
        meter = Meter(self._progress, "Extracting", short(layer.digest), layer.size)
        return stage_blob(self._catalog, layer, chain_id, diff_id, meter, cancel)

    def _fetch_layer(
        self, layer: Descriptor, chain_id: str, diff_id: str, cancel: Cancel
    ) -> Staged | None:
        with self._downloads.joined(layer, self._open) as download:
            meter = Meter(self._progress, "Downloading", short(layer.digest), layer.size)
            shares_blob = (
                layer.digest == diff_id
            )  # a plain tar: the snapshotter may use the blob itself
            source = Metered(Follower(download, cancel), meter, cancel)
            if shares_blob or self._catalog.snapshots.exists(chain_id):
                check_diff_id(source, layer, diff_id)
                download.wait(cancel)
                self._tell_complete(layer)
                return self._stage_present(layer, chain_id, diff_id, cancel)
            staged = stage_stream(self._catalog, source, layer, diff_id)
            try:
                download.wait(cancel)
            except BaseException:
                staged.discard()
                raise
            self._tell_complete(layer)
            return staged

    def _tell_complete(self, layer: Descriptor) -> None:
        self._progress(line("Verifying Checksum", id=short(layer.digest)))
        self._progress(line("Download complete", id=short(layer.digest)))

    def _open(self, descriptor: Descriptor, offset: int, cancel: Cancel) -> tuple[Response, int]:
        cancel.check()
        if descriptor.is_foreign and descriptor.urls:
            return self._open_foreign(descriptor, offset)
        return self._repository.open_blob(descriptor, offset)

    def _open_foreign(self, layer: Descriptor, offset: int) -> tuple[Response, int]:
        try:
            return self._repository.open_blob(layer, offset)  # some registries keep a copy
        except SampanError:
            failure: SampanError | None = None
            for url in layer.urls or ():
                try:
                    return self._repository.open_foreign(url, layer, offset)
                except SampanError as error:
                    failure = failure or error
            raise failure or InvalidArgument(f"foreign layer {layer.digest} has no URL") from None


class _Translating:
    """Every failure of a pull in Docker's words, and of a kind the API knows."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ConnectionFailed):
            out_of_reach(error)
        if isinstance(error, SampanError):
            translated = as_failure(error, self._reference)
            if translated is not error:
                raise translated from None
        elif isinstance(error, OSError):
            raise disk_failure(error) from error


def out_of_reach(error: ConnectionFailed) -> ConnectionFailed:
    """No registry answered: say what there is without one."""
    error.hint = error.hint or offline_hint()
    return error


def disk_failure(error: OSError) -> SampanError:
    """What the disk refused, as a failure."""
    text = error.strerror or str(error)
    hint = "free some space: `sampan system prune`" if error.errno == errno.ENOSPC else ""
    return Internal(f"failed to register layer: {text.lower()}", hint=hint)


def _checked(reference: Reference | str) -> Reference:
    if isinstance(reference, str):
        reference = parse_normalized(reference)
    if reference.domain == "docker.io" and reference.familiar_name == "scratch":
        raise PermissionDenied("'scratch' is a reserved name")
    return reference


def _tell_status(progress: Progress, reference: Reference, is_new: bool) -> None:
    name = reference.familiar()
    text = f"Downloaded newer image for {name}" if is_new else f"Image is up to date for {name}"
    progress(message(f"Status: {text}"))
