"""Words: quotes, escapes, variables with every modifier, splitting."""

from __future__ import annotations

import pytest

from sampan.build.expand import ExpandError, Lexer, expand, go_quote, split

VARIABLES = {"A": "aa", "EMPTY": "", "PATH": "/usr/local/bin", "SPACED": "one  two ", "ST": "x*y"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$A", "aa"), ("${A}b", "aab"), ("$A.c", "aa.c"), ("\\$A", "$A"), ("'$A'", "$A"), ('"$A"', "aa"),
        ("$NO", ""), ("$.", "$."), ("$1x", "x"), ("a$", "a$"),
        ("${NO:-d}", "d"), ("${NO-d}", "d"), ("${EMPTY:-d}", "d"), ("${EMPTY-d}", ""),
        ("${A:+d}", "d"), ("${NO:+d}", ""), ("${EMPTY+d}", "d"), ("${EMPTY:+d}", ""),
        ("${A:?e}", "aa"), ("${NO:-${A}}", "aa"), ("${NO:-'$A'}", "$A"),
        ("${PATH#*/}", "usr/local/bin"), ("${PATH##*/}", "bin"),
        ("${PATH%/*}", "/usr/local"), ("${PATH%%/*}", ""), ("${PATH%/bin}", "/usr/local"),
        ("${PATH/local/opt}", "/usr/opt/bin"), ("${PATH//\\//-}", "-usr-local-bin"),
        ("${ST#x\\*}", "y"), ("${PATH/u?r/X}", "/X/local/bin"),
        ("a\\tb", "atb"), ('"a\\tb"', "a\\tb"), ("a\\", "a"), ('"a\\"b"', 'a"b'),
        ("he'll'o", "hello"), ("안'녕'", "안녕"),
    ],
)  # fmt: skip
def test_expand(word: str, expected: str) -> None:
    assert expand(word, VARIABLES) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("'a", "single-quote"), ('"a', "double-quote"), ("${A", "missing '}'"), ("${}", "bad substitution"),
        ("${A:=b}", "unsupported modifier"), ("${NO:?gone}", "NO: gone"), ("${NO?}", "not allowed to be unset"),
        ("${EMPTY:?}", "not allowed to be empty"), ("${A:#b}", "unsupported modifier"), ("${A/b", "missing '/'"),
        ("${A#b\\c}", "invalid escape"), ("${.}", "unsupported modifier"),
    ],
)  # fmt: skip
def test_refusals(word: str, message: str) -> None:
    with pytest.raises(ExpandError, match=message):
        expand(word, VARIABLES)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a b", ["a", "b"]), ("'a b'", ["a b"]), ("$SPACED", ["one", "two"]), ('"$SPACED"', ["one  two "]),
        ("a$SPACED", ["aone", "two"]), ("a\\ b", ["a b"]), ("", []), ("x << E", ["x", "<< E"]),
    ],
)  # fmt: skip
def test_split(word: str, expected: list[str]) -> None:
    assert split(word, VARIABLES) == expected


def test_escape_may_be_a_backtick() -> None:
    assert expand("`$A\\", VARIABLES, escape="`") == "$A\\"


def test_which_variables_were_used_is_told() -> None:
    found = Lexer(VARIABLES).run("$A ${NO} ${EMPTY:-$A}")
    assert (found.matched, found.unmatched) == ({"A", "EMPTY"}, {"NO"})


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(ExpandError, match="nested too deeply"):
        expand("${a:-" * 20_000 + "}" * 20_000, {})


def test_go_quote() -> None:
    assert go_quote('a"\n\x01é\u200b\udcff') == '"a\\"\\n\\x01é\\u200b\\xff"'
