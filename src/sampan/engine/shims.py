"""A shim's connection on the event loop: requests as coroutines, events as callbacks.

One `Shim` per running container. Replies and events arrive through `add_reader`; nothing here waits in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from sampan.errors import SampanError, Unavailable
from sampan.shim.client import LauncherClient, ShimClient, ShimGone, raise_failure

Message = dict[str, Any]

SIGKILL = 9
CALL_OFF_S = 20.0
GONE = "the shim is gone"  # what a request is answered with whose connection ended

__all__ = ["Shim", "ShimGone", "launch", "reopen"]


class Shim:
    """The engine's handle on one container's shim. Loop thread only."""

    def __init__(self, client: ShimClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._fd = client.fileno()
        self._backlog: list[Message] | None = []
        self._handler: Callable[[Message], None] | None = None
        self._on_close: Callable[[], None] | None = None
        self.closed = False
        client.on_event = self._event
        client.on_close = self._ended
        self._loop.add_reader(self._fd, self._readable)

    def listen(self, handler: Callable[[Message], None], on_close: Callable[[], None]) -> None:
        """From now on events go to `handler`; those that came before are delivered first."""
        self._handler, self._on_close = handler, on_close
        backlog, self._backlog = self._backlog or [], None
        for message in backlog:
            handler(message)
        if self.closed:
            on_close()

    def _readable(self) -> None:
        self._client.dispatch()

    def drain(self) -> None:
        """Handle now what has already arrived: a client that saw its stream end asks for the exit code at once,
        and the event that tells it was sent before that end."""
        if not self.closed:
            self._client.dispatch()

    def _event(self, message: Message) -> None:
        if self._handler is None:
            assert self._backlog is not None
            self._backlog.append(message)
        else:
            self._handler(message)

    def _ended(self) -> None:
        """End of file: the client closed its descriptor already, so take the reader away by number."""
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._on_close is not None:
            self._on_close()

    def close(self) -> None:
        """Leave; the container goes on."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self._client.close()

    async def call(
        self, message: Message, fds: Sequence[int] = (), *, timeout: float | None = 30.0
    ) -> Message:
        """One request and its reply; a failure is raised as its kind of error."""
        if self.closed:
            raise ShimGone(GONE)
        future: asyncio.Future[Message] = self._loop.create_future()

        def answered(reply: Message) -> None:
            if not future.done():
                future.set_result(reply)

        self._client.send(message, fds, answered)
        try:
            reply = await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise Unavailable("the shim does not answer") from None
        if "error" in reply:
            if reply["error"].get("message") == GONE:
                raise ShimGone(GONE)
            raise_failure(reply["error"])
        return reply


async def launch(
    launcher: LauncherClient, request: Message, fds: Sequence[int] = (), *, timeout: float = 120.0
) -> tuple[Shim, Message]:
    """Start a container: its shim, and what the shim answered (protocol.Started).

    A connection that ends before any answer means that the launcher or the fresh shim was killed and nothing
    runs; one more try is then right.
    """
    for attempt in (1, 2):
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answered(reply: Message, future: asyncio.Future[Message] = future) -> None:
            if not future.done():
                future.set_result(reply)

        shim = Shim(launcher.begin(request, fds, answered))
        try:
            reply = await asyncio.wait_for(asyncio.shield(future), timeout)
        except TimeoutError:
            shim.close()
            raise Unavailable("the container did not start in time") from None
        except BaseException:
            await _call_off(shim, future)
            raise
        if "error" not in reply:
            return shim, reply
        died = shim.closed and reply["error"].get("message") == GONE
        shim.close()
        if not died or attempt == 2:
            raise_failure(reply["error"])
    raise AssertionError("unreachable")


async def _call_off(shim: Shim, started: asyncio.Future[Message]) -> None:
    """Nobody wants it any more: what is being started must not outlive what the caller gives back next."""
    gone = asyncio.Event()

    def heard(message: Message) -> None:
        if message.get("event") == "gone":
            gone.set()

    shim.listen(heard, gone.set)
    try:
        async with asyncio.timeout(CALL_OFF_S):
            if "error" not in await started:
                await shim.call({"op": "kill", "signal": SIGKILL, "all": True})
                await gone.wait()
    except (TimeoutError, SampanError):
        pass  # it has ended, or is stuck: whoever removes it is told
    finally:
        shim.close()


def reopen(directory: str) -> ShimClient:
    """Connect to the shim of a container that an earlier engine started. Blocking; raises ShimGone."""
    return ShimClient.open(directory)
