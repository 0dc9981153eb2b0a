"""Assemble the routes and listen: unix sockets, tcp with and without TLS, sockets that systemd opened.

    unix:///run/sampan/sampan.sock     mode 0660, of the group in the configuration
    tcp://127.0.0.1:2375               loopback only, unless clients must show a certificate
    tcp://0.0.0.0:2376 + tlsverify     anywhere
    fd://                              sd_listen_fds(3): whatever systemd passed

A tcp listener without client certificates gives root to whoever can send it a packet, so one that is not
loopback is refused; on loopback, requests that a browser's page could send are (router.check_origin).
"""

from __future__ import annotations

import asyncio
import errno
import grp
import ipaddress
import logging
import os
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampan import __version__
from sampan.api import (
    build,
    containers,
    extensions,
    images,
    networks,
    streams,
    swarm,
    system,
    volumes,
)
from sampan.api.buildkit import BuildKit
from sampan.api.http import Connection, HttpServer
from sampan.api.router import NEWEST, Route, Router, dotted, parse_version
from sampan.api.tls import TlsProtocol
from sampan.errors import Conflict, InvalidArgument

if TYPE_CHECKING:
    from sampan.build.builder import Builder
    from sampan.engine.context import Engine

BACKLOG = 4096  # connections that wait in the kernel
ACCEPTED_AT_ONCE = 64  # asyncio's `backlog` is also how often it accepts, or fails to, in one turn
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SHORTAGE_TOLD_S = 10.0
FIRST_PASSED_FD = 3
SOCKET_MODE = 0o660

log = logging.getLogger("sampan.api")

# First those whose longer patterns under /containers and /volumes must win over the short ones.
ROUTES: tuple[Route, ...] = (
    *swarm.ROUTES,
    *extensions.ROUTES,
    *streams.ROUTES,
    *containers.ROUTES,
    *images.ROUTES,
    *networks.ROUTES,
    *volumes.ROUTES,
    *system.ROUTES,
)


def common_headers(*, experimental: bool) -> tuple[tuple[str, str], ...]:
    """On every answer."""
    return (
        ("Api-Version", dotted(NEWEST)),
        ("Docker-Experimental", "true" if experimental else "false"),
        ("Ostype", "linux"),
        ("Server", f"Docker/{__version__} (linux)"),
    )


def builder_routes(builder: Builder) -> tuple[Route, ...]:
    """What needs the builder."""
    buildkit = BuildKit(builder)
    return (*build.routes(builder, buildkit), *buildkit.routes())


class Troubles:
    """What the loop has to complain about. That no connection can be accepted for a while is a line once in a while,
    not a traceback for each that waits."""

    def __init__(self) -> None:
        self._told_at = -SHORTAGE_TOLD_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in SHORTAGES:
            loop.default_exception_handler(context)
        elif loop.time() - self._told_at >= SHORTAGE_TOLD_S:
            self._told_at = loop.time()
            log.warning("clients wait to be accepted: %s", error.strerror)


