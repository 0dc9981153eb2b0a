"""Network verbs: list, inspect, create, connect, disconnect, remove, prune; their events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from sampan.engine import networking, resources
from sampan.engine.filters import Filters, accepts_labels, check_filters, until_ns
from sampan.engine.network_checks import check_endpoint, check_ipam, check_options, check_scope
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound, SampanError
from sampan.network.records import NetworkRecord, NetworkSpec, PoolSpec
from sampan.spec.engine.container import EndpointSettings
from sampan.spec.engine.network import (
    ConfigReference,
    ConnectRequest,
    DisconnectRequest,
    EndpointResource,
    Ipam,
    IpamConfig,
    NetworkCreateRequest,
    NetworkCreateResponse,
    NetworkInspect,
    NetworksPruned,
)
from sampan.units import parse_time

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("until", "label", "label!")


# -- looking ---------------------------------------------------------------------------------------


async def list_networks(
    engine: Engine, filters: Filters, *, version: tuple[int, int] = (1, 51)
) -> list[NetworkInspect]:
    check_filters(filters, LIST_FILTERS)
    dangling = _dangling(filters)
    for word in filters.get("type", ()):
        if word not in ("custom", "builtin"):
            raise InvalidArgument(f"invalid filter: 'type'='{word}'")
    used = _used_networks(engine)
    rows = []
    for record in engine.networks.networks():
        if not _accepts(record, filters):
            continue
        if dangling is not None and (record.predefined or record.id in used) == dangling:
            continue
        rows.append(_body(record, {}, version))
    return rows


def _dangling(filters: Filters) -> bool | None:
    values = filters.get("dangling") or ()
    if len(values) > 1:
        raise InvalidArgument('got more than one value for filter key "dangling"')
    if values and values[0] not in ("true", "1", "false", "0"):
        raise InvalidArgument(
            'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'
        )
    return values[0] in ("true", "1") if values else None


def _accepts(record: NetworkRecord, filters: Filters) -> bool:
    for key, wanted in filters.items():
        if key == "driver":
            accepted = record.driver in wanted
        elif key == "id":
            accepted = any(record.id.startswith(text) for text in wanted)
        elif key == "name":
            accepted = any(text in record.name for text in wanted)
        elif key == "scope":
            accepted = record.spec.scope in wanted
        elif key == "type":
            accepted = ("builtin" if record.predefined else "custom") in wanted
        elif key == "label":
            accepted = accepts_labels(record.spec.labels, {"label": wanted})
        else:
            accepted = True
        if not accepted:
            return False
    return True


def _used_networks(engine: Engine) -> set[str]:
    return {
        record.id for record in engine.networks.networks() if engine.networks.endpoints(record.id)
    }


async def inspect_network(
    engine: Engine,
    ref: str,
    *,
    verbose: bool = False,
    scope: str = "",
    version: tuple[int, int] = (1, 51),
) -> NetworkInspect:
    record = engine.networks.find(ref)
    if scope and scope != record.spec.scope:
        raise NotFound(f"network {ref} not found")
    del verbose  # tells of a swarm's tasks, of which there are none
    members = {
        e.container_id: EndpointResource(
            name=e.container_name,
            endpoint_id=e.id,
            mac_address=e.mac,
            ipv4_address=f"{e.ipv4}/{e.prefix4}" if e.ipv4 else "",
            ipv6_address=f"{e.ipv6}/{e.prefix6}" if e.ipv6 else "",
        )
        for e in engine.networks.endpoints(record.id)
    }
    return _body(record, members, version)


def _body(
    record: NetworkRecord, members: dict[str, EndpointResource], version: tuple[int, int]
) -> NetworkInspect:
    spec = record.spec
    pools = [
        IpamConfig(
            subnet=pool.subnet,
            ip_range=pool.ip_range,
            gateway=pool.gateway,
            auxiliary_addresses=pool.aux,
        )
        for pool in _shown_pools(record)
    ]
    return NetworkInspect(
        name=spec.name,
        id=record.id,
        created=record.created,
        scope=spec.scope,
        driver="null" if spec.config_only else spec.driver,
        enable_ipv4=spec.enable_ipv4 if version >= (1, 48) else None,
        enable_ipv6=spec.enable_ipv6,
        ipam=Ipam(
            driver=spec.ipam_driver or "default",
            options=spec.ipam_options if not record.predefined or record.pools else None,
            config=pools or None,
        ),
        internal=spec.internal,
        attachable=spec.attachable,
        ingress=spec.ingress,
        config_from=ConfigReference(network=spec.config_from),
        config_only=spec.config_only,
        containers=members,
        options=dict(spec.options),
        labels=dict(spec.labels),
    )


def _shown_pools(record: NetworkRecord) -> tuple[PoolSpec, ...]:
    """As Docker shows them: what we chose whole, what a person chose as it was said."""
    said = {pool.subnet for pool in record.spec.pools}
    if record.spec.config_only:
        return tuple(pool for pool in record.spec.pools if pool.subnet)
    return tuple(
        msgspec.structs.replace(pool, gateway="")
        if pool.subnet in said and pool.subnet not in _with_gateway(record)
        else pool
        for pool in record.pools
    )


def _with_gateway(record: NetworkRecord) -> set[str]:
    return {pool.subnet for pool in record.spec.pools if pool.gateway}


# -- create and remove -----------------------------------------------------------------------------


async def create_network(engine: Engine, request: NetworkCreateRequest) -> NetworkCreateResponse:
    ipam = request.ipam or Ipam()
    check_ipam(ipam.config or (), ipv6=bool(request.enable_ipv6))
    check_scope(request.scope, ingress=request.ingress)
    check_options(request.options or {})
    spec = NetworkSpec(
        name=request.name,
        driver=request.driver or "bridge",
        scope=request.scope or "local",
        internal=request.internal,
        attachable=request.attachable,
        ingress=request.ingress,
        enable_ipv4=request.enable_ipv4 is not False,
        enable_ipv6=bool(request.enable_ipv6),
        ipam_driver=ipam.driver or "default",
        ipam_options=ipam.options,
        pools=tuple(
            PoolSpec(
                subnet=pool.subnet,
                ip_range=pool.ip_range,
                gateway=pool.gateway,
                aux=dict(pool.auxiliary_addresses),
            )
            for pool in ipam.config or ()
        ),
        options=dict(request.options or {}),
        labels=dict(request.labels or {}),
        config_only=request.config_only,
        config_from=request.config_from.network if request.config_from else "",
    )
    record = await engine.run_blocking(engine.networks.create, spec)
    _tell(engine, "create", record)
    return NetworkCreateResponse(id=record.id)


def _tell(engine: Engine, action: str, record: NetworkRecord, **more: str) -> None:
    attributes = {**record.spec.labels, "name": record.name, "type": record.driver, **more}
    engine.events.tell("network", action, record.id, attributes)


async def remove_network(engine: Engine, ref: str) -> None:
    record = await engine.run_blocking(engine.networks.remove, ref)
    _tell(engine, "destroy", record)


async def prune_networks(engine: Engine, filters: Filters) -> NetworksPruned:
    """Remove networks that no container is in, or would be in when it starts."""
    check_filters(filters, PRUNE_FILTERS)
    before = until_ns(filters)
    if "network" in engine.pruning:
        raise Conflict("a prune operation is already running")
    engine.pruning.add("network")
    deleted = []
    try:
        wished = {name for c in engine.containers if c.is_running for name in c.record.networks}
        for record in engine.networks.networks():
            if record.predefined or {record.name, record.id} & wished:
                continue
            if before is not None and (parse_time(record.created) or 0) > before:
                continue
            if not accepts_labels(record.spec.labels, filters):
                continue
            try:
                await engine.run_blocking(engine.networks.remove, record.id)
            except SampanError:
                continue  # somebody joined it in between
            _tell(engine, "destroy", record)
            deleted.append(record.name)
    finally:
        engine.pruning.discard("network")
    engine.events.tell("network", "prune", "", {"reclaimed": "0"})
    return NetworksPruned(networks_deleted=deleted or None)


# -- connect and disconnect ------------------------------------------------------------------------


@contextmanager
def namespace_of(container: Container) -> Iterator[int]:
    """A descriptor of a running container's network namespace."""
    state = container.state
    fd = os.open(f"/proc/{state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if resources.process_start_time(state.pid) != state.start_time:
            raise Conflict(f"container {container.id} has just ended")
        yield fd
    finally:
        os.close(fd)


async def connect(engine: Engine, ref: str, request: ConnectRequest) -> None:
    """Put a container into one more network, at once if it runs."""
    container = engine.containers.find(request.container)
    record = engine.networks.find(ref)
    wish = request.endpoint_config or EndpointSettings()
    check_endpoint(record.name, wish, record)
    async with container.lock:
        mode = networking.mode_kind(container.record.host_config.network_mode)
        _refuse_connect(container, mode, record)
        if not container.is_running:
            container.save_record(networks={**container.record.networks, record.name: wish})
        else:
            settings = await engine.run_blocking(_connect_running, engine, container, record, wish)
            container.save_record(networks={**container.record.networks, record.name: wish})
            endpoints = {**container.state.endpoints, record.name: settings}
            container.save_state(endpoints=endpoints, ports=_ports_of(engine, container))
    _tell(engine, "connect", record, container=container.id)


def _ports_of(engine: Engine, container: Container) -> dict[str, list[tuple[str, str]]]:
    """Published ports go where the container's default route goes."""
    return networking.published(tuple(engine.networks.endpoints_of(container.id)))


def _refuse_connect(container: Container, mode: str, record: NetworkRecord) -> None:
    if container.state.removing or container.state.dead:
        raise Conflict(
            f"container {container.id} is marked for removal and cannot be connected or disconnected to the network"
        )
    if mode == "container":
        raise InvalidArgument(
            "container sharing network namespace with another container or host cannot be connected to any other network"
        )
    if mode == "host" or record.name == "host":
        raise InvalidArgument(
            "container cannot be disconnected from host network or connected to host network"
            if record.name == "host"
            else "container sharing network namespace with another container or host cannot be connected to any other network"
        )
    is_alone = mode == "none" and "none" in container.record.networks
    if is_alone or (record.name == "none" and container.record.networks):
        raise InvalidArgument(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        )


def _connect_running(
    engine: Engine, container: Container, record: NetworkRecord, wish: EndpointSettings
) -> EndpointSettings:
    own = container.record
    endpoint_wish = networking.endpoint_wish(engine, own, record.name, wish)
    with namespace_of(container) as namespace:
        endpoint = engine.networks.connect(
            endpoint_wish, networking.sandbox_wish(engine, own), namespace
        )
    networking.refresh_files(engine, own)
    own = msgspec.structs.replace(own, networks={**own.networks, record.name: wish})
    return networking.endpoint_settings(own, endpoint)


async def disconnect(engine: Engine, ref: str, request: DisconnectRequest) -> None:
    """Take a container out of a network."""
    try:
        container = engine.containers.find(request.container)
        record = engine.networks.find(ref)
    except NotFound:
        if not request.force:
            raise
        record = engine.networks.find(ref)
        await engine.run_blocking(engine.networks.disconnect, request.container, record.id, None)
        return
    async with container.lock:
        if record.name == "host":
            raise InvalidArgument(
                "container cannot be disconnected from host network or connected to host network"
            )
        known = container.record.networks
        if record.name not in known and record.id not in known:
            the = "" if container.is_running else "the "
            raise Internal(
                f"container {container.id} is not connected to {the}network {record.name}"
            )
        if container.is_running and record.name in container.state.endpoints:
            await engine.run_blocking(_disconnect_running, engine, container, record)
        rest = {k: v for k, v in known.items() if k not in (record.name, record.id)}
        container.save_record(networks=rest)
        endpoints = {k: v for k, v in container.state.endpoints.items() if k != record.name}
        container.save_state(endpoints=endpoints, ports=_ports_of(engine, container))
    _tell(engine, "disconnect", record, container=container.id)


def _disconnect_running(engine: Engine, container: Container, record: NetworkRecord) -> None:
    with namespace_of(container) as namespace:
        engine.networks.disconnect(container.id, record.id, namespace)
    networking.refresh_files(engine, container.record)
