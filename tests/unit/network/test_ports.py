"""Published ports: what conflicts, which number is chosen, and that a failure gives everything back."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from sampan.errors import Internal, InvalidArgument
from sampan.network import ports
from sampan.network.ports import PortAllocator, Reserved, host_addresses, keeper_key, key_of
from sampan.network.records import PortWish, PublishedPort

ANY = ("0.0.0.0",)


class Host:
    """The host's sockets without any: what is bound, and what answers with an error."""

    def __init__(self) -> None:
        self.bound: list[ports.Key] = []
        self.errors: dict[int | str, int] = {}

    def bind(self, port: PublishedPort) -> None:
        number = self.errors.get(port.host_port) or self.errors.get(port.host_ip)
        if number:
            raise OSError(number, os.strerror(number))
        self.bound.append(key_of(port))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(ports, "bind", made.bind)
    monkeypatch.setattr(ports, "ephemeral_range", lambda: (40000, 40003))
    return made


def wish(port: int = 0, end: int = 0, *, protocol: str = "tcp", host_ip: str = "") -> PortWish:
    return PortWish(
        container_port=80, host_port=port, host_port_end=end, protocol=protocol, host_ip=host_ip
    )


def numbers(reserved: list[Reserved]) -> list[int]:
    return [each.port.host_port for each in reserved]


class TestConflicts:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (("0.0.0.0",), ("0.0.0.0",)),
            (("192.0.2.1",), ("192.0.2.1",)),
            (("0.0.0.0",), ("192.0.2.1",)),
            (("192.0.2.1",), ("0.0.0.0",)),
            (("::",), ("2001:db8::1",)),
            (("0.0.0.0", "::"), ("::",)),
        ],
    )
    def test_the_same_port(self, host: Host, first: tuple[str, ...], second: tuple[str, ...]) -> None:  # fmt: skip
        allocator = PortAllocator()
        allocator.reserve(wish(80), first)
        before = set(allocator.taken)
        with pytest.raises(Internal, match=r"Bind for .*:80 failed: port is already allocated"):
            allocator.reserve(wish(80), second)
        assert allocator.taken == before

    def test_the_words_show_the_address(self, host: Host) -> None:
        allocator = PortAllocator()
        allocator.reserve(wish(80), ("::",))
        with pytest.raises(Internal, match=r"^Bind for \[::\]:80 failed"):
            allocator.reserve(wish(80), ("::",))

    def test_no_conflict(self, host: Host) -> None:
        allocator = PortAllocator()
        allocator.reserve(wish(80), ("192.0.2.1",))
        allocator.reserve(wish(80), ("192.0.2.2",))
        allocator.reserve(wish(80), ("::",))
        allocator.reserve(wish(80, protocol="udp"), ANY)
        allocator.reserve(wish(81), ANY)
        assert len(allocator.taken) == 5

    def test_released_ports_are_free_again(self, host: Host) -> None:
        allocator = PortAllocator()
        held = [each.port for each in allocator.reserve(wish(80), ANY)]
        allocator.release(held)
        allocator.release(held)  # idempotent
        assert numbers(allocator.reserve(wish(80), ANY)) == [80]

    def test_adopted_ports_are_taken(self, host: Host) -> None:
        allocator = PortAllocator()
        allocator.adopt([PublishedPort(container_port=1, protocol="tcp", host_ip="0.0.0.0", host_port=80)])  # fmt: skip
        with pytest.raises(Internal, match="already allocated"):
            allocator.reserve(wish(80), ANY)


class TestChoice:
    def test_the_next_free_one_of_the_host_s_range(self, host: Host) -> None:
        allocator = PortAllocator()
        assert [numbers(allocator.reserve(wish(), ANY)) for _ in range(4)] == [[40000], [40001], [40002], [40003]]  # fmt: skip
        with pytest.raises(Internal, match="all ports are allocated"):
            allocator.reserve(wish(), ANY)

    def test_a_released_one_is_not_used_at_once(self, host: Host) -> None:
        allocator = PortAllocator()
        allocator.release(each.port for each in allocator.reserve(wish(), ANY))
        assert numbers(allocator.reserve(wish(), ANY)) == [40001]

    def test_it_goes_round(self, host: Host) -> None:
        allocator = PortAllocator()
        for _ in range(4):
            allocator.release(each.port for each in allocator.reserve(wish(), ANY))
        assert numbers(allocator.reserve(wish(), ANY)) == [40000]

    def test_another_program_s_port_is_passed_over(self, host: Host) -> None:
        host.errors[40000] = errno.EADDRINUSE
        assert numbers(PortAllocator().reserve(wish(), ANY)) == [40001]

    def test_one_number_on_all_addresses(self, host: Host) -> None:
        allocator = PortAllocator()
        allocator.reserve(wish(40000), ("::",))
        assert numbers(allocator.reserve(wish(), ("0.0.0.0", "::"))) == [40001, 40001]
        assert ("tcp", "0.0.0.0", 40000) not in allocator.taken

    def test_a_range(self, host: Host) -> None:
        allocator = PortAllocator()
        assert [numbers(allocator.reserve(wish(80, 82), ANY)) for _ in range(3)] == [[80], [81], [82]]  # fmt: skip
        with pytest.raises(Internal, match=r"0\.0\.0\.0:82 failed: port is already allocated"):
            allocator.reserve(wish(80, 82), ANY)


