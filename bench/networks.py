"""Networks beside Docker: what an attachment and a published port add to `run`, throughput through a published port,
lookups of names, and two hundred containers on one network.

    bench/run networks

Programs that measure (iperf3, a small resolver) run in the namespaces of containers and of a neighbour host, entered from
here, so that both engines are measured with the same programs.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from arena import Arena

from tests.support.hosts import Neighbour

Environment = dict[str, str]
MANY = 200
SECONDS = 3

LOOKUPS = """
import socket, statistics, sys, threading, time
name = sys.argv[1].encode()
query = b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0' + bytes([len(name)]) + name + b'\\0\\0\\1\\0\\1'
def ask(count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(('127.0.0.11', 53))
        sock.settimeout(5)
        for _ in range(count):
            start = time.perf_counter()
            sock.send(query)
            sock.recv(512)
            yield time.perf_counter() - start
one = list(ask(2000))
threads = [threading.Thread(target=lambda: list(ask(500))) for _ in range(8)]
start = time.perf_counter()
for each in threads: each.start()
for each in threads: each.join()
print(statistics.median(one) * 1e6, 4000 / (time.perf_counter() - start))
"""


def bench_networks(arena: Arena, rounds: int) -> None:
    engines = {"sampan": arena.ours}
    if arena.docker_host:
        engines["docker"] = arena.theirs
    _bench_attach(engines, rounds)
    _bench_throughput(arena, engines, rounds)
    _bench_lookups(engines, rounds)
    _bench_many(engines)


def _docker(environment: Environment, *words: str) -> str:
    done = subprocess.run(
        ["docker", *words], env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(words)}: {done.stderr[-300:]}")
    return done.stdout.strip()


def _pid(environment: Environment, name: str) -> str:
    return _docker(environment, "inspect", "-f", "{{.State.Pid}}", name)


def _bench_attach(engines: dict[str, Environment], rounds: int) -> None:
    """The same `docker run`, without a network, on the default one, and with a port: the differences."""
    variants = {
        "none": ("--network", "none"), "bridge": (), "port": ("-p", "0:80"),
    }  # fmt: skip
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds * 3 + 1):
        for engine, environment in engines.items():
            for variant, flags in variants.items():
                start = time.perf_counter()
                _docker(environment, "run", "--rm", *flags, "busybox", "true")
                if number:
                    elapsed = (time.perf_counter() - start) * 1000
                    taken.setdefault((engine, variant), []).append(elapsed)
    print("\nattachment: what it adds to `docker run --rm`, medians")
    for engine in engines:
        base, bridge, port = (statistics.median(taken[engine, v]) for v in variants)
        print(
            f"  {engine:<10} without {base:7.1f} ms   bridge +{bridge - base:6.1f} ms   a port +{port - bridge:6.1f} ms"
        )


def _bench_throughput(arena: Arena, engines: dict[str, Environment], rounds: int) -> None:
    """From a neighbour host through a published port, and from the host's loopback."""
    if shutil.which("iperf3") is None:
        arena.missing.append("iperf3")
        return
    neighbour = Neighbour()
    servers: list[subprocess.Popen[bytes]] = []
    ports = {}
    try:
        for engine, environment in engines.items():
            _docker(
                environment,
                "run",
                "-d",
                "--name",
                "bench-net",
                "-p",
                "0:5201",
                "busybox",
                "sleep",
                "1000",
            )
            ports[engine] = (
                _docker(environment, "port", "bench-net", "5201").split("\n")[0].rpartition(":")[2]
            )
            command = ["nsenter", "-t", _pid(environment, "bench-net"), "-n", "iperf3", "-s"]
            servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        time.sleep(0.5)
        roads: dict[str, Callable[[list[str]], str]] = {
            "from another host": lambda words: neighbour.command(*words).stdout,
            "from 127.0.0.1": lambda words: subprocess.run(
                words, capture_output=True, text=True, check=False
            ).stdout,
        }  # fmt: skip
        for road, run in roads.items():
            address = neighbour.host4 if "host" in road else "127.0.0.1"
            rates: dict[str, list[float]] = {engine: [] for engine in engines}
            for _ in range(max(rounds // 3, 2)):
                for engine in engines:
                    words = ["iperf3", "-J", "-t", str(SECONDS), "-c", address, "-p", ports[engine]]
                    rates[engine].append(_gigabits(run(words)))
            print(f"\nthroughput of one connection {road} through a published port, medians")
            base = statistics.median(rates["sampan"])
            for engine, values in rates.items():
                median = statistics.median(values)
                print(f"  {engine:<10} {median:7.2f} Gbit/s   {median / base:5.2f}x")
    finally:
        for server in servers:
            server.terminate()
            server.wait()
        for environment in engines.values():
            _docker(environment, "rm", "-f", "bench-net")
        neighbour.close()


def _gigabits(output: str) -> float:
    return float(json.loads(output)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _bench_lookups(engines: dict[str, Environment], rounds: int) -> None:
    """A container's name, asked in the namespace of another one on the same network."""
    single: dict[str, list[float]] = {}
    many: dict[str, list[float]] = {}
    for environment in engines.values():
        _docker(environment, "network", "create", "bench-names")
        for name in ("bench-asker", "bench-asked"):
            _docker(
                environment,
                "run",
                "-d",
                "--name",
                name,
                "--network",
                "bench-names",
                "busybox",
                "sleep",
                "1000",
            )
    for _ in range(max(rounds // 3, 2)):
        for engine, environment in engines.items():
            command = [
                "nsenter",
                "-t",
                _pid(environment, "bench-asker"),
                "-n",
                sys.executable,
                "-c",
                LOOKUPS,
                "bench-asked",
            ]
            one, rate = subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.split()
            single.setdefault(engine, []).append(float(one))
            many.setdefault(engine, []).append(float(rate))
    print("\nlookup of a container's name, medians")
    for engine, environment in engines.items():
        print(
            f"  {engine:<10} one at a time {statistics.median(single[engine]):7.0f} us   "
            f"eight askers {statistics.median(many[engine]):8.0f} a second"
        )
        _docker(environment, "rm", "-f", "bench-asker", "bench-asked")
        _docker(environment, "network", "rm", "bench-names")


def _bench_many(engines: dict[str, Environment]) -> None:
    """Two hundred containers on one network, started one after the other; a lookup of the last from the first."""
    print(f"\n{MANY} containers on one network")
    for engine, environment in engines.items():
        _docker(environment, "network", "create", "bench-many")
        start = time.perf_counter()
        ids = [
            _docker(
                environment,
                "run",
                "-d",
                "--name",
                f"bench-n{n}",
                "--network",
                "bench-many",
                "busybox",
                "sleep",
                "1000",
            )
            for n in range(MANY)
        ]
        started = time.perf_counter() - start
        command = [
            "nsenter", "-t", _pid(environment, "bench-n0"), "-n", sys.executable, "-c", LOOKUPS, f"bench-n{MANY - 1}",
        ]  # fmt: skip
        one = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        start = time.perf_counter()
        _docker(environment, "rm", "-f", *ids)
        removed = time.perf_counter() - start
        _docker(environment, "network", "rm", "bench-many")
        print(
            f"  {engine:<10} started in {started:6.1f} s   a lookup {float(one):5.0f} us   removed in {removed:6.1f} s"
        )
