"""How the types of this package correspond to the JSON that Docker's clients send and expect.

Three Go habits shape that JSON, and every body type here says which applies, field by field:

    x: int = sent(int)             always on the wire, also when zero       (a plain Go field)
    x: list[str] | None = null()   always on the wire, `null` when not set  (a nil slice or pointer)
    x: str = ""                    left out when it holds its default       (Go's `omitempty`)

Names: an attribute is snake_case here and PascalCase on the wire; a type that has acronyms lists them
with `names(ip_address="IPAddress")`.

Decoding follows Go's encoding/json, because clients were written against it: field names match in any
case, `null` means "leave the zero value", unknown fields are ignored, and `Cmd`, `Entrypoint` take a
string as well as a list. `decode()` does that; `encode()` writes the bytes.

Sources: the Engine API reference (docs.docker.com/reference/api/engine), Go's encoding/json documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import inspect as types

from sampan.errors import InvalidArgument

T = TypeVar("T")

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
# Deeper bodies than this are attacks: the deepest honest one (mounts in HostConfig) has six levels.
DEEPEST = 64
STR_SLICE = "a list of strings, or one string"
StrSlice = Annotated[list[str], msgspec.Meta(extra={STR_SLICE: True})]


def sent(zero: Callable[[], T]) -> T:
    """A field that is on the wire also when it holds its zero value."""
    # msgspec leaves out fields whose factory is `list` or `dict` itself, so wrap it.
    return msgspec.field(default_factory=lambda: zero())


def null() -> Any:
    """A field that is `null` on the wire while it is not set."""
    return msgspec.field(default_factory=lambda: None)


def pascal(attribute: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in attribute.split("_"))


def names(**exceptions: str) -> Callable[[str], str]:
    """PascalCase but for the attributes given."""
    return lambda attribute: exceptions.get(attribute) or pascal(attribute)


class Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=pascal):
    """The root of every body type."""


class Empty(Body, frozen=True, kw_only=True):
    """Go's `struct{}`: the value in a map that is used as a set."""


encode = msgspec.json.Encoder().encode


def decode(body: bytes, kind: type[T]) -> T:
    """The body as `kind`; an empty body is the zero value, a wrong one InvalidArgument that names the field."""
    if not body.strip():
        return kind()
    try:
        raw = _loads(body)
    except msgspec.DecodeError as error:
        raise InvalidArgument(_json_fault(body, str(error))) from None
    except RecursionError:
        raise InvalidArgument("invalid JSON: exceeded max depth") from None
    return from_builtins(raw, kind)


def _loads(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError:  # Go puts U+FFFD for bytes that are no UTF-8
        return msgspec.json.decode(body.decode("utf-8", "replace"))


def from_builtins(raw: Any, kind: type[T]) -> T:
    """A decoded JSON value as `kind`, by Go's rules."""
    if raw is None:
        return kind()
    try:
        return msgspec.convert(_shaped(raw, _plan(kind), DEEPEST), kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"invalid JSON: {error}") from None


def _json_fault(body: bytes, text: str) -> str:
    if "trailing characters" in text:
        return "unexpected content after JSON"
    return (
        f"invalid JSON: {text}"
        if body.strip()
        else "invalid JSON: got EOF while reading request body"
    )


class _Fields(msgspec.Struct):
    """What an object's keys may be: wire name by lower-cased name, and what each holds."""

    wire_names: dict[str, str]
    kinds: dict[str, types.Type]


_PLANS: dict[object, types.Type] = {}


def _plan(kind: object) -> types.Type:
    if kind not in _PLANS:
        _PLANS[kind] = types.type_info(kind)
    return _PLANS[kind]


@cache
def _fields(struct: type) -> _Fields:
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    return _Fields(
        wire_names={f.encode_name.lower(): f.encode_name for f in info.fields},
        kinds={f.encode_name: f.type for f in info.fields},
    )


def _shaped(raw: Any, kind: types.Type, depth: int) -> Any:
    """`raw` with exact field names, without nulls, single strings made lists."""
    if depth == 0:
        raise InvalidArgument("invalid JSON: exceeded max depth")
    if isinstance(kind, types.UnionType):
        kind = _only_object(kind)
    if isinstance(kind, types.Metadata):
        if STR_SLICE in (kind.extra or {}) and isinstance(raw, str):
            return [raw]
        return _shaped(raw, kind.type, depth)
    if isinstance(raw, dict):
        if isinstance(kind, types.StructType):
            return _shaped_object(raw, _fields(kind.cls), depth)
        if isinstance(kind, types.DictType):
            return {k: _item(v, kind.value_type, depth) for k, v in raw.items()}
    if isinstance(raw, list) and isinstance(kind, types.ListType):
        return [_item(v, kind.item_type, depth) for v in raw]
    return raw


def _shaped_object(raw: dict[str, Any], fields: _Fields, depth: int) -> dict[str, Any]:
    shaped = {}
    for key, value in raw.items():
        name = key if key in fields.kinds else fields.wire_names.get(key.lower())
        if name is not None and value is not None:
            shaped[name] = _shaped(value, fields.kinds[name], depth - 1)
    return shaped


def _item(value: Any, kind: types.Type, depth: int) -> Any:
    """A value in a list or map, where Go reads `null` as the zero value."""
    return _shaped(_zero(kind) if value is None else value, kind, depth - 1)


def _only_object(kind: types.UnionType) -> types.Type:
    """`X | None` is X: unions in this package are never anything else."""
    return next((t for t in kind.types if not isinstance(t, types.NoneType)), kind)


_ZEROS: tuple[tuple[type, Callable[[], object]], ...] = (
    (types.StrType, str),
    (types.IntType, int),
    (types.FloatType, float),
    (types.BoolType, bool),
    (types.ListType, list),
    (types.DictType, dict),
    (types.StructType, dict),
)


def _zero(kind: types.Type) -> object:
    if isinstance(kind, types.Metadata):
        return _zero(kind.type)
    return next((make() for type_, make in _ZEROS if isinstance(kind, type_)), None)
