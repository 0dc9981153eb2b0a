"""linux/paths.py: nothing of an image's making leads out of its root."""

from __future__ import annotations

import os
import posix
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.linux import paths


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "root").mkdir()
    fd = paths.open_root(str(tmp_path / "root"))
    yield fd
    posix.close(fd)


def where(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def test_absolute_links_stay_inside(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/etc").symlink_to(tmp_path / "outside")
    with pytest.raises(FileNotFoundError):
        paths.open_in_root(root, "/etc/secret", posix.O_RDONLY)


def test_dots_stop_at_the_root(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/up").symlink_to("../../../../../..")
    assert where(paths.open_in_root(root, "up/..", posix.O_PATH)) == str(tmp_path / "root")


def test_magic_links_are_refused(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/proc").mkdir()
    (tmp_path / "root/self").symlink_to("/proc/self/root")
    proc = paths.open_root("/proc")
    with pytest.raises(OSError):
        paths.open_in_root(proc, "self/root", posix.O_PATH)
    posix.close(proc)


@pytest.mark.parametrize("wish", ["a/b/c", "/a/b/c/", "a/./b/../b/c", "../../a/b/c"])
def test_directories_are_made_with_their_parents(tmp_path: Path, root: int, wish: str) -> None:
    assert where(paths.mkdir_all_in_root(root, wish)) == str(tmp_path / "root/a/b/c")


def test_a_dangling_link_is_made_at_its_target_inside(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/var").mkdir()
    (tmp_path / "root/var/run").symlink_to("/run")
    assert where(paths.mkdir_all_in_root(root, "/var/run/x")) == str(tmp_path / "root/run/x")


def test_a_link_to_a_host_directory_is_rebuilt_inside(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/data").symlink_to(tmp_path / "outside")
    made = where(paths.mkdir_all_in_root(root, "/data/new"))
    assert made.startswith(str(tmp_path / "root"))
    assert os.listdir(tmp_path / "outside") == ["secret"]


def test_a_file_is_made_for_a_file_mount(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/resolv.conf").symlink_to("../run/resolv.conf")
    assert where(paths.create_in_root(root, "/etc/resolv.conf")) == str(
        tmp_path / "root/run/resolv.conf"
    )


def test_a_loop_of_links_ends(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/a").symlink_to("b")
    (tmp_path / "root/b").symlink_to("a")
    with pytest.raises(OSError):
        paths.mkdir_all_in_root(root, "a/x")


def test_a_file_in_the_way_is_not_a_directory(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/f").write_text("")
    with pytest.raises(NotADirectoryError):
        paths.mkdir_all_in_root(root, "f/x")


def test_a_fifo_named_passwd_does_not_stop_us(tmp_path: Path, root: int) -> None:
    os.mkfifo(tmp_path / "root/passwd")
    with pytest.raises(OSError, match="not a regular file"):
        paths.read_regular_in_root(root, "passwd")


def test_a_large_file_is_refused(tmp_path: Path, root: int) -> None:
    (tmp_path / "root/passwd").write_bytes(b"x" * 100)
    assert paths.read_regular_in_root(root, "passwd", 100) == b"x" * 100
    with pytest.raises(OSError, match="larger"):
        paths.read_regular_in_root(root, "passwd", 99)


def test_only_a_procfs_is_taken_for_one(tmp_path: Path) -> None:
    fd = paths.open_root(str(tmp_path))
    with pytest.raises(OSError, match="procfs"):
        paths.verify_proc(fd)
    posix.close(fd)
    fd = paths.open_root("/proc/self")
    with pytest.raises(OSError, match="procfs"):
        paths.verify_proc(fd)
    posix.close(fd)
    posix.close(paths.open_proc())


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"),
        ("", "."),
        ("/a//b/./c/", "/a/b/c"),
        ("/../a", "/a"),
        ("a/../..", ".."),
        ("../x", "../x"),
    ],
)
def test_clean_is_gos(path: str, clean: str) -> None:
    assert paths.clean(path) == clean
