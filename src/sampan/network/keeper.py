"""The keeper: one small process per engine that holds what must not stop when the daemon does.

    name service     the sockets at 127.0.0.11 inside containers on networks with names, and the zones they answer from
    published ports  the listening sockets on the host: they reserve the port, and carry the connections that the
                     kernel does not translate (from loopback, from containers, to a family the container lacks)

        daemon --- <run>/keeper.sock (SEQPACKET, JSON + descriptors) --- keeper --- epoll over everything it holds

A daemon that starts again connects, asks `list` what is held, and drops what belongs to nobody. The keeper has no
state on disk: when it dies, the next request starts another, and the daemon's next start hands in again what live
containers need (`services.py`, restore). It ends by itself when it holds nothing and no daemon is connected.

Messages (daemon -> keeper; each is answered {"ok": true} or {"error": text}):
    {"op": "zone", "network": id, "name": str, "names": {name: [address]}, "pointers": {address: name}}
    {"op": "zone-drop", "network": id}
    {"op": "names", "container": id, "networks": [id], "links": {alias: [address]}, "servers": [ip], "forward": bool,
         "limit": null or {"table": str, "sources": [ip], "names": [str]}} + descriptors [udp, tcp] the first time;
         of a container that is not known and without them it is passed over
    {"op": "names-drop", "container": id}
    {"op": "grants", "container": id}  -> {"grants": [{"name", "address", "seconds"}], "refused": {name: times}}
    {"op": "regrant"}                  the firewall's tables were replaced (`grants.py`)
    {"op": "port", "key": str, "protocol": str, "target": [ip, port]} + descriptor [listening socket]
    {"op": "port-target", "key": str, "target": [ip, port]}    for connections to come
    {"op": "port-drop", "key": str}
    {"op": "batch", "messages": [message + "descriptors": how many of the descriptors are its]}    in order, to the first error
    {"op": "list"}  -> {"version": PROTOCOL, "containers": [...], "ports": [...], "zones": [...]}

A daemon of another version finds by that number that it must end this keeper and start its own.

Single thread, no asyncio: it must stay small. Nothing a container sends can grow it without bound: connections,
queries under way and buffers are capped.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
import time

from sampan.linux import fastjson, fds
from sampan.network import dns
from sampan.network.pumps import TcpForward, UdpForward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from sampan.network.grants import Grants

    class Handler(Protocol):
        """Something that owns descriptors in the loop."""

        def ready(self, fd: int, events: int) -> None: ...


IN, OUT, HUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR
PROTOCOL = 2  # grows with every change of the messages
MAX_MESSAGE = 1 << 20
MAX_DESCRIPTORS = 64
MAX_PENDING = 2048
QUERY_TIMEOUT_S = 4.0
TCP_IDLE_S = 20.0


class Loop:
    """epoll with an owner for every descriptor, and one clock tick a second for timeouts."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.owners: dict[int, Handler] = {}
        self.tickers: list[Any] = []

    def add(self, fd: int, owner: Handler, events: int = IN) -> None:
        """Watch a descriptor."""
        self.owners[fd] = owner
        self.epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Watch it for other events."""
        self.epoll.modify(fd, events)

    def drop(self, fd: int) -> None:
        """Stop watching; before it is closed. Idempotent."""
        if self.owners.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def run_once(self, timeout_s: float) -> None:
        """Wait, and let the owners act."""
        for fd, events in self.epoll.poll(timeout_s):
            owner = self.owners.get(fd)
            if owner is not None:
                owner.ready(fd, events)


class Names:
    """The name service of one container: a UDP and a listening TCP socket in its namespace."""

    def __init__(self, keeper: Keeper, udp: _socket.socket, tcp: _socket.socket) -> None:
        self.keeper = keeper
        self.udp = udp
        self.tcp = tcp
        self.networks: list[str] = []
        self.links: dict[str, list[str]] = {}
        self.servers: list[str] = []
        self.forward = True
        self.grants: Grants | None = None
        for each in (udp, tcp):
            each.setblocking(False)
            keeper.loop.add(each.fileno(), self)

    def configure(self, message: dict[str, Any]) -> None:
        """Take networks, links and servers from a `names` message."""
        self.networks = list(message["networks"])
        self.links = {k.lower(): list(v) for k, v in message.get("links", {}).items()}
        self.servers = list(message.get("servers", ()))
        self.forward = bool(message.get("forward", True))
        limit = message.get("limit")
        if self.grants is not None and limit:
            self.grants.renew(limit)
        elif self.grants is not None:
            self.grants.close()
            self.grants = None
        elif limit:
            from sampan.network.grants import Grants

            self.grants = Grants(limit)
        self.zones_changed()

    def zones_changed(self) -> None:
        """Containers came or went: a limited one may reach those that its list names."""
        if self.grants is not None:
            self.grants.containers(self.zones())

    def close(self) -> None:
        """Idempotent."""
        if self.grants is not None:
            self.grants.close()
            self.grants = None
        for each in (self.udp, self.tcp):
            if each.fileno() >= 0:
                self.keeper.loop.drop(each.fileno())
                each.close()

    def zones(self) -> list[dns.Zone]:
        """The asker's own links first, then its networks."""
        own = [dns.Zone("", self.links, {})] if self.links else []
        return own + [self.keeper.zones[n] for n in self.networks if n in self.keeper.zones]

    def ready(self, fd: int, events: int) -> None:
        """A query over UDP, or a connection over TCP."""
        if fd == self.udp.fileno():
            for _ in range(64):
                try:
                    data, sender = self.udp.recvfrom(4096)
                except OSError:
                    return
                self.keeper.query(self, data, UdpReply(self.udp, sender))
        else:
            try:
                connection = fds.accept(self.tcp)
            except OSError:
                return
            TcpQueries(self.keeper, self, connection)

    def answer(self, data: bytes, *, udp: bool) -> bytes | None:
        """The answer to what is known here; None where it must be forwarded."""
        question = dns.parse_query(data)
        if question is None:
            return dns.failure(data, dns.NOTIMP)
        zones = self.zones()
        if question.kind == dns.PTR:
            name = dns.pointer(zones, question.name)
            if name is not None:
                return dns.answer(question, (), names=(name,), udp=udp)
            return self._foreign(question.name, data)
        found = dns.lookup(zones, question.name)
        if found is None:
            return self._foreign(question.name, data)
        if len(found) > 1:
            turn = self.keeper.turn()
            found = found[turn % len(found) :] + found[: turn % len(found)]
        return dns.answer(question, found, udp=udp)

    def _foreign(self, name: str, data: bytes) -> bytes | None:
        """None where a name that is no container's may be asked of the host's servers."""
        if self.grants is None or self.grants.allows(name):
            return None
        self.grants.refuse(name)
        return dns.failure(data, dns.NXDOMAIN)


