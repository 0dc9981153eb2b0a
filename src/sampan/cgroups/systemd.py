"""The systemd driver: systemd makes the container's cgroup as a transient scope, we set what it cannot.

    linux.cgroupsPath "machine.slice:libpod:<id>"
        -> unit        libpod-<id>.scope   in   machine.slice
        -> directory   /machine.slice/libpod-<id>.scope

A scope is made around a living process, so the child is cloned first and held (`needs_pid`). Limits are
given to systemd too, as properties, because it writes its own idea of them again at each daemon-reload; what
it has no property for (devices, hugetlb, rdma, the exact quota) goes straight to the files, through the
manager that drives the same directory without systemd.

Annotations `org.systemd.property.NAME` become properties of the unit as they stand; NAMESec is systemd's name
for a time that the bus wants as NAMEUSec.

Source: org.freedesktop.systemd1(5), systemd.resource-control(5), systemd.slice(5); runtime-spec config-linux.md.
"""

from __future__ import annotations

import os
from errno import EEXIST, EIO

from sampan.linux.dbus import Bus, BusError

from . import v2_plan
from .files import read_or
from .host import MODE_V2, CgroupHost
from .variant import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .manager import Manager
    from .stats import Stats
    from .watch import OomWatch

    Resources = dict[str, Any]
    Property = tuple[str, tuple[str, Any]]  # name, (signature, value)

SYSTEMD = "org.freedesktop.systemd1"
OBJECT = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
PRIVATE_SOCKET = "/run/systemd/private"
SYSTEM_BUS = "/run/dbus/system_bus_socket"
INFINITY = 0xFFFFFFFFFFFFFFFF
DEFAULT_PERIOD = 100_000
QUOTA_STEP = 10_000  # systemd keeps whole percents
ANNOTATION = "org.systemd.property."
PREFIX = "sampan"


class Unit:
    """A container's unit: its name, the slice it lies in, and the cgroup path that follows from both."""

    __slots__ = ("name", "path", "slice")

    def __init__(self, name: str, slice_name: str) -> None:
        self.name = name
        self.slice = slice_name
        self.path = expand_slice(slice_name).rstrip("/") + "/" + name


def parse_unit(cgroups_path: str, *, rootless: bool = False) -> Unit:
    """'slice:prefix:name', each but the name may be empty; a bare name is a scope in the default slice."""
    parts = cgroups_path.split(":")
    if len(parts) == 1 and cgroups_path and "/" not in cgroups_path:
        parts = ["", PREFIX, cgroups_path]
    if len(parts) != 3 or not parts[2] or "/" in cgroups_path:
        raise ValueError(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got {cgroups_path!r} instead'
        )
    slice_name = parts[0] or ("user.slice" if rootless else "system.slice")
    if parts[2].endswith(".slice"):
        return Unit(parts[2], slice_name)
    return Unit(f"{parts[1]}-{parts[2]}.scope" if parts[1] else f"{parts[2]}.scope", slice_name)


def expand_slice(name: str) -> str:
    """'a-b.slice' lies in 'a.slice': /a.slice/a-b.slice. '-.slice' is the root."""
    stem = name.removesuffix(".slice")
    if not name.endswith(".slice") or not stem or "/" in name:
        raise ValueError(f"invalid slice name: {name}")
    if stem == "-":
        return "/"
    components = stem.split("-")
    if "" in components:
        raise ValueError(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(components[: end + 1])}.slice" for end in range(len(components)))


