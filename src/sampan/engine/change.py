"""Rename, update, resize: what may change about a container after create."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sampan import ids
from sampan.engine import create, specgen, validate
from sampan.errors import Conflict, InvalidArgument
from sampan.spec.engine.container import HostConfig, Resources, UpdateRequest, UpdateResponse

if TYPE_CHECKING:
    from sampan.engine.context import Engine


async def rename(engine: Engine, ref: str, name: str) -> None:
    container = engine.containers.find(ref)
    name = name.removeprefix("/")
    if not name:
        raise InvalidArgument("Neither old nor new names may be empty")
    if not ids.is_name(name):
        raise InvalidArgument(
            f"Error when allocating new name: Invalid container name (/{name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    async with container.lock:
        old = container.name
        if name == old:
            raise InvalidArgument("Renaming a container with the same name as its current name")
        try:
            engine.containers.rename(container, name)
        except Conflict as error:
            raise Conflict(f"Error when allocating new name: {error.message}") from None
        await engine.run_blocking(create.write_copy, engine, container.record)
        if container.is_running:
            await engine.run_blocking(engine.networks.rename, container.id, name)
        engine.events.tell(
            "container", "rename", container.id, container.attributes(oldName=f"/{old}")
        )


async def update(engine: Engine, ref: str, request: UpdateRequest) -> UpdateResponse:
    """New limits and restart policy; applied to a running container at once."""
    container = engine.containers.find(ref)
    validate.check_resources(request, engine.facts)
    async with container.lock:
        state = container.state
        if state.removing or state.dead:
            raise Conflict(
                f'Cannot update container {container.id}: Container is marked for removal and cannot be "update".'
            )
        host = _merged(container.record.host_config, request)
        if request.restart_policy is not None and request.restart_policy.name:
            validate.check_restart_policy(request.restart_policy)
            if host.auto_remove and request.restart_policy.name not in ("", "no"):
                raise InvalidArgument(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container"
                )
            host = msgspec.structs.replace(host, restart_policy=request.restart_policy)
        validate.check_resources(host, engine.facts)
        warnings: list[str] = []
        if container.is_running and container.shim is not None:
            limits = specgen.linux_resources(_changed(container.record.host_config, host))
            if limits:
                reply = await container.shim.call({"op": "update", "resources": limits})
                warnings = list(reply.get("warnings") or [])
        container.save_record(host_config=host)
        await engine.run_blocking(create.write_copy, engine, container.record)
        engine.events.tell("container", "update", container.id, container.attributes())
    return UpdateResponse(warnings=warnings)


_LIMITS = (
    "blkio_weight", "cpu_shares", "cpu_period", "cpu_quota", "cpuset_cpus", "cpuset_mems", "memory",
    "memory_swap", "memory_reservation", "pids_limit", "cpu_realtime_period", "cpu_realtime_runtime", "nano_cpus",
)  # fmt: skip


def _merged(host: HostConfig, request: UpdateRequest) -> HostConfig:
    """The old limits with those that the request names; a zero names nothing."""
    if request.nano_cpus and (host.cpu_period or host.cpu_quota):
        raise Conflict(
            "Conflicting options: Nano CPUs cannot be updated as CPU Period/Quota has already been set"
        )
    if (request.cpu_period or request.cpu_quota) and host.nano_cpus:
        raise Conflict(
            "Conflicting options: CPU Period/Quota cannot be updated as NanoCPUs has already been set"
        )
    changes: dict[str, Any] = {
        name: value for name in _LIMITS if (value := getattr(request, name)) not in (0, "", None)
    }
    memory = changes.get("memory", host.memory)
    if "memory" in changes and "memory_swap" not in changes and 0 < host.memory_swap < memory:
        raise InvalidArgument(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    return msgspec.structs.replace(host, **changes)


def _changed(old: HostConfig, new: HostConfig) -> Resources:
    """Only what the request touched; memory and swap go together, since the kernel orders them."""
    changes = {
        name: getattr(new, name) for name in _LIMITS if getattr(old, name) != getattr(new, name)
    }
    if {"memory", "memory_swap"} & set(changes):
        changes |= {"memory": new.memory, "memory_swap": new.memory_swap}
    if {"cpu_period", "cpu_quota"} & set(changes):
        changes |= {"cpu_period": new.cpu_period, "cpu_quota": new.cpu_quota}
    return Resources(**changes)


async def resize(engine: Engine, ref: str, *, height: int, width: int) -> None:
    """The window of a container's terminal."""
    container = engine.containers.find(ref)
    shim = container.shim
    if not container.is_running or shim is None:
        raise Conflict(f"container {container.id} is not running")
    if not container.record.config.tty:
        return  # Docker takes it too: there is no window to change
    await shim.call({"op": "resize", "height": height, "width": width})
    engine.events.tell(
        "container",
        "resize",
        container.id,
        container.attributes(height=str(height), width=str(width)),
    )
