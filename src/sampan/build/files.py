"""Performing COPY, ADD and WORKDIR: blocking, on descriptors of a writable snapshot and of the sources. No decision
of the graph is made here, only of what a path means: a directory or a file, one entry or many.

    sources (open roots)  ──copy()──►  target root
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from typing import NamedTuple

from sampan.build.context import content_digest, looks_like_tar
from sampan.build.failures import SourceMissing
from sampan.build.graph import Copy, CopyItem, InlineSource, Workdir
from sampan.build.ignore import Matcher
from sampan.build.modes import mode_changer
from sampan.engine import users
from sampan.errors import InvalidArgument, NotFound
from sampan.storage import decompress, layers
from sampan.storage.access import read_small
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.tar import TarError
from sampan.storage.transfer import (
    Selected,
    Transfer,
    TransferRules,
    has_wildcard,
    real_path,
    select,
    write_file,
)
from sampan.storage.tree import Walker
from sampan.units import parse_uint

HIGHEST_ID = (1 << 31) - 1


class SourceRoot(NamedTuple):
    """Where an item's files are: an open root."""

    fd: int


def resolve_owner(text: str, root: int) -> tuple[int, int] | None:
    """--chown: user[:group], names looked up in the image; a lone number is both. None where nothing is said."""
    if not text:
        return None
    user, colon, group = text.partition(":")
    if not colon:
        number = parse_uint(user, highest=HIGHEST_ID)
        if number is not None:
            return number, number
    if user and group:
        uid, gid = parse_uint(user, highest=HIGHEST_ID), parse_uint(group, highest=HIGHEST_ID)
        if uid is not None and gid is not None:
            return uid, gid
    found = users.resolve(
        text, passwd=_database(root, users.PASSWD), group=_database(root, users.GROUP)
    )
    return found.uid, found.gid


def _database(root: int, path: str) -> str:
    data = read_small(root, path, users.MAX_BYTES)
    return "" if data is None else data.decode("utf-8", "surrogateescape")


def chosen(item: CopyItem, root: SourceRoot) -> list[Selected]:
    """The entries of a source that an item names. Raises NotFound in Docker's words."""
    if item.parents:
        return _chosen_with_parents(item, root)
    try:
        return select(root.fd, item.path)
    except NotFound:
        raise SourceMissing(item.path) from None


def _chosen_with_parents(item: CopyItem, root: SourceRoot) -> list[Selected]:
    base, pivot, pattern = item.path.partition("/./")
    if not pivot:
        base, pattern = "", item.path
    front = posixpath.normpath("/" + base).lstrip("/")
    names = _expand_stars(root.fd, front, posixpath.normpath("/" + pattern).lstrip("/"))
    if not names and not has_wildcard(item.path):
        raise SourceMissing(item.path)
    return names


def _expand_stars(root: int, front: str, pattern: str) -> list[Selected]:
    """`**` in a pattern of --parents: every depth."""
    whole = posixpath.join(front, pattern)
    if "**" not in pattern:
        try:
            return select(root, whole)
        except NotFound:
            return []
    matcher = Matcher([pattern])
    try:
        top = real_path(root, front)
    except OSError:
        return []
    try:
        with Walker(top) as walker:
            paths = [(os.fsdecode(step.path), step.child >= 0) for step in walker]
    finally:
        os.close(top)
    return [
        Selected(posixpath.join(front, path), is_directory)
        for path, is_directory in paths
        if not is_directory and matcher.ignores(path)
    ]


def item_digest(item: CopyItem, root: SourceRoot, exclude: tuple[str, ...]) -> bytes:
    """What the chosen files' content is, for the cache key."""
    return content_digest(root.fd, chosen(item, root), _exclusion(exclude))


def _exclusion(patterns: tuple[str, ...]) -> Callable[[str, bool], bool] | None:
    """What of a directory is passed over: --exclude counts from it."""
    if not patterns:
        return None
    matcher = Matcher(list(patterns))

    def excluded(path: str, is_directory: bool) -> bool:
        return matcher.ignores(path) and not (is_directory and matcher.has_negations)

    return excluded


