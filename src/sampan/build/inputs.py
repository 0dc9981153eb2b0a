"""What a build reads from outside, each once: the context, named contexts, files by URL, checkouts, secrets.

    Copy, Run ──► Inputs ──► the caller's directory (client.py), or the network (fetch.py)  ──► Context

Everything is got when it is first needed, in the background, and given back by `close`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from sampan.build import fetch
from sampan.build.client import Client, Wanted
from sampan.build.context import Context
from sampan.build.graph import GitSource, HttpSource, digest
from sampan.build.ignore import read_patterns
from sampan.build.progress import Board
from sampan.build.result import Built
from sampan.build.sources import is_http, parse_git, without_credentials
from sampan.errors import InvalidArgument, NotFound, SampanError

if TYPE_CHECKING:
    from sampan.build.builder import Builder

LOCAL = "local:"
MADE = "made:"
T = TypeVar("T")


class Inputs:
    """See the module. Lives on the loop's thread."""

    def __init__(
        self,
        builder: Builder,
        client: Client,
        board: Board,
        *,
        named: dict[str, str],
        main: Callable[[], Awaitable[Context]],
    ) -> None:
        self.builder = builder
        self.client = client
        self.board = board
        self._named = named
        self._main = main
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._own: list[Context] = []  # what was made here; the client's are the client's
        self._secrets: dict[str, bytes | None] = {}

    def _once(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(make())
        return task

    # -- directories

    async def context(self, name: str) -> Context:
        """The files of a context; '' is the main one."""
        if name:
            return await asyncio.shield(self._once(("context", name), lambda: self._load(name)))
        return await self._main()

    async def _load(self, name: str) -> Context:
        value = self._named[name]
        git = parse_git(value)
        if git is not None:
            return await self.fetched(
                GitSource(
                    url=git.url, ref=git.ref, subdir=git.subdir, keep_git_dir=git.keep_git_dir,
                    checksum=git.checksum, submodules=git.submodules,
                ),
                f"[context {name}] {without_credentials(value)}",
            )  # fmt: skip
        if is_http(value):
            return await self._archive(value, name)
        if value.startswith(LOCAL):
            return await self._local(name, value.removeprefix(LOCAL))
        raise InvalidArgument(f"unsupported context source {value.partition(':')[0]} for {name}")

    async def _local(self, name: str, directory: str) -> Context:
        """A directory of the caller's, without what its own ignore file leaves out."""
        title = f"[context {name}] load .dockerignore"
        with self.board.task(digest(title.encode()), title) as task:
            ignore = await self.client.directory(
                directory, Wanted(follow=(".dockerignore",)), lambda n: task.count(f"transferring {name}:", n)
            )  # fmt: skip
            data = ignore.read(".dockerignore")
            patterns = tuple(read_patterns(data)) if data is not None else ()
        title = f"[context {name}] load from client"
        with self.board.task(digest(title.encode()), title) as task:
            return await self.client.directory(
                directory,
                Wanted(exclude=patterns),
                lambda n: task.count(f"transferring {name}:", n),
            )

    async def _archive(self, url: str, name: str) -> Context:
        """A tar by URL, unpacked."""
        source = HttpSource(url=url)
        file = await self.fetched(source, f"[context {name}] load from {url}")
        context = await self.new()
        await self.builder.engine.run_blocking(_unpack, file, fetch.file_name(url), context)
        return context

    async def new(self) -> Context:
        """An empty directory, deleted at the end."""

        context = await self.builder.engine.run_blocking(
            Context.new, self.builder.cache.contexts_dir
        )
        self._own.append(context)
        return context

    async def fetched(self, source: HttpSource | GitSource, title: str) -> Context:
        """A file or a checkout from the network, in a directory of its own."""
        return await asyncio.shield(self._once(source, lambda: self._fetch(source, title)))

    async def _fetch(self, source: HttpSource | GitSource, title: str) -> Context:
        with self.board.task(digest(title.encode()), title):
            secrets = await self.secrets(fetch.secret_names(source))
            context = await self.new()
            await self.builder.engine.run_blocking(fetch.fetch, source, context, secrets)
            return context

    # -- secrets

    async def secret(self, ident: str) -> bytes | None:
        """A secret's value, asked for once a build."""
        if ident not in self._secrets:
            self._secrets[ident] = await self.client.secret(ident)
        return self._secrets[ident]

    async def secrets(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Those of the names that the caller has."""
        return {name: value for name in names if (value := await self.secret(name)) is not None}

    async def close(self) -> None:
        """Stop what is under way, delete what was made."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for context in self._own:
            await self.builder.engine.run_blocking(context.close)
        self._secrets.clear()
        try:
            await self.client.close()
        except SampanError:
            pass  # the caller is gone: so is what it lent


def made_of(client: Client, text: str, platform: str) -> Built:
    """The image of another build that a named context means. Raises NotFound."""
    found = client.made(text.removeprefix(MADE)) or ()
    for built in found:
        if str(built.platform) == platform or len(found) == 1:
            return built
    raise NotFound(f"no build result {text} for {platform}")


def _unpack(file: Context, name: str, into: Context) -> None:
    with (file.path / name).open("rb") as stream:
        into.receive(stream, "Dockerfile")
