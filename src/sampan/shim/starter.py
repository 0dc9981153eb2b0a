"""The STARTER: a fork of a spare shim that makes the container, hands it over, and leaves.

    engine --Launch--> STARTER --clone3(CLONE_PARENT)--> process 1      (a child of the SHIM, not of the starter)
                          |
                          +--the shim's share: pids, descriptors, what execs need--> SHIM

Why a process for it: reading a spec, planning and launching touch two megabytes of a heap that is otherwise shared with
the launcher. Python writes reference counts into every object it looks at, so the shim would keep those pages for the
container's whole life; here they go away with the starter (2.4 MB of private memory a container became 1.3). The fork
happens while the shim is still a spare, so it costs no start any time.

The starter owns nothing that lasts. If it dies the shim sees end of file and leaves, and the engine asks again.
"""

from __future__ import annotations

import binascii
import posix
import time

from sampan import errors
from sampan.cgroups.host import HostWatch
from sampan.linux import fastjson
from sampan.linux.fds import close_quietly
from sampan.linux.memory import populate
from sampan.linux.paths import replace_file
from sampan.linux.process import set_name, set_parent_death_signal
from sampan.linux.procfs import start_time
from sampan.runtime.launch import Launch
from sampan.runtime.plan import make_plan
from sampan.shim import protocol
from sampan.shim.channel import listen
from sampan.shim.container import check_attach, make_client
from sampan.shim.failure import complain, failure_of
from sampan.shim.logs import open_log
from sampan.shim.pipes import Pipes, set_window_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from sampan.cgroups.host import CgroupHost
    from sampan.runtime.plan import LaunchPlan
    from sampan.runtime.seccomp_cache import Program
    from sampan.shim.channel import Channel

    Message = dict[str, Any]

_SHARED = (
    "seq",
    "id",
    "dir",
    "tty",
    "open_stdin",
    "stdin_once",
    "log",
    "cgroup",
    "attach",
    "rootless",
)
_SIGKILL = 9


def run(control: Channel, shim: Channel) -> NoReturn:
    """The starter's whole life: the first Launch that comes, or end of file."""
    try:
        set_parent_death_signal(_SIGKILL)
        set_name("sampan-starter")
        hosts = HostWatch()
        populate()
        received = _await_launch(control)
        if received is not None:
            _serve(Start(*received, hosts.host()), control, shim)
    except BaseException as error:  # noqa: BLE001 - this process may only leave by _exit
        complain(error)
    finally:
        posix._exit(0)


def _await_launch(control: Channel) -> tuple[Message, list[int]] | None:
    """None at end of file. Anything else than a Launch of our version is refused and waited past."""
    while True:
        received = control.receive()
        if received is None:
            return None
        message, fds = received
        try:
            if message.get("op") != "launch":
                raise errors.Conflict("nothing was launched here yet")
            if message.get("v") != protocol.VERSION:
                raise errors.Unsupported(
                    f"this shim speaks version {protocol.VERSION}, not {message.get('v')!r}"
                )
        except errors.SampanError as error:
            close_quietly(*fds)
            control.send({"re": message.get("seq"), "error": failure_of(error)})
            continue
        return message, fds


def _serve(start: Start, control: Channel, shim: Channel) -> None:
    """Start it, write it down, answer the engine, hand over, tidy up: the engine waits for the first three only."""
    message = start.message
    try:
        share, descriptors = start.perform()
        directory = share["dir"]
        _write(f"{directory}/{protocol.STATE_FILE}", share["state"])
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the engine's to know
        start.refuse_clients()
        control.send({"re": message.get("seq"), "error": failure_of(error)})
        return
    control.send({"re": message.get("seq"), **share["started"]})
    control.close()
    _open_door(share, descriptors)
    _keep_request(message)
    shim.send(
        share, descriptors
    )  # from here on the shim may report the end and the directory may go


def _keep_request(message: Message) -> None:
    """launch.json, for people and `explain`; a container is not lost for want of it."""
    record = {key: value for key, value in message.items() if key not in ("attach", "seq")}
    try:
        _write(f"{message['dir']}/{protocol.LAUNCH_FILE}", record)
    except OSError as error:
        complain(error)


def _write(path: str, value: Message) -> None:
    replace_file(path, fastjson.dump_bytes(value), 0o600)


def _open_door(share: Message, descriptors: list[int]) -> None:
    """The socket for later engines, and who serves it. A container is not lost for want of it."""
    directory, state = share["dir"], share["state"]
    try:
        listener = listen(f"{directory}/{protocol.SHIM_SOCKET}")
        who = b"%d %d\n" % (state["shim_pid"], state["shim_start_time"])
        replace_file(f"{directory}/{protocol.SHIM_PID}", who, 0o600)
    except OSError as error:
        complain(error)
        return
    share["places"]["listener"] = len(descriptors)
    descriptors.append(listener.detach())


