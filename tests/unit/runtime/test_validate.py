"""runtime/validate.py: every refusal is one line that names the field."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sampan.errors import InvalidArgument
from sampan.runtime.example import example_spec
from sampan.runtime.validate import validate, validate_process


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example spec with one field replaced; `a.b.0.c` walks into it, a missing object is made."""
    spec = copy.deepcopy(example_spec())
    place: Any = spec
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
    return spec


def test_the_example_is_valid_for_root_and_rootless() -> None:
    validate(example_spec())
    validate(example_spec(rootless=True))


def test_unknown_fields_and_nulls_are_ignored() -> None:
    validate(changed("linux.futureField", {"x": 1}))
    validate(changed("hooks", None))
    validate(changed("linux.seccomp", None))


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.2.1+build", "1.9.0"])
def test_every_version_1_is_understood(version: str) -> None:
    validate(changed("ociVersion", version))


BAD = [
    ("ociVersion", None, "ociVersion"),
    ("ociVersion", "2.0.0", "ociVersion"),
    ("ociVersion", "one", "ociVersion"),
    ("ociVersion", 1, "ociVersion"),
    ("root", None, "root.path"),
    ("root.path", "", "root.path"),
    ("root.path", "a\0b", "root.path"),
    ("root.readonly", "yes", "root.readonly"),
    ("process", None, "process"),
    ("process.cwd", "", "process.cwd"),
    ("process.cwd", "relative", "process.cwd"),
    ("process.args", [], "process.args"),
    ("process.args", "sh", "process.args"),
    ("process.args", ["sh", 1], "process.args"),
    ("process.args", ["a\0b"], "process.args"),
    ("process.env", {"A": "b"}, "process.env"),
    ("process.user.uid", -1, "process.user.uid"),
    ("process.user.uid", 1 << 32, "process.user.uid"),
    ("process.user.uid", "0", "process.user.uid"),
    ("process.user.uid", True, "process.user.uid"),
    ("process.user.additionalGids", [1, -2], "process.user.additionalGids[1]"),
    ("process.capabilities.bounding", ["CAP_NOTHING"], "process.capabilities.bounding"),
    ("process.capabilities.ambient", ["chown"], "process.capabilities.ambient"),
    ("process.rlimits", [{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}], "process.rlimits"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 1}], "process.rlimits"),
    ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "process.rlimits"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj"),
    ("process.scheduler", {"policy": "SCHED_BEST"}, "process.scheduler.policy"),
    ("process.scheduler", {"policy": "SCHED_OTHER", "nice": 20}, "process.scheduler.nice"),
    (
        "process.scheduler",
        {"policy": "SCHED_DEADLINE", "runtime": 0, "deadline": 1},
        "process.scheduler",
    ),
    ("process.ioPriority", {"class": "BEST"}, "process.ioPriority.class"),
    (
        "process.ioPriority",
        {"class": "IOPRIO_CLASS_BE", "priority": 8},
        "process.ioPriority.priority",
    ),
    ("mounts", {}, "mounts"),
    ("mounts.0.destination", "proc", "mounts[0].destination"),
    ("mounts.0.destination", "", "mounts[0].destination"),
    ("mounts.1.options", "ro", "mounts[1].options"),
    ("linux.namespaces", [{"type": "planet"}], "linux.namespaces[0].type"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], "linux.namespaces[1].type"),
    ("linux.namespaces", [{"type": "pid", "path": "x"}], "linux.namespaces[0].path"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
    ("linux.timeOffsets", {"boottime": {"secs": 1}}, "linux.timeOffsets"),
    ("linux.devices", [{"path": "dev/x", "type": "c"}], "linux.devices[0].path"),
    ("linux.devices", [{"path": "/dev/x", "type": "z"}], "linux.devices[0].type"),
    (
        "linux.resources.devices",
        [{"allow": True, "access": "rwx"}],
        "linux.resources.devices[0].access",
    ),
    ("linux.resources.memory", {"limit": "1g"}, "linux.resources.memory.limit"),
    ("linux.resources.memory", {"limit": 1 << 63}, "linux.resources.memory.limit"),
    ("linux.sysctl", {"vm.swappiness": "1"}, "linux.sysctl"),
    ("linux.sysctl", {"kernel.hostname": "x"}, "linux.sysctl"),
    ("linux.netDevices", {"eth0/x": {}}, "linux.netDevices"),
    ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes"),
    ("linux.memoryPolicy", {}, "linux.memoryPolicy.mode"),
    ("linux.personality", {"domain": "BSD"}, "linux.personality.domain"),
    ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt"),
    ("hooks", {"poststop": [{"path": "x"}]}, "hooks.poststop[0].path"),
    ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout"),
]


