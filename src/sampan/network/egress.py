"""Where a container may connect: the words of `--egress`, and the rules that hold it to them. Pure.

    none                         nowhere
    10.0.0.0/8,2001:db8::/32     these networks, and single addresses
    example.com,*.example.org    these names, and all names below; what they resolve to by our name service

A limit is about connections that the container makes. Whoever may connect to it still may, and gets answers.

Two tables, of names and addresses only, the same rules for every limited container:

    table bridge <engine>     at the container's own port of the bridge, before anything else sees the frame
      from    only its own hardware and internet addresses (no forged sender, no forged neighbour); every IP packet is
              handed to this host to be routed, a neighbour's too; no other protocol passes
      to      packets from neighbours come by the host as well, so that connection tracking sees both directions
    table inet <engine>       chain limits, of all that comes from a bridge, forwarded or for this host
      limited4/6    whose packets are limited; each element counts what was dropped
      allowed4/6    source . network                from the list
      granted4/6    source . address, with an end   what an allowed name resolved to (put in by the keeper)

The name service is inside the container's namespace, so no packet of a limited container to any other server passes
unless its address is in the list; and the service forwards no other names than those of the list (`keeper.py`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

import msgspec

from sampan.errors import InvalidArgument
from sampan.linux import nft, nft_frames
from sampan.network.ipam import mac_bytes
from sampan.network.records import EndpointRecord

ANNOTATION = "sampan.egress"  # of a container (HostConfig.Annotations), and an option of a network
NOWHERE = "none"
MAX_ENTRIES = 1024
_NAME = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Rule = tuple[nft.Expression, ...]


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One limited endpoint as the rules need it. `router` is the hardware address of its bridge."""

    link: str
    mac: str
    router: str
    ipv4: str = ""
    ipv6: str = ""
    networks: tuple[str, ...] = ()


def parse(text: str) -> tuple[str, ...]:
    """The entries of a list in their normal form; nothing for `none`. Raises InvalidArgument."""
    entries = [word.strip() for word in text.split(",") if word.strip()]
    if not entries:
        raise InvalidArgument(
            "invalid egress list: it is empty", hint="say 'none' for a container that may connect nowhere"
        )  # fmt: skip
    if NOWHERE in entries:
        if len(entries) > 1:
            raise InvalidArgument(f"invalid egress list {text!r}: 'none' stands alone")
        return ()
    if len(entries) > MAX_ENTRIES:
        raise InvalidArgument(f"invalid egress list: more than {MAX_ENTRIES} entries")
    return tuple(dict.fromkeys(_entry(word) for word in entries))


def _entry(word: str) -> str:
    try:
        if "%" not in word:
            return str(ipaddress.ip_network(word, strict=False))
    except ValueError:
        pass
    name = word.lower().rstrip(".")
    looks_numeric = not re.search("[a-z]", name.rpartition(".")[2])
    if looks_numeric or "/" in word or len(name) > 253 or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"invalid egress entry {word!r}", hint="an address, a network (10.0.0.0/8), a name, or *.name"
        )  # fmt: skip
    return name


def show(entries: Iterable[str]) -> str:
    """The list as it is written."""
    return ",".join(entries) or NOWHERE


def networks_of(entries: Iterable[str]) -> list[Network]:
    """The addresses and networks of a list, overlapping ones merged."""
    found: list[Network] = [ipaddress.ip_network(e) for e in entries if _is_network(e)]
    merged: list[Network] = []
    for version in (4, 6):
        merged += ipaddress.collapse_addresses(n for n in found if n.version == version)  # type: ignore[type-var]
    return merged


def covers(networks: Iterable[Network], packed: bytes) -> bool:
    """Whether an address is in one of the networks."""
    address = ipaddress.ip_address(packed)
    return any(address in network for network in networks)


def names_of(entries: Iterable[str]) -> list[str]:
    """The names of a list."""
    return [entry for entry in entries if not _is_network(entry)]


def with_hosts(entries: tuple[str, ...], hosts: dict[str, str]) -> tuple[str, ...]:
    """The list with the addresses that its names have in the container's own /etc/hosts: nobody asks us for those."""
    known = [_entry(hosts[name]) for name in names_of(entries) if hosts.get(name)]
    return tuple(dict.fromkeys((*entries, *known)))


