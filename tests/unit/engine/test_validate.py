"""Refusals of create and update, in Docker's words; limits that a host lacks."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.engine import validate
from sampan.engine.records import SharedFacts
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import (
    CreateRequest,
    DeviceRequest,
    HealthConfig,
    HostConfig,
    LogConfig,
    PortBinding,
    RestartPolicy,
)

FACTS = SharedFacts(
    kernel="6.1", architecture="amd64", cpus=2, memory_bytes=1 << 33, cgroup_version=1, cpuset_cpus="0-1",
    cpuset_mems="0",
)  # fmt: skip
MB = 1 << 20


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"working_dir": "rel"}, "needs to be an absolute path"),
        ({"env": ["=x"]}, "invalid environment variable"),
        (
            {"healthcheck": HealthConfig(interval=5)},
            "Interval in Healthcheck cannot be less than 1ms",
        ),
        ({"healthcheck": HealthConfig(retries=-1)}, "Retries in Healthcheck cannot be negative"),
        ({"stop_signal": "NOSUCH"}, "(?i)invalid signal: NOSUCH"),
        ({"cmd": ["a\0b"]}, "NUL"),
        ({"hostname": "a\nb"}, "invalid hostname"),
        ({"exposed_ports": {"99999/tcp": {}}}, "invalid port"),
    ],
)
def test_wrong_configs(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        validate.check_create(CreateRequest(image="i", **fields), FACTS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"auto_remove": True, "restart_policy": RestartPolicy(name="always")}, "can't create 'AutoRemove'"),
        ({"restart_policy": RestartPolicy(name="sometimes")}, "restart policy"),
        ({"restart_policy": RestartPolicy(name="always", maximum_retry_count=1)}, "maximum retry count"),
        ({"cap_add": ["NOSUCH"]}, "CAP_NOSUCH"),
        ({"ipc_mode": "x"}, "IPC mode"),
        ({"pid_mode": "container:"}, "PID mode"),
        ({"network_mode": "container:x", "dns": ["1.1.1.1"]}, "conflicting options: dns"),
        ({"network_mode": "host", "links": ["a:b"]}, "host type networking"),
        ({"extra_hosts": ["novalue"]}, "bad format for add-host"),
        ({"runtime": "nosuch"}, "nosuch"),
        ({"log_config": LogConfig(type="nosuch")}, "nosuch"),
        ({"log_config": LogConfig(type="json-file", config={"x": "y"})}, "unknown log opt 'x'"),
        ({"security_opt": ["nosuch"]}, "invalid --security-opt"),
        ({"security_opt": ["no-new-privileges:perhaps"]}, "invalid --security-opt"),
        ({"security_opt": ["secomp=unconfined"]}, "invalid --security-opt"),
        ({"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]}, r'device driver "" with capabilities: \[\[gpu\]\]'),
        ({"port_bindings": {"80/tcp": [PortBinding(host_port="x")]}}, "invalid port"),
        ({"port_bindings": {"80-70/tcp": []}}, "invalid port"),
        ({"memory": 5 * MB}, "Minimum memory limit allowed is 6MB"),
        ({"memory": 10 * MB, "memory_swap": 9 * MB}, "Minimum memoryswap limit"),
        ({"memory_swap": 9 * MB}, "always set the Memory limit"),
        ({"memory_swappiness": 101}, "valid memory swappiness range"),
        ({"nano_cpus": 3 * 10**9}, "there are only 2 CPUs available"),
        ({"nano_cpus": 10**9, "cpu_period": 5000}, "Nano CPUs and CPU Period"),
        ({"cpu_period": 10}, "CPU cfs period"),
        ({"cpuset_cpus": "0-2147483647"}, "Invalid value"),
        ({"cpuset_cpus": "1_0"}, "Invalid value"),
        ({"cpuset_cpus": "7"}, "Requested CPUs are not available"),
        ({"blkio_weight": 5}, "Range of blkio weight"),
        ({"oom_score_adj": 2000}, "oom score adj"),
        ({"device_cgroup_rules": ["c 1:3 x"]}, "device cgroup rule"),
    ],
)  # fmt: skip
def test_wrong_host_configs(fields: dict[str, Any], words: str) -> None:
    request = CreateRequest(image="i", host_config=HostConfig(**fields))
    with pytest.raises(InvalidArgument, match=words):
        validate.check_create(request, FACTS)


def test_an_ordinary_request_passes() -> None:
    host = HostConfig(
        memory=64 * MB, nano_cpus=5 * 10**8, cpuset_cpus="0,1", security_opt=["seccomp=unconfined"],
        cap_add=["net_admin"], cap_drop=["ALL"], network_mode="host", pid_mode="container:x",
    )  # fmt: skip
    validate.check_create(CreateRequest(image="i", cmd=["x"], host_config=host), FACTS)


def test_swap_is_twice_the_memory_unless_said() -> None:
    settled, warnings = validate.settle_resources(HostConfig(memory=64 * MB), FACTS)
    assert (settled.memory_swap, warnings) == (128 * MB, [])


def test_limits_that_the_host_lacks_are_warnings() -> None:
    import msgspec

    poor = msgspec.structs.replace(
        FACTS, has_swap_limit=False, has_pids_limit=False, has_cpuset=False, has_blkio_weight=False
    )
    wanted = HostConfig(memory=64 * MB, pids_limit=10, cpuset_cpus="0", blkio_weight=100)
    settled, warnings = validate.settle_resources(wanted, poor)
    assert (settled.memory, settled.memory_swap) == (64 * MB, -1)
    assert (settled.pids_limit, settled.cpuset_cpus, settled.blkio_weight) == (None, "", 0)
    assert len(warnings) == 4
    assert all(text.startswith("Your kernel does not support") for text in warnings)
