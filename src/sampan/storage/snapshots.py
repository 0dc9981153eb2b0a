"""Root filesystems as snapshots: the words, the promises, and the interface that every driver keeps.

Words
    chain id    names a stack of layers: `sha256:<hex>` over the layers' diff ids, bottom first (OCI image-spec,
                config.md "Layer ChainID"). `chain_ids()` computes them.
    layer       committed: immutable, named by its chain id, shared by every image and container that has it,
                with a parent (the chain id of the stack below it) or none.
    key         names an active snapshot: writable, one owner (a container, a build step). Any `[a-zA-Z0-9_.-]+`.
    staged      a layer whose bytes have arrived but which has no name yet.
    mounts      OCI `Mount` values that make a snapshot appear; making them is the caller's business (containerd's
                cut: filesystems produce mounts, execution consumes them).

Life

    layer stream ──stage()──► Staged ──publish(chain_id, parent)──► layer ◄──commit(key, chain_id)── active
                                                                      │                                 ▲
                                                                      └─────────prepare(key, parent)────┘
    remove(name) takes any of the two away; a layer that is somebody's parent is refused (Conflict).

Importing an image of two layers

    ids = chain_ids([diff_id_0, diff_id_1])
    with driver.stage(stream_0) as one, driver.stage(stream_1) as two:   # may run in parallel, in any order
        ...                                                              # compare the diff ids you hashed on the way
        one.publish(ids[0], None)                                        # in order, bottom first: cheap
        two.publish(ids[1], ids[0])

Running a container

    driver.prepare(key, ids[-1])
    mounts = driver.mounts(key)      # hand to the launcher as rootfs_mounts; the upper directory is in the options
    ...
    driver.remove(key)               # when no process holds the mount any more

Making a layer of what a container or a build step wrote

    for chunk in driver.diff(key): ...            # the layer tar, reproducible
    driver.commit(key, chain_id)                  # the upper directory *is* the new layer: a rename, no copy

Promises every driver keeps (tests/contract/test_snapshotter.py runs them all)
  - A layer appears under its name only when it is complete; a crash leaves no half layer, only staging
    directories that `sweep()` drops at the next start.
  - `publish` and `prepare` of a name that exists: the first is a success that drops the new copy (the content is
    the same by definition), the second is a Conflict.
  - What is extracted never leaves its directory, whatever the archive says (see layers.py).
  - `remove` never follows a link and works on trees of any depth.
  - Calls may come from any thread; calls for one name are serialised by the driver.

Mounting (for whoever performs the mounts, in order)
  - type "overlay": the options are overlayfs' own. `lowerdir` may hold more than the 4,096 bytes that mount(2) takes or
    the 255 of one fsconfig(2): give its parts as one "lowerdir+" each (linux/mounts.py does; Linux 6.7).
  - type "bind" (vfs): the ordinary bind mount of `source`.
  - The directories named in the options exist before `mounts()` returns.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, Protocol, Self

from sampan.errors import InvalidArgument
from sampan.storage.streams import HashingReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sampan.spec.runtime import Mount
    from sampan.storage.layers import Change
    from sampan.storage.tar import Limits, Readable

_KEY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)


class Snapshot(NamedTuple):
    """What there is under one name."""

    name: str  # a chain id or a key
    kind: Literal["layer", "active", "view"]
    parent: str | None


class Usage(NamedTuple):
    """Disk taken by a snapshot itself, its parents not counted."""

    bytes: int
    inodes: int


class Staged(Protocol):
    """A layer that has arrived. Leaving the `with` without `publish` drops it."""

    @property
    def usage(self) -> Usage: ...

    def publish(self, chain_id: str, parent: str | None) -> None:
        """Give it its name. The parent must exist."""

    def discard(self) -> None:
        """Drop it (safe to call twice, and after publish)."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Snapshotter(Protocol):
    """See the module's docstring for words, life and promises."""

    @property
    def name(self) -> str:
        """What `info` shows as the storage driver: "overlay", "erofs", "vfs"."""

    def stage(self, layer: Readable, *, limits: Limits | None = None, blob: str = "") -> Staged:
        """Read an uncompressed layer tar to its very end.

        `blob` is the path of the same bytes as a verified file that will never change, where there is
        one: a driver may share it instead of writing them again, and then leaves `layer` unread.
        """

    def exists(self, name: str) -> bool:
        """Whether a layer or an active snapshot has this name."""

    def stat(self, name: str) -> Snapshot:
        """Kind and parent; NotFound."""

    def walk(self) -> Iterator[Snapshot]:
        """Everything there is."""

    def prepare(
        self, key: str, parent: str | None, *, init: bool = True, size_bytes: int = 0
    ) -> None:
        """A new writable snapshot on top of a layer, or of nothing. Conflict where the key is taken.

        With `size_bytes` what is written to it cannot outgrow that; Unsupported where the driver or host cannot.

        With `init` it stands on an init layer (initlayer.py), whose files are no change of the snapshot's.
        """

    def view(self, key: str, parent: str | None) -> None:
        """The same, read-only."""

    def mounts(self, key: str) -> list[Mount]:
        """The mounts that make the snapshot appear at `/` of the caller's choice (destination is "/")."""

    def view_mounts(self, chain_id: str) -> list[Mount]:
        """A layer with all below it, read-only, without a key: `--mount type=image`."""

    def is_pristine(self, key: str) -> bool:
        """Whether nothing was ever written to an active snapshot."""

    def open_root(self, key: str, *, writable: bool = False) -> int:
        """The snapshot's whole tree as a directory descriptor, while nobody else has it mounted; close it soon."""

    def commit(self, key: str, chain_id: str) -> None:
        """Turn an active snapshot into a layer. It must not be mounted any more, and is gone afterwards."""

    def remove(self, name: str) -> None:
        """Delete; NotFound, or Conflict while something is stacked on it."""

    def usage(self, name: str) -> Usage:
        """Space of this snapshot alone: apparent sizes, as Docker counts; of a layer without a look at the disk."""

    def diff(self, name: str) -> Iterator[bytes]:
        """What the snapshot changed against its parent, as a layer tar. Reproducible: sorted, exact times."""

    def changes(self, name: str) -> list[Change]:
        """The same as `docker diff` lists it."""

    def layer_tar(self, chain_id: str) -> BinaryIO | None:
        """The original tar of a layer, where the driver keeps it."""

    def upper_path(self, key: str) -> str:
        """The host directory that takes the writes of an active snapshot."""

    def sweep(self) -> int:
        """At start: drop what a crash left half made; returns how many."""

    def close(self) -> None:
        """At the end: unmount what the driver itself mounted. Containers that run are not disturbed."""


