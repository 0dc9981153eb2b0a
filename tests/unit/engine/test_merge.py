"""Request and image config become one."""

from __future__ import annotations

import pytest

from sampan.engine.merge import argv, merge
from sampan.spec.engine.container import ContainerConfig, HealthConfig
from sampan.spec.engine.wire import Empty
from sampan.spec.image import Healthcheck, RunConfig

IMAGE = RunConfig(
    env=("PATH=/bin", "A=image"),
    entrypoint=("/init",),
    cmd=("serve",),
    labels={"a": "image", "b": "image"},
    exposed_ports={"80/tcp": {}},
    volumes={"/data": {}},
    user="www",
    working_dir="/srv",
    stop_signal="QUIT",
    healthcheck=Healthcheck(test=("CMD", "true"), interval=5, retries=2),
)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "expected"),
    [
        (None, None, ["/init", "serve"]),
        (None, ["x"], ["/init", "x"]),
        (["/e"], None, ["/e"]),
        (["/e"], ["x"], ["/e", "x"]),
        ([""], ["x"], ["x"]),
        ([""], None, []),
        ([], None, ["serve"]),
    ],
)
def test_entrypoint_and_command(
    entrypoint: list[str] | None, cmd: list[str] | None, expected: list[str]
) -> None:
    assert argv(merge(ContainerConfig(entrypoint=entrypoint, cmd=cmd), IMAGE)) == expected


def test_the_request_s_variables_win_and_come_first() -> None:
    merged = merge(ContainerConfig(env=["A=mine", "B=1"]), IMAGE)
    assert merged.env == ["A=mine", "B=1", "PATH=/bin"]


def test_sets_are_united_and_labels_overridden() -> None:
    merged = merge(
        ContainerConfig(
            labels={"a": "mine"}, exposed_ports={"53/udp": Empty()}, volumes={"/x": Empty()}
        ),
        IMAGE,
    )
    assert merged.labels == {"a": "mine", "b": "image"}
    assert set(merged.exposed_ports) == {"80/tcp", "53/udp"}
    assert set(merged.volumes or {}) == {"/data", "/x"}


def test_single_values_come_from_the_image_where_the_request_is_silent() -> None:
    merged = merge(ContainerConfig(user="root"), IMAGE)
    assert (merged.user, merged.working_dir, merged.stop_signal) == ("root", "/srv", "QUIT")


def test_a_health_check_is_completed_field_by_field() -> None:
    merged = merge(ContainerConfig(healthcheck=HealthConfig(retries=9)), IMAGE)
    assert merged.healthcheck == HealthConfig(test=["CMD", "true"], interval=5, retries=9)
