"""Which subnet a network gets, which address a container gets, and what is refused."""

from __future__ import annotations

import ipaddress
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.errors import InvalidArgument, NotFound, PermissionDenied
from sampan.network import ipam
from sampan.network.records import PoolSpec

POOL = PoolSpec(subnet="10.0.0.0/24", gateway="10.0.0.1")


def networks(*texts: str) -> list[ipam.Network]:
    return [ipam.parse_network(text) for text in texts]


class TestPools:
    def test_the_first_subnet_that_meets_nothing(self) -> None:
        assert str(ipam.choose_subnet(ipam.DEFAULT_POOLS, [])) == "172.17.0.0/16"
        taken = networks("172.17.0.0/16", "172.18.5.0/24", "172.16.0.0/12")
        assert str(ipam.choose_subnet(ipam.DEFAULT_POOLS, taken[:2])) == "172.19.0.0/16"
        assert str(ipam.choose_subnet(ipam.DEFAULT_POOLS, taken)) == "192.168.0.0/20"

    def test_a_pool_is_cut_into_subnets(self) -> None:
        taken = networks("10.0.0.0/30", "10.0.0.64/27")
        assert str(ipam.choose_subnet([("10.0.0.0/24", 26)], taken)) == "10.0.0.128/26"

    def test_a_pool_may_have_host_bits(self) -> None:
        assert str(ipam.choose_subnet([("10.0.0.9/16", 24)], [])) == "10.0.0.0/24"

    def test_networks_of_the_other_family_are_no_hindrance(self) -> None:
        pools = [("fd00::/48", 64), ("10.0.0.0/24", 24)]
        assert str(ipam.choose_subnet(pools, networks("fd00::/8"), 4)) == "10.0.0.0/24"
        assert str(ipam.choose_subnet(pools, networks("10.0.0.0/8"), 6)) == "fd00::/64"
        assert str(ipam.choose_subnet(pools, networks("fd00::/64"), 6)) == "fd00:0:0:1::/64"

    @pytest.mark.parametrize("pools", [[], [("10.0.0.0/24", 26)], [("11.0.0.0/24", 16)], [("11.0.0.0/24", 33)], [("fd00::/48", 64)]])  # fmt: skip
    def test_no_subnet_left(self, pools: list[tuple[str, int]]) -> None:
        with pytest.raises(NotFound, match="non-overlapping IPv4 address pool") as caught:
            ipam.choose_subnet(pools, networks("10.0.0.0/8"))
        assert "--subnet" in caught.value.hint

    def test_overlaps(self) -> None:
        (one,) = networks("10.0.0.0/24")
        assert ipam.overlaps(one, networks("fd00::/8", "10.0.0.128/25"))
        assert ipam.overlaps(one, networks("10.0.0.0/8"))
        assert not ipam.overlaps(one, networks("10.0.1.0/24", "::/0"))

    def test_an_ipv6_pool_of_the_hosts_own(self) -> None:
        """RFC 4193: fd, and 40 bits."""
        base, size = ipam.unique_local_pool(b"\1\2\3\4\5")
        assert (base, size) == ("fd01:203:405::/48", 64)
        assert ipaddress.ip_network(ipam.unique_local_pool(b"")[0]).prefixlen == 48


class TestComplete:
    @pytest.mark.parametrize(
        ("subnet", "gateway"),
        [
            ("10.0.0.0/24", "10.0.0.1"),
            ("10.0.0.77/24", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.1"),
            ("10.0.0.0/31", "10.0.0.0"),
            ("10.0.0.5/32", "10.0.0.5"),
            ("fd00::/64", "fd00::1"),
            ("fd00::/127", "fd00::"),
        ],
    )
    def test_the_gateway_is_the_first_host(self, subnet: str, gateway: str) -> None:
        assert ipam.complete(PoolSpec(subnet=subnet)).gateway == gateway

    def test_host_bits_are_taken_off(self) -> None:
        assert ipam.complete(PoolSpec(subnet="10.0.0.77/24")).subnet == "10.0.0.0/24"

    def test_the_gateway_keeps_off_auxiliary_addresses(self) -> None:
        aux = {"router": "10.0.0.1", "printer": "10.0.0.2"}
        made = ipam.complete(PoolSpec(subnet="10.0.0.0/24", aux=aux))
        assert (made.gateway, made.aux) == ("10.0.0.3", aux)

    def test_a_gateway_with_its_prefix(self) -> None:
        assert ipam.complete(PoolSpec(subnet="10.0.0.0/24", gateway="10.0.0.9/24")).gateway == "10.0.0.9"  # fmt: skip

    def test_no_address_is_left_for_the_gateway(self) -> None:
        with pytest.raises(PermissionDenied, match="gateway"):
            ipam.complete(PoolSpec(subnet="10.0.0.1/32", aux={"a": "10.0.0.1"}))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"subnet": "10.0.0.0"}, "invalid CIDR address: 10.0.0.0"),
            ({"subnet": "x/8"}, "invalid CIDR address: x/8"),
            ({"subnet": "10.0.0.0/33"}, "invalid CIDR"),
            ({"subnet": "10.0.0.0/255.255.0.0"}, "invalid CIDR"),
            ({"subnet": "10.0.0.0/٨"}, "invalid CIDR"),
            ({"subnet": "fe80::%eth0/64"}, "invalid CIDR"),
            ({"ip_range": "10.0.1.0/25"}, "not within the subnet"),
            ({"ip_range": "10.0.0.0/16"}, "not within the subnet"),
            ({"ip_range": "fd00::/64"}, "not within the subnet"),
            ({"ip_range": "10.0.0.1"}, "Invalid ip-range"),
            ({"gateway": "10.0.1.1"}, "no matching subnet for gateway 10.0.1.1"),
            ({"gateway": "fd00::1"}, "no matching subnet for gateway"),
            ({"gateway": "x"}, "invalid gateway address: x"),
            ({"aux": {"a": "10.0.1.1"}}, "no matching subnet for aux-address 10.0.1.1"),
            ({"aux": {"a": "x"}}, "invalid auxiliary address"),
        ],
    )
    def test_refusals(self, fields: dict[str, object], message: str) -> None:
        spec = PoolSpec(**{"subnet": "10.0.0.0/24", **fields})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match=message):
            ipam.complete(spec)


