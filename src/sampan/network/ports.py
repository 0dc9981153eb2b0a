"""Published ports: choose and reserve them on the host.

A port is reserved by binding and, for streams, listening on it: that refuses a port of another program as well as
another container's, and the socket goes on to the keeper, which carries what the kernel does not translate.
Words and ranges are Docker's.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable

from sampan.errors import Internal, InvalidArgument
from sampan.network.records import PortWish, PublishedPort

PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
BACKLOG = 511
PRIVILEGED = (
    " (ports below 1024 are root's: choose a larger one, or let everybody have them by "
    "sysctl net.ipv4.ip_unprivileged_port_start=80)"
)
# What is the address's or the protocol's fault is no other port's either.
NO_PORT_HELPS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

Key = tuple[str, str, int]  # protocol, host address, host port


class Reserved:
    """A port and the bound socket that holds it; close it unless the keeper has taken it over."""

    def __init__(self, port: PublishedPort, held: socket.socket | None) -> None:
        self.port = port
        self.held = held

    def close(self) -> None:
        """Idempotent."""
        if self.held is not None:
            self.held.close()
            self.held = None


def ephemeral_range() -> tuple[int, int]:
    """Where free ports are looked for: the host's own range."""
    try:
        with open(PORT_RANGE, encoding="ascii") as file:
            first, last = (int(word) for word in file.read().split())
    except (OSError, ValueError):
        return 49153, 65535
    return first, last


class PortAllocator:
    """Which ports the engine's containers have. Guarded by the manager's lock."""

    def __init__(self) -> None:
        self.taken: set[Key] = set()
        self.bind: Callable[[PublishedPort], socket.socket] = bind
        self._next = 0

    def adopt(self, ports: Iterable[PublishedPort]) -> None:
        """Ports of containers that run already."""
        self.taken |= {key_of(port) for port in ports}

    def release(self, ports: Iterable[PublishedPort]) -> None:
        """Idempotent."""
        self.taken -= {key_of(port) for port in ports}

    def reserve(self, wish: PortWish, hosts: tuple[str, ...]) -> list[Reserved]:
        """One port number on every one of the host addresses.

        Raises Internal in Docker's words where it is taken, InvalidArgument for an unknown protocol.
        """
        if wish.protocol not in KINDS:
            raise InvalidArgument(f"invalid proto: {wish.protocol}")
        last_error: Internal | None = None
        for number in self._candidates(wish):
            try:
                return self._reserve_all(wish, hosts, number)
            except Internal as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_PORT_HELPS:
                    raise
                last_error = error
        if wish.host_port and last_error is not None:
            raise last_error
        raise Internal("all ports are allocated")

    def _candidates(self, wish: PortWish) -> Iterable[int]:
        if wish.host_port:
            return range(wish.host_port, max(wish.host_port, wish.host_port_end) + 1)
        first, last = ephemeral_range()
        start = self._next if first <= self._next <= last else first
        return [*range(start, last + 1), *range(first, start)]

    def _reserve_all(self, wish: PortWish, hosts: tuple[str, ...], number: int) -> list[Reserved]:
        held: list[Reserved] = []
        try:
            for host in hosts:
                held.append(self._reserve_one(wish, host, number))
        except BaseException:
            for each in held:
                each.close()
                self.taken.discard(key_of(each.port))
            raise
        if not wish.host_port:
            self._next = number + 1
        return held

    def _reserve_one(self, wish: PortWish, host: str, number: int) -> Reserved:
        port = PublishedPort(
            container_port=wish.container_port,
            protocol=wish.protocol,
            host_ip=host,
            host_port=number,
        )
        shown = f"[{host}]" if ":" in host else host
        if self._conflicts(port):
            raise Internal(f"Bind for {shown}:{number} failed: port is already allocated")
        try:
            bound = self.bind(port)
        except OSError as error:
            if port.protocol == "sctp" and error.errno == errno.EPROTONOSUPPORT:
                self.taken.add(
                    key_of(port)
                )  # a kernel without SCTP sockets translates all the same
                return Reserved(port, None)
            words = (error.strerror or str(error)).lower()
            if error.errno == errno.EACCES and number < 1024:
                words += PRIVILEGED
            raise Internal(
                f"failed to bind host port {shown}:{number}/{wish.protocol}: {words}"
            ) from error
        self.taken.add(key_of(port))
        return Reserved(port, bound)

    def _conflicts(self, port: PublishedPort) -> bool:
        """The same number on the same address, or on every address of the family."""
        family = ipaddress.ip_address(port.host_ip).version
        every = "0.0.0.0" if family == 4 else "::"
        for protocol, host, number in self.taken:
            if protocol != port.protocol or number != port.host_port:
                continue
            if host == port.host_ip:
                return True
            if ipaddress.ip_address(host).version == family and every in (host, port.host_ip):
                return True
        return False


def key_of(port: PublishedPort) -> Key:
    """What makes it unique."""
    return (port.protocol, port.host_ip, port.host_port)


def keeper_key(container_id: str, port: PublishedPort) -> str:
    """Its name in the keeper."""
    return f"{container_id}/{port.protocol}/{port.host_ip}/{port.host_port}"


def bind(port: PublishedPort) -> socket.socket:
    """The socket that reserves it. Raises OSError (EADDRINUSE, EADDRNOTAVAIL, EACCES)."""
    kind, protocol = KINDS[port.protocol]
    six = ":" in port.host_ip
    held = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind, protocol)
    try:
        if six:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol != "udp":
            # Connections of a former container in TIME_WAIT do not hold the port; a listener does.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((port.host_ip, port.host_port))
        if port.protocol != "udp":
            held.listen(BACKLOG)
    except OSError:
        held.close()
        raise
    return held


def host_addresses(wish: PortWish, *, default_ip: str, ipv6: bool) -> tuple[str, ...]:
    """The addresses on which a wish is bound: the one it names, or every address of both families."""
    if wish.host_ip:
        try:
            return (str(ipaddress.ip_address(wish.host_ip)),)
        except ValueError:
            raise InvalidArgument(f"invalid IP address: {wish.host_ip}") from None
    if default_ip not in ("", "0.0.0.0"):
        return (default_ip,)
    return ("0.0.0.0", "::") if ipv6 else ("0.0.0.0",)


def host_has_ipv6() -> bool:
    """Whether the host can bind IPv6 addresses."""
    try:
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False
