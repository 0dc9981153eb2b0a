"""Bytes between the person and a container: output taken apart, input passed on, terminals made raw and resized.

    pump(hijacked, ...)         the loop of run, exec, attach and start: one poll over the connection and stdin
    demultiplex(pieces, ...)    the same frames from an ordinary answer (logs)

A frame is 8 bytes (stream 1 or 2, three zeros, length in big endian) and its payload. With a terminal there are none.

Input is sent without blocking: a container that writes before it reads would otherwise stand against us for ever.
"""

from __future__ import annotations

import posix
import select

from sampan.cli.client import NOSIGNAL
from sampan.cli.failures import Detached, Failure, Refused
from sampan.cli.session import warn, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from sampan.cli.client import Client, Hijacked, Reply

CHUNK = 1 << 17
DONTWAIT = 0x40
SHUT_WR = 1
DEFAULT_DETACH = b"\x10\x11"
SIGWINCH = 28


class Output:
    """Where a stream's frames go: the payload of 1 to stdout, of 2 to stderr; raw bytes all to stdout."""

    __slots__ = ("_left", "_pending", "_target", "stderr", "stdout", "tty")

    def __init__(self, *, tty: bool, stdout: bool = True, stderr: bool = True) -> None:
        self.tty = tty
        self.stdout = stdout
        self.stderr = stderr
        self._pending = b""
        self._left = 0
        self._target = 1

    def feed(self, data: bytes) -> None:
        if self.tty:
            if self.stdout:
                write_all(1, data)
            return
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position, end = 0, len(data)
        while position < end:
            if not self._left:
                if end - position < 8:
                    self._pending = data[position:]
                    return
                self._target = data[position]
                self._left = int.from_bytes(data[position + 4 : position + 8], "big")
                position += 8
                if self._target > 3:
                    raise Failure(f"Unrecognized input header: {self._target}")
                continue
            stop = min(end, position + self._left)
            self._write(data[position:stop])
            self._left -= stop - position
            position = stop

    def _write(self, payload: bytes) -> None:
        if self._target == 3:
            raise Failure(f"error from daemon in stream: {payload.decode('utf-8', 'replace')}")
        if self._target == 2:
            if self.stderr:
                write_all(2, payload)
        elif self.stdout:
            write_all(1, payload)


def demultiplex(pieces: Iterable[bytes], *, tty: bool) -> None:
    output = Output(tty=tty)
    for piece in pieces:
        output.feed(piece)


class DetachKeys:
    """Finds the key sequence in what is typed; keys that only began it are passed on."""

    __slots__ = ("_held", "_keys")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0

    def filter(self, typed: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether the sequence is complete)."""
        passed = bytearray()
        for byte in typed:
            if byte == self._keys[self._held]:
                self._held += 1
                if self._held == len(self._keys):
                    return bytes(passed), True
                continue
            passed += self._keys[: self._held]
            self._held = 1 if byte == self._keys[0] else 0
            if not self._held:
                passed.append(byte)
        return bytes(passed), False


def detach_keys(text: str) -> bytes:
    """'ctrl-p,ctrl-q' or 'a,b' as bytes; '' means docker's default."""
    if not text:
        return DEFAULT_DETACH
    keys = bytearray()
    for word in text.split(","):
        if len(word) == 1 and word.isascii():
            keys.append(ord(word))
        elif word.startswith("ctrl-") and len(word) == 6 and 64 <= ord(word[5].upper()) <= 95:
            keys.append(ord(word[5].upper()) - 64)
        else:
            raise Failure(f"invalid detach keys ({text}): Unknown character: '{word}'", status=125)
    return bytes(keys)


