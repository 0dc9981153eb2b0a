"""What is to be seen inside a container by default, fact by fact, against what real Docker gives.

The facts are Docker 20.10's and today's, whichever is stricter; "stricter" differences are written down here.
"""

from __future__ import annotations

import os

import pytest

from tests.support.engine import EngineProcess

IMAGE = "busybox:latest"
HARD = {"nosuid", "nodev", "noexec"}


def run(engine: EngineProcess, script: str, *options: str) -> str:
    return engine.docker("run", "--rm", *options, IMAGE, "sh", "-c", script).stdout


class Mount:
    """One line of mountinfo."""

    def __init__(self, line: str) -> None:
        left, _, right = line.partition(" - ")
        fields = left.split()
        self.root, self.point = fields[3], fields[4]
        self.flags = set(fields[5].split(","))
        self.optional = fields[6:]
        self.fstype, _, self.options = right.split(" ", 2)


@pytest.fixture
def mounts(engine: EngineProcess) -> dict[str, Mount]:
    rows = (Mount(line) for line in run(engine, "cat /proc/self/mountinfo").splitlines())
    return {mount.point: mount for mount in rows}


def test_the_mounts_are_dockers(mounts: dict[str, Mount]) -> None:
    expected = {
        "/": ("overlay", set()),
        "/proc": ("proc", HARD),
        "/dev": ("tmpfs", {"nosuid"}),
        "/dev/pts": ("devpts", {"nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", HARD),
        "/dev/mqueue": ("mqueue", HARD),
        "/sys": ("sysfs", HARD | {"ro"}),
        "/sys/fs/cgroup": (None, HARD),
    }
    for point, (fstype, flags) in expected.items():
        assert fstype in (None, mounts[point].fstype), point
        assert flags <= mounts[point].flags, (point, mounts[point].flags)
    for point in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"):
        if not os.path.exists(point):
            continue  # this kernel has none
        assert {*HARD, "ro"} <= mounts[point].flags, point
    for point in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        assert "rw" in mounts[point].flags
    assert "size=65536k" in mounts["/dev/shm"].options
    assert {"gid=5", "mode=620", "ptmxmode=666"} <= set(mounts["/dev/pts"].options.split(","))


def test_cgroups_are_read_only(mounts: dict[str, Mount]) -> None:
    groups = [mount for mount in mounts.values() if mount.fstype in ("cgroup", "cgroup2")]
    assert groups
    assert all({*HARD, "ro"} <= mount.flags for mount in groups)


def test_no_mount_passes_events_to_the_host(mounts: dict[str, Mount]) -> None:
    assert not [
        mount.point
        for mount in mounts.values()
        if any("shared:" in word for word in mount.optional)
    ]


def test_masks_are_read_only_and_hold_nothing(mounts: dict[str, Mount]) -> None:
    masked = {point for point in mounts if point.startswith(("/proc/", "/sys/firmware"))}
    for point in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware"):
        if point in masked:
            assert "ro" in mounts[point].flags, point


def test_the_device_directory(engine: EngineProcess) -> None:
    shown = run(engine, "cd /dev; for f in *; do stat -c '%n %a %t:%T %u %g %F' $f; done")
    found = {line.split()[0]: line.split(None, 1)[1] for line in shown.splitlines()}
    nodes = {
        "null": "1:3",
        "zero": "1:5",
        "full": "1:7",
        "random": "1:8",
        "urandom": "1:9",
        "tty": "5:0",
    }
    for name, numbers in nodes.items():
        assert found[name].split()[:3] == ["666", numbers, "0"], name
    assert all(
        "symbolic link" in found[name] for name in ("fd", "stdin", "stdout", "stderr", "ptmx")
    )
    assert "console" not in found


def test_a_terminal_brings_a_console(engine: EngineProcess) -> None:
    shown = run(engine, "stat -c '%t' /dev/console; tty", "-t")
    assert shown.split() == ["88", "/dev/console"] or shown.split() == ["88", "/dev/pts/0"]


def test_kernel_settings(engine: EngineProcess) -> None:
    script = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range"
    assert run(engine, script).split() == ["0", "0", "2147483647"]


def test_process_one(engine: EngineProcess) -> None:
    shown = run(
        engine, "cut -d' ' -f1,4,5,6,19 /proc/1/stat; cat /proc/1/oom_score_adj; pwd; hostname"
    )
    assert shown.split()[:7] == ["1", "0", "1", "1", str(os.nice(0)), "0", "/"]
    assert len(shown.split()[7]) == 12


def test_lowering_the_oom_score_is_refused(engine: EngineProcess) -> None:
    script = "(echo -999 >/proc/self/oom_score_adj) 2>/dev/null && echo lowered; (echo 5 >/proc/self/oom_score_adj) && echo raised"
    assert run(engine, script) == "raised\n"


def test_namespaces_are_the_containers_own(engine: EngineProcess) -> None:
    names = ("mnt", "pid", "uts", "ipc", "net")
    shown = run(engine, f"for n in {' '.join(names)}; do readlink /proc/self/ns/$n; done").split()
    assert not {os.readlink(f"/proc/self/ns/{name}") for name in names} & set(shown)


def test_locked_down_means_it(engine: EngineProcess) -> None:
    options = (
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp",
        "--pids-limit", "64", "-m", "64m", "--network", "none",
    )  # fmt: skip
    script = """
        grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs' /proc/self/status | tr '\\t' ' '
        for place in / /etc /root /etc/hosts; do (: >$place/x || : >$place) 2>/dev/null && echo "writable $place"; done
        : >/tmp/x && echo tmp; ls /sys/class/net
    """
    shown = run(engine, script, *options)
    lines = shown.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs: 1" in lines
    assert not [line for line in lines if "writable" in line], shown
    assert lines[-2:] == ["tmp", "lo"]


def test_privileged_has_all_that_the_host_can_give(engine: EngineProcess) -> None:
    with open("/proc/self/status") as file:
        ours = next(line.split()[1] for line in file if line.startswith("CapBnd"))
    shown = run(
        engine, "grep -E 'CapEff|Seccomp:' /proc/self/status; ls /dev | wc -l", "--privileged"
    )
    words = shown.split()
    assert words[1] == ours
    assert words[3] == "0"
    assert int(words[4]) > 20
