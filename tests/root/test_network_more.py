"""Networks, further: several at once, address pools, drivers, neighbours that attack, every family and protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess
from tests.support.hosts import Neighbour, eventually, run

SERVE = "while :; do echo web | nc -l -p 80; done"
FETCH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as connection:
        print(connection.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""
# What a packet with this destination meets that is sent into the link, whatever the sender's own routes say.
FORCED = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
sock.settimeout(1)
sock.bind((sys.argv[3], 0))
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    print('connected', sock.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Neighbour]:
    made = Neighbour()
    try:
        yield made
    finally:
        made.close()


def inspected(engine: EngineProcess, name: str, template: str) -> str:
    return engine.docker("inspect", "-f", template, name).stdout.strip()


def endpoint(engine: EngineProcess, name: str, network: str) -> dict[str, object]:
    found = json.loads(inspected(engine, name, "{{json .NetworkSettings.Networks}}"))
    return dict(found[network])


def inside(engine: EngineProcess, name: str, *words: str) -> str:
    return engine.docker("exec", name, *words, check=False).stdout


def published(engine: EngineProcess, name: str, port: str = "80") -> int:
    return int(engine.docker("port", name, port).stdout.split("\n")[0].rpartition(":")[2])


class TestSeveralNetworks:
    def test_published_ports_follow_the_default_route(
        self, engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
    ) -> None:
        one, two = networks("one"), networks("two")
        engine.docker(
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            one,
            "-p",
            "0:80",
            "busybox",
            "sh",
            "-c",
            SERVE,
        )
        port = published(engine, "web")

        def answers() -> bool:
            return "web" in neighbour.python(FETCH, neighbour.host4, str(port))

        assert eventually(answers)
        engine.docker("network", "connect", "--gw-priority", "10", two, "web")
        assert published(engine, "web") == port
        assert f"default via {endpoint(engine, 'web', two)['Gateway']}" in inside(
            engine, "web", "ip", "route"
        )
        assert eventually(answers)
        engine.docker("network", "disconnect", two, "web")
        assert f"default via {endpoint(engine, 'web', one)['Gateway']}" in inside(
            engine, "web", "ip", "route"
        )
        assert eventually(answers)
        engine.docker("network", "disconnect", one, "web")
        assert engine.docker("port", "web").stdout == ""
        assert "web" not in neighbour.python(FETCH, neighbour.host4, str(port))
        engine.docker("network", "connect", two, "web")
        assert eventually(
            lambda: "web" in neighbour.python(FETCH, neighbour.host4, str(published(engine, "web")))
        )

    def test_hosts_and_names_follow(
        self, engine: EngineProcess, networks: Callable[..., str]
    ) -> None:
        one, two = networks("one"), networks("two")
        engine.docker("run", "-d", "--name", "box", "--network", one, "busybox", "sleep", "1000")
        engine.docker("run", "-d", "--name", "peer", "--network", two, "busybox", "sleep", "1000")
        assert "NXDOMAIN" in inside(engine, "box", "nslookup", "peer", "127.0.0.11")
        engine.docker("network", "connect", two, "box")
        assert str(endpoint(engine, "peer", two)["IPAddress"]) in inside(
            engine, "box", "nslookup", "peer", "127.0.0.11"
        )
        assert str(endpoint(engine, "box", two)["IPAddress"]) in inside(
            engine, "box", "cat", "/etc/hosts"
        )
        engine.docker("network", "disconnect", two, "box")
        assert "NXDOMAIN" in inside(engine, "box", "nslookup", "peer", "127.0.0.11")
        assert inside(engine, "box", "cat", "/etc/hosts").count("172.") <= 1

    def test_the_order_of_default_routes(
        self, engine: EngineProcess, networks: Callable[..., str]
    ) -> None:
        """The highest priority, else the first name in order, as Docker has it since 28."""
        later, sooner = networks("bbb"), networks("aaa")
        engine.docker(
            "run", "-d", "--name", "box", "--network", f"name={later}", "--network", f"name={sooner}", "busybox", "sleep", "1000"
        )  # fmt: skip
        assert f"default via {endpoint(engine, 'box', sooner)['Gateway']}" in inside(
            engine, "box", "ip", "route"
        )
        engine.docker("rm", "-f", "box")
        engine.docker(
            "run", "-d", "--name", "box", "--network", f"name={later},gw-priority=1", "--network", f"name={sooner}",
            "busybox", "sleep", "1000",
        )  # fmt: skip
        assert f"default via {endpoint(engine, 'box', later)['Gateway']}" in inside(
            engine, "box", "ip", "route"
        )


class TestNeighbours:
    def test_a_loopback_port_is_not_reachable_from_another_host(
        self, engine: EngineProcess, neighbour: Neighbour
    ) -> None:
        """Not at the host's address, not at 127.0.0.1 routed to this host, not at the container's own address."""
        engine.docker(
            "run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "busybox", "sh", "-c", SERVE
        )
        port = str(published(engine, "web"))
        container = str(endpoint(engine, "web", "bridge")["IPAddress"])
        neighbour.ip(
            "route", "add", "127.0.0.0/8", "via", neighbour.host4, "dev", "eth0", "table", "77"
        )
        neighbour.ip("rule", "add", "pref", "1", "to", "127.0.0.0/8", "lookup", "77")
        neighbour.ip("link", "set", "lo", "down")
        try:
            for target, number in ((neighbour.host4, port), ("127.0.0.1", port), (container, "80")):
                assert "web" not in neighbour.python(FORCED, target, number, neighbour.ipv4)
        finally:
            neighbour.ip("link", "set", "lo", "up")
            neighbour.ip("rule", "del", "pref", "1")
        assert eventually(lambda: "web" in run("python3", "-c", FETCH, "127.0.0.1", port))

    def test_published_over_both_families_and_udp_with_the_source_kept(
        self, engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
    ) -> None:
        six = networks("six", "--ipv6")
        engine.docker(
            "run", "-d", "--name", "web", "--network", six, "-p", "0:80", "busybox", "sh", "-c",
            "while :; do nc -l -p 80 -e sh -c 'netstat -tn | grep :80'; done",
        )  # fmt: skip
        port = str(published(engine, "web"))
        for target, source in (
            (neighbour.host4, neighbour.ipv4),
            (neighbour.host6, neighbour.ipv6),
        ):
            assert eventually(lambda t=target, s=source: s in neighbour.python(FETCH, t, port)), (
                target
            )
        for target in ("127.0.0.1", "::1"):
            assert eventually(lambda t=target: ":80" in run("python3", "-c", FETCH, t, port)), (
                target
            )


class TestPools:
    def test_every_pool_in_turn(self, fresh_engine: EngineProcess, busybox_tar: Path) -> None:
        fresh_engine.flags = (
            "--default-address-pool", "base=10.210.0.0/23,size=24", "--default-address-pool", "base=10.220.0.0/24,size=25",
            "--bip", "10.230.0.1/24",
        )  # fmt: skip
        engine = fresh_engine.start()
        subnets = []
        for number in range(4):
            engine.docker("network", "create", f"n{number}")
            found = json.loads(engine.docker("network", "inspect", f"n{number}").stdout)[0]
            subnets.append(found["IPAM"]["Config"][0]["Subnet"])
        assert subnets == ["10.210.0.0/24", "10.210.1.0/24", "10.220.0.0/25", "10.220.0.128/25"]
        done = engine.docker("network", "create", "more", check=False)
        assert done.returncode == 1
        assert "could not find an available, non-overlapping IPv4 address pool" in done.stderr
        engine.docker("network", "rm", "n1")
        engine.docker("network", "create", "again")
        found = json.loads(engine.docker("network", "inspect", "again").stdout)[0]
        assert found["IPAM"]["Config"][0]["Subnet"] == "10.210.1.0/24"
        engine.docker("network", "rm", "n0", "n2", "n3", "again")

    def test_a_route_of_the_host_is_passed_over(
        self, fresh_engine: EngineProcess, neighbour: Neighbour
    ) -> None:
        run("ip", "route", "add", "10.211.0.0/24", "via", neighbour.ipv4)
        try:
            fresh_engine.flags = (
                "--default-address-pool",
                "base=10.211.0.0/23,size=24",
                "--bip",
                "10.230.1.1/24",
            )
            engine = fresh_engine.start()
            engine.docker("network", "create", "n")
            found = json.loads(engine.docker("network", "inspect", "n").stdout)[0]
            assert found["IPAM"]["Config"][0]["Subnet"] == "10.211.1.0/24"
            engine.docker("network", "rm", "n")
        finally:
            run("ip", "route", "del", "10.211.0.0/24")


class TestDrivers:
    def test_macvlan_on_a_link_of_the_host(
        self, engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
    ) -> None:
        """The container is a host beside the neighbour, with an address of that network."""
        subnet = neighbour.ipv4.rpartition(".")[0]
        networks(
            "mac", "-d", "macvlan", "--subnet", f"{subnet}.0/24", "--gateway", neighbour.ipv4, "-o", f"parent={neighbour.link}"
        )  # fmt: skip
        engine.docker(
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "mac",
            "--ip",
            f"{subnet}.40",
            "busybox",
            "sh",
            "-c",
            SERVE,
        )
        engine.docker(
            "run",
            "-d",
            "--name",
            "other",
            "--network",
            "mac",
            "--ip",
            f"{subnet}.41",
            "busybox",
            "sleep",
            "1000",
        )
        assert eventually(lambda: "web" in neighbour.python(FETCH, f"{subnet}.40", "80"))
        assert eventually(
            lambda: "web" in inside(engine, "other", "sh", "-c", "nc -w 1 web 80 </dev/null")
        )

    def test_macvlan_without_a_parent_is_a_link_between_containers(
        self, engine: EngineProcess, networks: Callable[..., str]
    ) -> None:
        networks("mac", "-d", "macvlan")
        engine.docker(
            "run", "-d", "--name", "web", "--network", "mac", "busybox", "sh", "-c", SERVE
        )
        engine.docker(
            "run", "-d", "--name", "other", "--network", "mac", "busybox", "sleep", "1000"
        )
        assert eventually(
            lambda: "web" in inside(engine, "other", "sh", "-c", "nc -w 1 web 80 </dev/null")
        )

    def test_icc_off(
        self, engine: EngineProcess, networks: Callable[..., str], neighbour: Neighbour
    ) -> None:
        networks("shy", "-o", "com.docker.network.bridge.enable_icc=false")
        engine.docker(
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "shy",
            "-p",
            "0:80",
            "busybox",
            "sh",
            "-c",
            SERVE,
        )
        engine.docker(
            "run", "-d", "--name", "other", "--network", "shy", "busybox", "sleep", "1000"
        )
        target = str(endpoint(engine, "web", "shy")["IPAddress"])
        assert (
            inside(
                engine,
                "other",
                "sh",
                "-c",
                f"nc -w 1 {target} 80 </dev/null; ping -c 1 -W 1 {target} | grep ttl",
            )
            == ""
        )
        port = str(published(engine, "web"))
        assert eventually(lambda: "web" in neighbour.python(FETCH, neighbour.host4, port))

    def test_endpoint_settings(self, engine: EngineProcess, networks: Callable[..., str]) -> None:
        networks(
            "set",
            "--ipv6",
            "--subnet",
            "10.233.0.0/24",
            "--subnet",
            "fd00:233::/64",
            "-o",
            "com.docker.network.driver.mtu=1400",
        )
        engine.docker(
            "run", "-d", "--name", "box", "--network",
            "name=set,ip=10.233.0.9,ip6=fd00:233::9,mac-address=02:42:00:00:00:09,link-local-ip=169.254.9.9,"
            "driver-opt=com.docker.network.endpoint.ifname=lan0",
            "busybox", "sleep", "1000",
        )  # fmt: skip
        shown = inside(engine, "box", "ip", "addr", "show", "lan0")
        for each in (
            "10.233.0.9/24",
            "fd00:233::9/64",
            "02:42:00:00:00:09",
            "169.254.9.9/",
            "mtu 1400",
        ):
            assert each in shown, each
        engine.docker("rm", "-f", "box")
        engine.sampan(
            "run", "-d", "--name", "box", "--network",
            "name=set,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1", "busybox", "sleep", "1000",
        )  # fmt: skip
        assert inside(engine, "box", "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians") == "1\n"


def test_a_bridge_that_somebody_deleted_comes_back_with_who_hung_on_it(
    engine: EngineProcess, networks: Callable[..., str]
) -> None:
    networks("lost", "-o", "com.docker.network.bridge.name=lostbr0")
    engine.docker("run", "-d", "--name", "web", "--network", "lost", "busybox", "sh", "-c", SERVE)
    run("ip", "link", "del", "lostbr0")
    engine.docker("run", "-d", "--name", "other", "--network", "lost", "busybox", "sleep", "1000")
    assert eventually(
        lambda: "web" in inside(engine, "other", "sh", "-c", "nc -w 1 web 80 </dev/null")
    )


class TestLivePorts:
    def test_added_ports_outlive_the_daemon(
        self, fresh_engine: EngineProcess, busybox_tar: Path, neighbour: Neighbour
    ) -> None:
        engine = fresh_engine.start()
        engine.docker("import", str(busybox_tar), "busybox")
        engine.docker("run", "-d", "--name", "web", "busybox", "sh", "-c", SERVE)
        out = engine.sampan("network", "port", "add", "web", "0:80").stdout
        port = out.split("\n")[0].rpartition(":")[2]
        assert engine.docker("port", "web").stdout == out
        for restart in (False, True):
            if restart:
                engine.kill()
                assert eventually(lambda: "web" in neighbour.python(FETCH, neighbour.host4, port))
                engine.start()
            assert eventually(lambda: "web" in neighbour.python(FETCH, neighbour.host4, port))
            assert eventually(lambda: "web" in run("python3", "-c", FETCH, "127.0.0.1", port))
            assert engine.docker("port", "web").stdout == out
        engine.sampan("network", "port", "rm", "web", "80")
        assert engine.docker("port", "web").stdout == ""
        assert "web" not in neighbour.python(FETCH, neighbour.host4, port)
        done = engine.sampan("network", "port", "rm", "web", "80", check=False)
        assert done.returncode != 0
