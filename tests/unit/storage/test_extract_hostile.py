"""Archives that try to write, read, remove or change something outside of the directory they are extracted into.

Each case is extracted as a layer, as a plain archive and over a tree that has links prepared; afterwards the canary
outside must be as it was, whether the archive was refused or contained. (The classes are those of CVE-2014-6407,
2014-9356, 2007-4559, 2018-15664, 2021-29136, 2021-32760, 2025-4517, 2025-8194.)
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.storage import layers
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.tar import CHAR, DIRECTORY, FIFO, FILE, SYMLINK, Entry, Limits, TarError
from sampan.storage.tar_writer import header
from tests.unit.storage.tarkit import (
    base256,
    directory,
    file,
    hardlink,
    octal,
    pax,
    raw,
    stream,
    symlink,
)

AS_USER = os.geteuid() != 0
UP = b"../" * 30


class Canary:
    """A directory beside the target, with something of every kind that could be harmed."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "outside"
        self.path.mkdir()
        (self.path / "file").write_text("precious")
        (self.path / "file").chmod(0o600)
        (self.path / "dir").mkdir()
        (self.path / "dir" / "inner").write_text("precious")
        self.before = self.facts()

    def facts(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in [self.path, *sorted(self.path.rglob("*"))]:
            info = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            found[str(path)] = (
                info.st_mode,
                info.st_uid,
                info.st_nlink,
                info.st_mtime_ns,
                info.st_ctime_ns,
                content,
            )
        found["beside"] = tuple(sorted(os.listdir(self.base)))
        return found


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    (tmp_path / "target").mkdir()
    canary = Canary(tmp_path)
    root_before = set(os.listdir("/"))
    yield canary
    assert canary.facts() == canary.before
    assert set(os.listdir("/")) == root_before


def extract(
    target: Path, archive: bytes, *, whiteouts: Whiteouts, limits: Limits | None = None
) -> TarError | None:
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    rules = Rules(whiteouts=whiteouts, keep_owners=not AS_USER, devices=not AS_USER)
    try:
        layers.apply(stream(archive), fd, rules=rules, limits=limits)
    except TarError as error:
        return error
    finally:
        os.close(fd)
    return None


def out(canary: Canary) -> bytes:
    return os.fsencode(canary.path)


# Built as functions of the canary's absolute path. The comment says what a careless extractor would do.
CASES = {
    "parent directory": lambda o: file(b"../outside/file", b"x"),
    "parent from within": lambda o: directory(b"a") + file(b"a/../../outside/file", b"x"),
    "many parents": lambda o: file(UP + o[1:] + b"/file", b"x"),
    "absolute name": lambda o: file(o + b"/file", b"x"),
    "absolute with double slash": lambda o: file(b"//" + o + b"/file", b"x"),
    "parent in a pax path": lambda o: pax([(b"path", b"../outside/file")]) + raw(b"ok", size=octal(1), data=b"x"),
    "parent in a gnu long name": lambda o: raw(b"L", kind=b"L", size=octal(16), data=b"../outside/file\0") + file(b"ok"),
    "parent in a sparse name": lambda o: pax([(b"GNU.sparse.name", b"../outside/file"), (b"GNU.sparse.size", b"1"), (b"GNU.sparse.map", b"0,1")]) + raw(b"ok", size=octal(1), data=b"x"),
    "link then write below it": lambda o: symlink(b"l", o) + file(b"l/file", b"x"),
    "relative link then write": lambda o: symlink(b"l", b"../outside") + file(b"l/file", b"x"),
    "chain of links": lambda o: symlink(b"a", b"b") + symlink(b"b", b"c") + symlink(b"c", o) + file(b"a/file", b"x"),
    "link built up of parents": lambda o: directory(b"d") + symlink(b"d/up", b"..") + symlink(b"d/upup", b"up/..") + file(b"d/upup/outside/file", b"x"),
    "deep links to parents, realpath gives up": lambda o: b"".join(symlink(b"a" * n, b"a" * (n + 1)) for n in range(1, 60)) + symlink(b"a" * 60, b"../outside") + file(b"a/file", b"x"),
    "link then the same name as a file": lambda o: symlink(b"l", o + b"/file") + file(b"l", b"overwritten"),
    "link then directory with its name": lambda o: symlink(b"l", o + b"/dir") + directory(b"l", 0o777) + file(b"l/new", b"x"),
    "link then mode change": lambda o: symlink(b"l", o + b"/file") + directory(b"l", 0o777),
    "hard link out": lambda o: hardlink(b"h", o + b"/file") + file(b"h", b"x"),
    "hard link out by parents": lambda o: hardlink(b"h", b"../outside/file") + file(b"h", b"x"),
    "hard link through a link": lambda o: symlink(b"l", o) + hardlink(b"h", b"l/file") + raw(b"h", size=octal(1), data=b"x"),
    "hard link to a link, then write": lambda o: symlink(b"l", o + b"/file") + hardlink(b"h", b"l") + file(b"h", b"x"),
    "hard link to itself": lambda o: file(b"h", b"x") + hardlink(b"h", b"h"),
    "hard link to the root": lambda o: hardlink(b"h", b"."),
    "root is a link": lambda o: symlink(b".", o) + file(b"file", b"x"),
    "root is a link, by a slash": lambda o: symlink(b"./", o) + file(b"dir/inner", b"x"),
    "root is a file": lambda o: file(b"/", b"x"),
    "whiteout of the parent": lambda o: file(b".wh.."),
    "whiteout of the grandparent": lambda o: file(b".wh..."),
    "whiteout of nothing": lambda o: file(b".wh."),
    "whiteout through a link": lambda o: symlink(b"l", o) + file(b"l/.wh.file"),
    "opaque through a link": lambda o: symlink(b"l", o) + file(b"l/.wh..wh..opq"),
    "whiteout with a slash": lambda o: file(b".wh.../outside/file"),
    "opaque above": lambda o: file(b"../.wh..wh..opq"),
    "fifo where a link was": lambda o: symlink(b"l", o + b"/file") + header(Entry(b"l", FIFO)),
    "link through /proc": lambda o: symlink(b"p", b"/proc/self/root") + file(b"p" + o + b"/file", b"x"),
    "link through /proc/self/cwd": lambda o: symlink(b"p", b"/proc/self/cwd/../../../../../../..") + file(b"p" + o + b"/file", b"x"),
    "negative size": lambda o: raw(b"n", size=base256(-1024)) + file(b"x"),
    "name with a NUL": lambda o: pax([(b"path", b"ok\0/../../outside/file")]) + raw(b"x"),
    "name of dots": lambda o: file(b"..") + file(b"."),
    "directory replaced by a link between its files": lambda o: directory(b"d") + file(b"d/one", b"1") + symlink(b"d", o) + file(b"d/file", b"x"),
    "link swapped under a cached parent": lambda o: directory(b"real") + symlink(b"l", b"real") + file(b"l/one", b"1") + symlink(b"l", o) + file(b"l/file", b"x") + file(b"l/dir/inner", b"x"),
    "directory times through a link": lambda o: header(Entry(b"d", DIRECTORY, mtime_ns=5)) + symlink(b"d", o + b"/dir"),
}  # fmt: skip


@pytest.mark.parametrize("whiteouts", [Whiteouts.OVERLAY_USER, Whiteouts.PLAIN, Whiteouts.FILES])
@pytest.mark.parametrize("case", CASES)
def test_nothing_outside_is_touched(canary: Canary, case: str, whiteouts: Whiteouts) -> None:
    extract(canary.base / "target", CASES[case](out(canary)), whiteouts=whiteouts)


@pytest.mark.parametrize(
    "case", ["parent directory", "many parents", "root is a link", "hard link to itself"]
)
def test_what_cannot_be_meant_is_refused_by_name(canary: Canary, case: str) -> None:
    error = extract(canary.base / "target", CASES[case](out(canary)), whiteouts=Whiteouts.PLAIN)
    assert error is not None
    assert error.entry is not None


def test_links_lead_where_a_chroot_would_lead(canary: Canary) -> None:
    archive = (
        directory(b"usr")
        + directory(b"usr/lib")
        + symlink(b"lib", b"/usr/lib")
        + file(b"lib/x", b"in")
    )
    assert extract(canary.base / "target", archive, whiteouts=Whiteouts.PLAIN) is None
    assert (canary.base / "target/usr/lib/x").read_bytes() == b"in"


def test_parents_stop_at_the_root_inside_links(canary: Canary) -> None:
    archive = directory(b"d") + symlink(b"l", UP + b"d") + file(b"l/x", b"in")
    assert extract(canary.base / "target", archive, whiteouts=Whiteouts.PLAIN) is None
    assert (canary.base / "target/d/x").read_bytes() == b"in"


@pytest.mark.parametrize("key", [b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"user.overlay.opaque", b"user.overlay.redirect", b"trusted.x", b"security.selinux"])  # fmt: skip
def test_attributes_that_the_host_obeys_do_not_come_in(canary: Canary, key: bytes) -> None:
    entries = header(Entry(b"d", DIRECTORY, xattrs={key: b"y", b"user.kept": b"1"}))
    entries += header(Entry(b"f", FILE, xattrs={key: b"y", b"user.kept": b"1"}))
    entries += header(Entry(b"l", SYMLINK, linkname=b"f", xattrs={key: b"y"}))
    assert extract(canary.base / "target", entries, whiteouts=Whiteouts.PLAIN) is None
    for name in ("d", "f"):
        found = os.listxattr(canary.base / "target" / name)
        assert os.fsdecode(key) not in found
        if "user.kept" not in found:
            pytest.skip("no user xattrs on this file system")


class TestLimits:
    def test_bytes(self, canary: Canary) -> None:
        error = extract(canary.base / "target", file(b"a", b"x" * 600) + file(b"b", b"x" * 600), whiteouts=Whiteouts.PLAIN, limits=Limits(bytes=1000))  # fmt: skip
        assert error is not None

    def test_a_sparse_giant_counts_with_its_full_size(self, canary: Canary) -> None:
        records = [(b"GNU.sparse.size", b"%d" % (1 << 50)), (b"GNU.sparse.map", b"0,1")]
        error = extract(canary.base / "target", pax(records) + raw(b"s", size=octal(1), data=b"x"), whiteouts=Whiteouts.PLAIN)  # fmt: skip
        assert error is not None

    def test_depth(self, canary: Canary) -> None:
        archive = pax([(b"path", b"d/" * 1500 + b"f")]) + raw(b"x")
        error = extract(canary.base / "target", archive, whiteouts=Whiteouts.PLAIN)
        assert error is not None
        assert "deeper than 512" in str(error)

    def test_deepest_allowed_is_extracted_and_removed(self, canary: Canary) -> None:
        archive = pax([(b"path", b"d/" * 500 + b"f")]) + raw(b"x")
        assert extract(canary.base / "target", archive, whiteouts=Whiteouts.PLAIN) is None
        from sampan.storage.tree import remove_tree

        fd = os.open(canary.base / "target", os.O_RDONLY)
        try:
            remove_tree("d", fd)
            assert os.listdir(fd) == []
        finally:
            os.close(fd)

    def test_name_too_long_for_the_file_system_names_the_entry(self, canary: Canary) -> None:
        error = extract(
            canary.base / "target",
            pax([(b"path", b"n" * 300)]) + raw(b"x"),
            whiteouts=Whiteouts.PLAIN,
        )
        assert error is not None
        assert "File name too long" in str(error)

    def test_endless_parents_in_links_end(self, canary: Canary) -> None:
        started = time.monotonic()
        archive = symlink(b"a", b"b") + symlink(b"b", b"a") + file(b"a/x", b"x")
        error = extract(canary.base / "target", archive, whiteouts=Whiteouts.PLAIN)
        assert error is not None
        assert time.monotonic() - started < 5


@pytest.mark.skipif(AS_USER, reason="makes device nodes")
def test_devices_are_made_and_never_opened(canary: Canary) -> None:
    archive = header(Entry(b"zero", CHAR, major=1, minor=5, mode=0o666)) + header(
        Entry(b"tty", CHAR, major=200, minor=9, mode=0o4755)
    )
    assert extract(canary.base / "target", archive, whiteouts=Whiteouts.OVERLAY) is None
    info = os.lstat(canary.base / "target/tty")
    assert stat.S_ISCHR(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o4755
    assert info.st_rdev == os.makedev(200, 9)
