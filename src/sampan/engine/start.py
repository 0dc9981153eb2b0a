"""Start: a record becomes a running shim.

    lock ─► checks ─► resources.take (pool thread) ─► specgen ─► launch (shim answers) ─► state stored, event told

What fails on the way is undone, told as the state's Error and ExitCode (125 to 128 as Docker has them), and raised.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sampan.engine import health, resources, shims, specgen, supervise, volumes, words
from sampan.engine.logs import log_request
from sampan.engine.streams import PendingAttach, close_pending, parse_detach_keys, take_pending
from sampan.engine.words import parse_signal
from sampan.errors import Conflict, NotFound, NotModified, SampanError
from sampan.shim.protocol import docker_exit_code

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container
    from sampan.engine.records import ContainerRecord
    from sampan.engine.resources import Resources
    from sampan.spec.runtime import Spec

GONE_TIMEOUT_S = 30.0
CREATE_FAILED = (
    "failed to create task for container: failed to create shim task: "
    "OCI runtime create failed: runc create failed: "
)


async def start(engine: Engine, ref: str, *, detach_keys: str = "") -> None:
    """Start a container that is not running."""
    container = engine.containers.find(ref)
    parse_detach_keys(detach_keys)
    async with container.lock:
        check_startable(container, ref)
        supervise.cancel_restart(container)
        container.save_state(manually_stopped=False, restart_count=0)
        container.restart_delay_s = 0.0
        await start_locked(engine, container)


def check_startable(container: Container, ref: str) -> None:
    if container.removed:
        raise NotFound(f"No such container: {ref}")
    state = container.state
    if state.paused:
        raise Conflict("cannot start a paused container, try unpause instead")
    if state.is_running:
        raise NotModified(f"container {ref} is already running")
    if state.removing or state.dead:
        raise Conflict("container is marked for removal and cannot be started")
    if container.broken:
        raise Conflict(f"container {ref} cannot be started: {container.broken}")


async def start_locked(engine: Engine, container: Container) -> None:
    """The caller holds the lock and has checked."""
    await wait_until_gone(container)
    undo = ExitStack()
    pending: list[PendingAttach] = []
    try:
        taken = await engine.run_to_end(resources.take, engine, container.record, undo)
        spec = specgen.generate(container.record, taken.sources, engine.facts)
        pending = take_pending(container)
        shim, started = await _launch(engine, container, spec, taken, pending)
    except asyncio.CancelledError:
        await engine.run_blocking(undo.close)
        raise
    except Exception as error:
        await engine.run_blocking(undo.close)
        close_pending(container)
        await _failed(engine, container, error)
        raise
    finally:
        for waiting in pending:
            waiting.close()
    undo.pop_all()
    if taken.connected.netns_fd >= 0:
        os.close(taken.connected.netns_fd)
    _running(engine, container, shim, started, taken)


async def wait_until_gone(container: Container) -> None:
    """The former run's mounts must be gone: the same upper directory may not be mounted twice."""
    await container.settled.wait()
    try:
        await asyncio.wait_for(container.gone.wait(), GONE_TIMEOUT_S)
    except TimeoutError:
        raise Conflict(
            f"container {container.id} is still being cleaned up", hint="try again in a moment"
        ) from None


async def _launch(
    engine: Engine,
    container: Container,
    spec: Spec,
    taken: Resources,
    pending: list[PendingAttach],
) -> tuple[shims.Shim, dict[str, Any]]:
    fds = [waiting.fd for waiting in pending]
    attach = [{**waiting.request, "fd": index} for index, waiting in enumerate(pending)]
    request = launch_request(engine, container.record, spec, taken)
    request["attach"] = attach
    if taken.connected.netns_fd >= 0:
        request["netns"] = len(fds)
        fds.append(taken.connected.netns_fd)
    try:
        return await shims.launch(engine.launcher, request, fds)
    except SampanError as error:
        raise words.as_runtime_error(error, CREATE_FAILED) from None


def launch_request(
    engine: Engine, record: ContainerRecord, spec: Spec, taken: Resources
) -> dict[str, Any]:
    """The protocol.Launch of one start."""
    config, host = record.config, record.host_config
    extra: dict[str, Any] = {}
    if taken.seccomp_default:
        extra["seccomp"] = "default"
    if host.init if host.init is not None else engine.config.init:
        extra["init"] = True
    return {
        "id": record.id,
        "dir": str(engine.run_dir(record.id)),
        "spec": spec,
        "rootfs": taken.sources.rootfs,
        "rootfs_mounts": taken.rootfs_mounts,
        "cgroup": {"path": taken.sources.cgroup_path, "driver": engine.config.cgroup_driver},
        "tty": config.tty,
        "console_size": list(host.console_size),
        "open_stdin": config.open_stdin,
        "stdin_once": config.stdin_once,
        "log": log_request(engine, record),
        "stop_signal": parse_signal(config.stop_signal or "TERM"),
        "rootless": engine.config.rootless,
        "extra": extra,
    }


def _running(
    engine: Engine,
    container: Container,
    shim: shims.Shim,
    started: dict[str, Any],
    taken: Resources,
) -> None:
    """Facts first, then the watch, then the event: whoever hears the event finds the facts."""
    if taken.mounts != container.record.mounts:
        container.save_record(mounts=taken.mounts)
    connected = taken.connected
    container.shim = shim
    container.stopping = False
    container.started_monotonic = time.monotonic()
    container.gone.clear()
    container.save_state(
        pid=int(started["pid"]),
        start_time=int(started["start_time"]),
        started_ns=int(started["started_at"]),
        finished_ns=container.state.finished_ns,
        exit_code=0,
        error="",
        oom_killed=False,
        paused=False,
        restarting=False,
        endpoints=connected.endpoints,
        ports=connected.ports,
        sandbox_id=container.id if connected.endpoints else "",
        sandbox_key=connected.sandbox_key,
        health=health.first_state(container.record),
    )
    _tell_networks(engine, container, "connect")
    volumes.tell_mounted(engine, container.record)
    engine.events.tell("container", "start", container.id, container.attributes())
    supervise.watch(engine, container)
    health.begin(engine, container)


def _tell_networks(engine: Engine, container: Container, action: str) -> None:
    for name, endpoint in container.state.endpoints.items():
        kind = name if name in ("host", "none") else "bridge"
        attributes = {
            "container": container.id,
            "name": name,
            "type": "null" if kind == "none" else kind,
        }
        engine.events.tell("network", action, endpoint.network_id or name, attributes)


async def _failed(engine: Engine, container: Container, error: Exception) -> None:
    """Docker's way: the state keeps the error and an exit code chosen by the words of it."""
    message = str(error)
    code = getattr(error, "exit_code", 0) or docker_exit_code(message)
    if container.removed:
        return
    container.save_state(error=message, exit_code=code, pid=0, restarting=False)
    container.answer_exit(code)
    engine.events.tell(
        "container", "die", container.id, container.attributes(exitCode=str(code), execDuration="0")
    )
    if container.record.host_config.auto_remove:
        supervise.remove_soon(engine, container)
