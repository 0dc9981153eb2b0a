"""The table of names: which image each reference means, kept in the content store's own `index.json`.

    index.json
      manifests:
        - {mediaType, digest, size,                                 an image manifest in blobs/
           annotations:
             org.opencontainers.image.ref.name                      docker.io/library/busybox:latest
             dev.sampan.image.id                                    sha256:... of its configuration
             dev.sampan.image.tagged                                when the name was given
             dev.sampan.image.parent}                               the image it was committed or built from
        - the same without a name: an image that lost its last one (dangling)
        - anything else another tool put there: kept as it is

So the directory is an OCI layout whose names every OCI tool understands, and there is no second place that
could disagree. The file is replaced whole, by rename after fsync: a crash leaves the old table or the new one.
A table that cannot be read is set aside as `index.json.damaged`, and `NameTable.damage` says so.

A name with a digest (`busybox@sha256:...`) records what a registry called the image; that digest may be an
index's. Source: OCI image-spec 1.1, image-layout.md "index.json file", annotations.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property

import msgspec

from sampan.errors import InvalidArgument
from sampan.spec.image import (
    ANNOTATION_REF_NAME,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    decode_json,
    encode,
)
from sampan.spec.reference import Reference, is_digest, parse_normalized
from sampan.storage.blobs import BlobStore

ANNOTATION_ID = "dev.sampan.image.id"
ANNOTATION_TAGGED = "dev.sampan.image.tagged"
ANNOTATION_PARENT = "dev.sampan.image.parent"
_OURS = frozenset({ANNOTATION_REF_NAME, ANNOTATION_ID, ANNOTATION_TAGGED, ANNOTATION_PARENT})


class Entry(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One line of the table. `name` is a full reference, or empty for an image without one."""

    name: str
    target: Descriptor
    image_id: str
    tagged: str = ""
    parent: str = ""

    @cached_property
    def reference(self) -> Reference | None:
        return parse_normalized(self.name) if self.name else None

    def descriptor(self) -> Descriptor:
        """As it stands in index.json."""
        ours = {
            ANNOTATION_REF_NAME: self.name,
            ANNOTATION_ID: self.image_id,
            ANNOTATION_TAGGED: self.tagged,
            ANNOTATION_PARENT: self.parent,
        }
        return Descriptor(
            media_type=self.target.media_type,
            digest=self.target.digest,
            size=self.target.size,
            annotations={key: value for key, value in ours.items() if value},
        )


class _IndexFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = OCI_INDEX
    manifests: tuple[Descriptor, ...]


_decode_index_file = msgspec.json.Decoder(_IndexFile)


class NameTable:
    """The table in memory, and the one way to change it. Its owner holds a lock around every change."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.damage = ""
        self.entries: tuple[Entry, ...] = ()
        self.foreign: tuple[
            Descriptor, ...
        ] = ()  # lines that another tool wrote and we do not understand
        self._load()

    def replace(self, entries: Iterable[Entry]) -> None:
        """Make this the table: on disk first, then here."""
        new = tuple(entries)
        if new == self.entries:
            return
        lines = (*(entry.descriptor() for entry in new), *self.foreign)
        self._blobs.write_index(encode(_IndexFile(manifests=lines)) + b"\n")
        self.entries = new

    def adopt(self, entry: Entry, line: Descriptor) -> None:
        """A line of another tool's turned out to be an image of ours."""
        self.foreign = tuple(d for d in self.foreign if d is not line)
        self.entries = (*self.entries, entry)

    def _load(self) -> None:
        try:
            lines = decode_json(
                _decode_index_file, self._blobs.read_index(), "index.json"
            ).manifests
        except FileNotFoundError:
            lines = ()
        except InvalidArgument as error:
            self.damage = f"{error}; set aside as index.json.damaged"
            path = os.path.join(self._blobs.root, "index.json")
            os.replace(path, path + ".damaged")
            lines = ()
        entries: list[Entry] = []
        foreign: list[Descriptor] = []
        for line in lines:
            entry = _read_line(line)
            if entry is None:
                foreign.append(line)
            else:
                entries.append(entry)
        self.entries, self.foreign = tuple(entries), tuple(foreign)


def _read_line(line: Descriptor) -> Entry | None:
    image_id = line.annotation(ANNOTATION_ID)
    if (
        not (is_digest(image_id) and is_digest(line.digest))
        or line.media_type not in MANIFEST_TYPES
    ):
        return None
    name = line.annotation(ANNOTATION_REF_NAME)
    if name:
        try:
            name = str(parse_normalized(name))
        except InvalidArgument:
            return None
    if line.annotations and not line.annotations.keys() <= _OURS:
        return None
    return Entry(
        name=name,
        target=msgspec.structs.replace(line, annotations=None),
        image_id=image_id,
        tagged=line.annotation(ANNOTATION_TAGGED),
        parent=line.annotation(ANNOTATION_PARENT),
    )
