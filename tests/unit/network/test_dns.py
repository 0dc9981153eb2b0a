"""The name service's messages: what is understood, what is answered, and what hostile bytes do (nothing)."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.network import dns

QUICK = settings(derandomize=True, deadline=None, max_examples=30)


def query(name: str = "web", kind: int = dns.A, *, flags: int = dns.RD, number: int = 7, tail: bytes = b"", more: int = 0) -> bytes:  # fmt: skip
    head = struct.pack(">HHHHHH", number, flags, 1, 0, 0, more)
    return head + dns.encode_name(name) + struct.pack(">HH", kind, dns.IN) + tail


def edns(size: int) -> bytes:
    return b"\0" + struct.pack(">HHIH", dns.OPT, size, 0, 0)


def asked(data: bytes) -> dns.Question:
    question = dns.parse_query(data)
    assert question is not None
    return question


def counts(response: bytes) -> tuple[int, ...]:
    return struct.unpack_from(">HHHH", response, 4)


def records(response: bytes) -> list[tuple[int, int, bytes]]:
    """(type, TTL, data) of a response whose records all point at the question's name."""
    labels, at = dns.read_labels(response, 12)
    assert labels is not None
    at += 4
    found = []
    for _ in range(counts(response)[1]):
        named, end = dns.read_labels(response, at)
        assert named == labels
        kind, klass, ttl, length = struct.unpack_from(">HHIH", response, end)
        assert klass == dns.IN
        found.append((kind, ttl, response[end + 10 : end + 10 + length]))
        at = end + 10 + length
    return found


class TestQueries:
    def test_a_question(self) -> None:
        question = asked(query("Web.My-Net", dns.AAAA))
        assert (question.id, question.name, question.kind) == (7, "web.my-net", dns.AAAA)
        assert question.edns_size == 0

    def test_the_root(self) -> None:
        assert asked(query("")).name == ""

    @pytest.mark.parametrize(("size", "expected"), [(4096, 4096), (100, 512), (512, 512)])
    def test_edns(self, size: int, expected: int) -> None:
        assert asked(query(tail=edns(size), more=1)).edns_size == expected

    def test_another_additional_record_is_no_edns(self) -> None:
        other = b"\0" + struct.pack(">HHIH", dns.A, 4096, 0, 0)
        assert asked(query(tail=other, more=1)).edns_size == 0

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0" * 11,
            query()[:-1],
            query(flags=dns.QR),
            query(flags=2 << 11),  # STATUS
            query()[:4] + b"\0\2" + query()[6:],  # two questions
            query()[:4] + b"\0\0" + query()[6:],
            query()[:6] + b"\0\1" + query()[8:],  # an answer in it
            query()[:-2] + b"\0\3",  # class CHAOS
        ],
    )
    def test_what_is_no_question(self, data: bytes) -> None:
        assert dns.parse_query(data) is None


class TestLabels:
    HEAD = bytes(12)

    def read(self, body: bytes, at: int = 12) -> list[bytes] | None:
        return dns.read_labels(self.HEAD + body, at)[0]

    def test_a_pointer_back(self) -> None:
        body = b"\3abc\0\1x\xc0\x0c"
        assert dns.read_labels(self.HEAD + body, 17) == ([b"x", b"abc"], 21)

    @pytest.mark.parametrize(
        "body",
        [
            b"\xc0\x0c",  # to itself
            b"\xc0\x0e\xc0\x0c",  # forward
            b"\1a\xc0\x0c",  # a loop that goes on by one label a turn
            b"\xc0",  # half a pointer
            b"\5abc",  # longer than the message
            b"\3abc",  # without an end
            b"\x41a\0",  # a label type that there is not
            b"\x80a\0",
            (b"\x3f" + b"a" * 63) * 4 + b"\0",  # longer than 255
            b"",
        ],
    )
    def test_malformed_names(self, body: bytes) -> None:
        assert self.read(body) is None

    def test_the_longest_name(self) -> None:
        body = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61
        found = self.read(body + b"\0")
        assert found is not None
        assert len(b".".join(found)) == 253

    def test_names_are_written_as_labels(self) -> None:
        assert dns.encode_name("a.bc.") == b"\1a\2bc\0"
        assert dns.encode_name("") == b"\0"
        assert dns.encode_name("n" * 70) == b"\x3f" + b"n" * 63 + b"\0"
        assert dns.encode_name("☃") == b"\1?\0"


