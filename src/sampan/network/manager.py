"""Networks and endpoints: the one place that changes them, in records and in the kernel.

    catalog.py    which networks there are      table.py    who is in them      services.py    ports and names
    bridge.py, endpoint.py    links             firewall.py, rules.py    rules     limits.py    --egress

    create ... remove          a network
    join ... leave             all of a container's endpoints, at its start and end
    connect / disconnect       one endpoint of a running container
    start                      after a daemon's start: what lives is adopted, what died is given back

The room knows namespaces, not containers: who calls says which container ids live and where their namespaces are.
Whatever is taken is taken on an ExitStack and given back on failure. Synchronous; one lock guards records, addresses
and ports, and is not held while links are made.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import msgspec

from sampan.errors import (
    Conflict,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from sampan.linux import netlink, nft
from sampan.network import bridge, egress, endpoint, ipam
from sampan.network.catalog import MTU, NetworkCatalog
from sampan.network.firewall import Firewall, RuleWatch, may_configure
from sampan.network.limits import Limits, wished
from sampan.network.records import (
    Egress,
    EndpointRecord,
    EndpointWish,
    NetworkRecord,
    NetworkSpec,
    PoolSpec,
    PortWish,
    PublishedPort,
    Sandbox,
    SandboxWish,
)
from sampan.network.rules import ICC, ruleset, translations
from sampan.network.services import Services, port_endpoint
from sampan.network.settings import Settings
from sampan.network.table import EndpointTable
from sampan.store import Store

__all__ = ["NetworkManager", "Settings"]


class NetworkManager:
    """See the module. Thread-safe."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self.catalog = NetworkCatalog(settings, store, self._lock)
        self.table = EndpointTable(store, self._lock)
        self.firewall = Firewall(settings.instance, self._rulesets)
        self.services = Services(settings, self.catalog, self.table, self.firewall, self._lock)
        self.firewall.on_applied = self.services.regrant
        self.may_configure = may_configure()
        self.limits = Limits(
            self.catalog, self.table, self.firewall, self.services, self._lock,
            can_limit=settings.firewall and self.may_configure,
        )  # fmt: skip
        self._bridges: dict[str, int] = {}

    # --- start and stop

    def start(self, namespaces: Callable[[], Mapping[str, str]]) -> None:
        """Load records, make the predefined networks, adopt the endpoints of live containers, apply the rules.

        `namespaces` answers container id -> path of its network namespace (/proc/PID/ns/net) of all that live; it
        is asked again when the keeper has died and a new one takes over.
        """
        live = namespaces()
        with self._lock:
            self.catalog.load()
            self.table.load()
            self.catalog.make_predefined(lambda network: bool(self.table.of_network(network)))
            for each in self.table.all():
                if each.container_id not in live:
                    self.table.forget(each)
            self.services.allocator.adopt(p for e in self.table.all() for p in e.ports)
        if not self.may_configure:
            return
        if self.settings.forward:
            bridge.enable_forwarding(ipv6=self._any_ipv6())
        with netlink.Netlink() as link:
            for network in self.catalog.all():
                if network.bridge and not network.spec.config_only:
                    self._ensure_bridge(link, network)
        if self.settings.firewall:
            self.firewall.apply()
        self.services.keeper.on_lost = lambda: self.services.restore(namespaces())
        self.services.restore(live)

    def stop(self) -> None:
        """Let go of the kernel's handles. Where no container is attached, links and rules are taken away too."""
        if self.may_configure and not any(
            e.driver in ("bridge", "macvlan", "ipvlan") for e in self.table.all()
        ):
            with netlink.Netlink() as link:
                for network in self.catalog.all():
                    self._delete_links(link, network)
            if self.settings.firewall:
                self.firewall.remove()
        self.services.keeper.close()
        self.firewall.close()

    def watch(self) -> RuleWatch | None:
        """A descriptor that becomes readable when somebody changed the kernel's rules; then call `repair`."""
        if not (self.may_configure and self.settings.firewall):
            return None
        return RuleWatch()

    def repair(self) -> bool:
        """Put the rules back where they are gone; whether that was needed."""
        return self.firewall.repair()

    def _any_ipv6(self) -> bool:
        return any(n.spec.enable_ipv6 for n in self.catalog.all())

    # --- networks

    def networks(self) -> list[NetworkRecord]:
        """Every network."""
        return self.catalog.all()

    def find(self, ref: str) -> NetworkRecord:
        """By id, name, or unambiguous prefix of an id. Raises NotFound, InvalidArgument."""
        return self.catalog.find(ref)

    def _drop(self, record: NetworkRecord) -> None:
        self.catalog.drop(record)
        self._bridges.pop(record.id, None)

    def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Make a network. Raises Conflict (name), InvalidArgument, PermissionDenied (pools), NotFound (driver)."""
        spec = self.catalog.checked(spec)
        with self._lock:
            if any(n.name == spec.name for n in self.catalog.all()):
                raise Conflict(f"network with name {spec.name} already exists")
            pools: tuple[PoolSpec, ...] = (
                () if spec.config_only else self.catalog.choose_pools(spec)
            )
            record = self.catalog.add(spec, pools)
        if (record.bridge or record.parent_is_ours) and not spec.config_only:
            try:
                self._realise(record)
            except BaseException:
                with self._lock:
                    self._drop(record)
                raise
        return record

    def _realise(self, record: NetworkRecord) -> None:
        if not self.may_configure:
            raise Unavailable("this engine may not configure networks: it lacks CAP_NET_ADMIN")
        if record.spec.enable_ipv6 and self.settings.forward:
            bridge.enable_forwarding(ipv6=True)
        with netlink.Netlink() as link:
            if not record.bridge:
                self._make_parent(link, record)
                return
            self._ensure_bridge(link, record)
        if self.settings.firewall:
            self.firewall.apply()

    def _make_parent(self, link: netlink.Netlink, record: NetworkRecord) -> None:
        """A link of our own for macvlan or ipvlan. Raises Internal in the kernel's words."""
        try:
            bridge.ensure_parent(link, record.parent)
        except OSError as error:
            raise Internal((error.strerror or str(error)).lower()) from error

    def _ensure_bridge(self, link: netlink.Netlink, record: NetworkRecord) -> int:
        mtu = int(record.option(MTU) or self.settings.mtu or 1500)
        index = bridge.ensure_bridge(link, record, mtu=mtu)
        if self._bridges.get(record.id, index) != index:
            # Somebody deleted the bridge, and it was made anew: who hung on it hangs on it again.
            for member in self.table.of_network(record.id):
                isolated = not record.flag(ICC, default=True)
                bridge.hang_on(link, member.host_link, index, isolated=isolated)
        self._bridges[record.id] = index
        return index

    def remove(self, ref: str) -> NetworkRecord:
        """Delete a network. Raises NotFound, PermissionDenied (predefined, in use)."""
        with self._lock:
            record = self.find(ref)
            if record.predefined:
                raise PermissionDenied(
                    f"{record.name} is a pre-defined network and cannot be removed"
                )
            active = self.table.of_network(record.id)
            if active:
                shown = ", ".join(e.container_name for e in active)
                raise PermissionDenied(
                    f"error while removing network: network {record.name} id {record.id} has active endpoints",
                    hint=f"connected: {shown}",
                )
            users = [n.name for n in self.catalog.all() if n.spec.config_from == record.name]
            if users:
                raise PermissionDenied(
                    f'error while removing network: configuration network "{record.name}" is in use'
                )
            self._drop(record)
        if self.may_configure and not record.spec.config_only:
            with netlink.Netlink() as link:
                self._delete_links(link, record)
            if record.bridge and self.settings.firewall:
                self.firewall.apply()
        return record

    def _delete_links(self, link: netlink.Netlink, record: NetworkRecord) -> None:
        if record.bridge and not record.spec.config_only:
            if record.name == "bridge" and self.settings.default_bridge:
                return  # the administrator's own bridge
            bridge.delete_bridge(link, record.bridge)
        elif record.parent_is_ours:
            bridge.delete_bridge(link, record.parent)

    # --- endpoints

    def endpoints(self, network_id: str) -> list[EndpointRecord]:
        """Who is in a network."""
        return self.table.of_network(network_id)

    def endpoints_of(self, container_id: str) -> list[EndpointRecord]:
        """Where a container is."""
        return self.table.of_container(container_id)

    def join(self, wish: SandboxWish) -> Sandbox:
        """A new namespace with every endpoint of a container that starts; its ports published, its names known.

        Raises errors of the kinds above; then nothing is left.
        """
        with ExitStack() as undo:
            taken = self._take_addresses(wish, undo)
            self.limits.put(taken, undo)
            if self.settings.firewall and self.may_configure:
                self.firewall.meet_legacy()
            namespace = endpoint.Namespace.new()
            undo.callback(namespace.close)
            endpoint.loopback_up(namespace)
            for each in taken:
                self._attach(namespace, each)
            endpoint.set_default_routes(namespace, tuple(taken))
            if wish.ports:
                taken = self.services.publish(wish, taken, undo)
            self.services.serve(wish, taken, namespace.netns_fd, undo, is_new=True)
            undo.pop_all()
        return Sandbox(netns_fd=namespace.take(), endpoints=tuple(taken))

    def set_egress(self, wish: SandboxWish, netns_fd: int) -> tuple[EndpointRecord, ...]:
        """The wish's limits for a running container; None lifts them. Connections that it no longer may have end."""
        return self.limits.change(wish, netns_fd)

    def egress_of(self, container_id: str) -> Egress:
        """Where a running container may connect, and what came of it."""
        return self.limits.show(container_id)

    def join_host(self, container_id: str, name: str, network: str = "host") -> EndpointRecord:
        """A record for a container that uses the host's namespace, or none at all."""
        with self._lock:
            record = self.find(network)
            made = EndpointRecord(
                id=os.urandom(32).hex(), network_id=record.id, network_name=record.name,
                driver=record.driver, container_id=container_id, container_name=name,
            )  # fmt: skip
            self.table.put(made)
        return made

    def _take_addresses(self, wish: SandboxWish, undo: ExitStack) -> list[EndpointRecord]:
        taken: list[EndpointRecord] = []
        with self._lock:
            for each in wish.endpoints:
                made = self._allocate(each, wish, len(taken))
                self.table.put(made)
                undo.callback(self.table.forget, made)
                taken.append(made)
        return taken

    def _allocate(self, wish: EndpointWish, sandbox: SandboxWish, number: int) -> EndpointRecord:
        network = self.find(wish.network)
        if network.spec.config_only:
            raise PermissionDenied("cannot create endpoint on configuration-only network")
        if self.table.get(network.id, sandbox.container_id) is not None:
            raise PermissionDenied(
                f"endpoint with name {sandbox.container_name} already exists in network {network.name}"
            )
        self._check_static(network, wish)
        ipv4, prefix4, gateway4 = self._address(network, 4, wish.ipv4)
        ipv6, prefix6, gateway6 = self._address(network, 6, wish.ipv6)
        mac = wish.mac or (ipam.mac_for(ipv4) if ipv4 else "02:42:" + os.urandom(4).hex(":"))
        ipam.mac_bytes(mac)
        identity = os.urandom(32).hex()
        prefix = network.option(endpoint.PREFIX, "eth")
        internal = network.spec.internal
        return EndpointRecord(
            id=identity, network_id=network.id, network_name=network.name, driver=network.driver,
            container_id=sandbox.container_id, container_name=sandbox.container_name,
            mac=mac.lower().replace("-", ":"),
            ipv4=ipv4, prefix4=prefix4, gateway4="" if internal else gateway4,
            ipv6=ipv6, prefix6=prefix6, gateway6="" if internal else gateway6,
            link_local=wish.link_local,
            interface=wish.driver_options.get(endpoint.IFNAME) or f"{prefix}{number}",
            host_link=endpoint.host_link_name(identity) if network.driver == "bridge" else "",
            aliases=wish.aliases, dns_names=self._dns_names(network, sandbox, wish), links=wish.links,
            gateway_priority=wish.gateway_priority, driver_options=wish.driver_options,
            dns=sandbox.dns, egress=wished(network, sandbox, gateway4),
        )  # fmt: skip

    @staticmethod
    def _dns_names(
        network: NetworkRecord, sandbox: SandboxWish, wish: EndpointWish
    ) -> tuple[str, ...]:
        if not network.has_names:
            return ()
        names_ = [sandbox.container_name, *wish.aliases, sandbox.container_id[:12]]
        if sandbox.hostname:
            names_.append(sandbox.hostname)
        return tuple(dict.fromkeys(name for name in names_ if name))

    def _check_static(self, network: NetworkRecord, wish: EndpointWish) -> None:
        if not (wish.ipv4 or wish.ipv6):
            return
        if network.predefined:
            raise InvalidArgument(
                "user specified IP address is supported on user defined networks only"
            )
        if network.chosen:
            raise InvalidArgument(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
            )

    def _address(self, network: NetworkRecord, version: int, wanted: str) -> tuple[str, int, str]:
        if wanted and ipam.parse_address(wanted).version != version:
            raise InvalidArgument(f"invalid IPv{version} address: {wanted}")
        pools = [p for p in network.pools if ipam.parse_network(p.subnet).version == version]
        if not pools:
            if wanted:
                raise InvalidArgument(
                    f"invalid IPv{version} address {wanted}: the network {network.name} has no IPv{version} subnet"
                )
            return "", 0, ""
        used = self.table.addresses(network.id)
        pool = pools[0]
        if wanted:
            inside = (
                p for p in pools if ipam.parse_address(wanted) in ipam.parse_network(p.subnet)
            )
            pool = next(inside, pool)
        try:
            found = ipam.allocate(pool, used, wanted)
        except PermissionDenied as error:
            if error.message.startswith("no available"):
                raise PermissionDenied(f"{error.message}: {network.name} ({network.id})") from None
            raise
        return found, ipam.parse_network(pool.subnet).prefixlen, pool.gateway

    def _attach(self, namespace: endpoint.Namespace, record: EndpointRecord) -> None:
        network = self.catalog.records[record.network_id]
        if network.driver == "null":
            return
        if network.driver == "host":
            raise InvalidArgument(
                "cannot connect container to host network: it needs the host's namespace"
            )
        mtu = int(network.option(MTU) or self.settings.mtu or 0)
        try:
            with netlink.Netlink() as host:
                if network.driver == "bridge":
                    self._attach_bridged(host, namespace, network, record, mtu)
                else:
                    if network.parent_is_ours:
                        bridge.ensure_parent(host, network.parent)
                    endpoint.attach_child(host, namespace, network, record, mtu=mtu)
        except OSError as error:
            raise Internal(
                f"failed to set up container networking: endpoint {record.container_name} "
                f"({record.id[:12]}) on network {network.name}: {error.strerror}"
            ) from error

    def _attach_bridged(
        self,
        host: netlink.Netlink,
        namespace: endpoint.Namespace,
        network: NetworkRecord,
        record: EndpointRecord,
        mtu: int,
    ) -> None:
        isolated = not network.flag(ICC, default=True)

        def attach(index: int) -> None:
            endpoint.attach_to_bridge(
                host, namespace, network, record, bridge_index=index, mtu=mtu, isolated=isolated
            )

        index = self._bridges.get(network.id)
        try:
            attach(index if index is not None else self._ensure_bridge(host, network))
        except OSError as error:
            if error.errno not in (19, 22, 6):  # the bridge was deleted behind our back
                raise
            attach(self._ensure_bridge(host, network))

    def leave(self, container_id: str) -> list[EndpointRecord]:
        """Give back everything of a container that ended. Idempotent. Its namespace is gone or goes by itself."""
        with self._lock:
            mine = self.endpoints_of(container_id)
            for each in mine:
                self.table.forget(each)
        self.services.unpublish(mine, [p for e in mine for p in e.ports])
        if any(e.asks_us for e in mine):
            self.services.keeper.request({"op": "names-drop", "container": container_id})
            self.services.tell_zones({e.network_id for e in mine if e.dns_names})
        self.limits.lift(mine)
        return mine

    def connect(self, wish: EndpointWish, sandbox: SandboxWish, netns_fd: int) -> EndpointRecord:
        """Attach a running container to one more network."""
        with ExitStack() as undo:
            with self._lock:
                others = self.endpoints_of(sandbox.container_id)
                number = self._free_number(others)
                made = self._allocate(wish, sandbox, number)
                self.table.put(made)
                undo.callback(self.table.forget, made)
            self.limits.put([made], undo)
            namespace = endpoint.Namespace.of(netns_fd)
            undo_namespace = ExitStack()
            with undo_namespace:
                undo_namespace.callback(namespace.close)
                self._attach(namespace, made)
                endpoint.set_default_routes(namespace, (*others, made))
            self.services.serve(sandbox, [*others, made], netns_fd, undo)
            self.services.settle_ports(sandbox, [*others, made], undo)
            undo.pop_all()
        return made

    @staticmethod
    def _free_number(others: list[EndpointRecord]) -> int:
        used = {e.interface for e in others}
        return next(n for n in range(len(others) + 1) if f"eth{n}" not in used)

    def disconnect(
        self, container_id: str, network_ref: str, netns_fd: int | None
    ) -> EndpointRecord:
        """Take a container out of a network. Raises NotFound-like errors in Docker's words."""
        with self._lock:
            network = self.find(network_ref)
            made = self.table.get(network.id, container_id)
            if made is None:
                raise Internal(f"endpoint {container_id} not found")
            self.table.forget(made)
            rest = tuple(self.endpoints_of(container_id))
        heir = port_endpoint(rest)
        if heir is not None and made.ports:
            self.services.move(made, heir)
        else:
            self.services.unpublish([made], list(made.ports))
        if netns_fd is not None and made.interface:
            namespace = endpoint.Namespace.of(netns_fd)
            try:
                endpoint.detach(namespace, made.interface)
                endpoint.set_default_routes(namespace, rest)
            finally:
                namespace.close()
        if made.asks_us:
            self.services.tell_zones({network.id} if made.dns_names else ())
            if any(e.asks_us for e in rest):
                self.services.renew(container_id, list(rest))
            else:
                self.services.keeper.request({"op": "names-drop", "container": container_id})
        self.limits.lift([made])
        return made

    def rename(self, container_id: str, name: str) -> None:
        """A container's new name becomes known in its networks."""
        with self._lock:
            changed = set()
            for each in self.endpoints_of(container_id):
                dns_names = tuple(name if n == each.container_name else n for n in each.dns_names)
                self.table.put(
                    msgspec.structs.replace(each, container_name=name, dns_names=dns_names)
                )
                if dns_names:
                    changed.add(each.network_id)
        self.services.tell_zones(changed)

    def publish(self, container_id: str, wish: PortWish) -> list[PublishedPort]:
        """Publish a port of a running container."""
        target = port_endpoint(self.endpoints_of(container_id))
        if target is None:
            raise Conflict(
                f"container {container_id} is not on a bridge network: no port can be published"
            )
        with ExitStack() as undo:
            after = self.services.publish_on(target, [wish], undo)
            undo.pop_all()
        return [p for p in after.ports if p not in target.ports]

    def unpublish(
        self, container_id: str, container_port: int, protocol: str
    ) -> list[PublishedPort]:
        """Take back every publication of a running container's port. Raises NotFound where there is none."""
        removed: list[PublishedPort] = []
        for each in self.endpoints_of(container_id):
            gone = [
                p
                for p in each.ports
                if (p.container_port, p.protocol) == (container_port, protocol)
            ]
            if gone:
                self.services.unpublish([each], gone)
                with self._lock:
                    rest = tuple(p for p in each.ports if p not in gone)
                    self.table.put(msgspec.structs.replace(each, ports=rest))
                removed += gone
        if not removed:
            raise NotFound(
                f"no public port '{container_port}/{protocol}' published for {container_id}"
            )
        return removed

    # --- rules

    def _rulesets(self) -> list[nft.Table]:
        with self._lock:
            networks = self.catalog.all()
            members = self.table.all()
        published = [t for e in members for t in translations(e, e.ports)]
        limited = egress.limits(members, self.limits.routers(networks, members))
        tables = [ruleset(self.settings.instance, networks, published, limited)]
        if limited:
            tables.append(egress.guard(self.settings.instance, limited))
        return tables
