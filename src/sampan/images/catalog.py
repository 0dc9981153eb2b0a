"""The catalogue: from what a person typed to an image on disk, and the names that images have.

The words, as Docker uses them:

    id            the digest of an image's configuration blob: sha256:<64 hex>; 12 of them are the short id
    reference     a name with a tag or a digest; an image may have many, or none (then it is dangling)
    manifest      lists configuration and layers; the same image may have come with several
    chain id      names the stack of layers up to one of them: what the snapshotter knows

Who owns what: blobs (`storage.blobs`) hold manifests, configurations and layers by digest; the snapshotter
holds unpacked layers by chain id; `names.NameTable` says which images there are. This module joins the three.
Removing is `removal.py`. Everything here may be called from any thread: a change takes the catalogue's lock,
a read works on the table as it was when it began.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import msgspec

from sampan import units
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.images import platform as platforms
from sampan.images.names import Entry, NameTable
from sampan.spec.image import (
    CONFIG_LIMIT,
    MANIFEST_TYPES,
    Descriptor,
    ImageDocument,
    Manifest,
    Platform,
    RunConfig,
    check_manifest_fits,
    parse_image_document,
    parse_manifest,
    require_image,
)
from sampan.spec.reference import (
    Reference,
    is_digest,
    is_full_id,
    is_id_prefix,
    parse_normalized,
    parse_tagged,
)
from sampan.storage.blobs import BlobStore, Lease
from sampan.storage.snapshots import Snapshotter, chain_ids
from sampan.storage.tar import Limits

_CACHED_DOCUMENTS = 256
_CACHED_BYTES = 64 * 1024  # a larger document is a stranger's joke, and read again each time
_SHORTEST_PREFIX = 4  # as in Docker: shorter text is a name, or nothing

V = TypeVar("V")


class _Cache(OrderedDict[str, V]):
    """The last few values by digest: they never change."""

    def remember(self, key: str, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        while len(self) > _CACHED_DOCUMENTS:
            self.popitem(last=False)
        return value


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of images shows of each, kept for all of them."""

    created: str
    labels: dict[str, str]
    diff_ids: tuple[str, ...]
    chain_ids: tuple[str, ...]
    platform: Platform


class Image:
    """An image as it is now. Small; manifest and configuration are read when asked for."""

    __slots__ = ("_catalog", "_facts", "entries", "id", "target")

    def __init__(
        self, catalog: Catalog, image_id: str, entries: tuple[Entry, ...], target: Descriptor
    ) -> None:
        self._catalog = catalog
        self.id = image_id
        self.entries = entries
        self.target = target  # the manifest that was asked for: an image may have come with several
        self._facts = catalog._facts_of(image_id)

    @property
    def manifest(self) -> Manifest:
        return self._catalog.manifest(self.target.digest)

    @property
    def document(self) -> ImageDocument:
        return self._catalog.document(self.id)

    @property
    def config(self) -> RunConfig:
        return self.document.config

    @property
    def created(self) -> str:
        return self._facts.created

    @property
    def created_ns(self) -> int:
        """Nanoseconds since the epoch; 0 where the image does not say."""
        return units.parse_time(self._facts.created) or 0

    @property
    def labels(self) -> dict[str, str]:
        return self._facts.labels

    @property
    def platform(self) -> Platform:
        return self._facts.platform

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return self._facts.diff_ids

    @property
    def chain_ids(self) -> tuple[str, ...]:
        return self._facts.chain_ids

    @property
    def chain_id(self) -> str:
        """The whole stack; empty for an image without layers."""
        return self._facts.chain_ids[-1] if self._facts.chain_ids else ""

    @property
    def size(self) -> int:
        """Bytes of all layers, unpacked."""
        return sum(self._catalog.layer_size(chain_id) for chain_id in self._facts.chain_ids)

    @property
    def references(self) -> tuple[Reference, ...]:
        return tuple(entry.reference for entry in self.entries if entry.reference is not None)

    @property
    def repo_tags(self) -> tuple[str, ...]:
        """Familiar names, sorted by their whole ones as Docker has them."""
        return tuple(r.familiar() for r in sorted(self.references, key=str) if not r.digest)

    @property
    def repo_digests(self) -> tuple[str, ...]:
        return tuple(r.familiar() for r in self.references if r.digest)

    @property
    def is_dangling(self) -> bool:
        return not self.repo_tags

    @property
    def parent(self) -> str:
        return next((entry.parent for entry in self.entries if entry.parent), "")

    @property
    def last_tagged(self) -> str:
        """When a name was last given to it (RFC 3339), empty when never."""
        return max((entry.tagged for entry in self.entries if entry.name), default="")

    def __repr__(self) -> str:
        return f"Image({self.id[:19]}, {', '.join(self.repo_tags) or 'dangling'})"


