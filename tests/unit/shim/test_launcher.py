"""The launcher's own life: when it goes, and when it stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sampan.shim import protocol
from sampan.shim.channel import Channel
from sampan.shim.launcher import Launcher


class Watched(Launcher):
    """With the question whether its loop was told to end."""

    ended = False

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir, "test")
        self.loop.stop = self._note  # type: ignore[method-assign]

    def _note(self) -> None:
        self.ended = True

    def settle(self) -> None:
        """Whatever has arrived by now is dealt with."""
        for _ in range(5):
            self.loop.turn(limit_ms=0)


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("sampan.shim.launcher._signal.signal", lambda *_: None)
    made = Watched(str(tmp_path / "run"))
    yield made
    made.close()


def connect(launcher: Watched, tmp_path: Path) -> Channel:
    engine = Channel.connect(str(tmp_path / "run" / protocol.LAUNCHER_SOCKET))
    launcher.settle()
    return engine


def test_it_stays_when_its_engine_leaves(launcher: Watched, tmp_path: Path) -> None:
    connect(launcher, tmp_path).close()
    launcher.settle()
    assert not launcher.ended


def test_it_ends_with_its_last_engine_when_the_run_directory_is_gone(
    launcher: Watched, tmp_path: Path
) -> None:
    first, second = connect(launcher, tmp_path), connect(launcher, tmp_path)
    shutil.rmtree(tmp_path / "run")
    first.close()
    launcher.settle()
    assert not launcher.ended
    second.close()
    launcher.settle()
    assert launcher.ended


def test_it_ends_when_another_one_took_its_place(launcher: Watched, tmp_path: Path) -> None:
    engine = connect(launcher, tmp_path)
    (tmp_path / "run" / protocol.LAUNCHER_SOCKET).rename(tmp_path / "kept")
    Watched(str(tmp_path / "run")).close()
    engine.close()
    launcher.settle()
    assert launcher.ended
