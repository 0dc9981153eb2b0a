"""Where a container may connect: what a hostile container tries, names and their ends, changes, and repair."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess
from tests.support.hosts import Neighbour, eventually

ALLOWED, OTHER, ALLOWED6, OTHER6 = (
    "203.0.113.10/32",
    "203.0.113.11/32",
    "2001:db8:5::10/128",
    "2001:db8:5::11/128",
)


ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print('ready', flush=True)
while True:
    client, _ = server.accept()
    while data := client.recv(4096):
        client.sendall(data)
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[Neighbour]:
    """A host with four addresses that say hello, and a name server."""
    neighbour = Neighbour(ALLOWED, OTHER, ALLOWED6, OTHER6)
    try:
        for each in (ALLOWED, OTHER, ALLOWED6, OTHER6):
            neighbour.hello(bare(each))
        neighbour.names(
            good__test=bare(ALLOWED), bad__test=bare(OTHER), a__wild__test=bare(ALLOWED), six__test=bare(ALLOWED6),
            loop__test="127.0.0.1", metadata__test="169.254.169.254",
        )  # fmt: skip
        yield neighbour
    finally:
        neighbour.close()


@pytest.fixture
def net(engine: EngineProcess) -> Iterator[str]:
    """A network of the user's own, with both families."""
    engine.docker("network", "create", "--ipv6", "limited")
    yield "limited"
    ids = engine.docker("ps", "-aq").stdout.split()
    if ids:
        engine.docker("rm", "-f", *ids)
    engine.docker("network", "rm", "limited")


def bare(address: str) -> str:
    return address.partition("/")[0]


def start(
    engine: EngineProcess, outside: Neighbour, name: str, egress: str, *flags: str, network: str = "limited"
) -> None:  # fmt: skip
    engine.docker(
        "run", "-d", "--name", name, "--network", network, "--dns", outside.ipv4, "--annotation",
        f"sampan.egress={egress}", *flags, "busybox", "sleep", "1000",
    )  # fmt: skip


def inside(engine: EngineProcess, name: str, script: str) -> subprocess.CompletedProcess[str]:
    return engine.docker("exec", name, "sh", "-c", script, check=False)


def reaches(engine: EngineProcess, name: str, address: str, port: int = 80) -> bool:
    return "hello" in inside(engine, name, f"nc -w 1 {address} {port} </dev/null").stdout


def resolves(engine: EngineProcess, name: str, wanted: str, server: str = "127.0.0.11") -> bool:
    return inside(engine, name, f"timeout 2 nslookup {wanted} {server}").returncode == 0


def shown(engine: EngineProcess, name: str) -> str:
    return engine.sampan("network", "egress", name).stdout


def address_of(
    engine: EngineProcess, name: str, network: str = "limited", key: str = "IPAddress"
) -> str:
    text = engine.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", name).stdout
    return str(json.loads(text)[network][key])


def test_none_is_nowhere(engine: EngineProcess, outside: Neighbour, net: str) -> None:
    """Not the world, not by name, not the host, not a neighbour, not another name server; by no protocol."""
    engine.docker(
        "run", "-d", "--name", "neighbour", "--network", net, "busybox", "sh", "-c",
        "while :; do echo hello | nc -l -p 80; done",
    )  # fmt: skip
    start(engine, outside, "shut", "none")
    neighbour, neighbour6 = (
        address_of(engine, "neighbour"),
        address_of(engine, "neighbour", key="GlobalIPv6Address"),
    )
    gateway, gateway6 = (
        address_of(engine, "shut", key="Gateway"),
        address_of(engine, "shut", key="IPv6Gateway"),
    )
    targets = [
        bare(ALLOWED),
        bare(ALLOWED6),
        neighbour,
        neighbour6,
        gateway,
        gateway6,
        outside.host4,
    ]
    tries = [f"nc -w 1 {t} 80 </dev/null" for t in targets]
    tries += [f"ping -c 1 -W 1 {t} >/dev/null && echo pong {t}" for t in targets]
    tries.append(f"echo x | nc -u -w 1 {bare(ALLOWED)} 80")
    assert inside(engine, "shut", " & ".join(tries) + "; wait").stdout == ""
    assert not resolves(engine, "shut", "good.test")
    assert not resolves(engine, "shut", "good.test", outside.ipv4)
    assert resolves(engine, "shut", "neighbour")
    assert "refused" not in shown(engine, "shut").lower()
    assert "packets dropped: 0" not in shown(engine, "shut")


def test_whoever_may_connect_to_it_still_may(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    engine.sampan(
        "run", "-d", "--name", "server", "--network", net, "--egress", "none", "-p", "0:80", "busybox", "sh", "-c",
        "while :; do echo hello | nc -l -p 80; done",
    )  # fmt: skip
    engine.docker("run", "-d", "--name", "client", "--network", net, "busybox", "sleep", "1000")
    assert eventually(lambda: reaches(engine, "client", "server"))
    port = engine.docker("port", "server", "80").stdout.split("\n")[0].rpartition(":")[2]
    fetch = "import socket,sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(9))"
    assert eventually(lambda: "hello" in outside.python(fetch, outside.host4, port))


def test_networks_and_addresses_of_both_families(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    start(engine, outside, "box", f"{bare(ALLOWED)},2001:db8:5::10/127")
    assert reaches(engine, "box", bare(ALLOWED))
    assert reaches(engine, "box", bare(ALLOWED6))
    assert reaches(engine, "box", bare(OTHER6))
    assert not reaches(engine, "box", bare(OTHER))
    text = engine.docker("inspect", "-f", "{{json .HostConfig.Annotations}}", "box").stdout
    assert "sampan.egress" in text


@pytest.mark.parametrize("network", ["limited", "bridge"])
def test_names(engine: EngineProcess, outside: Neighbour, net: str, network: str) -> None:
    start(engine, outside, "box", "good.test,*.wild.test,six.test", network=network)
    assert not reaches(engine, "box", bare(ALLOWED)), "nobody has asked for the name yet"
    assert resolves(engine, "box", "good.test")
    assert reaches(engine, "box", bare(ALLOWED))
    assert not reaches(engine, "box", bare(OTHER))
    assert not resolves(engine, "box", "bad.test")
    assert not resolves(engine, "box", "wild.test")
    assert resolves(engine, "box", "a.wild.test")
    text = shown(engine, "box")
    assert f".test -> {bare(ALLOWED)}  (for " in text
    assert "bad.test: not resolved" in text
    if network == "limited":
        assert resolves(engine, "box", "six.test")
        assert reaches(engine, "box", bare(ALLOWED6))
        assert not reaches(engine, "box", bare(OTHER6))


def test_a_name_does_not_stand_for_loopback_or_the_metadata_service(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    start(engine, outside, "box", "loop.test,metadata.test")
    assert resolves(engine, "box", "metadata.test")
    assert resolves(engine, "box", "loop.test")
    assert "->" not in shown(engine, "box")


def test_a_container_s_name_follows_the_container(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    serve = "while :; do echo hello | nc -l -p 80; done"
    start(engine, outside, "box", "db")
    for number in (1, 2):
        engine.docker(
            "run", "-d", "--name", f"db{number}", "--network", net, "--network-alias", f"{'db' if number == 1 else 'x'}",
            "busybox", "sh", "-c", serve,
        )  # fmt: skip
    first, second = address_of(engine, "db1"), address_of(engine, "db2")
    assert eventually(lambda: reaches(engine, "box", first))
    assert not reaches(engine, "box", second)
    engine.docker("rm", "-f", "db1")
    assert "->" not in shown(engine, "box")


def test_forged_senders_and_neighbours_are_dropped(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    """With NET_ADMIN and NET_RAW: another address, another hardware address, a neighbour's place in ARP tables."""
    engine.docker("run", "-d", "--name", "victim", "--network", net, "busybox", "sleep", "1000")
    engine.docker("run", "-d", "--name", "third", "--network", net, "busybox", "sleep", "1000")
    start(engine, outside, "box", bare(ALLOWED), "--cap-add", "NET_ADMIN")
    victim, third = address_of(engine, "victim"), address_of(engine, "third")
    assert reaches(engine, "box", bare(ALLOWED))
    # the victim's address is not limited: with it as sender nothing must pass
    assert inside(engine, "box", f"ip addr add {victim}/32 dev eth0").returncode == 0
    assert inside(engine, "box", f"ping -c 1 -W 1 -I {victim} {third}").returncode != 0
    inside(engine, "box", f"arping -U -c 2 -I eth0 {victim}")
    own = inside(engine, "victim", "cat /sys/class/net/eth0/address").stdout.strip()
    inside(engine, "third", f"ping -c 1 -W 1 {victim}")
    assert own in inside(engine, "third", f"ip neigh show {victim}").stdout
    assert inside(engine, "box", f"ip addr del {victim}/32 dev eth0").returncode == 0
    assert (
        inside(
            engine, "box", "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99 up"
        ).returncode
        == 0
    )
    inside(engine, "box", "ip route add default via " + address_of(engine, "box", key="Gateway"))
    assert not reaches(engine, "box", bare(ALLOWED))


def test_a_list_is_changed_while_it_runs(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    for network in (net, "bridge"):
        engine.docker(
            "run",
            "-d",
            "--name",
            "box",
            "--network",
            network,
            "--dns",
            outside.ipv4,
            "busybox",
            "sleep",
            "1000",
        )
        assert reaches(engine, "box", bare(OTHER))
        assert shown(engine, "box") == "any\n"
        engine.sampan("network", "egress", "box", "good.test")
        assert not reaches(engine, "box", bare(OTHER))
        assert resolves(engine, "box", "good.test")
        assert reaches(engine, "box", bare(ALLOWED))
        assert "127.0.0.11" in inside(engine, "box", "cat /etc/resolv.conf").stdout
        engine.sampan("network", "egress", "box", "none")
        assert not reaches(engine, "box", bare(ALLOWED))
        assert shown(engine, "box").startswith("none\n")
        engine.docker("restart", "-t", "0", "box")
        assert not reaches(engine, "box", bare(ALLOWED))
        engine.sampan("network", "egress", "box", "any")
        assert reaches(engine, "box", bare(OTHER))
        engine.docker("rm", "-f", "box")


def test_a_narrower_list_ends_what_it_no_longer_allows(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    """A connection that stays open and quiet, to a server that answers every line, while the list changes twice."""
    outside.serve(ECHO, outside.ipv4, "7")
    start(engine, outside, "box", f"{outside.ipv4},{bare(ALLOWED)}")
    script = (
        f"mkfifo /p; (nc {outside.ipv4} 7 <>/p >/got) & while :; do echo x; sleep 0.1; done >/p"
    )
    engine.docker("exec", "-d", "box", "sh", "-c", script)

    def heard() -> int:
        return int(inside(engine, "box", "cat /got | wc -c").stdout or 0)

    assert eventually(lambda: heard() > 4)
    engine.sampan("network", "egress", "box", f"{outside.ipv4}")
    before = heard()
    assert eventually(lambda: heard() > before + 4)
    engine.sampan("network", "egress", "box", bare(ALLOWED))
    time.sleep(0.3)  # what was on its way
    before = heard()
    assert not eventually(lambda: heard() > before, seconds=1)
    assert reaches(engine, "box", bare(ALLOWED))


def test_flushed_rules_come_back_with_what_was_granted(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    start(engine, outside, "box", "good.test")
    assert resolves(engine, "box", "good.test")
    for family in ("inet", "bridge"):
        subprocess.run(["nft", "delete", "table", family, engine.bridge], check=True)
    assert eventually(lambda: not reaches(engine, "box", bare(OTHER)))
    assert eventually(lambda: reaches(engine, "box", bare(ALLOWED)))


def test_another_network_is_limited_too(
    engine: EngineProcess, outside: Neighbour, net: str
) -> None:
    engine.docker("network", "create", "second")
    start(engine, outside, "box", bare(ALLOWED))
    engine.docker("network", "connect", "--gw-priority", "5", "second", "box")
    assert reaches(engine, "box", bare(ALLOWED))
    assert not reaches(engine, "box", bare(OTHER))
    engine.docker("network", "disconnect", net, "box")
    assert reaches(engine, "box", bare(ALLOWED))
    assert not reaches(engine, "box", bare(OTHER))
    engine.docker("rm", "-f", "box")
    engine.docker("network", "rm", "second")


def test_a_network_s_list_is_its_containers_default(
    engine: EngineProcess, outside: Neighbour
) -> None:
    engine.sampan("network", "create", "--egress", bare(ALLOWED), "shy")
    engine.docker("run", "-d", "--name", "box", "--network", "shy", "busybox", "sleep", "1000")
    start(engine, outside, "own", bare(OTHER), network="shy")
    assert reaches(engine, "box", bare(ALLOWED))
    assert not reaches(engine, "box", bare(OTHER))
    assert reaches(engine, "own", bare(OTHER))
    assert not reaches(engine, "own", bare(ALLOWED))
    engine.docker("rm", "-f", "box", "own")
    engine.docker("network", "rm", "shy")


def test_limits_outlive_the_daemon(
    fresh_engine: EngineProcess, outside: Neighbour, busybox_tar: Path
) -> None:
    engine = fresh_engine.start()
    engine.docker("import", str(busybox_tar), "busybox")
    engine.docker("network", "create", "limited")
    start(engine, outside, "box", "good.test")
    pid = engine.docker("inspect", "-f", "{{.State.Pid}}", "box").stdout.strip()
    engine.kill()
    look = f"busybox nslookup good.test 127.0.0.11 && busybox nc -w 1 {bare(ALLOWED)} 80 </dev/null"
    for script, wanted in ((look, "hello"), (f"busybox nc -w 1 {bare(OTHER)} 80 </dev/null", "")):
        command = ["nsenter", "-t", pid, "-n", "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert wanted in done.stdout if wanted else done.stdout == ""
    engine.start()
    assert resolves(engine, "box", "good.test")
    assert reaches(engine, "box", bare(ALLOWED))
    assert not reaches(engine, "box", bare(OTHER))
    assert f"good.test -> {bare(ALLOWED)}" in shown(engine, "box")
    engine.docker("rm", "-f", "box")
    engine.docker("network", "rm", "limited")


def test_what_cannot_be_limited_is_refused(engine: EngineProcess) -> None:
    for flags, words in (
        (("--network", "host", "--egress", "none"), "conflicting options"),
        (("--egress", "10.0.0.0/33"), "invalid egress entry"),
        (("--egress", ""), "invalid egress list"),
        (("--egress", "none,10.0.0.0/8"), "stands alone"),
    ):
        done = engine.sampan("run", "--rm", *flags, "busybox", "true", check=False)
        assert done.returncode == 125
        assert words in done.stderr
    done = engine.sampan("network", "create", "-d", "macvlan", "--egress", "none", "x", check=False)
    assert done.returncode == 1
    assert "driver 'bridge' only" in done.stderr
