"""Containers through launcher, shim and init on the real kernel: the shim's promises one by one."""

from __future__ import annotations

import base64
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan import errors
from sampan.cgroups.manager import open_manager
from sampan.linux import procfs
from sampan.shim import protocol
from sampan.shim.channel import Channel
from sampan.shim.client import LauncherClient, ShimClient, ShimGone, read_exit, read_state
from sampan.shim.powers import KEPT
from tests.support.hosts import eventually

NAMESPACES = ("pid", "mount", "uts", "ipc", "network")
CAPS = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD", "CAP_DAC_OVERRIDE"]


def spec(root: Path, args: list[str], *, tty: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": tty,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPS),
        },
        "root": {"path": str(root)},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": [
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in more.pop("namespaces", NAMESPACES)],
            "resources": more.pop("resources", {"memory": {"limit": 64 << 20}}),
        },
    }


class Bench:
    """A run directory with a launcher, and containers in it."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base = base
        self.root = root
        (base / "run" / "containers").mkdir(parents=True)
        self.launcher = LauncherClient(str(base / "run"), spare=1)
        self.launcher.ensure()
        self.shims: list[ShimClient] = []
        self.peers: list[Peer] = []

    def peer(self) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]

    def request(
        self, *args: str, tty: bool = False, driver: str = "json-file", **more: Any
    ) -> dict[str, Any]:
        container_id = os.urandom(32).hex()
        directory = self.base / "run" / "containers" / container_id
        directory.mkdir(mode=0o700)
        log = {
            "driver": driver,
            "path": str(directory / "json.log"),
            "options": more.pop("log_options", {}),
        }
        wanted = {key: more.pop(key) for key in ("namespaces", "resources") if key in more}
        return {
            "id": container_id,
            "dir": str(directory),
            "spec": spec(self.root, list(args), tty=tty, **wanted),
            "tty": tty,
            "cgroup": {"path": f"/sampan-test/{container_id}", "driver": "cgroupfs"},
            "log": log,
            **more,
        }

    def run(self, *args: str, fds: tuple[int, ...] = (), **more: Any) -> ShimClient:
        shim = self.launcher.launch(self.request(*args, **more), fds)
        self.shims.append(shim)
        return shim

    def close(self) -> None:
        for peer in self.peers:
            peer.socket.close()
            peer.theirs.close()
        for shim in self.shims:
            try:
                shim.kill(9)
                shim.wait_event("gone")
            except (ShimGone, errors.NotFound):
                pass
            shim.close()
        self.launcher.stop()
        for directory in (self.base / "run" / "containers").iterdir():
            open_manager(f"/sampan-test/{directory.name}").destroy()  # of a shim that was killed
        log = (self.base / "run" / "launcher.log").read_text()
        assert not log, log


@pytest.fixture
def bench(tmp_path: Path, busybox_tree: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, busybox_tree)
    try:
        yield made
    finally:
        made.close()


class Peer:
    """The client's end of an attached connection."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.socket.settimeout(30)

    @property
    def fd(self) -> int:
        return self.theirs.fileno()

    def read_to_end(self) -> bytes:
        self.theirs.close()
        parts = []
        while data := self.socket.recv(65536):
            parts.append(data)
        return b"".join(parts)

    def read_until(self, words: bytes) -> bytes:
        data = b""
        while words not in data:
            more = self.socket.recv(65536)
            assert more, data
            data += more
        return data


def unframe(data: bytes) -> dict[int, bytes]:
    found = {1: b"", 2: b""}
    while data:
        length = int.from_bytes(data[4:8], "big")
        found[data[0]] += data[8 : 8 + length]
        data = data[8 + length :]
    return found


def log_text(shim: ShimClient) -> bytes:
    from sampan.shim.logread import LogReader
    from tests.contract.test_log_writers import read_all

    return read_all(LogReader(f"{shim.directory}/json.log", "json-file"))


def wait_gone(path: str) -> None:
    deadline = time.monotonic() + 30
    while os.path.exists(path):
        assert time.monotonic() < deadline, path
        time.sleep(0.005)


BOTH = {"stdout": True, "stderr": True, "framed": True}


# --- life ----------------------------------------------------------------------------------------------------------


