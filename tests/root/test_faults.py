"""Faults one by one, as docs/reliability.md lists them: the disk, descriptors, clients, races, a machine that restarts."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.root.test_engine_lifecycle import inspect, until
from tests.support.client import Client, EngineGone
from tests.support.engine import EngineProcess

SLEEP = {"Image": "busybox", "Cmd": ["sleep", "1000"], "StopSignal": "KILL"}


def load_busybox(engine: EngineProcess, busybox_tar: Path) -> None:
    engine.docker("import", "-c", 'CMD ["sh"]', str(busybox_tar), "busybox:latest")


@pytest.fixture
def started(fresh_engine: EngineProcess, busybox_tar: Path) -> EngineProcess:
    fresh_engine.start()
    load_busybox(fresh_engine, busybox_tar)
    return fresh_engine


def helpers(engine: EngineProcess) -> list[int]:
    """Launcher, shims, keeper: whoever's command line names the run directory, but for the daemon."""
    mark, found = str(engine.run).encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in command and b"sampan.daemon" not in command:
                found.append(int(entry.name))
    return found


# -- the disk ---------------------------------------------------------------------------------------


@pytest.fixture(params=["bytes", "inodes"])
def small_disk(
    request: pytest.FixtureRequest, fresh_engine: EngineProcess, busybox_tar: Path
) -> Iterator[EngineProcess]:
    fresh_engine.root.mkdir()
    limit = "size=64m" if request.param == "bytes" else "size=64m,nr_inodes=2000"
    mount = ["mount", "-t", "tmpfs", "-o", limit, "small", str(fresh_engine.root)]
    subprocess.run(mount, check=True)
    try:
        fresh_engine.start()
        load_busybox(fresh_engine, busybox_tar)
        yield fresh_engine
        fresh_engine.stop()
    finally:
        subprocess.run(["umount", "-l", str(fresh_engine.root)], check=False)


def fill_disk(root: Path) -> None:
    """Until nothing more fits: neither a byte nor a file."""
    (root / "filler").mkdir()
    number = 0
    while True:
        try:
            with (root / "filler" / str(number)).open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        except OSError:
            if not os.statvfs(root).f_bavail or not os.statvfs(root).f_favail:
                return
        number += 1
        if number < 4000 and os.statvfs(root).f_favail < 10_000:
            for other in range(number, number + os.statvfs(root).f_favail):
                try:
                    (root / "filler" / f"e{other}").touch()
                except OSError:
                    return


def test_on_a_full_disk_what_gives_space_back_works(small_disk: EngineProcess) -> None:
    engine = small_disk
    for name in ("one", "two", "three"):
        engine.docker("run", "-d", "--name", name, "busybox", "sleep", "1000")
    fill_disk(engine.root)
    before = sorted(path.name for path in (engine.root / "containers").iterdir())
    refused = [
        engine.docker("create", "--name", f"no{n}", "busybox", "true", check=False)
        for n in range(3)
    ]
    assert any("no space left" in r.stderr.lower() or "full" in r.stderr for r in refused)
    made = [f"no{n}" for n, r in enumerate(refused) if r.returncode == 0]
    if made:  # what was kept in reserve was enough for these
        engine.docker("rm", *made)
    until(lambda: sorted(p.name for p in (engine.root / "containers").iterdir()) == before)
    assert len(engine.docker("ps", "-q").stdout.split()) == 3
    engine.docker("logs", "one")
    assert engine.docker("exec", "one", "echo", "in").stdout == "in\n"
    engine.docker("stop", "-t", "0", "one")
    assert inspect(engine, "one", "{{.State.Status}}") == "exited"
    engine.docker("rm", "one")
    engine.kill()
    engine.start()
    assert inspect(engine, "two", "{{.State.Status}}") == "running"
    engine.docker("rm", "-f", "two")
    shutil.rmtree(engine.root / "filler")
    engine.docker("run", "--rm", "busybox", "true")
    engine.docker("rm", "-f", "three")
    until(lambda: not list((engine.root / "containers").iterdir()))
    assert "Traceback" not in (engine.base / "log").read_text()


# -- descriptors and clients ------------------------------------------------------------------------


