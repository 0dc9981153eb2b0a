"""From a request to plans: reads the Dockerfile, finds the base images, plans every platform.

    Dockerfile ─► program ─► for each platform: variables ─► stages ─► base images (here, or pulled) ─► plan ─► Outcome

What it does is told as vertices, in BuildKit's words. The context itself is asked for when a step first reads it.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.build import calls, fetch
from sampan.build import instructions as ins
from sampan.build.calls import Answer
from sampan.build.client import CONTEXT, DOCKERFILE, Client, Wanted
from sampan.build.context import Context
from sampan.build.failures import DockerfileEmpty, DockerfileMissing
from sampan.build.graph import (
    ContextSource,
    Copy,
    GitSource,
    HttpSource,
    Operation,
    Outcome,
    Run,
    StageSource,
    digest,
    parent_of,
    sources_of,
)
from sampan.build.ignore import Matcher, read_patterns
from sampan.build.inputs import MADE, Inputs, made_of
from sampan.build.instructions import Program, program_of
from sampan.build.lint import Linter, Options, check_form, check_from, linter_for
from sampan.build.parser import Dockerfile, parse
from sampan.build.plan import plan, triggers_of
from sampan.build.progress import Board, Task
from sampan.build.request import BuildRequest
from sampan.build.sources import parse_git, without_credentials
from sampan.build.stages import (
    Base,
    ImageName,
    NamedContext,
    Request,
    Stages,
    familiar,
    format_platform,
    global_variables,
    with_tag,
)
from sampan.engine import images
from sampan.errors import InvalidArgument, NotFound, SampanError
from sampan.images.platform import host_platform, parse_platform
from sampan.spec.image import Platform
from sampan.spec.reference import parse_normalized
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.images.catalog import Image

UPLOADS = "http://buildkit-session/"  # not on the network: the client sends it when it is asked
IMAGE_SCHEME = "docker-image://"
CHECK_ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The Dockerfile as it was read, for errors that show its lines."""

    name: str
    data: bytes


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """What it says."""

    dockerfile: Dockerfile
    program: Program


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One platform's graph."""

    platform: Platform
    outcome: Outcome
    epoch: str = ""


