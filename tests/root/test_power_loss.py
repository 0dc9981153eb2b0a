"""The power goes at any moment of loads and removals: what was answered is there, what is there is right.

    outer ext4, frozen for the moment of the cut
        disk.img ── loop ──► inner ext4: the store, and who works on it
            │ copied while frozen: what had reached the disk by then, and nothing that was still on its way
            ▼
        cut.img ── fsck, mount ──► the store, opened in "another boot" and compared with what it should be

Freezing (FIFREEZE, linux/fs.h) holds back every write of the loop device, so the copy is one moment's state of the disk.
"""

from __future__ import annotations

import fcntl
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sampan.images import archive, removal
from sampan.images.catalog import Catalog
from sampan.images.unpack import ensure
from sampan.storage import erofs_mount, stack
from sampan.storage.blobs import BlobStore
from sampan.storage.drivers import open_snapshotter
from tests.conftest import require
from tests.support import oci

pytestmark = [pytest.mark.root, pytest.mark.slow]
FREEZE, THAW = 0xC0045877, 0xC0045878
ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
sys.path[:0] = [{src!r}, {root!r}]
from tests.root.test_power_loss import work
work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


def open_store(root: Path, driver: str) -> Catalog:
    blobs = BlobStore(root / "images")
    blobs.sweep()
    snapshots = open_snapshotter(root / "snapshots", driver)
    snapshots.sweep()
    return Catalog(blobs, snapshots)


def contents(number: int) -> list[dict[str, bytes]]:
    """Three layers of files; the same number always gives the same."""
    source = random.Random(number)
    return [
        {f"l{n}/f{i}": source.randbytes(source.randrange(1, 40_000)) for i in range(20)}
        for n in range(3)
    ]


def image(number: int) -> oci.TestImage:
    layers = [oci.tar_bytes(files) for files in contents(number)]
    return oci.TestImage(layers=layers, compress=bool(number % 2))


def work(root: str, driver: str, seed: int) -> None:
    """Load and remove without end. `+N` is said when N is answered to be there, `-N` before it is removed."""
    catalog = open_store(Path(root), driver)
    chance, alive, number = random.Random(seed), [], seed * 1000
    while True:
        number += 1
        data = oci.docker_archive((image(number), [f"loss:{number}"]))
        archive.load(catalog, io.BytesIO(data))
        os.write(1, b"+%d\n" % number)
        alive.append(number)
        if len(alive) > 3:
            gone = alive.pop(chance.randrange(len(alive)))
            os.write(1, b"-%d\n" % gone)
            removal.delete(catalog, f"loss:{gone}")


@contextmanager
def mounted(disk: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", disk, where], check=True)
    try:
        yield where
    finally:
        unmount(where)
        where.rmdir()


def unmount(where: Path) -> None:
    """The kernel lets go of what was mounted from files in there a moment after their own unmount."""
    deadline = time.monotonic() + 60
    while subprocess.run(["umount", "-R", where], check=False, capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{where} stays busy"
        time.sleep(0.05)


def new_disk(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path


def cut_after(loads: int, worker: subprocess.Popen[bytes], disk: Path, target: Path) -> list[int]:
    """Copy the disk at one moment after so many loads; which images must be on the copy."""
    assert worker.stdout is not None
    said: list[int] = []
    enough = threading.Event()

    def listen() -> None:
        for line in worker.stdout or ():
            said.append(int(line))
            if sum(number > 0 for number in said) >= loads:
                enough.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert enough.wait(120), "the worker did not work"
    answered = [number for number in said if number > 0]
    fd = os.open(disk.parent, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FREEZE, 0)
        try:
            subprocess.run(["cp", "--sparse=always", disk, target], check=True)
        finally:
            fcntl.ioctl(fd, THAW, 0)
    finally:
        os.close(fd)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        listener.join()
    return [number for number in answered if -number not in said]


def check(root: Path, driver: str, answered: list[int]) -> None:
    catalog = open_store(root, driver)
    assert isinstance(catalog.snapshots, stack.LayerStore)
    try:
        assert list(catalog.blobs.verify()) == []
        found = {int(tag.split(":")[1]): one for one in catalog.images() for tag in one.repo_tags}
        assert set(answered) <= set(found)
        for number, one in found.items():
            ensure(catalog, one)
            for chain_id, files in zip(one.chain_ids, contents(number), strict=True):
                top = Path(catalog.snapshots.layer_path(chain_id))
                assert {name: (top / name).read_bytes() for name in files} == files
    finally:
        catalog.snapshots.close()


@pytest.mark.parametrize("driver", ["overlay", "erofs"])
def test_a_store_is_right_after_the_power_went(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("mkfs.ext4") is not None, "mkfs.ext4 is not installed")
    if driver == "erofs":
        why_not = erofs_mount.probe(tmp_path)
        require(not why_not, f"file-backed erofs: {why_not}")
    code = WORKER.format(src=str(ROOT / "src"), root=str(ROOT))
    chance = random.Random(driver)
    with mounted(new_disk(tmp_path / "outer.img", 900 << 20), tmp_path / "outer") as outer:
        for seed in range(1, 4):
            # new names each time: another mount namespace may keep the file system of before for a while
            disk = new_disk(outer / f"disk{seed}.img", 200 << 20)
            with mounted(disk, tmp_path / "store") as store:
                command = [sys.executable, "-c", code, str(store), driver, str(seed)]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
                    cut = tmp_path / f"cut{seed}.img"
                    answered = cut_after(chance.randrange(1, 9), worker, disk, cut)
            subprocess.run(["e2fsck", "-fy", cut], check=False, capture_output=True)
            with mounted(cut, tmp_path / "after") as after, monkeypatch.context() as patch:
                patch.setattr(stack, "boot_id", lambda: "another boot")
                check(after, driver, answered)


def test_a_start_that_lost_its_first_file_starts_again(tmp_path: Path) -> None:
    """The version was written, and the power went before it was on disk."""
    open_store(tmp_path, "vfs")
    (tmp_path / "snapshots/vfs/version").write_bytes(b"")
    assert open_store(tmp_path, "vfs").images() == []
