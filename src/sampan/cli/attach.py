"""`attach`, and `start -a`: this terminal on a container that exists already."""

from __future__ import annotations

import posix

from sampan.cli import streams
from sampan.cli.client import escape
from sampan.cli.failures import Detached, Failure
from sampan.cli.streams import status_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.client import Client, Hijacked
    from sampan.cli.session import Session


def attach(session: Session, options: Options) -> int:
    client = session.client
    name = escape(options.args[0])
    container = _attachable(client, name)
    tty = container["Config"]["Tty"]
    with_stdin = not options.flag("no-stdin")
    streams.check_terminal(attach_stdin=with_stdin, tty=tty)
    if options.flag("sig-proxy") and not tty:
        streams.forward_signals(streams.kill_sender(client, name))
    keys = options.text("detach-keys") or session.setting("detachKeys")
    with_stdin = with_stdin and container["Config"]["OpenStdin"]
    waiting = client.call("POST", f"/containers/{name}/wait")
    hijacked = _hijack(client, name, with_stdin, keys)
    _attachable(client, name)

    def resize() -> None:
        if tty and posix.isatty(1):
            _nudge(client, name)
            streams.watch_size(client, f"/containers/{name}")

    try:
        streams.pump(
            hijacked, tty=tty, stdin=with_stdin, keys=streams.detach_keys(keys), on_ready=resize
        )
    except Detached:
        raise Failure("read escape sequence") from None
    return status_of(client, name, waiting)


def _attachable(client: Client, name: str) -> dict[str, Any]:
    container: dict[str, Any] = client.json(f"/containers/{name}/json")
    state = container["State"]
    if not state["Running"]:
        raise Failure("You cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise Failure("You cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise Failure("You cannot attach to a restarting container, wait until it is running")
    return container


def _hijack(client: Client, name: str, stdin: bool, keys: str) -> Hijacked:
    return client.hijack(
        f"/containers/{name}/attach",
        query={"stream": "1", "stdin": stdin, "stdout": "1", "stderr": "1", "detachKeys": keys},
    )


def _nudge(client: Client, name: str) -> None:
    """One row and column too many first: a change of size makes programs draw their screen again."""
    from sampan.cli.terminal import size

    height, width = size(1)
    if height and width:
        query = {"h": str(height + 1), "w": str(width + 1)}
        client.send("POST", f"/containers/{name}/resize", query=query).read()


def start_attached(session: Session, options: Options) -> int:
    """`start -a [-i]`: attach, wait, start, as `run` does."""
    if len(options.args) > 1:
        raise Failure("you cannot start and attach multiple containers at once")
    client = session.client
    container: dict[str, Any] = client.json(f"/containers/{escape(options.args[0])}/json")
    identity, tty = container["Id"], container["Config"]["Tty"]
    if not tty:
        streams.forward_signals(streams.kill_sender(client, identity))
    keys = options.text("detach-keys") or session.setting("detachKeys")
    stdin = options.flag("interactive") and container["Config"]["OpenStdin"]
    hijacked = _hijack(client, identity, stdin, keys)
    waiting = []

    def start() -> None:
        condition = "removed" if container["HostConfig"]["AutoRemove"] else "next-exit"
        path = f"/containers/{identity}"
        waiting.append(client.call("POST", f"{path}/wait", query={"condition": condition}))
        client.call("POST", f"{path}/start").read()
        if tty and posix.isatty(1):
            streams.watch_size(client, path)

    try:
        streams.pump(hijacked, tty=tty, stdin=stdin, keys=streams.detach_keys(keys), on_ready=start)
    except Detached:
        return 0
    return status_of(client, identity, waiting[0])
