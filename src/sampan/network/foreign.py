"""Other people's firewalls on the same host: what would drop a container's packets lets them through.

An accept in our table does not override a drop in another one: every base chain of a hook has its say. Our own table
still decides who may reach a container; here only the doors that others shut are opened, for our bridges alone.

    dockerd, ufw, a hand-made policy   table ip/ip6 filter, chain FORWARD with policy drop: a jump, first, to a chain
                                       of ours that accepts
    firewalld                          its table ends in reject: our bridges become interfaces of its zone `trusted`,
                                       asked for over D-Bus, as it wants to be asked
    legacy iptables                    the old xtables, which netlink does not show: the same chain as in the first
                                       case, made by the iptables-legacy that made the policy

What is there is compared before it is changed, so a look costs one dump of chains.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

from sampan.linux import dbus, netlink, nft, nft_read

log = logging.getLogger("sampan.network")
TABLES = (("ip", "filter"), ("ip6", "filter"))
FIREWALLD = ("inet", "firewalld")
FIREWALLD_ZONE = "trusted"
FIREWALLD_BUS = "org.fedoraproject.FirewallD1"
SYSTEM_BUS = "/run/dbus/system_bus_socket"
LEGACY = (("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names"))


class ForeignTables:
    """Keeps the doors open for one engine's bridges. Called under the firewall's lock."""

    def __init__(self, table: str) -> None:
        self.chain = table.upper()[:28]  # iptables' own limit of a chain's name
        self._bridges: list[str] = []
        self._passed: dict[tuple[str, str], tuple[str, ...]] = {}
        self._told_firewalld = False
        self._legacy: set[str] = set()

    def open(self, link: netlink.Netlink, bridges: Sequence[str]) -> None:
        """Let these bridges through wherever somebody drops. Raises OSError where a table refuses."""
        self._bridges = list(bridges)
        self._passed.clear()
        self._settle(link, list(nft_read.chains(link)))
        self._legacy = {program for program, names in LEGACY if _uses_legacy(names)}
        for program in sorted(self._legacy):
            _legacy(program, self.chain, self._bridges)

    def has_new_legacy(self) -> bool:
        """Whether the old xtables came into use since the doors were opened: the kernel tells nobody of them."""
        return any(program not in self._legacy and _uses_legacy(names) for program, names in LEGACY)

    def close(self, link: netlink.Netlink) -> None:
        """Take back what was put into other people's tables. Idempotent."""
        self.open(link, [])

    def mend(self, link: netlink.Netlink) -> bool:
        """After somebody changed a table: open again what was shut; whether anything was."""
        return self._settle(link, list(nft_read.chains(link)))

    def _settle(self, link: netlink.Netlink, chains: list[nft_read.Chain]) -> bool:
        changed = False
        for family, table in TABLES:
            mine = {c.name: c for c in chains if (c.family, c.table) == (family, table)}
            changed |= self._settle_table(link, family, table, mine)
        if any((c.family, c.table) == FIREWALLD and c.hook == "forward" for c in chains):
            changed |= self._settle_firewalld()
        return changed

    def _settle_table(
        self, link: netlink.Netlink, family: str, table: str, chains: dict[str, nft_read.Chain]
    ) -> bool:
        forward = chains.get("FORWARD")
        drops = forward is not None and forward.policy == nft.DROP
        wanted = tuple(self._bridges) if drops else ()
        ours = self.chain in chains
        if not wanted and not ours:
            return False
        handles = nft_read.jumps(link, family, table, "FORWARD", self.chain) if forward else []
        if wanted and ours and handles and self._passed.get((family, table)) == wanted:
            return False
        try:
            nft.apply(link, self._messages(family, table, wanted, ours=ours, handles=handles))
        except OSError as error:
            if not wanted:
                return False  # it went meanwhile, with all that was in it
            error.add_note(f"the forward chain of table {family} {table} drops what we let pass")
            raise
        self._passed[(family, table)] = wanted
        return True

    def _messages(
        self, family: str, table: str, wanted: tuple[str, ...], *, ours: bool, handles: list[int]
    ) -> list[nft.Message]:
        value = nft.Table(family, table)
        chain = passing_chain(self.chain, wanted)
        if not wanted:
            gone = [nft.delete_rule(family, table, "FORWARD", handle) for handle in handles]
            emptied = nft.delete_rules(family, table, self.chain)
            return [*gone, emptied, nft.delete_chain(family, table, self.chain)]
        messages = [
            nft.delete_rules(family, table, self.chain) if ours else nft.new_chain(value, chain)
        ]
        messages += [nft.new_rule(value, chain, rule) for rule in chain.rules]
        if not handles:
            jump = nft.verdict(nft.JUMP, self.chain)
            messages.append(nft.new_rule(value, nft.Chain("FORWARD"), jump, first=True))
        return messages

    def _settle_firewalld(self) -> bool:
        try:
            added = _join_zone(self._bridges)
        except (OSError, dbus.BusError) as error:
            if not self._told_firewalld:
                log.warning(
                    "firewalld may drop what containers send: it cannot be asked: %s", error
                )
            self._told_firewalld = True
            return False
        self._told_firewalld = False
        return bool(added)


