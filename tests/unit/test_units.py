"""Text forms of sizes, durations and times are Go's."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan import units
from sampan.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("1", 1), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("64KB", 64 << 10), ("2 g", 2 << 30),
        ("1kb", 1024), ("10B", 10), ("1T", 1 << 40),
    ],
)  # fmt: skip
def test_sizes_are_binary(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1_0", " ", "1.2.3", "1z", "1ib", "٣", "9e9", "1" * 40]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0B"), (999, "999B"), (1234567, "1.235MB"), (10**12, "1TB")]
)
def test_human_size_has_four_digits(number: int, text: str) -> None:
    assert units.human_size(number) == text


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0", 0), ("1h30m", 5400 * units.NS), ("1.5s", 3 * units.NS // 2), ("-10ms", -10_000_000),
        ("100us", 100_000), ("2h45m30.25s", 9930_250_000_000),
    ],
)  # fmt: skip
def test_durations(text: str, ns: int) -> None:
    assert units.parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "1", "h", "1x", "--1s", "1s1", "1e3s", ".s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        units.parse_duration(text)


@given(st.integers(min_value=-(1 << 62), max_value=1 << 62))
def test_a_duration_survives_its_text(ns: int) -> None:
    assert units.parse_duration(units.format_duration(ns)) == ns


@given(st.integers(min_value=1, max_value=4 * 10**18))
def test_a_time_survives_its_text(ns: int) -> None:
    assert units.parse_time(units.rfc3339nano(ns)) == ns


@given(st.integers(min_value=-62135596800 + 86400, max_value=253402300799))
def test_calendar_agrees_with_datetime(seconds: int) -> None:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    expected = f"{moment.year:04}-{moment:%m-%dT%H:%M:%S}.000000000Z"
    assert units.rfc3339nano_fixed(seconds * units.NS) == expected


def test_zero_time_is_go_s() -> None:
    assert units.rfc3339nano(0) == "0001-01-01T00:00:00Z"
    assert units.parse_time("0001-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (3000, "50 minutes"), (3600, "About an hour"), (7200, "2 hours"), (3 * 86400, "3 days"),
        (20 * 86400, "2 weeks"), (90 * 86400, "3 months"), (3 * 365 * 86400, "3 years"),
    ],
)  # fmt: skip
def test_coarse_durations(seconds: float, text: str) -> None:
    assert units.human_duration(seconds) == text


def test_timestamps_are_seconds_dates_or_spans_before_now() -> None:
    assert units.parse_timestamp("1700000000.5") == 1700000000_500000000
    assert units.parse_timestamp("2023-11-14T22:13:20Z") == 1700000000 * units.NS
    assert units.parse_timestamp("10m", now_ns=units.NS * 1000) == 400 * units.NS
    with pytest.raises(InvalidArgument):
        units.parse_timestamp("yesterday")
