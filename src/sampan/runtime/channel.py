"""What a parent and the process it makes say to each other while a container starts.

One SOCK_SEQPACKET pair, one packet a message: a letter, then its text; descriptors beside it. Ending is a
message too: the socket is close-on-exec, so end of file means that execve succeeded (or the child died).

    PARENT                                            INIT
      |  clone3                                         |
      |                                    NEED_CGROUP  |  only where the cgroup needs a pid first (systemd)
      |<------------------------------------------------|
      |  GO                                             |
      |------------------------------------------------>|  joins cgroup and namespaces
      |                                       INIT_PID  |  only when a user namespace was joined: init is a second
      |<------------------------------------------------|  process, and this is its pid
      |                                        MAP_IDS  |  only with a new user namespace
      |<------------------------------------------------|
      |  GO (maps are written)                          |
      |------------------------------------------------>|  mounts everything
      |                                      RUN_HOOKS  |  only with prestart/createRuntime hooks, netDevices
      |<------------------------------------------------|
      |  GO                                             |
      |------------------------------------------------>|  pivot_root
      |                                CONSOLE + master |  only with a terminal
      |<------------------------------------------------|
      |                                          READY  |  state `created`
      |<------------------------------------------------|
      |  START                                          |
      |------------------------------------------------>|  credentials, seccomp, execve
      |                                      EXECUTING  |  only with a springboard: the pipe on which it reports
      |<------------------------------------------------|
      |                                    end of file  |  state `running`
      |<------------------------------------------------|

At any point: FAILED (errno, step, text), after which init leaves by _exit(1).
"""

from __future__ import annotations

import _socket
import posix

from sampan.errors import Internal
from sampan.linux.fds import recv_fds, send_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

MAP_IDS = b"m"
RUN_HOOKS = b"h"
CONSOLE = b"c"
LISTENER = b"l"
READY = b"r"
FAILED = b"f"
GO = b"g"
START = b"s"
WARNING = b"w"
INIT_PID = b"p"
NEED_CGROUP = b"k"
EXECUTING = b"x"


class LaunchError(Internal):
    """A container or a process in one could not be made.

    `step` names what was being done (LaunchPlan's own description), `errno` is 0 where no system call
    failed. The message is the text after runc's prefix, e.g. `exec: "foo": executable file not found in $PATH`.
    """

    def __init__(self, message: str, *, step: str = "", errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.errno = errno


class InitGone(LaunchError):
    """Init ended without a word: killed, most likely for its memory limit."""


def send(sock: socket, kind: bytes, payload: str = "", fds: tuple[int, ...] = ()) -> None:
    data = payload.encode("utf-8", "replace")[:32000]
    send_fds(sock, kind + data, fds)


def receive(sock: socket) -> tuple[bytes, str, list[int]]:
    """(kind, text, descriptors); kind is b"" when the other side is gone."""
    try:
        data, fds = recv_fds(sock, 65536, 16)
    except ConnectionResetError:
        return b"", "", []
    return data[:1], data[1:].decode("utf-8", "replace"), fds


def send_descriptor(socket_fd: int, payload: str, fd: int) -> None:
    """Pass a descriptor to a connected unix socket that we hold by number (console socket, seccomp agent)."""
    sock = _socket.socket(fileno=posix.dup(socket_fd))
    try:
        send_fds(sock, payload.encode(), (fd,))
    finally:
        sock.close()


def connect(path: str, kind: int = _socket.SOCK_STREAM) -> int:
    """Connect to a unix socket wherever it lies."""
    directory, _, name = path.rpartition("/")
    fd = posix.open(
        directory or ("/" if path.startswith("/") else "."), posix.O_PATH | posix.O_CLOEXEC
    )
    sock = _socket.socket(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")
        return sock.detach()
    except OSError as error:
        error.filename = path
        raise
    finally:
        posix.close(fd)
        sock.close()


def send_pidfd(path: str, pidfd: int) -> None:
    fd = connect(path)
    try:
        send_descriptor(fd, "pidfd", pidfd)
    finally:
        posix.close(fd)


def send_failure(sock: socket, *, number: int, step: str, text: str) -> None:
    send(sock, FAILED, f"{number}\0{step}\0{text}")


def parse_failure(payload: str) -> LaunchError:
    number, _, rest = payload.partition("\0")
    step, _, text = rest.partition("\0")
    return LaunchError(text, step=step, errno=int(number))


def describe_error(error: BaseException) -> tuple[int, str]:
    """(errno, text): an OSError as Go would word it, `no such file or directory` with a small letter."""
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or posix.strerror(error.errno)
        if text == posix.strerror(error.errno):
            text = text[:1].lower() + text[1:]
        notes = [n[8:] for n in getattr(error, "__notes__", ()) if n.startswith("kernel: ")]
        if notes:
            text += " (" + "; ".join(notes) + ")"
        return error.errno, text
    return 0, str(error) or type(error).__name__
