"""Loading images from an archive: what `docker save`, podman, skopeo, buildx and umoci write, in any compression.

    manifest.json            docker-archive: which configuration, which layers, which names
    index.json, oci-layout   OCI image layout: manifests, by digest
    repositories             what Docker before 1.10 wrote (legacy.py)

An archive is read once, front to back, and nothing in it becomes a path: its members are kept by name in a table,
large ones as blobs of the store, small ones in memory, and what a manifest says is looked up in that table. So
`../../etc/shadow` as a layer, a symlink as a layer and an id with a slash are names that are not found
(CVE-2014-9356, CVE-2014-9358). What is found is taken only for what it hashes to: a configuration is the image
whose id it hashes to, a layer must have the diff id that the configuration says, an OCI blob the digest in its name.

Where an archive holds both forms (Docker 25 and later), names come from manifest.json and the manifest's bytes
from the layout, so that what was pulled and saved is pushed again with the same digest.

Sources: OCI image-spec 1.1 image-layout.md; "Docker Image Specification" 1.2 and 1.3, "Combined Image JSON".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sampan.errors import InvalidArgument, NotFound
from sampan.images import legacy
from sampan.images import platform as platforms
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog, Hold, Image
from sampan.images.members import Found, Members
from sampan.images.platform import native_platform
from sampan.images.progress import Progress, silent
from sampan.images.unpack import unpack
from sampan.spec.image import (
    ANNOTATION_CONTAINERD_NAME,
    ANNOTATION_REF_NAME,
    CONFIG_LIMIT,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    ImageDocument,
    Index,
    Manifest,
    decode_json,
    make_manifest,
    parse_image_document,
    parse_index,
    parse_manifest_or_index,
    require_image,
)
from sampan.spec.reference import Reference, is_digest, parse_normalized, quoted
from sampan.storage.snapshots import chain_ids
from sampan.storage.tar import Readable

IMAGE_LIMIT = 1000  # images in one archive
_NESTED_INDEXES = 4


class _ArchiveLine(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One image of manifest.json."""

    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


_decode_archive_lines = msgspec.json.Decoder(tuple[_ArchiveLine, ...])


def load(
    catalog: Catalog,
    stream: Readable,
    *,
    platform: str = "",
    quiet: bool = False,
    progress: Progress = silent,
    cancel: Cancel | None = None,
) -> list[Image]:
    """`docker load`: all images of an archive. Reports `Loaded image: NAME` for each name."""
    cancel = cancel or Cancel.never()
    with catalog.holding() as hold:
        members = Members.read(catalog.blobs, hold, stream, cancel)
        try:
            images = []
            for found in find_images(members, platform):
                images.append(_take(catalog, hold, found, silent if quiet else progress, cancel))
                _announce(images[-1], found, progress)
            return images
        finally:
            members.drop_unused(catalog)


def _take(catalog: Catalog, hold: Hold, found: Found, progress: Progress, cancel: Cancel) -> Image:
    hold.layers(*chain_ids(found.document.diff_ids))
    for layer in found.manifest.layers:
        hold.blobs(layer.digest)
    unpack(
        catalog,
        found.manifest.layers,
        found.document.diff_ids,
        progress=progress,
        cancel=cancel,
    )
    for reference in found.references:
        _tell_of_renaming(catalog, reference, found.document.id, progress)
    return catalog.add(
        found.manifest, found.document, references=found.references, parent=found.parent
    )


def _tell_of_renaming(
    catalog: Catalog, reference: Reference, image_id: str, progress: Progress
) -> None:
    old = catalog.lookup(reference)
    if old is not None and old.image_id != image_id:
        text = (
            f"The image {reference.familiar()} already exists, renaming the old one "
            f"with ID {old.image_id} to empty string\n"
        )
        progress({"stream": text})


