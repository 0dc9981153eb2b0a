"""Engine API bodies about volumes. Wire rules: wire.py."""

from __future__ import annotations

from typing import Any

from sampan.spec.engine.wire import Body, null, sent


class VolumeCreateRequest(Body, frozen=True, kw_only=True):
    """POST /volumes/create; an empty name asks for a generated one."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] = {}
    labels: dict[str, str] = {}
    cluster_volume_spec: dict[str, Any] | None = None  # Swarm; refused


class VolumeUsage(Body, frozen=True, kw_only=True):
    ref_count: int = sent(lambda: -1)
    size: int = sent(lambda: -1)


class Volume(Body, frozen=True, kw_only=True):
    """GET /volumes/{name}, and a row of GET /volumes."""

    created_at: str = ""
    driver: str = sent(lambda: "local")
    labels: dict[str, str] | None = null()
    mountpoint: str = sent(str)
    name: str = sent(str)
    options: dict[str, str] | None = null()
    scope: str = sent(lambda: "local")
    status: dict[str, Any] | None = None
    usage_data: VolumeUsage | None = None


class VolumeList(Body, frozen=True, kw_only=True):
    volumes: list[Volume] = sent(list)
    warnings: list[str] | None = null()


class VolumesPruned(Body, frozen=True, kw_only=True):
    volumes_deleted: list[str] | None = null()
    space_reclaimed: int = sent(int)