class Catalog:
    """All images of one engine."""

    def __init__(self, blobs: BlobStore, snapshots: Snapshotter) -> None:
        self.blobs = blobs
        self.snapshots = snapshots
        self.lock = threading.RLock()
        self._cache_lock = threading.Lock()
        self._manifests: _Cache[Manifest] = _Cache()
        self._documents: _Cache[ImageDocument] = _Cache()
        self._facts: dict[str, _Facts] = {}
        self._sizes: dict[str, int] = {}
        self._held_layers: Counter[str] = Counter()
        self._hold_lock = threading.Lock()  # a layer is held, or removed, never both
        self.limits: Limits | None = None  # what a layer may be, where the configuration says
        self.keepers: list[
            Callable[[], Iterable[str]]
        ] = []  # digests and chain ids that others need
        self.table = NameTable(blobs)
        self._drop_broken()
        self._adopt_foreign()

    # --- finding -------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Every image, in the order of the table."""
        grouped: dict[str, list[Entry]] = {}
        for entry in self.table.entries:
            grouped.setdefault(entry.image_id, []).append(entry)
        return [
            Image(self, image_id, tuple(entries), entries[0].target)
            for image_id, entries in grouped.items()
        ]

    def get(self, image_id: str) -> Image:
        """By full id."""
        entries = tuple(e for e in self.table.entries if e.image_id == image_id)
        if not entries:
            raise NotFound(f"No such image: {image_id}")
        return Image(self, image_id, entries, entries[0].target)

    def has(self, image_id: str) -> bool:
        return any(e.image_id == image_id for e in self.table.entries)

    def resolve(self, text: str, platform: str = "") -> Image:
        """What a person means: a full id, then a name, then the beginning of an id.

        With `platform`, an image of another one is NotFound in Docker's words.
        """
        image = self._resolve(text)
        if platform:
            platforms.check_offered(text, image.platform, platforms.parse_platform(platform))
        return image

    def find(self, text: str) -> Image | None:
        """The same, None where there is none."""
        try:
            return self._resolve(text)
        except NotFound:
            return None

    def _resolve(self, text: str) -> Image:
        if is_full_id(text):
            return self.get("sha256:" + text.removeprefix("sha256:"))
        if text.startswith("sha256:") and is_id_prefix(text):
            return self._by_prefix(text.removeprefix("sha256:"), text)
        reference = parse_normalized(text)
        entry = self.lookup(reference)
        if entry is not None:
            return self._image_of(entry)
        if len(text) >= _SHORTEST_PREFIX and is_id_prefix(text):
            return self._by_prefix(text, reference.with_default_tag().familiar())
        raise NotFound(f"No such image: {reference.with_default_tag().familiar()}")

    def lookup(self, reference: Reference) -> Entry | None:
        """The line of the table that a reference names. With a digest, the tag beside it does not count."""
        if not reference.digest:
            name = str(reference.with_default_tag())
            return next((e for e in self.table.entries if e.name == name), None)
        name = f"{reference.name}@{reference.digest}"
        for entry in self.table.entries:
            if entry.name == name:
                return entry
        for entry in self.table.entries:
            found = entry.reference
            if found and found.name == reference.name and entry.target.digest == reference.digest:
                return entry
        return None

    def is_id_of(self, image: Image, text: str) -> bool:
        """Did the person name the image by (the beginning of) its id?"""
        return image.id.startswith(text) or image.id.removeprefix("sha256:").startswith(text)

    def by_repository(self, reference: Reference) -> list[Entry]:
        """Every tag of a repository."""
        return [
            e
            for e in self.table.entries
            if e.reference and e.reference.tag and e.reference.name == reference.name
        ]

    def _by_prefix(self, prefix: str, shown: str) -> Image:
        wanted = f"sha256:{prefix}"
        ids = {e.image_id for e in self.table.entries if e.image_id.startswith(wanted)}
        if not ids:
            raise NotFound(f"No such image: {shown}")
        if len(ids) > 1:
            raise NotFound("ambiguous reference", hint=f"{len(ids)} images begin with {prefix}")
        return self.get(ids.pop())

    def _image_of(self, entry: Entry) -> Image:
        entries = tuple(e for e in self.table.entries if e.image_id == entry.image_id)
        return Image(self, entry.image_id, entries, entry.target)

    # --- what an image consists of -------------------------------------------------------------------

    def manifest(self, digest: str) -> Manifest:
        with self._cache_lock:
            found = self._manifests.get(digest)
        if found is None:
            found = parse_manifest(self.blobs.read(digest))
            if len(found.raw) <= _CACHED_BYTES:
                with self._cache_lock:
                    self._manifests.remember(digest, found)
        return found

    def document(self, image_id: str) -> ImageDocument:
        with self._cache_lock:
            found = self._documents.get(image_id)
        if found is None:
            found = parse_image_document(self.blobs.read(image_id, limit=CONFIG_LIMIT))
            if len(found.raw) <= _CACHED_BYTES:
                with self._cache_lock:
                    self._documents.remember(image_id, found)
        return found

    def _facts_of(self, image_id: str) -> _Facts:
        facts = self._facts.get(image_id)
        if facts is None:
            document = self.document(image_id)
            facts = self._facts[image_id] = _Facts(
                created=document.created,
                labels=document.config.labels or {},
                diff_ids=document.diff_ids,
                chain_ids=tuple(chain_ids(document.diff_ids)),
                platform=document.platform,
            )
        return facts

    def layer_size(self, chain_id: str) -> int:
        """Bytes of one layer, unpacked; 0 while it is not."""
        size = self._sizes.get(chain_id)
        if size is None:
            try:
                size = self._sizes[chain_id] = self.snapshots.usage(chain_id).bytes
            except NotFound:
                return 0
        return size

    def chain_ids_of(self, image_id: str) -> tuple[str, ...]:
        return self._facts_of(image_id).chain_ids

    def blob_digests(self) -> set[str]:
        """Every blob that an image of the table consists of."""
        found: set[str] = set()
        for entry in self.table.entries:
            found |= {entry.image_id, entry.target.digest}
            try:
                found.update(layer.digest for layer in self.manifest(entry.target.digest).layers)
            except (NotFound, Internal, InvalidArgument):
                continue  # damaged since the start: its image is, and no other
        return found

    def forget_blob(self, digest: str) -> None:
        """A blob was removed: what was read from it need not be remembered."""
        self._facts.pop(digest, None)
        with self._cache_lock:
            self._manifests.pop(digest, None)
            self._documents.pop(digest, None)

    def open_layer(self, layer: Descriptor, chain_id: str) -> BinaryIO:
        """A layer's bytes as its descriptor has them. One of our own making may exist only unpacked."""
        if self.blobs.has(layer.digest):
            return self.blobs.open(layer.digest)
        if not self.snapshots.exists(chain_id):
            raise self._missing(layer)
        return self.snapshots.layer_tar(chain_id) or self._made_again(layer, chain_id)

    def _missing(self, layer: Descriptor) -> Internal:
        return Internal(
            f"layer {layer.digest} is not in the store", hint="pull or load the image again"
        )

    def _made_again(self, layer: Descriptor, chain_id: str) -> BinaryIO:
        """The tar of a layer that a build or a commit left unpacked: made anew, kept, and checked by its digest."""
        with self.blobs.ingest() as ingest:
            for chunk in self.snapshots.diff(chain_id):
                ingest.write(chunk)
            try:
                ingest.commit(layer.digest, layer.size)
            except InvalidArgument:  # it was not of our making: the same tree may be many tars
                raise self._missing(layer) from None
        return self.blobs.open(layer.digest)

    # --- adding and naming ---------------------------------------------------------------------------

    def add(
        self,
        manifest: Manifest,
        document: ImageDocument,
        *,
        references: Iterable[Reference] = (),
        parent: str = "",
    ) -> Image:
        """Make an image known. Its layers are there already; its manifest and configuration are stored now."""
        require_image(manifest)
        check_manifest_fits(manifest, document)
        if manifest.config.digest != document.id:
            raise InvalidArgument(
                f"invalid manifest: its configuration is {manifest.config.digest}, not {document.id}"
            )
        with self.blobs.lease() as lease:
            lease.hold(manifest.digest, document.id)
            self.blobs.put(document.raw)
            self.blobs.put(manifest.raw)
            with self.lock:
                self._name(manifest.descriptor(), document.id, list(references), parent)
        return self.get(document.id)

    def tag(self, source: str | Image, target: str | Reference) -> Image:
        """Give an image another name, which leaves whoever had it."""
        with self.lock:
            image = source if isinstance(source, Image) else self.resolve(source)
            reference = parse_tagged(target) if isinstance(target, str) else target
            if isinstance(target, str) and reference.digest:
                raise InvalidArgument("refusing to create a tag with a digest reference")
            if reference.familiar_name == "sha256" and not reference.digest:
                raise InvalidArgument(
                    "refusing to create an ambiguous tag using digest algorithm as name"
                )
            self._name(image.target, image.id, [reference.with_default_tag()], image.parent)
        return self.get(image.id)

    def remember_digest(self, image: Image, reference: Reference, digest: str) -> None:
        """A registry knows this image under a digest: after a pull or a push."""
        with self.lock:
            self._name(image.target, image.id, [reference.with_digest(digest)], image.parent)

    def set_parent(self, image: Image, parent: str) -> None:
        """Say what an image was made from (commit, build)."""
        with self.lock:
            self.table.replace(
                msgspec.structs.replace(e, parent=parent) if e.image_id == image.id else e
                for e in self.table.entries
            )

    def _name(
        self, target: Descriptor, image_id: str, references: list[Reference], parent: str
    ) -> None:
        now = units.rfc3339nano(time.time_ns())
        names = {str(reference) for reference in references}
        kept: list[Entry] = []
        orphaned: list[Entry] = []
        for entry in self.table.entries:
            is_ours = entry.image_id == image_id
            if is_ours:
                parent = parent or entry.parent
            if entry.name in names or (is_ours and names and not entry.name):
                if not is_ours:
                    orphaned.append(entry)
            else:
                kept.append(entry)
        new = [
            Entry(name=name, target=target, image_id=image_id, tagged=now, parent=parent)
            for name in dict.fromkeys(str(reference) for reference in references)
        ]
        if not new and not any(e.image_id == image_id for e in kept):
            new = [Entry(name="", target=target, image_id=image_id, parent=parent)]
        self.table.replace(with_dangling([*kept, *new], orphaned))

    # --- holding what is under way -------------------------------------------------------------------

    @contextmanager
    def holding(self) -> Iterator[Hold]:
        """Whatever is held meanwhile is not collected: take it before the first byte, leave it after `add`."""
        with self.blobs.lease() as lease:
            hold = Hold(self, lease)
            try:
                yield hold
            finally:
                hold._release()

    def remove_layer(self, chain_id: str) -> bool:
        """Remove an unpacked layer, unless somebody holds it or stands on it (a container goes before its layers)."""
        with self._hold_lock:
            if self._held_layers.get(chain_id):
                return False
            try:
                self.snapshots.remove(chain_id)
            except Conflict:
                return False
            except NotFound:
                pass
        self._sizes.pop(chain_id, None)
        return True

    def held_layers(self) -> set[str]:
        with self._hold_lock:
            return {chain_id for chain_id, count in self._held_layers.items() if count}

    # --- at start ------------------------------------------------------------------------------------

    def _drop_broken(self) -> None:
        """An image whose manifest or configuration is gone or damaged cannot be used; the others can.

        What is damaged is moved aside, so that the next pull or load brings it again. `broken` says which images.
        """
        self.broken: dict[str, str] = {}
        for entry in self.table.entries:
            try:
                self.manifest(entry.target.digest)
                self._facts_of(entry.image_id)
            except NotFound:
                self.broken[entry.image_id] = f"{entry.name or entry.image_id}: content is missing"
            except (Internal, InvalidArgument) as error:
                self.broken[entry.image_id] = f"{entry.name or entry.image_id}: {error}"
                self._put_aside_damaged(entry.target.digest, entry.image_id)
        if self.broken:
            self.table.entries = tuple(
                e for e in self.table.entries if e.image_id not in self.broken
            )

    def _put_aside_damaged(self, *digests: str) -> None:
        for digest in digests:
            try:
                self.blobs.read(digest, limit=CONFIG_LIMIT)
            except (Internal, InvalidArgument):
                self.blobs.quarantine(digest)
            except NotFound:
                continue

    def _adopt_foreign(self) -> None:
        """Another tool may have copied an image into the layout."""
        for line in self.table.foreign:
            if line.media_type not in MANIFEST_TYPES or not is_digest(line.digest):
                continue
            try:
                manifest = self.manifest(line.digest)
                require_image(manifest)
                self.document(manifest.config.digest)
                name = line.annotation("org.opencontainers.image.ref.name")
                reference = parse_tagged(name) if name else None
            except (InvalidArgument, NotFound, Internal, Conflict):
                continue
            self.table.adopt(
                Entry(
                    name=str(reference) if reference else "",
                    target=manifest.descriptor(),
                    image_id=manifest.config.digest,
                ),
                line,
            )


class Hold:
    """Blobs and layers that somebody is adding."""

    def __init__(self, catalog: Catalog, lease: Lease) -> None:
        self._catalog = catalog
        self._lease = lease
        self._layers: list[str] = []

    def blobs(self, *digests: str) -> None:
        self._lease.hold(*digests)

    def layers(self, *ids: str) -> None:
        with self._catalog._hold_lock:
            self._layers += ids
            self._catalog._held_layers.update(ids)

    def release_blobs(self) -> None:
        """What was to be kept is named by now."""
        self._lease.close()

    def _release(self) -> None:
        with self._catalog._hold_lock:
            self._catalog._held_layers.subtract(self._layers)
            self._catalog._held_layers += Counter()  # drops the zeros
            self._layers = []


def with_dangling(entries: list[Entry], orphaned: Iterable[Entry]) -> list[Entry]:
    """An image that lost its last line stays, without a name."""
    present = {entry.image_id for entry in entries}
    for entry in orphaned:
        if entry.image_id not in present:
            present.add(entry.image_id)
            entries.append(msgspec.structs.replace(entry, name="", tagged=""))
    return entries
