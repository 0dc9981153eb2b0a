"""Volumes of the `local` driver: directories that outlive containers.

    <root>/<name>/                  0701: who has a volume's data to himself cannot list the others
        volume.json                 VolumeRecord
        _data/                      what containers see: a directory, or what its options mount there
        subpaths/<holder>-<n>/      bind mounts of `volume-subpath`s, one for each use
    <root>/.shm/<container id>/     tmpfs of a shareable /dev/shm

    create ──► hold(name, holder) ──► mount(name, holder) ──► path ... unmount ──► release ──► remove

`holder` is a container id. A volume that anybody holds is not removed ("volume is in use"); one with mount options
(`type`, `o`, `device`: tmpfs, bind, nfs, ...) is mounted while at least one holder has it mounted. Who holds what is
in memory only: the engine holds again for every container it knows when it starts.

What is in a volume is a container's: the engine opens below `_data` by descriptor only, with RESOLVE_BENEATH.
Words of errors are Docker's, since its clients show and match them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.linux import constants as c
from sampan.linux.paths import open_in_root
from sampan.linux.syscalls import mount as mount_call
from sampan.linux.syscalls import openat2, umount2
from sampan.storage import layers
from sampan.storage.copying import CopyRules, copy_tree
from sampan.storage.decompress import open_stream
from sampan.storage.extract import Whiteouts
from sampan.storage.mountwords import device_and_flags, split_options
from sampan.storage.pack import PackRules, archive, pack
from sampan.storage.stack import default_rules
from sampan.storage.tree import Size, names, open_directory, proc_path, remove_tree, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.storage.tar import Limits, Readable

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}", re.ASCII)
_OPTIONS = {"type": ("device",), "device": ("type",), "o": ("device", "type"), "size": ()}


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it was asked for."""

    version: int = 1
    name: str
    driver: str = "local"
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    created_ns: int
    anonymous: bool = False
    mountpoint: str = ""  # where it is now; not what was recorded, so that a root may be moved


