"""Connections that the kernel tracks: forget those that are no longer wanted, so that their packets are judged anew.

Source: linux/netfilter/nfnetlink_conntrack.h (CTA_*).
"""

from __future__ import annotations

import struct

from sampan.linux import netlink
from sampan.linux.netlink import attribute, parse_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SUBSYSTEM = 1
GET, DELETE = 1, 2
CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE = 1, 12, 18
CTA_TUPLE_IP = 1
# family -> attributes of source and destination in CTA_TUPLE_IP
ADDRESSES = {int(netlink.AF_INET): (1, 2), int(netlink.AF_INET6): (3, 4)}


def forget(link: netlink.Netlink, unwanted: Callable[[bytes, bytes], bool]) -> int:
    """Drop the entries whose (sender, destination), as packed addresses of who began, are unwanted; how many went.

    `link` is a socket of NETLINK_NETFILTER. An entry that ends meanwhile is no error.
    """
    requests = []
    for family, (source, destination) in ADDRESSES.items():
        header = struct.pack(">BBH", family, 0, 0)
        for _, body in link.dump(SUBSYSTEM << 8 | GET, header, "connections"):
            found = parse_attributes(body[4:])
            origin = found.get(CTA_TUPLE_ORIG, b"")
            pair = parse_attributes(parse_attributes(origin).get(CTA_TUPLE_IP, b""))
            if not unwanted(pair.get(source, b""), pair.get(destination, b"")):
                continue
            named = attribute(CTA_TUPLE_ORIG | netlink.NLA_F_NESTED, origin)
            named += b"".join(attribute(k, found[k]) for k in (CTA_ID, CTA_ZONE) if k in found)
            requests.append(netlink.Request(SUBSYSTEM << 8 | DELETE, header + named))
    return sum(outcome is None for outcome in link.send_all(*requests)) if requests else 0