def test_exit_code_and_output_arrive(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-c", "echo out; echo err >&2; exit 7", attach=[{"fd": 0, **BOTH}], fds=(peer.fd,)
    )
    assert shim.info["pid"] > 0
    event = shim.wait_event("exit")
    assert (event["exit_code"], event["signal"], event["oom_killed"]) == (7, 0, False)
    assert unframe(peer.read_to_end()) == {1: b"out\n", 2: b"err\n"}
    assert log_text(shim) in (b"out\nerr\n", b"err\nout\n")
    shim.wait_event("gone")
    on_disk = read_exit(shim.directory)
    assert on_disk is not None
    assert on_disk["exit_code"] == 7


def test_a_signal_is_128_and_its_number(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    shim.kill(9)
    event = shim.wait_event("exit")
    assert (event["exit_code"], event["signal"]) == (137, 9)


def test_nothing_is_left_behind(bench: Bench) -> None:
    shim = bench.run("true")
    shim.wait_event("gone")
    wait_gone(f"{shim.directory}/{protocol.SHIM_SOCKET}")
    assert sorted(os.listdir(shim.directory)) == ["exit.json", "json.log", "launch.json"]
    name = os.path.basename(shim.directory)
    for controller in os.listdir("/sys/fs/cgroup"):
        assert not os.path.exists(f"/sys/fs/cgroup/{controller}/sampan-test/{name}")


def test_the_state_file_names_a_process_and_its_shim(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    state = read_state(shim.directory)
    assert state is not None
    assert state["status"] == "running"
    assert procfs.is_alive(state["pid"], state["start_time"])
    assert procfs.is_alive(state["shim_pid"], state["shim_start_time"])


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["nosuch"], "executable file not found in $PATH", 127),
        (["/etc/passwd"], "permission denied", 126),
        (["/nosuch/file"], "no such file or directory", 127),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    bench: Bench, args: list[str], words: str, code: int
) -> None:
    request = bench.request(*args)
    with pytest.raises(errors.InvalidArgument) as caught:
        bench.launcher.launch(request)
    assert words in str(caught.value)
    assert getattr(caught.value, "exit_code", None) == code
    assert set(os.listdir(request["dir"])) <= {"json.log"}


def test_a_broken_request_is_an_answer_not_a_crash(bench: Bench) -> None:
    request = bench.request("true")
    del request["spec"]["process"]
    with pytest.raises(errors.SampanError):
        bench.launcher.launch(request)
    bench.run("true").wait_event("exit")


def test_an_out_of_memory_kill_is_told(bench: Bench) -> None:
    shim = bench.run(
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/null bs=40M count=1; echo rest",
        resources={"memory": {"limit": 16 << 20, "swap": 16 << 20}},
    )
    assert shim.wait_event("oom")
    event = shim.wait_event("exit")
    assert event["oom_killed"]
    assert event["exit_code"] == 0
    assert b"rest\n" in log_text(shim)


# --- stdin and attach ----------------------------------------------------------------------------------------------


def test_half_close_of_the_client_is_end_of_file_for_the_process(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-c", "cat; echo done", open_stdin=True, stdin_once=True,
        attach=[{"fd": 0, "stdin": True, **BOTH}], fds=(peer.fd,),
    )  # fmt: skip
    peer.socket.sendall(b"typed\n")
    peer.socket.shutdown(socket.SHUT_WR)
    assert unframe(peer.read_to_end())[1] == b"typed\ndone\n"
    assert shim.wait_event("exit")["exit_code"] == 0


def test_bytes_that_were_read_ahead_are_the_first_input(bench: Bench) -> None:
    peer = bench.peer()
    bench.run(
        "head", "-n", "2", open_stdin=True, stdin_once=True,
        attach=[{"fd": 0, "stdin": True, "preread": base64.b64encode(b"one\n").decode(), **BOTH}], fds=(peer.fd,),
    )  # fmt: skip
    peer.socket.sendall(b"two\n")
    assert unframe(peer.read_to_end())[1] == b"one\ntwo\n"


def test_much_input_passes_through_a_small_pipe(bench: Bench) -> None:
    peer = bench.peer()
    bench.run(
        "md5sum", open_stdin=True, stdin_once=True,
        attach=[{"fd": 0, "stdin": True, **BOTH}], fds=(peer.fd,),
    )  # fmt: skip
    import hashlib

    data = os.urandom(4 << 20)
    peer.socket.sendall(data)
    peer.socket.shutdown(socket.SHUT_WR)
    assert unframe(peer.read_to_end())[1].split()[0].decode() == hashlib.md5(data).hexdigest()


