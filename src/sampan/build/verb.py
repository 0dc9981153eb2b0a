"""`POST /build` of the classic kind: the context comes with the request, what happens is told in the old builder's lines.

    body ─► BodyClient ─► Frontend ─► Solver ─► image, tags
                              └── events ─► Teller: `Step 3/7 : RUN make`, in the Dockerfile's order, each when it is done

The work is that of `service.py`; only words and order are classic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.build.builder import Builder
from sampan.build.client import CONTEXT, Auth, Wanted
from sampan.build.context import Context, dockerfile_name
from sampan.build.failures import classic_words
from sampan.build.frontend import Frontend, Planned
from sampan.build.graph import Copy, Line, Operation, Run, Workdir
from sampan.build.graph import Image as BaseImage
from sampan.build.instructions import Program
from sampan.build.progress import Board, Event, Vertex, VertexLog
from sampan.build.request import BuildRequest, Export
from sampan.build.result import image_of, tag_reference
from sampan.build.solve import Solver
from sampan.build.stack import Stack
from sampan.errors import InvalidArgument, NotFound, SampanError, Unsupported
from sampan.images.catalog import Image
from sampan.spec.reference import Reference

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.storage.tar import Readable

STDERR = 2
MOST_KEPT = 2 << 20  # bytes of a step's output that wait for its turn to be shown
Progress = Callable[[dict[str, Any]], None]


class BodyClient:
    """What came with the request: the context in its body, secrets and passwords in its headers. See `client.Client`."""

    def __init__(
        self,
        engine: Engine,
        context: Context,
        *,
        secrets: dict[str, bytes],
        ssh: dict[str, str],
        auths: dict[str, Auth],
    ) -> None:
        self._engine = engine
        self._context = context
        self._secrets = secrets
        self._ssh = ssh
        self._auths = auths

    async def directory(
        self, name: str, wanted: Wanted, progress: Callable[[int], None]
    ) -> Context:
        if name == CONTEXT and wanted.exclude:
            await self._engine.run_blocking(self._context.leave_out, wanted.exclude)
        return self._context

    async def upload(self, url: str) -> Context:
        raise NotFound(f"{url}: the body of the request is all there is")

    async def secret(self, ident: str) -> bytes | None:
        return self._secrets.get(ident)

    async def ssh_socket(self, ident: str) -> str | None:
        return self._ssh.get(ident)

    async def credentials(self, host: str) -> Auth | None:
        keys = ("https://index.docker.io/v1/", "docker.io") if host == "docker.io" else (host,)
        return next((self._auths[key] for key in keys if key in self._auths), None)

    async def send_file(self, export: Export, chunks: AsyncIterator[bytes]) -> None:
        raise Unsupported("the classic builder makes images only")

    async def send_directory(self, export: Export, roots: dict[str, int]) -> None:
        raise Unsupported("the classic builder makes images only")

    def made(self, ident: str) -> None:
        return None

    async def close(self) -> None:
        pass


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What a client sent beside the request's value."""

    secrets: dict[str, bytes] = {}
    ssh: dict[str, str] = {}
    auths: dict[str, Auth] = {}


async def build(
    builder: Builder, request: BuildRequest, sent: Sent, body: Readable | None, progress: Progress
) -> Image:
    """The whole of it. Raises DockerfileError, CommandFailed, NotFound, ... ; then nothing is left behind."""
    try:
        return await _build(builder, request, sent, body, progress)
    except SampanError as error:
        error.message = classic_words(error)
        raise


