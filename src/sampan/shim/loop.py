"""The event loop of launcher and shim: poll(2), timers, and a wake-up when a child ends. Nothing else runs there.

poll and not epoll: a shim has a dozen descriptors, a client may hand over one that epoll refuses (a file), and there
is no second kernel object to leak into children. Signal handlers only make poll return (set_wakeup_fd, since Python
restarts an interrupted poll, PEP 475); the work is done between two polls, never inside a handler.
"""

from __future__ import annotations

import posix
import select
import time

POLLIN = select.POLLIN
POLLOUT = select.POLLOUT
POLLHUP = select.POLLHUP
POLLERR = select.POLLERR
POLLRDHUP = 0x2000  # asm-generic/poll.h

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    OnReady = Callable[[int], None]
else:
    import _signal


class Timer:
    """One call in the future; `cancel` may be called at any time."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Watches descriptors and timers until `stop`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: dict[int, OnReady] = {}
        self._timers: list[Timer] = []
        self._running = False
        self._wakeup = -1
        self.on_child: Callable[[], None] | None = None
        self.on_error: Callable[[Exception], None] | None = None

    # --- what to wait for --------------------------------------------------------------------------------------

    def watch(self, fd: int, events: int, on_ready: OnReady) -> None:
        """Call `on_ready(revents)` whenever fd is ready; replaces an earlier watch of the same descriptor."""
        self._poll.register(fd, events)
        self._watched[fd] = on_ready

    def unwatch(self, fd: int) -> None:
        """Nothing if it is not watched. Do this before closing: numbers are used again."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        self._timers.append(timer)
        return timer

    def watch_children(self, on_child: Callable[[], None]) -> None:
        """Call `on_child` after any child changed state. Once for many of them, perhaps: wait for all there are."""
        reader, writer = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self._wakeup = reader
        self.on_child = on_child
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, _nothing)
        self.watch(reader, POLLIN, self._woken)

    def _woken(self, _revents: int) -> None:
        try:
            posix.read(self._wakeup, 512)
        except BlockingIOError:
            pass
        if self.on_child is not None:
            self.on_child()

    # --- running -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        self._running = False

    def turn(self, limit_ms: int = -1) -> None:
        """One poll and the calls that follow from it. `limit_ms` bounds the wait (-1: until something happens)."""
        wait = self._until_next_timer()
        if limit_ms >= 0 and (wait is None or wait > limit_ms):
            wait = limit_ms
        for fd, revents in self._poll.poll(wait):
            on_ready = self._watched.get(fd)
            if on_ready is not None:  # an earlier call of this turn may have closed it
                self._call(fd, on_ready, revents)
        if self._timers:
            self._fire()

    def _call(self, fd: int, on_ready: OnReady, revents: int) -> None:
        """A defect in serving one descriptor costs that descriptor, not the container behind the loop."""
        try:
            on_ready(revents)
        except Exception as error:
            if self.on_error is None:
                raise
            self.unwatch(fd)
            self.on_error(error)

    def _until_next_timer(self) -> int | None:
        if not self._timers:
            return None
        due = min(timer.due for timer in self._timers)
        return max(0, int((due - time.monotonic()) * 1000) + 1)

    def _fire(self) -> None:
        now = time.monotonic()
        ready = [timer for timer in self._timers if timer.due <= now or timer.call is None]
        if not ready:
            return
        self._timers = [timer for timer in self._timers if timer not in ready]
        for timer in ready:
            if timer.call is not None:
                try:
                    timer.call()
                except Exception as error:
                    if self.on_error is None:
                        raise
                    self.on_error(error)


def _nothing(_signum: int, _frame: object) -> None:
    """A handler must exist for the wake-up byte to be written."""
