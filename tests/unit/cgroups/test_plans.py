"""OCI resources as writes, for v1 and for v2."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.cgroups import v1_plan, v2_plan
from sampan.cgroups.v2_plan import Held, swap_alone, weight_of_blkio, weight_of_shares


def rows(writes: list[v1_plan.Write]) -> list[tuple[str, str]]:
    return [(write.file, write.text) for write in writes]


DEVICE = {"major": 8, "minor": 16}


def test_v1_writes_every_field_that_is_given() -> None:
    resources = {
        "memory": {
            "reservation": 1 << 20,
            "kernelTCP": 4096,
            "swappiness": 0,
            "disableOOMKiller": True,
        },
        "cpu": {
            "shares": 512,
            "cpus": "0-1",
            "mems": "0",
            "burst": 0,
            "idle": 1,
        },
        "pids": {"limit": 64},
        "blockIO": {
            "weight": 300,
            "leafWeight": 20,
            "weightDevice": [{**DEVICE, "weight": 500, "leafWeight": 30}],
            "throttleReadBpsDevice": [{**DEVICE, "rate": 1000}],
            "throttleWriteIOPSDevice": [{**DEVICE, "rate": 0}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3}, "mlx5_0": {"hcaObjects": 10000}},
    }
    assert rows(v1_plan.plan(resources, "blkio.bfq.")) == [
        ("memory.soft_limit_in_bytes", "1048576"),
        ("memory.kmem.tcp.limit_in_bytes", "4096"),
        ("memory.oom_control", "1"),
        ("memory.swappiness", "0"),
        ("cpu.shares", "512"),
        ("cpu.cfs_burst_us", "0"),
        ("cpu.idle", "1"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("pids.max", "64"),
        ("blkio.bfq.weight", "300"),
        ("blkio.leaf_weight", "20"),
        ("blkio.bfq.weight_device", "8:16 500"),
        ("blkio.leaf_weight_device", "8:16 30"),
        ("blkio.throttle.read_bps_device", "8:16 1000"),
        ("blkio.throttle.write_iops_device", "8:16 0"),
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("net_prio.ifpriomap", "eth0 5"),
        ("net_cls.classid", "1048577"),
        ("rdma.max", "mlx5_0 hca_handle=max hca_object=10000"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=max"),
    ]


@pytest.mark.parametrize("plan", [v1_plan.plan, lambda resources: v2_plan.plan(resources, Held())])
def test_nothing_is_written_for_nothing(plan: Any) -> None:
    assert plan({}) == []
    assert (
        plan({"memory": None, "cpu": {}, "pids": {}, "blockIO": None, "hugepageLimits": None}) == []
    )


@pytest.mark.parametrize(("limit", "text"), [(5, "5"), (-1, "max")])
def test_a_negative_pids_limit_is_no_limit(limit: int, text: str) -> None:
    resources = {"pids": {"limit": limit}}
    assert rows(v1_plan.plan(resources)) == [("pids.max", text)]
    assert rows(v2_plan.plan(resources, Held())) == [("pids.max", text)]


def test_swappiness_beyond_a_hundred_is_an_error() -> None:
    with pytest.raises(ValueError, match="0-100"):
        v1_plan.plan({"memory": {"swappiness": 101}})


def test_v2_converts_v1s_language() -> None:
    resources = {
        "memory": {"limit": 1 << 30, "swap": 3 << 30, "reservation": -1},
        "cpu": {
            "shares": 1024,
            "quota": 50000,
            "period": 200000,
            "burst": 1000,
            "cpus": "1",
            "mems": "0",
        },
        "blockIO": {
            "weight": 1000,
            "weightDevice": [{**DEVICE, "weight": 10}],
            "throttleReadBpsDevice": [{**DEVICE, "rate": 1}],
            "throttleWriteBpsDevice": [{**DEVICE, "rate": 2}],
            "throttleReadIOPSDevice": [{**DEVICE, "rate": 3}],
            "throttleWriteIOPSDevice": [{**DEVICE, "rate": 0}],
        },
        "hugepageLimits": [{"pageSize": "1GB", "limit": 0}],
        "rdma": {"mlx": {"hcaHandles": 1, "hcaObjects": 2}},
    }
    assert rows(v2_plan.plan(resources, Held())) == [
        ("memory.swap.max", "2147483648"),
        ("memory.max", "1073741824"),
        ("memory.low", "max"),
        ("io.weight", "default 10000"),
        ("io.weight", "8:16 1"),
        ("io.max", "8:16 rbps=1"),
        ("io.max", "8:16 wbps=2"),
        ("io.max", "8:16 riops=3"),
        ("io.max", "8:16 wiops=max"),
        ("cpu.weight", "100"),
        ("cpu.max.burst", "0"),
        ("cpu.max", "50000 200000"),
        ("cpu.max.burst", "1000"),
        ("cpuset.cpus", "1"),
        ("cpuset.mems", "0"),
        ("hugetlb.1GB.max", "0"),
        ("hugetlb.1GB.rsvd.max", "0"),
        ("rdma.max", "mlx hca_handle=1 hca_object=2"),
    ]


def test_bfq_takes_weights_as_they_are() -> None:
    block = {"weight": 300, "weightDevice": [{**DEVICE, "weight": 20}]}
    assert rows(v2_plan.io_writes(block, Held(bfq=True))) == [
        ("io.bfq.weight", "default 300"),
        ("io.bfq.weight", "8:16 20"),
    ]


@pytest.mark.parametrize(
    ("cpu", "held", "text"),
    [
        ({"quota": 50000}, "max 100000", "50000 100000"),
        ({"quota": 50000}, "max 200000", "50000 200000"),
        ({"period": 50000}, "20000 100000", "20000 50000"),
        ({"quota": -1}, "20000 100000", "max 100000"),
    ],
)
def test_half_a_quota_keeps_the_other_half(cpu: dict[str, int], held: str, text: str) -> None:
    assert rows(v2_plan.cpu_writes(cpu, Held(cpu_max=held))) == [("cpu.max", text)]


def test_shares_map_onto_weights_through_their_three_fixed_points() -> None:
    assert [weight_of_shares(shares) for shares in (0, 1, 2, 1024, 262144, 999999)] == [
        1,
        1,
        1,
        100,
        10000,
        10000,
    ]
    weights = [weight_of_shares(shares) for shares in range(2, 262145, 997)]
    assert weights == sorted(weights)


def test_blkio_weights_map_linearly() -> None:
    assert [weight_of_blkio(weight) for weight in (10, 500, 1000)] == [1, 4950, 10000]


@pytest.mark.parametrize(
    ("limit", "total", "swap"),
    [
        (100, 300, 200),
        (100, 100, 0),
        (100, -1, -1),
        (-1, 0, -1),
        (-1, 50, 50),
        (0, -1, -1),
        (100, 0, 0),
    ],
)
def test_swap_alone_is_the_sum_less_memory(limit: int, total: int, swap: int) -> None:
    assert swap_alone(limit, total) == swap


@pytest.mark.parametrize(("limit", "total"), [(0, 100), (-2, 100), (200, 100)])
def test_a_sum_that_cannot_be_is_an_error(limit: int, total: int) -> None:
    with pytest.raises(ValueError, match=r"swap|memory"):
        swap_alone(limit, total)


def test_swap_without_a_limit_goes_by_the_limit_that_is_there() -> None:
    writes = v2_plan.memory_writes({"swap": 300}, Held(memory_max="100"))
    assert rows(writes) == [("memory.swap.max", "200")]


def test_no_swap_at_all_is_optional_and_some_swap_is_not() -> None:
    equal = v2_plan.memory_writes({"limit": 100, "swap": 100}, Held())
    more = v2_plan.memory_writes({"limit": 100, "swap": 150}, Held())
    assert (equal[0].text, equal[0].optional) == ("0", True)
    assert (more[0].text, more[0].optional) == ("50", False)


def test_what_v2_has_no_word_for() -> None:
    resources = {
        "memory": {"swappiness": 0, "kernel": 5},
        "cpu": {"realtimePeriod": 5},
        "network": {"classID": 1},
        "blockIO": {"leafWeight": 5},
    }
    assert [file for _, file in v2_plan.untranslatable(resources)] == [
        "memory.kmem.limit_in_bytes",
        "memory.swappiness",
        "cpu.rt_period_us",
        "blkio.leaf_weight",
        "net_cls.classid",
    ]
    assert v2_plan.untranslatable({"memory": {"limit": 1, "disableOOMKiller": False}}) == []


def test_unified_values_are_written_line_by_line() -> None:
    writes = v2_plan.unified_writes({"io.max": "8:0 rbps=1\n8:16 rbps=2", "memory.high": "max"})
    assert rows(writes) == [
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
        ("memory.high", "max"),
    ]


@pytest.mark.parametrize("key", ["../memory.max", "memory/max", "memory", ".max", ""])
def test_unified_keys_name_a_file_of_the_cgroup(key: str) -> None:
    with pytest.raises(ValueError, match="unified resource"):
        v2_plan.unified_writes({key: "1"})


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ({"limit": 50, "checkBeforeUpdate": True}, "rejecting memory limit 50 <= usage 100"),
        (
            {"limit": 500, "swap": 100, "checkBeforeUpdate": True},
            "rejecting memory+swap limit 100 <= usage 100",
        ),
        ({"limit": 50}, ""),
        ({"limit": 101, "checkBeforeUpdate": True}, ""),
        ({"limit": -1, "checkBeforeUpdate": True}, ""),
    ],
)
def test_a_limit_below_the_usage_is_refused_where_asked(memory: dict[str, Any], said: str) -> None:
    assert v2_plan.memory_refusal(memory, 100) == said


def test_writes_describe_themselves() -> None:
    assert v1_plan.Write("pids", "pids.max", "5").describe() == "write '5' to pids.max"