async def _build(
    builder: Builder, request: BuildRequest, sent: Sent, body: Readable | None, progress: Progress
) -> Image:
    engine = builder.engine
    references = [tag_reference(tag) for tag in request.tags]
    teller = Teller(progress, quiet=request.quiet, remove=request.remove)
    async with AsyncExitStack() as held:
        context = await engine.run_blocking(Context.new, builder.cache.contexts_dir)
        held.callback(builder.dispose, context)
        request = await _receive(builder, request, body, context)
        request = _without_foreign_cache(engine, request)
        client = BodyClient(engine, context, secrets=sent.secrets, ssh=sent.ssh, auths=sent.auths)
        frontend = Frontend(builder, request, client, Board(teller.event), teller.pulled)
        held.push_async_callback(frontend.close)
        parsed = await frontend.read()
        (planned,) = await frontend.plans()
        solver = Solver(builder, host=request.host, inputs=frontend.inputs, board=frontend.board)
        held.push_async_callback(solver.close)
        return await _perform(builder, request, parsed.program, planned, solver, references, teller)


async def _receive(
    builder: Builder, request: BuildRequest, body: Readable | None, context: Context
) -> BuildRequest:
    """Fill the context, unless it is a URL. A single Dockerfile is kept under its last component."""
    if request.remote and request.remote != "client-session":
        return request
    if body is None:
        raise InvalidArgument("unable to prepare context: the request has no body")
    name = request.dockerfile
    is_archive = await builder.engine.run_blocking(context.receive, body, name)
    return (
        request
        if is_archive
        else msgspec.structs.replace(request, dockerfile=dockerfile_name(name))
    )


def _without_foreign_cache(engine: Engine, request: BuildRequest) -> BuildRequest:
    """--cache-from says where the cache may come from: where none of these images is here, nowhere."""
    names = [option.attrs.get("ref", "") for option in request.cache_from]
    if names and not any(engine.catalog.find(name) for name in names):
        return msgspec.structs.replace(request, no_cache=True)
    return request


# --- the classic lines


class _Seen:
    """What is known of a vertex; its output, until its turn comes."""

    def __init__(self) -> None:
        self.vertex: Vertex | None = None
        self.started = asyncio.Event()
        self.chunks: list[tuple[int, bytes]] = []
        self.size = 0
        self.is_shown = False


