"""`exec`: another program in a running container.

    create -> start and take the connection over -> bytes both ways -> inspect for the status

Docker's client inspects the container first; ours lets `create` say that it is missing or stopped: one trip less.
"""

from __future__ import annotations

import posix

from sampan.cli import streams
from sampan.cli.client import escape
from sampan.cli.create import Wrong, key_values
from sampan.cli.failures import Detached, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session


def exec_(session: Session, options: Options) -> int:
    client = session.client
    container, command = options.args[0], options.args[1:]
    body = _body(session, options, command)
    if not body["Detach"]:
        streams.check_terminal(attach_stdin=body["AttachStdin"], tty=body["Tty"])
    keys = streams.detach_keys(body["DetachKeys"])
    made: dict[str, Any] = client.post(f"/containers/{escape(container)}/exec", body=body)
    identity = made["Id"]
    start: dict[str, Any] = {"Detach": body["Detach"], "Tty": body["Tty"]}
    if "ConsoleSize" in body:
        start["ConsoleSize"] = body["ConsoleSize"]
    if body["Detach"]:
        client.call("POST", f"/exec/{identity}/start", body=start).read()
        return 0
    hijacked = client.hijack(f"/exec/{identity}/start", body=start)

    def resize() -> None:
        if body["Tty"] and posix.isatty(0):
            streams.watch_size(client, f"/exec/{identity}")

    try:
        streams.pump(
            hijacked, tty=body["Tty"], stdin=body["AttachStdin"], keys=keys, on_ready=resize
        )
    except Detached:
        raise Failure("read escape sequence") from None
    state: dict[str, Any] = client.json(f"/exec/{identity}/json")
    status: int = state.get("ExitCode") or 0
    return status


def _body(session: Session, options: Options, command: list[str]) -> dict[str, Any]:
    detach = options.flag("detach")
    try:
        env = key_values(options.list("env-file"), options.list("env"), from_environment=True)
    except Wrong as error:
        raise Failure(str(error)) from None
    body: dict[str, Any] = {
        "User": options.text("user"),
        "Privileged": options.flag("privileged"),
        "Tty": options.flag("tty"),
        "AttachStdin": options.flag("interactive") and not detach,
        "AttachStderr": not detach,
        "AttachStdout": not detach,
        "Detach": detach,
        "DetachKeys": options.text("detach-keys") or session.setting("detachKeys"),
        "Env": env,
        "WorkingDir": options.text("workdir"),
        "Cmd": command,
    }
    if body["Tty"]:
        try:
            window = posix.get_terminal_size(1)
            body["ConsoleSize"] = [window.lines, window.columns]
        except OSError:
            body["ConsoleSize"] = [0, 0]
    return body
