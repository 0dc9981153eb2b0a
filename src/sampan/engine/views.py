"""What clients are shown of a container: the inspect body and the rows of `ps`. Pure but for sizes.

Bodies differ by API version only where real clients read the difference (feature: "version shims" below).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from sampan import ids
from sampan.engine.filters import Filters
from sampan.engine.listing import select
from sampan.engine.logs import log_path
from sampan.engine.records import ContainerState, MountRecord, Status
from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.spec.engine.container import (
    ContainerConfig,
    ContainerInspect,
    ContainerSummary,
    EndpointSettings,
    GraphDriver,
    Health,
    HealthcheckResult,
    MountPoint,
    NetworkSettings,
    Port,
    PortBinding,
    State,
    SummaryHostConfig,
    SummaryNetworkSettings,
)
from sampan.units import NS, human_duration, rfc3339nano, rfc3339nano_fixed

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

Version = tuple[int, int]


# -- inspect ---------------------------------------------------------------------------------------


async def inspect(
    engine: Engine, ref: str, *, size: bool = False, version: Version = (1, 51)
) -> ContainerInspect:
    container = engine.containers.find(ref)
    record = container.record
    directory = engine.container_dir(record.id)
    # A container in another's network namespace has that one's files.
    was_started = bool(container.state.started_ns)
    has_files = was_started and not record.host_config.network_mode.startswith("container:")
    sizes = await engine.run_blocking(sizes_of, engine, container) if size else (None, None)
    log_type = record.host_config.log_config.type
    return ContainerInspect(
        id=record.id,
        created=rfc3339nano(record.created_ns),
        path=record.path,
        args=record.args,
        state=state_body(container.state),
        image=record.image_id,
        resolv_conf_path=f"{directory}/resolv.conf" if has_files else "",
        hostname_path=f"{directory}/hostname" if has_files else "",
        hosts_path=f"{directory}/hosts" if has_files else "",
        log_path=log_path(engine, record) if was_started and log_type == "json-file" else "",
        name=f"/{record.name}",
        restart_count=container.state.restart_count,
        driver=record.driver,
        platform=record.platform,
        exec_ids=sorted(_running_execs(engine, container)) or None,
        host_config=record.host_config,
        graph_driver=GraphDriver(name=record.driver, data=_driver_data(engine, record.id)),
        size_rw=sizes[0],
        size_root_fs=sizes[1],
        mounts=[mount_point(mount) for mount in record.mounts if is_shown(mount)],
        config=_config(container),
        network_settings=network_settings(container, version),
    )


def _config(container: Container) -> ContainerConfig:
    """With the address that was wished for in the container's first network, where older clients look for it."""
    record = container.record
    wish = record.networks.get(record.host_config.network_mode)
    if record.config.mac_address or wish is None or not wish.mac_address:
        return record.config
    return msgspec.structs.replace(record.config, mac_address=wish.mac_address)


def _driver_data(engine: Engine, key: str) -> dict[str, str] | None:
    """The directories of an overlay, as people look for them in inspect."""
    try:
        mounts = engine.snapshots.mounts(key)
    except (NotFound, OSError):
        return None
    data: dict[str, str] = {}
    names = {"lowerdir": "LowerDir", "upperdir": "UpperDir", "workdir": "WorkDir"}
    for option in mounts[-1].get("options", []) if mounts else []:
        name, _, value = option.partition("=")
        if name.rstrip("+") in names:
            shown = names[name.rstrip("+")]
            data[shown] = f"{data[shown]}:{value}" if shown in data else value
    return data or None


def _running_execs(engine: Engine, container: Container) -> list[str]:
    return [
        exec_id
        for exec_id in container.execs
        if (record := engine.execs.get(exec_id)) is not None and record.running
    ]


def sizes_of(engine: Engine, container: Container) -> tuple[int, int]:
    """(what it wrote, that and its image)."""
    try:
        own = engine.snapshots.usage(container.id).bytes
    except NotFound:
        own = 0
    image = engine.catalog.find(container.record.image_id)
    return own, own + (image.size if image is not None else 0)