class Teller:
    """The classic builder's lines."""

    def __init__(self, progress: Progress, *, quiet: bool, remove: bool) -> None:
        self._progress = progress
        self._quiet = quiet
        self._remove = remove
        self._seen: dict[str, _Seen] = {}

    def pulled(self, line: dict[str, Any]) -> None:
        """A line of a pull, as it is."""
        if not self._quiet:
            self._progress(line)

    def seen(self, ident: str) -> _Seen:
        """What is known of a vertex."""
        return self._seen.setdefault(ident, _Seen())

    def event(self, event: Event) -> None:
        """Sink of the build's events."""
        if isinstance(event, Vertex):
            seen = self.seen(event.digest)
            seen.vertex = event
            if event.started_ns:
                seen.started.set()
        elif isinstance(event, VertexLog):
            seen = self.seen(event.vertex)
            if seen.is_shown:
                self._output(event.stream, event.data)
                return
            seen.chunks.append((event.stream, event.data))
            seen.size += len(event.data)
            while seen.size > MOST_KEPT and len(seen.chunks) > 1:
                seen.size -= len(seen.chunks.pop(0)[1])

    def show(self, seen: _Seen) -> None:
        """A step's output from now on as it comes; what was kept first."""
        for stream, data in seen.chunks:
            self._output(stream, data)
        seen.chunks.clear()
        seen.is_shown = True

    def _output(self, stream: int, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        self.say(f"\x1b[91m{text}\x1b[0m" if stream == STDERR else text)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._progress({"stream": text})

    def step(self, number: int, total: int, source: str) -> None:
        self.say(f"Step {number}/{total} : {source}")
        self.say("\n")

    def running(self, container: str) -> None:
        self.say(f" ---> Running in {_short(container)}\n")

    def removed(self, container: str) -> None:
        if self._remove:
            self.say(f"Removing intermediate container {_short(container)}\n")

    def image(self, identity: str) -> None:
        self.say(f" ---> {_short(identity)}\n")

    def done(self, identity: str, names: list[Reference]) -> None:
        """The last lines."""
        self._progress({"aux": {"ID": identity}})
        if self._quiet:
            self._progress({"stream": identity + "\n"})
        self.say(f"Successfully built {_short(identity)}\n")
        for name in names:
            self.say(f"Successfully tagged {name.familiar()}\n")


def _short(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12]


async def _perform(
    builder: Builder,
    request: BuildRequest,
    program: Program,
    planned: Planned,
    solver: Solver,
    references: list[Reference],
    teller: Teller,
) -> Image:
    engine = builder.engine
    outcome = planned.outcome
    last = solver.start(outcome.operation)
    for line in outcome.lines:
        solver.start(line.operation)
    total = len(program.arguments) + len(outcome.lines)
    for number, argument in enumerate(program.arguments, 1):
        teller.step(number, total, argument.source)
    before: Operation | None = None
    cached = True
    for number, line in enumerate(outcome.lines, len(program.arguments) + 1):
        teller.step(number, total, line.source)
        if line.is_from:
            cached = not request.no_cache
        cached = await _tell_line(teller, solver, line, before, planned, cached=cached)
        before = line.operation
    stack = await last
    built = image_of(outcome, stack, planned.platform, planned.epoch)
    catalog = engine.catalog

    def keep() -> Image:
        with catalog.holding() as hold:
            if built.chain_id:
                hold.layers(built.chain_id)
            return catalog.add(built.manifest, built.document, references=references)

    image = await engine.run_blocking(keep)
    if outcome.lines and request.labels:
        teller.image(image.id)
    teller.done(image.id, references)
    for reference in references:
        engine.events.tell("image", "tag", image.id, {"name": reference.familiar()})
    return image


async def _tell_line(
    teller: Teller,
    solver: Solver,
    line: Line,
    before: Operation | None,
    planned: Planned,
    *,
    cached: bool,
) -> bool:
    """One line of the Dockerfile; returns whether all of its stage so far came from the cache."""
    operation = line.operation
    task = solver.start(operation)
    makes_layer = isinstance(operation, (Run, Copy, Workdir)) and operation is not before
    if makes_layer and not line.is_from:
        cached = await _tell_step(teller, solver, operation, task)
    stack = await task
    identity = _identity(line, stack, planned)
    if not line.is_from and not makes_layer:
        known = solver.builder.cache.is_known(identity)
        if cached and known:
            teller.say(" ---> Using cache\n")
        else:
            # The classic builder ran an idle container for what only changes the configuration.
            teller.running(identity)
            teller.removed(identity)
    if not (line.is_from and not stack.layers):
        teller.image(identity)
    return cached


async def _tell_step(
    teller: Teller, solver: Solver, operation: Operation, task: asyncio.Task[Stack]
) -> bool:
    vertex = solver.vertex(operation)
    seen = teller.seen(vertex.digest)
    starting = asyncio.ensure_future(seen.started.wait())
    try:
        await asyncio.wait((starting, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        starting.cancel()
    makes_output = isinstance(operation, Run)
    if not makes_output:
        await asyncio.wait((task,))
    if vertex.vertex.cached:
        teller.say(" ---> Using cache\n")
        return True
    if not isinstance(operation, Copy):
        teller.running(vertex.digest)
    teller.show(seen)
    await asyncio.wait((task,))
    if not isinstance(operation, Copy) and not task.cancelled() and task.exception() is None:
        teller.removed(vertex.digest)
    return False


def _identity(line: Line, stack: Stack, planned: Planned) -> str:
    """The id that an image of this line would have; a base image has its own."""
    if line.is_from and isinstance(line.operation, BaseImage):
        return line.operation.image_id
    outcome = msgspec.structs.replace(
        planned.outcome, config=line.config, history=line.history, author=line.author
    )
    return image_of(outcome, stack, planned.platform, planned.epoch).document.id
