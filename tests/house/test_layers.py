"""A room imports only from lower floors (design: docs/rooms.md); the message names the room and the temptation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "sampan"

# room -> rooms it may import. A room may always import itself.
BASE = {"errors", "log", "units", "ids"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "log": set(),
    "units": {"errors"},
    "ids": {"errors"},
    "linux": set(),
    "spec": {"errors"},
    "store": {"errors"},
    "config": {"errors", "units"},
    "cgroups": {"linux", "spec", "errors", "log"},
    "storage": {"linux", "store", "spec", *BASE},
    "network": {"linux", "store", "spec", *BASE},
    "rootless": {"linux", "config", "errors"},
    "runtime": {"cgroups", "linux", "spec", "errors", "log"},
    "images": {"storage", "store", "spec", *BASE},
    "shim": {"runtime", "cgroups", "linux", "spec", "errors", "log"},
    "engine": {"shim", "images", "storage", "network", "cgroups", "store", "config", "spec", *BASE},
    "build": {"engine", "images", "storage", "store", "spec", *BASE},
    "buildkit": {"build", "engine", "images", "storage", "spec", *BASE},
    "cli": {"spec", "units", "errors"},
    "api": {"engine", "build", "buildkit", "spec", "errors", "log", "units"},
    "daemon": {
        "api", "build", "engine", "images", "storage", "network", "shim", "cgroups", "store",
        "config", "rootless", "spec", "linux", *BASE,
    },
    "__main__": {"cli"},
}  # fmt: skip

ONLY_LINUX_MAY = {"ctypes", "_ctypes"}


def room_of(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    package = ["sampan", *path.relative_to(SRC).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join(base + (node.module.split(".") if node.module else []))
            else:
                module = node.module or ""
            if module == "sampan":
                found += [(node.lineno, f"sampan.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, module))
    return found


FILES = sorted(p for p in SRC.rglob("*.py") if p != SRC / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_room_imports_only_lower_floors(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"room {room!r} is not in the table of floors"
    wrong = []
    for line, module in imports_of(path):
        parts = module.split(".")
        if module == "sampan.__version__":
            continue
        if parts[0] == "sampan" and len(parts) > 1 and parts[1] != room:
            if parts[1] not in MAY_IMPORT[room]:
                wrong.append(f"{path.name}:{line}: {room} must not import {module}")
        elif parts[0] in ONLY_LINUX_MAY and room != "linux":
            wrong.append(f"{path.name}:{line}: only linux/ may import {module}")
    assert not wrong, "\n".join(wrong)


def test_package_init_files_are_empty() -> None:
    """Import circles start in an __init__ that holds code."""
    full = [
        str(p.relative_to(SRC))
        for p in SRC.rglob("__init__.py")
        if p.parent != SRC and p.stat().st_size > 200
    ]
    assert not full
