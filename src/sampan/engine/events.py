"""The event bus: what happened, in order, to whoever listens; the last ones are kept for `since`.

An event is told once, on the loop's thread, by the verb that made it true. A listener has a queue of its own that
grows while it reads slowly, up to MOST_QUEUED; then that listener is closed, never the engine held up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from sampan.engine.filters import Filters, check_filters, matches_labels

if TYPE_CHECKING:
    from sampan.engine.context import Engine

KEPT = 256
MOST_QUEUED = 65536
FILTER_KEYS = frozenset(
    {"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin"}
    | {"scope", "secret", "service", "type", "volume"}
)
# Actions that carry their subject after a colon match by the part before it.
_PREFIXED = ("health_status", "exec_create", "exec_start")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to one object."""

    type: str
    action: str
    id: str
    attributes: dict[str, str]
    time_ns: int


class EventBus:
    """Tell and listen. Loop thread only."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[EventStream] = set()
        self._last_ns = 0

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def tell(self, kind: str, action: str, ident: str, attributes: Mapping[str, str]) -> None:
        """Stamp and deliver; times never go backwards or repeat, so that replay has no doubt."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = Event(
            type=kind, action=action, id=ident, attributes=dict(attributes), time_ns=self._last_ns
        )
        self._ring.append(event)
        for listener in tuple(self._listeners):
            listener.offer(event)

    def listen(
        self, *, since_ns: int | None, until_ns: int | None, filters: Filters
    ) -> EventStream:
        stream = EventStream(self, until_ns=until_ns, filters=filters)
        if since_ns is not None:
            for event in self._ring:
                if event.time_ns >= since_ns:
                    stream.offer(event)
        self._listeners.add(stream)
        return stream

    def forget(self, stream: EventStream) -> None:
        self._listeners.discard(stream)


class EventStream:
    """One listener: an async iterator that ends at `until`, or when it was closed or too slow."""

    def __init__(self, bus: EventBus, *, until_ns: int | None, filters: Filters) -> None:
        self._bus = bus
        self._until_ns = until_ns
        self._filters = filters
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, event: Event) -> None:
        if self._closed or (self._until_ns is not None and event.time_ns > self._until_ns):
            return
        if not matches(event, self._filters):
            return
        self._queue.append(event)
        if len(self._queue) > MOST_QUEUED:
            self.close()
        self._wake.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            remaining = self._remaining()
            if self._closed or (remaining is not None and remaining <= 0):
                self.close()
                raise StopAsyncIteration
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), remaining)
            except TimeoutError:
                continue
        return self._queue.popleft()

    def _remaining(self) -> float | None:
        return None if self._until_ns is None else (self._until_ns - time.time_ns()) / 1e9

    def close(self) -> None:
        self._closed = True
        self._bus.forget(self)
        self._wake.set()

    async def aclose(self) -> None:
        self.close()


def matches(event: Event, filters: Filters) -> bool:
    """Whether every filter key accepts the event (values of one key are alternatives)."""
    for key, wanted in filters.items():
        if key == "label":
            if not matches_labels(event.attributes, wanted):
                return False
        elif key == "event":
            if not any(_is_action(event.action, action) for action in wanted):
                return False
        elif key == "type":
            if event.type not in wanted:
                return False
        elif key == "scope":
            if "local" not in wanted:
                return False
        elif not _is_about(event, key, wanted):
            return False
    return True


def _is_action(action: str, wanted: str) -> bool:
    return action == wanted or (wanted in _PREFIXED and action.partition(":")[0] == wanted)


def _is_about(event: Event, kind: str, wanted: list[str]) -> bool:
    """An object filter means: an event of that type, and of one of those objects; or of a container of the image."""
    if kind == "image":
        return _is_of_image(event, wanted)
    if event.type != kind:
        return False
    names = {event.id, event.attributes.get("name", "")}
    return any(w in names or event.id.startswith(w) for w in wanted if w)


def _is_of_image(event: Event, wanted: list[str]) -> bool:
    names = {event.id, event.attributes.get("name" if event.type == "image" else "image", "")}
    names |= {name.partition(":")[0] for name in tuple(names) if name}
    return any(word in names for word in wanted)


async def subscribe(
    engine: Engine, *, since_ns: int | None, until_ns: int | None, filters: Filters
) -> EventStream:
    """What happened since, then what happens, until."""
    check_filters(filters, FILTER_KEYS)
    return engine.events.listen(since_ns=since_ns, until_ns=until_ns, filters=filters)
