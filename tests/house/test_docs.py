"""Documents point at what exists: every relative link of every page, and every module that a page names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:src/sampan|tests|docs|scripts|bench)/[\w./-]+\.(?:py|md|sh))`")
MODULE = re.compile(
    r"`((?:linux|spec|cgroups|storage|network|runtime|images|shim|engine|build|buildkit|api|cli)/[\w/]+\.py)`"
)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text):
        if (
            "://" not in target
            and not target.startswith("mailto:")
            and not (page.parent / target).exists()
        ):
            broken.append(target)
    broken += [path for path in PATH.findall(text) if not (REPOSITORY / path).exists()]
    broken += [m for m in MODULE.findall(text) if not (REPOSITORY / "src/sampan" / m).exists()]
    for path, name in TEST.findall(text):
        if f"def {name}(" not in (REPOSITORY / path).read_text(encoding="utf-8"):
            broken.append(f"{path}::{name}")
    assert not broken


def test_every_room_has_a_page_or_is_in_the_tour() -> None:
    tour = (REPOSITORY / "docs/tour.md").read_text(encoding="utf-8")
    rooms = [
        p.name
        for p in (REPOSITORY / "src/sampan").iterdir()
        if p.is_dir() and not p.name.startswith("_")
    ]
    assert not [room for room in rooms if f"{room}/" not in tour]
