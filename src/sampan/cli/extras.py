"""What docker cannot do and Sampan's engine can: ports of running containers, checking the image store."""

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
    for spec in options.args[1:]:
        if ":" in spec:
            raise Failure(
                f"invalid port: {spec}: name the container's port alone, as in 80/tcp", status=125
            )
        for port, _ in _mappings([spec]):
            path = f"/containers/{escape(name)}/ports"
            what = "unpublish ports of running containers"
            _ask(session, "DELETE", path, what, query={"port": port}).read()
            out(port)
    return 0


def verify(session: Session, options: Options) -> int:
    from sampan.cli.progress import show

    reply = _ask(session, "POST", "/system/verify", "check its image store")
    show(reply.lines())
    return 0