class Frontend:
    """One build's way to its plans. `pull_line` gets Docker's progress lines of pulls, for clients of the classic kind."""

    def __init__(
        self,
        builder: Builder,
        request: BuildRequest,
        client: Client,
        board: Board,
        pull_line: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.builder = builder
        self.engine = builder.engine
        self.request = request
        self.client = client
        self.board = board
        self.pull_line = pull_line
        self.source: Source | None = None
        self._parsed: Parsed | None = None
        self._patterns: tuple[str, ...] | None = None
        self._ignore_lock = asyncio.Lock()
        self._follow: tuple[str, ...] = ()
        self._context: asyncio.Task[Context] | None = None
        self._bases: dict[ImageName, asyncio.Task[Base]] = {}
        self.inputs = Inputs(builder, client, board, named=request.contexts, main=self.context)

    async def close(self) -> None:
        """Give back what was asked for."""
        pending = [*self._bases.values(), *([self._context] if self._context else [])]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.inputs.close()

    # -- vertices

    def task(self, title: str) -> Task:
        """A vertex that is named by its title alone."""
        return self.board.task(digest(title.encode()), title)

    # -- the Dockerfile and the context

    async def read(self) -> Parsed:
        """The Dockerfile. Raises NotFound, DockerfileError."""
        name = self.request.dockerfile
        remote = await self._remote()
        title = f"[internal] load build definition from {name.rpartition('/')[2] or 'Dockerfile'}"
        with self.task(title) as task:
            if remote is not None:
                directory = remote
            else:
                wanted = Wanted(follow=(name, name + ".dockerignore", name.lower()))
                directory = await self.client.directory(
                    DOCKERFILE, wanted, lambda n: task.count("transferring dockerfile:", n)
                )
            data = await self.engine.run_blocking(_dockerfile_in, directory, name)
            own = directory.read(name + ".dockerignore")
        if own is not None:
            self._patterns = tuple(read_patterns(own))
        if data is None:
            raise DockerfileMissing(name)
        if not data:
            raise DockerfileEmpty(name)
        if not data.strip():
            raise DockerfileEmpty(name, "file with no instructions")
        self.source = Source(name=name, data=data)
        dockerfile = parse(data)
        self._parsed = Parsed(dockerfile=dockerfile, program=program_of(dockerfile))
        return self._parsed

    async def _remote(self) -> Context | None:
        """The context where it is a URL: a repository, an archive or a single Dockerfile."""
        url = self.request.remote
        if not url or url == "client-session":
            return None
        git = parse_git(url)
        if git is not None:
            source = GitSource(
                url=git.url, ref=git.ref, subdir=git.subdir, keep_git_dir=git.keep_git_dir
                or self.request.args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR") in ("1", "true"),
                checksum=git.checksum, submodules=git.submodules,
            )  # fmt: skip
            title = f"[internal] load git source {without_credentials(url)}"
            context = await self.inputs.fetched(source, title)
        elif url.startswith(UPLOADS):
            with self.task("[internal] load remote build context"):
                file = await self.client.upload(url)
            context = await self._unpacked(file, "context")
        elif url.startswith(("http://", "https://")):
            title = "[internal] load remote build context"
            file = await self.inputs.fetched(HttpSource(url=url), title)
            context = await self._unpacked(file, fetch.file_name(url))
        else:
            raise InvalidArgument(f"unable to prepare context: unsupported remote {url}")
        self._context = asyncio.ensure_future(_ready(context))
        return context

    async def _unpacked(self, file: Context, name: str) -> Context:
        """The archive, or the single Dockerfile, that a directory holds under a name."""
        context = await self.inputs.new()
        with self.task("copy /context /"):
            await self.engine.run_blocking(_receive, file, name, context, self.request.dockerfile)
        return context

    async def patterns(self) -> tuple[str, ...]:
        """What the ignore file leaves out of the context."""
        async with self._ignore_lock:
            if self._patterns is None:
                with self.task("[internal] load .dockerignore") as task:
                    directory = await self.client.directory(
                        CONTEXT, Wanted(follow=(".dockerignore",)),
                        lambda n: task.count("transferring context:", n),
                    )  # fmt: skip
                    data = directory.read(".dockerignore")
                self._patterns = tuple(read_patterns(data)) if data is not None else ()
            return self._patterns

    async def context(self) -> Context:
        """The main context's files, asked for once."""
        if self._context is None:
            self._context = asyncio.ensure_future(self._load_context())
        return await asyncio.shield(self._context)

    async def _load_context(self) -> Context:
        with self.task("[internal] load build context") as task:
            wanted = Wanted(follow=self._follow, exclude=await self.patterns())
            return await self.client.directory(
                CONTEXT, wanted, lambda n: task.count("transferring context:", n)
            )

    # -- plans

    async def plans(self) -> tuple[Planned, ...]:
        """One for each platform."""
        parsed = self._parsed or await self.read()
        platforms = self.platforms()
        linter = linter_for(parsed.dockerfile, self.request.args.get(CHECK_ARGUMENT))
        if linter.options.is_error:
            check_form(linter, parsed.dockerfile, parsed.program)
        outcomes = await asyncio.gather(*(self._plan(parsed, each, linter) for each in platforms))
        linter.check()
        self._follow = followed(outcome.operation for outcome in outcomes)
        epoch = self.asked(platforms[0], parsed.program).epoch
        return tuple(
            Planned(
                platform=each if self.request.platforms else outcome.platform, outcome=outcome, epoch=epoch
            )
            for each, outcome in zip(platforms, outcomes, strict=True)
        )  # fmt: skip

    def platforms(self) -> list[Platform]:
        """For which it is built."""
        names = self.request.platforms or ("",)
        return [parse_platform(name) if name else host_platform() for name in names]

    def asked(self, platform: Platform, program: Program) -> Request:
        """What plans know of the request."""
        request = self.request
        epoch = self._epoch_ns(program)
        return Request(
            args=request.args, target=request.target, labels=request.labels, platform=platform,
            build_platform=host_platform(), network=request.network or "default",
            no_cache=request.no_cache, no_cache_stages=request.no_cache_stages, allow=request.allow,
            epoch=rfc3339nano(epoch) if epoch >= 0 else "", epoch_ns=epoch, hostname=request.hostname,
            contexts=named_contexts(request.contexts), multi_platform=request.multi_platform,
        )  # fmt: skip

    def _epoch_ns(self, program: Program) -> int:
        text = self.request.args.get("SOURCE_DATE_EPOCH")
        if text is None:
            pairs = [pair for arg in program.arguments for pair in arg.pairs]
            text = next((p.default for p in pairs if p.key == "SOURCE_DATE_EPOCH"), None)
        if not text:
            return -1
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise InvalidArgument(f"invalid SOURCE_DATE_EPOCH: {text}")
        return int(text) * 10**9

    def stages(self, platform: Platform) -> tuple[Request, dict[str, str], Stages]:
        """The stages as the request sees them. Pure."""
        assert self._parsed is not None
        program = self._parsed.program
        asked = self.asked(platform, program)
        variables = global_variables(program, asked)
        return asked, variables, Stages(program, asked, variables, parse_platform)

    async def _plan(
        self, parsed: Parsed, platform: Platform, linter: Linter, *, every_stage: bool = False
    ) -> Outcome:
        asked, variables, stages = self.stages(platform)
        defaults = global_variables(parsed.program, msgspec.structs.replace(asked, args={}))
        check_from(linter, parsed.program, variables, defaults, format_platform(platform))
        bases: dict[ImageName, Base] = {}
        while True:  # triggers of a base image may need further images
            _, wanted = stages.reachable(triggers_of(stages, bases), every_stage=every_stage)
            missing = [name for name in wanted if name not in bases]
            if not missing:
                break
            found = await asyncio.gather(*(self._base_at(name, stages) for name in missing))
            bases.update(zip(missing, found, strict=True))
        patterns = await self.patterns() if self._context is None else ()
        return plan(
            stages, asked, variables, bases, escape=parsed.dockerfile.escape, linter=linter,
            ignored=Matcher(list(patterns)) if patterns else None, every_stage=every_stage,
        )  # fmt: skip

    # -- questions

    async def lint(self) -> Answer:
        """What the checks find. Only a Dockerfile that cannot be read at all is an error of its own."""
        error: SampanError | None = None
        linter = Linter(Options())
        try:
            parsed = await self.read()
            linter = linter_for(parsed.dockerfile, self.request.args.get(CHECK_ARGUMENT))
            check_form(linter, parsed.dockerfile, parsed.program)
            await self._plan(
                parsed, self.platforms()[0], linter, every_stage=not self.request.target
            )
        except SampanError as failure:
            if self.source is None:
                raise
            error = failure
        assert self.source is not None
        return calls.lint(self.source, linter.sorted(), error)

    async def outline(self) -> Answer:
        """The parameters of the target."""
        parsed = await self.read()
        _, variables, stages = self.stages(self.platforms()[0])
        assert self.source is not None
        return calls.outline(self.source, parsed.program, stages, variables)

    async def paths(self) -> Answer:
        """What of the context may be read, so that only that need be sent; `null` where it cannot be told yet."""
        found: tuple[str, ...] | None = None
        try:
            await self.read()
            _asked, _variables, stages = self.stages(self.platforms()[0])
            found = self._guess(stages)
        except SampanError:
            pass  # the build itself will say it
        return {"result.json": msgspec.json.encode(found)}

    def _guess(self, stages: Stages) -> tuple[str, ...] | None:
        """Words as they are written, of all stages; triggers of images that are not here may read anything."""
        found: set[str] = set()
        for name in stages.reachable({}, every_stage=True)[1]:
            image = self.engine.catalog.find(name.name)
            if image is None or image.config.on_build:
                return None
        for facts in stages.facts:
            for instruction in facts.stage.instructions:
                if isinstance(instruction, ins.Run):
                    found |= {"/" for mount in instruction.mounts if not mount.from_}
                elif isinstance(instruction, ins.CopyLike) and not getattr(
                    instruction, "from_", ""
                ):
                    found |= set(instruction.sources)
        clean = {posixpath.normpath("/" + path).lstrip("/") for path in found}
        return None if "" in clean or any("$" in path for path in clean) else tuple(sorted(clean))

    async def targets(self) -> Answer:
        """The stages that can be asked for."""
        parsed = await self.read()
        assert self.source is not None
        return calls.targets(self.source, parsed.program)

    # -- base images

    async def _base_at(self, name: ImageName, stages: Stages) -> Base:
        """A failure gets the lines of who needs the image."""
        try:
            return await self._base(name)
        except SampanError as error:
            if not getattr(error, "line", 0):
                error.line, error.end = stages.places[name]  # type: ignore[attr-defined]
            raise

    async def _base(self, name: ImageName) -> Base:
        task = self._bases.get(name)
        if task is None:
            task = self._bases[name] = asyncio.ensure_future(self._find(name))
        return await asyncio.shield(task)

    async def _find(self, name: ImageName) -> Base:
        if name.name.startswith(MADE):
            built = made_of(self.client, name.name, name.platform)
            return Base(
                image_id=built.document.id,
                reference=f"{name.name}|{name.platform}",
                document=built.document,
                shown=name.name,
            )
        try:
            full = str(parse_normalized(name.name).with_default_tag())
        except InvalidArgument as error:
            raise InvalidArgument(
                f'failed to parse stage name "{name.name}": {error.message}'
            ) from None
        front = f"[{name.platform} internal]" if self.request.multi_platform else "[internal]"
        if name.context:
            front = f"[context {name.context}]"
        shown_name = with_tag(name.name) if name.context else full
        with self.task(f"{front} load metadata for {shown_name}") as task:
            image = await self._image(name, task)
        shown = full
        if "@" not in full:
            digests = [
                r.digest
                for r in image.references
                if r.digest and r.name == parse_normalized(name.name).name
            ]
            shown = f"{full}@{digests[0]}" if digests else full
        return Base(image_id=image.id, reference=full, document=image.document, shown=shown)

    async def _image(self, name: ImageName, task: Task) -> Image:
        platform = name.platform if self.request.platforms or _is_foreign(name.platform) else ""
        if not self.request.pull:
            try:
                return await images.resolve(self.engine, name.name, platform=platform)
            except NotFound:
                pass
        await self._pull(name.name, platform, task)
        return await images.resolve(self.engine, name.name, platform=platform)

    async def _pull(self, name: str, platform: str, task: Task) -> None:
        reference = parse_normalized(name).with_default_tag()

        def tell(line: dict[str, Any]) -> None:
            if self.pull_line is not None:
                self.pull_line(line)
            detail = line.get("progressDetail") or {}
            if line.get("id") and detail.get("current"):
                task.count(
                    f"{line.get('status', '')} {line['id']}",
                    detail["current"],
                    detail.get("total", 0),
                )

        try:
            await images.pull(
                self.engine, image=reference.familiar(), platform=platform,
                auth=await self.client.credentials(reference.domain), progress=tell,
            )  # fmt: skip
        except SampanError as error:
            error.message = (
                f"{name}: failed to resolve source metadata for {reference}: {error.message}"
            )
            raise


def _is_foreign(platform: str) -> bool:
    return platform != format_platform(host_platform())


def named_contexts(given: dict[str, str]) -> dict[str, NamedContext]:
    """By the names that they are looked up by."""
    found = {}
    for key, value in given.items():
        image = value.removeprefix(IMAGE_SCHEME) if value.startswith((IMAGE_SCHEME, MADE)) else ""
        found[familiar(key)] = NamedContext(key=key, image=image)
    return found


def _dockerfile_in(directory: Context, name: str) -> bytes | None:
    data = directory.read(name)
    if data is None and name == "Dockerfile":
        data = directory.read("dockerfile")
    return data


def _receive(file: Context, name: str, into: Context, dockerfile: str) -> None:
    with (file.path / name).open("rb") as stream:
        into.receive(stream, dockerfile)


async def _ready(context: Context) -> Context:
    return context


def followed(operations: Iterable[Operation]) -> tuple[str, ...]:
    """The paths of the main context that a graph reads; nothing where it reads all of it."""
    paths: set[str] = set()
    seen: set[int] = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if isinstance(operation, Copy):
            paths |= {item.path for item in operation.items if item.source == ContextSource()}
        elif isinstance(operation, Run):
            paths |= {mount.path for mount in operation.mounts if mount.source == ContextSource()}
        parent = parent_of(operation)
        waiting += [parent] if parent is not None else []
        waiting += [s.operation for s in sources_of(operation) if isinstance(s, StageSource)]
    clean = {posixpath.normpath("/" + path).lstrip("/") for path in paths}
    return () if "" in clean else tuple(sorted(clean))
