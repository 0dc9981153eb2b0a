"""Links between a container's network namespace and a network: made, configured, taken away.

    host                                   container
    bridge sampan0 --- veth1a2b3c4 ======== eth0 172.17.0.2/16, default via 172.17.0.1

The pair is made in one message, its far end born inside the namespace; address, route and `up` follow in a second
message sent through a socket that lives in the namespace. On stop nothing is deleted: when the last descriptor and
process are gone, the kernel removes the namespace and its links in the background.

A namespace is entered only on threads made for it and thrown away: `setns` changes a thread for good.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from sampan.errors import InvalidArgument
from sampan.linux import constants, netlink, syscalls
from sampan.network import bridge
from sampan.network.ipam import mac_bytes
from sampan.network.records import EndpointRecord, NetworkRecord

T = TypeVar("T")

IFNAME = "com.docker.network.endpoint.ifname"
SYSCTLS = "com.docker.network.endpoint.sysctls"
PREFIX = "com.docker.network.container_iface_prefix"


def on_thread(function: Callable[[], T]) -> T:
    """Call it on a thread of its own; its result or its exception."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  handed to the caller below, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def inside(netns_fd: int, function: Callable[[], T]) -> T:
    """Call it in another network namespace."""

    def run() -> T:
        syscalls.setns(netns_fd, constants.CLONE_NEWNET)
        return function()

    return on_thread(run)


class Namespace:
    """A network namespace held by a descriptor, and a netlink socket in it. Close it when configured."""

    def __init__(self, netns_fd: int, link: netlink.Netlink) -> None:
        self.netns_fd = netns_fd
        self.link = link

    @classmethod
    def new(cls) -> Namespace:
        """A new namespace; IPv6 off on links to come until a network wants it."""

        def make() -> Namespace:
            syscalls.unshare(constants.CLONE_NEWNET)
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            bridge.set_sysctl(f"{bridge.CONF6}/default/disable_ipv6", "1")
            bridge.set_sysctl(f"{bridge.CONF6}/default/accept_ra", "0")
            return cls(fd, netlink.Netlink())

        return on_thread(make)

    @classmethod
    def of(cls, netns_fd: int) -> Namespace:
        """A namespace that exists; the descriptor stays the caller's."""
        return cls(os.dup(netns_fd), inside(netns_fd, netlink.Netlink))

    def close(self) -> None:
        """Give up the socket and the descriptor. Idempotent."""
        self.link.close()
        if self.netns_fd >= 0:
            os.close(self.netns_fd)
            self.netns_fd = -1

    def take(self) -> int:
        """The descriptor, now the caller's; the socket is closed."""
        fd, self.netns_fd = self.netns_fd, -1
        self.link.close()
        return fd


LOOPBACK = 1
LINK_LOCAL_PREFIX = (16, 64)  # RFC 3927 and RFC 4291: of IPv4, of IPv6


def loopback_up(namespace: Namespace) -> None:
    """127.0.0.1 and ::1 answer."""
    namespace.link.send(netlink.set_link(LOOPBACK, up=True))


def host_link_name(endpoint_id: str) -> str:
    """Docker's form: veth and seven hex digits."""
    return "veth" + endpoint_id[:7]


def attach_to_bridge(
    host: netlink.Netlink,
    namespace: Namespace,
    network: NetworkRecord,
    endpoint: EndpointRecord,
    *,
    bridge_index: int,
    mtu: int,
    isolated: bool,
) -> None:
    """Make and configure the pair. Raises OSError; then nothing of the pair is left."""
    host.send(
        netlink.veth(
            endpoint.host_link,
            peer=endpoint.interface,
            peer_netns_fd=namespace.netns_fd,
            master=bridge_index,
            mtu=mtu,
            peer_address=mac_bytes(endpoint.mac),
        )
    )
    try:
        bridge.set_sysctl(f"{bridge.CONF6}/{endpoint.host_link}/disable_ipv6", "1")
        if isolated:
            index = netlink.link_by_name(host, endpoint.host_link).index
            host.send(netlink.set_bridge_port(index, isolated=True))
        configure(namespace, endpoint)
    except BaseException:
        delete_host_link(host, endpoint.host_link)
        raise


def delete_host_link(host: netlink.Netlink, name: str) -> None:
    """Delete a pair by its near end: for undoing and for disconnecting a running container. Idempotent."""
    try:
        host.send(netlink.delete_link(name=name))
    except OSError as error:
        if error.errno not in (19, 6):
            raise


