"""Pushing: an image of the catalogue to a registry, sending only what is not there.

    for each layer, several at once
        known there under some digest?  HEAD            ──► Layer already exists
        known in a neighbour repository?  mount         ──► Mounted from ...
        otherwise  upload, resumed where it broke       ──► Pushed
    configuration, manifest under its tag               ──► TAG: digest: ... size: ...

What was pulled is pushed with the same bytes and so the same digest. Layers that exist only uncompressed (loaded,
committed, built) are compressed on their way; what they became is remembered in `pushed.json` beside the store, so
that the next push compares instead of compressing. Lines of progress are Docker's.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from sampan.errors import InvalidArgument, NotFound, SampanError
from sampan.images.auth import Credentials
from sampan.images.builtin import offline_hint
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Image
from sampan.images.compress import Compressor
from sampan.images.endpoints import RegistryConfig
from sampan.images.faults import RegistryFault, as_plain_failure
from sampan.images.names import Entry
from sampan.images.progress import Meter, Progress, line, message, short, silent
from sampan.images.registry import Registry
from sampan.images.transport import ConnectionFailed
from sampan.spec.image import (
    LAYER_COMPRESSION,
    OCI_LAYER_GZIP,
    Descriptor,
    Manifest,
    make_manifest,
)
from sampan.spec.reference import Reference, parse_normalized

CHUNK = 256 * 1024
SMALL = 64 * 1024  # up to here an upload is one request
MOUNT_TRIES = 3
UPLOAD_TRIES = 5
REMEMBERED = 20_000


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """What a push ended with."""

    tag: str
    digest: str
    size: int


def push(
    catalog: Catalog,
    config: RegistryConfig,
    reference: Reference | str,
    *,
    all_tags: bool = False,
    auth: Credentials | None = None,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> list[Pushed]:
    """`docker push NAME[:TAG]`, or every tag of the repository."""
    if isinstance(reference, str):
        reference = parse_normalized(reference)
    progress(message(f"The push refers to repository [{reference.name}]"))
    entries = _entries(catalog, reference, all_tags=all_tags)
    cancel = cancel or Cancel.never()
    try:
        with Registry(config, reference.domain, auth, cancel=cancel, for_push=True) as registry:
            job = _Job(catalog, registry, reference, progress, cancel)
            return [job.push_tag(entry) for entry in entries]
    except ConnectionFailed as error:
        error.hint = error.hint or offline_hint()
        raise
    except SampanError as error:
        translated = as_plain_failure(error)
        raise translated from error.__cause__


def _entries(catalog: Catalog, reference: Reference, *, all_tags: bool) -> list[Entry]:
    if reference.digest:
        raise InvalidArgument("cannot push a digest reference")
    if not catalog.by_repository(reference):
        raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
    if all_tags:
        return catalog.by_repository(reference)
    tagged = reference.with_default_tag()
    entry = catalog.lookup(tagged)
    if entry is None:
        raise NotFound(f"tag does not exist: {tagged.familiar()}")
    return [entry]


class _Job:
    """One repository's push."""

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        reference: Reference,
        progress: Progress,
        cancel: Cancel,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._reference = reference
        self._repository = registry.repository(reference.path)
        self._progress = progress
        self._cancel = cancel
        self._memory = Memory(catalog)
        self._there: dict[str, Descriptor] = {}  # diff id -> what is in the repository already

    def push_tag(self, entry: Entry) -> Pushed:
        assert entry.reference is not None
        image = self._catalog.resolve(entry.name)
        with self._catalog.holding() as hold:
            hold.layers(*image.chain_ids)
            hold.blobs(entry.target.digest, image.id)
            manifest = self._catalog.manifest(entry.target.digest)
            hold.blobs(*(layer.digest for layer in manifest.layers))
            sent = self._layers(image, manifest)
            final = _with_layers(manifest, sent)
            self._small_blob(final.config, image.document.raw)
            self._repository.put_manifest(entry.reference.tag, final.raw, final.media_type)
        self._catalog.remember_digest(image, entry.reference, final.digest)
        result = Pushed(tag=entry.reference.tag, digest=final.digest, size=len(final.raw))
        self._progress(message(f"{result.tag}: digest: {result.digest} size: {result.size}"))
        aux = {"Tag": result.tag, "Digest": result.digest, "Size": result.size}
        self._progress({"progressDetail": {}, "aux": aux})
        return result

    def _layers(self, image: Image, manifest: Manifest) -> list[Descriptor]:
        numbers = range(len(manifest.layers))
        at_once = self._registry.config.concurrent_uploads
        for number in reversed(numbers):
            self._progress(line("Preparing", id=short(image.diff_ids[number])))
        for number in list(reversed(numbers))[at_once:]:
            self._progress(line("Waiting", id=short(image.diff_ids[number])))
        with ThreadPoolExecutor(max(at_once, 1), thread_name_prefix="push") as pool:
            futures = {
                number: pool.submit(
                    self._layer,
                    manifest.layers[number],
                    image.diff_ids[number],
                    image.chain_ids[number],
                )
                for number in reversed(numbers)
            }
            try:
                return [futures[number].result() for number in numbers]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _layer(self, layer: Descriptor, diff_id: str, chain_id: str) -> Descriptor:
        self._cancel.check()
        layer_id = short(diff_id)
        if layer.is_foreign and layer.urls:
            self._progress(line("Skipped foreign layer", id=layer_id))
            return layer
        known = self._there.get(diff_id) or self._find_there(layer, diff_id)
        if known is not None:
            self._progress(line("Layer already exists", id=layer_id))
        else:
            known = self._mount(layer, diff_id) or self._upload(layer, diff_id, chain_id)
        self._there[diff_id] = known
        self._memory.remember(diff_id, known, self._reference)
        return known

    def _find_there(self, layer: Descriptor, diff_id: str) -> Descriptor | None:
        for candidate in self._candidates(layer, diff_id):
            if self._repository.has_blob(candidate.digest):
                return candidate
        return None

    def _candidates(self, layer: Descriptor, diff_id: str) -> list[Descriptor]:
        """In which forms the layer may be in a registry: as it came, or as an earlier push compressed it."""
        if LAYER_COMPRESSION.get(layer.media_type) != "none":
            return [layer]
        return self._memory.forms(diff_id)

    def _mount(self, layer: Descriptor, diff_id: str) -> Descriptor | None:
        tries = 0
        for candidate in self._candidates(layer, diff_id):
            for path in self._neighbours(candidate.digest):
                if tries == MOUNT_TRIES:
                    return None
                tries += 1
                try:
                    if self._repository.mount(candidate.digest, path) is None:
                        self._progress(line(f"Mounted from {path}", id=short(diff_id)))
                        return candidate
                except RegistryFault:
                    continue  # not allowed there, or not there: upload
        return None

    def _neighbours(self, digest: str) -> list[str]:
        """Repositories of the same registry that have this blob, as far as we know."""
        found = self._memory.places(digest, self._reference.domain)
        for entry in self._catalog.table.entries:
            where = entry.reference
            if where is None or where.domain != self._reference.domain or not where.digest:
                continue
            if any(d.digest == digest for d in self._catalog.manifest(entry.target.digest).layers):
                found.append(where.path)
        return [path for path in dict.fromkeys(found) if path != self._reference.path]

    # --- uploading -----------------------------------------------------------------------------------

    def _upload(self, layer: Descriptor, diff_id: str, chain_id: str) -> Descriptor:
        meter = Meter(self._progress, "Pushing", short(diff_id), layer.size)
        if LAYER_COMPRESSION.get(layer.media_type) == "none":
            sent = self._upload_compressed(layer, chain_id, meter)
        else:
            self._upload_blob(layer, chain_id, meter)
            sent = layer
        self._progress(line("Pushed", id=short(diff_id)))
        return sent

    def _upload_compressed(self, layer: Descriptor, chain_id: str, meter: Meter) -> Descriptor:
        """Compress while sending. The digest is known at the end, when the registry asks for it."""
        body = _CompressedBody(self._catalog, layer, chain_id, meter, self._cancel)
        for attempt in range(1, UPLOAD_TRIES + 1):
            try:
                location = self._repository.upload_stream(self._repository.begin_upload(), body)
                break
            except ConnectionFailed:
                if attempt == UPLOAD_TRIES:
                    raise
                self._cancel.wait(self._registry.config.retry_delay_s * attempt)
        self._repository.finish_upload(location, body.digest)
        return Descriptor(media_type=OCI_LAYER_GZIP, digest=body.digest, size=body.size)

    def _upload_blob(self, layer: Descriptor, chain_id: str, meter: Meter) -> None:
        location = self._repository.begin_upload()
        start = 0
        if layer.size <= SMALL:
            body = _FileBody(self._catalog, layer, chain_id, 0, meter, self._cancel)
            self._repository.upload_whole(location, body, layer.digest)
            return
        for attempt in range(1, UPLOAD_TRIES + 1):
            body = _FileBody(self._catalog, layer, chain_id, start, meter, self._cancel)
            try:
                if start:
                    location = self._repository.upload_chunk(location, body, start)
                else:
                    location = self._repository.upload_stream(location, body)
                break
            except ConnectionFailed:
                if attempt == UPLOAD_TRIES:
                    raise
                self._cancel.wait(self._registry.config.retry_delay_s * attempt)
                location, start = self._where_to_go_on(location, layer)
        self._repository.finish_upload(location, layer.digest)

    def _where_to_go_on(self, location: str, layer: Descriptor) -> tuple[str, int]:
        try:
            location, done = self._repository.upload_status(location)
        except RegistryFault:
            return self._repository.begin_upload(), 0
        return (location, done) if done < layer.size else (self._repository.begin_upload(), 0)

    def _small_blob(self, descriptor: Descriptor, raw: bytes) -> None:
        if self._repository.has_blob(descriptor.digest):
            return
        self._repository.upload_whole(
            self._repository.begin_upload(), _BytesBody(raw), descriptor.digest
        )


