"""Taking names and images away, and what nobody needs any more with them.

    rmi NAME    the name goes; with the last one of its repository also the digests; with the last one at all
                the image, unless something needs it: then it stays without a name
    rmi ID      all names go if they are of one repository, and the image; in several repositories it takes force
    prune       images without a name (or all) that no container uses

An image leaves in this order: its lines in the table, then layers and blobs that no other image needs and that
nobody who is adding an image holds. A crash in between leaves garbage, which the next collection finds, and never
an image whose parts are gone. Messages are Docker's: clients match them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.images.catalog import Catalog, Image, with_dangling
from sampan.images.names import Entry
from sampan.spec.image import INDEX_TYPES, MANIFEST_TYPES, Descriptor, parse_index
from sampan.spec.reference import Reference, digest_hex, parse_normalized


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """A container that needs an image."""

    container_id: str
    running: bool


# Who uses an image, by its id: the engine knows.
Users = Callable[[str], "list[Use]"]


class DeleteItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that went. `image_id` is empty where nobody is told of it: layers, digests that went with their tag."""

    untagged: str = ""
    deleted: str = ""
    image_id: str = ""


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    bytes: int
    layers: tuple[str, ...]
    blobs: tuple[str, ...]


def nobody(_: str) -> list[Use]:
    return []


def delete(
    catalog: Catalog,
    text: str,
    *,
    force: bool = False,
    noprune: bool = False,
    users: Users = nobody,
) -> list[DeleteItem]:
    """`docker rmi TEXT`. Conflict, in Docker's words, where something stands against it."""
    with catalog.lock:
        image = catalog.resolve(text)
        draft = _Draft(catalog, users)
        if catalog.is_id_of(image, text):
            if _is_single_reference(draft.references(image.id)):
                draft.check(image.id, force=force, check_references=False)
                draft.untag_all(image.id)
            draft.delete(image.id, force=force, prune=not noprune)
        else:
            draft.untag_name(image.id, text, force=force)
            if not draft.is_named(image.id):
                draft.delete_loose(image.id, force=force, prune=not noprune)
        return draft.perform()


def prune(
    catalog: Catalog,
    *,
    wanted: Callable[[Image], bool],
    dangling_only: bool = True,
    users: Users = nobody,
) -> tuple[list[DeleteItem], int]:
    """Remove images that nobody uses; returns what went and the bytes that came free."""
    with catalog.lock:
        sizes = _layer_sizes(catalog)
        draft = _Draft(catalog, users)
        for image in catalog.images():
            if dangling_only and not image.is_dangling:
                continue
            if users(image.id) or draft.children.get(image.id) or not wanted(image):
                continue
            if image.id in draft.lines:  # it may have gone with a child of its own
                draft.untag_all(image.id)
                draft.delete(image.id, force=False, prune=True)
        items = draft.perform()
        collected = collect(catalog)
        left = _layer_sizes(catalog)
        freed = sum(size for layer, size in sizes.items() if layer not in left) + collected.bytes
    return items, freed


def children(catalog: Catalog, image_id: str) -> list[str]:
    """Ids of the images made from this one."""
    return list(dict.fromkeys(e.image_id for e in catalog.table.entries if e.parent == image_id))


# --- deciding ----------------------------------------------------------------------------------------


