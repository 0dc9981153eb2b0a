"""What clients are shown of images: rows of `images` and the inspect body. Blocking: sizes are read from disk."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.engine.filters import Filters, accepts_labels, one_bool
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import ContainerConfig, GraphDriver, HealthConfig
from sampan.spec.engine.image import ImageInspect, ImageMetadata, ImageSummary, RootFS
from sampan.spec.engine.wire import Empty
from sampan.spec.image import RunConfig
from sampan.storage.globs import component_pattern
from sampan.units import NS, ZERO_TIME, parse_timestamp

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.images.catalog import Catalog, Image

Version = tuple[int, int]


def uses(engine: Engine) -> Counter[str]:
    """How many containers each image has."""
    return Counter(container.record.image_id for container in engine.containers)


# -- list ------------------------------------------------------------------------------------------


def rows(
    catalog: Catalog,
    filters: Filters,
    *,
    everything: bool,
    shared_size: bool,
    manifests: bool,
    version: Version,
    uses: Mapping[str, int] | None,
) -> list[ImageSummary]:
    _check_patterns(filters)
    images = catalog.images()
    accepted = _selected(catalog, images, filters, everything=everything)
    shared = _shared_layers(images) if shared_size else None
    found = [
        _row(catalog, image, filters, shared, uses, manifests=manifests, version=version)
        for image in accepted
    ]
    found.sort(key=lambda row: row.created, reverse=True)
    return found


def _selected(
    catalog: Catalog, images: list[Image], filters: Filters, *, everything: bool
) -> list[Image]:
    dangling = one_bool(filters, "dangling")
    newest, oldest = _bounds(catalog, filters)
    parents = {image.parent for image in images if image.parent}
    found = []
    for image in images:
        nameless = not image.references
        if (dangling and image.repo_tags) or (dangling is False and nameless):
            continue
        # An image without a name that others were built from is a step, shown with -a only.
        if not everything and dangling is None and nameless and image.id in parents:
            continue
        if not oldest < image.created_ns < newest:
            continue
        if not accepts_labels(image.labels, filters):
            continue
        if "reference" in filters and not _named_like(image, filters["reference"]):
            continue
        found.append(image)
    return found


def _bounds(catalog: Catalog, filters: Filters) -> tuple[int, int]:
    newest, oldest = 1 << 63, -1
    for ref in filters.get("before", ()):
        newest = min(newest, catalog.resolve(ref).created_ns)
    for ref in filters.get("since", ()):
        oldest = max(oldest, catalog.resolve(ref).created_ns)
    for text in filters.get("until", ()):
        newest = min(newest, parse_timestamp(text))
    return newest, oldest


def _named_like(image: Image, patterns: list[str]) -> bool:
    names = (*image.repo_tags, *image.repo_digests)
    return any(matches_reference(name, p) for name in names for p in patterns)


def matches_reference(name: str, pattern: str) -> bool:
    """Go's path.Match over the familiar name, with or without its tag or digest: '*' stays within a path component."""
    repository = name.partition("@")[0]
    if repository == name and ":" in name.rpartition("/")[2]:
        repository = name.rpartition(":")[0]
    return any(_matches_path(text, pattern) for text in (name, repository))


def _matches_path(text: str, pattern: str) -> bool:
    parts, patterns = text.split("/"), pattern.split("/")
    if len(parts) != len(patterns):
        return False
    pairs = zip(parts, patterns, strict=True)
    return all(_component(p).fullmatch(part) for part, p in pairs)


@functools.lru_cache(256)
def _component(pattern: str) -> re.Pattern[str]:
    return component_pattern(pattern)


def _check_patterns(filters: Filters) -> None:
    """A malformed pattern is an error even where there is no image to compare it with."""
    try:
        for pattern in filters.get("reference", ()):
            for part in pattern.split("/"):
                _component(part)
    except InvalidArgument:
        raise InvalidArgument("syntax error in pattern") from None


def _shared_layers(images: list[Image]) -> Counter[str]:
    return Counter(chain_id for image in images for chain_id in set(image.chain_ids))


def _row(
    catalog: Catalog,
    image: Image,
    filters: Filters,
    shared: Counter[str] | None,
    uses: Mapping[str, int] | None,
    *,
    manifests: bool,
    version: Version,
) -> ImageSummary:
    size = image.size
    tags, digests = list(image.repo_tags), list(image.repo_digests)
    if "reference" in filters:
        patterns = filters["reference"]
        tags = [t for t in tags if any(matches_reference(t, p) for p in patterns)]
        digests = [d for d in digests if any(matches_reference(d, p) for p in patterns)]
    if version < (1, 43) and not tags and not digests:
        tags, digests = ["<none>:<none>"], ["<none>@<none>"]
    shared_bytes = -1
    if shared is not None:
        shared_bytes = sum(catalog.layer_size(c) for c in image.chain_ids if shared[c] > 1)
    return ImageSummary(
        id=image.id,
        parent_id=image.parent,
        repo_tags=tags,
        repo_digests=digests,
        created=image.created_ns // NS,
        size=size,
        virtual_size=size if version < (1, 44) else None,
        shared_size=shared_bytes,
        labels=dict(image.labels) or None,
        containers=uses.get(image.id, 0) if uses is not None else -1,
        descriptor=descriptor(image) if version >= (1, 48) and manifests else None,
        manifests=[_manifest_row(image, uses)] if manifests else None,
    )


