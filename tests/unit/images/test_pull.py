"""Pulling from a registry that behaves, and from one that does not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sampan.errors import (
    Cancelled,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SampanError,
    Unsupported,
)
from sampan.images.cancel import Cancel
from sampan.images.catalog import Catalog
from sampan.images.endpoints import RegistryConfig
from sampan.images.pull import Puller
from sampan.images.transport import ConnectionFailed
from sampan.storage.tar import Limits
from tests.support import oci
from tests.support.oci import TestImage, simple_image, tar_bytes
from tests.support.registry import (
    Answer,
    FakeRegistry,
    matching,
    only_times,
    replaced,
    slow,
    stalled,
    truncated,
    with_status,
)

BIG = tar_bytes({"big": bytes(range(256)) * 8192})  # 2 MiB


def assert_store_is_clean(catalog: Catalog, root: Path) -> None:
    """No image, no layer, no temporary file; verified blobs and partial ones may stay."""
    assert catalog.images() == []
    assert [s for s in catalog.snapshots.walk() if s.kind == "layer"] == []
    assert not list((root / "images/ingest").glob("*.tmp"))
    assert catalog.held_layers() == set()


def status_lines(lines: list[dict[str, Any]]) -> list[str]:
    return [f"{line['id']}: {line['status']}" if "id" in line else line["status"] for line in lines]


# --- when all is well ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compress", "docker_types"), [(True, False), (False, False), (True, True)]
)
def test_an_image_is_pulled_with_its_bytes(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, compress: bool, docker_types: bool
) -> None:
    image = TestImage(
        layers=[tar_bytes({"a": b"1"}), tar_bytes({"b": b"2"})],
        compress=compress,
        docker_types=docker_types,
        config={"Cmd": ["/a"], "Labels": {"x": "y"}},
    )
    registry.add("team/app", "v1", image)
    name = f"{registry.host}/team/app"
    (pulled,) = puller.pull(f"{name}:v1")
    assert pulled.id == image.id
    found = catalog.resolve(f"{name}:v1")
    assert found.manifest.raw == image.manifest_raw
    assert found.document.raw == image.config_raw
    assert found.repo_tags == (f"{name}:v1",)
    assert found.repo_digests == (f"{name}@{oci.digest(image.manifest_raw)}",)
    assert found.labels == {"x": "y"}
    assert found.size == 2
    assert catalog.snapshots.exists(found.chain_id)


def test_progress_is_dockers(registry: FakeRegistry, puller: Puller) -> None:
    image = simple_image()
    registry.add("app", "latest", image)
    lines: list[dict[str, Any]] = []
    puller.pull(f"{registry.host}/app", progress=lines.append)
    layer = oci.digest(image.blobs[0])[7:19]
    said = status_lines(lines)
    wanted = [
        "latest: Pulling from app",
        f"{layer}: Pulling fs layer",
        f"{layer}: Downloading",
        f"{layer}: Verifying Checksum",
        f"{layer}: Download complete",
        f"{layer}: Pull complete",
        f"Digest: {oci.digest(image.manifest_raw)}",
        f"Status: Downloaded newer image for {registry.host}/app:latest",
    ]
    assert list(dict.fromkeys(said)) == wanted
    downloading = next(line for line in lines if line["status"] == "Downloading")
    assert downloading["progressDetail"]["total"] == len(image.blobs[0])


def test_a_second_pull_moves_no_bytes(registry: FakeRegistry, puller: Puller) -> None:
    registry.add("app", "latest", simple_image())
    puller.pull(f"{registry.host}/app")
    before = len(registry.requests)
    lines: list[dict[str, Any]] = []
    puller.pull(f"{registry.host}/app", progress=lines.append)
    assert [r.method for r in registry.requests[before:]] == ["HEAD"]
    assert f"Status: Image is up to date for {registry.host}/app:latest" in status_lines(lines)


@pytest.mark.parametrize("part", ["manifest", "configuration", "layer"])
def test_what_was_put_aside_as_damaged_is_fetched_again(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, part: str
) -> None:
    image = simple_image()
    registry.add("app", "latest", image)
    puller.pull(f"{registry.host}/app")
    digests = {
        "manifest": oci.digest(image.manifest_raw),
        "configuration": image.id,
        "layer": oci.digest(image.blobs[0]),
    }
    catalog.blobs.quarantine(digests[part])
    puller.pull(f"{registry.host}/app")
    assert all(catalog.blobs.has(digest) for digest in digests.values())


def test_a_shared_base_is_fetched_once(registry: FakeRegistry, puller: Puller) -> None:
    base = tar_bytes({"base": b"base"})
    one = TestImage(layers=[base, tar_bytes({"one": b"1"})])
    two = TestImage(layers=[base, tar_bytes({"two": b"2"})])
    registry.add("one", "latest", one)
    registry.add("two", "latest", two)
    puller.pull(f"{registry.host}/one")
    lines: list[dict[str, Any]] = []
    puller.pull(f"{registry.host}/two", progress=lines.append)
    assert registry.count("GET", oci.digest(one.blobs[0])) == 1
    assert f"{oci.digest(one.blobs[0])[7:19]}: Already exists" in status_lines(lines)


def test_an_index_gives_the_platform_asked_for(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    amd = simple_image("amd64")
    arm = simple_image("arm64", platform=("linux", "arm64"))
    registry.add("app", "amd", amd)
    registry.add("app", "arm", arm)
    index = oci.index_of(amd, arm)
    registry.add_manifest("app", "latest", oci.INDEX, index)
    name = f"{registry.host}/app"
    (pulled,) = puller.pull(name, platform="linux/arm64")
    assert pulled.id == arm.id
    assert catalog.resolve(name).repo_digests == (f"{name}@{oci.digest(index)}",)
    with pytest.raises(NotFound, match="no matching manifest for linux/s390x in the manifest list"):
        puller.pull(name, platform="linux/s390x")


def test_by_digest_and_all_tags(registry: FakeRegistry, puller: Puller, catalog: Catalog) -> None:
    images = {tag: simple_image(tag) for tag in ("a", "b", "c", "d", "e")}
    for tag, image in images.items():
        registry.add("app", tag, image)
    name = f"{registry.host}/app"
    digest = oci.digest(images["c"].manifest_raw)
    puller.pull(f"{name}@{digest}")
    assert catalog.resolve(f"{name}@{digest}").repo_tags == ()
    pulled = puller.pull(name, all_tags=True)
    assert [image.id for image in pulled] == [images[tag].id for tag in "abcde"]


def test_a_tag_that_moved_leaves_the_old_image_dangling(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    old, new = simple_image("old"), simple_image("new")
    registry.add("app", "latest", old)
    puller.pull(f"{registry.host}/app")
    registry.add("app", "latest", new)
    puller.pull(f"{registry.host}/app")
    assert catalog.resolve(f"{registry.host}/app").id == new.id
    assert catalog.get(old.id).repo_tags == ()


# --- many at once ------------------------------------------------------------------------------------------


def test_many_waiters_share_one_download(registry: FakeRegistry, puller: Puller) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    registry.faults.append(slow("/blobs/" + oci.digest(BIG), len(BIG) // 20))
    failures: list[BaseException] = []
    ids: list[str] = []

    def pull() -> None:
        try:
            ids.extend(one.id for one in puller.pull(f"{registry.host}/app"))
        except SampanError as error:
            failures.append(error)

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ids == [image.id] * 6
    assert registry.count("GET", "/blobs/") == 2  # the layer and the configuration


def test_a_waiter_that_leaves_does_not_stop_the_others(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    registry.faults.append(slow("/blobs/" + oci.digest(BIG), len(BIG) // 30))
    leaving, begun = Cancel(), [threading.Event() for _ in range(3)]
    outcome: list[object] = []

    def pull(cancel: Cancel | None, begun: threading.Event) -> None:
        def progress(line: dict[str, Any]) -> None:
            if line["status"] == "Downloading":
                begun.set()

        try:
            outcome.append(
                puller.pull(f"{registry.host}/app", progress=progress, cancel=cancel)[0].id
            )
        except SampanError as error:
            outcome.append(type(error))

    cancels = (leaving, None, None)
    threads = [
        threading.Thread(target=pull, args=pair) for pair in zip(cancels, begun, strict=True)
    ]
    for thread in threads:
        thread.start()
    for event in begun:
        event.wait(10)
    leaving.set()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcome)) == sorted(map(str, [Cancelled, image.id, image.id]))
    assert registry.count("GET", oci.digest(BIG)) == 1


def test_a_cancelled_pull_ends_at_once_and_leaves_nothing_named(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, tmp_path: Path
) -> None:
    registry.add("app", "latest", TestImage(layers=[BIG], compress=False))
    registry.faults.append(stalled("/blobs/" + oci.digest(BIG), 1000))
    cancel = Cancel()

    def progress(line: dict[str, Any]) -> None:
        if line["status"] == "Downloading":
            cancel.set()

    with pytest.raises(Cancelled):
        puller.pull(f"{registry.host}/app", progress=progress, cancel=cancel)
    assert catalog.images() == []
    registry.faults.clear()
    puller.pull(f"{registry.host}/app")
    assert len(catalog.images()) == 1


# --- faults that pass -------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_broke(
    registry: FakeRegistry, puller: Puller
) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    part = "/blobs/" + oci.digest(BIG)
    registry.faults.append(only_times(3, truncated(part, 500_000)))
    assert puller.pull(f"{registry.host}/app")[0].id == image.id
    ranges = [r.headers.get("range") for r in registry.requests if part in r.path]
    assert ranges == [None, "bytes=500000-", "bytes=1000000-", "bytes=1500000-"]


def test_a_stalled_connection_is_taken_up_again(registry: FakeRegistry, impatient: Puller) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    registry.faults.append(only_times(1, stalled("/blobs/" + oci.digest(BIG), 1_000_000)))
    assert impatient.pull(f"{registry.host}/app")[0].id == image.id


def test_a_server_that_ignores_range_is_read_again(registry: FakeRegistry, puller: Puller) -> None:
    image = TestImage(layers=[BIG], compress=True)
    blob = image.blobs[0]
    registry.add("app", "latest", image)
    part = "/blobs/" + oci.digest(blob)
    registry.faults.append(only_times(1, truncated(part, 2000)))
    registry.faults.append(
        matching(part, lambda r, a: Answer(200, {}, blob) if "range" in r.headers else a)
    )
    assert puller.pull(f"{registry.host}/app")[0].id == image.id


def test_the_next_pull_resumes_what_a_failed_one_left(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    part = "/blobs/" + oci.digest(BIG)
    cancel = Cancel()
    registry.faults.append(stalled(part, 1_500_000))
    partial = Path(catalog.blobs.root, "ingest", oci.digest(BIG).replace(":", "-") + ".part")

    def cancel_when_it_stalls() -> None:
        while not (partial.exists() and partial.stat().st_size >= 1_500_000):
            time.sleep(0.01)
        cancel.set()

    threading.Thread(target=cancel_when_it_stalls, daemon=True).start()
    with pytest.raises(Cancelled):
        puller.pull(f"{registry.host}/app", cancel=cancel)
    registry.faults.clear()
    puller.pull(f"{registry.host}/app")
    start = registry.requests[-1].headers["range"].removeprefix("bytes=").rstrip("-")
    assert int(start) >= 1_500_000


def test_a_damaged_partial_file_is_fetched_again(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    image = TestImage(layers=[BIG], compress=False)
    registry.add("app", "latest", image)
    with catalog.blobs.resume(oci.digest(BIG)) as ingest:
        ingest.write(b"not what it should be" * 1000)
    assert puller.pull(f"{registry.host}/app")[0].id == image.id


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_server_errors_are_tried_again(registry: FakeRegistry, puller: Puller, status: int) -> None:
    image = simple_image()
    registry.add("app", "latest", image)
    registry.faults.append(only_times(2, with_status("/blobs/", status)))
    registry.faults.append(only_times(2, with_status("/manifests/", status)))
    assert puller.pull(f"{registry.host}/app")[0].id == image.id


def test_retry_after_is_waited_for(registry: FakeRegistry, puller: Puller) -> None:
    image = simple_image()
    registry.add("app", "latest", image)
    registry.faults.append(only_times(2, with_status("/blobs/", 429, Retry_After="0")))
    assert puller.pull(f"{registry.host}/app")[0].id == image.id


def test_a_rate_limit_without_a_time_is_told_at_once(
    registry: FakeRegistry, puller: Puller
) -> None:
    registry.add("app", "latest", simple_image())
    body = json.dumps(
        {
            "errors": [
                {"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}
            ]
        }
    ).encode()
    registry.faults.append(matching("/manifests/", lambda _, __: Answer(429, {}, body)))
    registry.faults.append(with_status("/manifests/", 429, method="HEAD"))
    with pytest.raises(SampanError, match="toomanyrequests"):
        puller.pull(f"{registry.host}/app")
    assert len(registry.requests) == 1


# --- faults that do not pass: refused, and nothing left -----------------------------------------------------


def wrong_digest(registry: FakeRegistry, image: TestImage) -> None:
    blob = image.blobs[0]
    registry.faults.append(replaced("/blobs/" + oci.digest(blob), bytes(reversed(blob))))


def too_long(registry: FakeRegistry, image: TestImage) -> None:
    blob = image.blobs[0]
    registry.faults.append(
        matching("/blobs/" + oci.digest(blob), lambda _, a: Answer(200, {}, a.body + b"x" * 100))
    )


def other_layer(registry: FakeRegistry, image: TestImage) -> None:
    """The blob is what its digest says, and not what the configuration says."""
    other = simple_image("something else")
    layers = [
        {
            "mediaType": oci.LAYER_GZIP,
            "digest": oci.digest(other.blobs[0]),
            "size": len(other.blobs[0]),
        }
    ]
    image.changed = {"layers": layers}
    registry.add("app", "latest", image)
    registry.add_blobs("app", other.blobs)


def changed(name: str, value: object) -> Any:
    def fault(registry: FakeRegistry, image: TestImage) -> None:
        image.changed = {name: value}
        registry.add("app", "latest", image)

    fault.__name__ = f"{name}={str(value)[:20]}"
    return fault


def layer_with(**members: object) -> Any:
    def fault(registry: FakeRegistry, image: TestImage) -> None:
        image.changed = {"layers": [image.manifest["layers"][0] | members]}
        registry.add("app", "latest", image)

    fault.__name__ = "layer with " + "-".join(members)
    return fault


def confused(registry: FakeRegistry, image: TestImage) -> None:
    """CVE-2021-41190: an index and a manifest at once."""
    image.changed = {"manifests": [image.descriptor()]}
    registry.add("app", "latest", image)


def other_type_in_header(registry: FakeRegistry, image: TestImage) -> None:
    registry.add_manifest("app", "latest", oci.INDEX, image.manifest_raw)


def deep_json(registry: FakeRegistry, image: TestImage) -> None:
    registry.add_manifest("app", "latest", oci.MANIFEST, b"[" * 200_000)


def huge_manifest(registry: FakeRegistry, image: TestImage) -> None:
    raw = image.manifest_raw[:-1] + b' , "x": "' + b"a" * (5 << 20) + b'"}'
    registry.add_manifest("app", "latest", oci.MANIFEST, raw)


def wrong_manifest_digest(registry: FakeRegistry, image: TestImage) -> None:
    registry.faults.append(replaced("/manifests/", image.manifest_raw + b" "))


def truncated_gzip(registry: FakeRegistry, image: TestImage) -> None:
    blob = image.blobs[0][:-20]
    image.changed = {
        "layers": [{"mediaType": oci.LAYER_GZIP, "digest": oci.digest(blob), "size": len(blob)}]
    }
    registry.add("app", "latest", image)
    registry.add_blobs("app", [blob])


def config_lies(registry: FakeRegistry, image: TestImage) -> None:
    registry.faults.append(replaced("/blobs/" + image.id, image.config_raw[:-1] + b" "))


def gone_blob(registry: FakeRegistry, image: TestImage) -> None:
    del registry.blobs[oci.digest(image.blobs[0])]


DESCRIPTOR = {"mediaType": oci.LAYER_GZIP, "digest": "sha256:" + "0" * 64, "size": 10}

REFUSED = [
    wrong_digest,
    too_long,
    other_layer,
    confused,
    other_type_in_header,
    deep_json,
    huge_manifest,
    wrong_manifest_digest,
    truncated_gzip,
    config_lies,
    gone_blob,
    layer_with(size=-1),
    layer_with(size=1 << 63),
    layer_with(size=1),
    layer_with(digest="sha256:../../../../etc/passwd"),
    layer_with(digest="sha256:abcd"),
    layer_with(digest="md5:" + "0" * 32),
    layer_with(mediaType="application/x-unheard-of"),
    layer_with(mediaType=""),
    changed("layers", [DESCRIPTOR] * 200),
    changed("layers", [DESCRIPTOR] * 20_000),
    changed("layers", []),
    changed("layers", None),
    changed("layers", {"a": 1}),
    changed("schemaVersion", 3),
    changed("mediaType", "application/x-unheard-of"),
    changed("config", None),
    changed("config", {"mediaType": oci.CONFIG, "digest": "sha256:" + "0" * 64, "size": 1 << 40}),
]


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_bad_content_is_refused_and_leaves_nothing(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, tmp_path: Path, fault: Any
) -> None:
    image = simple_image()
    registry.add("app", "latest", image)
    fault(registry, image)
    with pytest.raises(SampanError) as caught:
        puller.pull(f"{registry.host}/app")
    assert isinstance(caught.value, InvalidArgument | NotFound | Unsupported), caught.value
    assert_store_is_clean(catalog, tmp_path)
    good = simple_image("good")
    registry.faults.clear()
    registry.add("app", "good", good)
    assert puller.pull(f"{registry.host}/app:good")[0].id == good.id


def test_the_message_names_the_layer_and_the_entry(registry: FakeRegistry, puller: Puller) -> None:
    bad = TestImage(layers=[tar_bytes({"ok": b"", "../escape": b"x"})])
    registry.add("app", "latest", bad)
    with pytest.raises(InvalidArgument) as caught:
        puller.pull(f"{registry.host}/app")
    assert oci.digest(bad.blobs[0])[7:19] in str(caught.value)
    assert "escape" in str(caught.value)


def test_a_layer_larger_than_the_limit_is_refused(
    registry: FakeRegistry, puller: Puller, catalog: Catalog, tmp_path: Path
) -> None:
    """A small blob that becomes large: nothing of it stays, and the memory does not grow with it."""
    bomb = TestImage(layers=[tar_bytes({"zeros": bytes(20 << 20)})])
    assert len(bomb.blobs[0]) < 200_000
    registry.add("bomb", "latest", bomb)
    catalog.limits = Limits(bytes=1 << 20)
    with pytest.raises(InvalidArgument):
        puller.pull(f"{registry.host}/bomb")
    assert_store_is_clean(catalog, tmp_path)


def test_schema_1_is_refused_by_name(registry: FakeRegistry, puller: Puller) -> None:
    body = json.dumps({"schemaVersion": 1, "name": "app", "tag": "latest", "fsLayers": []}).encode()
    for media_type in (
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    ):
        registry.add_manifest("app", "latest", media_type, body)
        with pytest.raises(Unsupported, match="schema 1"):
            puller.pull(f"{registry.host}/app")


def test_an_artifact_is_not_an_image(registry: FakeRegistry, puller: Puller) -> None:
    image = simple_image()
    image.changed = {
        "config": image.manifest["config"]
        | {"mediaType": "application/vnd.cncf.helm.config.v1+json"}
    }
    registry.add("chart", "latest", image)
    with pytest.raises(Unsupported, match="not a container image"):
        puller.pull(f"{registry.host}/chart")


def test_another_operating_system_is_refused(registry: FakeRegistry, puller: Puller) -> None:
    registry.add("app", "latest", simple_image(platform=("windows", "amd64")))
    with pytest.raises(Unsupported, match='"windows" cannot be used'):
        puller.pull(f"{registry.host}/app")


def test_a_redirect_loop_ends(registry: FakeRegistry, puller: Puller) -> None:
    registry.add("app", "latest", simple_image())
    registry.faults.append(
        matching("/blobs/", lambda r, _: Answer(307, {"Location": f"{r.path}?again=1"}))
    )
    with pytest.raises(InvalidArgument, match="redirects"):
        puller.pull(f"{registry.host}/app")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirect_elsewhere_than_http_is_refused(
    registry: FakeRegistry, puller: Puller, target: str
) -> None:
    registry.add("app", "latest", simple_image())
    registry.faults.append(matching("/blobs/", lambda _, __: Answer(307, {"Location": target})))
    with pytest.raises(InvalidArgument, match="refused a"):
        puller.pull(f"{registry.host}/app")


def test_a_hang_ends(registry: FakeRegistry, impatient: Puller) -> None:
    registry.add("app", "latest", simple_image())
    registry.faults.append(stalled("/manifests/", 5))
    with pytest.raises(SampanError):
        impatient.pull(f"{registry.host}/app")


# --- names and places ---------------------------------------------------------------------------------------


def test_what_is_not_there_is_named_as_docker_names_it(
    registry: FakeRegistry, puller: Puller
) -> None:
    with pytest.raises(NotFound) as caught:
        puller.pull(f"{registry.host}/nope:x")
    assert str(caught.value) == (
        f"manifest for {registry.host}/nope:x not found: manifest unknown: manifest unknown"
    )


def test_scratch_is_a_reserved_name(puller: Puller) -> None:
    with pytest.raises(PermissionDenied, match="'scratch' is a reserved name"):
        puller.pull("scratch")


def test_an_unreachable_registry_names_what_works_offline(puller: Puller) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        puller.pull("127.0.0.1:1/app")
    assert (
        caught.value.message
        == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    )
    assert "sampan run --rm hello" in caught.value.hint


def test_mirrors_come_first_and_may_fail(
    registry: FakeRegistry, catalog: Catalog, registries: RegistryConfig
) -> None:
    import msgspec

    with FakeRegistry() as broken:
        image = simple_image()
        registry.add("library/busybox", "latest", image)
        config = msgspec.structs.replace(registries, mirrors=(broken.url, registry.url))
        broken.faults.append(with_status("/", 500, method="HEAD"))
        broken.faults.append(with_status("/", 500))
        assert Puller(catalog, config).pull("busybox")[0].id == image.id
        assert broken.requests
    assert catalog.resolve("busybox").repo_tags == ("busybox:latest",)


def test_an_image_of_one_platform_is_kept_and_named_where_another_was_asked_for(
    registry: FakeRegistry, puller: Puller, catalog: Catalog
) -> None:
    """As Docker: what came stays, since a later `run` without the platform may want it."""
    registry.add("app", "latest", simple_image(platform=("linux", "amd64")))
    name = f"{registry.host}/app"
    with pytest.raises(NotFound, match="wanted linux/s390x, actual: linux/amd64"):
        puller.pull(name, platform="linux/s390x")
    assert catalog.resolve(name).platform.architecture == "amd64"
