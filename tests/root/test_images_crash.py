"""An engine's store dies before its N-th step of a load, a tag, a removal, a prune: the next start has it right.

Every file that is made, renamed, linked, removed or synced is a step (`tests.support.crashing`). For each N a process works
until it is dead; another opens the store, reads all of it, does the same work again and compares what is there.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.images import archive, removal
from sampan.images.catalog import Catalog
from sampan.images.unpack import ensure
from sampan.images.verify import verify
from sampan.storage import erofs_mount
from sampan.storage.blobs import BlobStore
from sampan.storage.drivers import open_snapshotter
from tests.conftest import require
from tests.support import oci
from tests.support.crashing import Countdown, install

pytestmark = [pytest.mark.root, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
sys.path[:0] = [{src!r}, {root!r}]
from tests.root.test_images_crash import crash_everywhere
crash_everywhere(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""
BASE = oci.tar_bytes({"base/a": b"a" * 5000, "base/b": b"b"})
TOPS = [oci.tar_bytes({f"top/{n}": b"%d" % n * 700}) for n in range(3)]


def open_store(root: Path, driver: str) -> Catalog:
    blobs = BlobStore(root / "images")
    blobs.sweep()
    snapshots = open_snapshotter(root / "snapshots", driver)
    snapshots.sweep()
    return Catalog(blobs, snapshots)


def work(catalog: Catalog) -> None:
    """A name that moves, a second name, a removal, a prune of what is nameless then."""
    for number, top in enumerate(TOPS):
        image = oci.TestImage(layers=[BASE, top], compress=number != 1)
        name = "app:moves" if number < 2 else "app:stays"
        archive.load(catalog, io.BytesIO(oci.docker_archive((image, [name]))))
    catalog.tag("app:moves", "app:other")
    removal.delete(catalog, "app:moves")
    removal.prune(catalog, wanted=lambda image: True)


def check(root: Path, driver: str) -> None:
    catalog = open_store(root, driver)
    try:
        assert verify(catalog).damaged == []
        for image in catalog.images():
            ensure(catalog, image)
        work(catalog)
        assert sorted(t for one in catalog.images() for t in one.repo_tags) == [
            "app:other",
            "app:stays",
        ]
        assert {blob.digest for blob in catalog.blobs.walk()} == catalog.blob_digests()
        layers = {one.name for one in catalog.snapshots.walk()}
        assert layers == {c for one in catalog.images() for c in one.chain_ids}
        assert verify(catalog).damaged == []
    finally:
        catalog.snapshots.close()


def in_a_child(what: object, *arguments: object) -> int:
    """Exit status, or minus the signal. For a process without threads."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            what(*arguments)  # type: ignore[operator]
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def work_until(root: Path, driver: str, countdown: Path, steps: int) -> None:
    counter = Countdown(countdown)
    install(counter)
    counter.left = steps
    catalog = open_store(root, driver)
    work(catalog)
    counter.left = 0
    catalog.snapshots.close()


def crash_everywhere(base: str, driver: str, stride: int) -> None:
    """Prints how many points there were; raises at the first that is not survived."""
    root, points = Path(base) / "root", 0
    for steps in range(1, 100_000, stride):
        root.mkdir()
        ended = in_a_child(work_until, root, driver, Path(base) / "countdown", steps)
        assert ended in (0, -9), f"step {steps}: {ended}"
        assert in_a_child(check, root, driver) == 0, f"the store is wrong after step {steps}"
        shutil.rmtree(root)
        points += 1
        if ended == 0:
            print(points)
            return


@pytest.mark.parametrize("driver", ["erofs", "overlay", "vfs"])
def test_a_store_survives_its_death_at_any_step(driver: str, tmp_path: Path) -> None:
    if driver == "erofs":
        why_not = erofs_mount.probe(tmp_path)
        require(not why_not, f"file-backed erofs: {why_not}")
    code = RUN.format(src=str(ROOT / "src"), root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), driver, "11"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
