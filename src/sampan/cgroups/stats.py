"""What a container uses, as one value, and the parsers of the cgroup files that it comes from.

`Stats` has the same fields whichever hierarchy they were read from; what a kernel does not count is zero or
an empty table, never a guess. Times are nanoseconds, sizes bytes. `memory_stat` keeps the kernel's own names
(they differ between v1 and v2, and Docker's API shows them as they are).

Source: cgroup-v1/{memory,cpuacct,blkio-controller,hugetlb}.rst, cgroup-v2.rst, accounting/psi.rst.
"""

from __future__ import annotations

UNLIMITED_V1 = 0x7FFFFFFFFFFFF000  # PAGE_COUNTER_MAX: what v1 shows for no limit at all
UNLIMITED = 0xFFFFFFFFFFFFFFFF  # what Stats says for no limit, as runc's and Docker's JSON do
PAGE = 4096


class MemoryUse:
    """One of the three counters of memory, memory+swap, kernel memory."""

    __slots__ = ("failcnt", "limit", "max_usage", "usage")

    def __init__(
        self, usage: int = 0, max_usage: int = 0, failcnt: int = 0, limit: int = 0
    ) -> None:
        self.usage = usage
        self.max_usage = max_usage
        self.failcnt = failcnt
        self.limit = limit

    def as_dict(self) -> dict[str, int]:
        found = {
            "limit": self.limit,
            "usage": self.usage,
            "max": self.max_usage,
            "failcnt": self.failcnt,
        }
        return {
            name: value for name, value in found.items() if value or name in ("limit", "failcnt")
        }


class IoEntry:
    """One line of a blkio or io table: so much of `op` on the device major:minor."""

    __slots__ = ("major", "minor", "op", "value")

    def __init__(self, major: int, minor: int, op: str, value: int) -> None:
        self.major = major
        self.minor = minor
        self.op = op
        self.value = value

    def as_dict(self) -> dict[str, int | str]:
        return {"major": self.major, "minor": self.minor, "op": self.op, "value": self.value}


class Pressure:
    """Stall figures of one resource: averages in percent over 10, 60 and 300 s, and the total in us."""

    __slots__ = ("full", "some")

    def __init__(self, some: dict[str, float], full: dict[str, float]) -> None:
        self.some = some
        self.full = full


class Stats:
    """The figures of one cgroup at one moment. `version` is 1 or 2: whose names `memory_stat` has."""

    __slots__ = (
        "blkio",
        "cpu_kernel",
        "cpu_percpu",
        "cpu_percpu_kernel",
        "cpu_percpu_user",
        "cpu_total",
        "cpu_user",
        "cpuset",
        "hugetlb",
        "memory",
        "memory_events",
        "memory_stat",
        "memory_swap",
        "periods",
        "pids",
        "pids_limit",
        "pressure",
        "rdma",
        "throttled",
        "throttled_time",
        "version",
    )

    def __init__(self, version: int) -> None:
        self.version = version
        self.cpu_total = 0
        self.cpu_user = 0
        self.cpu_kernel = 0
        self.cpu_percpu: list[int] = []
        self.cpu_percpu_kernel: list[int] = []
        self.cpu_percpu_user: list[int] = []
        self.periods = 0
        self.throttled = 0
        self.throttled_time = 0
        self.memory = MemoryUse()
        self.memory_swap = MemoryUse()
        self.memory_stat: dict[str, int] = {}
        self.memory_events: dict[str, int] = {}
        self.pids = 0
        self.pids_limit = 0
        self.blkio: dict[str, list[IoEntry]] = {}
        self.hugetlb: dict[str, MemoryUse] = {}
        self.rdma: dict[str, dict[str, dict[str, int]]] = {}
        self.cpuset: dict[str, str] = {}
        self.pressure: dict[str, Pressure] = {}

    @property
    def cache(self) -> int:
        """Page cache charged to the container, as runc's events call it."""
        return self.memory_stat.get("cache" if self.version == 1 else "file", 0)

    @property
    def inactive_file(self) -> int:
        """What `docker stats` takes off the usage: file pages the kernel gives back at the first need."""
        return self.memory_stat.get("total_inactive_file", self.memory_stat.get("inactive_file", 0))


def parse_int(text: str) -> int:
    """A single-number file; 'max' is UNLIMITED; an absent or odd one is zero."""
    text = text.strip()
    if text == "max":
        return UNLIMITED
    if not text.isascii() or not text.lstrip("-").isdigit():
        return 0
    value = int(text)
    return UNLIMITED if value < 0 or value >= UNLIMITED_V1 else value


def parse_flat(text: str) -> dict[str, int]:
    """'name value' lines (memory.stat, cpu.stat, memory.events)."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isascii() and value.isdigit():
            found[name] = int(value)
    return found


def parse_numbers(text: str) -> list[int]:
    """Blank-separated numbers (cpuacct.usage_percpu)."""
    return [int(word) for word in text.split() if word.isascii() and word.isdigit()]


def parse_percpu_split(text: str) -> tuple[list[int], list[int]]:
    """cpuacct.usage_all: a heading, then 'cpu user system' lines. Gives (user, system)."""
    user: list[int] = []
    system: list[int] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) >= 3:
            user.append(int(words[1]))
            system.append(int(words[2]))
    return user, system


def parse_blkio_v1(text: str) -> list[IoEntry]:
    """'major:minor [Op] value' lines; the 'Total value' line at the end is left out."""
    entries = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or ":" not in words[0]:
            continue
        major, _, minor = words[0].partition(":")
        op = words[1] if len(words) > 2 else ""
        if major.isdigit() and minor.isdigit() and words[-1].isdigit():
            entries.append(IoEntry(int(major), int(minor), op, int(words[-1])))
    return entries


# io.stat's keys and the v1 tables that Docker's API shows them in.
IO_STAT_TABLES = {
    "rbytes": ("io_service_bytes_recursive", "read"),
    "wbytes": ("io_service_bytes_recursive", "write"),
    "dbytes": ("io_service_bytes_recursive", "discard"),
    "rios": ("io_serviced_recursive", "read"),
    "wios": ("io_serviced_recursive", "write"),
    "dios": ("io_serviced_recursive", "discard"),
}


def parse_io_stat(text: str) -> dict[str, list[IoEntry]]:
    """v2's io.stat ('8:0 rbytes=1 wbytes=2 ...') as v1's tables."""
    tables: dict[str, list[IoEntry]] = {}
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        major, _, minor = device.partition(":")
        if not (major.isdigit() and minor.isdigit()):
            continue
        for pair in rest.split():
            key, _, value = pair.partition("=")
            if key in IO_STAT_TABLES and value.isdigit():
                table, op = IO_STAT_TABLES[key]
                tables.setdefault(table, []).append(IoEntry(int(major), int(minor), op, int(value)))
    return tables


def parse_rdma(text: str) -> dict[str, dict[str, int]]:
    """'device hca_handle=2 hca_object=max' lines; 'max' is UNLIMITED."""
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        pairs = (pair.partition("=") for pair in rest.split())
        found[device] = {key: parse_int(value) for key, _, value in pairs}
    return found


def parse_pressure(text: str) -> Pressure | None:
    """PSI: 'some avg10=0.00 avg60=0.00 avg300=0.00 total=0' and the same for 'full'."""
    rows: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        row: dict[str, float] = {}
        for pair in rest.split():
            key, _, value = pair.partition("=")
            try:
                row[key] = float(value)
            except ValueError:
                continue
        rows[kind] = row
    if "some" not in rows:
        return None
    return Pressure(rows["some"], rows.get("full", {}))
