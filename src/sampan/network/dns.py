"""The name service's answers: DNS messages in, DNS messages out. Pure; `keeper.py` owns the sockets.

What is known here are the containers of the asker's networks, by name, short id, alias and `name.network`; all else
is forwarded to the host's servers, but never for a container that is on internal networks only (CVE-2024-29018).

    query -> parse -> is the name ours?  yes -> A / AAAA from the zone (round robin), empty answer for other types
                                         no  -> forward (a single-label name that nobody knows is NXDOMAIN upstream)
    PTR of an address of ours -> name.network

Sources: RFC 1035 (4.1 message, 4.1.4 compression), RFC 6891 (EDNS), RFC 2308 (negative answers), RFC 3596 (AAAA).
"""

from __future__ import annotations

import _socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

A, CNAME, PTR, AAAA, ANY, OPT = 1, 5, 12, 28, 255, 41
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
QR, AA, TC, RD, RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
TTL_S = 600
MAX_UDP = 512
_HEADER = struct.Struct(">HHHHHH")
_QUESTION_TAIL = struct.Struct(">HH")
_RECORD_TAIL = struct.Struct(">HHIH")


class Question:
    """A query with one question. `name` is lower case without the final dot; `raw` is the question's own bytes."""

    __slots__ = ("edns_size", "flags", "id", "kind", "name", "raw")

    def __init__(
        self, id: int, flags: int, name: str, kind: int, raw: bytes, edns_size: int
    ) -> None:
        self.id = id
        self.flags = flags
        self.name = name
        self.kind = kind
        self.raw = raw
        self.edns_size = edns_size


def parse_query(data: bytes) -> Question | None:
    """None where it is not a standard query with exactly one question of class IN."""
    if len(data) < 12:
        return None
    number, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & QR or (flags >> 11) & 15 or questions != 1 or answers or authority:
        return None
    labels, offset = read_labels(data, 12)
    if labels is None or offset + 4 > len(data):
        return None
    kind, klass = _QUESTION_TAIL.unpack_from(data, offset)
    if klass != IN:
        return None
    raw = data[12 : offset + 4]
    size = _edns_size(data, offset + 4) if additional else 0
    name = b".".join(labels).decode("latin-1").lower()
    return Question(number, flags, name, kind, raw, size)


def read_labels(data: bytes, offset: int) -> tuple[list[bytes] | None, int]:
    """The labels of a name and where it ends; None where it is malformed or its pointers do not go back."""
    labels: list[bytes] = []
    end = -1
    limit = len(data)
    total = 0
    while offset < limit:
        length = data[offset]
        if length == 0:
            return labels, (offset + 1 if end < 0 else end)
        if length & 0xC0 == 0xC0:
            if offset + 1 >= limit:
                return None, offset
            target = (length & 0x3F) << 8 | data[offset + 1]
            if end < 0:
                end = offset + 2
            if target >= offset:
                return None, offset
            offset = target
            continue
        total += length + 1
        if length & 0xC0 or total > 255 or offset + 1 + length > limit:
            return None, offset
        labels.append(data[offset + 1 : offset + 1 + length])
        offset += 1 + length
    return None, offset


def _edns_size(data: bytes, offset: int) -> int:
    """The UDP size that an OPT record right behind the question announces."""
    if offset + 11 <= len(data) and data[offset] == 0:
        kind, size = _QUESTION_TAIL.unpack_from(data, offset + 1)
        if kind == OPT:
            return max(int(size), MAX_UDP)
    return 0


def encode_name(name: str) -> bytes:
    """A name as labels; empty labels and ones that are too long are not for us to make."""
    parts = [part.encode("latin-1", "replace")[:63] for part in name.split(".") if part]
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def answer(
    question: Question,
    addresses: Sequence[str],
    *,
    names: Sequence[str] = (),
    code: int = NOERROR,
    udp: bool = True,
) -> bytes:
    """A response with address records or, for PTR, names; truncated where it does not fit over UDP."""
    records = []
    for text in addresses:
        four = ":" not in text
        if question.kind not in (A if four else AAAA, ANY):
            continue
        raw = _socket.inet_pton(_socket.AF_INET if four else _socket.AF_INET6, text)
        records.append(
            b"\xc0\x0c" + _RECORD_TAIL.pack(A if four else AAAA, IN, TTL_S, len(raw)) + raw
        )
    for name in names:
        raw = encode_name(name)
        records.append(b"\xc0\x0c" + _RECORD_TAIL.pack(PTR, IN, TTL_S, len(raw)) + raw)
    flags = QR | RA | (question.flags & RD) | code
    edns = b"\0" + _RECORD_TAIL.pack(OPT, 4096, 0, 0) if question.edns_size else b""
    body = question.raw + b"".join(records) + edns
    limit = max(question.edns_size, MAX_UDP)
    if udp and 12 + len(body) > limit:
        header = _HEADER.pack(question.id, flags | TC, 1, 0, 0, 1 if edns else 0)
        return header + question.raw + edns
    return _HEADER.pack(question.id, flags, 1, len(records), 0, 1 if edns else 0) + body