def _announce(image: Image, found: Found, progress: Progress) -> None:
    if not found.references:
        progress({"stream": f"Loaded image ID: {image.id}\n"})
    for reference in found.references:
        progress({"stream": f"Loaded image: {reference.familiar()}\n"})


# --- finding the images -------------------------------------------------------------------------------


def find_images(members: Members, platform: str = "") -> Iterator[Found]:
    """Every image that the archive's table of contents names."""
    if "manifest.json" in members:
        yield from _find_docker(members)
    elif "index.json" in members:
        yield from _find_oci(members, platform)
    elif "repositories" in members:
        yield from legacy.find_images(members)
    else:
        raise InvalidArgument(
            "invalid archive: it has neither manifest.json nor index.json",
            hint="a root filesystem is taken in with `import`",
        )


def _find_docker(members: Members) -> Iterator[Found]:
    raw = members.small("manifest.json", MANIFEST_LIMIT)
    lines = decode_json(_decode_archive_lines, raw, "manifest.json")
    if not lines or len(lines) > IMAGE_LIMIT:
        raise InvalidArgument(f"invalid manifest.json: {len(lines)} images")
    originals = _manifests_by_config(members)
    for line in lines:
        document = parse_image_document(members.small(line.config, CONFIG_LIMIT))
        if document.os not in {"linux", ""}:
            raise InvalidArgument(f"cannot load {document.os} image on linux")
        _check_named_by_digest(line.config, document.id)
        references = tuple(_tagged(text) for text in line.repo_tags or ())
        names = line.layers or ()
        if len(names) != len(document.diff_ids):
            raise InvalidArgument(
                f"invalid manifest, layers length mismatch: expected {len(names)}, "
                f"got {len(document.diff_ids)}"
            )
        manifest = originals.get(document.id)
        if manifest is None:
            manifest = _manifest_for(members, names, document)
        else:
            for layer in manifest.layers:
                members.check_oci_blob(layer)
        yield Found(document=document, manifest=manifest, references=references)


def _manifest_for(members: Members, names: tuple[str, ...], document: ImageDocument) -> Manifest:
    """docker-archives have no manifest of the registry's kind: ours lists the layers as they came."""
    layers = []
    for name, diff_id in zip(names, document.diff_ids, strict=True):
        member = members.blob(name)
        kind = members.compression(member)
        if kind == "none" and member.digest != diff_id:
            raise InvalidArgument(
                f"invalid diffID for layer {quoted(name)}: expected {diff_id!r}, "
                f"got {member.digest!r}"
            )
        layers.append(
            Descriptor(media_type=_LAYER_TYPES[kind], digest=member.digest, size=member.size)
        )
    config = Descriptor(media_type=OCI_CONFIG, digest=document.id, size=len(document.raw))
    return make_manifest(config, tuple(layers))


