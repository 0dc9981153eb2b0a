"""What a hostile or broken client sends ends its own request and nothing else: no 5xx, no hang, no leak."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.engine import EngineProcess
from tests.support.hosts import eventually

DOCUMENT = json.loads((Path(__file__).resolve().parents[2] / "docs" / "openapi.json").read_text())


def connect(engine: EngineProcess) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(engine.socket))
    return sock


def send(engine: EngineProcess, raw: bytes) -> bytes:
    """Send, end the sending side, read all (at most 1 MB)."""
    with closing(connect(engine)) as sock:
        try:
            sock.sendall(raw)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent
        data = b""
        while len(data) < 1 << 20 and (piece := _receive(sock)):
            data += piece
        return data


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


def request(
    method: str, target: str, body: bytes = b"", content_type: str = "application/json"
) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def is_alive(engine: EngineProcess) -> bool:
    return send(engine, request("GET", "/_ping")).endswith(b"OK")


def descriptors(engine: EngineProcess) -> int:
    assert engine.process is not None
    return len(os.listdir(f"/proc/{engine.process.pid}/fd"))


MALFORMED = [
    b"\r\n\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    b"GET /_ping HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\n",
    b"POST /containers/create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"GET /_ping HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
    b"GET /%00%ff%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /containers/json?filters=%7B HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("raw", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_http_is_refused(engine: EngineProcess, raw: bytes) -> None:
    answer = send(engine, raw)
    assert status(answer) in range(400, 500) or status(answer) == 505 or not answer
    assert is_alive(engine)


BODIES = [
    b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"5", b'"x"', b"{", b"{}{}", b'{"Image":NaN}', b"\xff\xfe{}",
    b'{"Image":["x"]}', b'{"Image":"busybox","HostConfig":{"Memory":"1g"}}', b'{"HostConfig":{"Memory":1e999}}',
    b'{"Image":"busybox","HostConfig":{"CpusetCpus":"0-2147483647"}}', b'{"Image":"' + b"x" * 100_000 + b'"}',
    b'{"Image":"busybox","Cmd":{"a":1}}', b'{"Image":"busybox","HostConfig":{"Binds":["\\u0000:/x"]}}',
    b'{"Image":"../../../etc/passwd"}', b'{"Image":"busybox","HostConfig":{"Ulimits":[{"Name":"x","Hard":-9223372036854775809}]}}',
    b'{"Image":"busybox","HostConfig":{"PortBindings":{"0-65535/tcp":[{"HostPort":"1-65535"}]}}}',
    b'{"Image":"busybox","WorkingDir":"../.."}', b'{"Image":"busybox","Env":["=","a","\\ud800"]}',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_hostile_bodies_are_refused_or_understood(engine: EngineProcess, body: bytes) -> None:
    for path in ("/containers/create", "/networks/create", "/volumes/create"):
        answer = send(engine, request("POST", path, body))
        assert status(answer) < 500, (path, answer[:500])
    for name in engine.docker("volume", "ls", "-q").stdout.split():
        engine.docker("volume", "rm", name)


def test_half_requests_do_not_stop_other_clients(engine: EngineProcess) -> None:
    """Slowloris: 300 connections that never finish their head."""
    before = descriptors(engine)
    slow = [connect(engine) for _ in range(300)]
    try:
        for sock in slow:
            sock.sendall(b"GET /containers/json HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for _ in range(20):
            assert is_alive(engine)
    finally:
        for sock in slow:
            sock.close()
    for _ in range(100):
        if descriptors(engine) <= before + 4:
            break
        assert is_alive(engine)
    assert descriptors(engine) <= before + 4


def test_clients_that_leave_in_the_middle_of_streams_leave_nothing(engine: EngineProcess) -> None:
    container = engine.docker("run", "-d", "busybox", "sleep", "100").stdout.strip()
    before = descriptors(engine)
    targets = [
        f"GET /containers/{container}/logs?follow=1&stdout=1", f"GET /containers/{container}/stats", "GET /events",
        f"POST /containers/{container}/wait", f"POST /containers/{container}/attach?stream=1&stdout=1",
    ]  # fmt: skip
    for target in targets * 6:
        with closing(connect(engine)) as sock:
            sock.sendall(f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
    assert eventually(lambda: descriptors(engine) <= before, seconds=60)
    assert is_alive(engine)


STRINGS = [
    "", "0", "1", "-1", "true", "busybox", "../../etc/passwd", "a" * 5000, "%", "é\u2028", "\0", "{}", "[]", "null", "1e9",
    "99999999999999999999", '{"a":["b"]}', '{"label":{"a=b":true}}', '{"until":["x"]}', "sha256:" + "0" * 64, "/", "x y",
]  # fmt: skip
# What goes to a registry (there is none here), or streams without end.
LEFT_OUT = (
    "/images/search",
    "/images/create",
    "/auth",
    "/distribution/{id}/json",
    "/images/{id}/push",
    "/events",
    "/build",
)
# What would take the shared engine's images away, or give them other names.
SHARED = {
    ("delete", "/images/{id}"), ("post", "/images/prune"), ("post", "/images/{id}/tag"), ("post", "/system/verify"),
    ("post", "/commit"), ("post", "/images/load"), ("post", "/build/prune"),
}  # fmt: skip


def _requests(seed: int) -> Iterator[tuple[str, bytes]]:
    dice = random.Random(seed)
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            if path in LEFT_OUT or (method, path) in SHARED:
                continue
            for _ in range(4):
                yield from _one(dice, path, method, operation)


def _one(
    dice: random.Random, path: str, method: str, operation: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    target, query = path, []
    for parameter in operation["parameters"]:
        value = quote(dice.choice(STRINGS), safe="" if dice.random() < 0.5 else "/:")
        if parameter["in"] == "path":
            target = target.replace(f"{{{parameter['name']}}}", value or "x")
        elif parameter["in"] == "query" and dice.random() < 0.6:
            query.append(f"{parameter['name']}={value}")
    body = b""
    if "requestBody" in operation:
        body = json.dumps(_value(dice, operation["requestBody"]["content"], 0)).encode()
    prefix = dice.choice(["", "/v1.24", "/v1.41", "/v1.51"])
    name = f"{method.upper()} {prefix}{target}" + ("?" + "&".join(query) if query else "")
    yield name, request(*name.split(" ", 1), body)


def _value(dice: random.Random, content: dict[str, Any], depth: int) -> object:
    """An object with some of the schema's fields, often of a wrong type."""
    schema = content.get("application/json", {}).get("schema", {})
    fields = (
        DOCUMENT["components"]["schemas"]
        .get(schema.get("$ref", "").rpartition("/")[2], {})
        .get("properties", {})
    )
    chosen = dice.sample(sorted(fields), min(len(fields), 3))
    return {
        field: dice.choice([None, 0, -1, 2**63, 1.5, True, "", "x", [], ["x"], {}, {"x": {}}])
        for field in chosen
    }


