"""The linters are tests, so that one command is the truth: ruff, its formatter, mypy --strict, spelling, shell syntax."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def run(*command: str) -> None:
    program = BIN / command[0]
    require(
        program.exists(),
        f"needs {command[0]} in the virtual environment: `bootstrap test` installs it",
    )
    done = subprocess.run(
        [program, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "src", "tests", "bench")


def test_everything_is_formatted() -> None:
    run("ruff", "format", "--check", "src", "tests", "bench")


@pytest.mark.slow
def test_types_hold_strictly() -> None:
    run("mypy")


def test_words_are_spelt_right() -> None:
    run("codespell", "src", "docs", "README.md", "CONTRIBUTING.md", "PRINCIPLES.md", "CHANGELOG.md")


SHELL_SCRIPTS = [
    "sampan",
    "test",
    "scripts/bootstrap.sh",
    "scripts/sampan",
    "scripts/sampan-oci",
    ".ci/run",
]


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_shell_scripts_parse(script: str) -> None:
    path = REPOSITORY / script
    assert path.exists()
    shell = "bash" if path.read_text().startswith("#!/usr/bin/env bash") else "sh"
    assert shutil.which(shell)
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_has_outgrown_one_noun() -> None:
    """700 lines: past that a room has two nouns in it."""
    long = []
    for path in (REPOSITORY / "src").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 700 and not path.name.startswith("syscall_table"):
            long.append(f"{path.relative_to(REPOSITORY)}: {lines} lines")
    assert not long


def stubs(source: str) -> list[int]:
    """Lines that raise what says that something is not written yet."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id == NotImplementedError.__name__:
                found.append(node.lineno)
    return found


def test_no_stub_stands_behind_a_finished_name() -> None:
    """Comments that put work off are ruff's to find (its FIX rules, above)."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in (REPOSITORY / "src").rglob("*.py")
        for line in stubs(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_a_stub_would_be_found() -> None:
    name = NotImplementedError.__name__
    assert stubs(f"def f():\n    raise {name}\n\ndef g():\n    raise {name}('later')\n") == [2, 5]
    assert stubs("def f():\n    raise ValueError\n") == []
