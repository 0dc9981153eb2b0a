"""linux/fastjson.py: JSON without `json`, and stricter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.linux import fastjson

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_was_written_is_read_back_and_the_library_agrees(value: object) -> None:
    try:
        text = fastjson.dumps(value).encode()
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    assert fastjson.loads(text) == value == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1,]", "nul", "NaN", "[Infinity]", '{"a":-Infinity}', '{"a" 1}', '"a\nb"', "1 2", "[" * 100_000,
        "9" * 5000, '"\\ud800"', '"\\udc00"', '"\\ud800\\ud800"', "\x00", "'a'", "{1:2}",
    ],
)  # fmt: skip
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        fastjson.loads(text)


def test_pairs_of_surrogates_and_escaped_backslashes_pass() -> None:
    assert fastjson.loads('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert fastjson.loads('"\\\\ud800"') == "\\ud800"


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(ValueError):
        fastjson.loads(b'"\xff"')


def test_size_is_limited() -> None:
    with pytest.raises(ValueError, match="limit"):
        fastjson.loads(b"[1,2,3]", limit=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", object()])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        fastjson.dumps(value)


def test_indented_looks_as_the_library_would_print_it() -> None:
    value = {"a": [], "b": [1, {"c": "d"}], "e": {}}
    assert fastjson.indented(value) == json.dumps(value, indent=4)


def test_a_bad_text_is_explained_without_the_json_package_in_memory() -> None:
    """CPython before 3.13 looks its error class up in `json.decoder` and gives up when that is not loaded."""
    program = (
        "import sys; sys.path[:0] = ['src']\n"
        "from sampan.linux import fastjson\n"
        "try: fastjson.loads('{\"a\" 1}')\n"
        "except ValueError as error: print(error)\n"
        "print('json' in sys.modules, 'json.decoder' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("invalid JSON: ")
    assert sys.version_info >= (3, 13) or second == "False False"
