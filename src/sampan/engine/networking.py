"""A container's part in networks: from its request to wishes, from wishes to a namespace and files, and back.

    create   resolve_wishes()   names of networks checked, one endpoint for the network mode at least
    start    connect_all()      namespace, endpoints, published ports; /etc/hosts, hostname, resolv.conf written
    exit     release()          everything given back; safe to call twice and after a crash

`network/manager.py` does the work in the kernel and keeps the records of endpoints; here is only what a container
means by its HostConfig.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sampan.engine.network_checks import check_endpoint
from sampan.engine.records import ContainerRecord
from sampan.errors import InvalidArgument, NotFound
from sampan.network import egress, files
from sampan.network.records import EndpointRecord, EndpointWish, PortWish, SandboxWish
from sampan.spec.engine.container import EndpointSettings, PortBinding
from sampan.units import parse_uint

if TYPE_CHECKING:
    from sampan.engine.context import Engine

FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """What a start got of the network."""

    netns_fd: int = (
        -1
    )  # owned by the caller; -1: the runtime makes or joins a namespace by the spec
    endpoints: dict[str, EndpointSettings] = {}
    ports: dict[str, list[tuple[str, str]]] = {}
    sandbox_key: str = ""


def mode_kind(mode: str) -> str:
    """'host', 'none', 'container', or 'networks' for everything that has endpoints."""
    if mode.startswith("container:"):
        return "container"
    return mode if mode in ("host", "none") else "networks"


# -- create ----------------------------------------------------------------------------------------


async def resolve_wishes(
    engine: Engine, record: ContainerRecord
) -> tuple[ContainerRecord, list[str]]:
    """The networks a container will be in, by name; the network of its mode first."""
    mode = record.host_config.network_mode
    kind = mode_kind(mode)
    if egress_entries(record) is not None and kind in ("host", "container"):
        raise InvalidArgument(
            f"conflicting options: --egress and the network mode {kind}: the namespace is not the container's own"
        )
    if kind == "container":
        host = record.host_config
        try:
            peer = engine.containers.find(mode.partition(":")[2])
            host = msgspec.structs.replace(host, network_mode=f"container:{peer.id}")
        except NotFound:
            pass  # it may appear before the start, which looks again
        return msgspec.structs.replace(record, host_config=host, networks={}), []
    wishes = dict(record.networks)
    own = wishes.pop(mode, None) or wishes.pop("default", None) or EndpointSettings()
    if record.config.mac_address and not own.mac_address:
        own = msgspec.structs.replace(own, mac_address=record.config.mac_address)
    networks = {mode: own, **wishes}
    for name, wish in networks.items():
        _check_wish(engine, name, wish)
    return msgspec.structs.replace(record, networks=networks), []


def _check_wish(engine: Engine, name: str, wish: EndpointSettings) -> None:
    """The network may not be there yet: then only what is wrong in itself is refused."""
    try:
        network = engine.networks.find(name)
    except (NotFound, InvalidArgument):
        network = None
    try:
        check_endpoint(name, wish, network)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid config for network {name}: {error.message}") from None


# -- start -----------------------------------------------------------------------------------------


def connect_all(engine: Engine, record: ContainerRecord) -> Connected:
    """Blocking: make the namespace with its endpoints and write the container's files."""
    kind = mode_kind(record.host_config.network_mode)
    if kind == "container":
        return Connected()
    if kind == "host":
        _write_files(engine, record, ())
        endpoint = engine.networks.join_host(record.id, record.name)
        return Connected(endpoints={"host": endpoint_settings(record, endpoint)})
    sandbox = engine.networks.join(sandbox_wish(engine, record))
    try:
        _write_files(engine, record, sandbox.endpoints)
    except BaseException:
        os.close(sandbox.netns_fd)
        release(engine, record.id)
        raise
    return Connected(
        netns_fd=sandbox.netns_fd,
        endpoints={e.network_name: endpoint_settings(record, e) for e in sandbox.endpoints},
        ports=published(sandbox.endpoints),
        sandbox_key=f"{engine.config.run}/netns/{record.id[:12]}",
    )


def release(engine: Engine, container_id: str) -> None:
    """Blocking: give addresses, ports and links back."""
    engine.networks.leave(container_id)