class SystemdManager:
    """A container's cgroup through systemd. Everything but making, changing and removing it is `inner`'s."""

    needs_pid = True

    def __init__(
        self,
        host: CgroupHost,
        cgroups_path: str,
        *,
        rootless: bool = False,
        annotations: Mapping[str, str] | None = None,
        bus_path: str = "",
    ) -> None:
        from .manager import direct_manager

        self.host = host
        self.unit = parse_unit(cgroups_path, rootless=rootless)
        self.rootless = rootless
        self.extra = annotation_properties(annotations or {})
        self.bus_path = bus_path
        self.path = user_manager_path(host, self.unit, rootless)
        self.inner: Manager = direct_manager(host, self.path, rootless=rootless)

    # ------------------------------------------------------------------ with systemd

    def create(self, resources: Resources, *, pid: int = 0, strict: bool = False) -> list[str]:
        """Start the scope around `pid`, then set the limits in its directory. Returns warnings."""
        if pid <= 0:
            raise ValueError("a systemd scope is made around a process: create() needs its pid")
        bus = self._connect()
        try:
            start_unit(
                bus, self.unit, [*self._unit_properties(pid), *self._limits(resources), *self.extra]
            )
            try:
                return self.inner.create(resources, pid=pid, strict=strict)
            except BaseException:
                stop_unit(bus, self.unit.name)
                raise
        finally:
            bus.close()

    def apply(self, resources: Resources, *, strict: bool = False) -> list[str]:
        properties = self._limits(resources)
        if properties:
            bus = self._connect()
            try:
                signature = "sba(sv)"
                bus.call(
                    SYSTEMD,
                    OBJECT,
                    MANAGER,
                    "SetUnitProperties",
                    signature,
                    [self.unit.name, True, properties],
                )
            except BusError as error:
                raise OSError(
                    EIO, f"unable to set unit properties: {error}", self.unit.name
                ) from None
            finally:
                bus.close()
        return self.inner.apply(resources, strict=strict)

    def destroy(self) -> None:
        """Stop the unit, and remove what systemd did not make. Gone already is success."""
        bus = self._connect()
        try:
            stop_unit(bus, self.unit.name)
        finally:
            bus.close()
        self.inner.destroy()

    def _connect(self) -> Bus:
        """To systemd itself where possible: its private socket needs no bus daemon, and may be had earlier."""
        uid = outer_uid()
        if self.bus_path:
            return Bus.connect(self.bus_path, hello=False, uid=uid)
        private, bus = PRIVATE_SOCKET, SYSTEM_BUS
        if self.rootless:
            runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
            private, bus = f"{runtime}/systemd/private", f"{runtime}/bus"
        try:
            return Bus.connect(private, hello=False, uid=uid)
        except OSError:
            return Bus.connect(bus, uid=uid)

    def _unit_properties(self, pid: int) -> list[Property]:
        properties: list[Property] = [
            ("Description", ("s", f"sampan container {self.unit.name}")),
            ("DefaultDependencies", ("b", False)),
            ("MemoryAccounting", ("b", True)),
            ("CPUAccounting", ("b", True)),
            ("TasksAccounting", ("b", True)),
            ("IOAccounting" if self.host.mode == MODE_V2 else "BlockIOAccounting", ("b", True)),
        ]
        if self.unit.name.endswith(".slice"):
            properties.append(("Wants", ("as", [self.unit.slice])))
        else:
            properties += [
                ("Slice", ("s", self.unit.slice)),
                ("Delegate", ("b", True)),
                ("PIDs", ("au", [pid])),
            ]
        return properties

    def _limits(self, resources: Resources) -> list[Property]:
        return v2_properties(resources) if self.host.mode == MODE_V2 else v1_properties(resources)

    # ------------------------------------------------------------------ without

    def clone_fd(self) -> int:
        return self.inner.clone_fd()

    def attach_self(self, *, born_inside: bool = False) -> None:
        self.inner.attach_self(born_inside=born_inside)

    def attach(self, pid: int) -> None:
        self.inner.attach(pid)

    def freeze(self) -> None:
        self.inner.freeze()

    def thaw(self) -> None:
        self.inner.thaw()

    def frozen(self) -> bool:
        return self.inner.frozen()

    def pids(self, *, recursive: bool = True) -> list[int]:
        return self.inner.pids(recursive=recursive)

    def kill_all(self, signal: int = 9) -> None:
        self.inner.kill_all(signal)

    def stats(self) -> Stats:
        return self.inner.stats()

    def oom_watch(self) -> OomWatch:
        return self.inner.oom_watch()

    def oom_kills(self) -> int:
        return self.inner.oom_kills()

    def exists(self) -> bool:
        return self.inner.exists()

    def paths(self) -> dict[str, str]:
        return self.inner.paths()


