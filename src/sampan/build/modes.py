"""--chmod: octal and symbolic file modes. Pure. Source: chmod(1p), "EXTENDED DESCRIPTION"."""

from __future__ import annotations

import re
from collections.abc import Callable

_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]+|[ugo]|))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")


def mode_changer(text: str) -> Callable[[int, bool], int] | None:
    """(mode, is it a directory) -> new mode; None for an empty text."""
    if not text:
        return None
    if text.isdigit():
        fixed = int(text, 8)
        return lambda _mode, _directory: fixed
    clauses = [(m[1], _ACTION.findall(m[2])) for m in _CLAUSE.finditer(text)]

    def change(mode: int, is_directory: bool) -> int:
        for who, actions in clauses:
            for operator, permissions in actions:
                mode = _apply(mode, who or "a", operator, permissions, is_directory=is_directory)
        return mode

    return change


def _apply(mode: int, who: str, operator: str, permissions: str, *, is_directory: bool) -> int:
    mask = 0
    for each in who:
        mask |= _WHO[each]
    if permissions and permissions in "ugo":
        shift = {"u": 6, "g": 3, "o": 0}[permissions]
        bits = (mode >> shift & 7) * 0o111
    else:
        bits = 0
        for each in permissions:
            if each == "X":
                bits |= 0o111 if is_directory or mode & 0o111 else 0
            else:
                bits |= _BITS[each]
    bits &= mask
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return mode & ~mask | bits
