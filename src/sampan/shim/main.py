"""The SHIM: supervisor of one container. One process, one thread, one poll loop; outlives engine and launcher.

    run(control)  ->  forks a starter, which waits for Launch on the control socket (a spare shim waits here)
                  ->  adopts the container that the starter made, serves any number of engines
                  ->  process 1 ends: exit.json, "exit", teardown, "gone", leave

It leads its own session, so no terminal and no process group of the engine reaches it, ignores the signals of a
shutting-down session (it is needed until the container has ended), and is a subreaper: what a container without a
pid namespace leaves behind becomes its child and is reaped here.
"""

from __future__ import annotations

import _socket
import posix

from sampan import errors
from sampan.linux.fds import close_quietly
from sampan.linux.process import fork, set_name, set_subreaper
from sampan.shim import protocol, starter
from sampan.shim.channel import Channel, accept, pair
from sampan.shim.container import Container
from sampan.shim.execs import Exec
from sampan.shim.failure import complain, failure_of
from sampan.shim.loop import POLLIN, Loop
from sampan.shim.powers import Powers

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any

    Message = dict[str, Any]
    Order = Callable[[Message, list[int]], Message]
else:
    import _signal


# Docker's default set (security section 2)
DOCKER_CAPABILITIES = 0xA80425FB

# What the runtime loads on first use. The launcher loads it before importing is switched off.
_LAZY = (
    "_blake2",
    "math",
    "sampan.cgroups.devices",
    "sampan.cgroups.manager",
    "sampan.cgroups.none",
    "sampan.cgroups.systemd",
    "sampan.cgroups.v1",
    "sampan.cgroups.v2",
    "sampan.cgroups.watch",
    "sampan.linux.paths",
    "sampan.linux.procfs",
    "sampan.runtime.devices",
    "sampan.runtime.live_mounts",
    "sampan.runtime.reaper",
    "sampan.runtime.seccomp",
    "sampan.runtime.seccomp_cache",
    "sampan.runtime.seccomp_default",
)


def warm_up() -> None:
    """Load what is otherwise loaded on first use, and compile the filter that nearly every container has."""
    for name in _LAZY:
        __import__(name)
    from sampan.linux.procfs import last_capability
    from sampan.runtime.seccomp_cache import default_program

    uname = posix.uname()
    default_program(DOCKER_CAPABILITIES, machine=uname.machine, kernel=uname.release)
    last_capability()


def run(control: int) -> None:
    """The whole life of a shim whose engine is at the other end of `control`."""
    for number in (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_IGN)
    posix.setsid()
    set_name("sampan-shim")
    Shim(Channel.from_fd(control)).run()


