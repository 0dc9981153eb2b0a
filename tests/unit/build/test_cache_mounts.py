"""Cache mounts appear whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.build.cache import BuildCache
from sampan.store import Store

PLACE: dict[str, Any] = {"mode": 0o755, "uid": os.getuid(), "gid": os.getgid()}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[BuildCache]:
    store = Store(tmp_path / "store.db")
    snapshots: Any = None  # no layer is touched here
    yield BuildCache(tmp_path / "builder", store, snapshots)
    store.close()


def test_two_steps_that_want_a_new_one_at_once_get_the_same(cache: BuildCache) -> None:
    both_in = threading.Barrier(2)
    found: list[Path] = []

    def seed(path: Path) -> None:
        both_in.wait(30)
        (path / "seed").touch()

    def want() -> None:
        found.append(cache.open_mount("id", **PLACE, seed=seed))

    steps = [threading.Thread(target=want) for _ in range(2)]
    for step in steps:
        step.start()
    for step in steps:
        step.join()
    assert len(found) == 2 and found[0] == found[1]
    assert [entry.name for entry in cache.mounts_dir.iterdir()] == [found[0].name]
    assert (found[0] / "seed").exists()
    assert cache.mount_records()[0].uses == 2


def test_half_a_seed_is_no_cache(cache: BuildCache) -> None:
    def seed(path: Path) -> None:
        (path / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        cache.open_mount("id", **PLACE, seed=seed)
    assert list(cache.mounts_dir.iterdir()) == []


def test_what_a_crash_left_half_made_goes_at_the_next_start(cache: BuildCache) -> None:
    whole = cache.open_mount("id", **PLACE)
    (cache.mounts_dir / ".unfinished-x").mkdir()
    cache.sweep()
    assert list(cache.mounts_dir.iterdir()) == [whole]
