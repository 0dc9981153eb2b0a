"""The streams of one process: its output to the log and to whoever is attached, the clients' input to it.

                     +--> log (LineLog)                      never makes anybody wait but for the disk
    stdout, stderr --+--> capture (health checks)            bounded
     or pty master   +--> client, client, ...                a slow one stops the reading, so the process waits

    client, client, ... --> stdin pipe or pty master         a full pipe stops the reading from the clients

Nothing is buffered beyond one read: while any client has unsent bytes the process's pipes are not read, so memory
stays bounded whatever is written and whoever does not read (CVE-2022-31030 and its kin). A client that asked for the
log first reads the files at its own pace and joins the live ones at the moment it has reached the end: there is one
thread, so nothing is missed and nothing comes twice.

Framing (Engine API, "Stream format"): 1 byte stream, 3 zero bytes, 4 bytes length big endian, then the bytes; raw where
there is a tty.
"""

from __future__ import annotations

import _socket
import posix

from sampan.linux.fds import close_quietly
from sampan.linux.syscalls import fcntl
from sampan.shim.logread import LogReader, Presenter
from sampan.shim.loop import POLLERR, POLLHUP, POLLIN, POLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.shim.logs import LogWriter
    from sampan.shim.loop import Loop

CHUNK = 64 * 1024
_HEADS = {"stdout": b"\x01\x00\x00\x00", "stderr": b"\x02\x00\x00\x00"}
_F_SETPIPE_SZ = 1031
_BIG_PIPE = 1 << 20


class Client:
    """One attached connection. Owns its descriptor."""

    def __init__(
        self,
        fd: int,
        *,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        framed: bool = True,
        detach_keys: bytes = b"",
        preread: bytes = b"",
        name: str = "",
    ) -> None:
        self.fd = fd
        self.stdin = stdin
        self.framed = framed
        self.wanted = {"stdout": stdout, "stderr": stderr}
        self.name = name
        self.keys = DetachKeys(detach_keys)
        self.preread = preread
        self.replay: LogReader | None = None
        self.presenter = Presenter(framed=framed)
        self.live = True  # goes on after a replay
        self.ending = False  # close once everything is sent
        self.input_open = True
        self.hung_up = False
        self._unsent: list[bytes] = []

    @property
    def congested(self) -> bool:
        return bool(self._unsent)

    def output(self, stream: str, data: bytes) -> bool:
        """Send process output if this client takes it; False when the client is gone."""
        if not self.wanted[stream] or self.replay is not None or not self.live:
            return True
        if self.framed:
            return self.send([_HEADS[stream] + len(data).to_bytes(4, "big"), data])
        return self.send([data])

    def send(self, parts: list[bytes]) -> bool:
        if self._unsent:
            self._unsent += parts
            return True
        try:
            sent = posix.writev(self.fd, parts)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        self._unsent = _after(parts, sent)
        return True

    def flush(self) -> bool:
        """Send what is left; False when the client is gone."""
        if not self._unsent:
            return True
        try:
            sent = posix.writev(self.fd, self._unsent)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._unsent = _after(self._unsent, sent)
        return True

    def let_go(self) -> None:
        """Close our copy only: whoever gave it to us goes on with his."""
        fd, self.fd = self.fd, -1
        close_quietly(fd)

    def close(self) -> None:
        """End the connection so that the peer reads all that was sent and then end of file.

        Closing a unix socket with unread bytes in it gives the peer ECONNRESET instead: shut down and drain first.
        """
        if self.replay is not None:
            self.replay.close()
            self.replay = None
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            socket = _socket.socket(fileno=fd)
        except OSError:  # not a socket
            posix.close(fd)
            return
        try:
            socket.shutdown(_socket.SHUT_RDWR)
            while socket.recv(CHUNK, _socket.MSG_DONTWAIT):
                pass
        except OSError:
            pass
        socket.close()


def _after(parts: list[bytes], sent: int) -> list[bytes]:
    """What remains of `parts` when `sent` bytes went out."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [part[sent:] if sent else part, *parts[index + 1 :]]
        sent -= len(part)
    return []


class DetachKeys:
    """Looks for the detach sequence in what a client types."""

    __slots__ = ("_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def filter(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes for the process, was the sequence typed?). The beginning of a sequence is held back until it is
        known whether the rest follows."""
        keys = self._keys
        if not keys or (not self._matched and keys[0] not in data):
            return data, False
        out = bytearray()
        for byte in data:
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    return bytes(out), True
                continue
            if self._matched:
                out += keys[: self._matched]
                self._matched = 0
                if byte == keys[0]:
                    self._matched = 1
                    continue
            out.append(byte)
        return bytes(out), False


