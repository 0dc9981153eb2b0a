"""Where a container may connect: looked at, and changed while it runs. Docker cannot do this.

The wish is the annotation `sampan.egress` of a container (`--annotation`, compose's `annotations:`; our CLI's `--egress`
writes it), or the option of that name of a network, for every container in it that has no wish of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sampan.engine import networking
from sampan.engine.networks import namespace_of
from sampan.engine.records import ContainerRecord
from sampan.errors import Conflict, InvalidArgument
from sampan.network import egress
from sampan.network.records import Egress
from sampan.spec.engine.network import EgressGrant, EgressResponse

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container


async def show(engine: Engine, ref: str) -> EgressResponse:
    """What a container may reach. Of one that does not run: what it will be held to."""
    container = engine.containers.find(ref)
    if not container.is_running:
        return _body(Egress(entries=networking.egress_entries(container.record)))
    return _body(await engine.run_blocking(engine.networks.egress_of, container.id))


def _body(found: Egress) -> EgressResponse:
    return EgressResponse(
        egress=None if found.entries is None else list(found.entries),
        granted=[
            EgressGrant(name=g.name, address=g.address, seconds=g.seconds) for g in found.grants
        ],
        refused=found.refused,
        dropped=found.dropped,
    )


async def change(engine: Engine, ref: str, text: str | None) -> EgressResponse:
    """Another list, or None for no limit; in force when this returns. What it no longer may have ends."""
    if text is not None:
        text = egress.show(egress.parse(text))
    container = engine.containers.find(ref)
    async with container.lock:
        host = container.record.host_config
        kind = networking.mode_kind(host.network_mode)
        if kind in ("host", "container"):
            raise InvalidArgument(
                f"container {container.name} has the network of another ({kind}): its connections cannot be limited"
            )
        if container.state.removing or container.state.dead:
            raise Conflict(f"container {container.id} is marked for removal")
        annotations = {k: v for k, v in (host.annotations or {}).items() if k != egress.ANNOTATION}
        if text is not None:
            annotations[egress.ANNOTATION] = text
        wished = msgspec.structs.replace(
            container.record, host_config=msgspec.structs.replace(host, annotations=annotations)
        )
        if container.is_running:
            await engine.run_blocking(_change_running, engine, container, wished)
        container.save_record(host_config=wished.host_config)
        engine.events.tell("container", "update", container.id, container.attributes())
    return await show(engine, container.id)


def _change_running(engine: Engine, container: Container, wished: ContainerRecord) -> None:
    with namespace_of(container) as namespace:
        engine.networks.set_egress(networking.sandbox_wish(engine, wished), namespace)
    networking.refresh_files(engine, wished)
