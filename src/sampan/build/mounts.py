"""The mounts of a RUN: from the graph's value to what the engine's step takes, and giving them back.

    bind     a directory of the context, or of another root filesystem mounted under <root>/builder/views/
    cache    a directory that is kept (cache.py); shared, private or locked between builds
    tmpfs    memory
    secret   a file below the step's run directory, which is memory too; never in a layer
    ssh      an agent's socket, where the client offers one

What a mount is made on may not exist in the image: the runtime makes it, and `Stubs` takes it away again, by
descriptor and only where it is still empty (CVE-2024-23652).
"""

from __future__ import annotations

import errno
import os
import posixpath
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sampan import ids
from sampan.build.context import Context
from sampan.build.graph import ContextSource, RunMount
from sampan.engine.records import MountRecord
from sampan.errors import InvalidArgument
from sampan.storage.access import mount_view, unmount_view
from sampan.storage.copying import copy_tree
from sampan.storage.transfer import real_path
from sampan.storage.tree import open_directory

if TYPE_CHECKING:
    from sampan.build.cache import BuildCache
    from sampan.build.solve import Solver
    from sampan.build.stack import Stack

SECRETS = "secrets"
_NOFOLLOW = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class StepMounts:
    """All mounts of one RUN while it runs."""

    def __init__(self, solver: Solver, step_id: str) -> None:
        self.solver = solver
        self.step_id = step_id
        self.records: list[MountRecord] = []
        self.env: list[str] = []
        self.locks = AsyncExitStack()
        self.undo = ExitStack()

    async def take(self, mounts: tuple[RunMount, ...], stacks: list[Stack | None]) -> None:
        """Make everything ready. What was taken is given back by `close`, also after a failure."""
        blocking = self.solver.engine.run_blocking
        for number, (mount, stack) in enumerate(zip(mounts, stacks, strict=True)):
            if mount.type == "cache":
                await self._lock(mount)
                await blocking(self._cache, mount, stack)
            elif mount.type == "secret":
                data = await self.solver.inputs.secret(mount.id)
                await blocking(self._secret, number, mount, data)
            elif mount.type == "ssh":
                self._ssh(
                    number, mount, await self.solver.inputs.client.ssh_socket(mount.id or "default")
                )
            elif mount.type == "tmpfs":
                options = (f"size={mount.size_bytes}",) if mount.size_bytes else ()
                self.records.append(
                    MountRecord(type="tmpfs", destination=mount.target, options=options)
                )
            else:
                context = None
                if isinstance(mount.source, ContextSource):
                    context = await self.solver.inputs.context(mount.source.name)
                await blocking(self._files, mount, stack, context)

    async def close(self) -> None:
        """Idempotent."""
        await self.solver.engine.run_blocking(self.undo.close)
        await self.locks.aclose()

    # -- by type

    def _cache(self, mount: RunMount, stack: Stack | None) -> None:
        self._bind(str(self._cache_directory(mount, stack)), mount)

    def _files(self, mount: RunMount, stack: Stack | None, context: Context | None) -> None:
        self._bind(self._source_path(mount, stack, context), mount)

    def _bind(self, source: str, mount: RunMount) -> None:
        self.records.append(
            MountRecord(
                type="bind", source=source, destination=mount.target, writable=not mount.read_only,
                propagation="rprivate",
            )
        )  # fmt: skip

    def bind_directory(self, source: str, target: str) -> None:
        """One more, of a directory of ours, read-only."""
        self.records.append(
            MountRecord(
                type="bind",
                source=source,
                destination=target,
                writable=False,
                propagation="rprivate",
            )
        )

    def _source_path(self, mount: RunMount, stack: Stack | None, context: Context | None) -> str:
        """A host path of the files; links of the source are followed inside it only."""
        if context is None:
            assert stack is not None
            base = self._view(stack)
        else:
            base = str(context.path if mount.read_only else self._scratch_copy(context))
        root = open_directory(base)
        try:
            fd = real_path(root, mount.path.lstrip("/"))
        except FileNotFoundError:
            raise InvalidArgument(f'"{mount.path}": not found') from None
        finally:
            os.close(root)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _view(self, stack: Stack) -> str:
        """Another root filesystem, mounted read-only for the time of the step."""
        path = self.solver.cache.root / "views" / ids.new_id()[:16]
        path.mkdir(mode=0o700, parents=True)
        self.undo.callback(path.rmdir)
        if stack.chain_id:
            mount_view(self.solver.engine.snapshots.view_mounts(stack.chain_id), str(path))
            self.undo.callback(unmount_view, str(path))
        return str(path)

    def _scratch_copy(self, context: Context) -> Path:
        """A writable bind of the context is a copy of it: what is written is thrown away."""
        copy = Context.new(self.solver.cache.contexts_dir)
        self.undo.callback(copy.close)
        copy_tree(context.fd, copy.fd)
        return copy.path

    async def _lock(self, mount: RunMount) -> None:
        self.locks.enter_context(self.solver.cache.using(mount.id))
        if mount.sharing == "locked":
            await self.locks.enter_async_context(self.solver.builder.mounts.hold(mount.id))

    def _cache_directory(self, mount: RunMount, stack: Stack | None) -> Path:
        cache: BuildCache = self.solver.cache
        identity = mount.id
        if mount.sharing == "private":
            identity = self.solver.builder.private_mount(mount.id, self.undo)
        mode = 0o755 if mount.mode is None else mount.mode
        path = cache.open_mount(
            identity,
            mode=mode,
            uid=mount.uid or 0,
            gid=mount.gid or 0,
            seed=None if stack is None else partial(self._seed, mount=mount, stack=stack),
        )
        if mount.source is None and mount.path != "/":
            inner = path / mount.path.lstrip("/")
            inner.mkdir(parents=True, exist_ok=True)
            return inner
        return path

    def _seed(self, path: Path, mount: RunMount, stack: Stack) -> None:
        """`from=` of a cache mount: what a new directory starts with."""
        base = self._view(stack)
        root = open_directory(base)
        target = open_directory(str(path))
        try:
            source = real_path(root, mount.path.lstrip("/"))
            try:
                copy_tree(source, target, with_root=False)
            finally:
                os.close(source)
        finally:
            os.close(target)
            os.close(root)

    def _secret(self, number: int, mount: RunMount, data: bytes | None) -> None:
        if data is None:
            if mount.required:
                raise InvalidArgument(
                    f"secret {mount.id}: not found",
                    hint=f"give it with --secret id={mount.id},src=FILE",
                )
            return
        if mount.env is not None:
            self.env.append(f"{mount.env or mount.id}={data.decode('utf-8', 'surrogateescape')}")
            if not mount.target:
                return
        target = mount.target or f"/run/secrets/{posixpath.basename(mount.id)}"
        directory = self.solver.engine.run_dir(self.step_id) / SECRETS
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / str(number)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchown(fd, mount.uid or 0, mount.gid or 0)
            os.fchmod(fd, 0o400 if mount.mode is None else mount.mode)
        self.undo.callback(path.unlink, missing_ok=True)
        self.records.append(
            MountRecord(
                type="bind", source=str(path), destination=posixpath.join("/", target), writable=False,
                propagation="rprivate",
            )
        )  # fmt: skip

    def _ssh(self, number: int, mount: RunMount, agent: str | None) -> None:
        if agent is None:
            if mount.required:
                raise InvalidArgument(
                    f"unset ssh forward key {mount.id or 'default'}",
                    hint="forward an agent with --ssh default",
                )
            return
        os.chown(agent, mount.uid or 0, mount.gid or 0)
        Path(agent).chmod(0o600 if mount.mode is None else mount.mode)
        target = mount.target or f"/run/buildkit/ssh_agent.{number}"
        self.records.append(
            MountRecord(type="bind", source=agent, destination=target, propagation="rprivate")
        )
        self.env.append(f"SSH_AUTH_SOCK={target}")


