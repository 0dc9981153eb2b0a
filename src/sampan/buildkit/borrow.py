"""What a build borrows from its client, over a session: the build's view (`sampan.build.client.Client`) of it.

build/ ── Borrowed ── Session ── the client's files, secrets, ssh agents, passwords, output directories
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, urlsplit

from sampan.build.client import Auth, Wanted
from sampan.build.context import Context, new_directory
from sampan.build.request import CacheOption, Export
from sampan.buildkit import caches, filesync
from sampan.buildkit.contexts import Contexts, KeptContext
from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Stream
from sampan.buildkit.messages import Bytes
from sampan.buildkit.session import DIFF_COPY, FORWARD_AGENT, SEND, UPLOAD, Session
from sampan.buildkit.wire import decode, encode
from sampan.engine.pipes import ByteInlet
from sampan.errors import NotFound
from sampan.storage.tree import remove_tree

if TYPE_CHECKING:
    from sampan.build.result import Built
    from sampan.build.service import Made
    from sampan.engine.context import Engine

CACHE_FROM = "cache-from-"  # before the number of a --cache-from that lies with the client
DOCKER_IO, DOCKER_IO_REGISTRY = "docker.io", "registry-1.docker.io"
PIECE = 32 << 10

Pairs = list[tuple[str, str]]


def header_values(name: str, values: Iterable[str]) -> Pairs:
    """Values as metadata; where one is not plain ASCII, all are escaped and that is said."""
    found = list(values)
    if all(value.isascii() and value.isprintable() and value == value.strip() for value in found):
        return [(name, value) for value in found]
    escaped = [(name, quote_plus(value, errors="surrogateescape")) for value in found]
    return [*escaped, (f"{name}-encoded", "1")]


class Borrowed:
    """A client as a build sees it. `close` gives back what was made for it here."""

    def __init__(
        self,
        engine: Engine,
        session: Session,
        contexts: Contexts,
        lent: Mapping[str, Made],
        uploaded: Context | None = None,
    ) -> None:
        self._uploaded = uploaded
        self._lent = lent
        self._engine = engine
        self._session = session
        self._contexts = contexts
        self._undo = AsyncExitStack()
        self._agents: dict[str, str] = {}
        self.cache_from: tuple[CacheOption, ...] = ()  # of the build, once it is known
        self.answers: dict[str, str] = {}  # for the client, beside what exporters say

    async def directory(
        self, name: str, wanted: Wanted, progress: Callable[[int], None]
    ) -> Context:
        """A directory of the client's disk, copied into one of ours."""
        if name.startswith(CACHE_FROM):
            option = self.cache_from[int(name.removeprefix(CACHE_FROM))]
            context = await self._new()
            await caches.fetch(self._session, option, context, self._engine.run_blocking)
            return context
        key = (
            "\0".join((self._session.shared_key, name, *wanted.follow))
            if self._session.shared_key
            else ""
        )
        context = await self._engine.run_blocking(self._contexts.take, key)
        self._undo.push_async_callback(self._engine.run_blocking, context.close)
        known = (
            {}
            if context.is_new
            else await self._engine.run_blocking(filesync.known_entries, context.fd)
        )
        receiver = filesync.Receiver(context.fd, known)
        metadata = [
            *header_values("exclude-patterns", wanted.exclude),
            *header_values("followpaths", wanted.follow),
            *header_values("dir-name", (name,)),
        ]
        try:
            stream = self._session.open(DIFF_COPY, metadata)
            await filesync.receive(stream, receiver, self._engine.run_blocking, progress)
        except GrpcError as error:
            if error.code == Code.NOT_FOUND:
                raise NotFound(error.message) from error
            raise
        context.whole, context.entries, context.bytes = True, receiver.entries, receiver.bytes
        return context

    async def _new(self) -> KeptContext:
        context = await self._engine.run_blocking(self._contexts.take, "")
        self._undo.push_async_callback(self._engine.run_blocking, context.close)
        return context

    async def upload(self, url: str) -> Context:
        """A stream that the client offers under a URL of its own, such as a tar that it reads from its input."""
        if self._uploaded is not None:
            return self._uploaded
        parts = urlsplit(url)
        context = await self._new()
        stream = self._session.open(UPLOAD, [("urlpath", parts.path), ("urlhost", parts.netloc)])
        try:
            stream.end()
            with (context.path / "context").open("xb", buffering=0) as file:
                while (message := await stream.receive()) is not None:
                    pieces = [decode(Bytes, each).data for each in (message, *stream.ready(64))]
                    await self._engine.run_blocking(_write_all, file.fileno(), pieces)
        except BaseException:
            stream.cancel()
            raise
        return context

    def made(self, ident: str) -> Sequence[Built] | None:
        """What another build of the same client made, and lent to this one."""
        made = self._lent.get(ident)
        return None if made is None else made.results

    async def secret(self, ident: str) -> bytes | None:
        """A secret's value."""
        return await self._session.secret(ident)

    async def ssh_socket(self, ident: str) -> str | None:
        """The path of a socket whose connections the client's agent answers."""
        ident = ident or "default"
        if ident not in self._agents:
            if not await self._session.has_agent(ident):
                return None
            self._agents[ident] = await self._serve_agent(ident)
        return self._agents[ident]

    async def _serve_agent(self, ident: str) -> str:
        directory = await self._engine.run_blocking(new_directory, self._contexts.parent)
        self._undo.push_async_callback(self._engine.run_blocking, _remove, directory)
        path = f"{directory}/ssh_auth_sock"
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._forward(ident, reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        # A path of its own below /proc: a socket's address holds 107 bytes, a root's path may be longer.
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            server = await asyncio.start_unix_server(
                connected, f"/proc/self/fd/{fd}/ssh_auth_sock", limit=PIECE
            )
        finally:
            os.close(fd)

        async def stop() -> None:
            server.close()
            for task in list(tasks):
                task.cancel()
            if tasks:
                await asyncio.wait(list(tasks))

        self._undo.push_async_callback(stop)
        return path

    async def _forward(
        self, ident: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection to the agent, until either side ends it."""
        try:
            stream = self._session.open(FORWARD_AGENT, [("buildkit.ssh.id", ident)])
        except GrpcError:
            writer.close()
            return
        upward = asyncio.ensure_future(_pump_up(reader, stream))
        try:
            while (message := await stream.receive()) is not None:
                writer.write(decode(Bytes, message).data)
                await writer.drain()
        except (GrpcError, OSError):
            stream.cancel()  # one end is gone: so is the other
        finally:
            upward.cancel()
            await asyncio.wait((upward,))
            writer.close()

    async def credentials(self, host: str) -> Auth | None:
        """A registry's user and password."""
        asked = DOCKER_IO_REGISTRY if host == DOCKER_IO else host
        user, secret = await self._session.credentials(asked)
        if not secret:
            return None
        if not user:
            return {"identitytoken": secret, "serveraddress": host}
        return {"username": user, "password": secret, "serveraddress": host}

    async def send_file(self, export: Export, chunks: AsyncIterator[bytes]) -> None:
        """An archive, for the client to keep."""
        if export.type == "cache":
            await self._give_cache(export.attrs.get("dest", ""), chunks)
            return
        stream = self._session.open(SEND, _exporter(export))
        try:
            async for chunk in chunks:
                for at in range(0, len(chunk), PIECE):
                    await stream.send(encode(Bytes(data=chunk[at : at + PIECE])))
            stream.end()
            while await stream.receive() is not None:
                continue
        except BaseException:
            stream.cancel()
            raise

    async def _give_cache(self, directory: str, chunks: AsyncIterator[bytes]) -> None:
        layout = await self._new()
        inlet = ByteInlet()
        unpacking = asyncio.ensure_future(
            self._engine.run_blocking(layout.receive, inlet, "Dockerfile")
        )
        try:
            async for chunk in chunks:
                await inlet.feed(chunk)
            inlet.finish()
            await unpacking
        finally:
            inlet.close()
            await asyncio.wait((unpacking,))
        self.answers[caches.MANIFEST] = await caches.give(self._session, directory, layout)

    async def send_directory(self, export: Export, roots: dict[str, int]) -> None:
        """Root filesystems, as files of the client's."""
        stream = self._session.open(SEND, _exporter(export))
        await filesync.send(stream, roots, self._engine.run_blocking)

    async def close(self) -> None:
        """Idempotent."""
        self._agents.clear()
        await self._undo.aclose()


def _write_all(fd: int, pieces: list[bytes]) -> None:
    view = memoryview(b"".join(pieces))
    while view:
        view = view[os.write(fd, view) :]


def _exporter(export: Export) -> Pairs:
    return [("buildkit-attachable-exporter-id", export.id or "0")]


def _remove(directory: Path) -> None:
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(directory.name, parent)
    finally:
        os.close(parent)


async def _pump_up(reader: asyncio.StreamReader, stream: Stream) -> None:
    try:
        while data := await reader.read(PIECE):
            await stream.send(encode(Bytes(data=data)))
        stream.end()
    except (GrpcError, OSError):
        stream.cancel()
