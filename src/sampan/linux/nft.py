"""nf_tables over netlink: a table as a value, applied in one transaction; elements added one by one; read back.

Owns the wire format of nfnetlink's nf_tables subsystem (linux/netfilter/nf_tables.h). What a network's rules are is
decided in `network/rules.py`, which builds the values below:

    Table(family, name)
      chains  Chain(name, hook?, priority, policy, rules)
      sets    Set(name, key, data?, flags, elements)      a map where `data` is given
      rules   tuples of expressions, made by the functions below

`replace(socket, table)` sends one batch: make the table if it is missing, delete it with all in it, make it again, its
sets, chains, elements and rules. The kernel performs a batch whole or not at all, so there is no moment without rules.
`describe(table)` prints the value in nft(8)'s language: what users see and golden tests compare.
"""

from __future__ import annotations

import struct

from sampan.linux import netlink
from sampan.linux.netlink import attribute, nested, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# linux/netfilter/nfnetlink.h
SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11

# linux/netfilter/nf_tables.h: messages
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN = 0, 1, 2, 3, 4, 5
NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET = 6, 7, 8, 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
PRIORITIES = {
    "raw": -300,
    "mangle": -150,
    "dstnat": -100,
    "filter": 0,
    "security": 50,
    "srcnat": 100,
}

DROP, ACCEPT = 0, 1
CONTINUE, BREAK, JUMP, GOTO, RETURN = -1, -2, -3, -4, -5
_VERDICT_WORDS = {DROP: "drop", ACCEPT: "accept", RETURN: "return", CONTINUE: "continue"}

SET_ANONYMOUS, SET_CONSTANT, SET_INTERVAL, SET_MAP, SET_TIMEOUT = 1, 2, 4, 8, 0x10
SET_CONCAT = 0x80
_FLAG_WORDS = {SET_INTERVAL: "interval", SET_TIMEOUT: "timeout"}
BASES = {"link": 0, "network": 1, "transport": 2}  # enum nft_payload_bases
DATA_TYPE_VERDICT = 0xFFFFFF00

REG_VERDICT = 0
REG_1, REG_2, REG_3, REG_4 = 1, 2, 3, 4
_REG32 = 8  # NFT_REG32_00: the same registers, four bytes each

CT_STATE, CT_DIRECTION, CT_STATUS, CT_MARK = 0, 1, 2, 3
STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 1, 2, 4, 8
STATUS_DNAT = 0x20
META_PROTOCOL, META_MARK, META_IIF, META_OIF, META_IIFNAME, META_OIFNAME = 1, 3, 4, 5, 6, 7
META_NFPROTO, META_L4PROTO, META_PKTTYPE = 15, 16, 19
FIB_RESULT_ADDRTYPE, FIB_DADDR, FIB_SADDR = 3, 2, 1
RTN_LOCAL = 2
IFNAMSIZ = 16

# nft(8)'s own numbers for set key types, so that `nft list` shows names instead of raw bytes.
TYPE_NUMBERS = {
    "ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "ether_addr": (9, 6), "inet_proto": (12, 1),
    "inet_service": (13, 2), "mark": (19, 4), "ifname": (41, 16), "verdict": (0, 0),
}  # fmt: skip


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


class Expression:
    """One expression of a rule: its wire form and its words."""

    __slots__ = ("data", "name", "words")

    def __init__(self, name: str, *attributes: bytes, words: str = "") -> None:
        self.name = name
        self.data = b"".join(attributes)
        self.words = words

    def encode(self) -> bytes:
        """NFTA_LIST_ELEM holding name and data."""
        return nested(1, text(1, self.name), nested(2, self.data))


def _value(kind: int, raw: bytes) -> bytes:
    return nested(kind, attribute(1, raw))


def _verdict_data(kind: int, code: int, chain: str = "") -> bytes:
    parts = [_be32(1, code)]
    if chain:
        parts.append(text(2, chain))
    return nested(kind, nested(2, *parts))


# --- expressions. Each returns the tuple that goes into a rule.


