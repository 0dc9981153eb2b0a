"""Honest answers for what this engine does not do: Swarm, plugins, checkpoints.

Clients probe these routes (`docker inspect NAME` asks for a plugin last, dashboards list services), so
each answers in the way that makes them go on.
"""

from __future__ import annotations

from sampan.api.call import Call
from sampan.api.router import Route, delete, get, post, put
from sampan.engine.words import NO_SWARM
from sampan.errors import InvalidArgument, NotFound, Unavailable, Unsupported


async def no_swarm(call: Call) -> None:
    raise Unavailable(NO_SWARM)


async def no_cluster_volumes(call: Call) -> None:
    raise Unavailable("volume update only valid for cluster volumes, but swarm is unavailable")


async def not_in_swarm(call: Call) -> None:
    raise Unavailable("This node is not part of a swarm")


async def cannot_swarm(call: Call) -> None:
    raise Unsupported("this engine cannot be a member of a swarm")


async def list_plugins(call: Call) -> None:
    call.filters()
    await call.json([])


async def no_plugin(call: Call) -> None:
    raise NotFound(f'plugin "{call.id}" not found')


async def cannot_plugin(call: Call) -> None:
    raise Unsupported("this engine has no plugins")


async def cannot_checkpoint(call: Call) -> None:
    raise InvalidArgument("checkpoint is only supported in experimental mode")


def _object_routes(plural: str) -> list[Route]:
    return [
        get(f"/{plural}", no_swarm),
        post(f"/{plural}/create", no_swarm),
        post(f"/{plural}/{{id}}/update", no_swarm),
        get(f"/{plural}/{{id}}", no_swarm),
        delete(f"/{plural}/{{id}}", no_swarm),
    ]


ROUTES: tuple[Route, ...] = (
    get("/swarm", no_swarm),
    get("/swarm/unlockkey", no_swarm),
    post("/swarm/init", cannot_swarm),
    post("/swarm/join", cannot_swarm),
    post("/swarm/leave", not_in_swarm),
    post("/swarm/update", no_swarm),
    post("/swarm/unlock", no_swarm),
    get("/services/{id}/logs", no_swarm),
    get("/tasks/{id}/logs", no_swarm),
    get("/tasks", no_swarm),
    get("/tasks/{id}", no_swarm),
    *_object_routes("nodes"),
    *_object_routes("services"),
    *_object_routes("secrets"),
    *_object_routes("configs"),
    put("/volumes/{id}", no_cluster_volumes),
    get("/plugins", list_plugins),
    get("/plugins/privileges", cannot_plugin),
    get("/plugins/{id}/json", no_plugin),
    delete("/plugins/{id}", no_plugin),
    post("/plugins/pull", cannot_plugin),
    post("/plugins/create", cannot_plugin),
    post("/plugins/{id}/enable", no_plugin),
    post("/plugins/{id}/disable", no_plugin),
    post("/plugins/{id}/upgrade", no_plugin),
    post("/plugins/{id}/push", no_plugin),
    post("/plugins/{id}/set", no_plugin),
    get("/containers/{id}/checkpoints", cannot_checkpoint),
    post("/containers/{id}/checkpoints", cannot_checkpoint),
    delete("/containers/{id}/checkpoints/{checkpoint}", cannot_checkpoint),
)
