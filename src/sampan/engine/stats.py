"""What containers use: samples for `stats`, and the process table for `top`.

The cgroup is read from here, not through the shim: counters of the kernel need nobody's help. A stream takes a
sample a second; the first one carries no previous, so a one-shot request that wants percentages waits for two.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from sampan.engine.resources import cgroup_of
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.spec.engine.container import (
    BlkioEntry,
    BlkioStats,
    ContainerStats,
    CpuStats,
    CpuUsage,
    InterfaceStats,
    MemoryStats,
    PidsStats,
    ThrottlingData,
    TopResponse,
)
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.cgroups.stats import Stats
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


# -- stats -----------------------------------------------------------------------------------------


async def stats(
    engine: Engine, ref: str, *, stream: bool = True, one_shot: bool = False
) -> AsyncIterator[ContainerStats]:
    """Samples, once a second; without `stream` exactly one."""
    container = engine.containers.find(ref)
    return _samples(engine, container, stream=stream, one_shot=one_shot)


async def _samples(
    engine: Engine, container: Container, *, stream: bool, one_shot: bool
) -> AsyncIterator[ContainerStats]:
    before: ContainerStats | None = None
    if not stream and not one_shot and container.is_running:
        before = await _sample(engine, container, None)
        await asyncio.sleep(1)
    while not container.removed:
        sample = await _sample(engine, container, before)
        yield sample
        if not stream:
            return
        before = sample
        await asyncio.sleep(1)


async def _sample(
    engine: Engine, container: Container, before: ContainerStats | None
) -> ContainerStats:
    if not container.is_running:
        return ContainerStats(name=f"/{container.name}", id=container.id)
    try:
        sample = await engine.run_blocking(_read, engine, container)
    except OSError:
        return ContainerStats(name=f"/{container.name}", id=container.id)  # it has just ended
    if before is not None:
        sample = msgspec.structs.replace(sample, preread=before.read, precpu_stats=before.cpu_stats)
    return sample


def _read(engine: Engine, container: Container) -> ContainerStats:
    record, pid = container.record, container.state.pid
    manager = cgroup_of(engine, record, pid)
    found = manager.stats()
    return ContainerStats(
        name=f"/{record.name}",
        id=record.id,
        read=rfc3339nano(time.time_ns()),
        pids_stats=PidsStats(
            current=found.pids, limit=found.pids_limit if found.pids_limit < 1 << 62 else 0
        ),
        blkio_stats=_blkio(found),
        cpu_stats=CpuStats(
            cpu_usage=CpuUsage(
                total_usage=found.cpu_total,
                percpu_usage=found.cpu_percpu or None,
                usage_in_kernelmode=found.cpu_kernel,
                usage_in_usermode=found.cpu_user,
            ),
            system_cpu_usage=_system_cpu(),
            online_cpus=engine.facts.cpus,
            throttling_data=ThrottlingData(
                periods=found.periods,
                throttled_periods=found.throttled,
                throttled_time=found.throttled_time,
            ),
        ),
        memory_stats=_memory(found, engine.facts.memory_bytes),
        networks=_networks(engine, container, pid),
    )


def _memory(found: Stats, host_bytes: int) -> MemoryStats:
    """No limit shows as all of the host's memory, so that a percentage means something."""
    limit = found.memory.limit
    return MemoryStats(
        usage=found.memory.usage,
        max_usage=found.memory.max_usage,
        stats=dict(found.memory_stat),
        failcnt=found.memory.failcnt,
        limit=limit if 0 < limit < host_bytes else host_bytes,
    )


def _blkio(found: Stats) -> BlkioStats:
    def table(name: str) -> list[BlkioEntry] | None:
        rows = found.blkio.get(name)
        if rows is None:
            return None
        return [
            BlkioEntry(major=r.major, minor=r.minor, op=r.op.lower(), value=r.value) for r in rows
        ]

    return BlkioStats(
        io_service_bytes_recursive=table("io_service_bytes_recursive"),
        io_serviced_recursive=table("io_serviced_recursive"),
        io_queue_recursive=table("io_queue_recursive"),
        io_service_time_recursive=table("io_service_time_recursive"),
        io_wait_time_recursive=table("io_wait_time_recursive"),
        io_merged_recursive=table("io_merged_recursive"),
        io_time_recursive=table("io_time_recursive"),
        sectors_recursive=table("sectors_recursive"),
    )


