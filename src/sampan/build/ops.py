"""Performing one operation: a RUN in a sandbox, a COPY by descriptor, a WORKDIR; its files become a layer.

    prepare a snapshot ──► run, copy, mkdir ──► diff (hashed, not kept) ──► commit under the chain id ──► CacheRecord

The snapshot's upper directory is the layer. A COPY --link is made in an empty root filesystem and laid onto the stack
afterwards. A step that fails or is cancelled leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.build import fetch, files
from sampan.build.cache import CacheRecord, LayerFact
from sampan.build.context import Context
from sampan.build.failures import CommandFailed, RunRefused
from sampan.build.graph import (
    Copy,
    CopyItem,
    GitSource,
    HttpSource,
    InlineSource,
    Operation,
    Run,
    StageSource,
    Step,
    Workdir,
    digest,
)
from sampan.build.mounts import StepMounts, Stubs
from sampan.build.stack import Stack, chained
from sampan.engine import steps
from sampan.errors import InvalidArgument, SampanError
from sampan.images.assemble import NewLayer, Parts, assemble
from sampan.spec.engine.container import HostConfig
from sampan.spec.image import OCI_LAYER, Descriptor, RunConfig
from sampan.storage.streams import ChunkReader, HashingReader
from sampan.storage.tree import open_directory
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.build.solve import Solver

log = logging.getLogger("sampan.build")
CHUNK = 1 << 20
STDERR = 2
NO_PROGRAM = (
    "runc run failed: unable to start container process: "  # the words that people search for
)


class Performer:
    """See the module."""

    def __init__(self, solver: Solver, host: HostConfig, *, keep_failed: bool) -> None:
        self.solver = solver
        self.engine = solver.engine
        self.host = host
        self.keep_failed = keep_failed

    async def perform(
        self,
        operation: Step,
        parent: Stack,
        stacks: dict[Operation, Stack],
        landing: files.Landing | None,
    ) -> CacheRecord:
        """`landing`: of a COPY --link. Raises CommandFailed, SourceMissing, ...; then nothing is left behind."""
        step_id = ids.new_id()
        apart = landing is not None and bool(parent.chain_id)
        below = None if apart else parent.chain_id or None
        blocking = self.engine.run_blocking
        await blocking(self.engine.snapshots.prepare, step_id, below, init=False)
        try:
            if isinstance(operation, Run):
                await self._run(operation, parent, stacks, step_id)
            elif isinstance(operation, Copy):
                await self._copy(operation, stacks, step_id, landing)
            else:
                await blocking(self._workdir, operation, step_id)
            commit = self._lay if apart else self._commit
            return await blocking(commit, step_id, parent, operation.label.name)
        except BaseException as error:
            if isinstance(error, CommandFailed) and self.keep_failed:
                error.image = await blocking(self._kept, error.operation, parent, step_id)
            else:
                await asyncio.shield(blocking(self._discard, step_id))
            raise

    def _kept(self, operation: Run, parent: Stack, step_id: str) -> dict[str, str]:
        """What a failed RUN left as an image without a name, set up as the step was."""
        record = self._commit(step_id, parent, operation.label.name)
        assert record.layer is not None
        layer = NewLayer(
            descriptor=Descriptor(media_type=OCI_LAYER, digest=record.layer.diff_id, size=record.layer.size),
            diff_id=record.layer.diff_id,
        )  # fmt: skip
        config = RunConfig(
            env=operation.env, working_dir=operation.cwd, user=operation.user, cmd=operation.args[:1] or ("/bin/sh",)
        )  # fmt: skip
        parts = Parts(
            config=config,
            layers=(*parent.layers, layer),
            history=(),
            created=rfc3339nano(record.created_ns),
        )
        return {"id": assemble(self.engine.catalog, parts).id}

    def _discard(self, step_id: str) -> None:
        try:
            self.engine.snapshots.remove(step_id)
        except SampanError as error:
            log.warning("snapshot %s of a failed step stays: %s", step_id[:12], error)

    # -- the layer

    def _commit(self, step_id: str, parent: Stack, name: str) -> CacheRecord:
        """The upper directory becomes a layer under its chain id; its tar is hashed, not kept."""
        snapshots = self.engine.snapshots
        with HashingReader(ChunkReader(snapshots.diff(step_id))) as hashing:
            while hashing.read(CHUNK):
                pass
            diff_id, size = hashing.digest(), hashing.count
        record = self._record(parent, diff_id, size, name)
        snapshots.commit(step_id, record.chain_id)
        return msgspec.structs.replace(record, bytes=snapshots.usage(record.chain_id).bytes)

    def _lay(self, step_id: str, parent: Stack, name: str) -> CacheRecord:
        """What was made in an empty root filesystem becomes a layer on the stack: copied, for its parent differs."""
        snapshots = self.engine.snapshots
        with (
            HashingReader(ChunkReader(snapshots.diff(step_id))) as hashing,
            snapshots.stage(hashing) as staged,
        ):
            while hashing.read(CHUNK):
                pass
            record = self._record(parent, hashing.digest(), hashing.count, name)
            staged.publish(record.chain_id, parent.chain_id)
        snapshots.remove(step_id)
        return msgspec.structs.replace(record, bytes=snapshots.usage(record.chain_id).bytes)

    def _record(self, parent: Stack, diff_id: str, size: int, name: str) -> CacheRecord:
        chain_id = chained(parent.chain_id, diff_id)
        self.solver.pins.enter_context(self.solver.cache.pinned(chain_id))
        return CacheRecord(
            chain_id=chain_id, parent=parent.chain_id, layer=LayerFact(diff_id=diff_id, size=size),
            description=name, created_ns=time.time_ns(),
        )  # fmt: skip

    # -- WORKDIR and COPY

    def _workdir(self, operation: Workdir, step_id: str) -> None:
        fd = self.engine.snapshots.open_root(step_id, writable=True)
        try:
            files.make_workdir(operation, fd)
        finally:
            self.solver.builder.close(fd)

    async def _copy(
        self,
        operation: Copy,
        stacks: dict[Operation, Stack],
        step_id: str,
        landing: files.Landing | None,
    ) -> None:
        if any(isinstance(item.source, InlineSource) for item in operation.items):
            self._tell_inline(operation)
        async with AsyncExitStack() as held:
            roots = [
                files.SourceRoot(-1)
                if isinstance(item.source, InlineSource)
                else await self.solver.root(item, operation, stacks, held)
                for item in operation.items
            ]
            await self.engine.run_blocking(self._copy_blocking, operation, roots, step_id, landing)

    def _tell_inline(self, operation: Step) -> None:
        ident = digest(b"inline", self.solver.vertex(operation).digest.encode())
        with self.solver.board.task(ident, "[internal] preparing inline document"):
            pass

    def _copy_blocking(
        self,
        operation: Copy,
        roots: list[files.SourceRoot],
        step_id: str,
        landing: files.Landing | None,
    ) -> None:
        items = tuple(_fetched_item(item) for item in operation.items)
        if landing is not None:
            operation = msgspec.structs.replace(
                operation, destination=landing.destination, chown=landing.owner
            )
        snapshots = self.engine.snapshots
        upper = open_directory(snapshots.upper_path(step_id))
        fd = snapshots.open_root(step_id, writable=True)
        try:
            files.copy(msgspec.structs.replace(operation, items=items), fd, roots, upper=upper)
            if landing is not None:
                files.dress(fd, landing)
        finally:
            self.solver.builder.close(fd)
            self.solver.builder.close(upper)

    # -- RUN

    async def _run(
        self, operation: Run, parent: Stack, stacks: dict[Operation, Stack], step_id: str
    ) -> None:
        mounts = StepMounts(self.solver, step_id)
        sources = [
            stacks[m.source.operation] if isinstance(m.source, StageSource) else None
            for m in operation.mounts
        ]
        vertex = self.solver.vertex(operation)
        blocking = self.engine.run_blocking
        try:
            await mounts.take(operation.mounts, sources)
            if operation.script is not None:
                self._tell_inline(operation)
                await blocking(self._script, operation, mounts)
            stubs = await blocking(self._stubs, step_id, mounts)
            step = self._engine_step(operation, parent, mounts, step_id)
            try:
                result = await steps.run_step(self.engine, step, vertex.log)
            except InvalidArgument as error:
                if not error.message.startswith("exec: "):
                    raise RunRefused(operation, error.message) from error
                vertex.log(STDERR, f"{NO_PROGRAM}{error.message}\n".encode())
                raise RunRefused(operation, "exit code: 1", error.message) from error
            await blocking(self._remove_stubs, step_id, stubs)
        finally:
            await asyncio.shield(mounts.close())
        if result.exit_code:
            raise CommandFailed(operation, result.exit_code, oom_killed=result.oom_killed)

    def _script(self, operation: Run, mounts: StepMounts) -> None:
        assert operation.script is not None
        name, text = operation.script
        holder = Context.new(self.solver.cache.contexts_dir)
        mounts.undo.callback(holder.close)
        path = holder.path / posixpath.basename(name)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        path.chmod(0o755)
        holder.path.chmod(0o755)
        mounts.bind_directory(str(holder.path), "/dev/pipes")

    def _engine_step(
        self, operation: Run, parent: Stack, mounts: StepMounts, step_id: str
    ) -> steps.Step:
        network = operation.network
        changes: dict[str, object] = {"network_mode": "bridge" if network == "default" else network}
        if operation.security == "insecure":
            changes["privileged"] = True
        env = {text.partition("=")[0]: text for text in operation.proxy}
        env |= {text.partition("=")[0]: text for text in (*operation.env, *mounts.env)}
        return steps.Step(
            id=step_id, chain_id=parent.chain_id, args=operation.args, env=tuple(env.values()),
            cwd=operation.cwd, user=operation.user, hostname=operation.hostname or "buildkitsandbox",
            host=msgspec.structs.replace(self.host, **changes), mounts=tuple(mounts.records),
        )  # fmt: skip

    def _stubs(self, step_id: str, mounts: StepMounts) -> Stubs:
        targets = [*steps.FILES, *(record.destination for record in mounts.records)]
        fd = self.engine.snapshots.open_root(step_id)
        try:
            return Stubs(fd, targets)
        finally:
            self.solver.builder.close(fd)

    def _remove_stubs(self, step_id: str, stubs: Stubs) -> None:
        if not stubs.any:
            return
        fd = self.engine.snapshots.open_root(step_id, writable=True)
        try:
            stubs.remove(fd)
        finally:
            self.solver.builder.close(fd)


def _fetched_item(item: CopyItem) -> CopyItem:
    """What came from the network lies in a directory of its own: a file under its name, or a checkout."""
    if isinstance(item.source, HttpSource):
        return msgspec.structs.replace(item, path=fetch.file_name(item.source.url))
    if isinstance(item.source, GitSource):
        return msgspec.structs.replace(item, path="/")
    return item
