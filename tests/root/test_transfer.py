"""COPY's transfer between two hostile trees: no link of either side leads out, and what is merged is what was meant."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.build.modes import mode_changer
from sampan.errors import InvalidArgument, NotFound
from sampan.storage import transfer
from sampan.storage.transfer import Transfer, TransferRules, real_path, select, write_file

pytestmark = pytest.mark.root


class Trees:
    """A source root, a target root, and outside of both what nobody may read or change."""

    def __init__(self, base: Path) -> None:
        self.source = base / "source"
        self.target = base / "target"
        self.outside = base / "outside"
        for path in (self.source, self.target, self.outside):
            path.mkdir()
        (self.outside / "secret").write_text("secret")
        self.source_fd = os.open(self.source, os.O_RDONLY | os.O_DIRECTORY)
        self.target_fd = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.source_fd)
        os.close(self.target_fd)
        assert self.names(self.outside) == ["secret"]
        assert (self.outside / "secret").read_text() == "secret"

    @staticmethod
    def names(top: Path) -> list[str]:
        return sorted(str(path.relative_to(top)) for path in top.rglob("*"))

    def put(self, path: str, text: str = "x", *, mode: int = 0o644) -> Path:
        where = self.source / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
        where.chmod(mode)
        return where

    def copy(self, *sources: str, to: str, rules: TransferRules | None = None) -> Transfer:
        """Each source, a directory's content or a file, to the same destination."""
        with Transfer(self.target_fd, rules or TransferRules()) as made:
            for path in sources:
                fd = real_path(self.source_fd, path)
                try:
                    if stat.S_ISDIR(os.fstat(fd).st_mode):
                        made.contents(fd, to)
                    else:
                        made.file(fd, to)
                finally:
                    os.close(fd)
        return made


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    made = Trees(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were left open"
    made.close()


class TestSourceLinks:
    def test_an_absolute_link_stays_inside(self, trees: Trees) -> None:
        trees.put("etc/passwd", "inside")
        (trees.source / "link").symlink_to("/etc/passwd")
        trees.copy("link", to="copied")
        assert (trees.target / "copied").read_text() == "inside"

    @pytest.mark.parametrize("climb", ["../outside/secret", "../../../../../../../../etc/hostname"])
    def test_a_link_that_climbs_finds_nothing(self, trees: Trees, climb: str) -> None:
        (trees.source / "link").symlink_to(climb)
        with pytest.raises(FileNotFoundError):
            real_path(trees.source_fd, "link")
        with pytest.raises(NotFound):
            select(trees.source_fd, "link")

    def test_a_path_that_climbs(self, trees: Trees) -> None:
        with pytest.raises(NotFound):
            select(trees.source_fd, "../outside/secret")

    def test_magic_links_are_refused(self, trees: Trees) -> None:
        (trees.source / "loop").symlink_to("loop")
        with pytest.raises(NotFound):
            select(trees.source_fd, "loop")

    def test_links_in_a_directory_are_copied_as_links(self, trees: Trees) -> None:
        trees.put("d/file")
        (trees.source / "d/abs").symlink_to(trees.outside / "secret")
        (trees.source / "d/dir").symlink_to(trees.outside)
        trees.copy("d", to="d")
        assert os.readlink(trees.target / "d/abs") == str(trees.outside / "secret")
        assert os.readlink(trees.target / "d/dir") == str(trees.outside)

    def test_a_fifo_or_a_device_is_not_opened(self, trees: Trees) -> None:
        os.mkfifo(trees.source / "fifo")
        os.mknod(trees.source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for name in ("fifo", "null"):
            fd = real_path(trees.source_fd, name)
            try:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.read(fd, 1)
            finally:
                os.close(fd)


class TestTargetLinks:
    def test_a_link_on_the_way_is_followed_inside(self, trees: Trees) -> None:
        trees.put("d/file", "new")
        (trees.target / "real").mkdir()
        (trees.target / "link").symlink_to("/real")
        trees.copy("d", to="link/sub")
        assert (trees.target / "real/sub/file").read_text() == "new"

    def test_links_to_the_outside(self, trees: Trees) -> None:
        trees.put("d/file", "new")
        (trees.target / "abs").symlink_to(trees.outside)
        (trees.target / "up").symlink_to("../outside")
        trees.copy("d", to="abs/x")
        trees.copy("d", to="up/x")
        assert "file" not in os.listdir(trees.outside)

    def test_a_destination_that_climbs(self, trees: Trees) -> None:
        trees.put("d/file", "new")
        trees.copy("d", to="../outside/x")
        trees.copy("d", to="missing/../../outside/y")
        trees.copy("d/file", to="../z")
        assert trees.names(trees.target) == ["outside", "outside/x", "outside/x/file", "outside/y", "outside/y/file", "z"]  # fmt: skip
        assert not (trees.outside.parent / "z").exists()

    def test_a_file_goes_to_what_the_destination_names(self, trees: Trees) -> None:
        trees.put("file", "new")
        (trees.target / "link").symlink_to("/dir/file")
        trees.copy("file", to="link")
        assert (trees.target / "link").is_symlink()
        assert (trees.target / "dir/file").read_text() == "new"

    def test_what_a_destination_names_outside_is_inside(self, trees: Trees) -> None:
        trees.put("file", "new")
        (trees.target / "file").symlink_to(trees.outside / "secret")
        trees.copy("file", to="file")
        inside = trees.target / str(trees.outside).lstrip("/") / "secret"
        assert inside.read_text() == "new"

    def test_links_in_a_circle_are_no_destination(self, trees: Trees) -> None:
        trees.put("file", "new")
        (trees.target / "a").symlink_to("b")
        (trees.target / "b").symlink_to("a")
        with pytest.raises(InvalidArgument, match="too many links in a/x"):
            trees.copy("file", to="a/x")

    def test_a_file_in_a_tree_replaces_a_link(self, trees: Trees) -> None:
        trees.put("d/file", "new")
        (trees.target / "d").mkdir()
        (trees.target / "d/file").symlink_to(trees.outside / "secret")
        trees.copy("d", to="d")
        assert (trees.target / "d/file").read_text() == "new"

    def test_a_directory_does_not_go_through_a_link_inside(self, trees: Trees) -> None:
        trees.put("d/lib/file", "new")
        (trees.target / "usr/lib").mkdir(parents=True)
        (trees.target / "lib").symlink_to("/usr/lib")
        with pytest.raises(InvalidArgument, match="cannot copy to non-directory: lib"):
            trees.copy("d", to="/")

    def test_a_directory_does_not_go_through_a_link_outside(self, trees: Trees) -> None:
        trees.put("d/lib/file", "new")
        (trees.target / "lib").symlink_to(trees.outside)
        with pytest.raises(InvalidArgument, match="cannot copy to non-directory: lib"):
            trees.copy("d", to="/")

    def test_an_inline_file(self, trees: Trees) -> None:
        (trees.target / "file").write_text("old")
        write_file(trees.target_fd, "/file", b"new", TransferRules(owner=(5, 6)), mode=0o640)
        info = (trees.target / "file").lstat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o640, 5, 6)
        assert (trees.target / "file").read_text() == "new"


class TestLending:
    """Files of ours get another name instead of a copy, where nobody can tell."""

    def test_a_file_is_lent_once_a_layer(self, trees: Trees) -> None:
        original = trees.put("d/file", "x")
        lent: set[tuple[int, int]] = set()
        for name in ("one", "two"):
            trees.copy("d", to=name, rules=TransferRules(lent=lent))
        inodes = [(trees.target / name / "file").stat().st_ino for name in ("one", "two")]
        assert inodes[0] == original.stat().st_ino != inodes[1]

    def test_names_of_one_file_stay_so(self, trees: Trees) -> None:
        os.link(trees.put("d/a"), trees.source / "d/b")
        trees.copy("d", to="d", rules=TransferRules(lent=set()))
        assert os.path.samefile(trees.target / "d/a", trees.target / "d/b")

    def test_what_is_changed_is_copied(self, trees: Trees) -> None:
        original = trees.put("d/file")
        trees.copy("d", to="d", rules=TransferRules(lent=set(), owner=(5, 6)))
        assert not os.path.samefile(trees.target / "d/file", original)
        assert original.stat().st_uid == 0


class TestMerging:
    def test_the_content_of_a_directory_joins_what_is_there(self, trees: Trees) -> None:
        trees.put("d/a", "new")
        trees.put("d/sub/b", "new")
        (trees.source / "d/sub").chmod(0o711)
        (trees.target / "d/sub").mkdir(parents=True)
        (trees.target / "d/sub").chmod(0o750)
        (trees.target / "d/a").write_text("old, and longer")
        (trees.target / "d/kept").write_text("old")
        trees.copy("d", to="d")
        assert trees.names(trees.target) == ["d", "d/a", "d/kept", "d/sub", "d/sub/b"]
        assert (trees.target / "d/a").read_text() == "new"
        assert stat.S_IMODE((trees.target / "d/sub").stat().st_mode) == 0o711  # the source's

    def test_the_destination_itself_keeps_its_looks_but_for_the_time(self, trees: Trees) -> None:
        trees.put("d/a")
        os.utime(trees.source / "d", ns=(10**18, 10**18 + 1))
        (trees.source / "d").chmod(0o700)
        (trees.target / "there").mkdir(mode=0o750)
        for name, mode in (("there", 0o750), ("new", 0o755)):
            trees.copy("d", to=name)
            info = (trees.target / name).stat()
            assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (mode, 10**18 + 1)

    def test_new_directories_take_attributes(self, trees: Trees) -> None:
        trees.put("d/sub/file", mode=0o4711)
        os.chown(trees.source / "d/sub", 7, 8)
        (trees.source / "d/sub").chmod(0o1750)
        os.utime(trees.source / "d/sub", ns=(10**18, 10**18 + 1))
        os.setxattr(trees.source / "d/sub/file", "user.note", b"kept")
        os.utime(trees.source / "d/sub/file", ns=(10**18, 10**18 + 2))
        trees.copy("d", to="d")
        made = (trees.target / "d/sub").stat()
        assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (0o1750, 7, 8)
        assert made.st_mtime_ns == 10**18 + 1
        file = trees.target / "d/sub/file"
        assert stat.S_IMODE(file.stat().st_mode) == 0o4711
        assert file.stat().st_mtime_ns == 10**18 + 2
        assert os.getxattr(file, "user.note") == b"kept"

    def test_parents_are_made_with_the_rules_owner(self, trees: Trees) -> None:
        trees.put("file")
        trees.copy("file", to="a/b/file", rules=TransferRules(owner=(5, 6)))
        for path in ("a", "a/b", "a/b/file"):
            info = (trees.target / path).stat()
            assert (info.st_uid, info.st_gid) == (5, 6)
        assert stat.S_IMODE((trees.target / "a").stat().st_mode) == 0o755

    def test_chmod(self, trees: Trees) -> None:
        trees.put("d/plain", mode=0o600)
        trees.put("d/program", mode=0o700)
        rules = TransferRules(mode=mode_changer("u=rwX,go=rX"))
        (trees.source / "d").chmod(0o700)
        trees.copy("d", to="d", rules=rules)
        modes = [stat.S_IMODE((trees.target / p).stat().st_mode) for p in ("d", "d/plain", "d/program")]  # fmt: skip
        assert modes == [0o755, 0o644, 0o755]

    def test_kinds_that_do_not_fit(self, trees: Trees) -> None:
        trees.put("d/name", "file")
        trees.put("e/name/x", "directory")
        (trees.target / "d/name").mkdir(parents=True)
        (trees.target / "e").mkdir()
        (trees.target / "e/name").write_text("file")
        with pytest.raises(InvalidArgument, match="cannot replace to directory name with file"):
            trees.copy("d", to="d")
        with pytest.raises(InvalidArgument, match="cannot copy to non-directory: name"):
            trees.copy("e", to="e")
        with pytest.raises(InvalidArgument, match="cannot replace to directory /d with file"):
            trees.copy("d/name", to="d")

    def test_special_files(self, trees: Trees) -> None:
        (trees.source / "d").mkdir()
        os.mkfifo(trees.source / "d/fifo")
        os.mknod(trees.source / "d/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(trees.source / "d/socket", stat.S_IFSOCK | 0o600)
        os.link(trees.source / "d/socket", trees.source / "d/socket2")
        (trees.target / "d").mkdir()
        (trees.target / "d/socket").write_text("kept")
        trees.copy("d", to="d")
        assert stat.S_ISFIFO((trees.target / "d/fifo").lstat().st_mode)
        assert (trees.target / "d/null").lstat().st_rdev == os.makedev(1, 3)
        assert (trees.target / "d/socket").read_text() == "kept"
        assert not (trees.target / "d/socket2").exists()

    def test_excluded(self, trees: Trees) -> None:
        for path in ("d/a.py", "d/a.txt", "d/sub/b.txt", "d/out/c.py"):
            trees.put(path)
        fd = real_path(trees.source_fd, "d")
        try:
            with Transfer(trees.target_fd, TransferRules()) as made:
                made.contents(fd, "d", exclude=lambda path, _: path == "out" or path.endswith(".txt"))  # fmt: skip
        finally:
            os.close(fd)
        assert trees.names(trees.target) == ["d", "d/a.py", "d/sub"]

    def test_a_deep_tree(self, trees: Trees) -> None:
        trees.put("/".join(["d", *("n" * 200)]) + "/file", "deep")
        trees.copy("d", to="d")
        assert (trees.target / "/".join(["d", *("n" * 200)]) / "file").read_text() == "deep"


class TestHardLinks:
    def inode(self, trees: Trees, path: str) -> int:
        return (trees.target / path).stat().st_ino

    def test_links_of_a_tree_stay_links(self, trees: Trees) -> None:
        first = trees.put("d/a", "one")
        (trees.source / "d/sub").mkdir()
        os.link(first, trees.source / "d/sub/b")
        (trees.source / "d/l").symlink_to("a")
        os.link(trees.source / "d/l", trees.source / "d/m", follow_symlinks=False)
        trees.copy("d", to="d")
        assert self.inode(trees, "d/a") == self.inode(trees, "d/sub/b")
        assert (trees.target / "d/l").lstat().st_ino == (trees.target / "d/m").lstat().st_ino

    def test_a_link_whose_others_are_outside_is_a_file_of_its_own(self, trees: Trees) -> None:
        first = trees.put("d/a", "one")
        os.link(first, trees.source / "elsewhere")
        trees.copy("d", to="d")
        assert (trees.target / "d/a").stat().st_nlink == 1
        assert self.inode(trees, "d/a") != first.stat().st_ino

    def test_the_copy_was_replaced_meanwhile(self, trees: Trees) -> None:
        """one/x and three/y are the same file; two/x takes the place of the first copy."""
        first = trees.put("one/x", "first")
        trees.put("two/x", "second")
        (trees.source / "three").mkdir()
        os.link(first, trees.source / "three/y")
        trees.copy("one", "two", "three", to="d")
        assert (trees.target / "d/x").read_text() == "second"
        assert (trees.target / "d/y").read_text() == "first"

    def test_the_copy_is_itself_in_the_way(self, trees: Trees) -> None:
        first = trees.put("one/x", "same")
        (trees.source / "two").mkdir()
        os.link(first, trees.source / "two/x")
        trees.copy("one", "two", to="d")
        assert (trees.target / "d/x").read_text() == "same"

    def test_descriptors_are_bounded(self, trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "MAX_HELD", 2)
        for number in range(6):
            first = trees.put(f"d/{number}/a", str(number))
            os.link(first, trees.source / f"d/{number}/b")
        trees.copy("d", to="d")
        for number in range(6):
            assert (trees.target / f"d/{number}/b").read_text() == str(number)
        shared = [self.inode(trees, f"d/{n}/a") == self.inode(trees, f"d/{n}/b") for n in range(6)]
        assert shared.count(True) == 2


class TestSelect:
    @pytest.fixture
    def root(self, trees: Trees) -> int:
        for path in ("a.txt", "b.txt", ".hidden", "dir/c.txt", "dir/[x].txt", "d2/c.txt", "star*"):
            trees.put(path)
        (trees.source / "link").symlink_to("/dir")
        (trees.source / "out").symlink_to(trees.outside)
        return trees.source_fd

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a.txt", ["a.txt"]),
            ("/dir/../a.txt", ["a.txt"]),
            ("*.txt", ["a.txt", "b.txt"]),
            ("?.txt", ["a.txt", "b.txt"]),
            ("[^b].txt", ["a.txt"]),
            ("d*/c.txt", ["d2/c.txt", "dir/c.txt"]),
            ("*/c.txt", ["d2/c.txt", "dir/c.txt", "link/c.txt"]),
            ("li*/c.*", ["link/c.txt"]),
            ("out/*", []),
            ("ou*/secret", []),
            ("../outside/*", []),
            ("none*", []),
            (r"star\*", ["star*"]),
            (r"dir/\[x].txt", ["dir/[x].txt"]),
            ("dir/[[]x*", ["dir/[x].txt"]),
            (".h*", [".hidden"]),
        ],
    )
    def test_patterns(self, root: int, pattern: str, expected: list[str]) -> None:
        assert [each.path for each in select(root, pattern)] == expected

    def test_a_star_takes_hidden_files_too(self, root: int) -> None:
        found = {each.path: each.is_directory for each in select(root, "[.ad]*")}
        assert found == {".hidden": False, "a.txt": False, "d2": True, "dir": True}

    def test_a_pattern_that_meets_a_dead_link(self, root: int) -> None:
        with pytest.raises(NotFound):
            select(root, "ou*")

    @pytest.mark.parametrize("path", ["", "/", "."])
    def test_the_whole(self, root: int, path: str) -> None:
        assert select(root, path) == [transfer.Selected("", True)]

    def test_nothing_there(self, root: int) -> None:
        for path in ("nothing", "a.txt/below", "dir/nothing"):
            with pytest.raises(NotFound):
                select(root, path)

    @pytest.mark.parametrize("pattern", ["[", "dir/[]", "[z-a]*", "[a--b]*"])
    def test_malformed(self, root: int, pattern: str) -> None:
        with pytest.raises(InvalidArgument, match="syntax error in pattern"):
            select(root, pattern)
