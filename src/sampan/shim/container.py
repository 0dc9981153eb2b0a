"""The container of a shim, from what the starter hands over to Gone.

    adopt       pids and descriptors from the starter; log, streams, clients            -> state.json, reply
    running     kill, pause, update ...; output pumped (stdio.py); execs (execs.py)
    ended       process 1 reaped, output drained, exit.json written                     -> event "exit"
    torn down   mounts let go, cgroup removed                                           -> event "gone"

The mount namespace is held by a descriptor from before the process runs. Without it the exit of process 1 would
unmount the overlay before its parent hears of it, and that syncs the whole upper file system: 65 ms with 200 MB dirty
against 8.8 (performance 0.3). The price: the same upper directory must not be used again before "gone".
"""

from __future__ import annotations

import binascii
import posix
import time

from sampan import errors
from sampan.cgroups.manager import open_manager
from sampan.cgroups.watch import OomWatch
from sampan.linux import constants as c
from sampan.linux import fastjson
from sampan.linux.fds import close_quietly
from sampan.linux.paths import replace_file
from sampan.linux.process import decode_status
from sampan.linux.syscalls import pidfd_send_signal
from sampan.runtime.seccomp_cache import Program
from sampan.shim import protocol
from sampan.shim.logread import LogReader
from sampan.shim.logs import LineLog, NoLog, open_log
from sampan.shim.pipes import set_window_size
from sampan.shim.stdio import Client, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroups.manager import Manager
    from sampan.shim.loop import Loop

    Message = dict[str, Any]

_DRAIN_S = 2.0  # how long an exit waits for output that does not end, as in moby daemon/monitor.go
_STALL_S = 60.0  # how long an ended container keeps a client that does not read
_CGROUP_TRIES = 50


