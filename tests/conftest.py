"""Fixtures that every floor's tests share. What needs root or a program says so and is skipped with the reason at
home; with CI=true in the environment such a skip is a failure, because there everything is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.census import Census
from tests.support.engine import EngineProcess
from tests.support.images import BUSYBOX, PATH, busybox_rootfs, tar_of

IN_CI = os.environ.get("CI") == "true"

CGROUPS = Path("/sys/fs/cgroup")


def require(condition: bool, reason: str) -> None:
    """Skip with `reason` where the condition does not hold; in CI that is an error."""
    if not condition:
        if IN_CI:
            pytest.fail(f"CI must provide this: {reason}")
        pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-crash-point",
        action="store_true",
        help="kill the engine at every step of every verb, not at some of them (takes about an hour)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("--every-crash-point") and item.path.name == "test_crash_points.py":
            item.add_marker(pytest.mark.timeout(0))
        if "/root/" in str(item.path) or "/conformance/" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture(autouse=True)
def _root_tests_need_root(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root"):
        require(os.geteuid() == 0, "needs root: it makes namespaces, mounts and cgroups")


@pytest.fixture(scope="session")
def busybox_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busybox root filesystem; shared, so do not change it."""
    require(BUSYBOX.exists(), "needs Debian's busybox-static")
    return busybox_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture(scope="session")
def busybox_tar(busybox_tree: Path) -> Path:
    return tar_of(busybox_tree, busybox_tree.parent / "busybox.tar")


@pytest.fixture(scope="session")
def _shared_engine(
    tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path
) -> Iterator[EngineProcess]:
    require(shutil.which("docker") is not None, "needs the docker CLI")
    base = tmp_path_factory.mktemp("engine")
    engine = EngineProcess(base)
    census = Census(str(base), cgroup_prefix=engine.cgroup_parent, bridge=engine.bridge)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
    assert not census.left_behind()


IMAGES = ("busybox:latest", "alpine:3.10")


def give_images(engine: EngineProcess, busybox_tar: Path) -> None:
    """The two small images; again where a test took one away."""
    have = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    for name in IMAGES:
        if name not in have:
            engine.docker("import", "-c", 'CMD ["sh"]', "-c", f"ENV {PATH}", str(busybox_tar), name)


@pytest.fixture
def engine(_shared_engine: EngineProcess, busybox_tar: Path) -> Iterator[EngineProcess]:
    """A running engine with `busybox:latest` and `alpine:3.10`; each test must leave it as it was."""
    give_images(_shared_engine, busybox_tar)
    census = Census(
        str(_shared_engine.run / "containers"),
        cgroup_prefix=_shared_engine.cgroup_parent,
        bridge=_shared_engine.bridge,
    )
    yield _shared_engine
    ids = _shared_engine.docker("ps", "-aq", check=False).stdout.split()
    if ids:
        _shared_engine.docker("rm", "-f", "-v", *ids, check=False)
    left = census.left_behind()
    assert not left, "the test left behind:\n" + "\n".join(left)


@pytest.fixture
def fresh_engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine of the test's own, not started: for restarts, crashes and flags."""
    require(shutil.which("docker") is not None, "needs the docker CLI")
    engine = EngineProcess(tmp_path)
    yield engine
    engine.stop()


def pytest_sessionfinish() -> None:
    """An engine leaves its cgroup parent for the next one; the engines of these tests have no next one."""
    for hierarchy in (CGROUPS, *CGROUPS.glob("*/")):
        for parent in hierarchy.glob(f"sampan-*{os.getpid()}*"):
            if str(os.getpid()) not in parent.name.split("-"):
                continue
            for folder, _, _ in os.walk(parent, topdown=False):
                with suppress(OSError):  # joined controllers are one directory under two names
                    os.rmdir(folder)
