"""Manifests, indexes and image configurations as frozen values, with the received bytes beside the parse.

Two families describe the same thing with other media types, and both are read and written here:

    docker schema 2   manifest list  ->  manifest  ->  config + layers
    OCI               index          ->  manifest  ->  config + layers

A digest is of bytes, so `Manifest.raw`, `Index.raw` and `ImageDocument.raw` are what was received and are
what is stored, pushed and saved; the fields are a reading of them. Documents come from strangers: sizes,
numbers of layers and media types are checked here, a type that does not fit is an InvalidArgument that
names the field, and a document that could be read as two kinds at once is refused (CVE-2021-41190).

Sources: OCI image-spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md, media-types.md) and
Docker's "Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from sampan.errors import InvalidArgument, Unsupported
from sampan.spec.reference import digest_of, is_digest, quoted

MANIFEST_LIMIT = (
    4 * 1024 * 1024
)  # distribution-spec 1.1: a registry should accept 4 MiB, so nobody needs more
CONFIG_LIMIT = 8 * 1024 * 1024
LAYER_COUNT_LIMIT = 127  # what overlay and Docker can stack
INDEX_ENTRY_LIMIT = 1024

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
SCHEMA1_TYPES = frozenset({SCHEMA1, SCHEMA1_SIGNED})
# media type of a layer -> how its bytes are compressed
LAYER_COMPRESSION = {
    OCI_LAYER: "none",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER_GZIP: "gzip",
    DOCKER_LAYER_ZSTD: "zstd",
    DOCKER_FOREIGN_LAYER: "gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
}
FOREIGN_LAYERS = frozenset(
    t for t in LAYER_COMPRESSION if "foreign" in t or "nondistributable" in t
)

ANNOTATION_REF_NAME = "org.opencontainers.image.ref.name"
ANNOTATION_CONTAINERD_NAME = "io.containerd.image.name"


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Says where bytes are: their kind, their digest, their number."""

    media_type: str = ""
    digest: str
    size: int
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str = ""

    @property
    def is_foreign(self) -> bool:
        return self.media_type in FOREIGN_LAYERS

    def annotation(self, key: str) -> str:
        return (self.annotations or {}).get(key, "")


