"""`ps`: the containers. The usual table is made here directly; --format goes through the template machinery."""

from __future__ import annotations

import time

from sampan.cli import human
from sampan.cli.client import filters
from sampan.cli.names import truncated
from sampan.cli.session import emit, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.govalues import Row
    from sampan.cli.session import Session

TABLE = "table {{.ID}}\\t{{.Image}}\\t{{.Command}}\\t{{.RunningFor}}\\t{{.Status}}\\t{{.Ports}}\\t{{.Names}}"
HEADERS = {
    "ID": "CONTAINER ID",
    "Names": "NAMES",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Size": "SIZE",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "LocalVolumes": "LOCAL VOLUMES",
    "Networks": "NETWORKS",
    "Platform": "PLATFORM",
}
RAW = """container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
"""


def ls(session: Session, options: Options) -> int:
    form = options.text("format") or session.setting("psFormat")
    quiet, truncate = options.flag("quiet"), not options.flag("no-trunc")
    if options.text("format") and quiet:
        warn("WARNING: Ignoring custom format, because both --format and --quiet are set.")
    size = options.flag("size")
    if form:
        size = _check(form) or size if not (quiet or options.has("size")) else size
    limit = options.number("last")
    if options.flag("latest") and limit == -1:
        limit = 1
    query = {
        "all": options.flag("all"),
        "limit": str(limit) if limit > 0 else "",
        "size": size,
        "filters": filters(options.list("filter")) or None,
    }
    found: list[dict[str, Any]] = session.client.json("/containers/json", query=query)
    if quiet:
        emit("".join((truncated(c["Id"]) if truncate else c["Id"]) + "\n" for c in found))
    elif form in ("", "table"):
        _print_table(found, truncate, size)
    else:
        _print_form(form, found, truncate, size)
    return 0


def _print_table(found: list[dict[str, Any]], truncate: bool, size: bool) -> None:
    from sampan.cli.table import columns

    titles = ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"]
    titles += ["Size"] if size else []
    lines = ["\t".join(HEADERS[title] for title in titles)]
    for container in found:
        shown = Container(container, truncate)
        lines.append("\t".join(str(getattr(shown, GETTERS[title])()) for title in titles))
    emit(columns([part for line in lines for part in line.split("\n")]))


def _print_form(form: str, found: list[dict[str, Any]], truncate: bool, size: bool) -> None:
    from sampan.cli.table import listing

    if form == "raw":
        form = RAW + ("size: {{.Size}}\n" if size else "")
    listing(form, [row(Container(c, truncate)) for c in found], HEADERS)


def _check(form: str) -> bool:
    """Whether the template can be read, and asks for sizes (which cost the engine a walk of the disk)."""
    from sampan.cli.table import check

    asked: list[str] = []
    probe = row(Container({"Id": "", "Names": ["/"], "Created": 0}, True))
    size_of = probe.getters["Size"]

    def noted() -> str:
        asked.append("Size")
        return str(size_of())

    probe.getters["Size"] = noted
    if form == "raw":
        return False
    check(
        form.removeprefix("table").strip() or "{{.ID}}" if form.startswith("table") else form, probe
    )
    return bool(asked)


def row(container: Container) -> Row:
    from sampan.cli.govalues import Row

    getters = {name: getattr(container, method) for name, method in GETTERS.items()}
    return Row("*formatter.ContainerContext", getters, {"Label": container.label})


