"""rtnetlink: links, addresses, routes and neighbours, several requests in one send.

Owns the wire format of rtnetlink(7) and a socket that speaks it. It knows messages, not networks: which bridge and
which address is decided in `network/`.

    request  = nlmsghdr | family header (ifinfomsg, ifaddrmsg, rtmsg, ndmsg) | attributes
    nlmsghdr = length u32 | type u16 | flags u16 | sequence u32 | port u32
    attribute= length u16 | type u16 | payload | padding to 4 bytes

An attribute's length is 16 bits: a payload that does not fit is refused here, for a wrapped length lets the payload
be read as attributes of its own (CVE-2021-43784).

A veth pair is born whole: one message makes the near end on its bridge and up, and the far end inside the target
network namespace under its final name. Making it here and moving it costs ten times as much, for moving a device
waits until every packet in flight is gone (synchronize_net).
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RTN_UNICAST = 1

# linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/veth.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_NET_NS_PID, IFLA_IFALIAS, IFLA_STATS64 = 16, 18, 19, 20, 23
IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_EUI64, IN6_ADDR_GEN_MODE_NONE = 0, 1
VETH_INFO_PEER = 1
IFLA_MACVLAN_MODE = 1
IFLA_IPVLAN_MODE, IFLA_IPVLAN_FLAGS = 1, 2
IFLA_VLAN_ID = 1
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
IFLA_PROTINFO = 12
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 3, 4, 8
IFA_F_NODAD = 0x02
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
IFF_UP = 0x1
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

AF_UNSPEC = 0
AF_INET = _socket.AF_INET
AF_INET6 = _socket.AF_INET6
AF_BRIDGE = 7

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")
_U16 = struct.Struct("=H")
MAX_PAYLOAD = 0xFFFF - _ATTRIBUTE.size


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded. Raises OverflowError where the payload does not fit its 16-bit length."""
    if len(payload) > MAX_PAYLOAD:
        raise OverflowError(f"netlink attribute {kind} of {len(payload)} bytes")
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + b"\0" * (-len(payload) % 4)


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """An attribute of one u32 in host order."""
    return attribute(kind, _U32.pack(value))


def u16(kind: int, value: int) -> bytes:
    """An attribute of one u16 in host order."""
    return attribute(kind, _U16.pack(value))


