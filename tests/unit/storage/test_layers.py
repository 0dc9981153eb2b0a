from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.storage import layers, stack
from sampan.storage.copying import CopyRules, copy_tree
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.layers import ADDED, DELETED, MODIFIED, Change
from sampan.storage.pack import PackRules, archive, pack
from sampan.storage.tar import DIRECTORY, FILE, LINK, SYMLINK, Entry, TarError
from sampan.storage.tar_reader import TarReader
from sampan.storage.tar_writer import END, header, padded
from sampan.storage.tree import remove_tree, size_of, spread_over_disk
from sampan.storage.vfs import VfsSnapshotter
from tests.unit.storage.tarkit import directory, file, hardlink, stream, symlink

IS_ROOT = os.geteuid() == 0
RULES = Rules(whiteouts=Whiteouts.PLAIN, keep_owners=IS_ROOT, devices=IS_ROOT)
OVERLAY = Rules(whiteouts=Whiteouts.OVERLAY, keep_owners=IS_ROOT, devices=IS_ROOT)
FILES = Rules(whiteouts=Whiteouts.FILES, keep_owners=IS_ROOT, devices=IS_ROOT)
needs_root = pytest.mark.skipif(
    not IS_ROOT, reason="needs trusted.* attributes and whiteout devices"
)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def apply(target: Path, *parts: bytes, rules: Rules = RULES) -> layers.Applied:
    target.mkdir(exist_ok=True)
    with opened(target) as fd:
        return layers.apply(stream(*parts), fd, rules=rules)


def packed(path: Path, rules: PackRules | None = None) -> bytes:
    with opened(path) as fd:
        return b"".join(archive(pack(fd, rules=rules or PackRules())))


def entries(tar: bytes) -> list[tuple[object, ...]]:
    reader = TarReader(io.BytesIO(tar))
    return [
        (
            e.name,
            e.kind,
            e.mode,
            e.uid,
            e.gid,
            e.size,
            e.mtime_ns,
            e.linkname,
            e.xattrs,
            reader.read(1 << 24),
        )
        for e in reader
    ]


def describe(path: Path) -> dict[str, tuple[object, ...]]:
    """All that a tree is, by name."""
    inodes: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for item in sorted(path.rglob("*"), key=os.fsencode):
        info = item.lstat()
        name = str(item.relative_to(path))
        content: object = None
        if stat.S_ISREG(info.st_mode):
            content = item.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(item)
        first = inodes.setdefault(info.st_ino, name) if not stat.S_ISDIR(info.st_mode) else name
        found[name] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, first, content)
    return found