class _Draft:
    """The table as it will be after all that was decided so far. `perform` writes it once, then lets content go.

    Whoever has one holds the catalogue's lock. Raising leaves everything as it was.
    """

    def __init__(self, catalog: Catalog, users: Users) -> None:
        self._catalog = catalog
        self._users = users
        self.lines: dict[str, list[Entry]] = {}  # by image
        self.children: dict[str, set[str]] = {}  # by the image that they were made from
        for entry in catalog.table.entries:
            self.lines.setdefault(entry.image_id, []).append(entry)
            if entry.parent:
                self.children.setdefault(entry.parent, set()).add(entry.image_id)
        self._done: list[DeleteItem | Image] = []  # an image: it went, with its content

    def references(self, image_id: str) -> list[Reference]:
        return [e.reference for e in self.lines[image_id] if e.reference is not None]

    def is_named(self, image_id: str) -> bool:
        return any(entry.name for entry in self.lines[image_id])

    def check(self, image_id: str, *, force: bool, check_references: bool) -> None:
        """Conflict with the first reason not to delete, hardest first."""
        if self.children.get(image_id):
            raise _conflict(image_id, "cannot be forced", "image has dependent child images")
        used_by = self._users(image_id)
        for use in used_by:
            if use.running:
                raise _conflict(
                    image_id,
                    "cannot be forced",
                    f"image is being used by running container {use.container_id[:12]}",
                )
        if force:
            return
        if check_references and self.is_named(image_id):
            raise _conflict(
                image_id, "must be forced", "image is referenced in multiple repositories"
            )
        if used_by:
            raise _conflict(
                image_id,
                "must be forced",
                f"image is being used by stopped container {used_by[0].container_id[:12]}",
            )

    def untag_name(self, image_id: str, text: str, *, force: bool) -> None:
        """One name; with the last tag of a repository also its digests."""
        used_by = self._users(image_id)
        if not force and used_by and _is_single_reference(self.references(image_id)):
            raise Conflict(
                f'conflict: unable to remove repository reference "{text}" (must force) - '
                f"container {used_by[0].container_id[:12]} is using its referenced image "
                f"{_short(image_id)}"
            )
        entry = self._catalog.lookup(parse_normalized(text))
        if entry is None or entry.reference is None:
            wanted = parse_normalized(text).with_default_tag()
            raise NotFound(f"No such image: {wanted.familiar()}")
        gone = [entry]
        if not entry.reference.digest:
            same_repository = [
                e
                for e in self.lines[image_id]
                if e is not entry and e.reference and e.reference.name == entry.reference.name
            ]
            if all(e.reference and e.reference.digest for e in same_repository):
                gone += same_repository
        self._untag(image_id, gone, told=1)

    def untag_all(self, image_id: str) -> None:
        self._untag(image_id, [e for e in self.lines[image_id] if e.name])

    def delete(self, image_id: str, *, force: bool, prune: bool) -> None:
        """The image, and with `prune` the nameless ones that it was made from."""
        self.check(image_id, force=force, check_references=True)
        image = self._catalog.get(image_id)
        self.untag_all(image_id)
        del self.lines[image_id]
        for parent in {image.parent} & self.children.keys():
            self.children[parent].discard(image_id)
        self._done.append(image)
        if prune and image.parent in self.lines:
            self.delete_loose(image.parent, force=False, prune=True)

    def delete_loose(self, image_id: str, *, force: bool, prune: bool) -> None:
        """The same for an image that was not asked for by itself: what stands against it keeps it, in silence."""
        try:
            self.delete(image_id, force=force, prune=prune)
        except Conflict:
            return

    def perform(self) -> list[DeleteItem]:
        """On disk: the table, then what only the images had that went. In the order in which it was decided."""
        self._catalog.table.replace(entry for lines in self.lines.values() for entry in lines)
        needed = _needed(self._catalog)
        items: list[DeleteItem] = []
        for done in self._done:
            if isinstance(done, DeleteItem):
                items.append(done)
            else:
                items.append(DeleteItem(deleted=done.id, image_id=done.id))
                layers = collect_image(self._catalog, done, done.chain_ids, needed)
                items += [DeleteItem(deleted=chain_id) for chain_id in layers]
        return items

    def _untag(self, image_id: str, gone: list[Entry], *, told: int | None = None) -> None:
        kept = [e for e in self.lines[image_id] if e not in gone]
        self.lines[image_id] = with_dangling(kept, gone)
        for number, entry in enumerate(gone):
            if entry.reference is not None:
                is_told = told is None or number < told
                name = entry.reference.familiar()
                self._done.append(DeleteItem(untagged=name, image_id=image_id if is_told else ""))


