"""Deadlines are kept by the monotonic clock: a wall clock that is set moves no timeout, no back-off, no health check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sampan"
# Seconds of the wall clock as a float invite arithmetic; a stamp is `time_ns`, or one of these.
STAMPS = {
    "api/http.py": "the Date header",
    "engine/events.py": "`until` is a moment of the wall clock",
    "engine/logs.py": "`until` is a moment of the wall clock",
}
ROOMS = ("api", "engine", "shim", "runtime", "network", "storage", "cgroups")


def wall_clock_calls(path: Path) -> list[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "datetime.now")
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_deadline_is_kept_by_the_wall_clock(room: str) -> None:
    found = {
        f"{path.relative_to(SOURCE)}:{line}"
        for path in (SOURCE / room).rglob("*.py")
        for line in wall_clock_calls(path)
        if str(path.relative_to(SOURCE)) not in STAMPS
    }
    assert not found


@pytest.mark.parametrize("name", sorted(STAMPS))
def test_the_exceptions_are_there(name: str) -> None:
    assert "time.time" in (SOURCE / name).read_text(encoding="utf-8")
