"""Lists of where a container may connect, and what its names' answers let it reach."""

from __future__ import annotations

import struct

import pytest

from sampan.errors import InvalidArgument
from sampan.linux import nft
from sampan.network import dns, egress, grants
from sampan.network.records import EndpointRecord


class TestList:
    def test_normal_form(self) -> None:
        assert egress.parse("none") == ()
        assert egress.parse(" 10.1.2.3/8, 192.0.2.1 ,2001:DB8::1,Example.COM.,*.a.b,10.0.0.0/8") == (
            "10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128", "example.com", "*.a.b",
        )  # fmt: skip
        assert egress.parse("db,my_db") == ("db", "my_db")

    @pytest.mark.parametrize(
        "text",
        ["", " , ", "none,a.b", "10.0.0.0/33", "10.0.0.256", "1.2.3", "a..b", "-a.b", "a b", "*", "*.", "a.*.b", "http://a.b",
         "a.b/c", "a" * 64, ".".join(["a" * 60] * 5), "é.example", "fe80::1%eth0", ",".join(f"a{n}" for n in range(1025))],
    )  # fmt: skip
    def test_what_is_no_list(self, text: str) -> None:
        with pytest.raises(InvalidArgument, match="invalid egress"):
            egress.parse(text)

    def test_shown_as_it_is_written(self) -> None:
        assert egress.show(egress.parse("none")) == "none"
        assert egress.show(egress.parse("a.b,10.0.0.0/8")) == "a.b,10.0.0.0/8"

    def test_names_of_the_container_s_own_hosts_file_are_addresses(self) -> None:
        hosts = {"db": "192.0.2.9", "other": "192.0.2.10"}
        assert egress.with_hosts(("db", "10.0.0.0/8"), hosts) == (
            "db",
            "10.0.0.0/8",
            "192.0.2.9/32",
        )

    def test_networks_are_merged(self) -> None:
        merged = egress.networks_of(("10.0.0.0/9", "10.128.0.0/9", "10.1.2.3/32", "a.b", "::/0"))
        assert [str(n) for n in merged] == ["10.0.0.0/8", "::/0"]


def limited(entries: tuple[str, ...] | None, *, ipv6: str = "") -> EndpointRecord:
    return EndpointRecord(
        id="e", network_id="n", network_name="n", driver="bridge", container_id="c", container_name="c",
        ipv4="172.17.0.2", ipv6=ipv6, host_link="veth1", mac="02:42:ac:11:00:02", egress=entries,
    )  # fmt: skip


class TestRules:
    def test_only_the_limited_are_in_the_sets(self) -> None:
        assert egress.limits([limited(None)], {}) == []
        (one,) = egress.limits([limited(("10.0.0.0/8", "a.b"))], {"n": "02:00:00:00:00:01"})
        assert one.networks == ("10.0.0.0/8",)
        assert egress.sources([limited(None), limited((), ipv6="fd00::2")]) == [
            "172.17.0.2",
            "fd00::2",
        ]

    def test_a_network_is_a_range_of_pairs_of_one_source(self) -> None:
        made = {
            s.name: s
            for s in egress.sets(
                egress.limits([limited(("10.0.0.0/8", "::/0"))], {"n": "02:00:00:00:00:01"})
            )
        }
        (element,) = made["allowed4"].elements
        source = bytes((172, 17, 0, 2))
        assert (element.key, element.last) == (
            source + bytes((10, 0, 0, 0)),
            source + bytes((10, 255, 255, 255)),
        )
        assert made["allowed6"].elements == ()
        assert made["granted4"].flags & nft.SET_TIMEOUT
        assert made["limited4"].counted


class Recorder(grants.GrantedSets):
    """The sets as a dictionary."""

    def __init__(self) -> None:
        super().__init__("t")
        self.held: dict[tuple[str, str], int] = {}

    def _change(self, wanted: list[tuple[str, str, int]], *, add: bool) -> None:
        for source, address, timeout_ms in wanted:
            self.held.pop((source, address), None)
            if add:
                self.held[source, address] = timeout_ms


def given(*names: str) -> tuple[grants.Grants, Recorder]:
    made = grants.Grants({"table": "t", "sources": ["172.17.0.2"], "names": names})
    recorder = Recorder()
    made.sets = recorder
    return made, recorder