def sandbox_wish(engine: Engine, record: ContainerRecord) -> SandboxWish:
    host = record.host_config
    wishes = [endpoint_wish(engine, record, name, wish) for name, wish in record.networks.items()]
    return SandboxWish(
        container_id=record.id,
        container_name=record.name,
        hostname=record.config.hostname,
        endpoints=tuple(wishes),
        ports=tuple(port_wishes(record)),
        dns=tuple(host.dns or ()),
        egress=egress_entries(record),
        hosts={
            name: (engine.config.host_gateway_ip if address == "host-gateway" else "")
            or address.strip("[]")
            for name, _, address in (text.partition(":") for text in host.extra_hosts or ())
        },
    )


def egress_entries(record: ContainerRecord) -> tuple[str, ...] | None:
    """Where it may connect, from its annotation; None: anywhere. Raises InvalidArgument."""
    text = (record.host_config.annotations or {}).get(egress.ANNOTATION)
    return None if text is None else egress.parse(text)


def endpoint_wish(
    engine: Engine, record: ContainerRecord, name: str, wish: EndpointSettings
) -> EndpointWish:
    ipam = wish.ipam_config
    return EndpointWish(
        network=name,
        ipv4=ipam.ipv4_address if ipam else "",
        ipv6=ipam.ipv6_address if ipam else "",
        link_local=tuple(ipam.link_local_ips or ()) if ipam else (),
        mac=wish.mac_address,
        aliases=tuple(wish.aliases or ()),
        links=_links(engine, wish.links or [], may_miss=True)
        | _links(engine, record.host_config.links or [], may_miss=name != "bridge"),
        driver_options=dict(wish.driver_opts or {}),
        gateway_priority=wish.gw_priority or 0,
    )


def _links(engine: Engine, links: list[str], *, may_miss: bool = False) -> dict[str, str]:
    """alias -> container id, of 'CONTAINER[:ALIAS]'. In a user's own network the other may come later."""
    found: dict[str, str] = {}
    for text in links:
        ref, _, alias = text.partition(":")
        name = ref.removeprefix("/")
        try:
            target = engine.containers.find(ref).id
        except NotFound as error:
            if not may_miss:
                raise InvalidArgument(
                    f"could not get container for {ref}: {error.message}"
                ) from None
            target = name
        found[alias.rpartition("/")[2] or name] = target
    return found


def port_wishes(record: ContainerRecord) -> list[PortWish]:
    """What -p and -P publish."""
    host = record.host_config
    wishes: list[PortWish] = []
    for text, bindings in (host.port_bindings or {}).items():
        for port, protocol in expand_port(text):
            for binding in bindings or [PortBinding()]:
                low, _, high = binding.host_port.partition("-")
                wishes.append(
                    PortWish(
                        container_port=port,
                        protocol=protocol,
                        host_ip=binding.host_ip,
                        host_port=parse_uint(low) or 0,
                        host_port_end=parse_uint(high) or 0,
                    )
                )
    if host.publish_all_ports:
        named = {(w.container_port, w.protocol) for w in wishes}
        for text in record.config.exposed_ports:
            wishes += [
                PortWish(container_port=port, protocol=protocol)
                for port, protocol in expand_port(text)
                if (port, protocol) not in named
            ]
    return wishes


def expand_port(text: str) -> list[tuple[int, str]]:
    """'8000-8002/udp' to its ports."""
    numbers, _, protocol = text.partition("/")
    low, _, high = numbers.partition("-")
    first = parse_uint(low) or 0
    last = parse_uint(high) or first
    return [(port, protocol.lower() or "tcp") for port in range(first, last + 1)]


# -- what inspect shows ----------------------------------------------------------------------------


def endpoint_settings(record: ContainerRecord, endpoint: EndpointRecord) -> EndpointSettings:
    """The wish with its facts filled in."""
    wish = record.networks.get(endpoint.network_name, EndpointSettings())
    return msgspec.structs.replace(
        wish,
        network_id=endpoint.network_id,
        endpoint_id=endpoint.id,
        mac_address=endpoint.mac,
        gateway=endpoint.gateway4,
        ip_address=endpoint.ipv4,
        ip_prefix_len=endpoint.prefix4,
        ipv6_gateway=endpoint.gateway6,
        global_ipv6_address=endpoint.ipv6,
        global_ipv6_prefix_len=endpoint.prefix6,
        aliases=list(endpoint.aliases) or wish.aliases,
        dns_names=list(endpoint.dns_names) or None,
    )


