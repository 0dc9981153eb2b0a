"""`system df`: what takes up disk space, in sum or (-v) object by object."""

from __future__ import annotations

from sampan.cli import human
from sampan.cli.failures import Failure
from sampan.cli.govalues import Row
from sampan.cli.names import truncated
from sampan.cli.session import emit, out
from sampan.cli.table import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

SUMMARY = "table {{.Type}}\\t{{.TotalCount}}\\t{{.Active}}\\t{{.Size}}\\t{{.Reclaimable}}"
RAW = """type: {{.Type}}
total: {{.TotalCount}}
active: {{.Active}}
size: {{.Size}}
reclaimable: {{.Reclaimable}}
"""
HEADERS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
IMAGES = (
    "table {{.Repository}}\\t{{.Tag}}\\t{{.ID}}\\t{{.CreatedSince}}\\t{{.Size}}\\t{{.SharedSize}}\\t"
    "{{.UniqueSize}}\\t{{.Containers}}"
)
CONTAINERS = (
    "table {{.ID}}\\t{{.Image}}\\t{{.Command}}\\t{{.LocalVolumes}}\\t{{.Size}}\\t{{.RunningFor}}\\t{{.Status}}\\t"
    "{{.Names}}"
)
VOLUMES = "table {{.Name}}\\t{{.Links}}\\t{{.Size}}"
CACHE = "table {{.ID}}\\t{{.CacheType}}\\t{{.Size}}\\t{{.CreatedSince}}\\t{{.LastUsedSince}}\\t{{.UsageCount}}\\t{{.Shared}}"
CACHE_HEADERS = {
    "ID": "CACHE ID",
    "Parent": "PARENT",
    "CacheType": "CACHE TYPE",
    "Size": "SIZE",
    "CreatedSince": "CREATED",
    "LastUsedSince": "LAST USED",
    "UsageCount": "USAGE",
    "InUse": "IN USE",
    "Shared": "SHARED",
    "Description": "DESCRIPTION",
}


