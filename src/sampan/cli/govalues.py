"""Values as a Go template sees them: what a field is, what counts as true, how a value prints, how it looks as JSON.

A `Cell` is a decoded JSON value with its Go type ('any' where Go would only have an interface). A `Row` is an object
of methods, such as a line of `ps`: its names are looked up, and called when they take arguments.
"""

from __future__ import annotations

from sampan.cli import wire
from sampan.cli.gotypes import STRUCTS, fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class TemplateError(Exception):
    """What Go's text/template would say while it executes; `partial` is what was written before."""

    partial = ""


class Cell:
    __slots__ = ("type", "value")

    def __init__(self, value: Any, type: str = "any") -> None:
        self.value = value
        self.type = type


class Missing:
    """A key that a map does not have: prints <no value>, is false."""


MISSING = Missing()


class Row:
    """An object whose fields are made when asked for: name -> function of no arguments, or of some."""

    __slots__ = ("calls", "getters", "lenient", "name")

    def __init__(
        self,
        name: str,
        getters: dict[str, Callable[[], Any]],
        calls: dict[str, Callable[..., Any]] | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        self.name = name
        self.getters = getters
        self.calls = calls or {}
        self.lenient = lenient  # a map of titles rather than an object: what it lacks is no error


def plain(value: Any) -> Any:
    """A cell of a simple type as the Python value itself."""
    if isinstance(value, Cell):
        zero = ZEROS.get(value.type)
        if zero is not None:
            return zero if value.value is None else value.value
        if value.type == "any" and isinstance(value.value, (str, int, float, bool)):
            return value.value
        if value.type.startswith("*") and value.type[1:] in ZEROS and value.value is not None:
            return value.value
    return value


ZEROS: dict[str, Any] = {"string": "", "bool": False, "int": 0, "float": 0.0}


def field(value: Any, name: str, strict: bool) -> Any:
    """`.name` of a value."""
    if isinstance(value, Row):
        if name in value.getters:
            return value.getters[name]()
        if value.lenient:
            return MISSING
        raise TemplateError(f"can't evaluate field {name} in type {value.name}")
    if not isinstance(value, Cell):
        if isinstance(value, dict):
            return _key(value, name, "any", strict)
        if isinstance(value, Missing) or value is None:
            raise TemplateError(f"nil data; no entry for key {wire.dumps(name)}")
        raise TemplateError(f"can't evaluate field {name} in type {go_type(value)}")
    kind = value.type.removeprefix("*")
    if kind in STRUCTS:
        if value.type.startswith("*") and value.value is None:
            raise TemplateError(f"nil pointer evaluating *{kind}.{name}")
        found = fields(kind).get(name)
        if found is None:
            raise TemplateError(f"can't evaluate field {name} in type {value.type}")
        return plain(Cell((value.value or {}).get(found[1]), found[2]))
    if kind.startswith("map:"):
        return _key(value.value or {}, name, kind[4:], strict)
    if kind == "any":
        if isinstance(value.value, dict):
            return _key(value.value, name, "any", strict)
        if value.value is None:
            raise TemplateError(f"nil pointer evaluating interface {{}}.{name}")
    raise TemplateError(f"can't evaluate field {name} in type {go_type(value)}")


def _key(mapping: dict[str, Any], name: str, kind: str, strict: bool) -> Any:
    if name in mapping:
        return plain(Cell(mapping[name], kind))
    if strict:
        raise TemplateError(f"map has no entry for key {wire.dumps(name)}")
    return MISSING


def go_type(value: Any) -> str:
    if isinstance(value, Cell):
        if value.type == "any":
            return go_type(value.value)
        text = value.type
        return text.replace("map:", "map[string]").replace("any", "interface {}")
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", int: "int", float: "float64", list: "[]interface {}"}
    if isinstance(value, dict):
        return "map[string]interface {}"
    return names.get(type(value), "interface {}")


def items(value: Any) -> list[tuple[Any, Any]] | None:
    """What `range` walks over: (index or key, element); None where it cannot."""
    kind = "any"
    if isinstance(value, Cell):
        kind, value = value.type.removeprefix("*"), value.value
    if isinstance(value, Missing):
        return []
    if value is None:
        return []
    if isinstance(value, dict) and kind not in STRUCTS:
        element = kind[4:] if kind.startswith("map:") else "any"
        return [(key, plain(Cell(value[key], element))) for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        element = kind[2:] if kind.startswith("[]") else "any"
        return [
            (number, item if isinstance(item, (Row, Cell)) else plain(Cell(item, element)))
            for number, item in enumerate(value)
        ]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    return None


def truth(value: Any) -> bool:
    """Go's idea: empty and zero are false, a struct is true."""
    if isinstance(value, Missing):
        return False
    if isinstance(value, Row):
        return True
    if isinstance(value, Cell):
        if value.type in STRUCTS:
            return True
        return value.value is not None if value.type.startswith("*") else bool(value.value)
    return bool(value)


# -- printing -----------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """What `{{value}}` prints."""
    if isinstance(value, Missing) or value is None:
        return "<no value>"
    if isinstance(value, Cell):
        if value.type == "any" and value.value is None:
            return "<no value>"
        if value.type.startswith("*"):
            return "<nil>" if value.value is None else printed(value.value, value.type[1:])
        return printed(value.value, value.type)
    return printed(value, "any")


def printed(value: Any, kind: str) -> str:
    """Go's %v."""
    if isinstance(value, Cell):
        return printed(value.value, value.type)
    if kind.startswith("*"):
        if value is None:
            return "<nil>"
        return printed(value, kind[1:]) if kind[1:] in ZEROS else "0xc000000000"
    if kind in STRUCTS:
        value = value or {}
        return "{" + " ".join(printed(value.get(f[1]), f[2]) for f in fields(kind).values()) + "}"
    if kind == "empty":
        return "{}"
    if kind == "duration":
        return duration(value or 0)
    if kind == "time":
        from sampan.cli.times import go_time

        return go_time(value or "0001-01-01T00:00:00Z")
    if value is None:
        value = ZEROS.get(kind)
        if value is None:
            return (
                "map[]" if kind.startswith("map:") else "[]" if kind.startswith("[]") else "<nil>"
            )
    if isinstance(value, dict):
        element = kind[4:] if kind.startswith("map:") else "any"
        return "map[" + " ".join(f"{k}:{printed(value[k], element)}" for k in sorted(value)) + "]"
    if isinstance(value, (list, tuple)):
        element = kind[2:] if kind.startswith("[]") else "any"
        return "[" + " ".join(printed(item, element) for item in value) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    return str(value)


def go_float(value: float) -> str:
    """%v of a float64: the shortest digits, an exponent from 1e21 on."""
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    text = repr(value)
    mantissa, letter, exponent = text.partition("e")
    if not letter:
        return text
    sign = exponent[0] if exponent[0] in "+-" else "+"
    return f"{mantissa.removesuffix('.0')}e{sign}{exponent.lstrip('+-').rjust(2, '0')}"


def duration(nanoseconds: int) -> str:
    """time.Duration's String: 1h30m0s, 1.5s, 100ms."""
    if nanoseconds == 0:
        return "0s"
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if left < 1_000_000_000:
        for unit, scale in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if left >= scale:
                return f"{sign}{_fraction(left, scale)}{unit}"
    seconds = _fraction(left % 60_000_000_000, 1_000_000_000)
    minutes = left // 60_000_000_000
    if not minutes:
        return f"{sign}{seconds}s"
    if minutes < 60:
        return f"{sign}{minutes}m{seconds}s"
    return f"{sign}{minutes // 60}h{minutes % 60}m{seconds}s"


def _fraction(number: int, scale: int) -> str:
    whole, rest = divmod(number, scale)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).rjust(len(str(scale)) - 1, '0').rstrip('0')}"