def user_manager_path(host: CgroupHost, unit: Unit, rootless: bool) -> str:
    """A user's systemd lives in user@UID.service, and its slices below that. Ours may be that service's, or a
    login session's beside it."""
    if not rootless:
        return unit.path
    own = host.own.get("", "/").split("/")
    for depth, name in enumerate(own):
        if name.startswith("user@") and name.endswith(".service"):
            return "/".join(own[: depth + 1]) + unit.path
        if name.startswith("user-") and name.endswith(".slice"):
            uid = name.removeprefix("user-").removesuffix(".slice")
            return "/".join(own[: depth + 1]) + f"/user@{uid}.service" + unit.path
    return unit.path


def outer_uid(uid_map: str | None = None, uid: int | None = None) -> int:
    """Our uid as the world outside our user namespace numbers it, which is what a bus compares."""
    uid = os.geteuid() if uid is None else uid
    for line in (read_or("/proc/self/uid_map") if uid_map is None else uid_map).splitlines():
        words = line.split()
        if len(words) == 3 and all(word.isascii() and word.isdigit() for word in words):
            inside, outside, count = (int(word) for word in words)
            if inside <= uid < inside + count:
                return outside + uid - inside
    return uid


def start_unit(bus: Bus, unit: Unit, properties: list[Property]) -> None:
    """Start and wait for the job; a failed unit of the same name, left by a crash, is cleared once."""
    call_quietly(bus, "Subscribe")
    for attempt in (1, 2):
        try:
            reply = bus.call(
                SYSTEMD,
                OBJECT,
                MANAGER,
                "StartTransientUnit",
                "ssa(sv)a(sa(sv))",
                [unit.name, "replace", properties, []],
            )
            break
        except BusError as error:
            exists = error.name.endswith(".UnitExists")
            if not exists or attempt == 2:
                number = EEXIST if exists else EIO
                raise OSError(number, f"unable to start unit: {error}", unit.name) from None
            call_quietly(bus, "ResetFailedUnit", "s", [unit.name])
    result = wait_for_job(bus, reply[0])
    if result != "done":
        call_quietly(bus, "ResetFailedUnit", "s", [unit.name])
        raise OSError(EIO, f"error creating systemd unit: got {result!r}", unit.name)


def stop_unit(bus: Bus, name: str) -> None:
    call_quietly(bus, "Subscribe")
    try:
        reply = bus.call(SYSTEMD, OBJECT, MANAGER, "StopUnit", "ss", [name, "replace"])
    except BusError as error:
        if not error.name.endswith(".NoSuchUnit"):
            raise OSError(EIO, f"unable to stop unit: {error}", name) from None
        return
    wait_for_job(bus, reply[0])
    call_quietly(bus, "ResetFailedUnit", "s", [name])


def wait_for_job(bus: Bus, job: str) -> str:
    """The result of a job: 'done', 'failed', 'timeout', ..."""
    message = bus.wait_signal("JobRemoved", lambda body: len(body) == 4 and body[1] == job)
    return str(message.body[3])


def call_quietly(bus: Bus, member: str, signature: str = "", values: Any = ()) -> None:
    """A call whose refusal says only that there was nothing to do."""
    try:
        bus.call(SYSTEMD, OBJECT, MANAGER, member, signature, values)
    except BusError:
        return


# -------------------------------------------------------------------------------- properties


def v2_properties(resources: Resources) -> list[Property]:
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: dict[str, tuple[str, Any]] = {}
    limit, total = memory.get("limit") or 0, memory.get("swap") or 0
    if limit:
        found["MemoryMax"] = ("t", unsigned(limit))
    if reservation := memory.get("reservation"):
        found["MemoryLow"] = ("t", unsigned(reservation))
    # Without the limit the sum says nothing yet; the file is written from what the cgroup holds.
    if (total and (limit or total == -1)) or limit == -1:
        found["MemorySwapMax"] = ("t", unsigned(v2_plan.swap_alone(limit, total)))
    if cpu.get("idle") == 1:
        found["CPUWeight"] = ("t", 0)
    elif shares := cpu.get("shares"):
        found["CPUWeight"] = ("t", v2_plan.weight_of_shares(shares))
    found.update(quota_properties(cpu.get("quota") or 0, cpu.get("period") or 0))
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if cpu.get(key):
            found[name] = ("ay", bits_of_ranges(cpu[key]))
    if weight := (resources.get("blockIO") or {}).get("weight"):
        found["IOWeight"] = ("t", v2_plan.weight_of_blkio(weight))
    found.update(pids_properties(resources))
    found.update(unified_properties(resources.get("unified") or {}))
    return list(found.items())


