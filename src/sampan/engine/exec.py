"""Exec: one more process in a running container. Create, start, resize, inspect; and capture for health checks.

create   an ExecRecord, in memory only: it lives as long as the engine, and five minutes after its end
start    the shim joins a child to the container; the client's connection goes to the shim with the request
"""

from __future__ import annotations

import asyncio
import os
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import msgspec

from sampan import ids
from sampan.engine import health, resources, specgen, users, validate
from sampan.engine.records import ExecRecord
from sampan.engine.streams import parse_detach_keys
from sampan.engine.words import as_runtime_error, granted_capabilities
from sampan.errors import Conflict, InvalidArgument, NotFound, SampanError
from sampan.shim.protocol import docker_exit_code
from sampan.spec.engine.container import (
    ExecConfig,
    ExecInspect,
    ExecProcess,
    ExecStart,
    IdResponse,
)

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container
    from sampan.spec.runtime import Process

KEPT_S = 300.0
EXEC_FAILED = "OCI runtime exec failed: exec failed: "
RESIZE_PATIENCE_S = 10.0


# -- create ----------------------------------------------------------------------------------------


async def create(engine: Engine, ref: str, config: ExecConfig) -> IdResponse:
    """Remember a process to run; who it runs as is looked up now, so that a wrong user fails here."""
    container = engine.containers.find(ref)
    _check_running(container, ref)
    if not config.cmd:
        raise InvalidArgument("No exec command specified")
    validate.check_environment(config.env)
    if any("\0" in text for text in config.cmd):
        raise InvalidArgument("the command must not contain NUL")
    parse_detach_keys(config.detach_keys)
    if config.user:
        await engine.run_blocking(_user, engine, container, config.user)
    forget_old(engine)
    record = ExecRecord(id=ids.new_id(), container_id=container.id, config=config)
    engine.execs[record.id] = record
    container.execs.add(record.id)
    words = " ".join(config.cmd)
    engine.events.tell(
        "container",
        f"exec_create: {words}",
        container.id,
        container.attributes(execID=record.id),
    )
    return IdResponse(id=record.id)


def _check_running(container: Container, ref: str = "") -> None:
    if container.state.restarting and not container.is_running:
        raise Conflict(
            f"Container {container.id} is restarting, wait until the container is running"
        )
    if not container.is_running:
        raise Conflict(f"container {container.id} is not running")
    if container.state.paused:
        named = ref or container.id
        raise Conflict(f"Container {named} is paused, unpause the container before exec")


def forget_old(engine: Engine) -> None:
    """Ended ones are kept for a while, since clients ask for the exit code after the stream's end."""
    limit = time.monotonic() - KEPT_S
    for record in list(engine.execs.values()):
        if record.finished_at and record.finished_at < limit:
            del engine.execs[record.id]
            container = engine.containers.get(record.container_id)
            if container is not None:
                container.execs.discard(record.id)


def _find(engine: Engine, exec_id: str) -> tuple[ExecRecord, Container]:
    record = engine.execs.get(exec_id)
    container = engine.containers.get(record.container_id) if record else None
    if record is None or container is None:
        raise NotFound(f"No such exec instance: {exec_id}")
    return record, container


# -- start -----------------------------------------------------------------------------------------


class ExecStream:
    """An exec start that was accepted: waiting for the connection."""

    def __init__(
        self, engine: Engine, container: Container, record: ExecRecord, options: ExecStart
    ) -> None:
        self._engine = engine
        self._container = container
        self._record = record
        self._options = options
        self.tty = (
            options.tty
        )  # of the start, not of the process: clients unframe by what they asked for here

    async def run(self, fd: int, preread: bytes) -> None:
        """Start the process on this connection; a failure is told in the stream, as Docker does."""
        config = self._record.config
        attach = {
            "stdin": config.attach_stdin,
            "stdout": config.attach_stdout,
            "stderr": config.attach_stderr,
            "framed": not self.tty,
            "stream": True,
            "detach_keys": parse_detach_keys(config.detach_keys),
            "preread": b64encode(preread).decode(),
            "name": self._record.id[:16],
            "fd": 0,
        }
        try:
            await _begin(self._engine, self._container, self._record, self._options, attach, fd)
        except SampanError as error:
            await self._engine.run_blocking(_tell, fd, error.message, tty=self.tty)
        finally:
            os.close(fd)


