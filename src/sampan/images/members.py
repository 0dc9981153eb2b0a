"""What is in an image archive, by name: small files in memory, large ones as blobs of the store.

One pass over the tar. A name is only ever a key of this table; links are followed inside it and nowhere else.
Blobs that arrive are held against collection, and what no image took is dropped at the end.
"""

from __future__ import annotations

import hashlib

import msgspec

from sampan.errors import InvalidArgument
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Hold
from sampan.spec.image import Descriptor, ImageDocument, Manifest
from sampan.spec.reference import Reference, digest_of, quoted
from sampan.storage import decompress
from sampan.storage.blobs import BlobStore
from sampan.storage.streams import ReadAhead
from sampan.storage.tar import FILE, LINK, SYMLINK, Entry, Limits, Readable, TarError
from sampan.storage.tar_reader import TarReader

SMALL = 256 * 1024
SMALL_TOTAL = 64 * 1024 * 1024
LINK_HOPS = 8
# The archive around the layers: their own limits are the snapshotter's business.
LIMITS = Limits(entries=100_000, depth=16, name=1024)


class Member(msgspec.Struct, kw_only=True):
    """One regular file of the archive."""

    digest: str
    size: int
    data: bytes | None  # None: it is a blob of the store


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One image of an archive, before anything of it is known to the catalogue."""

    document: ImageDocument
    manifest: Manifest
    references: tuple[Reference, ...]
    parent: str = ""


class Members:
    """The files of one archive."""

    def __init__(self, blobs: BlobStore, hold: Hold) -> None:
        self._blobs = blobs
        self._hold = hold
        self._files: dict[str, Member] = {}
        self._links: dict[str, str] = {}
        self._arrived: list[str] = []
        self._small_total = 0

    @classmethod
    def read(cls, blobs: BlobStore, hold: Hold, stream: Readable, cancel: Cancel) -> Members:
        members = cls(blobs, hold)
        with ReadAhead(decompress.open_stream(stream)) as ahead:
            reader = TarReader(ahead, LIMITS)
            for entry in reader:
                cancel.check()
                members._keep(reader, entry, cancel)
            reader.drain()  # a compressed archive is whole only when its last byte was right
        if not members._files:
            raise InvalidArgument("invalid archive: it is empty")
        return members

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) is not None

    def names(self) -> list[str]:
        return list(self._files)

    def get(self, name: str) -> Member:
        """InvalidArgument when there is no such file, whatever the name tries to be."""
        member = self._resolve(name)
        if member is None:
            raise InvalidArgument(f"invalid archive: no file {quoted(name)} in it")
        return member

    def small(self, name: str, limit: int) -> bytes:
        """A document."""
        return self._bytes(self.get(name), name, limit)

    def _bytes(self, member: Member, name: str, limit: int) -> bytes:
        if member.size > limit:
            raise InvalidArgument(
                f"invalid archive: {quoted(name)} has {member.size} bytes, at most {limit} are allowed"
            )
        if member.data is not None:
            return member.data
        return self._blobs.read(member.digest, limit=limit)

    def blob(self, name: str) -> Member:
        """A file that is, or becomes now, a blob of the store."""
        member = self.get(name)
        if member.data is not None:
            self._hold.blobs(member.digest)
            self._blobs.put(member.data)
            self._arrived.append(member.digest)
            member.data = None
        return member

    def compression(self, member: Member) -> str:
        """How a layer is compressed; InvalidArgument when no manifest could say so."""
        with self._blobs.open(member.digest) as file:
            kind = decompress.detect(file.read(16) or b"")
        if kind not in {"none", "gzip", "zstd"}:
            raise InvalidArgument(f"unsupported compression {kind} of layer {member.digest}")
        return kind

    def oci_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """`blobs/sha256/<hex>`, compared with its name and its size."""
        name = "blobs/" + descriptor.digest.replace(":", "/", 1)
        raw = self.small(name, limit)
        self.check_oci_blob(descriptor)
        return raw

    def check_oci_blob(self, descriptor: Descriptor) -> None:
        name = "blobs/" + descriptor.digest.replace(":", "/", 1)
        member = self.blob(name)
        if member.size != descriptor.size:
            raise InvalidArgument(
                f"invalid archive: {quoted(name)} has {member.size} bytes, "
                f"its descriptor says {descriptor.size}"
            )
        if not self.hashes_right(descriptor.digest):
            raise InvalidArgument(f"invalid archive: {quoted(name)} hashes to {member.digest}")

    def hashes_right(self, digest: str) -> bool:
        """Is the file under an OCI digest's name what the name says?"""
        member = self._resolve("blobs/" + digest.replace(":", "/", 1))
        if member is None:
            return False
        if member.digest == digest:
            return True
        if digest.startswith("sha256:"):
            return False
        return self._rehash(member, digest)

    def _rehash(self, member: Member, digest: str) -> bool:
        """A layout may use another algorithm than ours: keep the blob under that name as well."""
        algorithm, _, wanted = digest.partition(":")
        hasher = hashlib.new(algorithm)
        with self._blobs.ingest(algorithm) as ingest:
            if member.data is not None:
                hasher.update(member.data)
                ingest.write(member.data)
            else:
                with self._blobs.open(member.digest) as file:
                    while chunk := file.read(1 << 20):
                        hasher.update(chunk)
                        ingest.write(chunk)
            if hasher.hexdigest() != wanted:
                return False
            self._hold.blobs(digest)
            self._arrived.append(digest)
            ingest.commit(digest)
        return True

    def drop_unused(self, catalog: Catalog) -> None:
        """What no image of the catalogue took goes again."""
        used = catalog.blob_digests()
        self._hold.release_blobs()
        for digest in dict.fromkeys(self._arrived):
            if digest not in used:
                self._blobs.discard(digest)

    # --- reading -------------------------------------------------------------------------------------

    def _keep(self, reader: TarReader, entry: Entry, cancel: Cancel) -> None:
        name = _clean(entry.name)
        if not name:
            return
        if entry.kind in {SYMLINK, LINK}:
            self._links[name] = _target(name, entry)
        elif entry.kind == FILE:
            self._links.pop(name, None)
            self._files[name] = self._keep_file(reader, entry, cancel)

    def _keep_file(self, reader: TarReader, entry: Entry, cancel: Cancel) -> Member:
        if entry.sparse:
            raise TarError("sparse files have no place in an image archive", entry=entry.name)
        if entry.size <= SMALL and self._small_total + entry.size <= SMALL_TOTAL:
            self._small_total += entry.size
            data = reader.read(SMALL)
            return Member(digest=digest_of(data), size=len(data), data=data)
        with self._blobs.ingest() as ingest:
            for piece in reader.chunks():
                cancel.check()
                ingest.write(piece)
            self._hold.blobs(ingest.digest)
            existed = self._blobs.has(ingest.digest)
            blob = ingest.commit()
        if not existed:
            self._arrived.append(blob.digest)
        return Member(digest=blob.digest, size=blob.size, data=None)

    def _resolve(self, name: str) -> Member | None:
        key = _clean(name.encode("utf-8", "surrogateescape"))
        for _ in range(LINK_HOPS):
            if key in self._files:
                return self._files[key]
            if key not in self._links:
                return None
            key = self._links[key]
        return None


def _clean(name: bytes) -> str:
    """A name as a key: `./a//b` is `a/b`; one that leaves the archive, or starts at a root, is nothing."""
    if name.startswith(b"/"):
        return ""
    parts: list[str] = []
    for part in name.decode("utf-8", "surrogateescape").split("/"):
        if part == "..":
            return ""
        if part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _target(name: str, entry: Entry) -> str:
    """Where a link leads: hard links name the archive's member, symbolic ones start at their directory."""
    if entry.kind == LINK:
        return _clean(entry.linkname)
    text = entry.linkname.decode("utf-8", "surrogateescape")
    parts = name.split("/")[:-1]
    for part in text.split("/") if not text.startswith("/") else [".."] * 64:
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)
