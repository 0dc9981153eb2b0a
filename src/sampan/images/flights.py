"""One piece of work for everyone who asks for the same at the same time.

    first asker ──► work in a thread of its own ──► result or failure ──► every asker
    later askers ──join──┘  progress so far is replayed, what comes is sent to all

An asker may leave (its client went away): the work goes on while somebody waits, and is cancelled with the last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sampan.images.cancel import Cancel
from sampan.images.progress import Progress

T = TypeVar("T")
Work = Callable[[Progress, Cancel], T]


class _Flight(Generic[T]):
    def __init__(self, work: Work[T]) -> None:
        self.cancel = Cancel()
        self.waiters = 0
        self._work = work
        self._changed = threading.Condition()
        self._listeners: list[Progress] = []
        self._lines: dict[object, dict[str, Any]] = {}
        self._finished = False
        self._result: T | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="flight", daemon=True).start()

    @property
    def finished(self) -> bool:
        return self._finished

    def listen(self, progress: Progress) -> None:
        """What was said, once for each layer, then all that comes."""
        with self._changed:
            for line in self._lines.values():
                progress(line)
            self._listeners.append(progress)

    def unlisten(self, progress: Progress) -> None:
        with self._changed:
            self._listeners = [one for one in self._listeners if one is not progress]

    def wait(self, cancel: Cancel) -> T:
        forget = cancel.on_set(self._wake)
        try:
            with self._changed:
                while not self._finished:
                    cancel.check()
                    self._changed.wait()
        finally:
            forget()
        if self._failure is not None:
            raise self._failure
        return self._result  # type: ignore[return-value]  # finished without a failure

    def _run(self) -> None:
        try:
            self._result = self._work(self._tell, self.cancel)
        except BaseException as error:  # noqa: BLE001 -- raised by everyone who waits
            self._failure = error
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _tell(self, line: dict[str, Any]) -> None:
        with self._changed:
            self._lines[line.get("id") or id(line)] = line
            for listener in self._listeners:
                listener(line)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Flights(Generic[T]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[object, _Flight[T]] = {}

    def join(self, key: object, work: Work[T], progress: Progress, cancel: Cancel) -> T:
        with self._lock:
            flight = self._running.get(key)
            if flight is None or flight.finished:
                flight = self._running[key] = _Flight(work)
                flight.start()
            flight.waiters += 1
        flight.listen(progress)
        try:
            return flight.wait(cancel)
        finally:
            flight.unlisten(progress)
            self._leave(key, flight)

    def _leave(self, key: object, flight: _Flight[T]) -> None:
        with self._lock:
            flight.waiters -= 1
            if flight.waiters:
                return
            if self._running.get(key) is flight:
                del self._running[key]
        flight.cancel.set()
