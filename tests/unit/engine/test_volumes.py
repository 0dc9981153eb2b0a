"""Events of volumes that come and go with a container."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sampan.engine import volumes
from sampan.engine.records import MountRecord


def test_what_came_is_told_also_where_the_rest_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, Any] = {"old": SimpleNamespace(driver="local")}
    heard: list[tuple[str, str]] = []

    def tell(_kind: str, action: str, name: str, _attributes: dict[str, str]) -> None:
        heard.append((action, name))

    monkeypatch.setattr(volumes, "find", lambda _engine, name: there.get(name))
    engine: Any = SimpleNamespace(events=SimpleNamespace(tell=tell))
    mounts = tuple(
        MountRecord(type="volume", name=name, destination=f"/{name}") for name in ("old", "new")
    )
    with pytest.raises(OSError, match="full"), volumes.told(engine, mounts):
        there["new"] = there.pop("old")
        raise OSError("full")
    assert sorted(heard) == [("create", "new"), ("destroy", "old")]
