"""`run` and `create`.

    create (404: pull, again) -> attach -> wait -> start -> resize -> bytes both ways -> status

Attach and wait are open before the process starts, or its first output and its exit could be missed. Which words turn
an engine's refusal into status 126 or 127 is docker's choice, and scripts rely on it.
"""

from __future__ import annotations

import posix

from sampan.cli import create as building
from sampan.cli import streams
from sampan.cli.failures import Detached, Failure, Refused, Unreachable
from sampan.cli.session import out, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.client import Reply
    from sampan.cli.session import Session

NOT_FOUND = (
    "executable file not found",
    "no such file or directory",
    "system cannot find the file specified",
)
NO_PLATFORM = "unknown operating system or architecture: invalid argument"
CANNOT_RUN = ("permission denied", "is a directory")


def create(session: Session, options: Options) -> int:
    body = _body(session, options, "create")
    out(_create(session, options, body))
    return 0


def run(session: Session, options: Options) -> int:
    body = _body(session, options, "run")
    if options.flag("trace"):
        from sampan.cli import trace

        trace.watch(session)
    detach = options.flag("detach")
    if detach:
        if options.list("attach"):
            raise Failure("conflicting options: cannot specify both --attach and --detach")
        body.update(AttachStdin=False, AttachStdout=False, AttachStderr=False, StdinOnce=False)
    else:
        streams.check_terminal(attach_stdin=body["AttachStdin"], tty=body["Tty"])
    keys = streams.detach_keys(options.text("detach-keys") or session.setting("detachKeys"))
    try:
        identity = _create(session, options, body)
    except Unreachable:
        raise
    except Failure as failure:
        raise _with_status(failure) from None
    attached = body["AttachStdin"] or body["AttachStdout"] or body["AttachStderr"]
    if not attached:
        return _run_detached(session, identity)
    return _run_attached(session, options, body, identity, keys)


def _body(session: Session, options: Options, name: str) -> dict[str, Any]:
    try:
        building.check_pull(options)
        body = building.request(options)
    except ValueError as error:
        raise building.failed(error, name) from None
    if session.config.get("proxies"):
        proxies = building.proxy_environment(session.config, session.host, options.list("env"))
        body["Env"] = proxies + body["Env"]
    return body


def _with_status(failure: Failure) -> Failure:
    """126 or 127 where the container's own program is to blame, else 125."""
    text = failure.message
    status = 125
    if any(words in text for words in NOT_FOUND):
        status = 127
    elif any(words in text.lower() for words in CANNOT_RUN):
        status = 126
    failed = building.failed(text, "run")
    failed.status = status
    failed.hint = failure.hint
    return failed


def _run_detached(session: Session, identity: str) -> int:
    out(identity)
    try:
        session.client.call("POST", f"/containers/{identity}/start").read()
    except Failure as failure:
        raise _with_status(failure) from None
    return 0


def _run_attached(
    session: Session, options: Options, body: dict[str, Any], identity: str, keys: bytes
) -> int:
    client = session.client
    path = f"/containers/{identity}"
    if options.flag("sig-proxy"):
        streams.forward_signals(streams.kill_sender(client, identity))
    waiting: list[Reply] = []
    hijacked = client.hijack(
        f"{path}/attach",
        query={
            "stream": "1",
            "stdin": body["AttachStdin"],
            "stdout": body["AttachStdout"],
            "stderr": body["AttachStderr"],
            "detachKeys": options.text("detach-keys") or session.setting("detachKeys"),
        },
    )

    def start() -> None:
        condition = "removed" if options.flag("rm") else "next-exit"
        waiting.append(client.call("POST", f"{path}/wait", query={"condition": condition}))
        try:
            client.call("POST", f"{path}/start").read()
        except Failure as failure:
            if options.flag("rm"):
                streams.status_of(client, identity, waiting[0])
            raise _with_status(failure) from None
        if body["Tty"] and posix.isatty(1):
            streams.watch_size(client, path)

    try:
        streams.pump(
            hijacked,
            tty=body["Tty"],
            stdin=body["AttachStdin"],
            stdout=body["AttachStdout"],
            stderr=body["AttachStderr"],
            keys=keys,
            on_ready=start,
        )
    except Detached:
        return 0
    return streams.status_of(client, identity, waiting[0])


