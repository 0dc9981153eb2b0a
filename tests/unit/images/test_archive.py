"""Loading and saving archives: every form that tools write, and every form that attackers do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sampan.errors import Internal, InvalidArgument, NotFound, SampanError
from sampan.images import save as saving
from sampan.images.archive import load
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog
from sampan.images.rootfs import import_rootfs
from tests.support import oci
from tests.support.oci import (
    TestImage,
    digest,
    docker_archive,
    oci_files,
    simple_image,
    tar_bytes,
)
from tests.support.stores import open_catalog

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IMAGE = TestImage(
    layers=[tar_bytes({"a": b"1"}), tar_bytes({"b": b"22"})],
    config={"Cmd": ["/a"], "Env": ["A=b"]},
)


def messages(catalog: Catalog, archive: bytes, **options: Any) -> list[str]:
    lines: list[dict[str, Any]] = []
    load(catalog, io.BytesIO(archive), progress=lines.append, **options)
    return [line["stream"] for line in lines if "stream" in line]


def saved(catalog: Catalog, *names: str) -> bytes:
    out = io.BytesIO()
    saving.save(catalog, saving.select(catalog, list(names)), out.write)
    return out.getvalue()


def files_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


# --- what tools write ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress],
    ids=["none", "gzip", "bzip2", "xz", "zstd"],
)
def test_a_docker_archive_in_any_compression(catalog: Catalog, compress: Any) -> None:
    archive = compress(docker_archive((IMAGE, ["app:v1", "me/app:v2"])))
    assert messages(catalog, archive) == ["Loaded image: app:v1\n", "Loaded image: me/app:v2\n"]
    found = catalog.resolve("app:v1")
    assert found.id == IMAGE.id
    assert found.document.raw == IMAGE.config_raw
    assert found.size == 3
    assert found.repo_digests == ()


def test_an_image_without_a_name(catalog: Catalog) -> None:
    assert messages(catalog, docker_archive((IMAGE, []))) == [f"Loaded image ID: {IMAGE.id}\n"]
    assert catalog.get(IMAGE.id).is_dangling


def test_a_name_in_use_moves_and_says_so(catalog: Catalog) -> None:
    old = simple_image("old")
    load(catalog, io.BytesIO(docker_archive((old, ["app:v1"]))))
    assert messages(catalog, docker_archive((IMAGE, ["app:v1"]))) == [
        f"The image app:v1 already exists, renaming the old one with ID {old.id} to empty string\n",
        "Loaded image: app:v1\n",
    ]
    assert catalog.get(old.id).is_dangling


def test_progress_is_by_layer_and_quiet_is_quiet(catalog: Catalog, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1"]))), progress=lines.append)
    loading = [line for line in lines if line.get("status") == "Loading layer"]
    assert {line["id"] for line in loading} == {digest(layer)[7:19] for layer in IMAGE.layers}
    lines.clear()
    load(
        catalog,
        io.BytesIO(docker_archive((simple_image(), ["b:v1"]))),
        quiet=True,
        progress=lines.append,
    )
    assert lines == [{"stream": "Loaded image: b:v1\n"}]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"io.containerd.image.name": "docker.io/library/app:v1"}, "Loaded image: app:v1\n"),
        (
            {"org.opencontainers.image.ref.name": "quay.io/me/app:v1"},
            "Loaded image: quay.io/me/app:v1\n",
        ),
        ({"org.opencontainers.image.ref.name": "latest"}, f"Loaded image ID: {IMAGE.id}\n"),
        (None, f"Loaded image ID: {IMAGE.id}\n"),
    ],
)
def test_an_oci_archive_keeps_its_manifest(
    catalog: Catalog, annotations: dict[str, str] | None, expected: str
) -> None:
    assert messages(catalog, tar_bytes(oci_files(IMAGE, annotations))) == [expected]
    found = catalog.get(IMAGE.id)
    assert found.manifest.raw == IMAGE.manifest_raw


def test_an_oci_archive_of_many_platforms_gives_ours(catalog: Catalog) -> None:
    images = [simple_image(p, platform=("linux", p)) for p in ("amd64", "arm64", "s390x")]
    files: dict[str, bytes] = {}
    for image in images:
        files |= oci_files(image)
    index = oci.index_of(*images)
    files["blobs/sha256/" + digest(index)[7:]] = index
    line = {"mediaType": oci.INDEX, "digest": digest(index), "size": len(index)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [line]}).encode()
    (loaded,) = load(catalog, io.BytesIO(tar_bytes(files)), platform="linux/arm64")
    assert loaded.id == images[1].id
    with pytest.raises(NotFound, match="no matching manifest for linux/riscv64"):
        load(catalog, io.BytesIO(tar_bytes(files)), platform="linux/riscv64")


def test_an_archive_of_dockers_first_years(catalog: Catalog) -> None:
    base, top = "a" * 64, "b" * 64
    files = {
        f"{base}/VERSION": b"1.0",
        f"{base}/json": json.dumps(
            {"id": base, "created": "2015-01-01T00:00:00Z", "container_config": {"Cmd": ["/bin/sh", "-c", "x"]}}
        ).encode(),
        f"{base}/layer.tar": IMAGE.layers[0],
        f"{top}/json": json.dumps(
            {
                "id": top, "parent": base, "created": "2015-01-02T00:00:00Z", "os": "linux",
                "architecture": "amd64", "config": {"Cmd": ["/a"]}, "Size": 5,
            }
        ).encode(),
        f"{top}/layer.tar": IMAGE.layers[1],
        "repositories": json.dumps({"old/app": {"v1": top}}).encode(),
    }  # fmt: skip
    assert messages(catalog, tar_bytes(files)) == ["Loaded image: old/app:v1\n"]
    found = catalog.resolve("old/app:v1")
    assert found.diff_ids == tuple(digest(layer) for layer in IMAGE.layers)
    assert found.config.cmd == ("/a",)
    assert [step.created_by for step in found.document.history] == ["/bin/sh -c x", ""]
    assert "parent" not in json.loads(found.document.raw)


def test_a_layer_linked_to_another_is_the_same_layer(catalog: Catalog) -> None:
    """Docker wrote a symbolic link where two images share a layer."""
    out = io.BytesIO()
    layer = IMAGE.layers[0]
    image = TestImage(layers=[layer, layer])
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in (("config.json", image.config_raw), ("x/layer.tar", layer)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("y/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../x/layer.tar"
        tar.addfile(link)
        line = {
            "Config": "config.json",
            "RepoTags": ["a:b"],
            "Layers": ["x/layer.tar", "y/layer.tar"],
        }
        data = json.dumps([line]).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert messages(catalog, out.getvalue()) == ["Loaded image: a:b\n"]


def test_compressed_layers_in_a_docker_archive(catalog: Catalog) -> None:
    files = {
        "c.json": IMAGE.config_raw,
        "0.tar.gz": IMAGE.blobs[0],
        "1.tar.gz": IMAGE.blobs[1],
        "manifest.json": json.dumps(
            [{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["0.tar.gz", "1.tar.gz"]}]
        ).encode(),
    }
    load(catalog, io.BytesIO(tar_bytes(files)))
    assert catalog.resolve("a:b").size == 3


# --- round trips ----------------------------------------------------------------------------------------------


def test_save_and_load_keep_every_byte(catalog: Catalog, tmp_path: Path) -> None:
    load(
        catalog,
        io.BytesIO(
            tar_bytes(oci_files(IMAGE, {"io.containerd.image.name": "docker.io/library/app:v1"}))
        ),
    )
    catalog.tag("app:v1", "me/other:v2")
    archive = saved(catalog, "app:v1", "me/other:v2")
    assert archive == saved(catalog, "app:v1", "me/other:v2")
    other = open_catalog(tmp_path / "other")
    assert messages(other, archive) == ["Loaded image: app:v1\n", "Loaded image: me/other:v2\n"]
    assert other.resolve("app:v1").manifest.raw == IMAGE.manifest_raw


def test_a_saved_archive_is_docker_archive_and_oci_layout(catalog: Catalog) -> None:
    load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1"]))))
    files = files_of(saved(catalog, "app:v1"))
    assert json.loads(files["oci-layout"])["imageLayoutVersion"] == "1.0.0"
    (line,) = json.loads(files["manifest.json"])
    assert line["RepoTags"] == ["app:v1"]
    assert files[line["Config"]] == IMAGE.config_raw
    assert [files[name] for name in line["Layers"]] == IMAGE.layers
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {
        "io.containerd.image.name": "docker.io/library/app:v1",
        "org.opencontainers.image.ref.name": "v1",
    }
    for name, data in files.items():
        if name.startswith("blobs/sha256/"):
            assert digest(data) == "sha256:" + name.rpartition("/")[2]
    assert json.loads(files["repositories"]) == {"app": {"v1": IMAGE.id[7:]}}


def test_save_by_id_has_no_name_and_by_repository_all(catalog: Catalog) -> None:
    load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1", "app:v2"]))))
    by_id = json.loads(files_of(saved(catalog, IMAGE.id[7:19]))["manifest.json"])
    assert by_id[0]["RepoTags"] is None
    by_name = json.loads(files_of(saved(catalog, "app"))["manifest.json"])
    assert by_name[0]["RepoTags"] == ["app:v1", "app:v2"]
    with pytest.raises(NotFound, match="No such image: nope"):
        saving.select(catalog, ["app:v1", "nope"])


def test_a_layer_that_is_only_unpacked_is_saved(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1"]))))
    tars = dict(zip(catalog.resolve("app:v1").chain_ids, IMAGE.layers, strict=True))
    for layer in IMAGE.layers:
        catalog.blobs.delete(digest(layer))
    with pytest.raises(Internal, match="is not in the store"):
        saved(catalog, "app:v1")
    monkeypatch.setattr(catalog.snapshots, "layer_tar", lambda chain_id: io.BytesIO(tars[chain_id]))
    files = files_of(saved(catalog, "app:v1"))
    assert all(files["blobs/sha256/" + digest(layer)[7:]] == layer for layer in IMAGE.layers)


# --- import -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstd.compress])
def test_a_root_filesystem_is_imported(catalog: Catalog, compress: Any) -> None:
    rootfs = tar_bytes({"bin/": b"", "bin/sh": b"#!"})
    lines: list[dict[str, Any]] = []
    image = import_rootfs(
        catalog,
        io.BytesIO(compress(rootfs)),
        repo="base",
        tag="v1",
        message="from nothing",
        changes=['CMD ["sh", "-c", "x"]', "ENV A=b"],
        platform="linux/arm64",
        progress=lines.append,
    )
    assert lines == [{"status": image.id}]
    found = catalog.resolve("base:v1")
    assert found.diff_ids == (digest(rootfs),)
    assert found.config.cmd == ("sh", "-c", "x")
    assert found.document.architecture == "arm64"
    assert found.document.history[0].comment == "from nothing"
    assert found.size == 2


# --- what attackers write -------------------------------------------------------------------------------------


def manifest_archive(line: dict[str, Any], **files: bytes) -> bytes:
    base = {"c.json": IMAGE.config_raw, "0.tar": IMAGE.layers[0], "1.tar": IMAGE.layers[1]}
    good = {"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["0.tar", "1.tar"]}
    return tar_bytes(base | files | {"manifest.json": json.dumps([good | line]).encode()})


def with_link(kind: bytes, target: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        link = tarfile.TarInfo("0.tar")
        link.type, link.linkname = kind, target
        tar.addfile(link)
        files = {"c.json": IMAGE.config_raw, "1.tar": IMAGE.layers[1]}
        line = {"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["0.tar", "1.tar"]}
        for name, data in (files | {"manifest.json": json.dumps([line]).encode()}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def broken_oci(**changed: bytes) -> bytes:
    files = oci_files(IMAGE)
    for name, data in changed.items():
        match name:
            case "layer":
                files["blobs/sha256/" + digest(IMAGE.blobs[0])[7:]] = data
            case "config":
                files["blobs/sha256/" + IMAGE.id[7:]] = data
            case "manifest":
                files["blobs/sha256/" + digest(IMAGE.manifest_raw)[7:]] = data
            case "index":
                files["index.json"] = data
            case "layout":
                files["oci-layout"] = data
    return tar_bytes(files)


DEEP = b"[" * 100_000
SELF_INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "manifests": [{"mediaType": oci.INDEX, "digest": "sha256:" + "0" * 64, "size": 1}],
    }
).encode()

HOSTILE = {
    "empty": b"",
    "not a tar": b"x" * 5000,
    "an empty tar": bytes(10240),
    "only zeros in gzip": gzip.compress(bytes(100_000)),
    "truncated": docker_archive((IMAGE, ["a:b"]))[:3000],
    "truncated gzip": gzip.compress(docker_archive((IMAGE, ["a:b"])))[:-10],
    "a root filesystem": tar_bytes({"bin/sh": b""}),
    "no such config": manifest_archive({"Config": "nope.json"}),
    "config outside": manifest_archive({"Config": "../../../../etc/passwd"}),
    "config absolute": manifest_archive({"Config": "/etc/passwd"}),
    "config NUL": manifest_archive({"Config": "c.json\0x"}),
    "config number": manifest_archive({"Config": 5}),
    "config named as another": manifest_archive(
        {"Config": "0" * 64 + ".json"}, **{"0" * 64 + ".json": IMAGE.config_raw}
    ),
    "layer outside": manifest_archive({"Layers": ["../../../etc/shadow", "1.tar"]}),
    "layer absolute": manifest_archive({"Layers": ["/etc/shadow", "1.tar"]}),
    "layer missing": manifest_archive({"Layers": ["0.tar"]}),
    "layer twice": manifest_archive({"Layers": ["0.tar", "0.tar"]}),
    "layers swapped": manifest_archive({"Layers": ["1.tar", "0.tar"]}),
    "layer tampered": manifest_archive({}, **{"0.tar": IMAGE.layers[0] + bytes(512)}),
    "layers no list": manifest_archive({"Layers": "0.tar"}),
    "symlinked layer": with_link(tarfile.SYMTYPE, "/etc/passwd"),
    "symlinked layer up": with_link(tarfile.SYMTYPE, "../../../../../../etc/passwd"),
    "symlink to itself": with_link(tarfile.SYMTYPE, "0.tar"),
    "hard linked layer": with_link(tarfile.LNKTYPE, "/etc/passwd"),
    "device as layer": with_link(tarfile.CHRTYPE, ""),
    "fifo as layer": with_link(tarfile.FIFOTYPE, ""),
    "tag with digest": manifest_archive({"RepoTags": ["a@sha256:" + "0" * 64]}),
    "tag with capital": manifest_archive({"RepoTags": ["A:b"]}),
    "tag that climbs": manifest_archive({"RepoTags": ["../../a:b"]}),
    "tag without tag": manifest_archive({"RepoTags": ["a"]}),
    "config no json": manifest_archive({}, **{"c.json": b"{"}),
    "config deep": manifest_archive({}, **{"c.json": DEEP}),
    "config NaN": manifest_archive({}, **{"c.json": b'{"rootfs":{"type":"layers"},"created":NaN}'}),
    "config huge": manifest_archive({}, **{"c.json": b" " * (9 << 20)}),
    "config bad diff id": manifest_archive(
        {"Layers": ["0.tar"]},
        **{"c.json": b'{"rootfs":{"type":"layers","diff_ids":["../../x"]}}'},
    ),
    "manifest.json no list": tar_bytes({"manifest.json": b"{}"}),
    "manifest.json empty list": tar_bytes({"manifest.json": b"[]"}),
    "manifest.json deep": tar_bytes({"manifest.json": DEEP}),
    "manifest.json huge": tar_bytes({"manifest.json": b" " * (5 << 20)}),
    "manifest.json many": tar_bytes(
        {"manifest.json": json.dumps([{"Config": "c"}] * 2000).encode()}
    ),
    "oci layer tampered": broken_oci(layer=IMAGE.blobs[0][:-1] + b"x"),
    "oci config tampered": broken_oci(config=IMAGE.config_raw + b" "),
    "oci manifest tampered": broken_oci(manifest=IMAGE.manifest_raw + b" "),
    "oci index empty": broken_oci(index=b'{"schemaVersion":2,"manifests":[]}'),
    "oci index deep": broken_oci(index=DEEP),
    "oci index of itself": broken_oci(index=SELF_INDEX),
    "oci index bad digest": broken_oci(index=SELF_INDEX.replace(b"0" * 64, b"../../../etc/passwd")),
    "oci without layout": tar_bytes({"index.json": oci_files(IMAGE)["index.json"]}),
    "oci layout version": broken_oci(layout=b'{"imageLayoutVersion": "2.0.0"}'),
    "old with a climbing id": tar_bytes({"repositories": b'{"a":{"b":"../../../../etc"}}'}),
    "old with a cycle": tar_bytes(
        {
            "repositories": json.dumps({"a": {"b": "a" * 64}}).encode(),
            "a" * 64 + "/json": json.dumps({"id": "a" * 64, "parent": "a" * 64}).encode(),
            "a" * 64 + "/layer.tar": IMAGE.layers[0],
        }
    ),
    "old without layer": tar_bytes(
        {"repositories": json.dumps({"a": {"b": "a" * 64}}).encode(), "a" * 64 + "/json": b"{}"}
    ),
    "layer that climbs": docker_archive((TestImage(layers=[tar_bytes({"../x": b""})]), ["a:b"])),
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    catalog: Catalog, tmp_path: Path, archive: bytes
) -> None:
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(SampanError) as caught:
        load(catalog, io.BytesIO(archive))
    assert isinstance(caught.value, InvalidArgument | NotFound), caught.value
    assert len(str(caught.value)) < 600
    assert catalog.images() == []
    assert sorted(p for p in tmp_path.rglob("*")) == before
    load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1"]))))


def test_a_cancelled_load_leaves_nothing(catalog: Catalog, tmp_path: Path) -> None:
    from sampan.errors import Cancelled

    before = sorted(p for p in tmp_path.rglob("*"))
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Cancelled):
        load(catalog, io.BytesIO(docker_archive((IMAGE, ["app:v1"]))), cancel=cancel)
    assert sorted(p for p in tmp_path.rglob("*")) == before