class TestAllocate:
    def test_the_lowest_free_address(self) -> None:
        assert ipam.allocate(POOL, []) == "10.0.0.2"
        assert ipam.allocate(POOL, ["10.0.0.2", "10.0.0.4"]) == "10.0.0.3"

    def test_auxiliary_addresses_are_not_given_away(self) -> None:
        pool = PoolSpec(subnet="10.0.0.0/24", gateway="10.0.0.1", aux={"a": "10.0.0.2"})
        assert ipam.allocate(pool, []) == "10.0.0.3"
        with pytest.raises(PermissionDenied, match="Address already in use"):
            ipam.allocate(pool, [], "10.0.0.2")

    def test_a_range_bounds_what_is_chosen_but_not_what_is_wished(self) -> None:
        pool = PoolSpec(subnet="10.0.0.0/24", gateway="10.0.0.1", ip_range="10.0.0.128/30")
        assert ipam.allocate(pool, ["10.0.0.128"]) == "10.0.0.129"
        assert ipam.allocate(pool, [], "10.0.0.7") == "10.0.0.7"
        full = [f"10.0.0.{n}" for n in range(128, 132)]
        with pytest.raises(PermissionDenied, match="no available IPv4 addresses"):
            ipam.allocate(pool, full)

    def test_the_range_s_own_ends_are_hosts_like_others(self) -> None:
        pool = PoolSpec(subnet="10.0.0.0/24", gateway="10.0.0.1", ip_range="10.0.0.252/30")
        taken = ["10.0.0.252", "10.0.0.253", "10.0.0.254"]
        assert ipam.allocate(pool, []) == "10.0.0.252"
        with pytest.raises(PermissionDenied):  # .255 is the subnet's broadcast
            ipam.allocate(pool, taken)

    def test_ipv6(self) -> None:
        pool = PoolSpec(subnet="fd00::/64", gateway="fd00::1")
        assert ipam.allocate(pool, []) == "fd00::2"
        assert ipam.allocate(pool, ["fd00:0:0::2"]) == "fd00::3"  # in any spelling
        assert ipam.allocate(pool, [], "fd00:0::BEEF") == "fd00::beef"
        assert ipam.allocate(pool, [], "fd00::ffff:ffff:ffff:ffff").endswith("ffff")
        with pytest.raises(PermissionDenied):
            ipam.allocate(pool, [], "fd00::")

    def test_a_network_of_two_addresses(self) -> None:
        """RFC 3021, RFC 6164: neither is the network's or the broadcast."""
        pool = PoolSpec(subnet="10.0.0.0/31", gateway="10.0.0.0")
        assert ipam.allocate(pool, []) == "10.0.0.1"
        assert ipam.allocate(pool, [], "10.0.0.1") == "10.0.0.1"
        assert ipam.allocate(PoolSpec(subnet="fd00::/127", gateway="fd00::"), []) == "fd00::1"
        with pytest.raises(PermissionDenied):
            ipam.allocate(pool, ["10.0.0.1"])

    @pytest.mark.parametrize("wanted", ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.0.9"])
    def test_taken_addresses(self, wanted: str) -> None:
        with pytest.raises(PermissionDenied, match="Address already in use"):
            ipam.allocate(POOL, ["10.0.0.9"], wanted)

    @pytest.mark.parametrize(
        ("wanted", "message"),
        [
            ("10.1.0.1", "does not belong to any of this network's subnets"),
            ("fd00::1", "does not belong to any"),
            ("10.0.0.01", "invalid address"),
            ("ten", "invalid address: ten"),
        ],
    )
    def test_addresses_that_are_none_of_ours(self, wanted: str, message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            ipam.allocate(POOL, [], wanted)

    @settings(derandomize=True, deadline=None, max_examples=40)
    @given(prefix=st.integers(26, 32), count=st.integers(0, 12))
    def test_nobody_gets_an_address_twice(self, prefix: int, count: int) -> None:
        pool = ipam.complete(PoolSpec(subnet=f"10.0.0.64/{prefix}"))
        taken: list[str] = []
        try:
            for _ in range(count):
                taken.append(ipam.allocate(pool, taken))
        except PermissionDenied:
            assert len(taken) == len(list(ipam.candidates(ipam.parse_network(pool.subnet)))) - 1
        assert len({*taken, pool.gateway}) == len(taken) + 1


def test_candidates_of_a_huge_subnet_are_lazy() -> None:
    first = islice(ipam.candidates(ipam.parse_network("fd00::/8")), 2)
    assert [str(address) for address in first] == ["fd00::1", "fd00::2"]


def test_hardware_addresses() -> None:
    assert ipam.mac_for("172.17.0.255") == "02:42:ac:11:00:ff"
    assert ipam.mac_bytes("02-42-AC-11-00-02") == ipam.mac_bytes("02:42:ac:11:00:02")
    for text in ("", "02:42:ac:11:00", "02:42:ac:11:00:2", "02:42:ac:11:00:0g", "02:42:ac:11:00:02:03", "+2:42:ac:11:00:02"):  # fmt: skip
        with pytest.raises(InvalidArgument, match="not a valid mac address"):
            ipam.mac_bytes(text)
