"""`sampan system verify`: every blob and every unpacked layer read again, every image's parts counted.

    blob that hashes to something else     moved to quarantine/: a pull or load brings it again
    unpacked layer that differs            removed, and unpacked from its blob when it is next needed;
                                           kept, and named, while a container stands on it
    image with a part missing              named

Nothing is taken from a container that runs. Blocking; may take minutes: it reads the whole store.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sampan.errors import Internal, InvalidArgument, NotFound, SampanError
from sampan.images.catalog import Catalog, Image
from sampan.spec.image import Descriptor
from sampan.storage import decompress
from sampan.storage.audit import is_right
from sampan.storage.stack import LayerStore


class Verified(msgspec.Struct, kw_only=True):
    """What was found."""

    blobs: int = 0  # that are intact
    layers: int = 0
    damaged: list[str] = msgspec.field(
        default_factory=list
    )  # a sentence for each thing that is not


def verify(catalog: Catalog) -> Verified:
    """Read everything. What is damaged is put out of the way where it can be."""
    found = Verified()
    for fault in catalog.blobs.verify():
        catalog.blobs.quarantine(fault.digest)
        catalog.forget_blob(fault.digest)
        found.damaged.append(f"{fault.digest} (put aside; pull or load its image again)")
    found.blobs = sum(1 for _ in catalog.blobs.walk())
    _verify_layers(catalog, found)
    for image in catalog.images():
        found.damaged += _missing(catalog, image)
    return found


def _verify_layers(catalog: Catalog, found: Verified) -> None:
    """Each unpacked layer once, topmost first, so that one that is removed has nothing upon it."""
    seen: set[str] = set()
    for image in catalog.images():
        for chain_id, diff_id, layer in reversed(_layers(image)):
            if chain_id in seen or not catalog.snapshots.exists(chain_id):
                continue
            seen.add(chain_id)
            with catalog.holding() as hold:
                hold.layers(chain_id)
                intact = _layer_is_right(catalog, chain_id, diff_id, layer)
            if intact:
                found.layers += 1
            elif catalog.remove_layer(chain_id):
                found.damaged.append(
                    f"layer {chain_id} (removed; it is unpacked again when needed)"
                )
            else:
                found.damaged.append(f"layer {chain_id} (in use: remove what stands on it)")


def _layers(image: Image) -> list[tuple[str, str, Descriptor]]:
    try:
        return list(zip(image.chain_ids, image.diff_ids, image.manifest.layers, strict=True))
    except (NotFound, Internal, InvalidArgument):
        return []  # its manifest was put aside just now


def _layer_is_right(catalog: Catalog, chain_id: str, diff_id: str, layer: Descriptor) -> bool:
    store = catalog.snapshots
    assert isinstance(store, LayerStore)
    try:
        if not catalog.blobs.has(layer.digest):
            return is_right(store, chain_id, diff_id, limits=catalog.limits)
        with catalog.blobs.open(layer.digest) as file:
            again = decompress.open_stream(file)
            return is_right(store, chain_id, diff_id, again=again, limits=catalog.limits)
    except NotFound:
        return True  # went with its image meanwhile
    except (OSError, SampanError):
        return False


def _missing(catalog: Catalog, image: Image) -> Iterator[str]:
    name = next(iter(image.repo_tags), image.id)
    try:
        for chain_id, _, layer in _layers(image):
            if not catalog.blobs.has(layer.digest) and not catalog.snapshots.exists(chain_id):
                yield f"{name}: layer {layer.digest} is missing"
        catalog.blobs.read(image.id)
    except (NotFound, Internal, InvalidArgument) as error:
        yield f"{name}: {error}"
