"""The way in for every kind of client: `make` performs what a Dockerfile says, `export` gives the result away.

    request, client, sink ──make()──► Made (images, layers pinned) ──export()──► facts for --metadata-file
                              │
                              └── request.call: lint, outline, targets ──► Made.answer, nothing is built

`make` and `export` are apart because BuildKit's clients decide in between what becomes of a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from sampan.build import caching, sharing
from sampan.build.cache import CacheRecord
from sampan.build.client import Client
from sampan.build.exporters import Exporter, Response
from sampan.build.frontend import Frontend, Planned, Source
from sampan.build.progress import Board, Sink
from sampan.build.request import BuildRequest, Export
from sampan.build.result import Built, image_of
from sampan.build.solve import Solver
from sampan.build.stack import Stack
from sampan.errors import InvalidArgument

if TYPE_CHECKING:
    from sampan.build.builder import Builder


class Made:
    """A build that was performed: its images, not yet stored. `close` gives everything back."""

    def __init__(self, request: BuildRequest, held: AsyncExitStack) -> None:
        self.request = request
        self.source: Source | None = None
        self.plans: tuple[Planned, ...] = ()
        self.results: tuple[Built, ...] = ()
        self.answer: dict[str, bytes] = {}  # of a call: result.json, result.txt
        self.used: dict[str, CacheRecord] = {}  # what may be given away as a cache
        self._held = held

    @property
    def platforms(self) -> tuple[str, ...]:
        """For which there are images."""
        return tuple(str(built.platform) for built in self.results)

    def of(self, platform: str) -> Built | None:
        """The image for a platform."""
        return next((built for built in self.results if str(built.platform) == platform), None)

    def config(self, platform: str) -> bytes:
        """An image's configuration as it will be. Raises KeyError for a platform that was not built."""
        built = self.of(platform)
        if built is None:
            raise KeyError(platform)
        return built.document.raw

    async def close(self) -> None:
        """Idempotent."""
        await self._held.aclose()

    async def __aenter__(self) -> Made:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def make(
    builder: Builder,
    request: BuildRequest,
    client: Client,
    sink: Sink,
    on_plans: Callable[[tuple[Planned, ...]], None] | None = None,
) -> Made:
    """Perform a build, or answer its call. Raises DockerfileError, CommandFailed, ...; then nothing is left.

    `on_plans` is called when the Dockerfile's part is done and the steps begin.
    A failure carries the Dockerfile as `source` (`frontend.Source`), where it was read, and its lines.
    """
    async with AsyncExitStack() as undo:
        board = Board(sink)
        frontend = Frontend(builder, request, client, board)
        undo.push_async_callback(frontend.close)
        try:
            made = Made(request, undo)
            if request.call:
                made.answer = await _answer(frontend, request.call)
                made._held = undo.pop_all()
                return made
            await frontend.read()
            made.source = frontend.source
            made.plans = await frontend.plans()
            if on_plans is not None:
                on_plans(made.plans)
            solver = Solver(
                builder, host=request.host, inputs=frontend.inputs, board=board,
                keep_failed=request.keep_failed,
            )  # fmt: skip
            undo.push_async_callback(solver.close)
            solver.imports = await caching.load(builder, client, board, request.cache_from)
            made.results = await solve(solver, made.plans, with_notes=_is_inline(request))
            made.used = solver.used
        except Exception as error:
            if frontend.source is not None:
                error.source = frontend.source  # type: ignore[attr-defined]
            raise
        made._held = undo.pop_all()
        return made


async def _answer(frontend: Frontend, call: str) -> dict[str, bytes]:
    """Raises InvalidArgument for a question that is not known."""
    questions = {
        "lint": frontend.lint,
        "outline": frontend.outline,
        "targets": frontend.targets,
        "paths": frontend.paths,
    }
    if call not in questions:
        raise InvalidArgument(f"unsupported request {call}")
    return await questions[call]()


def _is_inline(request: BuildRequest) -> bool:
    """Whether the image is to say by which keys its layers can be found again."""
    asked = any(option.type == "inline" for option in request.cache_to)
    return asked or request.args.get("BUILDKIT_INLINE_CACHE") in ("1", "true")


def _notes(solver: Solver, stack: Stack) -> dict[str, Any]:
    diff_ids = tuple(layer.diff_id for layer in stack.layers)
    return {sharing.INLINE: sharing.inline(solver.used, diff_ids)}


async def solve(
    solver: Solver, plans: Sequence[Planned], *, with_notes: bool = False
) -> tuple[Built, ...]:
    """All platforms at once."""
    tasks = [solver.start(planned.outcome.operation) for planned in plans]
    stacks = await asyncio.gather(*tasks)
    return tuple(
        image_of(
            planned.outcome,
            stack,
            planned.platform,
            planned.epoch,
            _notes(solver, stack) if with_notes else None,
        )
        for planned, stack in zip(plans, stacks, strict=True)
    )


async def export(
    builder: Builder, made: Made, exports: Sequence[Export], client: Client, sink: Sink
) -> Response:
    """Give a result away, in every way that is asked for."""
    exporter = Exporter(builder, client, Board(sink), made.results)
    response: Response = {}
    for each in exports:
        response |= await exporter.run(each)
    await caching.save(
        builder, client, exporter.board, made.request.cache_to, made.used, made.results
    )
    return response


async def build(builder: Builder, request: BuildRequest, client: Client, sink: Sink) -> Response:
    """Both: `make`, then `export` as the request says."""
    async with await make(builder, request, client, sink) as made:
        return await export(builder, made, request.exports, client, sink)
