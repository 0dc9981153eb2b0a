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
from sampan.storage.pack import (
    PackRules,
    archive,
    is_opaque,
    is_whiteout,
    pack,
)
from sampan.storage.tar_reader import TarReader
from sampan.storage.tree import Step, Walker, names, open_directory, xattrs_of

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


def diff(fd: int, *, with_root: bool = False, markers: bool = False) -> Iterator[bytes]:
    """A layer's directory as its tar; with `markers`, one that has whiteouts as files."""
    rules = PackRules(whiteouts=not markers, markers=markers)
    return archive(pack(fd, with_root=with_root, rules=rules))


# -- overlay ---------------------------------------------------------------------------------------------------------


def overlay_changes(upper: int, lowers: list[int]) -> list[Change]:
    """What an upper directory changes in the directories below it, topmost first."""
    changes: list[Change] = []
    named: set[bytes] = set()  # directories that are listed already
    merged: list[list[int]] = [
        lowers
    ]  # a stack: the lower directories under each directory we are in
    try:
        with Walker(upper, leave=True) as walker:
            for step in walker:
                if step.leaving:
                    _close(merged.pop())
                    continue
                _note_change(step, merged[-1], changes, named)
                if step.child >= 0:
                    below = lower_directories(merged[-1], step.name)
                    merged.append(below)
                    if is_opaque(xattrs_of(step.child)):
                        hidden = _hidden(step, below)
                        if hidden and step.path not in named:
                            changes.append(Change(_text(b"/" + step.path), MODIFIED))
                            named.add(step.path)
                        changes += hidden
                        merged[-1] = []
                        _close(below)
    finally:
        for level in merged[1:]:
            _close(level)
    return changes


def _note_change(step: Step, lowers: list[int], changes: list[Change], named: set[bytes]) -> None:
    below = visible(lowers, step.name)
    if is_whiteout(step.info):
        if below is None:
            return
        kind = DELETED
    elif below is None:
        kind = ADDED
    elif step.child < 0 or _facts(step.info) != _facts(below):
        kind = MODIFIED
    else:
        return
    parent = step.path.rpartition(b"/")[0]
    if kind != MODIFIED and parent and parent not in named:
        # as Docker has it: also when the directory's own facts came out the same
        changes.append(Change(_text(b"/" + parent), MODIFIED))
        named.add(parent)
    changes.append(Change(_text(b"/" + step.path), kind))
    if step.child >= 0:
        named.add(step.path)


def _hidden(step: Step, below: list[int]) -> list[Change]:
    """What an opaque directory hides and does not have itself."""
    own = set(names(step.child))
    lower = sorted({name for fd in below for name in names(fd)} - own)
    return [
        Change(_text(b"/" + step.path + b"/" + name), DELETED)
        for name in lower
        if visible(below, name)
    ]


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def visible(lowers: list[int], name: bytes) -> os.stat_result | None:
    """What a stack of directories shows under a name."""
    for fd in lowers:
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        return None if is_whiteout(info) else info
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


# -- plain trees -----------------------------------------------------------------------------------------------------


def facts_of(fd: int, *, with_identity: bool = False) -> dict[bytes, Facts]:
    """A tree by path. With identity (inode, ctime) any later change of an entry shows, whatever it set its mtime to."""
    found: dict[bytes, Facts] = {}
    with Walker(fd, sort=False) as walker:
        for step in walker:
            facts = _facts(step.info)
            if with_identity:
                facts = facts._replace(inode=step.info.st_ino, ctime_ns=step.info.st_ctime_ns)
            found[step.path] = facts
    return found


def compare(old: Mapping[bytes, Facts], fd: int) -> list[Change]:
    """What a tree changes against an older one, in the order of a walk."""
    return [Change(_text(b"/" + path), kind) for path, kind in _compare(old, fd)]


def compare_tar(old: Mapping[bytes, Facts], fd: int) -> Iterator[bytes]:
    """The same as a layer tar: what is new or changed with its parents, and a whiteout for what is gone."""
    changes = _compare(old, fd)
    gone = tuple(path for path, kind in changes if kind == DELETED)
    wanted: set[bytes] = set()
    for path, _ in changes:
        while path not in wanted:
            wanted.add(path)
            path = path.rpartition(b"/")[0]
    wanted.discard(b"")

    return archive(pack(fd, rules=PackRules(select=wanted.__contains__, gone=gone)))


def _compare(old: Mapping[bytes, Facts], fd: int) -> list[tuple[bytes, int]]:
    changes: list[tuple[bytes, int]] = []
    seen: set[bytes] = set()
    with Walker(fd) as walker:
        for step in walker:
            seen.add(step.path)
            before = old.get(step.path)
            if before is None:
                changes.append((step.path, ADDED))
                continue
            now = _facts(step.info)
            if step.child >= 0 and stat.S_ISDIR(before.mode):
                # a directory's identity changes with what is in it; only its own facts count
                before = before._replace(inode=0, ctime_ns=0)
            elif before.inode:
                now = now._replace(inode=step.info.st_ino, ctime_ns=step.info.st_ctime_ns)
            if now != before:
                changes.append((step.path, MODIFIED))
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