@pytest.mark.parametrize("seed", range(2))
def test_no_request_made_from_the_document_is_an_internal_error(
    engine: EngineProcess, seed: int
) -> None:
    failures = []
    said = (engine.base / "log").stat().st_size
    for name, raw in _requests(seed):
        answer = send(engine, raw)
        if status(answer) in (0, 500):
            failures.append((name, answer[-300:]))
    engine.docker("network", "prune", "-f")
    engine.docker("volume", "prune", "-af")
    assert not failures, failures[:10]
    assert is_alive(engine)
    assert b"Traceback" not in (engine.base / "log").read_bytes()[said:]


def resident_kib(engine: EngineProcess) -> int:
    assert engine.process is not None
    lines = Path(f"/proc/{engine.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def pour(engine: EngineProcess, head: bytes, piece: bytes, times: int) -> bytes:
    """Send `head`, then `piece` as often as the engine takes it; what it answered."""
    with closing(connect(engine)) as sock:
        try:
            sock.sendall(head)
            for _ in range(times):
                sock.sendall(piece)
        except OSError:
            pass  # it would not hear more
        return _receive(sock)


@pytest.mark.parametrize(
    "path", ["/containers/create", "/networks/create", "/auth", "/volumes/create"]
)
@pytest.mark.parametrize("chunked", [True, False])
def test_documents_without_end_are_refused(engine: EngineProcess, path: str, chunked: bool) -> None:
    before = resident_kib(engine)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {1 << 33}"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    block = b'{"Image": "' + b"x" * (1 << 20)
    piece = b"%x\r\n%b\r\n" % (len(block), block) if chunked else block
    assert status(pour(engine, head.encode(), piece, 64)) == 400
    assert is_alive(engine)
    assert resident_kib(engine) < before + 64 * 1024


def test_heads_without_end_are_refused(engine: EngineProcess) -> None:
    before = resident_kib(engine)
    answer = pour(
        engine, b"GET /_ping HTTP/1.1\r\nHost: x\r\n", b"X-Flood: " + b"y" * 1000 + b"\r\n", 5000
    )
    assert status(answer) in (400, 431)
    assert is_alive(engine)
    assert resident_kib(engine) < before + 8 * 1024


def test_requests_that_are_not_waited_for_are_answered_in_turn(engine: EngineProcess) -> None:
    """A thousand heads at once: the engine reads on as its answers are taken, and keeps little in between."""
    before = resident_kib(engine)
    with closing(connect(engine)) as sock:
        sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while piece := _receive(sock):
            data += piece
    assert data.count(b"HTTP/1.1 200 OK") == 1000
    assert resident_kib(engine) < before + 8 * 1024


ESCAPES = [
    "../../../../etc/passwd",
    "/proc/1/root/etc/shadow",
    "%2e%2e%2f%2e%2e%2fetc",
    "/../..",
    "//",
    "/\0",
    ".",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_do_not_leave_the_container(engine: EngineProcess, path: str) -> None:
    engine.docker("create", "--name", "walled", "busybox", "true")
    for method in ("HEAD", "GET"):
        target = f"/containers/walled/archive?path={quote(path)}"
        answer = send(engine, request(method, target))
        assert status(answer) in (200, 400, 404), answer[:300]
        assert b"root:$" not in answer and b"root:*" not in answer
    engine.docker("rm", "walled")
