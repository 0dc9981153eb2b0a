"""The engine and cgroups, with the stock docker CLI: the files of Docker's tutorials, on this kernel's hierarchies.

Runs on the v1 or hybrid host and, inside tests/vm, on a unified one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.cgroups.host import CgroupHost, detect
from tests.support.engine import EngineProcess

pytestmark = pytest.mark.root

MB = 1 << 20
IMAGE = "busybox:latest"


@pytest.fixture(scope="module")
def host() -> CgroupHost:
    return detect()


@pytest.fixture
def container(engine: EngineProcess) -> Iterator[str]:
    made = engine.docker(
        "run", "-d", "-m", "64m", "--cpus", "0.5", "--pids-limit", "50", IMAGE, "sleep", "1000"
    )
    yield made.stdout.strip()
    engine.docker("rm", "-f", made.stdout.strip())


def limit(host: CgroupHost, container: str, v1: str, v2: str) -> str:
    point = host.mounts.get(v1.partition(".")[0])
    root, name = (point, v1) if point else (host.unified, v2)
    found = list(Path(root).rglob(f"{container}/{name}"))
    assert len(found) == 1, found
    return found[0].read_text().strip()


def test_limits_are_where_tutorials_look_for_them(container: str, host: CgroupHost) -> None:
    assert len(container) == 64
    assert limit(host, container, "memory.limit_in_bytes", "memory.max") == str(64 * MB)
    assert int(limit(host, container, "memory.usage_in_bytes", "memory.current")) > 0
    assert limit(host, container, "pids.max", "pids.max") == "50"
    assert limit(host, container, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"


def test_statistics_show_the_limit(engine: EngineProcess, container: str) -> None:
    shown = engine.docker(
        "stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", container
    ).stdout
    assert "64MiB" in shown
    assert shown.split()[-1] == "1"


def test_update_reaches_the_kernel(engine: EngineProcess, container: str, host: CgroupHost) -> None:
    engine.docker("update", "-m", "32m", "--memory-swap", "32m", "--pids-limit", "20", container)
    assert limit(host, container, "memory.limit_in_bytes", "memory.max") == str(32 * MB)
    assert limit(host, container, "pids.max", "pids.max") == "20"


def test_pause_stops_and_unpause_goes_on(engine: EngineProcess, container: str) -> None:
    engine.docker("pause", container)
    assert engine.docker("inspect", "-f", "{{.State.Status}}", container).stdout.strip() == "paused"
    engine.docker("unpause", container)
    assert engine.docker("exec", container, "echo", "awake").stdout.strip() == "awake"


def test_out_of_memory_is_told_and_leaves_no_cgroup(
    engine: EngineProcess, host: CgroupHost
) -> None:
    hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
    made = engine.docker("create", "-m", "16m", "--memory-swap", "16m", IMAGE, *hog).stdout.strip()
    engine.docker("start", made)
    assert engine.docker("wait", made).stdout.strip() == "137"
    state = json.loads(engine.docker("inspect", "-f", "{{json .State}}", made).stdout)
    assert state["OOMKilled"] is True
    engine.docker("rm", made)
    points = [*host.hierarchies(), *([host.unified] if host.unified else [])]
    deadline = time.monotonic() + 10  # taking down goes on beside the answer
    while any(True for point in points for _ in Path(point).rglob(made)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_info_tells_the_version(engine: EngineProcess, host: CgroupHost) -> None:
    shown = engine.docker("info", "--format", "{{.CgroupVersion}} {{.CgroupDriver}}").stdout.split()
    assert shown == ["2" if host.mode == "v2" else "1", "cgroupfs"]


def test_a_private_cgroup_namespace_hides_the_path(engine: EngineProcess) -> None:
    shown = engine.docker(
        "run", "--rm", "--cgroupns", "private", IMAGE, "cat", "/proc/self/cgroup"
    ).stdout
    assert {line.rpartition(":")[2] for line in shown.splitlines()} == {"/"}
    assert os.path.exists("/proc/self/ns/cgroup")
