"""Tar streams, .dockerignore and cp's landing rules."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from sampan.cli import copy, tarball
from sampan.cli.failures import Failure
from sampan.cli.ignore import Ignore, read


def tree(root: Path) -> Path:
    (root / "d").mkdir(parents=True)
    (root / "d" / "f").write_text("hello")
    (root / "d" / ("n" * 120)).write_text("long")
    (root / "d" / "l").symlink_to("f")
    os.link(root / "d" / "f", root / "d" / "h")
    return root / "d"


def names_in(data: bytes) -> dict[str, str]:
    with tarfile.TarFile(fileobj=io.BytesIO(data)) as archive:
        return {m.name: m.type.decode() for m in archive.getmembers()}


def test_what_is_packed_other_programs_read(tmp_path: Path) -> None:
    data = b"".join(tarball.pack(str(tree(tmp_path)), "x"))
    found = names_in(data)
    assert (
        found["x"] == "5"
        and found["x/f"] in "01"
        and found["x/l"] == "2"
        and f"x/{'n' * 120}" in found
    )


def test_what_is_packed_is_unpacked_again(tmp_path: Path) -> None:
    data = b"".join(tarball.pack(str(tree(tmp_path / "a")), "x"))
    target = tmp_path / "b"
    target.mkdir()
    pieces = [data[i : i + 700] for i in range(0, len(data), 700)]
    tarball.unpack(pieces, str(target), copy.renaming("x", "y"))
    assert (target / "y" / "f").read_text() == "hello"
    assert os.readlink(target / "y" / "l") == "f"
    assert (target / "y" / "h").stat().st_ino == (target / "y" / "f").stat().st_ino


def entry(name: str, kind: str, *, link: str = "", data: bytes = b"") -> bytes:
    made = tarball.Entry(name, kind, size=len(data))
    made.link = link
    return tarball.header(made) + data + b"\0" * (-len(data) % 512)


@pytest.mark.parametrize(
    "members",
    [
        [("../out", "0", "")],
        [("x/../../out", "0", "")],
        [("link", "2", "/tmp"), ("link/out", "0", "")],
        [("link", "2", ".."), ("link/out", "0", "")],
        [("h", "1", "../../etc/passwd")],
        [("link", "2", "/etc"), ("h", "1", "link/passwd")],
    ],
)
def test_a_hostile_archive_cannot_leave_the_destination(
    tmp_path: Path, members: list[tuple[str, str, str]]
) -> None:
    target = tmp_path / "in" / "here"
    target.mkdir(parents=True)
    stream = b"".join(entry(n, k, link=ln, data=b"x" if k == "0" else b"") for n, k, ln in members)
    with pytest.raises((Failure, OSError)):
        tarball.unpack([stream], str(target), lambda name: name)
    assert (
        not (tmp_path / "in" / "out").exists()
        and not (tmp_path / "out").exists()
        and not Path("/tmp/out").exists()
    )


def test_a_file_replaces_a_planted_link_instead_of_following_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("safe")
    target = tmp_path / "t"
    target.mkdir()
    stream = entry("f", "2", link=str(victim)) + entry("f", "0", data=b"evil")
    tarball.unpack([stream], str(target), lambda name: name)
    assert victim.read_text() == "safe" and (target / "f").read_text() == "evil"


@pytest.mark.parametrize("data", [b"x" * 512, b"\0" * 100, entry("f", "0", data=b"12345")[:600]])
def test_damaged_archives_are_refused(tmp_path: Path, data: bytes) -> None:
    if data == b"\0" * 100:
        with pytest.raises(Failure):
            tarball.unpack([data], str(tmp_path), lambda name: name)
        return
    with pytest.raises(Failure):
        tarball.unpack([data], str(tmp_path), lambda name: name)


@pytest.mark.parametrize(
    ("patterns", "path", "left_out"),
    [
        (["*.log"], "a.log", True),
        (["*.log"], "d/a.log", False),
        (["**/*.log"], "d/e/a.log", True),
        (["d"], "d/e/f", True),
        (["d", "!d/keep"], "d/keep", False),
        (["d", "!d/keep", "d/keep"], "d/keep", True),
        (["a?c"], "abc", True),
        (["[a-c].txt"], "b.txt", True),
        (["/root"], "root", True),
        (["!x"], "x", False),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
    ],
)
def test_dockerignore(tmp_path: Path, patterns: list[str], path: str, left_out: bool) -> None:
    file = tmp_path / ".dockerignore"
    file.write_text("# comment\n\n" + "\n".join(patterns))
    assert Ignore(read(str(file))).matches(path) is left_out


def test_an_ignored_directory_is_walked_when_something_in_it_is_taken_back() -> None:
    ignore = Ignore(["d", "!d/e/keep"])
    assert not ignore.skip("d", True) and not ignore.skip("d/e", True) and ignore.skip("d/x", True)
    assert Ignore(["d"]).skip("d", True)


def test_cp_splits_its_arguments() -> None:
    assert copy.split("c:/x") == ("c", "/x")
    assert (
        copy.split("./a:b") == ("", "./a:b")
        and copy.split("/a:b") == ("", "/a:b")
        and copy.split("-") == ("", "-")
    )
    assert copy.base_of("/a/b/") == "b" and copy.base_of("/a/.") == "." and copy.base_of("/") == "/"
