"""A crash in the middle of finding out what the host can do leaves nothing for good."""

from __future__ import annotations

from pathlib import Path

from sampan.storage.drivers import open_snapshotter


def test_a_probe_that_was_cut_short_is_taken_away_by_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / ".probe-0c0f7ed7" / "lower"
    left.mkdir(parents=True)
    open_snapshotter(tmp_path, "vfs").close()
    assert not left.parent.exists()
