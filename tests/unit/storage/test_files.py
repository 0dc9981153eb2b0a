from __future__ import annotations

import io
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sampan.errors import Internal, InvalidArgument, NotFound
from sampan.storage.files import (
    Mounted,
    Place,
    export_tar,
    extract_into,
    go_mode,
    pack_path,
    stat_path,
)
from sampan.storage.tar_reader import TarReader
from tests.unit.storage.tarkit import directory, file, stream, symlink

IS_ROOT = os.geteuid() == 0


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else 0))
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/file").write_text("data")
    (root / "dir/sub/deep").write_text("deep")
    (root / "abs").symlink_to("/etc")
    (root / "rel").symlink_to("dir/sub")
    (root / "up").symlink_to("../../../../../../etc/passwd")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("/nowhere/at/all")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture
def place(root: Path) -> Iterator[Place]:
    before = len(os.listdir("/proc/self/fd"))
    with opened(root) as fd:
        yield Place(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def unpacked(chunks: Iterator[bytes]) -> dict[bytes, bytes]:
    reader = TarReader(io.BytesIO(b"".join(chunks)))
    return {entry.name: entry.linkname or reader.read(1 << 20) for entry in reader}


class TestStat:
    def test_file(self, place: Place) -> None:
        found = stat_path(place, "/dir/file")
        assert (found.name, found.size, found.link_target) == ("file", 4, "")
        assert found.mode == 0o644

    def test_directory_has_gos_bit(self, place: Place) -> None:
        assert stat_path(place, "dir").mode == 1 << 31 | 0o755

    @pytest.mark.parametrize(
        ("path", "target"),
        [
            ("/abs", "/etc"),
            ("/rel", "/dir/sub"),
            ("/up", "/etc/passwd"),
            ("/dangling", "/nowhere/at/all"),
        ],
    )
    def test_link_is_told_with_what_it_means_inside(
        self, place: Place, path: str, target: str
    ) -> None:
        found = stat_path(place, path)
        assert found.mode & 1 << 27
        assert found.link_target == target

    def test_path_through_links(self, place: Place) -> None:
        assert stat_path(place, "/abs/passwd").name == "passwd"
        assert stat_path(place, "/rel/../file").size == 4

    def test_dots_stop_at_the_root(self, place: Place) -> None:
        assert stat_path(place, "/../../../../etc/passwd").size == len("inside")

    @pytest.mark.parametrize(("path", "name"), [("/", "/"), ("/dir/", "dir"), ("/dir/.", "."), ("dir/sub/..", "dir"), ("/rel/", "rel")])  # fmt: skip
    def test_name_is_that_of_the_path(self, place: Place, path: str, name: str) -> None:
        assert stat_path(place, path).name == name

    @pytest.mark.parametrize("path", ["/nosuch", "/dir/file/x", "/nosuch/deeper", "/fifo/x"])
    def test_missing(self, place: Place, path: str) -> None:
        with pytest.raises(NotFound, match="Could not find the file"):
            stat_path(place, path)

    @pytest.mark.parametrize("path", ["/loop/x", "a\0b", "/" + "x" * 5000])
    def test_impossible(self, place: Place, path: str) -> None:
        with pytest.raises(InvalidArgument):
            stat_path(place, path)

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            (stat.S_IFREG | 0o4755, 1 << 23 | 0o755),
            (stat.S_IFREG | 0o2755, 1 << 22 | 0o755),
            (stat.S_IFDIR | 0o1777, 1 << 31 | 1 << 20 | 0o777),
            (stat.S_IFCHR | 0o666, 1 << 26 | 1 << 21 | 0o666),
            (stat.S_IFBLK | 0o660, 1 << 26 | 0o660),
            (stat.S_IFIFO | 0o644, 1 << 25 | 0o644),
            (stat.S_IFSOCK | 0o755, 1 << 24 | 0o755),
            (stat.S_IFLNK | 0o777, 1 << 27 | 0o777),
        ],
    )
    def test_modes_are_gos(self, mode: int, expected: int) -> None:
        assert go_mode(mode) == expected


