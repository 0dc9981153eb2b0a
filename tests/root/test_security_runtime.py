"""Black-box checks of what a container is given and kept from, with the stock docker CLI.

Each test names the class of mistake that it would find; the facts compared with are Docker's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.engine import EngineProcess

IMAGE = "busybox:latest"
DOCKERS_CAPABILITIES = "00000000a80425fb"


def run(engine: EngineProcess, script: str, *options: str, check: bool = True) -> str:
    done = engine.docker("run", "--rm", *options, IMAGE, "sh", "-c", script, check=check)
    return done.stdout + ("" if check else done.stderr)


def refused(engine: EngineProcess, *options: str) -> str:
    done = engine.docker("run", "--rm", *options, IMAGE, "true", check=False)
    assert done.returncode != 0, f"{options} was accepted"
    return done.stderr


@pytest.fixture
def sleeper(engine: EngineProcess) -> str:
    return engine.docker("run", "-d", IMAGE, "sleep", "1000").stdout.strip()


def test_no_descriptor_is_inherited(engine: EngineProcess, sleeper: str) -> None:
    listing = "ls /proc/self/fd /proc/1/fd | grep -v '^$'"
    shown = engine.docker("exec", sleeper, "sh", "-c", listing).stdout.split()
    assert set(shown) <= {
        "/proc/self/fd:",
        "/proc/1/fd:",
        "0",
        "1",
        "2",
        "3",
    }  # 3 is ls's own directory
    assert run(engine, "ls /proc/1/fd").split() in (["0", "1", "2"], ["0", "1", "2", "3"])


@pytest.mark.parametrize("how", ["run", "exec"])
def test_signals_capabilities_and_identity_are_dockers(
    engine: EngineProcess, sleeper: str, how: str
) -> None:
    script = "cat /proc/self/status; cat /proc/self/oom_score_adj; umask"
    shown = (
        run(engine, script)
        if how == "run"
        else engine.docker("exec", sleeper, "sh", "-c", script).stdout
    )
    fields = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    found = {name: value.split() for name, value in fields.items()}
    assert found["SigIgn"] == found["SigBlk"] == ["0000000000000000"]
    assert found["CapInh"] == found["CapAmb"] == ["0000000000000000"]
    assert found["CapBnd"] == found["CapPrm"] == found["CapEff"] == [DOCKERS_CAPABILITIES]
    assert found["Seccomp"] == ["2"]
    assert found["Uid"] == found["Gid"] == ["0"] * 4
    assert shown.splitlines()[-2:] == ["0", "0022"]


def test_a_user_has_no_capabilities_and_no_foreign_groups(engine: EngineProcess) -> None:
    shown = run(engine, "id -G; grep Cap /proc/self/status", "--user", "1000:1000")
    assert shown.split()[0] == "1000"
    masks = dict(line.split() for line in shown.splitlines()[1:])
    assert masks["CapEff:"] == masks["CapPrm:"] == masks["CapInh:"] == masks["CapAmb:"] == "0" * 16


def test_the_environment_holds_nothing_of_the_hosts(engine: EngineProcess) -> None:
    names = {
        line.partition("=")[0]
        for line in run(engine, "tr '\\0' '\\n' </proc/1/environ; true").split()
    }
    assert names == {"PATH", "HOSTNAME", "HOME"}


@pytest.mark.parametrize("number", range(3, 12))
def test_no_working_directory_leads_out(engine: EngineProcess, sleeper: str, number: int) -> None:
    """CVE-2024-21626: a descriptor of a host directory, reached through /proc/self/fd."""
    path = f"/proc/self/fd/{number}"
    for command in (["run", "--rm", "-w", path, IMAGE], ["exec", "-w", path, sleeper]):
        done = engine.docker(*command, "sh", "-c", "ls ../../../../..; pwd -P", check=False)
        assert "vmlinuz" not in done.stdout
        assert "work" not in done.stdout.split()
        assert done.returncode != 0 or done.stdout.splitlines()[-1].startswith("/")


def test_the_engines_interpreter_cannot_be_an_entrypoint(engine: EngineProcess) -> None:
    """CVE-2019-5736: /proc/self/exe of the process that is about to become the container."""
    for path in ("/proc/self/exe", "/proc/thread-self/exe"):
        done = engine.docker(
            "run", "--rm", "--entrypoint", path, IMAGE, "-c", "print(6*7)", check=False
        )
        assert done.returncode != 0
        assert "42" not in done.stdout


@pytest.mark.parametrize(
    "user",
    [
        "1_0",
        " 7",
        "+5",
        "٣",
        "4294967295",
        "4294967296",
        "-1",
        "0x0",
        "1000:99999999999",
        "nosuchuser",
        "0:nogrp",
    ],
)
def test_users_are_numbers_or_names_and_nothing_between(engine: EngineProcess, user: str) -> None:
    refused(engine, "--user", user)


def test_devices_can_be_made_and_not_opened(engine: EngineProcess) -> None:
    script = """
        mknod /tmp/disk b 254 0; mknod /tmp/mem c 1 1; mknod /tmp/kmsg c 1 11
        for node in disk mem kmsg; do head -c 1 /tmp/$node 2>&1; done
        ls /dev
    """
    shown = run(engine, script)
    assert shown.count("Operation not permitted") == 3
    devices = {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip
    assert set(shown.splitlines()[3:]) <= devices


def test_no_way_out_through_cgroups(engine: EngineProcess) -> None:
    script = """
        mkdir /tmp/c; mount -t cgroup -o memory c /tmp/c 2>&1; mount -t cgroup2 c /tmp/c 2>&1
        unshare -Ur true 2>&1
        for file in $(find /sys/fs/cgroup -name release_agent -o -name cgroup.procs | head -30); do
            (: >"$file") 2>/dev/null && echo "writable $file"
        done
        echo end
    """
    shown = run(engine, script)
    assert "writable" not in shown
    assert len(re.findall("(?i)denied|not permitted", shown)) == 3, shown


@pytest.mark.parametrize(
    "option",
    [
        "kernel.domainname=x",
        "vm.swappiness=1",
        "kernel.core_pattern=|/x",
        "../etc/passwd=x",
        "fs.file-max=1",
        "kernel.msgmax",
    ],
)
def test_sysctls_of_the_whole_host_are_refused(engine: EngineProcess, option: str) -> None:
    refused(engine, "--sysctl", option)


def test_network_sysctls_need_a_network_of_ones_own(engine: EngineProcess) -> None:
    assert (
        run(
            engine,
            "cat /proc/sys/net/ipv4/ip_default_ttl",
            "--sysctl",
            "net.ipv4.ip_default_ttl=77",
        )
        == "77\n"
    )
    before = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    refused(engine, "--network", "host", "--sysctl", "net.ipv4.ip_default_ttl=77")
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text() == before


def test_no_socket_of_the_engine_is_in_the_abstract_namespace(engine: EngineProcess) -> None:
    """CVE-2020-15257: a container with the host's network could speak to it."""
    shown = run(engine, "cat /proc/net/unix", "--network", "host")
    assert not [line for line in shown.splitlines() if "@" in line and "sampan" in line]


