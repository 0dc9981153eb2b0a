"""Protocol buffers' wire format, driven by a table that is read off each message's class. Pure.

    class VertexLog(Message):                      field 1, a string; field 3, a varint; field 4, bytes
        vertex: Annotated[str, 1] = ""
        stream: Annotated[int, 3] = 0
        data: Annotated[bytes, 4] = b""

    encode(message) -> bytes                       decode(VertexLog, bytes) -> VertexLog

Why not the protobuf runtime: it needs code generated from the .proto files, loads in 60 ms, and is a C extension for the
three wire types that BuildKit's messages use. Here a message is a plain frozen value and the format a hundred lines.

What counts: an unknown field is passed over; a known one with another wire type is a fault; of several occurrences of a
single field the last counts; a field with its default value is not written (proto3). Text that is not UTF-8 keeps its
bytes (surrogateescape), because file names travel in strings. Every number is a 64-bit varint here: BuildKit's messages
have no fixed-width and no zigzag fields.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec

from sampan.errors import InvalidArgument

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 32
_MASK = (1 << 64) - 1


class Message(msgspec.Struct):
    """A message, a value that nobody changes: each field is `name: Annotated[kind, number] = default`.

    Kinds: str, bytes, bool, int, a Message (or None), list of those, dict from str or int to one of them.
    """


M = TypeVar("M", bound=Message)


class WireError(InvalidArgument):
    """Bytes that are no such message."""


def put_varint(out: bytearray, value: int) -> None:
    """Append a varint; a negative number as its 64-bit two's complement."""
    value &= _MASK
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def get_varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned number at `at`, and where it ends."""
    value = shift = 0
    while True:
        try:
            byte = data[at]
        except IndexError:
            raise WireError("a number is cut off") from None
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise WireError("a number has more than 64 bits")


def signed(value: int) -> int:
    """A varint as the signed 64-bit number it stands for."""
    return value - (1 << 64) if value >> 63 else value


# --- kinds of values: how one is written and read


class _Kind(typing.NamedTuple):
    wire_type: int
    put: Callable[[Any], bytes | int]  # a value -> the number, or the bytes behind a length
    get: Callable[[Any, int], Any]  # the number or the bytes, and the depth -> a value


def _text(data: bytes, depth: int) -> str:
    return data.decode("utf-8", "surrogateescape")


_SCALARS: dict[object, _Kind] = {
    str: _Kind(BYTES, lambda value: value.encode("utf-8", "surrogateescape"), _text),
    bytes: _Kind(BYTES, bytes, lambda data, depth: data),
    bool: _Kind(VARINT, int, lambda number, depth: number != 0),
    int: _Kind(VARINT, lambda value: value, lambda number, depth: signed(number)),
}


class _Field(typing.NamedTuple):
    name: str
    number: int
    kind: _Kind
    shape: str  # "one", "list" or "map"
    key: _Kind | None  # of a map


class _Plan(typing.NamedTuple):
    fields: tuple[_Field, ...]
    by_number: dict[int, _Field]
    defaults: dict[str, Any]


def _kind(hint: Any) -> _Kind:
    scalar = _SCALARS.get(hint)
    if scalar is not None:
        return scalar
    if isinstance(hint, type) and issubclass(hint, Message):
        return _Kind(BYTES, encode, lambda data, depth: _decode(hint, data, depth + 1))
    raise TypeError(f"no wire kind for {hint!r}")


def _field(name: str, hint: Any) -> _Field:
    inner, number = typing.get_args(hint)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin in (types.UnionType, typing.Union):
        return _Field(name, number, _kind(arguments[0]), "one", None)
    if origin is list:
        return _Field(name, number, _kind(arguments[0]), "list", None)
    if origin is dict:
        return _Field(name, number, _kind(arguments[1]), "map", _kind(arguments[0]))
    return _Field(name, number, _kind(inner), "one", None)


@cache
def _plan(cls: type[Message]) -> _Plan:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(
        sorted((_field(n, hints[n]) for n in cls.__struct_fields__), key=lambda f: f.number)
    )
    empty = cls()
    return _Plan(
        fields, {f.number: f for f in fields}, {f.name: getattr(empty, f.name) for f in fields}
    )


# --- writing


def _put(out: bytearray, number: int, kind: _Kind, value: Any) -> None:
    put_varint(out, number << 3 | kind.wire_type)
    written = kind.put(value)
    if isinstance(written, int):
        put_varint(out, written)
    else:
        put_varint(out, len(written))
        out += written


def encode(message: Message) -> bytes:
    """A message's bytes, fields in the order of their numbers."""
    out = bytearray()
    plan = _plan(type(message))
    for name, number, kind, shape, key in plan.fields:
        value = getattr(message, name)
        if value == plan.defaults[name]:
            continue
        if shape == "one":
            _put(out, number, kind, value)
        elif shape == "list":
            for item in value:
                _put(out, number, kind, item)
        else:
            assert key is not None
            for left, right in value.items():
                entry = bytearray()
                _put(entry, 1, key, left)
                _put(entry, 2, kind, right)
                put_varint(out, number << 3 | BYTES)
                put_varint(out, len(entry))
                out += entry
    return bytes(out)