class Shim:
    """The engines it talks to, its container and its execs."""

    def __init__(self, control: Channel) -> None:
        self.loop = Loop()
        self.loop.watch_children(self._reap)
        self.loop.on_error = complain
        self._peers: dict[int, Channel] = {}
        self._subscribed: set[int] = set()
        self._listener: _socket.socket | None = None
        self._container: Container | None = None
        self._execs: dict[str, Exec] = {}
        self._by_pid: dict[int, Exec] = {}
        self._lost_told = 0
        self._powers = Powers()
        self._orders: dict[str, Order] = {
            "hello": self._hello,
            "attach": self._attach,
            "exec": self._exec,
            "kill": self._kill,
            "resize": self._resize,
            "pause": self._pause,
            "unpause": self._unpause,
            "update": self._update,
            "processes": self._processes,
            "close_stdin": self._close_stdin,
            "log_rotate": self._log_rotate,
            "mount": self._mount,
            "unmount": self._unmount,
        }
        self._control = control
        self._starter = self._fork_starter()
        self.loop.watch(self._starter.fileno(), POLLIN, self._started)

    def run(self) -> None:
        self.loop.run()

    # --- the start ---------------------------------------------------------------------------------------------

    def _fork_starter(self) -> Channel:
        """Our end of the way to it. It reads the control socket until there is a container."""
        ours, theirs = pair()
        if fork() == 0:
            ours.close()
            starter.run(self._control, theirs)
        theirs.close()
        return ours

    def _started(self, _revents: int) -> None:
        """The starter's word: a container, or why there is none; or its end, which is the engine's or its own."""
        received = self._starter.receive()
        self.loop.unwatch(self._starter.fileno())
        self._starter.close()
        if received is None:
            self.loop.stop()
            return
        share, fds = received
        try:
            self._adopt(share, fds)
        except Exception as error:  # noqa: BLE001 - a defect of ours: the container ends with us
            complain(error)
            self.loop.stop()
        finally:
            close_quietly(*fds)

    def _adopt(self, share: Message, fds: list[int]) -> None:
        """The container is ours from here on; the engine was told already."""
        set_subreaper()
        self._subscribed.add(self._control.fileno())
        container = Container(self.loop, share, notify=self._notify, on_gone=self._finish)
        self._container = container
        self._meet(self._control)
        listener = container.adopt(fds)
        if listener >= 0:
            self._listener = _socket.socket(fileno=listener)
            self._listener.setblocking(False)
            self.loop.watch(listener, POLLIN, self._accept)
        self._powers.drop()
        self.loop.later(0, self._reap)  # it may have ended before we knew whose end it was

    # --- engines -----------------------------------------------------------------------------------------------

    def _meet(self, peer: Channel) -> None:
        fd = peer.fileno()
        self._peers[fd] = peer
        self.loop.watch(fd, POLLIN, lambda _revents: self._serve(peer))

    def _leave(self, peer: Channel) -> None:
        fd = peer.fileno()
        if self._peers.pop(fd, None) is None:
            return
        self._subscribed.discard(fd)
        self.loop.unwatch(fd)
        peer.close()

    def _accept(self, _revents: int) -> None:
        if self._listener is not None:
            try:
                self._meet(accept(self._listener))
            except OSError:
                return

    def _serve(self, peer: Channel) -> None:
        try:
            received = peer.receive(wait=False)
        except BlockingIOError:
            return
        except OSError:
            received = None
        if received is None:
            self._leave(peer)
            return
        message, fds = received
        try:
            reply = self._obey(peer, message, fds)
        finally:
            close_quietly(*fds)
        if "seq" in message:
            reply["re"] = message["seq"]
        self._send(peer, reply)

    def _obey(self, peer: Channel, message: Message, fds: list[int]) -> Message:
        """Carry out one request. Descriptors that somebody keeps are replaced by -1 in `fds`."""
        op = str(message.get("op", ""))
        order = self._orders.get(op)
        try:
            if order is None:
                raise errors.Unsupported(f"this shim does not know {op!r}")
            if op == "hello" and message.get("v") != protocol.VERSION:
                raise errors.Unsupported(
                    f"this shim speaks version {protocol.VERSION}, not {message.get('v')!r}"
                )
            reply = order(message, fds)
            if op == "hello" and message.get("subscribe"):
                self._subscribed.add(peer.fileno())
            return reply
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the engine's to know
            return {"error": failure_of(error)}

    def _send(self, peer: Channel, message: Message) -> None:
        """An engine that does not read is let go; it comes back with Hello and learns everything."""
        try:
            peer.send(message, wait=False)
        except OSError:
            self._leave(peer)

    def _notify(self, event: Message) -> None:
        for fd in list(self._subscribed):
            peer = self._peers.get(fd)
            if peer is not None:
                self._send(peer, event)

    # --- the container -----------------------------------------------------------------------------------------

    @property
    def container(self) -> Container:
        if self._container is None:
            raise errors.Conflict("nothing was launched here yet")
        return self._container

    def _finish(self) -> None:
        """The container is gone and every client served: leave without a trace but the files."""
        container = self.container
        container.close_log()
        for name in (protocol.STATE_FILE, protocol.SHIM_PID, protocol.SHIM_SOCKET):
            try:
                posix.unlink(f"{container.directory}/{name}")
            except OSError:
                pass
        self.loop.stop()

    def _reap(self) -> None:
        """Every child that ended. Process 1 last, so that its execs' exits are told before its own."""
        if self._container is None:
            return  # whose child it is will be known when the starter has spoken
        first: int | None = None
        while True:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._container.pid:
                first = status
                continue
            session = self._by_pid.pop(pid, None)
            if session is not None:
                session.ended(status)
            else:
                self._container.child_ended(pid, status)
        if first is not None:
            self._container.child_ended(self._container.pid, first)

    # --- orders ------------------------------------------------------------------------------------------------

    def _hello(self, _message: Message, _fds: list[int]) -> Message:
        state = self.container.state()
        state["execs"] = {exec_id: session.pid for exec_id, session in self._execs.items()}
        state["exit"] = self.container.exit
        return {"v": protocol.VERSION, "state": state}

    def _attach(self, message: Message, fds: list[int]) -> Message:
        self.container.attach(message.get("attach") or {}, fds)
        return {}

    def _exec(self, message: Message, fds: list[int]) -> Message:
        container = self.container
        if container.status == "paused":
            raise errors.Conflict(
                f"Container {container.id} is paused, unpause the container before exec"
            )
        if not container.running:
            raise errors.Conflict(f"Container {container.id} is not running")
        session = Exec(container, message, self._exec_ended)
        if session.id in self._execs:
            raise errors.Conflict(f"exec {session.id} is already running")
        with self._powers:
            started = session.start(message, fds)
        self._execs[session.id] = session
        self._by_pid[session.pid] = session
        return started

    def _exec_ended(self, session: Exec) -> None:
        self._execs.pop(session.id, None)
        self._by_pid.pop(session.pid, None)

    def _session(self, message: Message) -> Exec | None:
        exec_id = message.get("exec_id")
        if not exec_id:
            return None
        session = self._execs.get(str(exec_id))
        if session is None:
            raise errors.NotFound(f"No such exec instance: {exec_id}")
        return session

    def _kill(self, message: Message, _fds: list[int]) -> Message:
        signal = int(message.get("signal", 9))
        session = self._session(message)
        if session is not None:
            session.kill(signal)
        else:
            self.container.kill(signal, everything=bool(message.get("all")))
        return {}

    def _resize(self, message: Message, _fds: list[int]) -> Message:
        height, width = int(message.get("height", 0)), int(message.get("width", 0))
        session = self._session(message)
        if session is not None:
            session.resize(height, width)
        else:
            self.container.resize(height, width)
        return {}

    def _pause(self, _message: Message, _fds: list[int]) -> Message:
        self.container.pause()
        return {}

    def _unpause(self, _message: Message, _fds: list[int]) -> Message:
        self.container.resume()
        return {}

    def _update(self, message: Message, _fds: list[int]) -> Message:
        with self._powers:
            return {"warnings": self.container.cgroup().apply(message.get("resources") or {})}

    def _processes(self, _message: Message, _fds: list[int]) -> Message:
        return {"pids": self.container.cgroup().pids()}

    def _close_stdin(self, _message: Message, _fds: list[int]) -> Message:
        self.container.streams.close_stdin()
        return {}

    def _mount(self, message: Message, fds: list[int]) -> Message:
        from sampan.runtime.live_mounts import add

        container = self.container
        container.check_running()
        with self._powers:
            add(container.pid, container.start_time, *_mounts_of(message, fds))
        return {}

    def _unmount(self, message: Message, fds: list[int]) -> Message:
        from sampan.runtime.live_mounts import remove

        container = self.container
        container.check_running()
        with self._powers:
            remove(container.pid, container.start_time, *_mounts_of(message, fds))
        return {}

    def _log_rotate(self, _message: Message, _fds: list[int]) -> Message:
        self.container.rotate_log()
        return {}


def _mounts_of(message: Message, fds: list[int]) -> tuple[list[Message], list[int]]:
    """protocol.ChangeMounts as (OCI mounts, the descriptor of each one's source or -1)."""
    entries, places = message.get("mounts") or [], message.get("sources") or []
    if len(places) != len(entries) or not all(-1 <= place < len(fds) for place in places):
        raise errors.InvalidArgument("mounts: no such descriptor")
    return entries, [fds[place] if place >= 0 else -1 for place in places]
