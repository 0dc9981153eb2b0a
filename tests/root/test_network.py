"""Networks with real links, rules and clients: names, ports, isolation, repair, live changes, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

# Debian's static busybox crashes in wget and in look-ups by the C library where there is none: nc and nslookup do not.
GET = "printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} {port} | tail -n 1"
HTTPD = "mkdir -p /www; echo hello > /www/x; exec httpd -f -p {port} -h /www"


def fetch(host: str, port: int, *, timeout: float = 3) -> str:
    """The body of /x, or the name of what went wrong."""
    end = time.monotonic() + timeout
    while True:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as connection:
                connection.settimeout(2)
                connection.connect((host, port))
                connection.sendall(b"GET /x HTTP/1.0\r\n\r\n")
                answer = b""
                while chunk := connection.recv(4096):
                    answer += chunk
            if b"\r\n\r\n" in answer:
                return answer.split(b"\r\n\r\n", 1)[1].decode().strip()
        except OSError as error:
            last = type(error).__name__
        else:
            last = "no answer"
        if time.monotonic() > end:
            return last
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def web(engine: EngineProcess, name: str, *flags: str, port: int = 80) -> None:
    engine.docker(
        "run", "-d", "--name", name, *flags, "busybox", "sh", "-c", HTTPD.format(port=port)
    )


def address(engine: EngineProcess, name: str, network: str = "bridge") -> str:
    networks = json.loads(
        engine.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).stdout
    )
    return str(networks[network]["IPAddress"])


@pytest.fixture
def network(engine: EngineProcess) -> Iterator[str]:
    engine.docker("network", "create", "testnet")
    yield "testnet"
    ids = engine.docker("ps", "-aq", check=False).stdout.split()
    if ids:
        engine.docker("rm", "-f", *ids)
    engine.docker("network", "rm", "testnet")


def test_published_port_answers_on_every_address_of_the_host(engine: EngineProcess) -> None:
    port = free_port()
    web(engine, "web", "-p", f"{port}:80")
    assert fetch("127.0.0.1", port) == "hello"
    assert fetch("::1", port) == "hello"
    if host_address():
        assert fetch(host_address(), port) == "hello"
    assert (
        engine.docker("port", "web").stdout == f"80/tcp -> 0.0.0.0:{port}\n80/tcp -> [::]:{port}\n"
    )
    engine.docker("rm", "-f", "web")
    assert fetch("127.0.0.1", port, timeout=0.2) == "ConnectionRefusedError"


def test_port_that_is_taken_is_refused_in_dockers_words(engine: EngineProcess) -> None:
    port = free_port()
    engine.docker("run", "-d", "--name", "one", "-p", f"{port}:80", "busybox", "sleep", "100")
    done = engine.docker("run", "--name", "two", "-p", f"{port}:80", "busybox", "true", check=False)
    assert done.returncode == 125
    assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in done.stderr
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        done = engine.docker(
            "run", "--name", "three", "-p", f"{taken}:80", "busybox", "true", check=False
        )
    assert done.returncode == 125
    assert "address already in use" in done.stderr


def test_containers_reach_published_ports_of_the_host_also_their_own(engine: EngineProcess) -> None:
    port = free_port()
    web(engine, "web", "-p", f"{port}:80")
    gateway = engine.docker(
        "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "web"
    ).stdout.strip()
    script = GET.format(host=gateway, port=port)
    assert engine.docker("run", "--rm", "busybox", "sh", "-c", script).stdout == "hello\n"
    assert engine.docker("exec", "web", "sh", "-c", script).stdout == "hello\n"


def test_names_are_known_in_networks_of_the_users_own(engine: EngineProcess, network: str) -> None:
    web(engine, "web", "--network", network, "--network-alias", "www")
    look = "nslookup {name} 127.0.0.11"
    for name in ("web", "www", "web.testnet", "WEB"):
        script = look.format(name=name)
        out = engine.docker(
            "run", "--rm", "--network", network, "busybox", "sh", "-c", script
        ).stdout
        assert address(engine, "web", network) in out, name
    script = "nslookup nosuchname 127.0.0.11"
    done = engine.docker(
        "run", "--rm", "--network", network, "busybox", "sh", "-c", script, check=False
    )
    assert done.returncode != 0


def test_names_and_ports_go_on_while_the_daemon_is_down(
    fresh_engine: EngineProcess, busybox_tar: Path
) -> None:
    engine = fresh_engine.start()
    engine.docker("import", str(busybox_tar), "busybox")
    engine.docker("network", "create", "n")
    port = free_port()
    web(engine, "web", "--network", "n", "-p", f"127.0.0.1:{port}:80")
    engine.docker("run", "-d", "--name", "client", "--network", "n", "busybox", "sleep", "1000")
    pid = engine.docker("inspect", "-f", "{{.State.Pid}}", "client").stdout.strip()
    engine.kill()
    assert fetch("127.0.0.1", port) == "hello"
    inside = ["nsenter", "-t", pid, "-n", "busybox", "nslookup", "web", "127.0.0.11"]
    assert "Name:\tweb" in subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    engine.start()
    assert fetch("127.0.0.1", port) == "hello"
    engine.docker("rm", "-f", "web", "client")
    assert fetch("127.0.0.1", port, timeout=0.2) == "ConnectionRefusedError"
    engine.docker("network", "rm", "n")


def test_networks_are_isolated_from_each_other(engine: EngineProcess, network: str) -> None:
    web(engine, "web")
    script = GET.format(host=address(engine, "web"), port=80).replace("-w 3", "-w 1")
    done = engine.docker(
        "run", "--rm", "--network", network, "busybox", "sh", "-c", script, check=False
    )
    assert done.stdout == ""
    assert engine.docker("run", "--rm", "busybox", "sh", "-c", script).stdout == "hello\n"


def test_internal_network_leads_nowhere_and_forwards_no_names(engine: EngineProcess) -> None:
    """CVE-2024-29018: what an internal network asks must not leave the host by our name service."""
    engine.docker("network", "create", "--internal", "inner")
    script = "ip route | grep -c default; nslookup example.com 127.0.0.11"
    done = engine.docker(
        "run", "--rm", "--network", "inner", "busybox", "sh", "-c", script, check=False
    )
    assert done.stdout.startswith("0\n")
    assert "NXDOMAIN" in done.stdout + done.stderr
    engine.docker("network", "rm", "inner")


def test_connect_and_disconnect_while_running(engine: EngineProcess, network: str) -> None:
    engine.docker("run", "-d", "--name", "box", "busybox", "sleep", "1000")
    engine.docker("network", "connect", "--alias", "friend", network, "box")
    links = engine.docker("exec", "box", "ip", "-o", "-4", "addr").stdout
    assert address(engine, "box", network) in links
    assert "eth1" in links
    script = "nslookup friend 127.0.0.11"
    out = engine.docker("run", "--rm", "--network", network, "busybox", "sh", "-c", script).stdout
    assert address(engine, "box", network) in out
    engine.docker("network", "disconnect", network, "box")
    assert "eth1" not in engine.docker("exec", "box", "ip", "-o", "link").stdout
    assert "eth0" in engine.docker("exec", "box", "ip", "-o", "link").stdout


def test_static_addresses_and_subnets(engine: EngineProcess) -> None:
    engine.docker(
        "network", "create", "--subnet", "10.123.0.0/24", "--gateway", "10.123.0.254", "fixed"
    )
    try:
        out = engine.docker(
            "run", "--rm", "--network", "fixed", "--ip", "10.123.0.77", "busybox", "sh", "-c",
            "ip -o -4 addr show eth0; ip route",
        ).stdout  # fmt: skip
        assert "10.123.0.77/24" in out
        assert "default via 10.123.0.254" in out
        done = engine.docker(
            "network", "create", "--subnet", "10.123.0.128/25", "second", check=False
        )
        assert "Pool overlaps with other one on this address space" in done.stderr
        done = engine.docker(
            "run", "--rm", "--network", "fixed", "--ip", "10.99.0.1", "busybox", "true", check=False
        )
        assert done.returncode == 125
    finally:
        engine.docker("network", "rm", "fixed")


def test_rules_that_were_flushed_come_back(engine: EngineProcess) -> None:
    tables = ["nft", "list", "tables"]

    def there() -> bool:
        return (
            engine.bridge
            in subprocess.run(tables, capture_output=True, text=True, check=True).stdout
        )

    assert there()
    subprocess.run(["nft", "delete", "table", "inet", engine.bridge], check=True)
    end = time.monotonic() + 5
    while not there() and time.monotonic() < end:
        time.sleep(0.05)
    assert there()


def test_a_port_that_was_not_published_is_not_reachable_by_routing(engine: EngineProcess) -> None:
    """A neighbour that sends packets for the container's address through this host (moby 28's fix)."""
    web(engine, "web", "-p", "127.0.0.1:0:80")
    target = address(engine, "web")
    names = ("nbr", "nbr0", "nbr1")
    run = lambda *words: subprocess.run(words, check=True, capture_output=True)  # noqa: E731
    run("ip", "netns", "add", names[0])
    try:
        run(
            "ip",
            "link",
            "add",
            names[1],
            "type",
            "veth",
            "peer",
            "name",
            names[2],
            "netns",
            names[0],
        )
        run("ip", "addr", "add", "10.200.200.1/24", "dev", names[1])
        run("ip", "link", "set", names[1], "up")
        run("ip", "-n", names[0], "addr", "add", "10.200.200.2/24", "dev", names[2])
        run("ip", "-n", names[0], "link", "set", names[2], "up")
        run("ip", "-n", names[0], "route", "add", "default", "via", "10.200.200.1")
        attack = [
            "ip",
            "netns",
            "exec",
            names[0],
            "busybox",
            "wget",
            "-q",
            "-T",
            "1",
            "-O",
            "-",
            f"http://{target}/x",
        ]
        assert subprocess.run(attack, capture_output=True, check=False).returncode != 0
    finally:
        run("ip", "netns", "del", names[0])
    assert (
        engine.docker("exec", "web", "wget", "-q", "-O", "-", "http://127.0.0.1/x").stdout
        == "hello\n"
    )


def test_source_address_of_a_client_is_kept(engine: EngineProcess) -> None:
    port = free_port()
    engine.docker(
        "run", "-d", "--name", "peer", "-p", f"{port}:80", "busybox", "sh", "-c",
        "while :; do nc -l -p 80 -e sh -c 'netstat -tn | grep :80 >&2; echo ok'; done",
    )  # fmt: skip
    run = lambda *words: subprocess.run(words, check=True, capture_output=True)  # noqa: E731
    run("ip", "netns", "add", "cli")
    try:
        run("ip", "link", "add", "cli0", "type", "veth", "peer", "name", "cli1", "netns", "cli")
        run("ip", "addr", "add", "10.200.201.1/24", "dev", "cli0")
        run("ip", "link", "set", "cli0", "up")
        run("ip", "-n", "cli", "addr", "add", "10.200.201.2/24", "dev", "cli1")
        run("ip", "-n", "cli", "link", "set", "cli1", "up")
        run("ip", "-n", "cli", "route", "add", "default", "via", "10.200.201.1")
        client = [
            "ip",
            "netns",
            "exec",
            "cli",
            "busybox",
            "nc",
            "-w",
            "3",
            "10.200.201.1",
            str(port),
        ]
        end = time.monotonic() + 5
        while True:
            subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            logs = engine.docker("logs", "peer")
            if "10.200.201.2" in logs.stdout + logs.stderr or time.monotonic() > end:
                break
        assert "10.200.201.2" in logs.stdout + logs.stderr
    finally:
        run("ip", "netns", "del", "cli")


def test_many_containers_on_one_network_have_addresses_of_their_own(
    engine: EngineProcess, network: str
) -> None:
    count = 12
    for number in range(count):
        engine.docker(
            "run", "-d", "--name", f"m{number}", "--network", network, "busybox", "sleep", "1000"
        )
    addresses = {address(engine, f"m{n}", network) for n in range(count)}
    assert len(addresses) == count
    inspected = json.loads(engine.docker("network", "inspect", network).stdout)[0]
    assert len(inspected["Containers"]) == count


def test_none_and_host(engine: EngineProcess) -> None:
    links = engine.docker("run", "--rm", "--network", "none", "busybox", "ip", "-o", "link").stdout
    assert links.count("\n") == 1
    own = engine.docker(
        "run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net"
    ).stdout
    assert engine.bridge in own


def test_removing_a_network_in_use_is_refused(engine: EngineProcess, network: str) -> None:
    engine.docker("run", "-d", "--name", "user", "--network", network, "busybox", "sleep", "1000")
    done = engine.docker("network", "rm", network, check=False)
    assert done.returncode == 1
    assert "has active endpoints" in done.stderr
    done = engine.docker("network", "rm", "bridge", check=False)
    assert "bridge is a pre-defined network and cannot be removed" in done.stderr


def test_a_keeper_that_dies_is_replaced_with_all_that_it_held(engine: EngineProcess) -> None:
    """Published loopback ports and names, with the container's own --dns, without a restart of the engine."""
    port = free_port()
    engine.docker("network", "create", "kept")
    try:
        web(engine, "kept-web", "--network", "kept", "-p", f"127.0.0.1:{port}:80")
        assert fetch("127.0.0.1", port) == "hello"
        for pid in keepers(engine):
            os.kill(pid, signal.SIGKILL)
        assert fetch("127.0.0.1", port, timeout=20) == "hello"
        got = engine.docker(
            "run",
            "--rm",
            "--network",
            "kept",
            "busybox",
            "sh",
            "-c",
            GET.format(host="kept-web", port=80),
        )
        assert got.stdout.strip() == "hello"
    finally:
        engine.docker("rm", "-f", "kept-web", check=False)
        engine.docker("network", "rm", "kept", check=False)