class ApiServer:
    """The engine's listeners, from `listen` to `close`."""

    def __init__(self, engine: Engine, builder: Builder) -> None:
        config = engine.config
        self._config = config
        oldest = parse_version(config.min_api_version)
        self.http = HttpServer(
            Router(
                engine,
                (*ROUTES, *builder_routes(builder)),
                oldest=oldest,
            ),
            common_headers(experimental=config.experimental),
        )
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []

    async def listen(self) -> None:
        """Open every host of the configuration; all or none."""
        asyncio.get_running_loop().set_exception_handler(Troubles())
        try:
            for host in self._config.hosts:
                await self._listen_on(host)
        except BaseException:
            await self.close(grace_seconds=0)
            raise
        self.http.start_sweeping()

    async def _listen_on(self, host: str) -> None:
        scheme, separator, rest = host.partition("://")
        if not separator:
            raise InvalidArgument(f"invalid bind address format: {host}")
        if scheme == "unix":
            await self._serve(self._unix_socket(Path(rest)))
        elif scheme == "tcp":
            for sock in self._tcp_sockets(host, rest):
                await self._serve(sock, tls=self._config.tls.enabled)
        elif scheme == "fd":
            for sock in passed_sockets():
                await self._serve(sock)
        else:
            raise InvalidArgument(f"invalid bind address (unknown protocol {scheme!r}): {host}")
        log.info("API listens on %s", host)

    async def _serve(self, sock: socket.socket, *, tls: bool = False) -> None:
        is_tcp = sock.family != socket.AF_UNIX
        trusted = not is_tcp or (tls and self._config.tls.verify)
        make = partial(Connection, self.http, secure=tls, check_origin=not trusted)
        loop = asyncio.get_running_loop()
        if tls:
            context = self._tls_context()
            server = await loop.create_server(
                lambda: TlsProtocol(context, make), sock=sock, backlog=ACCEPTED_AT_ONCE
            )
        elif is_tcp:
            server = await loop.create_server(make, sock=sock, backlog=ACCEPTED_AT_ONCE)
        else:
            server = await loop.create_unix_server(make, sock=sock, backlog=ACCEPTED_AT_ONCE)
        sock.listen(BACKLOG)
        self._servers.append(server)

    async def close(self, grace_seconds: float = 5) -> None:
        """No new connections; running answers get a while to finish."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            path.unlink(missing_ok=True)
        await self.http.close(grace_seconds)

    # --- sockets ---

    def _unix_socket(self, path: Path) -> socket.socket:
        if not path.is_absolute():
            raise InvalidArgument(f"invalid bind address: unix://{path} is not an absolute path")
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        _remove_dead_socket(path)
        sock = socket.socket(socket.AF_UNIX)
        # Born closed to others: a chmod afterwards would leave a moment in which anyone may connect.
        before = os.umask(0o777)
        try:
            sock.bind(str(path))
        except OSError as error:
            sock.close()
            raise InvalidArgument(f"cannot listen on unix://{path}: {error.strerror}") from None
        finally:
            os.umask(before)
        self._paths.append(path)
        os.chown(path, -1, self._group_id())
        # An ordinary user's group may hold many others, and who connects may do what he may.
        is_private = self._config.rootless and not self._config.group
        path.chmod(0o600 if is_private else SOCKET_MODE)
        return sock

    def _group_id(self) -> int:
        name = self._config.group
        if not name:
            return os.getegid()
        if name.isascii() and name.isdigit():
            return int(name)
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            raise InvalidArgument(f"group {name} not found") from None

    def _tcp_sockets(self, host: str, rest: str) -> list[socket.socket]:
        name, _, port = rest.rstrip("/").rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise InvalidArgument(f"invalid bind address: {host} has no port")
        name = name.strip("[]") or "127.0.0.1"
        sockets = []
        for family, kind, _, _, address in socket.getaddrinfo(
            name, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            self._check_reach(host, str(address[0]))
            sockets.append(_bound(family, kind, address, host))
        return sockets

    def _check_reach(self, host: str, address: str) -> None:
        if not (self._config.tls.verify or ipaddress.ip_address(address).is_loopback):
            raise InvalidArgument(
                f"refusing to listen on {host}: without client certificates anyone who reaches it is root here",
                hint="use --tlsverify with --tlscacert, --tlscert and --tlskey, or ssh:// on the client's side",
            )

    def _tls_context(self) -> ssl.SSLContext:
        tls = self._config.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(tls.cert, tls.key)
        if tls.verify:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.ca)
        return context


def _remove_dead_socket(path: Path) -> None:
    """What a crashed engine left; a living one's is not ours to take."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ECONNREFUSED or not path.is_socket():
                raise InvalidArgument(f"cannot listen on unix://{path}: {error.strerror}") from None
            path.unlink()
            return
    raise Conflict(f"unix://{path} is in use by another engine")


def _bound(family: int, kind: int, address: tuple[object, ...], host: str) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise InvalidArgument(f"cannot listen on {host}: {error.strerror}") from None
    return sock


def passed_sockets() -> list[socket.socket]:
    """The sockets that systemd opened for us; the variables are taken away, so that no child believes them."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        raise InvalidArgument(
            "no sockets found via socket activation: make sure the service was started by systemd"
        )
    sockets = []
    for fd in range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets
