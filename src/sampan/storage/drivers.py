"""Chooses the snapshotter for a host.

    overlay   everywhere overlayfs works on the root's file system
    vfs       plain copies, where it does not

Docker's names (`overlay2`, `overlayfs`) are understood, so that a daemon.json may stay as it is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sampan.errors import InvalidArgument, Unsupported
from sampan.storage.overlay import OverlaySnapshotter, probe
from sampan.storage.vfs import VfsSnapshotter

if TYPE_CHECKING:
    from sampan.storage.snapshots import Snapshotter

_NAMES = {
    "overlay": "overlay",
    "overlay2": "overlay",
    "overlayfs": "overlay",
    "vfs": "vfs",
    "native": "vfs",
}


def open_snapshotter(root: str | os.PathLike[str], driver: str = "") -> Snapshotter:
    """The snapshotter over `root`; `driver` is a name from the configuration, empty for the best the host can do."""
    base = os.fspath(root)
    os.makedirs(base, mode=0o700, exist_ok=True)
    wanted = _NAMES.get(driver, "") if driver else ""
    if driver and not wanted:
        raise InvalidArgument(
            f"driver not supported: {driver[:100]}", hint=f"one of {', '.join(sorted(_NAMES))}"
        )
    why_not = probe(base) if wanted != "vfs" else "not asked for"
    if not why_not:
        return OverlaySnapshotter(os.path.join(base, "overlay"))
    if wanted == "overlay":
        raise Unsupported(
            f"overlayfs does not work on {base}: {why_not}", hint="use --storage-driver vfs"
        )
    return VfsSnapshotter(os.path.join(base, "vfs"))
