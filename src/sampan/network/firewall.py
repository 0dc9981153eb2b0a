"""The engine's rules in the kernel: applied whole, kept whole, and let through by other people's tables.

`rules.py` says what the table is; here it is put into the kernel in one transaction, changed element by element while
ports come and go, and put back when somebody flushed it (`nft flush ruleset`, a firewall's reload): the kernel tells
of every change on a multicast group.

An accept in our table does not override a drop in another one. Where another table's forward chain has the policy
drop (dockerd and ufw set that), our bridges are let through there too, in a chain of our own that its first rule
jumps to; our own table still decides who may reach a container. Where no rule can be set, starting a container with a
network is an error: it must not start open (CVE-2023-28840 and its siblings).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable

from sampan.linux import netlink, nft
from sampan.network.rules import Translation

NFNLGRP_NFTABLES = 7
NETLINK_ADD_MEMBERSHIP = 1
FOREIGN_TABLES = (("ip", "filter"), ("ip6", "filter"))


class Firewall:
    """One table. `build` gives the wanted value at any time."""

    def __init__(self, table: str, build: Callable[[], nft.Table]) -> None:
        self.table = table
        self._build = build
        self._lock = threading.Lock()
        self._socket: netlink.Netlink | None = None
        self._let_through: set[tuple[str, str]] = set()

    def _netlink(self) -> netlink.Netlink:
        if self._socket is None:
            self._socket = netlink.Netlink(netlink.NETLINK_NETFILTER)
        return self._socket

    def apply(self) -> None:
        """Put the whole table in place. Raises OSError."""
        with self._lock:
            wanted = self._build()
            nft.replace(self._netlink(), wanted)
            self._pass_foreign_tables(_bridges(wanted))

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

    def remove(self) -> None:
        """Delete the table and what was put into other people's. Idempotent."""
        with self._lock:
            nft.apply(self._netlink(), nft.delete_messages("inet", self.table))
            self._pass_foreign_tables([])

    def intact(self) -> bool:
        """Whether the kernel still has our table with its chains."""
        with self._lock:
            if not nft.table_exists(self._netlink(), "inet", self.table):
                return False
            chains = {
                name
                for family, table, name, *_ in chains_of(self._netlink())
                if table == self.table
            }
        return {"prerouting", "output", "forward", "postrouting"} <= chains

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- other people's tables

    @property
    def _own_chain(self) -> str:
        return self.table.upper()[:28]

    def _pass_foreign_tables(self, bridges: list[str]) -> None:
        link = self._netlink()
        found = list(chains_of(link))
        for family, table in FOREIGN_TABLES:
            forward = [c for c in found if c[:2] == (family, table) and c[2] == "FORWARD"]
            ours = any(c[:3] == (family, table, self._own_chain) for c in found)
            dropping = bool(forward) and forward[0][4] == nft.DROP
            if not (dropping and bridges) and not ours:
                continue
            try:
                nft.apply(
                    link,
                    self._foreign_messages(family, table, bridges if dropping else [], ours=ours),
                )
            except OSError as error:
                if not ours:
                    error.add_note(
                        f"the forward chain of table {family} {table} drops what we let pass"
                    )
                    raise

    def _foreign_messages(
        self, family: str, table: str, bridges: list[str], *, ours: bool
    ) -> list[nft.Message]:
        name = self._own_chain
        value = nft.Table(family, table)
        chain = nft.Chain(
            name,
            [
                nft.interface(side, b) + nft.verdict(nft.ACCEPT)
                for b in bridges
                for side in ("iif", "oif")
            ],
        )
        messages = []
        if ours:
            messages.append(nft.delete_rules(family, table, name))
        else:
            messages.append(nft.new_chain(value, chain))
        if bridges:
            messages += [nft.new_rule(value, chain, rule) for rule in chain.rules]
            if not ours:
                messages.append(
                    nft.new_rule(
                        value, nft.Chain("FORWARD"), nft.verdict(nft.JUMP, name), first=True
                    )
                )
        return messages


def _bridges(table: nft.Table) -> list[str]:
    for each in table.sets:
        if each.name == "bridges":
            return [element.key.rstrip(b"\0").decode() for element in each.elements]
    return []


def chains_of(link: netlink.Netlink) -> Iterable[tuple[str, str, str, str, int]]:
    """(family, table, chain, hook or '', policy) of every chain."""
    families = {number: name for name, number in nft.FAMILIES.items()}
    hooks = {number: name for name, number in nft.HOOKS.items()}
    header = struct.pack(">BBH", 0, 0, 0)
    for _, body in link.dump(nft.SUBSYSTEM << 8 | nft.GETCHAIN, header, "chains"):
        found = netlink.parse_attributes(body[4:])
        hook = ""
        if 4 in found:
            number = netlink.parse_attributes(found[4]).get(1, b"\xff\xff\xff\xff")
            hook = hooks.get(int.from_bytes(number, "big"), "")
        policy = int.from_bytes(found.get(5, b"\0\0\0\1"), "big")
        table = found.get(1, b"").rstrip(b"\0").decode()
        name = found.get(3, b"").rstrip(b"\0").decode()
        yield families.get(body[0], ""), table, name, hook, policy


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

    def something_was_deleted(self) -> bool:
        """Read all that is waiting: whether a table or chain was deleted, or more happened than could be told."""
        deleted = False
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                return deleted
            except OSError as error:
                if error.errno == 105:  # ENOBUFS: messages were lost
                    return True
                raise
            wanted = {nft.SUBSYSTEM << 8 | nft.DELTABLE, nft.SUBSYSTEM << 8 | nft.DELCHAIN}
            deleted = deleted or any(m[0] in wanted for m in netlink.parse_messages(data))

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def legacy_iptables_in_use() -> bool:
    """Whether the old xtables filter has rules: those chains we cannot read by netlink."""
    try:
        with open("/proc/net/ip_tables_names", encoding="ascii") as file:
            return "filter" in file.read().split()
    except OSError:
        return False


def may_configure() -> bool:
    """Whether this process may change links and rules: root in its user namespace with CAP_NET_ADMIN."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & (1 << 12)) and os.geteuid() == 0
    return False