class TestApply:
    def test_everything_a_file_has(self, tmp_path: Path) -> None:
        data = b"#!/bin/true"
        entry = Entry(b"bin/tool", mode=0o4755, size=len(data), mtime_ns=1_700_000_000_123_456_789, xattrs={b"user.note": b"\0\xff"})  # fmt: skip
        apply(tmp_path / "t", header(entry) + padded(data))
        tool = tmp_path / "t/bin/tool"
        assert stat.S_IMODE(tool.stat().st_mode) == 0o4755
        assert tool.stat().st_mtime_ns == 1_700_000_000_123_456_789
        assert tool.read_bytes() == data
        assert os.getxattr(tool, "user.note") == b"\0\xff"

    def test_directories_keep_their_times_though_filled_later(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            header(Entry(b"d", DIRECTORY, mtime_ns=5_000_000_001)),
            file(b"d/x", b"1"),
        )
        assert (tmp_path / "t/d").stat().st_mtime_ns == 5_000_000_001

    def test_times_of_a_directory_that_was_replaced_are_forgotten(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            *(directory(b"a"), header(Entry(b"a/b", DIRECTORY, mtime_ns=5)), file(b"a", b"1")),
            *(header(Entry(b"d", DIRECTORY)), header(Entry(b"d/x", DIRECTORY, mtime_ns=5))),
            *(directory(b"e"), file(b"e/x", b"1", mtime_ns=9), symlink(b"d", b"e")),
        )
        assert (tmp_path / "t/a").read_bytes() == b"1"
        assert (tmp_path / "t/e/x").stat().st_mtime_ns == 9

    def test_hard_links_share_their_inode(self, tmp_path: Path) -> None:
        apply(tmp_path / "t", file(b"a", b"1"), hardlink(b"b", b"a"), hardlink(b"c", b"./a"))
        assert len({(tmp_path / "t" / name).stat().st_ino for name in "abc"}) == 1

    def test_later_entry_replaces_an_earlier_one(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            *(
                file(b"x", b"1"),
                directory(b"x"),
                file(b"x/y"),
                symlink(b"x", b"z"),
                file(b"x", b"last"),
            ),
        )
        assert (tmp_path / "t/x").read_bytes() == b"last"

    def test_directory_twice_keeps_what_is_in_it(self, tmp_path: Path) -> None:
        apply(tmp_path / "t", directory(b"d"), file(b"d/x", b"1"), directory(b"d", 0o700))
        assert (tmp_path / "t/d/x").exists()
        assert stat.S_IMODE((tmp_path / "t/d").stat().st_mode) == 0o700

    def test_holes_stay_holes(self, tmp_path: Path) -> None:
        source = tmp_path / "s"
        source.mkdir()
        with open(source / "disk", "wb") as disk:
            disk.write(b"begin")
            disk.seek(64 << 20)
            disk.write(b"end")
        tar = packed(source, PackRules(sparse=True))
        assert len(tar) < 1 << 20
        apply(tmp_path / "t", tar)
        copy = tmp_path / "t/disk"
        assert copy.read_bytes() == (source / "disk").read_bytes()
        assert copy.stat().st_blocks * 512 < 1 << 20

    def test_missing_parents_are_made(self, tmp_path: Path) -> None:
        apply(tmp_path / "t", file(b"a/b/c/d", b"1"))
        assert stat.S_IMODE((tmp_path / "t/a/b").stat().st_mode) == 0o755

    def test_file_in_the_way_of_a_parent_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(TarError, match="Not a directory"):
            apply(tmp_path / "t", file(b"a", b"1"), file(b"a/b", b"2"))

    def test_stream_is_read_to_its_very_end(self, tmp_path: Path) -> None:
        source = stream(file(b"a"), bytes(8192))
        (tmp_path / "t").mkdir()
        with opened(tmp_path / "t") as fd:
            layers.apply(source, fd, rules=RULES)
        assert source.read() == b""

    def test_full_disk_is_the_hosts_error_not_the_archives(self, tmp_path: Path) -> None:
        class Full(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                raise OSError(28, "No space left on device")

        (tmp_path / "t").mkdir()
        with opened(tmp_path / "t") as fd, pytest.raises(OSError, match="No space left") as caught:
            layers.apply(Full(), fd, rules=RULES)
        assert not isinstance(caught.value, TarError)


@needs_root
class TestWhiteouts:
    def test_become_what_overlayfs_reads(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            file(b"gone/.wh.x"),
            file(b"new/.wh..wh..opq"),
            file(b".wh..wh.plnk"),
            rules=OVERLAY,
        )
        info = (tmp_path / "t/gone/x").lstat()
        assert stat.S_ISCHR(info.st_mode)
        assert info.st_rdev == 0
        assert os.getxattr(tmp_path / "t/new", "trusted.overlay.opaque") == b"y"
        assert not (tmp_path / "t/.wh..wh.plnk").exists()

    def test_speak_of_lower_layers_only(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            file(b"f", b"1"),
            file(b".wh.f"),
            directory(b"d"),
            file(b".wh.d"),
            rules=OVERLAY,
        )
        assert (tmp_path / "t/f").read_bytes() == b"1"
        assert os.getxattr(tmp_path / "t/d", "trusted.overlay.opaque") == b"y"

    def test_directory_after_its_whiteout_is_opaque(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "t",
            file(b".wh.d"),
            directory(b"d"),
            file(b".wh.e"),
            file(b"e/x", b"1"),
            rules=OVERLAY,
        )
        for name in ("d", "e"):
            assert os.getxattr(tmp_path / "t" / name, "trusted.overlay.opaque") == b"y"

    def test_opaque_root_is_reported(self, tmp_path: Path) -> None:
        assert apply(tmp_path / "t", file(b".wh..wh..opq"), rules=OVERLAY).opaque_root


class TestDiff:
    def test_same_tree_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            base = tmp_path / name
            base.mkdir()
            order = ["b", "a", "c"] if name == "one" else ["c", "b", "a"]
            for entry in order:
                (base / entry).write_text(entry)
                os.utime(base / entry, ns=(0, 7))
        assert packed(tmp_path / "one") == packed(tmp_path / "two")

    def test_sockets_are_left_out_and_fifos_not_opened(self, tmp_path: Path) -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(tmp_path)
            try:
                server.bind("socket")
            finally:
                os.chdir(here)
        os.mkfifo(tmp_path / "fifo")
        assert [entry[0] for entry in entries(packed(tmp_path))] == [b"fifo"]

    def test_tree_deeper_than_we_accept_is_refused_without_a_crash(self, tmp_path: Path) -> None:
        current = os.open(tmp_path, os.O_RDONLY)
        for _ in range(700):
            os.mkdir("d", dir_fd=current)
            deeper = os.open("d", os.O_RDONLY, dir_fd=current)
            os.close(current)
            current = deeper
        os.close(current)
        from sampan.errors import InvalidArgument

        with pytest.raises(InvalidArgument, match="deeper than 512"):
            packed(tmp_path)
        with opened(tmp_path) as fd:
            remove_tree("d", fd)
        assert os.listdir(tmp_path) == []

    def test_walk_that_is_given_up_leaves_no_descriptor(self, tmp_path: Path) -> None:
        (tmp_path / "a/b/c").mkdir(parents=True)
        (tmp_path / "a/f").write_text("x")
        before = len(os.listdir("/proc/self/fd"))
        with opened(tmp_path) as fd:
            for count in range(1, 5):
                chunks = pack(fd)
                for _ in range(count):
                    next(chunks)
                chunks.close()
        assert len(os.listdir("/proc/self/fd")) == before


class TestCompare:
    def test_lists_what_docker_diff_lists(self, tmp_path: Path) -> None:
        base = tmp_path / "t"
        apply(base, directory(b"d"), file(b"d/keep", b"1"), file(b"d/edit", b"1"), file(b"d/gone", b"1"), directory(b"e"), file(b"e/x"))  # fmt: skip
        with opened(base) as fd:
            old = layers.facts_of(fd, with_identity=True)
            (base / "d/edit").write_text("2")
            (base / "d/gone").unlink()
            (base / "d/new").mkdir()
            remove_tree("e", fd)
            assert layers.compare(old, fd) == [
                Change("/d", MODIFIED),
                Change("/d/edit", MODIFIED),
                Change("/d/gone", DELETED),
                Change("/d/new", ADDED),
                Change("/e", DELETED),
            ]
            names = [entry[0] for entry in entries(b"".join(layers.compare_tar(old, fd)))]
        assert names == [b"d/", b"d/edit", b"d/.wh.gone", b"d/new/", b".wh.e"]

    def test_change_that_hides_its_time_is_seen(self, tmp_path: Path) -> None:
        apply(tmp_path / "t", file(b"f", b"one"))
        with opened(tmp_path / "t") as fd:
            old = layers.facts_of(fd, with_identity=True)
            before = (tmp_path / "t/f").stat()
            (tmp_path / "t/f").write_bytes(b"two")
            os.utime(tmp_path / "t/f", ns=(before.st_atime_ns, before.st_mtime_ns))
            assert layers.compare(old, fd) == [Change("/f", MODIFIED)]


class TestOverlayChanges:
    @needs_root
    def test_against_several_lowers(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "bottom",
            file(b"d/a", b"1"),
            file(b"d/b", b"1"),
            file(b"o/x", b"1"),
            file(b"f", b"1"),
            rules=OVERLAY,
        )
        apply(tmp_path / "top", file(b"d/.wh.a"), file(b"d/c", b"1"), rules=OVERLAY)
        apply(
            tmp_path / "upper",
            *(file(b"d/a", b"again"), file(b"d/.wh.b"), file(b"d/.wh.never"), file(b"d/c", b"2")),
            *(file(b"o/.wh..wh..opq"), file(b"o/y", b"1"), file(b".wh.f"), file(b"g", b"1")),
            rules=OVERLAY,
        )
        with (
            opened(tmp_path / "upper") as up,
            opened(tmp_path / "top") as top,
            opened(tmp_path / "bottom") as bottom,
        ):
            changes = layers.overlay_changes(up, [top, bottom])
        assert set(changes) == {
            Change("/d", MODIFIED),
            Change("/d/a", ADDED),
            Change("/d/b", DELETED),
            Change("/d/c", MODIFIED),
            Change("/f", DELETED),
            Change("/g", ADDED),
            Change("/o", MODIFIED),
            Change("/o/x", DELETED),
            Change("/o/y", ADDED),
        }


class TestCopy:
    def test_copy_equals_the_original(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "a",
            *(
                file(b"f", b"1", mode=0o4711, mtime_ns=99),
                hardlink(b"g", b"f"),
                symlink(b"l", b"/nowhere"),
            ),
            *(directory(b"d", 0o1777), file(b"d/x", b"2")),
        )
        (tmp_path / "b").mkdir()
        with opened(tmp_path / "a") as source, opened(tmp_path / "b") as target:
            copy_tree(source, target, rules=CopyRules(keep_owners=IS_ROOT, devices=IS_ROOT))
        assert describe(tmp_path / "a").keys() == describe(tmp_path / "b").keys()
        assert packed(tmp_path / "a") == packed(tmp_path / "b")

    def test_layers_merge_as_overlayfs_would_show_them(self, tmp_path: Path) -> None:
        apply(
            tmp_path / "1",
            file(b"d/a", b"1"),
            file(b"d/b", b"1"),
            file(b"o/x", b"1"),
            file(b"t", b"1"),
            rules=FILES,
        )
        apply(
            tmp_path / "2",
            file(b"d/.wh.a"),
            file(b"o/.wh..wh..opq"),
            file(b"o/y", b"2"),
            directory(b"t"),
            rules=FILES,
        )
        (tmp_path / "m").mkdir()
        rules = CopyRules(whiteouts=True, replace=True, keep_owners=IS_ROOT, devices=IS_ROOT)
        with opened(tmp_path / "m") as target:
            for name in ("1", "2"):
                with opened(tmp_path / name) as source:
                    copy_tree(source, target, rules=rules)
        assert sorted(describe(tmp_path / "m")) == ["d", "d/b", "o", "o/y", "t"]


def test_size_counts_a_linked_file_once_and_its_apparent_bytes(tmp_path: Path) -> None:
    apply(tmp_path / "t", file(b"f", b"x" * 1000), hardlink(b"g", b"f"), file(b"d/h", b"y" * 10))
    with opened(tmp_path / "t") as fd:
        size = size_of(fd)
    assert (size.apparent, size.inodes) == (1010, 4)


# -- properties ------------------------------------------------------------------------------------------------------

name_part = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"dir", b"caf\xe9", b"with space", b"-dash", b"new\nline"]),
    st.binary(min_size=1, max_size=20).filter(
        lambda n: (
            b"/" not in n
            and b"\0" not in n
            and n not in (b".", b"..")
            and not n.startswith(b".wh.")
        )
    ),
)


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[Entry, bytes]]:
    """Entries of a tree as an archive would list them: parents first, nothing twice."""
    directories: list[bytes] = [b""]
    files: list[bytes] = []
    seen: set[bytes] = set()
    found: list[tuple[Entry, bytes]] = []
    for _ in range(draw(st.integers(0, 8))):
        parent = draw(st.sampled_from(directories))
        name = parent + draw(name_part)
        if name in seen:
            continue
        seen.add(name)
        kind = draw(st.sampled_from([FILE, FILE, DIRECTORY, SYMLINK, LINK]))
        if kind == LINK and not files:
            kind = FILE
        data = draw(st.binary(max_size=2000)) if kind == FILE else b""
        entry = Entry(
            name,
            kind,
            mode=draw(st.sampled_from([0o644, 0o755, 0o4755, 0o2700, 0o600])),
            size=len(data),
        )
        entry.mtime_ns = draw(st.integers(0, 4_000_000_000_000_000_000))
        if IS_ROOT:
            entry.uid, entry.gid = draw(st.integers(0, 70000)), draw(st.integers(0, 70000))
        else:
            entry.uid, entry.gid = os.geteuid(), os.getegid()
        if kind == DIRECTORY:
            directories.append(name + b"/")
            entry.mode = draw(st.sampled_from([0o755, 0o700, 0o1777]))
        elif kind == SYMLINK:
            entry.linkname = draw(
                st.binary(min_size=1, max_size=30).filter(lambda t: b"\0" not in t)
            )
            entry.mode = 0o777
        elif kind == LINK:
            entry.linkname = draw(st.sampled_from(files))
        else:
            files.append(name)
        found.append((entry, data))
    return found


