"""The content store: blobs by digest, in a directory that is a valid OCI image layout.

    <root>/
        oci-layout                 {"imageLayoutVersion": "1.0.0"}
        index.json                 what the catalogue names (written whole, by rename)
        blobs/sha256/<64 hex>      immutable, verified, 0444
        ingest/<alg>-<hex>.part    a resumable download that knows what it wants to become
        ingest/<16 hex>.tmp        any other blob in the making
        quarantine/<alg>-<hex>     what `verify` found damaged

The life of a blob:

    ingest() ──write──► temporary file, hashed while it is written
                           │ commit(): size and digest compared, fdatasync
                           ▼
                        blobs/<alg>/<hex>      by rename, then fsync of the directory
                           │ collect(roots): not among the roots, held by no lease
                           ▼
                        gone

Nothing is ever under its final name before it was verified and is on disk, so a crash at any point leaves
either the old store or the new one plus temporary files, which the next start drops (partial downloads
excepted: they are resumed by re-reading them, never trusted by name).

A collection does not stop the world: whoever adds blobs holds a `Lease`, and what was added under a lease
stays until the lease is closed, by which time the catalogue names it as a root.

What a blob means (manifest, config, layer) is not known here.
Source: OCI image-spec 1.1, image-layout.md; descriptor.md "Digests".
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self

from sampan.errors import Internal, InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

CHUNK = 1 << 20
LAYOUT = b'{"imageLayoutVersion": "1.0.0"}\n'
EMPTY_INDEX = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}\n'
)
# 4 MiB is the least a registry must accept for a manifest (distribution-spec 1.1) and the most we read into memory.
READ_LIMIT = 4 << 20

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})", re.ASCII)


class Blob(NamedTuple):
    """A blob that is in the store."""

    digest: str
    size: int


class Damage(NamedTuple):
    """A blob whose content is not what its name says."""

    digest: str
    found: str
    size: int


class Collected(NamedTuple):
    """What a collection removed."""

    digests: list[str]
    bytes: int


def split_digest(digest: str) -> tuple[str, str]:
    """`sha256:<hex>` as (algorithm, hex). A digest becomes a file name only through here (CVE-2014-9358)."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidArgument(f"invalid digest {digest[:200]!r}")
    return (match[1], match[2]) if match[1] else (match[3], match[4])


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of bytes in memory."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Ingest:
    """A blob in the making; `with` it, write to it, then `commit()`.

    Left without a commit it is dropped, unless it was opened by `resume()`: then what arrived stays for the
    next try.
    """

    def __init__(
        self, store: BlobStore, path: str, fd: int, *, algorithm: str, keep_partial: bool
    ) -> None:
        self._store = store
        self._path = path
        self._fd = fd
        self._hash = hashlib.new(algorithm)
        self._algorithm = algorithm
        self._keep_partial = keep_partial
        self.offset = 0

    @property
    def digest(self) -> str:
        """The digest of what was written so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; everything or an exception."""
        self._hash.update(data)
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            view = view[done:]
        self.offset += len(data)
        return len(data)

    def reader(self) -> int:
        """A descriptor of our own to `pread` from, valid also after the commit: for who follows while it grows."""
        return os.dup(self._fd)

    def restart(self) -> None:
        """Begin at zero again: the server ignored our Range, or the partial content turned out wrong."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._algorithm)
        self.offset = 0

    def commit(self, digest: str | None = None, size: int | None = None) -> Blob:
        """Verify and publish. A mismatch drops the content and raises `InvalidArgument`."""
        if size is not None and size != self.offset:
            self._keep_partial = self._keep_partial and self.offset < size
            self.close()
            raise InvalidArgument(f"unexpected size {self.offset}, expected {size}")
        found = self.digest
        if digest is not None and digest != found:
            self._keep_partial = False
            self.close()
            raise InvalidArgument(f"unexpected digest {found}, expected {digest}")
        blob = Blob(found, self.offset)
        self._store._publish(self._fd, self._path, blob)
        os.close(self._fd)
        self._fd = -1
        return blob

    def close(self) -> None:
        """Give up (safe to call twice, and after commit)."""
        if self._fd < 0:
            return
        if not (self._keep_partial and self.offset):
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rehash(self) -> None:
        """Read what an earlier try left, so that the digest covers it."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        while chunk := os.read(self._fd, CHUNK):
            self._hash.update(chunk)
            self.offset += len(chunk)