def v1_properties(resources: Resources) -> list[Property]:
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: dict[str, tuple[str, Any]] = {}
    if limit := memory.get("limit"):
        found["MemoryLimit"] = ("t", unsigned(limit))
    if shares := cpu.get("shares"):
        found["CPUShares"] = ("t", shares)
    found.update(quota_properties(cpu.get("quota") or 0, cpu.get("period") or 0))
    if weight := (resources.get("blockIO") or {}).get("weight"):
        found["BlockIOWeight"] = ("t", weight)
    found.update(pids_properties(resources))
    return list(found.items())


def quota_properties(quota: int, period: int) -> dict[str, tuple[str, Any]]:
    """systemd wants microseconds of CPU per second, in whole percents: rounded up, never below the wish."""
    found: dict[str, tuple[str, Any]] = {}
    if period:
        found["CPUQuotaPeriodUSec"] = ("t", period)
    if quota > 0:
        per_second = quota * 1_000_000 // (period or DEFAULT_PERIOD)
        found["CPUQuotaPerSecUSec"] = ("t", -(-per_second // QUOTA_STEP) * QUOTA_STEP)
    elif quota or period:
        found["CPUQuotaPerSecUSec"] = ("t", INFINITY)
    return found


def pids_properties(resources: Resources) -> dict[str, tuple[str, Any]]:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return {}
    return {"TasksMax": ("t", unsigned(limit or 1))}  # see v1_plan.pids_writes


UNIFIED_NUMBERS = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}


def unified_properties(unified: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """The keys that systemd has a property for; the rest only go to the files."""
    found: dict[str, tuple[str, Any]] = {}
    for file, text in unified.items():
        value = text.strip()
        if file in UNIFIED_NUMBERS and (value == "max" or (value.isascii() and value.isdigit())):
            found[UNIFIED_NUMBERS[file]] = ("t", INFINITY if value == "max" else int(value))
        elif file == "cpu.max":
            quota, _, period = value.partition(" ")
            if (quota == "max" or quota.isdigit()) and (not period or period.isdigit()):
                number = -1 if quota == "max" else int(quota)
                found.update(quota_properties(number, int(period or DEFAULT_PERIOD)))
        elif file in ("cpuset.cpus", "cpuset.mems") and value:
            name = "AllowedCPUs" if file == "cpuset.cpus" else "AllowedMemoryNodes"
            found[name] = ("ay", bits_of_ranges(value))
    return found


def unsigned(value: int) -> int:
    return INFINITY if value < 0 else value


def bits_of_ranges(text: str) -> list[int]:
    """'0-2,5' as bytes with bits 0, 1, 2 and 5 set, lowest byte first."""
    mask = 0
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        last = last or first
        if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
            raise ValueError(f"invalid range: {text!r}")
        low, high = int(first), int(last)
        if high < low or high > 8191:
            raise ValueError(f"invalid range: {text!r}")
        mask |= ((1 << (high - low + 1)) - 1) << low
    return list(mask.to_bytes((mask.bit_length() + 7) // 8, "little"))


def annotation_properties(annotations: Mapping[str, str]) -> list[Property]:
    """Properties out of org.systemd.property.* annotations. ValueError names the one that is wrong."""
    properties: list[Property] = []
    for key, text in sorted(annotations.items()):
        if not key.startswith(ANNOTATION):
            continue
        name = key.removeprefix(ANNOTATION)
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise ValueError(f"annotation {key}: {name!r} is not a systemd property name")
        try:
            signature, value = parse(text)
        except ValueError as error:
            raise ValueError(f"annotation {key}: {error}") from None
        if name.endswith("Sec") and not name.endswith("USec"):
            name, signature, value = in_microseconds(key, name, value)
        properties.append((name, (signature, value)))
    return properties


def in_microseconds(key: str, name: str, value: Any) -> tuple[str, str, int]:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"annotation {key}: {value!r} is not a time in seconds")
    return name.removesuffix("Sec") + "USec", "t", int(value * 1_000_000)
