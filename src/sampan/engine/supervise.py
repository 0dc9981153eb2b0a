"""Watching containers: their exit, the restart policy, auto-removal, and finding them again after a restart.

    shim event "exit" ──► state stored ──► networks given back ──► event die ──► waiters answered
                                                                                 │
          restart policy says no: stop; --rm: removed                            │ says yes: back-off, start
    shim event "gone" (or end of file) ──► root filesystem free ◄────────────────┘

A shim that dies takes its container with it; then exit.json, or failing that exit 137, is the truth.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.engine import health, resources, volumes
from sampan.shim.protocol import EXIT_FILE, STATE_FILE

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

log = logging.getLogger("sampan.engine")

FIRST_DELAY_S = 0.1
MOST_DELAY_S = 60.0
STEADY_AFTER_S = 10.0
KILLED = 137


# -- the watch -------------------------------------------------------------------------------------


def watch(engine: Engine, container: Container) -> None:
    """From now on the shim's events become facts."""
    shim = container.shim
    assert shim is not None

    def heard(message: dict[str, Any]) -> None:
        _heard(engine, container, message)

    def closed() -> None:
        if container.shim is shim:
            _shim_ended(engine, container)

    shim.listen(heard, closed)


def _heard(engine: Engine, container: Container, message: dict[str, Any]) -> None:
    from sampan.engine import exec as execs

    kind = message.get("event")
    if kind == "exit":
        exited(engine, container, message)
    elif kind == "gone":
        container.gone.set()
        for text in message.get("trouble") or ():
            log.warning("container %s: could not tidy up: %s", container.id[:12], text)
    elif kind == "oom":
        engine.events.tell("container", "oom", container.id, container.attributes())
        container.save_state(oom_killed=True)
    elif kind == "exec_exit":
        execs.ended(engine, container, message)
    elif kind == "attach_end" and message.get("detached"):
        action = "exec_detach" if message.get("exec_id") else "detach"
        more = {"execID": message["exec_id"]} if message.get("exec_id") else {}
        engine.events.tell("container", action, container.id, container.attributes(**more))
    elif kind == "log_trouble":
        log.warning(
            "container %s: its log cannot be written: %s (%s bytes lost)",
            container.id[:12], message.get("message"), message.get("lost"),
        )  # fmt: skip


def _shim_ended(engine: Engine, container: Container) -> None:
    """End of file: whatever the shim held is free; if it never told of an exit, the container was killed."""
    container.shim = None
    if container.is_running:
        exited(engine, container, read_exit(engine, container) or lost_exit(container))
    container.gone.set()


def read_exit(engine: Engine, container: Container) -> dict[str, Any] | None:
    """exit.json of the present run, if the shim wrote one."""
    try:
        raw = (engine.run_dir(container.id) / EXIT_FILE).read_bytes()
        message: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None
    if message.get("started_at") != container.state.started_ns:
        return None  # left by an earlier run
    return message


def lost_exit(container: Container) -> dict[str, Any]:
    return {
        "lost": True,
        "exit_code": KILLED,
        "oom_killed": container.state.oom_killed,
        "finished_at": time.time_ns(),
    }


# -- exit ------------------------------------------------------------------------------------------


def exited(engine: Engine, container: Container, message: dict[str, Any]) -> None:
    """Process 1 ended: store, answer, tell, then decide what follows."""
    code = int(message.get("exit_code", KILLED))
    finished_ns = int(message.get("finished_at") or time.time_ns())
    before = container.state
    from sampan.engine import exec as execs

    health.end(container)
    execs.container_ended(engine, container)
    endpoints = dict(before.endpoints)
    restart = _wants_restart(engine, container, code)
    container.save_state(
        pid=0,
        start_time=0,
        exit_code=code,
        finished_ns=finished_ns,
        oom_killed=bool(message.get("oom_killed")) or before.oom_killed,
        paused=False,
        restarting=restart,
        endpoints={},
        ports={},
        sandbox_id="",
        sandbox_key="",
    )
    duration = max(0, finished_ns - before.started_ns) // 10**9
    facts = container.attributes(exitCode=str(code), execDuration=str(duration))
    container.settled.clear()
    engine.background.spawn(
        _after_exit(
            engine, container, endpoints, facts, restart=restart, lost=bool(message.get("lost"))
        ),
        f"exit {container.id[:12]}",
    )


async def _after_exit(
    engine: Engine,
    container: Container,
    endpoints: dict[str, Any],
    facts: dict[str, str],
    *,
    restart: bool,
    lost: bool,
) -> None:
    """Give back, then tell and answer: whoever heard or waited may remove the network at once.

    Without the lock, since a verb that holds it may be waiting for this very exit; a start waits for `settled`.
    """
    try:
        if lost:
            await engine.run_blocking(resources.sweep_cgroup, engine, container.record)
        await engine.run_blocking(resources.release, engine, container.record)
        for name, endpoint in endpoints.items():
            _tell_disconnect(engine, container, name, endpoint)
        volumes.tell_unmounted(engine, container.record)
    finally:
        engine.events.tell("container", "die", container.id, facts)
        container.settled.set()
        container.answer_exit(int(facts["exitCode"]))
    if restart:
        container.restart_task = asyncio.current_task()
        await _restart_later(engine, container)
    elif container.record.host_config.auto_remove:
        await _auto_remove(engine, container)


def _tell_disconnect(engine: Engine, container: Container, name: str, endpoint: Any) -> None:
    kind = {"none": "null", "host": "host"}.get(name, "bridge")
    engine.events.tell(
        "network",
        "disconnect",
        endpoint.network_id or name,
        {"container": container.id, "name": name, "type": kind},
    )