class Lease:
    """Keeps blobs from being collected between their arrival and the moment the catalogue names them."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._digests: set[str] = set()

    def hold(self, *digests: str) -> None:
        """Keep these, present already or not, until the lease is closed."""
        with self._store._lock:
            for digest in digests:
                if digest not in self._digests:
                    self._digests.add(digest)
                    self._store._held[digest] = self._store._held.get(digest, 0) + 1

    def close(self) -> None:
        """Let go (safe to call twice)."""
        with self._store._lock:
            for digest in self._digests:
                self._store._held[digest] -= 1
                if not self._store._held[digest]:
                    del self._store._held[digest]
            self._digests.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BlobStore:
    """Content by digest under one directory. Every method may be called from any thread."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        for name in ("", "blobs", "blobs/sha256", "ingest"):
            os.makedirs(
                os.path.join(self.root, name), mode=0o711 if not name else 0o700, exist_ok=True
            )
        self._write_once("oci-layout", LAYOUT)
        self._write_once("index.json", EMPTY_INDEX)

    # -- reading -------------------------------------------------------------------------------------------------

    def path(self, digest: str) -> str:
        """Where a blob is, or would be. Do not write there."""
        algorithm, name = split_digest(digest)
        return os.path.join(self.root, "blobs", algorithm, name)

    def has(self, digest: str) -> bool:
        """Whether the blob is here, whole and verified."""
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """The blob's size in bytes; `NotFound` where it is not here."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise NotFound(f"blob {digest} not found") from None

    def open(self, digest: str) -> BinaryIO:
        """The blob as an unbuffered binary file, at its start."""
        try:
            return open(self.path(digest), "rb", buffering=0)
        except FileNotFoundError:
            raise NotFound(f"blob {digest} not found") from None

    def read(self, digest: str, *, limit: int = READ_LIMIT) -> bytes:
        """The whole blob, checked against its digest again; refuses what is larger than `limit`."""
        with self.open(digest) as file:
            data = file.read(limit + 1) or b""
            while len(data) <= limit and (more := file.read(limit + 1 - len(data))):
                data += more
        if len(data) > limit:
            raise InvalidArgument(f"blob {digest} is larger than {limit} bytes")
        if digest_of(data, digest.partition(":")[0]) != digest:
            raise Internal(f"blob {digest} is damaged on disk", hint="pull or load the image again")
        return data

    def walk(self) -> Iterator[Blob]:
        """Every blob in the store, in no particular order."""
        for algorithm in _HEX_LENGTH:
            with (
                suppress(FileNotFoundError),
                os.scandir(os.path.join(self.root, "blobs", algorithm)) as entries,
            ):
                for entry in entries:
                    digest = f"{algorithm}:{entry.name}"
                    if _DIGEST.fullmatch(digest):
                        with suppress(FileNotFoundError):
                            yield Blob(digest, entry.stat().st_size)

    # -- writing -------------------------------------------------------------------------------------------------

    def ingest(self, algorithm: str = "sha256") -> Ingest:
        """Begin a blob whose digest may not be known yet."""
        if algorithm not in _HEX_LENGTH:
            raise InvalidArgument(f"unsupported digest algorithm {algorithm[:40]!r}")
        path = os.path.join(self.root, "ingest", f"{secrets.token_hex(8)}.tmp")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return Ingest(self, path, fd, algorithm=algorithm, keep_partial=False)

    def resume(self, digest: str) -> Ingest:
        """Begin or continue the blob `digest`; `.offset` says how much is here already.

        Two at once do not disturb each other: the second starts from nothing, under another name.
        """
        algorithm, name = split_digest(digest)
        path = os.path.join(self.root, "ingest", f"{algorithm}-{name}.part")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            if not _same_file(
                fd, path
            ):  # the holder before us published it between our open and our lock
                raise BlockingIOError
        except BlockingIOError:
            os.close(fd)
            return self.ingest(algorithm)
        ingest = Ingest(self, path, fd, algorithm=algorithm, keep_partial=True)
        ingest._rehash()
        return ingest

    def put(self, data: bytes, *, digest: str | None = None) -> Blob:
        """Store bytes that are in memory."""
        with self.ingest() as ingest:
            ingest.write(data)
            return ingest.commit(digest)

    def copy_in(
        self, chunks: Iterable[bytes], *, digest: str | None = None, size: int | None = None
    ) -> Blob:
        """Store a stream, refusing it as soon as it is longer than `size`."""
        with self.ingest("sha256" if digest is None else split_digest(digest)[0]) as ingest:
            for chunk in chunks:
                if size is not None and ingest.offset + len(chunk) > size:
                    raise InvalidArgument(f"unexpected size: more than the expected {size} bytes")
                ingest.write(chunk)
            return ingest.commit(digest, size)

    def delete(self, digest: str) -> int:
        """Remove a blob at once, whoever refers to it; returns the bytes freed (0 where it was not here)."""
        path = self.path(digest)
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            return 0
        return size

    # -- the index -----------------------------------------------------------------------------------------------

    def read_index(self) -> bytes:
        """index.json as it stands."""
        with open(os.path.join(self.root, "index.json"), "rb") as file:
            return file.read()

    def write_index(self, data: bytes) -> None:
        """Replace index.json in one step."""
        self._write_atomically("index.json", data)

    # -- keeping house -------------------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """Hold blobs that nobody names yet; close it after the catalogue does."""
        return Lease(self)

    def discard(self, digest: str) -> bool:
        """Delete a blob unless somebody who is adding content needs it."""
        with self._lock:
            return not self._held.get(digest) and bool(self.delete(digest))

    def collect(self, roots: Iterable[str], *, dry_run: bool = False) -> Collected:
        """Remove every blob that is neither in `roots` nor held by a lease.

        The caller lists every digest to keep, the inner ones (configs, layers) too, and computes the list
        *after* this point could see no new lease-less blob: that is, everything is added under a lease.
        """
        keep = set(roots)
        gone: list[str] = []
        freed = 0
        for blob in self.walk():
            if blob.digest in keep:
                continue
            with self._lock:  # held against _publish and Lease.hold, so that nobody takes it between look and unlink
                if self._held.get(blob.digest):
                    continue
                freed += blob.size if dry_run else self.delete(blob.digest)
            gone.append(blob.digest)
        return Collected(gone, freed)

    def verify(self, *, progress: Callable[[Blob], None] | None = None) -> Iterator[Damage]:
        """Re-hash everything; yields what is damaged and leaves it in place (see `quarantine`)."""
        for blob in self.walk():
            if progress is not None:
                progress(blob)
            with suppress(FileNotFoundError, NotFound), self.open(blob.digest) as file:
                found = _digest_of_file(file, blob.digest.partition(":")[0])
                if found != blob.digest:
                    yield Damage(blob.digest, found, blob.size)

    def quarantine(self, digest: str) -> str:
        """Move a damaged blob out of the way, so that a pull or load brings it again; returns its new path."""
        algorithm, name = split_digest(digest)
        directory = os.path.join(self.root, "quarantine")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, f"{algorithm}-{name}")
        os.rename(self.path(digest), path)
        return path

    def sweep(self, *, partials_older_than_s: float | None = None) -> int:
        """At start, when nothing is being written: drop temporary files a crash left, and old partials.

        Returns how many went. Partials stay for resumption unless an age is given.
        """
        count = 0
        now = _file_clock(self.root)
        with os.scandir(os.path.join(self.root, "ingest")) as entries:
            for entry in entries:
                stale = (
                    partials_older_than_s is not None
                    and now - entry.stat().st_mtime > partials_older_than_s
                )
                if entry.name.endswith(".tmp") or stale:
                    os.unlink(entry.path)
                    count += 1
        return count

    @contextmanager
    def keeping(self, *digests: str) -> Iterator[Lease]:
        """A lease on these from the first line on."""
        with self.lease() as lease:
            lease.hold(*digests)
            yield lease

    # -- the steps -----------------------------------------------------------------------------------------------

    def _publish(self, fd: int, temporary: str, blob: Blob) -> None:
        """From a verified temporary file to the blob's name: sync, rename, sync the directory, in this order."""
        os.fchmod(fd, 0o444)
        os.fdatasync(fd)
        final = self.path(blob.digest)
        os.makedirs(os.path.dirname(final), mode=0o700, exist_ok=True)
        with self._lock:
            # Replacing an equal blob would be harmless, but would break hard links that snapshots share with it.
            try:
                present = os.stat(final).st_size == blob.size
            except FileNotFoundError:
                present = False
            if present:
                os.unlink(temporary)
                return
            os.rename(temporary, final)
        _sync_directory(os.path.dirname(final))

    def _write_once(self, name: str, data: bytes) -> None:
        if not os.path.exists(os.path.join(self.root, name)):
            self._write_atomically(name, data)

    def _write_atomically(self, name: str, data: bytes) -> None:
        temporary = os.path.join(self.root, "ingest", f"{secrets.token_hex(8)}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fdatasync(fd)
            os.rename(temporary, os.path.join(self.root, name))
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        _sync_directory(self.root)


def _same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digest_of_file(file: BinaryIO, algorithm: str) -> str:
    hasher = hashlib.new(algorithm)
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"


def _file_clock(directory: str) -> float:
    """Now, by the clock that stamps files there (a file server's may differ from ours)."""
    path = os.path.join(directory, "ingest", f"{secrets.token_hex(8)}.tmp")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        os.unlink(path)