def state_body(state: ContainerState) -> State:
    health = None
    if state.health is not None:
        health = Health(
            status=state.health.status,
            failing_streak=state.health.failing_streak,
            log=[
                HealthcheckResult(
                    start=rfc3339nano_fixed(probe.start_ns),
                    end=rfc3339nano_fixed(probe.end_ns),
                    exit_code=probe.exit_code,
                    output=probe.output,
                )
                for probe in state.health.log
            ],
        )
    return State(
        status=state.status,
        running=state.is_running or state.restarting,
        paused=state.paused,
        restarting=state.restarting,
        oom_killed=state.oom_killed,
        dead=state.dead,
        pid=state.pid,
        exit_code=state.exit_code,
        error=state.error,
        started_at=rfc3339nano(state.started_ns),
        finished_at=rfc3339nano(state.finished_ns),
        health=health,
    )


def is_shown(mount: MountRecord) -> bool:
    """--tmpfs is not among the mounts (it is HostConfig.Tmpfs), --mount type=tmpfs is."""
    return mount.type != "tmpfs" or mount.from_mounts


def mount_point(mount: MountRecord) -> MountPoint:
    return MountPoint(
        type=mount.type,
        name=mount.name,
        source=mount.source,
        destination=mount.destination,
        driver=mount.driver,
        mode=mount.mode,
        rw=mount.writable,
        propagation=mount.propagation if mount.type == "bind" else "",
    )


def endpoints_of(container: Container, version: Version) -> dict[str, EndpointSettings]:
    """Facts where there are some, otherwise the wishes."""
    endpoints = {**container.record.networks, **container.state.endpoints}
    if version >= (1, 48):
        return endpoints
    return {name: _older(container, value, version) for name, value in endpoints.items()}


def network_settings(container: Container, version: Version) -> NetworkSettings:
    state = container.state
    networks = endpoints_of(container, version)
    settings = NetworkSettings(
        sandbox_id=state.sandbox_id,
        sandbox_key=state.sandbox_key,
        ports=_ports(container),
        networks=networks,
    )
    default = networks.get("bridge")
    if default is None or version >= (1, 52):
        return settings
    return msgspec.structs.replace(
        settings,
        endpoint_id=default.endpoint_id,
        gateway=default.gateway,
        global_ipv6_address=default.global_ipv6_address,
        global_ipv6_prefix_len=default.global_ipv6_prefix_len,
        ip_address=default.ip_address,
        ip_prefix_len=default.ip_prefix_len,
        ipv6_gateway=default.ipv6_gateway,
        mac_address=default.mac_address,
    )


def _older(container: Container, settings: EndpointSettings, version: Version) -> EndpointSettings:
    """1.48 brought GwPriority; before 1.45 the short id was among the aliases of networks with names."""
    settings = msgspec.structs.replace(settings, gw_priority=msgspec.UNSET)
    if version >= (1, 45) or not settings.dns_names:
        return settings
    short = ids.short_id(container.id)
    aliases = list(settings.aliases or [])
    if short not in aliases:
        aliases.append(short)
    return msgspec.structs.replace(settings, aliases=aliases)


def _ports(container: Container) -> dict[str, list[PortBinding] | None]:
    """Exposed ports with nothing published are null; none of it while the container does not run."""
    if not container.is_running:
        return {}
    ports: dict[str, list[PortBinding] | None] = dict.fromkeys(
        container.record.config.exposed_ports
    )
    for port, pairs in container.state.ports.items():
        ports[port] = [PortBinding(host_ip=ip, host_port=number) for ip, number in pairs]
    return ports


# -- list ------------------------------------------------------------------------------------------


