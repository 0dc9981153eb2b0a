"""The streams of a process, over pipes and socket pairs: who gets what, who waits for whom."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.shim.logread import LogReader
from sampan.shim.logs import LineLog, open_log
from sampan.shim.loop import Loop
from sampan.shim.stdio import Client, DetachKeys, Streams


class Bench:
    """A process's ends of its stdio in our hands."""

    def __init__(self, **wish: object) -> None:
        self.loop = Loop()
        self.ended: list[tuple[str, bool]] = []
        self.streams = Streams(self.loop, on_client_end=self._gone, **wish)  # type: ignore[arg-type]
        self.out_reader, self.out = os.pipe()
        self.err_reader, self.err = os.pipe()
        self.stdin, self.stdin_writer = os.pipe()
        self.sockets: list[socket.socket] = []

    def _gone(self, client: Client, detached: bool) -> None:
        self.ended.append((client.name, detached))

    def open(self) -> None:
        self.streams.open({self.out_reader: "stdout", self.err_reader: "stderr"}, self.stdin_writer)

    def client(
        self, *, replay: LogReader | None = None, live: bool = True, **wish: object
    ) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        self.sockets.append(ours)
        client = Client(theirs.detach(), **wish)  # type: ignore[arg-type]
        self.streams.add_client(client, replay=replay, live=live)
        return ours

    def turn(self, count: int = 30) -> None:
        for _ in range(count):
            self.loop.turn(0)

    def end(self) -> None:
        """The process ends: its descriptors close, what it wrote is read, its exit is told."""
        for name in ("out", "err"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)
        self.turn()
        self.streams.release_clients()
        self.turn()

    def close(self) -> None:
        self.streams.close()
        for fd in (self.out, self.err, self.stdin):
            if fd >= 0:
                os.close(fd)
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(stdin_once=True)
    yield made
    made.close()


