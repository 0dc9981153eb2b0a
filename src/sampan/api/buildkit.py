"""BuildKit's two endpoints: the connection is taken over and speaks HTTP/2 from then on.

POST /grpc       Upgrade: h2c    the client calls us
POST /session    Upgrade: h2c    we call the client: X-Docker-Expose-Session-Uuid names it, ...-Grpc-Method its services
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from sampan.api.call import Call
from sampan.api.progress import Report, progress_stream
from sampan.api.router import Route, post
from sampan.api.transfers import receive
from sampan.build.request import BuildRequest, Export
from sampan.errors import Conflict, InvalidArgument

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.buildkit.server import Server

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
SESSION = "x-docker-expose-session-"


class BuildKit:
    """The endpoints. What is behind them is loaded when the first client comes."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._server: Server | None = None

    def routes(self) -> tuple[Route, ...]:
        """Both."""
        return (post("/grpc", self.grpc), post("/session", self.session))

    def server(self) -> Server:
        """The one of this engine."""
        if self._server is None:
            from sampan.buildkit.server import Server

            self._server = Server(self._builder)
        return self._server

    async def drop_contexts(self) -> int:
        """Delete the directories that clients sent and that are kept for their next builds; bytes freed."""
        if self._server is None:
            return 0
        return await self._builder.engine.run_blocking(self._server.contexts.clear)

    async def grpc(self, call: Call) -> None:
        """Serve the client's calls until it leaves."""
        _check_upgrade(call)
        server = self.server()
        raw = await call.reply.take_over(SWITCHING)
        await server.control(raw.fd, raw.preread)

    async def session(self, call: Call) -> None:
        """Keep the session until the client leaves."""
        _check_upgrade(call)
        ident = call.header(SESSION + "uuid")
        if not ident:
            raise InvalidArgument("the session has no id")
        server = self.server()
        if ident in server.sessions:
            raise Conflict(f"session {ident} already exists")
        methods = [each.strip() for each in call.header(SESSION + "grpc-method").split(",")]
        raw = await call.reply.take_over(SWITCHING)
        await server.session(
            raw.fd,
            raw.preread,
            ident=ident,
            shared_key=call.header(SESSION + "sharedkey"),
            methods=methods,
        )

    async def build(self, call: Call, request: BuildRequest) -> None:
        """`POST /build?version=2`, of clients before buildx."""
        from sampan.buildkit.older import Wish

        wish = Wish(
            session=call.text("session"), build_id=call.text("buildid"), outputs=_outputs(call)
        )
        older = self.server().older
        async with receive(call.request.body) as body:

            async def verb(report: Report) -> None:
                with cancellable(self._builder, wish.build_id):
                    await older.build(request, wish, body, report)

            await progress_stream(call, verb)


@contextmanager
def cancellable(builder: Builder, build_id: str) -> Iterator[None]:
    """The block's task ends by `POST /build/cancel?id=`."""
    task = asyncio.current_task()
    if not build_id or task is None:
        yield
        return
    builder.running[build_id] = task
    try:
        yield
    finally:
        builder.running.pop(build_id, None)


class _Output(msgspec.Struct, rename="pascal"):
    type: str = ""
    attrs: dict[str, str] | None = None


def _outputs(call: Call) -> tuple[Export, ...]:
    text = call.text("outputs")
    if not text:
        return ()
    try:
        found = msgspec.json.decode(text, type=list[_Output] | None) or []
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"invalid outputs specified: {error}") from None
    return tuple(Export(type=each.type, attrs=each.attrs or {}) for each in found)


def _check_upgrade(call: Call) -> None:
    said = call.request.head.upgrade
    if not said:
        raise InvalidArgument("no upgrade proto in request")
    if said != "h2c":
        raise InvalidArgument(f"protocol {said} not supported")
