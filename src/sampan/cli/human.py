"""Sizes and ages as docker shows them: '1.98MB', '12.3MiB', 'About a minute'. Base 1000 for what lies on a disk,
1024 for memory; three or four digits."""

from __future__ import annotations

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def _scaled(size: float, base: float, units: tuple[str, ...], digits: int) -> str:
    step = 0
    while size >= base and step < len(units) - 1:
        size /= base
        step += 1
    return f"{size:.{digits}g}{units[step]}"


def size(number: float, digits: int = 4) -> str:
    return _scaled(number, 1000.0, DECIMAL, digits)


def memory(number: float) -> str:
    return _scaled(number, 1024.0, BINARY, 4)


def age(seconds: float) -> str:
    """How long ago, in one unit."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for most, unit, word in (
        (24 * 14, 24, "days"),
        (24 * 60, 168, "weeks"),
        (24 * 730, 720, "months"),
    ):
        if hours < most:
            return f"{hours // unit} {word}"
    return f"{int(seconds / 3600) // 24 // 365} years"
