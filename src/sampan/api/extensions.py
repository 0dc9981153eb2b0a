"""What Docker's API does not have: ports and mounts of running containers, volumes as archives, a check of the store.

The paths are beside Docker's own, so that a client of ours can tell by "page not found" that it talks to
another engine.
"""

from __future__ import annotations

from sampan.api.call import Call
from sampan.api.progress import Report, progress_stream
from sampan.api.router import Route, delete, get, post
from sampan.api.transfers import receive, send_outlet
from sampan.engine import egress, live_mounts, ports, system, volumes
from sampan.engine.views import mount_point
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import MountPoint, MountRequest, PortBinding
from sampan.spec.engine.network import EgressRequest
from sampan.spec.engine.wire import Body, sent

TAR = "application/x-tar"


class PublishRequest(Body, frozen=True, kw_only=True):
    """POST /containers/{id}/ports."""

    port_bindings: dict[str, list[PortBinding]] = sent(dict)


class PublishResponse(Body, frozen=True, kw_only=True):
    ports: dict[str, list[PortBinding]]


async def publish_ports(call: Call) -> None:
    request = await call.body(PublishRequest)
    bound = await ports.publish(call.engine, call.id, request.port_bindings)
    await call.json(PublishResponse(ports=bound))


async def unpublish_port(call: Call) -> None:
    port = call.text("port")
    if not port:
        raise InvalidArgument("which port is to be taken back? (port=80/tcp)")
    await ports.unpublish(call.engine, call.id, port)
    await call.empty()


class MountsRequest(Body, frozen=True, kw_only=True):
    """POST /containers/{id}/mounts: `-v` words and `--mount` objects, all of them or none."""

    binds: list[str] | None = None
    mounts: list[MountRequest] | None = None


class MountsResponse(Body, frozen=True, kw_only=True):
    mounts: list[MountPoint]


async def add_mounts(call: Call) -> None:
    request = await call.body(MountsRequest)
    made = await live_mounts.add(call.engine, call.id, request.binds or [], request.mounts or [])
    await call.json(MountsResponse(mounts=[mount_point(mount) for mount in made]), 201)


async def remove_mounts(call: Call) -> None:
    await live_mounts.remove(call.engine, call.id, call.many("destination"))
    await call.empty()


async def show_egress(call: Call) -> None:
    await call.json(await egress.show(call.engine, call.id))


async def change_egress(call: Call) -> None:
    request = await call.body(EgressRequest)
    await call.json(await egress.change(call.engine, call.id, request.egress))


async def export_volume(call: Call) -> None:
    await send_outlet(call, await volumes.export_volume(call.engine, call.id), TAR)


async def import_volume(call: Call) -> None:
    async with receive(call.request.body) as source:
        await volumes.import_volume(call.engine, call.id, source)
    await call.empty(200)


async def verify_store(call: Call) -> None:
    async def verb(report: Report) -> None:
        await system.verify(call.engine, report)

    await progress_stream(call, verb)


ROUTES: tuple[Route, ...] = (
    post("/containers/{id}/ports", publish_ports),
    delete("/containers/{id}/ports", unpublish_port),
    post("/containers/{id}/mounts", add_mounts),
    delete("/containers/{id}/mounts", remove_mounts),
    get("/containers/{id}/egress", show_egress),
    post("/containers/{id}/egress", change_egress),
    get("/volumes/{id}/export", export_volume),
    post("/volumes/{id}/import", import_volume),
    post("/system/verify", verify_store),
)
