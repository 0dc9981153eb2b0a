"""The static program that executes a container's program: it reports, it hands on all there is, it is sealed."""

from __future__ import annotations

import os
import signal
from _socket import socketpair
from pathlib import Path
from typing import Any

import pytest

from sampan.runtime import springboard
from sampan.runtime.execution import execute, prepare
from sampan.runtime.seccomp import compile_profile
from sampan.runtime.steps import Stage

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="the program is written for x86_64 only"
)


def launch(path: str, argv: list[str], environ: list[str], stdout: int) -> tuple[int, int]:
    """(pid, the pipe that reports) of a process that goes to `path` by the springboard."""
    ours, theirs = socketpair()
    theirs.close()
    stage = Stage(ours)
    stage.executable = path
    reader = springboard.prepare(stage)
    assert reader >= 0
    prepared = prepare(stage, argv, environ)
    pid = os.fork()
    if pid == 0:
        os.dup2(stdout, 1)
        try:
            execute(stage, prepared)
        finally:
            os._exit(99)
    stage.channel.close()
    os.close(stage.springboard_fd)
    os.close(stage.report_fd)
    return pid, reader


def test_arguments_environment_and_exit_code_arrive() -> None:
    reader, writer = os.pipe()
    script = 'echo "$0 $1 $A"; ls /proc/self/fd; exit 7'
    pid, report = launch("/bin/sh", ["name", "-c", script, "zero", "one"], ["A=1 2"], writer)
    os.close(writer)
    assert springboard.outcome(report) == 0
    with os.fdopen(reader) as text:
        said = text.read().split("\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert said[0] == "zero one 1 2"


def test_a_program_that_cannot_be_executed_is_reported(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\0" * 100)
    garbage.chmod(0o755)
    for path, number in ((str(garbage), 8), (str(tmp_path / "none"), 2), (str(tmp_path), 13)):
        pid, report = launch(path, ["x"], [], 1)
        assert springboard.outcome(report) == number
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_link_to_proc_self_exe_leads_to_sealed_memory() -> None:
    """What a container can put in place between our check and execve (CVE-2019-5736)."""
    pid, report = launch("/proc/self/exe", ["x"], [], 1)
    try:
        assert springboard.outcome(report) == 0
        exe = f"/proc/{pid}/exe"
        assert os.readlink(exe).startswith("/memfd:program")
        with pytest.raises(OSError, match="denied|not permitted|busy"):
            os.open(exe, os.O_RDWR)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("profile", "lets"),
    [
        ({"defaultAction": "SCMP_ACT_ALLOW"}, True),
        ({"defaultAction": "SCMP_ACT_LOG"}, True),
        ({"defaultAction": "SCMP_ACT_ERRNO"}, False),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["execveat"], "action": "SCMP_ACT_KILL"}]}, False),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": list(springboard.CALLS), "action": "SCMP_ACT_ALLOW"}]}, True),
    ],
)  # fmt: skip
def test_a_filter_says_whether_it_lets_the_springboard(profile: dict[str, Any], lets: bool) -> None:
    assert compile_profile(profile, "x86_64").lets_springboard is lets


def test_labels_take_effect_at_the_first_execve_so_there_is_only_one() -> None:
    assert springboard.is_wanted({"cwd": "/"}, None)
    assert not springboard.is_wanted({"cwd": "/", "apparmorProfile": "x"}, None)
    assert not springboard.is_wanted({"cwd": "/", "selinuxLabel": "x"}, None)
