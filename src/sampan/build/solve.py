"""The solver: operations become layers, several at once, each at most once, from the cache where it has them.

    solve(operation) ── parent and sources first, in parallel ──► key ──► cache? ── yes ──► Stack
                                                                          no ─► perform ─► diff ─► commit ─► Stack

An operation's upper directory becomes the layer: its tar is only hashed. Builds that run at the same time share what
they have in common: the one that came first performs, the others wait. Where a COPY reads another stage there are two
keys: a quick one from the stage's chain id, and one from the content of the files, so that a stage built anew with
the same files costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import posixpath
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.build import fetch, files
from sampan.build.cache import BuildCache, CacheRecord, LayerFact
from sampan.build.context import Context
from sampan.build.graph import (
    ContextSource,
    Copy,
    CopyItem,
    GitSource,
    HttpSource,
    Image,
    InlineSource,
    Operation,
    Run,
    Scratch,
    StageSource,
    Step,
    Workdir,
    definition,
    digest,
)
from sampan.build.mounts import StepMounts, Stubs, lock_for
from sampan.engine import steps
from sampan.errors import InvalidArgument, SampanError
from sampan.images import unpack
from sampan.images.assemble import NewLayer, parts_of
from sampan.spec.engine.container import HostConfig
from sampan.spec.image import OCI_LAYER, Descriptor
from sampan.storage.streams import ChunkReader, HashingReader

if TYPE_CHECKING:
    from sampan.build.verb import Builder
    from sampan.engine.context import Engine

log = logging.getLogger("sampan.build")
CHUNK = 1 << 20


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """A root filesystem: its layers, and the chain id that names them all; '' for none."""

    layers: tuple[NewLayer, ...] = ()
    chain_id: str = ""


class CommandFailed(InvalidArgument):
    """A RUN ended with another status than 0."""

    def __init__(self, operation: Run, code: int, *, oom_killed: bool) -> None:
        command = " ".join(operation.args)
        extra = " (it was killed for lack of memory)" if oom_killed else ""
        super().__init__(f"The command '{command}' returned a non-zero code: {code}{extra}")
        self.exit_code = code
        self.operation = operation
        self.line = operation.label.start
        self.end = operation.label.end


class Output:
    """What a step prints: kept until its turn to be shown, then passed on as it comes. Bounded."""

    LIMIT = 2 << 20

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes]] = []
        self.size = 0
        self.sink: Callable[[int, bytes], None] | None = None
        self.started = asyncio.Event()
        self.cached = False
        self.step_id = ""

    def tell(self, stream: int, data: bytes) -> None:
        if self.sink is not None:
            self.sink(stream, data)
            return
        self.size += len(data)
        self.chunks.append((stream, data))
        while self.size > self.LIMIT and len(self.chunks) > 1:
            self.size -= len(self.chunks.pop(0)[1])

    def show(self, sink: Callable[[int, bytes], None]) -> None:
        """From now on to `sink`; what was kept first."""
        for stream, data in self.chunks:
            sink(stream, data)
        self.chunks.clear()
        self.sink = sink


class Solver:
    """One build's view of the graph."""

    def __init__(
        self,
        builder: Builder,
        *,
        host: HostConfig,
        contexts: dict[str, Context],
        secrets: dict[str, bytes],
        ssh: dict[str, str],
        no_cache: bool = False,
    ) -> None:
        self.builder = builder
        self.engine: Engine = builder.engine
        self.cache: BuildCache = builder.cache
        self.host = host
        self.contexts = contexts
        self.secrets = secrets
        self.ssh = ssh
        self.no_cache = no_cache
        self.outputs: dict[Operation, Output] = {}
        self.pins = ExitStack()
        self.fetched: dict[HttpSource | GitSource, asyncio.Task[Context]] = {}
        self._tasks: dict[Operation, asyncio.Task[Stack]] = {}

    def start(self, operation: Operation) -> asyncio.Task[Stack]:
        """The task that makes it; the same for equal operations."""
        task = self._tasks.get(operation)
        if task is None:
            task = asyncio.ensure_future(self._solve(operation))
            self._tasks[operation] = task
        return task

    def output(self, operation: Operation) -> Output:
        """What its step prints."""
        return self.outputs.setdefault(operation, Output())

    async def close(self) -> None:
        """Stop what runs, give back what is held."""
        tasks = [*self._tasks.values(), *self.fetched.values()]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Context):
                await self.engine.run_blocking(result.close)
        self.pins.close()

    # -- one operation

    async def _solve(self, operation: Operation) -> Stack:
        if isinstance(operation, Scratch):
            return Stack()
        if isinstance(operation, Image):
            return await self._image(operation)
        waiting = [self.start(operation.parent)]
        waiting += [self.start(s.operation) for s in _stages(operation)]
        parent, *others = await asyncio.gather(*(asyncio.shield(task) for task in waiting))
        stacks = dict(zip((s.operation for s in _stages(operation)), others, strict=True))
        return await self._step(operation, parent, stacks)

    async def _image(self, operation: Image) -> Stack:
        image = self.engine.catalog.get(operation.image_id)
        await self.engine.run_blocking(unpack.ensure, self.engine.catalog, image)
        if image.chain_id:
            self.pins.enter_context(self.cache.pinned(image.chain_id))
        return Stack(layers=parts_of(image).layers, chain_id=image.chain_id)

    async def _step(self, operation: Step, parent: Stack, stacks: dict[Operation, Stack]) -> Stack:
        quick = self._quick_key(operation, parent, stacks)
        no_cache = getattr(operation, "no_cache", False)
        if not no_cache and quick and (found := self._cached(quick, operation, parent)):
            return found
        key = await self._key(operation, parent, stacks)
        async with lock_for(self.builder.step_locks, key):
            if not no_cache and (found := self._cached(key, operation, parent)):
                if quick and quick != key:
                    self._alias(quick, key)
                return found
            stack = await self._perform(operation, parent, stacks, key)
        if quick and quick != key:
            self._alias(quick, key)
        return stack

    def _cached(self, key: str, operation: Step, parent: Stack) -> Stack | None:
        record = self.cache.get(key)
        if record is None:
            return None
        output = self.output(operation)
        output.cached = True
        output.started.set()
        return self._stack_of(record, parent)

    def _stack_of(self, record: CacheRecord, parent: Stack) -> Stack:
        if record.layer is None:
            return parent
        self.pins.enter_context(self.cache.pinned(record.chain_id))
        layer = NewLayer(
            descriptor=Descriptor(media_type=OCI_LAYER, digest=record.layer.diff_id, size=record.layer.size),
            diff_id=record.layer.diff_id,
        )  # fmt: skip
        return Stack(layers=(*parent.layers, layer), chain_id=record.chain_id)

    def _alias(self, quick: str, key: str) -> None:
        record = self.cache.get(key)
        if record is not None:
            self.cache.put(quick, msgspec.structs.replace(record, type="alias"))

    # -- keys

    def _quick_key(self, operation: Step, parent: Stack, stacks: dict[Operation, Stack]) -> str:
        """Without a look at any file; '' where files of a context or from the network are read."""
        if isinstance(operation, Copy):
            if not all(isinstance(i.source, (StageSource, InlineSource)) for i in operation.items):
                return ""
        elif isinstance(operation, Run) and any(
            isinstance(m.source, ContextSource) for m in operation.mounts
        ):
            return ""
        chains = [stacks[s.operation].chain_id.encode() for s in _stages(operation)]
        return digest(b"quick", definition(operation), parent.chain_id.encode(), *chains)

    async def _key(self, operation: Step, parent: Stack, stacks: dict[Operation, Stack]) -> str:
        contents: list[bytes] = []
        if isinstance(operation, Copy):
            for item in operation.items:
                contents.append(await self._content(item, operation, stacks))
        elif isinstance(operation, Run):
            contents += await self._mounted_content(operation, stacks)
        return digest(b"exact", definition(operation), parent.chain_id.encode(), *contents)

    async def _content(
        self, item: CopyItem, operation: Copy, stacks: dict[Operation, Stack]
    ) -> bytes:
        if isinstance(item.source, InlineSource):
            return b""
        async with AsyncExitStack() as held:
            root = await self._root(item, stacks, held)
            return await self.engine.run_blocking(files.item_digest, item, root, operation.exclude)

    async def _mounted_content(self, operation: Run, stacks: dict[Operation, Stack]) -> list[bytes]:
        found = []
        for mount in operation.mounts:
            if isinstance(mount.source, ContextSource):
                item = CopyItem(source=mount.source, path=mount.path)
                context = self.contexts[mount.source.name]
                root = files.SourceRoot(context.fd, context.is_left_out)
                found.append(await self.engine.run_blocking(files.item_digest, item, root, ()))
            elif isinstance(mount.source, StageSource) and mount.type == "bind":
                found.append(stacks[mount.source.operation].chain_id.encode())
        return found

    async def _root(
        self, item: CopyItem, stacks: dict[Operation, Stack], held: AsyncExitStack
    ) -> files.SourceRoot:
        """An item's files, open until `held` ends."""
        source = item.source
        if isinstance(source, ContextSource):
            context = self.contexts[source.name]
            return files.SourceRoot(context.fd, context.is_left_out)
        if isinstance(source, StageSource):
            chain_id = stacks[source.operation].chain_id
            fd = await self.engine.run_blocking(self.builder.open_stack, chain_id)
            held.callback(self.builder.close, fd)
            return files.SourceRoot(fd)
        assert isinstance(source, (HttpSource, GitSource))
        context = await asyncio.shield(self._fetch(source))
        return files.SourceRoot(context.fd)

    def _fetch(self, source: HttpSource | GitSource) -> asyncio.Task[Context]:
        task = self.fetched.get(source)
        if task is None:
            task = asyncio.ensure_future(self._fetched(source))
            self.fetched[source] = task
        return task

    async def _fetched(self, source: HttpSource | GitSource) -> Context:
        context = await self.engine.run_blocking(Context.new, self.cache.contexts_dir)
        try:
            await self.engine.run_blocking(fetch.fetch, source, context, self.secrets)
        except BaseException:
            await self.engine.run_blocking(context.close)
            raise
        return context

    # -- performing

    async def _perform(
        self, operation: Step, parent: Stack, stacks: dict[Operation, Stack], key: str
    ) -> Stack:
        output = self.output(operation)
        output.step_id = ids.new_id()
        output.started.set()
        snapshots = self.engine.snapshots
        is_run = isinstance(operation, Run)
        await self.engine.run_blocking(
            snapshots.prepare, output.step_id, parent.chain_id or None, init=is_run
        )
        try:
            if isinstance(operation, Run):
                await self._run(operation, parent, stacks, output)
            elif isinstance(operation, Copy):
                await self._copy(operation, stacks, output.step_id)
            else:
                await self.engine.run_blocking(self._workdir, operation, output.step_id)
            record = await self.engine.run_blocking(
                self._commit, output.step_id, parent, operation.label.name
            )
        except BaseException:
            await asyncio.shield(self.engine.run_blocking(self._discard, output.step_id))
            raise
        stack = self._stack_of(record, parent)
        self.cache.put(key, record)
        return stack

    def _discard(self, step_id: str) -> None:
        try:
            self.engine.snapshots.remove(step_id)
        except SampanError as error:
            log.warning("snapshot %s of a failed step stays: %s", step_id[:12], error)

    def _commit(self, step_id: str, parent: Stack, name: str) -> CacheRecord:
        """The upper directory becomes a layer under its chain id; its tar is hashed, not kept."""
        snapshots = self.engine.snapshots
        with HashingReader(ChunkReader(snapshots.diff(step_id))) as hashing:
            while hashing.read(CHUNK):
                pass
            diff_id, size = hashing.digest(), hashing.count
        chain_id = diff_id
        if parent.chain_id:
            chain_id = (
                "sha256:" + hashlib.sha256(f"{parent.chain_id} {diff_id}".encode()).hexdigest()
            )
        self.pins.enter_context(self.cache.pinned(chain_id))
        snapshots.commit(step_id, chain_id)
        used = snapshots.usage(chain_id).bytes
        return CacheRecord(
            chain_id=chain_id, parent=parent.chain_id, layer=LayerFact(diff_id=diff_id, size=size),
            description=name, bytes=used,
        )  # fmt: skip

    def _workdir(self, operation: Workdir, step_id: str) -> None:
        fd = self.engine.snapshots.open_root(step_id, writable=True)
        try:
            files.make_workdir(operation.path, operation.user, fd)
        finally:
            self.builder.close(fd)

    async def _copy(self, operation: Copy, stacks: dict[Operation, Stack], step_id: str) -> None:
        async with AsyncExitStack() as held:
            roots = [
                files.SourceRoot(-1)
                if isinstance(item.source, InlineSource)
                else await self._root(item, stacks, held)
                for item in operation.items
            ]
            await self.engine.run_blocking(self._copy_blocking, operation, roots, step_id)

    def _copy_blocking(self, operation: Copy, roots: list[files.SourceRoot], step_id: str) -> None:
        items = tuple(_fetched_item(item) for item in operation.items)
        fd = self.engine.snapshots.open_root(step_id, writable=True)
        try:
            files.copy(msgspec.structs.replace(operation, items=items), fd, roots)
        finally:
            self.builder.close(fd)

    async def _run(
        self, operation: Run, parent: Stack, stacks: dict[Operation, Stack], output: Output
    ) -> None:
        mounts = StepMounts(self, output.step_id)
        sources = [
            stacks[m.source.operation] if isinstance(m.source, StageSource) else None
            for m in operation.mounts
        ]
        try:
            await mounts.take(operation.mounts, sources)
            if operation.script is not None:
                await self.engine.run_blocking(self._script, operation, mounts)
            stubs = await self.engine.run_blocking(self._stubs, output.step_id, mounts)
            result = await steps.run_step(
                self.engine,
                self._engine_step(operation, parent, mounts, output.step_id),
                output.tell,
            )
            await self.engine.run_blocking(self._remove_stubs, output.step_id, stubs)
        finally:
            await asyncio.shield(mounts.close())
        if result.exit_code:
            raise CommandFailed(operation, result.exit_code, oom_killed=result.oom_killed)

    def _script(self, operation: Run, mounts: StepMounts) -> None:
        assert operation.script is not None
        name, text = operation.script
        holder = Context.new(self.cache.contexts_dir)
        mounts.undo.callback(holder.close)
        path = holder.path / posixpath.basename(name)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        path.chmod(0o755)
        holder.path.chmod(0o755)
        mounts.bind_directory(str(holder.path), "/dev/pipes")

    def _engine_step(
        self, operation: Run, parent: Stack, mounts: StepMounts, step_id: str
    ) -> steps.Step:
        host = self.host
        network = operation.network
        changes: dict[str, object] = {"network_mode": "bridge" if network == "default" else network}
        if operation.security == "insecure":
            changes["privileged"] = True
        env = {text.partition("=")[0]: text for text in operation.proxy}
        env |= {text.partition("=")[0]: text for text in (*operation.env, *mounts.env)}
        return steps.Step(
            id=step_id, chain_id=parent.chain_id, args=operation.args, env=tuple(env.values()),
            cwd=operation.cwd, user=operation.user, host=msgspec.structs.replace(host, **changes),
            mounts=tuple(mounts.records),
        )  # fmt: skip

    def _stubs(self, step_id: str, mounts: StepMounts) -> Stubs:
        targets = [record.destination for record in mounts.records]
        if not targets:
            return Stubs(-1, [])
        fd = self.engine.snapshots.open_root(step_id)
        try:
            return Stubs(fd, targets)
        finally:
            self.builder.close(fd)

    def _remove_stubs(self, step_id: str, stubs: Stubs) -> None:
        if not stubs.any:
            return
        fd = self.engine.snapshots.open_root(step_id, writable=True)
        try:
            stubs.remove(fd)
        finally:
            self.builder.close(fd)


def _stages(operation: Step) -> list[StageSource]:
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


def _fetched_item(item: CopyItem) -> CopyItem:
    """What came from the network lies in a directory of its own: a file under its name, or a checkout."""
    if isinstance(item.source, HttpSource):
        return msgspec.structs.replace(item, path=fetch.file_name(item.source.url))
    if isinstance(item.source, GitSource):
        return msgspec.structs.replace(item, path="/")
    return item