def passing_chain(name: str, bridges: Iterable[str]) -> nft.Chain:
    """The chain that accepts what comes from and goes to our bridges. Pure."""
    rules = [
        nft.interface(side, bridge) + nft.verdict(nft.ACCEPT)
        for bridge in bridges
        for side in ("iif", "oif")
    ]
    return nft.Chain(name, rules)


# --- firewalld


def _join_zone(bridges: Iterable[str]) -> list[str]:
    """Make the bridges interfaces of the zone that accepts; the ones that were not in it. Raises OSError, BusError."""
    bus = dbus.Bus.connect(SYSTEM_BUS)
    try:
        have = _ask_zone(bus, "getInterfaces")[0]
        added = [bridge for bridge in bridges if bridge not in have]
        for bridge in added:
            # "change", not "add": the administrator's default zone may have claimed it already.
            _ask_zone(bus, "changeZoneOfInterface", bridge)
        return added
    finally:
        bus.close()


def _ask_zone(bus: dbus.Bus, member: str, *words: str) -> list[Any]:
    values = [FIREWALLD_ZONE, *words]
    path = "/org/fedoraproject/FirewallD1"
    return bus.call(FIREWALLD_BUS, path, FIREWALLD_BUS + ".zone", member, "s" * len(values), values)


# --- legacy iptables


def _uses_legacy(names: str) -> bool:
    """Whether the old xtables filter has been loaded: its chains cannot be read by netlink."""
    try:
        with open(f"/proc/net/{names}", encoding="ascii") as file:
            return "filter" in file.read().split()
    except OSError:
        return False


def _legacy(program: str, chain: str, bridges: Iterable[str]) -> None:
    """The same doors in xtables. The program is there where the policy was made by it; else we say so."""
    path = shutil.which(program)
    if path is None:
        log.warning("%s is not installed: a policy of the old xtables cannot be seen", program)
        return

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [path, "-w", "5", *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath},
        )  # fmt: skip

    drops = "-P FORWARD DROP" in run("-S", "FORWARD").stdout
    wanted = list(bridges) if drops else []
    jump = ("FORWARD", "-j", chain)
    if not wanted:
        if run("-S", chain).returncode == 0:
            run("-D", *jump)
            run("-F", chain)
            run("-X", chain)
        return
    run("-N", chain)
    run("-F", chain)
    for bridge in wanted:
        run("-A", chain, "-i", bridge, "-j", "ACCEPT")
        run("-A", chain, "-o", bridge, "-j", "ACCEPT")
    if run("-C", *jump).returncode != 0:
        done = run("-I", *jump)
        if done.returncode != 0:
            log.warning("the old xtables drop what containers send: %s", done.stderr.strip())
