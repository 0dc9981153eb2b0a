"""What this machine is told to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sampan.buildkit import workers


def names(flags: set[str], binfmt: Path) -> list[str]:
    return [
        "/".join(filter(None, (p.os, p.architecture, p.variant)))
        for p in workers.platforms(flags, binfmt)
    ]


def test_levels_of_amd64_come_in_order_and_emulators_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workers, "host_platform", lambda: workers.Platform(os="linux", architecture="amd64")
    )
    (tmp_path / "qemu-aarch64").touch()
    (tmp_path / "qemu-i386").touch()
    v2, v3 = workers.AMD64_LEVELS[0][1], workers.AMD64_LEVELS[1][1]
    assert names(set(), tmp_path) == ["linux/amd64", "linux/386", "linux/arm64"]
    assert names(v3, tmp_path)[1] == "linux/386"  # the third level without the second is none
    assert names(v2 | v3, tmp_path)[:3] == ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"]


def test_flags_are_those_of_the_first_processor() -> None:
    text = "processor\t: 0\nflags\t\t: fpu sse4_2\n\nprocessor\t: 1\nflags\t\t: fpu avx\n"
    assert workers.cpu_flags(text) == {"fpu", "sse4_2"}
    assert workers.cpu_flags("Features : asimd\n") == set()
