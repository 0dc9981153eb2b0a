"""What Docker's tutorials show, typed word for word with `sampan` in place of `docker`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.engine import REPOSITORY, EngineProcess
from tests.support.images import busybox_rootfs, tar_of

pytestmark = pytest.mark.root
CGROUPS = Path("/sys/fs/cgroup")


def memory_files(engine: EngineProcess, identity: str) -> tuple[Path, Path]:
    """(limit, usage), where a reader of a tutorial looks for them."""
    parent = engine.cgroup_parent.strip("/")
    if (CGROUPS / "memory").is_dir():
        directory = CGROUPS / "memory" / parent / identity
        return directory / "memory.limit_in_bytes", directory / "memory.usage_in_bytes"
    directory = CGROUPS / parent / identity
    return directory / "memory.max", directory / "memory.current"


def with_libraries(rootfs: Path, program: str) -> None:
    """Put a program of the host and the libraries that it is linked to into a root filesystem."""
    files = [program]
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    files += re.findall(r"(/\S+) \(0x", listed)
    for file in files:
        target = rootfs / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(os.path.realpath(file), target)


def imported(engine: EngineProcess, rootfs: Path, archive: Path, name: str) -> None:
    engine.sampan("import", "-c", "ENV PATH=/usr/bin:/bin", str(tar_of(rootfs, archive)), name)


def test_a_limited_shell_in_the_background(engine: EngineProcess) -> None:
    identity = engine.sampan("run", "-itd", "-m", "128m", "busybox").stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", identity)
    limit, usage = memory_files(engine, identity)
    assert limit.read_text().strip() == "134217728"
    assert int(usage.read_text()) > 0
    assert (
        engine.sampan("inspect", "-f", "{{.HostConfig.Memory}}", identity).stdout == "134217728\n"
    )
    engine.sampan("rm", "-f", identity)
    assert not limit.exists()


def test_inside_there_is_nothing_of_the_host(engine: EngineProcess) -> None:
    script = "echo $$; hostname; ps -o pid,args; mount"
    identity = engine.sampan("create", "busybox", "sh", "-c", script).stdout.strip()
    lines = engine.sampan("start", "-a", identity).stdout.splitlines()
    assert lines[0] == "1"
    assert lines[1] == identity[:12]
    processes = [line for line in lines[2:] if re.match(r"\s*\d+ ", line)]
    assert len(processes) <= 3
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, point = line.split()[:2]
        if source.startswith("/dev/") and point not in ("/",):
            assert f" on {point} type" not in "\n".join(lines)


def test_the_pid_outside_is_the_process_inside(engine: EngineProcess) -> None:
    engine.sampan("run", "-d", "--name", "seen", "busybox", "sleep", "4321")
    pid = int(engine.sampan("inspect", "-f", "{{.State.Pid}}", "seen").stdout)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x004321\0"


def test_stress_is_held_to_its_limit_and_killed(engine: EngineProcess, tmp_path: Path) -> None:
    require(shutil.which("stress") is not None, "needs Debian's stress")
    rootfs = busybox_rootfs(tmp_path / "rootfs")
    with_libraries(rootfs, "/usr/bin/stress")
    imported(engine, rootfs, tmp_path / "stress.tar", "stress")
    try:
        engine.sampan(
            "run", "-d", "--name", "pressed", "-m", "100m", "--memory-swap", "100m", "stress",
            "sh", "-c", "exec stress --vm-bytes 200m --vm-keep -m 1",
        )  # fmt: skip
        status = engine.sampan("wait", "pressed").stdout.strip()
        facts = engine.sampan(
            "inspect", "-f", "{{.State.OOMKilled}} {{.Id}}", "pressed"
        ).stdout.split()
        assert status != "0" and facts[0] == "true"
        events = engine.sampan(
            "events",
            "--since",
            "5m",
            "--until",
            "0s",
            "--filter",
            "event=oom",
            "--format",
            "{{.Actor.ID}}",
        )
        assert facts[1] in events.stdout
        limit, _ = memory_files(engine, facts[1])
        assert not limit.exists()
        done = engine.sampan(
            "run",
            "--rm",
            "-m",
            "50m",
            "--memory-swap",
            "50m",
            "busybox",
            "sh",
            "-c",
            "exec tail -c 200m /dev/zero",
            check=False,
        )
        assert done.returncode == 137
    finally:
        engine.sampan("rm", "-f", "pressed", check=False)
        engine.sampan("rmi", "-f", "stress")


def test_stats_shows_a_container_while_it_runs(engine: EngineProcess) -> None:
    engine.sampan(
        "run", "-d", "--name", "busy", "-m", "100m", "busybox", "sh", "-c", "while :; do :; done"
    )
    lines = engine.sampan("stats", "--no-stream", "busy").stdout.splitlines()
    assert (
        lines[0].split()
        == "CONTAINER ID NAME CPU % MEM USAGE / LIMIT MEM % NET I/O BLOCK I/O PIDS".split()
    )
    assert "busy" in lines[1] and "/ 100MiB" in lines[1]
    assert float(lines[1].split()[2].rstrip("%")) > 5


def test_a_hundred_containers_take_one_copy_of_the_layers(engine: EngineProcess) -> None:
    def used() -> int:
        done = subprocess.run(
            ["du", "-sbx", str(engine.root)], capture_output=True, text=True, check=False
        )
        return int(done.stdout.split()[0])

    before = used()
    for number in range(100):
        engine.sampan("create", "--name", f"copy{number}", "busybox", "true")
    grown = used() - before
    image = int(engine.sampan("inspect", "-f", "{{.Size}}", "busybox").stdout)
    assert grown < 20 * image, f"{grown} bytes for a hundred containers of an image of {image}"
    assert grown / 100 < 100_000


def test_an_application_packed_with_all_that_it_needs_runs(
    engine: EngineProcess, tmp_path: Path
) -> None:
    python = "/usr/bin/python3"
    require(Path(python).exists(), "needs Debian's python3")
    rootfs = tmp_path / "rootfs"
    for name in ("proc", "sys", "dev", "tmp", "app", "etc"):
        (rootfs / name).mkdir(parents=True)
    with_libraries(rootfs, python)
    version = subprocess.run(
        [python, "-c", "import sys; print('python%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    skip = shutil.ignore_patterns(
        "test", "dist-packages", "site-packages", "__pycache__", "idlelib", "config-*", "tkinter"
    )
    shutil.copytree(f"/usr/lib/{version}", rootfs / "usr/lib" / version, ignore=skip)
    (rootfs / "app" / "main.py").write_text(
        "import json, os; print(json.dumps(sorted(os.listdir('/'))))\n"
    )
    imported(engine, rootfs, tmp_path / "app.tar", "packed")
    try:
        done = engine.sampan("run", "--rm", "packed", python, "-S", "/app/main.py")
        assert '"app"' in done.stdout and '"home"' not in done.stdout and '"bin"' not in done.stdout
    finally:
        engine.sampan("rmi", "-f", "packed")


def test_hello_and_the_hosts_own_programs_need_no_registry(engine: EngineProcess) -> None:
    assert "Hello from Sampan!" in engine.sampan("run", "--rm", "hello").stdout
    done = engine.sampan("run", "--rm", "host", "sh", "-c", "ls /root; touch /usr/x && echo wrote")
    assert str(REPOSITORY).strip("/").split("/")[-1] not in done.stdout
    assert "wrote" in done.stdout and not Path("/usr/x").exists()
