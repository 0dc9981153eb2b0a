"""The index of containers: who is found, who holds a name, what survives in the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.engine.live import Containers
from sampan.engine.records import CONTAINER, STATE, ContainerRecord, ContainerState
from sampan.errors import Conflict, NotFound
from sampan.spec.engine.container import ContainerConfig, HostConfig
from sampan.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.db")
    yield store
    store.close()


def record(container_id: str, name: str) -> ContainerRecord:
    return ContainerRecord(
        id=container_id * 64,
        name=name,
        created_ns=1,
        image_id="sha256:" + "0" * 64,
        chain_id=f"chain-{container_id}",
        driver="overlay2",
        path="sh",
        config=ContainerConfig(),
        host_config=HostConfig(),
    )


def test_one_that_leaves_frees_its_name_and_keeps_its_layers(store: Store) -> None:
    containers = Containers(store)
    old = containers.add(record("a", "web"))
    with pytest.raises(Conflict, match="already in use"):
        containers.add(record("b", "web"))
    containers.leave(old)
    with pytest.raises(NotFound):
        containers.find(old.id)
    assert containers.add(record("b", "web")).name == "web"
    assert sorted(containers.chain_ids()) == ["chain-a", "chain-b"]
    containers.forget(old)
    assert containers.chain_ids() == ["chain-b"]
    assert containers.find("web").id == "b" * 64


def test_an_engine_that_dies_meanwhile_knows_what_was_leaving(store: Store) -> None:
    containers = Containers(store)
    old = containers.add(record("a", "web"))
    containers.leave(old)
    containers.add(record("b", "web"))
    later = Containers(store)
    for key, stored in reversed(store.items(CONTAINER, ContainerRecord)):
        state = store.get(STATE, key, ContainerState)
        assert state is not None
        later.adopt(stored, state)
    assert later.find("a" * 64).state.removing
    assert later.find("web").id == "b" * 64
    later.forget(later.find("a" * 64))
    assert later.find("web").id == "b" * 64
    assert store.holder(CONTAINER, "web") == "b" * 64


def test_what_leaves_again_after_a_restart_does_not_free_the_name_of_its_successor(
    store: Store,
) -> None:
    containers = Containers(store)
    containers.leave(containers.add(record("a", "web")))
    containers.add(record("b", "web"))
    later = Containers(store)
    for key, stored in store.items(CONTAINER, ContainerRecord):
        later.adopt(stored, store.get(STATE, key, ContainerState) or ContainerState())
    later.leave(later.find("a" * 64))
    assert store.holder(CONTAINER, "web") == "b" * 64
    with pytest.raises(Conflict, match="already in use"):
        later.add(record("c", "web"))


def test_a_rename_that_waited_for_a_removal_changes_nothing(store: Store) -> None:
    containers = Containers(store)
    old = containers.add(record("a", "web"))
    containers.leave(old)
    containers.add(record("b", "web"))
    containers.forget(old)
    with pytest.raises(NotFound):
        containers.rename(old, "other")
    assert store.get(CONTAINER, old.id, ContainerRecord) is None
    assert store.holder(CONTAINER, "other") is None
    assert containers.find("web").id == "b" * 64
    assert store.holder(CONTAINER, "web") == "b" * 64


@pytest.mark.parametrize("is_taken", [False, True])
def test_what_could_not_be_taken_away_is_found_again(store: Store, *, is_taken: bool) -> None:
    containers = Containers(store)
    old = containers.add(record("a", "web"))
    containers.leave(old)
    if is_taken:
        containers.add(record("b", "web"))
    containers.come_back(old)
    old.save_state(removing=False, dead=True)
    assert containers.find(old.id) is old
    assert containers.find("web").id == ("b" if is_taken else "a") * 64
    stored = store.get(STATE, old.id, ContainerState)
    assert stored is not None and stored.dead and not stored.removing
    containers.forget(old)
    containers.come_back(old)
    with pytest.raises(NotFound):
        containers.find(old.id)
