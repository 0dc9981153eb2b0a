"""System endpoints: ping, version, info, events, disk use, login. Decode, call one verb, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sampan.api.call import Call
from sampan.api.progress import json_lines
from sampan.api.router import Route, get, head, post
from sampan.engine import events, system
from sampan.engine.events import Event, EventStream
from sampan.errors import InvalidArgument
from sampan.spec.engine.system import Actor, AuthRequest, EventMessage
from sampan.units import parse_timestamp

PING_HEADERS = (
    ("Builder-Version", "2"),  # BuildKit; the classic builder would be 1
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Pragma", "no-cache"),
    ("Swarm", "inactive"),
)
DISK_USAGE_TYPES = ("container", "image", "volume", "build-cache")
# Event types whose subject older clients read from `status`, `id` and `from`.
OLD_STYLE_TYPES = ("container", "image")


async def ping(call: Call) -> None:
    await call.reply.send(200, b"OK", "text/plain; charset=utf-8", PING_HEADERS)


async def ping_head(call: Call) -> None:
    headers = [
        *PING_HEADERS,
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", "0"),
    ]
    await call.empty(200, headers)


async def show_version(call: Call) -> None:
    await call.json(await system.version(call.engine))


async def show_info(call: Call) -> None:
    await call.json(await system.info(call.engine, version=call.version))


async def disk_usage(call: Call) -> None:
    wanted = call.many("type")
    for kind in wanted:
        if kind not in DISK_USAGE_TYPES:
            raise InvalidArgument(f"unknown object type: {kind}")
    usage = await system.disk_usage(
        call.engine,
        types=frozenset(wanted or DISK_USAGE_TYPES),
        verbose=call.flag("verbose"),
        version=call.version,
    )
    await call.json(usage)


async def stream_events(call: Call) -> None:
    since, until = call.text("since"), call.text("until")
    since_ns = parse_timestamp(since) if since else None
    until_ns = parse_timestamp(until) if until else None
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise InvalidArgument(f"`since` time ({since}) cannot be after `until` time ({until})")
    stream = await events.subscribe(
        call.engine, since_ns=since_ns, until_ns=until_ns, filters=call.filters()
    )
    call.reply.only_watches = True
    try:
        await json_lines(call, _messages(stream))
    finally:
        await stream.aclose()


async def _messages(stream: EventStream) -> AsyncIterator[EventMessage]:
    async for event in stream:
        yield event_message(event)


def event_message(event: Event) -> EventMessage:
    """The event as clients expect it, with the three fields that repeat the rest for older ones."""
    old_style = event.type in OLD_STYLE_TYPES
    return EventMessage(
        status=event.action if old_style else "",
        id=event.id if old_style else "",
        from_=event.attributes.get("image", "") if event.type == "container" else "",
        type=event.type,
        action=event.action,
        actor=Actor(id=event.id, attributes=event.attributes),
        scope="local",
        time=event.time_ns // 1_000_000_000,
        time_nano=event.time_ns,
    )


async def login(call: Call) -> None:
    await call.json(await system.auth(call.engine, await call.body(AuthRequest)))


ROUTES: tuple[Route, ...] = (
    get("/_ping", ping),
    head("/_ping", ping_head),
    get("/version", show_version),
    get("/info", show_info),
    get("/events", stream_events),
    get("/system/df", disk_usage),
    post("/auth", login),
)