async def list_containers(
    engine: Engine,
    *,
    everything: bool = False,
    limit: int = 0,
    size: bool = False,
    filters: Filters | None = None,
    version: Version = (1, 51),
) -> list[ContainerSummary]:
    """The rows of `ps`, newest first."""
    chosen = await select(engine, filters or {}, everything=everything, limit=limit)
    now = time.time_ns()
    rows = []
    shown: dict[tuple[str, str], str] = {}
    sizes = await engine.run_blocking(_sizes_of_all, engine, chosen) if size else {}
    for container in chosen:
        row = summary(container, now, version)
        key = (row.image, row.image_id)
        if key not in shown:
            shown[key] = _image_shown(engine, *key)
        row = msgspec.structs.replace(row, image=shown[key])
        if size:
            own, total = sizes[container.id]
            row = msgspec.structs.replace(row, size_rw=own or None, size_root_fs=total or None)
        rows.append(row)
    return rows


def _sizes_of_all(engine: Engine, containers: list[Container]) -> dict[str, tuple[int, int]]:
    return {container.id: sizes_of(engine, container) for container in containers}


def _image_shown(engine: Engine, name: str, image_id: str) -> str:
    """The name a container was made by, or the image's id once that name means another image or none."""
    try:
        image = engine.catalog.find(name)
    except (Conflict, InvalidArgument):
        return name
    return name if image is not None and image.id == image_id else image_id


def summary(container: Container, now_ns: int, version: Version) -> ContainerSummary:
    record, state = container.record, container.state
    return ContainerSummary(
        id=record.id,
        names=[f"/{record.name}"],
        image=record.config.image,
        image_id=record.image_id,
        command=command_line(record.path, record.args),
        created=record.created_ns // NS,
        ports=port_rows(container),
        labels=record.config.labels,
        state=state.status,
        status=status_text(state, now_ns),
        host_config=SummaryHostConfig(
            network_mode=record.host_config.network_mode,
            annotations=record.host_config.annotations,
        ),
        network_settings=SummaryNetworkSettings(networks=endpoints_of(container, version)),
        mounts=[mount_point(mount) for mount in record.mounts if is_shown(mount)],
    )


def command_line(path: str, args: list[str]) -> str:
    """argv as one line; what has a blank in it is quoted."""
    if not args:
        return path
    words = [f"'{word}'" if " " in word else word for word in args]
    return f"{path} {' '.join(words)}"


def port_rows(container: Container) -> list[Port]:
    if not container.is_running:
        return []
    rows = []
    published = container.state.ports
    for text in container.record.config.exposed_ports:
        if text not in published:
            number, protocol = _split_port(text)
            rows.append(Port(private_port=number, type=protocol))
    for text, pairs in published.items():
        number, protocol = _split_port(text)
        rows += [
            Port(ip=ip, private_port=number, public_port=int(host_port), type=protocol)
            for ip, host_port in pairs
        ]
    return sorted(rows, key=lambda row: (row.private_port, row.type, row.ip))


def _split_port(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return int(number.partition("-")[0]), protocol or "tcp"


def status_text(state: ContainerState, now_ns: int) -> str:
    """'Up 5 minutes (healthy)', 'Exited (0) 2 hours ago', 'Created', ..."""
    status = state.status
    if status in (Status.RUNNING, Status.PAUSED):
        text = f"Up {human_duration((now_ns - state.started_ns) / NS)}"
        if status is Status.PAUSED:
            return f"{text} (Paused)"
        if state.health is not None:
            shown = state.health.status
            return f"{text} (health: starting)" if shown == "starting" else f"{text} ({shown})"
        return text
    since = human_duration((now_ns - state.finished_ns) / NS)
    if status is Status.RESTARTING:
        return f"Restarting ({state.exit_code}) {since} ago"
    if status is Status.REMOVING:
        return "Removal In Progress"
    if status is Status.DEAD:
        return "Dead"
    if status is Status.CREATED or not state.finished_ns:
        return "Created"
    return f"Exited ({state.exit_code}) {since} ago"
