"""network create, ls, rm, connect, disconnect."""

from __future__ import annotations

from sampan.cli.client import escape, filters
from sampan.cli.create import pairs
from sampan.cli.failures import Failure, Refused
from sampan.cli.govalues import Row
from sampan.cli.names import truncated
from sampan.cli.session import out, warn
from sampan.cli.table import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

HEADERS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}


def ls(session: Session, options: Options) -> int:
    query = {"filters": filters(options.list("filter")) or None}
    found: list[dict[str, Any]] = session.client.json("/networks", query=query)
    found.sort(key=lambda network: natural(network["Name"]))
    form = options.text("format") or session.setting("networksFormat") or "table"
    if form == "table":
        table = "table {{.ID}}\\t{{.Name}}\\t{{.Driver}}\\t{{.Scope}}"
        form = "{{.ID}}" if options.flag("quiet") else table
    elif form == "raw":
        raw = "network_id: {{.ID}}\\nname: {{.Name}}\\ndriver: {{.Driver}}\\nscope: {{.Scope}}\\n"
        form = "network_id: {{.ID}}" if options.flag("quiet") else raw
    truncate = not options.flag("no-trunc")
    listing(form, [_row(network, truncate) for network in found], HEADERS)
    return 0


def natural(name: str) -> list[tuple[int, int, str]]:
    """'net10' after 'net9'."""
    parts: list[tuple[int, int, str]] = []
    word, digits = "", ""
    for char in name + "\0":
        if char.isascii() and char.isdigit():
            if word:
                parts.append((1, 0, word))
                word = ""
            digits += char
        else:
            if digits:
                parts.append((0, int(digits), ""))
                digits = ""
            word += char
    return [*parts, (1, 0, word)]


def _row(network: dict[str, Any], truncate: bool) -> Row:
    from sampan.cli.times import go_time

    def word(value: object) -> str:
        return "true" if value else "false"

    labels = network.get("Labels") or {}
    return Row(
        "*network.networkContext",
        {
            "CreatedAt": lambda: go_time(network["Created"]),
            "Driver": lambda: network["Driver"],
            "ID": lambda: truncated(network["Id"]) if truncate else network["Id"],
            "IPv4": lambda: word(network.get("EnableIPv4", False)),
            "IPv6": lambda: word(network.get("EnableIPv6")),
            "Internal": lambda: word(network.get("Internal")),
            "Labels": lambda: ",".join(f"{k}={v}" for k, v in sorted(labels.items())),
            "Name": lambda: network["Name"],
            "Scope": lambda: network["Scope"],
        },
        {"Label": lambda name: labels.get(name, "")},
    )


def create(session: Session, options: Options) -> int:
    body: dict[str, Any] = {
        "Name": options.args[0],
        "Driver": options.text("driver"),
        "Scope": options.text("scope"),
        "EnableIPv6": options.flag("ipv6"),
        "IPAM": _ipam(options),
        "Internal": options.flag("internal"),
        "Attachable": options.flag("attachable"),
        "Ingress": options.flag("ingress"),
        "ConfigOnly": options.flag("config-only"),
        "ConfigFrom": None,
        "Options": pairs(options.list("opt")),
        "Labels": pairs(options.list("label")),
    }
    if options.has("ipv4"):
        body["EnableIPv4"] = options.flag("ipv4")
    if not options.has("ipv6"):
        del body["EnableIPv6"]
    if options.has("egress"):
        from sampan.cli.create import EGRESS
        from sampan.cli.extras import only_ours

        only_ours(session, "limit where containers connect")
        body["Options"][EGRESS] = options.text("egress")
    if options.text("config-from"):
        body["ConfigFrom"] = {"Network": options.text("config-from")}
    answer = session.client.post("/networks/create", body=body)
    if answer.get("Warning"):
        warn(f"WARNING: {answer['Warning']}")
    out(answer["Id"])
    return 0


