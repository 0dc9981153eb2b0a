"""Networks endpoints: decode, call one verb, encode."""

from __future__ import annotations

from sampan.api.call import Call
from sampan.api.router import Route, delete, get, post
from sampan.engine import networks
from sampan.spec.engine.network import ConnectRequest, DisconnectRequest, NetworkCreateRequest


async def list_networks(call: Call) -> None:
    await call.json(await networks.list_networks(call.engine, call.filters(), version=call.version))


async def inspect_network(call: Call) -> None:
    await call.json(
        await networks.inspect_network(
            call.engine,
            call.id,
            verbose=call.flag("verbose"),
            scope=call.text("scope"),
            version=call.version,
        )
    )


async def create_network(call: Call) -> None:
    request = await call.body(NetworkCreateRequest)
    await call.json(await call.through(networks.create_network(call.engine, request)), 201)


async def connect_network(call: Call) -> None:
    await call.through(networks.connect(call.engine, call.id, await call.body(ConnectRequest)))
    await call.empty(200)


async def disconnect_network(call: Call) -> None:
    await call.through(
        networks.disconnect(call.engine, call.id, await call.body(DisconnectRequest))
    )
    await call.empty(200)


async def remove_network(call: Call) -> None:
    await call.through(networks.remove_network(call.engine, call.id))
    await call.empty()


async def prune_networks(call: Call) -> None:
    await call.json(await call.through(networks.prune_networks(call.engine, call.filters())))


ROUTES: tuple[Route, ...] = (
    get("/networks", list_networks),
    get("/networks/", list_networks),
    post("/networks/create", create_network),
    post("/networks/prune", prune_networks),
    post("/networks/{id}/connect", connect_network),
    post("/networks/{id}/disconnect", disconnect_network),
    get("/networks/{id}", inspect_network),
    delete("/networks/{id}", remove_network),
)
