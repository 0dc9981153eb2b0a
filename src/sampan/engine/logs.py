"""`logs`: a container's recorded output, from the end or from a moment, and on while it grows.

Reading is the shim room's (`shim/logread.py`); here it is done in the pool, piece by piece, at the speed of whoever
reads. A follower is woken by inotify (one descriptor for all of them) and by the container's exit.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sampan import ids
from sampan.engine.records import ContainerRecord
from sampan.errors import Conflict, InvalidArgument, Unsupported
from sampan.shim.logformat import Run
from sampan.shim.logread import LogReader, Presenter
from sampan.shim.logs import rotation

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

P = ParamSpec("P")
T = TypeVar("T")

READABLE = ("json-file", "local")
FIRST_WORDS_S = 0.25
SMALL = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsOptions:
    """The query of a logs request; `tail` None is everything."""

    follow: bool = False
    stdout: bool = False
    stderr: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    timestamps: bool = False
    tail: int | None = None
    details: bool = False


class LogStream:
    """An accepted request: an async iterator of bytes, framed unless the container has a terminal."""

    def __init__(self, engine: Engine, container: Container, options: LogsOptions) -> None:
        self.tty = container.record.config.tty
        self._engine = engine
        self._container = container
        self._options = options
        self._reader: LogReader | None = None
        self._thread: asyncio.Future[Any] | None = None  # that is at work on the reader
        self._wake = asyncio.Event()
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        options, engine = self._options, self._engine
        path = log_path(engine, self._container.record)
        presenter = Presenter(
            framed=not self.tty, timestamps=options.timestamps, details=options.details
        )
        token = engine.log_watch.add(path, self._wake.set) if options.follow else None
        try:
            if not options.follow:
                await self._let_it_speak()
            # Whether it still runs is asked before the last read, so that nothing is missed.
            running = self._is_live()
            reader, runs, is_all = await self._in_thread(self._open, path)
            while not self._closed:
                if runs:
                    yield presenter.present(runs)
                while not is_all:
                    runs, is_all = await self._in_thread(_take, reader)
                    if runs:
                        yield presenter.present(runs)
                if not options.follow or not running or reader.ended:
                    return
                if self._is_live():  # its end may have come during the read: then read once more
                    await self._changed()
                running = self._is_live()
                self._wake.clear()
                runs, is_all = await self._in_thread(_take, reader)
        finally:
            if token is not None:
                engine.log_watch.remove(token)
            if self._thread is None or self._thread.done():
                self._close_reader(self._thread)
            else:
                self._thread.add_done_callback(self._close_reader)

    async def _in_thread(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Whoever cancels us does not stop the thread: its descriptor is closed when it is done and not before."""
        self._thread = asyncio.ensure_future(self._engine.run_blocking(fn, *args, **kwargs))
        result: T = await asyncio.shield(self._thread)
        return result

    def _close_reader(self, thread: asyncio.Future[Any] | None) -> None:
        if thread is not None and not thread.cancelled():
            thread.exception()  # told to whoever still waited for it
        if self._reader is not None:
            self._reader.close()

    def _is_live(self) -> bool:
        return self._container.is_running or self._container.state.restarting

    async def _let_it_speak(self) -> None:
        """Clients ask for the log right after `start`, which Docker answers much later than we do: a short program
        gets the time to end that it would have had there."""
        container = self._container
        rest = FIRST_WORDS_S - (time.monotonic() - container.started_monotonic)
        if not container.is_running or rest <= 0:
            return
        exit_seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        container.exit_waiters.append(exit_seen)
        try:
            await asyncio.wait((exit_seen,), timeout=rest)
        finally:
            exit_seen.cancel()
            if exit_seen in container.exit_waiters:
                container.exit_waiters.remove(exit_seen)

    def _open(self, path: str) -> tuple[LogReader, list[Run], bool]:
        """The reader, and the first that it read: one turn of a thread serves most requests."""
        options = self._options
        wanted = (("stdout", options.stdout), ("stderr", options.stderr))
        reader = self._reader = LogReader(
            path,
            self._container.record.host_config.log_config.type,
            tail=-1 if options.tail is None else options.tail,
            since_ns=options.since_ns or 0,
            until_ns=options.until_ns or 0,
            streams=tuple(name for name, is_wanted in wanted if is_wanted),
        )
        return reader, *_take(reader)

    async def _changed(self) -> None:
        """More was written, or the container ended, or `until` has come."""
        exit_seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._container.exit_waiters.append(exit_seen)
        written = asyncio.ensure_future(self._wake.wait())
        try:
            watched: set[asyncio.Future[Any]] = {exit_seen, written}
            await asyncio.wait(
                watched, return_when=asyncio.FIRST_COMPLETED, timeout=self._remaining()
            )
            if self._remaining() == 0.0:
                self._closed = True
        finally:
            written.cancel()
            exit_seen.cancel()
            if exit_seen in self._container.exit_waiters:
                self._container.exit_waiters.remove(exit_seen)

    def _remaining(self) -> float | None:
        until = self._options.until_ns
        return None if until is None else max(0.0, (until - time.time_ns()) / 1e9)

    async def aclose(self) -> None:
        self._closed = True
        self._wake.set()


