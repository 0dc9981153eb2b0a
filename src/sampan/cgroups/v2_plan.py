"""OCI resources as the writes that the unified hierarchy wants: a pure translation, one row per write.

The specification speaks v1's language, so most rows convert:

    cpu.shares 2..262144        ->  cpu.weight 1..10000, 1024 being 100
    cpu.quota, cpu.period       ->  cpu.max 'QUOTA PERIOD'
    memory.swap (the sum)       ->  memory.swap.max (swap alone)
    memory.reservation          ->  memory.low
    blockIO.weight 10..1000     ->  io.weight 1..10000, or io.bfq.weight as it is
    blockIO.throttle*           ->  io.max 'MAJ:MIN rbps=N'
    unified                     ->  as it stands, line by line

Source: runtime-spec config-linux.md and its config-linux "unified"; cgroup-v2.rst.
"""

from __future__ import annotations

from .v1_plan import Write, cpuset_writes, pids_writes, rdma_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = dict[str, Any]

DEFAULT_PERIOD = 100_000


class Held:
    """What the cgroup holds now, for settings that are given by half (`--cpu-quota` without a period)."""

    __slots__ = ("bfq", "cpu_max", "memory_max")

    def __init__(
        self, *, cpu_max: str = "max 100000", memory_max: str = "max", bfq: bool = False
    ) -> None:
        self.cpu_max = cpu_max
        self.memory_max = memory_max
        self.bfq = bfq


def limit_text(value: int) -> str:
    return "max" if value == -1 else str(value)