def _is_network(entry: str) -> bool:
    return "/" in entry


def limits(endpoints: Iterable[EndpointRecord], routers: dict[str, str]) -> list[Limit]:
    """The limited ones of these endpoints. `routers`: network id -> hardware address of its bridge."""
    return [
        Limit(
            link=e.host_link, mac=e.mac, router=routers[e.network_id], ipv4=e.ipv4, ipv6=e.ipv6,
            networks=tuple(str(n) for n in networks_of(e.egress)),
        )
        for e in sorted(endpoints, key=lambda e: e.host_link)
        if e.egress is not None and e.host_link
    ]  # fmt: skip


def sources(endpoints: Iterable[EndpointRecord]) -> list[str]:
    """The addresses whose packets are limited."""
    return [a for e in endpoints if e.egress is not None for a in (e.ipv4, e.ipv6) if a]


# --- table inet: who may reach what


def sets(limited: Sequence[Limit]) -> list[nft.Set]:
    """The sets that `limits_chain` asks."""
    made = []
    for version in (4, 6):
        kind = f"ipv{version}_addr"
        mine = [(each, each.ipv4 if version == 4 else each.ipv6) for each in limited]
        own = [nft.Element(_packed(address), words=address) for _, address in mine if address]
        allowed = [
            _allowed(address, ipaddress.ip_network(network))
            for each, address in mine
            for network in each.networks
            if address and (":" in network) == (version == 6)
        ]
        pair = f"{kind} . {kind}"
        made += [
            nft.Set(f"limited{version}", kind, counted=True, elements=own),
            nft.Set(f"allowed{version}", pair, flags=nft.SET_INTERVAL, elements=allowed),
            nft.Set(f"granted{version}", pair, flags=nft.SET_TIMEOUT),
        ]
    return made


def _allowed(source: str, network: Network) -> nft.Element:
    own = _packed(source)
    return nft.Element(
        own + network.network_address.packed, last=own + network.broadcast_address.packed,
        words=f"{source} . {network}",
    )  # fmt: skip


def limits_chain() -> nft.Chain:
    """Returns for what is allowed and for everybody who is not limited."""
    rules: list[Rule] = [
        nft.ct_state(nft.STATE_ESTABLISHED, nft.STATE_RELATED) + nft.verdict(nft.RETURN)
    ]
    for version, first, second, length in ((4, 12, 16, 4), (6, 8, 24, 16)):
        family = "ip" if version == 4 else "ip6"
        pair = nft.concat(("network", first, length), ("network", second, length))
        for name in ("allowed", "granted"):
            inside = nft.in_set(pair, f"{name}{version}", words=f"{family} saddr . {family} daddr")
            rules.append(nft.nfproto(version) + inside + nft.verdict(nft.RETURN))
        own = nft.in_set(
            nft.concat(("network", first, length)), f"limited{version}", words=f"{family} saddr"
        )
        rules.append(nft.nfproto(version) + own + nft.verdict(nft.DROP))
    return nft.Chain("limits", rules)


def neighbour_discovery() -> list[Rule]:
    """What every host must be able to ask and answer on its own link."""
    kinds = (nft_frames.NEIGHBOUR_SOLICITATION, nft_frames.NEIGHBOUR_ADVERTISEMENT)
    return [nft_frames.icmpv6_type(kind) + nft.verdict(nft.RETURN) for kind in kinds]


def input_chain(from_containers: Rule) -> nft.Chain:
    """The same for packets to this host."""
    jump = from_containers + nft.verdict(nft.JUMP, "limits")
    return nft.Chain("input", [*neighbour_discovery(), jump], hook="input", priority=0)


# --- table bridge: nothing but its own packets, and all of them by this host


