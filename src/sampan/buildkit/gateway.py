"""moby.buildkit.v1.frontend.LLBBridge: the calls of a client that drives a build, as buildx does.

    client: Control.Solve(ref, no frontend)                waits
            LLBBridge.Solve(dockerfile.v0, attributes)     the steps begin; a ref names the result
            LLBBridge.ReadFile, ReadDir, StatFile(ref)     looks into it
            LLBBridge.Return(ref)                          Control.Solve goes on with it

Each call says by `buildkit-controlapi-buildid` which build it is about. Results are opaque to clients: the definition
that comes with a ref holds one operation of ours that names it, so that a client can hand it to another build
(`bake` with one target as another's context).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from sampan import ids
from sampan.build.result import image_of
from sampan.build.stack import Stack
from sampan.build.stages import format_platform
from sampan.buildkit import messages as m
from sampan.buildkit.builds import Build
from sampan.buildkit.control import Control, Making
from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Stream
from sampan.buildkit.peek import list_directory, look_at, read_file
from sampan.buildkit.wire import decode, encode

if TYPE_CHECKING:
    from sampan.build.frontend import Planned

BUILD_ID = "buildkit-controlapi-buildid"
RESULT = "sampan-result://"
FRONTEND_CAPS = (
    "solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile", "return",
    "returnmap", "readdir", "statfile", "importcaches", "proto.refarray", "reference.output", "frontend.inputs",
    "gateway.solve.metadata", "gateway.evaluate", "gateway.solve.evaluate", "gateway.warnings", "frontend.caps",
)  # fmt: skip
LLB_CAPS = (
    "source.image", "source.image.resolvemode", "source.local", "source.local.unique", "source.local.sessionid",
    "source.local.includepatterns", "source.local.followpaths", "source.local.excludepatterns",
    "source.local.sharedkeyhint", "source.git", "source.git.keepgitdir", "source.git.fullurl", "source.http",
    "source.http.checksum", "source.ocilayout", "platform", "constraints", "meta.ignorecache", "meta.description",
    "meta.exportcache",
)  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")


class Gateway:
    """The service."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._builds = control.builds

    async def _build(self, stream: Stream) -> Build:
        """The build that a call is about, once its Solve has its session."""
        ref = stream.first(BUILD_ID)
        if not ref:
            raise GrpcError("no buildid found in context")
        build = await self._builds.find(ref)
        while build.client is None and not build.is_over:
            await self._builds.any_change()
        if build.is_over:
            raise GrpcError(f"no such job {ref}")
        return build

    async def ping(self, stream: Stream, _request: m.Empty) -> m.PongResponse:
        """What a client may use."""
        await self._build(stream)
        return m.PongResponse(
            frontend_caps=[m.Capability(id=each, enabled=True) for each in FRONTEND_CAPS],
            llb_caps=[m.Capability(id=each, enabled=True) for each in LLB_CAPS],
            workers=[await self._control.worker()],
        )

    async def solve(self, stream: Stream, request: m.GatewaySolveRequest) -> m.GatewaySolveResponse:
        """Make a build; its result by a ref."""
        build = await self._build(stream)
        if request.frontend:
            with _working(build):
                return await self._frontend(build, request)
        if request.definition is None or not request.definition.ops:
            return m.GatewaySolveResponse(result=m.Result(ref=m.Ref()))
        named = result_named(request.definition)
        if named is None or named not in build.results:
            raise GrpcError(
                "definitions (LLB) are not served: this engine builds Dockerfiles",
                Code.UNIMPLEMENTED,
            )
        return m.GatewaySolveResponse(
            result=m.Result(ref=m.Ref(id=named, definition=request.definition))
        )

    async def _frontend(
        self, build: Build, request: m.GatewaySolveRequest
    ) -> m.GatewaySolveResponse:
        """Answers when the Dockerfile's part is done; the steps go on meanwhile."""
        attrs = dict(request.frontend_opt)
        for key, definition in request.frontend_inputs.items():
            await self._take_input(build, attrs, key, definition)
        asked = self._control.asked(request.frontend, attrs, build.request)
        plans: asyncio.Future[tuple[Planned, ...]] = asyncio.get_running_loop().create_future()
        making = self._control.start(build, asked, plans.set_result)
        await asyncio.wait((making, plans), return_when=asyncio.FIRST_COMPLETED)
        if plans.done():
            return m.GatewaySolveResponse(result=_result(build, making, plans.result()))
        answer = (await making).answer  # or why there are no plans
        return m.GatewaySolveResponse(result=m.Result(ref=m.Ref(), metadata=answer))

    async def _take_input(
        self, build: Build, attrs: dict[str, str], key: str, definition: m.Definition
    ) -> None:
        """Another build's result as a named context of this one."""
        named = result_named(definition)
        found = next(
            (each.results[named] for each in self._builds.all() if named in each.results), None
        )
        if named is None or found is None:
            raise GrpcError(f"the input {key} is no result of this engine", Code.UNIMPLEMENTED)
        build.lent[named] = await asyncio.shield(found)
        for name, value in list(attrs.items()):
            if name.startswith("context:") and value == f"input:{key}":
                attrs[name] = f"made:{named}"

    async def return_(self, stream: Stream, request: m.ReturnRequest) -> m.Empty:
        """The client has done its part."""
        build = await self._build(stream)
        if not build.returned.done():
            build.returned.set_result(request)
        return m.Empty()

    async def evaluate(self, stream: Stream, request: m.EvaluateRequest) -> m.Empty:
        """Until a result is made."""
        await self._chain(stream, request.ref)
        return m.Empty()

    async def inputs(self, stream: Stream, _request: m.Empty) -> m.InputsResponse:
        """There are none for a client that drives the build."""
        await self._build(stream)
        return m.InputsResponse()

    async def warn(self, stream: Stream, _request: m.WarnRequest) -> m.Empty:
        """A client's own warning: taken, for it has shown it."""
        await self._build(stream)
        return m.Empty()

    # --- looking into a result

    async def _chain(self, stream: Stream, ref: str) -> str:
        """The layers of a result of this build, once it is made."""
        build = await self._build(stream)
        if ref not in build.platforms:
            raise GrpcError(f"no such ref: {ref}")
        made = await asyncio.shield(build.results[ref])
        return made.results[build.platforms[ref]].chain_id

    async def read_file(self, stream: Stream, request: m.ReadFileRequest) -> m.ReadFileResponse:
        """A file of a result, or a range of it."""
        wanted = request.range or m.FileRange()
        data = await self._look(stream, request.ref, read_file, request.path, wanted)
        return m.ReadFileResponse(data=data)

    async def read_dir(self, stream: Stream, request: m.ReadDirRequest) -> m.ReadDirResponse:
        """A directory of a result."""
        entries = await self._look(
            stream, request.ref, list_directory, request.path, request.include
        )
        return m.ReadDirResponse(entries=entries)

    async def stat_file(self, stream: Stream, request: m.StatFileRequest) -> m.StatFileResponse:
        """What a path of a result is."""
        return m.StatFileResponse(stat=await self._look(stream, request.ref, look_at, request.path))

    async def _look(
        self,
        stream: Stream,
        ref: str,
        look: Callable[Concatenate[int, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        chain_id = await self._chain(stream, ref)
        builder = self._control.builder

        def blocking() -> T:
            root = builder.open_stack(chain_id)
            try:
                return look(root, *args, **kwargs)
            finally:
                builder.close(root)

        return await self._control.engine.run_blocking(blocking)


@contextmanager
def _working(build: Build) -> Iterator[None]:
    """The call's task ends with the build."""
    task = asyncio.current_task()
    assert task is not None
    build.tasks.add(task)
    try:
        yield
    finally:
        build.tasks.discard(task)


# --- refs


def definition_of(ref: str) -> m.Definition:
    """An opaque definition: an operation that names the result, and the end that every definition has."""
    source = encode(m.Op(source=m.SourceOp(identifier=RESULT + ref)))
    end = encode(m.Op(inputs=[m.Input(digest=_digest(source))]))
    return m.Definition(
        ops=[source, end], metadata={_digest(op): m.OpMetadata() for op in (source, end)}
    )


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def result_named(definition: m.Definition) -> str | None:
    """The ref that such a definition names; None for any other."""
    for each in definition.ops[:1]:
        op = decode(m.Op, each)
        if op.source is not None and op.source.identifier.startswith(RESULT):
            return op.source.identifier.removeprefix(RESULT)
    return None


def _result(build: Build, making: Making, plans: tuple[Planned, ...]) -> m.Result:
    """A ref for each platform, with the configuration that its image will have."""
    metadata = {}
    refs: dict[str, m.Ref] = {}
    for number, planned in enumerate(plans):
        ref = ids.new_id()[:25]
        build.results[ref] = making
        build.platforms[ref] = number
        name = format_platform(planned.platform)
        refs[name] = m.Ref(id=ref, definition=definition_of(ref))
        suffix = f"/{name}" if len(plans) > 1 else ""
        document = image_of(planned.outcome, Stack(), planned.platform, planned.epoch).document
        metadata[f"containerimage.config{suffix}"] = document.raw
    if len(refs) == 1:
        return m.Result(ref=next(iter(refs.values())), metadata=metadata)
    return m.Result(refs=m.RefMap(refs=refs), metadata=metadata)
