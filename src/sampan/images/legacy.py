"""Archives of Docker before 1.10: a directory for each layer, each with a document that names its parent.

    repositories          {"busybox": {"latest": "<v1 id>"}}
    <v1 id>/VERSION       1.0
    <v1 id>/json          {"id", "parent", "created", "config", "container_config", "architecture", "os", ...}
    <v1 id>/layer.tar     the layer, not compressed

A v1 id is a random number and says nothing about content, so an image of today's kind is made: the documents
along the parents become its history, the layers its diff ids. Source: "Docker Image Specification v1.0.0".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from sampan.errors import InvalidArgument
from sampan.images.members import Found, Members
from sampan.spec.image import (
    CONFIG_LIMIT,
    LAYER_COUNT_LIMIT,
    MANIFEST_LIMIT,
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    decode_json,
    encode,
    make_manifest,
    parse_image_document,
)
from sampan.spec.reference import Reference, parse_normalized, quoted

_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
# What belonged to the old form and would lie about the new image.
_DROPPED = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway", "checksum")

_decode_repositories = msgspec.json.Decoder(dict[str, dict[str, str]])
_decode_document = msgspec.json.Decoder(dict[str, Any])


def find_images(members: Members) -> Iterator[Found]:
    """Every image that `repositories` names, converted."""
    raw = members.small("repositories", MANIFEST_LIMIT)
    names: dict[str, list[Reference]] = {}
    for repository, tags in decode_json(_decode_repositories, raw, "repositories").items():
        for tag, v1_id in tags.items():
            reference = parse_normalized(repository).with_tag(tag)
            names.setdefault(_checked_id(v1_id), []).append(reference)
    for v1_id, references in names.items():
        chain = _chain(members, v1_id)
        raw = _document_of(members, chain)
        document = parse_image_document(raw)
        layers = []
        for layer_id in chain:
            member = members.blob(f"{layer_id}/layer.tar")
            layers.append(Descriptor(media_type=OCI_LAYER, digest=member.digest, size=member.size))
        config = Descriptor(media_type=OCI_CONFIG, digest=document.id, size=len(raw))
        yield Found(
            document=document,
            manifest=make_manifest(config, tuple(layers)),
            references=tuple(references),
        )


def _chain(members: Members, v1_id: str) -> list[str]:
    """The layers of an image, base first."""
    chain: list[str] = []
    current = v1_id
    while current:
        if current in chain or len(chain) == LAYER_COUNT_LIMIT:
            raise InvalidArgument(f"invalid archive: layer {current} has no end of parents")
        chain.append(current)
        parent = _read(members, current).get("parent") or ""
        current = _checked_id(parent) if parent else ""
    return chain[::-1]


def _document_of(members: Members, chain: list[str]) -> bytes:
    """The image's configuration from the old documents."""
    history = []
    diff_ids = []
    for layer_id in chain:
        old = _read(members, layer_id)
        command = (old.get("container_config") or {}).get("Cmd") or []
        history.append(
            {
                "created": old.get("created"),
                "author": str(old.get("author") or ""),
                "created_by": " ".join(str(word) for word in command),
                "comment": str(old.get("comment") or ""),
            }
        )
        member = members.blob(f"{layer_id}/layer.tar")
        if members.compression(member) != "none":
            raise InvalidArgument(f"invalid archive: layer {layer_id} is compressed")
        diff_ids.append(member.digest)
    document = {key: value for key, value in old.items() if key not in _DROPPED}
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    document["history"] = history
    return encode(document)


def _read(members: Members, v1_id: str) -> dict[str, Any]:
    document = decode_json(
        _decode_document, members.small(f"{v1_id}/json", CONFIG_LIMIT), f"{v1_id}/json"
    )
    if not isinstance(document.get("container_config") or {}, dict):
        raise InvalidArgument(f"invalid {v1_id}/json: container_config is no object")
    return document


def _checked_id(text: str) -> str:
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidArgument(f"invalid archive: {quoted(str(text))} is no layer id")
    return text
