"""What to say when a host cannot hold a limit: Docker's sentences, which its users and clients know.

`discarded(controller, file)` gives the sentence for one cgroup file that is not there.

Source: Docker Engine API, the Warnings of container create.
"""

from __future__ import annotations

FROZEN_MEANWHILE = "container's cgroup unexpectedly frozen"  # runc's
UNIFIED_ON_V1 = (
    "invalid configuration: cgroup v2 parameters (unified) cannot be used with cgroup v1"
)
_KERNEL = "Your kernel does not support "
_OR_UNMOUNTED = " or the cgroup is not mounted. "

# By file name (v1's or v2's); the longest matching start decides.
_SENTENCES = {
    "memory.limit_in_bytes": f"{_KERNEL}memory limit capabilities{_OR_UNMOUNTED}Limitation discarded.",
    "memory.max": f"{_KERNEL}memory limit capabilities{_OR_UNMOUNTED}Limitation discarded.",
    "memory.memsw": f"{_KERNEL}swap limit capabilities{_OR_UNMOUNTED}Memory limited without swap.",
    "memory.swap.max": f"{_KERNEL}swap limit capabilities{_OR_UNMOUNTED}Memory limited without swap.",
    "memory.swappiness": f"{_KERNEL}memory swappiness capabilities{_OR_UNMOUNTED}Memory swappiness discarded.",
    "memory.soft_limit": f"{_KERNEL}memory soft limit capabilities{_OR_UNMOUNTED}Limitation discarded.",
    "memory.low": f"{_KERNEL}memory soft limit capabilities{_OR_UNMOUNTED}Limitation discarded.",
    "memory.oom_control": f"{_KERNEL}OomKillDisable. OomKillDisable discarded.",
    "memory.kmem.tcp": f"{_KERNEL}kernel TCP memory limit{_OR_UNMOUNTED}Limitation discarded.",
    "memory.kmem": f"{_KERNEL}kernel memory limit capabilities{_OR_UNMOUNTED}Limitation discarded.",
    "pids.max": f"{_KERNEL}PIDs limit capabilities{_OR_UNMOUNTED}PIDs limit discarded.",
    "cpu.shares": f"{_KERNEL}CPU shares{_OR_UNMOUNTED}Shares discarded.",
    "cpu.weight": f"{_KERNEL}CPU shares{_OR_UNMOUNTED}Shares discarded.",
    "cpu.cfs": f"{_KERNEL}CPU CFS scheduler. CPU period/quota discarded.",
    "cpu.max": f"{_KERNEL}CPU CFS scheduler. CPU period/quota discarded.",
    "cpu.rt": f"{_KERNEL}CPU real-time scheduler. CPU real-time period/runtime discarded.",
    "cpuset": f"{_KERNEL}cpuset{_OR_UNMOUNTED}Cpuset discarded.",
    "blkio.weight_device": f"{_KERNEL}Block I/O weight_device{_OR_UNMOUNTED}Weight-device discarded.",
    "blkio.bfq.weight_device": f"{_KERNEL}Block I/O weight_device{_OR_UNMOUNTED}Weight-device discarded.",
    "blkio.weight": f"{_KERNEL}Block I/O weight{_OR_UNMOUNTED}Weight discarded.",
    "blkio.bfq.weight": f"{_KERNEL}Block I/O weight{_OR_UNMOUNTED}Weight discarded.",
    "blkio.leaf_weight": f"{_KERNEL}Block I/O leaf weight{_OR_UNMOUNTED}Leaf weight discarded.",
    "io.weight": f"{_KERNEL}Block I/O weight{_OR_UNMOUNTED}Weight discarded.",
    "io.bfq.weight": f"{_KERNEL}Block I/O weight{_OR_UNMOUNTED}Weight discarded.",
    "blkio.throttle.read_bps": f"{_KERNEL}BPS Block I/O read limit{_OR_UNMOUNTED}Block I/O BPS read limit discarded.",
    "blkio.throttle.write_bps": f"{_KERNEL}BPS Block I/O write limit{_OR_UNMOUNTED}Block I/O BPS write limit discarded.",
    "blkio.throttle.read_iops": f"{_KERNEL}IOPS Block read limit{_OR_UNMOUNTED}Block I/O IOPS read limit discarded.",
    "blkio.throttle.write_iops": f"{_KERNEL}IOPS Block write limit{_OR_UNMOUNTED}Block I/O IOPS write limit discarded.",
    "io.max": f"{_KERNEL}Block I/O limits{_OR_UNMOUNTED}Block I/O limit discarded.",
    "hugetlb": f"{_KERNEL}huge page limits{_OR_UNMOUNTED}Limitation discarded.",
    "devices": f"{_KERNEL}the device cgroup{_OR_UNMOUNTED}Device rules discarded.",
}


def discarded(controller: str, file: str) -> str:
    """The warning for one limit that this host cannot hold."""
    best = max((start for start in _SENTENCES if file.startswith(start)), key=len, default="")
    if best:
        return _SENTENCES[best]
    return f"{_KERNEL}the {controller} cgroup controller{_OR_UNMOUNTED}{file} discarded."
