"""The engine's side: start the launcher, ask it for shims, launch containers, talk to shims, watch them end.

    launcher = LauncherClient("/run/sampan")
    launcher.ensure()                                   # once; again by itself when the launcher died
    shim = launcher.launch(request, fds)                # blocking: run it through run_blocking
    shim.info["pid"]                                    # the reply: protocol.Started

or without a thread, on an event loop:

    shim = launcher.begin(request, fds, on_reply)       # sends and returns
    loop.add_reader(shim.fileno(), shim.dispatch)       # replies go to on_reply, events to shim.on_event

A `ShimClient` is one connection. Use it in one of two ways, not both at once: `call()` from a thread that owns it,
or `send()` with a callback and `dispatch()` from a loop. Any number of connections to one shim may be open:
`ShimClient.open(directory)` is how a restarted engine comes back, and how a thread asks something on its own.

No asyncio here and no thread: `dispatch` calls back and the engine makes futures of it.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from sampan import errors
from sampan.linux import fastjson
from sampan.shim import channel, protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Message = dict[str, Any]
    OnReply = Callable[[Message], None]
    OnEvent = Callable[[Message], None]

LAUNCH_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 30.0
_READY_TIMEOUT_S = 20.0
_IDENTIFY_S = 5.0
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _readable(link: channel.Channel, seconds: float) -> bool:
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


class ShimGone(errors.Unavailable):
    """The shim closed the connection, or there is none: the container has ended, read its exit.json."""


def raise_failure(failure: Message) -> None:
    """Raise what a reply's `error` says: a kind of errors.py with `exit_code`, `step` and `errno` as attributes."""
    kind = getattr(errors, str(failure.get("kind", "")), errors.Internal)
    if not (isinstance(kind, type) and issubclass(kind, errors.SampanError)):
        kind = errors.Internal
    message = str(failure.get("message", "the shim failed without a word"))
    error: Any = kind(message, hint=str(failure.get("hint", "")))
    error.step = failure.get("step", "")
    error.errno = failure.get("errno", 0)
    error.exit_code = failure.get("exit_code", protocol.docker_exit_code(message))
    raise error


