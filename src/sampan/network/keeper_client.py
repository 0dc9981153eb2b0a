"""The daemon's handle on the keeper: start it when it is not there, hand things in, ask what it holds."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sampan.errors import Internal, SampanError, Unavailable
from sampan.linux import fds
from sampan.network import keeper

log = logging.getLogger("sampan.network")
Part = tuple[dict[str, Any], tuple[int, ...]]  # a message and its descriptors
START_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 10.0
BATCH = 32  # messages at once; each has two descriptors at most
SOURCE = Path(__file__).resolve().parents[2]


class KeeperClient:
    """One connection, used under a lock from any thread.

    A second connection carries nothing: its end tells that the keeper died, and `on_lost` is called from a thread of
    its own, so that a new keeper is given what the old one held.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "keeper.sock"
        self._connection: socket.socket | None = None
        self._lock = threading.RLock()
        self._watched: socket.socket | None = None
        self.on_lost: Callable[[], None] = lambda: None

    def request(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> dict[str, Any]:
        """Send and wait for the answer; starts a keeper where none answers.

        Raises Internal where the keeper refuses, Unavailable where it cannot be started.
        """
        data = msgspec.json.encode(message)
        with self._lock:
            for attempt in (1, 2):
                connection = self._connected()
                try:
                    fds.send_fds(connection, data, descriptors)
                    raw = connection.recv(1 << 20)
                    if not raw:
                        raise ConnectionError("the keeper closed its socket")
                    break
                except OSError as error:
                    self.close()
                    if attempt == 2:
                        raise Unavailable(f"the network keeper does not answer: {error}") from error
        reply: dict[str, Any] = msgspec.json.decode(raw)
        if "error" in reply:
            raise Internal(f"network keeper: {message['op']}: {reply['error']}")
        return reply

    def request_all(self, parts: Sequence[Part]) -> None:
        """Several messages with their descriptors, done in order to the first refusal; one wait for all of them."""
        for start in range(0, len(parts), BATCH):
            part = parts[start : start + BATCH]
            messages = [{**message, "descriptors": len(own)} for message, own in part]
            every = tuple(fd for _, own in part for fd in own)
            self.request({"op": "batch", "messages": messages}, every)

    def held(self) -> dict[str, list[str]]:
        """What a running keeper holds; nothing where none runs. Starts none."""
        with self._lock:
            if self._connection is None:
                try:
                    self._connection = self._open()
                    self._watch()
                except OSError:
                    return {"containers": [], "ports": [], "zones": []}
            return self.request({"op": "list"})

    def close(self) -> None:
        """Drop the connection; the keeper stays while it holds something. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            watched, self._watched = self._watched, None
            if watched is not None:
                watched.shutdown(socket.SHUT_RDWR)  # ends the thread's wait; it closes

    def _watch(self) -> None:
        """Begin to wait for the keeper's end. Called with the lock held, once a connection."""
        if self._watched is not None:
            return
        try:
            watched = self._connect()
        except OSError:
            return
        watched.settimeout(None)
        self._watched = watched
        threading.Thread(
            target=self._await_end, args=(watched,), name="keeper-watch", daemon=True
        ).start()

    def _await_end(self, watched: socket.socket) -> None:
        with watched:
            try:
                watched.recv(1)
            except OSError:
                pass
        with self._lock:
            if self._watched is not watched:
                return  # we closed it ourselves
            self._watched = None
        log.warning("the network keeper ended; another takes over")
        try:
            self.on_lost()
        except (OSError, SampanError) as error:
            log.warning("the network keeper's work could not be taken up: %s", error)

    def _connected(self) -> socket.socket:
        if self._connection is None:
            try:
                self._connection = self._open()
            except OSError:
                self._start()
                self._connection = self._connect()
            self._watch()
        return self._connection

    def _open(self) -> socket.socket:
        """A connection to a keeper that speaks our language; one of another version is ended. Raises OSError."""
        connection = self._connect()
        try:
            connection.send(b'{"op":"list"}')
            reply = msgspec.json.decode(connection.recv(1 << 20))
            if reply.get("version") == keeper.PROTOCOL:
                return connection
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except BaseException:
            connection.close()
            raise
        connection.close()
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        log.warning(
            "the network keeper (process %d) is of another version: a new one takes over", pid
        )
        _end(pid)
        raise ConnectionError("the keeper was of another version")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(REQUEST_TIMEOUT_S)
        try:
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection

    def _start(self) -> None:
        reader, writer = os.pipe()
        program = (
            f"import sys; sys.path.insert(0, {str(SOURCE)!r}); "
            "from sampan.network.keeper import main; main(sys.argv[1:])"
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, str(self.run), str(writer)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(writer,),
                start_new_session=True, cwd="/", env={},
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"cannot start the network keeper: {error}") from error
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            answered = ready.read(1)
        if not answered:
            status = process.wait()
            raise Unavailable(f"the network keeper ended at once with status {status}")
        process.returncode = 0  # it outlives us on purpose: no warning that it is still running


def _end(pid: int) -> None:
    """End a process and wait until it is gone, so that it holds no port any more."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], REQUEST_TIMEOUT_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
