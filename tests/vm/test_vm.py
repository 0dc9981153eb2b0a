"""What differs under cgroup v2, run in a virtual machine, since this host's controllers may be bound to v1.

The machine boots once; each test here looks at one file's results in the guest.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import require
from tests.vm import machine

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

# file in the guest -> the least number of its tests that must pass there
GUEST_TESTS = {
    "tests/contract/test_cgroup_manager.py": 20,
    "tests/contract/test_cgroup_runtime.py": 12,
    "tests/contract/test_cgroup_systemd.py": 3,
    "tests/contract/test_cgroup_engine.py": 7,
    "tests/root/test_netlink.py": 3,  # this kernel is older than most hosts': nf_tables answers differ
    "tests/root/test_network_links.py": 6,  # ipvlan, VLANs: links that this kernel has and few others
}
LIMIT = 300.0


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> machine.Result:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sampan-tests"
    tests = [name for name in GUEST_TESTS if (machine.REPOSITORY / name).exists()]
    try:
        return machine.run(tests, cache=cache, work=tmp_path_factory.mktemp("vm"), seconds=LIMIT)
    except machine.Missing as missing:
        require(False, str(missing))
        raise


def test_the_guest_boots_into_a_unified_hierarchy_and_finishes(guest: machine.Result) -> None:
    assert guest.finished, guest.console[-4000:]
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= set(guest.facts["controllers"].split())
    assert float(guest.facts["uptime"]) < 60


@pytest.mark.parametrize("file", sorted(GUEST_TESTS))
def test_passes_in_the_guest(guest: machine.Result, file: str) -> None:
    outcomes = {name: outcome for name, outcome in guest.outcomes.items() if name.startswith(file)}
    failures = [name for name in guest.failures() if name.startswith(file)]
    explained = "\n".join(f"{name}\n{guest.details.get(name, '')}" for name in failures)
    assert not failures, explained
    passed = [name for name, outcome in outcomes.items() if outcome == "passed"]
    assert len(passed) >= GUEST_TESTS[file], guest.console[-4000:]


def test_the_console_is_read_back() -> None:
    console = (
        "noise\r\n@@vm@@ fact kernel 6.1\r\n@@vm@@ passed t.py::a\r\n"
        "@@vm@@ why t.py::b\r\nline one\r\nline two\r\n@@vm@@ failed t.py::b\r\n@@vm@@ done\r\nnoise"
    )
    result = machine.parse(console)
    assert result.facts == {"kernel": "6.1"}
    assert result.outcomes == {"t.py::a": "passed", "t.py::b": "failed"}
    assert result.details == {"t.py::b": "line one\nline two\n"}
    assert result.failures() == ["t.py::b"]
    assert result.finished


def test_cpio_members_are_aligned_and_named() -> None:
    archive = machine.cpio([("a", 0o100644, b"xyz")])
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    assert b"a\0" in archive
    assert b"TRAILER!!!" in archive
