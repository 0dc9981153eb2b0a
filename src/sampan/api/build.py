"""Build endpoints: decode, call one verb, encode."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sampan.api import build_run
from sampan.api.buildkit import BuildKit, cancellable
from sampan.api.call import Call, header_json
from sampan.api.progress import Report, progress_stream
from sampan.api.router import Route, post
from sampan.api.transfers import receive
from sampan.build.builder import Builder
from sampan.build.prune import prune
from sampan.build.request import BuildRequest, CacheOption
from sampan.build.verb import Sent, build
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import HostConfig, Ulimit

Endpoint = Callable[[Call], Awaitable[None]]


def routes(builder: Builder, buildkit: BuildKit) -> tuple[Route, ...]:
    """The routes of one builder."""

    async def build_image(call: Call) -> None:
        if call.text("version") == "2":
            await buildkit.build(call, build_request(call))
        else:
            await _build(builder, call)

    async def cancel(call: Call) -> None:
        task = builder.running.get(call.text("id"))
        if task is None:
            raise InvalidArgument(f"build id {call.text('id')!r} is not running")
        task.cancel()
        await call.empty(200)

    async def prune_cache(call: Call) -> None:
        keep = call.number("reserved-space") or call.number("keep-storage") or 0
        filters, everything = call.filters(), call.flag("all")
        pruned = await prune(builder, filters, everything=everything, keep_bytes=keep)
        if everything and not filters and not keep:
            freed = pruned.space_reclaimed + await buildkit.drop_contexts()
            pruned = msgspec.structs.replace(pruned, space_reclaimed=freed)
        await call.json(pruned)

    return (
        post("/build", build_image),
        post("/build/cancel", cancel),
        post("/build/prune", prune_cache),
        *build_run.routes(builder),
    )


async def _build(builder: Builder, call: Call) -> None:
    request = build_request(call)
    sent = Sent(secrets=_secrets(call), auths=_auths(call))
    async with receive(call.request.body) as source:

        async def verb(report: Report) -> None:
            with cancellable(builder, call.text("buildid")):
                await build(builder, request, sent, source, report)

        await progress_stream(call, verb)


def build_request(call: Call) -> BuildRequest:
    """The query's parameters as a request. Raises InvalidArgument naming the parameter."""
    arguments = _json(call, "buildargs")
    return BuildRequest(
        dockerfile=call.text("dockerfile") or "Dockerfile",
        remote=call.text("remote"),
        tags=tuple(tag for tag in call.many("t") if tag),
        args={key: value for key, value in arguments.items() if isinstance(value, str)},
        labels={key: str(value) for key, value in _json(call, "labels").items()},
        target=call.text("target"),
        platforms=_words(call.text("platform")),
        network=call.text("networkmode"),
        quiet=call.flag("q"),
        no_cache=call.flag("nocache"),
        no_cache_stages=_words(call.text("nocachefilter")),
        pull=call.flag("pull"),
        remove=call.flag("rm", default=True),
        host=_host_config(call),
        allow=frozenset(call.many("allow")),
        cache_from=tuple(CacheOption(type="registry", attrs={"ref": n}) for n in _cache_from(call)),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _cache_from(call: Call) -> tuple[str, ...]:
    text = call.text("cachefrom")
    if not text:
        return ()
    try:
        return tuple(msgspec.json.decode(text, type=list[str] | None) or ())
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"error reading cachefrom: {error}") from None


def _json(call: Call, key: str) -> dict[str, Any]:
    text = call.text(key)
    if not text:
        return {}
    try:
        found = msgspec.json.decode(text, type=dict[str, Any] | None)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"error reading {key}: {error}") from None
    return found or {}


def _host_config(call: Call) -> HostConfig:
    numbers = {
        "memory": "memory", "memswap": "memory_swap", "cpushares": "cpu_shares", "cpuperiod": "cpu_period",
        "cpuquota": "cpu_quota", "shmsize": "shm_size",
    }  # fmt: skip
    fields: dict[str, Any] = {
        field: number for key, field in numbers.items() if (number := call.number(key))
    }
    texts = {
        "cpusetcpus": "cpuset_cpus",
        "cpusetmems": "cpuset_mems",
        "cgroupparent": "cgroup_parent",
    }
    fields |= {field: text for key, field in texts.items() if (text := call.text(key))}
    hosts = [h for text in call.many("extrahosts") for h in text.split(",") if h]
    if hosts:
        fields["extra_hosts"] = hosts
    if call.text("ulimits"):
        try:
            found = msgspec.json.decode(call.text("ulimits"), type=list[Ulimit] | None)
            fields["ulimits"] = found or []
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"error reading ulimit settings: {error}") from None
    return HostConfig(**fields)


def _secrets(call: Call) -> dict[str, bytes]:
    """X-Build-Secrets: base64 JSON {id: base64}. Our own extension: never in a query, which is logged."""
    raw = call.header("x-build-secrets")
    value = header_json(raw) if raw else None
    if not isinstance(value, dict):
        return {}
    try:
        return {
            key: b64decode(text, validate=True)
            for key, text in value.items()
            if isinstance(text, str)
        }
    except (binascii.Error, ValueError):
        raise InvalidArgument("X-Build-Secrets is not base64 JSON of base64 texts") from None


def _auths(call: Call) -> dict[str, dict[str, str]]:
    raw = call.header("x-registry-config")
    value = header_json(raw) if raw else None
    if not isinstance(value, dict):
        return {}
    return {
        host: {k.lower(): v for k, v in entry.items() if isinstance(v, str)}
        for host, entry in value.items()
        if isinstance(entry, dict)
    }
