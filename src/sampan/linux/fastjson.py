"""JSON for processes that cannot afford `json` (9 ms: it imports `re` and `enum`).

Strict where Python's own is lax: input has a size limit and a depth limit, NaN and Infinity are
refused in both directions, a number of more than 4,300 digits is an error, and every failure is a
ValueError. Duplicate keys keep the last value, as Go does. Lone surrogates in strings are refused:
such a string could not be written back as UTF-8.
"""

from __future__ import annotations

import sys
from _json import encode_basestring, make_encoder, make_scanner, scanstring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_BYTES = 16 << 20
_SPACE = " \t\n\r"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _ScannerSettings:
    """What `_json.make_scanner` reads from the JSONDecoder that it usually serves."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)
    memo: dict[str, str] = {}


_scan: Any = make_scanner(_ScannerSettings)  # type: ignore[arg-type]


class _ErrorModule:
    """Stands in for `json.decoder`, where `_json` looks up the class of its error when it has one."""

    class JSONDecodeError(ValueError):
        def __init__(self, message: str, text: str, position: int) -> None:
            super().__init__(f"invalid JSON: {message} (character {position})")


def _explain(text: str, start: int) -> ValueError:
    """Scan a bad text again with somebody there to take the error."""
    modules: Any = sys.modules
    modules["json.decoder"] = _ErrorModule
    try:
        _scan(text, start)
    except ValueError as error:
        return error
    except (StopIteration, RecursionError, SystemError):
        pass
    finally:
        del modules["json.decoder"]
    return ValueError("invalid JSON")


def loads(data: bytes | str, *, limit: int = MAX_BYTES) -> Any:
    """The value of a JSON text; ValueError (one line) when it is not one."""
    if len(data) > limit:
        raise ValueError(f"JSON text of {len(data)} bytes is over the limit of {limit}")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    if "\\u" in text:
        _refuse_lone_surrogates(text)
    start, end = 0, len(text)
    while start < end and text[start] in _SPACE:
        start += 1
    try:
        value, position = _scan(text, start)
    except StopIteration as stop:
        raise ValueError(f"invalid JSON at character {stop.value}") from None
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except SystemError:  # an error was due, but `json.decoder` is not loaded (CPython before 3.13)
        raise _explain(text, start) from None
    while position < end and text[position] in _SPACE:
        position += 1
    if position != end:
        raise ValueError(f"extra data after JSON at character {position}")
    return value


def _refuse_lone_surrogates(text: str) -> None:
    """An escaped surrogate without its other half: \\ud800 not followed by \\udc00 and the reverse."""
    position = text.find("\\u")
    pending_high = -1  # where a low half must begin
    while position >= 0:
        backslashes = 0
        while position - backslashes > 0 and text[position - backslashes - 1] == "\\":
            backslashes += 1
        step = 2
        if backslashes % 2 == 0:
            digits = text[position + 2 : position + 6].lower()
            if digits[:2] in ("d8", "d9", "da", "db"):
                if pending_high >= 0:
                    break
                pending_high = position + 6
            elif digits[:2] in ("dc", "dd", "de", "df"):
                if pending_high != position:
                    raise ValueError(f"lone surrogate in JSON at character {position}")
                pending_high = -1
            elif pending_high >= 0:
                break
            step = 6
        position = text.find("\\u", position + step)
    if pending_high >= 0:
        raise ValueError(f"lone surrogate in JSON at character {pending_high - 6}")


def _refuse_object(value: object) -> NoReturn:
    raise ValueError(f"{type(value).__name__} has no JSON form")


# markers, default, encoder, indent, key_separator, item_separator, sort_keys, skipkeys, allow_nan
_encode_compact = make_encoder(
    {}, _refuse_object, encode_basestring, None, ":", ",", False, False, False
)


def dumps(value: Any) -> str:
    """Compact JSON text; ValueError for what has none (NaN, bytes, cycles)."""
    return "".join(_encode_compact(value, 0))


def dump_bytes(value: Any) -> bytes:
    """`dumps` as UTF-8. Undecodable bytes of file names (surrogate escapes) become U+FFFD."""
    return dumps(value).encode("utf-8", "replace")


def indented(value: Any, step: str = "    ", level: int = 0) -> str:
    """JSON for people, laid out as Go's MarshalIndent does it; keys in their own order."""
    if isinstance(value, dict) and value:
        inner = step * (level + 1)
        rows = [
            f"{inner}{encode_basestring(str(key))}: {indented(item, step, level + 1)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(rows) + "\n" + step * level + "}"
    if isinstance(value, (list, tuple)) and value:
        inner = step * (level + 1)
        rows = [inner + indented(item, step, level + 1) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + step * level + "]"
    return dumps(value)


__all__ = ["dump_bytes", "dumps", "indented", "loads", "scanstring"]
