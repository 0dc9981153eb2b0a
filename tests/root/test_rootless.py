"""The engine as an ordinary user: what containers can do there, what they cannot, and that nothing is left."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.engine import REPOSITORY

pytestmark = pytest.mark.root
ACCOUNT = "sampan-test"
PATIENCE_S = 30.0
PACKAGES = ("msgspec", "httptools", "isal", "backports", "yaml")


class User:
    """An account without rights, with a copy of the engine that it may read, and one engine of its own."""

    def __init__(self, base: Path, uid: int, python: str) -> None:
        self.base = base
        self.uid = uid
        self.python = python
        self.root = base / "data/sampan"
        self.run = base / "run/sampan"
        self.host = f"unix://{self.run}/sampan.sock"
        self.process: subprocess.Popen[bytes] | None = None
        for name in ("data", "run", "config", "home"):
            (base / name).mkdir(mode=0o700)
            os.chown(base / name, uid, uid)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.base / "home"), "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0",
            "XDG_DATA_HOME": str(self.base / "data"), "XDG_RUNTIME_DIR": str(self.base / "run"),
            "XDG_CONFIG_HOME": str(self.base / "config"), "PYTHONPATH": f"{self.base.parent}/code",
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def command(self, *words: str, check: bool = True, input: bytes = b"") -> str:
        done = subprocess.run(
            words, input=input, capture_output=True, env=self.environment, user=self.uid, group=self.uid,
            extra_groups=[], cwd="/", timeout=60, check=False,
        )  # fmt: skip
        text = (done.stdout + done.stderr).decode(errors="replace")
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}: {text}\n{self.log()}")
        return text

    def docker(self, *words: str, check: bool = True, input: bytes = b"") -> str:
        return self.command("docker", *words, check=check, input=input)

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-3000:]

    def start(self) -> None:
        self._start([self.python, "-m", "sampan.daemon"], as_root=False)

    def start_with_a_lent_cgroup(self, name: str) -> None:
        """In a mount namespace that has the unified hierarchy alone, and below a cgroup that is the user's."""
        script = """
            umount -l -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup
            mkdir -p $1/leaf; chown -R $2 $1; echo $$ > $1/leaf/cgroup.procs
            setpriv --reuid $2 --regid $2 --clear-groups $3 -m sampan.daemon
            echo $$ > cgroup.procs  # what outlives the daemon for a moment (the keeper) is still in there
            for _ in $(seq 300); do
                find $1 -depth -type d -exec rmdir {} + 2>/dev/null; [ -d $1 ] || exit 0; sleep 0.1
            done
            find $1 -depth -type d -exec rmdir {} +
        """
        words = ["sh", "-c", script, "sh", name, str(self.uid), self.python]
        self._start(["unshare", "-m", "--propagation", "private", *words], as_root=True)

    def _start(self, command: list[str], *, as_root: bool) -> None:
        with (self.base / "log").open("ab") as log:
            uid = 0 if as_root else self.uid
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                user=uid, group=uid, extra_groups=[], cwd="/", start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log()
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.run / "sampan.sock"))
                    return
                except OSError:
                    time.sleep(0.02)
        raise AssertionError(f"no engine: {self.log()}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        os.kill(int((self.run / "sampan.pid").read_text()), number)
        self.process.wait(PATIENCE_S)

    def processes(self) -> list[str]:
        """What runs under this user and his subordinate ids, the dead apart."""
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            try:
                facts = Path(f"/proc/{entry}/status").read_text()
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if f"\nUid:\t{self.uid}\t" in facts and "State:\tZ" not in facts:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def settle(self) -> list[str]:
        """The same, after what is on its way out has had its time."""
        end = time.monotonic() + PATIENCE_S
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return left


def _interpreter(uid: int, code: Path) -> str:
    """One that this user may start, and for which the engine's packages were built."""
    for python in dict.fromkeys([os.path.realpath(sys.executable), "/usr/bin/python3"]):
        probe = (
            f"import sys, sampan.daemon; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
        )
        try:
            done = subprocess.run(
                [python, "-c", probe], capture_output=True, user=uid, group=uid, extra_groups=[],
                env={"PYTHONPATH": str(code), "PYTHONDONTWRITEBYTECODE": "1"}, cwd="/", check=False,
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return ""


@pytest.fixture(scope="module")
def code(busybox_tar: Path) -> Iterator[Path]:
    """The engine and what it imports, where everybody may read; beside it the image."""
    top = Path(tempfile.mkdtemp(prefix="sampan-rootless-", dir="/tmp"))
    top.chmod(0o755)
    shutil.copytree(REPOSITORY / "src", top / "code", ignore=shutil.ignore_patterns("__pycache__"))
    for directory in filter(os.path.isdir, sys.path):
        for name in os.listdir(directory):
            if name.split(".")[0].split("-")[0] in PACKAGES and not (top / "code" / name).exists():
                source = Path(directory, name)
                if source.is_dir():
                    shutil.copytree(source, top / "code" / name)
                else:
                    shutil.copy(source, top / "code" / name)
    shutil.copy(busybox_tar, top / "busybox.tar")
    (top / "busybox.tar").chmod(0o644)
    subprocess.run(["chmod", "-R", "a+rX", str(top / "code")], check=True)
    yield top
    shutil.rmtree(top)


def _user(code: Path, name: str, uid: int) -> User:
    require(shutil.which("docker") is not None, "needs the docker CLI")
    limit = int(Path("/proc/sys/user/max_user_namespaces").read_text())
    require(limit > 0, "needs user namespaces (user.max_user_namespaces)")
    python = _interpreter(uid, code / "code")
    require(bool(python), "needs an interpreter that other users may start")
    base = code / name
    base.mkdir()
    os.chown(base, uid, uid)
    return User(base, uid, python)


@pytest.fixture(scope="module")
def _account(code: Path) -> Iterator[User]:
    require(shutil.which("newuidmap") is not None, "needs newuidmap (package uidmap)")
    require(shutil.which("useradd") is not None, "needs useradd, to make an account without rights")
    subprocess.run(["useradd", "--no-create-home", "--user-group", ACCOUNT], check=True)
    try:
        user = _user(code, "ours", pwd.getpwnam(ACCOUNT).pw_uid)
        user.start()
        user.docker(
            "import", "-c", 'CMD ["sh"]', "-c", "ENV PATH=/bin", f"{code}/busybox.tar", "busybox"
        )
        yield user
        ids = user.docker("ps", "-aq").split()
        if ids:
            user.docker("rm", "-f", "-v", *ids)
        user.stop()
        assert user.settle() == []
    finally:
        subprocess.run(["userdel", ACCOUNT], check=True)


@pytest.fixture
def user(_account: User) -> Iterator[User]:
    yield _account
    ids = _account.docker("ps", "-aq").split()
    if ids:
        _account.docker("rm", "-f", "-v", *ids)


class TestContainers:
    def test_info_says_so(self, user: User) -> None:
        shown = user.docker(
            "info", "-f", "{{.SecurityOptions}} {{.CgroupDriver}} {{.DockerRootDir}}"
        )
        assert "name=rootless" in shown
        assert "none" in shown
        assert str(user.root) in shown
        assert "without cgroups" in user.docker("info")

    def test_root_inside_is_the_user_outside(self, user: User, tmp_path: Path) -> None:
        shared = user.base / "shared"
        shared.mkdir(exist_ok=True)
        os.chown(shared, user.uid, user.uid)
        script = "touch /s/root; touch /s/other; chown 33:44 /s/other; id -u"
        shown = user.docker("run", "--rm", "-v", f"{shared}:/s", "busybox", "sh", "-c", script)
        assert shown.strip() == "0"
        assert (shared / "root").stat().st_uid == user.uid
        other = (shared / "other").stat()
        assert other.st_uid not in (0, 33, user.uid)
        assert "33 44" in user.docker(
            "run", "--rm", "-v", f"{shared}:/s", "busybox", "stat", "-c", "%u %g", "/s/other"
        )
        user.docker("run", "--rm", "-v", f"{shared}:/s", "busybox", "rm", "/s/other")

    def test_exec_logs_stop_and_restart(self, user: User) -> None:
        user.docker(
            "run", "-d", "--name", "one", "busybox", "sh", "-c", "echo said; exec sleep 1000"
        )
        assert user.docker("exec", "-u", "7:8", "one", "id", "-u").strip() == "7"
        assert user.docker("logs", "one").strip() == "said"
        assert "sleep 1000" in user.docker("top", "one")
        user.docker("stop", "-t", "0", "one")
        assert user.docker("inspect", "-f", "{{.State.ExitCode}}", "one").strip() == "137"
        user.docker("start", "one")
        user.docker("restart", "-t", "0", "one")
        user.docker("kill", "one")
        user.docker("rm", "one")

    def test_all_of_a_container_ends_without_a_pid_namespace(self, user: User) -> None:
        user.docker(
            "run",
            "-d",
            "--name",
            "one",
            "--pid",
            "host",
            "busybox",
            "sh",
            "-c",
            "sleep 1111 & exec sleep 1112",
        )
        assert user.docker("top", "one").count("sleep 111") == 2
        user.docker("rm", "-f", "one")
        assert not [command for command in user.processes() if "sleep 111" in command]

    def test_volumes_and_their_owners(self, user: User) -> None:
        user.docker(
            "run", "--rm", "-v", "own:/v", "busybox", "sh", "-c", "echo x > /v/f; chown 9:9 /v/f"
        )
        shown = user.docker(
            "run",
            "--rm",
            "-u",
            "9",
            "-v",
            "own:/v",
            "busybox",
            "sh",
            "-c",
            "echo y >> /v/f; cat /v/f",
        )
        assert shown.split() == ["x", "y"]
        user.docker("volume", "rm", "own")

    def test_a_build_with_users(self, user: User) -> None:
        text = (
            b"FROM busybox\nRUN echo built > /f && chown 5:6 /f\nUSER 1000\nRUN id -u > /tmp/who\n"
        )
        user.docker("build", "-q", "-t", "made", "-", input=text)
        shown = user.docker("run", "--rm", "made", "sh", "-c", "cat /f /tmp/who; stat -c %u:%g /f")
        assert shown.split() == ["built", "1000", "5:6"]
        user.docker("rmi", "made")

    def test_what_is_limited_elsewhere_is_a_warning(self, user: User) -> None:
        shown = user.docker(
            "run", "--rm", "-m", "50m", "--pids-limit", "9", "busybox", "echo", "ran"
        )
        assert "Limitation discarded" in shown
        assert "ran" in shown

    def test_a_terminal_and_privileged(self, user: User) -> None:
        shown = user.docker("run", "--rm", "-t", "busybox", "tty")
        assert shown.strip() == "/dev/pts/0"
        script = "mkdir -p /m && mount -t tmpfs x /m && echo mounted"
        shown = user.docker("run", "--rm", "--privileged", "busybox", "sh", "-c", script)
        assert shown.strip() == "mounted"

    def test_mounts_of_a_running_container(self, user: User) -> None:
        user.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        script = (
            "import http.client, json, socket, sys\n"
            "c = http.client.HTTPConnection('x'); c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(sys.argv[1])\n"
            "c.request('POST', '/containers/one/mounts', json.dumps({'Binds': ['own:/new']}), {'Content-Type': 'application/json'})\n"
            "print(c.getresponse().status)"
        )
        assert user.command(user.python, "-c", script, f"{user.run}/sampan.sock").strip() == "201"
        assert " /new " in user.docker("exec", "one", "cat", "/proc/mounts")


class TestNetworks:
    def test_a_published_port_and_names(self, user: User) -> None:
        serve = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nanswered\\n' | nc -l -p 80; done"
        user.docker("network", "create", "net")
        user.docker(
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "net",
            "-p",
            "127.0.0.1::80",
            "busybox",
            "sh",
            "-c",
            serve,
        )
        port = int(user.docker("port", "web", "80").strip().rpartition(":")[2])
        assert b"answered" in _get(port)
        ask = "for i in $(seq 100); do (echo GET /; sleep 1) | nc web 80 && break; sleep 0.1; done"
        assert "answered" in user.docker(
            "run", "--rm", "--network", "net", "busybox", "sh", "-c", ask
        )
        user.docker("rm", "-f", "web")
        user.docker("network", "rm", "net")

    def test_the_way_out_is_the_user_s_own(self, user: User) -> None:
        require(
            bool(shutil.which("pasta") or shutil.which("slirp4netns")), "needs pasta or slirp4netns"
        )
        # An address of the host that is not the one that pasta gives the namespace: of a bridge made for this.
        bridge = ["ip", "link", "add", "sampan-out", "type", "bridge"]
        subprocess.run(bridge, check=True)
        try:
            subprocess.run(["ip", "addr", "add", "10.213.77.1/24", "dev", "sampan-out"], check=True)
            subprocess.run(["ip", "link", "set", "sampan-out", "up"], check=True)
            with socket.create_server(("10.213.77.1", 0)) as server:
                thread = threading.Thread(target=_answer_once, args=(server,), daemon=True)
                thread.start()
                ask = f"(echo hello; sleep 1) | nc 10.213.77.1 {server.getsockname()[1]}"
                shown = user.docker("run", "--rm", "busybox", "sh", "-c", ask)
            assert "outside answered" in shown
        finally:
            subprocess.run(["ip", "link", "del", "sampan-out"], check=True)

    def test_a_port_of_root_s_is_refused_with_a_hint(self, user: User) -> None:
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        require(first > 81, "needs a host where low ports are root's")
        shown = user.docker("run", "--rm", "-p", "81:81", "busybox", "true", check=False)
        assert "permission denied" in shown
        assert "ip_unprivileged_port_start" in shown


def _answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"outside answered\n")


def _get(port: int) -> bytes:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if answer := client.recv(1000):
                    return answer
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)  # the server inside is between two connections


