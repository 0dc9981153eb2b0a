"""Reading a container's figures from the unified hierarchy. A file that is not there counts nothing.

Source: cgroup-v2.rst; accounting/psi.rst.
"""

from __future__ import annotations

import posix

from .files import read_or
from .stats import (
    UNLIMITED,
    MemoryUse,
    Stats,
    parse_flat,
    parse_int,
    parse_io_stat,
    parse_pressure,
    parse_rdma,
)

MICROSECOND = 1000
PRESSURES = ("cpu", "memory", "io")


def read_stats(directory: str) -> Stats:
    stats = Stats(version=2)
    read_cpu(stats, parse_flat(read_or(f"{directory}/cpu.stat")))
    read_memory(stats, directory)
    stats.pids = parse_int(read_or(f"{directory}/pids.current"))
    stats.pids_limit = parse_int(read_or(f"{directory}/pids.max"))
    stats.blkio = parse_io_stat(read_or(f"{directory}/io.stat"))
    stats.hugetlb = read_hugetlb(directory)
    stats.cpuset = {
        "cpus": read_or(f"{directory}/cpuset.cpus").strip(),
        "mems": read_or(f"{directory}/cpuset.mems").strip(),
        "effective_cpus": read_or(f"{directory}/cpuset.cpus.effective").strip(),
        "effective_mems": read_or(f"{directory}/cpuset.mems.effective").strip(),
    }
    rdma = {name: parse_rdma(read_or(f"{directory}/rdma.{name}")) for name in ("current", "max")}
    stats.rdma = {name: table for name, table in rdma.items() if table}
    for resource in PRESSURES:
        pressure = parse_pressure(read_or(f"{directory}/{resource}.pressure"))
        if pressure is not None:
            stats.pressure[resource] = pressure
    return stats


def read_cpu(stats: Stats, row: dict[str, int]) -> None:
    stats.cpu_total = row.get("usage_usec", 0) * MICROSECOND
    stats.cpu_user = row.get("user_usec", 0) * MICROSECOND
    stats.cpu_kernel = row.get("system_usec", 0) * MICROSECOND
    stats.periods = row.get("nr_periods", 0)
    stats.throttled = row.get("nr_throttled", 0)
    stats.throttled_time = row.get("throttled_usec", 0) * MICROSECOND


def read_memory(stats: Stats, directory: str) -> None:
    stats.memory_stat = parse_flat(read_or(f"{directory}/memory.stat"))
    stats.memory_events = parse_flat(read_or(f"{directory}/memory.events"))
    memory = stats.memory = read_use(directory, "memory")
    memory.failcnt = stats.memory_events.get("max", 0)
    swap = read_use(directory, "memory.swap")
    # Docker and runc show v1's sum of memory and swap; an unlimited half makes the sum unlimited.
    unlimited = UNLIMITED in (swap.limit, memory.limit)
    stats.memory_swap = MemoryUse(
        usage=swap.usage + memory.usage,
        max_usage=swap.max_usage + memory.max_usage if swap.max_usage else 0,
        failcnt=swap.failcnt,
        limit=UNLIMITED if unlimited else swap.limit + memory.limit,
    )


def read_use(directory: str, prefix: str) -> MemoryUse:
    return MemoryUse(
        usage=parse_int(read_or(f"{directory}/{prefix}.current")),
        max_usage=parse_int(read_or(f"{directory}/{prefix}.peak")),
        limit=parse_int(read_or(f"{directory}/{prefix}.max")),
    )


def read_hugetlb(directory: str) -> dict[str, MemoryUse]:
    """One MemoryUse per page size that the kernel has."""
    found = {}
    try:
        names = posix.listdir(directory)
    except OSError:
        return {}
    for name in sorted(names):
        if name.startswith("hugetlb.") and name.endswith(".current") and ".rsvd." not in name:
            prefix = name.removesuffix(".current")
            use = read_use(directory, prefix)
            use.failcnt = parse_flat(read_or(f"{directory}/{prefix}.events")).get("max", 0)
            found[prefix.removeprefix("hugetlb.")] = use
    return found
