"""OCI resources as the writes that v1 controllers want: a pure translation, one row per write.

    LinuxResources {'memory': {'limit': 134217728}}  ->  Write('memory', 'memory.limit_in_bytes', '134217728')

`v1.py` performs the rows. The few settings whose order depends on what the cgroup holds now (memory against
memory+swap, period against quota, device lists) are written there, by the functions named after them.

Source: runtime-spec config-linux.md "Control groups"; cgroup-v1/*.rst.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = dict[str, Any]


class Write:
    """One value for one file. `optional`: a kernel without the file makes a warning, not an error."""

    __slots__ = ("controller", "file", "optional", "text")

    def __init__(self, controller: str, file: str, text: str, *, optional: bool = False) -> None:
        self.controller = controller
        self.file = file
        self.text = text
        self.optional = optional

    def describe(self) -> str:
        return f"write {self.text!r} to {self.file}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Write) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        return f"Write({self.file!r}, {self.text!r})"

    def key(self) -> tuple[str, str, str]:
        return (self.controller, self.file, self.text)


def memory_writes(memory: Resources) -> list[Write]:
    """All of `memory` but limit and swap, whose order matters."""
    writes = []
    if (reservation := memory.get("reservation")) is not None and reservation != 0:
        writes.append(Write("memory", "memory.soft_limit_in_bytes", str(reservation)))
    if (tcp := memory.get("kernelTCP")) is not None and tcp != 0:
        writes.append(Write("memory", "memory.kmem.tcp.limit_in_bytes", str(tcp)))
    if memory.get("disableOOMKiller"):
        writes.append(Write("memory", "memory.oom_control", "1"))
    if (swappiness := memory.get("swappiness")) is not None:
        if not 0 <= swappiness <= 100:
            raise ValueError(
                f"invalid memory swappiness value: {swappiness} (valid range is 0-100)"
            )
        writes.append(Write("memory", "memory.swappiness", str(swappiness)))
    return writes


def cpu_writes(cpu: Resources) -> list[Write]:
    """All of `cpu` but periods and what may be used of them, whose order matters."""
    rows = (
        ("shares", "cpu", "cpu.shares"),
        ("burst", "cpu", "cpu.cfs_burst_us"),
        ("idle", "cpu", "cpu.idle"),
    )
    keep_zero = ("burst", "idle")
    return [
        Write(controller, file, str(cpu[key]))
        for key, controller, file in rows
        if cpu.get(key) is not None and (cpu[key] != 0 or key in keep_zero)
    ]


def cpuset_writes(cpu: Resources) -> list[Write]:
    rows = (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))
    return [Write("cpuset", file, cpu[key]) for key, file in rows if cpu.get(key)]


def pids_writes(pids: Resources) -> list[Write]:
    """Zero is a limit too (config-linux.md "PIDs"), and means what one does: process 1 and nothing beside it.
    systemd knows no TasksMax=0, and on v2 nobody could be born into such a cgroup."""
    limit = pids.get("limit")
    if limit is None:
        return []
    return [Write("pids", "pids.max", str(max(limit, 1)) if limit >= 0 else "max")]


THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)


def blkio_writes(block: Resources, weight_prefix: str) -> list[Write]:
    """`weight_prefix` is 'blkio.' or, under the BFQ scheduler, 'blkio.bfq.' (the caller looks)."""
    writes = []
    if block.get("weight"):
        writes.append(Write("blkio", f"{weight_prefix}weight", str(block["weight"])))
    if block.get("leafWeight"):
        writes.append(Write("blkio", "blkio.leaf_weight", str(block["leafWeight"])))
    for device in block.get("weightDevice") or ():
        name = f"{device['major']}:{device['minor']}"
        if device.get("weight"):
            writes.append(
                Write("blkio", f"{weight_prefix}weight_device", f"{name} {device['weight']}")
            )
        if device.get("leafWeight"):
            writes.append(
                Write("blkio", "blkio.leaf_weight_device", f"{name} {device['leafWeight']}")
            )
    for key, file in THROTTLES:
        writes += [
            Write("blkio", file, f"{device['major']}:{device['minor']} {device['rate']}")
            for device in block.get(key) or ()
        ]
    return writes


def hugetlb_writes(limits: list[Resources]) -> list[Write]:
    """Usage limits, and reservation limits where the kernel has them (5.7)."""
    writes = []
    for row in limits:
        name = f"hugetlb.{row['pageSize']}"
        writes.append(Write("hugetlb", f"{name}.limit_in_bytes", str(row["limit"])))
        writes.append(
            Write("hugetlb", f"{name}.rsvd.limit_in_bytes", str(row["limit"]), optional=True)
        )
    return writes


def network_writes(network: Resources) -> list[Write]:
    writes = [
        Write("net_prio", "net_prio.ifpriomap", f"{row['name']} {row['priority']}")
        for row in network.get("priorities") or ()
    ]
    if network.get("classID"):
        writes.append(Write("net_cls", "net_cls.classid", str(network["classID"])))
    return writes


def rdma_writes(rdma: dict[str, Resources]) -> list[Write]:
    return [
        Write("rdma", "rdma.max", rdma_text(device, limits))
        for device, limits in sorted(rdma.items())
    ]


def rdma_text(device: str, limits: Resources) -> str:
    """A limit that is not given is unlimited (cgroup-v1/rdma.rst)."""
    handles, objects = limits.get("hcaHandles"), limits.get("hcaObjects")
    shown = ("max" if value is None else str(value) for value in (handles, objects))
    return "{} hca_handle={} hca_object={}".format(device, *shown)


def plan(resources: Resources, weight_prefix: str = "blkio.") -> list[Write]:
    """All the rows, in the order in which they are written."""
    return [
        *memory_writes(resources.get("memory") or {}),
        *cpu_writes(resources.get("cpu") or {}),
        *cpuset_writes(resources.get("cpu") or {}),
        *pids_writes(resources.get("pids") or {}),
        *blkio_writes(resources.get("blockIO") or {}, weight_prefix),
        *hugetlb_writes(resources.get("hugepageLimits") or []),
        *network_writes(resources.get("network") or {}),
        *rdma_writes(resources.get("rdma") or {}),
    ]
