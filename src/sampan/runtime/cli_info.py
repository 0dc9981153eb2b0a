"""list, ps, events, update, spec, features, mounts of sampan-oci, and the two it does not have."""

from __future__ import annotations

import posix
import sys

from sampan.errors import InvalidArgument, NotFound, Unsupported
from sampan.linux.fastjson import dumps, indented, loads
from sampan.linux.fds import read_all
from sampan.linux.paths import exists, read_file
from sampan.linux.process import spawn, wait

from . import container as verbs
from .cli_flags import integer
from .state import require
from .validate import RESOURCES, check_resources, check_types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .cli import Context
    from .cli_flags import Parsed
    from .container import Container

COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


# --------------------------------------------------------------------------------------------- list


def list_containers(context: Context, parsed: Parsed) -> int:
    shape = parsed.text("format", "table")
    if shape not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    if context.root_given and not exists(context.root):
        raise NotFound(f"{context.root}: no such file or directory")
    store = context.store()
    rows = []
    for container_id in store.ids():
        if parsed.flag("quiet"):
            print(container_id)
            continue
        try:
            container = store.load(container_id)
            rows.append(
                {
                    **container.state.document(container.status()),
                    "owner": _owner(container.directory),
                }
            )
        except (NotFound, OSError):
            continue  # deleted meanwhile
    if parsed.flag("quiet"):
        return 0
    if shape == "json":
        print(dumps(rows) if rows else "null")
        return 0
    table = [COLUMNS] + [
        tuple(str(row[name]) for name in ("id", "pid", "status", "bundle", "created", "owner"))
        for row in rows
    ]
    sys.stdout.write(layout(table))
    return 0


