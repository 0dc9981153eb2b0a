"""`logs`: what a container has written, and with -f what it goes on to write."""

from __future__ import annotations

from sampan.cli.client import escape
from sampan.cli.streams import demultiplex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session


def logs(session: Session, options: Options) -> int:
    client = session.client
    container: dict[str, Any] = client.json(f"/containers/{escape(options.args[0])}/json")
    query = {
        "stdout": "1",
        "stderr": "1",
        "follow": options.flag("follow"),
        "timestamps": options.flag("timestamps"),
        "details": options.flag("details"),
        "tail": options.text("tail"),
    }
    for name in ("since", "until"):
        if options.text(name):
            from sampan.cli.times import timestamp

            query[name] = timestamp(options.text(name), name)
    reply = client.call("GET", f"/containers/{container['Id']}/logs", query=query)
    demultiplex(reply.chunks(), tty=container["Config"]["Tty"])
    return 0
