"""Networks and endpoints: the one place that knows which exist, and the verbs that change them.

    records     kind 'network'   id -> NetworkRecord          kind 'endpoint'  network/container -> EndpointRecord
    kernel      bridges, links, one nftables table            names and ports: `keeper.py`

    create ... remove          a network
    join ... leave             all of a container's endpoints, at its start and end
    connect / disconnect       one endpoint of a running container
    restore                    after a daemon's start: what lives is adopted, what died is given back

The room knows namespaces, not containers: who calls says which container ids live and where their namespaces are.
Whatever is taken is taken on an ExitStack and given back on failure. Synchronous; one lock guards records, addresses
and ports, and is not held while links are made.
"""

from __future__ import annotations

import datetime
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

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
from sampan.network import bridge, endpoint, files, ipam, names, ports
from sampan.network.firewall import Firewall, RuleWatch, may_configure
from sampan.network.keeper_client import KeeperClient
from sampan.network.records import (
    PREDEFINED,
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
from sampan.network.rules import ICC, Translation, ruleset, translations
from sampan.store import NameTaken, Store

DRIVERS = ("bridge", "host", "null", "macvlan", "ipvlan")
BRIDGE_NAME = "com.docker.network.bridge.name"
MTU = "com.docker.network.driver.mtu"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
KIND, ENDPOINT = "network", "endpoint"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What daemon.json and the flags say about networks."""

    instance: str = "sampan"
    run: Path = Path("/run/sampan")
    default_bridge: str = ""  # '' ours, 'none' no default network
    bip: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    default_gateway: str = ""
    ipv6: bool = False
    pools: tuple[tuple[str, int], ...] = ()
    mtu: int = 0
    icc: bool = True
    masquerade: bool = True
    firewall: bool = True
    forward: bool = True
    publish_ip: str = ""
    dns: tuple[str, ...] = ()

    @property
    def bridge_name(self) -> str:
        if self.default_bridge:
            return self.default_bridge
        return "sampan0" if self.instance == "sampan" else self.instance[:15]


class NetworkManager:
    """See the module. Thread-safe."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.keeper = KeeperClient(settings.run)
        self.allocator = ports.PortAllocator()
        self.firewall = Firewall(settings.instance, self._ruleset)
        self.may_configure = may_configure()
        self._lock = threading.RLock()
        self._networks: dict[str, NetworkRecord] = {}
        self._endpoints: dict[tuple[str, str], EndpointRecord] = {}
        self._bridges: dict[str, int] = {}
        self._keeper_restarts = 0
        self._namespaces: Mapping[str, str] = {}

    # --- start and stop

    def start(self, live: Mapping[str, str]) -> None:
        """Load records, make the predefined networks, adopt the endpoints of live containers, apply the rules.

        `live`: container id -> path of its network namespace (/proc/PID/ns/net).
        """
        with self._lock:
            self._networks = dict(self.store.items(KIND, NetworkRecord))
            stored = self.store.items(ENDPOINT, EndpointRecord)
            self._endpoints = {(e.network_id, e.container_id): e for _, e in stored}
            self._make_predefined()
            for key in [key for key in self._endpoints if key[1] not in live]:
                self._forget(key)
            self.allocator.adopt(p for e in self._endpoints.values() for p in e.ports)
        if not self.may_configure:
            return
        if self.settings.forward:
            bridge.enable_forwarding(ipv6=self._any_ipv6())
        with netlink.Netlink() as link:
            for network in self._networks.values():
                if network.bridge and not network.spec.config_only:
                    self._ensure_bridge(link, network)
        if self.settings.firewall:
            self.firewall.apply()
        self._restore_keeper(live)

    def stop(self) -> None:
        """Let go of the kernel's handles. Where no container is attached, links and rules are taken away too."""
        if self.may_configure and not any(
            e.driver in ("bridge", "macvlan", "ipvlan") for e in self._endpoints.values()
        ):
            with netlink.Netlink() as link:
                for network in self._networks.values():
                    self._delete_links(link, network)
            if self.settings.firewall:
                self.firewall.remove()
        self.keeper.close()
        self.firewall.close()

    def watch(self) -> RuleWatch | None:
        """A descriptor that becomes readable when somebody changed the kernel's rules; then call `repair`."""
        if not (self.may_configure and self.settings.firewall):
            return None
        return RuleWatch()

    def repair(self) -> bool:
        """Put the rules back where they are gone; whether that was needed."""
        if self.firewall.intact():
            return False
        self.firewall.apply()
        return True

    def _any_ipv6(self) -> bool:
        return any(n.spec.enable_ipv6 for n in self._networks.values())

    def _make_predefined(self) -> None:
        have = {n.name for n in self._networks.values()}
        for name, driver in (("host", "host"), ("none", "null")):
            if name not in have:
                self._store_network(NetworkSpec(name=name, driver=driver), ())
        if self.settings.default_bridge == "none":
            return
        old = next((n for n in self._networks.values() if n.name == "bridge"), None)
        spec = self._default_spec()
        if old is not None and old.spec == spec:
            return
        if old is not None:
            if any(key[0] == old.id for key in self._endpoints):
                return
            self._drop_network(old)
        self._store_network(spec, self._choose_pools(spec), bridge_name=self.settings.bridge_name)

    def _default_spec(self) -> NetworkSpec:
        settings = self.settings
        options = {
            "com.docker.network.bridge.default_bridge": "true",
            ICC: str(settings.icc).lower(),
            "com.docker.network.bridge.enable_ip_masquerade": str(settings.masquerade).lower(),
            HOST_BINDING: settings.publish_ip or "0.0.0.0",
            BRIDGE_NAME: settings.bridge_name,
            MTU: str(settings.mtu or 1500),
        }
        pools = []
        if settings.bip:
            interface = settings.bip.split("/")[0]
            gateway = settings.default_gateway or interface
            pools.append(
                PoolSpec(subnet=settings.bip, ip_range=settings.fixed_cidr, gateway=gateway)
            )
        if settings.fixed_cidr_v6:
            pools.append(PoolSpec(subnet=settings.fixed_cidr_v6))
        return NetworkSpec(
            name="bridge", enable_ipv6=settings.ipv6, pools=tuple(pools), options=options
        )

    # --- networks

    def networks(self) -> list[NetworkRecord]:
        """Every network."""
        with self._lock:
            return list(self._networks.values())

    def find(self, ref: str) -> NetworkRecord:
        """By id, name, or unambiguous prefix of an id. Raises NotFound, InvalidArgument."""
        with self._lock:
            if ref in self._networks:
                return self._networks[ref]
            named = [n for n in self._networks.values() if n.name == ref]
            if len(named) == 1:
                return named[0]
            found = [n for n in self._networks.values() if ref and n.id.startswith(ref)]
        if len(found) > 1:
            raise InvalidArgument(
                f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)"
            )
        if not found:
            raise NotFound(f"network {ref} not found")
        return found[0]

    def create(self, spec: NetworkSpec) -> NetworkRecord:
        """Make a network. Raises Conflict (name), InvalidArgument, PermissionDenied (pools), NotFound (driver)."""
        spec = self._checked(spec)
        with self._lock:
            if any(n.name == spec.name for n in self._networks.values()):
                raise Conflict(f"network with name {spec.name} already exists")
            pools: tuple[PoolSpec, ...] = () if spec.config_only else self._choose_pools(spec)
            record = self._store_network(spec, pools)
        if record.bridge and not spec.config_only:
            try:
                self._realise(record)
            except BaseException:
                with self._lock:
                    self._drop_network(record)
                raise
        return record

    def _checked(self, spec: NetworkSpec) -> NetworkSpec:
        if not spec.name.strip():
            raise InvalidArgument("invalid name: name is empty")
        if not NAME_PATTERN.fullmatch(spec.name):
            raise InvalidArgument(
                f"invalid network name: {spec.name}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if spec.name in PREDEFINED or spec.name == "default":
            raise PermissionDenied(f"operation is not permitted on predefined {spec.name} network")
        if spec.config_from:
            spec = self._from_config(spec)
        if spec.driver in ("host", "null"):
            raise PermissionDenied(f'only one instance of "{spec.driver}" network is allowed')
        if spec.driver not in DRIVERS:
            raise NotFound(f'plugin "{spec.driver}" not found')
        if spec.ipam_driver not in ("", "default", "null"):
            raise NotFound(f'plugin "{spec.ipam_driver}" not found')
        if spec.options.get(MTU) and not re.fullmatch(r"[0-9]{1,5}", spec.options[MTU], re.ASCII):
            raise InvalidArgument(f'strconv.Atoi: parsing "{spec.options[MTU]}": invalid syntax')
        name = spec.options.get(BRIDGE_NAME, "")
        if name and (
            len(name) > 15 or "/" in name or name in (".", "..") or any(c.isspace() for c in name)
        ):
            raise InvalidArgument(
                f"invalid bridge name {name!r}: at most 15 characters, no '/' and no space"
            )
        return spec

    def _from_config(self, spec: NetworkSpec) -> NetworkSpec:
        source = self.find(spec.config_from)
        if not source.spec.config_only:
            raise InvalidArgument(f"network {source.name} is not a configuration only network")
        if spec.options or spec.pools or spec.enable_ipv6:
            raise PermissionDenied(
                "user specified configurations are not supported if the network depends on a configuration network"
            )
        return msgspec.structs.replace(
            spec, pools=source.spec.pools, options=source.spec.options,
            enable_ipv6=source.spec.enable_ipv6, internal=spec.internal or source.spec.internal,
        )  # fmt: skip

    def _choose_pools(self, spec: NetworkSpec) -> tuple[PoolSpec, ...]:
        """Complete what the user gave, choose what is missing."""
        if spec.driver in ("host", "null") or spec.ipam_driver == "null":
            return ()
        taken = [ipam.parse_network(p.subnet) for n in self._networks.values() for p in n.pools]
        pools: list[PoolSpec] = []
        versions = {4: spec.enable_ipv4, 6: spec.enable_ipv6}
        for wish in spec.pools:
            if not wish.subnet:
                continue
            network = ipam.parse_network(wish.subnet)
            if not versions[network.version] and network.version == 6:
                raise InvalidArgument(
                    f"invalid subnet {wish.subnet}: IPv6 is not enabled for this network"
                )
            if ipam.overlaps(network, taken):
                raise PermissionDenied("Pool overlaps with other one on this address space")
            taken.append(network)
            pools.append(ipam.complete(wish))
        have = {ipam.parse_network(pool.subnet).version for pool in pools}
        loose = next((w for w in spec.pools if not w.subnet), PoolSpec())
        if loose.ip_range or loose.gateway:
            raise InvalidArgument("invalid IPAM config: a gateway or an ip-range needs a subnet")
        for version in (4, 6):
            if versions[version] and version not in have:
                pools.append(self._choose_pool(version, taken))
        return tuple(pools)

    def _choose_pool(self, version: int, taken: list[ipam.Network]) -> PoolSpec:
        own = frozenset(n.bridge for n in self._networks.values() if n.bridge) | {
            self.settings.bridge_name
        }
        with netlink.Netlink() as link:
            busy = [*taken, *bridge.host_networks(link, ignore=own), *bridge.resolver_addresses()]
        configured = self.settings.pools or ipam.DEFAULT_POOLS
        pools = [p for p in configured if (":" in p[0]) == (version == 6)]
        if version == 6 and not pools:
            pools = [ipam.unique_local_pool(self._seed())]
        return ipam.complete(PoolSpec(subnet=str(ipam.choose_subnet(pools, busy, version))))

    def _seed(self) -> bytes:
        text = self.store.meta("network-seed")
        if text is None:
            text = os.urandom(5).hex()
            self.store.set_meta("network-seed", text)
        return bytes.fromhex(text)

    def _store_network(
        self, spec: NetworkSpec, pools: tuple[PoolSpec, ...], *, bridge_name: str = ""
    ) -> NetworkRecord:
        number = os.urandom(32).hex()
        if spec.driver == "bridge" and not bridge_name:
            bridge_name = spec.options.get(BRIDGE_NAME) or f"br-{number[:12]}"
        parent, ours = self._parent_of(spec, number)
        record = NetworkRecord(
            id=number, created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            spec=spec, pools=pools, chosen=not any(p.subnet for p in spec.pools),
            bridge=bridge_name if spec.driver == "bridge" else "", parent=parent, parent_is_ours=ours,
        )  # fmt: skip
        if record.bridge and any(n.bridge == record.bridge for n in self._networks.values()):
            raise PermissionDenied(f"bridge name {record.bridge} is used by another network")
        with self.store.transaction():
            try:
                self.store.reserve(KIND, spec.name, number)
            except NameTaken:
                raise Conflict(f"network with name {spec.name} already exists") from None
            self.store.put(KIND, number, record)
        self._networks[number] = record
        return record

    def _parent_of(self, spec: NetworkSpec, number: str) -> tuple[str, bool]:
        if spec.driver not in ("macvlan", "ipvlan") or spec.config_only:
            return "", False
        parent = spec.options.get("parent", "")
        if not parent or spec.internal:
            return f"dm-{number[:12]}", True
        if "." in parent and not bridge.exists(parent):
            return parent, True
        if not bridge.exists(parent):
            raise InvalidArgument(
                f"invalid subinterface vlan name {parent}, example formatting is eth0.10"
            )
        return parent, False

    def _realise(self, record: NetworkRecord) -> None:
        if not self.may_configure:
            raise Unavailable("this engine may not configure networks: it lacks CAP_NET_ADMIN")
        if record.spec.enable_ipv6 and self.settings.forward:
            bridge.enable_forwarding(ipv6=True)
        with netlink.Netlink() as link:
            self._ensure_bridge(link, record)
        if self.settings.firewall:
            self.firewall.apply()

    def _ensure_bridge(self, link: netlink.Netlink, record: NetworkRecord) -> int:
        mtu = int(record.option(MTU) or self.settings.mtu or 1500)
        index = bridge.ensure_bridge(link, record, mtu=mtu)
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
            active = [e for key, e in self._endpoints.items() if key[0] == record.id]
            if active:
                shown = ", ".join(e.container_name for e in active)
                raise PermissionDenied(
                    f"error while removing network: network {record.name} id {record.id} has active endpoints",
                    hint=f"connected: {shown}",
                )
            users = [n.name for n in self._networks.values() if n.spec.config_from == record.name]
            if users:
                raise PermissionDenied(f"configuration network {record.name!r} is in use")
            self._drop_network(record)
        if self.may_configure and not record.spec.config_only:
            with netlink.Netlink() as link:
                self._delete_links(link, record)
            if record.bridge and self.settings.firewall:
                self.firewall.apply()
        return record

    def _drop_network(self, record: NetworkRecord) -> None:
        self.store.delete(KIND, record.id)
        self._networks.pop(record.id, None)
        self._bridges.pop(record.id, None)

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
        with self._lock:
            return [e for key, e in self._endpoints.items() if key[0] == network_id]

    def endpoints_of(self, container_id: str) -> list[EndpointRecord]:
        """Where a container is."""
        with self._lock:
            return [e for key, e in self._endpoints.items() if key[1] == container_id]

    def join(self, wish: SandboxWish) -> Sandbox:
        """A new namespace with every endpoint of a container that starts; its ports published, its names known.

        Raises errors of the kinds above; then nothing is left.
        """
        with ExitStack() as undo:
            taken = self._take_addresses(wish, undo)
            namespace = endpoint.Namespace.new()
            undo.callback(namespace.close)
            endpoint.loopback_up(namespace)
            for each in taken:
                self._attach(namespace, each)
            endpoint.set_default_routes(namespace, tuple(taken))
            if wish.ports:
                taken = self._publish(wish, taken, undo)
            self._serve_names(wish, taken, namespace.netns_fd, undo)
            if wish.egress is not None and self.settings.firewall:
                self.firewall.apply()
            undo.pop_all()
        return Sandbox(netns_fd=namespace.take(), endpoints=tuple(taken))

    def join_host(self, container_id: str, name: str, network: str = "host") -> EndpointRecord:
        """A record for a container that uses the host's namespace, or none at all."""
        with self._lock:
            record = self.find(network)
            made = EndpointRecord(
                id=os.urandom(32).hex(), network_id=record.id, network_name=record.name,
                driver=record.driver, container_id=container_id, container_name=name,
            )  # fmt: skip
            self._remember(made)
        return made

    def _take_addresses(self, wish: SandboxWish, undo: ExitStack) -> list[EndpointRecord]:
        taken: list[EndpointRecord] = []
        with self._lock:
            for each in wish.endpoints:
                made = self._allocate(each, wish, len(taken))
                self._remember(made)
                undo.callback(self._forget_locked, (made.network_id, made.container_id))
                taken.append(made)
        return taken

    def _allocate(self, wish: EndpointWish, sandbox: SandboxWish, number: int) -> EndpointRecord:
        network = self.find(wish.network)
        if network.spec.config_only:
            raise PermissionDenied(f"cannot attach to a configuration only network: {network.name}")
        if (network.id, sandbox.container_id) in self._endpoints:
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
            interface=wish.driver_options.get(endpoint.IFNAME) or f"{prefix}{number}",
            host_link=endpoint.host_link_name(identity) if network.driver == "bridge" else "",
            aliases=wish.aliases, dns_names=self._dns_names(network, sandbox, wish), links=wish.links,
            gateway_priority=wish.gateway_priority, driver_options=wish.driver_options,
            egress=sandbox.egress,
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
        used = [
            address
            for (network_id, _), e in self._endpoints.items()
            if network_id == network.id
            for address in (e.ipv4, e.ipv6)
            if address
        ]
        pool = pools[0]
        if wanted:
            inside = (
                p for p in pools if ipam.parse_address(wanted) in ipam.parse_network(p.subnet)
            )
            pool = next(inside, pool)
        found = ipam.allocate(pool, used, wanted)
        return found, ipam.parse_network(pool.subnet).prefixlen, pool.gateway

    def _attach(self, namespace: endpoint.Namespace, record: EndpointRecord) -> None:
        network = self._networks[record.network_id]
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
                    self._ensure_parent(host, network)
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

    def _ensure_parent(self, host: netlink.Netlink, network: NetworkRecord) -> None:
        if not network.parent_is_ours or bridge.exists(network.parent):
            return
        base, dot, tag = network.parent.rpartition(".")
        if dot and tag.isascii() and tag.isdigit():
            parent = netlink.link_by_name(host, base).index
            host.send(netlink.vlan(network.parent, parent=parent, tag=int(tag)))
        else:
            host.send(netlink.dummy(network.parent))

    def leave(self, container_id: str) -> list[EndpointRecord]:
        """Give back everything of a container that ended. Idempotent. Its namespace is gone or goes by itself."""
        with self._lock:
            mine = self.endpoints_of(container_id)
            for each in mine:
                self._forget((each.network_id, each.container_id))
        self._unpublish(mine, [p for e in mine for p in e.ports])
        if any(e.dns_names for e in mine):
            self.keeper.request({"op": "names-drop", "container": container_id})
            self._tell_zones({e.network_id for e in mine if e.dns_names})
        if (
            any(e.egress is not None for e in mine)
            and self.settings.firewall
            and self.may_configure
        ):
            self.firewall.apply()
        return mine

    def connect(self, wish: EndpointWish, sandbox: SandboxWish, netns_fd: int) -> EndpointRecord:
        """Attach a running container to one more network."""
        with ExitStack() as undo:
            with self._lock:
                others = self.endpoints_of(sandbox.container_id)
                number = self._free_number(others)
                made = self._allocate(wish, sandbox, number)
                self._remember(made)
                undo.callback(self._forget_locked, (made.network_id, made.container_id))
            namespace = endpoint.Namespace.of(netns_fd)
            undo_namespace = ExitStack()
            with undo_namespace:
                undo_namespace.callback(namespace.close)
                self._attach(namespace, made)
                endpoint.set_default_routes(namespace, (*others, made))
            self._serve_names(sandbox, [*others, made], netns_fd, undo)
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
            key = (network.id, container_id)
            made = self._endpoints.get(key)
            if made is None:
                raise Internal(
                    f"container {container_id} is not connected to network {network.name}"
                )
            self._forget(key)
            rest = tuple(self.endpoints_of(container_id))
        self._unpublish([made], list(made.ports))
        if netns_fd is not None and made.interface:
            namespace = endpoint.Namespace.of(netns_fd)
            try:
                endpoint.detach(namespace, made.interface)
                endpoint.set_default_routes(namespace, rest)
            finally:
                namespace.close()
        if made.dns_names:
            self._tell_zones({network.id})
            if any(e.dns_names for e in rest):
                self.keeper.request(self._names_message(container_id, list(rest), ()))
            else:
                self.keeper.request({"op": "names-drop", "container": container_id})
        return made

    def rename(self, container_id: str, name: str) -> None:
        """A container's new name becomes known in its networks."""
        with self._lock:
            changed = set()
            for each in self.endpoints_of(container_id):
                dns_names = tuple(name if n == each.container_name else n for n in each.dns_names)
                self._remember(
                    msgspec.structs.replace(each, container_name=name, dns_names=dns_names)
                )
                if dns_names:
                    changed.add(each.network_id)
        self._tell_zones(changed)

    # --- records

    def _remember(self, record: EndpointRecord) -> None:
        self._endpoints[(record.network_id, record.container_id)] = record
        self.store.put(ENDPOINT, f"{record.network_id}/{record.container_id}", record)

    def _forget(self, key: tuple[str, str]) -> None:
        self._endpoints.pop(key, None)
        self.store.delete(ENDPOINT, "/".join(key))

    def _forget_locked(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._forget(key)

    # --- ports

    def _publish(
        self, wish: SandboxWish, taken: list[EndpointRecord], undo: ExitStack
    ) -> list[EndpointRecord]:
        """Publish the ports on the endpoint that has the container's gateway; the endpoints with their ports."""
        index = next((i for i, e in enumerate(taken) if e.driver == "bridge" and e.gateway4), None)
        if index is None:
            index = next(
                (i for i, e in enumerate(taken) if e.driver == "bridge" and e.gateway6), None
            )
        if index is None:
            return taken
        published = self.publish_on(taken[index], wish.ports, undo)
        return [*taken[:index], published, *taken[index + 1 :]]

    def publish_on(
        self, target: EndpointRecord, wishes: Iterable[PortWish], undo: ExitStack
    ) -> EndpointRecord:
        """Reserve, translate, hand to the keeper, remember; each step undone on failure."""
        network = self._networks[target.network_id]
        default_ip = network.option(HOST_BINDING, self.settings.publish_ip)
        added: list[PublishedPort] = []
        try:
            for wish in wishes:
                hosts = ports.host_addresses(
                    wish, default_ip=default_ip, ipv6=ports.host_has_ipv6()
                )
                with self._lock:
                    reserved = self.allocator.reserve(wish, hosts)
                for each in reserved:
                    undo.callback(self._release_port, target, each.port)
                    self._hand_over(target, each)
                    added.append(each.port)
        except (Internal, Unavailable) as error:
            raise Internal(
                f"driver failed programming external connectivity on endpoint {target.container_name} ({target.id}): {error.message}",
                hint=error.hint,
            ) from error
        translated = translations(target, added)
        if translated and self.settings.firewall:
            self.firewall.publish(translated)
            undo.callback(self.firewall.unpublish, translated)
        with self._lock:
            result = msgspec.structs.replace(target, ports=(*target.ports, *added))
            self._remember(result)
        return result

    def _hand_over(self, target: EndpointRecord, reserved: ports.Reserved) -> None:
        port = reserved.port
        address = target.ipv4 or target.ipv6
        if ":" in port.host_ip and target.ipv6:
            address = target.ipv6
        message = {
            "op": "port", "key": ports.keeper_key(target.container_id, port),
            "protocol": port.protocol, "target": [address, port.container_port],
        }  # fmt: skip
        assert reserved.held is not None
        try:
            self.keeper.request(message, (reserved.held.fileno(),))
        finally:
            reserved.close()

    def _release_port(self, target: EndpointRecord, port: PublishedPort) -> None:
        self.keeper.request({"op": "port-drop", "key": ports.keeper_key(target.container_id, port)})
        with self._lock:
            self.allocator.release([port])

    def _unpublish(self, owners: list[EndpointRecord], gone: list[PublishedPort]) -> None:
        if not gone:
            return
        translated: list[Translation] = []
        for owner in owners:
            mine = [p for p in gone if p in owner.ports]
            translated += translations(owner, mine)
            for port in mine:
                self._release_port(owner, port)
        if translated and self.settings.firewall:
            self.firewall.unpublish(translated)

    def publish(self, container_id: str, wish: PortWish) -> list[PublishedPort]:
        """Publish a port of a running container."""
        target = next((e for e in self.endpoints_of(container_id) if e.driver == "bridge"), None)
        if target is None:
            raise Conflict(
                f"container {container_id} is not on a bridge network: no port can be published"
            )
        with ExitStack() as undo:
            after = self.publish_on(target, [wish], undo)
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
                self._unpublish([each], gone)
                with self._lock:
                    rest = tuple(p for p in each.ports if p not in gone)
                    self._remember(msgspec.structs.replace(each, ports=rest))
                removed += gone
        if not removed:
            raise NotFound(
                f"no public port '{container_port}/{protocol}' published for {container_id}"
            )
        return removed

    # --- names

    def _serve_names(
        self, wish: SandboxWish, taken: list[EndpointRecord], netns_fd: int, undo: ExitStack
    ) -> None:
        named = [e for e in taken if e.dns_names]
        if not named:
            return
        undo.callback(self._tell_zones, {e.network_id for e in named})
        message = self._names_message(wish.container_id, taken, wish.dns)
        if wish.container_id in self._served():
            self.keeper.request(message)
        else:
            self._open_names(netns_fd, message)
            undo.callback(self.keeper.request, {"op": "names-drop", "container": wish.container_id})
        self._tell_zones({e.network_id for e in named})

    def _served(self) -> list[str]:
        return self.keeper.held()["containers"]

    def _open_names(self, netns_fd: int, message: dict[str, object]) -> None:
        try:
            sockets = names.open_service(netns_fd)
        except OSError as error:
            raise Internal(f"cannot open the name service: {error.strerror}") from error
        try:
            self.keeper.request(message, sockets)
        finally:
            for fd in sockets:
                os.close(fd)

    def _names_message(
        self, container_id: str, taken: list[EndpointRecord], dns: tuple[str, ...]
    ) -> dict[str, object]:
        outside = [
            e
            for e in taken
            if not self._networks[e.network_id].spec.internal and e.driver != "null"
        ]
        links: dict[str, list[str]] = {}
        for each in taken:
            links |= names.link_addresses(each, self.endpoints(each.network_id))
        servers = files.upstream_servers(files.read_host_resolver(), dns or self.settings.dns)
        return {
            "op": "names", "container": container_id, "networks": [e.network_id for e in taken if e.dns_names],
            "links": links, "servers": servers, "forward": bool(outside),
        }  # fmt: skip

    def _tell_zones(self, network_ids: Iterable[str]) -> None:
        for network_id in network_ids:
            network = self._networks.get(network_id)
            members = self.endpoints(network_id)
            if network is None or not members:
                self.keeper.request({"op": "zone-drop", "network": network_id})
                continue
            self.keeper.request(names.zone_message(network_id, network.name, members))
            for each in members:
                if each.links:
                    taken = self.endpoints_of(each.container_id)
                    if each.container_id in self._served():
                        self.keeper.request(self._names_message(each.container_id, taken, ()))

    def _restore_keeper(self, live: Mapping[str, str]) -> None:
        """Make the keeper hold exactly what live containers need: after a daemon's start or a keeper's death."""
        held = self.keeper.held()
        wanted_ports: dict[str, tuple[EndpointRecord, PublishedPort]] = {}
        for each in self._endpoints.values():
            for port in each.ports:
                wanted_ports[ports.keeper_key(each.container_id, port)] = (each, port)
        named = {e.container_id for e in self._endpoints.values() if e.dns_names}
        for key in set(held["ports"]) - set(wanted_ports):
            self.keeper.request({"op": "port-drop", "key": key})
        for container_id in set(held["containers"]) - named:
            self.keeper.request({"op": "names-drop", "container": container_id})
        for key in set(wanted_ports) - set(held["ports"]):
            owner, port = wanted_ports[key]
            self._hand_over(owner, ports.Reserved(port, ports.bind(port)))
        for container_id in named - set(held["containers"]):
            taken = self.endpoints_of(container_id)
            fd = os.open(live[container_id], os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._open_names(fd, self._names_message(container_id, taken, ()))
            finally:
                os.close(fd)
        zones = {e.network_id for e in self._endpoints.values() if e.dns_names}
        for network_id in set(held["zones"]) - zones:
            self.keeper.request({"op": "zone-drop", "network": network_id})
        self._tell_zones(zones)

    # --- rules

    def _ruleset(self) -> nft.Table:
        with self._lock:
            networks = list(self._networks.values())
            members = list(self._endpoints.values())
        published = [t for e in members for t in translations(e, e.ports)]
        return ruleset(self.settings.instance, networks, published, members)
