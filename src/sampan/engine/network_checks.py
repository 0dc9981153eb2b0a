"""What a request about networks may not say: every fault of it at once, in Docker's words. Pure.

    POST /networks/create     check_ipam      "invalid network config:\\n..."; check_options, check_scope
    POST /containers/create   check_endpoint  "invalid config for network NAME: invalid endpoint settings:\\n..."
    POST /networks/x/connect  check_endpoint  "invalid endpoint settings:\\n..."

One fault stands alone on its line; several are a list with a star before each (Engine API since 25).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence

from sampan.errors import InvalidArgument, PermissionDenied
from sampan.network.records import NetworkRecord
from sampan.spec.engine.container import EndpointIpam, EndpointSettings
from sampan.spec.engine.network import IpamConfig
from sampan.units import parse_bool, parse_int

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PREDEFINED = frozenset({"bridge", "host", "none", "default"})
_MAC = re.compile(
    r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}([:-][0-9a-f]{2}){0,2}", re.ASCII | re.IGNORECASE
)


def joined(faults: Sequence[str]) -> str:
    """One fault as it is, several as a list."""
    if len(faults) == 1:
        return faults[0].strip()
    return "* " + "\n* ".join(fault.replace("\n", "\n\t") for fault in faults)


# -- a network's options and scope -----------------------------------------------------------------

MTU = "com.docker.network.driver.mtu"
_BRIDGE = "com.docker.network.bridge."
SWITCHES = tuple(
    f"{_BRIDGE}{name}" for name in ("default_bridge", "enable_icc", "enable_ip_masquerade")
)


def check_options(options: Mapping[str, str]) -> None:
    """Raises InvalidArgument for a switch that is none and an MTU that is no number."""
    for name in SWITCHES:
        value = options.get(name)
        if value is not None and parse_bool(value) is None:
            raise InvalidArgument(
                f'failed to parse {name} value: {value} (strconv.ParseBool: parsing "{value}": invalid syntax)'
            )
    mtu = options.get(MTU)
    if mtu is not None and parse_int(mtu) is None:
        raise InvalidArgument(
            f'failed to parse {MTU} value: {mtu} (strconv.Atoi: parsing "{mtu}": invalid syntax)'
        )


def check_scope(scope: str, *, ingress: bool) -> None:
    """Raises PermissionDenied for what only a swarm has."""
    if scope == "swarm":
        raise PermissionDenied("cannot create a swarm scoped network when swarm is not active")
    if ingress and scope != "global":
        raise PermissionDenied("Ingress network can only be global scope network")


# -- a network's address pools ---------------------------------------------------------------------


def check_ipam(pools: Sequence[IpamConfig], *, ipv6: bool) -> None:
    """Raises InvalidArgument that lists what is wrong with subnets, ranges, gateways and auxiliary addresses."""
    faults = [fault for pool in pools if pool.subnet for fault in _pool_faults(pool, ipv6=ipv6)]
    if faults:
        raise InvalidArgument(f"invalid network config:\n{joined(faults)}")


def _pool_faults(pool: IpamConfig, *, ipv6: bool) -> Iterator[str]:
    parsed = _prefix(pool.subnet)
    if parsed is None:
        yield f"invalid subnet {pool.subnet}: invalid CIDR block notation"
        return
    subnet, is_masked = parsed
    if subnet.version == 6 and not ipv6:
        return  # it is not used
    if not is_masked:
        yield f"invalid subnet {pool.subnet}: it should be {subnet}"
    if pool.ip_range:
        yield from _range_faults(pool.ip_range, subnet)
    if fault := _address_fault(pool.gateway, subnet):
        yield f"invalid gateway {pool.gateway}: {fault}"
    for name, text in pool.auxiliary_addresses.items():
        if fault := _address_fault(text, subnet):
            yield f"invalid auxiliary address {name}: {fault}"


def _range_faults(text: str, subnet: Network) -> Iterator[str]:
    parsed = _prefix(text)
    if parsed is None:
        yield f"invalid ip-range {text}: invalid CIDR block notation"
        return
    inner, is_masked = parsed
    if inner.version != subnet.version:
        yield f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"
        return
    if inner.prefixlen < subnet.prefixlen:
        yield f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
    if not is_masked:
        yield f"invalid ip-range {text}: it should be {inner}"
    if not subnet.overlaps(inner):
        yield f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"


def _address_fault(text: str, subnet: Network) -> str:
    if not text:
        return ""
    address = _address(text)
    if address is None:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    if address not in subnet:
        return f"parent subnet {subnet} doesn't contain this address"
    return ""


def _prefix(text: str) -> tuple[Network, bool] | None:
    """The block and whether its host bits are clear; None where it is not `ADDRESS/BITS`."""
    bits = text.partition("/")[2]
    if not (bits.isascii() and bits.isdigit()) or "%" in text:
        return None
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return None
    return interface.network, interface.ip == interface.network.network_address


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# -- a container's place in a network --------------------------------------------------------------


def check_endpoint(name: str, wish: EndpointSettings, network: NetworkRecord | None) -> None:
    """Raises InvalidArgument; `network` is None while no such network is there."""
    if wish.mac_address and not _MAC.fullmatch(wish.mac_address):
        raise InvalidArgument(f"invalid MAC address {wish.mac_address}")
    ipam = wish.ipam_config or EndpointIpam()
    faults = []
    if name in PREDEFINED:
        if ipam.ipv4_address or ipam.ipv6_address:
            faults.append("user specified IP address is supported on user defined networks only")
        if wish.aliases:
            faults.append(
                "network-scoped alias is supported only for containers in user defined networks"
            )
    faults += _own_faults(ipam)
    if network is not None:
        pools = () if network.chosen else tuple(p.ip_range or p.subnet for p in network.pools)
        faults += _place_faults(ipam.ipv4_address, 4, pools)
        faults += _place_faults(ipam.ipv6_address, 6, pools)
    if faults:
        raise InvalidArgument(f"invalid endpoint settings:\n{joined(faults)}")


def _own_faults(ipam: EndpointIpam) -> Iterator[str]:
    for text, version in ((ipam.ipv4_address, 4), (ipam.ipv6_address, 6)):
        address = _address(text)
        if text and (address is None or address.version != version or address.is_unspecified):
            yield f"invalid IPv{version} address: {text}"
    for text in ipam.link_local_ips or ():
        address = _address(text)
        if address is None or address.is_unspecified:
            yield f"invalid link-local IP address: {text}"


def _place_faults(text: str, version: int, pools: Sequence[str]) -> Iterator[str]:
    """An address must lie in a subnet that a person chose: one that we chose may be another after a restart."""
    if not text:
        return
    address = _address(text)
    chosen = [ipaddress.ip_network(pool, strict=False) for pool in pools]
    chosen = [pool for pool in chosen if pool.version == version]
    if not chosen:
        yield (
            "user specified IP address is supported only when connecting to networks "
            "with user configured subnets"
        )
    elif address is None or not any(address in pool for pool in chosen):
        yield f"no configured subnet or ip-range contain the IP address {text}"
