"""Chooses the snapshotter for a host.

    erofs     layers indexed over their own tar, under overlayfs: Linux 6.12 with file-backed EROFS, as root
    overlay   layers unpacked into directories, under overlayfs: everywhere overlayfs works on the root's file system
    vfs       plain copies: where it does not

Docker's names (`overlay2`, `overlayfs`) are understood, so that a daemon.json may stay as it is. erofs and overlay
share one root and read each other's layers: going from one to the other needs no migration. Going to or from vfs,
images have to be unpacked again (their blobs are kept), and containers made over.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from sampan.errors import InvalidArgument, Unsupported
from sampan.storage import erofs_mount, overlay
from sampan.storage.erofs_layers import ErofsSnapshotter
from sampan.storage.extract import Whiteouts
from sampan.storage.overlay import OverlaySnapshotter
from sampan.storage.stack import default_rules
from sampan.storage.vfs import VfsSnapshotter

if TYPE_CHECKING:
    from sampan.storage.snapshots import Snapshotter

_NAMES = {
    "erofs": "erofs",
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
    _sweep_probes(base)
    wanted = _NAMES.get(driver, "") if driver else ""
    if driver and not wanted:
        raise InvalidArgument(
            f"driver not supported: {driver[:100]}", hint=f"one of {', '.join(sorted(_NAMES))}"
        )
    if wanted == "vfs":
        return VfsSnapshotter(os.path.join(base, "vfs"))
    why_not = overlay.probe(base)
    if why_not and wanted:
        raise Unsupported(
            f"overlayfs does not work on {base}: {why_not}", hint="use --storage-driver vfs"
        )
    if why_not:
        return VfsSnapshotter(os.path.join(base, "vfs"))
    if wanted != "overlay":
        why_not = _why_no_index(base)
        if not why_not:
            return ErofsSnapshotter(os.path.join(base, "overlay"))
        if wanted == "erofs":
            raise Unsupported(
                f"file-backed erofs does not work here: {why_not}",
                hint="it needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE; use --storage-driver overlay",
            )
    return OverlaySnapshotter(os.path.join(base, "overlay"))


def _sweep_probes(base: str) -> None:
    """What a crash in the middle of a probe left."""
    for name in os.listdir(base):
        if name.startswith(".probe-"):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)


def _why_no_index(base: str) -> str:
    if default_rules().whiteouts is not Whiteouts.OVERLAY:
        return "not in a user namespace"
    return erofs_mount.probe(base)
