"""builder cache ls, rm, export and import: the directories that RUN --mount=type=cache keeps, as things of their own."""

from __future__ import annotations

import posix

from sampan.cli import human
from sampan.cli.failures import Failure, Refused
from sampan.cli.govalues import Row
from sampan.cli.session import out, warn, write_all
from sampan.cli.table import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

HEADERS = {"ID": "CACHE MOUNT", "Size": "SIZE", "LastUsed": "LAST USED", "Uses": "USES"}


def ls(session: Session, options: Options) -> int:
    found: list[dict[str, Any]] = session.client.json("/build/mounts") or []
    found.sort(key=lambda mount: str(mount["ID"]))
    if options.flag("quiet"):
        for mount in found:
            out(mount["ID"])
        return 0
    form = options.text("format") or "table"
    if form == "table":
        form = "table {{.ID}}\\t{{.Size}}\\t{{.LastUsed}}\\t{{.Uses}}"
    listing(form, [_row(mount) for mount in found], HEADERS)
    return 0


def _row(mount: dict[str, Any]) -> Row:
    from sampan.cli.times import seconds_ago

    return Row(
        "cacheMount",
        {
            "ID": lambda: mount["ID"],
            "Size": lambda: human.size(mount["Size"]),
            "LastUsed": lambda: human.age(seconds_ago(mount["LastUsedAt"])) + " ago",
            "Uses": lambda: mount["UsageCount"],
        },
    )


def rm(session: Session, options: Options) -> int:
    failed = False
    for name in options.args:
        try:
            session.client.delete("/build/mounts", query={"id": name})
            out(name)
        except Refused as refused:
            warn(refused.message)
            failed = True
    return 1 if failed else 0


def export(session: Session, options: Options) -> int:
    """To standard output, or a file."""
    target = options.text("output")
    if not target and posix.isatty(1):
        raise Failure(
            "refusing to write to a terminal: give a file with -o, or redirect the output"
        )
    reply = session.client.call("GET", "/build/mounts/export", query={"id": options.args[0]})
    if not target:
        for piece in reply.chunks():
            write_all(1, piece)
        return 0
    with open(target, "wb") as file:
        for piece in reply.chunks():
            file.write(piece)
    return 0


def import_(session: Session, options: Options) -> int:
    """From a file, or standard input."""
    name, source = options.args[0], options.args[1] if len(options.args) > 1 else "-"
    descriptor = 0 if source == "-" else posix.open(source, posix.O_RDONLY)

    def pieces() -> Iterator[bytes]:
        while piece := posix.read(descriptor, 1 << 18):
            yield piece

    session.client.call("POST", "/build/mounts/import", query={"id": name}, stream=pieces()).read()
    return 0