class TestFailures:
    def test_another_program_has_it(self, host: Host) -> None:
        host.errors[80] = errno.EADDRINUSE
        allocator = PortAllocator()
        with pytest.raises(Internal, match=r"failed to bind host port 0\.0\.0\.0:80/tcp: address already in use"):  # fmt: skip
            allocator.reserve(wish(80), ANY)
        assert allocator.taken == set()

    def test_the_second_address_fails(self, host: Host) -> None:
        host.errors["::"] = errno.EADDRINUSE
        allocator = PortAllocator()
        with pytest.raises(Internal):
            allocator.reserve(wish(80), ("0.0.0.0", "::"))
        assert host.bound == [("tcp", "0.0.0.0", 80)]
        assert allocator.taken == set()

    def test_an_address_that_is_not_the_host_s_is_said_at_once(self, host: Host) -> None:
        host.errors["192.0.2.1"] = errno.EADDRNOTAVAIL
        with pytest.raises(Internal, match="40000/tcp: cannot assign requested address"):
            PortAllocator().reserve(wish(), ("192.0.2.1",))

    def test_an_unknown_protocol(self, host: Host) -> None:
        with pytest.raises(InvalidArgument, match="invalid proto: icmp"):
            PortAllocator().reserve(wish(80, protocol="icmp"), ANY)


class TestSockets:
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_reserved_port_is_refused_to_others(self, protocol: str) -> None:
        kind = ports.KINDS[protocol][0]
        allocator = PortAllocator()
        (held,) = allocator.reserve(wish(protocol=protocol), ("127.0.0.1",))
        try:
            with socket.socket(socket.AF_INET, kind) as other, pytest.raises(OSError):
                other.bind(("127.0.0.1", held.port.host_port))
            with pytest.raises(Internal, match="address already in use"):
                PortAllocator().reserve(
                    wish(held.port.host_port, protocol=protocol), ("127.0.0.1",)
                )
        finally:
            held.close()
            held.close()  # idempotent

    def test_the_host_s_range(self, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
        first, last = ports.ephemeral_range()
        assert 0 < first <= last < 1 << 16
        monkeypatch.setattr(ports, "PORT_RANGE", f"{tmp_path}/none")
        assert ports.ephemeral_range() == (49153, 65535)


class TestAddresses:
    @pytest.mark.parametrize(
        ("host_ip", "default", "ipv6", "expected"),
        [
            ("", "", False, ("0.0.0.0",)),
            ("", "0.0.0.0", True, ("0.0.0.0", "::")),
            ("", "127.0.0.1", True, ("127.0.0.1",)),
            ("192.0.2.1", "127.0.0.1", True, ("192.0.2.1",)),
            ("2001:DB8::0001", "", True, ("2001:db8::1",)),
            ("::", "", True, ("::",)),
        ],
    )
    def test_where_a_wish_is_bound(
        self, host_ip: str, default: str, ipv6: bool, expected: tuple[str, ...]
    ) -> None:
        assert host_addresses(wish(host_ip=host_ip), default_ip=default, ipv6=ipv6) == expected

    def test_a_name_is_no_address(self) -> None:
        with pytest.raises(InvalidArgument, match="invalid IP address: localhost"):
            host_addresses(wish(host_ip="localhost"), default_ip="", ipv6=False)


def test_names_in_the_keeper() -> None:
    port = PublishedPort(container_port=80, protocol="tcp", host_ip="::", host_port=8080)
    assert keeper_key("c1", port) == "c1/tcp/::/8080"
