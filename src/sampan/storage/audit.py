"""Whether an unpacked layer is still the layer that it was: what `sampan system verify` asks of each.

    indexed layer     its tar hashes to the diff id, and the index made anew is the index that is there
    directory         packed again it hashes to the diff id (what we made ourselves does), or it is what the blob
                      unpacks to now: both packed, and the two streams compared

Nothing is changed. Damage comes from failing disks, and from hands in the root directory.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from typing import TYPE_CHECKING

from sampan.storage import layers
from sampan.storage.erofs_mount import INDEX, TAR, write_index
from sampan.storage.stack import LayerStore
from sampan.storage.tar_reader import FileStream
from sampan.storage.tree import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sampan.storage.tar import Limits, Readable


def is_right(
    store: LayerStore,
    chain_id: str,
    diff_id: str,
    *,
    again: Readable | None = None,
    limits: Limits | None = None,
) -> bool:
    """Read a whole layer; `again` is its tar, uncompressed, where a blob of it is at hand. NotFound without a layer."""
    tar = store.layer_tar(chain_id)
    if tar is not None:
        with tar:
            return _hash(iter(lambda: tar.read(1 << 20), b"")) == diff_id and _index_is_right(
                store, os.path.dirname(store.layer_path(chain_id)), limits
            )
    packed = _hash(store.diff(chain_id))
    if packed == diff_id:
        return True
    if again is None:
        return False
    with LayerStore.stage(store, again, limits=limits) as staged:
        return _packed(store, staged.path, staged.has_root) == _packed(
            store, store.layer_path(chain_id), staged.has_root
        )


def _index_is_right(store: LayerStore, directory: str, limits: Limits | None) -> bool:
    with store.scratch() as place:
        fd = os.open(os.path.join(directory, TAR), os.O_RDONLY | os.O_CLOEXEC)
        try:
            write_index(place, fd, FileStream(fd), limits)
        finally:
            os.close(fd)
        return filecmp.cmp(
            os.path.join(place, INDEX), os.path.join(directory, INDEX), shallow=False
        )


def _packed(store: LayerStore, path: str, with_root: bool) -> str:
    fd = open_directory(path)
    try:
        return _hash(layers.diff(fd, with_root=with_root, markers=store.name == "vfs"))
    finally:
        os.close(fd)


def _hash(chunks: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return f"sha256:{hasher.hexdigest()}"