def to_tar(tree: list[tuple[Entry, bytes]]) -> bytes:
    return b"".join(header(entry) + padded(data) for entry, data in tree) + bytes(1024)


@given(trees())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_extracting_and_packing_are_inverse(tree: list[tuple[Entry, bytes]]) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        apply(base / "one", to_tar(tree))
        tar = packed(base / "one")
        apply(base / "two", tar)
        assert packed(base / "two") == tar
        assert {entry[0].rstrip(b"/") for entry in entries(tar)} == {
            entry.name for entry, _ in tree
        }  # type: ignore[attr-defined]
        first, second = describe(base / "one"), describe(base / "two")
        assert {k: v[:4] + v[5:] for k, v in first.items()} == {
            k: v[:4] + v[5:] for k, v in second.items()
        }
    finally:
        shutil.rmtree(base)


@needs_root
@given(trees(), st.lists(name_part, max_size=3), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_layer_comes_out_as_it_went_in(
    tree: list[tuple[Entry, bytes]], gone: list[bytes], opaque: bool
) -> None:
    names = {entry.name for entry, _ in tree}
    whiteouts = b"".join(
        file(b".wh." + name, mode=0o600) for name in set(gone) if name not in names
    )
    markers = b"".join(
        file(entry.name + b"/.wh..wh..opq", mode=0o600)
        for entry, _ in tree
        if opaque and entry.kind == DIRECTORY
    )
    layer = (
        b"".join(header(entry) + padded(data) for entry, data in tree)
        + markers
        + whiteouts
        + bytes(1024)
    )
    base = Path(tempfile.mkdtemp())
    try:
        apply(base / "one", layer, rules=OVERLAY)
        with opened(base / "one") as fd:
            tar = b"".join(layers.diff(fd))
        apply(base / "two", tar, rules=OVERLAY)
        with opened(base / "two") as fd:
            assert b"".join(layers.diff(fd)) == tar
        ours = {(entry[0].rstrip(b"/"), *entry[2:6]) for entry in entries(tar) if entry[1] != LINK}  # type: ignore[attr-defined]
        theirs = {
            (entry[0].rstrip(b"/"), *entry[2:6]) for entry in entries(layer) if entry[1] != LINK
        }  # type: ignore[attr-defined]
        # a hard link may change places with the file it names, everything else is the same
        linked = {entry.linkname for entry, _ in tree if entry.kind == LINK} | {
            e.name for e, _ in tree if e.kind == LINK
        }
        assert {e for e in ours if e[0] not in linked} == {e for e in theirs if e[0] not in linked}
    finally:
        shutil.rmtree(base)


def test_layers_that_are_unpacked_are_spread_over_the_disk(tmp_path: Path) -> None:
    """On ext4; a file system without such a mark is left as it is."""
    spread_over_disk(str(tmp_path))
    listing = subprocess.run(
        ["lsattr", "-d", tmp_path], capture_output=True, text=True, check=False
    )
    assert listing.returncode != 0 or "T" in listing.stdout.split()[0] or not is_ext4(tmp_path)


def is_ext4(path: Path) -> bool:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
    )
    return kind.stdout.strip() == "ext2/ext3"


def test_a_layer_is_not_unpacked_where_another_was_just_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VfsSnapshotter(tmp_path)
    layer = file(b"a", b"1") + END
    with store.stage(io.BytesIO(layer)) as staged:
        assert Path(staged.path).parent.parent.name == "incoming"
        staged.publish("sha256:" + "1" * 64, None)
    store.remove("sha256:" + "1" * 64)
    monkeypatch.setattr(stack, "_NEAR", 1 << 62)  # the whole disk is near
    with store.stage(io.BytesIO(layer)) as staged:
        assert Path(staged.path).parent.parent.name == "staging"
    assert os.listdir(tmp_path / "incoming") == []
    monkeypatch.setattr(stack, "_RECENT_S", 0.0)
    with store.stage(io.BytesIO(layer)) as staged:
        assert Path(staged.path).parent.parent.name == "incoming"
