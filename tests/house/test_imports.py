"""Budgets of imports: what the processes a user waits for may load, and that no module is in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.test_layers import FILES, SRC, imports_of

FORBIDDEN = {
    "argparse", "asyncio", "contextlib", "ctypes.util", "dataclasses", "enum", "email", "http", "json", "logging",
    "msgspec", "pathlib", "re", "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "typing", "urllib",
}  # fmt: skip

ENTRIES = {
    "launcher": "sampan.shim.launcher",
    "shim": "sampan.shim.main",
    "init": "sampan.runtime.init",
    "sampan-oci": "sampan.runtime.cli",
    "run of the command line": "sampan.cli.run",
}


@pytest.mark.parametrize("module", ENTRIES.values(), ids=ENTRIES.keys())
def test_what_a_user_waits_for_loads_little(module: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SRC.parent)!r}); import {module}; "
        "print(' '.join(sorted(m for m in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {
        name.split(".")[0] if name.split(".")[0] in FORBIDDEN else name
        for name in done.stdout.split()
    }
    assert not loaded & FORBIDDEN


def _module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _top_level_imports(path: Path) -> set[str]:
    """Modules of ours that are imported when the file is, not inside functions or for types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner: set[int] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_typing:
            inner.update(
                child.lineno
                for child in ast.walk(node)
                if isinstance(child, (ast.Import, ast.ImportFrom))
            )
    names = {_module_name(file) for file in FILES}
    found = set()
    for line, module in imports_of(path):
        if line in inner:
            continue
        found.add(module)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sampan"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & names


def test_no_module_is_in_a_circle_of_imports() -> None:
    graph = {_module_name(path): _top_level_imports(path) for path in FILES}
    state: dict[str, int] = {}
    circles: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if state.get(name) == 2:
            return
        if state.get(name) == 1:
            circles.append(" -> ".join([*trail[trail.index(name) :], name]))
            return
        state[name] = 1
        for other in sorted(graph.get(name, ())):
            visit(other, [*trail, name])
        state[name] = 2

    for name in sorted(graph):
        visit(name, [])
    assert not circles
