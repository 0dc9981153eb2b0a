"""Forwarding of connections and datagrams in user space, for the keeper's loop: bounded, non-blocking.

A published port's traffic is translated by the kernel; what comes here are connections from the host's loopback,
from containers, and to a family that the container does not have. Each TCP connection is two directions with one
buffer each: a side is read only while its buffer is empty, so a slow reader slows the writer and nothing grows.
A half-close travels on as a half-close.
"""

from __future__ import annotations

import _socket
import select
import time

from sampan.linux import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.network.keeper import Loop

IN, OUT, HUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLERR
CHUNK = 1 << 18
MAX_CONNECTIONS = 4096
MAX_UDP_PEERS = 1024
UDP_IDLE_S = 90.0


def family_of(address: str) -> int:
    """AF_INET6 where it has a colon."""
    return _socket.AF_INET6 if ":" in address else _socket.AF_INET


class TcpForward:
    """A listening stream socket whose connections go to one target."""

    def __init__(self, loop: Loop, listener: _socket.socket, target: tuple[str, int]) -> None:
        self.loop = loop
        self.listener = listener
        self.target = target
        self.connections: set[Connection] = set()
        loop.add(listener.fileno(), self)

    def retarget(self, target: tuple[str, int]) -> None:
        """Connections to come go to another address; those under way go on."""
        self.target = target

    def ready(self, fd: int, events: int) -> None:
        """Accept; refuse by closing when there are too many."""
        try:
            client = fds.accept(self.listener)
        except OSError:
            return
        if len(self.connections) >= MAX_CONNECTIONS:
            client.close()
            return
        try:
            Connection(self, client)
        except OSError:
            client.close()

    def close(self) -> None:
        """Stop listening; connections under way end with the container. Idempotent."""
        if self.listener.fileno() >= 0:
            self.loop.drop(self.listener.fileno())
            self.listener.close()
        for connection in list(self.connections):
            connection.close()


class Connection:
    """Two sockets and what is on its way between them."""

    def __init__(self, forward: TcpForward, client: _socket.socket) -> None:
        self.forward = forward
        self.loop = forward.loop
        self.client = client
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        self.server = _socket.socket(family_of(forward.target[0]), kind, forward.listener.proto)
        try:
            self.server.connect(forward.target)
        except BlockingIOError:
            pass
        except OSError:
            self.server.close()
            raise
        self.connected = False
        self.buffers: dict[int, memoryview] = {}
        self.finished: set[int] = set()
        self.fds = (client.fileno(), self.server.fileno())
        self.loop.add(client.fileno(), self, 0)
        self.loop.add(self.server.fileno(), self, OUT)
        forward.connections.add(self)

    def _other(self, fd: int) -> _socket.socket:
        return self.server if fd == self.fds[0] else self.client

    def ready(self, fd: int, events: int) -> None:
        """Move bytes one step."""
        if not self.connected:
            self._on_connected()
            return
        if events & OUT:
            self._flush(fd)
        if self.client.fileno() >= 0 and events & (IN | HUP | ERR):
            self._fill(fd)
        if self.client.fileno() >= 0:
            self._watch()

    def _on_connected(self) -> None:
        if self.server.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.close()
            return
        self.connected = True
        self._watch()

    def _fill(self, fd: int) -> None:
        """Read from `fd` what the other side shall get."""
        if fd in self.finished or self.buffers.get(fd):
            return
        source = self.client if fd == self.fds[0] else self.server
        try:
            data = source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self.buffers[fd] = memoryview(data)
            self._flush(self._other(fd).fileno())
            return
        self.finished.add(fd)
        try:
            self._other(fd).shutdown(_socket.SHUT_WR)
        except OSError:
            pass
        if len(self.finished) == 2:
            self.close()

    def _flush(self, fd: int) -> None:
        """Write to `fd` what came from the other side."""
        source = self.fds[1] if fd == self.fds[0] else self.fds[0]
        pending = self.buffers.get(source)
        if not pending:
            return
        sink = self.client if fd == self.fds[0] else self.server
        try:
            sent = sink.send(pending)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if sent == len(pending):
            del self.buffers[source]
        else:
            self.buffers[source] = pending[sent:]

    def _watch(self) -> None:
        for fd in self.fds:
            source = self.fds[1] if fd == self.fds[0] else self.fds[0]
            wanted = 0
            if fd not in self.finished and not self.buffers.get(fd):
                wanted |= IN
            if self.buffers.get(source):
                wanted |= OUT
            self.loop.change(fd, wanted)

    def close(self) -> None:
        """Idempotent."""
        if self.client.fileno() < 0:
            return
        for fd in self.fds:
            self.loop.drop(fd)
        self.client.close()
        self.server.close()
        self.buffers.clear()
        self.forward.connections.discard(self)


class UdpForward:
    """A bound datagram socket; each sender gets a socket of its own towards the target."""

    def __init__(self, loop: Loop, socket: _socket.socket, target: tuple[str, int]) -> None:
        self.loop = loop
        self.socket = socket
        self.target = target
        self.peers: dict[Any, tuple[_socket.socket, list[float]]] = {}
        self.senders: dict[int, Any] = {}
        loop.add(socket.fileno(), self)
        loop.tickers.append(self)

    def retarget(self, target: tuple[str, int]) -> None:
        """Datagrams to come go to another address."""
        for sender in list(self.peers):
            self._forget(sender)
        self.target = target

    def ready(self, fd: int, events: int) -> None:
        """A datagram from a sender, or an answer for one."""
        if fd == self.socket.fileno():
            self._from_sender()
        else:
            self._from_target(fd)

    def _from_sender(self) -> None:
        try:
            data, sender = self.socket.recvfrom(1 << 16)
        except OSError:
            return
        found = self.peers.get(sender)
        if found is None:
            if len(self.peers) >= MAX_UDP_PEERS:
                return
            kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            peer = _socket.socket(family_of(self.target[0]), kind)
            try:
                peer.connect(self.target)
            except OSError:
                peer.close()
                return
            found = (peer, [0.0])
            self.peers[sender] = found
            self.senders[peer.fileno()] = sender
            self.loop.add(peer.fileno(), self)
        found[1][0] = time.monotonic()
        try:
            found[0].send(data)
        except OSError:
            pass

    def _from_target(self, fd: int) -> None:
        sender = self.senders[fd]
        peer, last = self.peers[sender]
        try:
            data = peer.recv(1 << 16)
            last[0] = time.monotonic()
            self.socket.sendto(data, sender)
        except OSError:
            pass

    def tick(self, now: float) -> None:
        """Forget senders that were silent for long."""
        for sender, (_, last) in list(self.peers.items()):
            if now - last[0] > UDP_IDLE_S:
                self._forget(sender)

    def _forget(self, sender: Any) -> None:
        peer, _ = self.peers.pop(sender)
        self.senders.pop(peer.fileno(), None)
        self.loop.drop(peer.fileno())
        peer.close()

    def close(self) -> None:
        """Idempotent."""
        for sender in list(self.peers):
            self._forget(sender)
        if self.socket.fileno() >= 0:
            self.loop.drop(self.socket.fileno())
            self.socket.close()
        if self in self.loop.tickers:
            self.loop.tickers.remove(self)
