"""`build`: from a request and a context to an image with names, telling what happens in the classic builder's lines.

    receive context ─► parse ─► stages ─► base images (here, or pulled) ─► plan ─► solve in parallel ─► image, tags
                                                             └── lines in the Dockerfile's order, each when it is done

`Builder` is the service: the cache, locks that builds share, and what is under way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.build import fetch, upkeep
from sampan.build.cache import BuildCache
from sampan.build.context import Context, dockerfile_name
from sampan.build.graph import (
    Copy,
    GitSource,
    HttpSource,
    Line,
    Operation,
    Outcome,
    Run,
    Workdir,
    digest,
)
from sampan.build.instructions import Arg, Program, program_of
from sampan.build.mounts import lock_for
from sampan.build.parser import Dockerfile, DockerfileError, parse
from sampan.build.plan import plan, triggers_of
from sampan.build.solve import CommandFailed, Solver, Stack
from sampan.build.sources import parse_git
from sampan.build.stages import Base, Request, Stages, global_variables
from sampan.engine import images
from sampan.errors import InvalidArgument, NotFound, SampanError
from sampan.images.assemble import Parts, assemble
from sampan.images.catalog import Image
from sampan.images.platform import host_platform, parse_platform
from sampan.spec.engine.container import HostConfig
from sampan.spec.image import Platform
from sampan.spec.reference import Reference, parse_normalized
from sampan.storage.access import open_root
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.storage.tar import Readable

STDERR = 2
Progress = Callable[[dict[str, Any]], None]
Auths = dict[str, dict[str, str]]


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What POST /build says. `args`: None values are dropped before they come here."""

    dockerfile: str = "Dockerfile"
    remote: str = ""
    tags: tuple[str, ...] = ()
    args: dict[str, str] = {}
    labels: dict[str, str] = {}
    target: str = ""
    platform: str = ""
    network: str = ""
    quiet: bool = False
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()
    pull: bool = False
    remove: bool = True
    host: HostConfig = HostConfig()
    secrets: dict[str, bytes] = {}
    ssh: dict[str, str] = {}
    allow: frozenset[str] = frozenset()
    auths: Auths = {}
    cache_from: tuple[str, ...] = ()


