"""Reading a container's figures from v1 hierarchies. A file that is not there counts nothing.

Source: cgroup-v1/{memory,cpuacct,blkio-controller,hugetlb,pids}.rst.
"""

from __future__ import annotations

import posix

from .files import read_or
from .stats import (
    MemoryUse,
    Stats,
    parse_blkio_v1,
    parse_flat,
    parse_int,
    parse_numbers,
    parse_percpu_split,
    parse_rdma,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Docker's table -> (the file under CFQ or BFQ, the file that is always there)
BLKIO_TABLES = {
    "io_service_bytes_recursive": (
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
    ),
    "io_serviced_recursive": (
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
    ),
    "io_queue_recursive": ("blkio.io_queued_recursive",),
    "io_service_time_recursive": ("blkio.io_service_time_recursive",),
    "io_wait_time_recursive": ("blkio.io_wait_time_recursive",),
    "io_merged_recursive": ("blkio.io_merged_recursive",),
    "io_time_recursive": ("blkio.time_recursive",),
    "sectors_recursive": ("blkio.sectors_recursive",),
}
CPUSET_FILES = (
    "cpus",
    "mems",
    "effective_cpus",
    "effective_mems",
    "cpu_exclusive",
    "mem_exclusive",
    "mem_hardwall",
)
TICK = 1_000_000_000 // posix.sysconf("SC_CLK_TCK")


def read_stats(directory: Callable[[str], str], unified: str) -> Stats:
    """`directory` gives the container's directory of a controller, '' where there is none."""
    stats = Stats(version=1)
    read_cpu(stats, directory("cpu"), directory("cpuacct"))
    read_memory(stats, directory("memory"))
    pids = directory("pids")
    stats.pids = parse_int(read_or(f"{pids}/pids.current"))
    stats.pids_limit = parse_int(read_or(f"{pids}/pids.max"))
    read_blkio(stats, directory("blkio"))
    stats.hugetlb = read_hugetlb(directory("hugetlb"))
    cpuset = directory("cpuset")
    stats.cpuset = {name: read_or(f"{cpuset}/cpuset.{name}").strip() for name in CPUSET_FILES}
    rdma = directory("rdma")
    if rdma:
        stats.rdma = {
            name: parse_rdma(read_or(f"{rdma}/rdma.{name}")) for name in ("current", "max")
        }
    return stats


def read_cpu(stats: Stats, cpu: str, cpuacct: str) -> None:
    stats.cpu_total = parse_int(read_or(f"{cpuacct}/cpuacct.usage"))
    stats.cpu_percpu = parse_numbers(read_or(f"{cpuacct}/cpuacct.usage_percpu"))
    split = parse_flat(read_or(f"{cpuacct}/cpuacct.stat"))
    stats.cpu_user = split.get("user", 0) * TICK
    stats.cpu_kernel = split.get("system", 0) * TICK
    stats.cpu_percpu_user, stats.cpu_percpu_kernel = parse_percpu_split(
        read_or(f"{cpuacct}/cpuacct.usage_all")
    )
    throttling = parse_flat(read_or(f"{cpu}/cpu.stat"))
    stats.periods = throttling.get("nr_periods", 0)
    stats.throttled = throttling.get("nr_throttled", 0)
    stats.throttled_time = throttling.get("throttled_time", 0)


def read_memory(stats: Stats, memory: str) -> None:
    stats.memory = read_use(memory, "memory")
    stats.memory_swap = read_use(memory, "memory.memsw")
    stats.memory_stat = parse_flat(read_or(f"{memory}/memory.stat"))
    control = parse_flat(read_or(f"{memory}/memory.oom_control"))
    stats.memory_events = {"oom_kill": control.get("oom_kill", 0), "max": stats.memory.failcnt}


def read_use(directory: str, prefix: str) -> MemoryUse:
    names = ("usage_in_bytes", "max_usage_in_bytes", "failcnt", "limit_in_bytes")
    return MemoryUse(*(parse_int(read_or(f"{directory}/{prefix}.{name}")) for name in names))


def read_blkio(stats: Stats, blkio: str) -> None:
    if not blkio:
        return
    for table, files in BLKIO_TABLES.items():
        for file in files:
            entries = parse_blkio_v1(read_or(f"{blkio}/{file}"))
            if entries:
                stats.blkio[table] = entries
                break


def read_hugetlb(directory: str) -> dict[str, MemoryUse]:
    """One MemoryUse per page size that the kernel has."""
    if not directory:
        return {}
    found = {}
    try:
        names = posix.listdir(directory)
    except OSError:
        return {}
    for name in sorted(names):
        if (
            name.startswith("hugetlb.")
            and name.endswith(".usage_in_bytes")
            and ".rsvd." not in name
        ):
            prefix = name.removesuffix(".usage_in_bytes")
            found[prefix.removeprefix("hugetlb.")] = read_use(directory, prefix)
    return found
