"""What the engine, the launcher and the shims say to each other: every message, its fields and who sends it.

All talk is over SOCK_SEQPACKET sockets on the file system (never the abstract namespace, CVE-2020-15257), one JSON
object a packet, descriptors beside it (SCM_RIGHTS). `channel.py` carries the packets; this file only names them.

    ENGINE                        LAUNCHER                      SHIM (one per container)
      |  Spawn + control socket      |                            |
      |----------------------------->|  clone3                    |
      |                              |--------------------------->|   the launcher's part ends here
      |  Launch + attach/netns fds                                |
      |---------------------------------------------------------->|   clone3 into namespaces
      |                       reply {pid, start_time, started_at} |
      |<----------------------------------------------------------|
      |  Attach, Exec, Kill, Resize, Pause, Update, Stats ...     |
      |---------------------------------------------------------->|   each gets exactly one reply
      |             Oom, Detached, ExecExit, Exit, Gone           |
      |<----------------------------------------------------------|   events, to whoever subscribed

The engine makes both ends of the control socket, so a shim made ahead of demand is just a socket whose other end is
not used yet, and a launcher that dies loses nothing: the engine sees end of file and asks again. Later engines reach a
shim through `<run>/containers/<id>/shim.sock` and begin with Hello.

Requests carry `op` and `seq`; the reply carries `re` (that seq) and the fields named below, or `error` (see Failure).
Events carry `event`. Unknown fields are ignored and missing ones get the default named here, so that one version
forward and back can talk; `v` is checked in Spawn, Launch and Hello only.

Files in `<run>/containers/<id>/` (mode 0700), written by the shim through a temporary name and rename:

    launch.json   the Launch request as received (debugging, `explain`)
    state.json    State, once the container runs
    exit.json     Exit, once it ended; the truth when the engine was away
    shim.sock     control socket, gone when the shim is gone
    shim.pid      "<pid> <start time>" of the shim
"""

from __future__ import annotations

VERSION = 1

# Longer bodies travel in a memfd that is the last descriptor of the packet, announced by {"body": length}.
INLINE_LIMIT = 48 * 1024
BODY_LIMIT = 16 * 1024 * 1024
MAX_FDS = 64

