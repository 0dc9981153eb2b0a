"""The Dockerfile's form: lines, continuations, directives, here-documents, and what is refused with which line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.build.parser import DockerfileError, parse


def dump(text: str) -> str:
    return parse(text.encode()).dump()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a AS b", '(from "a" "AS" "b")'),
        ("RUN echo  hi", '(run "echo  hi")'),
        ('RUN ["echo", "hi"]', '(run "echo" "hi")'),
        ("RUN [echo, hi]", '(run "[echo, hi]")'),
        ('CMD [ "a" , "b" ]', '(cmd "a" "b")'),
        ("ENV a=b c='d e'", '(env "a" "b" "=" "c" "\'d e\'" "=")'),
        ("ENV a b c", '(env "a" "b c" "")'),
        ("ENV a=b\\ c", '(env "a" "b\\\\ c" "=")'),
        ("COPY a b c", '(copy "a" "b" "c")'),
        ('COPY ["a b", "c"]', '(copy "a b" "c")'),
        ("COPY --from=x --chown='1 2' a b", '(copy ["--from=x" "--chown=1 2"] "a" "b")'),
        ("RUN -- --not-a-flag", '(run "--not-a-flag")'),
        ("ONBUILD RUN x", '(onbuild (run "x"))'),
        ("HEALTHCHECK CMD a b", '(healthcheck "CMD" "a b")'),
        ("EXPOSE 80 443/udp", '(expose "80" "443/udp")'),
        ("run a \\\n  b", '(run "a   b")'),
        ("RUN a \\\n# gone\n  b", '(run "a   b")'),
        ("RUN a \\\n\n b", '(run "a  b")'),
        ("RUN a\\\\\nUSER x", '(run "a\\\\\\\\")\n(user "x")'),
        ("NONSENSE a", '(nonsense "")'),
        ("\ufeffFROM a", '(from "a")'),
        ("  \t FROM a\r\n", '(from "a")'),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert dump(text) == expected


def test_escape_directive_changes_continuation_and_words() -> None:
    dockerfile = parse(b"# escape=`\nENV a=b` c\nRUN x `\n y")
    assert dockerfile.escape == "`"
    assert dockerfile.dump() == '(env "a" "b` c" "=")\n(run "x  y")'


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "file with no instructions", 0),
        ("# only\n# comments", "file with no instructions", 2),
        ("ENV a", "ENV must have two arguments", 1),
        ("FROM a\nENV a=b c", "can't find = in", 2),
        ('RUN ["a", 1]', "comprised of strings only", 1),
        ("# escape=x\nFROM a", "invalid escape token", 1),
        ("# syntax=a\n# syntax=b\nFROM a", "only one syntax parser directive", 2),
        ("FROM a\nRUN <<E\nnever ends", "unterminated heredoc", 2),
        ("RUN " + "x" * 70_000, "greater than max allowed size", 0),
    ],
)
def test_refusals_name_the_line(text: str, message: str, line: int) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        parse(text.encode())
    assert caught.value.line == line


def test_heredocs_go_with_their_instruction() -> None:
    text = b"FROM a\nRUN <<-E cat; cat <<'F' >f\n\tone $x\n\tE\ntwo\nF\nUSER u\n"
    node = parse(text).nodes[1]
    first, second = node.heredocs
    assert (first.name, first.expand, first.chomp, first.text) == ("E", True, True, "one $x\n")
    assert (second.name, second.expand, second.content) == ("F", False, "two\n")
    assert (node.start, node.end) == (2, 6)


def test_heredoc_signs_in_json_and_in_other_instructions_mean_nothing() -> None:
    assert parse(b'RUN ["cat", "<<E"]').nodes[0].heredocs == ()
    assert parse(b"CMD cat <<E").nodes[0].heredocs == ()


def test_empty_continuation_lines_are_warned_of() -> None:
    assert [w.line for w in parse(b"RUN a \\\n\n b\n").warnings] == [3]


def test_comments_above_an_instruction_stay_with_it() -> None:
    nodes = parse(b"# syntax=x\n# one\n#\n# two\nFROM a\n# three\nUSER b").nodes
    assert nodes[0].comments == ("two",)
    assert nodes[1].comments == ("three",)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        parse(b"FROM a\n" + data)
    except DockerfileError as error:
        assert error.line >= 1