# -- restart policy --------------------------------------------------------------------------------


def _wants_restart(engine: Engine, container: Container, code: int) -> bool:
    if container.stopping or container.state.manually_stopped or container.state.removing:
        return False
    return policy_restarts(container, code)


def policy_restarts(container: Container, code: int) -> bool:
    policy = container.record.host_config.restart_policy
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name != "on-failure" or code == 0:
        return False
    most = policy.maximum_retry_count
    return most == 0 or container.state.restart_count < most


async def _restart_later(engine: Engine, container: Container) -> None:
    """Back-off: 100 ms, doubled each time up to a minute, from the start again after ten steady seconds."""
    from sampan.engine import start

    if time.monotonic() - container.started_monotonic >= STEADY_AFTER_S:
        container.restart_delay_s = 0.0
    while container.state.restarting and not container.removed:
        delay = min(MOST_DELAY_S, max(FIRST_DELAY_S, container.restart_delay_s * 2))
        container.restart_delay_s = delay
        await asyncio.sleep(delay)
        async with container.lock:
            if container.removed or not container.state.restarting or container.is_running:
                return
            container.save_state(restart_count=container.state.restart_count + 1)
            container.restart_task = None
            try:
                await start.start_locked(engine, container)
                return
            except Exception as error:  # noqa: BLE001 - told in the state and by the event
                log.warning("container %s: restart failed: %s", container.id[:12], error)
                if not policy_restarts(container, container.state.exit_code or 1):
                    return
                container.save_state(restarting=True)
                container.restart_task = asyncio.current_task()


def cancel_restart(container: Container) -> None:
    """A verb takes over: the waiting restart must not come after it. The caller holds the lock."""
    task, container.restart_task = container.restart_task, None
    if task is not None and task is not asyncio.current_task():
        task.cancel()
    if container.state.restarting:
        container.save_state(restarting=False)
        container.answer_exit(container.state.exit_code)


# -- auto-removal ----------------------------------------------------------------------------------


def remove_soon(engine: Engine, container: Container) -> None:
    engine.background.spawn(_auto_remove(engine, container), f"remove {container.id[:12]}")


async def _auto_remove(engine: Engine, container: Container) -> None:
    from sampan.engine import remove

    try:
        await remove.remove_ended(engine, container)
    except Exception as error:  # noqa: BLE001 - nobody awaits this: the log is the only place
        log.error("container %s: automatic removal failed: %s", container.id[:12], error)


# -- after a restart of the engine -----------------------------------------------------------------


async def restore(engine: Engine) -> None:
    """Bring every stored container to what the run directory and the kernel say, then to what policies want."""
    waiting = [container for container in engine.containers if container.is_running]
    await asyncio.gather(*(_restore_one(engine, container) for container in waiting))
    for container in engine.containers:
        if container.is_running or container in waiting:
            continue
        if container.state.removing or (
            container.record.host_config.auto_remove and container.state.started_ns
        ):
            remove_soon(engine, container)
        elif _should_start(container):
            engine.background.spawn(
                _start_restored(engine, container), f"start {container.id[:12]}"
            )


def _should_start(container: Container) -> bool:
    policy = container.record.host_config.restart_policy.name
    state = container.state
    if container.broken or not state.started_ns:
        return False
    if policy == "always":
        return True
    if policy == "unless-stopped":
        return not state.manually_stopped
    return policy == "on-failure" and state.restarting


async def _restore_one(engine: Engine, container: Container) -> None:
    """A container that was running when the former engine ended."""
    from sampan.engine import shims

    directory = str(engine.run_dir(container.id))
    try:
        client = await engine.run_blocking(shims.reopen, directory)
    except Exception as error:  # noqa: BLE001 - no shim, whatever the reason: the files tell the rest
        log.info("container %s: its shim is gone: %s", container.id[:12], error)
        exited(engine, container, read_exit(engine, container) or lost_exit(container))
        return
    facts: dict[str, Any] = client.info.get("state") or {}
    container.shim = shims.Shim(client)
    container.gone.clear()
    if facts.get("status") == "exited" and facts.get("exit"):
        exited(engine, container, facts["exit"])
        watch(engine, container)
        return
    container.started_monotonic = time.monotonic()
    container.save_state(
        pid=int(facts.get("pid") or container.state.pid),
        start_time=int(facts.get("start_time") or container.state.start_time),
        paused=facts.get("status") == "paused",
        oom_killed=bool(facts.get("oom_killed")) or container.state.oom_killed,
    )
    watch(engine, container)
    health.begin(engine, container)


async def adopt_unrecorded(engine: Engine, container: Container) -> None:
    """Killed between the launch and storing the facts: the run directory knows of a start that the store does not."""
    directory = engine.run_dir(container.id)
    started = read_state(directory)
    if container.is_running or started is None:
        return
    if int(started.get("started_at", 0)) <= container.state.started_ns:
        return
    container.save_state(
        pid=int(started.get("pid", 0)),
        start_time=int(started.get("start_time", 0)),
        started_ns=int(started.get("started_at", 0)),
        exit_code=0,
        error="",
    )


def read_state(directory: Path) -> dict[str, Any] | None:
    try:
        raw = (directory / STATE_FILE).read_bytes()
        found: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None
    return found


async def _start_restored(engine: Engine, container: Container) -> None:
    from sampan.engine import start

    async with container.lock:
        if container.removed or container.is_running:
            return
        if container.state.restarting:
            container.save_state(restarting=False)
        try:
            await start.start_locked(engine, container)
        except Exception as error:  # noqa: BLE001 - told in the state and by the event
            log.warning("container %s: it could not be started again: %s", container.id[:12], error)