def _ipam(options: Options) -> dict[str, Any]:
    subnets = options.list("subnet")
    ranges, gateways = options.list("ip-range"), options.list("gateway")
    if len(subnets) < len(ranges) or len(subnets) < len(gateways):
        raise Failure("every ip-range or gateway must have a corresponding subnet")
    pools: dict[str, dict[str, Any]] = {}
    for subnet in subnets:
        if any(_holds(subnet, other) or _holds(other, subnet) for other in pools):
            raise Failure("multiple overlapping subnet configuration is not supported")
        pools[subnet] = {"Subnet": subnet}
    _assign(pools, ranges, "IPRange", "range", "ranges", "on the same")
    _assign(pools, gateways, "Gateway", "gateway", "gateways", "for the same")
    for text in options.list("aux-address"):
        name, _, address = text.partition("=")
        for subnet in _matching(pools, address, f"no matching subnet for aux-address {address}"):
            pools[subnet].setdefault("AuxiliaryAddresses", {})[name] = address
    return {
        "Driver": options.text("ipam-driver"),
        "Options": pairs(options.list("ipam-opt")),
        "Config": list(pools.values()),
    }


def _assign(
    pools: dict[str, dict[str, Any]],
    values: list[str],
    field: str,
    word: str,
    words: str,
    where: str,
) -> None:
    for value in values:
        for subnet in _matching(pools, value, f"no matching subnet for {word} {value}"):
            if field in pools[subnet]:
                raise Failure(
                    f"cannot configure multiple {words} ({value}, {pools[subnet][field]}) {where} subnet ({subnet})"
                )
            pools[subnet][field] = value


def _matching(pools: dict[str, dict[str, Any]], value: str, words: str) -> list[str]:
    found = [subnet for subnet in pools if _holds(subnet, value)]
    if not found:
        raise Failure(words)
    return found


def _holds(subnet: str, value: str) -> bool:
    from ipaddress import ip_address, ip_interface, ip_network

    try:
        network = ip_network(subnet, strict=False)
    except ValueError:
        raise Failure(f"invalid subnet: invalid CIDR address: {subnet}") from None
    if "/" not in subnet:
        raise Failure(f"invalid subnet: invalid CIDR address: {subnet}")
    try:
        address = ip_interface(value).ip if "/" in value else ip_address(value)
    except ValueError:
        if "/" in value:
            raise Failure(f"invalid CIDR address: {value}") from None
        return False
    return address.version == network.version and address in network


def connect(session: Session, options: Options) -> int:
    network, container = options.args
    addresses = {
        "IPv4Address": options.text("ip"),
        "IPv6Address": options.text("ip6"),
        "LinkLocalIPs": options.list("link-local-ip"),
    }
    ipam = {key: value for key, value in addresses.items() if value}
    for text in options.list("driver-opt"):
        if "=" not in text or text.startswith("="):
            raise Failure("invalid key/value pair format in driver options")
    settings: dict[str, Any] = {
        "IPAMConfig": ipam,
        "Links": options.list("link") or None,
        "Aliases": options.list("alias") or None,
        "DriverOpts": pairs(options.list("driver-opt")) or None,
        "GwPriority": options.number("gw-priority"),
    }
    body = {"Container": container, "EndpointConfig": settings}
    session.client.call("POST", f"/networks/{escape(network)}/connect", body=body).read()
    return 0


def disconnect(session: Session, options: Options) -> int:
    network, container = options.args
    body = {"Container": container, "Force": options.flag("force")}
    session.client.call("POST", f"/networks/{escape(network)}/disconnect", body=body).read()
    return 0


def rm(session: Session, options: Options) -> int:
    status = 0
    for name in options.args:
        try:
            session.client.call("DELETE", f"/networks/{escape(name)}").read()
        except Failure as failure:
            gone = isinstance(failure, Refused) and failure.code == 404
            if gone and options.flag("force"):
                continue
            warn(failure.message)
            status = 1
            continue
        out(name)
    if status:
        warn("exit status 1")
    return status
