"""Small stages to put between a source of bytes and what consumes them, each on a thread of its own where that pays.

    source ──► HashingReader ──► decompress ──► ReadAhead ──► HashingReader ──► TarReader ──► files
                  │ thread                        │ thread         │ thread          this thread
                blob digest                                     diff id

Hashing, inflating and writing release the interpreter lock, so on two cores the pipeline runs at the speed of
its slowest stage instead of their sum. All queues are bounded: memory does not grow with the stream.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sampan.storage.tar import Readable

CHUNK = 1 << 20
_DEPTH = 4
# Below this a chunk is hashed where it is read: waking a thread costs more.
_WORTH_A_THREAD = 64 << 10


class HashingReader:
    """Passes a stream through and hashes it, large chunks on another thread."""

    def __init__(self, source: Readable, algorithm: str = "sha256") -> None:
        self._source = source
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self._queue: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._thread: threading.Thread | None = None
        self.count = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        if self._thread is None and len(data) < _WORTH_A_THREAD:
            self._hash.update(data)
            return data
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hash", daemon=True)
            self._thread.start()
        self._queue.put(data)
        return data

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)

    def digest(self) -> str:
        """Of everything read so far. Ends the thread; reading may go on."""
        self.close()
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ReadAhead:
    """Reads a stream on another thread, a few chunks ahead.

    `close` never waits for the source: a source that hangs keeps its (daemon) thread, not us.
    """

    def __init__(self, source: Readable, chunk: int = CHUNK) -> None:
        self._source = source
        self._chunk = chunk
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_DEPTH)
        self._rest: bytes | None = b""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="read ahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._closed:
                data = self._source.read(self._chunk)
                self._queue.put(data)
                if not data:
                    return
        except BaseException as error:  # noqa: BLE001 -- handed to the reader, which raises it
            self._queue.put(error)

    def read(self, size: int, /) -> bytes:
        if self._rest is None:
            return b""
        if not self._rest:
            item = self._queue.get()
            if isinstance(item, BaseException):
                self._rest = None
                raise item
            if not item:
                self._rest = None
                return b""
            self._rest = item
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        self._closed = True
        with suppress(queue.Empty):
            while True:  # room for the one put that the thread may be waiting in
                self._queue.get_nowait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ChunkReader:
    """An iterator of chunks as a stream."""

    def __init__(self, chunks: object) -> None:
        self._chunks = iter(chunks)  # type: ignore[call-overload]
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = bytes(chunk)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