@pytest.mark.parametrize(
    ("path", "value", "field"), BAD, ids=[f"{p}={str(v)[:30]}" for p, v, _ in BAD]
)
def test_what_is_wrong_is_named(path: str, value: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate(changed(path, value))
    assert caught.value.message.startswith(field)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_config_that_is_no_object(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        validate(value if value is not None else {})


@pytest.mark.parametrize(
    ("namespaces", "name"),
    [
        (["mount"], "net.ipv4.ip_forward"),
        (["mount"], "kernel.msgmax"),
        (["mount"], "fs.mqueue.msg_max"),
    ],
)
def test_a_sysctl_of_a_namespace_we_share_is_refused(namespaces: list[str], name: str) -> None:
    spec = changed("linux.namespaces", [{"type": kind} for kind in namespaces])
    spec.pop("hostname")
    spec["linux"]["sysctl"] = {name: "1"}
    with pytest.raises(InvalidArgument, match=name):
        validate(spec)


def test_process_json_of_exec_is_held_to_the_same() -> None:
    validate_process({"cwd": "/", "args": ["sh"]})
    with pytest.raises(InvalidArgument, match=r"process\.user\.gid"):
        validate_process({"cwd": "/", "args": ["sh"], "user": {"gid": -5}})


def test_null_is_absent_and_case_is_as_go_reads_it() -> None:
    spec: Any = example_spec()
    spec["process"]["user"]["umask"] = None
    spec["linux"]["timeOffsets"] = {"monotonic": None}
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["resources"]["hugepageLimits"] = [{"pagesize": "2MB", "limit": 4096}]
    checked: Any = validate(spec)
    assert "umask" not in checked["process"]["user"]
    assert checked["linux"]["timeOffsets"] == {}
    assert checked["linux"]["resources"]["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4096}]


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"hugepageLimits": [{"limit": 1}]}, "linux.resources.hugepageLimits[0].pageSize"),
        ({"blockIO": {"weightDevice": [{"minor": 1}]}}, "linux.resources.blockIO.weightDevice[0].major"),
        ({"network": {"priorities": [{"priority": 1}]}}, "linux.resources.network.priorities[0].name"),
    ],
)  # fmt: skip
def test_a_limit_without_what_it_limits_is_refused(resources: dict[str, Any], field: str) -> None:
    spec: Any = example_spec()
    spec["linux"]["resources"].update(resources)
    with pytest.raises(InvalidArgument) as caught:
        validate(spec)
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({}, "linux.memoryPolicy.mode: invalid memory policy mode"),
        ({"mode": "INTERLEAVE"}, "linux.memoryPolicy.mode: invalid memory policy mode"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["x"]}, "linux.memoryPolicy.flags: invalid memory policy flag"),
        ({"mode": "MPOL_BIND", "nodes": "0-9876543210"}, "linux.memoryPolicy.nodes: invalid memory policy node"),
        ({"mode": "MPOL_DEFAULT", "nodes": "0-7"}, "mode requires 0 nodes but got 8"),
        ({"mode": "MPOL_BIND"}, "requires at least one node"),
    ],
)  # fmt: skip
def test_memory_policies_that_are_none_are_refused(policy: dict[str, Any], words: str) -> None:
    spec: Any = example_spec()
    spec["linux"]["memoryPolicy"] = policy
    with pytest.raises(InvalidArgument) as caught:
        validate(spec)
    assert words in str(caught.value)
