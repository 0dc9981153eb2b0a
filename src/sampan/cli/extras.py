"""What docker cannot do and Sampan's engine can: ports and mounts of running containers, checking the image store."""

from __future__ import annotations

from sampan.cli.client import escape
from sampan.cli.create import Wrong, port_mappings
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.client import Reply
    from sampan.cli.session import Session


def _ask(session: Session, method: str, path: str, what: str, **request: Any) -> Reply:
    """A request that only our own engine understands, with that said where another one answers."""
    try:
        return session.client.call(method, path, **request)
    except Refused as refused:
        if refused.code == 404 and "page not found" in refused.reason:
            raise Failure(
                f"the engine at {session.host} cannot {what}: it is not Sampan, or an older one"
            ) from None
        raise


def _mappings(specs: list[str]) -> list[tuple[str, dict[str, str]]]:
    try:
        return [pair for spec in specs for pair in port_mappings(spec)]
    except Wrong as error:
        raise Failure(str(error), status=125) from None


def port_add(session: Session, options: Options) -> int:
    name = options.args[0]
    bindings: dict[str, list[dict[str, str]]] = {}
    for port, binding in _mappings(options.args[1:]):
        bindings.setdefault(port, []).append(binding)
    path = f"/containers/{escape(name)}/ports"
    what = "publish ports of running containers"
    answer = _ask(session, "POST", path, what, body={"PortBindings": bindings}).json() or {}
    for port, bound in sorted((answer.get("Ports") or {}).items()):
        for one in bound or []:
            ip = f"[{one['HostIp']}]" if ":" in one["HostIp"] else one["HostIp"]
            out(f"{port} -> {ip}:{one['HostPort']}")
    return 0


def port_rm(session: Session, options: Options) -> int:
    name = options.args[0]
    for port, _ in _mappings(options.args[1:]):
        path = f"/containers/{escape(name)}/ports"
        _ask(
            session, "DELETE", path, "unpublish ports of running containers", query={"port": port}
        ).read()
        out(port)
    return 0


def mount_add(session: Session, options: Options) -> int:
    name = options.args[0]
    mounts = list(options.list("mount")) + [_from_volume(spec) for spec in options.list("volume")]
    if not mounts:
        raise Failure("nothing to mount: name it with --mount or -v", status=125)
    for mount in mounts:
        path = f"/containers/{escape(name)}/mounts"
        _ask(session, "POST", path, "mount into running containers", body=mount).read()
        out(mount["Target"])
    return 0


def _from_volume(spec: str) -> dict[str, Any]:
    """'src:dst[:ro]' as a mount."""
    from sampan.cli.values import absolute

    parts = spec.split(":")
    if (
        len(parts) not in (2, 3)
        or not all(parts)
        or (len(parts) == 3 and parts[2] not in ("ro", "rw"))
    ):
        raise Failure(f"invalid volume specification: '{spec}'", status=125)
    source = absolute(parts[0])
    return {
        "Type": "bind" if source.startswith("/") else "volume",
        "Source": source,
        "Target": parts[1],
        "ReadOnly": parts[2:] == ["ro"],
    }


def mount_rm(session: Session, options: Options) -> int:
    name = options.args[0]
    for target in options.args[1:]:
        path = f"/containers/{escape(name)}/mounts"
        _ask(
            session, "DELETE", path, "unmount from running containers", query={"target": target}
        ).read()
        out(target)
    return 0


def verify(session: Session, options: Options) -> int:
    from sampan.cli.progress import show

    reply = _ask(session, "POST", "/system/verify", "check its image store")
    show(reply.lines())
    return 0