class Builder:
    """What all builds of an engine share."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = BuildCache(engine.config.root / "builder", engine.store, engine.snapshots)
        self.step_locks: dict[str, asyncio.Lock] = {}
        self._mount_locks: dict[str, asyncio.Lock] = {}
        self._private: set[str] = set()
        self.running: dict[str, asyncio.Task[Any]] = {}
        engine.catalog.keepers.append(self.cache.chain_ids)
        engine.build_cache_rows.append(lambda: upkeep.rows(self))
        self.cache.sweep()

    def mount_lock(self, identity: str) -> asyncio.Lock:
        """For `sharing=locked`."""
        return lock_for(self._mount_locks, identity)

    def private_mount(self, identity: str, undo: ExitStack) -> str:
        """`sharing=private`: the first free directory of this id."""
        number = 0
        while (name := f"{identity}#{number}" if number else identity) in self._private:
            number += 1
        self._private.add(name)
        undo.callback(self._private.discard, name)
        return name

    def open_stack(self, chain_id: str) -> int:
        """Blocking: a root filesystem to read from; an empty one for ''."""
        if not chain_id:
            empty = self.cache.root / "empty"
            empty.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(empty, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return open_root(self.engine.snapshots.view_mounts(chain_id))

    @staticmethod
    def close(fd: int) -> None:
        """A descriptor that was opened here."""
        os.close(fd)


async def build(
    builder: Builder, request: BuildRequest, body: Readable | None, progress: Progress
) -> Image:
    """The whole of it. Raises DockerfileError, CommandFailed, NotFound, ... ; then nothing is left behind."""
    engine = builder.engine
    references = [_tag_reference(tag) for tag in request.tags]
    platform = parse_platform(request.platform) if request.platform else host_platform()
    async with AsyncExitStack() as held:
        context = await engine.run_blocking(Context.new, builder.cache.contexts_dir)
        held.push_async_callback(engine.run_blocking, context.close)
        name = await _receive(builder, request, body, context)
        dockerfile = await engine.run_blocking(_read_dockerfile, context, name)
        program = program_of(dockerfile)
        await engine.run_blocking(context.apply_ignore_file, name)
        request = _without_foreign_cache(engine, request)
        outcome = await _plan(engine, request, dockerfile, program, platform, progress)
        solver = Solver(
            builder,
            host=request.host,
            contexts={"": context},
            secrets=request.secrets,
            ssh=request.ssh,
            no_cache=request.no_cache,
        )
        held.push_async_callback(solver.close)
        return await _perform(
            builder, request, program, outcome, solver, references, platform, progress
        )


def _without_foreign_cache(engine: Engine, request: BuildRequest) -> BuildRequest:
    """--cache-from says where the cache may come from: where none of these images is here, nowhere."""
    if request.cache_from and not any(engine.catalog.find(name) for name in request.cache_from):
        return msgspec.structs.replace(request, no_cache=True)
    return request


def _tag_reference(text: str) -> Reference:
    reference = parse_normalized(text)
    if reference.digest:
        raise InvalidArgument("build tag cannot contain a digest")
    return reference.with_default_tag()


# --- context and Dockerfile


async def _receive(
    builder: Builder, request: BuildRequest, body: Readable | None, context: Context
) -> str:
    """Fill the context; the Dockerfile's name in it."""
    engine = builder.engine
    name = request.dockerfile or "Dockerfile"
    if request.remote and request.remote != "client-session":
        await engine.run_blocking(_fetch_remote, builder, request, context)
        return name
    if body is None:
        raise InvalidArgument("unable to prepare context: the request has no body")
    await engine.run_blocking(context.receive, body, name)
    return name if context.read(name) is not None else dockerfile_name(name)


def _fetch_remote(builder: Builder, request: BuildRequest, context: Context) -> None:
    """A repository, an archive or a single Dockerfile by URL."""
    git = parse_git(request.remote)
    if git is not None:
        source = GitSource(
            url=git.url, ref=git.ref, subdir=git.subdir, keep_git_dir=git.keep_git_dir,
            checksum=git.checksum, submodules=git.submodules,
        )  # fmt: skip
        fetch.fetch(source, context, request.secrets)
        return
    if not request.remote.startswith(("http://", "https://")):
        raise InvalidArgument(f"unable to prepare context: unsupported remote {request.remote}")
    holder = Context.new(builder.cache.contexts_dir)
    try:
        fetch.fetch(HttpSource(url=request.remote), holder, request.secrets)
        with (holder.path / fetch.file_name(request.remote)).open("rb") as file:
            context.receive(file, request.dockerfile or "Dockerfile")
    finally:
        holder.close()


def _read_dockerfile(context: Context, name: str) -> Dockerfile:
    data = context.read(name)
    if data is None and name == "Dockerfile":
        data = context.read("dockerfile")
    if data is None:
        raise NotFound(f"Cannot locate specified Dockerfile: {name}")
    if not data.strip():
        raise InvalidArgument(f"The Dockerfile ({name}) cannot be empty")
    return parse(data)


# --- base images and plan


async def _plan(
    engine: Engine,
    request: BuildRequest,
    dockerfile: Dockerfile,
    program: Program,
    platform: Platform,
    progress: Progress,
) -> Outcome:
    asked = Request(
        args=request.args, target=request.target, labels=request.labels, platform=platform,
        build_platform=host_platform(), network=request.network or "default", no_cache=request.no_cache,
        no_cache_stages=request.no_cache_stages, allow=request.allow,
        epoch=_epoch(request.args.get("SOURCE_DATE_EPOCH", "")),
    )  # fmt: skip
    variables = global_variables(program, asked)
    stages = Stages(program, asked, variables, parse_platform)
    bases: dict[str, Base] = {}
    while True:  # triggers of a base image may need further images
        _, wanted = stages.reachable(triggers_of(stages, bases))
        missing = sorted(wanted - bases.keys())
        if not missing:
            break
        found = await asyncio.gather(*(_base(engine, request, name, progress) for name in missing))
        bases.update(zip(missing, found, strict=True))
    return plan(stages, asked, variables, bases, escape=dockerfile.escape)