def descriptor(image: Image) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(image.target)
    return body


def _manifest_row(image: Image, uses: Mapping[str, int] | None) -> dict[str, Any]:
    del uses
    return {
        "ID": image.target.digest,
        "Descriptor": descriptor(image),
        "Available": True,
        "Size": {"Content": image.size, "Total": image.size},
        "Kind": "image",
        "ImageData": {
            "Platform": msgspec.to_builtins(image.platform),
            "Containers": [],
            "Size": {"Unpacked": image.size},
        },
    }


# -- inspect ---------------------------------------------------------------------------------------


def inspect_body(
    engine: Engine, image: Image, *, manifests: bool, version: Version
) -> ImageInspect:
    document = image.document
    config = container_config(document.config)
    size = image.size
    old = version < (1, 45)
    return ImageInspect(
        id=image.id,
        repo_tags=list(image.repo_tags),
        repo_digests=list(image.repo_digests),
        parent=image.parent,
        comment=document.comment or _last_comment(image),
        created=document.created or (ZERO_TIME if version < (1, 44) else None),
        container="" if old else None,
        container_config=ContainerConfig() if old else None,
        docker_version=document.docker_version,
        author=document.author,
        config=_config_body(config, document.config),
        architecture=document.architecture,
        variant=document.variant,
        os=document.os or "linux",  # as Docker takes it where an image does not say
        os_version=document.os_version,
        size=size,
        virtual_size=size if version < (1, 44) else None,
        graph_driver=GraphDriver(name=engine.snapshots.name, data=None),
        root_fs=RootFS(layers=list(document.diff_ids)),
        metadata=ImageMetadata(last_tag_time=image.last_tagged or ZERO_TIME),
        descriptor=descriptor(image) if version >= (1, 48) else None,
        manifests=[_manifest_row(image, None)] if manifests else None,
    )


def _config_body(config: ContainerConfig, stored: RunConfig) -> dict[str, Any]:
    """As a container's, but labels that the image does not have are null."""
    body: dict[str, Any] = msgspec.to_builtins(config)
    if stored.labels is None:
        body["Labels"] = None
    return body


def _last_comment(image: Image) -> str:
    history = image.document.history
    return history[-1].comment if history else ""


def container_config(config: RunConfig) -> ContainerConfig:
    """An image's config in the form of a container's."""
    health = config.healthcheck
    return ContainerConfig(
        hostname=config.hostname,
        domainname=config.domainname,
        user=config.user,
        exposed_ports=dict.fromkeys(config.exposed_ports or {}, Empty()),
        env=list(config.env) if config.env is not None else None,
        cmd=list(config.cmd) if config.cmd is not None else None,
        healthcheck=None
        if health is None
        else HealthConfig(
            test=list(health.test) if health.test is not None else None,
            interval=health.interval,
            timeout=health.timeout,
            start_period=health.start_period,
            start_interval=health.start_interval,
            retries=health.retries,
        ),
        args_escaped=config.args_escaped,
        volumes=dict.fromkeys(config.volumes, Empty()) if config.volumes else None,
        working_dir=config.working_dir,
        entrypoint=list(config.entrypoint) if config.entrypoint is not None else None,
        on_build=list(config.on_build) if config.on_build is not None else None,
        labels=dict(config.labels or {}),
        stop_signal=config.stop_signal,
        stop_timeout=config.stop_timeout,
        shell=list(config.shell) if config.shell is not None else None,
    )


def run_config(config: ContainerConfig) -> RunConfig:
    """The other way: what a commit keeps of a container's config."""
    from sampan.spec.image import Healthcheck

    health = config.healthcheck
    try:
        return RunConfig(
            hostname=config.hostname,
            domainname=config.domainname,
            user=config.user,
            exposed_ports={name: {} for name in config.exposed_ports} or None,
            env=tuple(config.env) if config.env is not None else None,
            entrypoint=tuple(config.entrypoint) if config.entrypoint is not None else None,
            cmd=tuple(config.cmd) if config.cmd is not None else None,
            healthcheck=None
            if health is None
            else Healthcheck(
                test=tuple(health.test) if health.test is not None else None,
                interval=health.interval,
                timeout=health.timeout,
                start_period=health.start_period,
                start_interval=health.start_interval,
                retries=health.retries,
            ),
            volumes={name: {} for name in config.volumes} if config.volumes else None,
            working_dir=config.working_dir,
            labels=dict(config.labels) or None,
            stop_signal=config.stop_signal,
            stop_timeout=config.stop_timeout,
            on_build=tuple(config.on_build) if config.on_build else None,
            shell=tuple(config.shell) if config.shell is not None else None,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"invalid config: {error}") from None