def attach_child(
    host: netlink.Netlink,
    namespace: Namespace,
    network: NetworkRecord,
    endpoint: EndpointRecord,
    *,
    mtu: int,
) -> None:
    """Make a macvlan or ipvlan link of the network's parent inside the namespace and configure it."""
    parent = netlink.link_by_name(host, network.parent).index
    options = network.spec.options
    if network.driver == "macvlan":
        mode = options.get("macvlan_mode", "bridge")
        if mode not in netlink.MACVLAN_MODES:
            raise InvalidArgument(
                f"requested macvlan mode '{mode}' is not valid, 'bridge' mode is the macvlan driver default"
            )
        request = netlink.macvlan(
            endpoint.interface, parent=parent, mode=mode, netns_fd=namespace.netns_fd, mtu=mtu,
            address=mac_bytes(endpoint.mac),
        )  # fmt: skip
    else:
        mode, flag = options.get("ipvlan_mode", "l2"), options.get("ipvlan_flag", "bridge")
        if mode not in netlink.IPVLAN_MODES or flag not in netlink.IPVLAN_FLAGS:
            raise InvalidArgument(
                f"requested ipvlan mode '{mode}' is not valid, 'l2' mode is the ipvlan driver default"
            )
        request = netlink.ipvlan(
            endpoint.interface,
            parent=parent,
            mode=mode,
            flag=flag,
            netns_fd=namespace.netns_fd,
            mtu=mtu,
        )
    host.send(request)
    configure(namespace, endpoint)


def configure(namespace: Namespace, endpoint: EndpointRecord) -> None:
    """Addresses, up; no routes yet: which endpoint has the default route is known when all are there."""
    index = netlink.link_by_name(namespace.link, endpoint.interface).index
    if endpoint.ipv6 or any(":" in text for text in endpoint.link_local):
        inside(namespace.netns_fd, lambda: _allow_ipv6(endpoint.interface))
    requests = []
    if endpoint.ipv4:
        network = ipaddress.ip_network(f"{endpoint.ipv4}/{endpoint.prefix4}", strict=False)
        requests.append(
            netlink.add_address(
                index, ipaddress.ip_address(endpoint.ipv4).packed, endpoint.prefix4,
                broadcast=network.broadcast_address.packed,
            )
        )  # fmt: skip
    if endpoint.ipv6:
        packed = ipaddress.ip_address(endpoint.ipv6).packed
        requests.append(netlink.add_address(index, packed, endpoint.prefix6))
    for text in endpoint.link_local:
        prefix = LINK_LOCAL_PREFIX[":" in text]
        requests.append(netlink.add_address(index, ipaddress.ip_address(text).packed, prefix))
    requests.append(netlink.set_link(index, up=True))
    namespace.link.send(*requests)
    sysctls = endpoint.driver_options.get(SYSCTLS, "")
    if sysctls:
        inside(namespace.netns_fd, lambda: _endpoint_sysctls(endpoint.interface, sysctls))


def _allow_ipv6(interface: str) -> None:
    bridge.set_sysctl(f"{bridge.CONF6}/{interface}/disable_ipv6", "0")
    bridge.set_sysctl(f"{bridge.CONF6}/{interface}/accept_ra", "0")


def _endpoint_sysctls(interface: str, text: str) -> None:
    """`net.ipv4.conf.IFNAME.log_martians=1,...` with IFNAME replaced."""
    for assignment in text.split(","):
        name, separator, value = assignment.partition("=")
        parts = name.strip().split(".")
        # In any case: docker's client makes small letters of what `--network name=...,driver-opt=...` holds.
        if not separator or len(parts) != 5 or parts[0] != "net" or parts[3].upper() != "IFNAME":
            raise InvalidArgument(f"invalid endpoint sysctl setting: {assignment}")
        if (
            parts[1] not in ("ipv4", "ipv6", "mpls")
            or parts[2] not in ("conf", "neigh")
            or "/" in name
        ):
            raise InvalidArgument(f"unrecognised endpoint sysctl setting: {assignment}")
        path = f"/proc/sys/net/{parts[1]}/{parts[2]}/{interface}/{parts[4]}"
        if not bridge.set_sysctl(path, value.strip()):
            raise InvalidArgument(
                f"unable to set sysctl {'.'.join((*parts[:3], interface, parts[4]))}"
            )


def detach(namespace: Namespace, interface: str) -> None:
    """Delete a link of the namespace. Idempotent."""
    delete_host_link(namespace.link, interface)


def set_default_routes(namespace: Namespace, endpoints: tuple[EndpointRecord, ...]) -> None:
    """Give the default route of each family to the endpoint that deserves it; take it from any other."""
    requests = []
    for family, version in ((netlink.AF_INET, 4), (netlink.AF_INET6, 6)):
        wanted = gateway_endpoint(endpoints, version)
        have = [r for r in netlink.routes(namespace.link, family) if not r.destination]
        for route in have:
            requests.append(
                netlink.delete_route(family=family, index=route.index, gateway=route.gateway)
            )
        if wanted is None:
            continue
        gateway = wanted.gateway4 if version == 4 else wanted.gateway6
        index = netlink.link_by_name(namespace.link, wanted.interface).index
        packed = ipaddress.ip_address(gateway).packed if gateway else b""
        requests.append(netlink.add_route(family=family, gateway=packed, index=index))
    if requests:
        namespace.link.send(*requests)


def gateway_endpoint(endpoints: tuple[EndpointRecord, ...], version: int) -> EndpointRecord | None:
    """The endpoint whose gateway is the default one: highest priority, then the network's name in order."""
    usable = [e for e in endpoints if (e.gateway4 if version == 4 else e.gateway6)]
    return min(usable, key=lambda e: (-e.gateway_priority, e.network_name), default=None)
