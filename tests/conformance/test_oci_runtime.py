"""sampan-oci from outside, as an engine drives it: life cycle, what the process sees, refusals, hostile roots."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.runtime.example import example_spec

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts/sampan-oci"


class Runtime:
    """The program, with a state directory of its own and bundles made from one small root."""

    def __init__(self, base: Path, tree: Path) -> None:
        self.base = base
        self.tree = tree
        self.state = base / "state"
        self.ids: list[str] = []

    def bundle(
        self, change: Callable[[dict[str, Any]], None] | None = None, **process: Any
    ) -> Path:
        path = self.base / f"bundle{len(list(self.base.glob('bundle*')))}"
        path.mkdir()
        subprocess.run(["cp", "-a", str(self.tree), str(path / "rootfs")], check=True)
        spec = example_spec()
        spec["process"].update({"terminal": False, **process})
        spec["linux"]["cgroupsPath"] = f"/sampan-test-{os.getpid()}/{path.name}"
        spec["root"]["readonly"] = False
        if change:
            change(spec)
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def __call__(self, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        if argv[0] in ("run", "create"):
            self.ids.append(argv[-1])
        command = [sys.executable, "-I", "-S", str(SCRIPT), "--root", str(self.state), *argv]
        more.setdefault("timeout", 60)
        if argv[0] != "create" and "-d" not in argv:
            return subprocess.run(command, capture_output=True, text=True, **more)
        # What stays behind holds our pipes open, so it gets files.
        with (self.base / "stdout").open("w+") as out, (self.base / "stderr").open("w+") as err:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **more)
        texts = [(self.base / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, done.returncode, *texts)

    def run(self, bundle: Path, **more: Any) -> subprocess.CompletedProcess[str]:
        return self("run", "--bundle", str(bundle), bundle.name, **more)

    def output(
        self, *args: str, change: Callable[[dict[str, Any]], None] | None = None, **process: Any
    ) -> str:
        """What a command prints in a fresh container; it must succeed."""
        result = self.run(self.bundle(change, args=list(args), **process))
        assert result.returncode == 0, result.stderr
        return result.stdout

    def status(self, container_id: str) -> str:
        text: str = json.loads(self("state", container_id).stdout)["status"]
        return text


@pytest.fixture
def oci(tmp_path: Path, busybox_tree: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path, busybox_tree)
    yield runtime
    for container_id in runtime.ids:
        runtime("delete", "--force", container_id)
    assert (
        not runtime.state.exists()
        or [n for n in os.listdir(runtime.state) if n != ".seccomp"] == []
    )
    # Each hierarchy's top level, and no walk through it: other people's cgroups come and go meanwhile.
    base, name = Path("/sys/fs/cgroup"), f"sampan-test-{os.getpid()}"
    for directory in (*base.glob(name), *base.glob(f"*/{name}")):
        assert [p for p in directory.iterdir() if p.is_dir()] == []
        directory.rmdir()


# --------------------------------------------------------------------------------------- life cycle


def test_the_exit_code_is_the_programs(oci: Runtime) -> None:
    assert oci.run(oci.bundle(args=["sh", "-c", "exit 7"])).returncode == 7
    assert oci.run(oci.bundle(args=["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])).returncode == 137


def test_created_waits_for_start_and_stopped_can_be_deleted(oci: Runtime, tmp_path: Path) -> None:
    bundle = oci.bundle(args=["sh", "-c", "echo started > /out"])
    pid_file = tmp_path / "pid"
    assert oci("create", "--bundle", str(bundle), "--pid-file", str(pid_file), "c").returncode == 0
    state = json.loads(oci("state", "c").stdout)
    assert state["status"] == "created"
    assert state["pid"] == int(pid_file.read_text())
    assert state["bundle"] == str(bundle)
    assert not (bundle / "rootfs/out").exists()
    pidfd = os.pidfd_open(state["pid"])
    assert oci("start", "c").returncode == 0
    wait_for_end(pidfd)
    assert (bundle / "rootfs/out").read_text() == "started\n"
    assert oci.status("c") == "stopped"
    assert "cannot start a container that has stopped" in oci("start", "c").stderr
    assert oci("delete", "c").returncode == 0
    gone = oci("state", "c")
    assert gone.returncode == 1
    assert "container does not exist" in gone.stderr


def wait_for_end(pidfd: int) -> None:
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(30_000)
    os.close(pidfd)


def test_start_of_a_program_that_ends_at_once_succeeds(oci: Runtime) -> None:
    for number in range(5):
        name = f"short{number}"
        assert oci("create", "--bundle", str(oci.bundle(args=["true"])), name).returncode == 0
        assert oci("start", name).returncode == 0


def test_a_running_container_is_deleted_only_with_force(oci: Runtime) -> None:
    bundle = oci.bundle(args=["sleep", "1000"])
    assert oci("run", "-d", "--bundle", str(bundle), "c").returncode == 0
    refused = oci("delete", "c")
    assert refused.returncode == 1
    assert "cannot delete container c that is not stopped: running" in refused.stderr
    again = oci("run", "-d", "--bundle", str(bundle), "c")
    assert "container with given ID already exists" in again.stderr
    assert oci("delete", "--force", "c").returncode == 0
    assert oci("delete", "--force", "c").returncode == 0


def test_signals_reach_process_one_by_name_and_number(oci: Runtime) -> None:
    bundle = oci.bundle(
        args=["sh", "-c", "trap 'exit 0' USR1; echo ready > /ready; while :; do sleep 0.01; done"]
    )
    oci("run", "-d", "--bundle", str(bundle), "c")
    pidfd = os.pidfd_open(json.loads(oci("state", "c").stdout)["pid"])
    while not (bundle / "rootfs/ready").exists():
        os.sched_yield()
    assert "unknown signal" in oci("kill", "c", "NOPE").stderr
    assert oci("kill", "c", "USR1").returncode == 0
    wait_for_end(pidfd)
    assert "container not running" in oci("kill", "c", "9").stderr


def test_pause_freezes_and_exec_waits_for_resume(oci: Runtime) -> None:
    oci("run", "-d", "--bundle", str(oci.bundle(args=["sleep", "1000"])), "c")
    assert oci("resume", "c").returncode == 1
    assert oci("pause", "c").returncode == 0
    assert oci.status("c") == "paused"
    assert "paused container" in oci("exec", "c", "true").stderr
    assert oci("resume", "c").returncode == 0
    assert oci("exec", "c", "true").returncode == 0


def test_exec_joins_everything_and_gives_its_exit_code(oci: Runtime) -> None:
    oci("run", "-d", "--bundle", str(oci.bundle(args=["sleep", "1000"])), "c")
    result = oci(
        "exec",
        "--env",
        "A=b",
        "--cwd",
        "/tmp",
        "--user",
        "1000:1000",
        "c",
        "sh",
        "-c",
        "echo $A $(id -u) $(pwd) $(hostname); exit 3",
    )
    assert (result.stdout, result.returncode) == ("b 1000 /tmp sampan\n", 3)
    pids = json.loads(oci("ps", "--format", "json", "c").stdout)
    assert pids == [json.loads(oci("state", "c").stdout)["pid"]]
    missing = oci("exec", "c", "nope")
    assert missing.returncode == 255
    assert "executable file not found in $PATH" in missing.stderr


def test_limits_can_be_changed_while_it_runs(oci: Runtime) -> None:
    oci("run", "-d", "--bundle", str(oci.bundle(args=["sleep", "1000"])), "c")
    assert oci("update", "--pids-limit", "77", "c").returncode == 0
    assert (
        oci("update", "--resources", "-", "c", input='{"memory":{"limit":67108864}}').returncode
        == 0
    )
    stats = json.loads(oci("events", "--stats", "c").stdout)["data"]
    assert stats["pids"]["limit"] == 77
    assert stats["memory"]["usage"]["limit"] == 67108864
    assert "--resources" in oci("update", "--resources", "-", "c", input="{").stderr


# ------------------------------------------------------------------------- what the process is given


def test_namespaces_name_and_pid(oci: Runtime) -> None:
    lines = oci.output(
        "sh", "-c", "echo $$; hostname; ls /proc | grep -c '^[0-9]'; cat /proc/self/cgroup"
    ).splitlines()
    assert lines[:2] == ["1", "sampan"]
    assert int(lines[2]) < 5
    assert all(line.endswith(":/") for line in lines[3:])


def test_no_signal_is_ignored_or_blocked_and_no_descriptor_leaks(oci: Runtime) -> None:
    text = oci.output(
        "sh", "-c", "grep -E 'SigIgn|SigBlk|Umask|Groups' /proc/self/status; ls /proc/self/fd"
    )
    words = text.split()
    assert words[words.index("SigIgn:") + 1] == words[words.index("SigBlk:") + 1] == "0" * 16
    assert [w for w in words if w.isdigit() and len(w) < 3] == ["0", "1", "2", "3"]  # 3 is ls's own
    assert "0022" in words


def test_capabilities_are_exactly_those_named(oci: Runtime) -> None:
    text = oci.output("grep", "Cap", "/proc/self/status")
    mask = f"{1 << 5 | 1 << 10 | 1 << 29:016x}"
    values = dict(line.split(":\t") for line in text.splitlines())
    assert values == {
        "CapInh": "0" * 16,
        "CapPrm": mask,
        "CapEff": mask,
        "CapBnd": mask,
        "CapAmb": "0" * 16,
    }


def test_another_user_has_its_ids_groups_and_no_effective_capabilities(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["process"]["user"] = {
            "uid": 1000,
            "gid": 1000,
            "additionalGids": [5, 6],
            "umask": 0o77,
        }
        spec["process"]["capabilities"] = {"bounding": ["CAP_CHOWN"]}

    text = oci.output(
        "sh",
        "-c",
        "id -u; id -g; id -G; umask; grep CapEff /proc/self/status; echo $HOME",
        change=change,
    )
    assert text.split() == [
        "1000",
        "1000",
        "1000",
        "5",
        "6",
        "0077",
        "CapEff:",
        "0" * 16,
        "/home/user",
    ]


def test_devices_links_and_masks(oci: Runtime) -> None:
    text = oci.output(
        "sh",
        "-c",
        "cat /proc/keys | wc -c; ls /proc/acpi /sys/firmware 2>&1 | grep -vc :; readlink /dev/ptmx; readlink /dev/fd; stat -c '%t:%T %a' /dev/null",
    )
    assert text.splitlines()[0] == "0"
    assert text.splitlines()[-3:] == ["pts/ptmx", "/proc/self/fd", "1:3 666"]


def test_proc_sys_is_read_only_and_sysctls_were_written_before(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "7"}

    text = oci.output(
        "sh",
        "-c",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo 1 > /proc/sys/kernel/msgmax || echo refused",
        change=change,
    )
    assert text.split() == ["7", "refused"]


def test_a_read_only_root_is(oci: Runtime) -> None:
    text = oci.output(
        "sh",
        "-c",
        "touch /x 2>&1; touch /dev/shm/x && echo ok",
        change=lambda s: s["root"].update(readonly=True),
    )
    assert "Read-only file system" in text
    assert text.endswith("ok\n")


def test_limits_of_resources_hold(oci: Runtime) -> None:
    limit = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    assert oci.output("sh", "-c", "ulimit -Sn; ulimit -Hn", rlimits=limit).split() == ["100", "200"]


def test_preserved_descriptors_and_no_others(oci: Runtime, tmp_path: Path) -> None:
    """3 and 4 are holes in the range, and stay closed."""
    bundle = oci.bundle(args=["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; echo passed >&5"])
    oci.ids.append(bundle.name)
    command = [
        sys.executable,
        "-I",
        "-S",
        str(SCRIPT),
        "--root",
        str(oci.state),
        "run",
        "--preserve-fds",
        "3",
    ]
    result = subprocess.run(
        [
            "sh",
            "-c",
            'exec 5>"$0" 6>&5; exec "$@"',
            str(tmp_path / "out"),
            *command,
            "-b",
            str(bundle),
            bundle.name,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (tmp_path / "out").read_text() == "passed\n", result.stderr
    assert result.stdout.split() == ["0", "1", "2", "3", "5"]  # 3 is ls's own


def test_a_user_namespace_with_maps(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [
            {"containerID": 0, "hostID": 100000, "size": 65536}
        ]
        spec["linux"]["devices"] = [
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7}
        ]

    bundle = oci.bundle(
        change,
        args=[
            "sh",
            "-c",
            "cat /proc/self/uid_map; head -c1 /dev/zero | wc -c; stat -c '%a %u' /dev/mine",
        ],
    )
    subprocess.run(["chmod", "755", str(bundle), str(oci.base)], check=True)
    result = oci.run(bundle)
    assert result.stdout.split() == ["0", "100000", "65536", "1", "640", "7"], result.stderr


def test_an_idmapped_bind_shows_the_owner_the_map_says(oci: Runtime, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("x")

    def change(spec: dict[str, Any]) -> None:
        row = [{"containerID": 0, "hostID": 1234, "size": 1000}]
        spec["mounts"].append(
            {
                "destination": "/data",
                "type": "bind",
                "source": str(source),
                "options": ["bind"],
                "uidMappings": row,
                "gidMappings": row,
            }
        )

    assert oci.output("stat", "-c", "%u", "/data/file", change=change) == "1234\n"


def test_a_time_namespace_with_offsets(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"].append({"type": "time"})
        spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000}}

    assert float(oci.output("cat", "/proc/uptime", change=change).split()[0]) > 1000000


def test_tmpcopyup_keeps_what_it_covers(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["mounts"].append(
            {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
        )

    assert "root:x:0:0" in oci.output("cat", "/etc/passwd", change=change)


def test_a_terminal_is_the_containers_own_and_its_master_goes_to_the_socket(
    oci: Runtime, tmp_path: Path
) -> None:
    path = str(tmp_path / "console.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        bundle = oci.bundle(
            args=["sh", "-c", "tty; stat -c %t:%T /dev/console; stty size"],
            terminal=True,
            consoleSize={"height": 11, "width": 22},
        )
        assert oci("create", "--bundle", str(bundle), "--console-socket", path, "c").returncode == 0
        connection, _ = listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
        (master,) = array.array("i", ancillary[0][2])
        oci("start", "c")
        text = b""
        try:
            while chunk := os.read(master, 1000):
                text += chunk
        except OSError:
            pass  # EIO: the other side is closed
        os.close(master)
    assert text.decode().split() == ["/dev/pts/0", "88:0", "11", "22"]


# ------------------------------------------------------------------------------------------- hooks


def test_hooks_are_run_in_their_order_with_the_state_on_stdin(oci: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "hooks.log"
    kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]

    def change(spec: dict[str, Any]) -> None:
        spec["hooks"] = {
            kind: [
                {"path": "/bin/sh", "args": ["sh", "-c", f"(printf '{kind} '; cat; echo) >> {log}"]}
            ]
            for kind in kinds
        }

    assert oci.run(oci.bundle(change, args=["true"])).returncode == 0
    rows = [line.split(" ", 1) for line in log.read_text().splitlines() if line]
    assert [row[0] for row in rows] == kinds
    statuses = [json.loads(row[1])["status"] for row in rows]
    assert statuses == ["created", "creating", "creating", "running", "stopped"]


@pytest.mark.parametrize(
    "kind", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"]
)
def test_a_hook_that_fails_stops_the_container(oci: Runtime, kind: str) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["hooks"] = {kind: [{"path": "/bin/false"}]}

    result = oci.run(oci.bundle(change, args=["sleep", "1000"]))
    assert result.returncode == 1
    assert f"{kind} hook" in result.stderr


def test_a_hook_has_a_time_limit(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["hooks"] = {
            "createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]
        }

    assert "timed out" in oci.run(oci.bundle(change, args=["true"])).stderr


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"ociVersion":"1.0.0"}', "[" * 50_000])
def test_a_config_that_is_none_makes_nothing(oci: Runtime, text: str) -> None:
    bundle = oci.bundle(args=["true"])
    (bundle / "config.json").write_text(text)
    result = oci.run(bundle)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_namespace_of_the_wrong_kind_is_refused_by_name(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        for entry in spec["linux"]["namespaces"]:
            if entry["type"] == "network":
                entry["path"] = "/proc/self/ns/uts"

    result = oci.run(oci.bundle(change, args=["true"]))
    assert "linux.namespaces[" in result.stderr
    assert "is not a network namespace" in result.stderr
    assert "is not a network namespace" in result.stderr


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b"])
def test_a_name_that_is_a_path_is_refused(oci: Runtime, name: str) -> None:
    result = oci("state", name)
    assert result.returncode == 1
    assert "invalid container ID format" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], "executable file not found in $PATH"),
        (["/nope"], "no such file or directory"),
        (["/etc/passwd"], "permission denied"),
        (["/etc"], "is a directory"),
    ],
)
def test_what_cannot_be_executed_is_told_in_gos_words(
    oci: Runtime, args: list[str], words: str
) -> None:
    result = oci.run(oci.bundle(args=args))
    assert result.returncode == 1
    assert words in result.stderr


def test_errors_go_to_the_log_as_json_where_engines_read_them(oci: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    result = oci("--log", str(log), "--log-format", "json", "state", "nobody")
    line = json.loads(log.read_text())
    assert (line["level"], line["msg"]) == ("error", "container does not exist")
    assert result.stderr == "container does not exist\n"


# -------------------------------------------------------------------------------------- hostile roots


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_procfs_and_sysfs_do_not_go_through_a_symlink(
    oci: Runtime, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    bundle = oci.bundle(args=["true"])
    shutil.rmtree(bundle / "rootfs" / name)
    (bundle / "rootfs" / name).symlink_to(outside)
    result = oci.run(bundle)
    assert result.returncode == 1
    assert "must be mounted on ordinary directory" in result.stderr
    assert list(outside.iterdir()) == []


def test_a_bind_target_behind_a_symlink_stays_inside(oci: Runtime, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def change(spec: dict[str, Any]) -> None:
        spec["mounts"].append({"destination": "/data/deep", "type": "tmpfs", "source": "tmpfs"})

    bundle = oci.bundle(change, args=["true"])
    (bundle / "rootfs/data").symlink_to(outside)
    assert oci.run(bundle).returncode == 0
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/self", "/proc/1/attr", "/proc/sys/kernel", "/link"])
def test_nothing_is_mounted_over_procfs(oci: Runtime, place: str) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["mounts"].append(
            {"destination": place, "type": "bind", "source": "/tmp", "options": ["bind"]}
        )

    bundle = oci.bundle(change, args=["true"])
    (bundle / "rootfs/link").symlink_to("/proc/self")
    result = oci.run(bundle)
    assert result.returncode == 1
    assert "inside /proc" in result.stderr


@pytest.mark.parametrize("how", ["argument", "script", "symlink"])
def test_the_interpreter_we_run_in_is_not_the_containers(oci: Runtime, how: str) -> None:
    """CVE-2019-5736: /proc/self/exe at execve would be our own Python."""
    bundle = oci.bundle(
        args=["/proc/self/exe" if how == "argument" else "/evil", "-c", "print('engine code ran')"]
    )
    evil = bundle / "rootfs/evil"
    if how == "script":
        evil.write_text("#!/proc/self/exe\nprint('engine code ran')\n")
        evil.chmod(0o755)
    else:
        evil.symlink_to("/proc/self/exe")
    result = oci.run(bundle)
    assert result.returncode == 1
    assert "permission denied" in result.stderr
    assert "engine code ran" not in result.stdout


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/fd/5/.."])
def test_a_working_directory_outside_is_refused(oci: Runtime, cwd: str) -> None:
    """CVE-2024-21626."""
    result = oci.run(oci.bundle(args=["pwd"], cwd=cwd))
    assert result.returncode == 1
    assert result.stdout == ""


def test_no_module_of_the_image_is_imported(oci: Runtime) -> None:
    """Rule P2: a module search path inside the image must find nobody looking."""
    bundle = oci.bundle(args=["true"])
    for name in ("encodings", "socket", "select", "re"):
        folder = bundle / "rootfs" / name
        folder.mkdir()
        (folder / "__init__.py").write_text("open('/pwned','w')\n")
    for sub in ("usr/lib/python3.11", str(REPOSITORY / "src").lstrip("/")):
        folder = bundle / "rootfs" / sub
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "idna.py").write_text("open('/pwned','w')\n")
    assert oci.run(bundle).returncode == 0
    assert not (bundle / "rootfs/pwned").exists()


def test_who_joins_a_container_cannot_be_looked_into(oci: Runtime) -> None:
    """Rule P3: while exec joins, a root inside sees a process that gives nothing away."""
    # What is still called python afterwards was python when it was looked at; the rest has executed meanwhile.
    watcher = """
        echo ready > /ready
        while [ ! -e /stop ]; do
            for p in /proc/[0-9]*; do
                case $p in /proc/1|/proc/$$) continue;; esac
                case $(cat $p/comm 2>/dev/null) in python*) ;; *) continue;; esac
                seen=$(cat $p/environ $p/maps 2>/dev/null
                    for l in exe cwd root fd/0 fd/3 fd/4 fd/5; do readlink $p/$l 2>/dev/null; done)
                case $(cat $p/comm 2>/dev/null) in python*) echo "seen $seen" >> /leak;; esac
            done
        done"""
    bundle = oci.bundle(args=["sh", "-c", watcher])
    oci("run", "-d", "--bundle", str(bundle), "c")
    while not (bundle / "rootfs/ready").exists():
        os.sched_yield()
    for _ in range(15):
        assert oci("exec", "c", "true").returncode == 0
    (bundle / "rootfs/stop").write_text("")
    leak = bundle / "rootfs/leak"
    assert not leak.exists() or set(leak.read_text().splitlines()) == {"seen "}


def test_a_killed_create_leaves_nothing_that_a_delete_cannot_take(oci: Runtime) -> None:
    bundle = oci.bundle(args=["sleep", "1000"])
    oci("create", "--bundle", str(bundle), "c")
    pid = json.loads(oci("state", "c").stdout)["pid"]
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_for_end(pidfd)
    assert oci.status("c") == "stopped"
    assert oci("delete", "c").returncode == 0


# ----------------------------------------------------------------------- what other engines rely on


@pytest.mark.parametrize("how", ["run", "detached", "start"])
def test_a_service_manager_hears_ready_and_nothing_else(
    oci: Runtime, tmp_path: Path, how: str
) -> None:
    """The program's side is played from outside, on the socket that the container's directory holds."""
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager.sock")}
    script = 'echo "$NOTIFY_SOCKET"; ls -l "$NOTIFY_SOCKET"; until [ -e /go ]; do sleep 0.05; done'
    bundle = oci.bundle(args=["sh", "-c", script + "; echo end"])
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--root", str(oci.state)]
    operands = ["--bundle", str(bundle), "c"]
    oci.ids.append("c")
    datagrams = (socket.AF_UNIX, socket.SOCK_DGRAM)
    with (
        socket.socket(*datagrams) as manager,
        socket.socket(*datagrams) as sender,
        (tmp_path / "out").open("w+") as out,
    ):
        manager.bind(environment["NOTIFY_SOCKET"])
        manager.settimeout(30)
        if how == "start":
            oci("create", *operands, env=environment)
            command += ["start", "c"]
        else:
            command += ["run", *(["-d"] if how == "detached" else []), *operands]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        for text in (b"STATUS=soon", b"MAINPID=1", b"READY=1\nSTATUS=well"):
            send_when_there(sender, oci.state / "c/notify/notify", text)
        assert manager.recv(4096) == b"READY=1\n"
        if how == "detached":
            assert manager.recv(4096).startswith(b"MAINPID=")
            assert manager.recv(4096) == b"BARRIER=1"
        (bundle / "rootfs/go").touch()
        assert process.wait(60) == 0
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    if how == "run":
        printed = (tmp_path / "out").read_text()
        assert printed.startswith(environment["NOTIFY_SOCKET"] + "/notify\n")
        assert "srwxrwxrwx" in printed


def send_when_there(sender: socket.socket, place: Path, data: bytes) -> None:
    for _ in range(3000):
        try:
            sender.sendto(data, str(place))
            return
        except (FileNotFoundError, ConnectionRefusedError):
            signal.sigtimedwait([], 0.01)
    raise AssertionError(f"nobody listens at {place}")


def test_a_frozen_cgroup_is_refused_instead_of_waited_in(oci: Runtime) -> None:
    bundle = oci.bundle(args=["true"])
    path = json.loads((bundle / "config.json").read_text())["linux"]["cgroupsPath"]
    freezers = [
        d for d in ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup") if os.path.exists(d + "/tasks")
    ]
    if freezers:
        directory, file, word, thaw = freezers[0] + path, "freezer.state", "FROZEN", "THAWED"
    else:
        directory, file, word, thaw = "/sys/fs/cgroup" + path, "cgroup.freeze", "1", "0"
    os.makedirs(directory)
    Path(directory, file).write_text(word)
    try:
        result = oci.run(bundle)
        assert result.returncode == 1
        assert "container's cgroup unexpectedly frozen" in result.stderr
    finally:
        Path(directory, file).write_text(thaw)
        os.rmdir(directory)


def test_a_process_runs_on_every_cpu_of_its_cgroup(oci: Runtime) -> None:
    allowed = os.sched_getaffinity(0)
    bundle = oci.bundle(args=["grep", "Cpus_allowed_list", "/proc/self/status"])
    everywhere = oci.run(bundle).stdout
    one = min(allowed)
    confined = oci.run(
        oci.bundle(args=["grep", "Cpus_allowed_list", "/proc/self/status"]),
        preexec_fn=lambda: os.sched_setaffinity(0, {one}),
    )
    assert confined.stdout == everywhere


def test_kill_reaches_all_where_the_pid_namespace_is_not_its_own(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        namespaces = spec["linux"]["namespaces"]
        namespaces[:] = [entry for entry in namespaces if entry["type"] != "pid"]

    bundle = oci.bundle(change, args=["sh", "-c", "sleep 1000 & echo $! > /child; wait"])
    assert oci("run", "-d", "--bundle", str(bundle), "c").returncode == 0
    child = bundle / "rootfs/child"
    for _ in range(3000):
        if child.exists() and child.read_text().strip():
            break
        signal.sigtimedwait([], 0.01)
    pidfd = os.pidfd_open(int(child.read_text()))
    assert oci("kill", "c", "KILL").returncode == 0
    wait_for_end(pidfd)


def test_kill_ends_a_container_that_waits_for_start(oci: Runtime) -> None:
    bundle = oci.bundle(args=["true"])
    assert oci("create", "--bundle", str(bundle), "c").returncode == 0
    pidfd = os.pidfd_open(json.loads(oci("state", "c").stdout)["pid"])
    assert oci("kill", "c", "TERM").returncode == 0
    wait_for_end(pidfd)


def test_what_starts_in_the_container_has_no_more_rights_than_its_program(oci: Runtime) -> None:
    """A startContainer hook is a program of the image."""

    def change(spec: dict[str, Any]) -> None:
        hook = "echo $ONE > /seen; grep -E 'CapEff|CapBnd' /proc/self/status >> /seen; ls /proc/self/fd | wc -l >> /seen"
        spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]}
        spec["process"]["env"].append("ONE=two")
        spec["process"]["capabilities"] = {
            "bounding": ["CAP_KILL"],
            "effective": [],
            "permitted": [],
        }

    bundle = oci.bundle(change, args=["true"])
    assert oci.run(bundle).returncode == 0
    variable, *sets, descriptors = (bundle / "rootfs/seen").read_text().split("\n")[:4]
    assert variable == "two"
    assert descriptors == "4"  # three and the directory that is listed
    assert {line.split()[1] for line in sets} == {"0000000000000000", "0000000000000020"}


def test_a_read_only_tmpfs_holds_what_is_mounted_inside_it(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        for mount in spec["mounts"]:
            if mount["destination"] == "/dev":
                mount["options"].append("ro")

    script = "touch /dev/x 2>&1; ls -d /dev/pts/ptmx /dev/null /dev/console"
    text = oci.output("sh", "-c", script, change=change, terminal=True)
    assert "Read-only file system" in text
    assert "/dev/pts/ptmx" in text


def test_an_unknown_system_call_is_an_error_where_that_is_asked_for(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        rule = {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"}
        spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

    def strictly(spec: dict[str, Any]) -> None:
        change(spec)
        spec["annotations"] = {"run.oci.seccomp_fail_unknown_syscall": "1"}

    assert oci.run(oci.bundle(change, args=["true"])).returncode == 0
    refused = oci.run(oci.bundle(strictly, args=["true"]))
    assert refused.returncode == 1
    assert "no_such_call" in refused.stderr


def test_a_time_namespace_beside_a_user_namespace(oci: Runtime) -> None:
    def change(spec: dict[str, Any]) -> None:
        linux = spec["linux"]
        linux["namespaces"] += [{"type": "user"}, {"type": "time"}]
        linux["uidMappings"] = linux["gidMappings"] = [
            {"containerID": 0, "hostID": 0, "size": 65536}
        ]
        linux["timeOffsets"] = {"monotonic": {"secs": 7881, "nanosecs": 0}}

    assert "7881" in oci.output("cat", "/proc/self/timens_offsets", change=change)


def test_a_terminal_in_the_foreground_adds_no_carriage_returns(oci: Runtime) -> None:
    """Ours, when we have one, adds them; a pipe wants the lines as they were written (runc's choice)."""
    bundle = oci.bundle(args=["sh", "-c", "echo one; echo two"], terminal=True)
    assert oci.run(bundle).stdout == "one\ntwo\n"
    bundle = oci.bundle(args=["sleep", "1000"])
    assert oci("run", "-d", "--bundle", str(bundle), "c").returncode == 0
    assert oci("exec", "-t", "c", "echo", "three").stdout == "three\n"


def test_debug_shows_each_step_before_it_is_done(oci: Runtime) -> None:
    result = oci.run(oci.bundle(args=["true"]))
    assert "level=debug" not in result.stderr
    bundle = oci.bundle(args=["true"])
    oci.ids.append("d")
    told = oci("--debug", "run", "--bundle", str(bundle), "d").stderr
    assert told.index('level=debug msg="mount proc on /proc"') < told.index("execute true")


@pytest.mark.parametrize(("wanted", "name"), [("eth7", "eth7"), ("eth%d", "eth0")])
def test_a_network_device_moves_with_its_addresses(oci: Runtime, wanted: str, name: str) -> None:
    """runtime-spec 1.3, "Network Devices": permanent global addresses stay, the device comes up."""
    from sampan.linux import netlink as nl

    here, far = f"sm{os.getpid() % 100000}a", f"sm{os.getpid() % 100000}b"

    def change(spec: dict[str, Any]) -> None:
        spec["linux"]["netDevices"] = {here: {"name": wanted}}

    with nl.Netlink() as netlink:
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        netlink.send(nl.veth(here, peer=far, peer_netns_fd=own))
        os.close(own)
        try:
            index = nl.link_by_name(netlink, here).index
            broadcast, peer = socket.inet_aton("10.99.9.77"), socket.inet_aton("10.98.1.2")
            netlink.send(
                nl.add_address(index, socket.inet_aton("10.99.9.1"), 24, broadcast=broadcast),
                nl.add_address(index, socket.inet_aton("10.98.1.1"), 32, peer=peer),
            )
            text = oci.output("ip", "addr", "show", name, change=change)
        finally:
            for link in nl.links(netlink):
                if link.name in (here, far):
                    netlink.send(nl.delete_link(link.index))
    assert "inet 10.99.9.1/24 brd 10.99.9.77 scope global" in text
    assert "inet 10.98.1.1 peer 10.98.1.2/32 scope global" in text
    assert "UP" in text.split("\n")[0]


@pytest.mark.parametrize("asks", [False, True])
def test_a_missing_seccomp_agent_matters_only_where_it_would_be_asked(
    oci: Runtime, tmp_path: Path, asks: bool
) -> None:
    def change(spec: dict[str, Any]) -> None:
        action = "SCMP_ACT_NOTIFY" if asks else "SCMP_ACT_ERRNO"
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(tmp_path / "nobody"),
            "syscalls": [{"names": ["mkdirat"], "action": action}],
        }

    result = oci.run(oci.bundle(change, args=["true"]))
    assert result.returncode == int(asks)
    assert ("failed to connect with seccomp agent" in result.stderr) is asks