class TestOut:
    def test_directory_is_named_after_itself(self, place: Place) -> None:
        assert unpacked(pack_path(place, "/dir")) == {
            b"dir/": b"",
            b"dir/file": b"data",
            b"dir/sub/": b"",
            b"dir/sub/deep": b"deep",
        }

    def test_contents_only(self, place: Place) -> None:
        assert set(unpacked(pack_path(place, "/dir/."))) == {
            b"./",
            b"./file",
            b"./sub/",
            b"./sub/deep",
        }

    def test_file_link_and_fifo_are_single_entries(self, place: Place) -> None:
        assert unpacked(pack_path(place, "/dir/file")) == {b"file": b"data"}
        assert unpacked(pack_path(place, "/abs")) == {b"abs": b"/etc"}
        assert unpacked(pack_path(place, "/fifo")) == {b"fifo": b""}

    def test_link_with_a_slash_is_followed_and_keeps_its_name(self, place: Place) -> None:
        assert unpacked(pack_path(place, "/rel/")) == {b"rel/": b"", b"rel/deep": b"deep"}

    def test_whole_root(self, place: Place) -> None:
        assert {b"/", b"/dir/", b"/etc/passwd"} <= set(unpacked(pack_path(place, "/")))

    def test_missing_is_told_before_the_first_byte(self, place: Place) -> None:
        with pytest.raises(NotFound):
            pack_path(place, "/nosuch")
        with pytest.raises(NotFound):
            pack_path(place, "/dir/file/")

    def test_export_has_no_leading_directory(self, root: Path) -> None:
        with opened(root) as fd:
            names = set(unpacked(export_tar(fd)))
        assert b"dir/sub/deep" in names
        assert b"./" not in names


class TestIn:
    def test_into_a_directory_through_links(self, place: Place, root: Path) -> None:
        extract_into(place, "/rel", stream(file(b"new", b"1")))
        assert (root / "dir/sub/new").read_text() == "1"
        extract_into(place, "/abs/", stream(file(b"new", b"2")))
        assert (root / "etc/new").read_text() == "2"

    def test_compressed(self, place: Place, root: Path) -> None:
        import gzip

        extract_into(place, "/dir", io.BytesIO(gzip.compress(stream(file(b"new", b"1")).read())))
        assert (root / "dir/new").exists()

    def test_not_into_a_file(self, place: Place) -> None:
        with pytest.raises(InvalidArgument, match="extraction point is not a directory"):
            extract_into(place, "/dir/file", stream(file(b"x")))
        with pytest.raises(NotFound):
            extract_into(place, "/nosuch", stream(file(b"x")))

    def test_directories_and_files_do_not_replace_each_other_when_asked(
        self, place: Place, root: Path
    ) -> None:
        with pytest.raises(
            InvalidArgument, match='cannot overwrite directory "/dir/sub" with non-directory "/dir"'
        ):
            extract_into(place, "/dir", stream(file(b"sub", b"x")), no_overwrite_dir_non_dir=True)
        with pytest.raises(
            InvalidArgument,
            match='cannot overwrite non-directory "/dir/file" with directory "/dir"',
        ):
            extract_into(place, "/dir", stream(directory(b"file")), no_overwrite_dir_non_dir=True)
        extract_into(place, "/dir", stream(file(b"sub", b"x")))
        assert (root / "dir/sub").read_text() == "x"

    def test_root_entry_changes_nothing(self, place: Place, root: Path) -> None:
        extract_into(place, "/dir", stream(directory(b"./", 0o700), file(b"./x", b"1")))
        assert stat.S_IMODE((root / "dir").stat().st_mode) == 0o755

    def test_names_that_look_like_whiteouts_are_plain(self, place: Place, root: Path) -> None:
        extract_into(place, "/dir", stream(file(b".wh.file", b"1")))
        assert (root / "dir/.wh.file").read_text() == "1"
        assert (root / "dir/file").exists()

    @pytest.mark.skipif(not IS_ROOT, reason="changes owners")
    def test_owner_may_be_set(self, place: Place, root: Path) -> None:
        extract_into(place, "/dir", stream(file(b"mine", b"1")), owner=(1234, 5678))
        info = (root / "dir/mine").stat()
        assert (info.st_uid, info.st_gid) == (1234, 5678)


