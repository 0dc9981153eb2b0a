"""Stop, kill, restart, pause, unpause, wait.

stop:  the stop signal; after the timeout (10 s by default, -1 never) SIGKILL to everything in the container.
A stop by a person turns the restart policy off until the next start by a person ("unless-stopped" also beyond a
restart of the engine).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sampan.engine import start, supervise
from sampan.engine.words import SIGRTMAX, parse_signal
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound, NotModified, SampanError
from sampan.shim.client import ShimGone
from sampan.spec.engine.container import WaitResponse
from sampan.units import parse_uint

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container
    from sampan.engine.shims import Shim

log = logging.getLogger("sampan.engine")

DEFAULT_TIMEOUT_S = 10
SIGKILL = 9
# How long after SIGKILL an exit is waited for: a process in an uninterruptible call does not end.
KILL_PATIENCE_S = 10.0
CONDITIONS = ("not-running", "next-exit", "removed")


# -- stop and restart ------------------------------------------------------------------------------


async def stop(engine: Engine, ref: str, *, timeout: int | None = None, signal: str = "") -> None:
    """Ask process 1 to end, insist after a while. NotModified where nothing runs."""
    container = engine.containers.find(ref)
    number = _stop_signal(container, signal)
    async with container.lock:
        if container.removed:
            raise NotFound(f"No such container: {ref}")
        if not container.is_running:
            if not container.state.restarting:
                raise NotModified(f"container {ref} is already stopped")
            supervise.cancel_restart(container)
            container.save_state(manually_stopped=True)
            engine.events.tell("container", "stop", container.id, container.attributes())
            return
        await stop_locked(engine, container, number, _timeout(container, timeout))


def _stop_signal(container: Container, signal: str) -> int:
    return parse_signal(signal or container.record.config.stop_signal or "TERM")


def _timeout(container: Container, timeout: int | None) -> int:
    if timeout is not None:
        return timeout
    configured = container.record.config.stop_timeout
    return DEFAULT_TIMEOUT_S if configured is None else configured


async def stop_locked(
    engine: Engine, container: Container, signal: int, timeout_s: int, *, by_person: bool = True
) -> None:
    """The caller holds the lock; the container runs."""
    container.stopping = True
    exit_seen = expect_exit(container)
    if by_person:
        container.save_state(manually_stopped=True)
    try:
        await _signal(engine, container, signal)
        if container.state.paused:
            await _thaw_quietly(container)
        if not await _ended(exit_seen, None if timeout_s < 0 else timeout_s):
            await _signal(engine, container, SIGKILL, everything=True)
            if not await _ended(exit_seen, KILL_PATIENCE_S):
                raise Internal(
                    f"cannot stop container: {container.id}: tried to kill container, "
                    "but did not receive an exit event"
                )
    finally:
        container.stopping = False
        exit_seen.cancel()
    engine.events.tell("container", "stop", container.id, container.attributes())


def expect_exit(container: Container) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    container.exit_waiters.append(future)
    return future


async def _ended(exit_seen: asyncio.Future[int], timeout_s: float | None) -> bool:
    done, _ = await asyncio.wait({exit_seen}, timeout=timeout_s)
    return bool(done)


async def _signal(
    engine: Engine, container: Container, signal: int, *, everything: bool = False
) -> None:
    """Send it, and tell; that process 1 has just ended is no failure."""
    engine.events.tell("container", "kill", container.id, container.attributes(signal=str(signal)))
    shim = container.shim
    if shim is None:
        return
    try:
        await shim.call({"op": "kill", "signal": signal, "all": everything})
    except (NotFound, ShimGone):
        pass


async def _thaw_quietly(container: Container) -> None:
    """A frozen process acts on no signal, so a stop or kill thaws."""
    if container.shim is not None:
        try:
            await container.shim.call({"op": "unpause"})
        except SampanError as error:
            log.info("container %s: thawing it failed: %s", container.id[:12], error)
    container.save_state(paused=False)


async def restart(
    engine: Engine, ref: str, *, timeout: int | None = None, signal: str = ""
) -> None:
    """Stop if it runs, then start."""
    container = engine.containers.find(ref)
    number = _stop_signal(container, signal)
    async with container.lock:
        if container.removed:
            raise NotFound(f"No such container: {ref}")
        supervise.cancel_restart(container)
        if container.is_running:
            await stop_locked(
                engine, container, number, _timeout(container, timeout), by_person=False
            )
        container.save_state(manually_stopped=False)
        await start.start_locked(engine, container)
        engine.events.tell("container", "restart", container.id, container.attributes())


# -- kill ------------------------------------------------------------------------------------------


def _kill_signal(text: str) -> int:
    if (asked := parse_uint(text)) is not None and asked > SIGRTMAX:
        raise InvalidArgument(f"the linux daemon does not support signal {asked}")
    return parse_signal(text)


async def kill(engine: Engine, ref: str, *, signal: str = "KILL") -> None:
    """Send a signal to process 1. SIGKILL goes to everything in the container and is waited for."""
    try:
        number = _kill_signal(signal or "KILL")
        container = engine.containers.find(ref)
        if not container.is_running:
            raise Conflict(f"container {container.id} is not running")
    except SampanError as error:
        raise type(error)(f"cannot kill container: {ref}: {error.message}") from None
    stops = number == SIGKILL or number == _stop_signal(container, "")
    if stops:
        container.save_state(manually_stopped=True)
    if number != SIGKILL:
        await _signal(engine, container, number)
        if container.state.paused and stops:
            await _thaw_quietly(container)
        return
    exit_seen = expect_exit(container)
    try:
        await _signal(engine, container, SIGKILL, everything=True)
        if container.state.paused:
            await _thaw_quietly(container)
        await _ended(exit_seen, KILL_PATIENCE_S)
    finally:
        exit_seen.cancel()


async def kill_locked(engine: Engine, container: Container) -> None:
    """For `rm -f`: SIGKILL and wait; the caller holds the lock."""
    if not container.is_running:
        return
    container.stopping = True
    exit_seen = expect_exit(container)
    try:
        await _signal(engine, container, SIGKILL, everything=True)
        if container.state.paused:
            await _thaw_quietly(container)
        if not await _ended(exit_seen, KILL_PATIENCE_S):
            raise Internal(
                f"cannot remove container {container.id}: could not kill: "
                "tried to kill container, but did not receive an exit event"
            )
    finally:
        container.stopping = False
        exit_seen.cancel()


# -- pause -----------------------------------------------------------------------------------------


async def pause(engine: Engine, ref: str) -> None:
    container = engine.containers.find(ref)
    async with container.lock:
        shim = container.shim
        if not container.is_running or shim is None:
            raise Conflict(f"container {container.id} is not running")
        if container.state.paused:
            raise Conflict(f"Container {container.id} is already paused")
        await _freeze(container, shim, "pause")
        container.save_state(paused=True)
        engine.events.tell("container", "pause", container.id, container.attributes())


async def unpause(engine: Engine, ref: str) -> None:
    container = engine.containers.find(ref)
    async with container.lock:
        shim = container.shim
        if not container.state.paused or shim is None:
            raise Internal(f"Container {container.id} is not paused")
        await _freeze(container, shim, "unpause")
        container.save_state(paused=False)
        engine.events.tell("container", "unpause", container.id, container.attributes())


async def _freeze(container: Container, shim: Shim, op: str) -> None:
    """It may end, by a kill that did not wait for us, before the answer or together with it."""
    try:
        await shim.call({"op": op})
    except ShimGone:
        raise Conflict(f"container {container.id} is not running") from None
    if not container.is_running:
        raise Conflict(f"container {container.id} is not running")


# -- wait ------------------------------------------------------------------------------------------


class Waiter:
    """A wait that was accepted; the API sends its headers before it awaits the result."""

    def __init__(self, future: asyncio.Future[int], container: Container) -> None:
        self._future = future
        self._container = container

    async def result(self) -> WaitResponse:
        return WaitResponse(status_code=await self._future)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._future.cancel()
        for waiters in (self._container.exit_waiters, self._container.removal_waiters):
            if self._future in waiters:
                waiters.remove(self._future)


async def wait(engine: Engine, ref: str, *, condition: str = "not-running") -> Waiter:
    """Until it does not run, until its next exit, or until it is removed."""
    condition = condition or "not-running"
    if condition not in CONDITIONS:
        raise InvalidArgument(f'invalid condition: "{condition}"')
    container = engine.containers.find(ref)
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    if condition == "removed":
        container.removal_waiters.append(future)
    elif condition == "next-exit" or container.is_running:
        container.exit_waiters.append(future)
    else:
        future.set_result(container.state.exit_code)
    return Waiter(future, container)
