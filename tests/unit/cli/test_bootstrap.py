"""The clone's environment: made once, by one of several first starts, and made again when it is stale."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bootstrap", REPOSITORY / "scripts" / "bootstrap.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clone(
    tmp_path: Path, bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[list[str]]]:
    """A clone whose environment is a link to this interpreter, and the list of what was installed."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a>=1"]\n[project.optional-dependencies]\ntest = ["b"]\n'
    )
    installed: list[list[str]] = []

    def make(directory: Path) -> None:
        (directory / "bin").mkdir(parents=True, exist_ok=True)
        if not (directory / "bin" / "python").exists():
            (directory / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(bootstrap, "make_environment", make)
    monkeypatch.setattr(bootstrap, "install", lambda _, wanted: installed.append(wanted))
    return tmp_path, installed


def test_it_installs_once(bootstrap: ModuleType, clone: tuple[Path, list[list[str]]]) -> None:
    directory, installed = clone
    bootstrap.main(directory, directory / ".venv", [])
    bootstrap.main(directory, directory / ".venv", [])
    assert installed == [["a>=1"]]
    bootstrap.main(directory, directory / ".venv", ["test"])
    assert installed == [["a>=1"], ["a>=1", "b"]]


def test_a_newer_project_file_makes_it_stale(
    bootstrap: ModuleType, clone: tuple[Path, list[list[str]]]
) -> None:
    directory, installed = clone
    bootstrap.main(directory, directory / ".venv", [])
    future = (directory / ".venv" / ".sampan-base").stat().st_mtime + 10
    os.utime(directory / "pyproject.toml", (future, future))
    bootstrap.main(directory, directory / ".venv", [])
    bootstrap.main(directory, directory / ".venv", [])
    assert len(installed) == 2, "stale once, then good again, whatever the clock says"


def test_two_first_starts_at_once_make_one_environment(
    bootstrap: ModuleType, clone: tuple[Path, list[list[str]]]
) -> None:
    directory, installed = clone
    threads = [
        threading.Thread(target=bootstrap.main, args=(directory, directory / ".venv", []))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installed) == 1


def test_somebody_else_s_clone_gets_an_environment_elsewhere(
    bootstrap: ModuleType, clone: tuple[Path, list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, installed = clone
    own = directory / "cache" / "clones" / ".venv"
    bootstrap.main(directory, own, [])
    assert f"{directory} is not yours to change" in capsys.readouterr().err
    assert (own / ".sampan-base").exists()
    assert not (directory / ".venv").exists()
    bootstrap.main(directory, own, [])
    assert capsys.readouterr().err == ""
    assert len(installed) == 1


def test_a_failed_step_tells_what_the_tool_said(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.Failed, match="no such option"):
        bootstrap.run(sys.executable, "-c", "import sys; sys.exit('no such option')")


def test_a_later_start_needs_no_program_but_the_shell() -> None:
    if not (REPOSITORY / ".venv" / ".sampan-base").exists():
        pytest.skip("the environment of this tree was not made by the bootstrap")
    done = subprocess.run(
        [str(REPOSITORY / "sampan"), "--version"],
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.startswith("Sampan version "), done.stderr
