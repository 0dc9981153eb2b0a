"""From a request to an endpoint: versioned paths, one table of routes, one table of error statuses.

    GET /v1.51/containers/abc/json
        |    |      pattern /containers/{id}/json -> {"id": "abc"}
        |    version (1, 51); without the prefix, the newest
        method: a path that exists under another method is "page not found" too, as in Docker

Patterns: `{id}` is any text, slashes included (image names have them); the literal parts around it
decide. Routes of one method and first word are tried in the order of the table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from sampan import errors
from sampan.api.call import Call, Version
from sampan.api.exchange import Reply, Request
from sampan.api.http_head import BadRequest
from sampan.spec.engine.system import ErrorBody
from sampan.spec.engine.wire import encode

if TYPE_CHECKING:
    from sampan.engine.context import Engine

NEWEST: Version = (1, 51)
OLDEST: Version = (1, 24)

Endpoint = Callable[[Call], Awaitable[None]]

log = logging.getLogger("sampan.api")

# The one place where a kind of failure becomes an HTTP status. First match counts.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.InvalidArgument, 400),
    (BadRequest, 400),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.NotModified, 304),
    (errors.PermissionDenied, 403),
    (errors.Unauthenticated, 401),
    (errors.Unavailable, 503),
    (errors.Unsupported, 501),
    (errors.Internal, 500),
    (errors.SampanError, 500),
)


def status_of(error: Exception) -> int:
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def message_of(error: Exception) -> str:
    """What the client is told. A defect of ours says which, without a traceback."""
    if isinstance(error, errors.SampanError):
        return error.as_docker or str(error)
    if isinstance(error, BadRequest):
        return str(error)
    if (
        isinstance(error, OSError) and error.strerror
    ):  # the host failed us: "no space left on device"
        where = f"{error.filename}: " if error.filename else ""
        return where + error.strerror[0].lower() + error.strerror[1:]
    return f"internal error: {type(error).__name__}: {error}"


def hint_of(error: Exception) -> str:
    """What to do next; where Docker's words were given instead of ours, ours."""
    if not isinstance(error, errors.SampanError):
        return ""
    if not error.as_docker:
        return error.hint
    return f"{error}; {error.hint}" if error.hint else str(error)


class Route(msgspec.Struct, frozen=True):
    method: str
    pattern: str
    endpoint: Endpoint

    @property
    def first_word(self) -> str:
        return self.pattern.split("/")[1]

    def regex(self) -> re.Pattern[str]:
        parts = re.split(r"\{(\w+)\}", self.pattern)
        literal = [
            re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+)" for i, part in enumerate(parts)
        ]
        return re.compile("".join(literal), re.DOTALL)


def get(pattern: str, endpoint: Endpoint) -> Route:
    return Route("GET", pattern, endpoint)


def head(pattern: str, endpoint: Endpoint) -> Route:
    return Route("HEAD", pattern, endpoint)


def post(pattern: str, endpoint: Endpoint) -> Route:
    return Route("POST", pattern, endpoint)


def put(pattern: str, endpoint: Endpoint) -> Route:
    return Route("PUT", pattern, endpoint)


def delete(pattern: str, endpoint: Endpoint) -> Route:
    return Route("DELETE", pattern, endpoint)


_VERSIONED = re.compile(r"/v([0-9.]+)(/.*)", re.DOTALL)


class Router:
    """Finds the endpoint, runs it, turns what it raises into an answer."""

    def __init__(
        self, engine: Engine, routes: Iterable[Route], *, oldest: Version = OLDEST
    ) -> None:
        self._engine = engine
        self._oldest = oldest
        self._exact: dict[tuple[str, str], Endpoint] = {}
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Endpoint]]] = {}
        for route in routes:
            if "{" in route.pattern:
                key = (route.method, route.first_word)
                self._patterns.setdefault(key, []).append((route.regex(), route.endpoint))
            else:
                self._exact[route.method, route.pattern] = route.endpoint

    async def __call__(self, request: Request, reply: Reply) -> None:
        """The handler of http.HttpServer."""
        call = Call(self._engine, request, reply)
        try:
            check_origin(request)
            path = self._versioned(call)
            await self._find(call, path)(call)
        except errors.Cancelled:
            if not reply.started:
                await self._answer(call, errors.Cancelled("request cancelled"))
            raise
        except Exception as error:
            if status_of(error) >= 500 and not isinstance(error, errors.SampanError):
                log.exception("%s %s failed", request.head.method, request.head.path)
            if reply.started:  # too late for a status: cut the stream, so that the client sees it
                raise errors.Cancelled(message_of(error)) from error
            await self._answer(call, error)

    def _versioned(self, call: Call) -> str:
        """The path without its version, which goes into the call."""
        path = call.request.head.path
        match = _VERSIONED.fullmatch(path)
        if match is None:
            call.version = NEWEST
            return path
        call.version = parse_version(match[1])
        self._check_version(call.version, match[1])
        return match[2]

    def _check_version(self, version: Version, said: str) -> None:
        newest, oldest = dotted(NEWEST), dotted(self._oldest)
        if version > NEWEST:
            raise errors.InvalidArgument(
                f"client version {said} is too new. Maximum supported API version is {newest}"
            )
        if version < self._oldest:
            raise errors.InvalidArgument(
                f"client version {said} is too old. Minimum supported API version is {oldest}, "
                "please upgrade your client to a newer version"
            )

    def _find(self, call: Call, path: str) -> Endpoint:
        method = call.request.head.method
        endpoint = self._exact.get((method, path))
        if endpoint is not None:
            return endpoint
        first_word = path[1:].partition("/")[0]
        for pattern, candidate in self._patterns.get((method, first_word), ()):
            match = pattern.fullmatch(path)
            if match is not None:
                call.path = match.groupdict()
                return candidate
        raise errors.NotFound("page not found")

    async def _answer(self, call: Call, error: Exception) -> None:
        status = status_of(error)
        if call.version and call.version < OLDEST and call.version != (0, 0):
            await call.reply.send(
                status, message_of(error).encode() + b"\n", "text/plain; charset=utf-8"
            )
            return
        body = encode(ErrorBody(message=message_of(error), hint=hint_of(error))) + b"\n"
        await call.reply.send(status, body)


def dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def parse_version(said: str) -> Version:
    """`1.51` as (1, 51); parts that are missing count as 0, what follows the second is ignored."""
    numbers = [int(part) if part and len(part) < 6 else 0 for part in said.split(".")]
    return (numbers[0], numbers[1] if len(numbers) > 1 else 0)


LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def check_origin(request: Request) -> None:
    """On tcp without client certificates: no browser page may drive the engine.

    A page can make a browser send requests to this host (cross-site requests), also under a name of its
    own that it points here (DNS rebinding); both show in headers that a page cannot change.
    """
    if not request.connection.check_origin:
        return
    if request.head.headers.get("origin"):
        raise errors.PermissionDenied("requests from web pages are not allowed on this address")
    name = request.head.headers.get("host", "")
    host = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    # A browser always names a host. BuildKit's client names none.
    if host and host.lower() not in LOCAL_HOSTS:
        raise errors.PermissionDenied(f"the Host header names {host!r}, which is not this address")
