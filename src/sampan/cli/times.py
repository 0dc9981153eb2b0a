"""Points in time: what people write after --since, what engines send, what Go prints."""

from __future__ import annotations

import time

from sampan.cli.failures import Failure
from sampan.cli.values import duration

BILLION = 1_000_000_000


def timestamp(text: str, flag: str = "") -> str:
    """A time (RFC 3339 or shorter), an age ('42m') or seconds since 1970, as the API's 'seconds.nanoseconds'."""
    try:
        if text == "0":
            return text
        when = time.time_ns() - duration(text)
    except ValueError:
        pass
    else:
        return f"{when // BILLION}.{when % BILLION:09d}"
    seconds, _, rest = text.partition(".")
    if seconds.lstrip("-").isdigit() and (not rest or rest.isdigit()):
        return text
    try:
        when = parse(text)
    except ValueError:
        lead = f'invalid value for "{flag}": ' if flag else ""
        raise Failure(f'{lead}failed to parse value as time or duration: "{text}"') from None
    return f"{when // BILLION}.{when % BILLION:09d}"


def parse(text: str) -> int:
    """RFC 3339 with any precision, or a prefix of it in local time: nanoseconds since 1970."""
    body, offset = _zone(text)
    date, _, clock = body.replace("t", "T").partition("T")
    year, month, day = (int(part) for part in [*date.split("-"), "1", "1"][:3])
    clock, _, fraction = clock.partition(".")
    hour, minute, second = (int(part or 0) for part in [*clock.split(":"), "0", "0"][:3])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        raise ValueError(text)
    if len(date.split("-")) > 3 or (fraction and not fraction.isdigit()):
        raise ValueError(text)
    if offset is None:
        seconds = int(time.mktime((year, month, day, hour, minute, second, 0, 0, -1)))
    else:
        seconds = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset
    return seconds * BILLION + int(fraction.ljust(9, "0")[:9] or 0)


def _zone(text: str) -> tuple[str, int | None]:
    """The text without its zone, and the zone's seconds east; None: local time."""
    if text[-1:] in ("Z", "z"):
        return text[:-1], 0
    if len(text) > 16 and text[-6] in "+-" and text[-3] == ":":
        sign = -1 if text[-6] == "-" else 1
        return text[:-6], sign * (int(text[-5:-3]) * 3600 + int(text[-2:]) * 60)
    return text, None


def days(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the Gregorian calendar, for any year."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def seconds_ago(text: str) -> float:
    return (time.time_ns() - parse(text)) / BILLION


def local(seconds: int) -> str:
    """Go's time.Time.String of a moment in local time: 2006-01-02 15:04:05 +0000 UTC."""
    at = time.localtime(seconds)
    zone = f"{'-' if at.tm_gmtoff < 0 else '+'}{abs(at.tm_gmtoff) // 3600:02d}{abs(at.tm_gmtoff) % 3600 // 60:02d}"
    return time.strftime("%Y-%m-%d %H:%M:%S ", at) + f"{zone} {at.tm_zone}"


def go_time(text: str) -> str:
    """The same of an RFC 3339 text, in the zone that stands in it."""
    body, offset = _zone(text)
    zone = "+0000 UTC"
    if offset:
        sign = "-" if offset < 0 else "+"
        spelled = f"{sign}{abs(offset) // 3600:02d}{abs(offset) % 3600 // 60:02d}"
        zone = f"{spelled} {spelled}"
    return f"{body.replace('T', ' ')} {zone}"


def rfc3339(seconds: int, nanoseconds: int = 0) -> str:
    """In local time, as events are shown: 2006-01-02T15:04:05.000000000+00:00."""
    at = time.localtime(seconds)
    sign = "-" if at.tm_gmtoff < 0 else "+"
    offset = f"{sign}{abs(at.tm_gmtoff) // 3600:02d}:{abs(at.tm_gmtoff) % 3600 // 60:02d}"
    zone = "Z" if not at.tm_gmtoff else offset
    return time.strftime("%Y-%m-%dT%H:%M:%S", at) + f".{nanoseconds:09d}{zone}"