class _ManifestBody(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class _IndexBody(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image for one platform."""

    raw: bytes
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]
    artifact_type: str = ""
    subject: Descriptor | None = None

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """One name for many platforms."""

    raw: bytes
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str]

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    def descriptor(self) -> Descriptor:
        return Descriptor(media_type=self.media_type, digest=self.digest, size=len(self.raw))


# --- image configuration -----------------------------------------------------------------------------


class Healthcheck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """Times in nanoseconds, as Docker has them."""

    test: tuple[str, ...] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """The `config` part: what a container of this image starts with. Nothing here widens what it may do (C37)."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    healthcheck: Healthcheck | None = None
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    on_build: tuple[str, ...] | None = None
    shell: tuple[str, ...] | None = None
    args_escaped: bool = False


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    diff_ids: tuple[str, ...] | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class _ConfigBody(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    created: str | None = None
    author: str = ""
    comment: str = ""
    docker_version: str = ""
    container: str = ""
    parent: str = ""
    config: RunConfig | None = None
    rootfs: RootFS | None = None
    history: tuple[History, ...] | None = None


class ImageDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An image's configuration blob: its digest is the image's id."""

    raw: bytes
    architecture: str
    os: str
    variant: str
    os_version: str
    created: str
    author: str
    comment: str
    docker_version: str
    config: RunConfig
    diff_ids: tuple[str, ...]
    history: tuple[History, ...]

    @property
    def id(self) -> str:
        return digest_of(self.raw)

    @property
    def platform(self) -> Platform:
        return Platform(
            architecture=self.architecture,
            os=self.os,
            variant=self.variant,
            os_version=self.os_version,
        )


# --- reading -----------------------------------------------------------------------------------------

_decode_probe = msgspec.json.Decoder(dict[str, msgspec.Raw])
_decode_manifest = msgspec.json.Decoder(_ManifestBody)
_decode_index = msgspec.json.Decoder(_IndexBody)
_decode_config = msgspec.json.Decoder(_ConfigBody)
_decode_object = msgspec.json.Decoder(dict[str, Any])

_T = TypeVar("_T")


def parse_manifest_or_index(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Bytes to what they are. `media_type` is what the sender said; what the document says must agree.

    With neither said, a docker or OCI document without `mediaType` is an OCI one (image-spec 1.1,
    manifest.md: the field is SHOULD), told apart by which of `manifests` and `config` it has.
    """
    if len(raw) > MANIFEST_LIMIT:
        raise InvalidArgument(f"manifest is too large: {len(raw)} bytes, at most {MANIFEST_LIMIT}")
    keys = decode_json(_decode_probe, raw, "manifest")
    kind = _media_type_of(keys, media_type)
    if kind in INDEX_TYPES:
        return _parse_index(raw, kind)
    return _parse_manifest(raw, kind)


def parse_manifest(raw: bytes, media_type: str = "") -> Manifest:
    found = parse_manifest_or_index(raw, media_type)
    if isinstance(found, Index):
        raise InvalidArgument(f"expected an image manifest, got {found.media_type}")
    return found


def parse_index(raw: bytes, media_type: str = "") -> Index:
    found = parse_manifest_or_index(raw, media_type)
    if isinstance(found, Manifest):
        raise InvalidArgument(f"expected an image index, got {found.media_type}")
    return found


def parse_image_document(raw: bytes) -> ImageDocument:
    """The configuration blob. Unknown keys are kept in `raw` and obeyed by nobody."""
    if len(raw) > CONFIG_LIMIT:
        raise InvalidArgument(
            f"image configuration is too large: {len(raw)} bytes, at most {CONFIG_LIMIT}"
        )
    body = _decode_document(raw)
    if body.rootfs is None:
        raise InvalidArgument("invalid image JSON, no RootFS key")
    if body.rootfs.type != "layers":
        raise InvalidArgument(
            f"unknown rootfs type {quoted(body.rootfs.type)} in image configuration"
        )
    diff_ids = body.rootfs.diff_ids or ()
    if len(diff_ids) > LAYER_COUNT_LIMIT:
        raise InvalidArgument(
            "max depth exceeded", hint=f"{len(diff_ids)} layers, at most {LAYER_COUNT_LIMIT}"
        )
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise InvalidArgument(f"invalid diff id {quoted(diff_id)} in image configuration")
    return ImageDocument(
        raw=raw,
        architecture=body.architecture,
        os=body.os,
        variant=body.variant,
        os_version=body.os_version,
        created=body.created or "",
        author=body.author,
        comment=body.comment,
        docker_version=body.docker_version,
        config=body.config or RunConfig(),
        diff_ids=diff_ids,
        history=body.history or (),
    )


def check_manifest_fits(manifest: Manifest, document: ImageDocument) -> None:
    """A manifest's layers and its configuration's diff ids must be about the same thing."""
    if len(manifest.layers) != len(document.diff_ids):
        raise InvalidArgument(
            f"invalid manifest: it has {len(manifest.layers)} layers, "
            f"its configuration {len(document.diff_ids)}"
        )
    if sum(not line.empty_layer for line in document.history) > len(document.diff_ids):
        raise InvalidArgument("too many non-empty layers in History section")


def _decode_document(raw: bytes) -> _ConfigBody:
    """Read strictly; what fails is read again as Go reads it, which Docker's oldest images count on.

    There a command may be one string, and a label null.
    """
    try:
        return decode_json(_decode_config, raw, "image configuration")
    except InvalidArgument:
        whole = decode_json(_decode_object, raw, "image configuration")
        config = whole.get("config")
        if not isinstance(config, dict):
            raise
        for key in ("Cmd", "Entrypoint"):
            if isinstance(config.get(key), str):
                config[key] = [config[key]]
        if isinstance(config.get("Labels"), dict):
            config["Labels"] = {k: "" if v is None else v for k, v in config["Labels"].items()}
        return decode_json(_decode_config, msgspec.json.encode(whole), "image configuration")


def decode_json(decoder: msgspec.json.Decoder[_T], raw: bytes, what: str) -> _T:
    """One place where a stranger's JSON becomes a value; every way to be wrong is an InvalidArgument."""
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid {what}: {error}") from None


def _media_type_of(keys: dict[str, msgspec.Raw], said: str) -> str:
    said = said.partition(";")[0].strip().lower()
    inside = _string_member(keys, "mediaType")
    for kind in (inside, said):
        if kind in SCHEMA1_TYPES:
            _refuse_schema1()
    if bytes(keys.get("schemaVersion", b"")) == b"1":
        _refuse_schema1()
    is_index_shaped, is_manifest_shaped = (
        "manifests" in keys,
        bool({"config", "layers"} & keys.keys()),
    )
    if is_index_shaped and is_manifest_shaped:
        raise InvalidArgument("invalid manifest: it is an index and an image manifest at once")
    known = MANIFEST_TYPES | INDEX_TYPES
    if said and said not in known:
        raise InvalidArgument(f"unsupported manifest media type {quoted(said)}")
    if inside and inside not in known:
        raise InvalidArgument(f"unsupported manifest media type {quoted(inside)}")
    if said and inside and said != inside:
        raise InvalidArgument(
            f"invalid manifest: its mediaType {quoted(inside)} is not the expected {quoted(said)}"
        )
    kind = said or inside or (OCI_INDEX if is_index_shaped else OCI_MANIFEST)
    if is_index_shaped != (kind in INDEX_TYPES):
        raise InvalidArgument(f"invalid manifest: its content is not what {kind} has")
    return kind


def _refuse_schema1() -> None:
    raise Unsupported(
        "Docker Image Format v1 and Docker Image manifest version 2, schema 1 are not supported",
        hint="push the image again with a current tool, or copy it with `skopeo copy --format v2s2`",
    )


def _string_member(keys: dict[str, msgspec.Raw], name: str) -> str:
    if name not in keys:
        return ""
    return decode_json(_decode_string, bytes(keys[name]), f"manifest member {name}")


_decode_string = msgspec.json.Decoder(str)


def _parse_manifest(raw: bytes, media_type: str) -> Manifest:
    body = decode_json(_decode_manifest, raw, "manifest")
    if body.schema_version != 2:
        raise InvalidArgument(f"invalid manifest: schemaVersion {body.schema_version}, expected 2")
    if len(body.layers) > LAYER_COUNT_LIMIT:
        raise InvalidArgument(f"too many layers: {len(body.layers)}, at most {LAYER_COUNT_LIMIT}")
    check_descriptor(body.config, "config")
    if body.config.size > CONFIG_LIMIT:
        raise InvalidArgument(
            f"image configuration is too large: {body.config.size} bytes, at most {CONFIG_LIMIT}"
        )
    for number, layer in enumerate(body.layers, 1):
        check_descriptor(layer, f"layer {number}")
    return Manifest(
        raw=raw,
        media_type=media_type,
        config=body.config,
        layers=body.layers,
        annotations=body.annotations or {},
        artifact_type=body.artifact_type,
        subject=body.subject,
    )


def _parse_index(raw: bytes, media_type: str) -> Index:
    body = decode_json(_decode_index, raw, "index")
    if body.schema_version != 2:
        raise InvalidArgument(f"invalid index: schemaVersion {body.schema_version}, expected 2")
    if len(body.manifests) > INDEX_ENTRY_LIMIT:
        raise InvalidArgument(
            f"too many manifests in an index: {len(body.manifests)}, at most {INDEX_ENTRY_LIMIT}"
        )
    for number, entry in enumerate(body.manifests, 1):
        check_descriptor(entry, f"manifest {number}")
    return Index(
        raw=raw,
        media_type=media_type,
        manifests=body.manifests,
        annotations=body.annotations or {},
    )


def check_descriptor(descriptor: Descriptor, what: str) -> None:
    if not is_digest(descriptor.digest):
        raise InvalidArgument(f"invalid digest {quoted(descriptor.digest)} of {what}")
    if not 0 <= descriptor.size < 1 << 62:
        raise InvalidArgument(f"invalid size {descriptor.size} of {what} {descriptor.digest}")


def require_image(manifest: Manifest) -> None:
    """An OCI manifest may carry anything; only an image can be run."""
    if manifest.config.media_type not in CONFIG_TYPES:
        raise Unsupported(
            f"unsupported media type {manifest.config.media_type or manifest.artifact_type}: "
            "this is an OCI artifact, not a container image"
        )
    for number, layer in enumerate(manifest.layers, 1):
        if layer.media_type not in LAYER_COMPRESSION:
            raise InvalidArgument(
                f"unsupported media type {quoted(layer.media_type)} of layer {number} {layer.digest}"
            )


# --- writing -----------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder(order="sorted")


def encode(value: Any) -> bytes:
    """Compact JSON with sorted keys: the same value always has the same digest."""
    return _encoder.encode(value)


def make_manifest(
    config: Descriptor,
    layers: tuple[Descriptor, ...],
    *,
    media_type: str = OCI_MANIFEST,
    annotations: dict[str, str] | None = None,
) -> Manifest:
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": layers,
    }
    if annotations:
        body["annotations"] = annotations
    return _parse_manifest(encode(body), media_type)


def make_index(
    manifests: tuple[Descriptor, ...],
    *,
    media_type: str = OCI_INDEX,
    annotations: dict[str, str] | None = None,
) -> bytes:
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    if annotations:
        body["annotations"] = annotations
    return encode(body)