class Start:
    """One container being started."""

    def __init__(self, message: Message, fds: list[int], host: CgroupHost) -> None:
        self.message = message
        self._host = host
        self._fds = fds
        self._pipes: Pipes | None = None

    def perform(self) -> tuple[Message, list[int]]:
        """(the shim's share, its descriptors). On failure everything is undone."""
        message = self.message
        spec = message.get("spec")
        if not isinstance(spec, dict) or not isinstance(spec.get("process"), dict):
            raise errors.InvalidArgument("process: required to start a container")
        for attach in message.get("attach") or ():
            check_attach(attach, len(self._fds))
        open_log(
            message.get("log") or {"driver": "none"}
        ).close()  # what cannot be logged is not started
        mounts = -1
        plan = self._plan()
        try:
            if not message.get("tty"):
                self._pipes = Pipes(stdin=bool(message.get("open_stdin")))
            starter = Launch(
                plan,
                stdio=self._pipes.theirs if self._pipes else (),
                cgroup_host=self._host,
                sibling=True,
            )
            child = starter.create()
            mounts = child.hold_mounts()
            size = message.get("console_size")
            if child.console_fd >= 0 and size:
                set_window_size(child.console_fd, size[0], size[1])
            started_at = time.time_ns()
            starter.start()
        except BaseException:
            close_quietly(mounts)
            raise
        if self._pipes is not None:
            self._pipes.close_theirs()
        started = {
            "pid": child.pid,
            "start_time": child.start_time,
            "started_at": started_at,
            "warnings": list(starter.warnings),
        }
        return self._share(plan, starter, started, mounts)

    def refuse_clients(self) -> None:
        """Those who attached before the start see the end."""
        for attach in self.message.get("attach") or ():
            try:
                make_client(attach, self._fds).close()
            except errors.SampanError:
                pass

    def _plan(self) -> LaunchPlan:
        message, fds = self.message, self._fds
        netns = message.get("netns", -1)
        cgroup = message.get("cgroup") or {}
        return make_plan(
            message["spec"],
            container_id=str(message["id"]),
            bundle=str(message["dir"]),
            rootfs=message.get("rootfs") or None,
            rootfs_mounts=message.get("rootfs_mounts") or (),
            cgroup_path=str(cgroup.get("path", "")),
            cgroup_driver=str(cgroup.get("driver", "cgroupfs")),
            cgroup_host=self._host,
            netns_fd=fds[netns] if isinstance(netns, int) and 0 <= netns < len(fds) else -1,
            rootless=bool(message.get("rootless")),
            extra={**(message.get("extra") or {}), "die_with_parent": True},
            image_root=True,
        )

    def _share(
        self, plan: LaunchPlan, starter: Launch, started: Message, mounts: int
    ) -> tuple[Message, list[int]]:
        """What the shim needs from now on. The engine's descriptors come first, so that attach indices hold."""
        message = self.message
        child = starter.child
        if child is None:
            raise AssertionError("started without a child")
        named = {"pidfd": child.pidfd, "mounts": mounts, "master": child.console_fd}
        if self._pipes is not None:
            named["stdin"] = self._pipes.stdin
            named.update({name: fd for fd, name in self._pipes.outputs.items()})
        oom = _watch_oom(starter)
        if oom is not None:
            named["oom"] = oom.fileno()
        descriptors = list(self._fds)
        places = {}
        for name, fd in named.items():
            if fd >= 0:
                places[name] = len(descriptors)
                descriptors.append(fd)
        share = {key: message[key] for key in _SHARED if key in message}
        share |= {
            "started": started,
            "state": self._state(started),
            "places": places,
            "shares_pids": _shares_pids(message["spec"]),
            "oom": None
            if oom is None
            else {"events": oom.poll_events, "counter": oom.counter_file},
            "spec": _what_execs_need(message["spec"]),
            "filter": _pack_filter(plan.filter),
        }
        return share, descriptors

    def _state(self, started: Message) -> Message:
        """protocol.State; the shim is our parent."""
        shim = posix.getppid()
        return {
            "v": protocol.VERSION,
            "id": str(self.message["id"]),
            "status": "running",
            "pid": started["pid"],
            "start_time": started["start_time"],
            "started_at": started["started_at"],
            "oom_killed": False,
            "shim_pid": shim,
            "shim_start_time": start_time(shim),
            "cgroup": self.message.get("cgroup") or {},
        }


def _watch_oom(starter: Launch) -> Any:
    if starter.cgroup is None:
        return None
    try:
        return starter.cgroup.oom_watch()
    except (OSError, ValueError):  # no memory controller here
        return None


def _shares_pids(spec: Message) -> bool:
    """No pid namespace of its own: process 1's end does not end the others."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    return not any(entry.get("type") == "pid" and not entry.get("path") for entry in namespaces)


def _what_execs_need(spec: Message) -> Message:
    """The part of a spec that an exec falls back on: the process's limits and labels."""
    process = {key: value for key, value in spec["process"].items() if key not in ("args", "env")}
    return {"ociVersion": spec.get("ociVersion", ""), "process": process}


def _pack_filter(program: Program | None) -> Message | None:
    """A compiled seccomp filter for the shim, which installs it in its execs (unpack_filter there)."""
    if program is None:
        return None
    return {
        "instructions": binascii.b2a_base64(program.instructions, newline=False).decode(),
        "flags": program.flags,
        "uses_notify": program.uses_notify,
        "listener_path": program.listener_path,
        "listener_metadata": program.listener_metadata,
    }