class Volumes:
    """All volumes of one engine. Every method may be called from any thread."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._lock = threading.RLock()
        self._records: dict[str, VolumeRecord] = {}
        self._holders: dict[str, set[str]] = {}
        self._mounted: dict[str, set[str]] = {}
        self._subpaths: dict[tuple[str, str], list[str]] = {}
        os.makedirs(self.root, mode=0o701, exist_ok=True)
        self._load()

    # -- records -------------------------------------------------------------------------------------------------

    def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        anonymous: bool = False,
    ) -> VolumeRecord:
        """A new volume, or the one that has the name already. Without a name: an anonymous one."""
        if not name:
            name, anonymous = secrets.token_hex(32), True
        driver = driver or "local"
        with self._lock:
            there = self._records.get(name)
            if there is not None:
                if there.driver != driver:
                    raise Conflict(f"create {name}: volume name must be unique")
                return there
            if driver != "local":
                raise NotFound(
                    f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found'
                )
            _check_name(name)
            _check_options(name, options or {})
            record = VolumeRecord(
                name=name,
                options=dict(options or {}),
                labels=dict(labels or {}),
                created_ns=time.time_ns(),
                anonymous=anonymous,
                mountpoint=os.path.join(self.root, name, "_data"),
            )
            self._make(record)
            self._records[name] = record
            return record

    def get(self, name: str) -> VolumeRecord:
        """NotFound where there is none."""
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return record

    def list(self) -> list[VolumeRecord]:
        """All, by name."""
        with self._lock:
            return [self._records[name] for name in sorted(self._records)]

    def path(self, name: str) -> str:
        """The volume's mount point on the host."""
        return os.path.join(self.root, self.get(name).name, "_data")

    def remove(self, name: str, *, force: bool = False) -> None:
        """Delete a volume with its data; Conflict while it is held. With `force` a missing one is no error."""
        with self._lock:
            if force and name not in self._records:
                return
            record = self.get(name)
            if self._holders.get(name):
                holders = ", ".join(sorted(self._holders[name]))
                raise Conflict(f"remove {name}: volume is in use - [{holders}]")
            self._unmount_all(record)
            doomed = f".removing-{secrets.token_hex(8)}"
            os.rename(os.path.join(self.root, name), os.path.join(self.root, doomed))
            del self._records[name]
        self._remove_directory(doomed)

    # -- holding and mounting ------------------------------------------------------------------------------------

    def hold(self, name: str, holder: str) -> None:
        """Keep the volume from being removed."""
        with self._lock:
            self.get(name)
            self._holders.setdefault(name, set()).add(holder)

    def release(self, holder: str) -> None:
        """Let go of every volume of one holder, unmounting first if need be (safe to call twice)."""
        with self._lock:
            for name in [name for name, users in self._mounted.items() if holder in users]:
                self.unmount(name, holder)
            for users in self._holders.values():
                users.discard(holder)

    def let_go(self, name: str, holder: str) -> None:
        """The holder has this one volume no more (safe to call twice)."""
        with self._lock:
            self.unmount(name, holder)
            self._holders.get(name, set()).discard(holder)

    def holders(self, name: str) -> frozenset[str]:
        """Who holds it."""
        with self._lock:
            return frozenset(self._holders.get(name, ()))

    def mount(self, name: str, holder: str, *, subpath: str = "") -> str:
        """The host path to bind into the container. Call `unmount` when its processes are gone."""
        with self._lock:
            record = self.get(name)
            self.hold(name, holder)
            users = self._mounted.setdefault(name, set())
            if record.options.get("type") and not users and not _is_mount(self.path(name)):
                self._mount_device(record)
            users.add(holder)
            try:
                return self._mount_subpath(name, holder, subpath) if subpath else self.path(name)
            except BaseException:
                self.unmount(name, holder)
                raise

    def unmount(self, name: str, holder: str) -> None:
        """The holder's processes are gone (safe to call twice)."""
        with self._lock:
            for path in self._subpaths.pop((name, holder), []):
                _umount(path)
                _remove_mount_point(path)
            users = self._mounted.get(name, set())
            users.discard(holder)
            record = self._records.get(name)
            if not users and record is not None and record.options.get("type"):
                _umount(self.path(name))

    def _mount_device(self, record: VolumeRecord) -> None:
        target = self.path(record.name)
        try:
            kind, device, flags, data = device_and_flags(record.options)
        except InvalidArgument as error:
            raise Internal(f"error while mounting volume '{target}': {error.message}") from error
        try:
            if flags & c.MS_BIND:
                mount_call(device, target, None, flags & (c.MS_BIND | c.MS_REC))
                if flags & ~(c.MS_BIND | c.MS_REC):  # a bind takes its flags in a second call
                    mount_call(None, target, None, c.MS_REMOUNT | flags & ~c.MS_REC)
            else:
                mount_call(device, target, kind, flags, data)
        except OSError as error:
            raise Internal(
                f"error while mounting volume '{target}': "
                f"failed to mount local volume: mount {device}:{target}"
                + (f", flags: {flags:#x}" if flags else "")
                + (f", data: {data}" if data else "")
                + f": {(error.strerror or str(error)).lower()}"
            ) from error

    def _mount_subpath(self, name: str, holder: str, subpath: str) -> str:
        """A bind mount of what lies there now: a container that swaps it for a link later changes nothing."""
        fd = self.open(name, subpath)
        try:
            parent = os.path.join(self.root, name, "subpaths")
            os.makedirs(parent, mode=0o700, exist_ok=True)
            target = os.path.join(parent, f"{holder[:64]}-{secrets.token_hex(4)}")
            if os.path.isdir(proc_path(fd)):
                os.mkdir(target, 0o700)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            try:
                mount_call(proc_path(fd), target, None, c.MS_BIND | c.MS_REC)
            except BaseException:
                _remove_mount_point(target)
                raise
        finally:
            os.close(fd)
        self._subpaths.setdefault((name, holder), []).append(target)
        return target

    def open(self, name: str, subpath: str = "") -> int:
        """What lies at a path in the volume, as an O_PATH descriptor; never outside of it."""
        base = self.path(name)
        root = open_directory(base)
        try:
            return openat2(
                root,
                subpath.strip("/") or ".",
                os.O_PATH | os.O_CLOEXEC,
                0,
                c.RESOLVE_BENEATH | c.RESOLVE_NO_MAGICLINKS,
            )
        except FileNotFoundError:
            path = f"{base}/{subpath}"
            raise NotFound(
                f"cannot access path {path}: lstat {path}: no such file or directory"
            ) from None
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise InvalidArgument(
                    f"path concatenation escapes the base directory, base: {base}, subpath: {subpath}"
                ) from None
            raise InvalidArgument(
                f'error while resolving symlinks in combined path "{base}/{subpath}": '
                f"{(error.strerror or '').lower()}"
            ) from None
        finally:
            os.close(root)

    # -- content -------------------------------------------------------------------------------------------------

    def is_empty(self, name: str) -> bool:
        """Whether nothing is in it (what mkfs left does not count)."""
        fd = open_directory(self.path(name))
        try:
            return not set(names(fd)) - {b"lost+found"}
        finally:
            os.close(fd)

    def copy_up(self, name: str, root: int, path: str = "/") -> bool:
        """Fill an empty volume with what an image has at the mount point; True where it did.

        `root` is the image's tree, `path` is resolved in it as a process there would. Owner and mode of the
        mount point are taken over too. A volume with content is never touched (CVE-2020-1726).
        """
        with self._lock:
            if not self.is_empty(name):
                return False
            try:
                source = open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return False
            target = open_directory(self.path(name))
            try:
                copy_tree(source, target, rules=_copy_rules())
            finally:
                os.close(target)
                os.close(source)
            return True

    def size(self, name: str) -> int:
        """Bytes of its files; walks the volume."""
        return self.usage(name).apparent

    def usage(self, name: str) -> Size:
        """Space taken; walks the volume."""
        fd = open_directory(self.path(name))
        try:
            return size_of(fd)
        finally:
            os.close(fd)

    def export_tar(self, name: str) -> Iterator[bytes]:
        """The volume as a tar stream that `import_tar` restores exactly: holes, links, xattrs, times."""
        fd = open_directory(self.path(name))
        try:
            yield from archive(pack(fd, with_root=True, rules=PackRules(sparse=True)))
        finally:
            os.close(fd)

    def import_tar(
        self, name: str, stream: Readable, *, limits: Limits | None = None
    ) -> layers.Applied:
        """Unpack a tar, compressed or not, over what the volume has."""
        rules = replace(default_rules(), whiteouts=Whiteouts.PLAIN)
        fd = open_directory(self.path(name))
        try:
            return layers.apply(open_stream(stream), fd, rules=rules, limits=limits)
        finally:
            os.close(fd)

    # -- shared memory -------------------------------------------------------------------------------------------

    def shared_memory(self, container_id: str, size: int) -> str:
        """A tmpfs on the host for a container whose /dev/shm others may join (safe to call twice)."""
        path = self._shared_memory_path(container_id)
        with self._lock:
            os.makedirs(path, mode=0o700, exist_ok=True)
            if not _is_mount(path):
                mount_call(
                    "shm",
                    path,
                    "tmpfs",
                    c.MS_NOSUID | c.MS_NODEV | c.MS_NOEXEC,
                    f"mode=1777,size={size}",
                )
        return path

    def drop_shared_memory(self, container_id: str) -> None:
        """Safe to call twice; who has it mounted keeps it."""
        path = self._shared_memory_path(container_id)
        with self._lock:
            if os.path.isdir(path):
                _umount(path)
                os.rmdir(path)

    def _shared_memory_path(self, container_id: str) -> str:
        if re.fullmatch("[0-9a-f]{64}", container_id, re.ASCII) is None:
            raise InvalidArgument(f"invalid container id {container_id[:100]!r}")
        return os.path.join(self.root, ".shm", container_id)

    # -- on disk -------------------------------------------------------------------------------------------------

    def _make(self, record: VolumeRecord) -> None:
        """Prepared under another name, then renamed: a volume is there with its record or not at all."""
        temporary = os.path.join(self.root, f".making-{secrets.token_hex(8)}")
        os.makedirs(os.path.join(temporary, "_data"), mode=0o755)
        os.chmod(temporary, 0o701)
        os.chmod(os.path.join(temporary, "_data"), 0o755)
        fd = os.open(
            os.path.join(temporary, "volume.json"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, msgspec.json.encode(record))
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.rename(temporary, os.path.join(self.root, record.name))
        except OSError:
            self._remove_directory(os.path.basename(temporary))
            raise

    def _load(self) -> None:
        for entry in os.listdir(self.root):
            if entry.startswith((".making-", ".removing-")):
                self._remove_directory(entry)
                continue
            if _NAME.fullmatch(entry) is None:
                continue
            try:
                with open(os.path.join(self.root, entry, "volume.json"), "rb") as file:
                    record = msgspec.json.decode(file.read(1 << 20), type=VolumeRecord)
            except FileNotFoundError:
                if not os.path.isdir(os.path.join(self.root, entry, "_data")):
                    continue
                record = self._adopt(entry)
            except msgspec.MsgspecError:
                record = self._adopt(entry)
            self._records[entry] = msgspec.structs.replace(
                record, name=entry, mountpoint=os.path.join(self.root, entry, "_data")
            )
            self._drop_subpaths(entry)

    def _adopt(self, name: str) -> VolumeRecord:
        """Data whose record is damaged is listed all the same: it is a user's, and must not vanish."""
        return VolumeRecord(
            name=name, created_ns=os.stat(os.path.join(self.root, name)).st_mtime_ns
        )

    def _drop_subpaths(self, name: str) -> None:
        """Mounts of an earlier engine: containers that run keep their own."""
        parent = os.path.join(self.root, name, "subpaths")
        if os.path.isdir(parent):
            for entry in os.listdir(parent):
                _umount(os.path.join(parent, entry))
                _remove_mount_point(os.path.join(parent, entry))

    def _unmount_all(self, record: VolumeRecord) -> None:
        self._drop_subpaths(record.name)
        if record.options.get("type"):
            _umount(self.path(record.name))

    def _remove_directory(self, entry: str) -> None:
        root = open_directory(self.root)
        try:
            remove_tree(entry, root)
        finally:
            os.close(root)


def _copy_rules() -> CopyRules:
    ours = default_rules()
    return CopyRules(keep_owners=ours.keep_owners, devices=ours.devices)


def _check_name(name: str) -> None:
    if len(name) < 2:
        raise InvalidArgument(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(
            f'create {name[:300]}: "{name[:300]}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )


def _check_options(name: str, options: dict[str, str]) -> None:
    for key in options:
        if key not in _OPTIONS:
            raise InvalidArgument(f'create {name}: invalid option: "{key}"')
    for key, needed in _OPTIONS.items():
        if key in options:
            for other in needed:
                if other not in options:
                    raise InvalidArgument(f'create {name}: missing required option: "{other}"')
    if options.get("size"):  # a limit that nobody enforces would be worse than none
        raise InvalidArgument(
            f"create {name}: quota size requested but no quota support",
            hint="a file system of that size can be a volume: --opt type=tmpfs --opt device=tmpfs --opt o=size=...",
        )
    split_options(options.get("o", ""))


def _is_mount(path: str) -> bool:
    """Whether something is mounted there: a bind of the same file system shows only in its mount id."""
    fd, parent = (os.open(each, os.O_PATH | os.O_CLOEXEC) for each in (path, os.path.dirname(path)))
    try:
        return _mount_id(fd) != _mount_id(parent)
    finally:
        os.close(fd)
        os.close(parent)


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith("mnt_id:"))


def _remove_mount_point(path: str) -> None:
    """A directory or a file of ours, whichever the mount needed."""
    try:
        os.rmdir(path)
    except NotADirectoryError:
        os.unlink(path)


def _umount(path: str) -> None:
    try:
        if _is_mount(path):
            umount2(path, c.MNT_DETACH)
    except FileNotFoundError:
        pass