def weight_of_shares(shares: int) -> int:
    """v1's 2..262144 as v2's 1..10000, through the three points that mean the same in both: least,
    default (1024 = 100) and most. A quadratic in the logarithm, as current runc and crun have it."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    from math import ceil, log2

    log = log2(shares)
    return ceil(10 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0))


def weight_of_blkio(weight: int) -> int:
    """v1's 10..1000 as io.weight's 1..10000, linearly."""
    return 1 + (weight - 10) * 9999 // 990


def swap_alone(limit: int, total: int) -> int:
    """v1 limits memory and memory+swap; v2 limits swap alone. -1 is no limit. Zero total: not set."""
    if limit == -1 and total == 0:
        return -1
    if total in (-1, 0) or limit == -1:
        return total
    if limit == 0:
        raise ValueError("unable to set swap limit without memory limit")
    if limit < 0:
        raise ValueError(f"invalid memory value: {limit}")
    if total < limit:
        raise ValueError("memory+swap limit should be >= memory limit")
    return total - limit


def memory_writes(memory: Resources, held: Held) -> list[Write]:
    writes = []
    limit, total = memory.get("limit") or 0, memory.get("swap") or 0
    if total > 0 and limit == 0 and held.memory_max.isdigit():
        limit_now = int(held.memory_max)
    else:
        limit_now = limit
    if total or limit == -1:
        swap = swap_alone(limit_now, total)
        # Without swap in the kernel, "no swap" and "all swap" are what one has anyway.
        writes.append(
            Write("memory", "memory.swap.max", limit_text(swap), optional=swap in (0, -1))
        )
    if limit:
        writes.append(Write("memory", "memory.max", limit_text(limit)))
    if reservation := memory.get("reservation"):
        writes.append(Write("memory", "memory.low", limit_text(reservation)))
    return writes


# v1 settings that the unified hierarchy has no word for: (section, key, v1's file for the warning)
WITHOUT_A_WORD = (
    ("memory", "kernel", "memory.kmem.limit_in_bytes"),
    ("memory", "kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
    ("memory", "disableOOMKiller", "memory.oom_control"),
    ("memory", "swappiness", "memory.swappiness"),
    ("cpu", "realtimePeriod", "cpu.rt_period_us"),
    ("cpu", "realtimeRuntime", "cpu.rt_runtime_us"),
    ("blockIO", "leafWeight", "blkio.leaf_weight"),
    ("network", "classID", "net_cls.classid"),
    ("network", "priorities", "net_prio.ifpriomap"),
)


def untranslatable(resources: Resources) -> list[tuple[str, str]]:
    """(controller, v1 file) of each setting that v2 cannot hold."""
    found = []
    for section, key, file in WITHOUT_A_WORD:
        value = (resources.get(section) or {}).get(key)
        if value or (key == "swappiness" and value == 0):
            found.append((section, file))
    return found


def cpu_writes(cpu: Resources, held: Held) -> list[Write]:
    writes = []
    if (idle := cpu.get("idle")) is not None:
        writes.append(Write("cpu", "cpu.idle", str(idle)))
    if (shares := cpu.get("shares")) and not idle:
        writes.append(Write("cpu", "cpu.weight", str(weight_of_shares(shares))))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    burst = cpu.get("burst")
    if quota or period:
        quota_now, _, period_now = held.cpu_max.partition(" ")
        shown = quota_now if quota == 0 else "max" if quota < 0 else str(quota)
        full = f"{shown} {period or period_now or DEFAULT_PERIOD}"
        if burst is not None:
            # burst <= quota must hold after each write; zero always does
            writes.append(Write("cpu", "cpu.max.burst", "0"))
        writes.append(Write("cpu", "cpu.max", full))
    if burst is not None:
        writes.append(Write("cpu", "cpu.max.burst", str(burst)))
    return writes


THROTTLES = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def io_writes(block: Resources, held: Held) -> list[Write]:
    """BFQ's own file takes v1's range; io.weight (the cost model's) takes v2's."""
    file = "io.bfq.weight" if held.bfq else "io.weight"

    def weight(value: int) -> int:
        return value if held.bfq else weight_of_blkio(value)

    writes = []
    if block.get("weight"):
        writes.append(Write("io", file, f"default {weight(block['weight'])}"))
    for device in block.get("weightDevice") or ():
        if device.get("weight"):
            name = f"{device['major']}:{device['minor']}"
            writes.append(Write("io", file, f"{name} {weight(device['weight'])}"))
    for key, word in THROTTLES:
        for device in block.get(key) or ():
            name = f"{device['major']}:{device['minor']}"
            rate = device["rate"] or "max"  # v1 lifts a throttle by rate 0
            writes.append(Write("io", "io.max", f"{name} {word}={rate}"))
    return writes


def hugetlb_writes(limits: list[Resources]) -> list[Write]:
    writes = []
    for row in limits:
        name = f"hugetlb.{row['pageSize']}"
        writes.append(Write("hugetlb", f"{name}.max", str(row["limit"])))
        writes.append(Write("hugetlb", f"{name}.rsvd.max", str(row["limit"]), optional=True))
    return writes


def rdma_writes(rdma: dict[str, Resources]) -> list[Write]:
    return [
        Write("rdma", "rdma.max", rdma_text(device, row)) for device, row in sorted(rdma.items())
    ]


def unified_writes(unified: dict[str, str]) -> list[Write]:
    """The user's own words; a value of several lines is several writes, since the kernel takes one."""
    writes = []
    for file, text in unified.items():
        if "/" in file:
            raise ValueError(f"unified resource {file!r} must be a file name (no slashes)")
        controller, dot, _ = file.partition(".")
        if not dot or not controller:
            raise ValueError(f"unified resource {file!r} must be in the form CONTROLLER.PARAMETER")
        writes += [Write(controller, file, line) for line in text.splitlines() or [""]]
    return writes


def plan(resources: Resources, held: Held) -> list[Write]:
    """All the rows but the user's own `unified` ones, in the order in which they are written."""
    cpu = resources.get("cpu") or {}
    return [
        *pids_writes(resources.get("pids") or {}),
        *memory_writes(resources.get("memory") or {}, held),
        *io_writes(resources.get("blockIO") or {}, held),
        *cpu_writes(cpu, held),
        *cpuset_writes(cpu),
        *hugetlb_writes(resources.get("hugepageLimits") or []),
        *rdma_writes(resources.get("rdma") or {}),
    ]


def memory_refusal(memory: Resources, usage: int) -> str:
    """Why a limit with checkBeforeUpdate is refused, '' when it is not: at once below what is in use, the
    kernel would kill instead of saying no (v1 says no by itself)."""
    if not memory.get("checkBeforeUpdate"):
        return ""
    limit, total = memory.get("limit") or 0, memory.get("swap") or 0
    if 0 < total <= usage:
        return f"rejecting memory+swap limit {total} <= usage {usage}"
    if 0 < limit <= usage:
        return f"rejecting memory limit {limit} <= usage {usage}"
    return ""
