"""`Builder`: what all builds of an engine share: the cache, locks on steps and cache mounts, what is under way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from sampan.build import upkeep
from sampan.build.cache import BuildCache
from sampan.build.context import Context
from sampan.storage.access import open_root

if TYPE_CHECKING:
    from sampan.engine.context import Engine


class Locks:
    """A lock a name, there only while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)


class Builder:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = BuildCache(engine.config.root / "builder", engine.store, engine.snapshots)
        self.steps = Locks()
        self.mounts = Locks()  # for sharing=locked
        self._private: set[str] = set()
        self._disposing: set[asyncio.Future[None]] = set()
        self.running: dict[str, asyncio.Task[Any]] = {}
        engine.catalog.keepers.append(self.cache.chain_ids)
        engine.build_cache_rows.append(lambda: upkeep.rows(self))
        self.cache.sweep()

    def dispose(self, context: Context) -> None:
        """Delete a directory of a build that is over; nobody waits for it. A crash leaves it to the next start."""
        task = asyncio.ensure_future(self.engine.run_blocking(context.close))
        self._disposing.add(task)
        task.add_done_callback(self._disposing.discard)

    def private_mount(self, identity: str, undo: ExitStack) -> str:
        """`sharing=private`: the first free directory of this id."""
        number = 0
        while (name := f"{identity}#{number}" if number else identity) in self._private:
            number += 1
        self._private.add(name)
        undo.callback(self._private.discard, name)
        return name

    def open_stack(self, chain_id: str) -> int:
        """Blocking: a root filesystem to read from; an empty one for ''."""
        if not chain_id:
            empty = self.cache.root / "empty"
            empty.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(empty, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return open_root(self.engine.snapshots.view_mounts(chain_id))

    @staticmethod
    def close(fd: int) -> None:
        """A descriptor that was opened here."""
        os.close(fd)
