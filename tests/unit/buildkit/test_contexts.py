"""Directories of clients that are kept: by whom they are found again, and what is not kept."""

from __future__ import annotations

from pathlib import Path

from sampan.buildkit import contexts as kept
from sampan.buildkit.contexts import Contexts, KeptContext


def used(pool: Contexts, key: str, *, entries: int = 100, size: int = 1) -> Path:
    """A build that took a directory, filled it and gave it back."""
    context = pool.take(key)
    (context.path / "f").touch()
    context.whole, context.entries, context.bytes = True, entries, size
    context.close()
    return context.path


def taken(pool: Contexts, key: str) -> KeptContext:
    context = pool.take(key)
    context.discard()
    return context


def test_the_next_build_of_a_key_finds_the_directory(tmp_path: Path) -> None:
    pool = Contexts(tmp_path)
    path = used(pool, "a")
    assert taken(pool, "b").is_new
    found = taken(pool, "a")
    assert not found.is_new and found.path == path


def test_two_builds_at_once_have_a_directory_each(tmp_path: Path) -> None:
    pool = Contexts(tmp_path)
    used(pool, "a")
    first, second = pool.take("a"), pool.take("a")
    assert first.path != second.path and second.is_new
    for context in (first, second):
        context.whole, context.entries = True, 100
        context.close()
    assert [p.name for p in tmp_path.iterdir()] == [second.path.name]


def test_what_is_not_whole_small_or_nobodys_is_deleted(tmp_path: Path) -> None:
    pool = Contexts(tmp_path)
    pool.take("a").close()
    used(pool, "b", entries=1)
    used(pool, "")
    used(pool, "c", size=kept.MOST_BYTES + 1)
    assert not list(tmp_path.iterdir())


def test_the_oldest_go_first(tmp_path: Path) -> None:
    pool = Contexts(tmp_path)
    paths = [used(pool, str(n)) for n in range(kept.MOST_KEPT + 2)]
    assert sorted(tmp_path.iterdir()) == sorted(paths[2:])
    used(pool, "big", size=kept.MOST_BYTES - kept.MOST_KEPT + 1)
    assert sum(1 for _ in tmp_path.iterdir()) == kept.MOST_KEPT
    assert {row.type for row in pool.rows()} == {"source.local"}
    assert max(row.size for row in pool.rows()) > kept.MOST_BYTES // 2
    assert pool.clear() > kept.MOST_BYTES // 2
    assert not list(tmp_path.iterdir())
