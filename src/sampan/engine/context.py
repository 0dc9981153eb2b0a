"""The services that verbs work with, made once by daemon.py, frozen, and the one door to blocking code.

Sync below (storage, images, network: plain functions that may block), async above (verbs):
`await engine.run_blocking(fn, ...)` runs one in the bounded pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sampan.engine.events import EventBus
from sampan.engine.live import Containers
from sampan.engine.records import ExecRecord, SharedFacts

if TYPE_CHECKING:
    from sampan.cgroups.host import CgroupHost
    from sampan.config import Config
    from sampan.engine.users import ExecUser
    from sampan.images.catalog import Catalog
    from sampan.images.endpoints import RegistryConfig
    from sampan.images.pull import Puller
    from sampan.network.manager import NetworkManager
    from sampan.shim.client import LauncherClient
    from sampan.shim.logwatch import LogWatch
    from sampan.spec.engine.image import BuildCacheRecord
    from sampan.storage.blobs import BlobStore
    from sampan.storage.snapshots import Snapshotter
    from sampan.storage.volumes import Volumes
    from sampan.store import Store

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("sampan.engine")


class Background:
    """Tasks that nobody awaits, kept from being collected and joined at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def through(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """A verb to its end, also when whoever asked goes away: half a start or half a removal helps nobody."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task %s failed", task.get_name(), exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def settle(self, timeout_s: float) -> None:
        """Wait for what runs, then cancel the rest."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=timeout_s)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _unheard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("a verb that nobody waited for failed: %s", error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Passed as first argument to every verb."""

    id: str  # stable across restarts: `info`.ID
    config: Config
    facts: SharedFacts
    cgroup_host: CgroupHost
    store: Store
    blobs: BlobStore
    snapshots: Snapshotter
    catalog: Catalog
    puller: Puller
    registries: RegistryConfig
    volumes: Volumes
    networks: NetworkManager
    launcher: LauncherClient
    log_watch: LogWatch
    pool: ThreadPoolExecutor
    containers: Containers
    events: EventBus = field(default_factory=EventBus)
    execs: dict[str, ExecRecord] = field(default_factory=dict)
    background: Background = field(default_factory=Background)
    captures: dict[str, asyncio.Future[dict[str, Any]]] = field(
        default_factory=dict
    )  # health probes
    pruning: set[str] = field(default_factory=set)  # kinds of prune under way
    user_cache: dict[tuple[str, str, tuple[str, ...]], ExecUser] = field(default_factory=dict)
    # Rooms above that keep layers say here what they keep: `system df` shows it.
    build_cache_rows: list[Callable[[], list[BuildCacheRecord]]] = field(default_factory=list)
    started_ns: int = field(default_factory=time.time_ns)

    async def run_blocking(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the pool; the only way from a verb to code that may block."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, partial(fn, *args, **kwargs))

    async def run_to_end(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, for what a thread takes and its caller gives back: a cancellation waits until it has taken."""
        thread = asyncio.ensure_future(self.run_blocking(fn, *args, **kwargs))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.wait((thread,))
            _unheard(thread)
            raise

    def container_dir(self, container_id: str) -> Path:
        return self.config.container_dir(container_id)

    def run_dir(self, container_id: str) -> Path:
        return self.config.run_dir(container_id)
