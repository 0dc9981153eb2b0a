"""Finding the hierarchies by the mount table, and turning an OCI path into one below them."""

from __future__ import annotations

import pytest

from sampan.cgroups.host import detect, parse_own_cgroups
from sampan.cgroups.manager import open_manager, resolve_path

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = V1 + "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
NESTED = "30 23 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
ODD = r"30 23 0:26 / /mnt/a\040b\134c rw - cgroup2 none rw" + "\n"


def test_joined_controllers_share_a_hierarchy() -> None:
    host = detect(V1, "")
    assert host.mode == "v1"
    assert host.mounts["cpu"] == host.mounts["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert len(host.hierarchies()) == 3
    assert host.has("memory")
    assert not host.has("pids")


def test_a_unified_hierarchy_alone_is_v2() -> None:
    host = detect(V2, "0::/user.slice\n", "cpuset cpu io memory pids")
    assert (host.mode, host.unified) == ("v2", "/sys/fs/cgroup")
    assert all(host.has(name) for name in ("cpu", "cpuacct", "blkio", "devices", "freezer", "pids"))
    assert not host.has("hugetlb")


def test_hybrid_has_both() -> None:
    host = detect(HYBRID, "", "hugetlb")
    assert (host.mode, host.unified) == ("hybrid", "/sys/fs/cgroup/unified")
    assert host.has("hugetlb")
    assert not host.has("devices")


def test_no_cgroups_at_all() -> None:
    assert detect("1 1 0:1 / / rw - ext4 /dev/vda rw\n", "").mode == "none"


def test_mount_points_are_unescaped() -> None:
    assert detect(ODD, "", "").unified == r"/mnt/a b\c"


def test_own_cgroups() -> None:
    text = "4:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/d\nnonsense\n"
    assert parse_own_cgroups(text) == {
        "cpu": "/a",
        "cpuacct": "/a",
        "name=systemd": "/b:c",
        "": "/d",
    }


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("/sampan/abc", "/sampan/abc"),
        ("/sampan//./abc/", "/sampan/abc"),
        ("/../../etc/abc", "/etc/abc"),
        ("/a/../../b", "/b"),
    ],
)
def test_absolute_paths_stay_below_the_mount(given: str, resolved: str) -> None:
    assert resolve_path(given, detect(V2, "0::/\n", "")) == resolved


@pytest.mark.parametrize("given", ["", "/", "..", "/..", "."])
def test_the_mount_itself_is_no_container(given: str) -> None:
    with pytest.raises(ValueError, match="invalid cgroup path"):
        resolve_path(given, detect(V2, "", ""))


def test_relative_paths_begin_beside_us_under_v2() -> None:
    assert resolve_path("abc", detect(V2, "0::/user.slice/s.scope\n", "")) == "/user.slice/abc"
    assert resolve_path("abc", detect(NESTED, "0::/docker/abc/init\n", "")) == "/abc"
    assert resolve_path("abc", detect(V1, "2:memory:/elsewhere\n")) == "/abc"


def test_an_unknown_driver_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown cgroup driver"):
        open_manager("/a", driver="cgroups", host=detect(V2, "", ""))