# --- reading


def _tokens(data: bytes) -> typing.Iterator[tuple[int, int, Any]]:
    """(field number, wire type, number or bytes) for each field; fixed-width ones as bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = get_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise WireError("field number 0")
        if wire_type == VARINT:
            value, at = get_varint(data, at)
            yield number, wire_type, value
            continue
        if wire_type == BYTES:
            size, at = get_varint(data, at)
        elif wire_type == FIXED64:
            size = 8
        elif wire_type == FIXED32:
            size = 4
        else:
            raise WireError(f"wire type {wire_type} is not served")
        if size > end - at:
            raise WireError("a field is cut off")
        yield number, wire_type, data[at : at + size]
        at += size


def _packed(field: _Field, data: bytes) -> list[Any]:
    """Numbers of a list in one field, as newer writers pack them."""
    found, at = [], 0
    while at < len(data):
        value, at = get_varint(data, at)
        found.append(field.kind.get(value, 0))
    return found


def _entry(field: _Field, data: bytes, depth: int) -> tuple[Any, Any]:
    """A map's key and value; either may be left out where it is the default."""
    assert field.key is not None
    kinds = {1: field.key, 2: field.kind}
    raw: dict[int, Any] = {n: b"" if k.wire_type == BYTES else 0 for n, k in kinds.items()}
    for number, wire_type, value in _tokens(data):
        kind = kinds.get(number)
        if kind is None:
            continue
        if wire_type != kind.wire_type:
            raise WireError(f"field {field.name}: wire type {wire_type}")
        raw[number] = value
    return kinds[1].get(raw[1], depth), kinds[2].get(raw[2], depth)


def decode(cls: type[M], data: bytes) -> M:
    """Raises WireError for what is no message of this kind."""
    return _decode(cls, data, 0)


def _decode(cls: type[M], data: bytes, depth: int) -> M:
    if depth > MAX_DEPTH:
        raise WireError(f"messages nest deeper than {MAX_DEPTH}")
    by_number = _plan(cls).by_number
    values: dict[str, Any] = {}
    for number, wire_type, value in _tokens(data):
        field = by_number.get(number)
        if field is None:
            continue
        if field.shape == "list" and wire_type == BYTES and field.kind.wire_type == VARINT:
            values.setdefault(field.name, []).extend(_packed(field, value))
            continue
        expected = BYTES if field.shape == "map" else field.kind.wire_type
        if wire_type != expected:
            raise WireError(f"field {field.name}: wire type {wire_type}")
        if field.shape == "one":
            values[field.name] = field.kind.get(value, depth)
        elif field.shape == "list":
            values.setdefault(field.name, []).append(field.kind.get(value, depth))
        else:
            key, item = _entry(field, value, depth)
            values.setdefault(field.name, {})[key] = item
    return cls(**values)
