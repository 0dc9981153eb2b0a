"""What every log driver promises, over each of them: nothing lost, nothing torn, limits held, readable from any end."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.shim.logread import LogReader, Presenter, log_files
from sampan.shim.logs import LineLog, RotatingFile, open_log

DRIVERS = ("json-file", "local")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Log:
    """A writer and as many readers as wished on one path."""

    def __init__(self, driver: str, path: Path) -> None:
        self.driver = driver
        self.path = path
        self.options = {"max-size": "-1"} if driver == "json-file" else {}
        self.writer = self.open()

    def open(self, **options: str) -> LineLog:
        merged = {
            **self.options,
            **{key.replace("_", "-"): value for key, value in options.items()},
        }
        writer = open_log({"driver": self.driver, "path": str(self.path), "options": merged})
        assert isinstance(writer, LineLog)
        return writer

    def reader(self, **wish: object) -> LogReader:
        return LogReader(str(self.path), self.driver, **wish)  # type: ignore[arg-type]

    def text(self, **wish: object) -> bytes:
        return read_all(self.reader(**wish))


def read_all(reader: LogReader) -> bytes:
    parts = []
    while runs := reader.read():
        parts += [run.data for run in runs]
    return b"".join(parts)


@pytest.fixture
def log(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(RotatingFile, "flood_s", 0.0)
    made = Log(driver, tmp_path / "x.log")
    yield made
    made.writer.close()


def finish_compression(writer: LineLog) -> None:
    """As the shim does when its child ends."""
    while (pid := writer.file._compressor) >= 0:
        _, status = os.waitpid(pid, 0)
        writer.file.child_ended(pid, status)


def test_lines_come_back_in_order_whatever_the_chunks(log: Log) -> None:
    text = b"".join(b"line %d\n" % n for n in range(1000))
    for start in range(0, len(text), 777):
        log.writer.write("stdout", text[start : start + 777])
    assert log.text() == text


def test_streams_are_told_apart(log: Log) -> None:
    log.writer.write("stdout", b"out\n")
    log.writer.write("stderr", b"err\n")
    assert log.text(streams=("stderr",)) == b"err\n"
    assert log.text(streams=("stdout",)) == b"out\n"
    assert log.text() == b"out\nerr\n"


def test_an_unfinished_line_waits_for_its_end(log: Log) -> None:
    log.writer.write("stdout", b"prompt> ")
    assert log.text() == b""
    assert log.writer.pending("stdout") == b"prompt> "
    log.writer.write("stderr", b"other\n")
    log.writer.write("stdout", b"ok\n")
    assert log.text() == b"other\nprompt> ok\n"


def test_the_last_line_needs_no_newline(log: Log) -> None:
    log.writer.write("stdout", b"bye")
    log.writer.finish("stdout")
    assert log.text() == b"bye"


@pytest.mark.parametrize("length", [16383, 16384, 16385, 40000, 1 << 20])
def test_a_long_line_is_kept_whole_in_pieces(log: Log, length: int) -> None:
    line = b"x" * length + b"\n"
    log.writer.write("stdout", b"before\n" + line + b"after\n")
    assert log.text() == b"before\n" + line + b"after\n"
    assert log.text(tail=2) == line + b"after\n"


def test_a_long_line_is_never_held_in_memory(log: Log) -> None:
    for _ in range(100):
        log.writer.write("stdout", b"x" * 65536)
        assert len(log.writer.pending("stdout")) < 16384


def test_pieces_do_not_cut_characters(log: Log) -> None:
    line = "é".encode() * 20000 + b"\n"
    log.writer.write("stdout", b"x" + line)
    runs = log.reader().read()
    assert len(runs) > 1
    for run in runs:
        run.data.decode("utf-8")


def test_bytes_that_are_no_text_come_back_identical(log: Log) -> None:
    noise = bytes(range(256)) * 50 + b"\n\x00\xff\xfe\n"
    log.writer.write("stdout", noise)
    assert log.text() == noise


@pytest.mark.parametrize("tail", [0, 1, 3, 99, 100, 101])
def test_tail_counts_lines_from_the_end(log: Log, tail: int) -> None:
    lines = [b"line %d\n" % n for n in range(100)]
    for line in lines:
        log.writer.write("stdout", line)
    assert log.text(tail=tail) == b"".join(
        lines[len(lines) - tail if tail < 100 else 0 :] if tail else []
    )


def test_tail_zero_shows_only_what_comes(log: Log) -> None:
    log.writer.write("stdout", b"old\n")
    reader = log.reader(tail=0)
    assert read_all(reader) == b""
    log.writer.write("stdout", b"new\n")
    assert read_all(reader) == b"new\n"


def test_since_and_until_bound_the_time(log: Log) -> None:
    times = []
    for n in range(5):
        log.writer.write("stdout", b"%d\n" % n)
        times.append(log.reader(tail=1).read()[0].ns)
    assert log.text(since_ns=times[2]) == b"2\n3\n4\n"
    assert log.text(until_ns=times[2]) == b"0\n1\n2\n"
    assert log.text(since_ns=times[1], until_ns=times[3]) == b"1\n2\n3\n"


def test_a_follower_sees_everything_across_rotations(log: Log) -> None:
    writer = log.open(max_size="2k", max_file="4", compress="false")
    reader = log.reader()
    seen = b""
    expected = b""
    for n in range(400):
        line = b"line number %d\n" % n
        writer.write("stdout", line)
        expected += line
        if n % 7 == 0:
            seen += read_all(reader)
    seen += read_all(reader)
    assert seen == expected
    writer.close()


def test_a_follower_left_behind_goes_on_with_what_is_kept(log: Log) -> None:
    writer = log.open(max_size="2k", max_file="3", compress="true")
    writer.write("stdout", b"line number -1\n")
    reader = log.reader()
    assert read_all(reader) == b"line number -1\n"
    for n in range(1000):
        writer.write("stdout", b"line number %d\n" % n)
    finish_compression(writer)
    seen = read_all(reader).splitlines()
    assert seen[-1] == b"line number 999"
    numbers = [int(line.split()[-1]) for line in seen]
    steps = [later - earlier for earlier, later in itertools.pairwise(numbers)]
    assert min(steps) == 1  # in order, nothing twice
    assert (
        len([step for step in steps if step > 1]) == 1
    )  # one gap: what was deleted before it was read
    writer.close()


def test_files_stay_within_their_limits(log: Log) -> None:
    writer = log.open(max_size="5k", max_file="3", compress="false")
    record = 0
    for n in range(2000):
        before = writer.file.size
        writer.write("stdout", b"line number %d\n" % n)
        record = max(record, writer.file.size - before)
    files = log_files(str(log.path))
    assert len(files) == 3
    assert all(os.path.getsize(name) < 5000 + record for name in files)
    writer.close()


def test_one_big_write_is_spread_over_files(log: Log) -> None:
    writer = log.open(max_size="5k", max_file="3", compress="false")
    writer.write("stdout", b"".join(b"line number %d\n" % n for n in range(5000)))
    assert all(os.path.getsize(name) < 5200 for name in log_files(str(log.path)))
    assert log.text().endswith(b"line number 4999\n")
    writer.close()


def test_a_single_file_begins_anew(log: Log) -> None:
    writer = log.open(max_size="1k", max_file="1", compress="false")
    for n in range(200):
        writer.write("stdout", b"line number %d\n" % n)
    assert log_files(str(log.path)) == [str(log.path)]
    assert log.path.stat().st_size < 1200
    assert log.text().endswith(b"line number 199\n")
    writer.close()


def test_rotated_files_are_compressed_and_still_read(log: Log) -> None:
    writer = log.open(max_size="1k", max_file="3", compress="true")
    for n in range(40):
        writer.write("stdout", b"line number %d\n" % n)
        finish_compression(writer)
    packed = [name for name in log_files(str(log.path)) if name.endswith(".gz")]
    assert packed
    assert gzip.open(packed[0]).read()
    assert log.text().endswith(b"line number 38\nline number 39\n")
    assert log.text(tail=15).splitlines() == [b"line number %d" % n for n in range(25, 40)]
    assert not [name for name in os.listdir(log.path.parent) if "tmp" in name]
    writer.close()


def test_a_flood_is_rotated_without_being_compressed(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RotatingFile, "flood_s", 3600.0)
    writer = log.open(max_size="1k", max_file="3", compress="true")
    writer.rotate()
    for n in range(200):
        writer.write("stdout", b"line number %d\n" % n)
    finish_compression(writer)
    names = log_files(str(log.path))
    assert len(names) == 3
    assert not [name for name in names if name.endswith(".gz")]
    writer.close()


def test_writing_never_waits_for_a_compression(log: Log) -> None:
    """The compressor is not reaped between rotations here; the writer goes on all the same."""
    writer = log.open(max_size="1k", max_file="3", compress="true")
    for n in range(500):
        writer.write("stdout", b"line number %d\n" % n)
    assert log.text().endswith(b"line number 499\n")
    writer.close()
    assert not [name for name in os.listdir(log.path.parent) if "tmp" in name]


def test_a_torn_record_is_mended_when_the_log_is_opened_again(log: Log) -> None:
    log.writer.write("stdout", b"one\ntwo\n")
    with open(log.path, "r+b") as file:
        file.truncate(log.path.stat().st_size - 5)
    writer = log.open()
    writer.write("stdout", b"three\n")
    assert log.text() == b"one\nthree\n"
    writer.close()


def test_a_full_disk_costs_lines_and_not_the_writer(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    import posix

    real = posix.write

    def full(fd: int, data: bytes) -> int:
        if fd == log.writer.file.fd:
            real(fd, bytes(data)[:3])
            raise OSError(28, "No space left on device")
        return real(fd, data)

    log.writer.write("stdout", b"kept\n")
    monkeypatch.setattr(posix, "write", full)
    log.writer.write("stdout", b"lost\n")
    monkeypatch.undo()
    log.writer.write("stdout", b"kept too\n")
    assert log.writer.lost > 0
    assert "No space left" in log.writer.trouble
    assert log.text() == b"kept\nkept too\n"


def test_the_file_is_not_for_everybody(log: Log) -> None:
    assert log.path.stat().st_mode & 0o007 == 0


def test_a_log_that_does_not_exist_is_empty(driver: str, tmp_path: Path) -> None:
    assert LogReader(str(tmp_path / "none.log"), driver).read() == []
    assert LogReader(str(tmp_path / "none.log"), driver, tail=5).read() == []


def test_none_records_nothing(tmp_path: Path) -> None:
    writer = open_log({"driver": "none"})
    writer.write("stdout", b"x\n")
    writer.finish("stdout")
    assert writer.pending("stdout") == b""
    writer.close()
    assert os.listdir(tmp_path) == []


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        length = int.from_bytes(data[4:8], "big")
        found.append((data[0], data[8 : 8 + length]))
        data = data[8 + length :]
    return found


def test_each_line_is_a_frame(log: Log) -> None:
    log.writer.write("stdout", b"ab\ncd\nef\n")
    log.writer.write("stderr", b"x\nlonger\n")
    shown = Presenter(framed=True).present(log.reader().read())
    assert frames(shown) == [
        (1, b"ab\n"),
        (1, b"cd\n"),
        (1, b"ef\n"),
        (2, b"x\n"),
        (2, b"longer\n"),
    ]


def test_timestamps_stand_before_lines_and_not_inside(log: Log) -> None:
    log.writer.write("stdout", b"x" * 20000 + b"\nshort\n")
    shown = Presenter(framed=False, timestamps=True).present(log.reader().read())
    lines = shown.splitlines()
    assert len(lines) == 2
    assert all(line[:2] == b"20" and line[30:31] == b" " for line in lines)
    assert lines[0].count(b"Z ") == 1
