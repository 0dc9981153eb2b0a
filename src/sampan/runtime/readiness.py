"""sd_notify for containers: when runtime runs under NOTIFY_SOCKET, the program may say READY=1 to the service manager.

    systemd  <-- READY=1 --  runtime  <-- any datagram --  program, on $NOTIFY_SOCKET/notify in the container

The manager's own socket is not lent out: by it a container could name another main process or store descriptors.
The container gets a directory of ours, mounted where NOTIFY_SOCKET pointed, with a socket in it (crun's layout); of
what arrives there only READY=1 is passed on. `run` and `start` listen: the socket is made anew by whoever does.
Sources: sd_notify(3), systemd.service(5) "Type=notify".
"""

from __future__ import annotations

import _socket
import posix
import select

from sampan.linux.fds import send_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime import Spec

NAME = "notify"
_FALLBACK = "/run/notify"  # inside, where the manager's socket has no path (abstract: "@...")
_BARRIER_MS = 5000
_OPTIONS = ["bind", "nosuid", "nodev", "noexec", "ro"]


def add_to_spec(spec: Spec, directory: str, manager: str) -> None:
    """The mount and the variable. `directory` is the container's state directory, `manager` $NOTIFY_SOCKET."""
    inside = manager if manager.startswith("/") else _FALLBACK
    spec["mounts"] = [
        *(spec.get("mounts") or ()),
        {
            "destination": inside,
            "type": "bind",
            "source": f"{directory}/{NAME}",
            "options": _OPTIONS,
        },
    ]
    others = [
        entry
        for entry in spec["process"].get("env") or ()
        if not entry.startswith("NOTIFY_SOCKET=")
    ]
    spec["process"]["env"] = [*others, f"NOTIFY_SOCKET={inside}/{NAME}"]


def make_directory(directory: str) -> None:
    """What the container will see. Only the runtime writes there; sending needs no more than to find the socket."""
    posix.mkdir(f"{directory}/{NAME}", 0o755)
    posix.chmod(f"{directory}/{NAME}", 0o755)


class Readiness:
    """Waits for the container's READY=1 and passes it on, once."""

    def __init__(self, sock: _socket.socket, manager: str) -> None:
        self._sock = sock
        self._manager = manager
        self.fd = sock.fileno()
        self.main_pid = (
            0  # told to the manager as well, where nobody of ours stays to be the main process
        )

    def handle(self) -> bool:
        """One datagram; False when there is no more to wait for."""
        text = self._sock.recv(4096)
        if b"READY=1" not in text.split(b"\n"):
            return True
        self._tell()
        return False

    def wait(self, pidfd: int) -> None:
        """Until the container is ready, or has ended."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll()]
            if self.fd in ready and not self.handle():
                return
            if pidfd in ready and self.fd not in ready:
                return

    def _tell(self) -> None:
        address = self._manager
        if address.startswith("@"):
            address = "\0" + address[1:]
        out = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            out.connect(address)
            out.send(b"READY=1\n")
            if self.main_pid:
                out.send(b"MAINPID=%d\n" % self.main_pid)
                _barrier(out)
        except OSError:
            pass  # the manager went away: that is no reason to end a container that is well
        finally:
            out.close()

    def close(self) -> None:
        self._sock.close()


def _barrier(out: _socket.socket) -> None:
    """Wait until the manager has read it all: it looks up by our pid who speaks, and we are about to leave."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    try:
        send_fds(out, b"BARRIER=1", (writer,))
    finally:
        posix.close(writer)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    poller.poll(_BARRIER_MS)
    posix.close(reader)


def listen(directory: str, manager: str) -> Readiness | None:
    """The socket in the container's directory; None for a container that was made without one."""
    try:
        place = posix.open(
            f"{directory}/{NAME}", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
        )
    except FileNotFoundError:
        return None
    path = f"/proc/self/fd/{place}/{NAME}"  # by a short name: sun_path holds 107 bytes
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        try:
            posix.unlink(path)
        except FileNotFoundError:
            pass
        sock.bind(path)
        posix.chmod(path, 0o777)
    finally:
        posix.close(place)
    return Readiness(sock, manager)