class TestMounts:
    def test_volume_of_a_stopped_container(self, root: Path, tmp_path: Path) -> None:
        volume = tmp_path / "volume"
        (volume / "inner").mkdir(parents=True)
        (volume / "inner/file").write_text("of the volume")
        (root / "to-volume").symlink_to("/dir/sub/inner")
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1")
        with opened(root) as fd, opened(volume) as mounted, opened(hosts) as single:
            place = Place(fd, [Mounted("/dir/sub", mounted), Mounted("/etc/hosts", single, False)])
            assert stat_path(place, "/to-volume/file").size == len("of the volume")
            assert unpacked(pack_path(place, "/dir/sub/inner/file")) == {b"file": b"of the volume"}
            assert unpacked(pack_path(place, "/etc/hosts")) == {b"hosts": b"127.0.0.1"}
            assert set(unpacked(pack_path(place, "/dir/sub"))) == {
                b"sub/",
                b"sub/inner/",
                b"sub/inner/file",
            }
            extract_into(place, "/dir/sub", stream(file(b"new", b"1")))
        assert (volume / "new").exists()
        assert not (root / "dir/sub/new").exists()

    def test_read_only(self, root: Path, tmp_path: Path) -> None:
        volume = tmp_path / "volume"
        volume.mkdir()
        with opened(root) as fd, opened(volume) as mounted:
            place = Place(fd, [Mounted("/dir/sub", mounted, False)], writable=False)
            with pytest.raises(InvalidArgument, match="mounted volume is marked read-only"):
                extract_into(place, "/dir/sub", stream(file(b"x")))
            with pytest.raises(InvalidArgument, match="container rootfs is marked read-only"):
                extract_into(place, "/dir", stream(file(b"x")))


class TestRaces:
    """A container swaps a directory for a link out, over and over, while we read and write below it."""

    @pytest.fixture
    def swapping(self, root: Path, tmp_path: Path) -> Iterator[Path]:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("SECRET")
        (root / "swap").mkdir()
        (root / "swap/file").write_text("harmless")
        stop = threading.Event()

        def swap() -> None:
            os.symlink(outside, root / "link")
            while not stop.is_set():
                for taken, put in (
                    ("swap", "aside"),
                    ("link", "swap"),
                    ("swap", "link"),
                    ("aside", "swap"),
                ):
                    while True:
                        try:
                            os.rename(root / taken, root / put)
                            break
                        except OSError:  # the writer made it meanwhile
                            shutil.rmtree(root / put, ignore_errors=True)

        worker = threading.Thread(target=swap)
        worker.start()
        yield outside
        stop.set()
        worker.join()

    def test_reading_never_shows_what_is_outside(self, swapping: Path, root: Path) -> None:
        with opened(root) as fd:
            place = Place(fd)
            seen = set()
            for _ in range(300):
                for path in ("/swap/file", "/swap", "/swap/."):
                    try:
                        seen |= set(unpacked(pack_path(place, path)).values())
                    except NotFound:
                        pass
        assert b"SECRET" not in seen

    def test_writing_never_reaches_outside(self, swapping: Path, root: Path) -> None:
        with opened(root) as fd:
            place = Place(fd)
            for number in range(300):
                try:
                    extract_into(place, "/swap", stream(file(b"evil%d" % number, b"x")))
                    extract_into(place, "/", stream(file(b"swap/evil%d" % number, b"x")))
                except (NotFound, InvalidArgument):
                    pass
        assert os.listdir(swapping) == ["file"]
        assert (swapping / "file").read_text() == "SECRET"


def test_extracting_follows_links_of_the_tree_inside_only(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "out").symlink_to(outside)
    with opened(root) as fd:
        place = Place(fd)
        with pytest.raises((NotFound, InvalidArgument)):
            extract_into(place, "/out", stream(file(b"x", b"1")))
        with pytest.raises(InvalidArgument):
            extract_into(
                place, "/", stream(symlink(b"l", os.fsencode(outside)), file(b"l/x", b"1"))
            )
    assert os.listdir(outside) == []


def test_a_slash_behind_a_file_is_an_error_as_in_docker(place: Place) -> None:
    with pytest.raises(Internal, match="lstat /dir/file/: not a directory"):
        stat_path(place, "/dir/file/")
    assert stat_path(place, "/dir/sub/").name == "sub"
