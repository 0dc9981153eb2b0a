"""A wish to stop, told to every thread that works for one request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sampan.errors import Cancelled


class Cancel:
    """A wish to stop, which also wakes those who wait. `never()` is one that nobody will set."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._wakers: dict[int, Callable[[], None]] = {}
        self._next = 0

    @staticmethod
    def never() -> Cancel:
        return Cancel()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            wakers = list(self._wakers.values())
        for wake in wakers:
            wake()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        if self._event.is_set():
            raise Cancelled("context canceled")

    def wait(self, seconds: float) -> None:
        """Sleep, or raise as soon as somebody cancels."""
        if self._event.wait(seconds):
            raise Cancelled("context canceled")

    @contextmanager
    def child(self) -> Iterator[Cancel]:
        """A wish of our own that this one sets as well: to stop siblings after a failure, and nobody else."""
        inner = Cancel()
        forget = self.on_set(inner.set)
        try:
            yield inner
        finally:
            forget()

    def on_set(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when cancelled (at once if that was before); returns what takes it back."""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._wakers[number] = wake
            already = self._event.is_set()
        if already:
            wake()

        def forget() -> None:
            with self._lock:
                self._wakers.pop(number, None)

        return forget
