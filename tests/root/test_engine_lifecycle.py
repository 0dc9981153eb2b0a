"""Containers through the whole engine, driven by the stock docker CLI: life, words, events, what is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import docker
import pytest

from tests.support.engine import EngineProcess

ZERO_TIME = "0001-01-01T00:00:00Z"


def client_of(engine: EngineProcess) -> closing[docker.DockerClient]:
    return closing(docker.DockerClient(base_url=engine.host, timeout=120))


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait for something that the engine does by itself; generous, because the machine may be loaded."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def inspect(engine: EngineProcess, ref: str, template: str) -> str:
    return engine.docker("inspect", "-f", template, ref).stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
        (["nosuchcommand"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_run_has_docker_s_exit_codes(
    engine: EngineProcess, arguments: list[str], code: int
) -> None:
    assert engine.docker("run", "--rm", "busybox", *arguments, check=False).returncode == code


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-u", "nosuch"], "unable to find user nosuch"),
        (["-m", "4m"], "Minimum memory limit allowed is 6MB"),
        (["--mount", "type=bind,src=/no/such/place,dst=/x"], "bind source path does not exist"),
        (["-w", "relative"], "absolute path"),
        (["--device", "/no/such/device"], "error gathering device information"),
        (["--network", "nosuchnet"], "network nosuchnet not found"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_container(
    engine: EngineProcess, flags: list[str], words: str
) -> None:
    done = engine.docker("run", "--rm", *flags, "busybox", "true", check=False)
    assert done.returncode in (125, 127)  # docker's CLI takes 127 from the words of the message
    assert words in done.stderr
    ps = engine.docker("ps", "-aq", "--filter", "status=running")
    assert not ps.stdout.strip()


def test_a_container_s_state_is_told_at_every_station(engine: EngineProcess) -> None:
    engine.docker("create", "--name", "st", "busybox", "sleep", "1000")
    assert inspect(engine, "st", "{{.State.Status}} {{.State.StartedAt}}") == f"created {ZERO_TIME}"
    engine.docker("start", "st")
    assert inspect(engine, "st", "{{.State.Status}} {{.State.Running}}") == "running true"
    engine.docker("pause", "st")
    assert inspect(engine, "st", "{{.State.Status}}") == "paused"
    assert engine.docker("rm", "st", check=False).returncode == 1
    engine.docker("unpause", "st")
    engine.docker("kill", "-s", "KILL", "st")
    assert (
        inspect(engine, "st", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}")
        == "exited 137 0"
    )
    engine.docker("start", "st")
    engine.docker("stop", "-t", "0", "st")
    engine.docker("rm", "st")
    assert engine.docker("inspect", "st", check=False).returncode == 1


def test_events_come_in_the_order_that_clients_expect(engine: EngineProcess) -> None:
    with client_of(engine) as client:
        since = time.time()
        engine.docker("run", "--rm", "--name", "ev", "busybox", "true")
        events = client.events(since=since, until=time.time() + 1, decode=True)
        told = [(e["Type"], e["Action"]) for e in events]
    order = [
        ("container", "create"), ("container", "attach"), ("network", "connect"), ("container", "start"),
        ("network", "disconnect"), ("container", "die"), ("container", "destroy"),
    ]  # fmt: skip
    assert [event for event in told if event in order] == order


def test_a_start_after_an_exit_sees_what_the_run_before_wrote(engine: EngineProcess) -> None:
    engine.docker(
        "run", "--name", "again", "busybox", "sh", "-c", "cat /f; echo more >> /f", check=False
    )
    for _ in range(3):
        engine.docker("start", "-a", "again")
    assert engine.docker("start", "-a", "again").stdout == "more\n" * 4


def test_the_exit_code_is_known_when_the_stream_ends(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "codes", "busybox", "sleep", "1000")
    for code in range(20):
        done = engine.docker("exec", "codes", "sh", "-c", f"exit {code}", check=False)
        assert done.returncode == code


def test_a_network_is_free_as_soon_as_its_container_has_ended(engine: EngineProcess) -> None:
    for number in range(5):
        engine.docker("network", "create", f"free{number}")
        engine.docker(
            "run", "-d", "--name", f"f{number}", "--network", f"free{number}", "busybox", "true"
        )
        engine.docker("wait", f"f{number}")
        engine.docker("network", "rm", f"free{number}")


def test_restart_policy_counts_and_stops_at_its_maximum(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "rp", "--restart", "on-failure:2", "busybox", "false")
    until(lambda: inspect(engine, "rp", "{{.State.Status}} {{.RestartCount}}") == "exited 2")


def test_a_killed_process_comes_back_and_a_stopped_one_does_not(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "al", "--restart", "always", "busybox", "sleep", "1000")
    pid = int(inspect(engine, "al", "{{.State.Pid}}"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: inspect(engine, "al", "{{.State.Status}} {{.RestartCount}}") == "running 1")
    engine.docker("stop", "-t", "0", "al")
    assert inspect(engine, "al", "{{.State.Status}}") == "exited"


def test_health_goes_from_starting_to_unhealthy_to_healthy(engine: EngineProcess) -> None:
    engine.docker(
        "run", "-d", "--name", "hc", "--health-cmd", "test -f /ok && echo fine", "--health-interval", "100ms",
        "--health-retries", "2", "busybox", "sleep", "1000",
    )  # fmt: skip
    until(lambda: inspect(engine, "hc", "{{.State.Health.Status}}") == "unhealthy")
    engine.docker("exec", "hc", "touch", "/ok")
    until(lambda: inspect(engine, "hc", "{{.State.Health.Status}}") == "healthy")
    log = json.loads(inspect(engine, "hc", "{{json .State.Health.Log}}"))
    assert len(log) <= 5
    assert (log[-1]["ExitCode"], log[-1]["Output"]) == (0, "fine\n")


def test_logs_follow_to_the_end_of_the_container(engine: EngineProcess) -> None:
    engine.docker(
        "run",
        "-d",
        "--name",
        "lf",
        "busybox",
        "sh",
        "-c",
        "for i in 1 2 3; do echo $i; sleep 0.1; done",
    )
    assert engine.docker("logs", "-f", "lf").stdout == "1\n2\n3\n"
    assert engine.docker("logs", "--tail", "1", "lf").stdout == "3\n"


def test_a_name_has_one_winner(engine: EngineProcess) -> None:
    with client_of(engine) as client:

        def claim(_: int) -> int:
            try:
                client.containers.create("busybox", "true", name="onlyone")
            except docker.errors.APIError as error:
                return int(error.response.status_code)
            return 201

        with ThreadPoolExecutor(16) as pool:
            codes = sorted(pool.map(claim, range(32)))
    assert codes == [201] + [409] * 31


def test_racing_verbs_never_fail_oddly_and_a_forced_removal_always_succeeds(
    engine: EngineProcess,
) -> None:
    with client_of(engine) as client:

        def verb(container: docker.models.containers.Container, name: str) -> int:
            try:
                arguments = {"timeout": 0} if name in ("stop", "restart") else {}
                getattr(container, name)(**arguments)
            except docker.errors.APIError as error:
                return int(error.response.status_code)
            return 200

        odd, lost = [], []
        for number in range(12):
            container = client.containers.create("busybox", ["sleep", "1000"], name=f"race{number}")
            with ThreadPoolExecutor(6) as pool:
                names = ["start", "stop", "kill", "restart", "start"]
                running = [pool.submit(verb, container, name) for name in names]
                gone = pool.submit(container.remove, force=True)
                odd += [c for c in (r.result() for r in running) if c not in (200, 304, 404, 409)]
                lost += [gone.exception()] if gone.exception() else []
    assert odd == []
    assert lost == []


def test_many_clients_at_once_lose_nothing_and_leak_nothing(engine: EngineProcess) -> None:
    assert engine.process is not None
    descriptors = f"/proc/{engine.process.pid}/fd"
    with client_of(engine) as client:
        client.ping()
        before = len(os.listdir(descriptors))

        def whole_life(number: int) -> bytes:
            container = client.containers.create("busybox", ["sleep", "1000"], name=f"many{number}")
            container.start()
            output: bytes = container.exec_run(["echo", str(number)]).output
            container.remove(force=True)
            return output

        with ThreadPoolExecutor(16) as pool:
            outputs = list(pool.map(whole_life, range(64)))
        assert outputs == [f"{number}\n".encode() for number in range(64)]
    until(lambda: len(os.listdir(descriptors)) <= before + 2)


def test_tutorials_hold(engine: EngineProcess) -> None:
    """What Docker's tutorials show: the limit under /sys/fs/cgroup, process 1, the hostname."""
    identity = engine.docker("run", "-itd", "-m", "128m", "busybox", "sh").stdout.strip()
    assert len(identity) == 64
    parent = engine.cgroup_parent.strip("/")
    v1 = Path(f"/sys/fs/cgroup/memory/{parent}/{identity}/memory.limit_in_bytes")
    v2 = Path(f"/sys/fs/cgroup/{parent}/{identity}/memory.max")
    assert int((v1 if v1.exists() else v2).read_text()) == 128 << 20
    assert engine.docker("exec", identity, "hostname").stdout.strip() == identity[:12]
    assert engine.docker("run", "--rm", "busybox", "sh", "-c", "echo $$").stdout == "1\n"


