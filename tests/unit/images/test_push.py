"""Pushing: only what is not there, with the bytes that were pulled, through every kind of trouble."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pytest

from sampan.errors import InvalidArgument, NotFound, SampanError
from sampan.images import remote
from sampan.images.archive import load
from sampan.images.catalog import Catalog
from sampan.images.endpoints import RegistryConfig
from sampan.images.pull import Puller
from sampan.images.push import push
from tests.support import oci
from tests.support.oci import TestImage, docker_archive, simple_image, tar_bytes
from tests.support.registry import Answer, FakeRegistry, matching, only_times, with_status

BIG = tar_bytes({"big": bytes(range(256)) * 4096})


def test_what_was_pulled_is_pushed_with_the_same_bytes(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, registries: RegistryConfig
) -> None:
    image = TestImage(layers=[BIG, tar_bytes({"a": b"1"})], docker_types=True)
    registry.add("from", "v1", image)
    puller.pull(f"{registry.host}/from:v1")
    with FakeRegistry() as other:
        catalog.tag(f"{registry.host}/from:v1", f"{other.host}/to:v2")
        lines: list[dict[str, Any]] = []
        (pushed,) = push(catalog, registries, f"{other.host}/to:v2", progress=lines.append)
        assert other.manifests[("to", "v2")] == (oci.DOCKER_MANIFEST, image.manifest_raw)
        assert pushed.digest == oci.digest(image.manifest_raw)
        assert set(other.blobs) == {oci.digest(b) for b in (*image.blobs, image.config_raw)}
        assert (
            f"{other.host}/to@{pushed.digest}"
            in catalog.resolve(f"{other.host}/to:v2").repo_digests
        )
    size = len(image.manifest_raw)
    assert lines[0] == {"status": f"The push refers to repository [{other.host}/to]"}
    assert lines[-2] == {"status": f"v2: digest: {pushed.digest} size: {size}"}
    aux = {"Tag": "v2", "Digest": pushed.digest, "Size": size}
    assert lines[-1] == {"progressDetail": {}, "aux": aux}
    ids = {oci.digest(layer)[7:19] for layer in image.layers}
    for status in ("Preparing", "Pushed"):
        assert {line["id"] for line in lines if line.get("status") == status} == ids


def test_a_loaded_image_is_compressed_the_same_way_each_time(
    registry: FakeRegistry, catalog: Catalog, registries: RegistryConfig, tmp_path: Any
) -> None:
    image = TestImage(layers=[BIG])
    load(catalog, io.BytesIO(docker_archive((image, [f"{registry.host}/app:v1"]))))
    (first,) = push(catalog, registries, f"{registry.host}/app:v1")
    manifest = json.loads(registry.manifests[("app", "v1")][1])
    layer = manifest["layers"][0]
    assert layer["mediaType"] == oci.LAYER_GZIP
    assert gzip.decompress(registry.blobs[layer["digest"]]) == BIG
    assert manifest["config"]["digest"] == image.id

    lines: list[dict[str, Any]] = []
    (second,) = push(catalog, registries, f"{registry.host}/app:v1", progress=lines.append)
    assert second == first
    assert "Layer already exists" in {line.get("status") for line in lines}

    (tmp_path / "images/pushed.json").unlink()
    with FakeRegistry() as fresh:
        catalog.tag(f"{registry.host}/app:v1", f"{fresh.host}/app:v1")
        assert push(catalog, registries, f"{fresh.host}/app:v1") == [first]


def test_a_neighbours_layer_is_mounted(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, registries: RegistryConfig
) -> None:
    image = simple_image()
    registry.add("one", "latest", image)
    puller.pull(f"{registry.host}/one")
    catalog.tag(f"{registry.host}/one", f"{registry.host}/two")
    lines: list[dict[str, Any]] = []
    push(catalog, registries, f"{registry.host}/two", progress=lines.append)
    assert "Mounted from one" in {line.get("status") for line in lines}
    assert registry.count("PATCH", "/blobs/") == 0


def test_a_refused_mount_becomes_an_upload(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, registries: RegistryConfig
) -> None:
    registry.add("one", "latest", simple_image())
    puller.pull(f"{registry.host}/one")
    catalog.tag(f"{registry.host}/one", f"{registry.host}/two")
    registry.faults.append(
        matching(
            "/two/blobs/uploads/", lambda r, a: Answer(403) if "mount" in r.query else a, "POST"
        )
    )
    push(catalog, registries, f"{registry.host}/two")
    assert ("two", "latest") in registry.manifests


def test_a_broken_upload_goes_on_where_it_broke(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, registries: RegistryConfig
) -> None:
    blob_image = TestImage(layers=[tar_bytes({"big": bytes(range(251)) * 9000})], compress=True)
    blob_image.compress = True
    registry.add("from", "latest", blob_image)
    puller.pull(f"{registry.host}/from")
    with FakeRegistry() as other:
        catalog.tag(f"{registry.host}/from", f"{other.host}/to")

        def cut(request: Any, answer: Answer) -> Answer:
            name = request.path.rpartition("/")[2]
            del other.uploads[name][1000:]  # the rest never arrived
            return Answer(202, {}, b"x" * 100, cut_after=0)

        other.faults.append(only_times(1, matching("/blobs/uploads/", cut, "PATCH")))
        push(catalog, registries, f"{other.host}/to")
        assert other.manifests[("to", "latest")][1] == blob_image.manifest_raw


@pytest.mark.parametrize(("status", "text"), [(401, "unauthorized"), (403, "denied"), (500, "500")])
def test_a_refusal_is_told(
    registry: FakeRegistry,
    puller: Puller,
    catalog: Catalog,
    registries: RegistryConfig,
    status: int,
    text: str,
) -> None:
    registry.add("one", "latest", simple_image())
    puller.pull(f"{registry.host}/one")
    catalog.tag(f"{registry.host}/one", f"{registry.host}/two")
    registry.faults.append(with_status("/two/blobs/uploads/", status, method="POST"))
    with pytest.raises(SampanError, match=text):
        push(catalog, registries, f"{registry.host}/two")
    assert ("two", "latest") not in registry.manifests


def test_all_tags_of_a_repository(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, registries: RegistryConfig
) -> None:
    registry.add("from", "latest", simple_image())
    puller.pull(f"{registry.host}/from")
    for tag in ("a", "b"):
        catalog.tag(f"{registry.host}/from", f"{registry.host}/to:{tag}")
    pushed = push(catalog, registries, f"{registry.host}/to", all_tags=True)
    assert [one.tag for one in pushed] == ["a", "b"]


def test_what_cannot_be_pushed(catalog: Catalog, registries: RegistryConfig) -> None:
    with pytest.raises(NotFound, match="An image does not exist locally with the tag: nope"):
        push(catalog, registries, "nope")
    with pytest.raises(InvalidArgument, match="cannot push a digest reference"):
        push(catalog, registries, "nope@sha256:" + "0" * 64)
    load(catalog, io.BytesIO(docker_archive((simple_image(), ["app:v1"]))))
    with pytest.raises(NotFound, match="tag does not exist: app:v2"):
        push(catalog, registries, "app:v2")


def test_distribution_inspect_and_search(
    registry: FakeRegistry, registries: RegistryConfig
) -> None:
    from sampan.images import remote
    from sampan.spec.reference import parse_tagged

    image = simple_image()
    registry.add("app", "latest", image)
    found = remote.inspect_distribution(registries, parse_tagged(f"{registry.host}/app"))
    assert found.descriptor.digest == oci.digest(image.manifest_raw)
    assert [str(p) for p in found.platforms] == ["linux/amd64"]
    with pytest.raises(NotFound):
        remote.inspect_distribution(registries, parse_tagged(f"{registry.host}/nope"))
    results = {
        "results": [
            {"name": "a", "description": "d", "star_count": 10, "is_official": True},
            {"name": "b", "description": None, "star_count": 1, "is_official": False},
        ]
    }
    registry.faults.append(
        matching("/v1/search", lambda _, __: Answer(200, {}, json.dumps(results).encode()))
    )
    rows = remote.search(registries, f"{registry.host}/x", 5)
    assert [row["name"] for row in rows] == [f"{registry.host}/a", f"{registry.host}/b"]
    rows = remote.search(registries, f"{registry.host}/x", 5, {"stars": ["5"]})
    assert [row["star_count"] for row in rows] == [10]


@pytest.mark.parametrize(
    "filters", [{"stars": ["a"]}, {"is-official": ["maybe"]}, {"is-automated": ["true", "false"]}]
)
def test_a_bad_search_filter_is_refused_before_anybody_is_asked(
    registries: RegistryConfig, filters: dict[str, list[str]]
) -> None:
    with pytest.raises(InvalidArgument, match="invalid filter '"):
        remote.search(registries, "127.0.0.1:1/x", filters=filters)
