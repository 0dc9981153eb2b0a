"""The container of a shim, from Launch to Gone.

    launch      log, stdio, runtime.Launch.create, mount namespace held, start          -> state.json, reply
    running     kill, pause, update ... (orders.py); output pumped (stdio.py); execs (execs.py)
    ended       process 1 reaped, output drained, exit.json written                     -> event "exit"
    torn down   mounts let go, cgroup removed                                           -> event "gone"

The mount namespace is held by a descriptor from before the process runs. Without it the exit of process 1 would
unmount the overlay before its parent hears of it, and that syncs the whole upper file system: 65 ms with 200 MB dirty
against 8.8 (performance 0.3). The price: the same upper directory must not be used again before "gone".
"""

from __future__ import annotations

import posix
import struct
import time

from sampan import errors
from sampan.linux import constants as c
from sampan.linux import fastjson, procfs
from sampan.linux.fds import close_quietly
from sampan.linux.paths import replace_file
from sampan.linux.process import decode_status
from sampan.linux.syscalls import ioctl, pidfd_send_signal
from sampan.runtime.channel import LaunchError
from sampan.runtime.launch import Launch
from sampan.runtime.plan import make_plan
from sampan.shim import protocol
from sampan.shim.logread import LogReader
from sampan.shim.logs import LineLog, open_log
from sampan.shim.stdio import Client, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cgroups.manager import Manager
    from sampan.cgroups.watch import OomWatch
    from sampan.runtime.plan import LaunchPlan
    from sampan.runtime.seccomp_cache import Program
    from sampan.shim.loop import Loop

    Message = dict[str, Any]

_TIOCSWINSZ = 0x5414  # asm-generic/ioctls.h
_DRAIN_S = 2.0  # how long an exit waits for output that does not end, as in moby daemon/monitor.go
_STALL_S = 60.0  # how long an ended container keeps a client that does not read
_CGROUP_TRIES = 50


class Pipes:
    """The pipes of a process without a tty: its ends and ours."""

    def __init__(self, *, stdin: bool, output: bool = True) -> None:
        self.outputs: dict[int, str] = {}
        self.stdin = -1
        theirs: list[int] = []
        try:
            if stdin:
                reader, self.stdin = posix.pipe2(posix.O_CLOEXEC)
                theirs.append(reader)
            else:
                theirs.append(posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC))
            for name in ("stdout", "stderr"):
                if output:
                    reader, writer = posix.pipe2(posix.O_CLOEXEC)
                    self.outputs[reader] = name
                    theirs.append(writer)
                else:
                    theirs.append(posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC))
        except OSError:
            close_quietly(*theirs)
            self.close_ours()
            raise
        self.theirs = (theirs[0], theirs[1], theirs[2])

    def close_theirs(self) -> None:
        close_quietly(*self.theirs)
        self.theirs = (-1, -1, -1)

    def close_ours(self) -> None:
        close_quietly(self.stdin, *self.outputs)
        self.stdin = -1
        self.outputs = {}


def set_window_size(fd: int, height: int, width: int) -> None:
    size = bytearray(struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))
    ioctl(fd, _TIOCSWINSZ, bytes(size))


def make_client(attach: Message, fds: list[int]) -> Client:
    """A protocol.Attach as a client that owns its descriptor; the number in `fds` becomes -1."""
    index = attach.get("fd", 0)
    if not isinstance(index, int) or not 0 <= index < len(fds) or fds[index] < 0:
        raise errors.InvalidArgument("attach without a descriptor")
    fd, fds[index] = fds[index], -1
    preread = attach.get("preread") or ""
    return Client(
        fd,
        stdin=bool(attach.get("stdin")),
        stdout=bool(attach.get("stdout")),
        stderr=bool(attach.get("stderr")),
        framed=bool(attach.get("framed")),
        detach_keys=bytes(attach.get("detach_keys") or ()),
        preread=_decode_base64(preread),
        name=str(attach.get("name", "")),
    )


def _decode_base64(text: str) -> bytes:
    import binascii  # built in, or loaded by logformat

    return binascii.a2b_base64(text) if text else b""


