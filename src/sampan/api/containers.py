"""Containers endpoints: decode, call one verb, encode. Streams of a container's are in streams.py."""

from __future__ import annotations

from base64 import b64encode

from sampan.api.call import Call
from sampan.api.router import Route, delete, get, head, post, put
from sampan.api.transfers import receive, send_outlet
from sampan.engine import change, create, files, remove, start, stats, stop, views
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import CreateRequest, PathStat, UpdateRequest
from sampan.spec.engine.wire import encode

TAR = "application/x-tar"
# A start request may carry "{}" or "null\r\n" from old clients, not a configuration.
MOST_START_BODY = 7


async def list_containers(call: Call) -> None:
    await call.json(
        await views.list_containers(
            call.engine,
            everything=call.flag("all"),
            limit=call.number("limit") or 0,
            size=call.flag("size"),
            filters=call.filters(),
            version=call.version,
        )
    )


async def create_container(call: Call) -> None:
    request = await call.body(CreateRequest)
    response = await call.through(
        create.create(
            call.engine,
            request,
            name=call.text("name"),
            platform=call.text("platform"),
            version=call.version,
        )
    )
    await call.json(response, 201)


async def inspect_container(call: Call) -> None:
    size = call.flag("size")
    await call.json(await views.inspect(call.engine, call.id, size=size, version=call.version))


async def top_container(call: Call) -> None:
    await call.json(await stats.top(call.engine, call.id, call.text("ps_args", "-ef")))


async def start_container(call: Call) -> None:
    if call.request.body.length > MOST_START_BODY:
        raise InvalidArgument(
            "starting container with non-empty request body was deprecated since API v1.22 "
            "and removed in v1.24"
        )
    await call.through(start.start(call.engine, call.id, detach_keys=call.text("detachKeys")))
    await call.empty()


async def stop_container(call: Call) -> None:
    timeout, signal = _stop_options(call)
    await call.through(stop.stop(call.engine, call.id, timeout=timeout, signal=signal))
    await call.empty()


async def restart_container(call: Call) -> None:
    timeout, signal = _stop_options(call)
    await call.through(stop.restart(call.engine, call.id, timeout=timeout, signal=signal))
    await call.empty()


def _stop_options(call: Call) -> tuple[int | None, str]:
    signal = call.text("signal") if call.version >= (1, 42) else ""
    return call.number("t"), signal


async def kill_container(call: Call) -> None:
    await call.through(stop.kill(call.engine, call.id, signal=call.text("signal", "KILL")))
    await call.empty()


async def pause_container(call: Call) -> None:
    await call.through(stop.pause(call.engine, call.id))
    await call.empty()


async def unpause_container(call: Call) -> None:
    await call.through(stop.unpause(call.engine, call.id))
    await call.empty()


async def update_container(call: Call) -> None:
    request = await call.body(UpdateRequest)
    await call.json(await call.through(change.update(call.engine, call.id, request)))


async def rename_container(call: Call) -> None:
    await call.through(change.rename(call.engine, call.id, call.text("name")))
    await call.empty()


async def resize_container(call: Call) -> None:
    height, width = call.size("h"), call.size("w")
    await change.resize(call.engine, call.id, height=height, width=width)
    await call.empty(200)


async def remove_container(call: Call) -> None:
    await call.through(
        remove.remove(
            call.engine,
            call.id,
            force=call.flag("force"),
            volumes=call.flag("v"),
            link=call.flag("link"),
        )
    )
    await call.empty()


async def prune_containers(call: Call) -> None:
    await call.json(await call.through(remove.prune(call.engine, call.filters())))


# --- files ---


async def changes_of_container(call: Call) -> None:
    changes = await files.changes(call.engine, call.id)
    await call.json(changes or None)  # nothing changed is `null`, as in Docker


async def export_container(call: Call) -> None:
    await send_outlet(call, await files.export(call.engine, call.id), "application/octet-stream")


async def stat_path(call: Call) -> None:
    stat = await files.stat(call.engine, call.id, _path(call))
    await call.empty(200, [_stat_header(stat)])


async def get_archive(call: Call) -> None:
    stat, outlet = await files.get_archive(call.engine, call.id, _path(call))
    await send_outlet(call, outlet, TAR, [_stat_header(stat)])


async def put_archive(call: Call) -> None:
    async with receive(call.request.body) as source:
        await files.put_archive(
            call.engine,
            call.id,
            _path(call),
            source,
            no_overwrite_dir_non_dir=call.flag("noOverwriteDirNonDir"),
            copy_uid_gid=call.flag("copyUIDGID"),
        )
    await call.empty(200)


def _path(call: Call) -> str:
    path = call.text("path")
    if not path:
        raise InvalidArgument("bad parameter: path cannot be empty")
    return path


def _stat_header(stat: PathStat) -> tuple[str, str]:
    return "X-Docker-Container-Path-Stat", b64encode(encode(stat)).decode()


ROUTES: tuple[Route, ...] = (
    get("/containers/json", list_containers),
    post("/containers/create", create_container),
    post("/containers/prune", prune_containers),
    get("/containers/{id}/json", inspect_container),
    get("/containers/{id}/top", top_container),
    get("/containers/{id}/changes", changes_of_container),
    get("/containers/{id}/export", export_container),
    head("/containers/{id}/archive", stat_path),
    get("/containers/{id}/archive", get_archive),
    put("/containers/{id}/archive", put_archive),
    post("/containers/{id}/start", start_container),
    post("/containers/{id}/stop", stop_container),
    post("/containers/{id}/restart", restart_container),
    post("/containers/{id}/kill", kill_container),
    post("/containers/{id}/pause", pause_container),
    post("/containers/{id}/unpause", unpause_container),
    post("/containers/{id}/update", update_container),
    post("/containers/{id}/rename", rename_container),
    post("/containers/{id}/resize", resize_container),
    delete("/containers/{id}", remove_container),
)