class TestHostile:
    def test_the_engine_is_the_user_s_alone(self, user: User) -> None:
        """Its group may be many others' too."""
        for path in (user.run, user.root, user.root / "volumes", user.run / "sampan.sock"):
            facts = path.stat()
            assert facts.st_uid == user.uid
            assert facts.st_mode & 0o066 == 0, path
        assert user.run.stat().st_mode & 0o077 == 0
        assert user.root.stat().st_mode & 0o077 == 0

    def test_root_inside_is_nobody_to_the_host(self, user: User) -> None:
        secret = user.base.parent / "secret"
        secret.write_text("of root's")
        secret.chmod(0o600)
        for flags in ([], ["--privileged"], ["--privileged", "--pid", "host", "--network", "host"]):
            shown = user.docker(
                "run",
                "--rm",
                *flags,
                "-v",
                f"{secret.parent}:/t",
                "busybox",
                "cat",
                "/t/secret",
                check=False,
            )
            assert "Permission denied" in shown
        shown = user.docker(
            "run", "--rm", "--privileged", "busybox", "sh", "-c",
            "mknod /d b 7 0 && echo made; echo 1 > /proc/sys/kernel/panic && echo wrote; true",
        )  # fmt: skip
        assert "made" not in shown
        assert "wrote" not in shown

    def test_a_limit_that_cannot_be_kept_is_refused(self, user: User) -> None:
        shown = user.docker("create", "--storage-opt", "size=50m", "busybox", check=False)
        assert "--storage-opt size is not possible here" in shown
        assert user.docker("ps", "-aq") == ""

    def test_what_the_user_may_not_mount(self, user: User) -> None:
        """A device of the host through a volume's options: mount(2) refuses who is root only in name."""
        options = ["--opt", "type=ext4", "--opt", "device=/dev/loop0"]
        user.docker("volume", "create", *options, "disk")
        shown = user.docker("run", "--rm", "-v", "disk:/d", "busybox", "true", check=False)
        assert "failed to mount local volume" in shown
        user.docker("volume", "rm", "disk")