def u8(kind: int, value: int) -> bytes:
    """An attribute of one byte."""
    return attribute(kind, bytes((value,)))


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def parse_attributes(data: bytes) -> dict[int, bytes]:
    """Attribute type -> payload; of a repeated type the last one counts. Stops at the first malformed one."""
    found: dict[int, bytes] = {}
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_list(data: bytes) -> list[tuple[int, bytes]]:
    """The attributes in order, repeated types kept: for nested lists."""
    found = []
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        found.append((kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


class Request:
    """One message to be sent: type, flags and body; `what` names it in an error."""

    __slots__ = ("body", "flags", "kind", "what")

    def __init__(self, kind: int, body: bytes, *, flags: int = 0, what: str = "") -> None:
        self.kind = kind
        self.body = body
        self.flags = flags
        self.what = what


class Netlink:
    """A netlink socket of the network namespace in which it was made; use with `with`.

    A socket stays in its namespace for life, whoever holds it: to configure another namespace, make one there
    (`namespaces.call_in_netns(fd, Netlink)`) and use it from here.
    """

    __slots__ = ("_sequence", "_socket")

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = _socket.socket(
            _socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol
        )
        self._sequence = 0
        try:
            self._socket.bind((0, 0))
            for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def send(self, *requests: Request) -> None:
        """Send all requests in one system call and wait for every acknowledgement.

        The kernel performs them in order and goes on after a failure. Raises the first one as OSError, its text the
        kernel's own explanation where it gave one, with a note that says which request it was.
        """
        first: OSError | None = None
        for error in self.send_all(*requests):
            if error is not None and first is None:
                first = error
        if first is not None:
            raise first

    def send_all(self, *requests: Request) -> list[OSError | None]:
        """Like send, but gives every request's outcome instead of raising."""
        start = self._sequence + 1
        parts = []
        for request in requests:
            self._sequence += 1
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            parts.append(pack_message(request.kind, flags, self._sequence, request.body))
        self._socket.sendto(b"".join(parts), (0, 0))
        outcomes: list[OSError | None] = [None] * len(requests)
        waiting = set(range(start, self._sequence + 1))
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind == NLMSG_ERROR and sequence in waiting:
                    waiting.discard(sequence)
                    index = sequence - start
                    outcomes[index] = acknowledgement_error(body, flags, requests[index].what)
        return outcomes

    def send_batch(self, batch: bytes, last: int, names: dict[int, str]) -> None:
        """Send prepared messages as one datagram; number `last` asks for an acknowledgement.

        Raises the first refusal as OSError; `names` says what each sequence number was. The kernel performs a batch
        inside sendto, so all its answers wait when that returns. All are read: a batch that fails at its commit is
        answered on its first message (sequence 0), and the acknowledgement follows nevertheless.
        """
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, max(len(batch) * 2, 1 << 18))
        self._socket.sendto(batch, (0, 0))
        first: OSError | None = None
        answered = False
        while self._readable() or not (answered or first):
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR:
                    continue
                error = acknowledgement_error(body, flags, names.get(sequence, "batch"))
                if error is not None and first is None:
                    first = error
                answered = answered or sequence == last
        if first is not None:
            raise first

    def _readable(self) -> bool:
        import select

        return bool(select.select([self._socket], [], [], 0)[0])

    def dump(self, kind: int, body: bytes, what: str = "") -> Iterator[tuple[int, bytes]]:
        """Ask for a table; yields (message type, body). Raises OSError where the kernel refuses."""
        self._sequence += 1
        wanted = self._sequence
        self._socket.sendto(pack_message(kind, NLM_F_REQUEST | NLM_F_DUMP, wanted, body), (0, 0))
        while True:
            for answer, flags, sequence, payload in self._receive():
                if sequence != wanted:
                    continue
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    error = acknowledgement_error(payload, flags, what)
                    if error is not None:
                        raise error
                    return
                yield answer, payload

    def get(self, kind: int, body: bytes, what: str = "") -> bytes:
        """Ask for one object; its body. Raises OSError (ENODEV, ENOENT) where there is none."""
        self._sequence += 1
        wanted = self._sequence
        self._socket.sendto(pack_message(kind, NLM_F_REQUEST, wanted, body), (0, 0))
        while True:
            for answer, flags, sequence, payload in self._receive():
                if sequence != wanted:
                    continue
                if answer == NLMSG_ERROR:
                    error = acknowledgement_error(payload, flags, what)
                    raise error if error is not None else OSError(0, "empty answer", what)
                return payload

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 20)
        yield from parse_messages(data)


