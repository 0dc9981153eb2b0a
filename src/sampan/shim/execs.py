"""More processes in a running container: each with its own stdio, tty, exit code, signals and size.

The shim forks them itself (runtime.join: one fork), so no other process is between `exec` and the program.
"""

from __future__ import annotations

import binascii
import posix

from sampan import errors
from sampan.linux.fds import close_quietly
from sampan.linux.process import decode_status
from sampan.linux.syscalls import pidfd_send_signal
from sampan.runtime.join import join, make_join_plan
from sampan.shim.container import make_client
from sampan.shim.pipes import Pipes, set_window_size
from sampan.shim.stdio import Client, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.shim.container import Container

    Message = dict[str, Any]

_DRAIN_S = 2.0  # after the process ended: a child of its that keeps the pipes open is not waited for any longer
CAPTURE_LIMIT = 1 << 20


class Exec:
    """One exec session, from its request until its exit was told."""

    def __init__(
        self, container: Container, request: Message, on_end: Callable[[Exec], None]
    ) -> None:
        self.id = str(request.get("exec_id", ""))
        self.tty = bool(request.get("tty"))
        self.pid = 0
        self._container = container
        self._pidfd = -1
        self._master = -1
        self._status: int | None = None
        self._told = False
        self._on_end = on_end
        capture = request.get("capture", -1)
        self._capture = min(int(capture), CAPTURE_LIMIT) if isinstance(capture, int) else -1
        self._streams = Streams(
            container.loop,
            tty=self.tty,
            stdin_once=True,
            capture=self._capture,
            on_end=self._output_ended,
            on_client_end=self._client_ended,
        )

    def start(self, request: Message, fds: list[int]) -> Message:
        """protocol.ExecStarted, or the reason raised with nothing left."""
        attach = request.get("attach")
        client = make_client(attach, fds) if attach else None
        pipes: Pipes | None = None
        try:
            if not self.tty:
                pipes = Pipes(
                    stdin=bool(request.get("open_stdin")),
                    output=client is not None or self._capture >= 0,
                )
            cgroup = self._container.cgroup()
            plan = make_join_plan(
                request["process"],
                spec=self._container.spec,
                pid=self._container.pid,
                start_time=self._container.start_time,
                container_id=self._container.id,
                program=self._container.filter,
                all_capabilities=bool(request.get("privileged")),
            )
            child = join(plan, stdio=pipes.theirs if pipes else (), cgroup=cgroup)
        except BaseException:
            if client is not None:
                client.let_go()  # not shut down: the engine tells the reason on its own descriptor
            if pipes is not None:
                pipes.close_theirs()
                pipes.close_ours()
            raise
        self.pid, self._pidfd, self._master = child.pid, child.pidfd, child.console_fd
        self._wire(request, client, pipes)
        return {"pid": child.pid, "start_time": child.start_time}

    def _wire(self, request: Message, client: Client | None, pipes: Pipes | None) -> None:
        if client is not None:
            self._streams.add_client(client)
        if pipes is not None:
            pipes.close_theirs()
            self._streams.open(pipes.outputs, pipes.stdin)
            return
        size = request.get("console_size")
        if size:
            set_window_size(self._master, size[0], size[1])
        self._streams.open(
            {self._master: "stdout"}, self._master if request.get("open_stdin") else -1
        )

    # --- orders ------------------------------------------------------------------------------------------------

    def kill(self, signal: int) -> None:
        try:
            if self._status is not None:
                raise ProcessLookupError
            pidfd_send_signal(self._pidfd, signal)
        except ProcessLookupError:
            raise errors.NotFound(f"exec {self.id} is not running") from None

    def resize(self, height: int, width: int) -> None:
        if self._master < 0 or self._streams.ended:
            raise errors.Conflict(f"exec {self.id} has no terminal")
        set_window_size(self._master, height, width)

    # --- the end -----------------------------------------------------------------------------------------------

    def ended(self, status: int) -> None:
        """Its process was reaped."""
        self._status = status
        if self._streams.ended:
            self._tell()
        else:
            self._container.loop.later(_DRAIN_S, self._tell)

    def _output_ended(self) -> None:
        if self._status is not None:
            self._tell()

    def _client_ended(self, client: Client, detached: bool) -> None:
        self._container.notify(
            {"event": "attach_end", "name": client.name, "exec_id": self.id, "detached": detached}
        )

    def _tell(self) -> None:
        """Once: the exit code, after all output (or after its time was up)."""
        status = self._status
        if self._told or status is None:
            return
        self._told = True
        event: Message = {
            "event": "exec_exit",
            "exec_id": self.id,
            "exit_code": decode_status(status),
            "signal": posix.WTERMSIG(status) if posix.WIFSIGNALED(status) else 0,
        }
        if self._capture >= 0:
            event["output"] = binascii.b2a_base64(self._streams.captured, newline=False).decode()
            event["truncated"] = self._streams.truncated
        close_quietly(self._pidfd)
        self._pidfd = -1
        self._container.notify(event)  # before the client sees the end: it asks for the code then
        self._streams.abandon()
        self._streams.release_clients()
        self._on_end(self)