def test_an_attached_reader_that_stalls_slows_the_writer_and_loses_nothing(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-c", "seq 1 300000", driver="none", attach=[{"fd": 0, **BOTH}], fds=(peer.fd,)
    )
    shim_pid = (
        int((Path(shim.directory) / "shim.pid").read_text().split()[0]) if wait_file(shim) else 0
    )
    time.sleep(0.2)
    assert not shim.events and shim.processes()  # it waits for us
    before = resident(shim_pid)
    out = unframe(peer.read_to_end())[1]
    assert out == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert before < 40 << 20


def wait_file(shim: ShimClient) -> bool:
    deadline = time.monotonic() + 30
    while not os.path.exists(f"{shim.directory}/{protocol.SHIM_PID}"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return True


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_second_client_sees_the_log_and_then_what_follows(bench: Bench) -> None:
    shim = bench.run(
        "sh",
        "-c",
        "n=0; while [ $n -lt 20000 ]; do echo line $n; n=$((n+1)); done; printf end; sleep 100",
    )
    peer = bench.peer()
    shim.attach({"logs": True, **BOTH}, peer.fd)
    data = b""
    while not unframe_partial(data).endswith(b"end"):
        data += peer.socket.recv(65536)
    assert unframe_partial(data) == b"".join(b"line %d\n" % n for n in range(20000)) + b"end"


def unframe_partial(data: bytes) -> bytes:
    out = b""
    position = 0
    parts = []
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "big")
        parts.append(data[position + 8 : position + 8 + length])
        position += 8 + length
    return out.join(parts)


def test_logs_without_stream_ends_after_the_replay(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "echo a; sleep 100")
    deadline = time.monotonic() + 30
    while not log_text(shim):
        assert time.monotonic() < deadline
    peer = bench.peer()
    shim.attach({"logs": True, "stream": False, **BOTH}, peer.fd)
    assert unframe(peer.read_to_end())[1] == b"a\n"


def test_a_client_that_vanishes_does_not_disturb(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-c", "seq 1 100000; echo last", attach=[{"fd": 0, **BOTH}], fds=(peer.fd,)
    )
    peer.theirs.close()
    peer.socket.close()
    assert shim.wait_event("exit")["exit_code"] == 0
    assert log_text(shim).endswith(b"100000\nlast\n")


# --- tty -----------------------------------------------------------------------------------------------------------


def test_a_terminal_has_the_size_asked_for_and_follows_resize(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", tty=True, open_stdin=True, stdin_once=True, console_size=[30, 100],
        attach=[{"fd": 0, "stdin": True, "stdout": True, "stderr": True}], fds=(peer.fd,),
    )  # fmt: skip
    peer.socket.sendall(b"stty size; tty\n")
    seen = peer.read_until(b"/dev/pts/0")
    assert b"30 100" in seen
    shim.resize(50, 120)
    peer.socket.sendall(b"stty size; exit 3\n")
    assert b"50 120" in peer.read_to_end()
    assert shim.wait_event("exit")["exit_code"] == 3


def test_detach_keys_leave_the_container_running(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", tty=True, open_stdin=True, stdin_once=True,
        attach=[{"fd": 0, "stdin": True, "stdout": True, "stderr": True, "detach_keys": [16, 17], "name": "me"}],
        fds=(peer.fd,),
    )  # fmt: skip
    peer.socket.sendall(b"echo mark\n")
    peer.read_until(b"mark")
    peer.socket.sendall(b"\x10")
    peer.socket.sendall(b"\x11")
    event = shim.wait_event("attach_end")
    assert event["detached"] and event["name"] == "me"
    peer.read_to_end()
    again = bench.peer()
    shim.attach({"stdin": True, "stdout": True, "stderr": True}, again.fd)
    again.socket.sendall(b"echo $((40+2))\n")
    again.read_until(b"42")


# --- exec ----------------------------------------------------------------------------------------------------------


def process(*args: str, tty: bool = False) -> dict[str, Any]:
    return {
        "args": list(args),
        "env": ["PATH=/bin:/sbin"],
        "cwd": "/",
        "terminal": tty,
        "user": {"uid": 0, "gid": 0},
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPS),
    }


