"""Which events a filter lets through."""

from __future__ import annotations

import pytest

from sampan.engine.events import Event, matches


def event(kind: str, action: str = "start", ident: str = "abc", **attributes: str) -> Event:
    return Event(type=kind, action=action, id=ident, attributes=attributes, time_ns=1)


@pytest.mark.parametrize(
    ("what", "filters", "passes"),
    [
        (event("container", image="busybox:1", name="web"), {"image": ["busybox"]}, True),
        (event("container", image="busybox:1", name="web"), {"image": ["busybox:1"]}, True),
        (event("container", image="alpine", name="busybox"), {"image": ["busybox"]}, False),
        (event("image", "tag", "sha256:1", name="busybox:1"), {"image": ["busybox"]}, True),
        (event("image", "tag", "sha256:1", name="busybox:1"), {"image": ["sha256:1"]}, True),
        (event("network", name="busybox"), {"image": ["busybox"]}, False),
        (event("container", name="web"), {"container": ["web"]}, True),
        (event("container", ident="abcdef"), {"container": ["abc"]}, True),
        (event("network", name="web"), {"container": ["web"]}, False),
        (event("container", "exec_create: sh"), {"event": ["exec_create"]}, True),
        (event("container", "health_status: healthy"), {"event": ["health_status"]}, True),
        (event("container", a="b"), {"label": ["a=b"]}, True),
        (event("container", a="b"), {"label": ["a=c"]}, False),
        (event("volume"), {"type": ["volume", "image"]}, True),
        (event("volume"), {"scope": ["swarm"]}, False),
    ],
)
def test_filters(what: Event, filters: dict[str, list[str]], passes: bool) -> None:
    assert matches(what, filters) is passes
