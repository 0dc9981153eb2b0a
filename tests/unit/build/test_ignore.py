"""Which paths a .dockerignore leaves out: the table of moby's patternmatcher, told in our own cases, and its corners."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.build.ignore import Matcher, read_patterns
from sampan.errors import InvalidArgument


def ignored(lines: str, path: str) -> bool:
    return Matcher(read_patterns(lines.encode())).ignores(path)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("file", ["file", "file/below"], ["dir/file", "filex", "xfile"]),
        ("dir/file", ["dir/file"], ["file", "a/dir/file", "dir"]),
        ("*", ["a", ".a", "a/b"], []),
        ("*.txt", ["a.txt", ".txt", "a.txt/b"], ["d/a.txt", "a.txt2"]),
        ("*/b", ["a/b", "a/b/c"], ["b", "a/a/b"]),
        ("a?c", ["abc", "a-c"], ["ac", "a/c", "abbc"]),
        ("temp?", ["tempa"], ["temp", "temps1"]),
        # any number of directories
        ("**", ["a", "a/b", "a/b/c"], []),
        ("**/", ["a", "a/b"], []),
        ("**/**", ["a", "a/b"], []),
        ("**/x", ["x", "a/x", "a/b/x", "x/y"], ["xx", "a/xx"]),
        ("**/**/*.txt", ["a.txt", "a/b/c.txt"], ["a.txt2"]),
        ("**x", ["x", "a/x", "a/b/x", "x/y"], ["xy"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a", "az", "b/a/z"]),
        ("a**/*.txt", ["a/f.txt", "a/b/f.txt"], ["b/f.txt"]),
        ("a/*.txt**", ["a/f.txt", "a/f.txt.gz"], ["a/f.tx"]),
        ("**/dir/*", ["dir/a", "x/dir/a"], ["dir"]),
        # classes, as Go's filepath.Match has them
        ("a[b-d]e", ["abe", "ace"], ["ae", "aae", "a/e"]),
        ("a[^b-d]e", ["aze"], ["ace"]),
        ("[!a]", ["!", "a"], ["b"]),
        (r"[a\]]", ["]", "a"], ["\\", "b"]),
        (r"[\^a]", ["^", "a"], ["b"]),
        ("[[a]", ["[", "a"], ["b"]),
        ("[a&&b]", ["&", "a", "b"], ["c"]),
        ("[a||~~b]", ["|", "~"], ["c"]),
        # what means nothing to us
        ("abc.def", ["abc.def"], ["abcZdef"]),
        ("a.|)$(}+{bc", ["a.|)$(}+{bc"], ["a"]),
        ("a(b)c/def", ["a(b)c/def"], ["a(b)c/xyz"]),
        (r"a\*b", ["a*b"], ["axb"]),
        (r"a\?", ["a?"], ["ab"]),
        # written in other forms
        ("/a", ["a"], ["b/a"]),
        ("a/", ["a", "a/b"], ["ab"]),
        ("./a//b/../c", ["a/c"], ["a/b"]),
        ("  a  ", ["a"], [" a"]),
        ("a b", ["a b"], ["a", "b"]),
        ("a\r", ["a"], []),
        # matching nothing of a tree
        (".", [], ["a", ".a"]),
        ("..", [], ["a", "..a"]),
        ("../a", [], ["a"]),
    ],
)
def test_one_pattern(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [path for path in inside if not ignored(pattern, path)] == []
    assert [path for path in outside if ignored(pattern, path)] == []


@pytest.mark.parametrize(
    ("lines", "inside", "outside"),
    [
        ("*\n!a", ["b", "b/a"], ["a", "a/b"]),
        ("*.md\n!README*.md\nREADME-secret.md", ["x.md", "README-secret.md"], ["README.md"]),
        ("*.md\nREADME-secret.md\n!README*.md", ["x.md"], ["README.md", "README-secret.md"]),
        ("dir\n!dir/keep", ["dir", "dir/x", "dir/keepx"], ["dir/keep", "dir/keep/all"]),
        ("**\n!**/*.py", ["a", "a/b.c"], ["a.py", "a/b/c.py"]),
        ("!a", [], ["a", "b"]),
        ("a\n!a\na", ["a"], []),
        ("a\n! a", [], ["a"]),
        ("*\n!/a/", ["b"], ["a", "a/b"]),
    ],
)
def test_the_last_pattern_that_matches_decides(
    lines: str, inside: list[str], outside: list[str]
) -> None:
    assert [path for path in inside if not ignored(lines, path)] == []
    assert [path for path in outside if ignored(lines, path)] == []


def test_the_file_is_read_line_by_line() -> None:
    data = b"\xef\xbb\xbf# comment\n  # not one\n\n   \n/a/\n!/b/../c\r\n\\#x\n"
    assert read_patterns(data) == ["# not one", "a", "!c", "\\#x"]


def test_bytes_that_are_no_utf8_are_kept() -> None:
    (pattern,) = read_patterns(b"\xff.txt\n")
    assert Matcher([pattern]).ignores("\udcff.txt")


@pytest.mark.parametrize("text", ["[", "a[", "[]", "[^]", "[^", "[-]", "[a-]", "[x-]", "[z-a]", "[a--b]", "[a", "[\\", "[a\\"])  # fmt: skip
def test_malformed_classes_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="syntax error in pattern"):
        Matcher(read_patterns(text.encode()))


@pytest.mark.parametrize("text", ["!", " ! ", "a\n!\nb"])
def test_a_lone_exclamation_mark_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="illegal exclusion pattern"):
        read_patterns(text.encode())


def test_a_directory_is_looked_into_where_something_may_come_back() -> None:
    without = Matcher(read_patterns(b"node_modules"))
    assert without.ignores_all_below("node_modules")
    assert not without.ignores_all_below("src")
    negated = Matcher(read_patterns(b"node_modules\n!node_modules/keep"))
    assert not negated.ignores_all_below("node_modules")


def test_very_deep_paths() -> None:
    path = "/".join("d" * 2000)
    assert ignored("d", path)
    assert not ignored("e", path)


def test_many_paths_are_forgotten_and_found_again() -> None:
    matcher = Matcher(["d/x"])
    for number in range(20_050):
        assert not matcher.ignores(f"d/{number}")
    assert matcher.ignores("d/x/y")
    assert not matcher.ignores("d")


def test_rows_of_stars_cost_no_more_than_one() -> None:
    assert not ignored("**/" * 40 + "x", "a/" * 200 + "b")
    assert ignored("**/" * 40 + "x", "a/" * 200 + "x")


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.text("ab/*?[]^-!\\.&|~", max_size=12), st.text("ab/.", max_size=8))
def test_no_pattern_does_worse_than_be_refused(pattern: str, path: str) -> None:
    try:
        matcher = Matcher(read_patterns(pattern.encode()))
    except InvalidArgument:
        return
    clean = re.sub("/+", "/", path).strip("/")
    assert matcher.ignores(clean) in (True, False)
