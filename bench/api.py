"""Reads of the Engine API, one after the other on a connection that stays open, beside Docker: what a client waits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from tests.support.client import Client, UnixConnection

CONTAINERS = 20
WORD = "api-bench"


def targets(name: str) -> list[str]:
    """The reads that clients make most; `name` is a running container."""
    return [
        "/_ping", "/version", "/info", "/containers/json", "/containers/json?all=1&size=1", f"/containers/{name}/json",
        f"/containers/{name}/top", f"/containers/{name}/logs?stdout=1&tail=10",
        f"/containers/{name}/stats?stream=0&one-shot=1", f"/containers/{name}/changes",
        f"/containers/{name}/archive?path=/etc/passwd", "/images/json", "/images/busybox/json",
        "/images/busybox/history", "/networks", "/networks/bridge", "/volumes", "/system/df",
        "/events?since=0&until=1", "/containers/none/json",
    ]  # fmt: skip


def fill(client: Client) -> str:
    """Containers to be listed; the name of one that runs and has said something."""
    wish: dict[str, Any] = {"Image": "busybox", "Cmd": ["sh", "-c", "seq 100; exec sleep 1000"]}
    wish["Labels"] = {WORD: "1"}
    for number in range(CONTAINERS):
        client.do("POST", "/containers/create", wish, name=f"{WORD}-{number}")
        client.do("POST", f"/containers/{WORD}-{number}/start")
    return f"{WORD}-0"


def empty(client: Client) -> None:
    for found in client.do("GET", "/containers/json", all=1, filters={"label": [WORD]}):
        client.do("DELETE", f"/containers/{found['Id']}", force=1)


def reader(path: str) -> Callable[[str], float]:
    """Milliseconds of one GET on the socket `path`."""
    connection = UnixConnection(path, 60)

    def read(target: str) -> float:
        begun = time.perf_counter()
        connection.request("GET", target)
        connection.getresponse().read()
        return (time.perf_counter() - begun) * 1000

    return read


def compare(paths: dict[str, str], rounds: int) -> None:
    """A table, every engine once a round; the last column is how many times our minimum the peer takes."""
    clients = [Client(path) for path in paths.values()]
    try:
        for client in clients:
            name = fill(client)
        readers = [reader(path) for path in paths.values()]
        print(
            f"\nAPI reads with {CONTAINERS} containers, ms: minimum and median of {', '.join(paths)}"
        )
        for target in targets(name):
            rows: list[list[float]] = [[] for _ in readers]
            for number in range(rounds * 10 + 3):
                for row, read in zip(rows, readers, strict=True):
                    elapsed = read(target)
                    if number >= 3:
                        row.append(elapsed)
            best = [min(row) for row in rows]
            told = "".join(f"{min(row):9.2f}{statistics.median(row):8.2f}" for row in rows)
            factors = "".join(f"{low / best[0]:8.1f}x" for low in best[1:])
            print(f"  {target.replace(name, 'NAME'):<48}{told}{factors}")
    finally:
        for client in clients:
            empty(client)
