"""Layers: a tar on one side, a directory in overlayfs' form on the other, and the differences between trees.

    apply(stream, fd)      tar ──► directory     `.wh.x` becomes device 0:0, `.wh..wh..opq` becomes an opaque mark
    diff(fd)               directory ──► tar     the reverse, reproducible
    overlay_changes(...)   upper directory against its lowers: what `docker diff` lists
    compare(old, fd)       the same between two plain trees, the first given as facts (`facts_of`)

diff(apply(layer)) is the layer again, entry by entry, and apply(diff(tree)) is the tree (tests hold both as
properties). Source: OCI image-spec 1.1, layer.md.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sampan.storage.extract import LAYER_RULES, Extractor, Rules
from sampan.storage.pack import PackRules, archive, is_opaque, pack, whiteout_entry
from sampan.storage.tar_reader import TarReader
from sampan.storage.tar_writer import header
from sampan.storage.tree import names, open_directory, walk, xattrs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sampan.storage.tar import Limits, Readable

MODIFIED, ADDED, DELETED = 0, 1, 2  # the Engine API's numbers; its letters are C, A, D


class Applied(NamedTuple):
    """What was extracted."""

    bytes: int  # of all files: Docker's layer "Size"
    entries: int
    opaque_root: bool  # the layer hides everything below it
    root_seen: bool  # it says what the root directory itself is like


class Change(NamedTuple):
    """One line of `docker diff`."""

    path: str
    kind: int


class Facts(NamedTuple):
    """What tells whether an entry is still the same. Inode and ctime are 0 where trees on two places are compared."""

    mode: int
    uid: int
    gid: int
    device: int
    size: int
    mtime_ns: int
    inode: int = 0
    ctime_ns: int = 0


def apply(
    stream: Readable,
    fd: int,
    *,
    rules: Rules = LAYER_RULES,
    limits: Limits | None = None,
) -> Applied:
    """Extract a whole uncompressed archive into a directory; reads the stream to its very end.

    On failure the directory holds what came before: the caller discards it.
    """
    reader = TarReader(stream, limits)
    with Extractor(fd, rules=rules, limits=limits) as extractor:
        extractor.extract(reader)
        reader.drain()
        return Applied(
            extractor.bytes, extractor.entries, extractor.opaque_root, extractor.root_seen
        )


def diff(fd: int, *, with_root: bool = False) -> Iterator[bytes]:
    """An overlay upper directory as a layer tar."""
    return archive(pack(fd, with_root=with_root, rules=PackRules(whiteouts=True)))


# -- overlay ---------------------------------------------------------------------------------------------------------


def overlay_changes(upper: int, lowers: list[int]) -> list[Change]:
    """What an upper directory changes in the directories below it, topmost first."""
    changes: list[Change] = []
    _overlay_changes(upper, lowers, b"/", changes)
    return changes


def _overlay_changes(upper: int, lowers: list[int], path: bytes, changes: list[Change]) -> None:
    for name in names(upper):
        try:
            info = os.stat(name, dir_fd=upper, follow_symlinks=False)
        except FileNotFoundError:
            continue
        below = visible(lowers, name)
        shown = _text(path + name)
        if _is_whiteout(info):
            if below is not None:
                changes.append(Change(shown, DELETED))
            continue
        if below is None:
            changes.append(Change(shown, ADDED))
        elif not stat.S_ISDIR(info.st_mode) or _facts(info) != _facts(below):
            changes.append(Change(shown, MODIFIED))
        if stat.S_ISDIR(info.st_mode):
            _descend(upper, lowers, name, path, changes)


def _descend(
    upper: int, lowers: list[int], name: bytes, path: bytes, changes: list[Change]
) -> None:
    try:
        child = open_directory(name, upper)
    except OSError:
        return
    below: list[int] = []
    try:
        opaque = is_opaque(xattrs_of(child))
        below = lower_directories(lowers, name)
        if opaque:
            hidden = sorted({entry for fd in below for entry in names(fd)} - set(names(child)))
            changes += [
                Change(_text(path + name + b"/" + entry), DELETED)
                for entry in hidden
                if visible(below, entry)
            ]
        _overlay_changes(child, below, path + name + b"/", changes)
    finally:
        os.close(child)
        for fd in below:
            os.close(fd)


def visible(lowers: list[int], name: bytes) -> os.stat_result | None:
    """What a stack of directories shows under a name."""
    for fd in lowers:
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return None if _is_whiteout(info) else info
    return None


def lower_directories(lowers: list[int], name: bytes) -> list[int]:
    """The directories that overlayfs merges under a name: down to the first opaque one or the first that is none."""
    found: list[int] = []
    for fd in lowers:
        try:
            child = open_directory(name, fd)
        except FileNotFoundError:
            continue
        except OSError:  # something else has the name and ends the merge
            break
        found.append(child)
        if is_opaque(xattrs_of(child)):
            break
    return found


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


# -- plain trees -----------------------------------------------------------------------------------------------------


def facts_of(fd: int, *, with_identity: bool = False) -> dict[bytes, Facts]:
    """A tree by path. With identity (inode, ctime) any later change of an entry shows, whatever it set its mtime to."""
    found: dict[bytes, Facts] = {}
    for _, directory, name, info in walk(fd):
        facts = _facts(info)
        found[directory + name] = (
            facts._replace(inode=info.st_ino, ctime_ns=info.st_ctime_ns) if with_identity else facts
        )
    return found


def compare(old: Mapping[bytes, Facts], fd: int) -> list[Change]:
    """What a tree changes against an older one, in the order of a walk."""
    return [Change(_text(b"/" + path), kind) for path, kind in _compare(old, fd)]


def compare_tar(old: Mapping[bytes, Facts], fd: int) -> Iterator[bytes]:
    """The same as a layer tar: what is new or changed with its parents, and a whiteout for what is gone."""
    changes = _compare(old, fd)
    gone = {path for path, kind in changes if kind == DELETED}
    wanted: set[bytes] = set()
    for path, _ in changes:
        while path not in wanted:
            wanted.add(path)
            path = path.rpartition(b"/")[0]
    wanted.discard(b"")

    def entries() -> Iterator[bytes]:
        yield from pack(fd, rules=PackRules(select=wanted.__contains__))
        for path in sorted(gone):
            directory, slash, name = path.rpartition(b"/")
            yield header(whiteout_entry(directory + slash, name))

    return archive(entries())


def _compare(old: Mapping[bytes, Facts], fd: int) -> list[tuple[bytes, int]]:
    changes: list[tuple[bytes, int]] = []
    seen: set[bytes] = set()
    for _, directory, name, info in walk(fd):
        path = directory + name
        seen.add(path)
        before = old.get(path)
        if before is None:
            changes.append((path, ADDED))
            continue
        now = _facts(info)
        if before.inode:
            now = now._replace(inode=info.st_ino, ctime_ns=info.st_ctime_ns)
        if stat.S_ISDIR(info.st_mode) and stat.S_ISDIR(before.mode):
            # a directory's identity changes with what is in it; only its own facts count
            before = before._replace(inode=0, ctime_ns=0)
            now = now._replace(inode=0, ctime_ns=0)
        if now != before:
            changes.append((path, MODIFIED))
    gone = [path for path in old if path not in seen]
    # of a directory that is gone only itself is named
    missing = set(gone)
    changes += [(path, DELETED) for path in gone if path.rpartition(b"/")[0] not in missing]
    return sorted(changes, key=lambda change: change[0].split(b"/"))


def _facts(info: os.stat_result) -> Facts:
    """As Docker compares: of a directory not the size."""
    is_directory = stat.S_ISDIR(info.st_mode)
    return Facts(
        info.st_mode,
        info.st_uid,
        info.st_gid,
        info.st_rdev,
        0 if is_directory else info.st_size,
        info.st_mtime_ns,
    )


def rootless(rules: Rules) -> Rules:
    """The same rules for a file system that is mounted in a user namespace: no devices there."""
    return replace(rules, devices=False)


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