def _conflict(image_id: str, how: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {_short(image_id)} ({how}) - {why}")


def _short(image_id: str) -> str:
    return digest_hex(image_id)[:12]


def _is_single_reference(references: Iterable[Reference]) -> bool:
    """At most one tag, and all digests of the same repository."""
    found = list(references)
    if len(found) <= 1:
        return len(found) == 1
    tags = [r for r in found if not r.digest]
    digest_names = {r.name for r in found if r.digest}
    if len(tags) > 1:
        return False
    single = tags[0] if tags else found[0]
    return digest_names == {single.name}


# --- collecting --------------------------------------------------------------------------------------


def collect_image(
    catalog: Catalog, image: Image, layers: tuple[str, ...], needed: set[str]
) -> list[str]:
    """After an image left the table: its own blobs and layers, as far as nobody else needs them."""
    gone = []
    for chain_id in reversed(layers):
        if chain_id in needed or not catalog.remove_layer(chain_id):
            break  # what is below is needed as well
        gone.append(chain_id)
    candidates: list[str] = [image.id]
    for digest in {entry.target.digest for entry in image.entries} | {image.target.digest}:
        candidates.append(digest)
        try:
            candidates += [layer.digest for layer in catalog.manifest(digest).layers]
        except (NotFound, InvalidArgument):
            continue
    _remove_blobs(catalog, [d for d in candidates if d not in needed])
    return gone


def collect(catalog: Catalog) -> Collected:
    """Everything that no image, no container and nobody at work needs."""
    with catalog.lock:
        needed = _needed(catalog)
        collected = catalog.blobs.collect(needed)
        layers = collect_layers(catalog, needed)
    return Collected(bytes=collected.bytes, blobs=tuple(collected.digests), layers=tuple(layers))


def collect_layers(catalog: Catalog, needed: set[str] | None = None) -> list[str]:
    """Unpacked layers without an image: after a container of a removed image went, or a crash."""
    with catalog.lock:
        keep = _needed(catalog) if needed is None else needed
        loose = {
            s.name: s.parent
            for s in catalog.snapshots.walk()
            if s.kind == "layer" and s.name not in keep
        }
        gone: list[str] = []
        while True:
            below = set(loose.values())
            tops = [name for name in loose if name not in below]
            if not tops:
                return gone
            for name in tops:
                del loose[name]
                if catalog.remove_layer(name):
                    gone.append(name)


def _needed(catalog: Catalog) -> set[str]:
    """Digests and chain ids that must stay."""
    needed = catalog.held_layers() | catalog.blob_digests()
    for entry in catalog.table.entries:
        needed.update(catalog.chain_ids_of(entry.image_id))
    for line in catalog.table.foreign:
        needed |= _reachable(catalog, line)
    for keeper in catalog.keepers:
        needed.update(keeper())
    return needed


def _reachable(catalog: Catalog, line: Descriptor) -> set[str]:
    """What another tool's line of index.json leads to."""
    found = {line.digest}
    try:
        if line.media_type in INDEX_TYPES:
            for inner in parse_index(catalog.blobs.read(line.digest)).manifests:
                found |= _reachable(catalog, inner) if inner.digest != line.digest else set()
        elif line.media_type in MANIFEST_TYPES:
            manifest = catalog.manifest(line.digest)
            found |= {manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    except (NotFound, InvalidArgument):
        pass
    return found


def _remove_blobs(catalog: Catalog, digests: list[str]) -> None:
    for digest in dict.fromkeys(digests):
        if catalog.blobs.discard(digest):
            catalog.forget_blob(digest)


def _layer_sizes(catalog: Catalog) -> dict[str, int]:
    """What `prune` counts, as Docker: the files of layers, not the documents nor how layers are stored."""
    layers = (s.name for s in catalog.snapshots.walk() if s.kind == "layer")
    return {layer: catalog.layer_size(layer) for layer in layers}