def test_the_smallest_memory_is_enough_to_start(engine: EngineProcess) -> None:
    for _ in range(10):
        assert run(engine, "echo up", "-m", "6m") == "up\n"


@pytest.fixture(scope="module")
def prober(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls each number of its arguments with harmless arguments and prints the errno's number."""
    source = tmp_path_factory.mktemp("prober") / "prober.c"
    source.write_text(
        "#define _GNU_SOURCE\n#include <errno.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        "int main(int n, char **a) { for (int i = 1; i + 1 < n; i += 2) { errno = 0;\n"
        "  long r = syscall(atol(a[i]), atol(a[i + 1]), -1L, -1L, -1L, -1L, -1L);\n"
        '  printf("%s %d\\n", a[i], r == -1 ? errno : 0); } }\n'
    )
    program = source.with_suffix("")
    require(shutil.which("gcc") is not None, "needs a C compiler (gcc and libc6-dev)")
    subprocess.run(["gcc", "-static", "-o", program, source], check=True, capture_output=True)
    return program


def probe(
    engine: EngineProcess, prober: Path, calls: dict[int, int], *options: str
) -> dict[int, int]:
    arguments = [str(word) for pair in calls.items() for word in pair]
    command = ["run", "--rm", *options, "-v", f"{prober}:/prober:ro", IMAGE, "/prober", *arguments]
    rows = (line.split() for line in engine.docker(*command).stdout.splitlines())
    return {int(number): int(error) for number, error in rows}


EPERM, ENOSYS = 1, 38


def test_dangerous_system_calls_answer_eperm(engine: EngineProcess, prober: Path) -> None:
    calls = {
        425: -1, 426: -1, 427: -1,  # io_uring
        248: -1, 249: -1, 250: -1,  # keyrings
        321: -1, 298: -1, 323: -1,  # bpf, perf_event_open, userfaultfd
        272: 0x10000000, 308: -1, 165: -1, 166: -1, 155: -1,  # unshare, setns, mount, umount2, pivot_root
        428: -1, 429: -1, 430: -1, 432: -1, 442: -1,  # the new mount calls
        304: -1, 246: -1, 175: -1, 313: -1, 176: -1, 169: -1, 103: 3, 310 + 2: -1,
        41: 38,  # socket(AF_ALG)
    }  # fmt: skip
    assert set(probe(engine, prober, calls).values()) == {EPERM}
    assert probe(engine, prober, {41: 40}) == {41: EPERM}  # socket(AF_VSOCK)


def test_unknown_and_unfilterable_calls_answer_enosys(engine: EngineProcess, prober: Path) -> None:
    assert set(probe(engine, prober, {435: -1, 1000: -1, 9999: -1}).values()) == {ENOSYS}


def test_unconfined_means_it(engine: EngineProcess, prober: Path) -> None:
    assert probe(engine, prober, {250: 0}, "--security-opt", "seccomp=unconfined")[250] != EPERM


@pytest.mark.parametrize(
    "option",
    [
        "seccomp=unconfine", "seccomp=/no/such/file", "seccomp={}x", "no-new-privs", "apparmour=x", "systempaths=all",
        "no-new-privileges=maybe", "", "seccomp:",
    ],
)  # fmt: skip
def test_a_security_option_that_is_not_understood_is_an_error(
    engine: EngineProcess, option: str
) -> None:
    refused(engine, "--security-opt", option)


@pytest.mark.parametrize(
    "profile",
    [
        '{"defaultAction": "SCMP_ACT_WISH"}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOPE"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}',
        "[]",
        "not json",
    ],
)
def test_a_profile_that_is_not_understood_is_an_error(
    engine: EngineProcess, tmp_path: Path, profile: str
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(profile)
    refused(engine, "--security-opt", f"seccomp={file}")


def test_a_profile_of_ones_own_holds(engine: EngineProcess, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], '
        '"action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}'
    )
    shown = run(engine, "chmod 600 /etc/passwd 2>&1; echo $?", "--security-opt", f"seccomp={file}")
    assert "Permission denied" in shown


def test_masked_and_read_only_paths(engine: EngineProcess) -> None:
    script = """
        for file in kcore keys timer_list sched_debug interrupts; do
            [ -e /proc/$file ] && [ "$(head -c 10 /proc/$file | wc -c)" != 0 ] && echo "readable $file"
        done
        for dir in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
            [ -d $dir ] && [ -n "$(ls -A $dir)" ] && echo "seen $dir"
        done
        for file in $(find /proc/sys /proc/irq /proc/bus /proc/fs /sys -type f 2>/dev/null | head -3000); do
            [ -w "$file" ] && (: >>"$file") 2>/dev/null && echo "writable $file"
        done
        (echo h >/proc/sysrq-trigger) 2>/dev/null && echo "writable sysrq"
        echo end
    """
    assert run(engine, script) == "end\n"


def test_a_terminal_is_the_containers_own(engine: EngineProcess, sleeper: str) -> None:
    """TIOCSTI on the caller's terminal: an exec must get a fresh one."""
    import os
    import pty

    leader, follower = pty.openpty()
    command = ["docker", "exec", "-t", sleeper, "readlink", "/proc/self/fd/0"]
    try:
        done = subprocess.run(
            command,
            stdin=follower,
            capture_output=True,
            text=True,
            env=engine.environment,
            check=True,
            timeout=30,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.stdout.strip().startswith("/dev/pts/")
