"""Fixtures of tests that run on the real kernel, shared by several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.engine import EngineProcess


@pytest.fixture
def networks(engine: EngineProcess) -> Iterator[Callable[..., str]]:
    """Makes networks that are gone afterwards."""
    made: list[str] = []

    def create(name: str, *flags: str) -> str:
        engine.docker("network", "create", *flags, name)
        made.append(name)
        return name

    yield create
    ids = engine.docker("ps", "-aq").stdout.split()
    if ids:
        engine.docker("rm", "-f", *ids)
    if made:
        engine.docker("network", "rm", *made)
