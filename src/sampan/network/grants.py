"""What limited containers' names resolved to, put into the kernel's sets by the keeper before the answer goes out.

    asked for an allowed name      the answer's addresses are granted as long as the answer may be kept, and some more
    asked for any other            "no such name", and the name is remembered, for whoever writes the list
    a container's name             granted while a container of the asker's networks has it, asked for or not

`egress.py` draws the sets. An address that a name has no business with is never granted: loopback, link-local (where
clouds keep their credentials), multicast. A grant is given again when a table was replaced, and taken back at its end
by the kernel itself.

Hot: part of the keeper; nf_tables are loaded when the first limited container comes.
"""

from __future__ import annotations

import _socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from sampan.network import dns

LEAST_S, GRACE_S, MOST_S = 60, 30, 86400
MOST_GRANTS = 2048
MOST_REFUSED = 64
FOREVER = float("inf")


class Grants:
    """One limited container's. `message` is the `limit` of a `names` message."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.sets = GrantedSets(message["table"])
        self.granted: dict[str, tuple[str, float]] = {}  # address -> name, end (monotonic)
        self.refused: dict[str, int] = {}
        self._read(message)

    def _read(self, message: dict[str, Any]) -> None:
        self.sources = list(message["sources"])
        names = [str(name) for name in message["names"]]
        self.exact = frozenset(n for n in names if not n.startswith("*"))
        self.below = tuple(n[1:] for n in names if n.startswith("*"))

    def renew(self, message: dict[str, Any]) -> None:
        """A new list, or another address: what is no longer allowed is taken back, the rest is given anew."""
        self.sets.take(self.sources, self.granted)
        self._read(message)
        self.granted = {a: kept for a, kept in self.granted.items() if self.allows(kept[0])}
        self.give_again()

    def allows(self, name: str) -> bool:
        """Whether the list has it: itself, or by *.PARENT."""
        return name in self.exact or (bool(self.below) and name.endswith(self.below))

    def refuse(self, name: str) -> None:
        """Remember what was asked for in vain."""
        if name in self.refused or len(self.refused) < MOST_REFUSED:
            self.refused[name] = self.refused.get(name, 0) + 1

    def resolved(self, name: str, found: Iterable[tuple[str, int]]) -> None:
        """An allowed name's (address, seconds to live)."""
        now = time.monotonic()
        fresh: dict[str, float] = {}
        for address, ttl in found:
            if not is_ordinary(address):
                continue
            end = now + min(max(ttl, LEAST_S), MOST_S) + GRACE_S
            if end > self.granted.get(address, ("", 0.0))[1]:
                self.granted[address] = (name, end)
                fresh[address] = end
        self._forget_ended(now)
        self.sets.give(self.sources, fresh, now)

    def containers(self, zones: Iterable[dns.Zone]) -> None:
        """The allowed ones among the containers' names of the asker's networks, as they are now."""
        wanted = {
            address: name
            for zone in zones
            for name, addresses in zone.names.items()
            if self.allows(name) or self.allows(f"{name}.{zone.name}")
            for address in addresses
        }
        gone = [a for a, kept in self.granted.items() if kept[1] == FOREVER and a not in wanted]
        self.sets.take(self.sources, gone)
        for address in gone:
            del self.granted[address]
        self.granted |= {address: (name, FOREVER) for address, name in wanted.items()}
        self.sets.give(self.sources, dict.fromkeys(wanted, FOREVER), time.monotonic())

    def give_again(self) -> None:
        """After the tables were replaced."""
        now = time.monotonic()
        self._forget_ended(now)
        self.sets.give(self.sources, {a: kept[1] for a, kept in self.granted.items()}, now)

    def _forget_ended(self, now: float) -> None:
        self.granted = {a: kept for a, kept in self.granted.items() if kept[1] > now}
        surplus = len(self.granted) - MOST_GRANTS
        if surplus > 0:
            oldest = sorted(self.granted, key=lambda a: self.granted[a][1])[:surplus]
            self.sets.take(self.sources, oldest)
            for address in oldest:
                del self.granted[address]

    def listing(self) -> list[dict[str, Any]]:
        """What is granted now; seconds 0: as long as a container has the name."""
        now = time.monotonic()
        return [
            {"name": name, "address": address, "seconds": 0 if end == FOREVER else int(end - now)}
            for address, (name, end) in sorted(self.granted.items(), key=lambda kept: kept[1])
            if end > now
        ]

    def close(self) -> None:
        """Its addresses may soon be another's."""
        self.sets.take(self.sources, self.granted)
        self.sets.close()


class GrantedSets:
    """`granted4` and `granted6` of one engine's table. Where they are not there now, they come with `give_again`."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._link: Any = None

    def give(self, sources: Iterable[str], ends: dict[str, float], now: float) -> None:
        """Let the sources reach each address until its end."""
        elements = [
            (source, address, 0 if end == FOREVER else max(int((end - now) * 1000), 1))
            for address, end in ends.items()
            for source in sources
        ]
        self._change(elements, add=True)

    def take(self, sources: Iterable[str], addresses: Iterable[str]) -> None:
        """Let them no longer."""
        self._change([(s, a, 0) for a in addresses for s in sources], add=False)

    def _change(self, wanted: list[tuple[str, str, int]], *, add: bool) -> None:
        wanted = [each for each in wanted if (":" in each[0]) == (":" in each[1])]
        if not wanted:
            return
        from sampan.linux import netlink, nft

        messages = []
        for source, address, timeout_ms in wanted:
            name = "granted6" if ":" in address else "granted4"
            key = _packed(source) + _packed(address)
            plain = [nft.Element(key)]
            # An element's end cannot be moved (before Linux 6.13), and deleting one that is not there fails the whole
            # batch: so it is made, deleted, and made with its new end, in one transaction.
            messages += nft.add_elements("inet", self.table, name, plain)
            messages += nft.delete_elements("inet", self.table, name, plain)
            if add:
                timed = [nft.Element(key, timeout_ms=timeout_ms)]
                messages += nft.add_elements("inet", self.table, name, timed)
        try:
            if self._link is None:
                self._link = netlink.Netlink(netlink.NETLINK_NETFILTER)
            nft.apply(self._link, messages)
        except OSError:
            pass  # the table is being replaced: `give_again` follows; until then the packet is dropped

    def close(self) -> None:
        """Idempotent."""
        if self._link is not None:
            self._link.close()
            self._link = None


def _packed(address: str) -> bytes:
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    return _socket.inet_pton(family, address)


def is_ordinary(address: str) -> bool:
    """Whether a name may stand for it: no loopback, link-local, multicast, reserved or mapped address."""
    raw = _packed(address)
    if len(raw) == 4:
        return raw[0] not in (0, 127) and raw[0] < 224 and raw[:2] != b"\xa9\xfe"
    mapped = raw[:10] == bytes(10) and raw[10:12] in (b"\0\0", b"\xff\xff")
    return not mapped and raw[0] != 0xFF and not (raw[0] == 0xFE and raw[1] & 0xC0 == 0x80)