def test_the_engine_takes_all_descriptors_and_containers_keep_the_limit(
    fresh_engine: EngineProcess, busybox_tar: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        fresh_engine.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    load_busybox(fresh_engine, busybox_tar)
    assert fresh_engine.process is not None
    assert resource.prlimit(fresh_engine.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    limits = ["sh", "-c", "ulimit -Sn; ulimit -Hn"]
    assert fresh_engine.docker("run", "--rm", "busybox", *limits).stdout.split() == [
        "1000",
        f"{hard}",
    ]
    fresh_engine.docker("run", "-d", "--name", "kept", "busybox", "sleep", "100")
    assert fresh_engine.docker("exec", "kept", *limits).stdout.split() == ["1000", f"{hard}"]


def test_out_of_descriptors_is_a_refusal_and_not_the_end(started: EngineProcess) -> None:
    started.docker("run", "-d", "--name", "steady", "busybox", "sleep", "1000")
    assert started.process is not None
    pid = started.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    open_now = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 8, hard))
    with ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                sock.connect(str(started.socket))
                sock.send(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            except BlockingIOError:
                pass
    client = Client(started.socket, timeout_s=20)
    until(lambda: _answers(client))
    refused = [client.ask("POST", "/containers/create", SLEEP, name=f"c{n}") for n in range(4)]
    for number, answer in enumerate(refused):
        assert answer.status in (201, 500), answer.body
        if answer.status == 201:
            assert client.ask("POST", f"/containers/c{number}/start").status in (204, 500)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    for found in client.do("GET", "/containers/json", all=1):
        if "/steady" not in found["Names"]:
            client.do("DELETE", f"/containers/{found['Id']}", force=1)
    assert started.docker("exec", "steady", "echo", "in").stdout == "in\n"
    started.docker("run", "--rm", "busybox", "true")
    log = (started.base / "log").read_text()
    assert "Traceback" not in log
    assert log.count("clients wait to be accepted: Too many open files") in (1, 2)


def _answers(client: Client) -> bool:
    try:
        return client.ask("GET", "/_ping").status == 200
    except EngineGone:
        return False


def test_clients_that_do_not_read_hold_up_nobody_else(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "flood", "--log-opt", "max-size=1m", "busybox", "yes")
    with ExitStack() as stack:
        for number in range(32):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(20)
            sock.connect(str(engine.socket))
            what = "logs?follow=1&stdout=1" if number % 2 else "stats"
            sock.sendall(f"GET /containers/flood/{what} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(16).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            assert engine.docker("run", "--rm", "busybox", "echo", "on").stdout == "on\n"
        assert engine.process is not None
        status = Path(f"/proc/{engine.process.pid}/status").read_text()
        resident = int(
            next(li for li in status.splitlines() if li.startswith("RssAnon")).split()[1]
        )
        assert resident < 150 * 1024
    engine.docker("rm", "-f", "flood")


# -- races ------------------------------------------------------------------------------------------


def test_one_name_has_one_winner(engine: EngineProcess) -> None:
    client = Client(engine.socket)
    for _ in range(5):
        with ThreadPoolExecutor(16) as pool:
            answers = list(
                pool.map(
                    lambda _: client.ask("POST", "/containers/create", SLEEP, name="only"),
                    range(32),
                )
            )
        assert sorted(answer.status for answer in answers) == [201] + [409] * 31
        client.do("DELETE", "/containers/only")


def test_networks_made_at_once_do_not_overlap(engine: EngineProcess) -> None:
    client = Client(engine.socket)
    names = [f"race-{number}" for number in range(6)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda name: client.do("POST", "/networks/create", {"Name": name}), names))
        subnets = [
            client.do("GET", f"/networks/{name}")["IPAM"]["Config"][0]["Subnet"] for name in names
        ]
        assert len(set(subnets)) == len(names)
        list(pool.map(lambda name: client.do("DELETE", f"/networks/{name}"), names))


def test_verbs_that_race_answer_as_they_must_and_removal_always_succeeds(
    engine: EngineProcess,
) -> None:
    client = Client(engine.socket)
    names = [f"raced-{number}" for number in range(12)]
    for name in names:
        client.do("POST", "/containers/create", SLEEP, name=name)
    dice = random.Random(11)
    verbs = ["start", "stop?t=0", "kill", "restart?t=0", "pause", "unpause", "rename", "update"]
    plan = [(dice.choice(names), dice.choice(verbs)) for _ in range(400)]

    def act(step: tuple[str, str]) -> tuple[int, bytes, str]:
        name, verb = step
        if verb == "rename":
            answer = client.ask("POST", f"/containers/{name}/rename", name=name)
        else:
            body = {"Memory": 64 << 20, "MemorySwap": -1} if verb == "update" else None
            answer = client.ask("POST", f"/containers/{name}/{verb}", body)
        return answer.status, answer.body, verb

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(act, plan))
        expected = (200, 204, 304, 400, 409)
        # That one is Docker's own 500.
        wrong = [a for a in answers if a[0] not in expected and b"is not paused" not in a[1]]
        assert not wrong, wrong[:5]
        removed = list(pool.map(lambda n: client.ask("DELETE", f"/containers/{n}", force=1), names))
    assert [answer.status for answer in removed] == [204] * len(names), removed