def _take(reader: LogReader) -> tuple[list[Run], bool]:
    """Blocking: what comes next, and whether that was all. Two reads tell it for most logs in one turn."""
    runs = reader.read()
    if not runs or sum(len(run.data) for run in runs) > SMALL:
        return runs, not runs
    more = reader.read()
    return runs + more, not more


async def logs(engine: Engine, ref: str, options: LogsOptions) -> LogStream:
    container = engine.containers.find(ref)
    if not (options.stdout or options.stderr):
        raise InvalidArgument("must specify at least one of 'stdout' or 'stderr'")
    if container.state.dead or container.state.removing:
        raise Conflict("can not get logs from container which is dead or marked for removal")
    if container.record.host_config.log_config.type not in READABLE:
        raise Unsupported("configured logging driver does not support reading")
    return LogStream(engine, container, options)


# -- what the shim is told -------------------------------------------------------------------------


def log_path(engine: Engine, record: ContainerRecord) -> str:
    driver = record.host_config.log_config.type
    directory = engine.container_dir(record.id)
    if driver == "local":
        return f"{directory}/local-logs/container.log"
    return f"{directory}/{record.id}-json.log"


def log_request(engine: Engine, record: ContainerRecord) -> dict[str, Any]:
    """The protocol.Log of a launch."""
    config = record.host_config.log_config
    options = {
        key: value
        for key, value in config.config.items()
        if key in ("max-size", "max-file", "compress", "mode", "max-buffer-size")
    }
    rotation(config.type, options)
    path = log_path(engine, record)
    if config.type == "local":
        import os

        os.makedirs(path.rpartition("/")[0], mode=0o700, exist_ok=True)
    return {
        "driver": config.type,
        "path": path,
        "options": options,
        "attrs": log_attributes(record),
    }


def log_attributes(record: ContainerRecord) -> dict[str, str]:
    """What --log-opt labels, env and tag put beside each line."""
    options = record.host_config.log_config.config
    env = dict(text.partition("=")[::2] for text in record.config.env or ())
    attributes: dict[str, str] = {}
    for option, source in (("labels", record.config.labels), ("env", env)):
        for name in options.get(option, "").split(","):
            if name.strip() in source:
                attributes[name.strip()] = source[name.strip()]
        pattern = options.get(f"{option}-regex")
        if pattern:
            attributes |= _matching(pattern, source)
    if options.get("tag"):
        attributes["tag"] = expand_tag(options["tag"], record)
    return attributes


def _matching(pattern: str, source: dict[str, str]) -> dict[str, str]:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InvalidArgument(f"error parsing regexp: {error}") from None
    return {key: value for key, value in source.items() if wanted.search(key)}


def expand_tag(template: str, record: ContainerRecord) -> str:
    """The fields of --log-opt tag; what is no such field stays as written."""
    fields = {
        "ID": ids.short_id(record.id),
        "FullID": record.id,
        "Name": record.name,
        "ImageID": ids.short_id(record.image_id),
        "ImageFullID": record.image_id,
        "ImageName": record.config.image,
        "DaemonName": "sampan",
    }
    return re.sub(r"\{\{\s*\.(\w+)\s*\}\}", lambda found: fields.get(found[1], found[0]), template)
