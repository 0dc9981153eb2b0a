"""volume create, ls, rm, and export and import, which docker does not have."""

from __future__ import annotations

from sampan.cli.client import escape, filters
from sampan.cli.create import pairs
from sampan.cli.failures import Failure, Refused
from sampan.cli.govalues import Row
from sampan.cli.session import out, warn
from sampan.cli.table import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

HEADERS = {
    "ID": "ID",
    "Name": "VOLUME NAME",
    "Group": "GROUP",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Availability": "AVAILABILITY",
    "Mountpoint": "MOUNTPOINT",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Size": "SIZE",
    "Status": "STATUS",
}


def ls(session: Session, options: Options) -> int:
    from sampan.cli.networks import natural

    query = {"filters": filters(options.list("filter")) or None}
    found: list[dict[str, Any]] = session.client.json("/volumes", query=query).get("Volumes") or []
    found.sort(key=lambda volume: natural(volume["Name"]))
    quiet = options.flag("quiet")
    form = (
        options.text("format") or (session.setting("volumesFormat") if not quiet else "") or "table"
    )
    if form == "table":
        form = "{{.Name}}" if quiet else "table {{.Driver}}\\t{{.Name}}"
    elif form == "raw":
        form = "name: {{.Name}}" if quiet else "name: {{.Name}}\\ndriver: {{.Driver}}\\n"
    listing(form, [row(volume) for volume in found], HEADERS)
    return 0


def row(volume: dict[str, Any]) -> Row:
    from sampan.cli import human

    labels = volume.get("Labels") or {}
    usage = volume.get("UsageData")
    return Row(
        "*formatter.volumeContext",
        {
            "Availability": lambda: "N/A",
            "Driver": lambda: volume["Driver"],
            "Group": lambda: "N/A",
            "Labels": lambda: ",".join(f"{k}={v}" for k, v in sorted(labels.items())),
            "Links": lambda: str(usage["RefCount"]) if usage else "N/A",
            "Mountpoint": lambda: volume.get("Mountpoint", ""),
            "Name": lambda: volume["Name"],
            "Scope": lambda: volume.get("Scope", ""),
            "Size": lambda: human.size(usage["Size"]) if usage else "N/A",
            "Status": lambda: "N/A",
        },
        {"Label": lambda name: labels.get(name, "")},
    )


def create(session: Session, options: Options) -> int:
    name = options.text("name")
    if options.args:
        if name:
            raise Failure(
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg"
            )
        name = options.args[0]
    body = {
        "Name": name,
        "Driver": options.text("driver"),
        "DriverOpts": pairs(options.list("opt")),
        "Labels": pairs(options.list("label")),
    }
    out(session.client.post("/volumes/create", body=body)["Name"])
    return 0


def rm(session: Session, options: Options) -> int:
    status = 0
    for name in options.args:
        try:
            query = {"force": options.flag("force")}
            session.client.call("DELETE", f"/volumes/{escape(name)}", query=query).read()
        except Failure as failure:
            warn(failure.message)
            status = 1
            continue
        out(name)
    return status


def update(session: Session, options: Options) -> int:
    name = options.args[0] if options.args else ""
    volume = session.client.json(f"/volumes/{escape(name)}")
    if not volume.get("ClusterVolume"):
        raise Failure("Can only update cluster volumes")
    return 0


def export(session: Session, options: Options) -> int:
    from sampan.cli.images import write_out

    path = options.text("output")
    import posix

    if not path and posix.isatty(1):
        raise Failure("cowardly refusing to export to a terminal. Use the -o flag or redirect")
    reply = session.client.call("GET", f"/volumes/{escape(options.args[0])}/export")
    write_out(reply.chunks(), path, "failed to export volume")
    return 0


def import_(session: Session, options: Options) -> int:
    from sampan.cli.images import opened, pieces

    name = options.args[0]
    source = options.args[1] if len(options.args) > 1 else "-"
    try:
        session.client.json(f"/volumes/{escape(name)}")
    except Refused as refused:
        if refused.code != 404:
            raise
        session.client.post("/volumes/create", body={"Name": name, "Driver": "local"})
    session.client.call(
        "POST",
        f"/volumes/{escape(name)}/import",
        stream=pieces(0 if source == "-" else opened(source)),
        headers={"Content-Type": "application/x-tar"},
    ).read()
    out(name)
    return 0
