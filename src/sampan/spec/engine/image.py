"""Engine API bodies about images: list, inspect, history, removal, search, build cache.

The image's own documents (manifest, config) are not here: spec/image.py. Wire rules: wire.py.
"""

from __future__ import annotations

from typing import Any

from sampan.spec.engine.container import ContainerConfig, GraphDriver
from sampan.spec.engine.wire import Body, names, null, sent


class ImageSummary(Body, frozen=True, kw_only=True):
    """One row of GET /images/json."""

    containers: int = sent(lambda: -1)
    created: int = sent(int)
    id: str = sent(str)
    labels: dict[str, str] | None = null()
    parent_id: str = sent(str)
    descriptor: dict[str, Any] | None = None  # API >= 1.48
    manifests: list[dict[str, Any]] | None = None  # API >= 1.47, on request
    repo_digests: list[str] = sent(list)
    repo_tags: list[str] = sent(list)
    shared_size: int = sent(lambda: -1)
    size: int = sent(int)
    virtual_size: int | None = None  # API < 1.44


class RootFS(Body, frozen=True, kw_only=True):
    type: str = sent(lambda: "layers")
    layers: list[str] = []


class ImageMetadata(Body, frozen=True, kw_only=True):
    last_tag_time: str = sent(lambda: "0001-01-01T00:00:00Z")


class ImageInspect(Body, frozen=True, kw_only=True, rename=names(root_fs="RootFS")):
    """GET /images/{name}/json."""

    id: str = sent(str)
    repo_tags: list[str] = sent(list)
    repo_digests: list[str] = sent(list)
    parent: str = sent(str)
    comment: str = sent(str)
    created: str | None = None  # the zero time for API < 1.44 where the image does not say
    container: str | None = None  # API < 1.45
    container_config: ContainerConfig | None = None  # API < 1.45
    docker_version: str = sent(str)
    author: str = sent(str)
    config: dict[str, Any] = sent(dict)  # a ContainerConfig whose labels may be null
    architecture: str = sent(str)
    variant: str = ""
    os: str = sent(str)
    os_version: str = ""
    size: int = sent(int)
    virtual_size: int | None = None  # API < 1.44
    graph_driver: GraphDriver = sent(GraphDriver)
    root_fs: RootFS = sent(RootFS)
    metadata: ImageMetadata = sent(ImageMetadata)
    descriptor: dict[str, Any] | None = None  # API >= 1.48
    manifests: list[dict[str, Any]] | None = None  # API >= 1.48, on request


class HistoryItem(Body, frozen=True, kw_only=True):
    """One row of GET /images/{name}/history; `id` is "<missing>" for layers that are no image here."""

    comment: str = sent(str)
    created: int = sent(int)
    created_by: str = sent(str)
    id: str = sent(lambda: "<missing>")
    size: int = sent(int)
    tags: list[str] | None = null()


class DeleteItem(Body, frozen=True, kw_only=True):
    """One step of a removal: exactly one of the two is set."""

    untagged: str = ""
    deleted: str = ""


class ImagesPruned(Body, frozen=True, kw_only=True):
    images_deleted: list[DeleteItem] | None = null()
    space_reclaimed: int = sent(int)


class SearchResult(Body, frozen=True, kw_only=True, rename=None):
    star_count: int = sent(int)
    is_official: bool = sent(bool)
    name: str = sent(str)
    is_automated: bool = sent(bool)
    description: str = sent(str)


class DistributionInspect(Body, frozen=True, kw_only=True):
    """GET /distribution/{name}/json; both members are OCI documents in their own spelling."""

    descriptor: dict[str, Any]
    platforms: list[dict[str, Any]]


class BuildCacheRecord(Body, frozen=True, kw_only=True, rename=names(id="ID")):
    id: str = sent(str)
    parent: str = ""
    parents: list[str] | None = None
    type: str = sent(str)
    description: str = sent(str)
    in_use: bool = sent(bool)
    shared: bool = sent(bool)
    size: int = sent(int)
    created_at: str = sent(str)
    last_used_at: str | None = null()
    usage_count: int = sent(int)


class BuildCachePruned(Body, frozen=True, kw_only=True):
    caches_deleted: list[str] | None = null()
    space_reclaimed: int = sent(int)
