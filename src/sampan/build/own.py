"""Builds of our own command line: all that it lends travels in one body, all that happens comes back as JSON lines.

    body     4 bytes length, JSON Order, then a tar:   dockerfile/...   context/...   named/NAME/...
    answer   {"vertex": {...}} {"count": ...} {"log": ...} {"warning": ...}     as it happens
             {"output": N, "data": base64}     pieces of export N, for the caller's disk
             {"result": {...}}                 facts for --metadata-file; {"answer": {...}} of --call

Secrets stay in memory. An agent's socket of the caller's is reached through one of ours, so that a step's user can be
given it.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.build.client import CONTEXT, DOCKERFILE, Auth, Wanted
from sampan.build.context import Context
from sampan.build.exporters import files_tar
from sampan.build.progress import Event, Vertex, VertexLog, VertexStatus, VertexWarning
from sampan.build.request import BuildRequest, CacheOption, Export, from_attributes
from sampan.build.result import Built
from sampan.engine.pipes import ByteOutlet
from sampan.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.storage.tar import Readable

MAX_ORDER = 4 << 20
RELAY_CHUNK = 1 << 16
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks. `attributes` are BuildKit's (`request.from_attributes`)."""

    attributes: dict[str, str] = {}
    exports: tuple[Export, ...] = ()
    cache_from: tuple[CacheOption, ...] = ()
    cache_to: tuple[CacheOption, ...] = ()
    allow: frozenset[str] = frozenset()
    secrets: dict[str, bytes] = {}
    ssh: dict[str, str] = {}
    auths: dict[str, Auth] = {}
    keep_failed: bool = False
    flat: bool = (
        False  # the tar is the context, and holds the Dockerfile: it came from somewhere else
    )

    def request(self) -> BuildRequest:
        """Raises InvalidArgument."""
        return msgspec.structs.replace(
            from_attributes(self.attributes), exports=self.exports, allow=self.allow,
            cache_from=self.cache_from, cache_to=self.cache_to, keep_failed=self.keep_failed,
        )  # fmt: skip


def read_order(body: Readable) -> Order:
    """Blocking: the beginning of a body. Raises InvalidArgument."""
    size = int.from_bytes(_exactly(body, 4), "big")
    if size > MAX_ORDER:
        raise InvalidArgument(f"a build's order may have {MAX_ORDER} bytes")
    try:
        return msgspec.json.decode(_exactly(body, size), type=Order)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"malformed order of a build: {error}") from None


def _exactly(body: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = body.read(size - len(data))
        if not piece:
            raise InvalidArgument("the body of a build is cut off")
        data += piece
    return data


class OwnClient:
    """What came in the body; see `client.Client`."""

    def __init__(self, builder: Builder, order: Order, send: Send) -> None:
        self._builder = builder
        self._order = order
        self._send = send
        self._top: Context | None = None
        self._parts: dict[str, Context] = {}
        self._relays: list[_Relay] = []

    async def receive(self, body: Readable) -> None:
        """The tar."""
        blocking = self._builder.engine.run_blocking
        self._top = await blocking(Context.new, self._builder.cache.contexts_dir)
        if not await blocking(self._top.receive, body, "Dockerfile"):
            raise InvalidArgument("the body of a build holds no tar")

    async def directory(
        self, name: str, wanted: Wanted, progress: Callable[[int], None]
    ) -> Context:
        assert self._top is not None
        if self._order.flat and name in (DOCKERFILE, CONTEXT):
            if name == CONTEXT and wanted.exclude:
                await self._builder.engine.run_blocking(self._top.leave_out, wanted.exclude)
            return self._top
        place = name if name in (DOCKERFILE, CONTEXT) else f"named/{name}"
        part = self._parts.get(place)
        if part is None:
            part = self._parts[place] = Context(_below(self._top.path, place, name))
        return part

    async def secret(self, ident: str) -> bytes | None:
        return self._order.secrets.get(ident)

    async def ssh_socket(self, ident: str) -> str | None:
        agent = self._order.ssh.get(ident)
        if agent is None:
            return None
        relay = _Relay(agent, self._builder.cache.root / "agents")
        self._relays.append(relay)
        return await relay.start()

    async def credentials(self, host: str) -> Auth | None:
        keys = ("https://index.docker.io/v1/", "docker.io") if host == "docker.io" else (host,)
        return next((self._order.auths[key] for key in keys if key in self._order.auths), None)

    async def send_file(self, export: Export, chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            data = base64.b64encode(chunk).decode()
            await self._send({"output": int(export.id or 0), "data": data})

    async def send_directory(self, export: Export, roots: dict[str, int]) -> None:
        outlet = ByteOutlet()
        chunks = outlet.start(
            self._builder.engine.pool, lambda out: [out.write(piece) for piece in files_tar(roots)]
        )
        try:
            await self.send_file(export, aiter(chunks))
        finally:
            await chunks.aclose()

    async def upload(self, url: str) -> Context:
        raise NotFound(f"nothing is uploaded under {url}")

    def made(self, ident: str) -> list[Built] | None:
        return None

    async def close(self) -> None:
        relays, self._relays = self._relays, []
        for relay in relays:
            await relay.close()
        parts, self._parts = self._parts, {}
        for part in parts.values():
            os.close(part.fd)
        top, self._top = self._top, None
        if top is not None:
            self._builder.dispose(top)


def _below(top: Path, place: str, name: str) -> Path:
    """A directory of the tar; a link on the way is not one, whoever put it there."""
    path = top
    for part in place.split("/"):
        path = path / part
        if part in ("", ".", "..") or path.is_symlink() or not path.is_dir():
            raise NotFound(f"local directory {name} was not sent")
    return path


class _Relay:
    """A socket of ours that leads to an agent's."""

    def __init__(self, agent: str, directory: Path) -> None:
        self._agent = agent
        self._directory = directory
        self._server: asyncio.AbstractServer | None = None
        self._path = directory / os.urandom(8).hex()
        self._busy: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return str(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            theirs, to_agent = await asyncio.open_unix_connection(self._agent)
        except OSError:
            writer.close()
            return
        finally:
            self._busy.discard(task)
        both = [
            asyncio.ensure_future(_pump(reader, to_agent)),
            asyncio.ensure_future(_pump(theirs, writer)),
        ]
        self._busy.update(both)
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
                self._busy.discard(each)
            to_agent.close()
            writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._busy):
                task.cancel()
            await asyncio.gather(*self._busy, return_exceptions=True)
            with suppress(FileNotFoundError):
                self._path.unlink()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(RELAY_CHUNK):
        writer.write(data)
        await writer.drain()


def as_line(event: Event) -> dict[str, Any]:
    """An event for the command line."""
    if isinstance(event, Vertex):
        return {
            "vertex": event.digest, "name": event.name, "started": event.started_ns,
            "completed": event.completed_ns, "cached": event.cached, "error": event.error,
        }  # fmt: skip
    if isinstance(event, VertexStatus):
        return {
            "count": event.id, "of": event.vertex, "current": event.current, "total": event.total,
            "started": event.started_ns, "completed": event.completed_ns, "at": event.timestamp_ns,
        }  # fmt: skip
    if isinstance(event, VertexLog):
        data = base64.b64encode(event.data).decode()
        return {"log": data, "of": event.vertex, "stream": event.stream, "at": event.timestamp_ns}
    assert isinstance(event, VertexWarning)
    return {"warning": event.short, "url": event.url, "of": event.vertex, "line": event.start}