def verdict(code: int, chain: str = "") -> tuple[Expression, ...]:
    """accept, drop, return, jump CHAIN, goto CHAIN."""
    words = _VERDICT_WORDS.get(code) or ("jump " if code == JUMP else "goto ") + chain
    return (
        Expression("immediate", _be32(1, REG_VERDICT), _verdict_data(2, code, chain), words=words),
    )


def counter() -> tuple[Expression, ...]:
    """Count packets and bytes."""
    return (Expression("counter", words="counter"),)


def compare(
    raw: bytes, *, register: int = REG_1, equal: bool = True, words: str = ""
) -> Expression:
    """The register's first bytes against a constant."""
    operation = 0 if equal else 1
    return Expression("cmp", _be32(1, register), _be32(2, operation), _value(3, raw), words=words)


def meta_load(key: int, register: int = REG_1) -> Expression:
    """Load a packet property into a register."""
    return Expression("meta", _be32(1, register), _be32(2, key))


def payload_load(base: int, offset: int, length: int, register: int = REG_1) -> Expression:
    """Load header bytes: base 1 network, 2 transport."""
    return Expression(
        "payload", _be32(1, register), _be32(2, base), _be32(3, offset), _be32(4, length)
    )


def interface(direction: str, name: str, *, equal: bool = True) -> tuple[Expression, ...]:
    """iifname/oifname NAME; a trailing * matches every name that begins so."""
    key = META_IIFNAME if direction == "iif" else META_OIFNAME
    raw = name[:-1].encode() if name.endswith("*") else name.encode().ljust(IFNAMSIZ, b"\0")
    words = f'{direction}name {"" if equal else "!= "}"{name}"'
    return (meta_load(key), compare(raw, equal=equal, words=words))


def nfproto(version: int) -> tuple[Expression, ...]:
    """In an inet table: only IPv4 (4) or IPv6 (6) packets."""
    number = 2 if version == 4 else 10
    words = f"meta nfproto ipv{version}"
    return (meta_load(META_NFPROTO), compare(bytes((number,)), words=words))


def l4proto(name: str) -> tuple[Expression, ...]:
    """Packets of tcp, udp, sctp or icmp."""
    raw = bytes((PROTOCOLS[name],))
    return (meta_load(META_L4PROTO), compare(raw, words=f"meta l4proto {name}"))


PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


def address(
    side: str, raw: bytes, prefix: int | None = None, *, equal: bool = True
) -> tuple[Expression, ...]:
    """`side` is saddr or daddr; IPv4 or IPv6 by the length of `raw`; with a prefix, the network."""
    four = len(raw) == 4
    offset = {("saddr", True): 12, ("daddr", True): 16, ("saddr", False): 8, ("daddr", False): 24}[
        (side, four)
    ]
    bits = len(raw) * 8
    prefix = bits if prefix is None else prefix
    words = f"{'ip' if four else 'ip6'} {side} {'' if equal else '!= '}{show_address(raw)}"
    steps = [payload_load(1, offset, len(raw))]
    if prefix < bits:
        words += f"/{prefix}"
        mask = ((1 << bits) - (1 << (bits - prefix))).to_bytes(len(raw), "big")
        raw = bytes(a & b for a, b in zip(raw, mask, strict=True))
        steps.append(
            Expression(
                "bitwise", _be32(1, REG_1), _be32(2, REG_1), _be32(3, len(raw)),
                _value(4, mask), _value(5, bytes(len(raw))),
            )
        )  # fmt: skip
    steps.append(compare(raw, equal=equal, words=words))
    return tuple(steps)


def port(side: str, number: int, *, equal: bool = True) -> tuple[Expression, ...]:
    """`side` is sport or dport; after l4proto."""
    load = payload_load(2, 0 if side == "sport" else 2, 2)
    return (load, compare(number.to_bytes(2, "big"), equal=equal, words=f"th {side} {number}"))


def ct_state(*states: int) -> tuple[Expression, ...]:
    """Connections in any of the states."""
    return _ct_bits(CT_STATE, states, "ct state " + ",".join(_STATE_WORDS[s] for s in states))


_STATE_WORDS = {
    STATE_INVALID: "invalid", STATE_ESTABLISHED: "established", STATE_RELATED: "related", STATE_NEW: "new",
}  # fmt: skip


