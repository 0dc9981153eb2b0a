"""Snapshots by overlayfs: a container's writes in an upper directory over the shared layers.

    active/<key>/upper  work        merged by the caller, from `mounts()`; in a file system of their own, if
                                    the snapshot has a size (sized.py)

    lowerdir = [init layer of the stack] : topmost layer : ... : bottom layer

Options, and why each is there
    index=off           two containers may share lower layers, and a crashed one its upper, without EBUSY; and a
                        lower layer may be moved to another disk
    metacopy=off        a layer must not be able to say "my data is in that other file" (this kernel's default may be
                        on); and `diff` must find whole files in the upper directory
    redirect_dir=nofollow   the same for directories: layers are strangers' (security.md, "overlay xattrs")
    userxattr           in a user namespace, where trusted.* cannot be written

mount(2) takes 4,096 bytes of options: the short links of stack.py keep 110 layers below that for the default root.
With fsconfig(2) there is no limit but overlayfs' own 500: give each part of `lowerdir` as one `lowerdir+`
(linux/mounts.py does). `:` `,` and `\\` in a path are escaped with a backslash, as overlayfs reads them.

Source: kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING, ClassVar

from sampan.errors import Conflict
from sampan.linux.mounts import overlay
from sampan.storage import initlayer, layers, sized
from sampan.storage.access import escape, open_root
from sampan.storage.extract import Whiteouts
from sampan.storage.stack import ActiveRecord, LayerRecord, LayerStore
from sampan.storage.streams import ChunkReader
from sampan.storage.tree import open_directory, remove_tree, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sampan.spec.runtime import Mount

_SAFE = ("index=off", "metacopy=off", "redirect_dir=nofollow")


class OverlaySnapshotter(LayerStore):
    """See the module's docstring, and snapshots.Snapshotter for the promises."""

    name: ClassVar[str] = "overlay"

    # -- making --------------------------------------------------------------------------------------------------

    def prepare(
        self, key: str, parent: str | None, *, init: bool = True, size_bytes: int = 0
    ) -> None:
        self._new(key, ActiveRecord(parent=parent, init=init, size_bytes=size_bytes))

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
        if record.init:
            self._init_layer(record.parent)
        path = self._new_staging()
        try:
            if record.kind == "active":
                if record.size_bytes:
                    sized.make(path, record.size_bytes)
                base = sized.show(path) if record.size_bytes else path
                for name in ("upper", "work"):
                    os.mkdir(os.path.join(base, name), 0o755)
                fd = open_directory(os.path.join(base, "upper"))
                try:
                    self._copy_root_attributes(record.parent, fd)
                finally:
                    os.close(fd)
            self._activate(path, key, record)
        except BaseException:
            self._discard(path)
            raise

    def commit(self, key: str, chain_id: str) -> None:
        """The upper directory becomes the layer: renames, no copy.

        active/<key>/{upper,work} ──► active/<key>/{fs,work} ──► layers/<hex>/fs. A crash after the first rename is
        undone at the next start, one after the second has committed.
        """
        record = self._writable(key)
        if record.size_bytes:  # on a file system of its own: copied
            if not self.exists(chain_id):
                with self.stage(ChunkReader(self.diff(key))) as staged:
                    staged.publish(chain_id, record.parent)
            self.remove(key)
            return
        fd = self._open_writable(key)
        try:
            size = size_of(fd)
            has_root = self._root_differs(key, fd)
        finally:
            os.close(fd)
        layer = LayerRecord(
            parent=record.parent,
            bytes=size.apparent,
            inodes=size.inodes,
            link="",
            has_root=has_root,
        )
        directory = os.path.join(self.root, "active", key)
        with self._lock:
            if not self.exists(chain_id):
                os.rename(os.path.join(directory, "upper"), os.path.join(directory, "fs"))
                try:
                    self._publish(directory, chain_id, layer)
                except BaseException:
                    self._recover(directory)
                    raise
                self._forget_active(key)
        if key in self._active:
            self.remove(key)
        else:
            self._strip(chain_id)

    def _strip(self, chain_id: str) -> None:
        """What a committed snapshot had beside its files."""
        fd = open_directory(self._layer_directory(chain_id))
        try:
            for name in ("work", "snapshot.json"):
                remove_tree(name, fd)
        finally:
            os.close(fd)

    def _recover(self, directory: str) -> None:
        """Undo a commit that was cut off."""
        shown, upper = os.path.join(directory, "fs"), os.path.join(directory, "upper")
        if os.path.isdir(shown) and not os.path.exists(upper):
            os.rename(shown, upper)

    # -- looking -------------------------------------------------------------------------------------------------

    def mounts(self, key: str) -> list[Mount]:
        return self._mounts(*self._directories(key, self._snapshot(key)))

    def _mounts(self, lower: list[str], upper: str | None, work: str | None) -> list[Mount]:
        options = list(self._options())
        if upper is None:
            options.append("ro")
        options.append("lowerdir=" + ":".join(escape(path) for path in lower))
        if upper is not None and work is not None:
            options += ["upperdir=" + escape(upper), "workdir=" + escape(work)]
        return [{"destination": "/", "type": "overlay", "source": "overlay", "options": options}]

    def view_mounts(self, chain_id: str) -> list[Mount]:
        """The mounts of a layer with all below it, read-only; nothing is recorded."""
        self._layer(chain_id)
        return self._mounts(*self._directories("", ActiveRecord(parent=chain_id, kind="view")))

    def open_root(self, key: str, *, writable: bool = False) -> int:
        return open_root(self.mounts(key), writable=writable)

    def is_pristine(self, key: str) -> bool:
        """Whether nothing was ever written to the snapshot."""
        fd = self._open_writable(key)
        try:
            return not os.listdir(fd)
        finally:
            os.close(fd)

    def diff(self, name: str) -> Iterator[bytes]:
        fd = self._open_own(name)
        try:
            yield from layers.diff(fd, with_root=self._root_differs(name, fd))
        finally:
            os.close(fd)

    def changes(self, name: str) -> list[layers.Change]:
        stat = self.stat(name)
        init = name in self._active and self._active[name].init
        fd = self._open_own(name)
        lowers: list[int] = []
        try:
            lowers = self.open_stack(stat.parent)
            if init:
                lowers.insert(0, open_directory(self._init_layer(stat.parent)))
            return layers.overlay_changes(fd, lowers)
        finally:
            for each in (fd, *lowers):
                os.close(each)

    def upper_path(self, key: str) -> str:
        """The directory that takes the writes of an active snapshot (for quotas)."""
        return os.path.join(self._base(key, self._writable(key)), "upper")

    # -- inside --------------------------------------------------------------------------------------------------

    def _options(self) -> tuple[str, ...]:
        return (*_SAFE, "userxattr") if self._rules.whiteouts is Whiteouts.OVERLAY_USER else _SAFE

    def _directories(
        self, key: str, record: ActiveRecord
    ) -> tuple[list[str], str | None, str | None]:
        """(lower directories topmost first, upper, work); upper and work are None for a view."""
        lower = [self._lower_path(chain_id) for chain_id in self.stack(record.parent)]
        if record.init:
            lower.insert(0, self._init_layer(record.parent))
        if record.kind == "view":
            if len(lower) < 2:  # overlayfs wants two without an upper directory
                lower.append(os.path.join(self.root, "empty"))
            return lower, None, None
        if not lower:
            lower = [os.path.join(self.root, "empty")]
        base = self._base(key, record)
        return lower, os.path.join(base, "upper"), os.path.join(base, "work")

    def _lower_path(self, chain_id: str) -> str:
        """A short path to a layer's files."""
        self._show(chain_id)
        return os.path.join(self.root, "l", self._layers[chain_id].link)

    def _init_layer(self, parent: str | None) -> str:
        """The path of a stack's init layer, made on first use."""
        name = "none" if parent is None else self._layer(parent).link
        final = os.path.join(self.root, "i", name)
        if not os.path.isdir(final):
            path = self._new_staging()
            try:
                self._fill_init_layer(path, parent)
                os.rename(path, final)
            except BaseException as error:
                self._discard(path)
                # another thread was faster: that is as good
                if getattr(error, "errno", 0) not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        return final

    def _fill_init_layer(self, path: str, parent: str | None) -> None:
        target = open_directory(path)
        lowers: list[int] = []
        try:
            lowers = self.open_stack(parent)
            initlayer.fill(target, lowers)
            self._copy_root_attributes(parent, target)
        finally:
            for fd in (target, *lowers):
                os.close(fd)

    def _open_writable(self, key: str) -> int:
        if self._snapshot(key).kind == "view":
            return open_directory(os.path.join(self.root, "empty"))
        return open_directory(os.path.join(self._base(key, self._active[key]), "upper"))

    def _base(self, key: str, record: ActiveRecord) -> str:
        """Where upper and work directory are: the snapshot's own, or its file system's."""
        directory = os.path.join(self.root, "active", key)
        return sized.show(directory) if record.size_bytes else directory

    def _open_own(self, name: str) -> int:
        """The directory with what a layer or snapshot itself holds."""
        return (
            open_directory(self.layer_path(name))
            if name in self._layers
            else self._open_writable(name)
        )

    def _writable(self, key: str) -> ActiveRecord:
        record = self._snapshot(key)
        if record.kind == "view":
            raise Conflict(f"snapshot {key} is read-only")
        return record

    def _root_differs(self, name: str, fd: int) -> bool:
        """Whether the root directory's owner or mode was changed, which only an entry for "." can tell."""
        if name in self._layers:
            return self._layers[name].has_root
        path = self._new_staging()
        try:
            reference = open_directory(path)
            try:
                self._copy_root_attributes(self._active[name].parent, reference)
                expected, found = os.fstat(reference), os.fstat(fd)
            finally:
                os.close(reference)
        finally:
            self._discard(path)
        return (expected.st_mode, expected.st_uid, expected.st_gid) != (
            found.st_mode,
            found.st_uid,
            found.st_gid,
        )


def probe(root: str | os.PathLike[str]) -> str:
    """Why overlayfs cannot be used on a directory; empty where it can. Mounts once, detached, seen by nobody."""
    base = os.path.join(os.fspath(root), f".probe-{secrets.token_hex(4)}")
    paths = [os.path.join(base, name) for name in ("lower", "upper", "work")]
    try:
        for path in paths:
            os.makedirs(path, mode=0o700)
        from sampan.storage.stack import default_rules

        user = ("userxattr",) if default_rules().whiteouts is Whiteouts.OVERLAY_USER else ()
        os.close(overlay([paths[0]], paths[1], paths[2], (*_SAFE, *user)))
    except OSError as error:
        return "; ".join([error.strerror or str(error), *getattr(error, "__notes__", ())])
    finally:
        import shutil

        shutil.rmtree(base, ignore_errors=True)
    return ""
