"""What outlives the daemon for a container: its published ports and its names, handed to the keeper.

    publish_on    reserve on the host ─► keeper holds the socket ─► element in the kernel's map ─► record
    serve         sockets at 127.0.0.11 in the namespace ─► keeper ─► zones of the networks
    restore       the keeper holds exactly what live containers need

Each step goes on the caller's ExitStack, so that a failure gives back what was taken.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import msgspec

from sampan.errors import Internal, SampanError, Unavailable
from sampan.network import egress, files, names, ports
from sampan.network.catalog import NetworkCatalog
from sampan.network.endpoint import gateway_endpoint
from sampan.network.firewall import Firewall
from sampan.network.keeper_client import KeeperClient, Part
from sampan.network.records import (
    EgressGrant,
    EndpointRecord,
    PortWish,
    PublishedPort,
    SandboxWish,
)
from sampan.network.rules import Translation, translations
from sampan.network.settings import Settings
from sampan.network.table import EndpointTable

log = logging.getLogger("sampan.network")
HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"


class Services:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        catalog: NetworkCatalog,
        table: EndpointTable,
        firewall: Firewall,
        lock: threading.RLock,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.table = table
        self.firewall = firewall
        self.keeper = KeeperClient(settings.run)
        self.allocator = ports.PortAllocator()
        self._lock = lock

    # --- ports

    def publish(
        self, wish: SandboxWish, taken: list[EndpointRecord], undo: ExitStack
    ) -> list[EndpointRecord]:
        """Publish the ports on the endpoint that has the container's gateway; the endpoints with their ports."""
        target = port_endpoint(taken)
        if target is None:
            return taken
        published = self.publish_on(target, wish.ports, undo)
        return [published if e is target else e for e in taken]

    def settle_ports(self, wish: SandboxWish, taken: list[EndpointRecord], undo: ExitStack) -> None:
        """After another network was joined: ports follow the container's gateway; one that had none gets its own."""
        target = port_endpoint(taken)
        holder = next((e for e in taken if e.ports), None)
        if target is None or holder is target:
            return
        if holder is not None:
            self.move(holder, target)
        elif wish.ports:
            self.publish_on(target, wish.ports, undo)

    def move(self, holder: EndpointRecord, target: EndpointRecord) -> None:
        """Lead the published ports of one endpoint to another of the same container; the sockets on the host stay."""
        before, after = translations(holder, holder.ports), translations(target, holder.ports)
        for port in holder.ports:
            key = ports.keeper_key(target.container_id, port)
            self.keeper.request({"op": "port-target", "key": key, "target": _target(target, port)})
        if self.settings.firewall:
            self.firewall.unpublish(before)
            self.firewall.publish(after)
        with self._lock:
            self.table.put(msgspec.structs.replace(target, ports=(*target.ports, *holder.ports)))
            if self.table.get(holder.network_id, holder.container_id) is not None:
                self.table.put(msgspec.structs.replace(holder, ports=()))

    def publish_on(
        self, target: EndpointRecord, wishes: Iterable[PortWish], undo: ExitStack
    ) -> EndpointRecord:
        """Reserve, translate, hand to the keeper, remember; each step undone on failure."""
        network = self.catalog.records[target.network_id]
        default_ip = network.option(HOST_BINDING, self.settings.publish_ip)
        reserved: list[ports.Reserved] = []
        undo.callback(self._release_ports, target, reserved)
        try:
            for wish in wishes:
                hosts = ports.host_addresses(
                    wish, default_ip=default_ip, ipv6=ports.host_has_ipv6()
                )
                with self._lock:
                    reserved += self.allocator.reserve(wish, hosts)
            self._hand_over(target, reserved)
        except (Internal, Unavailable) as error:
            raise Internal(
                f"driver failed programming external connectivity on endpoint {target.container_name} ({target.id}): {error.message}",
                hint=error.hint,
            ) from error
        added = [each.port for each in reserved]
        translated = translations(target, added)
        if translated and self.settings.firewall:
            self.firewall.publish(translated)
            undo.callback(self.firewall.unpublish, translated)
        with self._lock:
            result = msgspec.structs.replace(target, ports=(*target.ports, *added))
            self.table.put(result)
        return result

    def _hand_over(self, target: EndpointRecord, reserved: Iterable[ports.Reserved]) -> None:
        """Give the keeper the sockets; a port without one is translated by the kernel alone."""
        parts: list[Part] = [
            (
                {
                    "op": "port", "key": ports.keeper_key(target.container_id, each.port),
                    "protocol": each.port.protocol, "target": _target(target, each.port),
                },
                (each.held.fileno(),),
            )
            for each in reserved
            if each.held is not None
        ]  # fmt: skip
        try:
            self.keeper.request_all(parts)
        finally:
            for each in reserved:
                each.close()

    def _release_ports(self, target: EndpointRecord, reserved: Iterable[ports.Reserved]) -> None:
        self._drop_ports(target, [each.port for each in reserved])
        for each in reserved:
            each.close()

    def _drop_ports(self, owner: EndpointRecord, gone: list[PublishedPort]) -> None:
        keys = (ports.keeper_key(owner.container_id, port) for port in gone)
        self.keeper.request_all([({"op": "port-drop", "key": key}, ()) for key in keys])
        with self._lock:
            self.allocator.release(gone)

    def unpublish(self, owners: list[EndpointRecord], gone: list[PublishedPort]) -> None:
        if not gone:
            return
        translated: list[Translation] = []
        for owner in owners:
            mine = [p for p in gone if p in owner.ports]
            translated += translations(owner, mine)
            self._drop_ports(owner, mine)
        if translated and self.settings.firewall:
            self.firewall.unpublish(translated)

    # --- names

    def serve(
        self,
        wish: SandboxWish,
        taken: list[EndpointRecord],
        netns_fd: int,
        undo: ExitStack,
        *,
        is_new: bool = False,
    ) -> None:
        """Answer a container's names; one that `is_new` is not asked for at the keeper first."""
        if not any(e.asks_us for e in taken):
            return
        named = [e for e in taken if e.dns_names]
        undo.callback(self.tell_zones, {e.network_id for e in named})
        message = self.names_message(wish.container_id, taken, wish.dns)
        zones = self._zone_parts({e.network_id for e in named})
        if not is_new and wish.container_id in self.keeper.held()["containers"]:
            self.keeper.request_all([(message, ()), *zones])
            return
        undo.callback(self.keeper.request, {"op": "names-drop", "container": wish.container_id})
        self._open_names(netns_fd, message, zones, is_new=is_new)

    def _open_names(
        self,
        netns_fd: int,
        message: dict[str, object],
        more: Iterable[Part] = (),
        *,
        is_new: bool = False,
    ) -> None:
        try:
            sockets = names.open_service(netns_fd, is_new=is_new)
        except OSError as error:
            raise Internal(f"cannot open the name service: {error.strerror}") from error
        try:
            self.keeper.request_all([(message, sockets), *more])
        finally:
            for fd in sockets:
                os.close(fd)

    def names_message(
        self, container_id: str, taken: list[EndpointRecord], dns: tuple[str, ...]
    ) -> dict[str, object]:
        outside = [
            e
            for e in taken
            if not self.catalog.records[e.network_id].spec.internal and e.driver != "null"
        ]
        links: dict[str, list[str]] = {}
        for each in taken:
            links |= names.link_addresses(each, self.table.of_network(each.network_id))
        dns = dns or next((e.dns for e in taken if e.dns), ()) or self.settings.dns
        servers = files.upstream_servers(files.read_host_resolver(), dns)
        return {
            "op": "names", "container": container_id, "networks": [e.network_id for e in taken if e.dns_names],
            "links": links, "servers": servers, "forward": bool(outside),
            "limit": self._limit_message(taken),
        }  # fmt: skip

    def _limit_message(self, taken: list[EndpointRecord]) -> dict[str, object] | None:
        """Which names a limited container may ask for, and whose packets what they resolve to lets through."""
        limited = [e for e in taken if e.egress is not None]
        if not limited:
            return None
        return {
            "table": self.settings.instance, "sources": egress.sources(limited),
            "names": egress.names_of(limited[0].egress or ()),
        }  # fmt: skip

    def renew(self, container_id: str, taken: list[EndpointRecord]) -> None:
        """Tell the keeper what changed about a container that it serves."""
        self.keeper.request(self.names_message(container_id, taken, ()))

    def grants(self, container_id: str) -> tuple[tuple[EgressGrant, ...], dict[str, int]]:
        """What a limited container's names resolved to, and which were refused."""
        answer = self.keeper.request({"op": "grants", "container": container_id})
        return msgspec.convert(answer["grants"], tuple[EgressGrant, ...]), answer["refused"]

    def regrant(self) -> None:
        """The tables were replaced: what the keeper had put into their sets goes in again."""
        limited = any(e.egress is not None for e in self.table.all())
        if limited and self.keeper.held()["containers"]:
            self.keeper.request({"op": "regrant"})

    def tell_zones(self, network_ids: Iterable[str]) -> None:
        """The keeper knows who is in these networks now."""
        self.keeper.request_all(self._zone_parts(network_ids))

    def _zone_parts(self, network_ids: Iterable[str]) -> list[Part]:
        """Zones as they are, and the links of members whose targets may have come or gone."""
        parts: list[Part] = []
        for network_id in network_ids:
            network = self.catalog.records.get(network_id)
            members = self.table.of_network(network_id)
            if network is None or not members:
                parts.append(({"op": "zone-drop", "network": network_id}, ()))
                continue
            parts.append((names.zone_message(network_id, network.name, members), ()))
            for each in members:
                if each.links:
                    taken = self.table.of_container(each.container_id)
                    parts.append((self.names_message(each.container_id, taken, ()), ()))
        return parts

    def _restore_names(self, container_id: str, namespace: str) -> None:
        taken = self.table.of_container(container_id)
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._open_names(fd, self.names_message(container_id, taken, ()))
        finally:
            os.close(fd)

    def restore(self, live: Mapping[str, str]) -> None:
        """Make the keeper hold exactly what live containers need: after a daemon's start or a keeper's death."""
        held = self.keeper.held()
        wanted_ports: dict[str, tuple[EndpointRecord, PublishedPort]] = {}
        for each in self.table.all():
            for port in each.ports:
                wanted_ports[ports.keeper_key(each.container_id, port)] = (each, port)
        named = {e.container_id for e in self.table.all() if e.asks_us}
        for key in set(held["ports"]) - set(wanted_ports):
            self.keeper.request({"op": "port-drop", "key": key})
        for container_id in set(held["containers"]) - named:
            self.keeper.request({"op": "names-drop", "container": container_id})
        for key in set(wanted_ports) - set(held["ports"]):
            owner, port = wanted_ports[key]
            try:
                self._hand_over(owner, [ports.Reserved(port, self.allocator.bind(port))])
            except (
                OSError,
                SampanError,
            ) as error:  # somebody took it meanwhile; routed traffic still arrives
                log.warning("port %s of %s is lost: %s", key, owner.container_name, error)
        for container_id in (named & set(live)) - set(held["containers"]):
            try:
                self._restore_names(container_id, live[container_id])
            except (OSError, SampanError) as error:  # it ends just now
                log.warning("the names of container %s are lost: %s", container_id[:12], error)
        zones = {e.network_id for e in self.table.all() if e.dns_names}
        for network_id in set(held["zones"]) - zones:
            self.keeper.request({"op": "zone-drop", "network": network_id})
        self.tell_zones(zones)


def port_endpoint(taken: Iterable[EndpointRecord]) -> EndpointRecord | None:
    """Where a container's ports are published: the bridged endpoint that has its default route."""
    bridged = tuple(e for e in taken if e.driver == "bridge")
    return gateway_endpoint(bridged, 4) or gateway_endpoint(bridged, 6)


def _target(endpoint: EndpointRecord, port: PublishedPort) -> list[object]:
    """The container's end of a published port, of the host address's family where it has that."""
    address = endpoint.ipv4 or endpoint.ipv6
    if ":" in port.host_ip and endpoint.ipv6:
        address = endpoint.ipv6
    return [address, port.container_port]
