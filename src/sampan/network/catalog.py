"""Networks as records: found, checked, made and dropped; which subnets they get. No link is touched here.

    kind 'network'   id -> NetworkRecord; a name belongs to one id (store.py decides)

The manager realises in the kernel what is recorded here. Guarded by the lock that the manager shares.
"""

from __future__ import annotations

import datetime
import os
import re
import threading
from collections.abc import Callable

import msgspec

from sampan.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, Unavailable
from sampan.linux import netlink
from sampan.network import bridge, egress, ipam
from sampan.network.records import PREDEFINED, NetworkRecord, NetworkSpec, PoolSpec
from sampan.network.rules import ICC
from sampan.network.settings import Settings
from sampan.store import NameTaken, Store

DRIVERS = ("bridge", "host", "null", "macvlan", "ipvlan")
BRIDGE_NAME = "com.docker.network.bridge.name"
MTU = "com.docker.network.driver.mtu"
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
NAME_PATTERN = re.compile(r"[^\x00-\x1f\x7f]{1,255}")
KIND = "network"
MODES = (
    ("macvlan", "macvlan_mode", netlink.MACVLAN_MODES, "bridge"),
    ("ipvlan", "ipvlan_mode", netlink.IPVLAN_MODES, "l2"),
    ("ipvlan", "ipvlan_flag", netlink.IPVLAN_FLAGS, "bridge"),
)


class NetworkCatalog:
    """See the module."""

    def __init__(self, settings: Settings, store: Store, lock: threading.RLock) -> None:
        self.settings = settings
        self.store = store
        self.records: dict[str, NetworkRecord] = {}
        self._lock = lock

    def load(self) -> None:
        """What the store has."""
        self.records = dict(self.store.items(KIND, NetworkRecord))

    def make_predefined(self, is_used: Callable[[str], bool]) -> None:
        """bridge, host and none; the default network is made anew when its settings changed and nobody is in it."""
        have = {n.name for n in self.records.values()}
        for name, driver in (("host", "host"), ("none", "null")):
            if name not in have:
                self.add(NetworkSpec(name=name, driver=driver), ())
        if self.settings.default_bridge == "none":
            return
        old = next((n for n in self.records.values() if n.name == "bridge"), None)
        spec = self._default_spec()
        if old is not None and old.spec == spec:
            return
        if old is not None:
            if is_used(old.id):
                return
            self.drop(old)
        self.add(spec, self.choose_pools(spec), bridge_name=self.settings.bridge_name)

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

    def all(self) -> list[NetworkRecord]:
        """Every network."""
        with self._lock:
            return list(self.records.values())

    def find(self, ref: str) -> NetworkRecord:
        """By id, name, or unambiguous prefix of an id. Raises NotFound, InvalidArgument."""
        with self._lock:
            if ref in self.records:
                return self.records[ref]
            named = [n for n in self.records.values() if n.name == ref]
            if len(named) == 1:
                return named[0]
            found = [n for n in self.records.values() if ref and n.id.startswith(ref)]
        if len(found) > 1:
            raise InvalidArgument(
                f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)"
            )
        if not found:
            raise NotFound(f"network {ref} not found")
        return found[0]

    def checked(self, spec: NetworkSpec) -> NetworkSpec:
        if not spec.name.strip():
            raise InvalidArgument("invalid name: ")
        if not NAME_PATTERN.fullmatch(spec.name):
            raise InvalidArgument(
                f"invalid network name: {spec.name!r}: it must not hold control characters"
            )
        if spec.name in PREDEFINED or spec.name == "default":
            raise PermissionDenied(f"operation is not permitted on predefined {spec.name} network")
        if spec.config_from:
            spec = self._from_config(spec)
        if spec.driver in ("host", "null"):
            raise PermissionDenied(f'only one instance of "{spec.driver}" network is allowed')
        if spec.driver == "overlay":
            raise Unavailable(
                'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
                "to connect this node to swarm and try again."
            )
        if spec.driver not in DRIVERS:
            raise NotFound(f'plugin "{spec.driver}" not found')
        if spec.ipam_driver not in ("", "default", "null"):
            raise NotFound(f'plugin "{spec.ipam_driver}" not found')
        if spec.options.get(MTU) and not re.fullmatch(r"[0-9]{1,5}", spec.options[MTU], re.ASCII):
            raise InvalidArgument(f"invalid MTU number: {spec.options[MTU]}")
        self._check_driver_options(spec)
        if egress.ANNOTATION in spec.options:
            egress.parse(spec.options[egress.ANNOTATION])
            if spec.driver != "bridge":
                raise InvalidArgument(
                    f"option {egress.ANNOTATION} is for networks of driver 'bridge' only"
                )
        name = spec.options.get(BRIDGE_NAME, "")
        if name and (
            len(name) > 15 or "/" in name or name in (".", "..") or any(c.isspace() for c in name)
        ):
            raise InvalidArgument(
                f"invalid bridge name {name!r}: at most 15 characters, no '/' and no space"
            )
        return spec

    @staticmethod
    def _check_driver_options(spec: NetworkSpec) -> None:
        """Modes of macvlan and ipvlan; the address on which a network's ports are published."""
        for driver, option, words, default in MODES:
            mode = spec.options.get(option, default)
            if spec.driver == driver and mode not in words:
                raise InvalidArgument(
                    f"requested {driver} mode '{mode}' is not valid, '{default}' mode is the {driver} driver default"
                )
        binding = spec.options.get(HOST_BINDING, "")
        if binding and not ipam.is_address(binding):
            raise InvalidArgument(f"failed to parse {HOST_BINDING} value: {binding} (nil ip)")
        versions = [ipam.parse_network(p.subnet).version for p in spec.pools if p.subnet]
        if spec.driver == "bridge" and len(set(versions)) < len(versions):
            raise InvalidArgument("bridge driver doesn't support multiple subnets")

    def _from_config(self, spec: NetworkSpec) -> NetworkSpec:
        try:
            source = self.find(spec.config_from)
        except NotFound:
            raise NotFound(f'configuration network "{spec.config_from}" does not exist') from None
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

    def choose_pools(self, spec: NetworkSpec) -> tuple[PoolSpec, ...]:
        """Complete what the user gave, choose what is missing."""
        if spec.driver in ("host", "null") or spec.ipam_driver == "null":
            return ()
        taken = [ipam.parse_network(p.subnet) for n in self.records.values() for p in n.pools]
        pools: list[PoolSpec] = []
        versions = {4: spec.enable_ipv4, 6: spec.enable_ipv6}
        for wish in spec.pools:
            if not wish.subnet:
                continue
            network = ipam.parse_network(wish.subnet)
            if network.version == 6 and not spec.enable_ipv6:
                continue  # it waits for --ipv6
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
        own = frozenset(n.bridge for n in self.records.values() if n.bridge) | {
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

    def add(
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
        if record.bridge and any(n.bridge == record.bridge for n in self.records.values()):
            raise PermissionDenied(f"bridge name {record.bridge} is used by another network")
        with self.store.transaction():
            try:
                self.store.reserve(KIND, spec.name, number)
            except NameTaken:
                raise Conflict(f"network with name {spec.name} already exists") from None
            self.store.put(KIND, number, record)
        self.records[number] = record
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

    def drop(self, record: NetworkRecord) -> None:
        self.store.delete(KIND, record.id)
        self.records.pop(record.id, None)
