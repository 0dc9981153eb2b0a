"""Beside other people's firewalls: an engine in a network namespace of its own, whose tables a test may spoil."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.engine import EngineProcess
from tests.support.hosts import Neighbour, eventually, run

PORT = 8080
SERVE = "while :; do echo web | nc -l -p 80; done"
FETCH = (
    "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).recv(9))"
)


class Place:
    """An engine on a host of its own, a container `web` that publishes a port, and a host beyond it."""

    def __init__(self, engine: EngineProcess, host: str, beyond: Neighbour) -> None:
        self.engine = engine
        self.host = host
        self.beyond = beyond

    def on_host(self, *words: str) -> str:
        return run("nsenter", f"--net=/run/netns/{self.host}", *words)

    def goes_out(self) -> bool:
        script = f"nc -w 1 {self.beyond.ipv4} 80 </dev/null"
        return "hello" in self.engine.docker("exec", "web", "sh", "-c", script, check=False).stdout

    def comes_in(self) -> bool:
        return "web" in self.beyond.python(FETCH, self.beyond.host4, str(PORT))

    def works(self) -> bool:
        return eventually(self.goes_out) and eventually(self.comes_in)


@pytest.fixture
def place(tmp_path: Path, busybox_tar: Path) -> Iterator[Place]:
    require(shutil.which("docker") is not None, "needs the docker CLI")
    beyond = Neighbour()
    host = f"{beyond.name}-host"
    run("ip", "netns", "add", host)
    engine = EngineProcess(tmp_path)
    engine.prefix = ("nsenter", f"--net=/run/netns/{host}")
    try:
        run("ip", "link", "set", beyond.link, "netns", host)
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", beyond.link, "up"),
            ("addr", "add", f"{beyond.host4}/24", "dev", beyond.link),
        ):
            run("ip", "-n", host, *words)
        beyond.hello()
        engine.start()
        engine.docker("import", str(busybox_tar), "busybox")
        engine.docker(
            "run", "-d", "--name", "web", "-p", f"{PORT}:80", "busybox", "sh", "-c", SERVE
        )
        yield Place(engine, host, beyond)
    finally:
        engine.stop()
        beyond.close()
        run("ip", "netns", "del", host)


def test_a_forward_policy_of_drop_is_met_when_it_comes_and_when_its_rules_go(place: Place) -> None:
    assert place.works()
    place.on_host("iptables", "-P", "FORWARD", "DROP")
    assert place.works()
    place.on_host("iptables", "-F", "FORWARD")
    assert place.works()
    place.engine.docker("network", "create", "second")
    assert place.works()
    place.engine.docker("network", "rm", "second")
    place.on_host("iptables", "-P", "FORWARD", "ACCEPT")
    assert eventually(lambda: "SAMPAN" not in place.on_host("iptables", "-S"))
    assert place.works()


def test_a_flushed_ruleset_comes_back(place: Place) -> None:
    place.on_host("nft", "flush", "ruleset")
    assert place.works()
    place.on_host("iptables", "-P", "FORWARD", "DROP")
    place.on_host("nft", "flush", "ruleset")
    assert place.works()


def test_an_engine_that_ends_leaves_nothing_in_others_tables(place: Place) -> None:
    place.on_host("iptables", "-P", "FORWARD", "DROP")
    assert place.works()
    place.engine.stop()
    assert place.on_host("iptables", "-S") == "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n"
    assert "sampan" not in place.on_host("nft", "list", "tables")


def test_the_old_xtables(place: Place) -> None:
    require(shutil.which("iptables-legacy") is not None, "needs iptables-legacy")
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{place.host}", "iptables-legacy", "-P", "FORWARD", "DROP"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"needs a kernel with the old xtables: {done.stderr}")
    place.engine.docker("run", "--rm", "busybox", "true")
    assert place.works()
    place.engine.stop()
    assert "SAMPAN" not in place.on_host("iptables-legacy", "-S")
