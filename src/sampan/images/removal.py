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
    """One thing that went. `image_id` is empty where the thing is a layer."""

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
        items: list[DeleteItem] = []
        quiet = False
        if catalog.is_id_of(image, text):
            if _is_single_reference(image.references):
                _check(catalog, image, force=force, users=users, check_references=False)
                items += _untag_all(catalog, image)
        else:
            items += _untag_name(catalog, image, text, force=force, users=users)
            if any(entry.name for entry in _entries(catalog, image.id)):
                return items
            quiet = True
        items += _delete_image(
            catalog, image.id, force=force, prune=not noprune, quiet=quiet, users=users
        )
        return items


def prune(
    catalog: Catalog,
    *,
    wanted: Callable[[Image], bool],
    dangling_only: bool = True,
    users: Users = nobody,
) -> tuple[list[DeleteItem], int]:
    """Remove images that nobody uses; returns what went and the bytes that came free."""
    items: list[DeleteItem] = []
    with catalog.lock:
        sizes = _layer_sizes(catalog)
        for image in catalog.images():
            if dangling_only and not image.is_dangling:
                continue
            if users(image.id) or children(catalog, image.id) or not wanted(image):
                continue
            if not any(e.image_id == image.id for e in catalog.table.entries):
                continue  # went with a child of its own
            try:
                items += _untag_all(catalog, image)
                items += _delete_image(
                    catalog, image.id, force=False, prune=True, quiet=False, users=users
                )
            except Conflict:
                continue
        collected = collect(catalog)
        left = _layer_sizes(catalog)
        freed = sum(size for layer, size in sizes.items() if layer not in left) + collected.bytes
    return items, freed


def children(catalog: Catalog, image_id: str) -> list[str]:
    """Ids of the images made from this one."""
    return list(dict.fromkeys(e.image_id for e in catalog.table.entries if e.parent == image_id))


# --- steps -------------------------------------------------------------------------------------------


def _untag_name(
    catalog: Catalog, image: Image, text: str, *, force: bool, users: Users
) -> list[DeleteItem]:
    reference = parse_normalized(text)
    used_by = users(image.id)
    if not force and used_by and _is_single_reference(image.references):
        raise Conflict(
            f'conflict: unable to remove repository reference "{text}" (must force) - '
            f"container {used_by[0].container_id[:12]} is using its referenced image "
            f"{_short(image.id)}"
        )
    entry = catalog.lookup(reference)
    if entry is None or entry.reference is None:
        raise NotFound(f"No such image: {reference.with_default_tag().familiar()}")
    gone = [entry]
    if not entry.reference.digest:
        same_repository = [
            e
            for e in image.entries
            if e is not entry and e.reference and e.reference.name == entry.reference.name
        ]
        if all(e.reference and e.reference.digest for e in same_repository):
            gone += same_repository
    return _untag(catalog, gone)


def _untag_all(catalog: Catalog, image: Image) -> list[DeleteItem]:
    return _untag(catalog, [e for e in _entries(catalog, image.id) if e.name])


def _untag(catalog: Catalog, gone: list[Entry]) -> list[DeleteItem]:
    names = {entry.name for entry in gone}
    kept = [e for e in catalog.table.entries if not (e.name and e.name in names)]
    catalog.table.replace(with_dangling(kept, gone))
    return [
        DeleteItem(untagged=e.reference.familiar(), image_id=e.image_id)
        for e in gone
        if e.reference is not None
    ]


def _delete_image(
    catalog: Catalog, image_id: str, *, force: bool, prune: bool, quiet: bool, users: Users
) -> list[DeleteItem]:
    image = catalog.get(image_id)
    try:
        _check(catalog, image, force=force, users=users, check_references=True)
    except Conflict:
        is_loose = not image.references and not children(catalog, image_id)
        if quiet and (not is_loose or users(image_id)):
            return []
        raise
    items = _untag_all(catalog, image)
    parent = image.parent
    layers = image.chain_ids
    catalog.table.replace(e for e in catalog.table.entries if e.image_id != image_id)
    items.append(DeleteItem(deleted=image_id, image_id=image_id))
    removed = collect_image(catalog, image, layers)
    items += [DeleteItem(deleted=chain_id) for chain_id in removed]
    if prune and parent and any(e.image_id == parent for e in catalog.table.entries):
        items += _delete_image(catalog, parent, force=False, prune=True, quiet=True, users=users)
    return items


def _check(
    catalog: Catalog, image: Image, *, force: bool, users: Users, check_references: bool
) -> None:
    """Every reason not to delete, hardest first."""
    if children(catalog, image.id):
        raise _conflict(image, "cannot be forced", "image has dependent child images")
    used_by = users(image.id)
    for use in used_by:
        if use.running:
            raise _conflict(
                image,
                "cannot be forced",
                f"image is being used by running container {use.container_id[:12]}",
            )
    if force:
        return
    if check_references and image.references:
        raise _conflict(image, "must be forced", "image is referenced in multiple repositories")
    if used_by:
        raise _conflict(
            image,
            "must be forced",
            f"image is being used by stopped container {used_by[0].container_id[:12]}",
        )


def _conflict(image: Image, how: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {_short(image.id)} ({how}) - {why}")


def _short(image_id: str) -> str:
    return digest_hex(image_id)[:12]


def _entries(catalog: Catalog, image_id: str) -> list[Entry]:
    return [e for e in catalog.table.entries if e.image_id == image_id]


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


def collect_image(catalog: Catalog, image: Image, layers: tuple[str, ...]) -> list[str]:
    """After an image left the table: its own blobs and layers, as far as nobody else needs them."""
    needed = _needed(catalog)
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
