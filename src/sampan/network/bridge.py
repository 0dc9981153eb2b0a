"""Bridge devices of the host and the kernel settings that bridged networks need.

A bridge is made once for a network and deleted with it. What is there already is adjusted, never recreated: containers
may hang on it. Settings are written only where they differ.

Sources: Documentation/networking/ip-sysctl.rst (accept_ra, forwarding, disable_ipv6), bridge(8).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os

from sampan.linux import netlink
from sampan.network.ipam import Network
from sampan.network.records import NetworkRecord

CONF4 = "/proc/sys/net/ipv4/conf"
CONF6 = "/proc/sys/net/ipv6/conf"


def set_sysctl(path: str, value: str, *, required: bool = False) -> bool:
    """Write a setting where it differs. False where the kernel has no such file or forbids it."""
    try:
        with open(path, encoding="ascii") as file:
            if file.read().strip() == value:
                return True
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError:
        if required:
            raise
        return False
    return True


def enable_forwarding(*, ipv6: bool) -> None:
    """Let the host route for its containers. Raises OSError where it may not be switched on."""
    set_sysctl("/proc/sys/net/ipv4/ip_forward", "1", required=True)
    if ipv6:
        set_sysctl(f"{CONF6}/default/forwarding", "1")
        set_sysctl(f"{CONF6}/all/forwarding", "1", required=True)


def ensure_bridge(link: netlink.Netlink, network: NetworkRecord, *, mtu: int) -> int:
    """Make the network's bridge, or adjust the one that is there; up, with the gateways' addresses. Its index."""
    try:
        found = netlink.link_by_name(link, network.bridge)
    except OSError:
        link.send(netlink.bridge(network.bridge, mtu=mtu, address=_bridge_address(network)))
        found = netlink.link_by_name(link, network.bridge)
    # A rogue router advertisement from a container must not configure the host (CVE-2020-13401).
    set_sysctl(f"{CONF6}/{network.bridge}/accept_ra", "0")
    has_six = any(ipaddress.ip_network(pool.subnet).version == 6 for pool in network.pools)
    set_sysctl(f"{CONF6}/{network.bridge}/disable_ipv6", "0" if has_six else "1")
    set_sysctl(f"{CONF4}/{network.bridge}/route_localnet", "0")
    requests = [netlink.set_link(found.index, up=True, mtu=mtu if mtu != found.mtu else 0)]
    if "com.docker.network.bridge.inhibit_ipv4" not in network.spec.options:
        requests += _gateway_addresses(link, network, found.index)
    link.send(*requests)
    return found.index


def _gateway_addresses(
    link: netlink.Netlink, network: NetworkRecord, index: int
) -> list[netlink.Request]:
    have = {a.address for a in netlink.addresses(link) if a.index == index}
    requests = []
    for pool in network.pools:
        address = ipaddress.ip_address(pool.gateway).packed
        if address not in have:
            subnet = ipaddress.ip_network(pool.subnet)
            last = subnet.broadcast_address.packed if subnet.version == 4 else b""
            requests.append(netlink.add_address(index, address, subnet.prefixlen, broadcast=last))
    return requests


def _bridge_address(network: NetworkRecord) -> bytes:
    """A fixed hardware address: otherwise a bridge takes the lowest of its ports' and changes as they come and go."""
    return b"\x02\x42" + hashlib.sha256(network.id.encode()).digest()[:4]


def hang_on(link: netlink.Netlink, name: str, bridge: int, *, isolated: bool) -> None:
    """Make a link a port of a bridge, where it is still there; an isolated one reaches no other isolated port."""
    try:
        link.send(netlink.set_link(name=name, master=bridge))
        if isolated:
            port = netlink.link_by_name(link, name).index
            link.send(netlink.set_bridge_port(port, isolated=True))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENXIO):
            raise


def delete_bridge(link: netlink.Netlink, name: str) -> None:
    """Idempotent."""
    try:
        link.send(netlink.delete_link(name=name))
    except OSError as error:
        if error.errno not in (19, 6):  # ENODEV, ENXIO
            raise


def ensure_parent(link: netlink.Netlink, name: str) -> None:
    """The link below a macvlan or ipvlan network's own, where we make it: BASE.TAG a VLAN of BASE, else one that leads nowhere.

    Raises OSError.
    """
    if exists(name):
        return
    base, dot, tag = name.rpartition(".")
    if dot and tag.isascii() and tag.isdigit():
        parent = netlink.link_by_name(link, base).index
        link.send(netlink.vlan(name, parent=parent, tag=int(tag)))
        return
    try:
        link.send(netlink.dummy(name))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # A kernel without dummy links: a bridge that has no port leads nowhere as well.
        link.send(netlink.bridge(name, mtu=1500))
        link.send(netlink.set_link(netlink.link_by_name(link, name).index, up=True))


def host_networks(link: netlink.Netlink, *, ignore: frozenset[str] = frozenset()) -> list[Network]:
    """Every subnet that the host has a route or an address for, but for links named in `ignore`."""
    skip = {each.index for each in netlink.links(link) if each.name in ignore}
    found: list[Network] = []
    for family in (netlink.AF_INET, netlink.AF_INET6):
        for route in netlink.routes(link, family):
            if route.destination and route.index not in skip:
                found.append(_network(route.destination, route.prefix))
    for address in netlink.addresses(link):
        if address.index not in skip and address.address:
            found.append(_network(address.address, address.prefix))
    return [n for n in found if n.prefixlen > 0 and not (n.is_loopback or n.is_link_local)]


def _network(raw: bytes, prefix: int) -> Network:
    return ipaddress.ip_network((raw, prefix), strict=False)


def resolver_addresses(path: str = "/etc/resolv.conf") -> list[Network]:
    """The host's name servers: a subnet that covers one would cut it off."""
    found: list[Network] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return found
    for line in words:
        if len(line) > 1 and line[0] == "nameserver":
            try:
                found.append(ipaddress.ip_network(line[1].split("%")[0]))
            except ValueError:
                continue
    return found


def exists(name: str) -> bool:
    """Whether the host has a link of that name."""
    return os.path.exists(f"/sys/class/net/{name}")