def copy(operation: Copy, target_root: int, roots: list[SourceRoot]) -> None:
    """Perform a COPY or ADD; `roots` go with the operation's items."""
    owner = resolve_owner(operation.chown, target_root)
    mode = mode_changer(operation.chmod)
    picked = [
        (item, root, [] if isinstance(item.source, InlineSource) else chosen(item, root))
        for item, root in zip(operation.items, roots, strict=True)
    ]
    many = sum(len(found) or 1 for _, _, found in picked) > 1
    for item, root, found in picked:
        rules = TransferRules(owner=owner, mode=mode, follow_destination=not operation.link)
        if isinstance(item.source, InlineSource):
            _inline(operation, item.source, target_root, rules, many=many)
            continue
        with Transfer(target_root, rules) as transfer:
            for each in found:
                _one(operation, item, each, root, transfer, target_root, many=many)


def _inline(
    operation: Copy, source: InlineSource, target_root: int, rules: TransferRules, *, many: bool
) -> None:
    with Transfer(target_root, rules) as transfer:
        path = _target_of(operation.destination, source.path, transfer, many=many)
    data = source.data.encode("utf-8", "surrogateescape")
    write_file(target_root, path, data, rules, mode=0o644)


def _target_of(destination: str, name: str, transfer: Transfer, *, many: bool) -> str:
    """The path for a file: inside the destination where that is a directory or is meant as one."""
    if destination.endswith("/") or many or transfer.destination_is_directory(destination):
        return posixpath.join(destination, name.rstrip("/").rpartition("/")[2])
    return destination


def _one(
    operation: Copy,
    item: CopyItem,
    each: Selected,
    root: SourceRoot,
    transfer: Transfer,
    target_root: int,
    *,
    many: bool,
) -> None:
    destination = operation.destination
    if item.parents:
        above = each.path
        if "/./" in item.path:
            front = posixpath.normpath("/" + item.path.partition("/./")[0]).lstrip("/")
            above = posixpath.relpath(each.path, front or ".")
        destination = posixpath.join(destination, posixpath.dirname(above), "")
        if each.is_directory:
            destination = posixpath.join(operation.destination, above, "")
    fd = real_path(root.fd, each.path)
    try:
        if each.is_directory:
            exclude = _exclusion(operation.exclude)
            transfer.contents(fd, destination.rstrip("/") or "/", exclude=exclude)
            return
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"cannot copy {each.path}: it is neither a file nor a directory")
        if item.unpack and _unpack(fd, destination, transfer, target_root, operation):
            return
        name = each.path.rpartition("/")[2]
        target = _target_of(destination, name, transfer, many=many)
        if not _is_excluded(operation, name):
            transfer.file(fd, target)
    finally:
        os.close(fd)


def _is_excluded(operation: Copy, name: str) -> bool:
    return bool(operation.exclude) and Matcher(list(operation.exclude)).ignores(name)


class _File:
    """An open file as a stream."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, size, self._at)
        self._at += len(data)
        return data


def _unpack(
    fd: int, destination: str, transfer: Transfer, target_root: int, operation: Copy
) -> bool:
    """ADD of an archive: its content goes to the destination. False where it is no archive."""
    try:
        stream = decompress.open_stream(_File(fd))
        head = b""
        while len(head) < 512 and (more := stream.read(512 - len(head))):
            head += more
    except (InvalidArgument, TarError, OSError, EOFError):
        return False
    if not looks_like_tar(head):
        return False
    owner = resolve_owner(operation.chown, target_root)
    target = transfer.directory(destination)
    try:
        rules = Rules(whiteouts=Whiteouts.PLAIN, owner=owner, touch_root=False)
        layers.apply(decompress.open_stream(_File(fd)), target, rules=rules)
    finally:
        os.close(target)
    return True


def make_workdir(operation: Workdir, target_root: int) -> None:
    """The directory with its parents, new ones owned by the user."""
    owner = resolve_owner(operation.user, target_root) if operation.user else None
    stamp = operation.epoch_ns if operation.epoch_ns >= 0 else None
    with Transfer(target_root, TransferRules(owner=owner, created_ns=stamp)) as transfer:
        os.close(transfer.directory(operation.path))