class Usage:
    """The engine's answer, in the shape of API 1.51 and older, which newer ones still send too."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.images: list[dict[str, Any]] = answer.get("Images") or []
        self.containers: list[dict[str, Any]] = answer.get("Containers") or []
        self.volumes: list[dict[str, Any]] = answer.get("Volumes") or []
        self.cache: list[dict[str, Any]] = answer.get("BuildCache") or []
        self.layers: int = answer.get("LayersSize") or 0
        self.cache_size: int = answer.get("BuilderSize") or sum(
            c.get("Size", 0) for c in self.cache if not c.get("Shared")
        )


def df(session: Session, options: Options) -> int:
    form, verbose = options.text("format") or "table", options.flag("verbose")
    usage = Usage(session.client.json("/system/df"))
    if verbose:
        return _verbose(usage, form)
    form = SUMMARY if form == "table" else RAW if form == "raw" else form
    listing(form, [_images(usage), _containers(usage), _volumes(usage), _cache(usage)], HEADERS)
    return 0


def _line(kind: str, total: int, active: int, size: int, reclaimable: str) -> Row:
    return Row(
        "*formatter.diskUsageContext",
        {
            "Active": lambda: str(active),
            "Reclaimable": lambda: reclaimable,
            "Size": lambda: human.size(size),
            "TotalCount": lambda: str(total),
            "Type": lambda: kind,
        },
    )


def _share(part: int, whole: int) -> str:
    return f"{human.size(part)} ({part * 100 // whole}%)" if whole > 0 else human.size(part)


def _images(usage: Usage) -> Row:
    used = sum(
        image["Size"] - image["SharedSize"]
        for image in usage.images
        if image.get("Containers") and -1 not in (image["Size"], image.get("SharedSize", -1))
    )
    active = sum((image.get("Containers") or 0) > 0 for image in usage.images)
    total = usage.layers
    return _line("Images", len(usage.images), active, total, _share(total - used, total))


def _containers(usage: Usage) -> Row:
    def runs(container: dict[str, Any]) -> bool:
        return container.get("State") in ("running", "paused", "restarting")

    total = sum(c.get("SizeRw") or 0 for c in usage.containers)
    idle = sum(c.get("SizeRw") or 0 for c in usage.containers if not runs(c))
    active = sum(map(runs, usage.containers))
    return _line("Containers", len(usage.containers), active, total, _share(idle, total))


def _volumes(usage: Usage) -> Row:
    known = [v.get("UsageData") or {"Size": 0, "RefCount": 0} for v in usage.volumes]
    total = sum(u["Size"] for u in known if u["Size"] != -1)
    idle = sum(u["Size"] for u in known if u["Size"] != -1 and not u["RefCount"])
    active = sum(u["RefCount"] > 0 for u in known)
    return _line("Local Volumes", len(known), active, total, _share(idle, total))


def _cache(usage: Usage) -> Row:
    busy = sum(c.get("Size", 0) for c in usage.cache if c.get("InUse") and not c.get("Shared"))
    active = sum(bool(c.get("InUse")) for c in usage.cache)
    size = usage.cache_size
    return _line("Build Cache", len(usage.cache), active, size, human.size(size - busy))


def _cache_row(record: dict[str, Any], truncate: bool) -> Row:
    from sampan.cli.times import go_time, seconds_ago

    def since(key: str) -> str:
        return human.age(seconds_ago(record[key])) + " ago" if record.get(key) else ""

    identity = truncated(record["ID"]) if truncate else record["ID"]
    parents = ", ".join(record.get("Parents") or []) or record.get("Parent") or ""
    return Row(
        "*formatter.buildCacheContext",
        {
            "CacheType": lambda: record.get("Type", ""),
            "CreatedAt": lambda: go_time(record["CreatedAt"]),
            "CreatedSince": lambda: since("CreatedAt"),
            "Description": lambda: record.get("Description", ""),
            "ID": lambda: identity + ("*" if record.get("InUse") else ""),
            "InUse": lambda: "true" if record.get("InUse") else "false",
            "LastUsedAt": lambda: go_time(record["LastUsedAt"]) if record.get("LastUsedAt") else "",
            "LastUsedSince": lambda: since("LastUsedAt"),
            "Parent": lambda: truncated(parents) if truncate else parents,
            "Shared": lambda: "true" if record.get("Shared") else "false",
            "Size": lambda: human.size(record.get("Size", 0), 3),
            "UsageCount": lambda: str(record.get("UsageCount", 0)),
        },
    )


def _verbose(usage: Usage, form: str) -> int:
    from sampan.cli import images, ps, volumes

    truncate = form == "table"
    image_rows = []
    for image in usage.images:
        image_rows += list(images.image_rows(image, False, False, truncate))[:1]
    container_rows = [
        ps.row(ps.Container({**c, "SizeRootFs": 0}, truncate)) for c in usage.containers
    ]
    volume_rows = [volumes.row(volume) for volume in usage.volumes]
    cache_rows = [
        _cache_row(record, truncate)
        for record in sorted(usage.cache, key=lambda c: (c.get("LastUsedAt") or "", c["ID"]))
    ]
    if not truncate:
        return _templated(form, image_rows, container_rows, volume_rows, cache_rows)
    emit("Images space usage:\n\n")
    listing(IMAGES, image_rows, images.HEADERS)
    emit("\nContainers space usage:\n\n")
    listing(CONTAINERS, container_rows, ps.HEADERS)
    emit("\nLocal Volumes space usage:\n\n")
    listing(VOLUMES, volume_rows, volumes.HEADERS)
    emit(f"\nBuild cache usage: {human.size(usage.cache_size)}\n\n")
    listing(CACHE, cache_rows, CACHE_HEADERS)
    return 0


def _templated(form: str, images: Any, containers: Any, volumes: Any, cache: Any) -> int:
    from sampan.cli.govalues import TemplateError
    from sampan.cli.table import unescaped
    from sampan.cli.templating import Template

    whole = Row(
        "*formatter.diskUsageContext",
        {
            "Images": lambda: images,
            "Containers": lambda: containers,
            "Volumes": lambda: volumes,
            "BuildCache": lambda: cache,
        },
    )
    try:
        if form in ("json", "{{json .}}"):
            out(_json(whole))
        else:
            emit(Template(unescaped(form)).render(whole))
    except TemplateError as error:
        raise Failure(f"template parsing error: {error}") from None
    return 0


def _json(whole: Row) -> str:
    from sampan.cli import wire

    made = {
        name: [{k: g() for k, g in sorted(row.getters.items())} for row in getter()]
        for name, getter in whole.getters.items()
    }
    return wire.dumps(made)