def everything(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def test_every_client_gets_what_it_asked_for_in_frames(bench: Bench) -> None:
    both = bench.client()
    errors = bench.client(stdout=False)
    raw = bench.client(framed=False, stderr=False)
    bench.open()
    os.write(bench.out, b"out")
    bench.turn()
    os.write(bench.err, b"err!")
    bench.end()
    assert everything(both) == b"\1\0\0\0\0\0\0\3out\2\0\0\0\0\0\0\4err!"
    assert everything(errors) == b"\2\0\0\0\0\0\0\4err!"
    assert everything(raw) == b"out"
    assert len(bench.ended) == 3


def test_a_stream_ends_for_its_client_only_when_the_exit_was_told(bench: Bench) -> None:
    client = bench.client(framed=False)
    bench.open()
    os.close(bench.out)
    os.close(bench.err)
    bench.out = bench.err = -1
    bench.turn()
    assert bench.streams.ended
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    bench.streams.release_clients()
    assert client.recv(1) == b""


def test_nothing_is_read_while_a_client_is_behind(bench: Bench) -> None:
    client = bench.client(framed=False)
    bench.open()
    os.set_blocking(bench.out, False)
    written = 0
    chunk = b"x" * 65536
    for _ in range(200):
        try:
            written += os.write(bench.out, chunk)
        except BlockingIOError:
            bench.turn(3)
    assert written < 4 << 20  # what pipe and socket hold, and one read
    unsent = sum(len(part) for c in bench.streams.clients for part in c._unsent)
    assert unsent <= 65536
    client.setblocking(False)
    got = 0
    for _ in range(10000):
        try:
            got += len(client.recv(1 << 20))
        except BlockingIOError:
            bench.turn(2)
        if got == written:
            break
    assert got == written


def test_the_log_goes_on_without_any_client(tmp_path: Path) -> None:
    log = open_log({"driver": "json-file", "path": str(tmp_path / "log")})
    bench = Bench(log=log)
    bench.open()
    os.write(bench.out, b"one\ntw")
    bench.turn()
    os.write(bench.out, b"o\nrest")
    bench.end()
    runs = LogReader(str(tmp_path / "log"), "json-file").read()
    assert b"".join(run.data for run in runs) == b"one\ntwo\nrest"
    log.close()
    bench.close()


def test_a_replay_joins_the_live_stream_without_gap_or_repetition(tmp_path: Path) -> None:
    log = open_log({"driver": "json-file", "path": str(tmp_path / "log")})
    assert isinstance(log, LineLog)
    bench = Bench(log=log)
    bench.open()
    expected = b""
    for n in range(300):
        line = b"line %d\n" % n
        os.write(bench.out, line)
        expected += line
        if n == 100:
            bench.turn()
            os.write(bench.out, b"unfinished ")
            expected += b"unfinished "
            bench.turn()
            client = bench.client(
                framed=False, replay=LogReader(str(tmp_path / "log"), "json-file")
            )
        if n % 10 == 0:
            bench.turn(2)
    bench.end()
    assert everything(client) == expected
    log.close()
    bench.close()


def test_input_goes_to_the_process_and_its_end_is_passed_on(bench: Bench) -> None:
    client = bench.client(stdin=True)
    bench.open()
    client.sendall(b"typed")
    client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert os.read(bench.stdin, 100) == b"typed"
    assert os.read(bench.stdin, 100) == b""
    os.write(bench.out, b"still here")
    bench.end()
    assert everything(client).endswith(b"still here")


def test_without_stdin_once_a_client_that_stops_typing_leaves() -> None:
    bench = Bench(stdin_once=False)
    client = bench.client(stdin=True)
    bench.open()
    client.shutdown(socket.SHUT_WR)
    bench.turn()
    assert client.recv(1) == b""
    os.set_blocking(bench.stdin, False)
    with pytest.raises(BlockingIOError):
        os.read(bench.stdin, 1)
    bench.close()


def test_much_input_waits_in_the_client_and_not_in_us(bench: Bench) -> None:
    client = bench.client(stdin=True)
    bench.open()
    client.setblocking(False)
    sent = 0
    for _ in range(200):
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            bench.turn(3)
    assert sum(len(part) for part in bench.streams._input) <= 65536
    client.setblocking(True)
    client.shutdown(socket.SHUT_WR)
    got = 0
    while data := os.read(bench.stdin, 1 << 16):
        got += len(data)
        bench.turn(3)
    assert got == sent


def test_what_a_client_typed_before_it_hung_up_still_arrives(bench: Bench) -> None:
    client = bench.client(stdin=True)
    bench.open()
    client.sendall(b"y" * 150_000)
    client.close()
    got = b""
    for _ in range(50):
        bench.turn(3)
        got += os.read(bench.stdin, 1 << 16)
        if len(got) == 150_000:
            break
    assert got == b"y" * 150_000


def test_input_for_a_process_that_closed_its_stdin_goes_nowhere(bench: Bench) -> None:
    client = bench.client(stdin=True)
    bench.open()
    os.close(bench.stdin)
    bench.stdin = -1
    for _ in range(20):
        client.sendall(b"z" * 10_000)
        bench.turn(3)
    os.write(bench.out, b"done")
    bench.end()
    assert everything(client).endswith(b"done")


def test_capture_is_bounded() -> None:
    bench = Bench(capture=10)
    bench.open()
    os.write(bench.out, b"0123456")
    bench.turn()
    os.write(bench.err, b"789abc")
    bench.end()
    assert bytes(bench.streams.captured) == b"0123456789"
    assert bench.streams.truncated
    bench.close()


def test_detach_keys_end_only_that_client() -> None:
    bench = Bench(tty=True)
    client = bench.client(stdin=True, framed=False, detach_keys=b"\x10\x11", name="a")
    other = bench.client(framed=False, name="b")
    bench.open()
    client.sendall(b"ab\x10")
    bench.turn()
    client.sendall(b"\x11lost")
    bench.turn()
    assert bench.ended == [("a", True)]
    assert os.read(bench.stdin, 100) == b"ab"
    os.write(bench.out, b"x")
    bench.end()
    assert everything(other) == b"x"
    bench.close()


@given(st.binary(max_size=40), st.lists(st.integers(1, 40), max_size=4))
def test_without_the_sequence_nothing_is_lost_or_invented(data: bytes, cuts: list[int]) -> None:
    keys = DetachKeys(b"\x10\x11")
    out = b""
    position = 0
    for cut in [*cuts, 1000]:
        passed, detached = keys.filter(data[position : position + cut])
        out += passed
        position += cut
        if detached:
            break
    if b"\x10\x11" in data:
        assert detached or out.startswith(data[: data.index(b"\x10\x11")])
    else:
        assert out == (data.removesuffix(b"\x10"))


def test_a_broken_watch_costs_its_descriptor_and_not_the_loop() -> None:
    loop = Loop()
    seen: list[str] = []
    loop.on_error = lambda error: seen.append(str(error))
    reader, writer = os.pipe()

    def fail(_revents: int) -> None:
        raise ValueError("a defect")

    loop.watch(reader, 1, fail)
    os.write(writer, b"x")
    loop.turn(0)
    loop.turn(0)
    assert seen == ["a defect"]
    os.close(reader)
    os.close(writer)
