"""A root filesystem on its way: layers by content, and what names them. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from sampan.images.assemble import NewLayer


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A root filesystem: its layers, and the chain id that names them all; '' for none.

    `times`: for each layer when it was made (RFC 3339); '' for those of a base image, whose history says it.
    """

    layers: tuple[NewLayer, ...] = ()
    times: tuple[str, ...] = ()
    chain_id: str = ""


def chained(parent: str, diff_id: str) -> str:
    """The chain id of a layer on a stack (OCI image-spec, config.md "Layer ChainID")."""
    if not parent:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()
