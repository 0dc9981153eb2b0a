"""Indexing a layer must show exactly what extracting it makes, and refuse exactly what extracting refuses."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.storage import erofs_mount
from sampan.storage.erofs_layers import ErofsSnapshotter
from sampan.storage.overlay import OverlaySnapshotter
from sampan.storage.pack import PackRules, archive, pack
from sampan.storage.snapshots import apply_layer
from sampan.storage.tar import CHAR, DIRECTORY, FIFO, FILE, LINK, SYMLINK, Entry, TarError
from sampan.storage.tar_reader import TarReader
from sampan.storage.tar_writer import END, header, padded
from tests.conftest import require
from tests.unit.storage.tarkit import directory, file, hardlink, octal, pax, raw, symlink
from tests.unit.storage.test_extract_hostile import CASES

ID = "sha256:" + "a" * 64


@pytest.fixture(scope="module", autouse=True)
def _needs_erofs(tmp_path_factory: pytest.TempPathFactory) -> None:
    why_not = erofs_mount.probe(tmp_path_factory.mktemp("probe"))
    require(not why_not, f"file-backed erofs: {why_not}")


@pytest.fixture
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    assert str(path) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(path, ignore_errors=True)


def shown(driver: OverlaySnapshotter) -> bytes | str:
    """A layer's tree as a tar, or why there is none. Times of what the archive does not list are left out."""
    fd = os.open(driver.layer_path(ID), os.O_RDONLY)
    try:
        return b"".join(archive(pack(fd, with_root=True, rules=PackRules(whiteouts=True))))
    finally:
        os.close(fd)


def both(base: Path, tar: bytes) -> tuple[bytes | str, bytes | str]:
    results: list[bytes | str] = []
    for kind in (OverlaySnapshotter, ErofsSnapshotter):
        driver = kind(base / kind.name)
        try:
            apply_layer(driver, ID, None, io.BytesIO(tar))
            results.append(shown(driver))
        except TarError as error:
            results.append(error.problem.partition(":")[0])
            assert driver.sweep() == 0
        finally:
            driver.sync()  # its thread takes marks away, which must not race with our own clearing up
            driver.close()
    return results[0], results[1]


def facts(tar: bytes | str, implied: set[bytes]) -> object:
    if isinstance(tar, str):
        return tar
    reader = TarReader(io.BytesIO(tar))
    return [
        (e.name, e.kind, e.mode, e.uid, e.gid, e.size, e.linkname, e.xattrs, e.major, e.minor, reader.read(1 << 24), e.name in implied or e.mtime_ns)
        for e in reader
    ]  # fmt: skip


def implied_directories(extracted: bytes | str, tar: bytes) -> set[bytes]:
    """Directories that no entry names: extraction stamps them with the present."""
    if isinstance(extracted, str):
        return set()
    listed: set[bytes] = set()
    try:
        for entry in TarReader(io.BytesIO(tar)):
            if entry.kind == DIRECTORY:
                listed.add(entry.name.strip(b"/"))
    except TarError:
        pass
    found = {entry.name for entry in TarReader(io.BytesIO(extracted)) if entry.kind == DIRECTORY}
    return {name for name in found if name.strip(b"/") not in listed} | {b"./"}


@pytest.mark.parametrize("case", CASES)
def test_hostile_archives_are_treated_alike(base: Path, case: str) -> None:
    outside = base / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    tar = CASES[case](os.fsencode(outside)) + END
    extracted, indexed = both(base, tar)
    assert type(extracted) is type(indexed), (extracted, indexed)
    if isinstance(extracted, bytes):
        implied = {e.name for e in TarReader(io.BytesIO(extracted)) if e.kind in (DIRECTORY, LINK)}
        assert facts(extracted, implied) == facts(indexed, implied)