def check_attach(attach: Any, descriptors: int) -> Message:
    """A protocol.Attach as the arguments of a Client; InvalidArgument where it is none."""
    try:
        if not 0 <= attach.get("fd", 0) < descriptors:
            raise ValueError("no such descriptor")
        return {
            "stdin": bool(attach.get("stdin")),
            "stdout": bool(attach.get("stdout")),
            "stderr": bool(attach.get("stderr")),
            "framed": bool(attach.get("framed")),
            "detach_keys": bytes(attach.get("detach_keys") or ()),
            "preread": binascii.a2b_base64(attach.get("preread") or "", strict_mode=True),
            "name": str(attach.get("name", "")),
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise errors.InvalidArgument(f"attach: {error}") from None


def make_client(attach: Message, fds: list[int]) -> Client:
    """A client that owns its descriptor; the number in `fds` becomes -1."""
    wish = check_attach(attach, len(fds))
    index = attach.get("fd", 0)
    fd, fds[index] = fds[index], -1
    if fd < 0:
        raise errors.InvalidArgument("attach: two clients for one descriptor")
    return Client(fd, **wish)


def unpack_filter(packed: Message | None) -> Program | None:
    """The compiled seccomp filter that the starter used, for the execs."""
    if packed is None:
        return None
    return Program(
        instructions=binascii.a2b_base64(packed["instructions"]),
        flags=packed["flags"],
        uses_notify=packed["uses_notify"],
        listener_path=packed["listener_path"],
        listener_metadata=packed["listener_metadata"],
        unknown=(),
    )


class Container:
    """One container. `notify` sends an event to the engines, `on_gone` ends the shim."""

    def __init__(
        self,
        loop: Loop,
        share: Message,
        *,
        notify: Callable[[Message], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.loop = loop
        self._share = share
        self.id = str(share["id"])
        self.directory = str(share["dir"])
        self.notify = notify
        self._on_gone = on_gone
        self.status = "created"
        self.tty = bool(share.get("tty"))
        self.stdin_once = bool(share.get("stdin_once"))
        self.log_request: Message = share.get("log") or {"driver": "none"}
        self.cgroup_request: Message = share.get("cgroup") or {}
        self.spec: Any = share["spec"]
        self.filter = unpack_filter(share.get("filter"))
        self.pid = 0
        self.start_time = 0
        self.started_at = 0
        self.exit: Message | None = None
        self.oom_killed = False
        self.master = -1
        self.pidfd = -1
        self.streams = Streams(loop)
        self._manager: Manager | None = None
        self._oom: OomWatch | None = None
        self._oom_kills = 0
        self._mounts = -1
        self._log: Any = None
        self._ended_status: int | None = None
        self._finished_at = 0
        self._shares_pids = bool(share.get("shares_pids"))

    # --- beginning ---------------------------------------------------------------------------------------------

    def adopt(self, fds: list[int]) -> int:
        """Take over what the starter made; the listening socket. Descriptors that are kept become -1 in `fds`."""
        share, places = self._share, self._share["places"]

        def take(name: str) -> int:
            place = places.get(name, -1)
            if place < 0:
                return -1
            fd: int = fds[place]
            fds[place] = -1
            return fd

        started: Message = share["started"]
        self.pid, self.start_time = started["pid"], started["start_time"]
        self.started_at = started["started_at"]
        self.pidfd, self._mounts, self.master = take("pidfd"), take("mounts"), take("master")
        outputs = {take(name): name for name in ("stdout", "stderr") if name in places}
        stdin = take("stdin")
        self.status = "running"
        self._take_oom_watch(take("oom"))
        self._open_log()
        self.streams = self._make_streams()
        for attach in share.get("attach") or ():
            self._add_client(attach, fds)
        if self.master >= 0:
            outputs = {self.master: "stdout"}
            stdin = self.master if share.get("open_stdin") else -1
        self.streams.open(outputs, stdin)
        return take("listener")

    def _open_log(self) -> None:
        """The starter has opened it once already; a disk that filled meanwhile costs the log, not the container."""
        try:
            self._log = open_log(self.log_request)
        except (OSError, errors.SampanError) as error:
            self._log = NoLog()
            self.notify({"event": "log_trouble", "message": str(error), "lost": 0})

    # --- streams -----------------------------------------------------------------------------------------------

    def _make_streams(self) -> Streams:
        return Streams(
            self.loop,
            tty=self.tty,
            stdin_once=self.stdin_once,
            log=self._log,
            on_end=self._output_ended,
            on_client_end=self._client_ended,
        )

    def attach(self, attach: Message, fds: list[int]) -> None:
        self._add_client(attach, fds)

    def _add_client(self, attach: Message, fds: list[int]) -> None:
        client = make_client(attach, fds)
        replay = None
        if attach.get("logs") and isinstance(self._log, LineLog):
            wanted = tuple(name for name in ("stdout", "stderr") if client.wanted[name])
            driver = str(self.log_request.get("driver", "json-file"))
            replay = LogReader(str(self.log_request["path"]), driver, streams=wanted)
        self.streams.add_client(client, replay=replay, live=attach.get("stream", True) is not False)

    def _client_ended(self, client: Client, detached: bool) -> None:
        self.notify({"event": "attach_end", "name": client.name, "detached": detached})
        if self.status == "gone" and self.streams.idle:
            self._on_gone()

    def _output_ended(self) -> None:
        if self._ended_status is not None:
            self._report_exit()

    def rotate_log(self) -> None:
        self._log.rotate()

    # --- the end of process 1 ----------------------------------------------------------------------------------

    def child_ended(self, pid: int, status: int) -> bool:
        """A child was reaped: process 1 or a log compressor of ours?"""
        if isinstance(self._log, LineLog) and self._log.file.child_ended(pid, status):
            return True
        if pid != self.pid or self._ended_status is not None:
            return False
        self._finished_at = time.time_ns()
        self._ended_status = status
        if self._shares_pids:
            self._kill_rest()
        if self.streams.ended:
            self._report_exit()
        else:
            self.loop.later(_DRAIN_S, self._report_exit)
        return True

    def _kill_rest(self) -> None:
        """Without a pid namespace of its own the kernel does not end the rest of the container with process 1."""
        if self._cgroup is not None:
            try:
                self._cgroup.kill_all()
            except OSError:
                pass

    def _report_exit(self) -> None:
        """Once: everything the process wrote is in the log and sent, or it had its time."""
        if self.exit is not None or self._ended_status is None:
            return
        self._note_oom_kills()
        status = self._ended_status
        self.exit = {
            "v": protocol.VERSION,
            "id": self.id,
            "exit_code": decode_status(status),
            "signal": posix.WTERMSIG(status) if posix.WIFSIGNALED(status) else 0,
            "oom_killed": self.oom_killed,
            "started_at": self.started_at,
            "finished_at": self._finished_at,
        }
        self.status = "exited"
        try:
            replace_file(
                f"{self.directory}/{protocol.EXIT_FILE}", fastjson.dump_bytes(self.exit), 0o600
            )
        except OSError as error:  # /run is full: engines that are connected still hear it
            self.notify(
                {"event": "log_trouble", "message": f"writing exit.json: {error}", "lost": 0}
            )
        self.notify({"event": "exit", **self.exit})
        self.streams.release_clients()
        self.loop.later(0, self._tear_down)

    # --- letting go --------------------------------------------------------------------------------------------

    def _tear_down(self) -> None:
        """After the exit is known: nobody waits for this but who wants the snapshot."""
        if self._oom is not None:
            self.loop.unwatch(self._oom.fileno())
            self._oom.close()
            self._oom = None
        self._remove_cgroup(_CGROUP_TRIES)

    def _remove_cgroup(self, tries: int) -> None:
        """A cgroup is busy until its last process has been reaped by whoever is its parent."""
        trouble = []
        if self._cgroup is not None:
            try:
                self._cgroup.destroy()
            except OSError as error:
                if tries > 0:
                    self._kill_rest()
                    self.loop.later(0.02, lambda: self._remove_cgroup(tries - 1))
                    return
                trouble.append(f"removing the cgroup: {error}")
        # The cgroup first: this close unmounts the overlay, which may wait for the disk.
        close_quietly(self._mounts, self.pidfd)
        self._mounts = self.pidfd = -1
        self.status = "gone"
        self.notify({"event": "gone", "trouble": trouble})
        if self.streams.idle:
            self._on_gone()
        else:
            self.loop.later(_STALL_S, self._drop_stalled)

    def _drop_stalled(self) -> None:
        self.streams.abandon()
        self.streams.drop_clients()
        self._on_gone()

    def close_log(self) -> None:
        if self._log is not None:
            self._log.close()

    # --- memory ------------------------------------------------------------------------------------------------

    def _take_oom_watch(self, fd: int) -> None:
        facts = self._share.get("oom")
        if fd < 0 or not facts:
            return
        self._oom = OomWatch(fd, facts["events"], facts["counter"])
        self.loop.watch(fd, self._oom.poll_events, lambda _revents: self._oom_event())

    def _oom_event(self) -> None:
        if self._oom is None:
            return
        self._oom.drain()
        if self._note_oom_kills() or self._oom.poll_events & 1:
            # v1 signals before it kills, v2 also for other events than a kill
            self.notify({"event": "oom"})

    def _note_oom_kills(self) -> bool:
        """Were there kills since we last looked? Remembers for the exit whether there was any."""
        if self._oom is None:
            return False
        try:
            kills = self._oom.kills()
        except OSError:
            return False
        more = kills > self._oom_kills
        self._oom_kills = kills
        self.oom_killed = self.oom_killed or kills > 0
        return more

    # --- orders ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.status in ("running", "paused") and self._ended_status is None

    def check_running(self) -> None:
        if not self.running:
            raise errors.Conflict(f"container {self.id} is not running")

    def cgroup(self) -> Manager:
        self.check_running()
        manager = self._cgroup
        if manager is None:
            raise errors.Conflict(f"container {self.id} has no cgroup")
        return manager

    @property
    def _cgroup(self) -> Manager | None:
        """The handle to the cgroup that the starter made; found when first needed."""
        driver = str(self.cgroup_request.get("driver", "cgroupfs"))
        if self._manager is None and (self.cgroup_request.get("path") or driver == "none"):
            self._manager = open_manager(
                str(self.cgroup_request.get("path", "")),
                driver=driver,
                pid=self.pid,
                rootless=bool(self._share.get("rootless")),
            )
        return self._manager

    def kill(self, signal: int, *, everything: bool = False) -> None:
        if not self.running:
            raise errors.NotFound(f"container {self.id} is not running")
        if everything:
            self.cgroup().kill_all(signal)
        else:
            try:
                pidfd_send_signal(self.pidfd, signal)
            except ProcessLookupError:
                raise errors.NotFound(f"container {self.id} is not running") from None
        if signal == c.SIGNALS["SIGKILL"] and self.status == "paused":
            self.resume()  # a frozen process of v1 dies only when it is thawed

    def pause(self) -> None:
        if self.status == "paused":
            raise errors.Conflict(f"Container {self.id} is already paused")
        self.cgroup().freeze()
        self.status = "paused"
        self._write_state()

    def resume(self) -> None:
        if self.status != "paused":
            raise errors.Conflict(f"Container {self.id} is not paused")
        self.cgroup().thaw()
        self.status = "running"
        self._write_state()

    def resize(self, height: int, width: int) -> None:
        if self.master < 0 or not self.running:
            raise errors.Conflict(f"container {self.id} has no terminal")
        set_window_size(self.master, height, width)

    # --- facts -------------------------------------------------------------------------------------------------

    def state(self) -> Message:
        """protocol.State as the file has it."""
        return {**self._share["state"], "status": self.status, "oom_killed": self.oom_killed}

    def _write_state(self) -> None:
        try:
            replace_file(
                f"{self.directory}/{protocol.STATE_FILE}", fastjson.dump_bytes(self.state()), 0o600
            )
        except OSError as error:
            self.notify(
                {"event": "log_trouble", "message": f"writing state.json: {error}", "lost": 0}
            )
