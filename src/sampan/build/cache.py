"""The build cache: which operation on which root filesystem made which layer; and directories that RUNs keep.

    record  kind 'build-cache'  key -> CacheRecord            in the engine's store: survives restarts
    key     digest(operation's definition, parent's chain id, content of what it read)

A record counts only while its layer is in the store, and only our own builds write records: an image that is loaded
or pulled is never a cache, whatever its history says (CVE-2024-24557). Parents are named by content (chain id), not
by how they were made.

    <root>/builder/mounts/<digest of the id>/     a cache mount's directory, kept between builds
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sampan.errors import Conflict, NotFound
from sampan.storage import layers
from sampan.storage.decompress import open_stream
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.pack import PackRules, archive, pack
from sampan.storage.snapshots import Snapshotter
from sampan.storage.tree import open_directory, remove_tree, size_of
from sampan.store import Store

if TYPE_CHECKING:
    from sampan.storage.tar import Readable

KIND = "build-cache"
MOUNT_KIND = "build-mount"
UNFINISHED = ".unfinished-"  # a cache mount that is being made
MOST_MET = 10_000


class LayerFact(msgspec.Struct, frozen=True, kw_only=True):
    """A layer by its content: digest and size of its tar."""

    diff_id: str
    size: int


class CacheRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation made. `layer` is None where it made nothing (a WORKDIR that was there)."""

    version: int = 1
    chain_id: str
    parent: str = ""
    layer: LayerFact | None = None
    description: str = ""
    type: str = "regular"
    exact: str = ""  # of an alias: the key that it stands for
    created_ns: int = 0
    used_ns: int = 0
    uses: int = 0
    bytes: int = 0


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A cache mount's directory."""

    version: int = 1
    id: str
    created_ns: int = 0
    used_ns: int = 0
    uses: int = 0


