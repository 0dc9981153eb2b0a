"""Health checks: a command run in the container at intervals, by the same road as exec.

    starting ──ok──► healthy ──retries failures in a row──► unhealthy
       └── failures during the start period do not count

Options (Docker's): interval 30 s, timeout 30 s, start period 0, start interval 5 s, retries 3. Five results are kept,
4096 bytes of output each. Exit 0 is healthy, everything else is not. Times of the loop are monotonic.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode
from typing import TYPE_CHECKING

import msgspec

from sampan.engine.records import ContainerRecord, HealthProbe, HealthState
from sampan.errors import SampanError
from sampan.spec.engine.container import HealthConfig

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

log = logging.getLogger("sampan.engine")

NS = 10**9
INTERVAL_NS = 30 * NS
TIMEOUT_NS = 30 * NS
START_INTERVAL_NS = 5 * NS
RETRIES = 3
KEPT = 5
MAX_OUTPUT = 4096
DEFAULT_SHELL = ["/bin/sh", "-c"]


def command(record: ContainerRecord) -> list[str] | None:
    """The argv of the probe, or None where there is none to run."""
    health = record.config.healthcheck
    if health is None or not health.test:
        return None
    kind, *words = health.test
    if kind == "CMD":
        return words or None
    if kind == "CMD-SHELL" and words:
        return [*(record.config.shell or DEFAULT_SHELL), words[0]]
    return None


def first_state(record: ContainerRecord) -> HealthState | None:
    return HealthState() if command(record) else None


def begin(engine: Engine, container: Container) -> None:
    """Start probing a container that runs."""
    argv = command(container.record)
    if argv is None:
        return
    if container.state.health is None:
        container.save_state(health=HealthState())
    end(container)
    container.health_task = engine.background.spawn(
        _probe_for_ever(engine, container, argv), f"health {container.id[:12]}"
    )


def end(container: Container) -> None:
    task, container.health_task = container.health_task, None
    if task is not None and task is not asyncio.current_task():
        task.cancel()


async def _probe_for_ever(engine: Engine, container: Container, argv: list[str]) -> None:
    config = container.record.config.healthcheck or HealthConfig()
    started = time.monotonic() - max(0, time.time_ns() - container.state.started_ns) / NS
    while container.is_running:
        await asyncio.sleep(_pause_s(container, config, started))
        if not container.is_running or container.state.paused:
            continue
        probe = await _probe(engine, container, argv, (config.timeout or TIMEOUT_NS) / NS)
        if probe is not None and container.is_running:
            _judge(engine, container, config, probe, started)


def _in_start_period(config: HealthConfig, started: float) -> bool:
    return time.monotonic() - started < config.start_period / NS


def _pause_s(container: Container, config: HealthConfig, started: float) -> float:
    """Probes come closer together while the container starts."""
    health = container.state.health
    starting = health is not None and health.status == "starting"
    interval = config.interval or INTERVAL_NS
    if starting and _in_start_period(config, started):
        interval = min(interval, config.start_interval or START_INTERVAL_NS)
    return interval / NS


async def _probe(
    engine: Engine, container: Container, argv: list[str], timeout_s: float
) -> HealthProbe | None:
    """Run it once; None where the container ended under it."""
    from sampan.engine import exec as execs

    start_ns = time.time_ns()
    try:
        code, output = await execs.capture(
            engine, container, argv, limit=MAX_OUTPUT, timeout_s=timeout_s
        )
    except TimeoutError:
        return HealthProbe(
            start_ns=start_ns,
            end_ns=time.time_ns(),
            exit_code=-1,
            output=f"Health check exceeded timeout ({_seconds(timeout_s)})",
        )
    except SampanError as error:
        if not container.is_running:
            return None
        return HealthProbe(
            start_ns=start_ns, end_ns=time.time_ns(), exit_code=-1, output=error.message
        )
    return HealthProbe(start_ns=start_ns, end_ns=time.time_ns(), exit_code=code, output=output)


def _seconds(seconds: float) -> str:
    from sampan.units import format_duration

    return format_duration(int(seconds * NS))


def _judge(
    engine: Engine, container: Container, config: HealthConfig, probe: HealthProbe, started: float
) -> None:
    before = container.state.health or HealthState()
    status, streak = before.status, before.failing_streak
    if probe.exit_code == 0:
        status, streak = "healthy", 0
    elif not (before.status == "starting" and _in_start_period(config, started)):
        streak += 1
        if streak >= (config.retries or RETRIES):
            status = "unhealthy"
    after = msgspec.structs.replace(
        before, status=status, failing_streak=streak, log=(*before.log, probe)[-KEPT:]
    )
    container.save_state(health=after)
    if status != before.status:
        engine.events.tell(
            "container", f"health_status: {status}", container.id, container.attributes()
        )


def decode_output(text: str) -> str:
    return b64decode(text).decode("utf-8", "replace")
