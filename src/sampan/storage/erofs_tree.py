"""A layer's tar as a tree in memory: what extracting it would make, with file contents left where they are.

The rules are those of extract.py, entry by entry: what replaces what, links in parents followed inside the root,
missing parents made, whiteouts and opaque marks, foreign attributes dropped, the same archives refused. A test
extracts and indexes the same random archives and compares the trees.

What an index cannot express raises `NotIndexable`; the caller then extracts instead.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from sampan.storage.extract import META, OPAQUE, WHITEOUT, is_foreign_xattr, split_name
from sampan.storage.tar import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Entry,
    Limits,
    TarError,
    show,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.storage.tar_reader import TarReader

_FORMATS = {
    FILE: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    CHAR: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK,
    FIFO: stat.S_IFIFO,
}
_NAMESPACES = (
    b"user.",
    b"trusted.",
    b"security.",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
)
_MAX_LINKS = 40  # the kernel's own
_MAX_NAME = 255
# A node costs about a kilobyte of memory. Larger layers are extracted.
MAX_NODES = 500_000


class NotIndexable(Exception):
    """This layer must be extracted."""


class Node:
    """One file of the tree, whatever number of names it has."""

    __slots__ = (
        "children",
        "gid",
        "inline",
        "links",
        "mode",
        "mtime_ns",
        "nid",
        "offset",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = 0
        self.offset = 0  # of a file's data in the tar
        self.rdev = 0
        self.target = b""
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.xattrs: dict[bytes, bytes] | None = None
        self.links = 0  # what follows is filled in by the writer
        self.nid = 0
        self.inline = False

    @property
    def is_whiteout(self) -> bool:
        return self.rdev == 0 and stat.S_ISCHR(self.mode)


class Tree:
    """Takes entries in the order of the archive."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.root = Node(stat.S_IFDIR | 0o755, 0, 0, 0)
        self.bytes = 0
        self.entries = 0
        self.opaque_root = False
        self.root_seen = False
        self._limits = limits or Limits()
        self._parents: dict[bytes, Node] = {b"": self.root}

    def read(self, reader: TarReader) -> None:
        """All entries of an archive; the data is passed over."""
        while (entry := reader.next()) is not None:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        self.entries += 1
        self.bytes += entry.size
        if self.bytes > self._limits.bytes:
            raise TarError(f"more than {self._limits.bytes} bytes of files", entry=entry.name)
        if self.entries > MAX_NODES:
            raise NotIndexable(f"more than {MAX_NODES} entries")
        if entry.sparse is not None:
            raise NotIndexable("a sparse file")
        parent_path, base = split_name(entry.name, self._limits)
        if len(base) > _MAX_NAME:
            raise TarError("cannot extract: File name too long", entry=entry.name)
        if not base:
            self._root_entry(entry)
        elif base.startswith(WHITEOUT):
            self._whiteout(entry, parent_path, base)
        elif entry.kind == LINK:
            self._link(entry, parent_path, base)
        elif entry.kind == DIRECTORY:
            self._directory(entry, parent_path, base)
        else:
            self._other(entry, parent_path, base)

    # -- one method a kind ---------------------------------------------------------------------------------------

    def _root_entry(self, entry: Entry) -> None:
        if entry.kind != DIRECTORY:
            raise TarError("the root of the archive is not a directory", entry=entry.name)
        self.root_seen = True
        self._set_facts(self.root, entry)

    def _directory(self, entry: Entry, parent_path: bytes, base: bytes) -> None:
        siblings = self._children(self._parent(parent_path, entry))
        there = siblings.get(base)
        if there is None or there.children is None:
            node = _node(entry)
            if there is not None:
                if there.is_whiteout:
                    _set_opaque(node)
                self._forget(there)
            siblings[base] = node
        else:
            node = there
        self._set_facts(node, entry)

    def _other(self, entry: Entry, parent_path: bytes, base: bytes) -> None:
        siblings = self._children(self._parent(parent_path, entry))
        there = siblings.get(base)
        if there is not None:
            self._forget(there)
        node = _node(entry)
        if entry.kind == FILE:
            node.size, node.offset = entry.size, entry.offset
        elif entry.kind == SYMLINK:
            if not entry.linkname:
                raise TarError("cannot extract: No such file or directory", entry=entry.name)
            node.target = entry.linkname
            node.mode = stat.S_IFLNK | 0o777
        elif entry.kind != FIFO:
            node.rdev = os.makedev(entry.major, entry.minor)
        node.xattrs = _kept(entry.xattrs, node.mode)
        siblings[base] = node

    def _link(self, entry: Entry, parent_path: bytes, base: bytes) -> None:
        source_path, source_base = split_name(entry.linkname, self._limits, of=entry.name)
        if not source_base or (source_path, source_base) == (parent_path, base):
            raise TarError(
                f"hard link to itself or to the root ({show(entry.linkname)})", entry=entry.name
            )
        node = self._linked(entry, source_path, source_base)
        siblings = self._children(self._parent(parent_path, entry))
        there = siblings.get(base)
        if there is node:
            return
        if there is not None:
            del siblings[base]
            self._forget(there)
            node = self._linked(entry, source_path, source_base)  # it may have been in there
            siblings = self._children(self._parent(parent_path, entry))
        if node.children is not None:
            raise TarError("cannot extract: Operation not permitted", entry=entry.name)
        siblings[base] = node

    def _linked(self, entry: Entry, path: bytes, base: bytes) -> Node:
        parent = self._parents.get(path) or self._walk(path, None)
        node = self._children(parent).get(base) if parent is not None else None
        if node is None:
            raise TarError(
                f"hard link to {show(entry.linkname)}: No such file or directory", entry=entry.name
            )
        return node

    def _whiteout(self, entry: Entry, parent_path: bytes, base: bytes) -> None:
        if base == OPAQUE:
            parent = self._parent(parent_path, entry)
            self.opaque_root = self.opaque_root or parent is self.root
            _set_opaque(parent)
            return
        if base.startswith(META):
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise TarError("whiteout of an impossible name", entry=entry.name)
        siblings = self._children(self._parent(parent_path, entry))
        there = siblings.get(hidden)
        if there is None:
            siblings[hidden] = Node(stat.S_IFCHR, 0, 0, 0)
        elif there.children is not None:
            _set_opaque(there)

    # -- parents -------------------------------------------------------------------------------------------------

    def _parent(self, path: bytes, entry: Entry) -> Node:
        node = self._parents.get(path)
        if node is None:
            node = self._walk(path, entry)
            if node is None:
                raise TarError("cannot extract: Not a directory", entry=entry.name)
            self._parents[path] = node
        return node

    def _walk(self, path: bytes, make_for: Entry | None) -> Node | None:
        """A directory by path, links followed as RESOLVE_IN_ROOT does; made where it is missing, if asked."""
        stack = [self.root]
        left = path.split(b"/")[::-1]
        links = 0
        boundary = len(left)  # what lies above it in `left` came out of a link
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            from_link = len(left) >= boundary
            if not from_link:
                boundary = len(left)
            siblings = self._children(stack[-1])
            node = siblings.get(part)
            if node is not None and stat.S_ISLNK(node.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise self._failure(make_for, "Too many levels of symbolic links")
                if node.target.startswith(b"/"):
                    del stack[1:]
                left += node.target.split(b"/")[::-1]
                continue
            if node is None or (node.is_whiteout and not from_link):
                if from_link or make_for is None:
                    return None
                siblings[part] = made = Node(stat.S_IFDIR | 0o755, 0, 0, make_for.mtime_ns)
                if node is not None:
                    _set_opaque(made)
                node = made
            if node.children is None:
                raise self._failure(make_for, "Not a directory")
            stack.append(node)
        return stack[-1]

    @staticmethod
    def _failure(entry: Entry | None, text: str) -> TarError:
        return TarError(f"cannot extract: {text}", entry=entry.name if entry is not None else None)

    @staticmethod
    def _children(node: Node) -> dict[bytes, Node]:
        assert node.children is not None  # only directories are parents
        return node.children

    def _forget(self, replaced: Node) -> None:
        """Paths that were walked through it lead elsewhere now."""
        if replaced.children is not None or stat.S_ISLNK(replaced.mode):
            self._parents = {b"": self.root}

    @staticmethod
    def _set_facts(node: Node, entry: Entry) -> None:
        node.mode = stat.S_IFMT(node.mode) | entry.mode
        node.uid, node.gid, node.mtime_ns = entry.uid, entry.gid, entry.mtime_ns
        kept = _kept(entry.xattrs, node.mode)
        if kept:
            node.xattrs = {**(node.xattrs or {}), **kept}


def walk(root: Node) -> Iterator[tuple[Node, Node]]:
    """(directory, parent) of every directory, the root first and its own parent."""
    stack = [(root, root)]
    while stack:
        node, parent = stack.pop()
        yield node, parent
        stack += [
            (child, node) for child in (node.children or {}).values() if child.children is not None
        ]


def _node(entry: Entry) -> Node:
    return Node(_FORMATS[entry.kind] | entry.mode, entry.uid, entry.gid, entry.mtime_ns)


def _set_opaque(node: Node) -> None:
    node.xattrs = {**(node.xattrs or {}), b"trusted.overlay.opaque": b"y"}


def _kept(xattrs: dict[bytes, bytes] | None, mode: int) -> dict[bytes, bytes] | None:
    """What a disk file system would have stored: `user.` only on files and directories."""
    if not xattrs:
        return None
    plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return {
        key: value
        for key, value in xattrs.items()
        if not is_foreign_xattr(key)
        and key.startswith(_NAMESPACES)
        and (plain or not key.startswith((b"user.", b"system.")))
    } or None
