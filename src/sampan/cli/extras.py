"""What docker cannot do and Sampan's engine can: ports and mounts of running containers, checking the image
store."""

from __future__ import annotations

from sampan.cli.client import escape
from sampan.cli.create import Wrong, absolute_source, port_mappings
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import emit, out

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


def only_ours(session: Session, what: str) -> None:
    """Refuse where the engine would pass over what it does not know: a limit that is not kept is worse than none."""
    version = session.client.call("GET", "/version").json() or {}
    if "Sampan" not in (version.get("Platform") or {}).get("Name", ""):
        raise Failure(f"the engine at {session.host} cannot {what}: it is not Sampan", status=125)


def egress(session: Session, options: Options) -> int:
    """Show where a container may connect, or change it."""
    name = options.args[0]
    path, what = f"/containers/{escape(name)}/egress", "limit where containers connect"
    if len(options.args) > 1:
        wanted = options.args[1]
        body = {"Egress": None if wanted == "any" else wanted}
        found = _ask(session, "POST", path, what, body=body).json()
    else:
        found = _ask(session, "GET", path, what).json()
    for line in _egress_lines(found):
        out(line)
    return 0


def _egress_lines(found: dict[str, Any]) -> list[str]:
    entries = found["Egress"]
    if entries is None:
        return ["any"]
    lines = [",".join(entries) or "none"]
    for each in found["Granted"]:
        until = f"for {each['Seconds']} s" if each["Seconds"] else "a container"
        lines.append(f"  {each['Name']} -> {each['Address']}  ({until})")
    lines += [f"  {name}: not resolved, {count}x" for name, count in found["Refused"].items()]
    return [*lines, f"  packets dropped: {found['Dropped']}"]


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


def mount_add(session: Session, options: Options) -> int:
    name = options.args[0]
    body = {
        "Binds": [absolute_source(spec) for spec in options.args[1:]],
        "Mounts": options.list("mount"),
    }
    if not any(body.values()):
        raise Failure("name what to mount: SOURCE:TARGET[:OPTIONS], or --mount", status=125)
    path = f"/containers/{escape(name)}/mounts"
    answer = _ask(session, "POST", path, "change mounts of containers", body=body).json() or {}
    for mount in answer.get("Mounts") or []:
        out(mount["Destination"])
    return 0


def mount_rm(session: Session, options: Options) -> int:
    name = options.args[0]
    path = f"/containers/{escape(name)}/mounts"
    for target in options.args[1:]:
        query = {"destination": target}
        _ask(session, "DELETE", path, "change mounts of containers", query=query).read()
        out(target)
    return 0


def mount_ls(session: Session, options: Options) -> int:
    from sampan.cli.table import columns

    name = options.args[0]
    found = session.client.json(f"/containers/{escape(name)}/json")
    lines = [
        f"{m['Destination']}\t{m['Type']}\t{m.get('Name') or m['Source']}\t{'rw' if m['RW'] else 'ro'}"
        for m in found.get("Mounts") or []
    ]
    emit(columns(["TARGET\tTYPE\tSOURCE\tMODE", *sorted(lines)]))
    return 0


def verify(session: Session, options: Options) -> int:
    from sampan.cli.progress import show

    reply = _ask(session, "POST", "/system/verify", "check its image store")
    show(reply.lines())
    return 0