def _tell(fd: int, message: str, *, tty: bool) -> None:
    """As output of the process that never was: clients show it where they would have shown that."""
    data = message.encode() + b"\r\n"
    if not tty:
        data = b"\x01\x00\x00\x00" + len(data).to_bytes(4, "big") + data
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the client went away


async def start(engine: Engine, exec_id: str, options: ExecStart) -> ExecStream | None:
    """Run it: detached at once (None), otherwise on the connection that `run` will be given."""
    record, container = _find(engine, exec_id)
    if record.started:
        state = "is already running" if record.running else "has already run"
        raise Conflict(f"exec command {exec_id} {state}")
    _check_running(container)
    record = _save(engine, record, started=True)
    if not options.detach:
        return ExecStream(engine, container, record, options)
    await _begin(engine, container, record, options, None, -1)
    return None


def _save(engine: Engine, record: ExecRecord, **changes: Any) -> ExecRecord:
    fresh = msgspec.structs.replace(engine.execs.get(record.id, record), **changes)
    engine.execs[record.id] = fresh
    return fresh


async def _begin(
    engine: Engine,
    container: Container,
    record: ExecRecord,
    options: ExecStart,
    attach: dict[str, Any] | None,
    fd: int,
) -> None:
    config = record.config
    shim = container.shim
    try:
        if shim is None:
            raise Conflict(f"container {container.id} is not running")
        if config.working_dir and not config.working_dir.startswith("/"):
            raise InvalidArgument(f"{EXEC_FAILED}Cwd must be an absolute path: unknown")
        process = await engine.run_blocking(_process, engine, container, config)
        request: dict[str, Any] = {
            "op": "exec",
            "exec_id": record.id,
            "process": process,
            "tty": config.tty,
            "open_stdin": config.attach_stdin,
            "privileged": config.privileged,
        }
        size = options.console_size or config.console_size
        if size and config.tty:
            request["console_size"] = list(size)
        if attach is not None:
            request["attach"] = attach
        words = " ".join(config.cmd or ())
        engine.events.tell(
            "container",
            f"exec_start: {words}",
            container.id,
            container.attributes(execID=record.id),
        )
        _save(engine, record, running=True)
        reply = await shim.call(request, [fd] if fd >= 0 else [], timeout=120)
    except SampanError as failure:
        error = as_runtime_error(failure, EXEC_FAILED)
        code = getattr(error, "exit_code", 0) or docker_exit_code(error.message)
        _save(
            engine, record, running=False, exit_code=126 if code == 128 else code,
            finished_at=time.monotonic(),
        )  # fmt: skip
        raise error from failure
    if engine.execs.get(record.id, record).finished_at == 0.0:
        _save(engine, record, pid=int(reply.get("pid", 0)))


def ended(engine: Engine, container: Container, message: dict[str, Any]) -> None:
    """The shim's exec_exit event."""
    exec_id = str(message.get("exec_id", ""))
    waiter = engine.captures.pop(exec_id, None)
    if waiter is not None:
        if not waiter.done():
            waiter.set_result(message)
        return
    record = engine.execs.get(exec_id)
    if record is None:
        return
    code = int(message.get("exit_code", 0))
    _save(engine, record, running=False, exit_code=code, pid=0, finished_at=time.monotonic())
    engine.events.tell(
        "container",
        "exec_die",
        container.id,
        container.attributes(execID=exec_id, exitCode=str(code)),
    )


def container_ended(engine: Engine, container: Container) -> None:
    """Process 1 took every exec with it."""
    for exec_id in container.execs:
        record = engine.execs.get(exec_id)
        if record is not None and record.running:
            _save(engine, record, running=False, exit_code=137, pid=0, finished_at=time.monotonic())


# -- the process -----------------------------------------------------------------------------------


def _user(engine: Engine, container: Container, text: str) -> users.ExecUser:
    """Blocking: by the container's own passwd and group, read through its process 1's root."""
    record = container.record
    with resources.running_root(container.state) as root:
        return users.resolve(
            text,
            passwd=resources.read_database(root, users.PASSWD),
            group=resources.read_database(root, users.GROUP),
            additional=tuple(record.host_config.group_add or ()),
        )


