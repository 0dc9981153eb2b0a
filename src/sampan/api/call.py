"""One API call while it is answered: what an endpoint reads from the request, and how it answers.

Endpoints are `async def endpoint(call: Call) -> None`: decode with the methods here, call one verb of
engine/, answer with `json`, `empty` or one of the stream helpers (progress.py, hijack through `reply`).

The two habits of Docker's query strings: a flag is false only for "", 0, no, false, none; `filters` is
JSON in either of two spellings, {"label": {"a=b": true}} and {"label": ["a=b"]}.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Coroutine, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sampan.api.exchange import JSON_LIMIT, Headers, Reply, Request
from sampan.api.http_head import parse_query
from sampan.errors import InvalidArgument
from sampan.spec.engine.wire import decode, encode

if TYPE_CHECKING:
    from sampan.engine.context import Engine

T = TypeVar("T")
Version = tuple[int, int]

_FALSE = frozenset({"", "0", "no", "false", "none"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_MAX_FILTERS = 64 * 1024


class Call:
    """A request on its way to one verb, and its answer."""

    def __init__(self, engine: Engine, request: Request, reply: Reply) -> None:
        self.engine = engine
        self.request = request
        self.reply = reply
        self.version: Version = (0, 0)  # set by the router
        self.path: dict[str, str] = {}  # set by the router: {"id": ...}

    # --- what was asked ---

    @property
    def id(self) -> str:
        """What the path names: a container, image, network, ..., as the user wrote it."""
        return self.path["id"]

    @cached_property
    def _query(self) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        for key, value in parse_query(self.request.head.query):
            values.setdefault(key, []).append(value)
        return values

    def header(self, name: str) -> str:
        return self.request.head.headers.get(name, "")

    def has(self, key: str) -> bool:
        return key in self._query

    def text(self, key: str, default: str = "") -> str:
        """The first value of a query key; empty counts as not given."""
        values = self._query.get(key)
        return values[0] if values and values[0] else default

    def many(self, key: str) -> list[str]:
        return self._query.get(key, [])

    def flag(self, key: str, default: bool = False) -> bool:
        values = self._query.get(key)
        return default if values is None else values[0].strip().lower() not in _FALSE

    def number(self, key: str) -> int | None:
        """An integer in the query, or None where it is not given."""
        text = self.text(key)
        return integer(text, key) if text else None

    def size(self, key: str) -> int:
        """A terminal's height or width: required, 32 bits."""
        text = self.text(key)
        value = integer(text, key)
        if not 0 <= value < 2**32:
            raise InvalidArgument(f'invalid resize {_SIZES[key]} "{text}": value out of range')
        return value

    def filters(self) -> dict[str, list[str]]:
        return parse_filters(self.text("filters"))

    async def body(self, kind: type[T], *, need_content_type: bool = True) -> T:
        """The JSON body as `kind`; an empty one is the zero value."""
        raw = await self.request.body.read_all(JSON_LIMIT)
        if raw and need_content_type:
            self._check_json_type()
        return decode(raw, kind)

    def _check_json_type(self) -> None:
        said = self.header("content-type")
        if said and said.partition(";")[0].strip().lower() != "application/json":
            raise InvalidArgument(
                f"unsupported Content-Type header ({said}): must be 'application/json'"
            )
        if not said:
            raise InvalidArgument("unsupported Content-Type header (): must be 'application/json'")

    def auth(self) -> dict[str, str] | None:
        """The X-Registry-Auth header, keys lower-case; one that cannot be read counts as absent, as in Docker."""
        raw = self.header("x-registry-auth")
        value = header_json(raw) if raw else None
        if not isinstance(value, dict):
            return None
        return {k.lower(): v for k, v in value.items() if isinstance(v, str)} or None

    async def through(self, verb: Coroutine[Any, Any, T]) -> T:
        """A verb that goes on to its end when the client leaves."""
        return await self.engine.background.through(verb)

    # --- the answer ---

    async def json(self, value: object, status: int = 200) -> None:
        await self.reply.send(status, encode(value) + b"\n")

    async def empty(self, status: int = 204, headers: Headers = ()) -> None:
        await self.reply.send(status, headers=headers)


_SIZES = {"h": "height", "w": "width"}


def integer(text: str, what: str) -> int:
    """A decimal number, by Go's grammar and not by Python's (no underscores, no other digits)."""
    if not _INTEGER.fullmatch(text):
        raise InvalidArgument(
            f'strconv.Atoi: parsing "{text}": invalid syntax', hint=f"{what} is to be a number"
        )
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise InvalidArgument(f"invalid value for {what}: {text} is out of range")
    return value


def parse_filters(text: str) -> dict[str, list[str]]:
    """Both spellings of `filters`."""
    if not text:
        return {}
    if len(text) > _MAX_FILTERS:
        raise InvalidArgument("invalid filter: too long")
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument("invalid filter", hint=f"it is no JSON: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InvalidArgument("invalid filter: not an object")
    return {key: _filter_values(key, values) for key, values in raw.items()}


def _filter_values(key: str, values: Any) -> list[str]:
    if values is None:
        return []
    if isinstance(values, dict):
        if all(isinstance(on, bool) for on in values.values()):
            return [value for value, on in values.items() if on]
    elif isinstance(values, list) and all(isinstance(value, str) for value in values):
        return list(values)
    raise InvalidArgument(f"invalid filter '{key}'")


def header_json(raw: str) -> object | None:
    """A header that holds JSON in base64, URL-safe or not, padded or not; None when it does not."""
    for variant in (urlsafe_b64decode, b64decode):
        try:
            text = variant(raw.encode("ascii") + b"=" * (-len(raw) % 4))
            value: object = msgspec.json.decode(text)
        except (ValueError, binascii.Error, RecursionError):
            continue
        return value
    return None


def joined(lines: Iterable[object]) -> bytes:
    """JSON messages as Docker streams them: one a line, CR LF ended."""
    return b"".join(encode(line) + b"\r\n" for line in lines)
