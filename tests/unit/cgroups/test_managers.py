"""The two managers on directories that stand in for hierarchies: files written, warnings, errors.

A stand-in file keeps the last value written; what the kernel itself does is tested in tests/contract.
"""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, EINVAL
from pathlib import Path

import pytest

from sampan.cgroups import v2
from sampan.cgroups.files import make_directories, remove_tree, write
from sampan.cgroups.host import CgroupHost
from sampan.cgroups.v1 import V1Manager
from sampan.cgroups.v2 import V2Manager, enable_controllers

V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "0",
        "cgroup.procs": "",
    },
    "cpu": {
        "cpu.shares": "1024",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_period_us": "100000",
        "tasks": "",
    },
    "pids": {"pids.max": "max", "cgroup.procs": "", "tasks": ""},
    "freezer": {"freezer.state": "THAWED", "cgroup.procs": ""},
    "devices": {
        "devices.allow": "",
        "devices.deny": "",
        "devices.list": "a *:* rwm",
        "cgroup.procs": "",
    },
}
V2_FILES = {
    "cgroup.procs": "", "cgroup.freeze": "0", "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.type": "domain",
    "memory.max": "max", "memory.swap.max": "max", "memory.current": "1000", "pids.max": "max", "cpu.max": "max 100000",
    "cpu.weight": "100",
}  # fmt: skip
CONTAINER = "/sampan/abc"


def v1_host(root: Path) -> CgroupHost:
    for controller, files in V1_FILES.items():
        directory = root / controller / "sampan" / "abc"
        directory.mkdir(parents=True)
        for name, text in files.items():
            (directory / name).write_text(text)
    mounts = {controller: str(root / controller) for controller in V1_FILES}
    return CgroupHost(
        mode="v1", mounts=mounts, roots={}, unified="", unified_controllers=frozenset(), own={}
    )


def v2_host(root: Path) -> CgroupHost:
    directory = root / "sampan" / "abc"
    directory.mkdir(parents=True)
    for name, text in V2_FILES.items():
        (directory / name).write_text(text)
    for parent in (root, root / "sampan"):
        (parent / "cgroup.controllers").write_text("cpu memory pids")
        (parent / "cgroup.subtree_control").write_text("cpu memory pids")
    return CgroupHost(
        mode="v2",
        mounts={},
        roots={},
        unified=str(root),
        unified_controllers=frozenset(("cpu", "memory", "pids")),
        own={},
    )


@pytest.fixture
def one(tmp_path: Path) -> V1Manager:
    return V1Manager(v1_host(tmp_path), CONTAINER)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> V2Manager:
    monkeypatch.setattr(v2.devices, "attach_program", lambda directory, rules: None)
    return V2Manager(v2_host(tmp_path), CONTAINER)


def content(manager: V1Manager | V2Manager, controller: str, file: str) -> str:
    directory = (
        manager.directory(controller) if isinstance(manager, V1Manager) else manager.directory
    )
    return Path(directory, file).read_text()


def test_v1_limits_reach_their_files(one: V1Manager) -> None:
    warnings = one.create({"memory": {"limit": 1 << 27, "swap": 1 << 28}, "pids": {"limit": 9}})
    assert warnings == []
    assert content(one, "memory", "memory.limit_in_bytes").startswith("134217728")
    assert content(one, "memory", "memory.memsw.limit_in_bytes").startswith("268435456")
    assert content(one, "pids", "pids.max").startswith("9")
    assert one.paths()["memory"].endswith("/memory/sampan/abc")


def test_v1_what_is_not_mounted_is_a_warning_in_dockers_words(one: V1Manager) -> None:
    warnings = one.create(
        {"cpu": {"cpus": "0"}, "blockIO": {"weight": 10}, "memory": {"swappiness": 5}}
    )
    assert warnings == [
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
        "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
    ]


def test_v1_strict_makes_it_an_error(one: V1Manager) -> None:
    with pytest.raises(FileNotFoundError, match="cpuset"):
        one.create({"cpu": {"cpus": "0"}}, strict=True)


def test_v1_refuses_v2s_own_words(one: V1Manager) -> None:
    with pytest.raises(OSError, match="cgroup v2 parameters") as caught:
        one.apply({"unified": {"memory.high": "1"}})
    assert caught.value.errno == EINVAL


