"""--chmod: octal and symbolic modes as chmod(1) obeys them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.build.modes import mode_changer
from sampan.build.parser import DockerfileError
from sampan.build.stage import check_mode


def changed(text: str, mode: int, *, directory: bool = False) -> int:
    change = mode_changer(text)
    assert change is not None
    return change(mode, directory)


def test_an_empty_text_changes_nothing() -> None:
    assert mode_changer("") is None


@pytest.mark.parametrize("text", ["755", "0755", "00755"])
def test_octal_replaces_whatever_was_there(text: str) -> None:
    assert changed(text, 0o4600) == 0o755
    assert changed(text, 0o1777, directory=True) == 0o755


def test_octal_holds_the_special_bits() -> None:
    assert changed("7755", 0) == 0o7755


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        # who and what
        ("u+x", 0o644, 0o744),
        ("g+w", 0o644, 0o664),
        ("o-r", 0o644, 0o640),
        ("a+x", 0o644, 0o755),
        ("+x", 0o644, 0o755),
        ("go-rwx", 0o755, 0o700),
        ("ug=rw", 0o757, 0o667),
        ("=r", 0o755, 0o444),
        ("a=", 0o755, 0),
        ("u=", 0o755, 0o055),
        # several clauses and actions
        ("u=rwx,go=rx", 0o600, 0o755),
        ("u-x+w", 0o544, 0o644),
        ("a=r,u+w", 0o777, 0o644),
        # set-id and sticky bits
        ("u+s", 0o755, 0o4755),
        ("g+s", 0o755, 0o2755),
        ("+s", 0o755, 0o6755),
        ("ug+s", 0o755, 0o6755),
        ("o+s", 0o755, 0o755),
        ("u-s", 0o6755, 0o2755),
        ("+t", 0o777, 0o1777),
        ("o+t", 0o777, 0o1777),
        ("u+t", 0o777, 0o777),
        ("-t", 0o1777, 0o777),
        ("u=rw", 0o4755, 0o655),
        ("g=rx", 0o2070, 0o050),
        ("a=rwx", 0o7755, 0o777),
        # copied from another class
        ("g=u", 0o640, 0o660),
        ("o=g", 0o640, 0o644),
        ("u=g", 0o640, 0o440),
        ("g=u-w", 0o644, 0o644),
        ("g+u", 0o610, 0o670),
        ("go-u", 0o677, 0o611),
        ("o=u,g=o", 0o700, 0o777),
        ("=u", 0o640, 0o666),
        ("g=u", 0o4700, 0o4770),
    ],
)
def test_symbolic_modes(text: str, before: int, after: int) -> None:
    check_mode(text)
    assert oct(changed(text, before)) == oct(after)


@pytest.mark.parametrize(
    ("before", "directory", "after"),
    [
        (0o644, False, 0o644),  # a file that nobody executes stays so
        (0o644, True, 0o755),
        (0o744, False, 0o755),
        (0o645, False, 0o755),
        (0o600, True, 0o711),
    ],
)
def test_capital_x_means_directories_and_what_somebody_executes(
    before: int, directory: bool, after: int
) -> None:
    assert oct(changed("a+X", before, directory=directory)) == oct(after)


def test_the_usual_idiom_for_a_tree() -> None:
    text = "u=rwX,go=rX"
    assert changed(text, 0o600) == 0o644
    assert changed(text, 0o700) == 0o755
    assert changed(text, 0o700, directory=True) == 0o755


WORD = st.builds(
    lambda who, op, what: who + op + what,
    st.text("ugoa", max_size=3),
    st.sampled_from("+-="),
    st.one_of(st.text("rwxXst", max_size=4), st.sampled_from("ugo")),
)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    words=st.lists(WORD, min_size=1, max_size=3),
    mode=st.integers(0, 0o7777),
    directory=st.booleans(),
)
def test_whatever_is_accepted_gives_a_mode(words: list[str], mode: int, directory: bool) -> None:
    text = ",".join(words)
    check_mode(text)
    once = changed(text, mode, directory=directory)
    assert 0 <= once <= 0o7777


@pytest.mark.parametrize(
    "text", ["8", "9755", "10000", "77777", "-1", "0o755", "rwx", "u", "u+q", "u+x,", "u=ug", "٧٥٥", "u+x o+r", "+\n"]
)  # fmt: skip
def test_what_is_no_mode_is_refused_in_dockers_words(text: str) -> None:
    with pytest.raises(DockerfileError, match="octal string and between 0 and 07777"):
        check_mode(text)