_LAYER_TYPES = {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


def _manifests_by_config(members: Members) -> dict[str, Manifest]:
    """The layout's own manifests, where the archive is one as well and they are whole."""
    found: dict[str, Manifest] = {}
    if "index.json" not in members:
        return found
    try:
        lines = parse_index(members.small("index.json", MANIFEST_LIMIT)).manifests
        for line in lines[:IMAGE_LIMIT]:
            for manifest in _manifests_below(members, line):
                if all(_oci_name(layer.digest) in members for layer in manifest.layers):
                    found.setdefault(manifest.config.digest, manifest)
    except (InvalidArgument, NotFound):
        return {}
    return {
        config: manifest
        for config, manifest in found.items()
        if all(members.hashes_right(layer.digest) for layer in manifest.layers)
    }


def _manifests_below(
    members: Members, line: Descriptor, depth: int = _NESTED_INDEXES
) -> Iterator[Manifest]:
    if _oci_name(line.digest) not in members or depth == 0:
        return
    inner = parse_manifest_or_index(members.oci_blob(line, MANIFEST_LIMIT), line.media_type)
    if isinstance(inner, Index):
        for entry in inner.manifests:
            yield from _manifests_below(members, entry, depth - 1)
    else:
        yield inner


def _find_oci(members: Members, platform: str) -> Iterator[Found]:
    if "oci-layout" not in members:
        raise InvalidArgument("invalid archive: index.json without oci-layout")
    layout = decode_json(_decode_layout, members.small("oci-layout", 4096), "oci-layout")
    if not str(layout.get("imageLayoutVersion", "")).startswith("1."):
        raise InvalidArgument("invalid archive: unsupported version of the OCI image layout")
    index = parse_index(members.small("index.json", MANIFEST_LIMIT))
    if not index.manifests:
        raise InvalidArgument("invalid archive: its index names no image")
    seen: dict[str, list[Reference]] = {}
    chosen: dict[str, Manifest] = {}
    for line in index.manifests[:IMAGE_LIMIT]:
        manifest = _choose(members, line, platform)
        if manifest is None:
            continue
        chosen[manifest.digest] = manifest
        names = seen.setdefault(manifest.digest, [])
        reference = reference_of(line)
        if reference is not None and reference not in names:
            names.append(reference)
    if not chosen:
        wanted = platforms.parse_platform(platform) if platform else native_platform()
        raise NotFound(f"no matching manifest for {wanted} in the archive")
    for digest, manifest in chosen.items():
        raw = members.oci_blob(manifest.config, CONFIG_LIMIT)
        for layer in manifest.layers:
            members.check_oci_blob(layer)
        yield Found(
            document=parse_image_document(raw),
            manifest=manifest,
            references=tuple(seen[digest]),
        )


_decode_layout = msgspec.json.Decoder(dict[str, Any])


def _choose(members: Members, line: Descriptor, platform: str) -> Manifest | None:
    """The manifest that a line of index.json stands for: of an index, the one for the platform that is there."""
    for _ in range(_NESTED_INDEXES):
        if line.media_type and line.media_type not in MANIFEST_TYPES | INDEX_TYPES:
            return None
        raw = members.oci_blob(line, MANIFEST_LIMIT)
        found = parse_manifest_or_index(raw, line.media_type)
        if isinstance(found, Manifest):
            if line.artifact_type or found.artifact_type:
                return None  # a signature, a bill of material
            require_image(found)
            return found
        present = [d for d in found.manifests if _oci_name(d.digest) in members]
        runnable = [d for d in present if not (d.platform and d.platform.os == "unknown")]
        wanted = platforms.parse_platform(platform) if platform else native_platform()
        try:
            line = platforms.choose(runnable, wanted)
        except NotFound:
            if platform or len(runnable) != 1:
                return None
            line = runnable[0]
    raise InvalidArgument("invalid archive: indexes are nested too deep")


def reference_of(line: Descriptor) -> Reference | None:
    """The name that a line of index.json gives: containerd's annotation, or OCI's where it is a whole name."""
    whole = line.annotation(ANNOTATION_CONTAINERD_NAME)
    if whole:
        reference = parse_normalized(whole)
        return None if reference.digest else reference.with_default_tag()
    name = line.annotation(ANNOTATION_REF_NAME)
    if ":" not in name and "/" not in name:
        return None  # a tag of an unknown repository
    try:
        reference = parse_normalized(name)
    except InvalidArgument:
        return None
    return None if reference.digest else reference.with_default_tag()


def _tagged(text: str) -> Reference:
    reference = parse_normalized(text)
    if reference.digest or not reference.tag:
        raise InvalidArgument(f"invalid tag {quoted(text)}")
    return reference


def _check_named_by_digest(name: str, image_id: str) -> None:
    """`<id>.json` and `blobs/sha256/<id>` say what they should hash to."""
    last = name.rpartition("/")[2].removesuffix(".json")
    if is_digest(f"sha256:{last}") and f"sha256:{last}" != image_id:
        raise InvalidArgument(
            f"invalid image configuration {quoted(name)}: its digest is {image_id}"
        )


def _oci_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)
