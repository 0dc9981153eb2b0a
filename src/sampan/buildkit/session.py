"""Sessions: connections on which the client answers our calls. What a build asks of its client goes over one of them.

    POST /session, X-Docker-Expose-Session-Uuid: ID, ...-Grpc-Method: METHOD (repeated)
        the client dials, and then is the gRPC server: files, credentials, secrets, ssh agents, exporters' output

A session lives as long as its connection. A build names it by id, and may name it before it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Link, Stream
from sampan.buildkit.messages import (
    AgentRequest,
    CredentialsRequest,
    CredentialsResponse,
    Empty,
    SecretRequest,
    SecretResponse,
)
from sampan.buildkit.wire import Message, decode, encode

ARRIVAL_SECONDS = 5  # BuildKit waits as long for a session that a build named

DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
SEND = "/moby.filesync.v1.FileSend/DiffCopy"
CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
CHECK_AGENT = "/moby.sshforward.v1.SSH/CheckAgent"
FORWARD_AGENT = "/moby.sshforward.v1.SSH/ForwardAgent"
UPLOAD = "/moby.upload.v1.Upload/Pull"

M = TypeVar("M", bound=Message)


class Session:
    """One client's connection."""

    def __init__(
        self, ident: str, link: Link, methods: Iterable[str], shared_key: str = ""
    ) -> None:
        self.id = ident
        self.shared_key = shared_key  # the same for sessions that offer the same directories
        self.link = link
        self._methods = {method.lower() for method in methods}

    def supports(self, method: str) -> bool:
        """Whether the client said that it answers these calls."""
        return method.lower() in self._methods

    def open(self, method: str, metadata: Iterable[tuple[str, str]] = ()) -> Stream:
        """Begin a call of streams. Raises GrpcError where the client does not know it."""
        if not self.supports(method):
            raise GrpcError(f"method {method} not supported by the client", Code.UNIMPLEMENTED)
        return self.link.open(method, metadata)

    async def ask(self, method: str, request: Message, kind: type[M]) -> M:
        """A call with one answer."""
        stream = self.open(method)
        try:
            await stream.send(encode(request))
            stream.end()
            answer = await stream.receive()
            if answer is None:
                raise GrpcError(f"the client did not answer {method}", Code.INTERNAL)
            while await stream.receive() is not None:
                continue
        except BaseException:
            stream.cancel()
            raise
        return decode(kind, answer)

    async def credentials(self, host: str) -> tuple[str, str]:
        """User and password for a registry; ("", "") for none. An identity token has no user."""
        if not self.supports(CREDENTIALS):
            return "", ""
        found = await self.ask(CREDENTIALS, CredentialsRequest(host=host), CredentialsResponse)
        return found.username, found.secret

    async def secret(self, ident: str) -> bytes | None:
        """A secret; None where the client has none of that name."""
        if not self.supports(SECRET):
            return None
        try:
            return (await self.ask(SECRET, SecretRequest(id=ident), SecretResponse)).data
        except GrpcError as error:
            if error.code == Code.NOT_FOUND:
                return None
            raise

    async def has_agent(self, ident: str) -> bool:
        """Whether the client forwards an ssh agent of that name."""
        if not self.supports(CHECK_AGENT):
            return False
        try:
            await self.ask(CHECK_AGENT, AgentRequest(id=ident), Empty)
        except GrpcError as error:
            if error.code == Code.UNAVAILABLE:
                raise
            return False
        return True


class Sessions:
    """Those that are connected."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._change = asyncio.Event()

    def add(self, session: Session) -> None:
        """It is there; builds may wait for it."""
        self._sessions[session.id] = session
        self._change.set()
        self._change = asyncio.Event()

    def remove(self, session: Session) -> None:
        """It is gone. Idempotent."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]

    async def get(self, ident: str) -> Session:
        """The session of that id, waited for a while. Raises GrpcError where none comes."""
        if not ident:
            raise GrpcError("the build names no session")
        ident = ident.rpartition(":")[2]  # a prefix only tells apart what several sessions share
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while ident not in self._sessions:
                    await self._change.wait()
        except TimeoutError:
            raise GrpcError(f"no active session for {ident}: context deadline exceeded") from None
        return self._sessions[ident]

    def __contains__(self, ident: str) -> bool:
        return ident in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)
