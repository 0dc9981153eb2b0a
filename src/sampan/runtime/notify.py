"""Handing a seccomp listener to the agent that answers its calls (SCMP_ACT_NOTIFY, listenerPath).

The descriptor appears in the child when it installs its filter, and from then on any system call of the
child may wait for the agent that does not have it yet, sending it included. So the child does no call at all:

    CHILD                                                  PARENT
      |  LISTENER: number, path, metadata + shared page      |
      |----------------------------------------------------->|
      |  seccomp(2): the descriptor now exists               |
      |  page[0] = 1                                         |  sees it
      |                                                      |  pidfd_getfd(number), connect, send to the agent
      |                                          page[1] = 1 |
      |  sees it, execve                                     |

Both sides look at memory in turns; it takes some 0.1 ms.
Source: seccomp_unotify(2); runtime-spec config-linux.md "The Container Process State".
"""

from __future__ import annotations

import _socket
import posix
from time import sleep

from sampan.linux.fastjson import dump_bytes
from sampan.linux.fds import send_fds
from sampan.linux.syscalls import memfd_page, pidfd_getfd, seccomp_filter

from . import channel
from .channel import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .seccomp_cache import Program
    from .steps import Stage

NEW_LISTENER = 8
PAUSE, TRIES = 0.00005, 200_000  # ten seconds


def install_with_listener(stage: Stage, program: Program) -> None:
    """The child's side."""
    fd, page = memfd_page()
    number = min(_lowest_free(), fd)  # what the kernel will give next, once `fd` is closed
    needed = "needed" if program.uses_notify else ""
    text = f"{number}\0{program.listener_path}\0{program.listener_metadata}\0{needed}"
    channel.send(stage.channel, channel.LISTENER, text, (fd,))
    posix.close(fd)
    seccomp_filter(program.instructions, program.flags | NEW_LISTENER)
    page[0] = 1
    while not page[1]:
        pass


def _lowest_free() -> int:
    fd = posix.dup(0)
    posix.close(fd)
    return fd


def hand_over(
    sock: _socket.socket, pidfd: int, text: str, fds: list[int], state: dict[str, Any]
) -> None:
    """The parent's side, upon LISTENER. `state` is the container's state document."""
    number, path, metadata, needed = text.split("\0")
    page = fds[0]
    try:
        _wait_for(page, sock)
        listener = pidfd_getfd(pidfd, int(number))
        try:
            _send_or_pass(path, metadata, listener, state, needed=bool(needed))
        finally:
            posix.close(listener)
        posix.pwrite(page, b"\1", 1)
    except OSError as error:
        errno, why = channel.describe_error(error)
        raise LaunchError(
            f"failed to connect with seccomp agent {path}: {why}", errno=errno
        ) from error
    finally:
        posix.close(page)


def _wait_for(page: int, sock: _socket.socket) -> None:
    for _ in range(TRIES):
        if posix.pread(page, 1, 0) == b"\1":
            return
        _raise_if_failed(sock)
        sleep(PAUSE)
    raise LaunchError("the seccomp filter was not installed in time")


def _raise_if_failed(sock: _socket.socket) -> None:
    """The child says so when seccomp(2) failed; it says nothing while all is well."""
    try:
        data = sock.recv(65536, _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    if data[:1] == channel.FAILED:
        raise channel.parse_failure(data[1:].decode("utf-8", "replace"))
    raise LaunchError("the process ended before its seccomp filter was installed")


def _send_or_pass(
    path: str, metadata: str, listener: int, state: dict[str, Any], *, needed: bool
) -> None:
    """An agent that no rule would ever ask may be missing (runc); where it is there it gets to know (crun)."""
    try:
        _send(path, metadata, listener, state)
    except OSError:
        if needed:
            raise


def _send(path: str, metadata: str, listener: int, state: dict[str, Any]) -> None:
    message: dict[str, Any] = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": state["pid"],
        "state": state,
    }
    if metadata:
        message["metadata"] = metadata
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
        send_fds(sock, dump_bytes(message), (listener,))
    finally:
        sock.close()
