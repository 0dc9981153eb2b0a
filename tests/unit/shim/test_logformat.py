"""Records as Docker writes them, and back to the very bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.shim.logformat import (
    JsonFormat,
    LocalFormat,
    decode_json,
    decode_local,
    format_time,
    format_time_fixed,
    parse_time,
    whole_local_records,
)

NS = 1_795_492_951_120_000_000  # 2026-11-24T04:02:31.12Z


def test_a_line_is_recorded_as_docker_does() -> None:
    assert bytes(JsonFormat().lines("stdout", b"hello\n", NS)) == (
        b'{"log":"hello\\n","stream":"stdout","time":"2026-11-24T04:02:31.12Z"}\n'
    )


def test_lines_of_one_read_share_a_timestamp_and_nothing_else() -> None:
    records = bytes(JsonFormat().lines("stderr", b"a\n\nb\n", NS)).splitlines()
    assert [json.loads(record)["log"] for record in records] == ["a\n", "\n", "b\n"]
    assert {json.loads(record)["stream"] for record in records} == {"stderr"}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (b'"', rb"\""),
        (b"\\", rb"\\"),
        (b"<a&b>", rb"\u003ca\u0026b\u003e"),
        (b"\r\t", rb"\r\t"),
        (b"\x00\x08\x0c\x1b[0m", rb"\u0000\u0008\u000c\u001b[0m"),
        (b"\x7f", b"\x7f"),
        ("é☃".encode(), "é☃".encode()),
        ("\u2028\u2029".encode(), rb"\u2028\u2029"),
    ],
)
def test_escapes_are_gos(text: bytes, escaped: bytes) -> None:
    record = bytes(JsonFormat().lines("stdout", text + b"\n", NS))
    assert record.startswith(b'{"log":"' + escaped + b'\\n","stream"')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"a\xff", "a�"),
        (b"\xe2\x82", "��"),  # Go counts every byte of a cut character
        (b"\xed\xa0\x80", "���"),  # a surrogate is no character
        (b"\xc0\xaf", "��"),
    ],
)
def test_what_is_not_utf8_shows_as_in_docker_and_comes_back_whole(text: bytes, shown: str) -> None:
    record = bytes(JsonFormat().lines("stdout", text + b"\n", NS))
    assert json.loads(record)["log"] == shown + "\n"
    assert [run.data for run in decode_json(record)] == [text + b"\n"]


def test_attributes_stand_between_stream_and_time() -> None:
    record = JsonFormat({"tag": "web", "a": "<1>"}).record("stdout", b"x\n", NS)
    assert record == (
        b'{"log":"x\\n","stream":"stdout","attrs":{"a":"\\u003c1\\u003e","tag":"web"},'
        b'"time":"2026-11-24T04:02:31.12Z"}\n'
    )
    assert next(decode_json(record)).attrs == {"tag": "web", "a": "<1>"}


LINES = st.lists(st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"~")), min_size=1)


@given(LINES, st.sampled_from(["stdout", "stderr"]))
def test_json_records_give_back_what_was_written(lines: list[bytes], stream: str) -> None:
    data = b"".join(line + b"\n" for line in lines)
    records = bytes(JsonFormat().lines(stream, data, NS))
    assert all("log" in json.loads(record) for record in records.splitlines())
    runs = list(decode_json(records))
    assert b"".join(run.data for run in runs) == data
    assert {(run.stream, run.ns) for run in runs} == {(stream, NS)}


@given(LINES)
def test_local_records_give_back_what_was_written(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    records = LocalFormat().lines("stderr", data, NS)
    assert whole_local_records(records) == len(records)
    assert [(run.stream, run.ns, run.data) for run in decode_local(records)] == [
        ("stderr", NS, data)
    ]


def test_the_local_driver_writes_dockers_frames() -> None:
    entry = b"\x0a\x06stdout\x10" + b"\x80\xf0\x86\x9c\xc7\xfa\xb8\xf5\x18" + b"\x1a\x02hi"
    assert LocalFormat().record("stdout", b"hi\n", NS)[4:-4][:9] == entry[:9]
    record = LocalFormat().record("stdout", b"hi\n", NS)
    assert record[:4] == record[-4:] == (len(record) - 8).to_bytes(4, "big")
    assert record[4:-4].endswith(b"\x1a\x02hi")


def test_a_piece_of_a_line_is_told_from_a_line() -> None:
    for log_format, decode in ((JsonFormat(), decode_json), (LocalFormat(), decode_local)):
        records = log_format.record("stdout", b"abc", NS) + log_format.record(
            "stdout", b"d\n", NS + 1
        )
        assert [run.data for run in decode(records)] == [b"abc", b"d\n"]


def test_a_line_that_looks_like_a_record_stays_a_line() -> None:
    evil = b'x\\n","stream":"stdout","time":"2020-01-01T00:00:00Z"}'
    data = evil + b"\n" + b"ends with backslash n: \\n\n"
    records = bytes(JsonFormat().lines("stdout", data, NS))
    assert b"".join(run.data for run in decode_json(records)) == data
    assert len(records.splitlines()) == 2


def test_interleaved_runs_keep_their_order() -> None:
    log_format = JsonFormat()
    block = b"".join(
        bytes(log_format.lines(stream, b"%d\n%d\n" % (n, n), NS + n))
        for n, stream in enumerate(["stdout", "stderr", "stdout"])
    )
    assert [(run.stream, run.data) for run in decode_json(block)] == [
        ("stdout", b"0\n0\n"),
        ("stderr", b"1\n1\n"),
        ("stdout", b"2\n2\n"),
    ]


@given(st.binary(max_size=300))
def test_damage_is_passed_over(junk: bytes) -> None:
    good = bytes(JsonFormat().lines("stdout", b"good\n", NS))
    found = [run.data for run in decode_json(junk + b"\n" + good)]
    assert found[-1] == b"good\n"
    list(decode_local(junk))


def test_a_record_by_another_writer_is_read() -> None:
    record = b'{"time":"2026-11-24T05:02:31.12+01:00","log":"x\\n","stream":"stderr"}\n'
    assert [(run.stream, run.ns, run.data) for run in decode_json(record)] == [
        ("stderr", NS, b"x\n")
    ]


def test_times_are_gos() -> None:
    assert format_time(NS) == b"2026-11-24T04:02:31.12Z"
    assert format_time(NS // 10**9 * 10**9) == b"2026-11-24T04:02:31Z"
    assert format_time_fixed(NS) == b"2026-11-24T04:02:31.120000000Z"


@given(st.integers(min_value=0, max_value=4_000_000_000 * 10**9))
def test_times_come_back(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns
    assert parse_time(format_time_fixed(ns)) == ns


@pytest.mark.parametrize(
    "text", [b"", b"yesterday", b"2026-11-24", b"2026-11-24T04:02:31", b"2026-11-24T04:02:31.1+1"]
)
def test_what_is_no_time_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_time(text)