def test_exec_has_its_own_streams_and_exit_code(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    peer = bench.peer()
    shim.exec(
        {"exec_id": "a", "process": process("sh", "-c", "echo in $PPID; exit 5"), "attach": BOTH},
        peer.fd,
    )
    assert unframe(peer.read_to_end())[1] == b"in 0\n"
    assert shim.wait_event("exec_exit")["exit_code"] == 5


def test_exec_reads_stdin(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    peer = bench.peer()
    wish = {
        "exec_id": "a",
        "process": process("cat"),
        "open_stdin": True,
        "attach": {"stdin": True, **BOTH},
    }
    shim.exec(wish, peer.fd)
    peer.socket.sendall(b"x" * 300000)
    peer.socket.shutdown(socket.SHUT_WR)
    assert unframe(peer.read_to_end())[1] == b"x" * 300000


def test_exec_with_a_terminal(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    peer = bench.peer()
    wish = {
        "exec_id": "a", "process": process("sh", tty=True), "tty": True, "open_stdin": True, "console_size": [11, 22],
        "attach": {"stdin": True, "stdout": True, "stderr": True},
    }  # fmt: skip
    shim.exec(wish, peer.fd)
    peer.socket.sendall(b"stty size; exit 9\n")
    assert b"11 22" in peer.read_to_end()
    assert shim.wait_event("exec_exit")["exit_code"] == 9


def test_a_health_check_gets_its_output_bounded(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    shim.exec(
        {
            "exec_id": "h",
            "process": process("sh", "-c", "seq 1 100000; echo bad >&2; exit 1"),
            "capture": 4096,
        }
    )
    event = shim.wait_event("exec_exit")
    output = base64.b64decode(event["output"])
    assert event["exit_code"] == 1
    assert len(output) == 4096 and output.startswith(b"1\n2\n")
    assert event["truncated"]


def test_an_exec_that_cannot_start_leaves_the_container_alone(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    with pytest.raises(errors.InvalidArgument, match="executable file not found"):
        shim.exec({"exec_id": "a", "process": process("nosuch")})
    assert len(shim.processes()) == 1


def test_execs_end_before_their_container(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    shim.exec({"exec_id": "a", "process": process("sleep", "100")})
    shim.kill(9)
    shim.wait_event("gone")
    names = [event["event"] for event in shim.events]
    assert names.index("exec_exit") < names.index("exit")


def test_exec_can_be_signalled(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    shim.exec({"exec_id": "a", "process": process("sleep", "100")})
    shim.kill(15, exec_id="a")
    assert shim.wait_event("exec_exit")["exit_code"] == 143
    with pytest.raises(errors.NotFound):
        shim.kill(15, exec_id="a")


# --- orders --------------------------------------------------------------------------------------------------------


def test_pause_stops_and_unpause_goes_on(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "while :; do echo tick; sleep 0.01; done")
    shim.pause()
    state = read_state(shim.directory)
    assert state is not None and state["status"] == "paused"
    shim.processes()  # a turn of the loop: what was written before is in the log now
    size = os.path.getsize(f"{shim.directory}/json.log")
    time.sleep(0.1)
    assert os.path.getsize(f"{shim.directory}/json.log") == size
    with pytest.raises(errors.Conflict):
        shim.pause()
    with pytest.raises(errors.Conflict):
        shim.exec({"exec_id": "a", "process": process("true")})
    shim.unpause()
    deadline = time.monotonic() + 30
    while os.path.getsize(f"{shim.directory}/json.log") == size:
        assert time.monotonic() < deadline
    with pytest.raises(errors.Conflict):
        shim.unpause()


def test_a_paused_container_can_be_killed(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    shim.pause()
    shim.kill(9)
    assert shim.wait_event("exit")["exit_code"] == 137


def test_limits_change_while_it_runs(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    assert shim.update({"memory": {"limit": 32 << 20}}) == []


# --- who dies, who lives -------------------------------------------------------------------------------------------


def test_an_engine_that_comes_back_finds_everything(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "echo 1; sleep 0.3; echo 2; exit 4")
    wait_file(shim)
    shim.close()
    again = ShimClient.open(shim.directory)
    bench.shims.append(again)
    assert again.info["state"]["status"] == "running"
    assert again.info["state"]["pid"] == shim.info["pid"]
    assert again.wait_event("exit")["exit_code"] == 4
    assert log_text(shim) == b"1\n2\n"


def test_an_exit_while_no_engine_is_there_is_on_disk(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "sleep 0.1; exit 42")
    shim.close()
    deadline = time.monotonic() + 30
    while (found := read_exit(shim.directory)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found["exit_code"] == 42
    wait_gone(f"{shim.directory}/{protocol.SHIM_SOCKET}")
    with pytest.raises(ShimGone):
        ShimClient.open(shim.directory)


def test_a_container_never_waits_for_an_absent_engine(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "seq 1 600000; exit 3")
    shim.close()
    deadline = time.monotonic() + 20
    while (found := read_exit(shim.directory)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found["exit_code"] == 3
    assert log_text(shim).endswith(b"599999\n600000\n")


def launcher_pid(bench: Bench) -> int:
    """By the socket it listens on would need netlink; its shims' parent is the launcher."""
    shim = bench.run("sleep", "100")
    wait_file(shim)
    shim_pid = int((Path(shim.directory) / "shim.pid").read_text().split()[0])
    return procfs.stat(shim_pid).parent


def test_a_killed_launcher_leaves_containers_and_another_takes_over(bench: Bench) -> None:
    pid = launcher_pid(bench)
    os.kill(pid, signal.SIGKILL)
    shim = bench.shims[-1]
    assert shim.processes()
    bench.run("true").wait_event("exit")
    bench.run("sh", "-c", "exit 6")
    assert bench.shims[-1].wait_event("exit")["exit_code"] == 6
    assert shim.processes()


def test_a_killed_shim_takes_its_container_along(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    wait_file(shim)
    pid = int((Path(shim.directory) / "shim.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while procfs.is_alive(shim.info["pid"], shim.info["start_time"]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(ShimGone):
        shim.kill(9)


def test_spare_shims_end_with_their_engine(bench: Bench) -> None:
    pid = launcher_pid(bench)
    deadline = time.monotonic() + 30
    while len(procfs.children(pid)) < 2:  # the container's and the spare one
        assert time.monotonic() < deadline
    other = LauncherClient(bench.launcher.run_dir, spare=3)
    other.ensure()
    while len(procfs.children(pid)) < 5:
        assert time.monotonic() < deadline
    other.close()
    while len(procfs.children(pid)) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- what others can see -------------------------------------------------------------------------------------------


def test_launcher_and_shim_cannot_be_looked_into(bench: Bench) -> None:
    pid = launcher_pid(bench)
    shim_pid = int((Path(bench.shims[-1].directory) / "shim.pid").read_text().split()[0])
    for seen in (pid, shim_pid):
        assert os.stat(f"/proc/{seen}/environ").st_uid == 0
        assert Path(f"/proc/{seen}/environ").read_bytes() == b""
        assert os.readlink(f"/proc/{seen}/exe").startswith("/memfd:")
        flags = procfs.status(seen)
        assert flags["Threads"] == "1"


def test_no_descriptor_of_ours_reaches_the_container(bench: Bench) -> None:
    peer = bench.peer()
    bench.run("ls", "-l", "/proc/self/fd", attach=[{"fd": 0, **BOTH}], fds=(peer.fd,))
    lines = [line for line in unframe(peer.read_to_end())[1].splitlines() if b"->" in line]
    assert {line.split()[-3] for line in lines} <= {b"0", b"1", b"2", b"3"}
    assert len(lines) <= 4  # 0, 1, 2 and perhaps the directory that ls reads


def test_the_container_has_no_signal_ignored(bench: Bench) -> None:
    peer = bench.peer()
    bench.run("grep", "Sig[IB]", "/proc/self/status", attach=[{"fd": 0, **BOTH}], fds=(peer.fd,))
    assert set(unframe(peer.read_to_end())[1].split()[1::2]) == {b"0000000000000000"}


# --- --init --------------------------------------------------------------------------------------------------------


def test_init_reaps_orphans_and_passes_the_exit_code_on(bench: Bench) -> None:
    peer = bench.peer()
    script = "for i in 1 2 3; do (sleep 0.01 &); done; sleep 0.2; grep -l ') Z' /proc/[0-9]*/stat; exit 9"
    shim = bench.run(
        "sh", "-c", script, extra={"init": True}, attach=[{"fd": 0, **BOTH}], fds=(peer.fd,)
    )  # fmt: skip
    assert b"/stat" not in unframe(peer.read_to_end())[1]
    assert shim.wait_event("exit")["exit_code"] == 9


def test_init_passes_signals_to_the_program(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-c", "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        extra={"init": True}, attach=[{"fd": 0, **BOTH}], fds=(peer.fd,),
    )  # fmt: skip
    peer.read_until(b"ready")
    shim.kill(15)
    assert b"got it" in peer.read_to_end()
    assert shim.wait_event("exit")["exit_code"] == 3


def test_init_tells_a_death_by_signal(bench: Bench) -> None:
    shim = bench.run("sh", "-c", "kill -9 $$", extra={"init": True})
    assert shim.wait_event("exit")["exit_code"] == 137


def test_init_does_not_hide_a_missing_program(bench: Bench) -> None:
    with pytest.raises(errors.InvalidArgument, match="executable file not found"):
        bench.launcher.launch(bench.request("nosuch", extra={"init": True}))


def is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    except OSError:  # it has ended
        return False


def test_init_gives_the_program_the_terminal(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run(
        "sh", "-i", tty=True, open_stdin=True, stdin_once=True, extra={"init": True},
        attach=[{"fd": 0, "stdin": True, "stdout": True, "stderr": True}], fds=(peer.fd,),
    )  # fmt: skip
    peer.socket.sendall(b"sleep 100\n")
    peer.read_until(b"sleep 100")
    assert eventually(lambda: any(map(is_sleep, shim.processes())))
    peer.socket.sendall(b"\x03")
    peer.socket.sendall(b"echo $((6*7)); exit 4\n")
    assert b"42" in peer.read_to_end()
    assert shim.wait_event("exit")["exit_code"] == 4


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attach",
    [
        {"fd": 7},
        {"fd": -1},
        {"fd": "x"},
        {"fd": 0, "detach_keys": [300]},
        {"fd": 0, "preread": "%"},
        "text",
    ],
)
def test_a_bad_attach_is_refused_before_anything_runs(bench: Bench, attach: Any) -> None:
    peer = bench.peer()
    request = bench.request("true", attach=[attach])
    with pytest.raises(errors.InvalidArgument, match="attach"):
        bench.launcher.launch(request, (peer.fd,))
    assert os.listdir(request["dir"]) == []


def test_nonsense_on_a_control_socket_is_answered_or_ends_that_connection(bench: Bench) -> None:
    shim = bench.run("sleep", "100")
    wait_file(shim)
    for message in (
        {"op": "dance"},
        {"op": "hello", "v": 99},
        {"op": "exec"},
        {"op": "attach"},
        {"op": "kill", "signal": "x"},
    ):
        with pytest.raises(errors.SampanError):
            shim.call(message)
    for packet in (b"", b"{", b"[1]", b"\xff" * 100):
        link = Channel.connect(f"{shim.directory}/{protocol.SHIM_SOCKET}")
        link.socket.send(packet)
        assert link.receive() is None
        link.close()
    assert len(shim.processes()) == 1


def test_big_requests_travel_whole(bench: Bench) -> None:
    peer = bench.peer()
    shim = bench.run("sleep", "100")
    big = process("sh", "-c", "echo ${#BIG}")
    big["env"] = [*big["env"], "BIG=" + "x" * 120000]
    shim.exec({"exec_id": "a", "process": big, "attach": BOTH}, peer.fd)
    assert unframe(peer.read_to_end())[1] == b"120000\n"


def test_a_launcher_of_other_code_is_replaced_and_containers_stay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = launcher_pid(bench)
    started = procfs.start_time(old)
    bench.launcher.close()
    monkeypatch.setattr("sampan.shim.starting.identity", lambda python, source: "newer code")
    bench.launcher.ensure()
    deadline = time.monotonic() + 30
    while procfs.is_alive(old, started):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert bench.shims[-1].processes()
    bench.run("true").wait_event("exit")


def capabilities(pid: int, name: str = "CapEff") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(f"{name}:"))


def test_a_shim_gives_up_its_powers_but_for_an_exec_and_an_update(bench: Bench) -> None:
    request = bench.request("sleep", "1000")
    request["spec"]["process"]["user"] = {"uid": 1000, "gid": 1000}
    bench.shims.append(bench.launcher.launch(request, ()))
    shim = bench.shims[-1]
    wait_file(shim)
    kept = KEPT & capabilities(os.getpid(), "CapPrm")
    pid = int((Path(shim.directory) / "shim.pid").read_text().split()[0])
    assert shim.processes()  # answered after the adoption
    assert capabilities(pid) == kept
    # No waiting for the exec to become its program: it lives in between with what the join needs.
    shim.exec(
        {
            "exec_id": "a",
            "process": process("cat", "/proc/self/status"),
            "privileged": True,
            "capture": 65536,
        }
    )
    status = base64.b64decode(shim.wait_event("exec_exit")["output"]).decode()
    assert f"CapEff:\t{capabilities(os.getpid(), 'CapPrm'):016x}" in status
    assert capabilities(pid) == kept
    devices = [{"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}]
    assert not shim.update({"memory": {"limit": 48 << 20}, "devices": devices})
    shim.kill(9)  # a process of another user
    assert shim.wait_event("exit")["exit_code"] == 137
