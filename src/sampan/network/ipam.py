"""Address pools: which subnet a network gets, which address a container gets. Pure: values in, values out.

Rules are Docker's: default pools are cut into subnets of a fixed size and the first that meets nothing in use is
taken; in a subnet the gateway is the first host address unless named; containers get the lowest free address of the
range. Network and broadcast addresses are never given away.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from sampan.errors import InvalidArgument, NotFound, PermissionDenied
from sampan.network.records import PoolSpec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)


def parse_network(text: str, *, what: str = "subnet") -> Network:
    """A CIDR whose host bits may be set. Raises InvalidArgument."""
    prefix = text.partition("/")[2]
    # Python takes netmasks and scopes as well; a CIDR address has neither.
    if not (prefix.isascii() and prefix.isdigit()) or "%" in text:
        raise InvalidArgument(f"Invalid {what} {text} : invalid CIDR address: {text}")
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidArgument(f"Invalid {what} {text} : invalid CIDR address: {text}") from None


def parse_address(text: str, *, what: str = "address") -> Address:
    """Raises InvalidArgument."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InvalidArgument(f"invalid {what}: {text}") from None


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def overlaps(one: Network, others: Iterable[Network]) -> bool:
    """Whether it shares an address with any of the others of its family."""
    return any(one.version == other.version and one.overlaps(other) for other in others)


def choose_subnet(
    pools: Iterable[tuple[str, int]], taken: Iterable[Network], version: int = 4
) -> Network:
    """The first subnet of the pools that meets nothing taken.

    Raises NotFound where every one does.
    """
    busy = [network for network in taken if network.version == version]
    for base, size in pools:
        network = ipaddress.ip_network(base, strict=False)
        if network.version != version or not network.prefixlen <= size <= network.max_prefixlen:
            continue
        for candidate in network.subnets(new_prefix=size):
            if not overlaps(candidate, busy):
                return candidate
    raise NotFound(
        f"could not find an available, non-overlapping IPv{version} address pool among the defaults to assign to the network",
        hint="give --subnet, or remove networks that are not used (network prune)",
    )


def unique_local_pool(seed: bytes) -> tuple[str, int]:
    """An IPv6 pool of unique local addresses (RFC 4193) derived from the host's own seed."""
    prefix = int.from_bytes(b"\xfd" + seed[:5].ljust(5, b"\0") + bytes(10), "big")
    return (f"{ipaddress.IPv6Address(prefix)}/48", 64)


def complete(spec: PoolSpec) -> PoolSpec:
    """Fill in the gateway; check that range, gateway and auxiliary addresses lie inside the subnet."""
    network = parse_network(spec.subnet)
    if spec.ip_range:
        inner = parse_network(spec.ip_range, what="ip-range")
        if inner.version != network.version or not _inside(inner, network):
            raise InvalidArgument(
                f"invalid ip-range {spec.ip_range}: it is not within the subnet {network}"
            )
    gateway = spec.gateway.split("/")[0]
    if gateway:
        address = parse_address(gateway, what="gateway address")
        if address.version != network.version or address not in network:
            raise InvalidArgument(f"no matching subnet for gateway {gateway}")
        if address in _edges(network):
            raise PermissionDenied(
                f"failed to allocate gateway ({gateway}): Address already in use"
            )
    else:
        aux = {parse_address(text, what="auxiliary address") for text in spec.aux.values()}
        free = next((a for a in candidates(network) if a not in aux), None)
        if free is None:
            raise PermissionDenied(f"no address is left for the gateway of {network}")
        gateway = str(free)
    for name, text in spec.aux.items():
        address = parse_address(text, what=f"auxiliary address {name}")
        if address.version != network.version or address not in network:
            raise InvalidArgument(f"no matching subnet for aux-address {text}")
        if str(address) == gateway or address in _edges(network):
            raise PermissionDenied(
                f"failed to allocate secondary ip address ({name}:{text}): Address already in use"
            )
    return PoolSpec(subnet=str(network), ip_range=spec.ip_range, gateway=gateway, aux=spec.aux)


def _inside(inner: Network, outer: Network) -> bool:
    return inner.network_address in outer and inner.broadcast_address in outer


def candidates(network: Network) -> Iterator[Address]:
    """The addresses that may be given away, in order. Lazy: an IPv6 subnet has more than can be listed."""
    edges = _edges(network)
    return (address for address in _all(network) if address not in edges)


def allocate(pool: PoolSpec, taken: Iterable[str], wanted: str = "") -> str:
    """An address of the pool: the wanted one, or the lowest free one of its range.

    Raises InvalidArgument where the wanted one is no host address of the subnet, PermissionDenied where it is taken
    or none is left.
    """
    network = parse_network(pool.subnet)
    busy = {ipaddress.ip_address(text) for text in taken}
    busy |= {ipaddress.ip_address(text) for text in (pool.gateway, *pool.aux.values()) if text}
    if wanted:
        address = parse_address(wanted)
        if address not in network:
            raise InvalidArgument(
                f"Invalid address {wanted}: It does not belong to any of this network's subnets"
            )
        if address in busy or address in _edges(network):
            raise PermissionDenied("Address already in use")
        return str(address)
    inner = parse_network(pool.ip_range) if pool.ip_range else network
    edges = _edges(network)
    for candidate in _all(inner):
        if candidate not in busy and candidate not in edges:
            return str(candidate)
    raise PermissionDenied(
        f"no available IPv{network.version} addresses on this network's address pools"
    )


def _all(network: Network) -> Iterator[Address]:
    make = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
    first = int(network.network_address)
    return (make(number) for number in range(first, int(network.broadcast_address) + 1))


def _edges(network: Network) -> tuple[Address, ...]:
    """What no host may have: the network's own address (in IPv6: any router's) and IPv4's broadcast.

    A network of one or two addresses has none (RFC 3021, RFC 6164).
    """
    if network.prefixlen >= network.max_prefixlen - 1:
        return ()
    if network.version == 6:
        return (network.network_address,)
    return (network.network_address, network.broadcast_address)


def mac_for(address: str) -> str:
    """Docker's hardware address for an IPv4 address: 02:42 and its four bytes."""
    raw = ipaddress.IPv4Address(address).packed
    return "02:42:" + ":".join(f"{byte:02x}" for byte in raw)


def mac_bytes(text: str) -> bytes:
    """Raises InvalidArgument where it is not six pairs of hex digits."""
    parts = text.replace("-", ":").split(":")
    hexes = "0123456789abcdefABCDEF"
    if len(parts) != 6 or not all(len(p) == 2 and p[0] in hexes and p[1] in hexes for p in parts):
        raise InvalidArgument(f"{text} is not a valid mac address")
    return bytes(int(part, 16) for part in parts)
