"""What is wrong with a request about networks, all of it, in Docker's words."""

from __future__ import annotations

import pytest

from sampan.engine.network_checks import (
    check_endpoint,
    check_ipam,
    check_options,
    check_scope,
    joined,
)
from sampan.errors import InvalidArgument, PermissionDenied
from sampan.network.records import NetworkRecord, NetworkSpec, PoolSpec
from sampan.spec.engine.container import EndpointIpam, EndpointSettings
from sampan.spec.engine.network import IpamConfig


def network(name: str = "n", *, chosen: bool = False, ip_range: str = "") -> NetworkRecord:
    pool = PoolSpec(subnet="10.1.0.0/16", ip_range=ip_range, gateway="10.1.0.1")
    return NetworkRecord(
        id="1" * 64, created="", spec=NetworkSpec(name=name), pools=(pool,), chosen=chosen
    )


def at(ipv4: str = "", **more: object) -> EndpointSettings:
    return EndpointSettings(ipam_config=EndpointIpam(ipv4_address=ipv4), **more)  # type: ignore[arg-type]


def test_one_fault_stands_alone_and_several_are_a_list() -> None:
    assert joined(["a"]) == "a"
    assert joined(["a\nb", "c"]) == "* a\n\tb\n* c"


@pytest.mark.parametrize(
    ("pool", "fault"),
    [
        ({"subnet": "nonsense"}, "invalid subnet nonsense: invalid CIDR block notation"),
        ({"subnet": "10.0.0.0/33"}, "invalid subnet 10.0.0.0/33: invalid CIDR block notation"),
        ({"subnet": "10.0.0.0/255.0.0.0"}, "invalid subnet 10.0.0.0/255.0.0.0: invalid CIDR block notation"),
        ({"subnet": "10.0.0.5/24"}, "invalid subnet 10.0.0.5/24: it should be 10.0.0.0/24"),
        ({"ip_range": "x"}, "invalid ip-range x: invalid CIDR block notation"),
        ({"ip_range": "fd00::/64"}, "invalid ip-range fd00::/64: parent subnet is an IPv4 block"),
        ({"ip_range": "10.0.0.0/8"}, "invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.0.0.0/24"),
        ({"ip_range": "10.0.0.9/28"}, "invalid ip-range 10.0.0.9/28: it should be 10.0.0.0/28"),
        ({"ip_range": "10.9.0.0/28"}, "invalid ip-range 10.9.0.0/28: parent subnet 10.0.0.0/24 doesn't contain ip-range"),
        ({"gateway": "x"}, "invalid gateway x: invalid address"),
        ({"gateway": "fd00::1"}, "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        ({"gateway": "10.9.0.1"}, "invalid gateway 10.9.0.1: parent subnet 10.0.0.0/24 doesn't contain this address"),
        ({"auxiliary_addresses": {"h": "10.9.0.1"}}, "invalid auxiliary address h: parent subnet 10.0.0.0/24 doesn't contain this address"),
    ],
)  # fmt: skip
def test_faults_of_a_pool(pool: dict[str, object], fault: str) -> None:
    config = IpamConfig(**{"subnet": "10.0.0.0/24", **pool})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as caught:
        check_ipam([config], ipv6=False)
    assert caught.value.message == f"invalid network config:\n{fault}"


def test_every_fault_is_told() -> None:
    pools = [IpamConfig(subnet="a"), IpamConfig(subnet="10.0.0.0/24", gateway="b")]
    with pytest.raises(InvalidArgument) as caught:
        check_ipam(pools, ipv6=False)
    assert caught.value.message == (
        "invalid network config:\n* invalid subnet a: invalid CIDR block notation\n* invalid gateway b: invalid address"
    )


def test_a_good_pool_passes_and_ipv6_counts_only_where_it_is_on() -> None:
    good = IpamConfig(subnet="10.0.0.0/24", ip_range="10.0.0.128/25", gateway="10.0.0.1")
    odd = IpamConfig(subnet="fd00::/64", gateway="10.0.0.1")
    check_ipam([good, odd], ipv6=False)
    with pytest.raises(InvalidArgument):
        check_ipam([odd], ipv6=True)


@pytest.mark.parametrize(
    ("wish", "there", "fault"),
    [
        (at("10.9.0.1"), network(), "no configured subnet or ip-range contain the IP address 10.9.0.1"),
        (at("10.1.9.9"), network(ip_range="10.1.1.0/24"), "no configured subnet or ip-range contain the IP address 10.1.9.9"),
        (at("10.1.0.9"), network(chosen=True), "user specified IP address is supported only when connecting to networks with user configured subnets"),
        (at("0.0.0.0"), None, "invalid IPv4 address: 0.0.0.0"),
        (at("fd00::1"), None, "invalid IPv4 address: fd00::1"),
        (EndpointSettings(ipam_config=EndpointIpam(ipv6_address="10.0.0.1")), None, "invalid IPv6 address: 10.0.0.1"),
        (EndpointSettings(ipam_config=EndpointIpam(link_local_ips=["x"])), None, "invalid link-local IP address: x"),
    ],
)  # fmt: skip
def test_faults_of_an_endpoint(
    wish: EndpointSettings, there: NetworkRecord | None, fault: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_endpoint("n", wish, there)
    assert caught.value.message == f"invalid endpoint settings:\n{fault}"


def test_predefined_networks_have_neither_addresses_nor_names_to_choose() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_endpoint("bridge", at("10.1.0.9", aliases=["a"]), network("bridge", chosen=True))
    assert caught.value.message == (
        "invalid endpoint settings:\n"
        "* user specified IP address is supported on user defined networks only\n"
        "* network-scoped alias is supported only for containers in user defined networks\n"
        "* user specified IP address is supported only when connecting to networks with user configured subnets"
    )


def test_an_address_within_a_chosen_subnet_passes() -> None:
    check_endpoint("n", at("10.1.0.9", aliases=["a"], mac_address="02:42:0a:01:00:09"), network())
    check_endpoint("later", at("10.1.0.9"), None)


def test_a_mac_address_must_be_one() -> None:
    with pytest.raises(InvalidArgument, match="invalid MAC address nonsense"):
        check_endpoint("n", EndpointSettings(mac_address="nonsense"), None)


def test_switches_and_the_mtu_must_be_such() -> None:
    check_options(
        {"com.docker.network.bridge.enable_icc": "false", "com.docker.network.driver.mtu": "1400"}
    )
    with pytest.raises(InvalidArgument, match=r'ParseBool: parsing "x"'):
        check_options({"com.docker.network.bridge.enable_icc": "x"})
    with pytest.raises(InvalidArgument, match=r'Atoi: parsing "x"'):
        check_options({"com.docker.network.driver.mtu": "x"})


def test_what_only_a_swarm_has() -> None:
    check_scope("local", ingress=False)
    with pytest.raises(PermissionDenied, match="swarm is not active"):
        check_scope("swarm", ingress=False)
    with pytest.raises(PermissionDenied, match="Ingress network"):
        check_scope("", ingress=True)
