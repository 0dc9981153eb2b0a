"""Issue 4, "Load": many clients at once, and nothing fails, leaks, grows or is told twice."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import pytest

from tests.root.test_engine_lifecycle import until
from tests.support.client import Client
from tests.support.engine import EngineProcess

CLIENTS = 16
CONTAINERS = 200


@pytest.fixture
def client(engine: EngineProcess) -> Client:
    return Client(engine.socket)


def resident_kib(engine: EngineProcess) -> int:
    assert engine.process is not None
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", status)
    assert found is not None
    return int(found[1])


def descriptors(engine: EngineProcess) -> int:
    assert engine.process is not None
    return len(os.listdir(f"/proc/{engine.process.pid}/fd"))


class Talk(NamedTuple):
    """The two directions of a connection."""

    answers: BinaryIO
    requests: io.RawIOBase

    def head(self) -> int:
        """Read the head of an answer that must be 200; the length of the body, 0 where it has none."""
        assert self.answers.readline().startswith(b"HTTP/1.1 200 ")
        length = 0
        while line := self.answers.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return length


@contextmanager
def connected(engine: EngineProcess) -> Iterator[Talk]:
    """A connection to the engine to write to and to read from."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(engine.socket))
        with sock.makefile("rb") as reader, sock.makefile("wb", buffering=0) as writer:
            yield Talk(reader, writer)


def whole_life(client: Client, number: int) -> str:
    """Create, start, exec, remove; the id."""
    wish = {"Image": "busybox", "Cmd": ["sleep", "1000"]}
    created = client.do("POST", "/containers/create", wish, name=f"load-{number}")
    client.do("POST", f"/containers/load-{number}/start")
    session = client.do("POST", f"/containers/load-{number}/exec", {"Cmd": ["sh", "-c", "exit 3"]})
    client.do("POST", f"/exec/{session['Id']}/start", {})
    assert client.do("GET", f"/exec/{session['Id']}/json")["ExitCode"] == 3
    client.do("DELETE", f"/containers/load-{number}", force=1)
    return str(created["Id"])


def test_many_clients_work_at_once_and_every_event_is_told(
    engine: EngineProcess, client: Client
) -> None:
    for number in range(CLIENTS):
        whole_life(client, number)  # what is made once is made
    before = resident_kib(engine), descriptors(engine)
    wanted = {"type": ["container"], "event": ["create", "start", "die", "destroy"]}
    with connected(engine) as talk:
        talk.requests.write(
            f"GET /events?filters={quote(json.dumps(wanted))} HTTP/1.0\r\n\r\n".encode()
        )
        assert talk.head() == 0
        with ThreadPoolExecutor(CLIENTS) as pool:
            lives = list(pool.map(lambda number: whole_life(client, number), range(CONTAINERS)))
        told: dict[str, list[str]] = {}
        while sum(map(len, told.values())) < 4 * CONTAINERS:
            event = json.loads(talk.answers.readline())
            told.setdefault(event["id"], []).append(event["Action"])
    assert set(told) == set(lives)
    assert all(actions == ["create", "start", "die", "destroy"] for actions in told.values())
    until(lambda: descriptors(engine) <= before[1])
    assert resident_kib(engine) < before[0] + 16 * 1024


def test_five_thousand_lists_at_sixteen_in_flight(engine: EngineProcess, client: Client) -> None:
    wish = {"Image": "busybox", "Cmd": ["true"]}
    for number in range(10):
        client.do("POST", "/containers/create", wish, name=f"listed-{number}")
    before = resident_kib(engine), descriptors(engine)

    def ask(count: int) -> int:
        with connected(engine) as talk:
            for _ in range(count):
                talk.requests.write(b"GET /containers/json?all=1 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert len(json.loads(talk.answers.read(talk.head()))) == 10
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert sum(pool.map(ask, [5000 // CLIENTS] * CLIENTS)) == 5000 // CLIENTS * CLIENTS
    until(lambda: descriptors(engine) <= before[1])
    assert resident_kib(engine) < before[0] + 8 * 1024


@pytest.mark.parametrize("compress", ["false", "true"])
def test_fifty_followers_of_one_log_read_every_line_across_rotations(
    engine: EngineProcess, compress: str
) -> None:
    script = "while [ ! -e /go ]; do sleep 0.05; done; seq 20000"
    options = {"max-size": "200k", "max-file": "50", "compress": compress}
    flags = [word for key, value in options.items() for word in ("--log-opt", f"{key}={value}")]
    engine.docker("run", "-d", "--name", "talker", *flags, "busybox", "sh", "-c", script)
    expected = b"".join(b"%d\n" % number for number in range(1, 20001))
    with ExitStack() as stack:
        followers = [
            stack.enter_context(
                subprocess.Popen(
                    ["docker", "logs", "-f", "talker"],
                    env=engine.environment,
                    stdout=subprocess.PIPE,
                )
            )
            for _ in range(50)
        ]
        for follower in followers:
            stack.callback(follower.kill)
        engine.docker("exec", "talker", "touch", "/go")
        for follower in followers:
            assert follower.communicate(timeout=120)[0] == expected
            assert follower.returncode == 0
    logs = next((engine.root / "containers").glob("*/*-json.log")).parent
    assert len(list(logs.glob("*-json.log*"))) > 5


def test_a_flood_leaves_every_process_small(engine: EngineProcess) -> None:
    """`run IMAGE yes | head -c N`: a reader that takes its time slows the writer, and nobody keeps what is between."""
    before = resident_kib(engine)
    name = "flood"
    with subprocess.Popen(
        ["docker", "run", "--name", name, "busybox", "yes"], env=engine.environment, stdout=subprocess.PIPE
    ) as run:  # fmt: skip
        assert run.stdout is not None
        taken = 0
        while taken < 50_000_000:
            taken += len(run.stdout.read(1 << 16))
        run_dir = next((engine.run / "containers").iterdir())
        shim = int((run_dir / "shim.pid").read_text().split()[0])
        peak = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{shim}/status").read_text())
        assert peak is not None and int(peak[1]) < 12 * 1024
        assert resident_kib(engine) < before + 8 * 1024
        engine.docker("rm", "-f", name)