def _create(session: Session, options: Options, body: dict[str, Any]) -> str:
    """The new container's ID, its image pulled if that was missing and allowed."""
    if not options.args[0]:
        raise Failure("invalid reference format")
    cidfile = options.text("cidfile")
    if cidfile:
        _reserve(cidfile)
    try:
        if options.flag("use-api-socket"):
            _hand_over_socket(session, body)
        if options.text("pull") == "always":
            _pull(session, options)
        if options.has("egress"):
            from sampan.cli.extras import only_ours

            only_ours(session, "limit where a container connects")
        body["HostConfig"]["ConsoleSize"] = list(_console_size())
        answer = _post_create(session, options, body)
    except BaseException:
        if cidfile:
            posix.unlink(cidfile)
        raise
    identity: str = answer["Id"]
    warnings = answer.get("Warnings") or []
    for server in body["HostConfig"]["Dns"]:
        if server.startswith("127.") or server == "::1":
            warnings.append(f"Localhost DNS ({server}) may fail in containers.")
    for warning in warnings:
        warn(f"WARNING: {warning}")
    if cidfile:
        with open(cidfile, "w", encoding="ascii") as file:
            file.write(identity)
    return identity


def _console_size() -> tuple[int, int]:
    try:
        window = posix.get_terminal_size(1)
    except OSError:
        return 0, 0
    return window.lines, window.columns


def _post_create(session: Session, options: Options, body: dict[str, Any]) -> dict[str, Any]:
    client = session.client
    query = {"name": options.text("name"), "platform": platform_of(options)}
    try:
        made: dict[str, Any] = client.post("/containers/create", query=query, body=body)
    except Refused as refused:
        if refused.reason.startswith("invalid reference format"):
            raise Failure(refused.reason) from None  # docker sees that for itself
        if refused.reason.endswith(NO_PLATFORM):
            raise Failure(f"error parsing specified platform: {refused.reason}") from None
        if refused.code != 404 or options.text("pull") not in ("missing", ""):
            raise
        _pull_missing(session, options, refused)
        made = client.post("/containers/create", query=query, body=body)
    return made


def platform_of(options: Options) -> str:
    from sampan.cli.session import getenv

    return options.text("platform") or getenv("DOCKER_DEFAULT_PLATFORM")


def _pull_missing(session: Session, options: Options, refused: Refused) -> None:
    from sampan.cli import names

    try:
        name = names.parse(options.args[0]).tagged()
    except Failure:
        raise refused from None
    if not options.flag("quiet"):
        warn(f"Unable to find image '{name.familiar}{name.suffix}' locally")
    _pull(session, options)


def _pull(session: Session, options: Options) -> None:
    from sampan.cli import registry

    registry.fetch(
        session, options.args[0], platform=platform_of(options), quiet=options.flag("quiet"), to=2
    )


def _reserve(path: str) -> None:
    try:
        flags = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
        posix.close(posix.open(path, flags, 0o644))
    except FileExistsError:
        raise Failure(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Failure(f"failed to create the container ID file: open {path}: {reason}") from None


def _hand_over_socket(session: Session, body: dict[str, Any]) -> None:
    if not session.host.startswith("unix://"):
        raise Failure(
            "flag --use-api-socket can only be used with unix sockets: "
            f"docker endpoint {session.host} incompatible"
        )
    mount = {
        "Type": "bind",
        "Source": session.host.removeprefix("unix://"),
        "Target": "/var/run/docker.sock",
        "BindOptions": {},
    }
    body["HostConfig"].setdefault("Mounts", []).append(mount)