def test_oom_is_told(engine: EngineProcess) -> None:
    done = engine.docker(
        "run", "--name", "oom", "-m", "20m", "--memory-swap", "20m", "busybox", "sh", "-c",
        "exec dd if=/dev/zero of=/dev/null bs=100M count=1", check=False,
    )  # fmt: skip
    assert done.returncode == 137
    assert inspect(engine, "oom", "{{.State.OOMKilled}} {{.State.ExitCode}}") == "true 137"


def test_update_changes_a_running_limit(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "up", "-m", "64m", "busybox", "sleep", "1000")
    engine.docker("update", "-m", "96m", "--memory-swap", "192m", "--restart", "always", "up")
    shown = inspect(engine, "up", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}")
    assert shown == f"{96 << 20} always"


def test_attach_gives_the_log_of_a_container_that_has_ended(engine: EngineProcess) -> None:
    with client_of(engine) as client:
        container = client.containers.create(
            "busybox", ["sh", "-c", "echo out; echo err >&2"], name="ended"
        )
        container.start()
        container.wait()
        assert container.attach(stream=False, logs=True) == b"out\nerr\n"
        assert container.attach(stream=False, logs=True, stderr=False) == b"out\n"


def test_a_container_that_is_just_ending_can_be_committed(engine: EngineProcess) -> None:
    with client_of(engine) as client:
        for number in range(8):
            container = client.containers.create(
                "busybox", ["touch", "/made"], name=f"ending{number}"
            )
            container.start()
            image = container.commit("ending", str(number))
            assert image.attrs["Config"]["Cmd"] == ["touch", "/made"]
            container.remove(force=True)
            client.images.remove(image.id)
