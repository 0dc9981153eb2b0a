"""The solver: operations become layers, several at once, each at most once, from the cache where it has them.

    start(operation) ── parent and sources first, in parallel ──► key ──► cache? ── yes ──► Stack
                                                                          no ─► ops.py ─► layer ─► Stack

Builds that run at the same time share what they have in common: the one that came first performs, the others wait.
Where a COPY reads another stage there are two keys: a quick one from the stage's chain id, and one from the content of
the files, so that a stage built anew with the same files costs nothing. A COPY --link has a key without its parent:
its layer is made once and laid onto whatever is below (`_laid`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan.build import caching, files
from sampan.build.cache import BuildCache, CacheRecord, LayerFact
from sampan.build.failures import SourceMissing
from sampan.build.graph import (
    ContextSource,
    Copy,
    CopyItem,
    GitSource,
    HttpSource,
    Image,
    InlineSource,
    Label,
    Operation,
    Run,
    Scratch,
    StageSource,
    Step,
    definition,
    digest,
    parent_of,
)
from sampan.build.inputs import MADE, Inputs, made_of
from sampan.build.ops import Performer
from sampan.build.progress import Board, Task
from sampan.build.sharing import Found
from sampan.build.stack import Stack, chained
from sampan.errors import SampanError
from sampan.images import unpack
from sampan.images.assemble import NewLayer, parts_of
from sampan.spec.engine.container import HostConfig
from sampan.spec.image import OCI_LAYER, Descriptor
from sampan.storage.snapshots import apply_layer
from sampan.storage.streams import ChunkReader
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.engine.context import Engine


log = logging.getLogger("sampan.build")


class Solver:
    """One build's view of the graph."""

    def __init__(
        self,
        builder: Builder,
        *,
        host: HostConfig,
        inputs: Inputs,
        board: Board,
        keep_failed: bool = False,
    ) -> None:
        self.builder = builder
        self.engine: Engine = builder.engine
        self.cache: BuildCache = builder.cache
        self.inputs = inputs
        self.board = board
        self.pins = ExitStack()
        self.imports: dict[str, Found] = {}  # what --cache-from brought
        self.used: dict[str, CacheRecord] = {}  # every record that this build met, for --cache-to
        self._performer = Performer(self, host, keep_failed=keep_failed)
        self._tasks: dict[Operation, asyncio.Task[Stack]] = {}
        self._vertices: dict[Operation, Task] = {}

    def start(self, operation: Operation) -> asyncio.Task[Stack]:
        """The task that makes it; the same for equal operations."""
        task = self._tasks.get(operation)
        if task is None:
            below = [*_above(operation), *(s.operation for s in stages_of(operation))]
            for each in below:
                self.start(each)
            self.vertex(operation)
            task = self._tasks[operation] = asyncio.ensure_future(self._solve(operation))
        return task

    def vertex(self, operation: Operation) -> Task:
        """What is told of it."""
        found = self._vertices.get(operation)
        if found is None:
            inputs = [self.vertex(each).digest for each in _above(operation)]
            inputs += [self.vertex(s.operation).digest for s in stages_of(operation)]
            name = self._content_name(operation)
            ident = digest(b"vertex", name, *(each.encode() for each in inputs))
            if isinstance(operation, Scratch):
                found = Board(lambda _event: None).task(ident, "scratch")
            else:
                found = self.board.task(ident, operation.label.title, tuple(inputs))
            self._vertices[operation] = found
        return found

    @staticmethod
    def _content_name(operation: Operation) -> bytes:
        if isinstance(operation, Scratch):
            return b"scratch"
        if isinstance(operation, Image):
            return operation.image_id.encode()
        return definition(operation)

    async def close(self) -> None:
        """Stop what runs, give back what is held."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.pins.close()

    # -- one operation

    async def _solve(self, operation: Operation) -> Stack:
        if isinstance(operation, Scratch):
            return Stack()
        vertex = self.vertex(operation)
        try:
            if isinstance(operation, Image):
                return await self._image(operation, vertex)
            waiting = [self.start(operation.parent)]
            waiting += [self.start(s.operation) for s in stages_of(operation)]
            parent, *others = await asyncio.gather(*(asyncio.shield(task) for task in waiting))
            stacks = dict(zip((s.operation for s in stages_of(operation)), others, strict=True))
            stack = await self._step(operation, parent, stacks)
        except asyncio.CancelledError:
            if vertex.vertex.started_ns:
                vertex.finish(error="context canceled")
            raise
        except Exception as error:
            if vertex.vertex.started_ns and not vertex.vertex.completed_ns:
                vertex.finish(error=str(error))
                _place(error, operation.label)
            raise
        vertex.finish()
        return stack

    async def _image(self, operation: Image, vertex: Task) -> Stack:
        if operation.reference.startswith(MADE):
            platform = operation.reference.partition("|")[2]
            built = made_of(self.inputs.client, operation.reference.partition("|")[0], platform)
            self.pins.enter_context(self.cache.pinned(built.chain_id))
            vertex.finish(cached=True)
            return Stack(
                layers=built.layers, times=("",) * len(built.layers), chain_id=built.chain_id
            )
        image = self.engine.catalog.get(operation.image_id)
        known = not image.chain_id or self.engine.snapshots.exists(image.chain_id)
        if not known:
            vertex.start()
        await self.engine.run_blocking(unpack.ensure, self.engine.catalog, image)
        if image.chain_id:
            self.pins.enter_context(self.cache.pinned(image.chain_id))
        vertex.finish(cached=known)
        layers = parts_of(image).layers
        return Stack(layers=layers, times=("",) * len(layers), chain_id=image.chain_id)

    async def _step(self, operation: Step, parent: Stack, stacks: dict[Operation, Stack]) -> Stack:
        no_cache = getattr(operation, "no_cache", False)
        landing = await self._landing(operation, parent)
        below = parent.chain_id.encode() if landing is None else msgspec.json.encode(landing)
        quick = self._quick_key(operation, below, stacks)
        if not no_cache and quick and (found := await self._cached(quick, operation, parent)):
            return found
        self.vertex(operation).start()
        key = await self._key(operation, below, stacks)
        async with self.builder.steps.hold(key):
            if not no_cache and (found := await self._cached(key, operation, parent)):
                if quick and quick != key:
                    self._alias(quick, key)
                return found
            record = await self._performer.perform(operation, parent, stacks, landing)
            self.cache.put(key, record)
        self.used[key] = record
        if quick and quick != key:
            self._alias(quick, key)
        return self._stack_of(record, parent)

    async def _imported(self, key: str, operation: Step, parent: Stack) -> CacheRecord | None:
        """A layer from a cache that was brought along; None where it cannot be had after all."""
        found = self.imports[key]
        shared = found.record
        chain_id = chained(parent.chain_id, shared.diff_id)
        try:
            async with self.builder.steps.hold(chain_id):
                self.pins.enter_context(self.cache.pinned(chain_id))
                if not self.engine.snapshots.exists(chain_id):
                    self.vertex(operation).start()
                    await self.engine.run_blocking(self._unpack, found, chain_id, parent.chain_id)
        except SampanError as error:
            log.warning("layer %s of an imported cache: %s", shared.diff_id, error)
            return None
        record = CacheRecord(
            chain_id=chain_id, parent=parent.chain_id, description=shared.description,
            layer=LayerFact(diff_id=shared.diff_id, size=shared.size), created_ns=shared.created_ns,
            bytes=self.engine.snapshots.usage(chain_id).bytes,
        )  # fmt: skip
        self.cache.put(key, record)
        return record

    def _unpack(self, found: Found, chain_id: str, parent: str) -> None:
        apply_layer(
            self.engine.snapshots, chain_id, parent or None, caching.plain(found), diff_id=found.record.diff_id
        )  # fmt: skip

    async def _landing(self, operation: Step, parent: Stack) -> files.Landing | None:
        """What a COPY --link, which stands on nothing, has to know of what is below it."""
        if not (isinstance(operation, Copy) and operation.link):
            return None

        def look() -> files.Landing:
            fd = self.builder.open_stack(parent.chain_id)
            try:
                return files.landing(fd, operation)
            finally:
                self.builder.close(fd)

        return await self.engine.run_blocking(look)

    async def _cached(self, key: str, operation: Step, parent: Stack) -> Stack | None:
        record = self.cache.get(key)
        if record is None and key in self.imports:
            record = await self._imported(key, operation, parent)
        if record is None:
            return None
        self.used[record.exact or key] = record
        with self.cache.pinned(record.chain_id):
            if isinstance(operation, Copy) and operation.link:
                record = await self._laid(key, record, parent)
            stack = self._stack_of(record, parent)
        self.vertex(operation).finish(cached=True)
        return stack

    async def _laid(self, key: str, record: CacheRecord, parent: Stack) -> CacheRecord:
        """The layer of a COPY --link onto another root filesystem than the one it was made for."""
        assert record.layer is not None
        chain_id = chained(parent.chain_id, record.layer.diff_id)
        if chain_id == record.chain_id:
            return record
        async with self.builder.steps.hold(chain_id):
            if not self.engine.snapshots.exists(chain_id):
                await self.engine.run_blocking(
                    self._restack, record.chain_id, chain_id, parent.chain_id
                )
        laid = msgspec.structs.replace(record, chain_id=chain_id, parent=parent.chain_id)
        self.pins.enter_context(self.cache.pinned(chain_id))
        self.cache.put(key, laid)
        return laid

    def _restack(self, source: str, chain_id: str, parent: str) -> None:
        snapshots = self.engine.snapshots
        with snapshots.stage(ChunkReader(snapshots.diff(source))) as staged:
            staged.publish(chain_id, parent or None)

    def _stack_of(self, record: CacheRecord, parent: Stack) -> Stack:
        if record.layer is None:
            return parent
        self.pins.enter_context(self.cache.pinned(record.chain_id))
        layer = NewLayer(
            descriptor=Descriptor(media_type=OCI_LAYER, digest=record.layer.diff_id, size=record.layer.size),
            diff_id=record.layer.diff_id,
        )  # fmt: skip
        return Stack(
            layers=(*parent.layers, layer),
            times=(*parent.times, rfc3339nano(record.created_ns)),
            chain_id=record.chain_id,
        )

    def _alias(self, quick: str, key: str) -> None:
        record = self.cache.get(key)
        if record is not None:
            self.cache.put(quick, msgspec.structs.replace(record, type="alias", exact=key))

    # -- keys

    def _quick_key(self, operation: Step, below: bytes, stacks: dict[Operation, Stack]) -> str:
        """Without a look at any file; '' where files of a context or from the network are read."""
        if isinstance(operation, Copy):
            if not all(isinstance(i.source, (StageSource, InlineSource)) for i in operation.items):
                return ""
        elif isinstance(operation, Run) and any(
            isinstance(m.source, ContextSource) for m in operation.mounts
        ):
            return ""
        chains = [stacks[s.operation].chain_id.encode() for s in stages_of(operation)]
        return digest(b"quick", definition(operation), below, *chains)

    async def _key(self, operation: Step, below: bytes, stacks: dict[Operation, Stack]) -> str:
        contents: list[bytes] = []
        if isinstance(operation, Copy):
            for item in operation.items:
                contents.append(await self._content(item, operation, stacks))
        elif isinstance(operation, Run):
            contents += await self._mounted_content(operation, stacks)
        return digest(b"exact", definition(operation), below, *contents)

    async def _content(
        self, item: CopyItem, operation: Copy, stacks: dict[Operation, Stack]
    ) -> bytes:
        if isinstance(item.source, InlineSource):
            return b""
        async with AsyncExitStack() as held:
            root = await self.root(item, operation, stacks, held)
            return await self.engine.run_blocking(files.item_digest, item, root, operation.exclude)

    async def _mounted_content(self, operation: Run, stacks: dict[Operation, Stack]) -> list[bytes]:
        found = []
        for mount in operation.mounts:
            if isinstance(mount.source, ContextSource):
                item = CopyItem(source=mount.source, path=mount.path)
                context = await self.inputs.context(mount.source.name)
                root = files.SourceRoot(context.fd)
                found.append(await self.engine.run_blocking(files.item_digest, item, root, ()))
            elif isinstance(mount.source, StageSource) and mount.type == "bind":
                found.append(stacks[mount.source.operation].chain_id.encode())
        return found

    async def root(
        self, item: CopyItem, operation: Copy, stacks: dict[Operation, Stack], held: AsyncExitStack
    ) -> files.SourceRoot:
        """An item's files, open until `held` ends."""
        source = item.source
        if isinstance(source, ContextSource):
            context = await self.inputs.context(source.name)
            return files.SourceRoot(context.fd, is_ours=True)
        if isinstance(source, StageSource):
            chain_id = stacks[source.operation].chain_id
            fd = await self.engine.run_blocking(self.builder.open_stack, chain_id)
            held.callback(self.builder.close, fd)
            return files.SourceRoot(fd)
        assert isinstance(source, (HttpSource, GitSource))
        return files.SourceRoot((await self.inputs.fetched(source, operation.label.title)).fd)


def _place(error: Exception, label: Label) -> None:
    """Give a failure the lines of the instruction that it is about."""
    if isinstance(error, SourceMissing):
        error.message = f"failed to compute cache key: {error.message}"
    if not getattr(error, "line", 0):
        error.line, error.end = label.start, label.end  # type: ignore[attr-defined]


def stages_of(operation: Operation) -> list[StageSource]:
    """Other root filesystems that it reads, each once."""
    if isinstance(operation, Copy):
        sources = [item.source for item in operation.items]
    elif isinstance(operation, Run):
        sources = [mount.source for mount in operation.mounts if mount.source is not None]
    else:
        sources = []
    found: dict[Operation, StageSource] = {}
    for source in sources:
        if isinstance(source, StageSource):
            found.setdefault(source.operation, source)
    return list(found.values())


def _above(operation: Operation) -> list[Operation]:
    parent = parent_of(operation)
    return [] if parent is None else [parent]