class UdpReply:
    """Where an answer over UDP goes."""

    is_udp = True

    def __init__(self, socket: _socket.socket, sender: Any) -> None:
        self.socket = socket
        self.sender = sender

    def send(self, data: bytes) -> None:
        """A full or closed socket loses the answer, as UDP may."""
        try:
            self.socket.sendto(data, self.sender)
        except OSError:
            pass


class TcpQueries:
    """One TCP connection of a container to the name service: queries with a length in front."""

    is_udp = False

    def __init__(self, keeper: Keeper, names: Names, socket: _socket.socket) -> None:
        self.keeper = keeper
        self.names = names
        self.socket = socket
        self.incoming = b""
        self.outgoing = b""
        self.last = time.monotonic()
        keeper.loop.add(socket.fileno(), self)
        keeper.loop.tickers.append(self)

    def ready(self, fd: int, events: int) -> None:
        """Read queries, write answers."""
        self.last = time.monotonic()
        if events & OUT:
            self._flush()
        if events & (IN | HUP | ERR) and self.socket.fileno() >= 0:
            try:
                data = self.socket.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or len(self.incoming) > 1 << 16:
                self.close()
                return
            self.incoming += data
            self._queries()

    def _queries(self) -> None:
        while len(self.incoming) >= 2:
            length = int.from_bytes(self.incoming[:2], "big")
            if len(self.incoming) < 2 + length:
                return
            query, self.incoming = self.incoming[2 : 2 + length], self.incoming[2 + length :]
            self.keeper.query(self.names, query, self)

    def send(self, data: bytes) -> None:
        """Queue an answer."""
        if self.socket.fileno() < 0 or len(self.outgoing) > 1 << 18:
            return
        self.outgoing += len(data).to_bytes(2, "big") + data
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self.socket.send(self.outgoing) if self.outgoing else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self.outgoing = self.outgoing[sent:]
        self.keeper.loop.change(self.socket.fileno(), IN | (OUT if self.outgoing else 0))

    def tick(self, now: float) -> None:
        """Close an idle connection."""
        if now - self.last > TCP_IDLE_S:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self.socket.fileno() >= 0:
            self.keeper.loop.drop(self.socket.fileno())
            self.socket.close()
        if self in self.keeper.loop.tickers:
            self.keeper.loop.tickers.remove(self)


