"""Images in memory, for tests: layers, configuration, manifest, and the archives that hold them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from tests.support.images import add_bytes

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """A tar of these files, in order, times zero. A name that ends in `/` is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            if name.endswith("/"):
                add_bytes(archive, name.rstrip("/"), b"", type=tarfile.DIRTYPE, mode=0o755)  # type: ignore[arg-type]
            else:
                add_bytes(archive, name, content)
    return out.getvalue()


@dataclass
class TestImage:
    """One image with everything it consists of."""

    __test__ = False

    layers: list[bytes]  # uncompressed
    compress: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    platform: tuple[str, str] = ("linux", "amd64")
    docker_types: bool = False
    changed: dict[str, Any] = field(default_factory=dict)  # replaces members of the manifest

    @property
    def config_raw(self) -> bytes:
        body = {
            "architecture": self.platform[1],
            "os": self.platform[0],
            "created": "2024-05-06T07:08:09Z",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
            "history": [
                {"created": "2024-05-06T07:08:09Z", "created_by": f"step {n}"}
                for n, _ in enumerate(self.layers)
            ],
        }
        return json.dumps(body).encode()

    @property
    def id(self) -> str:
        return digest(self.config_raw)

    @property
    def blobs(self) -> list[bytes]:
        return [gzip.compress(x, 1, mtime=0) if self.compress else x for x in self.layers]

    @property
    def manifest_type(self) -> str:
        return DOCKER_MANIFEST if self.docker_types else MANIFEST

    @property
    def manifest(self) -> dict[str, Any]:
        layer_type = DOCKER_LAYER if self.docker_types else LAYER_GZIP if self.compress else LAYER
        return {
            "schemaVersion": 2,
            "mediaType": self.manifest_type,
            "config": {
                "mediaType": DOCKER_CONFIG if self.docker_types else CONFIG,
                "digest": self.id,
                "size": len(self.config_raw),
            },
            "layers": [
                {"mediaType": layer_type, "digest": digest(blob), "size": len(blob)}
                for blob in self.blobs
            ],
        } | self.changed

    @property
    def manifest_raw(self) -> bytes:
        return json.dumps(self.manifest).encode()

    def descriptor(self) -> dict[str, Any]:
        return {
            "mediaType": self.manifest_type,
            "digest": digest(self.manifest_raw),
            "size": len(self.manifest_raw),
            "platform": {"os": self.platform[0], "architecture": self.platform[1]},
        }


def simple_image(text: str = "hello", **options: Any) -> TestImage:
    """One small layer; the text makes it different from others."""
    return TestImage(layers=[tar_bytes({"etc/": b"", "etc/motd": text.encode()})], **options)


def index_of(*images: TestImage, docker_types: bool = False) -> bytes:
    body = {
        "schemaVersion": 2,
        "mediaType": DOCKER_LIST if docker_types else INDEX,
        "manifests": [image.descriptor() for image in images],
    }
    return json.dumps(body).encode()


def docker_archive(*images: tuple[TestImage, list[str]]) -> bytes:
    """What `docker save` wrote before version 25."""
    files: dict[str, bytes] = {}
    lines = []
    for image, tags in images:
        name = image.id.removeprefix("sha256:") + ".json"
        files[name] = image.config_raw
        paths = []
        for layer in image.layers:
            folder = digest(layer + b"v1").removeprefix("sha256:")
            files[f"{folder}/"] = b""
            files[f"{folder}/layer.tar"] = layer
            paths.append(f"{folder}/layer.tar")
        lines.append({"Config": name, "RepoTags": tags or None, "Layers": paths})
    files["manifest.json"] = json.dumps(lines).encode()
    return tar_bytes(files)


def oci_files(image: TestImage, annotations: dict[str, str] | None = None) -> dict[str, bytes]:
    """The files of an OCI image layout."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    for blob in (*image.blobs, image.config_raw, image.manifest_raw):
        files["blobs/sha256/" + digest(blob).removeprefix("sha256:")] = blob
    line = image.descriptor() | ({"annotations": annotations} if annotations else {})
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [line]}).encode()
    return files
