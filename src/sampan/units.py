"""Sizes, durations and timestamps, read and written as Docker writes them.

Owns the text forms only: '512m', '1.5GiB', '1h30m', RFC 3339 with nanoseconds, 'Up 5 minutes'. Times are
integers of nanoseconds since the epoch everywhere inside Sampan; a Go zero time is the integer 0.

Sources: the forms are those of Go's time.ParseDuration, Duration.String and time.RFC3339Nano, and of the
docker/go-units grammar (sizes, "About a minute"). No `re`: the command line imports this module.
"""

from __future__ import annotations

import time

from sampan.errors import InvalidArgument

NS = 1_000_000_000
ZERO_TIME = "0001-01-01T00:00:00Z"
MAX_INT64 = (1 << 63) - 1

_SUFFIXES = "kmgtp"
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_DIGITS = frozenset("0123456789")


# -- numbers ---------------------------------------------------------------------------------------


def is_digits(text: str, *, most: int = 19) -> bool:
    """ASCII digits only: `str.isdigit` takes '²' and `int` takes '1_0', ' 7 ' and '٣'."""
    return 0 < len(text) <= most and _DIGITS.issuperset(text)


def parse_uint(text: str, *, highest: int = MAX_INT64) -> int | None:
    """A plain decimal number within range, or None."""
    if not is_digits(text):
        return None
    number = int(text)
    return number if number <= highest else None


def parse_int(text: str, *, lowest: int = -MAX_INT64 - 1, highest: int = MAX_INT64) -> int | None:
    """A decimal number with an optional sign within range, or None."""
    sign = -1 if text[:1] == "-" else 1
    body = text[1:] if text[:1] in ("-", "+") else text
    if not is_digits(body):
        return None
    number = sign * int(body)
    return number if lowest <= number <= highest else None


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def parse_bool(text: str) -> bool | None:
    """A truth value as Go's strconv.ParseBool takes it, or None."""
    return _BOOLEANS.get(text)


# -- sizes -----------------------------------------------------------------------------------------


def parse_size(text: str, *, base: int = 1024) -> int:
    """'512m', '1.5 GiB', '64KB', '1048576' to bytes; `base` 1000 reads them as decimal units."""
    body = text.strip(" ").lower()
    power = 0
    if body.endswith("b"):
        body = body[:-1]
        if body.endswith("i"):
            body = body[:-1]
            if not body or body[-1] not in _SUFFIXES:
                raise InvalidArgument(f"invalid suffix: '{text}'")
    if body and body[-1] in _SUFFIXES:
        power = _SUFFIXES.index(body[-1]) + 1
        body = body[:-1]
    body = body.rstrip(" ")
    whole, point, fraction = body.partition(".")
    if not is_digits(whole, most=30) or (point and not is_digits(fraction, most=30)):
        raise InvalidArgument(f"invalid size: '{text}'")
    number: int = int(whole) * base**power
    if fraction:
        number += int(fraction) * base**power // 10 ** len(fraction)
    if number > MAX_INT64:
        raise InvalidArgument(f"invalid size: '{text}'")
    return number


def _scaled(number: float, base: float, units: tuple[str, ...], digits: int) -> str:
    index = 0
    while number >= base and index < len(units) - 1:
        number /= base
        index += 1
    return f"{number:.{digits}g}{units[index]}"


def human_size(number: float, *, digits: int = 4) -> str:
    """Decimal units, four significant digits: '1.235MB', as image and disk sizes are shown."""
    return _scaled(number, 1000.0, _DECIMAL_UNITS, digits)


def binary_size(number: float) -> str:
    """Binary units, four significant digits: '1.178MiB', as memory is shown."""
    return _scaled(number, 1024.0, _BINARY_UNITS, 4)


# -- durations -------------------------------------------------------------------------------------

_DURATION_UNITS = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 1_000_000,
    "s": NS,
    "m": 60 * NS,
    "h": 3600 * NS,
}


def parse_duration(text: str) -> int:
    """Go's duration grammar ('1h30m', '1.5s', '-10ms', '0') to nanoseconds."""
    bad = InvalidArgument(f'time: invalid duration "{text}"')
    rest = text
    sign = 1
    if rest[:1] in ("-", "+"):
        sign = -1 if rest[0] == "-" else 1
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise bad
    total = 0
    while rest:
        end = 0
        while end < len(rest) and (rest[end] in _DIGITS or rest[end] == "."):
            end += 1
        whole, _, fraction = rest[:end].partition(".")
        if not (whole or fraction) or len(rest[:end]) > 40:
            raise bad
        if (whole and not is_digits(whole, most=20)) or (
            fraction and not is_digits(fraction, most=20)
        ):
            raise bad
        rest = rest[end:]
        end = 0
        while end < len(rest) and rest[end] not in _DIGITS and rest[end] != ".":
            end += 1
        unit = rest[:end]
        if not unit:
            raise InvalidArgument(f'time: missing unit in duration "{text}"')
        scale = _DURATION_UNITS.get(unit)
        if scale is None:
            raise InvalidArgument(f'time: unknown unit "{unit}" in duration "{text}"')
        rest = rest[end:]
        total += int(whole or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        if total > MAX_INT64:
            raise bad
    return sign * total


def _trimmed(number: int, scale: int) -> str:
    whole, rest = divmod(number, scale)
    if not rest:
        return str(whole)
    width = len(str(scale)) - 1
    return f"{whole}.{str(rest).rjust(width, '0').rstrip('0')}"


def format_duration(nanoseconds: int) -> str:
    """Go's Duration.String: '1h30m0s', '1.5s', '300ms', '0s'."""
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1000:
        return f"{nanoseconds}ns"
    if nanoseconds < 1_000_000:
        return _trimmed(nanoseconds, 1000) + "µs"
    if nanoseconds < NS:
        return _trimmed(nanoseconds, 1_000_000) + "ms"
    minutes, rest = divmod(nanoseconds, 60 * NS)
    text = _trimmed(rest, NS) + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def human_duration(seconds: float) -> str:
    """The coarse form of `ps`: 'Less than a second', 'About a minute', '3 weeks'."""
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
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600 / 24 / 365)} years"