def _process(engine: Engine, container: Container, config: ExecConfig) -> Process:
    record = container.record
    host = record.host_config
    user = _user(engine, container, config.user or record.config.user)
    privileged = config.privileged or host.privileged
    names = granted_capabilities(host.cap_add, host.cap_drop, privileged=privileged)
    process: Process = {
        "terminal": config.tty,
        "args": list(config.cmd or ()),
        "env": _environment(container, config, user),
        "cwd": config.working_dir or record.config.working_dir or "/",
        "user": user.as_oci(engine.facts),
        "capabilities": specgen.capability_sets(names, user.uid),
        "oomScoreAdj": host.oom_score_adj,
    }
    if specgen.no_new_privileges(host):
        process["noNewPrivileges"] = True
    profile = specgen.apparmor_profile(host)
    if profile:
        process["apparmorProfile"] = profile
    return process


def _environment(container: Container, config: ExecConfig, user: users.ExecUser) -> list[str]:
    """The container's, then what the request says; HOME follows the user."""
    record = container.record
    merged = {"PATH": specgen.DEFAULT_PATH, "HOSTNAME": f"HOSTNAME={record.config.hostname}"}
    if config.tty:
        merged["TERM"] = "TERM=xterm"
    wanted = [*(record.config.env or ()), *(config.env or ())]
    return specgen.complete_environment(merged, wanted, user)


# -- capture ---------------------------------------------------------------------------------------


async def capture(
    engine: Engine, container: Container, argv: list[str], *, limit: int, timeout_s: float
) -> tuple[int, str]:
    """Run a command and return its exit code and output; TimeoutError after it was killed for taking too long."""
    shim = container.shim
    if shim is None:
        raise Conflict(f"container {container.id} is not running")
    exec_id = ids.new_id()
    config = ExecConfig(cmd=argv, attach_stdout=True, attach_stderr=True)
    process = await engine.run_blocking(_process, engine, container, config)
    waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    engine.captures[exec_id] = waiter
    request = {"op": "exec", "exec_id": exec_id, "process": process, "capture": limit}
    try:
        async with asyncio.timeout(timeout_s):
            await shim.call(request, timeout=None)
            message = await waiter
    except TimeoutError:
        await _kill_quietly(container, exec_id)
        raise
    finally:
        engine.captures.pop(exec_id, None)
    return int(message.get("exit_code", 0)), health.decode_output(str(message.get("output", "")))


async def _kill_quietly(container: Container, exec_id: str) -> None:
    if container.shim is not None:
        try:
            await container.shim.call({"op": "kill", "signal": 9, "exec_id": exec_id})
        except SampanError:
            pass  # it has just ended


# -- the rest --------------------------------------------------------------------------------------


async def resize(engine: Engine, exec_id: str, *, height: int, width: int) -> None:
    """The window of an exec's terminal; clients ask before the process is there, so wait for it."""
    record, container = _find(engine, exec_id)
    deadline = time.monotonic() + RESIZE_PATIENCE_S
    while not engine.execs.get(exec_id, record).pid:
        current = engine.execs.get(exec_id, record)
        if time.monotonic() > deadline or current.finished_at or not current.started:
            raise Conflict(f"exec command {exec_id} is not running")
        await asyncio.sleep(0.01)
    if container.shim is None:
        raise Conflict(f"container {container.id} is not running")
    await container.shim.call(
        {"op": "resize", "height": height, "width": width, "exec_id": exec_id}
    )


async def inspect(engine: Engine, exec_id: str) -> ExecInspect:
    record, container = _find(engine, exec_id)
    if record.running and container.shim is not None:
        container.shim.drain()
        record = engine.execs.get(exec_id, record)
    config = record.config
    argv = list(config.cmd or ())
    return ExecInspect(
        id=record.id,
        running=record.running,
        exit_code=record.exit_code,
        process_config=ExecProcess(
            tty=config.tty,
            entrypoint=argv[0] if argv else "",
            arguments=argv[1:],
            privileged=config.privileged,
            user=config.user,
        ),
        open_stdin=config.attach_stdin,
        open_stderr=config.attach_stderr,
        open_stdout=config.attach_stdout,
        can_remove=False,
        container_id=container.id,
        detach_keys=b64encode(bytes(parse_detach_keys(config.detach_keys))).decode()
        if config.detach_keys
        else "",
        pid=record.pid,
    )