class Streams:
    """A process's stdio. `outputs` and `stdin_fd` are ours to close."""

    def __init__(
        self,
        loop: Loop,
        *,
        tty: bool = False,
        stdin_once: bool = False,
        log: LogWriter | None = None,
        capture: int = -1,
        on_end: Callable[[], None] | None = None,
        on_client_end: Callable[[Client, bool], None] | None = None,
    ) -> None:
        self._loop = loop
        self.tty = tty
        self._stdin_once = stdin_once
        self._log = log
        self._capture_limit = capture
        self.captured = bytearray()
        self.truncated = False
        self._on_end = on_end
        self._on_client_end = on_client_end
        self._outputs: dict[int, str] = {}
        self._enlarged: set[int] = set()
        self._stdin = -1
        self._input: list[bytes] = []  # accepted from clients, not yet taken by the process
        self._close_stdin_when_written = False
        self._paused = False
        self._ended = False  # all output was read
        self._released = False  # and the exit is known: connections may end
        self.clients: list[Client] = []

    # --- wiring ------------------------------------------------------------------------------------------------

    def open(self, outputs: dict[int, str], stdin: int = -1) -> None:
        """Begin to pump: `outputs` maps our ends to "stdout"/"stderr"; with a tty both are the pty master."""
        self._outputs = dict(outputs)
        self._stdin = stdin
        for fd in {*outputs, stdin} - {-1}:
            posix.set_blocking(fd, False)
        for fd in outputs:
            self._watch(fd)
        if not outputs:
            self._finish()
        for client in list(self.clients):
            self._watch_client(client)
            self._take_preread(client)

    def add_client(
        self, client: Client, *, replay: LogReader | None = None, live: bool = True
    ) -> None:
        """Attach a connection. Before `open` it waits; after the end it gets its replay and end of file."""
        posix.set_blocking(client.fd, False)
        client.replay = replay
        client.live = live
        self.clients.append(client)
        if self._released or not live:
            client.ending = True
        if self._outputs or self._ended:
            self._watch_client(client)
            self._take_preread(client)
        if replay is not None:
            self._advance(client)
        else:
            self._settle(client)

    @property
    def ended(self) -> bool:
        """All output has been read."""
        return self._ended

    @property
    def idle(self) -> bool:
        """All output has been read, recorded and delivered."""
        return self._ended and not self.clients

    def abandon(self) -> None:
        """Stop reading output (somebody outside holds our pipes open); clients get what was read."""
        for fd in list(self._outputs):
            self._end_output(fd)

    def drop_clients(self) -> None:
        for client in list(self.clients):
            self._drop(client)

    def close(self) -> None:
        """Give everything back at once."""
        self.drop_clients()
        self.close_stdin()
        for fd in list(self._outputs):
            self._end_output(fd)

    # --- output ------------------------------------------------------------------------------------------------

    def _watch(self, fd: int) -> None:
        """Ask poll for what one of our ends can do now. A pty master is output and input in one."""
        events = POLLIN if fd in self._outputs and not self._paused else 0
        if fd == self._stdin and self._input:
            events |= POLLOUT
        if events:
            self._loop.watch(fd, events, lambda revents: self._ready(fd, revents))
        else:
            self._loop.unwatch(fd)

    def _ready(self, fd: int, revents: int) -> None:
        if fd == self._stdin and revents & (POLLOUT | POLLERR):
            self._write_input()
        if fd in self._outputs and revents & (POLLIN | POLLHUP | POLLERR):
            self._read_output(fd)

    def _read_output(self, fd: int) -> None:
        if self._paused:
            return
        try:
            data = posix.read(fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last slave of the pty is closed
            data = b""
        if not data:
            self._end_output(fd)
            return
        if len(data) == CHUNK and fd not in self._enlarged:
            self._enlarge(fd)
        self._deliver(self._outputs[fd], data)

    def _enlarge(self, fd: int) -> None:
        """A process that fills its pipe gets a bigger one, so that it and we change turns less often."""
        self._enlarged.add(fd)
        try:
            fcntl(fd, _F_SETPIPE_SZ, _BIG_PIPE)
        except OSError:  # over the user's limit of pipe pages, or a pty
            pass

    def _deliver(self, stream: str, data: bytes) -> None:
        if self._log is not None:
            self._log.write(stream, data)
        if self._capture_limit >= 0:
            self._capture(data)
        for client in list(self.clients):
            if not client.output(stream, data):
                self._drop(client)
            elif client.congested:
                self._watch_client(client)
                self._pause()

    def _capture(self, data: bytes) -> None:
        room = self._capture_limit - len(self.captured)
        self.captured += data[: max(room, 0)]
        self.truncated = self.truncated or len(data) > room

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for fd in self._outputs:
                self._watch(fd)

    def _resume(self) -> None:
        """Read on if nobody is behind any more."""
        if self._paused and not any(
            client.congested and client.replay is None for client in self.clients
        ):
            self._paused = False
            for fd in self._outputs:
                self._watch(fd)

    def _end_output(self, fd: int) -> None:
        stream = self._outputs.pop(fd)
        self._loop.unwatch(fd)
        if fd != self._stdin:
            posix.close(fd)
        if self._log is not None and stream not in self._outputs.values():
            self._log.finish(stream)
        if not self._outputs:
            self._finish()

    def _finish(self) -> None:
        """The process has said all it will."""
        if self._ended:
            return
        self._ended = True
        self.close_stdin()
        if self._on_end is not None:
            self._on_end()

    def release_clients(self) -> None:
        """Let clients see the end of the stream, once they have all that was said. Not before the exit code has
        been told to the engine: a client that sees the end asks the engine for it at once."""
        self._released = True
        for client in list(self.clients):
            client.ending = True
            self._settle(client)

    # --- clients -----------------------------------------------------------------------------------------------

    def _watch_client(self, client: Client) -> None:
        """Ask poll for exactly what this client can do now; hang-up is always reported."""
        events = 0
        if client.input_open and not self._input:
            events |= POLLIN
        if client.congested or client.replay is not None:
            events |= POLLOUT
        if client.hung_up and not events:
            self._loop.unwatch(client.fd)  # its last input waits for room in the process's stdin
        else:
            self._loop.watch(client.fd, events, lambda ready: self._client_ready(client, ready))

    def _client_ready(self, client: Client, revents: int) -> None:
        if revents & POLLIN and client.input_open:
            self._read_client(client)
        if client.fd < 0:
            return
        if revents & (POLLHUP | POLLERR):
            # Nobody is there to read, but what was typed before is still queued, a chunk a turn.
            if client.stdin and client.input_open and self._stdin >= 0:
                client.hung_up = True
                self._watch_client(client)
            else:
                self._drop(client)
            return
        if revents & POLLOUT:
            if not client.flush():
                self._drop(client)
                return
            self._advance(client)

    def _advance(self, client: Client) -> None:
        """Send the next block of a replay, or leave replay when the end of the log is reached."""
        replay = client.replay
        if replay is not None and not client.congested:
            runs = replay.read()
            if runs:
                if not client.send([client.presenter.present(runs)]):
                    self._drop(client)
                    return
            else:
                client.replay = None
                replay.close()
                self._send_unrecorded(client)
        self._settle(client)

    def _send_unrecorded(self, client: Client) -> None:
        """The beginning of a line is not in the log yet, but whoever was attached has seen it."""
        if self._log is None or not client.live:
            return
        for stream in ("stdout", "stderr"):
            rest = self._log.pending(stream)
            if rest and not client.output(stream, rest):
                return

    def _settle(self, client: Client) -> None:
        """After anything changed for a client: close it if it is done, watch it, read on if it had stopped us."""
        if client.fd < 0:
            return
        if client.ending and client.replay is None and not client.congested:
            self._drop(client)
            return
        if self._outputs or self._ended:
            self._watch_client(client)
        self._resume()

    def _drop(self, client: Client, *, detached: bool = False) -> None:
        if client not in self.clients:
            return
        self.clients.remove(client)
        self._loop.unwatch(client.fd)
        client.close()
        if client.stdin and client.input_open and not detached:
            client.input_open = False
            self._client_input_ended()
        self._resume()
        if self._on_client_end is not None:
            self._on_client_end(client, detached)

    # --- input -------------------------------------------------------------------------------------------------

    def _take_preread(self, client: Client) -> None:
        data, client.preread = client.preread, b""
        if data:
            self._accept(client, data)

    def _read_client(self, client: Client) -> None:
        try:
            data = posix.read(client.fd, CHUNK // 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._accept(client, data)
            return
        client.input_open = False
        if not client.stdin:
            self._watch_client(client)  # it shut its side; output goes on until it closes
            return
        if self._stdin_once and not self.tty:
            self._client_input_ended()
            self._watch_client(client)
        else:
            # As in Docker: a client that attached to type ends with its typing (moby container/stream/attach.go).
            client.ending = True
            self._settle(client)

    def _accept(self, client: Client, data: bytes) -> None:
        """Bytes from a client on their way to the process."""
        if not client.stdin:
            return
        detached = False
        if self.tty:
            data, detached = client.keys.filter(data)
        if data and self._stdin >= 0:
            self._input.append(data)
            self._write_input()
        if detached:
            self._drop(client, detached=True)

    def _write_input(self) -> None:
        while self._input:
            try:
                sent = posix.write(self._stdin, self._input[0])
            except BlockingIOError:
                break
            except OSError:  # EPIPE: the process closed its stdin; what is typed goes nowhere
                self._input.clear()
                self.close_stdin()
                break
            self._input = _after(self._input, sent)
        self._watch_stdin()
        if not self._input and self._close_stdin_when_written:
            self.close_stdin()

    def _watch_stdin(self) -> None:
        """Wait for room in the pipe, or take input again."""
        if self._stdin >= 0:
            self._watch(self._stdin)
        for client in self.clients:
            self._watch_client(client)

    def _client_input_ended(self) -> None:
        if self._stdin_once and not self.tty:
            self._close_stdin_when_written = True
            if not self._input:
                self.close_stdin()

    def close_stdin(self) -> None:
        """End of file for the process (a pty master stays open until the output has ended)."""
        fd = self._stdin
        if fd < 0 or fd in self._outputs:
            return
        self._stdin = -1
        self._input.clear()
        self._loop.unwatch(fd)
        close_quietly(fd)