class Container:
    """One container. `notify` sends an event to the engines, `on_gone` ends the shim."""

    def __init__(
        self,
        loop: Loop,
        request: Message,
        *,
        notify: Callable[[Message], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.id = str(request["id"])
        self.directory = str(request["dir"])
        self.notify = notify
        self._on_gone = on_gone
        self.status = "created"
        self.tty = bool(request.get("tty"))
        self.stdin_once = bool(request.get("stdin_once"))
        self.log_request: Message = request.get("log") or {"driver": "none"}
        self.cgroup_request: Message = request.get("cgroup") or {}
        self.pid = 0
        self.start_time = 0
        self.started_at = 0
        self.exit: Message | None = None
        self.warnings: list[str] = []
        self.oom_killed = False
        self.master = -1
        self.pidfd = -1
        self.streams = Streams(loop)
        self.spec: Any = {}
        self.filter: Program | None = None
        self._cgroup: Manager | None = None
        self._oom: OomWatch | None = None
        self._oom_kills = 0
        self._mounts = -1
        self._log: Any = None
        self._ended_status: int | None = None
        self._finished_at = 0
        self._shares_pids = False

    # --- launch ------------------------------------------------------------------------------------------------

    def launch(self, request: Message, fds: list[int]) -> Message:
        """Make and start it; protocol.Started. On failure everything is undone and the reason raised."""
        pipes: Pipes | None = None
        starter: Launch | None = None
        try:
            self._log = open_log(self.log_request)
            self.streams = self._make_streams()
            for attach in request.get("attach") or ():
                self._add_client(attach, fds)
            if not self.tty:
                pipes = Pipes(stdin=bool(request.get("open_stdin")))
            plan = self._plan(request, fds)
            self.filter = plan.filter
            starter = Launch(plan, stdio=pipes.theirs if pipes else ())
            self._create(starter, request)
            self.started_at = time.time_ns()
            starter.start()
        except BaseException:
            self._undo(pipes, starter)
            raise
        if pipes is not None:
            pipes.close_theirs()
            self.streams.open(pipes.outputs, pipes.stdin)
        else:
            stdin = self.master if request.get("open_stdin") else -1
            self.streams.open({self.master: "stdout"}, stdin)
        self.status = "running"
        self._watch_oom()
        self._write_state()
        return {
            "pid": self.pid,
            "start_time": self.start_time,
            "started_at": self.started_at,
            "warnings": self.warnings,
        }

    def _plan(self, request: Message, fds: list[int]) -> LaunchPlan:
        spec = request["spec"]
        if not isinstance(spec.get("process"), dict):
            raise errors.InvalidArgument("process: required to start a container")
        self.spec = _what_execs_need(spec)
        namespaces = (spec.get("linux") or {}).get("namespaces") or ()
        self._shares_pids = not any(
            entry.get("type") == "pid" and not entry.get("path") for entry in namespaces
        )
        netns = request.get("netns", -1)
        extra = dict(request.get("extra") or {})
        extra["die_with_parent"] = True
        return make_plan(
            spec,
            container_id=self.id,
            bundle=self.directory,
            rootfs=request.get("rootfs") or None,
            rootfs_mounts=request.get("rootfs_mounts") or (),
            cgroup_path=str(self.cgroup_request.get("path", "")),
            cgroup_driver=str(self.cgroup_request.get("driver", "cgroupfs")),
            netns_fd=fds[netns] if isinstance(netns, int) and 0 <= netns < len(fds) else -1,
            rootless=bool(request.get("rootless")),
            extra=extra,
            image_root=True,
        )

    def _create(self, starter: Launch, request: Message) -> None:
        child = starter.create()
        self.pid, self.pidfd, self.start_time = child.pid, child.pidfd, child.start_time
        self.master = child.console_fd
        self._cgroup = starter.cgroup
        self.warnings = list(starter.warnings)
        self._mounts = child.hold_mounts()
        size = request.get("console_size")
        if self.master >= 0 and size:
            set_window_size(self.master, size[0], size[1])

    def _undo(self, pipes: Pipes | None, starter: Launch | None) -> None:
        """After a failed launch. The runtime has already reaped its child and removed its cgroup."""
        if pipes is not None:
            pipes.close_theirs()
            pipes.close_ours()
        self.streams.close()
        if self._log is not None:
            self._log.close()
        close_quietly(self._mounts, self.master, self.pidfd)

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
        close_quietly(self._mounts, self.pidfd)
        self._mounts = self.pidfd = -1
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

    def _watch_oom(self) -> None:
        if self._cgroup is None:
            return
        try:
            self._oom = self._cgroup.oom_watch()
        except (OSError, ValueError):  # no memory controller here
            return
        self.loop.watch(
            self._oom.fileno(), self._oom.poll_events, lambda _revents: self._oom_event()
        )

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

    def cgroup(self) -> Manager:
        if self._cgroup is None or not self.running:
            raise errors.Conflict(f"container {self.id} is not running")
        return self._cgroup

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
        me = posix.getpid()
        return {
            "v": protocol.VERSION,
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "start_time": self.start_time,
            "started_at": self.started_at,
            "oom_killed": self.oom_killed,
            "shim_pid": me,
            "shim_start_time": procfs.start_time(me),
            "cgroup": self.cgroup_request,
        }

    def _write_state(self) -> None:
        try:
            replace_file(
                f"{self.directory}/{protocol.STATE_FILE}", fastjson.dump_bytes(self.state()), 0o600
            )
        except OSError as error:
            self.warnings.append(f"writing state.json: {error}")


def _what_execs_need(spec: Message) -> Message:
    """The part of a spec that an exec falls back on: the process's limits and labels. Environment, mounts and a
    seccomp profile's tables need not stay in memory for the container's whole life."""
    process = {key: value for key, value in spec["process"].items() if key not in ("args", "env")}
    return {"ociVersion": spec.get("ociVersion", ""), "process": process}


__all__ = ["Container", "LaunchError", "Pipes", "make_client", "set_window_size"]