SPECIAL = {
    "long names in full directories": b"".join(file(b"d/" + b"%03d" % n + b"n" * 200, b"x") for n in range(300)),
    "name of 255 bytes": file(b"n" * 255, b"1") + directory(b"d") + file(b"d/" + b"m" * 255),
    "names that sort around dots": b"".join(file(b"d/" + name) for name in (b"!", b"-", b"..a", b".a", b"...", b"0", b"\xff", b"\x01")),
    "link targets short and long": b"".join(symlink(b"l%d" % n, b"t" * n) for n in (1, 59, 60, 100, 383, 384, 385, 447, 448, 449, 511, 512, 513, 2000, 4000)),
    "many links in a row": b"".join(symlink(b"s%04d" % n, b"x" * (n % 450 + 1)) for n in range(1200)),
    "xattrs small and large": header(Entry(b"f", xattrs={b"user.a": b"", b"user.bb": b"1", b"security.capability": bytes.fromhex("0100000200200000000000000000000000000000"), b"user.big": b"v" * 2000})) + header(Entry(b"d", DIRECTORY, xattrs={b"user.x": b"y" * 300})),
    "foreign xattrs": header(Entry(b"f", xattrs={b"trusted.overlay.redirect": b"/etc", b"user.overlay.opaque": b"y", b"odd.name": b"1", b"user.ok": b"1"})) + header(Entry(b"l", SYMLINK, linkname=b"f", xattrs={b"user.no": b"1"})),
    "devices": header(Entry(b"a", CHAR, major=4095, minor=1048575, mode=0o600)) + header(Entry(b"b", b"4", major=8, minor=256)) + header(Entry(b"p", FIFO, mode=0o640)),
    "modes and owners": header(Entry(b"s", mode=0o7777, uid=4294967294, gid=70000)) + header(Entry(b"t", DIRECTORY, mode=0o3000, uid=1)),
    "times": header(Entry(b"old", mtime_ns=-1_000_000_001)) + header(Entry(b"new", mtime_ns=4_000_000_000_123_456_789)) + header(Entry(b"d", DIRECTORY, mtime_ns=999)),
    "hard links to all kinds": file(b"f", b"1") + hardlink(b"g", b"f") + symlink(b"l", b"f") + hardlink(b"m", b"l") + header(Entry(b"p", FIFO)) + hardlink(b"q", b"p"),
    "sizes around blocks": b"".join(file(b"f%d" % n, b"z" * n) for n in (0, 1, 511, 512, 513, 4095, 4096, 4097, 100_000)),
    "whiteouts": directory(b"d") + file(b"d/.wh.x") + file(b"e/.wh..wh..opq") + file(b".wh.y") + file(b".wh.d") + file(b".wh.z") + directory(b"z") + file(b".wh.w") + file(b"w/in", b"1"),
    "later entries replace": file(b"a", b"1") + directory(b"a") + file(b"a/b", b"2") + symlink(b"a", b"c") + directory(b"c") + file(b"a/d", b"3") + directory(b"c", 0o700),
    "root facts": directory(b"./", 0o711) + file(b"./x", b"1"),
    "sparse file": pax([(b"GNU.sparse.size", b"100000"), (b"GNU.sparse.map", b"512,3,90000,2")]) + raw(b"s", size=octal(5), data=b"abcde") + file(b"after", b"1"),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", SPECIAL)
def test_every_kind_of_entry_comes_out_the_same(base: Path, case: str) -> None:
    tar = SPECIAL[case] + END
    extracted, indexed = both(base, tar)
    assert isinstance(indexed, bytes)
    implied = implied_directories(extracted, tar)
    if case == "later entries replace":
        implied.add(b"c/")
    assert facts(extracted, implied) == facts(indexed, implied)


parts = st.sampled_from(
    [b"a", b"b", b"c", b"d", b"..", b".", b".wh.a", b".wh.b", b".wh..wh..opq", b"long" * 40]
)
paths = st.lists(parts, min_size=1, max_size=4).map(b"/".join)


@st.composite
def wild_archives(draw: st.DrawFn) -> bytes:
    """Entries in any order, replacing, linking and hiding each other, some of them impossible."""
    found: list[bytes] = []
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from([FILE, FILE, DIRECTORY, DIRECTORY, SYMLINK, LINK, FIFO]))
        data = draw(st.binary(max_size=700)) if kind == FILE else b""
        entry = Entry(
            draw(paths), kind, mode=draw(st.sampled_from([0o755, 0o4711, 0o600])), size=len(data)
        )
        entry.mtime_ns = draw(st.sampled_from([0, 1, 10**18]))
        if kind in (SYMLINK, LINK):
            entry.linkname = draw(st.one_of(paths, paths.map(lambda p: b"/" + p)))
        found.append(header(entry) + padded(data))
    return b"".join(found) + END


