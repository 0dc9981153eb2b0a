"""What a crash left that belongs to no container: found before anything new can begin, taken away behind the start.

    <root>/containers/<id> without a record    a create that never answered, a remove that nearly had, a build's step
    <run>/containers/<id> without a record     the same; its shim may be alive and running a build's RUN
    a writable snapshot without a record       a step or a create that had got no further

The order is that of an end: processes, network and volumes, the snapshot once nobody has it mounted, directories.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.cgroups.manager import open_manager
from sampan.engine import networking, shims
from sampan.engine.records import CONTAINER
from sampan.errors import SampanError
from sampan.shim.client import ShimGone

if TYPE_CHECKING:
    from sampan.engine.context import Engine

log = logging.getLogger("sampan.engine")

KILL = 9
PATIENCE_S = 15.0


class _Launch(msgspec.Struct):
    """The part of a launch.json that is needed here."""

    cgroup: dict[str, str] = {}


def find(engine: Engine) -> list[str]:
    """Blocking, before the API listens: the ids that no record has."""
    known = {key for key, _ in engine.store.items_raw(CONTAINER)}
    found = {s.name for s in engine.snapshots.walk() if s.kind != "layer"}
    for directory in (engine.config.containers_dir, engine.config.run / "containers"):
        found |= {name for name in os.listdir(directory) if ids.is_hex(name)}
    if engine.store.damage:  # records may be lost: what has a directory is for a person to look at
        found -= set(os.listdir(engine.config.containers_dir))
    return sorted(found - known)


def take_away(engine: Engine, orphans: list[str]) -> None:
    """Blocking, in the background."""
    for name in orphans:
        try:
            _take_away_one(engine, name)
        except (OSError, SampanError) as error:
            log.warning("what a crash left of %s stays: %s", name[:12], error)


def _take_away_one(engine: Engine, name: str) -> None:
    run_dir = engine.run_dir(name)
    if ids.is_hex(name):
        _end_shim(run_dir)
        _end_cgroup(engine, run_dir)
        networking.release(engine, name)
        engine.volumes.release(name)
        engine.volumes.drop_shared_memory(name)
    if engine.snapshots.exists(name):
        engine.snapshots.remove(name)
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.rmtree(engine.container_dir(name), ignore_errors=True)
    log.info("what a crash left of %s was taken away", name[:12])


def _end_shim(run_dir: Path) -> None:
    """Kill what it runs, and wait until it has let go of the mounts and left."""
    try:
        client = shims.reopen(str(run_dir))
    except Exception:  # noqa: BLE001 - no shim answers: only files are left
        return
    try:
        client.kill(KILL, everything=True)
        client.wait_event("gone", timeout=PATIENCE_S)
    except (ShimGone, SampanError, OSError):
        pass  # it had ended already, or is stuck: its cgroup is killed next
    finally:
        client.close()


def _end_cgroup(engine: Engine, run_dir: Path) -> None:
    try:
        launch = msgspec.json.decode((run_dir / "launch.json").read_bytes(), type=_Launch)
    except (OSError, msgspec.MsgspecError):
        return  # it had not been launched
    path, driver = launch.cgroup.get("path", ""), launch.cgroup.get("driver", "")
    if not path:
        return
    manager = open_manager(path, driver=driver or "cgroupfs", host=engine.cgroup_host)
    end = time.monotonic() + PATIENCE_S
    while manager.exists():
        manager.kill_all()
        try:
            manager.destroy()
        except OSError:  # a process that is killed is not dead at once
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