def pump(
    hijacked: Hijacked,
    *,
    tty: bool,
    stdin: bool,
    stdout: bool = True,
    stderr: bool = True,
    keys: bytes = DEFAULT_DETACH,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Pass bytes both ways until the engine ends its side; Detached when the person leaves by the keys.

    `on_ready` is called once, when both ways are open (there `run` starts the container).
    """
    output = Output(tty=tty, stdout=stdout, stderr=stderr)
    terminal = None
    if tty and stdin and posix.isatty(0):
        from sampan.cli.terminal import Raw

        terminal = Raw(0)
    try:
        if on_ready is not None:
            on_ready()
        if hijacked.first:
            output.feed(hijacked.first)
        _loop(hijacked.socket, output, stdin, DetachKeys(keys) if terminal else None)
    finally:
        if terminal is not None:
            terminal.restore()
        hijacked.socket.close()


def _loop(connection: Any, output: Output, stdin: bool, keys: DetachKeys | None) -> None:
    fd = connection.fileno()
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if stdin:
        poller.register(0, select.POLLIN)
    else:
        _half_close(connection)
    pending = b""
    ended = not stdin
    while True:
        for ready, happened in poller.poll():
            arrived = happened & (select.POLLIN | select.POLLHUP | select.POLLERR)
            if ready == fd and arrived and not _receive(connection, output):
                return
            if ready == fd and happened & select.POLLOUT and pending:
                pending = _send(connection, pending)
                if not pending:
                    poller.modify(fd, select.POLLIN)
                    if ended:
                        _half_close(connection)
                    else:
                        poller.register(0, select.POLLIN)
            if ready == 0 and ready != fd:
                typed = _read_stdin()
                if not typed:
                    ended = True
                    poller.unregister(0)
                    _half_close(connection)
                    continue
                detached = False
                if keys is not None:
                    typed, detached = keys.filter(typed)
                pending = _send(connection, typed)
                if detached:
                    raise Detached
                if pending:
                    poller.unregister(0)
                    poller.modify(fd, select.POLLIN | select.POLLOUT)


def _receive(connection: Any, output: Output) -> bool:
    try:
        data = connection.recv(CHUNK)
    except ConnectionResetError:
        return False
    if not data:
        return False
    output.feed(data)
    return True


def _read_stdin() -> bytes:
    try:
        return posix.read(0, CHUNK)
    except BlockingIOError:
        select.select([0], [], [])
        return _read_stdin()
    except OSError:
        return b""  # a closed or hung-up terminal is the end of input


def _send(connection: Any, data: bytes) -> bytes:
    """Send what fits now; what is left over comes back."""
    if not data:
        return b""
    try:
        return data[connection.send(data, NOSIGNAL | DONTWAIT) :]
    except BlockingIOError:
        return data
    except (BrokenPipeError, ConnectionResetError):
        return b""  # nobody reads any more; the end of output tells the rest


def _half_close(connection: Any) -> None:
    try:
        connection.shutdown(SHUT_WR)
    except OSError:
        pass


def check_terminal(*, attach_stdin: bool, tty: bool) -> None:
    """A terminal was asked for, and what is attached is none."""
    if attach_stdin and tty and not posix.isatty(0):
        raise Failure("the input device is not a TTY", status=1)


def watch_size(client: Client, path: str) -> None:
    """Tell the engine the window's size, now and whenever it changes."""
    import _signal  # type: ignore[import-not-found]

    from sampan.cli.terminal import size

    def resize(*_: object) -> bool:
        height, width = size(1)
        if not (height and width):
            return True
        try:
            reply = client.send("POST", f"{path}/resize", query={"h": str(height), "w": str(width)})
            reply.read()
            return reply.status < 400
        except (Failure, OSError):
            return False

    if not resize():
        _retry(resize)
    _signal.signal(SIGWINCH, resize)


def _retry(resize: Callable[[], bool]) -> None:
    """A process that has only just been born may have no terminal yet."""
    for attempt in range(1, 11):
        select.select([], [], [], attempt * 0.01)
        if resize():
            return
    warn("failed to resize tty, using default size")


def forward_signals(send: Callable[[int], None]) -> None:
    """Every signal that asks something of the process goes to the container instead of us."""
    import _signal

    kept = {9, 19, 17, 13, 23, 28, 32, 33, 4, 5, 7, 8, 11}  # KILL STOP CHLD PIPE URG WINCH, faults

    def forward(number: int, _: object) -> None:
        send(number)

    for number in range(1, 65):
        if number not in kept:
            try:
                _signal.signal(number, forward)
            except (OSError, ValueError):
                continue


def kill_sender(client: Client, container: str) -> Callable[[int], None]:
    def send(number: int) -> None:
        try:
            client.send(
                "POST", f"/containers/{container}/kill", query={"signal": str(number)}
            ).read()
        except (Failure, OSError):
            pass

    return send


def status_of(client: Client, container: str, reply: Reply) -> int:
    """What the container ended with, from an open `wait`; asked again if the engine was replaced meanwhile."""
    try:
        answer = reply.json() or {}
    except (Failure, OSError) as lost:
        answer = _asked_again(client, container, lost)
    error = answer.get("Error") or {}
    if error.get("Message"):
        warn(f"Error waiting for container: {error['Message']}")
        return 125
    status: int = answer.get("StatusCode", 125)
    return status


def _asked_again(client: Client, container: str, lost: Exception) -> dict[str, Any]:
    """An engine may be restarted under a running container: give the new one ten seconds to answer."""
    for attempt in range(40):
        select.select([], [], [], 0.05 if attempt < 10 else 0.3)
        try:
            answer: dict[str, Any] = client.post(f"/containers/{container}/wait")
            return answer
        except Refused:
            break  # the container is gone, and its status with it
        except (Failure, OSError):
            continue
    warn(f"error waiting for container: {lost}")
    return {}
