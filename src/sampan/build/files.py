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

import msgspec

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
    root_path,
    select,
    write_file,
)
from sampan.storage.tree import Walker
from sampan.units import parse_uint

HIGHEST_ID = (1 << 31) - 1
Excluded = Callable[[str, bool], bool]


class SourceRoot(NamedTuple):
    """Where an item's files are: an open root; whether its files are ours, and never written again."""

    fd: int
    is_ours: bool = False


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
    passwd, groups = _database(root, users.PASSWD), _database(root, users.GROUP)
    try:
        account = users.resolve(user or "0", passwd=passwd, group="")
        uid, gid = account.uid, account.gid
    except InvalidArgument:
        uid, gid = 0, 0  # a name that nobody has is root's, as for BuildKit
    if group:
        try:
            gid = users.resolve(f"{uid}:{group}", passwd="", group=groups).gid
        except InvalidArgument:
            gid = 0
    return uid, gid


def _database(root: int, path: str) -> str:
    data = read_small(root, path, users.MAX_BYTES)
    return "" if data is None else data.decode("utf-8", "surrogateescape")


def chosen(item: CopyItem, root: SourceRoot) -> list[Selected]:
    """The entries of a source that an item names. Raises NotFound in Docker's words."""
    if item.parents:
        return _chosen_with_parents(item, root)
    try:
        return select(root.fd, item.path)
    except NotFound as error:
        raise SourceMissing(root_path(root.fd, error.message)) from None


def _chosen_with_parents(item: CopyItem, root: SourceRoot) -> list[Selected]:
    """The directories that a pattern of --parents counts from: the root, or what stands before `/./`."""
    base, pattern = _pivot(item.path)
    try:
        found = [each for each in select(root.fd, base) if each.is_directory]
    except NotFound:
        found = []
    if not has_wildcard(item.path):
        whole = posixpath.join(base, pattern)
        if not found or not exists_in(root.fd, whole):
            raise SourceMissing(whole)
    return found


def _pivot(path: str) -> tuple[str, str]:
    """(the directory that is not repeated, the pattern that is)."""
    base, pivot, pattern = path.partition("/./")
    if not pivot:
        base, pattern = "", path
    return tuple(posixpath.normpath("/" + each).lstrip("/") for each in (base, pattern))  # type: ignore[return-value]


def exists_in(root: int, path: str) -> bool:
    """Whether a path is there, links followed inside the root."""
    try:
        os.close(real_path(root, path))
    except OSError:
        return False
    return True


def _only(pattern: str, fd: int) -> Excluded:
    """Everything but what the pattern matches, what is below that and the directories above it."""
    matcher = Matcher([pattern])
    included: set[str] = set()
    with Walker(fd) as walker:
        for step in walker:
            path = os.fsdecode(step.path)
            if matcher.ignores(path):
                included.add(path)
                while (path := posixpath.dirname(path)) and path not in included:
                    included.add(path)
    return lambda path, _is_directory: path not in included


def item_digest(item: CopyItem, root: SourceRoot, exclude: tuple[str, ...]) -> bytes:
    """What the chosen files' content is, for the cache key."""
    return content_digest(root.fd, chosen(item, root), lambda fd: _exclusion(item, exclude, fd))


def _exclusion(item: CopyItem, patterns: tuple[str, ...], fd: int) -> Excluded | None:
    """What of an open directory is passed over: --exclude counts from it, as does --parents."""
    passed: list[Excluded] = []
    if patterns:
        matcher = Matcher(list(patterns))
        passed.append(
            lambda path, is_directory: (
                matcher.ignores(path) and not (is_directory and matcher.has_negations)
            )
        )
    if item.parents:
        passed.append(_only(_pivot(item.path)[1], fd))
    if not passed:
        return None
    return lambda path, is_directory: any(each(path, is_directory) for each in passed)


