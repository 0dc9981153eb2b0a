"""Names, ids, tags and removal: what a person says and what it means."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.images import removal
from sampan.images.archive import load
from sampan.images.assemble import Parts, assemble, extend, make, parts_of
from sampan.images.catalog import Catalog
from sampan.images.history import history
from sampan.images.removal import DeleteItem, Use, collect, delete, prune
from sampan.images.unpack import ensure
from sampan.spec.image import History, RunConfig
from sampan.spec.reference import parse_normalized
from tests.support.oci import TestImage, digest, docker_archive, oci_files, simple_image, tar_bytes
from tests.support.stores import open_catalog

BASE = tar_bytes({"base": b"base"})


def loaded(catalog: Catalog, image: TestImage, *names: str) -> str:
    load(catalog, io.BytesIO(docker_archive((image, list(names)))))
    return image.id


def used_by(container: str, *, running: bool = False) -> removal.Users:
    return lambda _: [Use(container_id=container, running=running)]


# --- finding ---------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_everything_that_names_it(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image(), "app:latest")
    bare = image_id.removeprefix("sha256:")
    for text in ("app", "app:latest", "docker.io/library/app", "index.docker.io/library/app:latest",
                 image_id, bare, bare[:12], bare[:4], image_id[:20]):  # fmt: skip
        assert catalog.resolve(text).id == image_id, text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nope", "nope:latest"),
        ("nope:v1", "nope:v1"),
        ("docker.io/library/nope", "nope:latest"),
        ("quay.io/me/nope", "quay.io/me/nope:latest"),
        ("sha256:" + "0" * 64, "sha256:" + "0" * 64),
        ("0" * 64, "sha256:" + "0" * 64),
        ("nope@sha256:" + "0" * 64, "nope@sha256:" + "0" * 64),
        ("abc", "abc:latest"),
        ("sha256:ab", "sha256:ab"),
    ],
)
def test_what_is_not_there_is_named(catalog: Catalog, text: str, shown: str) -> None:
    with pytest.raises(NotFound) as caught:
        catalog.resolve(text)
    assert str(caught.value) == f"No such image: {shown}"
    assert catalog.find(text) is None


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a b", "../x", "a:b:c:d", "-x", "a" * 5000, "é", "a@b", "a\n"]
)
def test_nonsense_is_refused(catalog: Catalog, text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        catalog.resolve(text)


def test_an_ambiguous_prefix_is_told(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes: dict[str, list[str]] = {}
    number = 0
    while not any(len(ids) > 1 for ids in prefixes.values()):
        image_id = simple_image(str(number)).id
        prefixes.setdefault(image_id[7:11], []).append(str(number))
        number += 1
    prefix, texts = next((p, t) for p, t in prefixes.items() if len(t) > 1)
    for text in texts:
        loaded(catalog, simple_image(text))
    with pytest.raises(NotFound, match="ambiguous reference"):
        catalog.resolve(prefix)


def test_a_name_wins_over_an_id(catalog: Catalog) -> None:
    first = loaded(catalog, simple_image("1"))
    name = first.removeprefix("sha256:")[:12]
    second = loaded(catalog, simple_image("2"), f"{name}:latest")
    assert catalog.resolve(name).id == second


def test_another_platform_is_told_apart(catalog: Catalog) -> None:
    loaded(catalog, simple_image(platform=("linux", "arm64")), "app:latest")
    assert catalog.resolve("app", "linux/arm64")
    with pytest.raises(NotFound) as caught:
        catalog.resolve("app", "linux/amd64")
    assert "does not match the specified platform: wanted linux/amd64, actual: " in str(
        caught.value
    )


# --- tags -------------------------------------------------------------------------------------------------------


def test_a_tag_is_given_and_moves(catalog: Catalog) -> None:
    one, two = (
        loaded(catalog, simple_image("1"), "one:latest"),
        loaded(catalog, simple_image("2"), "two:latest"),
    )
    catalog.tag("one", "me/app")
    assert catalog.resolve("me/app").id == one
    catalog.tag(two, "me/app:latest")
    assert catalog.resolve("me/app").id == two
    assert catalog.resolve("one").repo_tags == ("one:latest",)
    assert catalog.resolve("me/app").last_tagged


def test_tagging_a_dangling_image_names_it(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image())
    catalog.tag(image_id, "app")
    assert [image.repo_tags for image in catalog.images()] == [("app:latest",)]


def test_odd_targets_are_refused(catalog: Catalog) -> None:
    loaded(catalog, simple_image(), "app:latest")
    for target in ("sha256:abc", "a@sha256:" + "0" * 64, "A"):
        with pytest.raises(InvalidArgument):
            catalog.tag("app", target)


def test_names_survive_a_restart(catalog: Catalog, tmp_path: Path) -> None:
    image_id = loaded(catalog, simple_image(), "app:v1", "quay.io/me/app:v2")
    again = open_catalog(tmp_path)
    assert again.resolve("app:v1").id == image_id
    assert again.resolve("quay.io/me/app:v2").repo_tags == ("app:v1", "quay.io/me/app:v2")


def test_the_store_is_an_oci_layout(catalog: Catalog, tmp_path: Path) -> None:
    image = simple_image(compress=False)
    loaded(catalog, image, "app:v1")
    root = tmp_path / "images"
    assert json.loads((root / "oci-layout").read_bytes())["imageLayoutVersion"] == "1.0.0"
    (line,) = json.loads((root / "index.json").read_bytes())["manifests"]
    assert line["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/library/app:v1"
    manifest = (root / "blobs/sha256" / line["digest"][7:]).read_bytes()
    assert len(manifest) == line["size"]
    assert json.loads(manifest)["config"]["digest"] == image.id


def test_what_another_tool_put_there_is_found(catalog: Catalog, tmp_path: Path) -> None:
    root, image = tmp_path / "images", simple_image()
    for name, data in oci_files(image).items():
        if name.startswith("blobs/"):
            (root / name).write_bytes(data)
    line = image.descriptor() | {"annotations": {"org.opencontainers.image.ref.name": "copied:v1"}}
    artifact = {"mediaType": "application/x-other", "digest": "sha256:" + "1" * 64, "size": 5}
    (root / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [line, artifact]})
    )
    again = open_catalog(tmp_path)
    found = again.resolve("copied:v1")
    assert found.id == image.id
    ensure(again, found)
    assert again.snapshots.exists(found.chain_id)
    again.tag("copied:v1", "mine")
    kept = json.loads((root / "index.json").read_bytes())["manifests"]
    assert artifact in [{k: v for k, v in line.items() if k in artifact} for line in kept]


def test_a_broken_table_is_set_aside(catalog: Catalog, tmp_path: Path) -> None:
    loaded(catalog, simple_image(), "app:v1")
    (tmp_path / "images/index.json").write_bytes(b'{"manifests": [{"di')
    again = open_catalog(tmp_path)
    assert "set aside" in again.table.damage
    assert (tmp_path / "images/index.json.damaged").exists()
    loaded(again, simple_image(), "app:v1")


def test_an_image_whose_content_is_gone_is_named_and_the_others_stay(
    catalog: Catalog, tmp_path: Path
) -> None:
    broken, whole = (
        loaded(catalog, simple_image("1"), "broken:v1"),
        loaded(catalog, simple_image("2"), "whole:v1"),
    )
    catalog.blobs.delete(broken)
    again = open_catalog(tmp_path)
    assert "broken:v1" in again.broken[broken]
    assert again.resolve("whole:v1").id == whole


def damage(catalog: Catalog, digest_: str) -> None:
    path = Path(catalog.blobs.path(digest_))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["manifest", "configuration"])
def test_a_damaged_image_is_put_aside_and_comes_again(
    catalog: Catalog, tmp_path: Path, part: str
) -> None:
    image = simple_image("1")
    loaded(catalog, image, "broken:v1")
    whole = loaded(catalog, simple_image("2"), "whole:v1")
    target = catalog.resolve("broken:v1").target.digest if part == "manifest" else image.id
    damage(catalog, target)
    again = open_catalog(tmp_path)
    assert "broken:v1" in again.broken[image.id]
    assert [found.id for found in again.images()] == [whole]
    assert list((tmp_path / "images/quarantine").iterdir())
    loaded(again, image, "broken:v1")
    delete(again, "whole:v1")
    assert again.resolve("broken:v1").document.raw == image.config_raw


def test_damage_while_running_stays_with_its_image(catalog: Catalog) -> None:
    loaded(catalog, simple_image("1"), "broken:v1")
    loaded(catalog, simple_image("2"), "whole:v1")
    target = catalog.resolve("broken:v1").target.digest
    catalog.blobs.quarantine(target)
    catalog.forget_blob(target)
    assert len(catalog.images()) == 2
    delete(catalog, "whole:v1")
    delete(catalog, "broken:v1")


# --- removal ------------------------------------------------------------------------------------------------------


def test_the_last_name_takes_the_image_and_its_content(catalog: Catalog) -> None:
    image = TestImage(layers=[BASE])
    loaded(catalog, image, "app:v1", "app:v2")
    assert delete(catalog, "app:v1") == [DeleteItem(untagged="app:v1", image_id=image.id)]
    assert delete(catalog, "app:v2") == [
        DeleteItem(untagged="app:v2", image_id=image.id),
        DeleteItem(deleted=image.id, image_id=image.id),
        DeleteItem(deleted=digest(BASE)),
    ]
    assert catalog.images() == []
    assert list(catalog.blobs.walk()) == []
    assert not catalog.snapshots.exists(digest(BASE))


def test_shared_layers_stay(catalog: Catalog) -> None:
    one = TestImage(layers=[BASE, tar_bytes({"1": b""})])
    two = TestImage(layers=[BASE, tar_bytes({"2": b""})])
    loaded(catalog, one, "one:latest")
    loaded(catalog, two, "two:latest")
    items = delete(catalog, "one")
    assert len([item for item in items if item.deleted and not item.image_id]) == 1
    assert catalog.snapshots.exists(digest(BASE))
    assert catalog.blobs.has(digest(BASE))
    ensure(catalog, catalog.resolve("two"))


def test_an_id_takes_all_names_of_one_repository_only(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image(), "app:v1")
    catalog.remember_digest(catalog.get(image_id), parse_normalized("app"), "sha256:" + "a" * 64)
    items = delete(catalog, image_id[7:19])
    assert [item.untagged for item in items if item.untagged] == [
        "app:v1",
        "app@sha256:" + "a" * 64,
    ]
    image_id = loaded(catalog, simple_image(), "one:v1", "two:v1")
    with pytest.raises(Conflict) as caught:
        delete(catalog, image_id)
    assert str(caught.value) == (
        f"conflict: unable to delete {image_id[7:19]} (must be forced) - "
        "image is referenced in multiple repositories"
    )
    delete(catalog, image_id, force=True)
    assert catalog.images() == []


def test_the_last_tag_of_a_repository_takes_its_digests(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image(), "app:v1", "other:v1")
    catalog.remember_digest(catalog.get(image_id), parse_normalized("app"), "sha256:" + "a" * 64)
    items = delete(catalog, "app:v1")
    assert [item.untagged for item in items] == ["app:v1", "app@sha256:" + "a" * 64]
    assert catalog.get(image_id).repo_tags == ("other:v1",)


def test_containers_stand_in_the_way(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image(), "app:v1")
    short = image_id[7:19]
    with pytest.raises(Conflict) as caught:
        delete(catalog, "app:v1", users=used_by("c" * 64))
    assert str(caught.value) == (
        f'conflict: unable to remove repository reference "app:v1" (must force) - '
        f"container {'c' * 12} is using its referenced image {short}"
    )
    with pytest.raises(Conflict) as caught:
        delete(catalog, image_id, users=used_by("c" * 64))
    assert str(caught.value) == (
        f"conflict: unable to delete {short} (must be forced) - "
        f"image is being used by stopped container {'c' * 12}"
    )
    for force in (False, True):
        with pytest.raises(Conflict) as caught:
            delete(catalog, image_id, force=force, users=used_by("c" * 64, running=True))
        assert str(caught.value) == (
            f"conflict: unable to delete {short} (cannot be forced) - "
            f"image is being used by running container {'c' * 12}"
        )
    assert catalog.resolve("app:v1")
    delete(catalog, image_id, force=True, users=used_by("c" * 64))
    assert catalog.images() == []


def test_forcing_the_name_of_a_running_image_only_untags(catalog: Catalog) -> None:
    image_id = loaded(catalog, simple_image(), "app:v1")
    items = delete(catalog, "app:v1", force=True, users=used_by("c" * 64, running=True))
    assert items == [DeleteItem(untagged="app:v1", image_id=image_id)]
    assert catalog.get(image_id).is_dangling


def test_what_is_not_there_cannot_be_removed(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="No such image: nope:latest"):
        delete(catalog, "nope")


# --- ancestors ----------------------------------------------------------------------------------------------------


def child_of(catalog: Catalog, parent: str, *names: str) -> str:
    image = catalog.get(parent)
    parts = extend(
        parts_of(image),
        config=RunConfig(env=("STEP=1",)),
        layers=(),
        history=History(created="2024-01-01T00:00:00Z", created_by="ENV STEP=1"),
        created="2024-01-01T00:00:00Z",
    )
    references = tuple(parse_normalized(name) for name in names)
    return assemble(catalog, parts, references=references, parent=parent).id


def test_children_keep_their_parent(catalog: Catalog) -> None:
    parent = loaded(catalog, simple_image(), "base:v1")
    child = child_of(catalog, parent, "child:v1")
    assert delete(catalog, "base:v1") == [DeleteItem(untagged="base:v1", image_id=parent)]
    with pytest.raises(Conflict, match=r"\(cannot be forced\) - image has dependent child images"):
        delete(catalog, parent, force=True)
    items = delete(catalog, "child:v1")
    assert [item.deleted for item in items if item.image_id and item.deleted] == [child, parent]
    assert catalog.images() == []


def test_noprune_keeps_the_parents(catalog: Catalog) -> None:
    parent = loaded(catalog, simple_image())
    child_of(catalog, parent, "child:v1")
    delete(catalog, "child:v1", noprune=True)
    assert [image.id for image in catalog.images()] == [parent]


def test_history_knows_the_ancestors(catalog: Catalog) -> None:
    image = TestImage(layers=[BASE, tar_bytes({"x": b"12345"})])
    parent = loaded(catalog, image, "base:v1")
    child = child_of(catalog, parent, "child:v1")
    steps = history(catalog, "child:v1")
    assert [(step.id, step.created_by, step.size) for step in steps] == [
        (child, "ENV STEP=1", 0),
        (parent, "step 1", 5),
        ("<missing>", "step 0", 4),
    ]
    assert steps[0].tags == ("child:v1",)
    assert steps[1].tags == ("base:v1",)
    assert steps[0].created == 1704067200


# --- pruning and collecting ---------------------------------------------------------------------------------------


def test_prune_takes_what_nobody_uses(catalog: Catalog) -> None:
    named, dangling, busy = (
        loaded(catalog, simple_image("1"), "named:v1"),
        loaded(catalog, simple_image("2")),
        loaded(catalog, simple_image("3")),
    )

    def users(image_id: str) -> list[Use]:
        return [Use(container_id="c" * 64, running=False)] if image_id == busy else []

    items, freed = prune(catalog, wanted=lambda _: True, users=users)
    assert [item.deleted for item in items if item.image_id] == [dangling]
    assert freed > 0
    items, _ = prune(catalog, wanted=lambda i: i.id != named, dangling_only=False, users=users)
    assert items == []
    prune(catalog, wanted=lambda _: True, dangling_only=False, users=users)
    assert [image.id for image in catalog.images()] == [busy]


def test_collecting_spares_what_is_held(catalog: Catalog) -> None:
    image = TestImage(layers=[BASE])
    loaded(catalog, image, "app:v1")
    stray = catalog.blobs.put(b"stray")
    held = catalog.blobs.put(b"held")
    with catalog.holding() as hold:
        hold.blobs(held.digest)
        collected = collect(catalog)
        assert collected.blobs == (stray.digest,)
    assert collect(catalog).blobs == (held.digest,)
    catalog.keepers.append(lambda: [held.digest])
    catalog.blobs.put(b"held")
    assert collect(catalog).blobs == ()
    assert catalog.resolve("app:v1").size == 4


def test_a_layer_that_somebody_is_adding_is_not_removed(catalog: Catalog) -> None:
    image = TestImage(layers=[BASE])
    loaded(catalog, image, "app:v1")
    with catalog.holding() as hold:
        hold.layers(digest(BASE))
        delete(catalog, "app:v1")
        assert catalog.snapshots.exists(digest(BASE))
    assert collect(catalog).layers == (digest(BASE),)


def test_collecting_removes_layers_without_an_image(catalog: Catalog) -> None:
    image = TestImage(layers=[BASE, tar_bytes({"x": b""})])
    loaded(catalog, image, "app:v1")
    chains = catalog.resolve("app:v1").chain_ids
    catalog.table.replace(())
    assert set(collect(catalog).layers) == set(chains)


def test_many_images_are_listed_quickly(catalog: Catalog) -> None:
    import time

    layer = loaded(catalog, simple_image(), "base:v1")
    base = parts_of(catalog.get(layer))
    entries = []
    for number in range(1000):
        manifest, document = make(
            Parts(
                config=RunConfig(labels={"n": str(number)}),
                layers=base.layers,
                history=base.history,
                created=f"2024-01-01T00:00:00.{number:09}Z",
            )
        )
        catalog.blobs.put(document.raw)
        catalog.blobs.put(manifest.raw)
        entries.append((manifest.descriptor(), document.id, number))
    from sampan.images.names import Entry

    catalog.table.replace(
        Entry(name=f"docker.io/library/many:{n}", target=target, image_id=image_id)
        for target, image_id, n in entries
    )
    rows = [(i.id, i.repo_tags, i.size, i.labels, i.created_ns) for i in catalog.images()]
    assert len(rows) == 1000
    begin = time.process_time()
    rows = [(i.id, i.repo_tags, i.size, i.labels, i.created_ns) for i in catalog.images()]
    assert time.process_time() - begin < 0.05
