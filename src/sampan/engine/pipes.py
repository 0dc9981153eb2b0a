"""Bytes between the event loop and a pool thread, with back-pressure both ways.

    ByteInlet    the loop feeds, a thread reads it like a file     (request bodies: load, build, cp in)
    ByteOutlet   a thread writes, the loop iterates                (response bodies: save, export, cp out)

Neither holds more than LIMIT bytes: a producer that is ahead waits, a side that goes away wakes the other with an
error. Threads must never wait for ever, so every wait is ended by `fail`, `finish` or `close`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

from sampan.errors import Cancelled

LIMIT = 1 << 20
# Waking a thread for every 32 KiB that a socket gives costs more than what the thread then does with it.
BATCH = 256 << 10
PATIENCE_S = 0.002


class ByteInlet:
    """Fed on the loop, read in a thread. Small pieces are gathered before the thread is woken."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._closed = False
        self._due = False  # what there is may be read though it is little
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._room.set()

    # loop side

    async def feed(self, chunk: bytes) -> None:
        """Hand over a piece; returns when there is room for the next."""
        with self._condition:
            if self._closed:
                raise BrokenPipeError("nobody reads this any more")
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._size >= LIMIT:
                self._room.clear()
            if self._size >= BATCH:
                self._condition.notify()
            elif self._timer is None:
                self._timer = self._loop.call_later(PATIENCE_S, self._release)
        await self._room.wait()

    def _release(self) -> None:
        """The producer is slow: the thread takes what there is."""
        self._timer = None
        with self._condition:
            self._due = bool(self._chunks)
            self._condition.notify()

    def finish(self) -> None:
        """The body is complete."""
        with self._condition:
            self._ended = True
            self._condition.notify()

    def fail(self, error: Exception) -> None:
        """The body will never be complete: the reader gets this error."""
        with self._condition:
            self._error = error
            self._condition.notify()

    # thread side

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes (all with -1), b'' at the end; blocks while there is nothing."""
        if size < 0:
            return b"".join(iter(lambda: self.read(LIMIT), b""))
        with self._condition:
            while not (self._size >= BATCH or (self._chunks and (self._due or self._ended))):
                if self._error is not None and not self._chunks:
                    raise self._error
                if self._error is not None:
                    break
                if self._ended or self._closed:
                    return b""
                self._condition.wait()
            chunk = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            if len(chunk) > size:
                self._chunks.append(chunk[size:])
                chunk = chunk[:size]
            self._size -= len(chunk)
            self._due = bool(self._chunks)
            if self._size < LIMIT and not self._room.is_set():
                self._loop.call_soon_threadsafe(self._room.set)
        return chunk

    def close(self) -> None:
        """The reader is done; whoever feeds is told at the next feed. Any thread."""
        with self._condition:
            self._closed = True
            self._chunks.clear()
            self._size = 0
            self._condition.notify()
        self._loop.call_soon_threadsafe(self._room.set)


class ByteOutlet:
    """Written in a thread, iterated on the loop.

    `produce(outlet)` is started by `start` in the given executor; what it raises comes out of the iteration.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._ready = asyncio.Event()

    # thread side

    def write(self, chunk: bytes) -> int:
        """Blocks while the reader is behind; raises Cancelled once it has gone."""
        with self._condition:
            while self._size >= LIMIT and not self._closed:
                self._condition.wait()
            if self._closed:
                raise Cancelled("the reader went away")
            if chunk:
                self._chunks.append(bytes(chunk))
                self._size += len(chunk)
        self._loop.call_soon_threadsafe(self._ready.set)
        return len(chunk)

    def _run(self, produce: Callable[[ByteOutlet], object]) -> None:
        error: BaseException | None = None
        try:
            produce(self)
        except Cancelled:
            pass
        except BaseException as failure:  # noqa: BLE001 - it is raised on the loop's side
            error = failure
        with self._condition:
            self._ended, self._error = True, error
        self._loop.call_soon_threadsafe(self._ready.set)

    # loop side

    def start(self, executor: object, produce: Callable[[ByteOutlet], object]) -> ByteOutlet:
        self._loop.run_in_executor(executor, self._run, produce)  # type: ignore[arg-type]
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            with self._condition:
                taken, self._chunks = list(self._chunks), deque()
                self._size = 0
                ended, error = self._ended, self._error
                self._ready.clear()
                self._condition.notify()
            if taken:
                yield taken[0] if len(taken) == 1 else b"".join(taken)
            elif ended:
                if error is not None:
                    raise error
                return
            else:
                await self._ready.wait()

    async def aclose(self) -> None:
        """The reader is done: a producer that still writes is stopped."""
        with self._condition:
            self._closed = True
            self._chunks.clear()
            self._condition.notify_all()
