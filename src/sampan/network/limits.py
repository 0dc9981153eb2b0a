"""The limits of where containers connect: put into the kernel before a packet passes, changed, shown, lifted.

    wished     a container's own list, else its network's
    put, lift  as endpoints come and go        change, show    of a running container

What the rules are is `egress.py`'s, what names resolve to the keeper's (`grants.py`).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

import msgspec

from sampan.errors import Internal, InvalidArgument, Unavailable
from sampan.linux import conntrack, netlink
from sampan.network import egress, ipam
from sampan.network.catalog import NetworkCatalog
from sampan.network.firewall import Firewall
from sampan.network.records import Egress, EndpointRecord, NetworkRecord, SandboxWish
from sampan.network.services import Services
from sampan.network.table import EndpointTable


def wished(network: NetworkRecord, wish: SandboxWish, gateway: str) -> tuple[str, ...] | None:
    """A container's own list, else its network's; with the addresses of the names in its own /etc/hosts."""
    entries, default = wish.egress, network.option(egress.ANNOTATION)
    if entries is None and default:
        entries = egress.parse(default)
    if entries is None:
        return None
    if network.driver not in ("bridge", "null"):
        raise InvalidArgument(
            f"where a container connects cannot be limited on a network of driver {network.driver!r}: only on a bridge"
        )
    hosts = {n: gateway if a == "host-gateway" else a for n, a in wish.hosts.items()}
    return egress.with_hosts(entries, hosts)


class Limits:
    """See the module. Shares the manager's lock, which is not held while rules are set."""

    def __init__(
        self,
        catalog: NetworkCatalog,
        table: EndpointTable,
        firewall: Firewall,
        services: Services,
        lock: threading.RLock,
        *,
        can_limit: bool,
    ) -> None:
        self.catalog = catalog
        self.table = table
        self.firewall = firewall
        self.services = services
        self.can_limit = can_limit
        self._lock = lock

    def put(self, taken: list[EndpointRecord], undo: ExitStack) -> None:
        """Put the limits of these endpoints into the kernel, before a packet of theirs can pass."""
        if all(e.egress is None for e in taken):
            return
        undo.callback(self.lift, taken)
        self._apply()

    def _apply(self) -> None:
        if not self.can_limit:
            raise Unavailable(
                "this engine sets no firewall rules: it cannot limit where a container connects"
            )
        try:
            self.firewall.apply()
        except OSError as error:
            raise Internal(
                f"cannot limit where the container connects: {error.strerror}: {error.filename}",
                hint="this needs nf_tables with the bridge family and sets of ranges (Linux 5.7)",
            ) from error

    def lift(self, left: list[EndpointRecord]) -> None:
        """Their limits are gone with their records; the rules follow."""
        if self.can_limit and any(e.egress is not None for e in left):
            for each in left:
                self.table.forget(each)
            self.firewall.apply()

    def change(self, wish: SandboxWish, netns_fd: int) -> tuple[EndpointRecord, ...]:
        """The wish's limits for a running container; None lifts them. Connections that it no longer may have end."""
        with self._lock:
            before = self.table.of_container(wish.container_id)
            after = [
                msgspec.structs.replace(
                    e, egress=wished(self.catalog.records[e.network_id], wish, e.gateway4)
                )
                for e in before
            ]
            for each in after:
                self.table.put(each)
        try:
            self._apply()
        except BaseException:
            for each in before:
                self.table.put(each)
            raise
        if any(e.asks_us for e in after):
            with ExitStack() as undo:
                self.services.serve(wish, after, netns_fd, undo)
                undo.pop_all()
        else:
            self.services.keeper.request({"op": "names-drop", "container": wish.container_id})
        self._cut(after)
        return tuple(after)

    def _cut(self, limited: list[EndpointRecord]) -> None:
        """Have the kernel forget what these endpoints began and may not have begun now."""
        sources = {ipam.parse_address(a).packed for a in egress.sources(limited)}
        if not sources:
            return
        entries = next(e.egress or () for e in limited if e.egress is not None)
        granted = {g.address for g in self.services.grants(limited[0].container_id)[0]}
        allowed = egress.networks_of(
            (*entries, *(f"{address}/{128 if ':' in address else 32}" for address in granted))
        )
        with netlink.Netlink(netlink.NETLINK_NETFILTER) as link:
            conntrack.forget(
                link,
                lambda source, target: source in sources and not egress.covers(allowed, target),
            )

    def show(self, container_id: str) -> Egress:
        """Where a running container may connect, and what came of it."""
        limited = [e for e in self.table.of_container(container_id) if e.egress is not None]
        if not limited:
            return Egress()
        dropped = 0
        for address in egress.sources(limited):
            packed = ipam.parse_address(address).packed
            counted = self.firewall.counted(f"limited{6 if ':' in address else 4}")
            dropped += counted.get(packed, (0, 0))[0]
        grants, refused = self.services.grants(container_id)
        return Egress(entries=limited[0].egress, grants=grants, refused=refused, dropped=dropped)

    @staticmethod
    def routers(networks: list[NetworkRecord], members: list[EndpointRecord]) -> dict[str, str]:
        """The hardware addresses of the bridges that have limited endpoints; of one that somebody deleted, nobody's."""
        wanted = {e.network_id for e in members if e.egress is not None and e.host_link}
        found = {}
        with netlink.Netlink() as link:
            for network in networks:
                if network.id in wanted:
                    try:
                        address = netlink.link_by_name(link, network.bridge).address
                    except OSError:
                        address = bytes(6)
                    found[network.id] = address.hex(":")
        return found
