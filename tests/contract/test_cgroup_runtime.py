"""sampan-oci and cgroups, end to end: what a container sees and is held to, on this kernel's hierarchies.

Runs on the v1 or hybrid host and, inside tests/vm, on a unified one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.cgroups.host import CgroupHost, detect

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[2]
MB = 1 << 20
SHOW = "cat /proc/self/cgroup"


@pytest.fixture(scope="module")
def host() -> CgroupHost:
    found = detect()
    if found.mode == "none":
        pytest.skip("this kernel has no cgroup hierarchy mounted")
    return found


class Runtime:
    """The program, on a state directory of its own, and one bundle."""

    def __init__(self, base: Path, rootfs: Path, name: str) -> None:
        self.base = base
        self.id = f"sampan-t{os.getpid()}-{name}"
        (base / "bundle").mkdir()
        self.spec = self.example(rootfs)

    def command(self, *args: str) -> list[str]:
        program = str(REPOSITORY / "scripts" / "sampan-oci")
        return [sys.executable, "-I", "-S", program, "--root", str(self.base / "state"), *args]

    def __call__(
        self, *args: str, check: bool = True, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), capture_output=True, text=True, timeout=60, **more
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def example(self, rootfs: Path) -> dict[str, Any]:
        self("spec", "--bundle", str(self.base / "bundle"))
        spec: dict[str, Any] = json.loads((self.base / "bundle" / "config.json").read_text())
        spec["root"] = {"path": str(rootfs), "readonly": True}
        spec["process"]["terminal"] = False
        spec["linux"]["resources"] = {}
        kinds = spec["linux"]["namespaces"]
        if {
            "type": "cgroup"
        } not in kinds:  # runc's `spec` asks for one on v2 only, and so does ours
            kinds.append({"type": "cgroup"})
        return spec

    def write(self, *args: str, resources: dict[str, Any] | None = None) -> str:
        self.spec["process"]["args"] = list(args)
        self.spec["linux"]["resources"] = resources or {}
        self.spec["linux"]["cgroupsPath"] = f"/{self.id}"
        (self.base / "bundle" / "config.json").write_text(json.dumps(self.spec))
        return str(self.base / "bundle")

    def run(self, script: str, resources: dict[str, Any] | None = None, check: bool = True) -> str:
        bundle = self.write("sh", "-c", script, resources=resources)
        return self("run", "--bundle", bundle, self.id, check=check).stdout

    def start(self, script: str, resources: dict[str, Any] | None = None) -> None:
        bundle = self.write("sh", "-c", script, resources=resources)
        with open(os.devnull, "r+b") as null:
            command = self.command("run", "--detach", "--bundle", bundle, self.id)
            subprocess.run(command, stdin=null, stdout=null, check=True, timeout=60)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", self.id).stdout)
        return found


@pytest.fixture
def oci(
    tmp_path: Path, busybox_tree: Path, request: pytest.FixtureRequest, host: CgroupHost
) -> Iterator[Runtime]:
    name = "".join(letter for letter in request.node.name.removeprefix("test_") if letter.isalnum())
    runtime = Runtime(tmp_path, busybox_tree, name[:30])
    yield runtime
    runtime("delete", "--force", runtime.id, check=False)
    points = [*host.hierarchies(), *([host.unified] if host.unified else [])]
    assert not [point for point in points if os.path.exists(f"{point}/{runtime.id}")]


def limit_file(host: CgroupHost, oci: Runtime, v1: str, v2: str) -> str:
    point = host.mounts.get(v1.partition(".")[0])
    path = f"{point}/{oci.id}/{v1}" if point else f"{host.unified}/{oci.id}/{v2}"
    return Path(path).read_text().strip()


def test_limits_are_set_before_the_process_runs(oci: Runtime, host: CgroupHost) -> None:
    inside = "memory/memory.limit_in_bytes" if "memory" in host.mounts else "memory.max"
    shown = oci.run(f"cat /sys/fs/cgroup/{inside}", {"memory": {"limit": 64 * MB}})
    assert shown.strip() == str(64 * MB)


def test_the_container_sees_its_cgroup_as_the_root_and_cannot_write_it(
    oci: Runtime, host: CgroupHost
) -> None:
    shown = oci.run(f"{SHOW}; mkdir /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>&1 || true")
    lines = shown.splitlines()
    paths = [line.rpartition(":")[2] for line in lines if line[0].isdigit()]
    assert set(paths) == {"/"}
    refusals = [line for line in lines if "mkdir" in line]
    assert refusals
    assert all(
        "Read-only" in line or "exists" in line or "not permitted" in line or "No such" in line
        for line in refusals
    )


def test_an_exec_joins_the_same_cgroup(oci: Runtime, host: CgroupHost) -> None:
    oci.start("sleep 1000", {"pids": {"limit": 20}})
    oci("exec", oci.id, "sleep", "0")
    child = subprocess.Popen(oci.command("exec", oci.id, "sleep", "1000"), stdin=subprocess.DEVNULL)
    try:
        reference = Path((host.mounts.get("pids") or host.unified) + f"/{oci.id}/cgroup.procs")
        for _ in range(1000):
            processes = [pid for pid in reference.read_text().split() if "sleep" in comm(pid)]
            if len(processes) == 2:
                break
            subprocess.run(["sleep", "0.01"], check=True)
        assert len(processes) == 2
    finally:
        oci("kill", "--all", oci.id, "KILL", check=False)
        child.wait()


def comm(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_pause_and_resume(oci: Runtime) -> None:
    oci.start("sleep 1000")
    oci("pause", oci.id)
    assert oci.state()["status"] == "paused"
    assert "State:\tD" in Path(f"/proc/{oci.state()['pid']}/status").read_text() or frozen(oci)
    oci("resume", oci.id)
    assert oci.state()["status"] == "running"


def frozen(oci: Runtime) -> bool:
    """Frozen v2 tasks are shown asleep; the cgroup says it."""
    unified = detect().unified
    return "frozen 1" in Path(f"{unified}/{oci.id}/cgroup.events").read_text()


def test_a_paused_container_can_be_deleted_by_force(oci: Runtime) -> None:
    oci.start("sleep 1000")
    oci("pause", oci.id)
    oci("delete", "--force", oci.id)
    assert oci("state", oci.id, check=False).returncode == 1


def test_update(oci: Runtime, host: CgroupHost) -> None:
    oci.start("sleep 1000", {"memory": {"limit": 64 * MB}})
    oci(
        "update",
        "--memory",
        str(32 * MB),
        "--memory-swap",
        str(32 * MB),
        "--pids-limit",
        "7",
        oci.id,
    )
    assert limit_file(host, oci, "memory.limit_in_bytes", "memory.max") == str(32 * MB)
    assert limit_file(host, oci, "pids.max", "pids.max") == "7"
    resources = json.dumps({"cpu": {"shares": 2}, "pids": {"limit": -1}})
    oci("update", "--resources", "-", oci.id, input=resources)
    assert limit_file(host, oci, "cpu.shares", "cpu.weight") in ("2", "1")
    assert limit_file(host, oci, "pids.max", "pids.max") == "max"


def test_statistics(oci: Runtime) -> None:
    oci.start("sleep 1000", {"memory": {"limit": 64 * MB}, "pids": {"limit": 9}})
    data = json.loads(oci("events", "--stats", oci.id).stdout)["data"]
    assert data["memory"]["usage"]["limit"] == 64 * MB
    assert data["memory"]["usage"]["usage"] > 0
    assert data["pids"] == {"current": 1, "limit": 9}
    assert data["cpu"]["usage"]["total"] > 0


def test_running_out_of_memory_ends_with_137_and_no_cgroup(oci: Runtime, host: CgroupHost) -> None:
    hog = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    bundle = oci.write(
        "sh", "-c", f"exec {hog}", resources={"memory": {"limit": 16 * MB, "swap": 16 * MB}}
    )
    assert oci("run", "--bundle", bundle, oci.id, check=False).returncode == 137


def test_devices_cannot_be_opened_beyond_the_list(oci: Runtime) -> None:
    oci.spec["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["dev"]}
    )
    for name in ("bounding", "effective", "permitted"):
        oci.spec["process"]["capabilities"][name].append("CAP_MKNOD")
    shown = oci.run(
        "mknod /tmp/k c 1 11 && echo made; cat /tmp/k 2>&1; : </dev/null && : </dev/zero && echo fine",
        {"devices": [{"allow": False, "access": "rwm"}]},
    )
    assert "made" in shown
    assert "Operation not permitted" in shown
    assert "fine" in shown


def test_users_own_keys_or_a_plain_refusal(oci: Runtime, host: CgroupHost) -> None:
    bundle = oci.write(
        "cat", "/sys/fs/cgroup/memory.high", resources={"unified": {"memory.high": "8388608"}}
    )
    done = oci("run", "--bundle", bundle, oci.id, check=False)
    if host.mode == "v2":
        assert done.stdout.strip() == "8388608"
    else:
        assert done.returncode == 1
        assert "cgroup v2" in done.stderr


def test_a_limit_that_cannot_be_leaves_nothing(oci: Runtime, host: CgroupHost) -> None:
    bundle = oci.write("true", resources={"cpu": {"cpus": "9999"}})
    done = oci("run", "--bundle", bundle, oci.id, check=False)
    assert done.returncode == 1
    assert "cpuset.cpus" in done.stderr
    assert oci("state", oci.id, check=False).returncode == 1


def test_the_smallest_memory_that_docker_allows_is_enough_to_start(oci: Runtime) -> None:
    for _ in range(5):
        assert oci.run("echo up", {"memory": {"limit": 6 * MB, "swap": 6 * MB}}) == "up\n"


def test_cpu_and_swap_on_v2_convert(oci: Runtime, host: CgroupHost) -> None:
    if host.mode != "v2":
        pytest.skip("needs a unified hierarchy alone")
    shown = oci.run(
        "cd /sys/fs/cgroup; cat cpu.weight cpu.max memory.swap.max",
        {
            "cpu": {"shares": 1024, "quota": 20000, "period": 50000},
            "memory": {"limit": 32 * MB, "swap": 96 * MB},
        },
    )
    assert shown.split() == ["100", "20000", "50000", str(64 * MB)]