class TestRestarts:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_containers_outlive_the_engine(self, user: User, number: int) -> None:
        serve = "while :; do echo still | nc -l -p 80; done"
        user.docker(
            "run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "sh", "-c", serve
        )
        port = int(user.docker("port", "web", "80").strip().rpartition(":")[2])
        user.stop(number)
        assert b"still" in _get(port)
        user.start()
        assert b"still" in _get(port)
        assert user.docker("exec", "web", "echo", "inside").strip() == "inside"
        user.docker("rm", "-f", "web")

    def test_an_uplink_that_died_is_replaced(self, user: User) -> None:
        uplinks = {"pasta", "slirp4netns"}
        require(any(shutil.which(name) for name in uplinks), "needs pasta or slirp4netns")
        user.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")

        def running() -> list[int]:
            facts = json.loads((user.run / "rootless.json").read_text())
            return [pid for pid, _ in facts["processes"][1:]]

        (before,) = running()
        os.kill(before, signal.SIGKILL)
        user.stop()
        user.start()
        (after,) = running()
        assert after != before
        assert Path(f"/proc/{after}/cmdline").read_text().split("\0")[0] in uplinks
        assert " eth0" in user.docker("exec", "one", "ip", "addr")
        user.docker("rm", "-f", "one")

    def test_an_idle_engine_leaves_nothing(self, user: User) -> None:
        user.docker("run", "--rm", "busybox", "true")
        user.stop()
        assert user.settle() == []
        assert str(user.base) not in Path("/proc/self/mountinfo").read_text()
        user.start()
        assert user.docker("run", "--rm", "busybox", "echo", "again").strip() == "again"