def guard(name: str, limited: Sequence[Limit]) -> nft.Table:
    """The table of the bridge family."""
    own4 = [_bound(e, e.ipv4) for e in limited if e.ipv4]
    own6 = [_bound(e, e.ipv6) for e in limited if e.ipv6]
    made = [
        nft.Set("limited", "ifname", elements=[nft.Element(_ifname(e.link), words=f'"{e.link}"') for e in limited]),
        nft.Set("bound4", "ifname . ether_addr . ipv4_addr", elements=own4),
        nft.Set("bound6", "ifname . ether_addr . ipv6_addr", elements=own6),
        nft.Set("router", "ifname", data="ether_addr", elements=[_router(e) for e in limited]),
        nft.Set("toward4", "ether_addr . ipv4_addr", data="ether_addr", elements=[_toward(e, e.ipv4) for e in limited if e.ipv4]),
        nft.Set("toward6", "ether_addr . ipv6_addr", data="ether_addr", elements=[_toward(e, e.ipv6) for e in limited if e.ipv6]),
    ]  # fmt: skip
    chains = [
        nft.Chain("prerouting", _to_limited(), hook="prerouting", priority=-300),
        nft.Chain("from", _from_limited()),
    ]
    return nft.Table("bridge", name, chains, made)


def _to_limited() -> list[Rule]:
    port = [nft.meta_load(nft.META_IIFNAME)]
    accept = nft.verdict(nft.ACCEPT)
    return [
        nft.in_set(port, "limited", words="iifname") + nft.verdict(nft.GOTO, "from"),
        nft_frames.icmpv6_type(nft_frames.NEIGHBOUR_SOLICITATION) + accept,
        nft_frames.icmpv6_type(nft_frames.NEIGHBOUR_ADVERTISEMENT) + accept,
        *(
            nft_frames.protocol(family)
            + nft_frames.route_by(
                nft.concat(("link", 0, 6), ("network", offset, length)), f"toward{version}",
                words=f"ether daddr . {family} daddr",
            )
            for family, version, offset, length in (("ip", 4, 16, 4), ("ip6", 6, 24, 16))
        ),
    ]  # fmt: skip


def _from_limited() -> list[Rule]:
    accept = nft.verdict(nft.ACCEPT)
    solicitation = nft_frames.icmpv6_type(nft_frames.NEIGHBOUR_SOLICITATION)
    advertisement = nft_frames.icmpv6_type(nft_frames.NEIGHBOUR_ADVERTISEMENT)
    link_local = nft.address("saddr", b"\xfe\x80" + bytes(14), 10)
    six = nft_frames.protocol("ip6")
    return [
        nft_frames.protocol("arp") + _is_own("network", 14, 4, "arp saddr ip") + accept,
        nft_frames.protocol("ip") + _is_own("network", 12, 4, "ip saddr") + _to_host() + accept,
        six + solicitation + link_local + accept,
        six + solicitation + _is_own("network", 8, 16, "ip6 saddr") + accept,
        six + advertisement + _is_own("transport", 8, 16, "icmpv6 taddr") + accept,
        six + _is_own("network", 8, 16, "ip6 saddr") + _to_host() + accept,
        nft.counter() + nft.verdict(nft.DROP),
    ]


def _is_own(header: str, offset: int, length: int, words: str) -> Rule:
    loads = nft.concat(("iifname", 0, nft.IFNAMSIZ), ("link", 6, 6), (header, offset, length))
    name = "bound4" if length == 4 else "bound6"
    return nft.in_set(loads, name, words=f"iifname . ether saddr . {words}")


def _to_host() -> Rule:
    return nft_frames.route_by([nft.meta_load(nft.META_IIFNAME)], "router", words="iifname")


def _bound(limit: Limit, address: str) -> nft.Element:
    key = _ifname(limit.link) + nft.pad(mac_bytes(limit.mac)) + _packed(address)
    return nft.Element(key, words=f'"{limit.link}" . {limit.mac} . {address}')


def _router(limit: Limit) -> nft.Element:
    return nft.Element(
        _ifname(limit.link), data=mac_bytes(limit.router), words=f'"{limit.link}" : {limit.router}'
    )


def _toward(limit: Limit, address: str) -> nft.Element:
    key = nft.pad(mac_bytes(limit.mac)) + _packed(address)
    words = f"{limit.mac} . {address} : {limit.router}"
    return nft.Element(key, data=mac_bytes(limit.router), words=words)


def _ifname(name: str) -> bytes:
    return name.encode().ljust(nft.IFNAMSIZ, b"\0")


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed
