"""ipvlan, VLANs and dummy parents: links that not every kernel has. tests/vm runs these on one that has them all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import EngineProcess
from tests.support.hosts import Neighbour, eventually, run

SERVE = "while :; do echo web | nc -l -p 80; done"
FETCH = "import socket,sys; print(socket.create_connection((sys.argv[1], 80), 2).recv(9))"


def has(kind: str) -> bool:
    """Whether this kernel makes links of a kind: tried in a namespace that goes at once."""
    options = {"ipvlan": "ipvlan", "vlan": "vlan id 5"}[kind]
    script = (
        f"ip link add base type veth peer name far && ip link add probe link base type {options}"
    )
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


needs_ipvlan = pytest.mark.skipif(
    not has("ipvlan"), reason="this kernel has no ipvlan; tests/vm runs it"
)
needs_vlan = pytest.mark.skipif(
    not has("vlan"), reason="this kernel has no VLANs; tests/vm runs it"
)


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    made = Neighbour()
    try:
        yield made
    finally:
        made.close()


def pair(engine: EngineProcess, network: str, *addresses: str) -> None:
    """A server `web` and a client `other` on a network."""
    for name, address, command in zip(
        ("web", "other"), addresses, (SERVE, "sleep 1000"), strict=True
    ):
        engine.docker(
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            "--ip",
            address,
            "busybox",
            "sh",
            "-c",
            command,
        )


def other_reaches(engine: EngineProcess, address: str) -> bool:
    script = f"nc -w 1 {address} 80 </dev/null"
    return "web" in engine.docker("exec", "other", "sh", "-c", script, check=False).stdout


@needs_ipvlan
def test_ipvlan_l2_is_beside_the_neighbour(
    engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
) -> None:
    net = neighbour.ipv4.rpartition(".")[0]
    networks(
        "ip2",
        "-d",
        "ipvlan",
        "--subnet",
        f"{net}.0/24",
        "--gateway",
        neighbour.ipv4,
        "-o",
        f"parent={neighbour.link}",
    )
    pair(engine, "ip2", f"{net}.40", f"{net}.41")
    assert eventually(lambda: "web" in neighbour.python(FETCH, f"{net}.40"))
    assert eventually(lambda: other_reaches(engine, f"{net}.40"))
    assert eventually(lambda: other_reaches(engine, "web"))


@needs_ipvlan
@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_ipvlan_l3_routes(
    engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour, mode: str
) -> None:
    """Another subnet than the link's: the neighbour has a route to it by this host, whose link takes what is the containers'."""
    networks(
        "ip3",
        "-d",
        "ipvlan",
        "--subnet",
        "10.239.0.0/24",
        "-o",
        f"parent={neighbour.link}",
        "-o",
        f"ipvlan_mode={mode}",
    )
    neighbour.ip("route", "add", "10.239.0.0/24", "via", neighbour.host4)
    pair(engine, "ip3", "10.239.0.40", "10.239.0.41")
    assert eventually(lambda: "web" in neighbour.python(FETCH, "10.239.0.40"))
    assert eventually(lambda: other_reaches(engine, "10.239.0.40"))


@needs_vlan
def test_a_vlan_of_the_parent_is_made_and_goes(
    engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
) -> None:
    parent = f"{neighbour.link}.7"
    flags = ("-d", "macvlan", "--subnet", "10.238.0.0/24", "-o", f"parent={parent}")
    engine.docker("network", "create", *flags, "gone")
    assert f"{parent}@" in run("ip", "link")
    engine.docker("network", "rm", "gone")
    assert f"{parent}@" not in run("ip", "link")
    networks("tagged", *flags)
    neighbour.ip("link", "add", "eth0.7", "link", "eth0", "type", "vlan", "id", "7")
    neighbour.ip("addr", "add", "10.238.0.200/24", "dev", "eth0.7")
    neighbour.ip("link", "set", "eth0.7", "up")
    pair(engine, "tagged", "10.238.0.40", "10.238.0.41")
    assert eventually(lambda: "web" in neighbour.python(FETCH, "10.238.0.40"))


@pytest.mark.parametrize(
    ("driver", "private"),
    [
        ("macvlan", "macvlan_mode=private"),
        pytest.param("ipvlan", "ipvlan_flag=private", marks=needs_ipvlan),
    ],
)
def test_private_keeps_containers_apart(
    engine: EngineProcess,
    networks: Callable[..., str],
    neighbour: Neighbour,
    driver: str,
    private: str,
) -> None:
    net = neighbour.ipv4.rpartition(".")[0]
    networks(
        "apart", "-d", driver, "--subnet", f"{net}.0/24", "--gateway", neighbour.ipv4, "-o", f"parent={neighbour.link}",
        "-o", private,
    )  # fmt: skip
    pair(engine, "apart", f"{net}.40", f"{net}.41")
    assert eventually(lambda: "web" in neighbour.python(FETCH, f"{net}.40"))
    assert not other_reaches(engine, f"{net}.40")