def ct_status_dnat() -> tuple[Expression, ...]:
    """Connections whose destination was translated: they came through a published port."""
    return _ct_bits(CT_STATUS, (STATUS_DNAT,), "ct status dnat")


def _ct_bits(key: int, bits: Sequence[int], words: str) -> tuple[Expression, ...]:
    mask = 0
    for bit in bits:
        mask |= bit
    raw = struct.pack("=I", mask)
    return (
        Expression("ct", _be32(1, REG_1), _be32(2, key)),
        Expression(
            "bitwise", _be32(1, REG_1), _be32(2, REG_1), _be32(3, 4), _value(4, raw), _value(5, bytes(4))
        ),
        compare(bytes(4), equal=False, words=words),
    )  # fmt: skip


def local_destination(*, equal: bool = True) -> tuple[Expression, ...]:
    """Destination address is one of this host's."""
    return (
        Expression("fib", _be32(1, REG_1), _be32(2, FIB_RESULT_ADDRTYPE), _be32(3, FIB_DADDR)),
        compare(
            struct.pack("=I", RTN_LOCAL), equal=equal,
            words=f"fib daddr type {'' if equal else '!= '}local",
        ),
    )  # fmt: skip


def in_set(
    loads: Iterable[Expression], name: str, *, words: str, inverted: bool = False
) -> tuple[Expression, ...]:
    """The loaded registers are an element of a named set."""
    parts = [text(1, name), _be32(2, REG_1)]
    if inverted:
        parts.append(_be32(5, 1))
    shown = f"{words} {'!= ' if inverted else ''}@{name}"
    return (*loads, Expression("lookup", *parts, words=shown))


def verdict_map(loads: Iterable[Expression], name: str, *, words: str) -> tuple[Expression, ...]:
    """Do what the named map says for the loaded registers."""
    lookup = Expression(
        "lookup",
        text(1, name),
        _be32(2, REG_1),
        _be32(3, REG_VERDICT),
        words=f"{words} vmap @{name}",
    )
    return (*loads, lookup)


def dnat_map(
    loads: Iterable[Expression], name: str, *, version: int, words: str
) -> tuple[Expression, ...]:
    """Destination becomes the address and port that the named map (address . port) holds for the registers."""
    family = FAMILIES["ip" if version == 4 else "ip6"]
    port_register = _REG32 + (1 if version == 4 else 4)
    lookup = Expression("lookup", text(1, name), _be32(2, REG_1), _be32(3, REG_1))
    nat = Expression(
        "nat", _be32(1, 1), _be32(2, family), _be32(3, REG_1), _be32(4, REG_1),
        _be32(5, port_register), _be32(6, port_register), _be32(7, 3),
        words=f"dnat {'ip' if version == 4 else 'ip6'} to {words} map @{name}",
    )  # fmt: skip
    return (*loads, lookup, nat)


def concat(*loads: tuple[str, int, int]) -> tuple[Expression, ...]:
    """Load (what, offset, length) pieces side by side, each on a four-byte boundary.

    `what` is a header (link, network, transport), or protocol (of layer 4) or iifname, which have no offset.
    """
    steps = []
    register = _REG32
    for what, offset, length in loads:
        if what in BASES:
            steps.append(payload_load(BASES[what], offset, length, register))
        else:
            steps.append(meta_load(META_L4PROTO if what == "protocol" else META_IIFNAME, register))
        register += (length + 3) // 4
    return tuple(steps)


def dnat(raw: bytes, port: int) -> tuple[Expression, ...]:
    """Destination becomes this address and port."""
    family = FAMILIES["ip" if len(raw) == 4 else "ip6"]
    return (
        Expression("immediate", _be32(1, REG_1), _value(2, raw)),
        Expression("immediate", _be32(1, REG_2), _value(2, struct.pack(">H", port))),
        Expression(
            "nat", _be32(1, 1), _be32(2, family), _be32(3, REG_1), _be32(4, REG_1),
            _be32(5, REG_2), _be32(6, REG_2), words=f"dnat to {show_address(raw)}:{port}",
        ),
    )  # fmt: skip


