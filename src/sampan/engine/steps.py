"""One command in a root filesystem, isolated and limited like a container's, but listed nowhere: a build's RUN.

    Step ──► a record that is never stored ──► resources.take ─► specgen ─► launch    (the roads of start.py)
    output, framed, over a socket pair ──► `tell(stream, bytes)`
    exit and gone ──► the snapshot is free: its upper directory is what the command wrote

The snapshot is the caller's, named by the step's id. A crash of the engine leaves a shim whose id no record has: the
next start kills it (`orphans.py`).
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.engine import create, resources, shims, specgen
from sampan.engine.records import ContainerRecord, MountRecord
from sampan.engine.start import launch_request
from sampan.errors import SampanError
from sampan.network.files import HOSTS_HEAD
from sampan.spec.engine.container import (
    ContainerConfig,
    CreateRequest,
    EndpointSettings,
    HostConfig,
    LogConfig,
)

if TYPE_CHECKING:
    from sampan.engine.context import Engine

GONE_TIMEOUT_S = 30.0
KILL = 9
FILES = ("/etc/hosts", "/etc/resolv.conf")  # mounted over what a step stands on
Tell = Callable[[int, bytes], None]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `id` (64 hex digits) names the active snapshot, the cgroup and the run directory."""

    id: str
    chain_id: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str = "/"
    user: str = ""
    hostname: str = "buildkitsandbox"
    host: HostConfig
    mounts: tuple[MountRecord, ...] = ()


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended."""

    exit_code: int
    oom_killed: bool = False


def record_of(engine: Engine, step: Step) -> ContainerRecord:
    """The record that the start roads want."""
    request = CreateRequest(host_config=step.host)
    host = create.with_defaults(engine, request, (1, 51)).host_config
    host = msgspec.structs.replace(host, log_config=LogConfig(type="none"))
    config = ContainerConfig(
        hostname=step.hostname, user=step.user, env=list(step.env), cmd=list(step.args), working_dir=step.cwd,
    )  # fmt: skip
    mode = host.network_mode
    shared = mode in ("host", "none") or mode.startswith("container:")
    return ContainerRecord(
        id=step.id, name=f"build-{step.id[:12]}", created_ns=time.time_ns(), image_id="",
        chain_id=step.chain_id, driver=engine.snapshots.name, path=step.args[0], args=list(step.args[1:]),
        config=config, host_config=host, mounts=step.mounts,
        networks={} if shared else {mode: EndpointSettings()},
    )  # fmt: skip


async def run_step(engine: Engine, step: Step, tell: Tell) -> StepResult:
    """Run it to its end; output goes to `tell` as it comes (1 stdout, 2 stderr), from the loop's thread.

    Raises what a start raises (InvalidArgument where the command cannot be run). On cancellation the command is
    killed and everything given back before the cancellation goes on.
    """
    record = record_of(engine, step)
    with ExitStack() as undo:
        directory = engine.container_dir(step.id)
        await engine.run_blocking(lambda: directory.mkdir(mode=0o700, parents=True, exist_ok=True))
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        undo.callback(shutil.rmtree, engine.run_dir(step.id), ignore_errors=True)
        try:
            taken = await engine.run_to_end(resources.take, engine, record, undo)
            return await _run(engine, record, taken, tell, undo)
        finally:
            await asyncio.shield(engine.run_blocking(_undo, undo))


def _undo(undo: ExitStack) -> None:
    undo.close()


async def _run(
    engine: Engine, record: ContainerRecord, taken: resources.Resources, tell: Tell, undo: ExitStack
) -> StepResult:
    spec = specgen.generate(record, taken.sources, engine.facts)
    _plain(spec, record)
    await engine.run_blocking(_write_hosts, engine, record)
    request = _request(engine, record, spec, taken)
    mine, theirs = socket.socketpair()
    fds = [theirs.fileno()]
    if taken.connected.netns_fd >= 0:
        request["netns"] = len(fds)
        fds.append(taken.connected.netns_fd)
    reading = asyncio.ensure_future(_read_frames(mine, tell))
    try:
        shim, _ = await shims.launch(engine.launcher, request, fds)
    except BaseException:
        theirs.close()
        reading.cancel()
        raise
    theirs.close()
    return await _watch(shim, reading)


def _plain(spec: Any, record: ContainerRecord) -> None:
    """A step sees the image and little else: no file with its name, no variable that says it (as BuildKit has it)."""
    spec["mounts"] = [m for m in spec["mounts"] if m["destination"] != "/etc/hostname"]
    own = f"HOSTNAME={record.config.hostname}"
    if own not in (record.config.env or ()):
        spec["process"]["env"] = [text for text in spec["process"]["env"] if text != own]


def _write_hosts(engine: Engine, record: ContainerRecord) -> None:
    """/etc/hosts without the step's address, which differs from run to run; what was added stays."""
    if record.host_config.network_mode == "host":
        return
    path = engine.container_dir(record.id) / "hosts"
    name = record.config.hostname
    added = path.read_text(encoding="utf-8").removeprefix(HOSTS_HEAD).splitlines(keepends=True)
    kept = [line for line in added if name not in line.split()[1:]]
    head = f"127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    path.write_text(head + "".join(kept), encoding="utf-8")


def _request(
    engine: Engine, record: ContainerRecord, spec: Any, taken: resources.Resources
) -> dict[str, Any]:
    request = launch_request(engine, record, spec, taken)
    request["log"] = {"driver": "none"}
    request["attach"] = [
        {"fd": 0, "stdin": False, "stdout": True, "stderr": True, "framed": True, "stream": True,
         "logs": False, "detach_keys": [], "name": "build"}
    ]  # fmt: skip
    return request


async def _watch(shim: shims.Shim, reading: asyncio.Future[None]) -> StepResult:
    ended: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
    gone = asyncio.Event()

    def heard(message: dict[str, Any]) -> None:
        if message.get("event") == "exit" and not ended.done():
            ended.set_result(
                StepResult(
                    exit_code=int(message.get("exit_code", 137)),
                    oom_killed=bool(message.get("oom_killed")),
                )
            )
        elif message.get("event") == "gone":
            gone.set()

    def closed() -> None:
        if not ended.done():
            ended.set_result(StepResult(exit_code=137))
        gone.set()

    shim.listen(heard, closed)
    try:
        result = await asyncio.shield(ended)
        await reading
        return result
    except BaseException:
        reading.cancel()
        await asyncio.shield(_kill(shim))
        raise
    finally:
        await asyncio.shield(_until_gone(gone))
        shim.close()


async def _kill(shim: shims.Shim) -> None:
    try:
        await shim.call({"op": "kill", "signal": KILL, "all": True})
    except SampanError:
        pass  # it has ended already


async def _until_gone(gone: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(gone.wait(), GONE_TIMEOUT_S)
    except TimeoutError:
        pass  # the snapshot's removal will say so


async def _read_frames(connection: socket.socket, tell: Tell) -> None:
    """8-byte header (stream, length), payload; until the shim closes its end."""
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        while True:
            header = await reader.readexactly(8)
            payload = await reader.readexactly(int.from_bytes(header[4:], "big"))
            tell(header[0], payload)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return
    finally:
        writer.close()
