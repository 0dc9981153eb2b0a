"""HTTP on a socket: bodies of every kind, connections used again, streams and signals of the terminal."""

from __future__ import annotations

import _socket
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sampan.cli import streams
from sampan.cli.client import Client, Reply, escape, query_string, refusal
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import normal_address


@pytest.fixture(autouse=True)
def _nothing_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients of a test are closed with it."""
    made: list[Client] = []
    plain = Client.__init__

    def remember(self: Client, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        made.append(self)

    monkeypatch.setattr(Client, "__init__", remember)
    yield
    for client in made:
        client.close()


class Answers:
    """A server that gives prepared answers, one a request, and remembers what was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.connections = 0

    def connect(self) -> _socket.socket:
        ours, theirs = socket.socketpair()
        self.connections += 1
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return _socket.socket(fileno=ours.detach())

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while self.answers:
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    request += piece
                self.asked.append(request)
                connection.sendall(self.answers.pop(0))


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def test_a_connection_is_used_again() -> None:
    server = Answers(head("Content-Length: 2") + b"{}", head("Content-Length: 3") + b"[1]")
    client = Client(server.connect)
    assert client.json("/a") == {} and client.json("/b") == [1]
    assert server.connections == 1
    assert server.asked[0].startswith(b"GET /a HTTP/1.1\r\nHost: ")


def test_chunked_bodies_arrive_whole() -> None:
    server = Answers(
        head("Transfer-Encoding: chunked") + b'5;x=y\r\n{"a":\r\n2\r\n1}\r\n0\r\nTrailer: x\r\n\r\n'
    )
    assert Client(server.connect).json("/") == {"a": 1}


def test_refusals_carry_the_engines_words() -> None:
    body = b'{"message":"No such container: x"}'
    server = Answers(head(f"Content-Length: {len(body)}", status="404 Not Found") + body)
    with pytest.raises(Refused) as caught:
        Client(server.connect).json("/")
    assert caught.value.code == 404
    assert caught.value.message == "Error response from daemon: No such container: x"


def test_a_head_has_no_body_whatever_its_length_says() -> None:
    server = Answers(head("Content-Length: 99"), head("Content-Length: 2") + b"{}")
    client = Client(server.connect)
    assert client.call("HEAD", "/a").read() == b"" and client.json("/b") == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        head("Transfer-Encoding: chunked") + b"zz\r\n",
        head("Content-Length: 9") + b"x",
        b"",
    ],
)
def test_broken_answers_are_failures(answer: bytes) -> None:
    server = Answers(answer)
    with pytest.raises(Failure):
        Client(server.connect).json("/")


def test_lines_of_json() -> None:
    text = b'{"a":1}\r\n\x1e{"a":2}\n{"a":3}'
    server = Answers(head("Connection: close", f"Content-Length: {len(text)}") + text)
    assert [v["a"] for v in Client(server.connect).call("GET", "/").lines()] == [1, 2, 3]


def test_queries_and_paths_are_escaped() -> None:
    assert escape("a b/ü?") == "a%20b/%C3%BC%3F"
    assert query_string(
        {"a": True, "b": "", "c": ["x", "y&z"], "d": {"k": 1}, "e": None, "f": "0"}
    ) == ("?a=1&c=x&c=y%26z&d=%7B%22k%22:1%7D&f=0")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/a/b", "unix:///a/b"),
        ("unix:///x", "unix:///x"),
        ("h:1", "tcp://h:1"),
        ("tcp://h", "tcp://h"),
        ("ssh://h", "ssh://h"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert normal_address(text) == address


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(Failure, match="invalid bind address format"):
        normal_address("ftp://x")


def test_frames_are_taken_apart_wherever_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(streams, "write_all", lambda fd, data: written.append((fd, bytes(data))))
    data = b"\1\0\0\0\0\0\0\3out" + b"\2\0\0\0\0\0\0\3err" + b"\1\0\0\0\0\0\0\0"
    for size in (1, 3, 100):
        written.clear()
        output = streams.Output(tty=False)
        for start in range(0, len(data), size):
            output.feed(data[start : start + size])
        assert b"".join(d for fd, d in written if fd == 1) == b"out"
        assert b"".join(d for fd, d in written if fd == 2) == b"err"
    with pytest.raises(Failure, match="Unrecognized input header: 9"):
        streams.Output(tty=False).feed(b"\x09\0\0\0\0\0\0\1x")
    with pytest.raises(Failure, match="error from daemon in stream: bad"):
        streams.Output(tty=False).feed(b"\3\0\0\0\0\0\0\3bad")


def test_detach_keys() -> None:
    keys = streams.DetachKeys(streams.detach_keys(""))
    assert keys.filter(b"ab\x10") == (b"ab", False)
    assert keys.filter(b"c") == (b"\x10c", False)
    assert keys.filter(b"\x10\x10\x11x") == (b"\x10", True)
    assert streams.detach_keys("ctrl-a,b") == b"\x01b"
    with pytest.raises(Failure, match="invalid detach keys"):
        streams.detach_keys("ctrl-")


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        (b'{"message":"no","hint":"try this"}', "Error response from daemon: no", "try this"),
        (b'{"message":"no"}', "Error response from daemon: no", ""),
        (b"[]", "Error response from daemon: []", ""),
        (b"plain words\n", "Error response from daemon: plain words", ""),
        (b"", "Error response from daemon: HTTP status 500", ""),
    ],
)
def test_a_refusal_has_the_engine_s_words_and_its_hint(
    body: bytes, message: str, hint: str
) -> None:
    class Answer:
        status = 500

        @staticmethod
        def read() -> bytes:
            return body

    failure = refusal(cast("Reply", Answer()))
    assert (failure.message, failure.hint) == (message, hint)