# -- JSON ---------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """What `{{json value}}` prints: structs in their order with zero values, maps sorted."""
    if isinstance(value, Row):
        return wire.go_json({k: _plain_json(g()) for k, g in value.getters.items()})
    if isinstance(value, Missing):
        return "null"
    if isinstance(value, Cell):
        return _typed_json(value.value, value.type)
    return wire.dumps(_plain_json(value), sort=True)


def _plain_json(value: Any) -> Any:
    if isinstance(value, Cell):
        return wire.loads(to_json(value))
    return value


def _typed_json(value: Any, kind: str) -> str:
    if kind.startswith("*"):
        return "null" if value is None else _typed_json(value, kind[1:])
    if kind in STRUCTS:
        value = value or {}
        parts = []
        for _, name, inner, omit in fields(kind).values():
            item = value.get(name)
            if omit and (item is None or item is False or item in ("", 0, [], {})):
                continue
            parts.append(f"{wire.dumps(name)}:{_typed_json(item, inner)}")
        return "{" + ",".join(parts) + "}"
    if kind == "empty":
        return "{}"
    if value is None:
        if kind == "time":
            return '"0001-01-01T00:00:00Z"'
        zero = 0 if kind == "duration" else ZEROS.get(kind)
        return wire.dumps(zero)
    if isinstance(value, dict):
        element = kind[4:] if kind.startswith("map:") else "any"
        inner_parts = [f"{wire.dumps(k)}:{_typed_json(value[k], element)}" for k in sorted(value)]
        return "{" + ",".join(inner_parts) + "}"
    if isinstance(value, list):
        element = kind[2:] if kind.startswith("[]") else "any"
        return "[" + ",".join(_typed_json(item, element) for item in value) + "]"
    return wire.dumps(value)
