"""The name service of a container's namespace: its sockets, and the zones made from endpoint records.

The address is Docker's, 127.0.0.11 port 53. A program in the container may want port 53 for itself (a name server in
a container is common), so the sockets have ports of their own and two rules in the container's namespace translate:

    table ip sampan-names: output   ip daddr 127.0.0.11 udp/tcp dport 53 -> the sockets' ports

Answers come back translated by the same connection entry. The sockets live in the keeper, so names are answered while
the daemon restarts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from sampan.linux import netlink, nft
from sampan.network.endpoint import inside
from sampan.network.files import NAME_SERVER
from sampan.network.records import EndpointRecord

TABLE = "sampan-names"
SERVICE_PORT = 53


def open_service(netns_fd: int, *, is_new: bool = False) -> tuple[int, int]:
    """Sockets (UDP, listening TCP) at 127.0.0.11 inside the namespace, and the rules that lead to them.

    The descriptors are the caller's. In a namespace that `is_new` no rules are replaced: closing the netlink socket waits
    until the kernel has freed what was, 8 ms. Raises OSError.
    """
    return inside(netns_fd, lambda: _open_here(is_new=is_new))


def _open_here(*, is_new: bool) -> tuple[int, int]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with udp, tcp:
        udp.bind((NAME_SERVER, 0))
        tcp.bind((NAME_SERVER, 0))
        tcp.listen(64)
        ports = {"udp": udp.getsockname()[1], "tcp": tcp.getsockname()[1]}
        with netlink.Netlink(netlink.NETLINK_NETFILTER) as link:
            table = service_table(ports)
            nft.apply(link, nft.create_messages(table) if is_new else nft.replace_messages(table))
        return os.dup(udp.fileno()), os.dup(tcp.fileno())


def service_table(ports: dict[str, int]) -> nft.Table:
    """The translation inside the container's namespace. Pure."""
    address = socket.inet_aton(NAME_SERVER)
    rules = []
    for protocol, port in sorted(ports.items()):
        match = (
            nft.address("daddr", address) + nft.l4proto(protocol) + nft.port("dport", SERVICE_PORT)
        )
        rules.append(match + nft.dnat(address, port))
    chain = nft.Chain("output", rules, hook="output", priority=-100, type="nat")
    return nft.Table("ip", TABLE, [chain])


def zone_message(
    network_id: str, name: str, endpoints: Iterable[EndpointRecord]
) -> dict[str, object]:
    """What the keeper must know about a network: every name's addresses, every address's name. Pure."""
    names: dict[str, list[str]] = {}
    pointers: dict[str, str] = {}
    for endpoint in sorted(endpoints, key=lambda e: (e.container_name, e.id)):
        addresses = [a for a in (endpoint.ipv4, endpoint.ipv6) if a]
        for each in endpoint.dns_names:
            known = names.setdefault(each.lower(), [])
            known += [a for a in addresses if a not in known]
        for address in addresses:
            pointers[address] = endpoint.container_name
    return {"op": "zone", "network": network_id, "name": name, "names": names, "pointers": pointers}


def link_addresses(
    endpoint: EndpointRecord, neighbours: Iterable[EndpointRecord]
) -> dict[str, list[str]]:
    """The addresses behind the endpoint's links: alias -> addresses of the container it names, in the same network."""
    found: dict[str, list[str]] = {}
    for alias, target in endpoint.links.items():
        for other in neighbours:
            if target in (other.container_id, other.container_name) or (
                len(target) >= 12 and other.container_id.startswith(target)
            ):
                found[alias] = [a for a in (other.ipv4, other.ipv6) if a]
    return found