class BuildCache:
    """See the module. Thread-safe."""

    def __init__(self, root: Path, store: Store, snapshots: Snapshotter) -> None:
        self.root = root
        self.mounts_dir = root / "mounts"
        self.contexts_dir = root / "contexts"
        self.store = store
        self.snapshots = snapshots
        self._lock = threading.Lock()
        self._busy: dict[str, int] = {}
        self._pinned: dict[str, int] = {}
        self._met: dict[str, None] = {}  # insertion-ordered

    # -- layers

    def get(self, key: str) -> CacheRecord | None:
        """The record, if its layer is still there; counts as a use."""
        record = self.store.get(KIND, key, CacheRecord)
        if record is None:
            return None
        if record.chain_id and not self.snapshots.exists(record.chain_id):
            self.store.delete(KIND, key)
            return None
        used = msgspec.structs.replace(record, used_ns=time.time_ns(), uses=record.uses + 1)
        self.store.put(KIND, key, used)
        return used

    def put(self, key: str, record: CacheRecord) -> None:
        """Remember."""
        now = time.time_ns()
        kept = msgspec.structs.replace(
            record, created_ns=record.created_ns or now, used_ns=record.used_ns or now
        )
        self.store.put(KIND, key, kept)

    def records(self) -> list[tuple[str, CacheRecord]]:
        """All that is remembered."""
        return self.store.items(KIND, CacheRecord, on_damage=lambda key, *_: self._drop(key))

    def _drop(self, key: str) -> None:
        self.store.delete(KIND, key)

    def chain_ids(self) -> list[str]:
        """Layers that the cache wants kept, and those that builds under way stand on."""
        with self._lock:
            pinned = list(self._pinned)
        return pinned + [record.chain_id for _, record in self.records() if record.chain_id]

    @contextmanager
    def pinned(self, chain_id: str) -> Iterator[None]:
        """Keep a layer while a build needs it."""
        with self._lock:
            self._pinned[chain_id] = self._pinned.get(chain_id, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._pinned[chain_id] -= 1
                if not self._pinned[chain_id]:
                    del self._pinned[chain_id]

    def remove(self, keys: Iterable[str], *, used_by_images: frozenset[str]) -> int:
        """Forget records and delete the layers that nobody else has; bytes set free."""
        freed = 0
        gone = {key: record for key, record in self.records() if key in set(keys)}
        for key in gone:
            self.store.delete(KIND, key)
        kept = set(self.chain_ids()) | used_by_images
        # Children before parents: a layer that something stands on is refused by the snapshotter.
        for record in sorted(gone.values(), key=lambda r: -r.created_ns):
            if record.chain_id in kept or not self.snapshots.exists(record.chain_id):
                continue
            try:
                self.snapshots.remove(record.chain_id)
            except (Conflict, NotFound):
                continue
            freed += record.bytes
        return freed

    def is_known(self, identity: str) -> bool:
        """Whether an image of a step that only changes the configuration was met before; it is from now on."""
        with self._lock:
            known = identity in self._met
            self._met[identity] = None
            while len(self._met) > MOST_MET:
                del self._met[next(iter(self._met))]
        return known

    # -- cache mounts

    def mount_path(self, identity: str) -> Path:
        """A cache mount's directory; its name is a digest, so that an id is never a path."""
        return self.mounts_dir / hashlib.sha256(identity.encode()).hexdigest()

    def open_mount(
        self,
        identity: str,
        *,
        mode: int,
        uid: int,
        gid: int,
        seed: Callable[[Path], None] | None = None,
    ) -> Path:
        """The directory; where it is missing it is made with this mode and owner, and `seed` fills it.

        It appears under its name when it is whole: another step may want it at the same moment, and a crash must not
        leave half a seed that is taken for the cache.
        """
        path = self.mount_path(identity)
        self.mounts_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            self._make_mount(path, mode, uid, gid, seed)
        now = time.time_ns()
        with self._lock:
            record = self.store.get(MOUNT_KIND, path.name, MountRecord) or MountRecord(
                id=identity, created_ns=now
            )
            used = msgspec.structs.replace(record, used_ns=now, uses=record.uses + 1)
            self.store.put(MOUNT_KIND, path.name, used)
        return path

    def _make_mount(
        self, path: Path, mode: int, uid: int, gid: int, seed: Callable[[Path], None] | None
    ) -> None:
        fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.mounts_dir))
        try:
            os.chown(fresh, uid, gid)
            fresh.chmod(mode)
            if seed is not None:
                seed(fresh)
            with self._lock:
                if not path.exists():
                    fresh.rename(path)
                    return
        except BaseException:
            self._delete(self.mounts_dir, fresh.name)
            raise
        self._delete(self.mounts_dir, fresh.name)  # another step was first

    @staticmethod
    def _delete(directory: Path, name: str) -> None:
        parent = open_directory(str(directory))
        try:
            remove_tree(name, parent)
        finally:
            os.close(parent)

    @contextmanager
    def using(self, identity: str) -> Iterator[None]:
        """The directory may not be removed meanwhile."""
        with self._lock:
            self._busy[identity] = self._busy.get(identity, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._busy[identity] -= 1
                if not self._busy[identity]:
                    del self._busy[identity]

    def mount_records(self) -> list[MountRecord]:
        """Every cache mount."""
        return [record for _, record in self.store.items(MOUNT_KIND, MountRecord)]

    def mount_size(self, identity: str) -> int:
        """Bytes in a cache mount."""
        try:
            fd = open_directory(str(self.mount_path(identity)))
        except OSError:
            return 0
        try:
            return size_of(fd).apparent
        finally:
            os.close(fd)

    def export_mount(self, identity: str) -> Iterator[bytes]:
        """A cache mount as a tar that `import_mount` takes back exactly. Raises NotFound."""
        try:
            fd = open_directory(str(self.mount_path(identity)))
        except OSError:
            raise NotFound(f"no such cache mount: {identity}") from None
        return _archive(fd)

    def import_mount(self, identity: str, stream: Readable) -> None:
        """Unpack a tar, compressed or not, over what the cache mount has; it is made where it is missing."""
        path = self.open_mount(identity, mode=0o755, uid=0, gid=0)
        with self.using(identity):
            fd = open_directory(str(path))
            try:
                layers.apply(open_stream(stream), fd, rules=Rules(whiteouts=Whiteouts.PLAIN))
            finally:
                os.close(fd)

    def remove_mount(self, identity: str) -> int:
        """Delete a cache mount; bytes set free. Raises NotFound, Conflict while a build uses it."""
        with self._lock:
            if identity in self._busy:
                raise Conflict(f"cache mount {identity} is in use by a build")
        path = self.mount_path(identity)
        if not path.exists():
            raise NotFound(f"no such cache mount: {identity}")
        freed = self.mount_size(identity)
        self._delete(self.mounts_dir, path.name)
        self.store.delete(MOUNT_KIND, path.name)
        return freed

    def sweep(self) -> None:
        """At start: contexts of builds that a crash ended, and those that were kept. Nobody waits for their deletion."""
        if self.mounts_dir.is_dir():
            for entry in self.mounts_dir.glob(f"{UNFINISHED}*"):
                self._delete(self.mounts_dir, entry.name)
        if self.contexts_dir.is_dir():
            old = os.listdir(self.contexts_dir)
            threading.Thread(
                target=self._delete_contexts, args=(old,), name="old-contexts", daemon=True
            ).start()

    def _delete_contexts(self, names: list[str]) -> None:
        parent = open_directory(str(self.contexts_dir))
        try:
            for name in names:
                remove_tree(name, parent)
        finally:
            os.close(parent)


def _archive(fd: int) -> Iterator[bytes]:
    try:
        yield from archive(pack(fd, with_root=True, rules=PackRules(sparse=True)))
    finally:
        os.close(fd)