class Upstream:
    """A query on its way to the host's servers, one after the other; over TCP where the asker came so."""

    def __init__(
        self, keeper: Keeper, names: Names, query: bytes, reply: UdpReply | TcpQueries
    ) -> None:
        self.keeper = keeper
        self.names = names
        self.query = query
        self.reply = reply
        self.waiting = list(names.servers)
        self.socket: _socket.socket | None = None
        self.received = b""
        self.id = os.urandom(2)
        self.deadline = 0.0
        keeper.pending.add(self)
        self._next()

    def _next(self) -> None:
        self._close_socket()
        while self.waiting:
            server = self.waiting.pop(0).split("%")[0]
            family = _socket.AF_INET6 if ":" in server else _socket.AF_INET
            kind = _socket.SOCK_DGRAM if self.reply.is_udp else _socket.SOCK_STREAM
            flags = _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            try:
                self.socket = _socket.socket(family, kind | flags)
                try:
                    self.socket.connect((server, 53))
                except BlockingIOError:
                    pass
                self.keeper.loop.add(self.socket.fileno(), self, IN if self.reply.is_udp else OUT)
                if self.reply.is_udp:
                    self.socket.send(self.id + self.query[2:])
            except OSError:
                self._close_socket()
                continue
            self.deadline = time.monotonic() + QUERY_TIMEOUT_S
            return
        self.finish(dns.failure(self.query, dns.SERVFAIL))

    def ready(self, fd: int, events: int) -> None:
        """The server answered, or cannot be reached."""
        assert self.socket is not None
        if events & OUT:
            try:
                message = self.id + self.query[2:]
                self.socket.send(len(message).to_bytes(2, "big") + message)
            except OSError:
                self._next()
                return
            self.keeper.loop.change(fd, IN)
            return
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._next()
            return
        if not self.reply.is_udp:
            self.received += data
            if len(self.received) < 2 + int.from_bytes(self.received[:2], "big"):
                return
            data = self.received[2:]
        if data[:2] == self.id and dns.matches(self.query, data):
            self._grant(data)
            self.finish(self.query[:2] + data[2:])

    def _grant(self, response: bytes) -> None:
        """What an allowed name resolved to may be reached, from before the asker knows it."""
        asked = dns.parse_query(self.query)
        if self.names.grants is not None and asked is not None:
            self.names.grants.resolved(asked.name, dns.resolved(response))

    def tick(self, now: float) -> None:
        """Try the next server when one does not answer."""
        if now > self.deadline:
            self._next()

    def finish(self, response: bytes) -> None:
        """Hand the answer on."""
        self._close_socket()
        self.keeper.pending.discard(self)
        if response:
            self.reply.send(response)

    def _close_socket(self) -> None:
        if self.socket is not None:
            if self.socket.fileno() >= 0:
                self.keeper.loop.drop(self.socket.fileno())
            self.socket.close()
            self.socket = None


class Control:
    """A connected daemon."""

    def __init__(self, keeper: Keeper, socket: _socket.socket) -> None:
        self.keeper = keeper
        self.socket = socket
        keeper.controls.add(self)
        keeper.loop.add(socket.fileno(), self)

    def ready(self, fd: int, events: int) -> None:
        """One message, one answer."""
        try:
            data, received = fds.recv_fds(self.socket, MAX_MESSAGE, MAX_DESCRIPTORS)
        except OSError:
            data, received = b"", []
        if not data:
            self.close()
            return
        try:
            reply = self.keeper.handle(fastjson.loads(data), received)
        except (ValueError, KeyError, TypeError, OSError, IndexError) as error:
            fds.close_quietly(*received)
            reply = {"error": f"{type(error).__name__}: {error}"}
        try:
            self.socket.send(fastjson.dump_bytes(reply))
        except OSError:
            self.close()

    def close(self) -> None:
        """The daemon went away; everything held stays."""
        self.keeper.loop.drop(self.socket.fileno())
        self.socket.close()
        self.keeper.controls.discard(self)