def layout(table: list[tuple[str, ...]]) -> str:
    """Columns as Go's tabwriter sets them: at least 12 wide, 3 blanks between."""
    widths = [max(max(len(cell) for cell in column) + 3, 12) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("".join(cells) + row[-1] + "\n")
    return "".join(lines)


def _owner(directory: str) -> str:
    uid = posix.stat(directory).st_uid
    try:
        text = read_file("/etc/passwd").decode("utf-8", "replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(uid):
            return fields[0]
    return f"#{uid}"


# ----------------------------------------------------------------------------------------------- ps


def ps(context: Context, parsed: Parsed) -> int:
    shape = parsed.text("format", "table")
    if shape not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    container = context.store().load(parsed.operands[0])
    pids = verbs.processes(container)
    if shape == "json":
        print(dumps(pids))
        return 0
    sys.stdout.write(_filtered(_run_ps(parsed.operands[1:] or ["-ef"]), set(pids)))
    return 0


def _run_ps(arguments: list[str]) -> list[str]:
    """The host's ps, as runc runs it; it knows users and formats."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    path = next((p for p in ("/usr/bin/ps", "/bin/ps") if exists(p)), None)
    if path is None:
        raise NotFound("ps: executable file not found in $PATH")
    pid = spawn(path, ["ps", *arguments], environ, stdout=writer, stderr=2)
    posix.close(writer)
    text = read_all(reader).decode("utf-8", "replace")
    posix.close(reader)
    if wait(pid):
        raise InvalidArgument(f"ps {' '.join(arguments)} failed")
    return text.splitlines()


def _filtered(lines: list[str], pids: set[int]) -> str:
    if not lines:
        return ""
    heading = lines[0].split()
    if "PID" not in heading:
        raise InvalidArgument("couldn't find PID field in ps output")
    column = heading.index("PID")
    kept = [lines[0]]
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            kept.append(line)
    return "\n".join(kept) + "\n"


# ------------------------------------------------------------------------------------------- events


def events(context: Context, parsed: Parsed) -> int:
    """One line of JSON a moment: statistics, and `oom` when it happens."""
    container = context.store().load(parsed.operands[0])
    require("events", container.status())
    from .cli_stats import document

    interval = _seconds(parsed.text("interval", "5s"))
    if interval <= 0:
        raise InvalidArgument("duration interval must be greater than 0")
    if parsed.flag("stats"):
        _emit(container, "stats", document(container))
        return 0
    seen = container.cgroup().oom_kills()
    while container.status() not in ("stopped", "creating"):
        killed = container.cgroup().oom_kills()
        if killed > seen:
            _emit(container, "oom", None)
            seen = killed
        _emit(container, "stats", document(container))
        _sleep_while_it_lives(container, interval)
    return 0


def _sleep_while_it_lives(container: Container, seconds: float) -> None:
    import select

    from sampan.linux.process import open_pidfd

    try:
        fd = open_pidfd(container.state.pid, container.state.start_time)
    except ProcessLookupError:
        return
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll(int(seconds * 1000))
    posix.close(fd)


def _emit(container: Container, kind: str, data: dict[str, Any] | None) -> None:
    event: dict[str, Any] = {"type": kind, "id": container.state.id}
    if data is not None:
        event["data"] = data
    sys.stdout.write(dumps(event) + "\n")
    sys.stdout.flush()


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(text: str) -> float:
    """Go's durations as far as anybody types them here: 500ms, 5s, 1m30s."""
    total, rest = 0.0, text
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        letters = len(rest[digits:]) - len(rest[digits:].lstrip("hms"))
        unit = rest[digits : digits + letters]
        if not digits or unit not in _UNITS or rest[:digits].count(".") > 1 or len(rest) > 30:
            raise InvalidArgument(f'invalid value "{text}" for --interval: not a duration')
        total += float(rest[:digits]) * _UNITS[unit]
        rest = rest[digits + letters :]
    return total


# ------------------------------------------------------------------------------------------- update

# flag -> (section, field of LinuxResources)
_LIMITS = {
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
}


def update(context: Context, parsed: Parsed) -> int:
    container = context.store().load(parsed.operands[0])
    source = parsed.text("resources")
    resources = _read_resources(source) if source else _resources_from_flags(parsed)
    if parsed.text("l3-cache-schema") or parsed.text("mem-bw-schema"):
        raise Unsupported("Intel RDT is not enabled")
    for warning in verbs.update(container, resources):
        context.log.warning(warning)
    return 0


def _read_resources(source: str) -> Any:
    data = read_all(0) if source == "-" else read_file(source)
    try:
        resources = loads(data)
    except ValueError as error:
        raise InvalidArgument(f"--resources: {error}") from None
    check_types(resources, RESOURCES, "resources")
    check_resources(resources or {}, "resources")
    return resources or {}


def _resources_from_flags(parsed: Parsed) -> Any:
    resources: dict[str, dict[str, Any]] = {}
    for flag, (section, field) in _LIMITS.items():
        if flag in parsed.values:
            size = section == "memory"
            text = parsed.text(flag)
            value = parse_size(text, "--" + flag) if size else integer(text, "--" + flag)
            resources.setdefault(section, {})[field] = value
    for flag, field in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        if parsed.text(flag):
            resources.setdefault("cpu", {})[field] = parsed.text(flag)
    if "pids-limit" in parsed.values:
        resources["pids"] = {"limit": parsed.number("pids-limit")}
    if "blkio-weight" in parsed.values:
        resources["blockIO"] = {"weight": parsed.number("blkio-weight")}
    check_types(resources, RESOURCES, "resources")
    return resources


def parse_size(text: str, what: str) -> int:
    """Bytes with docker's suffixes: 64m, 1g, 1024, -1."""
    if text == "-1":
        return -1
    letters = text.lower().removesuffix("ib").removesuffix("b")
    shift = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}.get(letters[-1:], 0)
    return integer(letters[:-1] if shift else letters, what) << shift


# -------------------------------------------------------------------------------------- spec, features


def spec(context: Context, parsed: Parsed) -> int:
    from .example import example_spec

    directory = parsed.text("bundle") or "."
    path = f"{directory}/config.json"
    # Under v1 the container's cgroups are mounted one by one, and its processes are looked for by their paths.
    unified = exists("/sys/fs/cgroup/cgroup.controllers")
    document = example_spec(rootless=parsed.flag("rootless"), cgroup_namespace=unified)
    text = indented(document, "\t") + "\n"
    try:
        fd = posix.open(
            path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o666
        )
    except FileExistsError:
        raise InvalidArgument("file config.json exists. Remove it first") from None
    posix.write(fd, text.encode())
    posix.close(fd)
    return 0


def features(context: Context, parsed: Parsed) -> int:
    from .features import document

    sys.stdout.write(indented(document()) + "\n")
    return 0


# ------------------------------------------------------------------------------------------- mounts


def mounts(context: Context, parsed: Parsed) -> int:
    """crun's extension: change the mounts of a container that runs."""
    what, container_id, source = parsed.operands
    if what not in ("add", "remove"):
        raise InvalidArgument(f"mounts: expected add or remove, got {what!r}")
    container = context.store().load(container_id)
    require("update", container.status())
    try:
        entries = loads(read_file(source))
    except ValueError as error:
        raise InvalidArgument(f"{source}: {error}") from None
    from .live_mounts import add, remove

    state = container.state
    (add if what == "add" else remove)(state.pid, state.start_time, entries)
    return 0


def unsupported(context: Context, parsed: Parsed) -> int:
    raise Unsupported("checkpoint and restore need CRIU, which this runtime does not use")


HANDLERS = {
    "list": list_containers,
    "ps": ps,
    "events": events,
    "update": update,
    "spec": spec,
    "features": features,
    "mounts": mounts,
    "checkpoint": unsupported,
    "restore": unsupported,
}