def test_restarts_and_removals_do_not_miss_one_another(engine: EngineProcess) -> None:
    """Containers that end at once under restart policies and --rm, removed in the middle of it."""
    client = Client(engine.socket)

    def live(number: int) -> int:
        policy = {"Name": ("always", "on-failure")[number % 2], "MaximumRetryCount": 0}
        host = {"AutoRemove": True} if number % 3 == 0 else {"RestartPolicy": policy}
        wish = {"Image": "busybox", "Cmd": ["sh", "-c", f"exit {number % 2}"], "HostConfig": host}
        client.do("POST", "/containers/create", wish, name=f"brief-{number}")
        client.do("POST", f"/containers/brief-{number}/start")
        return client.ask("DELETE", f"/containers/brief-{number}", force=1).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(live, range(48))) <= {204, 404, 409}
    until(lambda: not client.do("GET", "/containers/json", all=1))


# -- processes --------------------------------------------------------------------------------------


def test_a_fork_bomb_stays_in_its_container(engine: EngineProcess) -> None:
    bomb = "(while :; do sleep 1000 & done) & exec sleep 1000"
    engine.docker("run", "-d", "--name", "bomb", "--pids-limit", "64", "busybox", "sh", "-c", bomb)
    until(
        lambda: (
            int(engine.docker("stats", "--no-stream", "--format", "{{.PIDs}}", "bomb").stdout) > 50
        )
    )
    assert engine.docker("run", "--rm", "busybox", "echo", "fine").stdout == "fine\n"
    engine.docker("rm", "-f", "bomb")


def test_orphans_are_reaped_with_init(engine: EngineProcess) -> None:
    orphans = "for i in $(seq 200); do (true & ); done; echo orphaned; sleep 1000"
    engine.docker("run", "-d", "--name", "orphans", "--init", "busybox", "sh", "-c", orphans)
    until(lambda: engine.docker("logs", "orphans").stdout == "orphaned\n")
    until(lambda: "defunct" not in engine.docker("top", "orphans").stdout)
    engine.docker("rm", "-f", "orphans")


def test_a_stop_under_load_is_clean_every_time(started: EngineProcess) -> None:
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            subprocess.run(
                ["docker", "run", "--rm", "busybox", "true"],
                env=started.environment, capture_output=True, check=False, timeout=60,
            )  # fmt: skip

    workers = [threading.Thread(target=churn) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(4):
            over.wait(0.5)
            assert started.process is not None
            started.process.send_signal(signal.SIGTERM)
            assert started.process.wait(timeout=30) == 0
            started.start()
    finally:
        over.set()
        for worker in workers:
            worker.join()
    ids = started.docker("ps", "-aq").stdout.split()
    if ids:
        started.docker("rm", "-f", *ids)
    assert "Traceback" not in (started.base / "log").read_text()


# -- the run directory ------------------------------------------------------------------------------


def test_a_machine_that_restarted_has_its_containers_back(started: EngineProcess) -> None:
    """No process and no run directory is left, as after a power cut; disks are."""
    for name, policy in (
        ("plain", "no"),
        ("ever", "always"),
        ("kept", "unless-stopped"),
        ("off", "unless-stopped"),
    ):
        started.docker("run", "-d", "--name", name, "--restart", policy, "busybox", "sleep", "1000")
    started.docker("stop", "-t", "0", "off")
    started.kill()
    until(lambda: _all_killed(started))
    shutil.rmtree(started.run)
    started.start()
    until(lambda: inspect(started, "ever", "{{.State.Status}}") == "running")
    until(lambda: inspect(started, "kept", "{{.State.Status}}") == "running")
    assert inspect(started, "off", "{{.State.Status}}") == "exited"
    assert inspect(started, "plain", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    started.docker("start", "plain")
    assert started.docker("exec", "plain", "echo", "again").stdout == "again\n"


def _all_killed(engine: EngineProcess) -> bool:
    found = helpers(engine)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return not found


def test_without_its_run_directory_nothing_of_an_engine_stays(started: EngineProcess) -> None:
    started.docker("run", "-d", "--name", "lost", "-p", "127.0.0.1::80", "busybox", "sleep", "1000")
    started.docker("run", "-d", "--name", "back", "--restart", "always", "busybox", "sleep", "1000")
    old = helpers(started)
    assert len(old) > 2
    shutil.rmtree(started.run)
    started.kill()
    started.start()
    assert inspect(started, "lost", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    until(lambda: inspect(started, "back", "{{.State.Status}}") == "running")
    until(lambda: not set(old) & set(helpers(started)))


def test_a_client_that_hangs_up_does_not_stop_a_verb_in_the_middle(engine: EngineProcess) -> None:
    client = Client(engine.socket)
    names = [f"hung-{number}" for number in range(8)]
    for name in names:
        client.do("POST", "/containers/create", SLEEP, name=name)

    def ask_and_leave(line: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(engine.socket))
            sock.sendall(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    for name in names:
        ask_and_leave(f"POST /containers/{name}/start")
    until(lambda: len(client.do("GET", "/containers/json")) == len(names))
    for name in names:
        ask_and_leave(f"DELETE /containers/{name}?force=1")
    until(lambda: not client.do("GET", "/containers/json", all=1))
