"""URLs and git references of ADD and of a remote context; nothing of them becomes an option, a path out, or a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.build.context import Context
from sampan.build.fetch import _take, file_name
from sampan.build.parser import DockerfileError
from sampan.build.sources import GitReference, is_http, parse_git, without_credentials
from sampan.errors import NotFound


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/a.git", GitReference(url="https://h/a.git")),
        ("https://h/a.git/", GitReference(url="https://h/a.git/")),
        ("http://u:p@h:8/a.git", GitReference(url="http://u:p@h:8/a.git")),
        ("git://h/a", GitReference(url="git://h/a")),
        ("ssh://git@h/a#x", GitReference(url="ssh://git@h/a", ref="x")),
        ("git@h:a/b", GitReference(url="git@h:a/b")),
        ("git@h:a/b.git#v1:d", GitReference(url="git@h:a/b.git", ref="v1", subdir="d")),
        ("https://h/a.git#main", GitReference(url="https://h/a.git", ref="main")),
        ("https://h/a.git#main:s/d", GitReference(url="https://h/a.git", ref="main", subdir="s/d")),
        ("https://h/a.git#:/s/", GitReference(url="https://h/a.git", subdir="s")),
        ("https://h/a.git?ref=v1&subdir=/x/", GitReference(url="https://h/a.git", ref="v1", subdir="x")),
        ("https://h/a.git?tag=v1", GitReference(url="https://h/a.git", ref="v1")),
        ("https://h/a.git?branch=b#:d", GitReference(url="https://h/a.git", ref="b", subdir="d")),
        ("https://h/a.git?checksum=ab", GitReference(url="https://h/a.git", checksum="ab")),
        ("https://h/a.git?commit=ab", GitReference(url="https://h/a.git", checksum="ab")),
        ("https://h/a.git?keep-git-dir", GitReference(url="https://h/a.git", keep_git_dir=True)),
        ("https://h/a.git?keep-git-dir=false", GitReference(url="https://h/a.git")),
        ("https://h/a.git?submodules=0", GitReference(url="https://h/a.git", submodules=False)),
    ],
)  # fmt: skip
def test_repositories(text: str, expected: GitReference) -> None:
    assert parse_git(text) == expected
    assert not is_http(text)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a.git", "./a.git", "github.com/a/b.git", "https://h/a.tar", "https://h/a.git.txt",
     "https://h/a?x=b.git", "ftp://h/a.git", "file:///a.git", "ext::sh -c x", "-x"],
)  # fmt: skip
def test_what_is_no_repository(text: str) -> None:
    assert parse_git(text) is None
    assert is_http(text) == text.startswith("https://")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/a.git?foo=1", 'unexpected query "foo"'),
        ("https://h/a.git?ref=a&tag=b", "only one of ref, tag and branch"),
        ("https://h/a.git?ref=a#b", "ref conflicts"),
        ("http://[::1/a.git", "invalid URL"),
        ("https://[x/y", "invalid URL"),
    ],
)
def test_malformed_ones_are_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        parse_git(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/a.git#-x",
        "https://h/a.git#--upload-pack=x",
        "https://h/a.git?ref=-x",
        "-u@h:x",
        "git@-oProxyCommand=x:a",
        "ssh://-oProxyCommand=x/a",
        "ssh://git@-oProxyCommand=x/a",
    ],
)
def test_nothing_can_be_taken_for_an_option(text: str) -> None:
    """CVE-2019-13139, CVE-2017-1000117."""
    try:
        found = parse_git(text)
    except DockerfileError as error:
        assert "invalid git reference" in error.message
    else:
        assert found is None  # a path, then


@pytest.mark.parametrize(
    ("subdir", "expected"),
    [
        ("..", ""),
        ("../..", ""),
        ("a/../..", ""),
        ("../a", "a"),
        ("a/./b//c/", "a/b/c"),
        ("a/..", ""),
    ],
)
def test_a_subdirectory_does_not_lead_out_of_the_repository(subdir: str, expected: str) -> None:
    for text in (f"https://h/a.git#main:{subdir}", f"https://h/a.git?subdir={subdir}"):
        found = parse_git(text)
        assert found is not None
        assert found.subdir == expected


class _Into:
    """As much of a Context as a checkout goes to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


@pytest.mark.parametrize("subdir", ["..", "../host", "in/../../host", "link", "file", "none"])
def test_what_is_taken_lies_in_the_checkout(tmp_path: Path, subdir: str) -> None:
    """Whatever the parser let through: `..` opens without being a link."""
    for name in ("host", "checkout/in", "into"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "host/secret").write_text("secret")
    (tmp_path / "checkout/file").write_text("x")
    (tmp_path / "checkout/link").symlink_to("../host")
    fd = os.open(tmp_path / "into", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(NotFound, match="not a directory of the repository"):
            _take(str(tmp_path / "checkout"), subdir, cast("Context", _Into(fd)))
    finally:
        os.close(fd)
    assert os.listdir(tmp_path / "into") == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h:8/a?x=1#y", "https://h:8/a?x=1#y"),
        ("https://token@h/a", "https://h/a"),
        ("https://u:p@w@h/a", "https://h/a"),
        ("ssh://git@h/a", "ssh://h/a"),
        ("https://h/a@b", "https://h/a@b"),
        ("git@h:a", "git@h:a"),
        ("h/a", "h/a"),
        ("http://u:p@[::1/a", "(a malformed URL)"),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    """CVE-2023-26054."""
    assert without_credentials(url) == shown


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.text(max_size=20), st.text("abc:@", max_size=8))
def test_no_text_of_a_user_is_shown_or_fails_otherwise(path: str, user: str) -> None:
    url = f"https://{user}SECRET@h/{path}"
    assert "SECRET" not in without_credentials(url).partition("/a")[0].split("/h/")[0]
    try:
        parse_git(url)
    except DockerfileError:
        pass


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/b.tar?x=1", "b.tar"),
        ("https://h/a%20b", "a b"),
        ("https://h/", "__unnamed__"),
        ("https://h", "__unnamed__"),
        ("https://h/..", "__unnamed__"),
        ("https://h/a%2f..", "__unnamed__"),
        ("https://h/..%2fetc%2fpasswd", "passwd"),
        ("https://h/a%00b", "__unnamed__"),
        ("https://h/" + "n" * 300, "n" * 255),
    ],
)
def test_a_file_is_named_by_the_last_component(url: str, name: str) -> None:
    assert file_name(url) == name
