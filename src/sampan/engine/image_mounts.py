"""`--mount type=image`: an image's files, read-only, in a container of another one.

The whole of an image is mounted by the container itself. A part of it (`image-subpath`) has to be found first: it is
mounted at <run>/containers/<id>/image-<n> as long as the container runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sampan.engine.records import MountRecord
from sampan.errors import InvalidArgument, NotFound
from sampan.spec.runtime import Mount
from sampan.storage.access import mount_part, unmount_view

if TYPE_CHECKING:
    from sampan.engine.context import Engine

PREFIX = "image-"


def take(engine: Engine, container_id: str, mounts: tuple[MountRecord, ...]) -> list[Mount]:
    """Blocking: the OCI mounts of those of type image. Give parts back with `release`."""
    found: list[Mount] = []
    for number, mount in enumerate(m for m in mounts if m.type == "image"):
        views = engine.snapshots.view_mounts(engine.catalog.resolve(mount.source).chain_id)
        if not mount.subpath:
            found += [{**view, "destination": mount.destination} for view in views]
            continue
        place = engine.run_dir(container_id) / f"{PREFIX}{number}"
        _mount_part(views, mount, place)
        found.append(
            {
                "destination": mount.destination,
                "type": "bind",
                "source": str(place),
                "options": ["rbind", "ro", "rprivate"],
            }
        )
    return found


def _mount_part(views: list[Mount], mount: MountRecord, place: Path) -> None:
    try:
        mount_part(views, mount.subpath, str(place))
    except FileNotFoundError:
        raise NotFound(
            f"cannot access path {mount.subpath} in image {mount.source}: no such file or directory"
        ) from None
    except OSError as error:
        raise InvalidArgument(
            f"cannot access path {mount.subpath} in image {mount.source}: {(error.strerror or '').lower()}"
        ) from error


def release(engine: Engine, container_id: str) -> None:
    """Blocking: no part is mounted any more. Safe to call twice."""
    for place in engine.run_dir(container_id).glob(f"{PREFIX}*"):
        unmount_view(str(place))
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink(missing_ok=True)