def _epoch(text: str) -> str:
    if not text:
        return ""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise InvalidArgument(f"invalid SOURCE_DATE_EPOCH: {text}")
    return rfc3339nano(int(text) * 10**9)


async def _base(engine: Engine, request: BuildRequest, name: str, progress: Progress) -> Base:
    image: Image | None = None
    if not request.pull:
        try:
            image = await images.resolve(engine, name, platform=request.platform)
        except NotFound:
            image = None
    if image is None:
        await images.pull(
            engine, image=parse_normalized(name).with_default_tag().familiar(), platform=request.platform,
            auth=_auth_for(request.auths, name), progress=lambda m: None if request.quiet else progress(m),
        )  # fmt: skip
        image = await images.resolve(engine, name, platform=request.platform)
    return Base(image_id=image.id, reference=name, document=image.document)


def _auth_for(auths: Auths, name: str) -> dict[str, str] | None:
    domain = parse_normalized(name).domain
    keys = ("https://index.docker.io/v1/", "docker.io") if domain == "docker.io" else (domain,)
    return next((auths[key] for key in keys if key in auths), None)


# --- performing, line by line


class _Teller:
    """The classic builder's lines."""

    def __init__(self, progress: Progress, *, quiet: bool, remove: bool) -> None:
        self._progress = progress
        self._quiet = quiet
        self._remove = remove

    def say(self, text: str) -> None:
        if not self._quiet:
            self._progress({"stream": text})

    def step(self, number: int, total: int, source: str) -> None:
        self.say(f"Step {number}/{total} : {source}")
        self.say("\n")

    def output(self, stream: int, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        self.say(f"\x1b[91m{text}\x1b[0m" if stream == STDERR else text)

    def running(self, container: str) -> None:
        self.say(f" ---> Running in {_short(container)}\n")

    def removed(self, container: str) -> None:
        if self._remove:
            self.say(f"Removing intermediate container {_short(container)}\n")

    def image(self, identity: str) -> None:
        self.say(f" ---> {_short(identity)}\n")


def _short(identity: str) -> str:
    return identity.removeprefix("sha256:")[:12]


async def _perform(
    builder: Builder,
    request: BuildRequest,
    program: Program,
    outcome: Outcome,
    solver: Solver,
    references: list[Reference],
    platform: Platform,
    progress: Progress,
) -> Image:
    engine = builder.engine
    teller = _Teller(progress, quiet=request.quiet, remove=request.remove)
    last = solver.start(outcome.operation)
    for line in outcome.lines:
        solver.start(line.operation)
    total = len(program.arguments) + len(outcome.lines)
    for number, argument in enumerate(program.arguments, 1):
        _global_argument(teller, argument, number, total)
    before: Operation | None = None
    for number, line in enumerate(outcome.lines, len(program.arguments) + 1):
        await _tell_line(teller, solver, line, before, number, total, platform)
        before = line.operation
    stack = await last
    image = await engine.run_blocking(_finish, builder, outcome, stack, references, platform)
    if outcome.lines and request.labels:
        teller.image(image.id)
    progress({"aux": {"ID": image.id}})
    if request.quiet:
        progress({"stream": image.id + "\n"})
    teller.say(f"Successfully built {_short(image.id)}\n")
    for reference in references:
        teller.say(f"Successfully tagged {reference.familiar()}\n")
        engine.events.tell("image", "tag", image.id, {"name": reference.familiar()})
    return image


def _global_argument(teller: _Teller, argument: Arg, number: int, total: int) -> None:
    teller.step(number, total, argument.source)


async def _tell_line(
    teller: _Teller,
    solver: Solver,
    line: Line,
    before: Operation | None,
    number: int,
    total: int,
    platform: Platform,
) -> None:
    teller.step(number, total, line.source)
    operation = line.operation
    task = solver.start(operation)
    makes_layer = isinstance(operation, (Run, Copy, Workdir)) and operation is not before
    if makes_layer and not line.is_from:
        await _tell_step(teller, solver, operation, task)
    stack = await task
    identity = _identity(line, stack, platform)
    if not line.is_from and not makes_layer:
        known = solver.cache.is_known(identity)
        if known and not solver.no_cache:
            teller.say(" ---> Using cache\n")
        else:
            # The classic builder ran an idle container for what only changes the configuration.
            teller.running(identity)
            teller.removed(identity)
    if not (line.is_from and not stack.layers):
        teller.image(identity)


async def _tell_step(
    teller: _Teller, solver: Solver, operation: Operation, task: asyncio.Task[Stack]
) -> None:
    output = solver.output(operation)
    starting = asyncio.ensure_future(output.started.wait())
    try:
        await asyncio.wait((starting, task), return_when=asyncio.FIRST_COMPLETED)
    finally:
        starting.cancel()
    if output.cached:
        teller.say(" ---> Using cache\n")
        return
    if not isinstance(operation, Copy):
        teller.running(output.step_id)
    output.show(teller.output)
    await asyncio.wait((task,))
    if not isinstance(operation, Copy) and not task.cancelled() and task.exception() is None:
        teller.removed(output.step_id)


def _identity(line: Line, stack: Stack, platform: Platform) -> str:
    """The id that an image of this line would have."""
    from sampan.images.assemble import make

    parts = Parts(
        config=line.config, layers=stack.layers, history=line.history, created="", author=line.author,
        platform=platform,
    )  # fmt: skip
    return make(parts)[1].id


def _finish(
    builder: Builder,
    outcome: Outcome,
    stack: Stack,
    references: list[Reference],
    platform: Platform,
) -> Image:
    """Blocking: the image in the store, under its names."""
    given = outcome.history[-1].created if outcome.history else None
    now = given or builder.cache.first_made(_fingerprint(outcome, stack, platform))
    history = tuple(
        h if h.created else msgspec.structs.replace(h, created=now) for h in outcome.history
    )
    parts = Parts(
        config=outcome.config, layers=stack.layers, history=history, created=now,
        author=outcome.author, platform=platform,
    )  # fmt: skip
    catalog = builder.engine.catalog
    with catalog.holding() as hold:
        if stack.chain_id:
            hold.layers(stack.chain_id)
        return assemble(catalog, parts, references=references)


def _fingerprint(outcome: Outcome, stack: Stack, platform: Platform) -> str:
    """All of an image but its times: made again, it keeps the time of the first making, and so its id."""
    history = [msgspec.structs.replace(h, created=None) for h in outcome.history]
    layers = [layer.diff_id for layer in stack.layers]
    return digest(msgspec.json.encode([outcome.config, layers, history, outcome.author, platform]))


def explain_error(error: SampanError, dockerfile: Dockerfile | None) -> dict[str, Any]:
    """An error with the lines of the Dockerfile it is about, the failing ones marked: for our own command line."""
    start, end = getattr(error, "line", 0), getattr(error, "end", 0)
    detail: dict[str, Any] = {"message": error.message}
    if isinstance(error, CommandFailed):
        detail["code"] = error.exit_code
    if dockerfile is not None and start and isinstance(error, (DockerfileError, CommandFailed)):
        first = max(1, start - 2)
        shown = dockerfile.lines[first - 1 : end + 2]
        detail["lines"] = [
            {"number": first + n, "text": text, "marked": start <= first + n <= end}
            for n, text in enumerate(shown)
        ]
    return detail
