"""runtime/plan.py and its helpers: a spec becomes steps, without root and without touching anything."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.cgroups.host import detect
from sampan.errors import InvalidArgument
from sampan.linux import constants as c
from sampan.runtime.cli_flags import COMMANDS, parse
from sampan.runtime.cli_info import parse_size
from sampan.runtime.container import check_id
from sampan.runtime.demands import capability_sets, unique
from sampan.runtime.example import example_spec
from sampan.runtime.numberlist import parse_list
from sampan.runtime.options import parse_options
from sampan.runtime.plan import LaunchPlan, make_plan
from sampan.runtime.security import sysctl_path
from sampan.runtime.state import MAY, ContainerState, decode, require

HOST = detect(
    "30 20 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "31 20 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
    "",
)


def plan_of(spec: Any, **more: Any) -> LaunchPlan:
    return make_plan(
        spec, container_id="c", bundle="/b", cgroup_path="/c", cgroup_host=HOST, **more
    )


def test_one_clone_makes_all_namespaces_but_those_that_cannot_be() -> None:
    plan = plan_of(example_spec())
    made = c.CLONE_NEWPID | c.CLONE_NEWNET | c.CLONE_NEWIPC | c.CLONE_NEWUTS | c.CLONE_NEWNS
    assert plan.clone_flags == made
    assert "make the cgroup namespace" in plan.describe()


def test_the_story_is_told_in_the_order_in_which_it_happens() -> None:
    spec = example_spec()
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    lines = plan_of(spec).describe()

    def at(word: str) -> int:
        return next(i for i, line in enumerate(lines) if word in line)

    order = [
        "make cgroup /c", "join the cgroup", "make the cgroup namespace", "decouple", "mount /b/rootfs", "mount proc",
        "mount cgroups", "make device nodes", "write sysctls", "read-only: ", "mask paths", "pivot", "go to /",
        "make the root read-only", "ready", "bound the capabilities", "become user", "set the capabilities", "execute",
    ]  # fmt: skip
    found = [at(word) for word in order]
    assert found == sorted(found)


def test_seccomp_is_last_with_no_new_privileges_and_before_the_capabilities_without() -> None:
    spec = example_spec()
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    names = [step.describe() for step in plan_of(spec).finish]
    assert names[-1] == "install the seccomp filter"
    spec["process"]["noNewPrivileges"] = False
    names = [step.describe() for step in plan_of(spec).finish]
    assert names.index("install the seccomp filter") < names.index("set the capabilities")


def test_a_user_namespace_needs_maps_and_maps_need_one() -> None:
    spec = example_spec()
    spec["linux"]["namespaces"].append({"type": "user"})
    with pytest.raises(InvalidArgument, match="uidMappings"):
        plan_of(spec)
    rootless = plan_of(example_spec(rootless=True))
    assert rootless.maps_ids
    assert rootless.clone_flags & c.CLONE_NEWUSER
    assert rootless.uid_map.startswith(b"0 ")


def test_a_user_namespace_by_path_is_joined_before_others_are_made() -> None:
    spec = example_spec()
    spec["linux"]["namespaces"].append({"type": "user", "path": "/proc/1/ns/user"})
    plan = plan_of(spec)
    assert plan.two_stage
    assert ("namespace:user", "namespace", "/proc/1/ns/user") in plan.opens


def test_a_network_namespace_by_descriptor_beats_the_spec() -> None:
    plan = plan_of(example_spec(), netns_fd=7)
    assert not plan.clone_flags & c.CLONE_NEWNET
    assert plan.netns_fd == 7


def test_device_rules_always_allow_the_default_devices() -> None:
    rules: Any = plan_of(example_spec()).resources["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"} in rules


@pytest.mark.parametrize(
    ("word", "attribute"),
    [
        ("ro", c.MOUNT_ATTR_RDONLY),
        ("nosuid", c.MOUNT_ATTR_NOSUID),
        ("noatime", c.MOUNT_ATTR_NOATIME),
    ],
)
def test_mount_words_are_attributes(word: str, attribute: int) -> None:
    options = parse_options(
        {"destination": "/x", "type": "tmpfs", "options": [word, "r" + word, "size=1m"]}
    )
    assert options.set & attribute
    assert options.recursive_set & attribute
    assert options.data == ["size=1m"]


def test_a_later_mount_word_beats_an_earlier_one() -> None:
    options = parse_options(
        {"destination": "/x", "type": "bind", "options": ["ro", "rw", "rslave"]}
    )
    assert (options.set, options.clear) == (0, c.MOUNT_ATTR_RDONLY)
    assert options.propagation == [(c.MS_SLAVE, True)]


def test_tmpcopyup_is_for_tmpfs() -> None:
    with pytest.raises(InvalidArgument):
        parse_options({"destination": "/x", "type": "proc", "options": ["tmpcopyup"]})


def test_cpu_lists_are_bounded() -> None:
    assert parse_list("0-2,5") == {0, 1, 2, 5}
    for text in ("0-2147483647", "3-1", "a", "1-", "\u0663", "-1"):
        with pytest.raises(InvalidArgument):
            parse_list(text)


def test_without_capabilities_there_are_none() -> None:
    sets = capability_sets(None)
    assert (sets.bounding, sets.permitted, sets.effective, sets.inheritable, sets.ambient) == (
        0,
    ) * 5


def test_the_last_value_of_a_variable_counts() -> None:
    assert unique(["A=1", "B=2", "A=3"]) == ("A=3", "B=2")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
    ],
)
def test_sysctl_names_with_dots_in_devices(name: str, path: str) -> None:
    assert sysctl_path(name) == path


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".seccomp", "a/b", "a b", "a\nb", "x" * 300, "\u00e9"]
)
def test_ids_that_would_be_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_id(name)


@pytest.mark.parametrize(
    ("argv", "values", "operands"),
    [
        (["-d", "--bundle", "/b", "c"], {"detach": True, "bundle": "/b"}, ["c"]),
        (["--bundle=/b", "c", "--keep"], {"bundle": "/b", "keep": True}, ["c"]),
        (["--detach=false", "c"], {"detach": False}, ["c"]),
    ],
)
def test_flags_are_read_as_go_reads_them(
    argv: list[str], values: dict[str, Any], operands: list[str]
) -> None:
    parsed = parse(argv, COMMANDS["run"].flags, stops=False)
    assert (parsed.values, parsed.operands) == (values, operands)


def test_what_follows_the_id_of_exec_is_not_ours() -> None:
    parsed = parse(
        ["-e", "A=1", "--env=B=2", "c", "ls", "-e", "--help"], COMMANDS["exec"].flags, stops=True
    )
    assert parsed.many("env") == ["A=1", "B=2"]
    assert parsed.operands == ["c", "ls", "-e", "--help"]


@pytest.mark.parametrize(
    "argv", [["--nope"], ["--bundle"], ["--preserve-fds", "1_0"], ["--detach=maybe"]]
)
def test_wrong_flags_are_errors(argv: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        parse(argv, COMMANDS["run"].flags, stops=False)


def test_sizes_of_update() -> None:
    assert [parse_size(t, "x") for t in ("64m", "1GiB", "1024", "-1")] == [
        64 << 20,
        1 << 30,
        1024,
        -1,
    ]
    with pytest.raises(InvalidArgument):
        parse_size("1_0m", "x")


def test_states_survive_being_written() -> None:
    state = ContainerState(
        id="c", oci_version="1.0.0", bundle="/b", rootfs="/b/r", created="now", pid=4
    )
    again = decode({**state.encode(), "fromTheFuture": 1})
    assert again.encode() == state.encode()
    assert "pid" in again.document("running")
    assert again.document("stopped")["pid"] == 0


@pytest.mark.parametrize("verb", sorted(MAY))
def test_every_verb_refuses_a_stopped_container(verb: str) -> None:
    with pytest.raises(Exception, match=r"stopped|not running|not paused"):
        require(verb, "stopped")


def test_the_kind_of_a_mount_label_is_the_annotations() -> None:
    spec: Any = example_spec()
    spec["linux"]["mountLabel"] = "a:b:c"
    spec["annotations"] = {"run.oci.mount_context_type": "rootcontext"}
    contexts = {
        step.arguments[0].context
        for step in plan_of(spec).before
        if step.text.startswith("mount tmpfs")
    }
    assert contexts == {"rootcontext=a:b:c"}
    spec["annotations"] = {"run.oci.mount_context_type": "x"}
    with pytest.raises(InvalidArgument, match="mount_context_type"):
        plan_of(spec)