def masquerade() -> tuple[Expression, ...]:
    """Source becomes the address of the outgoing interface."""
    return (Expression("masq", words="masquerade"),)


def snat(raw: bytes) -> tuple[Expression, ...]:
    """Source becomes this address."""
    family = FAMILIES["ip" if len(raw) == 4 else "ip6"]
    return (
        Expression("immediate", _be32(1, REG_1), _value(2, raw)),
        Expression(
            "nat", _be32(1, 0), _be32(2, family), _be32(3, REG_1), _be32(4, REG_1), _be32(7, 1),
            words=f"snat to {show_address(raw)}",
        ),
    )  # fmt: skip


def show_address(raw: bytes) -> str:
    """An address as people write it."""
    import _socket

    return _socket.inet_ntop(_socket.AF_INET if len(raw) == 4 else _socket.AF_INET6, raw)


# --- the value


class Chain:
    """A chain; with `hook` a base chain of `type` filter or nat."""

    __slots__ = ("hook", "name", "policy", "priority", "rules", "type")

    def __init__(
        self,
        name: str,
        rules: Sequence[tuple[Expression, ...]] = (),
        *,
        hook: str = "",
        priority: int = 0,
        type: str = "filter",
        policy: int = ACCEPT,
    ) -> None:
        self.name = name
        self.rules = tuple(rules)
        self.hook = hook
        self.priority = priority
        self.type = type
        self.policy = policy


class Set:
    """A named set, or a map where `data` names what its elements lead to.

    `key` and `data` are nft type names joined by ' . '; each part of a concatenation is padded to four bytes. With
    `counted` every element counts what matches it.
    """

    __slots__ = ("counted", "data", "elements", "flags", "key", "name")

    def __init__(
        self,
        name: str,
        key: str,
        *,
        data: str = "",
        flags: int = 0,
        counted: bool = False,
        elements: Sequence[Element] = (),
    ) -> None:
        self.name = name
        self.key = key
        self.counted = counted
        self.data = data
        self.flags = flags | (SET_MAP if data else 0)
        self.elements = tuple(elements)


class Element:
    """One element. `data`: bytes of a map's value; `verdict`: (code, chain) of a verdict map.

    `last`: the last key of an interval of concatenations; `timeout_ms`: when the kernel drops it (0 never).
    """

    __slots__ = ("data", "key", "last", "timeout_ms", "verdict", "words")

    def __init__(
        self,
        key: bytes,
        *,
        data: bytes = b"",
        verdict: tuple[int, str] | None = None,
        last: bytes = b"",
        timeout_ms: int = 0,
        words: str = "",
    ) -> None:
        self.key = key
        self.data = data
        self.verdict = verdict
        self.last = last
        self.timeout_ms = timeout_ms
        self.words = words or key.hex()

    def encode(self) -> bytes:
        """NFTA_LIST_ELEM of NFTA_SET_ELEM_*."""
        parts = [_value(1, self.key)]
        if self.verdict is not None:
            parts.append(_verdict_data(2, *self.verdict))
        elif self.data:
            parts.append(_value(2, self.data))
        if self.timeout_ms:
            parts.append(attribute(4, struct.pack(">Q", self.timeout_ms)))
        if self.last:
            parts.append(_value(10, self.last))
        return nested(1, *parts)


class Table:
    """A whole table."""

    __slots__ = ("chains", "family", "name", "sets")

    def __init__(
        self, family: str, name: str, chains: Sequence[Chain] = (), sets: Sequence[Set] = ()
    ) -> None:
        self.family = family
        self.name = name
        self.chains = tuple(chains)
        self.sets = tuple(sets)


def pad(raw: bytes) -> bytes:
    """One part of a concatenation, on a four-byte boundary."""
    return raw + b"\0" * (-len(raw) % 4)


# --- messages


class Message:
    """One message of a batch."""

    __slots__ = ("body", "family", "flags", "kind", "what")

    def __init__(
        self, kind: int, family: str, body: bytes, *, flags: int = 0, what: str = ""
    ) -> None:
        self.kind = kind
        self.family = FAMILIES[family]
        self.body = body
        self.flags = flags
        self.what = what


