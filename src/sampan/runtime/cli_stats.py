"""The statistics document of `events`: runc's field names over cgroups' Stats.

Source: runc types/events.go (field names that containerd, cadvisor and others read).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .container import Container

_BLKIO = {
    "io_service_bytes_recursive": "ioServiceBytesRecursive",
    "io_serviced_recursive": "ioServicedRecursive",
    "io_queue_recursive": "ioQueueRecursive",
    "io_service_time_recursive": "ioServiceTimeRecursive",
    "io_wait_time_recursive": "ioWaitTimeRecursive",
    "io_merged_recursive": "ioMergedRecursive",
    "io_time_recursive": "ioTimeRecursive",
    "sectors_recursive": "sectorsRecursive",
}


def document(container: Container) -> dict[str, Any]:
    """`data` of a stats event."""
    stats = container.cgroup().stats()
    usage: dict[str, Any] = {
        "total": stats.cpu_total,
        "kernel": stats.cpu_kernel,
        "user": stats.cpu_user,
    }
    percpu = {
        "percpu": stats.cpu_percpu,
        "percpu_kernel": stats.cpu_percpu_kernel,
        "percpu_user": stats.cpu_percpu_user,
    }
    usage.update((name, values) for name, values in percpu.items() if values)
    return {
        "cpu": {
            "usage": usage,
            "throttling": {
                "periods": stats.periods,
                "throttledPeriods": stats.throttled,
                "throttledTime": stats.throttled_time,
            },
        },
        "cpuset": stats.cpuset,
        "memory": {
            "cache": stats.cache,
            "usage": stats.memory.as_dict(),
            "swap": stats.memory_swap.as_dict(),
            "raw": stats.memory_stat,
        },
        "pids": {
            "current": stats.pids,
            "limit": 0 if stats.pids_limit >= 1 << 62 else stats.pids_limit,
        },
        "blkio": {
            _BLKIO.get(name, name): [entry.as_dict() for entry in entries]
            for name, entries in stats.blkio.items()
            if entries
        },
        "hugetlb": {size: use.as_dict() for size, use in stats.hugetlb.items()},
        "intel_rdt": {},
        "network_interfaces": None,
    }
