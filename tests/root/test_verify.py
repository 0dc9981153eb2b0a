"""`system verify` finds what a failing disk or a hand in the root directory did, and the store mends itself."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.images import archive
from sampan.images.catalog import Catalog, Image
from sampan.images.unpack import ensure
from sampan.images.verify import verify
from sampan.storage import erofs_mount
from sampan.storage.blobs import BlobStore
from sampan.storage.drivers import open_snapshotter
from sampan.storage.stack import LayerStore
from tests.conftest import require
from tests.support import oci

pytestmark = pytest.mark.root
LAYERS = [
    {"etc/passwd": b"root\n", "usr/share/x": b"x" * 9000},  # parents that no entry names
    {"etc/": b"", "etc/.wh.passwd": b"", "bin/": b"", "bin/sh": b"#!"},
]


@pytest.fixture(params=["overlay", "erofs", "vfs"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "erofs":
        why_not = erofs_mount.probe(tmp_path)
        require(not why_not, f"file-backed erofs: {why_not}")
    snapshots = open_snapshotter(tmp_path / "snapshots", request.param)
    yield Catalog(BlobStore(tmp_path / "images"), snapshots)
    snapshots.close()


@pytest.fixture(params=[True, False], ids=["gzip", "plain"])
def image(request: pytest.FixtureRequest, catalog: Catalog) -> Image:
    made = oci.TestImage(layers=[oci.tar_bytes(files) for files in LAYERS], compress=request.param)
    (loaded,) = archive.load(catalog, io.BytesIO(oci.docker_archive((made, ["app:1"]))))
    return loaded


def file_of(catalog: Catalog, image: Image, number: int) -> Path:
    """Something of a layer on disk: its tar where it is indexed, else one of its files."""
    assert isinstance(catalog.snapshots, LayerStore)
    directory = Path(catalog.snapshots.layer_path(image.chain_ids[number]))
    tar = directory.parent / "layer.tar"
    return tar if tar.exists() else directory / ("usr/share/x" if number == 0 else "bin/sh")


def damage(path: Path) -> None:
    """One bit, the length and the time as they were; a blob that shares the file is left alone."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    times = path.stat()
    if times.st_nlink > 1:
        path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_is_right_is_said_to_be(catalog: Catalog, image: Image) -> None:
    found = verify(catalog)
    assert (found.damaged, found.layers, found.blobs) == ([], 2, 4)


def test_an_unpacked_layer_that_differs_is_unpacked_again(catalog: Catalog, image: Image) -> None:
    damage(file_of(catalog, image, 1))
    [said] = verify(catalog).damaged
    assert image.chain_ids[1] in said and "removed" in said
    ensure(catalog, image)
    assert verify(catalog).damaged == []


def test_a_layer_that_a_container_stands_on_is_named_and_left(
    catalog: Catalog, image: Image
) -> None:
    catalog.snapshots.prepare("c1", image.chain_id)
    damage(file_of(catalog, image, 1))
    [said] = verify(catalog).damaged
    assert image.chain_ids[1] in said and "in use" in said
    assert catalog.snapshots.exists(image.chain_ids[1])
    catalog.snapshots.remove("c1")


def test_a_blob_that_differs_is_put_aside_and_what_lacks_it_named(
    catalog: Catalog, image: Image, tmp_path: Path
) -> None:
    layer = image.manifest.layers[0]
    damage(Path(catalog.blobs.path(layer.digest)))
    said = verify(catalog).damaged
    assert any(layer.digest in line and "put aside" in line for line in said)
    assert not catalog.blobs.has(layer.digest)
