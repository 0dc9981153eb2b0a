"""Go's filepath.Match for one component, as a regular expression: `*`, `?`, `[a-z]`, `[^x]`, `\\` before anything.

The same classes serve .dockerignore (`build/ignore.py`). Every character is escaped one by one, so that nothing which
means more to Python's `re` than to Go (`[[`, `--`, `&&`, `!`) gets through. Pure. Source: Go's path/filepath.Match.
"""

from __future__ import annotations

import re

from sampan.errors import InvalidArgument


def component_pattern(pattern: str) -> re.Pattern[str]:
    """Raises InvalidArgument for a malformed class."""
    out, at = "", 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            out += "[^/]*"
            while pattern.startswith(
                "*", at
            ):  # a row of stars says no more than one, and costs more
                at += 1
        elif character == "?":
            out += "[^/]"
        elif character == "\\" and at < len(pattern):
            out += re.escape(pattern[at])
            at += 1
        elif character == "[":
            part, at = character_class(pattern, at)
            out += part
        else:
            out += re.escape(character)
    return re.compile(out, re.DOTALL)


def character_class(pattern: str, at: int) -> tuple[str, int]:
    """What stands behind a `[`, as an expression, and where it ends. Raises InvalidArgument."""
    out = "["
    if pattern.startswith("^", at):
        out, at = "[^", at + 1
    first = at
    while at == first or not pattern.startswith("]", at):
        low, at = _member(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _member(pattern, at + 1)
        if low > high:
            raise _malformed(pattern)
        out += re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}"
    return out + "]", at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    if at < len(pattern) and pattern[at] == "\\":
        at += 1
    elif pattern[at : at + 1] in ("-", "]"):
        raise _malformed(pattern)
    if at >= len(pattern):
        raise _malformed(pattern)
    return pattern[at], at + 1


def _malformed(pattern: str) -> InvalidArgument:
    return InvalidArgument(f"syntax error in pattern: {pattern}")
