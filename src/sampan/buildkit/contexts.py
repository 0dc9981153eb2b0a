"""Clients' directories, kept for the next build: only what has changed since is sent again.

    take(key) ──► a directory, empty or as it was     give back ──► kept, the oldest go; or deleted

A key says whose directory it is (the session's shared key) and what of it was asked for. One build uses a directory at
a time; another of the same key gets one of its own. Nothing is kept over a restart of the engine: after a crash of the
host nobody knows what of a file was written.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path

from sampan.build.context import Context, new_directory
from sampan.spec.engine.image import BuildCacheRecord
from sampan.units import rfc3339nano

MOST_KEPT = 8
MOST_BYTES = 1 << 30
LEAST_ENTRIES = 16  # what is smaller is sent again as quickly


class KeptContext(Context):
    """A context that goes back where it came from when it is closed."""

    def __init__(self, path: Path, pool: Contexts, key: str) -> None:
        super().__init__(path)
        self._pool = pool
        self._key = key
        self.is_new = True
        self.whole = False  # set when it holds all that was asked for
        self.entries = 0
        self.bytes = 0
        self.created_ns = self.used_ns = time.time_ns()
        self.uses = 0

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            self._pool.give_back(self._key, self)

    def discard(self) -> None:
        """Delete it."""
        super().close()


class Contexts:
    """The directories that are kept. Methods may block, and are called from any thread."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._kept: OrderedDict[str, KeptContext] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> KeptContext:
        """A directory for what the key names: as it was left, or empty."""
        with self._lock:
            found = self._kept.pop(key, None)
        if found is not None:
            found.is_new, found.whole = False, False
            found.used_ns, found.uses = time.time_ns(), found.uses + 1
            return found
        return KeptContext(new_directory(self.parent), self, key)

    def give_back(self, key: str, context: KeptContext) -> None:
        """Keep it where that is worth it."""
        worth = (
            key
            and context.whole
            and context.entries >= LEAST_ENTRIES
            and context.bytes <= MOST_BYTES
        )
        with self._lock:
            gone = [] if worth else [context]
            if worth:
                gone += [known] if (known := self._kept.pop(key, None)) else []
                self._kept[key] = context
                while len(self._kept) > MOST_KEPT or self._total() > MOST_BYTES:
                    gone.append(self._kept.popitem(last=False)[1])
        for each in gone:
            each.discard()

    def _total(self) -> int:
        return sum(context.bytes for context in self._kept.values())

    def rows(self) -> list[BuildCacheRecord]:
        """What is kept and not in use, as entries of the build cache."""
        with self._lock:
            kept = list(self._kept.values())
        return [
            BuildCacheRecord(
                id=context.path.name, type="source.local", description="local source for context",
                size=context.bytes, created_at=rfc3339nano(context.created_ns),
                last_used_at=rfc3339nano(context.used_ns), usage_count=context.uses,
            )
            for context in kept
        ]  # fmt: skip

    def clear(self) -> int:
        """Delete what is kept and not in use; bytes freed."""
        with self._lock:
            gone, freed = list(self._kept.values()), self._total()
            self._kept.clear()
        for each in gone:
            each.discard()
        return freed
