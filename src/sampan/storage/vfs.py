"""Snapshots as plain copies: the fallback that works on every file system, with or without privileges.

    active/<key>/fs          the whole tree, layers merged bottom first
    active/<key>/base.bin    what each entry was like at the start; `diff` compares with it

Layers are kept as they came (whiteouts as `.wh.` files), so images share them here too; only the writable copies
cost space, less where the file system shares blocks between copies (copy_file_range(2): btrfs, xfs).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import msgspec

from sampan.errors import Conflict, Unsupported
from sampan.storage import initlayer, layers
from sampan.storage.copying import CopyRules, copy_tree
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.stack import ActiveRecord, LayerStore, default_rules
from sampan.storage.streams import ChunkReader
from sampan.storage.tree import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.spec.runtime import Mount


class VfsSnapshotter(LayerStore):
    """See snapshots.Snapshotter for the promises."""

    name: ClassVar[str] = "vfs"

    def __init__(self, root: str | os.PathLike[str], *, rules: Rules | None = None) -> None:
        super().__init__(root, rules=replace(rules or default_rules(), whiteouts=Whiteouts.FILES))

    def prepare(
        self, key: str, parent: str | None, *, init: bool = True, size_bytes: int = 0
    ) -> None:
        if size_bytes:
            raise Unsupported("--storage-opt size is not possible with the vfs driver")
        self._new(key, ActiveRecord(parent=parent, init=init))

    def view(self, key: str, parent: str | None) -> None:
        self._new(key, ActiveRecord(parent=parent, kind="view"))

    def _new(self, key: str, record: ActiveRecord) -> None:
        with self._lock:
            self._check_new(key, record.parent)
        try:
            self._build(key, record)
        except FileNotFoundError:
            self._check_new(key, record.parent)  # says so if a layer below was removed meanwhile
            raise

    def _build(self, key: str, record: ActiveRecord) -> None:
        path = self._new_staging()
        try:
            os.mkdir(os.path.join(path, "fs"), 0o755)
            fd = open_directory(os.path.join(path, "fs"))
            try:
                self._merge(record, fd)
                facts = layers.facts_of(fd, with_identity=True)
            finally:
                os.close(fd)
            with open(os.path.join(path, "base.bin"), "wb") as file:
                file.write(msgspec.msgpack.encode(facts))
            self._activate(path, key, record)
        except BaseException:
            self._discard(path)
            raise

    def _merge(self, record: ActiveRecord, target: int) -> None:
        rules = CopyRules(
            whiteouts=True,
            replace=True,
            keep_owners=self._rules.keep_owners,
            devices=self._rules.devices,
        )
        for chain_id in reversed(self.stack(record.parent)):
            source = open_directory(self.layer_path(chain_id))
            try:
                copy_tree(source, target, rules=rules, with_root=False)
            finally:
                os.close(source)
        if record.init:
            initlayer.fill(target, [])
        self._copy_root_attributes(record.parent, target)

    def mounts(self, key: str) -> list[Mount]:
        record = self._snapshot(key)
        options = ["rbind", "ro"] if record.kind == "view" else ["rbind", "rw"]
        return [{"destination": "/", "type": "bind", "source": self._tree(key), "options": options}]

    def view_mounts(self, chain_id: str) -> list[Mount]:
        """A plain copy for every stack that is looked at, kept under a name of its own until its layer goes."""
        key = f"view-{self._layer(chain_id).link}"
        with self._lock:
            if not self.exists(key):
                self.view(key, chain_id)
        return self.mounts(key)

    def open_root(self, key: str, *, writable: bool = False) -> int:
        self._snapshot(key)
        return open_directory(self._tree(key))

    def is_pristine(self, key: str) -> bool:
        """Whether nothing was ever written to the snapshot."""
        return not self.changes(key)

    def remove(self, name: str) -> None:
        record = self._layers.get(name)
        view = f"view-{record.link}" if record is not None else ""
        if view in self._active:
            super().remove(view)
        super().remove(name)

    def commit(self, key: str, chain_id: str) -> None:
        """Copies what changed: here the tree of a container is not the tree of a layer."""
        record = self._snapshot(key)
        if record.kind == "view":
            raise Conflict(f"snapshot {key} is read-only")
        if not self.exists(chain_id):
            with self.stage(ChunkReader(self.diff(key))) as staged:
                staged.publish(chain_id, record.parent)
        self.remove(key)

    def diff(self, name: str) -> Iterator[bytes]:
        if name in self._layers:
            fd = open_directory(self.layer_path(name))
            try:
                yield from layers.diff(fd, with_root=self._layers[name].has_root, markers=True)
            finally:
                os.close(fd)
            return
        fd = self._open_writable(name)
        try:
            yield from layers.compare_tar(self._base(name), fd)
        finally:
            os.close(fd)

    def changes(self, name: str) -> list[layers.Change]:
        self._snapshot(name)
        fd = self._open_writable(name)
        try:
            return layers.compare(self._base(name), fd)
        finally:
            os.close(fd)

    def upper_path(self, key: str) -> str:
        """The directory that takes the writes of an active snapshot (for quotas)."""
        self._snapshot(key)
        return self._tree(key)

    def _tree(self, key: str) -> str:
        return os.path.join(self.root, "active", key, "fs")

    def _open_writable(self, key: str) -> int:
        self._snapshot(key)
        return open_directory(self._tree(key))

    def _base(self, key: str) -> dict[bytes, layers.Facts]:
        self._snapshot(key)
        with open(os.path.join(self.root, "active", key, "base.bin"), "rb") as file:
            return msgspec.msgpack.decode(file.read(), type=dict[bytes, layers.Facts])
