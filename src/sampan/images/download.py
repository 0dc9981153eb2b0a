"""Blobs on their way: each is fetched once, whoever waits for it, and can be read while it arrives.

    registry ──► Download (one thread) ──► ingest/<digest>.part ──► blobs/sha256/<hex>
                     │ offset, done, failed                             ▲ only after the digest was right
                     ▼
                 Follower.read()          any number of readers, each at its own place in the growing file

A broken connection is taken up again with Range where the file ends; a download that nobody waits for any more
is stopped. What arrived stays as a partial file for the next pull, which hashes it again before it adds to it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from sampan.errors import InvalidArgument
from sampan.images.cancel import Cancel
from sampan.images.transport import ConnectionFailed, Response
from sampan.spec.image import Descriptor
from sampan.storage.blobs import BlobStore, Ingest

CHUNK = 256 * 1024
RESUMES = 5  # without a byte of progress in between
HANDOVER_S = 5.0  # how long a download that was just left may take to let go of its partial file


class Opener(Protocol):
    """Opens the blob's stream at an offset; says where it really starts."""

    def __call__(
        self, descriptor: Descriptor, offset: int, cancel: Cancel
    ) -> tuple[Response, int]: ...


class DamagedPartial(InvalidArgument):
    """What an earlier pull left and this one continued was wrong. It is gone now: once more from the start."""


class Download:
    """One blob being fetched. Made by `Downloads`, which counts who waits."""

    def __init__(
        self,
        blobs: BlobStore,
        descriptor: Descriptor,
        opener: Opener,
        before: Download | None = None,
    ) -> None:
        self.descriptor = descriptor
        self._before = before
        self.cancel = Cancel()
        self.waiters = 0
        self.ended = threading.Event()
        self._blobs = blobs
        self._opener = opener
        self._changed = threading.Condition()
        self._offset = 0
        self._continued = False
        self._fd = -1
        self._done = False
        self._failure: BaseException | None = None

    def start(self) -> None:
        threading.Thread(target=self._work, name="download", daemon=True).start()

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def wait(self, cancel: Cancel) -> None:
        """Until the blob is in the store; raises what went wrong."""
        self._wait_for(cancel, lambda: False)

    def read(self, position: int, size: int, cancel: Cancel) -> bytes:
        """Bytes at `position`, waiting for them to arrive; empty only after the whole blob was verified."""
        if position >= self.descriptor.size:
            self.wait(cancel)
            return b""
        available = self._wait_for(cancel, lambda: self._offset > position) - position
        return os.pread(self._fd, min(size, available), position)

    def _wait_for(self, cancel: Cancel, enough: Callable[[], bool]) -> int:
        forget = cancel.on_set(self._wake)
        try:
            with self._changed:
                while not (self._done or self._failure is not None or enough()):
                    cancel.check()
                    self._changed.wait()
                if self._failure is not None:
                    raise self._failure
                return self._offset
        finally:
            forget()

    def close(self) -> None:
        """Nobody reads any more."""
        self.cancel.set()
        with self._changed:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -2

    # --- the thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._before is not None:  # it is ending, and leaves us what it got
            self._before.ended.wait(HANDOVER_S)
            self._before = None
        try:
            with self._blobs.resume(self.descriptor.digest) as ingest:
                self._begin(ingest)
                self._fill(ingest)
                self._finish(ingest)
        except BaseException as error:  # noqa: BLE001 -- raised by everyone who waits
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self.ended.set()

    def _begin(self, ingest: Ingest) -> None:
        if ingest.offset > self.descriptor.size:
            ingest.restart()
        with self._changed:
            self._continued = ingest.offset > 0
            if self._fd == -1:
                self._fd = ingest.reader()
            self._offset = ingest.offset
            self._changed.notify_all()

    def _fill(self, ingest: Ingest) -> None:
        failures = 0
        while ingest.offset < self.descriptor.size:
            before = ingest.offset
            try:
                self._receive(ingest)
            except ConnectionFailed:
                failures = 1 if ingest.offset > before else failures + 1
                if failures >= RESUMES:
                    raise
                self.cancel.wait(min(0.1 * 2**failures, 5.0))

    def _receive(self, ingest: Ingest) -> None:
        response, start = self._opener(self.descriptor, ingest.offset, self.cancel)
        with response:
            if start != ingest.offset:
                ingest.restart()  # Range was ignored; readers go on where they are, in the same bytes
            while chunk := response.read_some(CHUNK):
                if ingest.offset + len(chunk) > self.descriptor.size:
                    raise InvalidArgument(
                        f"unexpected size of layer {self.descriptor.digest}: "
                        f"more than the {self.descriptor.size} bytes that the manifest says"
                    )
                ingest.write(chunk)
                with self._changed:
                    self._offset = ingest.offset
                    self._changed.notify_all()
        if ingest.offset < self.descriptor.size:
            raise ConnectionFailed(f"layer {self.descriptor.digest}: unexpected EOF")

    def _finish(self, ingest: Ingest) -> None:
        try:
            ingest.commit(self.descriptor.digest, self.descriptor.size)
        except InvalidArgument:
            kind = DamagedPartial if self._continued else InvalidArgument
            raise kind(
                f"filesystem layer verification failed for digest {self.descriptor.digest}"
            ) from None
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class Follower:
    """A download as a stream. What it gives is not verified before its end: who reads must be ready to discard."""

    def __init__(self, download: Download, cancel: Cancel) -> None:
        self._download = download
        self._cancel = cancel
        self._position = 0

    def read(self, size: int, /) -> bytes:
        data = self._download.read(self._position, size, self._cancel)
        self._position += len(data)
        return data