class TestAnswers:
    def test_addresses(self) -> None:
        response = dns.answer(asked(query()), ["10.0.0.2", "10.0.0.3", "fd00::2"])
        assert response[:4] == struct.pack(">HH", 7, dns.QR | dns.RD | dns.RA)
        assert counts(response) == (1, 2, 0, 0)
        assert records(response) == [
            (dns.A, 600, socket.inet_aton("10.0.0.2")),
            (dns.A, 600, socket.inet_aton("10.0.0.3")),
        ]

    def test_ipv6_and_any(self) -> None:
        both = ["10.0.0.2", "fd00::2"]
        six = records(dns.answer(asked(query(kind=dns.AAAA)), both))
        assert six == [(dns.AAAA, 600, socket.inet_pton(socket.AF_INET6, "fd00::2"))]
        assert len(records(dns.answer(asked(query(kind=dns.ANY)), both))) == 2

    @pytest.mark.parametrize("kind", [dns.AAAA, 15, 16, 33])
    def test_a_known_name_without_such_a_record_is_no_error(self, kind: int) -> None:
        response = dns.answer(asked(query(kind=kind)), ["10.0.0.2"])
        assert response[3] & 15 == dns.NOERROR
        assert counts(response) == (1, 0, 0, 0)

    def test_a_pointer_record(self) -> None:
        response = dns.answer(asked(query("2.0.0.10.in-addr.arpa", dns.PTR)), (), names=["web.net"])
        assert records(response) == [(dns.PTR, 600, b"\3web\3net\0")]

    def test_edns_is_answered_with_edns(self) -> None:
        response = dns.answer(asked(query(tail=edns(4096), more=1)), ["10.0.0.2"])
        assert counts(response) == (1, 1, 0, 1)
        assert response.endswith(edns(4096))

    def test_recursion_is_desired_only_where_it_was(self) -> None:
        assert not struct.unpack_from(">H", dns.answer(asked(query(flags=0)), []), 2)[0] & dns.RD

    def test_case_comes_back_as_it_was_asked(self) -> None:
        assert b"\3WeB" in dns.answer(asked(query("WeB")), ["10.0.0.2"])

    def test_truncation(self) -> None:
        many = [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(60)]
        short = dns.answer(asked(query()), many)
        assert dns.is_truncated(short)
        assert len(short) <= dns.MAX_UDP
        assert counts(short) == (1, 0, 0, 0)
        larger = dns.answer(asked(query(tail=edns(4096), more=1)), many)
        assert not dns.is_truncated(larger)
        stream = dns.answer(asked(query()), many, udp=False)
        assert (dns.is_truncated(stream), counts(stream)[1]) == (False, 60)

    def test_what_just_fits_is_whole(self) -> None:
        room = dns.MAX_UDP - len(query())
        exact = dns.answer(asked(query()), ["10.0.0.2"] * (room // 16))
        assert len(exact) <= dns.MAX_UDP
        assert not dns.is_truncated(exact)
        assert dns.is_truncated(dns.answer(asked(query()), ["10.0.0.2"] * (room // 16 + 1)))


class TestFailures:
    def test_the_question_is_repeated(self) -> None:
        response = dns.failure(query(), dns.SERVFAIL)
        assert response[:2] == b"\0\7"
        assert response[3] & 15 == dns.SERVFAIL
        assert response[12:] == query()[12:]

    def test_garbage_with_a_header(self) -> None:
        response = dns.failure(b"\1\2" + b"\xff" * 30, dns.NOTIMP)
        assert (len(response), response[:2], counts(response)) == (12, b"\1\2", (0, 0, 0, 0))

    def test_no_header_no_answer(self) -> None:
        assert dns.failure(b"\1\2\3", dns.FORMERR) == b""
        assert not dns.is_truncated(b"\xff" * 11)


class TestMatches:
    def test_the_answer_to_this_query(self) -> None:
        sent = query("web")
        assert dns.matches(sent, dns.answer(asked(query("WEB")), ["10.0.0.2"]))
        assert dns.matches(sent, dns.failure(b"\0\7" + b"\xff" * 10, dns.FORMERR))

    def test_anything_else(self) -> None:
        sent = query("web")
        assert not dns.matches(sent, dns.answer(asked(query("other")), ["10.0.0.2"]))
        assert not dns.matches(sent, dns.answer(asked(query("web", dns.AAAA)), []))
        assert not dns.matches(sent, sent)  # a question
        assert not dns.matches(sent, b"")
        assert not dns.matches(b"", dns.answer(asked(sent), []))


class TestZones:
    NET = dns.Zone(
        "My-Net",
        {"web": ["10.0.0.2", "10.0.0.3"], "a.b": ["10.0.0.4"]},
        {"10.0.0.2": "web", "fd00::2": "web"},
    )
    OTHER = dns.Zone("other", {"web": ["10.0.1.2"], "db": ["10.0.1.3"]}, {"10.0.1.3": "db"})  # fmt: skip
    LINKS = dns.Zone("", {"db": ["10.0.9.9"]}, {})

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("web", ["10.0.0.2", "10.0.0.3", "10.0.1.2"]),
            ("web.my-net", ["10.0.0.2", "10.0.0.3"]),
            ("web.other", ["10.0.1.2"]),
            ("a.b", ["10.0.0.4"]),
            ("a.b.my-net", ["10.0.0.4"]),
            ("db", ["10.0.1.3"]),
            ("db.my-net", None),
            ("my-net", None),
            (".my-net", None),
            ("web.my-net.my-net", None),
            ("nobody", None),
            ("", None),
        ],
    )
    def test_names(self, name: str, expected: list[str] | None) -> None:
        assert dns.lookup([self.NET, self.OTHER], name) == expected

    def test_links_come_first(self) -> None:
        assert dns.lookup([self.LINKS, self.OTHER], "db") == ["10.0.9.9", "10.0.1.3"]

    def test_a_known_name_without_addresses_is_still_known(self) -> None:
        assert dns.lookup([dns.Zone("n", {"web": []}, {})], "web") == []

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("2.0.0.10.in-addr.arpa", "web.my-net"),
            ("3.1.0.10.in-addr.arpa", "db.other"),
            ("2." + "0." * 29 + "d.f.ip6.arpa", "web.my-net"),
            ("9.0.0.10.in-addr.arpa", None),
            ("0.0.10.in-addr.arpa", None),
            ("1.2.0.0.10.in-addr.arpa", None),
            ("256.0.0.10.in-addr.arpa", None),
            ("-2.0.0.10.in-addr.arpa", None),
            ("02.0.0.10.in-addr.arpa", None),
            ("0_2.0.0.10.in-addr.arpa", None),
            (" 2.0.0.10.in-addr.arpa", None),
            ("٢.0.0.10.in-addr.arpa", None),
            ("2\0.0.0.10.in-addr.arpa", None),
            ("g." + "0." * 29 + "d.f.ip6.arpa", None),
            ("2 ." + "0." * 29 + "d.f.ip6.arpa", None),
            ("." * 33 + "ip6.arpa", None),
            ("web", None),
            ("", None),
        ],
    )
    def test_addresses(self, name: str, expected: str | None) -> None:
        assert dns.pointer([self.NET, self.OTHER], name) == expected


class TestHostileBytes:
    @QUICK
    @given(st.binary(max_size=80))
    def test_any_bytes(self, data: bytes) -> None:
        question = dns.parse_query(data)
        failed = dns.failure(data, dns.NOTIMP)
        assert len(failed) in (0, 12) or question is not None
        dns.matches(data, data)
        dns.is_truncated(data)

    @QUICK
    @given(st.binary(max_size=60), st.integers(0, 80))
    def test_any_name(self, data: bytes, at: int) -> None:
        labels, end = dns.read_labels(data, at)
        if labels is not None:
            assert end <= len(data)
            assert sum(len(label) + 1 for label in labels) <= 255

    @QUICK
    @given(
        st.binary(min_size=1, max_size=40), st.sampled_from([dns.A, dns.AAAA, dns.PTR, dns.ANY, 6])
    )
    def test_any_question_is_answered_within_the_limit(self, body: bytes, kind: int) -> None:
        data = query()[:12] + body + b"\0" + struct.pack(">HH", kind, dns.IN)
        question = dns.parse_query(data)
        if question is None:
            return
        zones = [TestZones.NET, TestZones.OTHER]
        dns.pointer(zones, question.name)
        found = dns.lookup(zones, question.name) or ["10.0.0.2"] * 50
        response = dns.answer(question, found)
        assert len(response) <= dns.MAX_UDP
        assert response[:2] == data[:2]
        assert dns.matches(data, response)

    @QUICK
    @given(st.text(max_size=60))
    def test_any_reverse_name(self, text: str) -> None:
        for end in ("", ".in-addr.arpa", ".ip6.arpa"):
            assert dns.pointer([TestZones.NET], text + end) in (None, "web.my-net")
