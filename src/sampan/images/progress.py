"""Progress as Docker's JSON lines: one dict a line, each layer with its id, bytes with a bar.

    {"status": "Downloading", "progressDetail": {"current": 512, "total": 1024}, "progress": "[===>  ] 512B/1.024kB", "id": "4c45..."}

A `Progress` is called from worker threads; who gives one makes it safe for that. Lines about bytes are thinned to
about ten a second for each layer, since a slow reader of them must not slow the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sampan import units
from sampan.spec.reference import digest_hex

Progress = Callable[[dict[str, Any]], None]
_INTERVAL_S = 0.1
_BAR_WIDTH = 50


def silent(_: dict[str, Any]) -> None:
    """Nobody looks."""


def short(digest: str) -> str:
    """The id that a layer has in progress lines."""
    return digest_hex(digest)[:12]


def bar(current: int, total: int) -> str:
    """`[=====>     ]  1.2MB/3MB`, as Docker draws it for those who print it as it is."""
    if total <= 0 or current > total:
        return f"{units.human_size(current):>8}"
    filled = current * _BAR_WIDTH // total
    head = ">" if filled < _BAR_WIDTH else ""
    drawn = ("=" * filled + head).ljust(_BAR_WIDTH)
    return f"[{drawn}]  {units.human_size(current)}/{units.human_size(total)}"


def line(status: str, *, id: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"status": status}
    if id:
        found["progressDetail"] = {}
        found["id"] = id
    return found


def message(status: str, *, id: str = "") -> dict[str, Any]:
    """A line that is no layer's: `Pulling from library/busybox`, `Digest: ...`."""
    return {"status": status, "id": id} if id else {"status": status}


class Meter:
    """Counts one layer's bytes and reports them now and then."""

    def __init__(self, progress: Progress, action: str, layer_id: str, total: int) -> None:
        self._progress = progress
        self._action = action
        self._id = layer_id
        self._total = total
        self._next = 0.0
        self.current = 0

    def add(self, count: int) -> None:
        self.at(self.current + count)

    def at(self, current: int) -> None:
        self.current = current
        now = time.monotonic()
        if now < self._next and current < self._total:
            return
        self._next = now + _INTERVAL_S
        detail = {"current": current}
        if self._total > 0:
            detail["total"] = self._total
        self._progress(
            {
                "status": self._action,
                "progressDetail": detail,
                "progress": bar(current, self._total),
                "id": self._id,
            }
        )
