"""nf_tables expressions about Ethernet frames, for tables of the bridge family.

    a frame that is to be routed instead of bridged   destination := the bridge's own address, packet type := for us

That is what ebtables calls redirect; nf_tables has no statement for it, but may write both fields.

Sources: linux/netfilter/nf_tables.h (NFTA_PAYLOAD_*, NFTA_META_*), linux/if_ether.h, linux/icmpv6.h.
"""

from __future__ import annotations

import struct

from sampan.linux import nft
from sampan.linux.netlink import attribute, text
from sampan.linux.nft import Expression

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ETHERTYPES = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD}
PACKET_HOST = 0
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136


def protocol(name: str) -> tuple[Expression, ...]:
    """Frames that carry ip, ip6 or arp."""
    raw = struct.pack(">H", ETHERTYPES[name])
    return (nft.meta_load(nft.META_PROTOCOL), nft.compare(raw, words=f"meta protocol {name}"))


def icmpv6_type(number: int) -> tuple[Expression, ...]:
    """One kind of ICMPv6 message."""
    load = nft.payload_load(nft.BASES["transport"], 0, 1)
    return (
        *nft.l4proto("icmpv6"),
        load,
        nft.compare(bytes((number,)), words=f"icmpv6 type {number}"),
    )


def route_by(loads: Iterable[Expression], name: str, *, words: str) -> tuple[Expression, ...]:
    """Have this host route the frame: its destination becomes what the named map holds for the registers.

    A frame that the map does not know goes on to the next rule.
    """
    lookup = Expression("lookup", text(1, name), _be32(2, nft.REG_1), _be32(3, nft.REG_1))
    # payload: source register, base, offset, length; a link header has no checksum to mend.
    write = Expression(
        "payload", _be32(5, nft.REG_1), _be32(2, nft.BASES["link"]), _be32(3, 0), _be32(4, 6),
        words=f"ether daddr set {words} map @{name}",
    )  # fmt: skip
    host = Expression(
        "immediate", _be32(1, nft.REG_1), attribute(2 | 0x8000, attribute(1, bytes((PACKET_HOST,))))
    )
    kind = Expression(
        "meta", _be32(3, nft.REG_1), _be32(2, nft.META_PKTTYPE), words="meta pkttype set host"
    )
    return (*loads, lookup, write, host, kind)


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))
