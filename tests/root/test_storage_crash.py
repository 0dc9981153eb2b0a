"""kill -9 at any moment of ingesting, unpacking, committing and removing leaves a store that is right on the next start."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.storage import erofs_mount
from sampan.storage.blobs import BlobStore
from sampan.storage.erofs_layers import ErofsSnapshotter
from sampan.storage.overlay import OverlaySnapshotter
from sampan.storage.snapshots import apply_layer, chain_ids
from sampan.storage.tar_writer import END
from sampan.storage.vfs import VfsSnapshotter
from tests.conftest import require
from tests.unit.storage.tarkit import file

DRIVERS = {"overlay": OverlaySnapshotter, "erofs": ErofsSnapshotter, "vfs": VfsSnapshotter}
ROOT = Path(__file__).resolve().parents[2]

# Says "ready", then works until it is killed.
WORKER = """
import io, os, sys
sys.path[:0] = [{src!r}, {root!r}]
from tests.root.test_storage_crash import DRIVERS, churn
os.write(1, b"ready")
churn(DRIVERS[sys.argv[1]](sys.argv[2]), sys.argv[3], int(sys.argv[4]))
"""


def layer(number: int) -> bytes:
    return b"".join(file(b"d%d/f%d" % (number, n), b"%d" % number * 3000) for n in range(40)) + END


def churn(driver: OverlaySnapshotter | VfsSnapshotter, blobs_root: str, seed: int) -> None:
    blobs = BlobStore(blobs_root)
    number = seed * 1000
    while True:
        number += 1
        data = layer(number)
        blob = blobs.put(data)
        apply_layer(
            driver,
            blob.digest,
            None,
            io.BytesIO(data),
            diff_id=blob.digest,
            blob=blobs.path(blob.digest),
        )
        driver.prepare(f"c{number}", blob.digest)
        fd = driver.open_root(f"c{number}", writable=True)
        os.close(os.open("written", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        if number % 2:
            driver.commit(f"c{number}", chain_ids([blob.digest, "sha256:" + "1" * 64])[-1])
        else:
            driver.remove(f"c{number}")
            driver.remove(blob.digest)
            blobs.delete(blob.digest)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIVERS)
def test_store_is_right_after_every_kill(name: str, tmp_path: Path) -> None:
    if name == "erofs":
        why_not = erofs_mount.probe(tmp_path)
        require(not why_not, f"file-backed erofs: {why_not}")
    chance = random.Random(name)
    root, blobs_root = tmp_path / "root", tmp_path / "images"
    code = WORKER.format(src=str(ROOT / "src"), root=str(ROOT))
    try:
        for seed in range(8):
            kill_one_worker(code, name, root, blobs_root, seed, chance.uniform(0.0, 0.25))
            check(name, root, blobs_root)
    finally:
        DRIVERS[name](root).close()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def kill_one_worker(
    code: str, name: str, root: Path, blobs_root: Path, seed: int, after_s: float
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code, name, str(root), str(blobs_root), str(seed)],
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.read(5) == b"ready"
        try:
            worker.wait(after_s)
        except subprocess.TimeoutExpired:
            pass
        worker.send_signal(signal.SIGKILL)


def check(name: str, root: Path, blobs_root: Path) -> None:
    blobs = BlobStore(blobs_root)
    blobs.sweep()
    assert list(blobs.verify()) == []
    assert os.listdir(blobs_root / "ingest") == []
    driver = DRIVERS[name](root)
    driver.sweep()
    assert os.listdir(root / "staging") == []
    for snapshot in list(driver.walk()):
        if snapshot.kind == "layer" and snapshot.parent is None:
            fd = os.open(driver.layer_path(snapshot.name), os.O_RDONLY)
            try:
                [top] = os.listdir(fd)
                inner = os.open(top, os.O_RDONLY, dir_fd=fd)
                assert len(os.listdir(inner)) == 40
                for entry in os.listdir(inner):
                    assert os.stat(entry, dir_fd=inner).st_size >= 3000
                os.close(inner)
            finally:
                os.close(fd)
        elif snapshot.kind == "active":
            driver.changes(snapshot.name)
            driver.remove(snapshot.name)