def _system_cpu() -> int:
    """All CPUs together since boot, in nanoseconds: the first line of /proc/stat without guest time."""
    with open("/proc/stat", "rb") as file:
        words = file.readline().split()
    return sum(int(word) for word in words[1:8]) * TICK_NS


def _networks(engine: Engine, container: Container, pid: int) -> dict[str, InterfaceStats]:
    mode = container.record.host_config.network_mode
    if mode in ("host", "none") or mode.startswith("container:"):
        return {}
    del engine
    with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as file:
        lines = file.readlines()[2:]
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = [int(word) for word in rest.split()]
        if name.strip() == "lo" or len(numbers) < 12:
            continue
        found[name.strip()] = InterfaceStats(
            rx_bytes=numbers[0], rx_packets=numbers[1], rx_errors=numbers[2], rx_dropped=numbers[3],
            tx_bytes=numbers[8], tx_packets=numbers[9], tx_errors=numbers[10], tx_dropped=numbers[11],
        )  # fmt: skip
    return found


# -- top -------------------------------------------------------------------------------------------

DEFAULT_PS_ARGS = "-ef"
MOST_PIDS = 1000  # more than fit an argument list sensibly
MOST_PS_OUTPUT = 16 << 20


async def top(engine: Engine, ref: str, ps_args: str = DEFAULT_PS_ARGS) -> TopResponse:
    """The host's ps, and of its rows those whose pid is in the container's cgroup."""
    container = engine.containers.find(ref)
    arguments = check_ps_args(ps_args or DEFAULT_PS_ARGS)
    if not container.is_running:
        raise Conflict(f"container {container.id} is not running")
    if container.state.restarting:
        raise Conflict(
            f"Container {container.id} is restarting, wait until the container is running"
        )
    pids = await engine.run_blocking(_pids, engine, container)
    output = await engine.run_blocking(_run_ps, arguments, pids)
    response = parse_ps(output, pids)
    engine.events.tell("container", "top", container.id, container.attributes())
    return response


def _pids(engine: Engine, container: Container) -> set[int]:
    manager = cgroup_of(engine, container.record, container.state.pid)
    try:
        return set(manager.pids(recursive=True))
    except FileNotFoundError:
        raise Conflict(f"container {container.id} is not running") from None


def check_ps_args(text: str) -> list[str]:
    """Column options that rename PID away are refused: the rows could not be told apart then."""
    words = text.split()
    for word in words:
        for part in word.split(","):
            name, equals, header = part.partition("=")
            if equals and name.lower().endswith("pid") and header.strip() not in ("", "PID"):
                raise InvalidArgument(f'specifying "{part}" is not allowed')
    return words


def _run_ps(arguments: list[str], pids: set[int]) -> str:
    """Of these processes alone, or of all where an argument (BSD's `f`, for one) cannot be combined with that."""
    chosen = ["-q", ",".join(map(str, sorted(pids)))] if 0 < len(pids) < MOST_PIDS else []
    done = _ps([*arguments, *chosen])
    if done.returncode != 0 and chosen:
        done = _ps(arguments)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        first = text.split("\n")[0] if text else f"exit status {done.returncode}"
        raise Internal(f"ps: {first}")
    return done.stdout[:MOST_PS_OUTPUT].decode(errors="replace")


def _ps(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ps", *arguments],
            capture_output=True,
            timeout=20,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "COLUMNS": "4096"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise NotFound("ps: this host has no ps program", hint="install procps") from None
    except subprocess.TimeoutExpired:
        raise Internal("ps: it did not answer in time") from None


def parse_ps(output: str, pids: set[int]) -> TopResponse:
    """Titles from the first line; the last column may hold blanks."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidArgument("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) <= column or not fields[column].isdigit():
            continue
        if int(fields[column]) in pids:
            rows.append(fields)
    return TopResponse(titles=titles, processes=rows)
