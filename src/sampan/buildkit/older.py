"""`POST /build?version=2`: BuildKit for docker clients before buildx, such as docker 20.10 with DOCKER_BUILDKIT=1.

    POST /session                                          as ever: the client's files, secrets, passwords
    POST /build?version=2&session=ID&remote=client-session   one request, one answer: JSON lines
        {"id": "moby.buildkit.trace", "aux": base64 of a StatusResponse}      progress
        {"id": "moby.image.id", "aux": {"ID": "sha256:..."}}                  the end

A tar on the client's standard input comes as the body of a second request, whose `buildid` is `upload-request:` and
the first one's; or as the body of the only one.
Source: moby/moby, builder/builder-next/builder.go; docker/cli 20.10, cli/command/image/build_buildkit.go.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from sampan import ids
from sampan.build.context import Context
from sampan.build.request import BuildRequest, Export
from sampan.buildkit.builds import Build, told
from sampan.buildkit.faults import GrpcError
from sampan.buildkit.messages import Exporter, SolveRequest
from sampan.buildkit.wire import encode
from sampan.errors import InvalidArgument

if TYPE_CHECKING:
    from sampan.buildkit.control import Control
    from sampan.storage.tar import Readable

UPLOAD = "upload-request"
UPLOAD_SECONDS = 5
UPLOADED_URL = "http://buildkit-session/body"
GATHER_SECONDS = 0.02
Report = Callable[[dict[str, Any]], None]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the query says beside the build itself."""

    session: str
    build_id: str = ""
    outputs: tuple[Export, ...] = ()


class Older:
    """Builds by such requests."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._uploads: dict[str, _Upload] = {}

    async def build(
        self, request: BuildRequest, wish: Wish, body: Readable, report: Report
    ) -> None:
        """The whole of it; or hand over a body that another request waits for."""
        if wish.build_id.startswith(UPLOAD + ":"):
            await self._hand_over(wish.build_id.removeprefix(UPLOAD + ":"), body)
            return
        if len(wish.outputs) > 1:
            raise InvalidArgument("multiple outputs not supported")
        async with self._body(request, wish, body) as uploaded:
            if uploaded is not None:
                request = msgspec.structs.replace(request, remote=UPLOADED_URL)
            await self._run(request, wish, uploaded, report)

    async def _run(
        self, request: BuildRequest, wish: Wish, uploaded: Context | None, report: Report
    ) -> None:
        build = self._control.builds.begin(ids.new_id()[:25])
        exports = wish.outputs or (Export(type="moby"),)
        if request.tags and exports[0].type in ("moby", "image"):
            attrs = {**exports[0].attrs, "name": ",".join(request.tags)}
            exports = (msgspec.structs.replace(exports[0], attrs=attrs),)
        build.request = SolveRequest(
            ref=build.ref, session=wish.session, frontend="dockerfile.v0",
            exporters=[Exporter(type=e.type, attrs=e.attrs) for e in exports if e.type != "cacheonly"],
        )  # fmt: skip
        telling = asyncio.ensure_future(_tell(build, _silent if request.quiet else report))
        try:
            allow = frozenset({"network.host"} if request.network == "host" else ())
            asked = msgspec.structs.replace(request, allow=allow, exports=exports)
            response = await self._control.perform(build, asked, uploaded)
        except GrpcError as error:
            raise InvalidArgument(error.message) from error
        finally:
            if not build.is_over:  # cancelled before it began
                telling.cancel()
            await asyncio.wait((telling,))
        digest = response.get("containerimage.digest")
        if digest:
            report({"id": "moby.image.id", "aux": {"ID": digest}})
            if request.quiet:
                report({"stream": digest + "\n"})

    @asynccontextmanager
    async def _body(
        self, request: BuildRequest, wish: Wish, body: Readable
    ) -> AsyncIterator[Context | None]:
        """The context where it comes as a body, this request's or another's: the file `context` of a directory."""
        if request.remote == UPLOAD:
            context = await self._uploaded(wish.build_id)
        elif not request.remote:
            context = await self._stored(body)
        else:
            yield None
            return
        try:
            yield context
        finally:
            await self._control.engine.run_blocking(context.close)

    async def _stored(self, body: Readable) -> Context:
        run = self._control.engine.run_blocking
        context = await run(Context.new, self._control.contexts.parent)
        try:
            await run(_store, body, context)
        except BaseException:
            await run(context.close)
            raise
        return context

    async def _hand_over(self, ident: str, body: Readable) -> None:
        """Store a body for the build that waits for it, or comes soon."""
        upload = self._uploads.setdefault(ident, _Upload())
        if upload.begun.is_set():
            raise InvalidArgument(f"build {ident} has its upload")
        upload.begun.set()
        try:
            context = await self._stored(body)
            upload.context.set_result(context)
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    await upload.taken.wait()
            except TimeoutError:
                await self._control.engine.run_blocking(context.close)
                raise InvalidArgument(f"no build {ident} took the upload") from None
        finally:
            upload.context.cancel()
            self._uploads.pop(ident, None)

    async def _uploaded(self, ident: str) -> Context:
        """What another request brings for this build."""
        upload = self._uploads.setdefault(ident, _Upload())
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                await upload.begun.wait()
        except TimeoutError:
            raise InvalidArgument("the context was not uploaded") from None
        finally:
            if not upload.begun.is_set():
                self._uploads.pop(ident, None)
        await asyncio.wait((upload.context,))
        if upload.context.cancelled():
            raise InvalidArgument("the upload of the context was cut off")
        context = upload.context.result()
        upload.taken.set()
        return context


class _Upload:
    """A body on its way from one request to another."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.taken = asyncio.Event()
        self.context: asyncio.Future[Context] = asyncio.get_running_loop().create_future()


def _store(body: Readable, context: Context) -> None:
    with (context.path / "context").open("xb") as file:
        while chunk := body.read(1 << 20):
            file.write(chunk)


def _silent(_line: dict[str, Any]) -> None:
    """For a client that wants to see the end only."""


async def _tell(build: Build, report: Report) -> None:
    at = 0
    while True:
        events = build.events[at : at + 1000]
        if events:
            at += len(events)
            trace = base64.b64encode(encode(told(build, events))).decode("ascii")
            report({"id": "moby.buildkit.trace", "aux": trace})
        elif build.is_over:
            return
        else:
            await build.news()
            await asyncio.sleep(GATHER_SECONDS)
