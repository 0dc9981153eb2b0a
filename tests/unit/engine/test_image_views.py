"""Rows of `images`: which image is shown under which filter, as Docker 26.1 answers."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sampan.engine import image_views
from sampan.errors import InvalidArgument
from sampan.images import archive
from sampan.images.catalog import Catalog
from sampan.images.removal import delete
from sampan.spec.reference import parse_normalized
from tests.support import oci
from tests.support.stores import open_catalog

DIGEST = "sha256:" + "5" * 64


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """`app/web` by tag, `app/db` by digest only, and one image without any name."""
    catalog = open_catalog(tmp_path)
    for name in ("app/web:1", "app/db:1", "lost:1"):
        image = oci.simple_image(name)
        archive.load(catalog, io.BytesIO(oci.docker_archive((image, [name]))))
    catalog.remember_digest(catalog.resolve("app/db:1"), parse_normalized("app/db"), DIGEST)
    by_digest = catalog.resolve(f"app/db@{DIGEST}")
    catalog.table.replace(e for e in catalog.table.entries if e.name != "docker.io/app/db:1")
    lost = catalog.resolve("lost:1")
    catalog.table.replace(e for e in catalog.table.entries if e.image_id != lost.id)
    catalog.add(lost.manifest, lost.document)
    assert by_digest.repo_digests == (f"app/db@{DIGEST}",)
    return catalog


def shown(catalog: Catalog, **filters: str) -> list[str]:
    rows = image_views.rows(
        catalog, {key: [value] for key, value in filters.items()},
        everything=False, shared_size=False, manifests=False, version=(1, 45), uses=None,
    )  # fmt: skip
    return sorted(
        (row.repo_tags or row.repo_digests or ["none"])[0].partition("@")[0] for row in rows
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["app/db", "app/web:1", "none"]),
        ({"dangling": "true"}, ["app/db", "none"]),
        ({"dangling": "false"}, ["app/db", "app/web:1"]),
        ({"reference": "app/db"}, ["app/db"]),
        ({"reference": "app/*"}, ["app/db", "app/web:1"]),
        ({"reference": "app/*:1"}, ["app/web:1"]),
        ({"reference": "app/[^d]*"}, ["app/web:1"]),
        ({"reference": "app"}, []),
    ],
)
def test_filters(catalog: Catalog, filters: dict[str, str], expected: list[str]) -> None:
    assert shown(catalog, **filters) == expected


def test_a_malformed_pattern_is_an_error_even_with_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="syntax error in pattern"):
        shown(open_catalog(tmp_path), reference="[")


def test_a_removed_tag_takes_its_digests_and_is_told_of_once(catalog: Catalog) -> None:
    catalog.remember_digest(catalog.resolve("app/web:1"), parse_normalized("app/web"), DIGEST)
    items = delete(catalog, "app/web:1")
    untagged = [(item.untagged, bool(item.image_id)) for item in items if item.untagged]
    assert untagged == [("app/web:1", True), (f"app/web@{DIGEST}", False)]
