"""Create: a request and an image's config become a ContainerRecord, with a snapshot, volumes and a directory.

    request ──validate──► ──merge with image config──► ──settle limits, mounts──► ContainerRecord (stored)

Everything up to the record is pure or only looks; then things are taken on an ExitStack, so that a failed create
leaves nothing. Nothing is mounted here.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.engine import images, merge, networking, validate, volumes
from sampan.engine.mounts import collect
from sampan.engine.records import ContainerRecord, MountRecord
from sampan.engine.volumes import prepare_volumes, release_volumes
from sampan.errors import InvalidArgument, NotFound
from sampan.images import unpack
from sampan.spec.engine.container import (
    ContainerConfig,
    CreateRequest,
    CreateResponse,
    HostConfig,
    LogConfig,
    RestartPolicy,
)
from sampan.units import parse_size

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container
    from sampan.images.catalog import Image

MASKED_PATHS = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
]  # fmt: skip
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


async def create(
    engine: Engine,
    request: CreateRequest,
    *,
    name: str = "",
    platform: str = "",
    version: tuple[int, int] = (1, 51),
) -> CreateResponse:
    """Make a container from an image that is here; the id and warnings."""
    name = name.removeprefix("/")
    if name and not ids.is_name(name):
        raise InvalidArgument(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    if not request.image:
        if request == CreateRequest():
            raise InvalidArgument("config cannot be empty in order to create a container")
        raise InvalidArgument("no image specified: Config.Image must not be empty")
    request = with_defaults(engine, request, version)
    validate.check_create(request, engine.facts)
    image = await images.resolve(engine, request.image, platform=platform)
    config = merge.merge(request.config(), image.config)
    validate.check_merged(config)
    host, warnings = validate.settle_resources(request.host_config, engine.facts)
    warnings += images.platform_warnings(engine, image, platform)
    if host.network_mode == "host" and host.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    container_id = ids.new_id()
    name = name or ids.random_name(engine.containers.is_name_taken)
    record = _record(engine, container_id, name, request, config, host, image)
    record, more = await networking.resolve_wishes(engine, record)
    container = await _take(engine, record)
    engine.events.tell("container", "create", container_id, container.attributes())
    return CreateResponse(id=container_id, warnings=warnings + more)


# -- pure ------------------------------------------------------------------------------------------


def with_defaults(
    engine: Engine, request: CreateRequest, version: tuple[int, int]
) -> CreateRequest:
    """What the engine's own settings say where the request says nothing."""
    host, settings = request.host_config, engine.config
    is_v2 = engine.facts.cgroup_version == 2
    unconfined = "systempaths=unconfined" in (host.security_opt or ())
    open_paths = host.privileged or unconfined
    log = host.log_config
    if not log.type:
        # The engine's options belong to the engine's driver; a request with options of its own keeps them.
        log = LogConfig(type=settings.log.driver, config={**settings.log.options, **log.config})
    changes: dict[str, object] = {
        "shm_size": host.shm_size or settings.default_shm_size,
        "network_mode": _network_mode(host.network_mode),
        "ipc_mode": host.ipc_mode or _ipc_default(engine, version),
        "cgroupns_mode": host.cgroupns_mode or _cgroupns_default(engine, host, version, is_v2=is_v2),
        "log_config": log,
        "oom_kill_disable": bool(host.oom_kill_disable) if engine.facts.has_oom_kill_disable else host.oom_kill_disable,
        "runtime": host.runtime or request.runtime or engine.config.default_runtime,
        "memory_swappiness": None if host.memory_swappiness == -1 else host.memory_swappiness,
        "restart_policy": host.restart_policy if host.restart_policy.name else RestartPolicy(name="no"),
        "masked_paths": _paths(host.masked_paths, [] if open_paths else MASKED_PATHS),
        "readonly_paths": _paths(host.readonly_paths, [] if open_paths else READONLY_PATHS),
        "security_opt": [text for text in host.security_opt or () if text != "systempaths=unconfined"]
        or None,
    }  # fmt: skip
    if unconfined:
        changes |= {"masked_paths": [], "readonly_paths": []}
    return msgspec.structs.replace(request, host_config=msgspec.structs.replace(host, **changes))


def _paths(given: list[str] | None, default: list[str]) -> list[str] | None:
    return default if given is None else given