def keepers(engine: EngineProcess) -> list[int]:
    mark = str(engine.run).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in command and b"network.keeper" in command:
                found.append(int(entry.name))
    assert found
    return found


def test_a_keeper_of_another_version_is_replaced_with_all_that_it_held(
    fresh_engine: EngineProcess, busybox_tar: Path
) -> None:
    """After an upgrade: the keeper that runs does not know the new daemon's messages."""
    engine = fresh_engine.start()
    engine.docker("import", str(busybox_tar), "busybox")
    engine.docker("network", "create", "n")
    port = free_port()
    web(engine, "web", "--network", "n", "-p", f"127.0.0.1:{port}:80")
    assert fetch("127.0.0.1", port) == "hello"
    (old,) = keepers(engine)
    engine.kill()
    engine.program = ("-c", OTHER_VERSION)
    engine.start()
    assert fetch("127.0.0.1", port) == "hello"
    (new,) = keepers(engine)
    assert new != old
    engine.docker("run", "--rm", "--network", "n", "busybox", "nslookup", "web", "127.0.0.11")
    engine.docker("rm", "-f", "web")
    engine.docker("network", "rm", "n")


# A daemon that expects the next version of the messages, until it has started a keeper of its own.
OTHER_VERSION = """
import sys
from sampan import daemon
from sampan.network import keeper, keeper_client
keeper.PROTOCOL += 1
start = keeper_client.KeeperClient._start
def start_own(client):
    keeper.PROTOCOL -= 1
    start(client)
keeper_client.KeeperClient._start = start_own
sys.exit(daemon.main(sys.argv[1:]))
"""