LAUNCHER_SOCKET = "launcher.sock"
LAUNCHER_LOCK = "launcher.lock"
SHIM_SOCKET = "shim.sock"
SHIM_PID = "shim.pid"
LAUNCH_FILE = "launch.json"
STATE_FILE = "state.json"
EXIT_FILE = "exit.json"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict

    Message = dict[str, Any]

    # --- engine -> launcher ------------------------------------------------------------------------------------

    class Spawn(TypedDict, total=False):
        """Fork one shim that serves the control socket passed as descriptor 0 of the packet. No reply."""

        op: Literal["spawn"]
        v: int

    class Identify(TypedDict):
        """Which code the launcher runs. Reply: {"identity": text}, see starting.identity."""

        op: Literal["identify"]

    class Stop(TypedDict):
        """End the launcher; end of file follows. Containers stay."""

        op: Literal["stop"]

    # --- values inside requests --------------------------------------------------------------------------------

    class Attach(TypedDict, total=False):
        """One client's connection, handed over for good. The HTTP answer (101 or 200) has been written already."""

        fd: int  # index into the packet's descriptors
        stdin: bool  # the client's bytes go to the process
        stdout: bool
        stderr: bool
        framed: bool  # Docker's 8-byte headers; false = raw bytes (tty, or the client asked for one stream)
        logs: (
            bool  # first replay the log, then go on live without gap or repetition (container only)
        )
        stream: bool  # go on live; default true. logs without stream ends the connection after the replay
        detach_keys: list[
            int
        ]  # byte values, e.g. [16, 17]; [] = none. Looked for only where there is a tty
        preread: str  # base64 of client bytes that the HTTP server had read past the request
        name: str  # comes back in Detached and AttachEnd

    class Log(TypedDict, total=False):
        """Where output is recorded (`logs.py`)."""

        driver: str  # "json-file" | "local" | "none"
        path: str  # the file, e.g. <root>/containers/<id>/<id>-json.log; made with mode 0640
        options: dict[
            str, str
        ]  # Docker's words: max-size, max-file, compress, mode, max-buffer-size
        attrs: dict[str, str]  # what --log-opt labels/env/tag select, resolved by the engine

    class Cgroup(TypedDict, total=False):
        path: str  # "/sampan/<id>", or "slice:prefix:name" with the systemd driver
        driver: str  # "cgroupfs" | "systemd"

    # --- engine -> shim ----------------------------------------------------------------------------------------

    class Launch(TypedDict, total=False):
        """Make and start the container. Reply: Started, or a Failure after everything was undone."""

        op: Literal["launch"]
        v: int
        id: str  # 64 hex digits
        dir: str  # <run>/containers/<id>, existing, 0700
        spec: dict[str, Any]  # OCI runtime-spec 1.2 config
        rootfs: str  # directory on which rootfs_mounts go; default spec.root.path
        rootfs_mounts: list[
            dict[str, Any]
        ]  # OCI Mounts that init performs first, in its own mount namespace
        cgroup: Cgroup
        tty: bool  # default spec.process.terminal
        console_size: list[int]  # [height, width]
        open_stdin: bool  # keep a stdin pipe; otherwise /dev/null
        stdin_once: bool  # close the container's stdin when the first attached stdin ends
        log: Log
        attach: list[Attach]  # clients that attached before start
        netns: int  # index of a descriptor of the network namespace; absent = what the spec says
        stop_signal: int  # for the record only
        rootless: bool
        extra: dict[str, Any]  # handed to runtime.plan as further inputs

    class Hello(TypedDict, total=False):
        """First message of an engine on shim.sock. Reply: {"v", "state": State}. With subscribe, events follow."""

        op: Literal["hello"]
        v: int
        subscribe: bool

    class AttachRequest(TypedDict, total=False):
        """Reply: {} once output is wired (so whatever is printed later arrives)."""

        op: Literal["attach"]
        attach: Attach

    class Exec(TypedDict, total=False):
        """Run one more process in the container. Reply: ExecStarted, or a Failure (nothing left behind).

        With `capture`, no client: stdout and stderr together, at most that many bytes, come back in ExecExit
        (health checks). With neither attach nor capture, stdio is /dev/null (detached exec).
        """

        op: Literal["exec"]
        exec_id: str
        process: dict[str, Any]  # OCI process
        tty: bool
        console_size: list[int]
        open_stdin: bool
        attach: Attach
        capture: int
        privileged: bool

    class Kill(TypedDict, total=False):
        """Signal process 1, an exec's process, or (all) everything in the cgroup. Reply: {}. NotFound when ended."""

        op: Literal["kill"]
        signal: int
        exec_id: str
        all: bool

    class Resize(TypedDict, total=False):
        """Window size of the container's or an exec's tty. Reply: {}. Conflict without a tty."""

        op: Literal["resize"]
        height: int
        width: int
        exec_id: str

    class Simple(TypedDict, total=False):
        """No fields. pause, unpause, close_stdin: {}; processes: {"pids": [...]} as the host numbers them;
        log_rotate: {} after the file was rotated now. (Statistics the engine reads from the cgroup itself.)"""

        op: Literal["pause", "unpause", "close_stdin", "processes", "log_rotate"]

    class Update(TypedDict, total=False):
        """New limits. Reply: {"warnings": [...]}."""

        op: Literal["update"]
        resources: dict[str, Any]  # OCI LinuxResources

    class ChangeMounts(TypedDict, total=False):
        """Mounts of the running container. Reply: {}; all were done or none."""

        op: Literal["mount", "unmount"]
        mounts: list[dict[str, Any]]  # OCI Mounts
        sources: list[int]  # for each: index of a descriptor of what it shows, or -1

    # --- shim -> engine: replies -------------------------------------------------------------------------------

    class Started(TypedDict):
        pid: int
        start_time: int  # field 22 of /proc/PID/stat: a pid is two numbers
        started_at: int  # nanoseconds since 1970
        warnings: list[str]

    class ExecStarted(TypedDict):
        pid: int
        start_time: int

    class Failure(TypedDict, total=False):
        """`error` of a reply."""

        kind: str  # class name in errors.py
        message: str  # in Docker's words
        hint: str
        step: str  # what was being done, e.g. "mount proc on /proc"
        errno: int
        exit_code: int  # what Docker would set as State.ExitCode: 126, 127 or 128

    # --- shim -> engine: events, and the files they equal ------------------------------------------------------

    class State(TypedDict, total=False):
        """state.json and the reply to Hello."""

        v: int
        id: str
        status: (
            str  # "created" (before launch) | "running" | "paused" | "exited" (shim is tidying up)
        )
        pid: int
        start_time: int
        started_at: int
        oom_killed: bool
        shim_pid: int
        shim_start_time: int
        cgroup: Cgroup
        execs: dict[str, int]  # running execs: id -> pid (Hello only)
        exit: Exit | None  # Hello only, when status is exited

    class Exit(TypedDict, total=False):
        """exit.json and the event "exit": process 1 ended and all its output is in the log and with the clients."""

        event: Literal["exit"]
        v: int
        id: str
        exit_code: int  # 128 + signal where a signal ended it
        signal: int  # 0 if none
        oom_killed: bool
        started_at: int
        finished_at: int  # nanoseconds since 1970

    class ExecExit(TypedDict, total=False):
        event: Literal["exec_exit"]
        exec_id: str
        exit_code: int
        signal: int
        output: str  # base64, with `capture` only
        truncated: bool

    class Oom(TypedDict):
        event: Literal["oom"]

    class AttachEnd(TypedDict, total=False):
        """A client of a container or exec is gone; `detached` tells that it typed the detach keys."""

        event: Literal["attach_end"]
        name: str
        exec_id: str
        detached: bool

    class LogTrouble(TypedDict):
        """Writing the log failed (disk full); output goes on without it, `lost` bytes so far. Once a minute."""

        event: Literal["log_trouble"]
        message: str
        lost: int

    class Gone(TypedDict, total=False):
        """Nothing holds the root filesystem any more (mounts, cgroup, namespaces): the snapshot may be mounted
        again, committed or deleted. The last event; end of file follows. Never wait for it after the shim died:
        end of file says the same."""

        event: Literal["gone"]
        trouble: list[str]  # what could not be tidied


def docker_exit_code(message: str) -> int:
    """The exit code that a failure to start gets: 127 not found, 126 cannot be executed, 128 anything else.

    The words are the ones Docker itself looks for (moby daemon/errors.go).
    """
    text = message.lower()
    for words in (
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ):
        if words in text:
            return 127
    if "not a directory" in text:
        return 127
    for words in ("permission denied", "is a directory", "exec format error"):
        if words in text:
            return 126
    return 128
