"""Packets of JSON with descriptors over SOCK_SEQPACKET: how engine, launcher and shims carry the protocol.

A packet holds one JSON object. Bodies over INLINE_LIMIT (an exec with a megabyte of environment) travel in a memfd
that is the packet's last descriptor; the packet then reads {"body": LENGTH}. Descriptors are always received
close-on-exec. Whoever receives a packet owns its descriptors.
"""

from __future__ import annotations

import _socket
import posix

from sampan.linux import fastjson, fds
from sampan.shim.protocol import BODY_LIMIT, INLINE_LIMIT, MAX_FDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Message = dict[str, Any]

_MFD_CLOEXEC = 1


class Broken(OSError):
    """The other side sent something that is not a message of ours."""


class Channel:
    """One end of a packet socket. Owns the socket."""

    __slots__ = ("socket",)

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket

    @classmethod
    def from_fd(cls, fd: int) -> Channel:
        """Takes ownership of `fd`."""
        return cls(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd))

    @classmethod
    def connect(cls, path: str) -> Channel:
        """OSError when nobody listens there."""
        socket = _new_socket()
        try:
            _through_directory(path, socket.connect)
        except BaseException:
            socket.close()
            raise
        return cls(socket)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, message: Message, descriptors: Sequence[int] = (), *, wait: bool = True) -> None:
        """Give a message and copies of descriptors. Without `wait`: BlockingIOError while the queue is full."""
        flags = 0 if wait else _socket.MSG_DONTWAIT
        data = fastjson.dump_bytes(message)
        if len(data) <= INLINE_LIMIT:
            fds.send_fds(self.socket, data, list(descriptors), flags)
            return
        body = posix.memfd_create("sampan-message", _MFD_CLOEXEC)
        try:
            fds.write_all(body, data)
            head = fastjson.dump_bytes({"body": len(data)})
            fds.send_fds(self.socket, head, [*descriptors, body], flags)
        finally:
            posix.close(body)

    def receive(self, *, wait: bool = True) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors; None at end of file. Without `wait`: BlockingIOError if none is there.

        `Broken` for what is no message; the descriptors that came with it are closed then.
        """
        flags = 0 if wait else _socket.MSG_DONTWAIT
        try:
            data, received = fds.recv_fds(self.socket, INLINE_LIMIT + 1, MAX_FDS, flags)
        except ConnectionResetError:
            return None
        if not data and not received:
            return None
        try:
            message = fastjson.loads(data)
            if isinstance(message, dict) and len(message) == 1 and "body" in message and received:
                message = fastjson.loads(_read_body(received.pop(), message["body"]))
            if not isinstance(message, dict):
                raise ValueError("a message is a JSON object")
        except ValueError as error:
            fds.close_quietly(*received)
            raise Broken(f"bad message: {error}") from error
        return message, received


def pair() -> tuple[Channel, Channel]:
    """Two connected channels, close-on-exec."""
    left, right = fds.socketpair()
    return Channel(left), Channel(right)


def listen(path: str) -> _socket.socket:
    """A listening packet socket at `path`, mode 0600 from its birth; whatever stood there is replaced."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        pass
    socket = _new_socket()
    old = posix.umask(0o177)
    try:
        _through_directory(path, socket.bind)
    except BaseException:
        socket.close()
        raise
    finally:
        posix.umask(old)
    socket.listen(64)
    return socket


def accept(socket: _socket.socket) -> Channel:
    """BlockingIOError if nobody waits and the listener does not block."""
    fd, _ = socket._accept()  # type: ignore[attr-defined]
    return Channel.from_fd(fd)


def _new_socket() -> _socket.socket:
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def _through_directory(path: str, act: Any) -> None:
    """`act(path)`, by way of a descriptor of its directory when the path is longer than sun_path takes (unix(7))."""
    if len(path.encode("utf-8", "surrogateescape")) <= 100:
        act(path)
        return
    directory, _, name = path.rpartition("/")
    fd = posix.open(directory or "/", posix.O_PATH | posix.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{fd}/{name}")
    finally:
        posix.close(fd)


def _read_body(fd: int, length: object) -> bytes:
    try:
        if not isinstance(length, int) or not 0 <= length <= BODY_LIMIT:
            raise ValueError("message body too large")
        data = posix.pread(fd, length, 0)
        if len(data) != length:
            raise ValueError("message body shorter than announced")
        return data
    finally:
        posix.close(fd)
