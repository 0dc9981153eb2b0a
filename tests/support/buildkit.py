"""A client of BuildKit's protocol: dials the engine as docker's does, answers its calls, drives builds.

Messages and links are the product's own; what they look like on the wire is held by their unit tests, and by docker's
own client in tests/root/test_buildkit.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from sampan.buildkit import filesync
from sampan.buildkit import messages as m
from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Link, Serve, Stream
from sampan.buildkit.service import dispatcher, one
from sampan.buildkit.wire import Message, decode, encode

CONTROL = "/moby.buildkit.v1.Control/"
BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
SERVED = (
    "/moby.filesync.v1.FileSync/DiffCopy", "/moby.filesync.v1.FileSend/DiffCopy",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret", "/moby.filesync.v1.Auth/Credentials",
    "/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent",
    "/containerd.services.content.v1.Content/Read", "/containerd.services.content.v1.Content/Write",
)  # fmt: skip
M = TypeVar("M", bound=Message)


async def run_here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


class BuildClient:
    """One client: a connection to call on, and a session."""

    def __init__(self, path: Path, directories: dict[str, Path]) -> None:
        self.path = path
        self.directories = directories
        self.secrets: dict[str, bytes] = {}
        self.agent: Callable[[bytes], bytes] | None = None
        self.output: Path | None = None  # where `local` goes
        self.archive = b""  # what `tar` sent
        self.stores: dict[str, dict[str, bytes]] = {}  # blobs by digest, of OCI layouts
        self.asked: list[str] = []
        self.id = secrets.token_hex(12)
        self.session = Link(self._serve())
        self.control = Link()

    async def __aenter__(self) -> BuildClient:
        await self._dial("/session", self.session, [
            ("X-Docker-Expose-Session-Uuid", self.id),
            ("X-Docker-Expose-Session-Name", "test"),
            ("X-Docker-Expose-Session-Sharedkey", ""),
            *(("X-Docker-Expose-Session-Grpc-Method", each) for each in SERVED),
        ])  # fmt: skip
        await self._dial("/grpc", self.control)
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in (self.control, self.session):
            link.abort()
            await link.wait_closed()

    async def _dial(self, target: str, link: Link, headers: Iterable[tuple[str, str]] = ()) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, str(self.path))
        lines = [f"POST {target} HTTP/1.1", "Host: ", "Connection: Upgrade", "Upgrade: h2c"]
        lines += [f"{name}: {value}" for name, value in headers]
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = await loop.sock_recv(sock, 1)
            assert piece, head
            head += piece
        assert head.startswith(b"HTTP/1.1 101 "), head
        await loop.connect_accepted_socket(lambda: link, sock)

    # --- what the engine asks

    def _serve(self) -> Serve:
        return dispatcher(
            {
                SERVED[0]: self._give,
                SERVED[1]: self._take,
                SERVED[2]: one(m.SecretRequest, self._secret),
                SERVED[3]: one(m.CredentialsRequest, self._credentials),
                SERVED[4]: one(m.AgentRequest, self._check_agent),
                SERVED[5]: self._forward,
                SERVED[6]: self._read_content,
                SERVED[7]: self._write_content,
            }
        )

    async def _give(self, stream: Stream) -> None:
        name = stream.first("dir-name")
        self.asked.append(name)
        if name not in self.directories:
            raise GrpcError(f'no access allowed to dir "{name}"', Code.NOT_FOUND)
        root = os.open(self.directories[name], os.O_RDONLY)
        try:
            await filesync.send(stream, {"": root}, run_here)
        finally:
            os.close(root)

    async def _take(self, stream: Stream) -> None:
        if self.output is None:
            while (message := await stream.receive()) is not None:
                self.archive += decode(m.Bytes, message).data
            return
        root = os.open(self.output, os.O_RDONLY)
        try:
            receiver = filesync.Receiver(root)
            await filesync.receive(stream, receiver, run_here, lambda _: None)
        finally:
            os.close(root)

    async def _secret(self, _stream: Stream, request: m.SecretRequest) -> m.SecretResponse:
        if request.id not in self.secrets:
            raise GrpcError(f"secret {request.id} not found", Code.NOT_FOUND)
        return m.SecretResponse(data=self.secrets[request.id])

    async def _credentials(
        self, _stream: Stream, request: m.CredentialsRequest
    ) -> m.CredentialsResponse:
        self.asked.append(request.host)
        return m.CredentialsResponse()

    async def _check_agent(self, _stream: Stream, request: m.AgentRequest) -> m.Empty:
        if self.agent is None:
            raise GrpcError(f"unset ssh forward key {request.id}")
        return m.Empty()

    async def _forward(self, stream: Stream) -> None:
        assert self.agent is not None
        while (message := await stream.receive()) is not None:
            await stream.send(encode(m.Bytes(data=self.agent(decode(m.Bytes, message).data))))

    async def _read_content(self, stream: Stream) -> None:
        message = await stream.receive()
        assert message is not None
        digest = decode(m.ReadContentRequest, message).digest
        blobs = self.stores.get(stream.first("buildkit-attachable-store-id"), {})
        if digest not in blobs:
            raise GrpcError(f"content {digest}: not found", Code.NOT_FOUND)
        data = blobs[digest]
        for at in range(0, len(data), 1000):
            piece = m.ReadContentResponse(offset=at, data=data[at : at + 1000])
            await stream.send(encode(piece))

    async def _write_content(self, stream: Stream) -> None:
        """As containerd's server takes it: a step, a receipt; a blob that is there is refused."""
        blobs = self.stores[stream.first("buildkit-attachable-store-id")]
        data = b""
        while (message := await stream.receive()) is not None:
            step = decode(m.WriteContentRequest, message)
            if step.expected in blobs:
                raise GrpcError(f"content {step.expected}: already exists", Code.ALREADY_EXISTS)
            assert step.offset == len(data)
            data += step.data
            if step.action == m.CONTENT_COMMIT:
                assert len(data) == step.total
                assert step.expected == "sha256:" + hashlib.sha256(data).hexdigest()
                blobs[step.expected] = data
            await stream.send(encode(m.Empty()))

    # --- what we ask

    async def ask(self, method: str, request: Message, kind: type[M], ref: str = "") -> M:
        """A call with one answer."""
        stream = self.control.open(method, [("buildkit-controlapi-buildid", ref)] if ref else [])
        try:
            await stream.send(encode(request))
            stream.end()
            answer = await stream.receive()
            assert answer is not None
            assert await stream.receive() is None
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return decode(kind, answer)

    async def status(self, ref: str) -> m.StatusResponse:
        """All that a build tells, to its end."""
        stream = self.control.open(CONTROL + "Status")
        await stream.send(encode(m.StatusRequest(ref=ref)))
        stream.end()
        told = m.StatusResponse(vertexes=[], statuses=[], logs=[], warnings=[])
        while (message := await stream.receive()) is not None:
            news = decode(m.StatusResponse, message)
            told.vertexes.extend(news.vertexes)
            told.statuses.extend(news.statuses)
            told.logs.extend(news.logs)
            told.warnings.extend(news.warnings)
        return told

    def request(self, **fields: Any) -> m.SolveRequest:
        """A build of this client's."""
        return m.SolveRequest(ref=secrets.token_hex(12), session=self.id, **fields)

    async def solve(self, request: m.SolveRequest) -> m.SolveResponse:
        """Run it to its end."""
        return await self.ask(CONTROL + "Solve", request, m.SolveResponse)