def test_v1_a_silently_clamped_weight_is_an_error(
    one: V1Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sampan.cgroups.v1.read", lambda path: "2\n")
    with pytest.raises(OSError, match="the minimum allowed cpu-shares is 2"):
        one.apply({"cpu": {"shares": 1}})
    with pytest.raises(OSError, match="the maximum allowed cpu-shares is 2"):
        one.apply({"cpu": {"shares": 300000}})


def test_v1_joins_by_tasks_not_by_procs(one: V1Manager) -> None:
    for controller in ("memory", "freezer", "devices"):
        Path(one.directory(controller), "tasks").touch()
    one.attach_self()
    for controller in V1_FILES:
        assert content(one, controller, "tasks") == "0"
        if controller != "cpu":
            assert content(one, controller, "cgroup.procs") == ""


def test_v1_a_frozen_state_is_seen_and_lifted(one: V1Manager) -> None:
    one.freeze()
    assert one.frozen()
    one.thaw()
    assert not one.frozen()


def test_v2_limits_reach_their_files(two: V2Manager) -> None:
    warnings = two.create(
        {
            "memory": {"limit": 1 << 27, "swap": 1 << 28},
            "cpu": {"shares": 2, "quota": 5000},
            "pids": {"limit": -1},
        }
    )
    assert warnings == []
    assert content(two, "", "memory.max").startswith("134217728")
    assert content(two, "", "memory.swap.max").startswith("134217728")
    assert content(two, "", "cpu.max").startswith("5000 100000")
    assert content(two, "", "cpu.weight").startswith("1")
    assert two.paths() == {"": two.directory}


def test_v2_what_has_no_word_is_a_warning_even_when_strict(two: V2Manager) -> None:
    warnings = two.create({"memory": {"swappiness": 5}}, strict=True)
    assert len(warnings) == 1
    assert "swappiness" in warnings[0]


def test_v2_a_missing_controller_is_a_warning_or_a_named_error(two: V2Manager) -> None:
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}
    assert "huge page" in two.apply(resources)[0]
    with pytest.raises(OSError, match="controller 'hugetlb' not available"):
        two.apply(resources, strict=True)


def test_v2_the_users_own_key_is_never_only_a_warning(two: V2Manager) -> None:
    with pytest.raises(
        OSError, match=r"unified resource 'rdma\.max' can't be set: controller 'rdma' not available"
    ):
        two.apply({"unified": {"rdma.max": "x"}})
    with pytest.raises(OSError, match=r"unable to set unified resource 'memory\.wish'"):
        two.apply({"unified": {"memory.wish": "x"}})


def test_v2_check_before_update(two: V2Manager) -> None:
    with pytest.raises(OSError, match="rejecting memory limit 500 <= usage 1000") as caught:
        two.apply({"memory": {"limit": 500, "checkBeforeUpdate": True}})
    assert caught.value.errno == EBUSY
    assert content(two, "", "memory.max") == "max"


@pytest.mark.parametrize("kind", ["threaded", "domain threaded", "domain invalid"])
def test_v2_a_threaded_cgroup_holds_no_container(two: V2Manager, kind: str) -> None:
    Path(two.directory, "cgroup.type").write_text(kind)
    with pytest.raises(OSError, match="cannot enter cgroupv2"):
        two.create({})


@pytest.mark.parametrize("which", ["one", "two"])
def test_a_cgroup_with_foreign_processes_is_refused(
    which: str, request: pytest.FixtureRequest
) -> None:
    manager = request.getfixturevalue(which)
    listing = Path(
        manager.directory("pids") if which == "one" else manager.directory, "cgroup.procs"
    )
    listing.write_text("17\n18\n")
    with pytest.raises(OSError, match="container's cgroup is not empty: 2 process"):
        manager.create({})
    assert listing.exists()


def test_rootless_without_delegation_has_no_cgroup_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: str, path: str) -> list[str]:
        raise PermissionError(EACCES, "Permission denied", root + path)

    monkeypatch.setattr(v2, "make_directories", refuse)
    host = CgroupHost(
        mode="v2",
        mounts={},
        roots={},
        unified=str(tmp_path),
        unified_controllers=frozenset(),
        own={},
    )
    with pytest.raises(PermissionError):
        V2Manager(host, "/a/b").create({})
    manager = V2Manager(host, "/a/b", rootless=True)
    assert "PIDs limit discarded" in manager.create({"pids": {"limit": 5}})[0]
    assert manager.clone_fd() == -1
    assert manager.pids() == []
    manager.attach_self()
    manager.kill_all()
    manager.destroy()


def test_controllers_are_passed_on_from_the_root_down(tmp_path: Path) -> None:
    leaf = tmp_path / "a" / "b"
    leaf.mkdir(parents=True)
    for directory, have, on in (
        (tmp_path, "cpu memory pids", "cpu"),
        (tmp_path / "a", "cpu memory", ""),
    ):
        (directory / "cgroup.controllers").write_text(have)
        (directory / "cgroup.subtree_control").write_text(on)
    enable_controllers(str(tmp_path), "/a/b", ("cpu", "memory", "pids", "rdma"))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "a" / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_directories_are_for_all_to_read_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert make_directories(str(tmp_path), "/a/b") == [f"{tmp_path}/a", f"{tmp_path}/a/b"]
        assert make_directories(str(tmp_path), "/a/b") == []
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_removing_takes_children_and_forgives_absence(tmp_path: Path) -> None:
    (tmp_path / "c" / "inner" / "deep").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):  # a stand-in directory; the kernel says EBUSY
        remove_tree(str(tmp_path / "c"), tries=1)
    (tmp_path / "c" / "inner" / "deep").rmdir()
    (tmp_path / "c" / "inner").rmdir()
    remove_tree(str(tmp_path / "c"))
    remove_tree(str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_failed_write_names_value_and_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"write '5': .*full"):
        write("/dev/full", "5")
