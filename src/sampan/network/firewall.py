"""The engine's rules in the kernel: applied whole, kept whole, and let through by other people's tables.

`rules.py` and `egress.py` say what the tables are; here they are put into the kernel in one transaction, changed element
by element while ports come and go, and put back when somebody flushed them (`nft flush ruleset`, a firewall's reload):
the kernel tells of every change on a multicast group. Other people's tables are `foreign.py`'s.

Where no rule can be set, starting a container with a network is an error: it must not start open (CVE-2023-28840 and
its siblings).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable

from sampan.linux import netlink, nft, nft_read
from sampan.network.foreign import ForeignTables
from sampan.network.rules import Translation

NFNLGRP_NFTABLES = 7
NETLINK_ADD_MEMBERSHIP = 1
ENOBUFS = 105
# What can take rules away or make another table drop: elements and rules that are added cannot.
_TELLING = {
    nft.SUBSYSTEM << 8 | kind
    for kind in (nft.NEWTABLE, nft.DELTABLE, nft.NEWCHAIN, nft.DELCHAIN, nft.DELRULE)
}
BASE_CHAINS = frozenset({"prerouting", "output", "forward", "postrouting"})


class Firewall:
    """The engine's tables. `build` gives the wanted values at any time: one of family inet, perhaps one of bridge.

    `on_applied` is called after every whole replacement, for what others had put into the tables' sets.
    """

    def __init__(self, table: str, build: Callable[[], list[nft.Table]]) -> None:
        self.table = table
        self.on_applied: Callable[[], None] = lambda: None
        self._build = build
        self._lock = threading.Lock()
        self._socket: netlink.Netlink | None = None
        self._foreign = ForeignTables(table)
        self._has_guard = True  # until we know better: a former daemon's may be there

    def _netlink(self) -> netlink.Netlink:
        if self._socket is None:
            self._socket = netlink.Netlink(netlink.NETLINK_NETFILTER)
        return self._socket

    def apply(self) -> None:
        """Put the tables in place, whole and in one transaction. Raises OSError."""
        with self._lock:
            wanted = self._build()
            messages = [m for table in wanted for m in nft.replace_messages(table)]
            guarded = any(table.family == "bridge" for table in wanted)
            if not guarded and self._has_guard and self._exists("bridge"):
                messages += nft.delete_messages("bridge", self.table)
            nft.apply(self._netlink(), messages)
            self._has_guard = guarded
            self._foreign.open(self._netlink(), _bridges(wanted))
        self.on_applied()

    def meet_legacy(self) -> None:
        """Before a container starts: let it through where the old xtables came into use meanwhile. Cheap if not."""
        if self._foreign.has_new_legacy():
            self.apply()

    def publish(self, added: Iterable[Translation]) -> None:
        """Add ports to the maps; where the table is gone, put it back with them. Raises OSError."""
        self._change(added, nft.add_elements)

    def unpublish(self, removed: Iterable[Translation]) -> None:
        """Take ports out of the maps. Idempotent."""
        try:
            self._change(removed, nft.delete_elements)
        except FileNotFoundError:
            pass

    def _change(
        self,
        translations: Iterable[Translation],
        make: Callable[[str, str, str, list[nft.Element]], list[nft.Message]],
    ) -> None:
        by_map: dict[str, list[nft.Element]] = {}
        for each in translations:
            by_map.setdefault(each.map_name, []).append(each.element())
        messages: list[nft.Message] = []
        for name, elements in by_map.items():
            messages += make("inet", self.table, name, elements)
        if not messages:
            return
        with self._lock:
            try:
                nft.apply(self._netlink(), messages)
                return
            except FileNotFoundError:
                if make is nft.delete_elements:
                    raise
        self.apply()

    def counted(self, name: str) -> dict[bytes, tuple[int, int]]:
        """Key -> (packets, bytes) of a counting set; nothing where the set is not there."""
        with self._lock:
            try:
                found = nft_read.elements(self._netlink(), "inet", self.table, name)
            except FileNotFoundError:
                return {}
        return {each.key: (each.packets, each.bytes) for each in found}

    def remove(self) -> None:
        """Delete the tables and what was put into other people's. Idempotent."""
        with self._lock:
            messages = nft.delete_messages("inet", self.table)
            if self._exists("bridge"):
                messages += nft.delete_messages("bridge", self.table)
            nft.apply(self._netlink(), messages)
            self._foreign.close(self._netlink())

    def repair(self) -> bool:
        """Put back what is gone, and open again what others shut; whether anything was to be done."""
        with self._lock:
            intact = self._intact()
            if intact:
                return self._foreign.mend(self._netlink())
        self.apply()
        return True

    def _intact(self) -> bool:
        chains = {
            chain.name
            for chain in nft_read.chains(self._netlink())
            if (chain.family, chain.table) == ("inet", self.table)
        }
        return chains >= BASE_CHAINS and (not self._has_guard or self._exists("bridge"))

    def _exists(self, family: str) -> bool:
        return nft_read.table_exists(self._netlink(), family, self.table)

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _bridges(tables: Iterable[nft.Table]) -> list[str]:
    for table in tables:
        for each in table.sets:
            if each.name == "bridges":
                return [element.key.rstrip(b"\0").decode() for element in each.elements]
    return []


class RuleWatch:
    """Told by the kernel of every change of any table. `fileno()` is readable when something changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._socket.setsockopt(netlink.SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def something_changed(self) -> bool:
        """Read all that is waiting: whether rules may have gone or another table may drop now.

        True as well where more happened than could be told.
        """
        telling = False
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return telling
            except OSError as error:
                if error.errno == ENOBUFS:
                    return True
                raise
            telling = telling or any(m[0] in _TELLING for m in netlink.parse_messages(data))

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def may_configure() -> bool:
    """Whether this process may change links and rules: root in its user namespace with CAP_NET_ADMIN."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & (1 << 12)) and os.geteuid() == 0
    return False
