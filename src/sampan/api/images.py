"""Images endpoints: decode, call one verb, encode."""

from __future__ import annotations

import msgspec

from sampan.api.call import Call
from sampan.api.progress import Report, progress_stream
from sampan.api.router import Route, delete, get, post
from sampan.api.transfers import receive, send_outlet
from sampan.engine import images
from sampan.engine.pipes import ByteInlet
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import ContainerConfig

TAR = "application/x-tar"


class _Platform(msgspec.Struct, frozen=True, rename="lower"):
    """An OCI platform, as newer clients send it in a query."""

    os: str = ""
    architecture: str = ""
    variant: str = ""


def platform_of(call: Call, key: str = "platform") -> str:
    """`linux/arm64/v8`, or the same as a JSON object."""
    return _platform(call.text(key))


def _platform(text: str) -> str:
    if not text.startswith("{"):
        return text
    try:
        said = msgspec.json.decode(text, type=_Platform)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid platform: {error}") from None
    return "/".join(part for part in (said.os, said.architecture, said.variant) if part)


async def list_images(call: Call) -> None:
    await call.json(
        await images.list_images(
            call.engine,
            everything=call.flag("all"),
            filters=call.filters(),
            shared_size=call.flag("shared-size"),
            digests=call.flag("digests"),
            manifests=call.version >= (1, 47) and call.flag("manifests"),
            version=call.version,
        )
    )


async def create_image(call: Call) -> None:
    """Pull (`fromImage`) or import (`fromSrc`)."""
    if call.text("fromImage"):
        await _pull(call)
    elif call.text("fromSrc"):
        await _import(call)
    else:
        raise InvalidArgument("either fromImage or fromSrc is required")


async def _pull(call: Call) -> None:
    async def verb(report: Report) -> None:
        await images.pull(
            call.engine,
            image=call.text("fromImage"),
            tag=call.text("tag"),
            platform=platform_of(call),
            auth=call.auth(),
            progress=report,
        )

    await progress_stream(call, verb)


async def _import(call: Call) -> None:
    if call.text("fromSrc") != "-":
        await _import_from(call, call.text("fromSrc"))
        return
    async with receive(call.request.body) as source:
        await _import_from(call, source)


async def _import_from(call: Call, source: ByteInlet | str) -> None:
    async def verb(report: Report) -> None:
        await images.import_(
            call.engine,
            source,
            repo=call.text("repo"),
            tag=call.text("tag"),
            message=call.text("message"),
            changes=call.many("changes"),
            platform=platform_of(call),
            progress=report,
        )

    await progress_stream(call, verb)


async def inspect_image(call: Call) -> None:
    await call.json(
        await images.inspect(
            call.engine,
            call.id,
            platform=platform_of(call),
            manifests=call.version >= (1, 48) and call.flag("manifests"),
            version=call.version,
        )
    )


async def image_history(call: Call) -> None:
    await call.json(await images.history(call.engine, call.id, platform_of(call)))


async def push_image(call: Call) -> None:
    async def verb(report: Report) -> None:
        await images.push(
            call.engine,
            call.id,
            tag=call.text("tag"),
            platform=platform_of(call),
            auth=call.auth(),
            progress=report,
        )

    await progress_stream(call, verb)


async def tag_image(call: Call) -> None:
    await images.tag(call.engine, call.id, repo=call.text("repo"), tag=call.text("tag"))
    await call.empty(201)


async def remove_image(call: Call) -> None:
    removed = await images.remove(
        call.engine, call.id, force=call.flag("force"), noprune=call.flag("noprune")
    )
    await call.json(removed)


async def search_images(call: Call) -> None:
    found = await images.search(
        call.engine,
        term=call.text("term"),
        limit=call.number("limit") or 0,
        filters=call.filters(),
        auth=call.auth(),
    )
    await call.json(found)


async def prune_images(call: Call) -> None:
    await call.json(await images.prune(call.engine, call.filters()))


async def save_image(call: Call) -> None:
    await _save(call, [call.id])


async def save_images(call: Call) -> None:
    await _save(call, call.many("names"))


async def _save(call: Call, names: list[str]) -> None:
    if not names:
        raise InvalidArgument("no images to save")
    await send_outlet(call, await images.save(call.engine, names, platform_of(call)), TAR)


async def load_images(call: Call) -> None:
    quiet = call.flag("quiet", True)
    async with receive(call.request.body) as source:

        async def verb(report: Report) -> None:
            await images.load(
                call.engine, source, quiet=quiet, platform=platform_of(call), progress=report
            )

        await progress_stream(call, verb, always_in_band=True)


async def commit_container(call: Call) -> None:
    config = await call.body(ContainerConfig)
    response = await images.commit(
        call.engine,
        container=call.text("container"),
        repo=call.text("repo"),
        tag=call.text("tag"),
        comment=call.text("comment"),
        author=call.text("author"),
        pause=call.flag("pause", True),
        changes=call.many("changes"),
        config=config,
    )
    await call.json(response, 201)


async def inspect_distribution(call: Call) -> None:
    await call.json(await images.distribution(call.engine, call.id, call.auth()))


ROUTES: tuple[Route, ...] = (
    get("/images/json", list_images),
    get("/images/search", search_images),
    get("/images/get", save_images),
    get("/images/{id}/get", save_image),
    get("/images/{id}/history", image_history),
    get("/images/{id}/json", inspect_image),
    post("/images/create", create_image),
    post("/images/load", load_images),
    post("/images/prune", prune_images),
    post("/images/{id}/push", push_image),
    post("/images/{id}/tag", tag_image),
    delete("/images/{id}", remove_image),
    post("/commit", commit_container),
    get("/distribution/{id}/json", inspect_distribution),
)
