"""The stock docker CLI against the engine: what people type every day, and how the streams behave."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess


def test_run_gives_output_and_status(engine: EngineProcess) -> None:
    done = engine.docker(
        "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        (("nosuchcommand",), 127, "executable file not found in $PATH"),
        (("/etc/passwd",), 126, "permission denied"),
        (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
    ],
)
def test_run_exit_statuses(
    engine: EngineProcess, command: tuple[str, ...], status: int, says: str
) -> None:
    done = engine.docker("run", "--rm", "busybox", *command, check=False)
    assert done.returncode == status
    assert says in done.stderr
    assert not engine.docker("ps", "-aq").stdout


def test_stdin_reaches_the_process_and_its_end_too(engine: EngineProcess) -> None:
    text = "".join(f"line {n}\n" for n in range(20_000))
    done = engine.docker("run", "--rm", "-i", "busybox", "cat", input=text)
    assert done.stdout == text


def test_a_terminal_is_one(engine: EngineProcess) -> None:
    assert engine.docker("run", "--rm", "-t", "busybox", "tty").stdout.strip() == "/dev/pts/0"


def test_output_of_a_flood_stops_with_its_reader(engine: EngineProcess) -> None:
    """`run yes | head`: the reader leaves, the client and the container end, nothing piles up."""
    command = (
        f"docker -H {engine.host} run --rm --name flood busybox yes | head -c 20000000 | wc -c"
    )
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, env=engine.environment
    )
    assert done.stdout.strip() == "20000000"
    engine.docker("rm", "-f", "flood", check=False)


def test_exec(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "ex", "-e", "A=1", "busybox", "sleep", "100")
    done = engine.docker("exec", "ex", "sh", "-c", "echo $A; echo err >&2; exit 9", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "1\n", "err\n")
    assert engine.docker("exec", "-i", "ex", "cat", input="through").stdout == "through"
    missing = engine.docker("exec", "ex", "nosuch", check=False)
    assert missing.returncode == 127
    assert "executable file not found in $PATH" in missing.stdout + missing.stderr


def test_exec_status_is_known_at_once_every_time(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "fast", "busybox", "sleep", "100")
    assert [engine.docker("exec", "fast", "false", check=False).returncode for _ in range(20)] == [
        1
    ] * 20


def test_attach_sees_what_comes_and_the_exit_code(engine: EngineProcess) -> None:
    engine.docker(
        "create", "--name", "at", "-i", "busybox", "sh", "-c", "read x; echo got $x; exit 4"
    )
    done = engine.docker("start", "-ai", "at", input="word\n", check=False)
    assert (done.returncode, done.stdout) == (4, "got word\n")


def test_follow_ends_with_the_container(engine: EngineProcess) -> None:
    """Also when the end comes while the log is being read."""
    for n in range(10):
        engine.docker("run", "-d", "--name", f"l{n}", "busybox", "echo", "said")
        assert engine.docker("logs", "-f", f"l{n}", timeout=20).stdout == "said\n"


def test_fifty_followers_of_one_log(engine: EngineProcess) -> None:
    engine.docker("run", "-d", "--name", "many", "busybox", "sh", "-c", "sleep 2; seq 1 2000")
    clients = [
        subprocess.Popen(
            ["docker", "-H", engine.host, "logs", "-f", "many"],
            stdout=subprocess.PIPE,
            env=engine.environment,
        )
        for _ in range(50)
    ]
    expected = "".join(f"{n}\n" for n in range(1, 2001)).encode()
    for client in clients:
        output, _ = client.communicate(timeout=60)
        assert output == expected


def test_wait_before_and_after_the_end(engine: EngineProcess) -> None:
    engine.docker("create", "--name", "ww", "busybox", "sh", "-c", "exit 6")
    waiting = subprocess.Popen(
        ["docker", "-H", engine.host, "wait", "ww"],
        stdout=subprocess.PIPE,
        text=True,
        env=engine.environment,
    )
    engine.docker("start", "ww")
    output, _ = waiting.communicate(timeout=30)
    assert output in (
        "6\n",
        "0\n",
    )  # a created container is "not running" already: Docker answers 0
    assert engine.docker("wait", "ww").stdout == "6\n"


def test_events_come_in_order_and_are_kept(engine: EngineProcess) -> None:
    since = str(time.time_ns() // 10**9 - 1)
    engine.docker("run", "--rm", "--name", "ev", "-l", "k=v", "busybox", "true")
    until = str(time.time_ns() // 10**9 + 1)
    lines = engine.docker(
        "events",
        "--since",
        since,
        "--until",
        until,
        "--filter",
        "container=ev",
        "--format",
        "{{json .}}",
    ).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    actions = [event["Action"] for event in events]
    assert [a for a in actions if a in ("create", "attach", "start", "die", "destroy")] == [
        "create", "attach", "start", "die", "destroy",
    ]  # fmt: skip
    died = next(event for event in events if event["Action"] == "die")
    assert died["Actor"]["Attributes"]["exitCode"] == "0"
    assert died["Actor"]["Attributes"]["k"] == "v"


def test_an_event_stream_drops_nothing_under_load(engine: EngineProcess) -> None:
    listener = subprocess.Popen(
        ["docker", "-H", engine.host, "events", "--filter", "type=volume", "--format", "{{.Action}} {{.Actor.ID}}"],
        stdout=subprocess.PIPE, text=True, env=engine.environment,
    )  # fmt: skip
    assert listener.stdout is not None
    names = [f"ev{n}" for n in range(200)]
    first = threading.Event()

    def nudge() -> (
        None
    ):  # the listener says nothing when it is ready: make events until one is seen
        while not first.is_set():
            engine.docker("volume", "create", "nudge")
            engine.docker("volume", "rm", "nudge")

    nudging = threading.Thread(target=nudge)
    nudging.start()
    try:
        assert listener.stdout.readline()
        first.set()
        nudging.join()
        for name in names:
            engine.docker("volume", "create", name)
        seen: list[str] = []
        while len(seen) < len(names):
            line = listener.stdout.readline()
            assert line
            if line.startswith("create ev"):
                seen.append(line.split()[1])
        assert seen == names
    finally:
        first.set()
        nudging.join()
        listener.kill()
        listener.communicate()
        engine.docker("volume", "rm", "-f", *names, "nudge", check=False)


def test_cp_both_ways(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("content")
    engine.docker("run", "-d", "--name", "cp", "busybox", "sleep", "100")
    engine.docker("cp", str(tmp_path / "there"), "cp:/tmp/there")
    engine.docker("cp", "cp:/tmp/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "content"
    missing = engine.docker("cp", "cp:/nosuch", str(tmp_path), check=False)
    assert "Could not find the file /nosuch in container cp" in missing.stderr


def test_images_go_out_and_come_back(engine: EngineProcess, tmp_path: Path) -> None:
    engine.docker("run", "--name", "cc", "busybox", "sh", "-c", "echo changed > /changed")
    engine.docker("commit", "-c", 'CMD ["cat", "/changed"]', "cc", "made:1")
    engine.docker("save", "-o", str(tmp_path / "made.tar"), "made:1")
    engine.docker("rm", "cc")
    engine.docker("rmi", "made:1")
    assert (
        engine.docker("load", "-i", str(tmp_path / "made.tar")).stdout == "Loaded image: made:1\n"
    )
    assert engine.docker("run", "--rm", "made:1").stdout == "changed\n"
    engine.docker("rmi", "made:1")


def test_a_corrupt_archive_fails_the_load(engine: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"nonsense")
    done = engine.docker("load", "-i", str(tmp_path / "bad.tar"), check=False)
    assert done.returncode == 1
    assert done.stderr


def test_inspect_says_what_run_was_told(engine: EngineProcess) -> None:
    engine.docker(
        "run",
        "-d",
        "--name",
        "in",
        "-m",
        "64m",
        "-l",
        "a=b",
        "-e",
        "X=1",
        "-w",
        "/tmp",
        "busybox",
        "sleep",
        "9",
    )
    body = json.loads(engine.docker("inspect", "in").stdout)[0]
    assert body["HostConfig"]["Memory"] == 64 << 20
    assert body["Config"]["Labels"] == {"a": "b"}
    assert "X=1" in body["Config"]["Env"]
    assert body["State"]["Running"] is True and body["State"]["Pid"] > 1
    assert (
        body["NetworkSettings"]["IPAddress"]
        == body["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        != ""
    )


def test_the_daily_rest_answers(engine: EngineProcess) -> None:
    for command in (
        "ps -a",
        "images",
        "info",
        "version",
        "system df",
        "network ls",
        "volume ls",
        "plugin ls",
        "system prune -f",
    ):
        assert engine.docker(*command.split()).returncode == 0
    assert "not a swarm manager" in engine.docker("node", "ls", check=False).stderr
    assert "No such object: nosuch" in engine.docker("inspect", "nosuch", check=False).stderr


def test_live_ports(engine: EngineProcess) -> None:
    """An extension: published while it runs."""
    engine.docker(
        "run",
        "-d",
        "--name",
        "lp",
        "busybox",
        "sh",
        "-c",
        "mkdir /w; echo page > /w/index.html; httpd -f -h /w",
    )
    url = "http://docker/containers/lp/ports"
    body = '{"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}}'
    curl = ["curl", "-sS", "--unix-socket", str(engine.socket)]
    answer = subprocess.run(
        [*curl, "-H", "Content-Type: application/json", "-d", body, url],
        capture_output=True,
        text=True,
    )
    assert json.loads(answer.stdout)["Ports"]["80/tcp"][0]["HostIp"] == "127.0.0.1", answer
    assert engine.docker("port", "lp", "80").stdout.startswith("127.0.0.1:")
    subprocess.run([*curl, "-X", "DELETE", url + "?port=80/tcp"], check=True, capture_output=True)
    assert engine.docker("port", "lp").stdout == ""


def test_mount_points_that_are_made_can_be_entered_by_anybody(engine: EngineProcess) -> None:
    shown = engine.docker(
        "run", "--rm", "--tmpfs", "/opt/made/t", "--tmpfs", "/tmp", "busybox", "stat", "-c", "%a %n",
        "/opt", "/opt/made", "/opt/made/t", "/tmp",
    ).stdout  # fmt: skip
    assert shown == "755 /opt\n755 /opt/made\n1777 /opt/made/t\n1777 /tmp\n"
    assert engine.docker("run", "--rm", "busybox", "sh", "-c", "umask").stdout == "0022\n"
