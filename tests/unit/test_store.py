"""The store: transactions, names, damage."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest

from sampan.errors import Internal
from sampan.store import MIGRATIONS, NameTaken, Store


class Thing(msgspec.Struct, frozen=True):
    a: int = 0
    b: str = "new"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.db")


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    store.put("thing", "k", Thing(a=3))
    assert store.get("thing", "k", Thing) == Thing(a=3)
    assert store.get("thing", "other", Thing) is None
    assert store.items("thing", Thing) == [("k", Thing(a=3))]


def test_old_and_new_records_are_read_tolerantly(store: Store) -> None:
    store.put("thing", "k", b'{"a": 1, "unknown": true}')
    assert store.get("thing", "k", Thing) == Thing(a=1, b="new")


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.put("thing", "k", Thing())
        store.reserve("thing", "name", "k")
        with store.transaction():
            store.put("thing", "l", Thing())
        raise ZeroDivisionError
    assert store.items("thing", Thing) == []
    assert store.holder("thing", "name") is None


def test_one_of_many_wins_a_name(store: Store) -> None:
    results: list[str] = []
    start = threading.Barrier(16)

    def claim(key: str) -> None:
        start.wait()
        try:
            store.reserve("thing", "web", key)
            results.append(key)
        except NameTaken as taken:
            assert taken.key

    threads = [threading.Thread(target=claim, args=(str(n),)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert store.holder("thing", "web") == results[0]


def test_reserving_again_for_the_same_key_is_no_conflict(store: Store) -> None:
    store.reserve("thing", "web", "k")
    store.reserve("thing", "web", "k")


def test_deleting_a_record_frees_its_names(store: Store) -> None:
    store.put("thing", "k", Thing())
    store.reserve("thing", "web", "k")
    assert store.delete("thing", "k")
    assert store.names("thing") == {}
    assert not store.delete("thing", "k")


def test_records_survive_closing(tmp_path: Path) -> None:
    first = Store(tmp_path / "store.db")
    first.put("thing", "k", Thing(a=9))
    first.close()
    assert Store(tmp_path / "store.db").get("thing", "k", Thing) == Thing(a=9)


def test_the_file_is_closed_to_others(tmp_path: Path) -> None:
    Store(tmp_path / "store.db")
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600


def test_a_damaged_page_sets_the_file_aside_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = Store(path)
    for number in range(400):
        store.put("thing", str(number), Thing(b="x" * 100))
    store.close()
    size = path.stat().st_size
    survivors = 0
    for page in range(size // 4096):
        copy = tmp_path / f"page{page}.db"
        data = bytearray(path.read_bytes())
        data[page * 4096 : page * 4096 + 4096] = b"\xa5" * 4096
        copy.write_bytes(bytes(data))
        opened = Store(copy)
        survivors += not opened.damage
        opened.put("thing", "new", Thing())
        assert opened.get("thing", "new", Thing) == Thing()
        opened.close()
    assert survivors == 0


def test_garbage_is_kept_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database" * 100)
    store = Store(path)
    assert "not a database" in store.damage
    assert (tmp_path / "store.db.damaged-1").read_bytes().startswith(b"not a database")


def test_a_store_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(Internal, match="newer version"):
        Store(path)
    assert not list(tmp_path.glob("*damaged*"))


def test_one_damaged_record_is_told_and_the_others_are_read(store: Store) -> None:
    store.put("thing", "bad", b"{")
    store.put("thing", "good", Thing(a=1))
    told: list[str] = []
    found = store.items("thing", Thing, on_damage=lambda key, _body, _error: told.append(key))
    assert found == [("good", Thing(a=1))]
    assert told == ["bad"]


def test_a_full_disk_is_told_and_the_spare_file_given_up_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    spare = tmp_path / "spare"
    spare.write_bytes(b"x")
    store.spare_file = spare
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(Internal, match="cannot be written"):
        for number in range(1000):
            store.put("thing", str(number), Thing(b="x" * 500))
    assert not spare.exists()
    store._db.execute("PRAGMA max_page_count=100000")
    store.put("thing", "after", Thing())
    assert store.get("thing", "after", Thing) == Thing()