def pack_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message, padded."""
    padding = b"\0" * (-len(body) % 4)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body + padding


def parse_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a datagram; stops at a malformed one."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def acknowledgement_error(body: bytes, flags: int, what: str) -> OSError | None:
    """The OSError in an NLMSG_ERROR body, or None for an acknowledgement."""
    number = -int.from_bytes(body[:4], "little", signed=True)
    if number == 0:
        return None
    words = os.strerror(number)
    if flags & NLM_F_ACK_TLVS:
        skip = 4 + _HEADER.size
        if not flags & NLM_F_CAPPED:
            skip = 4 + ((_U32.unpack_from(body, 4)[0] + 3) & ~3)
        explanation = parse_attributes(body[skip:]).get(NLMSGERR_ATTR_MSG, b"")
        if explanation:
            words += ": " + explanation.rstrip(b"\0").decode(errors="replace")
    error = OSError(number, words, what) if what else OSError(number, words)
    error.add_note("syscall: netlink")
    return error


# --- links


def link_kind(kind: str, *data: bytes) -> bytes:
    """IFLA_LINKINFO for a device kind with its own attributes."""
    parts = [text(IFLA_INFO_KIND, kind)]
    if data:
        parts.append(nested(IFLA_INFO_DATA, *data))
    return nested(IFLA_LINKINFO, *parts)


def new_link(
    *attributes: bytes, up: bool = False, what: str = "", family: int = AF_UNSPEC
) -> Request:
    """RTM_NEWLINK that creates, and fails with EEXIST where the name is taken."""
    flags = IFF_UP if up else 0
    body = _IFINFO.pack(family, 0, 0, flags, flags) + b"".join(attributes)
    return Request(RTM_NEWLINK, body, flags=NLM_F_CREATE | NLM_F_EXCL, what=what)


def bridge(name: str, *, mtu: int = 0, address: bytes = b"", up: bool = False) -> Request:
    """Make a bridge device."""
    parts = [text(IFLA_IFNAME, name), link_kind("bridge")]
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    if address:
        parts.append(attribute(IFLA_ADDRESS, address))
    return new_link(*parts, up=up, what=name)


def veth(
    name: str,
    *,
    peer: str,
    peer_netns_fd: int,
    master: int = 0,
    mtu: int = 0,
    peer_address: bytes = b"",
    up: bool = True,
) -> Request:
    """Make a pair: `name` here, on bridge `master`, and `peer` inside the namespace, in one message."""
    far = [text(IFLA_IFNAME, peer), u32(IFLA_NET_NS_FD, peer_netns_fd)]
    near = [text(IFLA_IFNAME, name)]
    if mtu:
        far.append(u32(IFLA_MTU, mtu))
        near.append(u32(IFLA_MTU, mtu))
    if peer_address:
        far.append(attribute(IFLA_ADDRESS, peer_address))
    if master:
        near.append(u32(IFLA_MASTER, master))
    peer_info = nested(VETH_INFO_PEER, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0), *far)
    return new_link(*near, link_kind("veth", peer_info), up=up, what=name)


def macvlan(
    name: str, *, parent: int, mode: str, netns_fd: int, mtu: int = 0, address: bytes = b""
) -> Request:
    """Make a macvlan child of link index `parent` directly inside the namespace."""
    parts = [text(IFLA_IFNAME, name), u32(IFLA_LINK, parent), u32(IFLA_NET_NS_FD, netns_fd)]
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    if address:
        parts.append(attribute(IFLA_ADDRESS, address))
    parts.append(link_kind("macvlan", u32(IFLA_MACVLAN_MODE, MACVLAN_MODES[mode])))
    return new_link(*parts, what=name)


def ipvlan(name: str, *, parent: int, mode: str, flag: str, netns_fd: int, mtu: int = 0) -> Request:
    """Make an ipvlan child of link index `parent` directly inside the namespace."""
    parts = [text(IFLA_IFNAME, name), u32(IFLA_LINK, parent), u32(IFLA_NET_NS_FD, netns_fd)]
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    data = (u16(IFLA_IPVLAN_MODE, IPVLAN_MODES[mode]), u16(IFLA_IPVLAN_FLAGS, IPVLAN_FLAGS[flag]))
    parts.append(link_kind("ipvlan", *data))
    return new_link(*parts, what=name)


def vlan(name: str, *, parent: int, tag: int) -> Request:
    """Make an 802.1q child of link index `parent`, up."""
    parts = [text(IFLA_IFNAME, name), u32(IFLA_LINK, parent)]
    return new_link(*parts, link_kind("vlan", u16(IFLA_VLAN_ID, tag)), up=True, what=name)


def dummy(name: str) -> Request:
    """Make a dummy device, up: the parent of a macvlan or ipvlan network that was given none."""
    return new_link(text(IFLA_IFNAME, name), link_kind("dummy"), up=True, what=name)


def set_link(
    index: int = 0,
    *,
    name: str = "",
    up: bool | None = None,
    rename: str = "",
    mtu: int = 0,
    master: int | None = None,
    address: bytes = b"",
    netns_fd: int = -1,
    alias: str = "",
    ipv6_addresses: bool = True,
) -> Request:
    """Change a link, named by index or by name. `ipv6_addresses=False` stops automatic link-local addresses."""
    flags = IFF_UP if up else 0
    change = IFF_UP if up is not None else 0
    parts = []
    if not index:
        parts.append(text(IFLA_IFNAME, name))
    elif rename:
        parts.append(text(IFLA_IFNAME, rename))
    if mtu:
        parts.append(u32(IFLA_MTU, mtu))
    if master is not None:
        parts.append(u32(IFLA_MASTER, master))
    if address:
        parts.append(attribute(IFLA_ADDRESS, address))
    if netns_fd >= 0:
        parts.append(u32(IFLA_NET_NS_FD, netns_fd))
    if alias:
        parts.append(text(IFLA_IFALIAS, alias))
    if not ipv6_addresses:
        mode = u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
        parts.append(nested(IFLA_AF_SPEC, nested(AF_INET6, mode)))
    body = _IFINFO.pack(AF_UNSPEC, 0, index, flags, change) + b"".join(parts)
    return Request(RTM_NEWLINK, body, what=name or f"link {index}")


def set_bridge_port(
    index: int, *, hairpin: bool | None = None, isolated: bool | None = None
) -> Request:
    """Change the bridge side of a link that has a master."""
    parts = []
    if hairpin is not None:
        parts.append(u8(IFLA_BRPORT_MODE, int(hairpin)))
    if isolated is not None:
        parts.append(u8(IFLA_BRPORT_ISOLATED, int(isolated)))
    body = _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0) + nested(IFLA_PROTINFO, *parts)
    return Request(RTM_SETLINK, body, what=f"bridge port {index}")


def delete_link(index: int = 0, *, name: str = "") -> Request:
    """Delete a link by index or by name. Waits for packets in flight: prefer to drop the namespace it lives in."""
    body = _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0)
    if not index:
        body += text(IFLA_IFNAME, name)
    return Request(RTM_DELLINK, body, what=name or f"link {index}")


class Link:
    """A link as the kernel reports it. `counters`: the 64-bit statistics in rtnl_link_stats64's order."""

    __slots__ = ("address", "counters", "index", "kind", "master", "mtu", "name", "parent", "up")
    index: int
    mtu: int
    master: int
    parent: int
    counters: tuple[int, ...]

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _IFINFO.unpack_from(body)
        found = parse_attributes(body[_IFINFO.size :])
        self.name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        self.address = found.get(IFLA_ADDRESS, b"")
        self.mtu = _U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0
        self.master = _U32.unpack(found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0
        self.parent = _U32.unpack(found[IFLA_LINK])[0] if IFLA_LINK in found else 0
        self.up = bool(flags & IFF_UP)
        info = parse_attributes(found.get(IFLA_LINKINFO, b""))
        self.kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
        raw = found.get(IFLA_STATS64, b"")
        self.counters = struct.unpack_from(f"={len(raw) // 8}Q", raw)


def links(netlink: Netlink) -> list[Link]:
    """Every link of the socket's namespace."""
    return [
        Link(body) for _, body in netlink.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0), "links")
    ]


