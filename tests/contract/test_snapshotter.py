"""What every snapshotter promises, run over each of them. A new driver is one line in `DRIVERS`."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sampan.errors import Conflict, InvalidArgument, NotFound, Unsupported
from sampan.storage import erofs_mount, overlay
from sampan.storage.erofs_layers import ErofsSnapshotter
from sampan.storage.layers import ADDED, DELETED, MODIFIED, Change
from sampan.storage.overlay import OverlaySnapshotter
from sampan.storage.snapshots import Snapshotter, apply_layer, chain_ids
from sampan.storage.tar import CHAR, Entry, TarError
from sampan.storage.tar_reader import TarReader
from sampan.storage.tar_writer import END, header
from sampan.storage.vfs import VfsSnapshotter
from tests.conftest import require
from tests.unit.storage.tarkit import directory, file, hardlink, symlink

pytestmark = pytest.mark.root

DRIVERS: dict[str, tuple[type, Callable[[Path], str]]] = {
    "overlay": (OverlaySnapshotter, overlay.probe),
    "erofs": (ErofsSnapshotter, erofs_mount.probe),
    "vfs": (VfsSnapshotter, lambda path: ""),
}

BASE = (
    directory(b"bin")
    + file(b"bin/sh", b"#!", mode=0o4755)
    + hardlink(b"bin/ash", b"bin/sh")
    + symlink(b"lib", b"usr/lib")
    + file(b"usr/lib/libc", b"c" * 5000)
    + file(b"etc/passwd", b"root", mtime_ns=1_600_000_000_987_654_321)
    + file(b"etc/old", b"old")
    + file(b"opt/app/one", b"1")
    + file(b"opt/app/two", b"2")
)
TOP = (
    file(b"etc/.wh.old")
    + file(b"opt/app/.wh..wh..opq")
    + file(b"opt/app/three", b"3")
    + file(b"etc/passwd", b"changed")
)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Snapshotter]:
    kind, probe = DRIVERS[request.param]
    why_not = probe(tmp_path)
    require(not why_not, f"{request.param}: {why_not}")
    snapshotter: Snapshotter = kind(tmp_path / "root")
    yield snapshotter
    snapshotter.close()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def reopen(driver: Snapshotter) -> Snapshotter:
    return type(driver)(driver.root)  # type: ignore[attr-defined, no-any-return]


def tar(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def diff_id(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def put(driver: Snapshotter, *layers: bytes) -> list[str]:
    """Layers given as entries, bottom first; returns their chain ids."""
    archives = [tar(layer) for layer in layers]
    ids = chain_ids([diff_id(archive) for archive in archives])
    for number, archive in enumerate(archives):
        apply_layer(
            driver,
            ids[number],
            ids[number - 1] if number else None,
            io.BytesIO(archive),
            diff_id=diff_id(archive),
        )
    return ids


@contextmanager
def root_of(driver: Snapshotter, key: str, *, writable: bool = False) -> Iterator[int]:
    fd = driver.open_root(key, writable=writable)
    try:
        yield fd
    finally:
        os.close(fd)


def read(fd: int, path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
    try:
        return os.read(file, 1 << 20)
    finally:
        os.close(file)


def write(fd: int, path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=fd)
    os.write(file, data)
    os.close(file)


def listing(fd: int, path: str = ".") -> set[str]:
    inner = os.open(path, os.O_RDONLY, dir_fd=fd)
    try:
        return set(os.listdir(inner))
    finally:
        os.close(inner)


def names(chunks: Iterator[bytes]) -> list[bytes]:
    return [entry.name for entry in TarReader(io.BytesIO(b"".join(chunks)))]


class TestLayers:
    def test_what_was_put_in_is_shown(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.prepare("c", base, init=False)
        with root_of(driver, "c") as fd:
            assert listing(fd) == {"bin", "lib", "usr", "etc", "opt"}
            assert read(fd, "usr/lib/libc") == b"c" * 5000
            assert os.readlink("lib", dir_fd=fd) == "usr/lib"
            sh = os.stat("bin/sh", dir_fd=fd)
            assert stat.S_IMODE(sh.st_mode) == 0o4755
            assert os.stat("etc/passwd", dir_fd=fd).st_mtime_ns == 1_600_000_000_987_654_321

    def test_upper_layer_hides_and_replaces(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        driver.prepare("c", ids[-1], init=False)
        with root_of(driver, "c") as fd:
            assert listing(fd, "etc") == {"passwd"}
            assert read(fd, "etc/passwd") == b"changed"
            assert listing(fd, "opt/app") == {"three"}
        driver.prepare("d", ids[0], init=False)
        with root_of(driver, "d") as fd:
            assert listing(fd, "opt/app") == {"one", "two"}

    def test_layer_that_hides_everything_below(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, file(b".wh..wh..opq") + file(b"only", b"1"))
        driver.prepare("c", ids[-1], init=False)
        with root_of(driver, "c") as fd:
            assert listing(fd) == {"only"}

    def test_many_layers(self, driver: Snapshotter) -> None:
        ids = put(driver, *(file(b"layer%d" % number, b"%d" % number) for number in range(127)))
        driver.prepare("c", ids[-1], init=False)
        with root_of(driver, "c") as fd:
            assert len(listing(fd)) == 127

    def test_same_layer_twice_is_a_success(self, driver: Snapshotter) -> None:
        assert put(driver, BASE) == put(driver, BASE)
        assert [snapshot.kind for snapshot in driver.walk()] == ["layer"]

    def test_wrong_diff_id_leaves_nothing(self, driver: Snapshotter) -> None:
        with pytest.raises(InvalidArgument, match="wrong diff id"):
            apply_layer(
                driver,
                "sha256:" + "0" * 64,
                None,
                io.BytesIO(tar(BASE)),
                diff_id="sha256:" + "1" * 64,
            )
        assert list(driver.walk()) == []
        assert driver.sweep() == 0

    @pytest.mark.parametrize("bad", [file(b"../x", b"1"), hardlink(b"a", b"b"), b"garbage" * 100])
    def test_bad_archive_leaves_nothing(self, driver: Snapshotter, bad: bytes) -> None:
        with pytest.raises(TarError):
            apply_layer(driver, "sha256:" + "0" * 64, None, io.BytesIO(tar(BASE)[:-1024] + bad))
        assert list(driver.walk()) == []
        assert driver.sweep() == 0

    def test_staged_but_never_published_leaves_nothing(self, driver: Snapshotter) -> None:
        with driver.stage(io.BytesIO(tar(BASE))):
            pass
        assert driver.sweep() == 0

    def test_layers_arrive_in_any_order_and_at_once(self, driver: Snapshotter) -> None:
        archives = [tar(file(b"f%d" % number, b"x" * 100_000)) for number in range(8)]
        ids = chain_ids([diff_id(archive) for archive in archives])
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(
                    apply_layer, driver, ids[n], ids[n - 1] if n else None, io.BytesIO(archives[n])
                )
                for n in reversed(range(8))
            ]
            for job in jobs:
                job.result()
        driver.prepare("c", ids[-1], init=False)
        with root_of(driver, "c") as fd:
            assert len(listing(fd)) == 8

    def test_one_layer_from_many_threads(self, driver: Snapshotter) -> None:
        archive = tar(BASE)
        barrier = threading.Barrier(6)

        def work() -> None:
            barrier.wait()
            apply_layer(driver, diff_id(archive), None, io.BytesIO(archive))

        with ThreadPoolExecutor(6) as pool:
            for job in [pool.submit(work) for _ in range(6)]:
                job.result()
        assert len(list(driver.walk())) == 1
        assert driver.sweep() == 0

    def test_blob_that_is_the_tar_may_be_shared(self, driver: Snapshotter, tmp_path: Path) -> None:
        archive = tar(BASE)
        blob = tmp_path / "blob"
        blob.write_bytes(archive)
        apply_layer(
            driver,
            diff_id(archive),
            None,
            io.BytesIO(archive),
            diff_id=diff_id(archive),
            blob=str(blob),
        )
        blob.unlink()  # a collected blob must not take the layer along
        driver.prepare("c", diff_id(archive), init=False)
        with root_of(driver, "c") as fd:
            assert read(fd, "usr/lib/libc") == b"c" * 5000

    def test_usage_is_the_sum_of_file_sizes(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        assert driver.usage(base).bytes == 2 + 5000 + 4 + 3 + 1 + 1

    def test_root_directory_of_the_image_is_kept(self, driver: Snapshotter) -> None:
        ids = put(driver, directory(b"./", 0o711) + file(b"a", b"1"), file(b"b", b"1"))
        driver.prepare("c", ids[-1])
        with root_of(driver, "c") as fd:
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o711


class TestActive:
    def test_starts_without_changes(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.prepare("c", base)
        assert driver.is_pristine("c")
        assert driver.changes("c") == []
        assert names(driver.diff("c")) == []

    def test_init_layer_gives_mount_points_that_are_no_changes(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.prepare("c", base)
        with root_of(driver, "c") as fd:
            assert {"dev", "proc", "sys", ".dockerenv", "etc"} <= listing(fd)
            assert {"hosts", "hostname", "resolv.conf", "mtab", "passwd"} <= listing(fd, "etc")
            assert listing(fd, "dev") == {"console", "pts", "shm"}
        assert driver.changes("c") == []

    def test_init_layer_leaves_links_of_the_image_alone(self, driver: Snapshotter) -> None:
        [base] = put(
            driver,
            symlink(b"proc", b"/etc") + symlink(b"dev", b"/nowhere") + file(b"etc/hosts", b"mine"),
        )
        driver.prepare("c", base)
        with root_of(driver, "c") as fd:
            assert os.readlink("proc", dir_fd=fd) == "/etc"
            assert os.readlink("dev", dir_fd=fd) == "/nowhere"
            assert read(fd, "etc/hosts") == b"mine"

    def test_without_a_parent(self, driver: Snapshotter) -> None:
        driver.prepare("c", None, init=False)
        with root_of(driver, "c", writable=True) as fd:
            assert listing(fd) == set()
            write(fd, "x", b"1")
        assert driver.changes("c") == [Change("/x", ADDED)]

    def test_writes_are_seen_and_stay_private(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        for key in ("c", "d"):
            driver.prepare(key, base)
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "etc/passwd", b"mine")
            write(fd, "new", b"n")
            os.unlink("etc/old", dir_fd=fd)
        with root_of(driver, "d") as fd:
            assert read(fd, "etc/passwd") == b"root"
            assert "old" in listing(fd, "etc")
        assert set(driver.changes("c")) == {
            Change("/etc", MODIFIED),
            Change("/etc/passwd", MODIFIED),
            Change("/etc/old", DELETED),
            Change("/new", ADDED),
        }
        assert sorted(names(driver.diff("c"))) == [b"etc/", b"etc/.wh.old", b"etc/passwd", b"new"]
        assert not driver.is_pristine("c")

    def test_diff_is_reproducible(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.prepare("c", base)
        with root_of(driver, "c", writable=True) as fd:
            for name in ("b", "a", "c"):
                write(fd, name, name.encode())
        assert b"".join(driver.diff("c")) == b"".join(driver.diff("c"))

    def test_commit_makes_a_layer_of_the_changes(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.prepare("c", base)
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "new", b"n")
            os.unlink("etc/old", dir_fd=fd)
        layer = b"".join(driver.diff("c"))
        top = chain_ids([base, diff_id(layer)])[-1]
        driver.commit("c", top)
        assert not driver.exists("c")
        assert driver.stat(top).parent == base
        assert b"".join(driver.diff(top)) == layer
        driver.prepare("d", top, init=False)
        with root_of(driver, "d") as fd:
            assert read(fd, "new") == b"n"
            assert listing(fd, "etc") == {"passwd"}

    def test_commit_to_a_name_that_is_there_drops_the_snapshot(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        driver.prepare("c", ids[0])
        driver.commit("c", ids[1])
        assert not driver.exists("c")
        assert driver.usage(ids[1]).bytes == len(b"3changed")

    def test_key_is_taken_once(self, driver: Snapshotter) -> None:
        driver.prepare("c", None)
        with pytest.raises(Conflict):
            driver.prepare("c", None)

    def test_unknown_parent(self, driver: Snapshotter) -> None:
        with pytest.raises(NotFound):
            driver.prepare("c", "sha256:" + "0" * 64)
        assert driver.sweep() == 0

    @pytest.mark.parametrize("key", ["", "..", "a/b", "/abs", "-x", ".hidden", "a\0b", "a" * 200])
    def test_key_cannot_be_a_path(self, driver: Snapshotter, key: str) -> None:
        with pytest.raises(InvalidArgument):
            driver.prepare(key, None)

    def test_size_is_kept(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        if driver.name == "vfs":
            with pytest.raises(Unsupported):
                driver.prepare("c", base, size_bytes=64 << 20)
            return
        with pytest.raises(InvalidArgument, match="below the minimum"):
            driver.prepare("c", base, size_bytes=1 << 20)
        driver.prepare("c", base, size_bytes=32 << 20)
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "small", b"1")
            with pytest.raises(OSError, match="No space left"):
                for number in range(40):
                    write(fd, f"big{number}", bytes(1 << 20))
            for number in range(40):
                with suppress(FileNotFoundError):
                    os.unlink(f"big{number}", dir_fd=fd)
        assert reopen(driver).changes("c") == [Change("/small", ADDED)]
        driver.commit("c", "sha256:" + "c" * 64)
        assert driver.usage("sha256:" + "c" * 64).bytes == 1
        assert driver.sweep() == 0

    def test_view_cannot_be_written(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        driver.view("v", base)
        assert driver.stat("v").kind == "view"
        assert "ro" in driver.mounts("v")[0]["options"]
        with pytest.raises(Conflict):
            driver.commit("v", "sha256:" + "0" * 64)

    def test_view_mounts_need_no_key(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        [mount] = driver.view_mounts(ids[-1])
        assert "ro" in mount["options"]
        assert driver.view_mounts(ids[-1]) == [mount]

    def test_usage_of_what_was_written(self, driver: Snapshotter) -> None:
        driver.prepare("c", None, init=False)
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "x", b"y" * 12345)
        assert driver.usage("c").bytes == 12345

    def test_capabilities_and_devices_survive_a_commit(self, driver: Snapshotter) -> None:
        capability = bytes.fromhex("0100000200200000000000000000000000000000")
        entry = Entry(b"ping", mode=0o755, xattrs={b"security.capability": capability})
        [base] = put(
            driver, header(entry) + header(Entry(b"dev0", CHAR, major=7, minor=300, mode=0o620))
        )
        driver.prepare("c", base, init=False)
        with root_of(driver, "c") as fd:
            assert os.getxattr(f"/proc/self/fd/{fd}/ping", "security.capability") == capability
            device = os.stat("dev0", dir_fd=fd)
            assert (device.st_rdev, stat.S_IMODE(device.st_mode)) == (os.makedev(7, 300), 0o620)


class TestRemove:
    def test_takes_everything_away(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        driver.prepare("c", ids[-1])
        driver.view_mounts(ids[-1])
        for name in ("c", *reversed(ids)):
            driver.remove(name)
        assert list(driver.walk()) == []
        left = [path for path, _, files in os.walk(driver.root) for _ in files]  # type: ignore[attr-defined]
        assert left == [driver.root]  # type: ignore[attr-defined]  # "version"

    def test_not_what_others_stand_on(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        driver.prepare("c", ids[-1])
        for name in ids:
            with pytest.raises(Conflict):
                driver.remove(name)

    def test_unknown_name(self, driver: Snapshotter) -> None:
        with pytest.raises(NotFound):
            driver.remove("nobody")

    def test_never_follows_a_link(self, driver: Snapshotter, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        canary.mkdir()
        (canary / "file").write_text("precious")
        driver.prepare("c", None)
        with root_of(driver, "c", writable=True) as fd:
            os.symlink(canary, "link", dir_fd=fd)
        driver.remove("c")
        assert (canary / "file").read_text() == "precious"

    def test_very_deep_trees(self, driver: Snapshotter) -> None:
        driver.prepare("c", None)
        with root_of(driver, "c", writable=True) as fd:
            current = os.dup(fd)
            for _ in range(1500):
                os.mkdir("d", dir_fd=current)
                deeper = os.open("d", os.O_RDONLY, dir_fd=current)
                os.close(current)
                current = deeper
            os.close(current)
        driver.remove("c")
        assert not driver.exists("c")


def test_many_hands_at_once_leave_nothing_behind(driver: Snapshotter) -> None:
    archives = [tar(file(b"f%d" % number, b"x" * 2000)) for number in range(3)]
    ids = [diff_id(archive) for archive in archives]

    def work(hand: int) -> None:
        for step in range(12):
            number, key = (hand + step) % 3, f"k{hand}-{step}"
            try:
                apply_layer(driver, ids[number], None, io.BytesIO(archives[number]))
                driver.prepare(key, ids[number])
                with root_of(driver, key, writable=True) as fd:
                    assert f"f{number}" in listing(fd)
                driver.remove(key)
                driver.remove(ids[number])
            except (Conflict, NotFound):  # another hand was faster, which is as it should be
                with suppress(NotFound):
                    driver.remove(key)

    with ThreadPoolExecutor(5) as pool:
        for job in [pool.submit(work, hand) for hand in range(5)]:
            job.result()
    for snapshot in sorted(driver.walk(), key=lambda found: found.kind == "layer"):
        driver.remove(snapshot.name)
    assert driver.sweep() == 0


class TestRestart:
    def test_everything_is_found_again(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE, TOP)
        driver.prepare("c", ids[-1])
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "x", b"1")
        again = reopen(driver)
        assert sorted(again.walk()) == sorted(driver.walk())
        assert Change("/x", ADDED) in again.changes("c")
        with pytest.raises(Conflict):
            again.remove(ids[-1])
        again.close()

    def test_half_made_things_are_swept(self, driver: Snapshotter) -> None:
        staged = driver.stage(io.BytesIO(tar(BASE)))
        again = reopen(driver)
        assert list(again.walk()) == []
        assert again.sweep() == 1
        staged.discard()

    def test_commit_that_was_cut_off_is_undone(self, driver: Snapshotter) -> None:
        driver.prepare("c", None, init=False)
        with root_of(driver, "c", writable=True) as fd:
            write(fd, "x", b"1")
        active = Path(driver.root, "active/c")  # type: ignore[attr-defined]
        if (active / "upper").exists():
            (active / "upper").rename(active / "fs")
        assert reopen(driver).changes("c") == [Change("/x", ADDED)]

    def test_links_of_layers_that_never_came_are_swept(self, driver: Snapshotter) -> None:
        [base] = put(driver, BASE)
        links = Path(driver.root, "l")  # type: ignore[attr-defined]
        os.symlink("../layers/nobody/fs", links / "zzzz")
        reopen(driver).sweep()
        assert len(os.listdir(links)) == 1
        driver.prepare("c", base)
        with root_of(driver, "c") as fd:
            assert "usr" in listing(fd)

    def test_damaged_layer_record_is_put_aside(self, driver: Snapshotter) -> None:
        ids = put(driver, BASE)
        record = Path(driver.root, "layers", ids[0][7:], "layer.json")  # type: ignore[attr-defined]
        record.write_bytes(b"{")
        again = reopen(driver)
        assert not again.exists(ids[0])
        again.sweep()
        put(again, BASE)
        again.prepare("c", ids[0])
        again.close()

    def test_layer_that_was_not_synced_before_a_power_loss_is_dropped(
        self, driver: Snapshotter
    ) -> None:
        ids = put(driver, BASE)
        driver.sync()  # type: ignore[attr-defined]
        mark = Path(driver.root, "layers", ids[0][7:], "unsynced")  # type: ignore[attr-defined]
        assert not mark.exists()
        mark.write_text("another-boot")
        assert not reopen(driver).exists(ids[0])
