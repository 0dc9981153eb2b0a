"""Attach: a client's connection is wired to a container's stdio by handing its descriptor to the shim.

    attach()  checks and says how the bytes are framed (the API then answers 101 or 200)
    Stream.run(fd, preread)   gives the connection away:
        container runs         to its shim at once
        container not started  kept here, and handed over with the launch (docker run attaches before it starts)

After that no byte passes through this process, and an attached client outlives it.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sampan import ids
from sampan.engine.logs import LogsOptions, LogStream
from sampan.errors import Conflict, InvalidArgument, SampanError
from sampan.shim.client import ShimGone

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

DEFAULT_DETACH_KEYS = (16, 17)  # ctrl-p, ctrl-q
MOST_PENDING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """The query of an attach request."""

    stream: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    logs: bool = False
    detach_keys: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAttach:
    """A client that attached before the container started. Owns its descriptor."""

    fd: int
    request: dict[str, Any]  # protocol.Attach without fd

    def close(self) -> None:
        os.close(self.fd)


class Stream:
    """An attach that was accepted: waiting for the connection."""

    def __init__(self, engine: Engine, container: Container, request: dict[str, Any]) -> None:
        self._engine = engine
        self._container = container
        self._request = request
        self.tty = container.record.config.tty

    async def run(self, fd: int, preread: bytes) -> None:
        """Take the descriptor and hand it on; trouble is written to the client, whose status is out already."""
        request = {**self._request, "preread": b64encode(preread).decode()}
        container = self._container
        try:
            shim = container.shim
            if shim is not None and container.is_running:
                await shim.call({"op": "attach", "attach": {**request, "fd": 0}}, [fd])
            else:
                if request["logs"]:
                    await self._replay(fd)
                if request["stream"]:
                    self._keep(fd, {**request, "logs": False})
                    fd = -1
        except ShimGone:
            pass  # it has just ended: so has the stream
        except SampanError as error:
            await _say(fd, error.message)
        finally:
            if fd >= 0:
                os.close(fd)

    async def _replay(self, fd: int) -> None:
        """What a container that does not run has said so far, as `logs` would show it."""
        options = LogsOptions(stdout=self._request["stdout"], stderr=self._request["stderr"])
        if not (options.stdout or options.stderr):
            return
        async for piece in LogStream(self._engine, self._container, options):
            await self._engine.run_blocking(_write_all, fd, piece)

    def _keep(self, fd: int, request: dict[str, Any]) -> None:
        if len(self._container.pending) >= MOST_PENDING:
            raise Conflict(f"too many clients wait for container {self._container.id}")
        self._container.pending.append(PendingAttach(fd=fd, request=request))


async def attach(engine: Engine, ref: str, options: AttachOptions) -> Stream:
    """Check; the answer says whether the bytes are framed."""
    container = engine.containers.find(ref)
    keys = parse_detach_keys(options.detach_keys)
    if container.state.paused:
        raise Conflict(f"container {ref} is paused, unpause the container before attach")
    if container.state.restarting and not container.is_running:
        raise Conflict(f"container {ref} is restarting, wait until the container is running")
    config = container.record.config
    request = {
        "name": ids.new_id()[:16],
        "stdin": options.stdin and options.stream and config.open_stdin,
        "stdout": options.stdout,
        "stderr": options.stderr,
        "framed": not config.tty,
        "logs": options.logs,
        "stream": options.stream,
        "detach_keys": keys,
    }
    engine.events.tell("container", "attach", container.id, container.attributes())
    return Stream(engine, container, request)


def parse_detach_keys(text: str) -> list[int]:
    """'ctrl-p,ctrl-q', 'a', 'ctrl-\\' to byte values; empty means the default sequence."""
    if not text:
        return list(DEFAULT_DETACH_KEYS)
    codes = []
    for key in text.split(","):
        if len(key) == 1 and key.isascii():
            codes.append(ord(key))
        elif key.startswith("ctrl-") and len(key) == 6 and _control(key[5]) is not None:
            codes.append(_control(key[5]) or 0)
        elif key == "DEL":
            codes.append(127)
        else:
            raise InvalidArgument(
                f"Invalid detach keys ({text}) provided: Unknown character: '{key}'"
            )
    return codes


def _control(letter: str) -> int | None:
    lower = letter.lower()
    if "a" <= lower <= "z":
        return ord(lower) - 96
    special = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}
    return special.get(letter)


async def _say(fd: int, message: str) -> None:
    """An error after the upgrade is plain text in the stream."""
    data = message.encode() + b"\r\n"
    await asyncio.get_running_loop().run_in_executor(None, _write_all, fd, data)


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the client went away: nobody is left to tell


def take_pending(container: Container) -> list[PendingAttach]:
    pending, container.pending = container.pending, []
    return pending


def close_pending(container: Container) -> None:
    """The container will not start: its waiting clients get end of file."""
    for waiting in take_pending(container):
        waiting.close()


__all__ = [
    "AttachOptions", "PendingAttach", "Stream", "attach", "close_pending", "parse_detach_keys",
    "take_pending",
]  # fmt: skip