class Stubs:
    """What does not exist in a root filesystem before a step although something is mounted there."""

    def __init__(self, root: int, targets: list[str]) -> None:
        self._missing = [path for target in targets for path in _missing_parts(root, target)]

    @property
    def any(self) -> bool:
        """Whether there may be something to take away."""
        return bool(self._missing)

    def remove(self, root: int) -> None:
        """Take away what the mounts needed and what is empty now, deepest first; no link is followed."""
        for path in sorted(set(self._missing), key=lambda p: -p.count("/")):
            above, _, name = path.rpartition("/")
            parent = _open_plain(root, above)
            if parent is None:
                continue
            try:
                _remove_empty(parent, name)
            finally:
                os.close(parent)


def _missing_parts(root: int, target: str) -> list[str]:
    parts = [part for part in target.split("/") if part]
    for depth in range(len(parts)):
        path = "/".join(parts[: depth + 1])
        try:
            os.close(real_path(root, path))
        except FileNotFoundError:
            return ["/".join(parts[: n + 1]) for n in range(depth, len(parts))]
        except OSError:
            return []
    return []


def _open_plain(root: int, path: str) -> int | None:
    held = os.dup(root)
    for part in path.split("/"):
        if not part:
            continue
        try:
            following = os.open(part, _NOFOLLOW, dir_fd=held)
        except OSError:
            os.close(held)
            return None
        os.close(held)
        held = following
    return held


def _remove_empty(parent: int, name: str) -> None:
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if info.st_size == 0 and (info.st_mode & 0o170000) == 0o100000:
            os.unlink(name, dir_fd=parent)
        elif (info.st_mode & 0o170000) == 0o040000:
            os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY, errno.ENOTDIR):
            raise
