"""Failures as gRPC says them: a code, a message, and details that BuildKit's clients understand. Values only.

Details travel as JSON behind a type's name (containerd's typeurl). Of these clients read:

    errdefs.Source        the Dockerfile and the lines that the failure is about: buildx prints them, marked
    gatewayapi.ExitMessage  a command's exit status
    errdefs.Subrequest    a request that the frontend does not know, so that a client may try another way

Almost everything has the code UNKNOWN, for clients put any other code's name before the message.
Source: moby/buildkit, solver/errdefs/ and util/grpcerrors/.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import msgspec

from sampan import errors
from sampan.buildkit.messages import Any as Detail

BUILDKIT = "github.com/moby/buildkit/"


class Code:
    """gRPC's codes, as far as they occur here."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class GrpcError(errors.SampanError):
    """A call's end that is not well."""

    def __init__(
        self, message: str, code: int = Code.UNKNOWN, details: Iterable[Detail] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = tuple(details)


def detail(kind: str, value: dict[str, Any]) -> Detail:
    """A detail of BuildKit's; `kind` like `errdefs.Source`."""
    return Detail(type_url=f"{BUILDKIT}{kind}+json", value=msgspec.json.encode(value))


def source_detail(name: str, data: bytes, ranges: Iterable[tuple[int, int]]) -> Detail:
    """Lines of a Dockerfile, each range from its first to its last line, counted from 1."""
    return detail(
        "errdefs.Source",
        {
            "info": {
                "filename": name,
                "data": b64encode(data).decode("ascii"),
                "language": "Dockerfile",
            },
            "ranges": [{"start": {"line": start}, "end": {"line": end}} for start, end in ranges],
        },
    )


def exit_detail(code: int) -> Detail:
    """A command's exit status."""
    return detail("gatewayapi.ExitMessage", {"Code": code})


def subrequest_detail(name: str) -> Detail:
    """A request that is not known."""
    return detail("errdefs.Subrequest", {"name": name})
