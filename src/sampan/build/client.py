"""What a build asks of whoever wanted it, while it runs: directories of the caller's disk, secrets, agents, passwords.

    POST /build          the body is the context and holds the Dockerfile      verb.py
    a BuildKit session   each is a call to the caller                          the room that speaks gRPC

What a client hands out it also takes back: everything lives until `close`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from sampan.build.context import Context
from sampan.build.request import Export
from sampan.build.result import Built

DOCKERFILE = "dockerfile"
CONTEXT = "context"
Auth = dict[str, str]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which files of a directory. All by default.

    `follow`: only these paths (patterns, links followed) and what they lead to; `exclude`: the ignore file's lines.
    """

    follow: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Client(Protocol):
    """See the module. Methods are called from the loop's thread, several at a time."""

    async def directory(
        self, name: str, wanted: Wanted, progress: Callable[[int], None]
    ) -> Context:
        """`dockerfile`, `context`, or a local directory that was named. `progress` takes the bytes so far.

        Owners are 0:0. Raises NotFound where the caller has no such directory.
        """

    async def upload(self, url: str) -> Context:
        """What the caller sends of its own accord under a URL of its making, as the only file of a directory: `context`.

        Raises NotFound where it sends nothing.
        """

    async def secret(self, ident: str) -> bytes | None:
        """A secret's value; None where the caller has none of that name."""

    async def ssh_socket(self, ident: str) -> str | None:
        """The path of a unix socket that leads to an agent; None where the caller offers none."""

    async def credentials(self, host: str) -> Auth | None:
        """User and password for a registry, as keys of Docker's AuthConfig in lower case."""

    async def send_file(self, export: Export, chunks: AsyncIterator[bytes]) -> None:
        """An archive that an exporter made, for the caller to keep."""

    async def send_directory(self, export: Export, roots: dict[str, int]) -> None:
        """Root filesystems for the caller's disk: directory ('' for the top) -> an open descriptor of the tree."""

    def made(self, ident: str) -> Sequence[Built] | None:
        """The images of another build of the caller's that is still held: what `made:ID` as a named context means."""

    async def close(self) -> None:
        """Give back what was handed out. Idempotent."""