def replace_messages(table: Table) -> list[Message]:
    """The batch that puts this value in place of whatever the table holds now."""
    return [*delete_messages(table.family, table.name), *create_messages(table)]


def create_messages(table: Table) -> list[Message]:
    """The batch that makes this value where there is no table of its name."""
    name = text(1, table.name)
    flags = netlink.NLM_F_CREATE
    messages = [Message(NEWTABLE, table.family, name, flags=flags, what=f"table {table.name}")]
    messages += [_new_set(table, each, number) for number, each in enumerate(table.sets, 1)]
    messages += [new_chain(table, chain) for chain in table.chains]
    for each in table.sets:
        messages += add_elements(table.family, table.name, each.name, each.elements)
    for chain in table.chains:
        messages += [new_rule(table, chain, rule) for rule in chain.rules]
    return messages


def delete_messages(family: str, name: str) -> list[Message]:
    """The batch that removes a table, whether it exists or not."""
    body = text(1, name)
    return [
        Message(NEWTABLE, family, body, flags=netlink.NLM_F_CREATE, what=f"table {name}"),
        Message(DELTABLE, family, body, what=f"table {name}"),
    ]


def new_chain(table: Table, chain: Chain) -> Message:
    """Make a chain, without its rules."""
    parts = [text(1, table.name), text(3, chain.name)]
    if chain.hook:
        hook = nested(4, _be32(1, HOOKS[chain.hook]), _be32(2, chain.priority))
        parts += [hook, _be32(5, chain.policy), text(7, chain.type)]
    return Message(
        NEWCHAIN,
        table.family,
        b"".join(parts),
        flags=netlink.NLM_F_CREATE,
        what=f"chain {chain.name}",
    )


def new_rule(
    table: Table, chain: Chain, rule: tuple[Expression, ...], *, first: bool = False
) -> Message:
    """Append a rule to a chain, or put it in front of all others."""
    body = text(1, table.name) + text(2, chain.name)
    body += nested(4, *(expression.encode() for expression in rule))
    flags = netlink.NLM_F_CREATE | (0 if first else netlink.NLM_F_APPEND)
    what = f"rule {chain.name}: {show_rule(rule)}"
    return Message(NEWRULE, table.family, body, flags=flags, what=what)


def delete_rules(family: str, table: str, chain: str) -> Message:
    """Delete every rule of a chain."""
    return Message(DELRULE, family, text(1, table) + text(2, chain), what=f"rules of {chain}")


def delete_rule(family: str, table: str, chain: str, handle: int) -> Message:
    """Delete one rule."""
    body = text(1, table) + text(2, chain) + attribute(3, struct.pack(">Q", handle))
    return Message(DELRULE, family, body, what=f"rule {handle} of {chain}")


def delete_chain(family: str, table: str, chain: str) -> Message:
    """Delete a chain that holds no rule and to which none leads."""
    return Message(DELCHAIN, family, text(1, table) + text(3, chain), what=f"chain {chain}")


def type_of(names: str) -> tuple[int, int, list[int]]:
    """(nft's type number, length in bytes, lengths of the parts) of a possibly concatenated type."""
    number, length, parts = 0, 0, []
    for name in names.split(" . "):
        code, size = TYPE_NUMBERS[name]
        number = number << 6 | code
        parts.append(size)
        length += (size + 3) & ~3 if " . " in names else size
    return number, length, parts


def _new_set(table: Table, each: Set, number: int) -> Message:
    key_type, key_length, key_parts = type_of(each.key)
    flags = each.flags | (SET_CONCAT if len(key_parts) > 1 and each.flags & SET_INTERVAL else 0)
    parts = [text(1, table.name), text(2, each.name), _be32(3, flags)]
    parts += [_be32(4, key_type), _be32(5, key_length)]
    if each.data == "verdict":
        parts += [_be32(6, DATA_TYPE_VERDICT), _be32(7, 0)]
    elif each.data:
        data_type, data_length, _ = type_of(each.data)
        parts += [_be32(6, data_type), _be32(7, data_length)]
    if flags & SET_CONCAT:
        fields = (nested(1, _be32(1, size)) for size in key_parts)
        parts.append(nested(9, nested(2, *fields)))
    parts.append(_be32(10, number))
    if each.counted:
        parts.append(nested(17, text(1, "counter")))
    return Message(
        NEWSET, table.family, b"".join(parts), flags=netlink.NLM_F_CREATE, what=f"set {each.name}"
    )