class TestGrants:
    def test_names_and_names_below(self) -> None:
        made, _ = given("a.b", "*.c.d")
        assert made.allows("a.b")
        assert made.allows("x.c.d")
        assert made.allows("y.x.c.d")
        for name in ("c.d", "x.a.b", "xa.b", "b", "", "xc.d"):
            assert not made.allows(name)

    def test_an_answer_is_granted_for_a_while(self) -> None:
        made, held = given("a.b")
        made.resolved("a.b", [("192.0.2.1", 5), ("192.0.2.2", 7200), ("192.0.2.3", 1 << 30)])
        seconds = {address: round(ms / 1000) for (_, address), ms in held.held.items()}
        assert seconds == {"192.0.2.1": 90, "192.0.2.2": 7230, "192.0.2.3": 86430}

    @pytest.mark.parametrize(
        "address",
        ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1",
         "::ffff:127.0.0.1", "::127.0.0.1"],
    )  # fmt: skip
    def test_what_no_name_stands_for(self, address: str) -> None:
        made, held = given("a.b")
        made.resolved("a.b", [(address, 60)])
        assert held.held == {}

    def test_a_container_has_its_name_as_long_as_it_is_there(self) -> None:
        made, held = given("db", "*.net")
        zone = dns.Zone("net", {"db": ["172.17.0.9"], "x": ["172.17.0.8"]}, {})
        made.containers([zone])
        assert held.held == {("172.17.0.2", "172.17.0.9"): 0, ("172.17.0.2", "172.17.0.8"): 0}
        made.containers([dns.Zone("net", {"db": ["172.17.0.10"]}, {})])
        assert held.held == {("172.17.0.2", "172.17.0.10"): 0}

    def test_a_narrower_list_takes_back(self) -> None:
        made, held = given("a.b", "c.d")
        made.resolved("a.b", [("192.0.2.1", 60)])
        made.resolved("c.d", [("192.0.2.2", 60)])
        made.renew({"table": "t", "sources": ["172.17.0.3"], "names": ["c.d"]})
        assert set(held.held) == {("172.17.0.3", "192.0.2.2")}

    def test_it_does_not_grow_without_bound(self) -> None:
        made, held = given("a.b")
        for number in range(grants.MOST_GRANTS + 50):
            made.resolved("a.b", [(f"10.0.{number >> 8}.{number & 255}", 60)])
            made.refuse(f"{number}.x")
        assert len(made.granted) <= grants.MOST_GRANTS
        assert len(held.held) <= grants.MOST_GRANTS + 1
        assert len(made.refused) == grants.MOST_REFUSED


def response(*records: tuple[str, int, int, bytes], name: str = "a.b") -> bytes:
    body = b"".join(
        dns.encode_name(owner) + struct.pack(">HHIH", kind, dns.IN, ttl, len(data)) + data
        for owner, kind, ttl, data in records
    )
    question = dns.encode_name(name) + struct.pack(">HH", dns.A, dns.IN)
    return struct.pack(">HHHHHH", 1, 0x8180, 1, len(records), 0, 0) + question + body


class TestResolved:
    def test_addresses_and_aliases_of_the_question(self) -> None:
        data = response(
            ("A.b", dns.CNAME, 60, dns.encode_name("cdn.example")),
            ("cdn.example", dns.A, 30, bytes((192, 0, 2, 1))),
            ("cdn.example", dns.AAAA, 30, b"\x20\x01\x0d\xb8" + bytes(11) + b"\1"),
        )
        assert dns.resolved(data) == [("192.0.2.1", 30), ("2001:db8::1", 30)]

    def test_records_of_other_names_and_broken_ones_count_for_nothing(self) -> None:
        assert dns.resolved(response(("evil.example", dns.A, 30, bytes((192, 0, 2, 1))))) == []
        assert dns.resolved(response(("a.b", dns.A, 30, b"abc"))) == []
        whole = response(("a.b", dns.A, 30, bytes((192, 0, 2, 1))))
        assert dns.resolved(whole) == [("192.0.2.1", 30)]
        for length in range(len(whole)):
            dns.resolved(whole[:length])
        assert dns.resolved(whole[:-1]) == []
