"""The command line against a real engine: streams, terminals, statuses, files; seen as a person at a prompt sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.engine import REPOSITORY, EngineProcess

pytestmark = pytest.mark.root
SAMPAN = str(REPOSITORY / "sampan")


class Terminal:
    """`sampan ARGS` on a pseudo terminal of its own."""

    def __init__(
        self, engine: EngineProcess, *argv: str, rows: int = 33, columns: int = 111
    ) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [SAMPAN, *argv], stdin=slave, stdout=slave, stderr=slave, env=engine.environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str, seconds: float = 20) -> str:
        end = time.monotonic() + seconds
        while text.encode() not in self.seen:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not appear in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break
        assert text.encode() in self.seen, self.seen
        return self.seen.decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self) -> int:
        try:
            return self.process.wait(timeout=20)
        finally:
            os.close(self.master)


def test_output_streams_and_statuses_are_the_containers(engine: EngineProcess) -> None:
    done = engine.sampan(
        "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert engine.sampan("run", "--rm", "busybox", "nosuch", check=False).returncode == 127
    assert engine.sampan("run", "--rm", "busybox", "/etc", check=False).returncode == 126
    identity = engine.sampan("run", "-d", "busybox", "sleep", "100").stdout.strip()
    engine.sampan("kill", identity)
    assert engine.sampan("wait", identity).stdout == "137\n"
    done = engine.sampan("run", "--pull", "never", "nosuch:image", check=False)
    assert done.returncode == 125
    assert "sampan: Error response from daemon: " in done.stderr
    assert done.stderr.endswith("\n\nRun 'sampan run --help' for more information\n")


def test_input_is_passed_on_and_its_end_too(engine: EngineProcess) -> None:
    done = engine.sampan("run", "--rm", "-i", "busybox", "sort", input="b\na\n")
    assert done.stdout == "a\nb\n"
    data = os.urandom(3 << 20)
    done2 = subprocess.run(
        [SAMPAN, "run", "--rm", "-i", "busybox", "cat"],
        input=data,
        capture_output=True,
        env=engine.environment,
        timeout=60,
    )
    assert done2.stdout == data


def test_exec_has_streams_input_and_status_of_its_own(engine: EngineProcess) -> None:
    engine.sampan("run", "-d", "--name", "one", "busybox", "sleep", "100")
    done = engine.sampan(
        "exec",
        "-i",
        "-e",
        "A=1",
        "-w",
        "/tmp",
        "one",
        "sh",
        "-c",
        "pwd; echo $A; cat; exit 3",
        input="in",
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "/tmp\n1\nin")
    assert engine.sampan("exec", "one", "nosuch", check=False).returncode == 127
    assert (
        "is not running"
        in engine.sampan("stop", "-t", "0", "one").stdout
        + engine.sampan("exec", "one", "ls", check=False).stderr
    )


def test_a_terminal_is_raw_sized_and_resized(engine: EngineProcess) -> None:
    terminal = Terminal(engine, "run", "--rm", "-it", "busybox", "sh")
    terminal.until("#")
    terminal.type("stty size; echo pid $$\r")
    terminal.until("33 111")
    terminal.until("pid 1")
    terminal.resize(40, 90)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    for _ in range(50):
        terminal.type("stty size\r")
        try:
            terminal.until("40 90", 0.2)
            break
        except AssertionError:
            continue
    terminal.until("40 90")
    terminal.type("exit 5\r")
    assert terminal.end() == 5


def test_the_detach_keys_leave_the_container_running_and_attach_comes_back(
    engine: EngineProcess,
) -> None:
    terminal = Terminal(engine, "run", "-it", "--name", "left", "busybox", "sh")
    terminal.until("#")
    terminal.type("X=kept\r")
    terminal.type("\x10\x11")
    assert terminal.end() == 0
    assert engine.sampan("inspect", "-f", "{{.State.Running}}", "left").stdout == "true\n"
    again = Terminal(engine, "attach", "left")
    again.type("echo $X-value\r")
    again.until("kept-value")
    again.type("exit 3\r")
    assert again.end() == 3


def test_signals_reach_the_container(engine: EngineProcess) -> None:
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(
        [SAMPAN, "run", "--rm", "busybox", "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=engine.environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "got\n"
        assert process.wait(timeout=20) == 9


def test_several_containers_are_asked_at_once_and_answered_in_order(engine: EngineProcess) -> None:
    names = [f"many{number}" for number in range(5)]
    for name in names:
        engine.sampan("run", "-d", "--name", name, "busybox", "sleep", "100")
    since = time.time()
    assert engine.sampan("stop", "-t", "1", *names).stdout.split() == names
    only = [word for action in ("kill", "die") for word in ("--filter", f"event={action}")]
    window = ("--since", f"{since:.6f}", "--until", f"{time.time():.6f}")
    told = engine.sampan("events", *window, *only, "--format", "{{.Action}}").stdout.split()
    # One after the other, the first would have been killed for good before the second was asked at all.
    assert told[: len(names)] == ["kill"] * len(names) and told.count("die") == len(names)
    done = engine.sampan("rm", names[0], "absent", *names[1:], check=False)
    assert done.returncode == 1 and done.stdout.split() == names
    assert done.stderr == "Error response from daemon: No such container: absent\n"


def test_logs_and_start_attached(engine: EngineProcess) -> None:
    engine.sampan(
        "create", "--name", "talks", "busybox", "sh", "-c", "echo one; echo two >&2; exit 4"
    )
    done = engine.sampan("start", "-a", "talks", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "one\n", "two\n")
    done = engine.sampan("logs", "talks")
    assert (done.stdout, done.stderr) == ("one\n", "two\n")
    assert engine.sampan("logs", "-t", "--tail", "1", "talks").stderr.endswith(" two\n")
    assert engine.sampan("wait", "talks").stdout == "4\n"


def test_formats(engine: EngineProcess) -> None:
    engine.sampan(
        "run",
        "-d",
        "--name",
        "shown",
        "-l",
        "a=b",
        "-p",
        "127.0.0.1::80",
        "busybox",
        "sleep",
        "100",
    )
    table = engine.sampan("ps", "--format", 'table {{.Names}}\\t{{.Label "a"}}').stdout
    assert table == "NAMES     a\nshown     b\n"
    assert (
        engine.sampan("ps", "-q", "--no-trunc").stdout
        == engine.sampan("inspect", "-f", "{{.Id}}", "shown").stdout
    )
    typed = engine.sampan(
        "inspect",
        "-f",
        '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostIP}} {{json .Config.Labels}}',
        "shown",
    )
    assert typed.stdout == '127.0.0.1 {"a":"b"}\n'
    for ours, theirs in zip(
        engine.sampan("inspect", "shown").stdout.splitlines(),
        engine.docker("inspect", "shown").stdout.splitlines(),
        strict=True,
    ):
        assert ours == theirs
    assert engine.sampan("ps").stdout == engine.docker("ps").stdout
    assert engine.sampan("images").stdout.split() == engine.docker("images").stdout.split()


def test_files_are_copied_both_ways(engine: EngineProcess, tmp_path: Path) -> None:
    engine.sampan("run", "-d", "--name", "files", "busybox", "sleep", "100")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "f").write_text("hello")
    (tmp_path / "in" / "l").symlink_to("f")
    engine.sampan("cp", str(tmp_path / "in"), "files:/there")
    assert engine.sampan("exec", "files", "cat", "/there/l").stdout == "hello"
    engine.sampan("cp", "files:/there", str(tmp_path / "out"))
    assert (tmp_path / "out" / "f").read_text() == "hello" and os.readlink(
        tmp_path / "out" / "l"
    ) == "f"
    engine.sampan("cp", "files:/there/.", str(tmp_path / "in"))
    done = engine.sampan("cp", "files:/nosuch", str(tmp_path), check=False)
    assert (
        done.returncode == 1 and "Could not find the file /nosuch in container files" in done.stderr
    )
    assert engine.sampan("diff", "files").stdout.split("\n")[0].startswith("A /there")


def test_cidfile_is_written_and_never_overwritten(engine: EngineProcess, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    identity = engine.sampan(
        "run", "-d", "--cidfile", str(file), "busybox", "sleep", "100"
    ).stdout.strip()
    assert file.read_text() == identity
    done = engine.sampan("run", "-d", "--cidfile", str(file), "busybox", "true", check=False)
    assert done.returncode == 125 and "container ID file found" in done.stderr
    other = tmp_path / "other"
    assert (
        engine.sampan(
            "run", "--cidfile", str(other), "--network", "nosuch", "busybox", check=False
        ).returncode
        == 125
    )


def test_explain_tells_what_the_kernel_was_given(engine: EngineProcess) -> None:
    engine.sampan("run", "-d", "--name", "told", "-m", "64m", "busybox", "sleep", "100")
    text = engine.sampan("explain", "told").stdout
    assert "its own process numbers" in text and "67108864" in text and "a filter decides" in text


def test_the_engine_is_started_when_none_listens_and_says_so_once(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "SAMPAN_AUTOSTART": "0", "SAMPAN_HOST": f"unix://{tmp_path}/none.sock",
    }  # fmt: skip
    done = subprocess.run(
        [SAMPAN, "ps"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == f"Cannot connect to the Docker daemon at unix://{tmp_path}/none.sock. Is the docker daemon running?\n"
    )


def test_a_clone_needs_nothing_but_a_path(engine: EngineProcess) -> None:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SAMPAN_HOST": engine.host,
    }
    done = subprocess.run(
        [SAMPAN, "run", "--rm", "busybox", "echo", "hi"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_an_attached_client_outlives_its_engine(
    fresh_engine: EngineProcess, busybox_tar: Path
) -> None:
    engine = fresh_engine.start()
    engine.sampan("import", str(busybox_tar), "busybox")
    script = "echo before; while [ ! -e /go ]; do sleep 0.1; done; echo after; exit 6"
    with subprocess.Popen(
        [SAMPAN, "run", "--name", "survivor", "busybox", "/bin/sh", "-c", f"PATH=/bin; {script}"],
        stdout=subprocess.PIPE, env=engine.environment, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "before\n"
        engine.kill()
        engine.start()
        engine.sampan("exec", "survivor", "/bin/touch", "/go")
        assert process.stdout.readline() == "after\n"
        assert process.wait(timeout=30) == 6


def test_a_registry_with_a_password(engine: EngineProcess, tmp_path: Path) -> None:
    for program in ("docker-registry", "htpasswd"):
        require(shutil.which(program) is not None, f"needs {program}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = subprocess.run(
        ["htpasswd", "-Bbn", "me", "secret"], capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "users").write_text(words)
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\nhttp: {{addr: '{address}'}}\n"
        f"auth: {{htpasswd: {{realm: r, path: {tmp_path}/users}}}}\n"
    )
    registry = subprocess.Popen(
        ["docker-registry", "serve", str(tmp_path / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    name = f"{address}/bb:1"
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        engine.sampan("tag", "busybox", name)
        assert engine.sampan("push", name, check=False).returncode == 1
        assert (
            engine.sampan(
                "login", "-u", "me", "--password-stdin", address, input="wrong", check=False
            ).returncode
            == 1
        )
        assert (
            engine.sampan("login", "-u", "me", "--password-stdin", address, input="secret").stdout
            == "Login Succeeded\n"
        )
        assert "1: digest: sha256:" in engine.sampan("push", name).stdout
        engine.sampan("rmi", name)
        assert engine.sampan("pull", "-q", name).stdout == f"{name}\n"
        assert '"schemaVersion"' in engine.sampan("manifest", "inspect", "--insecure", name).stdout
        engine.sampan("manifest", "create", "--insecure", f"{address}/bb:list", name)
        engine.sampan("manifest", "push", "--insecure", "--purge", f"{address}/bb:list")
        assert (
            '"manifests"'
            in engine.sampan("manifest", "inspect", "--insecure", f"{address}/bb:list").stdout
        )
        assert (
            engine.sampan("logout", address).stdout == f"Removing login credentials for {address}\n"
        )
        assert engine.sampan("pull", name, check=False).returncode == 1
    finally:
        registry.terminate()
        registry.wait()
        engine.sampan("rmi", "-f", name, check=False)