ELEMENTS_PER_MESSAGE = 256  # a nested list's length is 16 bits


def _element_messages(
    kind: int, family: str, table: str, name: str, elements: Sequence[Element], flags: int
) -> list[Message]:
    messages = []
    for start in range(0, len(elements), ELEMENTS_PER_MESSAGE):
        part = elements[start : start + ELEMENTS_PER_MESSAGE]
        body = text(1, table) + text(2, name) + nested(3, *(element.encode() for element in part))
        what = f"elements of {name}: {', '.join(e.words for e in part[:3])}"
        messages.append(Message(kind, family, body, flags=flags, what=what))
    return messages


def add_elements(family: str, table: str, name: str, elements: Sequence[Element]) -> list[Message]:
    """Messages that add elements to a set; adding what is there already is no error."""
    return _element_messages(NEWSETELEM, family, table, name, elements, netlink.NLM_F_CREATE)


def delete_elements(
    family: str, table: str, name: str, elements: Sequence[Element]
) -> list[Message]:
    """Messages that take elements out; ENOENT where one is not there."""
    return _element_messages(DELSETELEM, family, table, name, elements, 0)


def apply(socket: netlink.Netlink, messages: Sequence[Message]) -> None:
    """Send one batch: all of it takes effect or nothing does.

    Raises OSError with the kernel's explanation, naming the message that was refused.
    """
    if not messages:
        return
    begin = struct.pack(">BBH", 0, 0, SUBSYSTEM)
    batch = [netlink.pack_message(BATCH_BEGIN, netlink.NLM_F_REQUEST, 0, begin)]
    last = len(messages)
    for number, message in enumerate(messages, 1):
        header = struct.pack(">BBH", message.family, 0, 0)
        # Only the last message is acknowledged (an acknowledged BATCH_END came with Linux 6.10): the kernel
        # answers it after the commit, and any refused message with its error.
        flags = message.flags | netlink.NLM_F_REQUEST | (netlink.NLM_F_ACK if number == last else 0)
        kind = SUBSYSTEM << 8 | message.kind
        batch.append(netlink.pack_message(kind, flags, number, header + message.body))
    batch.append(netlink.pack_message(BATCH_END, netlink.NLM_F_REQUEST, last + 1, begin))
    socket.send_batch(b"".join(batch), last, {n: m.what for n, m in enumerate(messages, 1)})


def replace(socket: netlink.Netlink, table: Table) -> None:
    """Put this value in place of whatever the table holds now, in one transaction."""
    apply(socket, replace_messages(table))


# --- words


def show_rule(rule: tuple[Expression, ...]) -> str:
    """A rule in nft(8)'s language."""
    return " ".join(expression.words for expression in rule if expression.words)


def describe(table: Table) -> str:
    """The whole table in nft(8)'s language, as a golden test compares it."""
    lines = [f"table {table.family} {table.name} {{"]
    for each in table.sets:
        lines.append(f"\t{'map' if each.data else 'set'} {each.name} {{")
        lines.append(f"\t\ttype {each.key}{' : ' + each.data if each.data else ''}")
        flags = [word for bit, word in _FLAG_WORDS.items() if each.flags & bit]
        if flags:
            lines.append(f"\t\tflags {','.join(flags)}")
        if each.counted:
            lines.append("\t\tcounter")
        shown = [element.words for element in each.elements]
        if shown:
            lines.append(f"\t\telements = {{ {', '.join(shown)} }}")
        lines.append("\t}")
    for chain in table.chains:
        lines.append(f"\tchain {chain.name} {{")
        if chain.hook:
            policy = _VERDICT_WORDS[chain.policy]
            lines.append(
                f"\t\ttype {chain.type} hook {chain.hook} priority {chain.priority}; policy {policy};"
            )
        lines += [f"\t\t{show_rule(rule)}" for rule in chain.rules]
        lines.append("\t}")
    lines.append("}")
    return "\n".join(lines) + "\n"
