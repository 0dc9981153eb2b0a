"""Blobs that lie with the client: stores that it offers over its session, each under a name.

    oci:NAME           a layout for `--build-context`        local:DIRECTORY    a cache for --cache-from or --cache-to

    Read(digest)  ──► pieces                    Write(STAT ref, total, expected; WRITE data ...; COMMIT) ──► a receipt each

Source: containerd, api/services/content/v1 and its contentserver; moby/buildkit, session/content/.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Stream
from sampan.buildkit.messages import (
    CONTENT_COMMIT,
    CONTENT_STAT,
    CONTENT_WRITE,
    ReadContentRequest,
    ReadContentResponse,
    WriteContentRequest,
)
from sampan.buildkit.session import Session
from sampan.buildkit.wire import decode, encode
from sampan.errors import NotFound
from sampan.spec.image import Descriptor

READ = "/containerd.services.content.v1.Content/Read"
WRITE = "/containerd.services.content.v1.Content/Write"
STORE_HEADER = "buildkit-attachable-store-id"
MAX_DOCUMENT = 4 << 20
PIECE = 256 << 10


class ContentStore:
    """One store of one client."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    async def document(self, digest: str) -> bytes:
        """A small blob."""
        data = b""
        async for piece in self._read(digest):
            data += piece
            if len(data) > MAX_DOCUMENT:
                raise GrpcError(f"{digest}: more than {MAX_DOCUMENT} bytes")
        return data

    async def blob(self, descriptor: Descriptor) -> AsyncIterator[bytes]:
        """A blob of just that size; whoever stores it checks the digest."""
        left = descriptor.size
        async for piece in self._read(descriptor.digest):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            raise GrpcError(f"{descriptor.digest} has another size than {descriptor.size}")

    async def _read(self, digest: str) -> AsyncIterator[bytes]:
        stream = self._session.open(READ, [(STORE_HEADER, self._name)])
        try:
            await stream.send(encode(ReadContentRequest(digest=digest)))
            stream.end()
            while (message := await stream.receive()) is not None:
                yield decode(ReadContentResponse, message).data
        except GrpcError as error:
            if error.code == Code.NOT_FOUND:
                raise NotFound(error.message) from error
            raise
        finally:
            stream.cancel()

    async def write(self, digest: str, fd: int) -> None:
        """Give the client a blob, from an open file; nothing where it has it."""
        size = os.fstat(fd).st_size
        stream = self._session.open(WRITE, [(STORE_HEADER, self._name)])
        try:
            await self._step(stream, CONTENT_STAT, digest, size)
            at = 0
            while data := os.pread(fd, PIECE, at):
                await self._step(stream, CONTENT_WRITE, digest, size, at, data)
                at += len(data)
            await self._step(stream, CONTENT_COMMIT, digest, size, at)
            stream.end()
            while await stream.receive() is not None:
                continue
        except GrpcError as error:
            if error.code != Code.ALREADY_EXISTS:
                raise
        finally:
            stream.cancel()

    @staticmethod
    async def _step(
        stream: Stream, action: int, digest: str, size: int, offset: int = 0, data: bytes = b""
    ) -> None:
        """One step, and its receipt."""
        step = WriteContentRequest(
            action=action, ref=f"upload-{digest}", total=size, expected=digest, offset=offset, data=data
        )  # fmt: skip
        await stream.send(encode(step))
        await stream.receive()