@given(wild_archives())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_archive_is_shown_as_extracting_would_show_it(tar: bytes) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        extracted, indexed = both(base, tar)
        assert type(extracted) is type(indexed), (extracted, indexed)
        if isinstance(extracted, bytes):
            # extraction's clock shows on directories it made, and on those changed after their times were set
            implied = {e.name for e in TarReader(io.BytesIO(extracted)) if e.kind == DIRECTORY}
            assert facts(extracted, implied) == facts(indexed, implied)
    finally:
        shutil.rmtree(base)


class TestForms:
    def test_other_driver_shows_indexed_layers(self, base: Path) -> None:
        first = ErofsSnapshotter(base / "root")
        apply_layer(first, ID, None, io.BytesIO(file(b"f", b"content") + END))
        first.close()
        second = OverlaySnapshotter(base / "root")
        second.prepare("c", ID, init=False)
        fd = second.open_root("c")
        assert os.listdir(fd) == ["f"]
        os.close(fd)
        second.close()

    def test_kernel_without_erofs_unpacks_on_first_use(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = ErofsSnapshotter(base / "root")
        apply_layer(first, ID, None, io.BytesIO(file(b"f", b"content") + END))
        first.close()

        def refuse(directory: str) -> None:
            raise OSError(19, "No such device")

        monkeypatch.setattr("sampan.storage.stack.mount_layer", refuse)
        second = OverlaySnapshotter(base / "root")
        assert (Path(second.layer_path(ID)) / "f").read_bytes() == b"content"
        assert second.layer_tar(ID) is None
        assert second.sweep() == 0
        monkeypatch.undo()
        assert OverlaySnapshotter(base / "root").usage(ID).bytes == 7

    def test_original_tar_is_kept_bit_by_bit(self, base: Path) -> None:
        tar = file(b"f", b"content") + END + bytes(10240)
        driver = ErofsSnapshotter(base / "root")
        apply_layer(driver, ID, None, io.BytesIO(tar))
        kept = driver.layer_tar(ID)
        assert kept is not None
        with kept:
            assert kept.read() == tar
        driver.close()

    def test_uncompressed_blob_is_shared_not_copied(self, base: Path) -> None:
        blob = base / "blob"
        blob.write_bytes(file(b"f", b"x" * 5000) + END)
        driver = ErofsSnapshotter(base / "root")
        with driver.stage(io.BytesIO(b""), blob=str(blob)) as staged:
            staged.publish(ID, None)
        assert blob.stat().st_nlink == 2
        driver.close()

    def test_running_mount_survives_close_and_removal_of_the_driver(self, base: Path) -> None:
        driver = ErofsSnapshotter(base / "root")
        apply_layer(driver, ID, None, io.BytesIO(file(b"f", b"content") + END))
        driver.prepare("c", ID, init=False)
        fd = driver.open_root("c", writable=True)
        driver.close()
        inner = os.open("f", os.O_RDONLY, dir_fd=fd)
        assert os.read(inner, 100) == b"content"
        os.close(inner)
        os.close(fd)

    def test_setuid_files_keep_their_bit_under_overlay(self, base: Path) -> None:
        driver = ErofsSnapshotter(base / "root")
        apply_layer(driver, ID, None, io.BytesIO(file(b"su", b"#!", mode=0o4755) + END))
        driver.prepare("c", ID, init=False)
        fd = driver.open_root("c")
        assert os.stat("su", dir_fd=fd).st_mode & stat.S_ISUID
        assert not os.fstatvfs(fd).f_flag & os.ST_NOSUID
        os.close(fd)
        driver.close()
