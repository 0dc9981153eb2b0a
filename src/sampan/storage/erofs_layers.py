"""The overlay snapshotter with layers that are indexed instead of unpacked (erofs.py says how).

Everything but `stage` is the overlay snapshotter's, which can show layers of both forms: a root may hold both, and
changing the driver needs no migration. Layers made by `commit`, and those that an index cannot express (sparse files,
half a million entries), are directories as ever. Where a kernel without file-backed EROFS meets an indexed layer, it is
unpacked from its own tar on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from sampan.storage.erofs_mount import SHOWN, take_tar, write_index
from sampan.storage.erofs_tree import NotIndexable
from sampan.storage.overlay import OverlaySnapshotter
from sampan.storage.stack import LayerRecord, StagedLayer
from sampan.storage.tar_reader import FileStream

if TYPE_CHECKING:
    from sampan.storage.tar import Limits, Readable


class ErofsSnapshotter(OverlaySnapshotter):
    """Layers as an index over their own tar."""

    name: ClassVar[str] = "erofs"

    def stage(
        self, layer: Readable, *, limits: Limits | None = None, blob: str = ""
    ) -> StagedLayer:
        path = self._new_staging()
        tar = -1
        try:
            tar, stream = take_tar(path, layer, blob)
            try:
                indexed = write_index(path, tar, stream, limits)
            except NotIndexable:
                staged = super().stage(FileStream(tar), limits=limits)
                self._discard(path)
                return staged
            os.mkdir(os.path.join(path, SHOWN), 0o755)
            tree = indexed.tree
            record = LayerRecord(
                parent=None,
                bytes=tree.bytes,
                inodes=indexed.inodes,
                form="erofs",
                link="",
                opaque=tree.opaque_root,
                has_root=tree.root_seen,
            )
            return StagedLayer(self, path, record)
        except BaseException:
            self._discard(path)
            raise
        finally:
            if tar >= 0:
                os.close(tar)