def published(endpoints: tuple[EndpointRecord, ...]) -> dict[str, list[tuple[str, str]]]:
    ports: dict[str, list[tuple[str, str]]] = {}
    for endpoint in endpoints:
        for port in endpoint.ports:
            pairs = ports.setdefault(f"{port.container_port}/{port.protocol}", [])
            pair = (port.host_ip, str(port.host_port))
            if pair not in pairs:
                pairs.append(pair)
    return ports


# -- files -----------------------------------------------------------------------------------------


def file_sources(engine: Engine, record: ContainerRecord) -> dict[str, str]:
    """Container path -> host path of the three files; a container that joins another's network has its files."""
    owner = record.id
    mode = record.host_config.network_mode
    if mode.startswith("container:"):
        owner = engine.containers.find(mode.partition(":")[2]).id
    directory = engine.container_dir(owner)
    return {path: f"{directory}/{path.rpartition('/')[2]}" for path in FILES}


def _write_files(
    engine: Engine, record: ContainerRecord, endpoints: tuple[EndpointRecord, ...]
) -> None:
    host = record.host_config
    is_host = mode_kind(host.network_mode) == "host"
    directory = engine.container_dir(record.id)
    write_file(directory / "hostname", record.config.hostname + "\n")
    write_file(directory / "hosts", hosts_text(engine, record, endpoints))
    own_names = any(e.asks_us for e in endpoints)
    settings = engine.config
    text = files.resolver_file(
        files.read_host_resolver(),
        own_names=own_names,
        servers=host.dns or settings.dns,
        search=host.dns_search or settings.dns_search,
        options=host.dns_options or settings.dns_opts,
        host_network=is_host,
    )
    write_file(directory / "resolv.conf", text)


def refresh_files(engine: Engine, record: ContainerRecord) -> None:
    """After connect and disconnect: /etc/hosts and resolv.conf follow the networks."""
    _write_files(engine, record, tuple(engine.networks.endpoints_of(record.id)))


def hosts_text(
    engine: Engine, record: ContainerRecord, endpoints: tuple[EndpointRecord, ...]
) -> str:
    extra = _extra_hosts(engine, record, endpoints)
    if mode_kind(record.host_config.network_mode) == "host":
        return _host_hosts() + "".join(f"{address}\t{name}\n" for address, name in extra)
    names = record.config.hostname
    if record.config.domainname:
        names = f"{names}.{record.config.domainname}"
    if "." in names:
        names = f"{names} {names.partition('.')[0]}"
    own = [(a, names) for e in endpoints for a in (e.ipv4, e.ipv6) if a]
    return files.hosts_file(own, extra, _link_hosts(engine, endpoints))


def _host_hosts() -> str:
    try:
        return Path("/etc/hosts").read_text(errors="replace")
    except OSError:
        return files.HOSTS_HEAD


def _extra_hosts(
    engine: Engine, record: ContainerRecord, endpoints: tuple[EndpointRecord, ...]
) -> list[tuple[str, str]]:
    """--add-host NAME:ADDRESS, where host-gateway stands for the host as the container sees it."""
    found = []
    for text in record.host_config.extra_hosts or ():
        name, _, address = text.partition(":")
        if address == "host-gateway":
            address = engine.config.host_gateway_ip or next(
                (e.gateway4 for e in endpoints if e.gateway4), "127.0.0.1"
            )
        found.append((address.strip("[]"), name))
    return found


def _link_hosts(engine: Engine, endpoints: tuple[EndpointRecord, ...]) -> list[tuple[str, str]]:
    """Links on the default bridge are lines in /etc/hosts; elsewhere the name service knows them."""
    found = []
    for endpoint in endpoints:
        if endpoint.network_name != "bridge":
            continue
        for alias, target in endpoint.links.items():
            peer = engine.containers.get(target)
            if peer is None:
                continue
            settings = peer.state.endpoints.get("bridge")
            if settings and settings.ip_address:
                names = dict.fromkeys([alias, peer.record.config.hostname, peer.name])
                found.append((settings.ip_address, " ".join(names)))
    return found


def write_file(path: Path, text: str) -> None:
    """In place when it is there: a running container holds a bind mount of this very inode."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.write(fd, text.encode())
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