def link_by_name(netlink: Netlink, name: str) -> Link:
    """The link of that name. Raises OSError ENODEV where there is none."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    return Link(netlink.get(RTM_GETLINK, body, name))


# --- addresses, routes, neighbours


def _family(address: bytes) -> int:
    return AF_INET if len(address) == 4 else AF_INET6


def add_address(
    index: int,
    address: bytes,
    prefix: int,
    *,
    broadcast: bytes = b"",
    peer: bytes = b"",
    replace: bool = False,
) -> Request:
    """Give a link an address; IPv6 without duplicate address detection, for we know who has which.

    peer   the far end of a point-to-point link, where the prefix is its
    """
    scope = RT_SCOPE_UNIVERSE
    flags = IFA_F_NODAD if len(address) == 16 else 0
    body = _IFADDR.pack(_family(address), prefix, flags, scope, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, peer or address)
    if broadcast:
        body += attribute(IFA_BROADCAST, broadcast)
    how = NLM_F_REPLACE if replace else NLM_F_EXCL
    return Request(RTM_NEWADDR, body, flags=NLM_F_CREATE | how, what="address " + address.hex())


def delete_address(index: int, address: bytes, prefix: int) -> Request:
    """Take an address from a link."""
    body = _IFADDR.pack(_family(address), prefix, 0, 0, index) + attribute(IFA_LOCAL, address)
    return Request(RTM_DELADDR, body, what="address " + address.hex())


def add_route(
    *,
    family: int,
    index: int = 0,
    destination: bytes = b"",
    prefix: int = 0,
    gateway: bytes = b"",
    source: bytes = b"",
    metric: int = 0,
    replace: bool = False,
) -> Request:
    """A route; without destination the default one. Link scope where there is no gateway."""
    scope = RT_SCOPE_UNIVERSE if gateway or family == AF_INET6 else RT_SCOPE_LINK
    body = _RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0)
    if destination:
        body += attribute(RTA_DST, destination)
    if gateway:
        body += attribute(RTA_GATEWAY, gateway)
    if index:
        body += u32(RTA_OIF, index)
    if source:
        body += attribute(RTA_PREFSRC, source)
    if metric:
        body += u32(RTA_PRIORITY, metric)
    how = NLM_F_REPLACE if replace else NLM_F_EXCL
    return Request(RTM_NEWROUTE, body, flags=NLM_F_CREATE | how, what="route")


def delete_route(
    *, family: int, index: int = 0, destination: bytes = b"", prefix: int = 0, gateway: bytes = b""
) -> Request:
    """Delete the route that matches all that is given."""
    body = _RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, 0, 255, 0, 0)
    if destination:
        body += attribute(RTA_DST, destination)
    if gateway:
        body += attribute(RTA_GATEWAY, gateway)
    if index:
        body += u32(RTA_OIF, index)
    return Request(RTM_DELROUTE, body, what="route")


def add_neighbour(index: int, address: bytes, link_address: bytes) -> Request:
    """A permanent neighbour entry."""
    body = _NDMSG.pack(_family(address), index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, address) + attribute(NDA_LLADDR, link_address)
    return Request(RTM_NEWNEIGH, body, flags=NLM_F_CREATE | NLM_F_REPLACE, what="neighbour")


class Address:
    """An address of a link."""

    __slots__ = ("address", "broadcast", "family", "flags", "index", "peer", "prefix", "scope")
    family: int
    flags: int
    index: int
    prefix: int
    scope: int

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, self.flags, self.scope, self.index = _IFADDR.unpack_from(body)
        found = parse_attributes(body[_IFADDR.size :])
        self.peer = found.get(IFA_ADDRESS, b"")  # the address itself but on a point-to-point link
        self.address = found.get(IFA_LOCAL) or self.peer
        self.broadcast = found.get(IFA_BROADCAST, b"")


class Route:
    """A route of the main table; `destination` is empty for the default route."""

    __slots__ = ("destination", "family", "gateway", "index", "metric", "prefix", "table")
    family: int
    index: int
    metric: int
    prefix: int
    table: int

    def __init__(self, body: bytes) -> None:
        self.family, self.prefix, _, _, table, _, _, _, _ = _RTMSG.unpack_from(body)
        found = parse_attributes(body[_RTMSG.size :])
        self.destination = found.get(RTA_DST, b"")
        self.gateway = found.get(RTA_GATEWAY, b"")
        self.index = _U32.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0
        self.metric = _U32.unpack(found[RTA_PRIORITY])[0] if RTA_PRIORITY in found else 0
        self.table = _U32.unpack(found[RTA_TABLE])[0] if RTA_TABLE in found else table


def addresses(netlink: Netlink, family: int = AF_UNSPEC) -> list[Address]:
    """Every address of the socket's namespace."""
    return [
        Address(body)
        for _, body in netlink.dump(RTM_GETADDR, _IFADDR.pack(family, 0, 0, 0, 0), "addresses")
    ]


def routes(netlink: Netlink, family: int = AF_INET) -> list[Route]:
    """The routes of the main table."""
    body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    found = (Route(answer) for _, answer in netlink.dump(RTM_GETROUTE, body, "routes"))
    return [route for route in found if route.table == RT_TABLE_MAIN]
