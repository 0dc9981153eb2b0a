"""The systemd driver against a real systemd: a user's manager, started here in a cgroup of its own.

Needs a unified hierarchy that we may rearrange, so it runs inside tests/vm.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sampan.cgroups.host import detect
from sampan.cgroups.manager import open_manager

pytestmark = pytest.mark.root

SYSTEMD = Path("/lib/systemd/systemd")
CGROUP = Path("/sys/fs/cgroup")
SERVICE = "user.slice/user-0.slice/user@0.service"
MB = 1 << 20


def eventually(condition: Callable[[], bool], log: Path) -> None:
    """Another process's doing has no descriptor to wait on."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `systemd --user`; we ourselves move into its service, as a user's engine would be."""
    if not os.environ.get("SAMPAN_VM"):
        pytest.skip("moves its own process about in the unified hierarchy: runs in tests/vm")
    if not SYSTEMD.exists():
        pytest.skip("needs Debian's systemd")
    runtime = tmp_path_factory.mktemp("xdg")
    Path("/run/systemd/system").mkdir(
        parents=True, exist_ok=True
    )  # how it sees that systemd runs the machine
    service = CGROUP / SERVICE
    (service / "init.scope").mkdir(parents=True)
    for directory in (CGROUP, CGROUP / "user.slice", CGROUP / "user.slice/user-0.slice", service):
        (directory / "cgroup.subtree_control").write_text("+cpu +memory +pids +cpuset +io")
    environment = {"XDG_RUNTIME_DIR": str(runtime), "HOME": "/root", "PATH": os.environ["PATH"]}
    command = [
        "sh",
        "-c",
        f"echo 0 >{service}/init.scope/cgroup.procs; exec {SYSTEMD} --user --log-target=console",
    ]
    with (runtime / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    own = service / "app.slice" / "test.scope"
    try:
        eventually((runtime / "systemd/private").exists, runtime / "log")
        own.mkdir(parents=True, exist_ok=True)
        (own / "cgroup.procs").write_text("0")
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        yield runtime
    finally:
        (CGROUP / "cgroup.procs").write_text("0")
        process.kill()
        process.wait()
        (service / "cgroup.kill").write_text("1")
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def sleeper() -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def properties(runtime: Path, unit: str, *names: str) -> dict[str, str]:
    wanted = [argument for name in names for argument in ("-p", name)]
    done = subprocess.run(
        ["systemctl", "--user", "show", unit, *wanted], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_a_scope_holds_the_process_and_its_limits(systemd: Path, sleeper: int) -> None:
    annotations = {"org.systemd.property.CollectMode": "'inactive-or-failed'"}
    manager = open_manager(
        "user.slice:sampan:one", driver="systemd", rootless=True, annotations=annotations
    )
    assert manager.needs_pid
    resources = {
        "memory": {"limit": 64 * MB, "swap": 64 * MB},
        "cpu": {"shares": 2, "quota": 50000, "period": 100000, "cpus": "0"},
        "pids": {"limit": 12},
    }
    assert manager.create(resources, pid=sleeper) == []
    assert manager.pids() == [sleeper]
    assert f"/{SERVICE}/user.slice/sampan-one.scope" in Path(f"/proc/{sleeper}/cgroup").read_text()
    directory = Path(manager.paths()[""])
    assert (directory / "memory.max").read_text().strip() == str(64 * MB)
    assert (directory / "pids.max").read_text().strip() == "12"
    assert (directory / "cpu.max").read_text().strip() == "50000 100000"
    shown = properties(
        systemd,
        "sampan-one.scope",
        "MemoryMax",
        "TasksMax",
        "CPUWeight",
        "CPUQuotaPerSecUSec",
        "CollectMode",
        "Delegate",
    )
    assert shown == {
        "MemoryMax": str(64 * MB),
        "TasksMax": "12",
        "CPUWeight": "1",
        "CPUQuotaPerSecUSec": "500ms",
        "CollectMode": "inactive-or-failed",
        "Delegate": "yes",
    }
    manager.apply({"memory": {"limit": 32 * MB}, "pids": {"limit": -1}})
    subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
    assert (directory / "memory.max").read_text().strip() == str(32 * MB)
    assert properties(systemd, "sampan-one.scope", "TasksMax") == {"TasksMax": "infinity"}
    manager.freeze()
    assert manager.frozen()
    manager.thaw()
    assert manager.stats().pids == 1
    manager.kill_all()
    manager.destroy()
    assert not manager.exists()
    manager.destroy()


def test_a_limit_that_fails_leaves_no_unit(systemd: Path, sleeper: int) -> None:
    manager = open_manager("user.slice:sampan:two", driver="systemd", rootless=True)
    with pytest.raises(OSError, match="unified resource"):
        manager.create({"unified": {"memory.wish": "1"}}, pid=sleeper)
    assert not manager.exists()
    assert properties(systemd, "sampan-two.scope", "ActiveState") == {"ActiveState": "inactive"}


def test_properties_that_systemd_refuses_are_named(systemd: Path, sleeper: int) -> None:
    annotations = {"org.systemd.property.NoSuchThing": "1"}
    manager = open_manager(
        "user.slice:sampan:three", driver="systemd", rootless=True, annotations=annotations
    )
    with pytest.raises(OSError, match="NoSuchThing"):
        manager.create({}, pid=sleeper)
    assert detect().mode == "v2"