def failure(data: bytes, code: int) -> bytes:
    """A response without answers to whatever was asked; empty where there is no header to answer to."""
    if len(data) < 12:
        return b""
    number, flags, _, _, _, _ = _HEADER.unpack_from(data)
    question = parse_query(data)
    raw = question.raw if question else b""
    kept = flags & (RD | 0x7800)
    return _HEADER.pack(number, QR | RA | kept | code, 1 if raw else 0, 0, 0, 0) + raw


def is_truncated(response: bytes) -> bool:
    """Whether a server says that the rest must be asked for over TCP."""
    return len(response) >= 12 and bool(_HEADER.unpack_from(response)[1] & TC)


def matches(query: bytes, response: bytes) -> bool:
    """Whether a datagram is the answer to this query: same question under the id we sent it with."""
    asked = parse_query(query)
    if asked is None or len(response) < 12 or not response[2] & 0x80:
        return False
    end = 12 + len(asked.raw)
    return response[12:end].lower() == asked.raw.lower() or response[4:6] == b"\0\0"


def resolved(response: bytes) -> list[tuple[str, int]]:
    """The (address, seconds to live) that a response gives for its own question, aliases followed."""
    labels, offset = read_labels(response, 12)
    if labels is None or len(response) < 12:
        return []
    owners = {_lowered(labels)}
    found: list[tuple[str, int]] = []
    offset += 4
    for _ in range(_HEADER.unpack_from(response)[3]):
        labels, offset = read_labels(response, offset)
        if labels is None or offset + 10 > len(response):
            break
        kind, klass, ttl, length = _RECORD_TAIL.unpack_from(response, offset)
        offset += 10
        data = response[offset : offset + length]
        if len(data) < length:
            break
        if klass == IN and _lowered(labels) in owners:
            if kind == CNAME:
                owners.add(_lowered(read_labels(response, offset)[0] or []))
            elif (kind, length) in ((A, 4), (AAAA, 16)):
                family = _socket.AF_INET if kind == A else _socket.AF_INET6
                found.append((_socket.inet_ntop(family, data), ttl & 0x7FFFFFFF))
        offset += length
    return found


def _lowered(labels: list[bytes]) -> bytes:
    return b".".join(labels).lower()


class Zone:
    """The names of one network. `names`: lower-case name -> addresses; `pointers`: address -> name."""

    __slots__ = ("name", "names", "pointers")

    def __init__(self, name: str, names: dict[str, list[str]], pointers: dict[str, str]) -> None:
        self.name = name.lower()
        self.names = names
        self.pointers = pointers


def lookup(zones: Sequence[Zone], name: str) -> list[str] | None:
    """The addresses of a container's name as seen from these networks; None where it is nobody's."""
    found: list[str] = []
    known = False
    for zone in zones:
        for form in (name, name.removesuffix("." + zone.name) if zone.name else name):
            if form in zone.names:
                known = True
                found += [address for address in zone.names[form] if address not in found]
                break
    return found if known else None


def pointer(zones: Sequence[Zone], name: str) -> str | None:
    """The container's name for a name under in-addr.arpa or ip6.arpa."""
    address = _reverse_address(name)
    if address is None:
        return None
    for zone in zones:
        if address in zone.pointers:
            return f"{zone.pointers[address]}.{zone.name}"
    return None


def _reverse_address(name: str) -> str | None:
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            text = ".".join(reversed(labels[:4]))
            return _socket.inet_ntop(_socket.AF_INET, _socket.inet_pton(_socket.AF_INET, text))
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            if any(len(label) != 1 for label in labels[:32]):
                return None
            digits = "".join(reversed(labels[:32]))
            return _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits))
    except (ValueError, OSError):
        return None
    return None
