"""Manifests, indexes and configurations from strangers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidArgument, SampanError, Unsupported
from sampan.spec import image
from sampan.spec.image import (
    Descriptor,
    Index,
    Manifest,
    make_index,
    make_manifest,
    parse_image_document,
    parse_index,
    parse_manifest,
    parse_manifest_or_index,
    require_image,
)

D = "sha256:" + "0" * 64
CONFIG = {"mediaType": image.OCI_CONFIG, "digest": D, "size": 2}
LAYER = {"mediaType": image.OCI_LAYER_GZIP, "digest": D, "size": 2}


def manifest(**changes: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]} | changes).encode()


def test_raw_bytes_are_kept_and_hashed() -> None:
    raw = manifest(unknown={"kept": True})
    found = parse_manifest(raw)
    assert found.raw == raw
    assert found.media_type == image.OCI_MANIFEST
    assert found.descriptor().size == len(raw)


@pytest.mark.parametrize("kind", [image.OCI_MANIFEST, image.DOCKER_MANIFEST])
def test_the_media_type_said_outside_counts_when_none_is_inside(kind: str) -> None:
    assert parse_manifest(manifest(), kind).media_type == kind
    assert parse_manifest(manifest(), f"{kind}; charset=utf-8").media_type == kind


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (manifest(mediaType=image.DOCKER_MANIFEST), image.OCI_MANIFEST),
        (manifest(mediaType=image.OCI_INDEX), image.OCI_INDEX),
        (manifest(), image.OCI_INDEX),
        (manifest(manifests=[]), ""),
        (manifest(manifests=[], mediaType=image.OCI_MANIFEST), image.OCI_MANIFEST),
        (b'{"schemaVersion":2,"manifests":[]}', image.OCI_MANIFEST),
        (manifest(mediaType=5), ""),
        (manifest(), "text/html"),
        (b"", ""), (b"null", ""), (b"[]", ""), (b"{}", ""), (b'"x"', ""), (b"\xff", ""), (b"[" * 100_000, ""),
        (b'{"a":' * 100_000, ""), (manifest() + b"x", ""), (manifest(schemaVersion=True), ""),
        (manifest(schemaVersion=1.5), ""), (manifest(config=[]), ""), (manifest(layers=[None]), ""),
        (manifest(annotations={"a": 1}), ""), (manifest(subject={"digest": 5}), ""),
    ],
)  # fmt: skip
def test_documents_that_could_mean_two_things_or_nothing_are_refused(raw: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_manifest_or_index(raw, said)


def test_limits() -> None:
    with pytest.raises(InvalidArgument, match="too many layers: 128"):
        parse_manifest(manifest(layers=[LAYER] * 128))
    with pytest.raises(InvalidArgument, match="too large"):
        parse_manifest(manifest(x="a" * image.MANIFEST_LIMIT))
    entries = [{"mediaType": image.OCI_MANIFEST, "digest": D, "size": 1}] * 2000
    with pytest.raises(InvalidArgument, match="too many manifests"):
        parse_index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def test_an_image_is_required_where_an_image_is_wanted() -> None:
    helm = CONFIG | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}
    with pytest.raises(Unsupported):
        require_image(parse_manifest(manifest(config=helm)))
    with pytest.raises(InvalidArgument, match="of layer 1"):
        require_image(parse_manifest(manifest(layers=[LAYER | {"mediaType": "text/plain"}])))


@pytest.mark.parametrize("version", [1, 2])
def test_schema_1_is_named(version: int) -> None:
    kind = {1: "", 2: image.SCHEMA1_SIGNED}[version]
    with pytest.raises(Unsupported, match="schema 1"):
        parse_manifest_or_index(json.dumps({"schemaVersion": version}).encode(), kind or "")
        parse_manifest_or_index(b'{"schemaVersion":1}', kind)


def test_configuration_with_go_nulls() -> None:
    raw = json.dumps(
        {
            "architecture": "amd64", "os": "linux", "created": None, "history": None,
            "rootfs": {"type": "layers", "diff_ids": None},
            "config": {
                "Hostname": "", "Env": None, "Cmd": None, "Entrypoint": None, "Labels": None, "Volumes": None,
                "ExposedPorts": {"80/tcp": {}}, "OnBuild": None, "Image": "sha256:x", "AttachStdin": False,
                "Healthcheck": {"Test": ["CMD", "x"], "Interval": 1000},
            },
            "container_config": {"Cmd": ["/bin/sh"]}, "unknown": [1, {"a": None}],
        }
    ).encode()  # fmt: skip
    found = parse_image_document(raw)
    assert found.raw == raw
    assert found.diff_ids == ()
    assert found.config.env is None
    assert found.config.exposed_ports == {"80/tcp": {}}
    assert found.config.healthcheck is not None
    assert found.config.healthcheck.interval == 1000


@pytest.mark.parametrize(
    "body",
    [
        {}, {"rootfs": {"type": "squashfs"}}, {"rootfs": {"type": "layers", "diff_ids": ["x"]}},
        {"rootfs": {"type": "layers", "diff_ids": [D] * 200}},
        {"rootfs": {"type": "layers"}, "config": {"Env": "A=b"}},
        {"rootfs": {"type": "layers"}, "config": {"Cmd": [1]}},
        {"rootfs": {"type": "layers"}, "architecture": 5},
        {"rootfs": {"type": "layers"}, "history": [{"empty_layer": "yes"}]},
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        parse_image_document(json.dumps(body).encode())


def test_what_is_written_is_read_back_and_always_the_same() -> None:
    config = Descriptor(media_type=image.OCI_CONFIG, digest=D, size=2)
    layer = Descriptor(
        media_type=image.OCI_LAYER, digest=D, size=3, annotations={"b": "1", "a": "2"}
    )
    one, two = make_manifest(config, (layer,)), make_manifest(config, (layer,))
    assert one.raw == two.raw
    assert one.layers == (layer,)
    assert parse_index(make_index((one.descriptor(),))).manifests == (one.descriptor(),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "rootfs"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON | st.binary(max_size=200))
def test_anything_is_a_document_or_a_refusal(value: Any) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    for parse in (parse_manifest_or_index, parse_image_document):
        try:
            found = parse(raw)
        except SampanError:
            continue
        assert isinstance(found, Manifest | Index | image.ImageDocument)


def test_configurations_of_the_oldest_images() -> None:
    """A command that is one string, a label that is null: Go's decoder took both."""
    raw = json.dumps(
        {
            "config": {"Cmd": "a b", "Entrypoint": "e", "Labels": {"l": None}},
            "rootfs": {"type": "layers"},
        }
    ).encode()
    config = parse_image_document(raw).config
    assert (config.cmd, config.entrypoint, config.labels) == (("a b",), ("e",), {"l": ""})
    assert parse_image_document(raw).raw == raw


@pytest.mark.parametrize(
    "body", ["{}", '{"rootfs":null}', '{"config":{"Cmd":5},"rootfs":{"type":"layers"}}']
)
def test_what_is_no_image_is_refused(body: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_image_document(body.encode())


def test_a_history_of_more_layers_than_there_are_is_refused() -> None:
    raw = json.dumps({"rootfs": {"type": "layers", "diff_ids": [D]}, "history": [{}, {}]}).encode()
    with pytest.raises(InvalidArgument, match="too many non-empty layers in History section"):
        image.check_manifest_fits(
            parse_manifest(manifest(layers=[LAYER])), parse_image_document(raw)
        )