def test_without_subordinate_ids_there_is_one_user(code: Path) -> None:
    user = _user(code, "alone", 64321)
    user.start()
    try:
        assert "only one user and group id" in user.log()
        user.docker("import", "-c", "ENV PATH=/bin", f"{code}/busybox.tar", "busybox")
        assert user.docker("run", "--rm", "busybox", "id", "-u").strip() == "0"
        user.docker("run", "-d", "--name", "one", "-t", "busybox", "sleep", "1000")
        assert user.docker("exec", "one", "echo", "inside").strip() == "inside"
        shown = user.docker("run", "--rm", "-u", "5", "busybox", "true", check=False)
        assert shown != ""
        user.docker("rm", "-f", "one")
    finally:
        user.stop()
    assert user.settle() == []


def test_a_lent_part_of_the_unified_hierarchy_is_used(code: Path) -> None:
    """As systemd lends it to a user's services: containers have cgroups there, can be paused, and leave none."""
    require(shutil.which("setpriv") is not None, "needs setpriv (util-linux)")
    user = _user(code, "lent", 64323)
    user.start_with_a_lent_cgroup(f"sampan-lent-{os.getpid()}")
    try:
        assert (
            user.docker("info", "-f", "{{.CgroupDriver}} {{.CgroupVersion}}").strip()
            == "cgroupfs 2"
        )
        user.docker("import", "-c", "ENV PATH=/bin", f"{code}/busybox.tar", "busybox")
        user.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        pid = user.docker("inspect", "-f", "{{.State.Pid}}", "one").strip()
        own = Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1]
        assert own.startswith(f"0::/sampan-lent-{os.getpid()}/sampan-")
        user.docker("pause", "one")
        assert "Paused" in user.docker("ps", "--format", "{{.Status}}")
        user.docker("unpause", "one")
        assert "sleep 1000" in user.docker("top", "one")
        user.docker("rm", "-f", "one")
    finally:
        user.stop()
    assert user.settle() == []
    assert "Device or resource busy" not in user.log()