def _network_mode(mode: str) -> str:
    return "bridge" if mode in ("", "default") else mode


def _ipc_default(engine: Engine, version: tuple[int, int]) -> str:
    return "shareable" if version < (1, 40) else engine.config.default_ipc_mode


def _cgroupns_default(
    engine: Engine, host: HostConfig, version: tuple[int, int], *, is_v2: bool
) -> str:
    """v1 shares the host's by default, since its tools look for their cgroup by the host's path."""
    if engine.config.default_cgroupns_mode and version >= (1, 41):
        return engine.config.default_cgroupns_mode
    if host.privileged and not is_v2:
        return "host"
    return "private" if is_v2 and version >= (1, 41) else "host"


def _record(
    engine: Engine,
    container_id: str,
    name: str,
    request: CreateRequest,
    config: ContainerConfig,
    host: HostConfig,
    image: Image,
) -> ContainerRecord:
    config = msgspec.structs.replace(config, hostname=_hostname(engine, config, host, container_id))
    mounts = collect(config, host, find_container=lambda ref: other_container(engine, ref).record)
    argv = merge.argv(config)
    return ContainerRecord(
        id=container_id,
        name=name,
        created_ns=time.time_ns(),
        image_id=image.id,
        chain_id=image.chain_id,
        driver=engine.snapshots.name,
        path=argv[0],
        args=argv[1:],
        config=config,
        host_config=host,
        networks=dict(request.networking_config.endpoints_config),
        mounts=mounts,
        architecture=image.document.architecture,
    )


def other_container(engine: Engine, ref: str, prefix: str = "") -> Container:
    """A container that the request names. That there is none is the request's fault: clients take NotFound
    on create to mean the image, and pull it."""
    try:
        return engine.containers.find(ref)
    except NotFound as error:
        raise InvalidArgument(f"{prefix}{error.message}") from None


def _hostname(engine: Engine, config: ContainerConfig, host: HostConfig, container_id: str) -> str:
    if config.hostname:
        return config.hostname
    if host.network_mode == "host" or host.uts_mode == "host":
        return os.uname().nodename
    if host.network_mode.startswith("container:"):
        peer = other_container(engine, host.network_mode.partition(":")[2])
        return peer.record.config.hostname
    return ids.short_id(container_id)


# -- takes things ----------------------------------------------------------------------------------


async def _take(engine: Engine, record: ContainerRecord) -> Container:
    """Name, snapshot, volumes, directory: all, or none."""
    undo = ExitStack()
    container = engine.containers.add(record)
    try:
        async with container.lock:
            undo.callback(engine.containers.forget, container)
            with volumes.told(engine, record.mounts):
                mounts = await engine.run_blocking(_take_blocking, engine, record, undo)
            if mounts != record.mounts:
                container.save_record(mounts=mounts)
            undo.pop_all()
    except BaseException:
        await engine.run_blocking(undo.close)
        raise
    return container


def _take_blocking(
    engine: Engine, record: ContainerRecord, undo: ExitStack
) -> tuple[MountRecord, ...]:
    check_bind_sources(record.mounts)
    directory = engine.container_dir(record.id)
    directory.mkdir(mode=0o700, parents=True)
    undo.callback(shutil.rmtree, directory, ignore_errors=True)
    unpack.ensure(engine.catalog, engine.catalog.get(record.image_id))
    size = (record.host_config.storage_opt or {}).get("size", "0")
    engine.snapshots.prepare(record.id, record.chain_id or None, size_bytes=parse_size(size))
    undo.callback(engine.snapshots.remove, record.id)
    mounts = prepare_volumes(engine, record)
    undo.callback(release_volumes, engine, record.id, mounts)
    # A copy beside the store: what a damaged store is rebuilt from.
    write_copy(engine, msgspec.structs.replace(record, mounts=mounts))
    return mounts


def write_copy(engine: Engine, record: ContainerRecord) -> None:
    path = engine.container_dir(record.id) / "record.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.rename(path)


def check_bind_sources(mounts: tuple[MountRecord, ...]) -> None:
    """--mount wants the source to exist; -v makes a directory of it at start."""
    for mount in mounts:
        is_strict = mount.type == "bind" and not mount.create_source
        if is_strict and not os.path.lexists(mount.source):
            raise InvalidArgument(
                f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
            )