def _with_layers(manifest: Manifest, layers: list[Descriptor]) -> Manifest:
    """The manifest that was stored when nothing changed, and one with the layers as they were sent otherwise."""
    if [layer.digest for layer in layers] == [layer.digest for layer in manifest.layers]:
        return manifest
    return make_manifest(
        manifest.config,
        tuple(layers),
        media_type=manifest.media_type,
        annotations=manifest.annotations or None,
    )


class _BytesBody:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.length: int | None = len(raw)

    def rewind(self) -> Iterator[bytes]:
        yield self._raw


class _FileBody:
    """A layer's blob from some offset to its end."""

    def __init__(
        self,
        catalog: Catalog,
        layer: Descriptor,
        chain_id: str,
        start: int,
        meter: Meter,
        cancel: Cancel,
    ) -> None:
        self._catalog = catalog
        self._layer = layer
        self._chain_id = chain_id
        self._start = start
        self._meter = meter
        self._cancel = cancel
        self.length: int | None = layer.size - start

    def rewind(self) -> Iterator[bytes]:
        self._meter.at(self._start)
        with self._catalog.open_layer(self._layer, self._chain_id) as file:
            file.seek(self._start)
            while chunk := file.read(CHUNK):
                self._cancel.check()
                yield chunk
                self._meter.add(len(chunk))


