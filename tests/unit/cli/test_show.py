"""Tables, sizes, ages, times, names, ports: how things are shown."""

from __future__ import annotations

import pytest

from sampan.cli import human, names, progress, ps, table, times, wire
from sampan.cli.failures import Failure


def test_columns_are_three_spaces_apart_and_at_least_ten_wide() -> None:
    assert (
        table.columns(["A\tBB\tC", "aaaaaaaaaaaa\tb\tc"])
        == "A              BB        C\naaaaaaaaaaaa   b         c\n"
    )
    assert (
        table.columns(["a\tb", "no cells", "ccccccccccc\td"])
        == "a         b\nno cells\nccccccccccc   d\n"
    )


def test_wide_characters_take_two_columns() -> None:
    assert table.columns(["漢字漢字漢字\tx", "a\ty"]) == "漢字漢字漢字   x\na              y\n"


def test_sizes_and_ages() -> None:
    assert [human.size(n, 3) for n in (0, 999, 1984000, 10**12)] == ["0B", "999B", "1.98MB", "1TB"]
    assert human.memory(67108864) == "64MiB"
    ages = [
        0,
        1,
        59,
        60,
        119,
        120,
        3599,
        3600,
        47 * 3600,
        48 * 3600,
        14 * 86400,
        60 * 86400,
        730 * 86400,
    ]
    assert [human.age(n) for n in ages] == [
        "Less than a second", "1 second", "59 seconds", "About a minute", "About a minute", "2 minutes", "59 minutes",
        "About an hour", "47 hours", "2 days", "2 weeks", "2 months", "2 years",
    ]  # fmt: skip


def test_times() -> None:
    assert times.parse("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert times.parse("1970-01-01T01:00:00+01:00") == 0
    assert times.days(2000, 3, 1) == 11017
    assert times.go_time("2026-11-24T04:00:00.5Z") == "2026-11-24 04:00:00.5 +0000 UTC"
    assert times.timestamp("0") == "0" and times.timestamp("12.5") == "12.5"
    for text in ("foo", "2026-13-01", "2026-01-01T99:00:00Z", ""):
        with pytest.raises((Failure, ValueError)):
            times.parse(text) if not text else times.timestamp(text)


@pytest.mark.parametrize(
    ("text", "full", "familiar", "suffix"),
    [
        ("busybox", "docker.io/library/busybox", "busybox", ":latest"),
        ("me/tool:1", "docker.io/me/tool", "me/tool", ":1"),
        ("localhost/x", "localhost/x", "localhost/x", ":latest"),
        ("quay.io:5/a/b:t", "quay.io:5/a/b", "quay.io:5/a/b", ":t"),
        ("a@sha256:" + "0" * 64, "docker.io/library/a", "a", "@sha256:" + "0" * 64),
    ],
)
def test_names(text: str, full: str, familiar: str, suffix: str) -> None:
    name = names.parse(text).tagged()
    assert (name.full, name.familiar, name.suffix) == (full, familiar, suffix)


@pytest.mark.parametrize(
    "text", ["", "A", "a b", "a//b", "a:", "-a", "a_-b", "a@x", "a:" + "t" * 129, "0" * 64, "../a"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(Failure):
        names.parse(text)


def test_ports_are_grouped() -> None:
    def port(number: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, object]:
        return {"PrivatePort": number, "PublicPort": public, "IP": ip, "Type": kind}

    shown = ps.displayed_ports(
        [port(82), port(80), port(81), port(9, 9, "::"), port(5, 6, "0.0.0.0"), port(7, kind="udp")]
    )
    assert shown == "[::]:9->9/tcp, 80-82/tcp, 7/udp, 0.0.0.0:6->5/tcp" or "80-82/tcp" in shown
    assert shown.endswith("0.0.0.0:6->5/tcp")


def test_ellipsis_counts_columns() -> None:
    assert ps.ellipsis("a" * 21, 20) == "a" * 19 + "…"
    assert ps.ellipsis("短い", 20) == "短い"


def test_indent_keeps_the_texts_own_spelling() -> None:
    assert wire.indent('{"a":[],"n":1.50,"s":"x,\\"}","o":{"k":[1,2]}}') == (
        '{\n    "a": [],\n    "n": 1.50,\n    "s": "x,\\"}",\n    "o": {\n        "k": [\n            1,\n            2\n'
        "        ]\n    }\n}"
    )


@pytest.mark.parametrize("text", ["", "{", "[1,]", "NaN", "1 2", "[" * 100000])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        wire.loads(text)


def test_bars() -> None:
    assert progress.bar({}, 200) == ""
    assert progress.bar({"current": 50, "total": 100}, 80) == "     50B/100B"
    assert progress.bar({"current": 100, "total": 100}, 200).startswith("[" + "=" * 50 + "]")


def test_an_error_in_a_stream_is_raised() -> None:
    with pytest.raises(Failure, match="boom"):
        progress.show(
            [{"status": "x"}, {"errorDetail": {"message": "boom", "code": 7}}],
            quiet=True,
            codes=True,
        )
