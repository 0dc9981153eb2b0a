"""The part that all snapshotters share: layers as directories on disk, what is stacked on what, and their removal.

    <root>/                             0700: setuid files of images are not for the host's users
        version                         "1"
        layers/<64 hex of chain id>/
            layer.json                  LayerRecord
            fs/                         the layer's own files
            unsynced                    boot id; there until the file system was synced (see below)
        active/<key>/
            snapshot.json               ActiveRecord
            ...                         the driver's own
        i/<4 chars or "none">/          mount points and files that every container gets, per stack (initlayer.py)
        l/<4 chars> -> ../layers/<hex>/fs    short names, so that many layers fit into mount options
        incoming/<16 hex>/              a layer that is being unpacked
        staging/<16 hex>/               whatever else is being made or removed

    stage ──► incoming/x ──rename──► layers/<hex>       prepare ──► staging/y ──rename──► active/<key>
    remove: ──rename──► staging/z ──► gone

Every change of the visible tree is one rename, so a crash leaves directories in these two and nothing else.

A power loss is another matter: a renamed directory may have come to disk before its files did. Syncing thousands of
files one by one would cost seconds, so a published layer carries the mark `unsynced` with the boot id, a thread calls
syncfs(2) and takes the marks away, and a start in another boot drops the layers that still carry one: their blobs are
on disk, and unpacking again is cheap.

One process owns a root (the engine's lock on its own root sees to it), so the index of what there is lives in memory.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, Self

import msgspec

from sampan.errors import Conflict, Internal, InvalidArgument, NotFound, Unsupported
from sampan.linux.syscalls import syncfs
from sampan.storage import layers, sized
from sampan.storage.copying import CopyRules, copy_attributes
from sampan.storage.erofs_mount import TAR, is_mounted, mount_layer, unmount_layer
from sampan.storage.extract import Rules, Whiteouts
from sampan.storage.snapshots import Snapshot, Usage, check_key
from sampan.storage.tar_reader import FileStream
from sampan.storage.tree import open_directory, remove_tree, size_of, spread_over_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from sampan.storage.tar import Limits, Readable

VERSION = "1"
_HALF_MADE = ("staging", "incoming")
# As long as ext4 keeps freed inodes from use, and as far as a tree's inodes lie from its top's: mkfs's groups, sixteen of 8,192.
_RECENT_S = 360.0
_NEAR = 131_072
_TRIES = 12


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a layer; written once, before it gets its name."""

    version: int = 1
    parent: str | None
    bytes: int
    inodes: int
    form: str = "directory"  # or "erofs": layer.tar and index.erofs instead of fs/
    link: str  # its short name under l/
    opaque: bool = False  # hides everything below it
    has_root: bool = False  # says itself what the root directory is like; else the one below does


class ActiveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an active snapshot."""

    version: int = 1
    parent: str | None
    kind: str = "active"  # or "view"
    init: bool = False  # stands on the init layer of its stack
    size_bytes: int = 0  # it cannot grow beyond; 0: as far as the disk goes


class StagedLayer:
    """A layer that has arrived in staging; see snapshots.Staged."""

    def __init__(self, store: LayerStore, path: str, record: LayerRecord) -> None:
        self._store = store
        self._path: str | None = path
        self._record = record
        self.usage = Usage(record.bytes, record.inodes)
        self.has_root = record.has_root

    @property
    def path(self) -> str:
        """Its own directory tree; Conflict when it was published or discarded."""
        if self._path is None:
            raise Conflict("the staged layer was published or discarded already")
        return os.path.join(self._path, "fs")

    def publish(self, chain_id: str, parent: str | None) -> None:
        """Give it its name; a layer that already has it stays, and this copy goes."""
        if self._path is None:
            raise Conflict("the staged layer was published or discarded already")
        record = msgspec.structs.replace(self._record, parent=parent)
        if self._store._publish(self._path, chain_id, record):
            self._path = None
        else:
            self.discard()

    def replace(self, directory: str, record: LayerRecord) -> None:
        """Put it in the place of a layer that has the same content in another form."""
        if self._path is None:
            raise Conflict("the staged layer was published or discarded already")
        _write(os.path.join(self._path, "layer.json"), msgspec.json.encode(record))
        old = os.path.join(os.path.dirname(self._path), secrets.token_hex(8))
        os.rename(directory, old)
        os.rename(self._path, directory)
        self._path = old  # what `discard` now drops

    def discard(self) -> None:
        path, self._path = self._path, None
        if path is not None:
            self._store._discard(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()


class LayerStore:
    """Layers on disk. The drivers add what an active snapshot is."""

    name: ClassVar[str] = ""

    def __init__(self, root: str | os.PathLike[str], *, rules: Rules | None = None) -> None:
        self.root = os.fspath(root)
        self._rules = rules or default_rules()
        self._lock = threading.RLock()
        self._layers: dict[str, LayerRecord] = {}
        self._active: dict[str, ActiveRecord] = {}
        self._children: dict[str, int] = {}
        self._shown: set[str] = set()  # indexed layers that are mounted
        self._freed: list[tuple[float, int]] = []  # when trees were removed, and their inodes
        for name in ("", "layers", "active", "i", "l", "incoming", "staging", "empty"):
            os.makedirs(os.path.join(self.root, name), mode=0o700, exist_ok=True)
        spread_over_disk(os.path.join(self.root, "incoming"))
        self._check_version()
        self._load()
        self._syncer = _Syncer(self.root)

    # -- layers --------------------------------------------------------------------------------------------------

    def stage(
        self, layer: Readable, *, limits: Limits | None = None, blob: str = ""
    ) -> StagedLayer:
        path = self._new_incoming()
        try:
            os.mkdir(os.path.join(path, "fs"), 0o755)
            fd = open_directory(os.path.join(path, "fs"))
            try:
                os.fchmod(fd, 0o755)  # whatever the umask is
                applied = layers.apply(layer, fd, rules=self._rules, limits=limits)
                size = size_of(fd)
            finally:
                os.close(fd)
            record = LayerRecord(
                parent=None,
                bytes=applied.bytes,
                inodes=size.inodes,
                link="",
                opaque=applied.opaque_root,
                has_root=applied.root_seen,
            )
            return StagedLayer(self, path, record)
        except BaseException:
            self._discard(path)
            raise

    def layer_tar(self, chain_id: str) -> BinaryIO | None:
        """The layer's original tar, where this driver keeps it."""
        if self._layer(chain_id).form != "erofs":
            return None
        return open(os.path.join(self._layer_directory(chain_id), TAR), "rb", buffering=0)

    def layer_path(self, chain_id: str) -> str:
        """The directory that shows a layer's own files in overlayfs' form."""
        self._show(chain_id)
        return os.path.join(self._layer_directory(chain_id), "fs")

    def _layer_directory(self, chain_id: str) -> str:
        self._layer(chain_id)
        return os.path.join(self.root, "layers", _hex(chain_id))

    def _show(self, chain_id: str) -> None:
        """An indexed layer is mounted when it is first needed; unpacked, where this kernel cannot."""
        if self._layer(chain_id).form != "erofs" or chain_id in self._shown:
            return
        with self._lock:
            directory = self._layer_directory(chain_id)
            if not is_mounted(directory):
                try:
                    mount_layer(directory)
                except OSError:
                    self.unpack(chain_id)
                    return
            self._shown.add(chain_id)

    def unpack(self, chain_id: str) -> None:
        """Turn an indexed layer into a directory, from its own tar. Not while it is used."""
        directory = self._layer_directory(chain_id)
        tar = os.open(os.path.join(directory, TAR), os.O_RDONLY | os.O_CLOEXEC)
        try:
            staged = LayerStore.stage(self, FileStream(tar))
        finally:
            os.close(tar)
        with staged, self._lock:
            record = msgspec.structs.replace(self._layers[chain_id], form="directory")
            unmount_layer(directory)
            staged.replace(directory, record)
            self._layers[chain_id] = record
            self._shown.discard(chain_id)

    def stack(self, chain_id: str | None) -> list[str]:
        """The chain ids of the layers that make up a stack, topmost first, down to one that hides the rest."""
        found: list[str] = []
        while chain_id is not None:
            record = self._layer(chain_id)
            found.append(chain_id)
            if record.opaque:
                break
            chain_id = record.parent
        return found

    def open_stack(self, chain_id: str | None) -> list[int]:
        """Descriptors of the directories of a stack, topmost first; the caller closes them."""
        found: list[int] = []
        try:
            for name in self.stack(chain_id):
                found.append(open_directory(self.layer_path(name)))
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        return found

    # -- both ----------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return name in self._layers or name in self._active

    def stat(self, name: str) -> Snapshot:
        layer = self._layers.get(name)
        if layer is not None:
            return Snapshot(name, "layer", layer.parent)
        active = self._snapshot(name)
        return Snapshot(name, "view" if active.kind == "view" else "active", active.parent)

    def walk(self) -> Iterator[Snapshot]:
        with self._lock:
            names = [*self._layers, *self._active]
        for name in names:
            with suppress(NotFound):
                yield self.stat(name)

    def usage(self, name: str) -> Usage:
        layer = self._layers.get(name)
        if layer is not None:
            return Usage(layer.bytes, layer.inodes)
        self._snapshot(name)
        fd = self._open_writable(name)
        try:
            size = size_of(fd)
        finally:
            os.close(fd)
        return Usage(size.apparent, size.inodes)

    def remove(self, name: str) -> None:
        with self._lock:
            if self._children.get(name):
                raise Conflict(
                    f"snapshot {name} has others stacked on it", hint="remove those first"
                )
            if name in self._layers:
                record = self._layers[name]
                source = os.path.join(self.root, "layers", _hex(name))
                unmount_layer(source)
                self._shown.discard(name)
            else:
                self._snapshot(name)
                source = os.path.join(self.root, "active", name)
            target = os.path.join(self.root, "staging", secrets.token_hex(8))
            os.rename(source, target)
            self._freed.append((time.monotonic(), os.stat(target).st_ino))
            if name in self._layers:
                del self._layers[name]
                self._forget_child(record.parent)
                self._drop_side_files(record)
            else:
                self._forget_active(name)
        self._discard(target)

    def sweep(self) -> int:
        """Drop what a crash left half made; returns how many half made things went."""
        count = sum(self._sweep_directory(name, keep=frozenset()) for name in _HALF_MADE)
        links = frozenset(record.link for record in self._layers.values())
        self._sweep_directory("l", keep=links)
        self._sweep_directory("i", keep=links | {"none"})
        return count

    def _sweep_directory(self, name: str, *, keep: frozenset[str]) -> int:
        count = 0
        path = os.path.join(self.root, name)
        fd = open_directory(path)
        try:
            for entry in os.listdir(fd):
                if entry not in keep:
                    if name in _HALF_MADE:
                        unmount_layer(os.path.join(path, entry))
                        sized.hide(os.path.join(path, entry))
                    remove_tree(entry, fd)
                    count += 1
        finally:
            os.close(fd)
        return count

    def close(self) -> None:
        """Unmount what was mounted to show layers; containers that run keep what they have."""
        with self._lock:
            for chain_id, record in self._layers.items():
                if record.form == "erofs":
                    unmount_layer(self._layer_directory(chain_id))
            self._shown.clear()

    def sync(self) -> None:
        """Wait until every published layer is on disk."""
        self._syncer.wait()

    # -- for the drivers -----------------------------------------------------------------------------------------

    def diff(self, name: str) -> Iterator[bytes]:
        """What a layer or a writable tree has of its own, as a tar."""
        raise AssertionError("every snapshotter has its own")

    def _open_writable(self, key: str) -> int:
        """The directory that holds what an active snapshot wrote."""
        raise AssertionError("every snapshotter has its own")

    def _recover(self, directory: str) -> None:
        """Put an active snapshot right that a crash left in the middle of something."""

    def _new_staging(self, where: str = "staging") -> str:
        path = os.path.join(self.root, where, secrets.token_hex(8))
        os.mkdir(path, 0o700)
        return path

    def _new_incoming(self) -> str:
        """A place for a layer's files that is not where those of another were removed just now (see tree.py)."""
        now = time.monotonic()
        self._freed = [(then, inode) for then, inode in self._freed if now - then < _RECENT_S]
        for _ in range(_TRIES if self._freed else 1):
            path = self._new_staging("incoming")
            here = os.stat(path).st_ino
            if all(abs(here - inode) > _NEAR for _, inode in self._freed):
                return path
            os.rmdir(path)
        return self._new_staging()

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A directory for something that is needed for a moment."""
        path = self._new_staging()
        try:
            yield path
        finally:
            self._discard(path)

    def _discard(self, path: str) -> None:
        unmount_layer(path)
        sized.hide(path)
        directory = open_directory(os.path.dirname(path))
        try:
            remove_tree(os.path.basename(path), directory)
        finally:
            os.close(directory)

    def _publish(self, path: str, chain_id: str, record: LayerRecord) -> bool:
        """From staging to its name; False where the name is taken, whose holder has the same content."""
        hexadecimal = _hex(chain_id)
        with self._lock:
            if chain_id in self._layers:
                return False
            record = msgspec.structs.replace(record, link=self._new_link(hexadecimal))
            _write(os.path.join(path, "layer.json"), msgspec.json.encode(record))
            _write(os.path.join(path, "unsynced"), boot_id().encode())
            os.rename(path, os.path.join(self.root, "layers", hexadecimal))
            self._layers[chain_id] = record
            self._add_child(record.parent)
        self._syncer.ask(os.path.join(self.root, "layers", hexadecimal, "unsynced"))
        return True

    def _activate(self, path: str, key: str, record: ActiveRecord) -> None:
        """From staging to an active snapshot."""
        _write(os.path.join(path, "snapshot.json"), msgspec.json.encode(record))
        with self._lock:
            self._check_new(key, record.parent)
            os.rename(path, os.path.join(self.root, "active", key))
            self._active[key] = record
            self._add_child(record.parent)

    def _check_new(self, key: str, parent: str | None) -> None:
        check_key(key)
        if key in self._active:
            raise Conflict(f"snapshot {key} already exists")
        if parent is not None:
            self._layer(parent)

    def _layer(self, chain_id: str) -> LayerRecord:
        record = self._layers.get(chain_id)
        if record is None:
            raise NotFound(f"layer {chain_id[:200]} not found", hint="pull or load the image again")
        return record

    def _snapshot(self, key: str) -> ActiveRecord:
        record = self._active.get(key)
        if record is None:
            raise NotFound(f"snapshot {key[:200]} not found")
        return record

    def _copy_root_attributes(self, parent: str | None, target: int) -> None:
        """A new root directory looks like the one the stack below it shows."""
        for chain_id in self.stack(parent):
            if self._layers[chain_id].has_root:
                fd = open_directory(self.layer_path(chain_id))
                try:
                    rules = CopyRules(keep_owners=self._rules.keep_owners)
                    copy_attributes(fd, target, rules=rules)
                finally:
                    os.close(fd)
                return
        os.fchmod(target, 0o755)

    # -- the index -----------------------------------------------------------------------------------------------

    def _check_version(self) -> None:
        path = os.path.join(self.root, "version")
        found = ""
        with suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
            found = file.read(16).strip()
        if not found:  # a new root, or one whose host went down before this file was on disk
            _write(path, VERSION.encode(), sync=True)
        elif found != VERSION:
            raise Unsupported(
                f"{self.root} was written by another version (its format is {found!r}, ours {VERSION!r})",
                hint="use the release that wrote it, or another --root",
            )

    def _load(self) -> None:
        """What is on disk; a damaged or unsynced record is taken out of sight, never a reason not to start."""
        here = boot_id()
        for name in os.listdir(os.path.join(self.root, "layers")):
            directory = os.path.join(self.root, "layers", name)
            try:
                with open(os.path.join(directory, "layer.json"), "rb") as file:
                    record = msgspec.json.decode(file.read(), type=LayerRecord)
                with (
                    suppress(FileNotFoundError),
                    open(os.path.join(directory, "unsynced"), encoding="ascii") as mark,
                ):
                    if mark.read(64).strip() != here:
                        raise ValueError("the host went down before it was on disk")
                self._layers[f"sha256:{name}"] = record
            except (OSError, ValueError, msgspec.MsgspecError):
                os.rename(
                    directory,
                    os.path.join(self.root, "staging", f"{name[:16]}-{secrets.token_hex(4)}"),
                )
        for key in os.listdir(os.path.join(self.root, "active")):
            self._recover(os.path.join(self.root, "active", key))
            path = os.path.join(self.root, "active", key, "snapshot.json")
            with suppress(OSError, msgspec.MsgspecError), open(path, "rb") as file:
                self._active[key] = msgspec.json.decode(file.read(), type=ActiveRecord)
        for parent in (
            *(layer.parent for layer in self._layers.values()),
            *(active.parent for active in self._active.values()),
        ):
            self._add_child(parent)

    def _add_child(self, parent: str | None) -> None:
        if parent is not None:
            self._children[parent] = self._children.get(parent, 0) + 1

    def _forget_active(self, key: str) -> None:
        self._forget_child(self._active.pop(key).parent)

    def _forget_child(self, parent: str | None) -> None:
        if parent is not None:
            self._children[parent] -= 1

    def _new_link(self, hexadecimal: str) -> str:
        alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
        for _ in range(1000):
            link = "".join(secrets.choice(alphabet) for _ in range(4))
            with suppress(FileExistsError):
                os.symlink(f"../layers/{hexadecimal}/fs", os.path.join(self.root, "l", link))
                return link
        raise Internal("no short layer name is free")

    def _drop_side_files(self, record: LayerRecord) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.root, "l", record.link))
        inits = open_directory(os.path.join(self.root, "i"))
        try:
            remove_tree(record.link, inits)
        finally:
            os.close(inits)


class _Syncer:
    """Calls syncfs(2) after layers were published, on a thread that ends when there is nothing more to sync."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._condition = threading.Condition()
        self._marks: list[str] = []
        self._running = False

    def ask(self, mark: str) -> None:
        with self._condition:
            self._marks.append(mark)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="sync layers", daemon=True).start()

    def wait(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self._running)

    def _work(self) -> None:
        while True:
            with self._condition:
                marks, self._marks = self._marks, []
                if not marks:
                    self._running = False
                    self._condition.notify_all()
                    return
            try:
                fd = open_directory(os.path.join(self._root, "layers"))
                try:
                    syncfs(fd)
                finally:
                    os.close(fd)
            except OSError:
                continue  # the marks stay: after a power loss these layers are unpacked again
            for mark in marks:
                with suppress(OSError):
                    os.unlink(mark)


def default_rules() -> Rules:
    """How layers are extracted by this process: in a user namespace without devices, and with other overlay marks."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [[int(number) for number in line.split()] for line in file]
    if ranges == [[0, 0, 0xFFFFFFFF]]:
        return Rules(keep_owners=os.geteuid() == 0, devices=os.geteuid() == 0)
    several = sum(length for _, _, length in ranges) > 1
    return Rules(whiteouts=Whiteouts.OVERLAY_USER, devices=False, keep_owners=several)


def boot_id() -> str:
    """This boot of this kernel."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _hex(chain_id: str) -> str:
    algorithm, _, name = chain_id.partition(":")
    if (
        algorithm != "sha256"
        or len(name) != 64
        or not all(digit in "0123456789abcdef" for digit in name)
    ):
        raise InvalidArgument(f"invalid chain id {chain_id[:200]!r}")
    return name


def _write(path: str, data: bytes, *, sync: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)
