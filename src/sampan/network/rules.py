"""One engine's whole nftables ruleset as a value, made from the networks and the published ports. Pure.

    table inet sampan
      map  published4       proto . address . port -> address . port     ports bound to one host address
      map  published4_any   proto . port           -> address . port     ports bound to every host address
      map  published6, published6_any                                    the same for IPv6
      map  into             oifname -> jump into-<bridge>                who may reach a network's containers
      map  out_of           iifname -> jump from-<bridge>                where they may go
      chain prerouting   nat    -100   packets from outside, to an address of this host: translated
      chain output       nat    -100   the same for the host's own packets, but not to its loopback addresses
      chain forward      filter  0     the two maps
      chain postrouting  nat     100   masquerade what leaves a network
      chain into-<bridge>              established; the network itself (unless ICC is off); translated; else drop
      chain from-<bridge>              internal networks: nothing leaves; limits
      chain limits, input              where a container's --egress holds (`egress.py`); only if one has it

A packet that comes from a container is not translated: it reaches the keeper's socket, which connects on its behalf
(`keeper.py`). So a container reaches published ports at every address of the host, its own ports included, and
nothing needs hairpin. A port published on a loopback address has no translation at all, only the keeper's socket
there: nobody outside can reach it by routing.

A packet for a container's address that was not translated here and does not come from its own network is dropped,
whatever other tables say: a port that was not published is not reachable by routing to the container either.
Publishing a port adds one element to a map; the rules stay as they are.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence

import msgspec

from sampan.linux import nft
from sampan.network import egress
from sampan.network.records import EndpointRecord, NetworkRecord, PublishedPort

Rule = tuple[nft.Expression, ...]

ICC = "com.docker.network.bridge.enable_icc"
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
GATEWAY_MODE_4 = "com.docker.network.bridge.gateway_mode_ipv4"
GATEWAY_MODE_6 = "com.docker.network.bridge.gateway_mode_ipv6"


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """One element of the maps: packets to host address and port go to the container's."""

    protocol: str
    host_ip: str  # '' where it is every address
    host_port: int
    target_ip: str
    target_port: int

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.target_ip).version

    @property
    def map_name(self) -> str:
        return f"published{self.version}" + ("" if self.host_ip else "_any")

    def element(self) -> nft.Element:
        parts = [nft.pad(bytes((nft.PROTOCOLS[self.protocol],)))]
        shown = [self.protocol]
        if self.host_ip:
            parts.append(ipaddress.ip_address(self.host_ip).packed)
            shown.append(self.host_ip)
        parts.append(nft.pad(struct.pack(">H", self.host_port)))
        shown.append(str(self.host_port))
        data = ipaddress.ip_address(self.target_ip).packed + nft.pad(
            struct.pack(">H", self.target_port)
        )
        words = f"{' . '.join(shown)} : {self.target_ip} . {self.target_port}"
        return nft.Element(b"".join(parts), data=data, words=words)


def translations(endpoint: EndpointRecord, ports: Iterable[PublishedPort]) -> list[Translation]:
    """What the maps must hold for an endpoint's ports; none for loopback bindings and foreign families."""
    found = []
    for port in ports:
        host = ipaddress.ip_address(port.host_ip)
        target = endpoint.ipv4 if host.version == 4 else endpoint.ipv6
        if host.is_loopback or not target:
            continue
        found.append(
            Translation(
                protocol=port.protocol,
                host_ip="" if host.is_unspecified else str(host),
                host_port=port.host_port,
                target_ip=target,
                target_port=port.container_port,
            )
        )
    return found


def ruleset(
    table: str,
    networks: Iterable[NetworkRecord],
    published: Iterable[Translation],
    limited: Sequence[egress.Limit] = (),
) -> nft.Table:
    """The whole table of family inet; `egress.guard` makes the one of the bridges."""
    bridged = sorted(
        (n for n in networks if n.bridge and not n.spec.config_only), key=lambda n: n.bridge
    )
    published = list(published)
    chains = [
        nft.Chain("prerouting", _prerouting(), hook="prerouting", priority=-100, type="nat"),
        nft.Chain("output", _output(), hook="output", priority=-100, type="nat"),
        nft.Chain("forward", _forward(), hook="forward", priority=0),
        nft.Chain(
            "postrouting", _postrouting(bridged), hook="postrouting", priority=100, type="nat"
        ),
    ]
    for network in bridged:
        chains.append(nft.Chain(f"into-{network.bridge}", _into(network)))
        chains.append(nft.Chain(f"from-{network.bridge}", _out_of(network, limited=bool(limited))))
    sets = [*_port_maps(published), *_bridge_maps(bridged)]
    if limited:
        chains += [egress.limits_chain(), egress.input_chain(_from_containers())]
        sets += egress.sets(limited)
    return nft.Table("inet", table, chains, sets)


def _port_maps(published: list[Translation]) -> list[nft.Set]:
    maps = []
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        for suffix, key in (
            ("", f"inet_proto . {kind} . inet_service"),
            ("_any", "inet_proto . inet_service"),
        ):
            name = f"published{version}{suffix}"
            elements = [each.element() for each in published if each.map_name == name]
            maps.append(nft.Set(name, key, data=f"{kind} . inet_service", elements=elements))
    return maps