class AppliedLayer(NamedTuple):
    """What `apply_layer` found."""

    diff_id: str
    bytes: int  # of all files: Docker's "Size"
    inodes: int


def apply_layer(
    driver: Snapshotter,
    chain_id: str,
    parent: str | None,
    stream: Readable,
    *,
    diff_id: str = "",
    blob: str = "",
    limits: Limits | None = None,
) -> AppliedLayer:
    """An uncompressed layer tar into the driver under its chain id, hashed on the way and refused if it is another.

    From any thread, in any order of layers. Where the layer is there already the stream is only hashed.
    With `blob`, the path of a verified blob whose digest is `diff_id`, the stream need not be read at all.
    """
    if blob and diff_id:
        if not driver.exists(chain_id):
            with driver.stage(stream, limits=limits, blob=blob) as staged:
                staged.publish(chain_id, parent)
        return AppliedLayer(diff_id, *driver.usage(chain_id))
    with HashingReader(stream) as hashing:
        if driver.exists(chain_id):
            while hashing.read(1 << 20):
                pass
            _check_diff_id(hashing.digest(), diff_id)
            return AppliedLayer(hashing.digest(), *driver.usage(chain_id))
        with driver.stage(hashing, limits=limits) as staged:
            found = hashing.digest()
            _check_diff_id(found, diff_id)
            staged.publish(chain_id, parent)
            return AppliedLayer(found, *staged.usage)


def _check_diff_id(found: str, expected: str) -> None:
    if expected and found != expected:
        raise InvalidArgument(f"wrong diff id of a layer: {found}, expected {expected}")


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each prefix of a stack of layers, bottom first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
    return chain


def check_key(key: str) -> str:
    """A key becomes a file name only through here."""
    if _KEY.fullmatch(key) is None:
        raise InvalidArgument(f"invalid snapshot key {key[:200]!r}")
    return key