class Keeper:
    """Everything that is held."""

    def __init__(self, listener: _socket.socket) -> None:
        self.loop = Loop()
        self.listener = listener
        self._place = _inode(listener.getsockname())
        self.controls: set[Control] = set()
        self.zones: dict[str, dns.Zone] = {}
        self.names: dict[str, Names] = {}
        self.ports: dict[str, TcpForward | UdpForward] = {}
        self.pending: set[Upstream] = set()
        self._turn = 0
        self.loop.add(listener.fileno(), self)

    def ready(self, fd: int, events: int) -> None:
        """A daemon connects."""
        try:
            connection = fds.accept(self.listener)
        except OSError:
            return
        connection.setblocking(True)
        Control(self, connection)

    def turn(self) -> int:
        """A counter for round robin."""
        self._turn += 1
        return self._turn

    def query(self, names: Names, data: bytes, reply: UdpReply | TcpQueries) -> None:
        """Answer, forward, or refuse."""
        response = names.answer(data, udp=reply.is_udp)
        if response is None:
            if not names.forward or not names.servers:
                response = dns.failure(data, dns.NXDOMAIN)
            elif len(self.pending) >= MAX_PENDING:
                response = dns.failure(data, dns.SERVFAIL)
            else:
                Upstream(self, names, data, reply)
                return
        if response:
            reply.send(response)

    def handle(self, message: dict[str, Any], received: list[int]) -> dict[str, Any]:
        """Do what a daemon's message says."""
        operation = message["op"]
        if operation == "batch":
            return self._batch(message["messages"], received)
        if operation == "zone":
            names = {name.lower(): list(found) for name, found in message["names"].items()}
            self.zones[message["network"]] = dns.Zone(
                message["name"], names, dict(message["pointers"])
            )
            self._zone_changed(message["network"])
        elif operation == "zone-drop":
            self.zones.pop(message["network"], None)
            self._zone_changed(message["network"])
        elif operation == "names":
            self._names(message, received)
        elif operation == "names-drop":
            held = self.names.pop(message["container"], None)
            if held is not None:
                held.close()
        elif operation == "port":
            self._port(message, received)
        elif operation == "port-target":
            forward = self.ports.get(message["key"])
            if forward is not None:
                forward.retarget((message["target"][0], message["target"][1]))
        elif operation == "port-drop":
            forward = self.ports.pop(message["key"], None)
            if forward is not None:
                forward.close()
        elif operation == "grants":
            held = self.names.get(message["container"])
            grants = held.grants if held is not None else None
            return {
                "ok": True,
                "grants": grants.listing() if grants else [],
                "refused": grants.refused if grants else {},
            }
        elif operation == "regrant":
            for each in self.names.values():
                if each.grants is not None:
                    each.grants.give_again()
        elif operation == "list":
            return {
                "ok": True,
                "version": PROTOCOL,
                "containers": sorted(self.names),
                "ports": sorted(self.ports),
                "zones": sorted(self.zones),
            }
        else:
            raise ValueError(f"unknown operation {operation!r}")
        return {"ok": True}

    def _batch(self, messages: list[dict[str, Any]], received: list[int]) -> dict[str, Any]:
        taken = 0
        for each in messages:
            count = each.get("descriptors", 0)
            own = received[taken : taken + count]
            taken += count
            try:
                self.handle(each, own)
            except (ValueError, KeyError, TypeError, OSError, IndexError) as error:
                fds.close_quietly(*own, *received[taken:])
                return {"error": f"{each.get('op')}: {type(error).__name__}: {error}"}
        return {"ok": True}

    def _zone_changed(self, network: str) -> None:
        for each in self.names.values():
            if network in each.networks:
                each.zones_changed()

    def _names(self, message: dict[str, Any], received: list[int]) -> None:
        container = message["container"]
        if received:
            old = self.names.pop(container, None)
            if old is not None:
                old.close()
            udp, tcp = (_socket.socket(fileno=fd) for fd in received)
            self.names[container] = Names(self, udp, tcp)
        if container in self.names:
            self.names[container].configure(message)

    def _port(self, message: dict[str, Any], received: list[int]) -> None:
        socket = _socket.socket(fileno=received[0])
        socket.setblocking(False)
        target = (message["target"][0], message["target"][1])
        old = self.ports.pop(message["key"], None)
        if old is not None:
            old.close()
        make = UdpForward if message["protocol"] == "udp" else TcpForward
        self.ports[message["key"]] = make(self.loop, socket, target)

    @property
    def idle(self) -> bool:
        """Nothing held, nobody connected."""
        return not (self.names or self.ports or self.controls)

    @property
    def forsaken(self) -> bool:
        """No daemon is connected and none can come: the socket's file is gone, or another keeper's."""
        return not self.controls and _inode(self.listener.getsockname()) != self._place

    def run(self) -> None:
        """Serve until idle for a while, or out of reach."""
        idle_since = time.monotonic()
        while True:
            busy = self.pending or self.loop.tickers
            self.loop.run_once(0.5 if busy else 10.0)
            now = time.monotonic()
            for upstream in list(self.pending):
                upstream.tick(now)
            for ticker in list(self.loop.tickers):
                ticker.tick(now)
            if not self.idle:
                idle_since = now
            elif now - idle_since > 5.0:
                return
            if self.forsaken:
                return


def _inode(path: str) -> tuple[int, int]:
    """Which file this is; (0, 0) where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_dev, stat.st_ino


def listen(path: str) -> _socket.socket:
    """The control socket: pathname, mode 0600; never in the abstract namespace (CVE-2020-15257)."""
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(8)
    return listener


def main(arguments: list[str]) -> None:
    """`keeper RUN_DIR READY_FD`: one byte on READY_FD when the socket answers."""
    run, ready = arguments[0], int(arguments[1])
    os.environ.clear()
    listener = listen(run + "/keeper.sock")
    os.write(ready, b"1")
    os.close(ready)
    keeper = Keeper(listener)
    keeper.run()
    if not keeper.forsaken:
        os.unlink(run + "/keeper.sock")


if __name__ == "__main__":
    main(sys.argv[1:])
