"""The daemon may die at any moment: containers, their output, their exit codes and their wishes survive."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.root.test_engine_lifecycle import inspect, until
from tests.support.census import Census
from tests.support.engine import EngineProcess


@pytest.fixture
def started(fresh_engine: EngineProcess, busybox_tar: Path) -> EngineProcess:
    fresh_engine.start()
    fresh_engine.docker("import", "-c", 'CMD ["sh"]', str(busybox_tar), "busybox:latest")
    return fresh_engine


def crash(engine: EngineProcess) -> None:
    engine.kill()
    engine.start()


def test_running_containers_are_the_same_after_a_crash(started: EngineProcess) -> None:
    for number in range(5):
        started.docker("run", "-d", "--name", f"c{number}", "busybox", "sleep", "1000")
    started.docker("pause", "c4")
    facts = "{{.State.Pid}} {{.State.StartedAt}} {{.State.Status}}"
    before = [inspect(started, f"c{number}", facts) for number in range(5)]
    crash(started)
    assert [inspect(started, f"c{number}", facts) for number in range(5)] == before
    assert started.docker("exec", "c0", "echo", "in").stdout == "in\n"
    started.docker("unpause", "c4")
    started.docker("stop", "-t", "0", "c0")


def test_nothing_logged_while_the_engine_is_dead_is_lost(started: EngineProcess) -> None:
    script = "i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done; exit 42"
    started.docker("run", "-d", "--name", "talker", "busybox", "sh", "-c", f"sleep 1; {script}")
    started.kill()
    exit_file = next((started.run / "containers").iterdir()) / "exit.json"
    until(exit_file.exists)
    started.start()
    until(lambda: inspect(started, "talker", "{{.State.Status}}") == "exited")
    assert inspect(started, "talker", "{{.State.ExitCode}}") == "42"
    lines = started.docker("logs", "talker").stdout.splitlines()
    assert lines == [f"line {number}" for number in range(4000)]


def test_exits_while_the_engine_is_dead_are_known_and_policies_honoured(
    started: EngineProcess,
) -> None:
    wait = "while [ ! -e /go ]; do sleep 0.05; done"
    for name, policy, code in (
        ("plain", "no", 9), ("failed", "on-failure", 3), ("fine", "on-failure", 0), ("ever", "always", 0),
    ):  # fmt: skip
        started.docker(
            "run", "-d", "--name", name, "--restart", policy, "busybox", "sh", "-c", f"{wait}; sleep 1; rm /go; exit {code}"
        )  # fmt: skip
    for name in ("plain", "failed", "fine", "ever"):
        started.docker("exec", name, "touch", "/go")
    started.kill()
    runs = started.run / "containers"
    until(lambda: len(list(runs.glob("*/exit.json"))) == 4)
    started.start()
    until(lambda: inspect(started, "ever", "{{.State.Status}}") == "running")
    until(lambda: inspect(started, "failed", "{{.State.Status}}") == "running")
    assert inspect(started, "plain", "{{.State.Status}} {{.State.ExitCode}}") == "exited 9"
    assert inspect(started, "fine", "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"


def test_an_auto_removed_container_that_ended_meanwhile_is_gone(started: EngineProcess) -> None:
    started.docker("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "1")
    started.kill()
    until(lambda: bool(list((started.run / "containers").glob("*/exit.json"))))
    started.start()
    until(lambda: not started.docker("ps", "-aq").stdout.strip())


def test_a_person_s_stop_outlives_the_engine(started: EngineProcess) -> None:
    started.docker(
        "run", "-d", "--name", "us", "--restart", "unless-stopped", "busybox", "sleep", "1000"
    )
    started.docker("stop", "-t", "0", "us")
    crash(started)
    assert inspect(started, "us", "{{.State.Status}}") == "exited"


def test_a_second_engine_on_the_same_root_is_refused(
    started: EngineProcess, tmp_path: Path
) -> None:
    other = EngineProcess(tmp_path / "other")
    other.run.mkdir(parents=True)
    other.root = started.root
    with pytest.raises(AssertionError, match="another engine already uses"):
        other.start()


def test_kill_9_at_random_moments_under_churn_loses_nothing(started: EngineProcess) -> None:
    random.seed(7)
    started.docker("run", "-d", "--name", "steady", "busybox", "sleep", "1000")
    before = inspect(started, "steady", "{{.State.Pid}}")
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for command in (["run", "--rm"], ["run", "-d"]):
                subprocess.run(
                    ["docker", *command, "busybox", "sleep", "0.1"],
                    env=started.environment, capture_output=True, check=False, timeout=60,
                )  # fmt: skip

    workers = [threading.Thread(target=churn) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(6):
            over.wait(random.random())
            crash(started)
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert inspect(started, "steady", "{{.State.Pid}}") == before
    started.docker("rm", "-f", *started.docker("ps", "-aq").stdout.split())
    assert list((started.root / "containers").iterdir()) == []
    assert list((started.run / "containers").iterdir()) == []


@pytest.mark.parametrize("damage", ["store", "record"])
def test_a_damaged_file_never_keeps_the_engine_from_starting(
    started: EngineProcess, damage: str
) -> None:
    started.docker("create", "--name", "kept", "busybox", "true")
    started.kill()
    store = started.root / "store.db"
    for tail in ("-wal", "-shm"):
        # The write-ahead log holds what is newest; folded in, so that damage is done to the whole.
        assert store.with_name(store.name + tail).exists()
    if damage == "store":
        store.write_bytes(b"garbage" * 1000)
        for tail in ("-wal", "-shm"):
            store.with_name(store.name + tail).unlink()
    else:
        next((started.root / "containers").iterdir()).joinpath("record.json").write_bytes(b"{")
    started.start()
    assert started.docker("ps", "-a", "--format", "{{.Names}}").stdout.split() == ["kept"]
    taken = started.docker("create", "--name", "kept", "busybox", "true", check=False)
    assert "already in use" in taken.stderr


def shim_pid(engine: EngineProcess, name: str) -> int:
    identity = inspect(engine, name, "{{.Id}}")
    return int((engine.run / "containers" / identity / "shim.pid").read_text().split()[0])


def test_a_container_ends_with_its_shim_and_its_policy_holds(started: EngineProcess) -> None:
    started.docker("run", "-d", "--name", "plain", "busybox", "sleep", "1000")
    started.docker("run", "-d", "--name", "back", "--restart", "always", "busybox", "sleep", "1000")
    identity = inspect(started, "plain", "{{.Id}}")
    for name in ("plain", "back"):
        os.kill(shim_pid(started, name), signal.SIGKILL)
    until(
        lambda: inspect(started, "plain", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    )
    until(lambda: inspect(started, "back", "{{.State.Status}} {{.RestartCount}}") == "running 1")
    until(lambda: not list(Path("/sys/fs/cgroup").glob(f"**/{identity}")))
    started.docker("start", "plain")
    assert started.docker("exec", "plain", "echo", "again").stdout == "again\n"


def test_containers_outlive_the_launcher_and_new_ones_start(started: EngineProcess) -> None:
    started.docker("run", "-d", "--name", "old", "busybox", "sleep", "1000")
    before = inspect(started, "old", "{{.State.Pid}}")
    shims = {shim_pid(started, "old")}
    mark = str(started.run).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in shims | {os.getpid()}:
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"sampan.shim.launcher" in command and mark in command:
                os.kill(int(entry.name), signal.SIGKILL)
    assert started.docker("run", "--rm", "busybox", "echo", "new").stdout == "new\n"
    assert inspect(started, "old", "{{.State.Pid}}") == before
    assert started.docker("exec", "old", "echo", "in").stdout == "in\n"


def test_a_build_s_command_ends_when_its_engine_was_killed(
    started: EngineProcess, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo $((40 + 2)); exec sleep 1000\n")
    snapshots = started.root / "snapshots"
    before = set(snapshots.glob("*/active/*"))
    with subprocess.Popen(
        ["docker", "build", str(tmp_path)],
        env=started.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as build:  # fmt: skip
        assert build.stdout is not None
        until(lambda: b"42" in (build.stdout.readline() if build.stdout else b""))
        step = next((started.run / "containers").iterdir()).name
        started.kill()
    started.start()
    until(lambda: not list((started.run / "containers").iterdir()))
    until(lambda: set(snapshots.glob("*/active/*")) == before)
    until(lambda: not list(Path("/sys/fs/cgroup").glob(f"**/{step}")))


def test_a_build_that_is_left_at_any_moment_leaves_nothing(
    started: EngineProcess, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN sleep 1000\n")
    census = Census(
        str(started.run / "containers"), cgroup_prefix=started.cgroup_parent, bridge=started.bridge
    )
    snapshots = started.root / "snapshots"
    before = set(snapshots.glob("*/active/*"))
    for tenth in range(12):
        build = subprocess.Popen(
            ["docker", "build", "--no-cache", str(tmp_path)],
            env=started.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            build.wait(timeout=0.05 + 0.02 * tenth)  # somewhere between its request and its command
        build.kill()
        build.wait()
    until(lambda: not list((started.run / "containers").iterdir()))
    until(lambda: set(snapshots.glob("*/active/*")) == before)
    assert not census.left_behind()
