"""Ports of running containers: published and taken back without a restart. Docker cannot do this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sampan.engine import networking
from sampan.errors import Conflict, InvalidArgument
from sampan.spec.engine.container import PortBinding

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

Bindings = dict[str, list[PortBinding]]
MOST_PORTS = 1024


async def publish(engine: Engine, ref: str, bindings: Bindings) -> Bindings:
    """Publish; what was bound, by container port. All or none."""
    container = engine.containers.find(ref)
    async with container.lock:
        _check_running(container)
        record = container.record
        asked = msgspec.structs.replace(
            record.host_config, port_bindings=bindings, publish_all_ports=False
        )
        wishes = networking.port_wishes(msgspec.structs.replace(record, host_config=asked))
        if not wishes or len(wishes) > MOST_PORTS:
            raise InvalidArgument(f"between 1 and {MOST_PORTS} ports can be published at once")
        done: list[tuple[int, str]] = []
        try:
            for wish in wishes:
                await engine.run_blocking(engine.networks.publish, container.id, wish)
                done.append((wish.container_port, wish.protocol))
        except BaseException:
            for port, protocol in done:
                await engine.run_blocking(engine.networks.unpublish, container.id, port, protocol)
            raise
        return _refresh(engine, container)


async def unpublish(engine: Engine, ref: str, port: str) -> None:
    """Take back every publication of a container's port ('80', '80/tcp', '8000-8002/udp')."""
    container = engine.containers.find(ref)
    async with container.lock:
        _check_running(container)
        for number, protocol in networking.expand_port(port):
            await engine.run_blocking(engine.networks.unpublish, container.id, number, protocol)
        _refresh(engine, container)


def _check_running(container: Container) -> None:
    if not container.is_running:
        raise Conflict(f"container {container.id} is not running")


def _refresh(engine: Engine, container: Container) -> Bindings:
    """The facts as they are now, stored and told."""
    ports = networking.published(tuple(engine.networks.endpoints_of(container.id)))
    container.save_state(ports=ports)
    engine.events.tell("container", "update", container.id, container.attributes())
    return {
        port: [PortBinding(host_ip=address, host_port=number) for address, number in pairs]
        for port, pairs in ports.items()
    }
