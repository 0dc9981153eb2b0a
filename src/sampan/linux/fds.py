"""Owned descriptors, pipes and socket pairs, and passing descriptors between processes.

Every descriptor has one owner. `Fd` closes once, `take()` hands the number on, `with` bounds a life.
Everything is close-on-exec from birth; what an execve may inherit is made inheritable by the one line
that wants it. `_socket` is used without `socket` around it, which would pull in enum and selectors.
"""

from __future__ import annotations

import _socket
import posix
from _struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

MAX_FDS_PER_MESSAGE = 253  # SCM_MAX_FD, include/net/scm.h


class Fd:
    """One descriptor with one owner."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self.fd

    def take(self) -> int:
        """The number, now the caller's to close."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close once; closing again is nothing."""
        fd = self.take()
        if fd >= 0:
            posix.close(fd)

    def __repr__(self) -> str:
        return f"Fd({self.fd})"


def close_quietly(*fds: int) -> None:
    """Close what is open among these; for clean-up paths, where the first error is the one to tell."""
    for fd in fds:
        if fd >= 0:
            try:
                posix.close(fd)
            except OSError:
                pass


def pipe() -> tuple[Fd, Fd]:
    """(read end, write end), close-on-exec."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    return Fd(reader), Fd(writer)


def socketpair(kind: int = _socket.SOCK_SEQPACKET) -> tuple[_socket.socket, _socket.socket]:
    """A connected pair of unix sockets, close-on-exec; message boundaries kept by default."""
    return _socket.socketpair(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC, 0)


def accept(listener: _socket.socket) -> _socket.socket:
    """The next connection, non-blocking and close-on-exec, without the weight of `socket`."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]  # accept4(2); in C's socket, not in its stubs
    connection = _socket.socket(fileno=fd)
    connection.setblocking(False)
    return connection


def send_fds(
    sock: _socket.socket, data: bytes, fds: list[int] | tuple[int, ...] = (), flags: int = 0
) -> int:
    """Send bytes (at least one) with descriptors. The receiver gets copies; ours stay open."""
    if not fds:
        return sock.send(data, flags | _socket.MSG_NOSIGNAL)
    if len(fds) > MAX_FDS_PER_MESSAGE:
        raise ValueError(f"at most {MAX_FDS_PER_MESSAGE} descriptors fit in a message")
    packed = pack(f"={len(fds)}i", *fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
    return sock.sendmsg([data], ancillary, flags | _socket.MSG_NOSIGNAL)


def recv_fds(
    sock: _socket.socket, size: int = 65536, max_fds: int = MAX_FDS_PER_MESSAGE, flags: int = 0
) -> tuple[bytes, list[int]]:
    """(bytes, descriptors) of one message; b"" and [] when the peer is gone. Descriptors are close-on-exec.

    A message cut short (more bytes or descriptors than asked for) is an error: half a request must
    not be acted on, and the descriptors that came with it are closed.
    """
    data, ancillary, message_flags, _ = sock.recvmsg(
        size, _socket.CMSG_SPACE(max_fds * 4), flags | _socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            count = len(packed) // 4
            fds += unpack(f"={count}i", packed[: count * 4])
    if message_flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        close_quietly(*fds)
        raise OSError(90, posix.strerror(90))  # EMSGSIZE
    return data, fds


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte; short writes are continued."""
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]


def read_all(fd: int, limit: int = 1 << 24) -> bytes:
    """Everything up to end of file; ValueError past `limit` bytes."""
    parts: list[bytes] = []
    total = 0
    while chunk := posix.read(fd, 65536):
        total += len(chunk)
        if total > limit:
            raise ValueError(f"more than {limit} bytes")
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)
