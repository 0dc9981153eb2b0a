"""The values of this room. What is stored carries a version; what is asked is a wish; what was given is an endpoint.

NetworkSpec     what a client asks for                       -> NetworkRecord   stored
EndpointWish    one container's wish about one network       -> EndpointRecord  stored while the container runs
PortWish        a port to publish                            -> PublishedPort   part of the endpoint
SandboxWish     all endpoints of one container at its start  -> Sandbox         a namespace and its endpoints
"""

from __future__ import annotations

import msgspec


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network; empty fields are chosen for the asker."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    aux: dict[str, str] = {}


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    name: str
    driver: str = "bridge"
    scope: str = "local"
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    pools: tuple[PoolSpec, ...] = ()
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    config_only: bool = False
    config_from: str = ""


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A network as stored. Nothing of it changes after it was made.

    `pools` are complete: subnet and gateway are filled in. `chosen` says that we, not the user, chose the subnet.
    """

    version: int = 1
    id: str
    created: str
    spec: NetworkSpec
    pools: tuple[PoolSpec, ...] = ()
    chosen: bool = False
    bridge: str = ""
    parent: str = ""
    parent_is_ours: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def driver(self) -> str:
        return self.spec.driver

    @property
    def predefined(self) -> bool:
        return self.spec.name in PREDEFINED

    @property
    def has_names(self) -> bool:
        """Whether containers find each other by name in it: every network but the predefined ones."""
        return not self.predefined

    def option(self, key: str, default: str = "") -> str:
        return self.spec.options.get(key, default)

    def flag(self, key: str, *, default: bool) -> bool:
        text = self.spec.options.get(key)
        return default if text is None else text.lower() in ("1", "t", "true")


PREDEFINED = ("bridge", "host", "none")


class PortWish(msgspec.Struct, frozen=True, kw_only=True):
    """A port to publish. `host_port` 0 asks for a free one; `host_port_end` ends a range to choose from."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: int = 0
    host_port_end: int = 0


class PublishedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port as it was published."""

    container_port: int
    protocol: str
    host_ip: str
    host_port: int


class EndpointWish(msgspec.Struct, frozen=True, kw_only=True):
    """One container's wish about one network. `network` is an id or a name."""

    network: str
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()
    mac: str = ""
    aliases: tuple[str, ...] = ()
    links: dict[str, str] = {}  # alias -> container id or name
    driver_options: dict[str, str] = {}
    gateway_priority: int = 0


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place in a network, while it has one."""

    version: int = 1
    id: str
    network_id: str
    network_name: str
    driver: str
    container_id: str
    container_name: str
    mac: str = ""
    ipv4: str = ""
    prefix4: int = 0
    gateway4: str = ""
    ipv6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    link_local: tuple[str, ...] = ()
    interface: str = ""
    host_link: str = ""
    aliases: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    links: dict[str, str] = {}
    gateway_priority: int = 0
    driver_options: dict[str, str] = {}
    ports: tuple[PublishedPort, ...] = ()
    dns: tuple[str, ...] = ()
    egress: tuple[str, ...] | None = None

    @property
    def asks_us(self) -> bool:
        """Whether the container's name server is ours: names are known in its network, or must be watched."""
        return bool(self.dns_names) or (self.egress is not None and self.driver != "null")


class EgressGrant(msgspec.Struct, frozen=True, kw_only=True):
    """An address that a limited container may reach because an allowed name resolved to it.

    `seconds`: how long still; 0 as long as the name, a container's, has it.
    """

    name: str
    address: str
    seconds: int = 0


class Egress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running container may connect. `entries` None: anywhere.

    `refused`: names that it asked for in vain, with how often; `dropped`: packets since the rules were last replaced.
    """

    entries: tuple[str, ...] | None = None
    grants: tuple[EgressGrant, ...] = ()
    refused: dict[str, int] = {}
    dropped: int = 0


class SandboxWish(msgspec.Struct, frozen=True, kw_only=True):
    """All that one container asks of the network at its start. The first endpoint is eth0."""

    container_id: str
    container_name: str
    hostname: str = ""
    endpoints: tuple[EndpointWish, ...] = ()
    ports: tuple[PortWish, ...] = ()
    dns: tuple[str, ...] = ()
    egress: tuple[str, ...] | None = None  # None: anywhere; (): nowhere; else CIDRs and names
    hosts: dict[str, str] = {}  # names of its own /etc/hosts; 'host-gateway' for the host's address


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace with its endpoints.

    `netns_fd` belongs to the caller, who gives it to the launcher and closes it: the namespace lives as long as a
    process or a descriptor holds it, and is torn down by the kernel in the background.
    """

    netns_fd: int
    endpoints: tuple[EndpointRecord, ...] = ()

    @property
    def has_names(self) -> bool:
        return any(e.asks_us for e in self.endpoints)
