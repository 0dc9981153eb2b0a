"""A record becomes an OCI spec."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sampan.engine import specgen
from sampan.engine.create import MASKED_PATHS
from sampan.engine.records import ContainerRecord, MountRecord, SharedFacts
from sampan.engine.users import ExecUser
from sampan.engine.words import DEFAULT_CAPABILITIES
from sampan.spec.engine.container import ContainerConfig, HostConfig

FACTS = SharedFacts(
    kernel="6.1", architecture="amd64", cpus=2, memory_bytes=1 << 33, cgroup_version=1
)


def spec_of(
    config: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **sources: Any
) -> Any:
    record = ContainerRecord(
        id="f" * 64, name="n", created_ns=1, image_id="i", chain_id="c", driver="overlay", path="/bin/sh",
        args=["-c", "x"], config=ContainerConfig(**{"hostname": "h", **(config or {})}),
        host_config=HostConfig(
            **{"shm_size": 64, "cgroupns_mode": "host", "masked_paths": MASKED_PATHS, **(host or {})}
        ),
    )  # fmt: skip
    found = specgen.Sources(
        **{"rootfs": "/r", "user": ExecUser(home="/root"), "cgroup_path": "/sampan/x", **sources}
    )
    return specgen.generate(record, found, FACTS)


def test_the_process() -> None:
    process = spec_of({"env": ["A=1", "PATH=/mine"], "working_dir": "/w", "tty": True})["process"]
    assert process["args"] == ["/bin/sh", "-c", "x"]
    assert process["cwd"] == "/w"
    assert process["env"] == ["PATH=/mine", "HOSTNAME=h", "TERM=xterm", "A=1", "HOME=/root"]


def test_a_name_without_value_takes_the_variable_away() -> None:
    env = spec_of({"env": ["HOSTNAME"]})["process"]["env"]
    assert not [text for text in env if text.startswith("HOSTNAME")]


def test_open_files_are_limited_as_before_the_engine_raised_its_own_limit() -> None:
    record = ContainerRecord(
        id="f" * 64, name="n", created_ns=1, image_id="i", chain_id="c", driver="overlay", path="/bin/sh",
        args=[], config=ContainerConfig(hostname="h"), host_config=HostConfig(shm_size=64, cgroupns_mode="host"),
    )  # fmt: skip
    facts = msgspec.structs.replace(FACTS, open_files=(1024, 4096))

    def limits(*ulimits: tuple[str, int, int]) -> Any:
        sources = specgen.Sources(
            rootfs="/r", user=ExecUser(home="/root"), cgroup_path="/sampan/x", ulimits=ulimits
        )
        spec: Any = specgen.generate(record, sources, facts)
        return [(r["type"], r["soft"], r["hard"]) for r in spec["process"]["rlimits"]]

    assert limits() == [("RLIMIT_NOFILE", 1024, 4096)]
    assert limits(("nofile", 5, 6)) == [("RLIMIT_NOFILE", 5, 6)]
    assert limits(("core", 0, 0)) == [("RLIMIT_CORE", 0, 0), ("RLIMIT_NOFILE", 1024, 4096)]


def test_every_namespace_by_default_but_cgroup_under_v1() -> None:
    kinds = {n["type"] for n in spec_of()["linux"]["namespaces"]}
    assert kinds == {"mount", "network", "uts", "pid", "ipc"}
    kinds = {n["type"] for n in spec_of(host={"cgroupns_mode": "private"})["linux"]["namespaces"]}
    assert "cgroup" in kinds


def test_host_namespaces_are_left_out_and_joined_ones_have_paths() -> None:
    spec = spec_of(
        host={"network_mode": "host", "ipc_mode": "host", "uts_mode": "host"},
        namespaces={"pid": "/proc/7/ns/pid"},
    )
    assert spec["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "pid", "path": "/proc/7/ns/pid"},
    ]
    assert "hostname" not in spec
    assert "sysctl" not in spec["linux"]


def test_default_capabilities_for_root_and_none_in_effect_for_others() -> None:
    caps = spec_of()["process"]["capabilities"]
    assert set(caps["effective"]) == set(DEFAULT_CAPABILITIES)
    assert caps["inheritable"] == caps["ambient"] == []
    caps = spec_of(user=ExecUser(uid=5))["process"]["capabilities"]
    assert caps["effective"] == caps["permitted"] == []
    assert set(caps["bounding"]) == set(DEFAULT_CAPABILITIES)


def test_devices_are_denied_first() -> None:
    rules = spec_of()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert all(rule["allow"] for rule in rules[1:])
    assert {"allow": True, "type": "c", "major": 1, "minor": 1, "access": "rwm"} not in rules
    assert spec_of(host={"privileged": True})["linux"]["resources"]["devices"] == [
        {"allow": True, "access": "rwm"}
    ]


def test_limits() -> None:
    resources = spec_of(
        host={
            "memory": 100, "memory_swap": 200, "nano_cpus": 1_500_000_000, "cpu_shares": 10,
            "pids_limit": 0, "cpuset_cpus": "0", "oom_kill_disable": True,
        }
    )["linux"]["resources"]  # fmt: skip
    assert resources["memory"] == {"limit": 100, "swap": 200, "disableOOMKiller": True}
    assert resources["cpu"] == {"shares": 10, "period": 100000, "quota": 150000, "cpus": "0"}
    assert "pids" not in resources
    assert spec_of(host={"pids_limit": -1})["linux"]["resources"]["pids"] == {"limit": -1}


def test_mounts_go_by_depth_and_the_user_s_hide_the_system_s() -> None:
    mounts = (
        MountRecord(type="bind", source="/a", destination="/x/y/z"),
        MountRecord(
            type="bind", source="/b", destination="/x", writable=False, propagation="rslave"
        ),
        MountRecord(type="tmpfs", destination="/dev/shm"),
        MountRecord(type="bind", source="/h", destination="/etc/hosts"),
    )
    spec = spec_of(mounts=mounts, files={"/etc/hosts": "/own/hosts"})
    destinations = [m["destination"] for m in spec["mounts"]]
    assert destinations[:2] == ["/proc", "/dev"]
    assert destinations.index("/x") < destinations.index("/x/y/z")
    assert destinations.count("/dev/shm") == 1
    by_place = {m["destination"]: m for m in spec["mounts"]}
    assert by_place["/x"]["options"] == ["rbind", "rro", "rslave"]
    assert by_place["/x/y/z"]["options"] == ["rbind", "rprivate"]  # "rw" would undo the host's ro
    assert by_place["/etc/hosts"]["source"] == "/h"
    assert spec["linux"]["rootfsPropagation"] == "slave"


@pytest.mark.parametrize(
    ("there", "inside"), [(0, 0), (0, 1000), (1000, 0), (5, 6), (0, 4294967294)]
)
def test_two_owners_change_places_and_every_other_id_stays(there: int, inside: int) -> None:
    shown = {}
    covered = 0
    for row in specgen.exchanged(there, inside):
        covered += row["size"]
        for id_ in (there, inside, 7, 4294967293):
            if row["containerID"] <= id_ < row["containerID"] + row["size"]:
                shown[id_] = row["hostID"] + id_ - row["containerID"]
    assert covered == 4294967295
    assert shown == {7: 7, 4294967293: 4294967293} | {there: inside, inside: there}


def test_masked_paths_are_the_record_s() -> None:
    assert spec_of()["linux"]["maskedPaths"] == MASKED_PATHS
    assert spec_of(host={"masked_paths": []})["linux"]["maskedPaths"] == []


def test_a_spec_is_plain_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec_of())) == spec_of()