class Container:
    """One line: each column by a method."""

    __slots__ = ("_raw", "_truncate")

    def __init__(self, raw: dict[str, Any], truncate: bool) -> None:
        self._raw = raw
        self._truncate = truncate

    def identity(self) -> str:
        identity: str = self._raw["Id"]
        return truncated(identity) if self._truncate else identity

    def names(self) -> str:
        names = [name[1:] for name in self._raw.get("Names") or []]
        if self._truncate:
            names = next(([n] for n in names if "/" not in n), names)
        return ",".join(names)

    def image(self) -> str:
        image: str = self._raw.get("Image") or ""
        if not image:
            return "<no image>"
        if self._truncate:
            short = truncated(self._raw.get("ImageID") or "")
            if short == truncated(image):
                return short
            if "@" in image:
                return _without_digest(image)
        return image

    def command(self) -> str:
        from sampan.cli.args import quote

        command: str = self._raw.get("Command") or ""
        return quote(ellipsis(command, 20) if self._truncate else command)

    def created_at(self) -> str:
        from sampan.cli.times import local

        return local(self._raw["Created"])

    def running_for(self) -> str:
        return human.age(time.time() - self._raw["Created"]) + " ago"

    def ports(self) -> str:
        ports = self._raw.get("Ports")
        return displayed_ports(ports) if ports else ""

    def state(self) -> str:
        return self._raw.get("State") or ""

    def status(self) -> str:
        return self._raw.get("Status") or ""

    def size(self) -> str:
        own = human.size(self._raw.get("SizeRw") or 0, 3)
        root = self._raw.get("SizeRootFs") or 0
        return f"{own} (virtual {human.size(root, 3)})" if root > 0 else own

    def labels(self) -> str:
        labels = self._raw.get("Labels") or {}
        return ",".join(sorted(f"{k}={v}" for k, v in labels.items()))

    def label(self, name: str) -> str:
        value: str = (self._raw.get("Labels") or {}).get(name, "")
        return value

    def mounts(self) -> str:
        names = [m.get("Name") or m.get("Source") or "" for m in self._raw.get("Mounts") or []]
        return ",".join(ellipsis(name, 15) if self._truncate else name for name in names)

    def local_volumes(self) -> str:
        return str(sum(m.get("Driver") == "local" for m in self._raw.get("Mounts") or []))

    def networks(self) -> str:
        return ",".join((self._raw.get("NetworkSettings") or {}).get("Networks") or {})

    def platform(self) -> str | None:
        described = (self._raw.get("ImageManifestDescriptor") or {}).get("platform")
        if not described:
            return None
        parts = (described.get(key) for key in ("os", "architecture", "variant"))
        return "/".join(part for part in parts if part)


GETTERS = {
    "Command": "command",
    "CreatedAt": "created_at",
    "ID": "identity",
    "Image": "image",
    "Labels": "labels",
    "LocalVolumes": "local_volumes",
    "Mounts": "mounts",
    "Names": "names",
    "Networks": "networks",
    "Platform": "platform",
    "Ports": "ports",
    "RunningFor": "running_for",
    "Size": "size",
    "State": "state",
    "Status": "status",
}


def _without_digest(image: str) -> str:
    from sampan.cli import names
    from sampan.cli.failures import Failure

    try:
        parsed = names.parse(image)
    except Failure:
        return image
    return parsed.familiar + (f":{parsed.tag}" if parsed.tag else "")


def ellipsis(text: str, width: int) -> str:
    """At most `width` columns, the last a '…' when something was cut off."""
    from sampan.cli.table import display_width

    if display_width(text) <= width:
        return text
    out, used = "", 0
    for char in text:
        used += display_width(char)
        if used > width - 1:
            break
        out += char
    return out + "…"


def displayed_ports(ports: list[dict[str, Any]]) -> str:
    """'0.0.0.0:80->80/tcp, 9000-9002/tcp': neighbouring ports in one range, uneven mappings at the end."""
    ordered = sorted(
        ports,
        key=lambda p: (
            p["PrivatePort"],
            p.get("IP") or "",
            p.get("PublicPort") or 0,
            p.get("Type") or "",
        ),
    )
    groups: dict[tuple[str, str], list[int]] = {}
    shown: list[str] = []
    mapped: list[str] = []
    for port in ordered:
        number, kind, ip = port["PrivatePort"], port.get("Type") or "", port.get("IP") or ""
        if ip and port.get("PublicPort") != number:
            mapped.append(f"{_joined(ip, str(port.get('PublicPort') or 0))}->{number}/{kind}")
            continue
        group = groups.get((ip, kind))
        if group is None:
            groups[(ip, kind)] = [number, number]
        elif number == group[1] + 1:
            group[1] = number
        else:
            shown.append(_range(ip, kind, *group))
            groups[(ip, kind)] = [number, number]
    shown += [_range(ip, kind, *group) for (ip, kind), group in groups.items()]
    return ", ".join(shown + mapped)


def _range(ip: str, kind: str, first: int, last: int) -> str:
    text = str(first) if first == last else f"{first}-{last}"
    return f"{_joined(ip, text)}->{text}/{kind}" if ip else f"{text}/{kind}"


def _joined(ip: str, port: str) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
