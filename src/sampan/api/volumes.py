"""Volumes endpoints: decode, call one verb, encode."""

from __future__ import annotations

from sampan.api.call import Call
from sampan.api.router import Route, delete, get, post
from sampan.engine import volumes
from sampan.spec.engine.volume import VolumeCreateRequest


async def list_volumes(call: Call) -> None:
    await call.json(await volumes.list_volumes(call.engine, call.filters()))


async def create_volume(call: Call) -> None:
    request = await call.body(VolumeCreateRequest)
    await call.json(await call.through(volumes.create_volume(call.engine, request)), 201)


async def inspect_volume(call: Call) -> None:
    await call.json(await volumes.inspect_volume(call.engine, call.id))


async def remove_volume(call: Call) -> None:
    await call.through(volumes.remove_volume(call.engine, call.id, force=call.flag("force")))
    await call.empty()


async def prune_volumes(call: Call) -> None:
    pruned = await call.through(
        volumes.prune_volumes(call.engine, call.filters(), version=call.version)
    )
    await call.json(pruned)


ROUTES: tuple[Route, ...] = (
    get("/volumes", list_volumes),
    post("/volumes/create", create_volume),
    post("/volumes/prune", prune_volumes),
    get("/volumes/{id}", inspect_volume),
    delete("/volumes/{id}", remove_volume),
)
