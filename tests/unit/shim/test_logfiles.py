"""A reader that is slower than the rotation still reads every line once, in order."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan.shim.logread import LogReader, log_files
from sampan.shim.logs import LineLog, open_log


@pytest.fixture
def log(tmp_path: Path) -> LineLog:
    options = {"max-size": "100m", "max-file": "50"}
    made = open_log({"driver": "json-file", "path": str(tmp_path / "log"), "options": options})
    assert isinstance(made, LineLog)
    return made


def reader(tmp_path: Path, *, tail: int = -1) -> LogReader:
    return LogReader(str(tmp_path / "log"), "json-file", tail=tail)


def read_some(reader: LogReader) -> bytes:
    return b"".join(run.data for run in reader.read())


def read_all(reader: LogReader) -> bytes:
    data = b""
    while piece := read_some(reader):
        data += piece
    return data


def put(log: LineLog, *words: str) -> None:
    """Each word in a file of its own, a second apart: files that fill faster are not compressed."""
    for word in words:
        log.write("stdout", f"{word}\n".encode())
        log.rotate()
        rotated = f"{log.file.path}.1"
        later = max(os.stat(path).st_mtime_ns for path in log_files(log.file.path)) + 10**9
        os.utime(rotated, ns=(later, later))


def compress(path: Path) -> None:
    """What the compressor does to a file."""
    stat = path.stat()
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    os.utime(packed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.unlink()


def nothing(_tmp_path: Path) -> None:
    pass


def pack_two(tmp_path: Path) -> None:
    compress(tmp_path / "log.3")
    compress(tmp_path / "log.2")


def pack_all(tmp_path: Path) -> None:
    for path in sorted(tmp_path.glob("log.*")):
        compress(path)


@pytest.mark.parametrize("meanwhile", [nothing, pack_two, pack_all])
def test_rotations_behind_a_reader_s_back(
    log: LineLog, tmp_path: Path, meanwhile: Callable[[Path], None]
) -> None:
    put(log, "one", "two", "three")
    following = reader(tmp_path)
    assert read_some(following) == b"one\n"
    put(log, "four", "five")  # "two" has another number now than when the reader began
    meanwhile(tmp_path)
    assert read_some(following) == b"two\n"
    put(log, "six")
    assert read_all(following) == b"three\nfour\nfive\nsix\n"
    log.write("stdout", b"seven\n")
    assert read_all(following) == b"seven\n"


def test_a_file_that_is_deleted_under_a_reader_costs_that_file_alone(
    log: LineLog, tmp_path: Path
) -> None:
    put(log, "one", "two", "three", "four")
    following = reader(tmp_path)
    assert read_some(following) == b"one\n"
    (tmp_path / "log.4").unlink()  # the one it holds
    (tmp_path / "log.3").unlink()
    assert read_all(following) == b"three\nfour\n"


@pytest.mark.parametrize("tail", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("meanwhile", [nothing, pack_two, pack_all])
def test_a_tail_over_several_files(
    log: LineLog, tmp_path: Path, tail: int, meanwhile: Callable[[Path], None]
) -> None:
    put(log, "one", "two", "three")
    meanwhile(tmp_path)
    expected = [b"one\n", b"two\n", b"three\n"][max(0, 3 - tail) :]
    assert read_all(reader(tmp_path, tail=tail)) == b"".join(expected)
