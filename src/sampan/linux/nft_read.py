"""What the kernel's nf_tables hold: chains, the rules that jump somewhere, the elements of a set with their counters.

`nft.py` writes; this reads the few things that an engine must know of its own and of other people's tables.

Source: linux/netfilter/nf_tables.h (NFTA_CHAIN_*, NFTA_RULE_*, NFTA_SET_ELEM_*, NFTA_COUNTER_*).
"""

from __future__ import annotations

import struct

from sampan.linux import netlink, nft
from sampan.linux.netlink import parse_attributes, parse_list, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FAMILY_NAMES = {number: name for name, number in nft.FAMILIES.items()}
_HOOK_NAMES = {number: name for name, number in nft.HOOKS.items()}


class Chain:
    """A chain of any table. `hook` is empty, and `policy` accept, where it is no base chain."""

    __slots__ = ("family", "hook", "name", "policy", "table")

    def __init__(self, family: str, table: str, name: str, hook: str, policy: int) -> None:
        self.family = family
        self.table = table
        self.name = name
        self.hook = hook
        self.policy = policy


class Found:
    """An element of a set: its key, how many packets and bytes it counted, and when it ends (0 never)."""

    __slots__ = ("bytes", "expires_ms", "key", "packets")

    def __init__(self, key: bytes, packets: int, octets: int, expires_ms: int) -> None:
        self.key = key
        self.packets = packets
        self.bytes = octets
        self.expires_ms = expires_ms


def _header(family: str = "") -> bytes:
    return struct.pack(">BBH", nft.FAMILIES[family] if family else 0, 0, 0)


def _name(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def chains(link: netlink.Netlink) -> Iterator[Chain]:
    """Every chain of every table."""
    for _, body in link.dump(nft.SUBSYSTEM << 8 | nft.GETCHAIN, _header(), "chains"):
        found = parse_attributes(body[4:])
        hook = ""
        if 4 in found:
            number = parse_attributes(found[4]).get(1, b"\xff\xff\xff\xff")
            hook = _HOOK_NAMES.get(int.from_bytes(number, "big"), "")
        policy = int.from_bytes(found.get(5, b"\0\0\0\1"), "big")
        family = _FAMILY_NAMES.get(body[0], "")
        yield Chain(family, _name(found.get(1, b"")), _name(found.get(3, b"")), hook, policy)


def jumps(link: netlink.Netlink, family: str, table: str, chain: str, target: str) -> list[int]:
    """The handles of the rules of a chain that jump or go to another one."""
    handles = []
    wanted = text(1, table) + text(2, chain)
    for _, body in link.dump(nft.SUBSYSTEM << 8 | nft.GETRULE, _header(family) + wanted, "rules"):
        found = parse_attributes(body[4:])
        if (_name(found.get(1, b"")), _name(found.get(2, b""))) != (table, chain):
            continue
        expressions = [parse_attributes(e) for _, e in parse_list(found.get(4, b""))]
        if any(_goes_to(each, target) for each in expressions):
            handles.append(int.from_bytes(found[3], "big"))
    return handles


def _goes_to(expression: dict[int, bytes], target: str) -> bool:
    """An immediate whose data is a verdict with a chain."""
    if _name(expression.get(1, b"")) != "immediate":
        return False
    data = parse_attributes(parse_attributes(expression.get(2, b"")).get(2, b""))
    return _name(parse_attributes(data.get(2, b"")).get(2, b"")) == target


def elements(link: netlink.Netlink, family: str, table: str, name: str) -> list[Found]:
    """The elements of a set. Raises FileNotFoundError where there is no such set."""
    made = []
    body = _header(family) + text(1, table) + text(2, name)
    for _, answer in link.dump(nft.SUBSYSTEM << 8 | nft.GETSETELEM, body, f"set {name}"):
        listed = parse_attributes(answer[4:]).get(3, b"")
        made += [_element(parse_attributes(raw)) for _, raw in parse_list(listed)]
    return made


def _element(found: dict[int, bytes]) -> Found:
    key = parse_attributes(found.get(1, b"")).get(1, b"")
    packets = octets = 0
    counter = parse_attributes(found.get(7, b""))
    if _name(counter.get(1, b"")) == "counter":
        values = parse_attributes(counter.get(2, b""))
        octets = int.from_bytes(values.get(1, b""), "big")
        packets = int.from_bytes(values.get(2, b""), "big")
    return Found(key, packets, octets, int.from_bytes(found.get(5, b""), "big"))


def table_exists(link: netlink.Netlink, family: str, name: str) -> bool:
    """Whether the kernel has a table of that name."""
    body = _header(family) + text(1, name)
    try:
        link.get(nft.SUBSYSTEM << 8 | nft.GETTABLE, body, f"table {name}")
    except FileNotFoundError:
        return False
    return True
