"""Image references: Docker's short forms, the grammar's edges, and what is not a reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.errors import InvalidArgument
from sampan.spec.reference import (
    digest_of,
    is_digest,
    parse_digest,
    parse_normalized,
    parse_tagged,
    quoted,
)

D = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("me/app", "docker.io/me/app:latest", "me/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("quay.io/me/app", "quay.io/me/app:latest", "quay.io/me/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
        ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        (f"app@{D}", f"docker.io/library/app@{D}", f"app@{D}"),
        (f"app:v1@{D}", f"docker.io/library/app:v1@{D}", f"app:v1@{D}"),
        ("a_b/c__d-e--f.g", "docker.io/a_b/c__d-e--f.g:latest", "a_b/c__d-e--f.g:latest"),
        ("a:_x.-1", "docker.io/library/a:_x.-1", "a:_x.-1"),
    ],
)
def test_short_forms_mean_what_docker_means(text: str, full: str, familiar: str) -> None:
    reference = parse_tagged(text)
    assert str(reference) == full
    assert reference.familiar() == familiar
    assert parse_normalized(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":tag", "@" + D, "a:", "a@", "a b", " a", "a ", "a\n", "a\0", "-a", "a-", ".a", "a..b", "a___b",
        "/a", "a/", "a//b", "../a", "a/../b", "a:b:c", "a:" + "t" * 129, "a:.t", "a:-t", "a@sha256:abc", "é", "a:é",
        "http://a/b", "a@b@c", "a/b:c/d", "x" * 300, "a" * 100_000, "٣", "[::1]", "localhost:x/app",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_normalized(text)
    assert str(caught.value).startswith(
        ("invalid reference format", "invalid checksum", "unsupported digest")
    )


def test_capitals_and_ids_are_refused_with_the_reason() -> None:
    with pytest.raises(InvalidArgument, match=r"repository name \(library/App\) must be lowercase"):
        parse_normalized("App")
    with pytest.raises(InvalidArgument, match="cannot specify 64-byte hexadecimal strings"):
        parse_normalized("a" * 64)


@pytest.mark.parametrize(
    "text",
    ["sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:" + "0" * 65, "md5:" + "0" * 32, "sha256", "",
     "sha256:../../../../etc/passwd", "sha256:" + "0" * 63 + "\n", "sha256:" + "٣" * 64],
)  # fmt: skip
def test_only_whole_digests_are_digests(text: str) -> None:
    assert not is_digest(text)
    with pytest.raises(InvalidArgument):
        parse_digest(text)


def test_digests() -> None:
    assert (
        digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert is_digest("sha512:" + "0" * 128)


def test_changing_a_reference() -> None:
    reference = parse_normalized("quay.io/me/app:v1")
    assert str(reference.with_tag("v2")) == "quay.io/me/app:v2"
    assert str(reference.with_digest(D)) == f"quay.io/me/app@{D}"
    assert str(reference.name_only()) == "quay.io/me/app"
    for tag in ("", "a b", "../x", "t" * 129, "é"):
        with pytest.raises(InvalidArgument, match="invalid tag format"):
            reference.with_tag(tag)


def test_a_strangers_text_is_quoted_short_and_plain() -> None:
    assert quoted("a\x1b[31m\n") == '"a?[31m?"'
    assert len(quoted("x" * 1000)) < 200


NAMES = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@given(st.lists(NAMES, min_size=1, max_size=4), TAGS)
def test_printing_and_parsing_agree(parts: list[str], tag: str) -> None:
    reference = parse_normalized(f"example.com:5000/{'/'.join(parts)}:{tag}")
    assert parse_normalized(str(reference)) == reference
    short = parse_tagged(f"me/{'/'.join(parts)}:{tag}")
    assert parse_tagged(short.familiar()) == short


@given(st.text(max_size=200))
def test_any_text_is_a_reference_or_an_invalid_argument(text: str) -> None:
    try:
        reference = parse_normalized(text)
    except InvalidArgument:
        return
    assert parse_normalized(str(reference)) == reference
