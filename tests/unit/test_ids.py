"""Ids, prefixes and generated names."""

from __future__ import annotations

import pytest

from sampan import ids
from sampan.errors import InvalidArgument


def test_an_id_is_64_hex_digits_and_its_short_form_is_no_number() -> None:
    for _ in range(200):
        identity = ids.new_id()
        assert ids.is_hex(identity)
        assert not ids.short_id(identity).isdecimal()


def test_short_id_leaves_the_algorithm_out() -> None:
    assert ids.short_id("sha256:0123456789abcdef") == "0123456789ab"


@pytest.mark.parametrize("name", ["ab", "A.b-c_d", "9lives"])
def test_names(name: str) -> None:
    assert ids.is_name(name)


@pytest.mark.parametrize("name", ["", "a", "-a", ".a", "_a", "a b", "a/b", "ä1", "a\n", "a\0"])
def test_what_is_no_name(name: str) -> None:
    assert not ids.is_name(name)


def test_a_unique_prefix_finds_and_a_shared_one_is_an_error() -> None:
    assert ids.by_prefix("ab", ["abc", "bcd"]) == "abc"
    assert ids.by_prefix("zz", ["abc"]) is None
    assert ids.by_prefix("", ["abc"]) is None
    with pytest.raises(InvalidArgument, match="multiple IDs found with provided prefix: ab"):
        ids.by_prefix("ab", ["abc", "abe"])


def test_generated_names_avoid_the_taken_ones() -> None:
    taken: set[str] = set()
    for _ in range(300):
        name = ids.random_name(taken.__contains__)
        assert name not in taken
        assert ids.is_name(name)
        taken.add(name)


def test_a_name_is_found_even_where_every_plain_one_is_taken() -> None:
    assert ids.random_name(lambda name: name.count("_") == 1).count("_") == 2
