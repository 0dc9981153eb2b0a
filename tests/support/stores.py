"""A catalogue of images on a directory, without an engine."""

from __future__ import annotations

from pathlib import Path

from sampan.images.catalog import Catalog
from sampan.storage.blobs import BlobStore
from sampan.storage.vfs import VfsSnapshotter


def open_catalog(root: Path) -> Catalog:
    """Opened again on the same directory, it is the same store after a restart."""
    return Catalog(BlobStore(root / "images"), VfsSnapshotter(root / "layers"))