def _bridge_maps(bridged: list[NetworkRecord]) -> list[nft.Set]:
    def elements(prefix: str) -> list[nft.Element]:
        return [
            nft.Element(
                n.bridge.encode().ljust(nft.IFNAMSIZ, b"\0"),
                verdict=(nft.JUMP, f"{prefix}-{n.bridge}"),
                words=f'"{n.bridge}" : jump {prefix}-{n.bridge}',
            )
            for n in bridged
        ]

    names = [
        nft.Element(n.bridge.encode().ljust(nft.IFNAMSIZ, b"\0"), words=f'"{n.bridge}"')
        for n in bridged
    ]
    return [
        nft.Set("bridges", "ifname", elements=names),
        nft.Set("into", "ifname", data="verdict", elements=elements("into")),
        nft.Set("out_of", "ifname", data="verdict", elements=elements("from")),
    ]


def _maps_for(version: int) -> list[Rule]:
    offset, length = ((16, 4), (24, 16))[version == 6]
    family = "ip" if version == 4 else "ip6"
    load_any = nft.concat(("protocol", 0, 1), ("transport", 2, 2))
    load_one = nft.concat(("protocol", 0, 1), ("network", offset, length), ("transport", 2, 2))
    return [
        nft.nfproto(version) + nft.dnat_map(load_one, f"published{version}", version=version, words=f"meta l4proto . {family} daddr . th dport"),
        nft.nfproto(version) + nft.dnat_map(load_any, f"published{version}_any", version=version, words="meta l4proto . th dport"),
    ]  # fmt: skip


def _from_containers() -> Rule:
    return nft.in_set([nft.meta_load(nft.META_IIFNAME)], "bridges", words="iifname")


def _prerouting() -> list[Rule]:
    local = nft.local_destination(equal=False) + nft.verdict(nft.RETURN)
    return [local, _from_containers() + nft.verdict(nft.RETURN), *_maps_for(4), *_maps_for(6)]


def _output() -> list[Rule]:
    local = nft.local_destination(equal=False) + nft.verdict(nft.RETURN)
    loopback4 = (
        nft.nfproto(4) + nft.address("daddr", bytes((127, 0, 0, 0)), 8) + nft.verdict(nft.RETURN)
    )
    loopback6 = nft.nfproto(6) + nft.address("daddr", bytes(15) + b"\1") + nft.verdict(nft.RETURN)
    return [local, loopback4, loopback6, *_maps_for(4), *_maps_for(6)]


def _forward() -> list[Rule]:
    return [
        nft.verdict_map([nft.meta_load(nft.META_IIFNAME)], "out_of", words="iifname"),
        nft.verdict_map([nft.meta_load(nft.META_OIFNAME)], "into", words="oifname"),
    ]


def _postrouting(bridged: list[NetworkRecord]) -> list[Rule]:
    rules = []
    for network in bridged:
        if network.spec.internal or not network.flag(MASQUERADE, default=True):
            continue
        for pool in network.pools:
            subnet = ipaddress.ip_network(pool.subnet)
            mode = network.option(GATEWAY_MODE_4 if subnet.version == 4 else GATEWAY_MODE_6, "nat")
            if mode != "nat":
                continue
            rules.append(
                nft.nfproto(subnet.version)
                + nft.address("saddr", subnet.network_address.packed, subnet.prefixlen)
                + nft.interface("oif", network.bridge, equal=False)
                + nft.masquerade()
            )
    return rules


def _into(network: NetworkRecord) -> list[Rule]:
    rules = [nft.ct_state(nft.STATE_ESTABLISHED, nft.STATE_RELATED) + nft.verdict(nft.ACCEPT)]
    same = nft.interface("iif", network.bridge)
    icc = network.flag(ICC, default=True)
    rules.append(same + nft.verdict(nft.ACCEPT if icc else nft.DROP))
    if network.spec.internal:
        return [*rules, nft.counter() + nft.verdict(nft.DROP)]
    rules.append(nft.ct_status_dnat() + nft.verdict(nft.ACCEPT))
    for version, key in ((4, GATEWAY_MODE_4), (6, GATEWAY_MODE_6)):
        if network.option(key) == "nat-unprotected":
            rules.append(nft.nfproto(version) + nft.verdict(nft.ACCEPT))
        elif network.option(key) == "routed":
            icmp = "icmp" if version == 4 else "icmpv6"
            rules.append(nft.nfproto(version) + nft.l4proto(icmp) + nft.verdict(nft.ACCEPT))
    return [*rules, nft.counter() + nft.verdict(nft.DROP)]


def _out_of(network: NetworkRecord, *, limited: bool) -> list[Rule]:
    rules: list[Rule] = []
    if network.spec.internal:
        rules.append(
            nft.interface("oif", network.bridge, equal=False)
            + nft.counter()
            + nft.verdict(nft.DROP)
        )
    if limited:
        # Where bridged packets come by here too (bridge-nf-call-ip6tables), neighbours must still be found on the link.
        same = nft.interface("oif", network.bridge)
        rules += [same + each for each in egress.neighbour_discovery()]
        rules.append(nft.verdict(nft.JUMP, "limits"))
    return rules