class _CompressedBody:
    """An uncompressed layer as gzip; `digest` and `size` are of what was sent last."""

    def __init__(
        self, catalog: Catalog, layer: Descriptor, chain_id: str, meter: Meter, cancel: Cancel
    ) -> None:
        self._catalog = catalog
        self._layer = layer
        self._chain_id = chain_id
        self._meter = meter
        self._cancel = cancel
        self.length: int | None = None
        self.digest = ""
        self.size = 0

    def rewind(self) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        self.size = 0
        self._meter.at(0)
        compressor = Compressor()
        with self._catalog.open_layer(self._layer, self._chain_id) as file:
            while chunk := file.read(CHUNK):
                self._cancel.check()
                self._meter.add(len(chunk))
                yield from self._account(hasher, compressor.compress(chunk))
        yield from self._account(hasher, compressor.flush())
        self.digest = "sha256:" + hasher.hexdigest()

    def _account(self, hasher: hashlib._Hash, data: bytes) -> Iterator[bytes]:
        if data:
            hasher.update(data)
            self.size += len(data)
            yield data


# --- what earlier pushes learned -------------------------------------------------------------------------


class _Form(msgspec.Struct, frozen=True, kw_only=True):
    """A layer as it was sent once, and where to."""

    diff_id: str
    descriptor: Descriptor
    places: tuple[str, ...] = ()  # domain/path


_decode_forms = msgspec.json.Decoder(tuple[_Form, ...])
_memory_lock = threading.Lock()


class Memory:
    """`pushed.json`: a cache, so a missing or broken one only costs time."""

    def __init__(self, catalog: Catalog) -> None:
        self._path = os.path.join(catalog.blobs.root, "pushed.json")
        self._forms = self._load()

    def forms(self, diff_id: str) -> list[Descriptor]:
        return [form.descriptor for form in self._forms if form.diff_id == diff_id]

    def places(self, digest: str, domain: str) -> list[str]:
        return [
            place.removeprefix(f"{domain}/")
            for form in self._forms
            if form.descriptor.digest == digest
            for place in form.places
            if place.startswith(f"{domain}/")
        ]

    def remember(self, diff_id: str, descriptor: Descriptor, reference: Reference) -> None:
        with _memory_lock:
            old = next((f for f in self._forms if f.descriptor.digest == descriptor.digest), None)
            places = tuple(dict.fromkeys((*(old.places if old else ()), reference.name)))[-16:]
            if old is not None and places == old.places:
                return
            plain = msgspec.structs.replace(descriptor, annotations=None, urls=None)
            new = _Form(diff_id=diff_id, descriptor=plain, places=places)
            self._forms = [*[f for f in self._forms if f is not old][-REMEMBERED:], new]
            self._save()

    def _load(self) -> list[_Form]:
        try:
            with open(self._path, "rb") as file:
                return list(_decode_forms.decode(file.read()))
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return []

    def _save(self) -> None:
        temporary = f"{self._path}.{threading.get_ident()}.tmp"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(self._forms))
        os.replace(temporary, self._path)