def copy(operation: Copy, target_root: int, roots: list[SourceRoot], *, upper: int = -1) -> None:
    """Perform a COPY or ADD; `roots` go with the operation's items. `upper`: see `Transfer`."""
    owner = resolve_owner(operation.chown, target_root)
    mode = mode_changer(operation.chmod)
    picked = [
        (item, root, [] if isinstance(item.source, InlineSource) else chosen(item, root))
        for item, root in zip(operation.items, roots, strict=True)
    ]
    lent: set[tuple[int, int]] = set()
    for item, root, found in picked:
        rules = TransferRules(owner=owner, mode=mode, lent=lent if root.is_ours else None)
        if isinstance(item.source, InlineSource):
            _inline(operation, item.source, target_root, rules)
            continue
        with Transfer(target_root, rules, upper=upper) as transfer:
            for each in found:
                _one(operation, item, each, root, transfer, target_root)


def _inline(operation: Copy, source: InlineSource, target_root: int, rules: TransferRules) -> None:
    with Transfer(target_root, rules) as transfer:
        path = _target_of(operation.destination, source.path, transfer)
    data = source.data.encode("utf-8", "surrogateescape")
    write_file(target_root, path, data, rules, mode=0o644)


def _target_of(destination: str, name: str, transfer: Transfer) -> str:
    """The path for a file: inside the destination where that is a directory or is meant as one."""
    if destination.endswith("/") or transfer.destination_is_directory(destination):
        return posixpath.join(destination, name.rstrip("/").rpartition("/")[2])
    return destination


def _one(
    operation: Copy,
    item: CopyItem,
    each: Selected,
    root: SourceRoot,
    transfer: Transfer,
    target_root: int,
) -> None:
    destination = operation.destination
    fd = real_path(root.fd, each.path)
    try:
        if each.is_directory:
            exclude = _exclusion(item, operation.exclude, fd)
            transfer.contents(fd, destination.rstrip("/") or "/", exclude=exclude)
            return
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"cannot copy {each.path}: it is neither a file nor a directory")
        if item.unpack and _unpack(fd, destination, transfer):
            return
        name = each.path.rpartition("/")[2]
        target = _target_of(destination, name, transfer)
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


def _unpack(fd: int, destination: str, transfer: Transfer) -> bool:
    """ADD of an archive: its content goes to the destination, its owners kept. False where it is no archive."""
    try:
        stream = decompress.open_stream(_File(fd))
        head = b""
        while len(head) < 512 and (more := stream.read(512 - len(head))):
            head += more
    except (InvalidArgument, TarError, OSError, EOFError):
        return False
    if not looks_like_tar(head):
        return False
    target = transfer.directory(destination)
    try:
        rules = Rules(whiteouts=Whiteouts.PLAIN, touch_root=False)
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


# --- COPY --link: what its layer has to know of the root filesystem below


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a COPY --link ends up: the destination with links worked off, and the directories on the way that are
    there, as (mode, uid, gid) from the top. Equal landings make equal layers, whatever else is below."""

    destination: str
    above: tuple[tuple[int, int, int], ...] = ()
    owner: str = ""


def landing(root: int, operation: Copy) -> Landing:
    """Blocking: look at the root filesystem that the layer will lie on."""
    destination = operation.destination
    path = root_path(root, destination)
    owner = resolve_owner(operation.chown, root)
    above = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts)):
        try:
            fd = real_path(root, "/".join(parts[: depth + 1]))
        except OSError:
            break
        info = os.fstat(fd)
        os.close(fd)
        if not stat.S_ISDIR(info.st_mode):
            break
        above.append((stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid))
    ends = destination.endswith("/") or len(above) == len(parts)
    return Landing(
        destination=path.rstrip("/") + "/" if ends else path, above=tuple(above),
        owner=f"{owner[0]}:{owner[1]}" if owner else "",
    )  # fmt: skip


def dress(root: int, where: Landing) -> None:
    """Give the directories on the way the looks that they have below: theirs must not change."""
    parts = [part for part in where.destination.split("/") if part]
    for depth, (mode, uid, gid) in enumerate(where.above):
        try:
            fd = real_path(root, "/".join(parts[: depth + 1]))
        except OSError:
            return
        try:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