class ShimClient:
    """One connection to one shim."""

    def __init__(
        self, link: channel.Channel, directory: str = "", *, on_event: OnEvent | None = None
    ) -> None:
        self.directory = directory
        self.info: Message = {}  # the reply to launch or hello
        self.on_event = on_event  # set before dispatch() is used
        self.on_close: Callable[[], None] | None = None  # called once, at end of file
        self.events: list[
            Message
        ] = []  # events that came while call() waited, or that nobody handles
        self.closed = False
        self._link = link
        self._seq = 0
        self._waiting: dict[int, OnReply] = {}

    @classmethod
    def open(cls, directory: str, *, subscribe: bool = True, timeout: float = 5.0) -> ShimClient:
        """Connect to the shim of `<run>/containers/<id>`; ShimGone when none answers. `info["state"]` is its State."""
        try:
            link = channel.Channel.connect(f"{directory}/{protocol.SHIM_SOCKET}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                raise ShimGone(f"no shim serves {directory}") from error
            raise
        client = cls(link, directory)
        try:
            hello = {"op": "hello", "v": protocol.VERSION, "subscribe": subscribe}
            client.info = client.call(hello, timeout=timeout)
        except BaseException:
            client.close()
            raise
        return client

    def fileno(self) -> int:
        return self._link.fileno()

    def close(self) -> None:
        """Leave; the container goes on."""
        if not self.closed:
            self.closed = True
            self._link.close()

    # --- on a loop ---------------------------------------------------------------------------------------------

    def send(
        self, message: Message, fds: Sequence[int] = (), on_reply: OnReply | None = None
    ) -> int:
        """Send a request; `on_reply` gets the reply (with "error" in it, perhaps) from dispatch(). The descriptors
        are copied: close yours afterwards. At end of file every waiting callback gets a failure of kind ShimGone."""
        if self.closed:
            raise ShimGone("the shim is gone")
        self._seq += 1
        try:
            self._link.send({**message, "seq": self._seq}, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ShimGone("the shim is gone") from error
        if on_reply is not None:
            self._waiting[self._seq] = on_reply
        return self._seq

    def dispatch(self) -> bool:
        """Handle every message that is there, without waiting. False once the connection has ended."""
        while not self.closed:
            try:
                received = self._link.receive(wait=False)
            except BlockingIOError:
                return True
            except channel.Broken:
                received = None
            if received is None:
                self._end()
                return False
            message, fds = received
            for fd in fds:  # no message to the engine carries any
                os.close(fd)
            self._deliver(message)
        return False

    def _deliver(self, message: Message) -> None:
        if "re" in message:
            callback = self._waiting.pop(message["re"], None)
            if callback is not None:
                callback(message)
        elif self.on_event is not None:
            self.on_event(message)
        else:
            self.events.append(message)

    def _end(self) -> None:
        self.close()
        waiting, self._waiting = self._waiting, {}
        for callback in waiting.values():
            callback({"error": {"kind": "Unavailable", "message": "the shim is gone"}})
        if self.on_close is not None:
            self.on_close()

    # --- in a thread -------------------------------------------------------------------------------------------

    def call(
        self, message: Message, fds: Sequence[int] = (), *, timeout: float = CALL_TIMEOUT_S
    ) -> Message:
        """Send, wait for the reply, return it; a failure is raised as its kind of error. Events on the way are kept."""
        return self.wait_reply(self.send(message, fds), timeout=timeout)

    def wait_reply(self, seq: int, *, timeout: float = CALL_TIMEOUT_S) -> Message:
        deadline = time.monotonic() + timeout
        while True:
            message = self._next(deadline)
            if message.get("re") == seq:
                if "error" in message:
                    raise_failure(message["error"])
                return message
            self._deliver(message)

    def wait_event(self, name: str, *, timeout: float = CALL_TIMEOUT_S) -> Message:
        """The next event of that name (kept ones first); others stay in `events`."""
        for position, event in enumerate(self.events):
            if event.get("event") == name:
                return self.events.pop(position)
        deadline = time.monotonic() + timeout
        while True:
            message = self._next(deadline)
            if message.get("event") == name:
                return message
            self._deliver(message)

    def _next(self, deadline: float) -> Message:
        if self.closed:
            raise ShimGone("the shim is gone")
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(int(remaining * 1000) + 1):
            raise errors.Unavailable("the shim does not answer")
        received = self._link.receive()
        if received is None:
            self._end()
            raise ShimGone("the shim is gone")
        message, extra = received
        for fd in extra:
            os.close(fd)
        return message

    # --- the requests, by name ---------------------------------------------------------------------------------

    def attach(self, attach: Message, fd: int) -> None:
        self.call({"op": "attach", "attach": {**attach, "fd": 0}}, [fd])

    def exec(self, request: Message, fd: int = -1) -> Message:
        """`request` is a protocol.Exec without op; `fd` the client's connection, if any."""
        message = {**request, "op": "exec"}
        if fd >= 0:
            message["attach"] = {**request.get("attach", {}), "fd": 0}
        return self.call(message, [fd] if fd >= 0 else [], timeout=LAUNCH_TIMEOUT_S)

    def kill(self, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        self.call({"op": "kill", "signal": signal, "exec_id": exec_id, "all": everything})

    def resize(self, height: int, width: int, *, exec_id: str = "") -> None:
        self.call({"op": "resize", "height": height, "width": width, "exec_id": exec_id})

    def pause(self) -> None:
        self.call({"op": "pause"})

    def unpause(self) -> None:
        self.call({"op": "unpause"})

    def update(self, resources: Message) -> list[str]:
        return list(self.call({"op": "update", "resources": resources}).get("warnings", []))

    def processes(self) -> list[int]:
        return list(self.call({"op": "processes"})["pids"])

    def close_stdin(self) -> None:
        self.call({"op": "close_stdin"})


class LauncherClient:
    """The engine's handle on the launcher: starts it, keeps a few shims ready, launches containers."""

    def __init__(self, run_dir: str, *, spare: int = 2, python: str = "") -> None:
        self.run_dir = run_dir
        self.spare = spare
        self._python = python or sys.executable
        self._link: channel.Channel | None = None
        self._ready: list[ShimClient] = []

    # --- the launcher itself -----------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Connected to a launcher afterwards; starts one if none serves this run directory. Then makes spare shims."""
        if self._link is None:
            self._link = self._connect() or self._start()
        self.refill()

    def refill(self) -> None:
        """Ask for spare shims up to `spare`. Cheap, never waits; call it when a launch has been answered."""
        while len(self._ready) < self.spare:
            self._ready.append(self._spawn())

    def close(self) -> None:
        """Leave the launcher running for the next engine; spare shims end by themselves."""
        for shim in self._ready:
            shim.close()
        self._ready.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def stop(self) -> None:
        """End the launcher. Running containers stay."""
        if self._link is None:
            self._link = self._connect()
        if self._link is not None:
            try:
                self._link.send({"op": "stop"})
                self._link.receive()  # end of file: it is gone
            except OSError:
                pass
        self.close()

    def _connect(self) -> channel.Channel | None:
        """A launcher that runs our own code, or None; one of an older installation is ended (its shims stay)."""
        from sampan.shim.starting import identity

        try:
            link = channel.Channel.connect(f"{self.run_dir}/{protocol.LAUNCHER_SOCKET}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise
        try:
            link.send({"op": "identify"})
            answer = link.receive() if _readable(link, _IDENTIFY_S) else None
            if answer and answer[0].get("identity") == identity(self._python, _SOURCE):
                return link
            link.send({"op": "stop"})
            _readable(link, _IDENTIFY_S)  # end of file: it is gone
        except OSError:
            pass
        link.close()
        return None

    def _start(self) -> channel.Channel:
        from sampan.shim.starting import start_launcher  # rarely needed, brings fcntl

        start_launcher(self.run_dir, self._python, _SOURCE, _READY_TIMEOUT_S)
        link = self._connect()
        if link is None:
            raise errors.Internal(
                "the launcher started but does not answer", hint=f"see {self.run_dir}/launcher.log"
            )
        return link

    def _spawn(self) -> ShimClient:
        """A shim that waits for its Launch. Its fork happens while we go on."""
        ours, theirs = channel.pair()
        try:
            for attempt in (1, 2):
                if self._link is None:
                    self._link = self._connect() or self._start()
                try:
                    self._link.send({"op": "spawn", "v": protocol.VERSION}, [theirs.fileno()])
                    break
                except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                    self._link.close()
                    self._link = None
                    if attempt == 2:
                        raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ShimClient(ours)

    # --- containers --------------------------------------------------------------------------------------------

    def begin(
        self, request: Message, fds: Sequence[int] = (), on_reply: OnReply | None = None
    ) -> ShimClient:
        """Send a Launch and return the connection, whose first reply tells how it went (protocol.Started or error).

        `request` is a protocol.Launch; `op` and `v` are filled in. The descriptors are copied. Events follow the
        reply on the same connection; it is subscribed from the start. If the connection ends before any reply the
        shim (or the launcher under it) was killed and nothing runs: ask once more.
        """
        message = {**request, "op": "launch", "v": protocol.VERSION}

        def answered(reply: Message) -> None:
            if on_reply is not None:
                on_reply(reply)
            self.refill()

        while True:
            spare = bool(self._ready)
            shim = self._ready.pop(0) if spare else self._spawn()
            shim.directory = str(request["dir"])
            try:
                shim.send(message, fds, answered)
                return shim
            except ShimGone:
                shim.close()
                if not spare:
                    raise

    def launch(
        self, request: Message, fds: Sequence[int] = (), *, timeout: float = LAUNCH_TIMEOUT_S
    ) -> ShimClient:
        """Start a container and wait until its process runs. Raises the kind of error that stopped it."""
        for attempt in (1, 2):
            shim = self.begin(request, fds)
            try:
                shim.info = shim.wait_reply(1, timeout=timeout)
                self.refill()
                return shim
            except ShimGone:
                if attempt == 2:
                    raise
            except BaseException:
                shim.close()
                raise
        raise AssertionError("not reached")


# --- facts on disk, for an engine that comes back ------------------------------------------------------------------


def read_state(directory: str) -> Message | None:
    """state.json of a container's run directory (protocol.State), or None."""
    return _read_json(f"{directory}/{protocol.STATE_FILE}")


def read_exit(directory: str) -> Message | None:
    """exit.json (protocol.Exit), or None while it runs or if the shim was killed."""
    return _read_json(f"{directory}/{protocol.EXIT_FILE}")


def _read_json(path: str) -> Message | None:
    try:
        with open(path, "rb") as file:
            value = fastjson.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # written by rename, so this is a disk that lies: the kernel knows better
    return value if isinstance(value, dict) else None