class Downloads:
    """All downloads of an engine, by digest: who asks for one that runs already joins it."""

    def __init__(self, blobs: BlobStore, at_once: int) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._running: dict[str, Download] = {}
        self._ending: dict[str, Download] = {}
        self._slots = threading.BoundedSemaphore(max(at_once, 1))

    @contextmanager
    def joined(self, descriptor: Descriptor, opener: Opener) -> Iterator[Download]:
        """The download of this blob, begun if it is not under way."""
        download = self._join(descriptor, opener)
        try:
            yield download
        finally:
            self._leave(download)

    def _join(self, descriptor: Descriptor, opener: Opener) -> Download:
        with self._lock:
            download = self._running.get(descriptor.digest)
            if download is None or download.has_failed:
                before = self._ending.pop(descriptor.digest, None)
                download = Download(self._blobs, descriptor, self._in_turn(opener), before)
                self._running[descriptor.digest] = download
                download.start()
            elif download.descriptor.size != descriptor.size:
                raise InvalidArgument(
                    f"two manifests give layer {descriptor.digest} different sizes"
                )
            download.waiters += 1
            return download

    def _leave(self, download: Download) -> None:
        """When nobody waits any more, stop. Partial content stays for next time."""
        with self._lock:
            download.waiters -= 1
            if download.waiters:
                return
            if self._running.get(download.descriptor.digest) is download:
                del self._running[download.descriptor.digest]
            for digest in [d for d, one in self._ending.items() if one.ended.is_set()]:
                del self._ending[digest]
            if not download.ended.is_set():
                self._ending[download.descriptor.digest] = download
        download.close()

    def _in_turn(self, opener: Opener) -> Opener:
        """No more than so many connections that carry data."""

        def open_in_turn(
            descriptor: Descriptor, offset: int, cancel: Cancel
        ) -> tuple[Response, int]:
            while not self._slots.acquire(timeout=0.1):
                cancel.check()
            try:
                response, start = opener(descriptor, offset, cancel)
            except BaseException:
                self._slots.release()
                raise
            response.on_close(self._slots.release)
            return response, start

        return open_in_turn