# -- timestamps ------------------------------------------------------------------------------------


def _civil(days: int) -> tuple[int, int, int]:
    """Days since 1970-01-01 to (year, month, day); proleptic Gregorian, years before 1 too."""
    days += 719468
    era, doe = divmod(days, 146097)
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) // 5 + 1


def _days(year: int, month: int, day: int) -> int:
    year -= month <= 2
    era, yoe = divmod(year, 400)
    doy = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


def rfc3339nano(nanoseconds: int) -> str:
    """UTC with as many fraction digits as needed; 0 is Go's zero time."""
    if nanoseconds == 0:
        return ZERO_TIME
    seconds, fraction = divmod(nanoseconds, NS)
    days, second = divmod(seconds, 86400)
    year, month, day = _civil(days)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    tail = f".{fraction:09}".rstrip("0") if fraction else ""
    return f"{year:04}-{month:02}-{day:02}T{clock}{tail}Z"


def rfc3339nano_fixed(nanoseconds: int) -> str:
    """UTC with exactly nine fraction digits, as log lines carry it."""
    seconds, fraction = divmod(nanoseconds, NS)
    days, second = divmod(seconds, 86400)
    year, month, day = _civil(days)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    return f"{year:04}-{month:02}-{day:02}T{clock}.{fraction:09}Z"


def _zone(text: str) -> tuple[str, int | None]:
    """Split a trailing zone off: (rest, offset in seconds) with None where there is none."""
    if text.endswith(("Z", "z")):
        return text[:-1], 0
    if len(text) > 6 and text[-6] in "+-" and text[-3] == ":":
        hours, minutes = parse_uint(text[-5:-3]), parse_uint(text[-2:])
        if hours is not None and minutes is not None:
            offset = hours * 3600 + minutes * 60
            return text[:-6], -offset if text[-6] == "-" else offset
    return text, None


def _clock(text: str) -> int | None:
    """'15', '15:04', '15:04:05', '15:04:05.999' to nanoseconds of the day."""
    main, point, fraction = text.partition(".")
    numbers = [parse_uint(part) if len(part) == 2 else None for part in main.split(":")]
    if not 1 <= len(numbers) <= 3 or None in numbers:
        return None
    hour, minute, second = [n or 0 for n in numbers] + [0] * (3 - len(numbers))
    if hour > 23 or minute > 59 or second > 60:
        return None
    if point and not (len(numbers) == 3 and is_digits(fraction)):
        return None
    return (hour * 3600 + minute * 60 + second) * NS + int(fraction[:9].ljust(9, "0") or "0")


def parse_time(text: str) -> int | None:
    """RFC 3339 and its shorter forms (date only, no seconds, no zone = local) to nanoseconds."""
    body, offset = _zone(text)
    date, marker, clock_text = body.partition("T")
    parts = date.split("-")
    if len(parts) != 3 or [len(p) for p in parts] != [4, 2, 2]:
        return None
    year, month, day = (parse_uint(part) for part in parts)
    if year is None or not month or not day or month > 12 or day > 31:
        return None
    clock = _clock(clock_text) if marker else 0
    if clock is None:
        return None
    seconds = _days(year, month, day) * 86400
    if offset is None:
        offset = time.localtime(seconds).tm_gmtoff if -(1 << 55) < seconds < 1 << 55 else 0
    result = (seconds - offset) * NS + clock
    return 0 if text == ZERO_TIME else result


def parse_timestamp(text: str, *, now_ns: int | None = None) -> int:
    """`since`/`until` of the API: unix seconds with fraction, RFC 3339, or a duration before now."""
    whole, _, fraction = text.partition(".")
    seconds = parse_int(whole)
    if seconds is not None and (not fraction or is_digits(fraction)):
        part = int(fraction[:9].ljust(9, "0")) if fraction else 0
        return seconds * NS + (part if seconds >= 0 else -part)
    parsed = parse_time(text)
    if parsed is not None:
        return parsed
    try:
        return (time.time_ns() if now_ns is None else now_ns) - parse_duration(text)
    except InvalidArgument:
        pass
    raise InvalidArgument(f'failed to parse value as time or duration: "{text}"')