class TestSomebodyElsesClone:
    """scripts/bootstrap.sh for a user who may not write where the clone lies."""

    def _python_of(self, code: Path, *, made: bool) -> tuple[Path, str, str]:
        clone, cache = code / f"clone-{made}", code / f"cache-{made}"
        (clone / ".venv/bin").mkdir(parents=True)
        shutil.copytree(REPOSITORY / "scripts", clone / "scripts")
        (clone / "pyproject.toml").write_text("")
        if made:
            (clone / ".venv/.sampan-base").write_text("")
            (clone / ".venv/bin/python").symlink_to("/bin/true")
        cache.mkdir(mode=0o777)
        cache.chmod(0o777)
        (code / "python").write_text(
            f'#!/bin/sh\ncase $* in *-c*) ;; *) echo "$*" > {cache}/said ;; esac\n'
        )
        (code / "python").chmod(0o755)
        subprocess.run(["chmod", "-R", "a+rX", str(clone)], check=True)
        done = subprocess.run(
            ["sh", "-euc", f'here={clone}; . "$here/scripts/bootstrap.sh"; bootstrap; echo "$python"'],
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), "SAMPAN_PYTHON": f"{code}/python"},
            user=64322, group=64322, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = cache / "said"
        return clone, done.stdout.strip(), said.read_text() if said.exists() else ""

    def test_what_its_owner_installed_will_do(self, code: Path) -> None:
        clone, python, said = self._python_of(code, made=True)
        assert python == f"{clone}/.venv/bin/python"
        assert said == ""

    def test_without_it_the_user_has_one_of_his_own(self, code: Path) -> None:
        clone, python, said = self._python_of(code, made=False)
        own = f"{code}/cache-False/sampan/clones{clone}/.venv"
        assert python == f"{own}/bin/python"
        assert said.split()[1:] == [f"{clone}/scripts/bootstrap.py", str(clone), own]
