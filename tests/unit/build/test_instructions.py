"""Typed instructions: flags, mounts, stages, and errors in Docker's words with a suggestion."""

from __future__ import annotations

import pytest

from sampan.build import instructions as ins
from sampan.build.parser import DockerfileError, parse
from sampan.build.run_mounts import Mount, mount_of


def one(text: str) -> ins.Instruction:
    return ins.instruction_of(parse(text.encode()).nodes[0])


def program(text: str) -> ins.Program:
    return ins.program_of(parse(text.encode()))


def test_stages_and_global_arguments() -> None:
    made = program("ARG V=1\nFROM a:$V AS Build\nRUN x\nFROM build\nCOPY --from=build /a /b\n")
    assert made.arguments[0].pairs == (ins.ArgPair("V", "1"),)
    assert [s.name for s in made.stages] == ["build", ""]
    copy = made.stages[1].instructions[0]
    assert isinstance(copy, ins.Copy)
    assert (copy.from_, copy.sources, copy.destination) == ("build", ("/a",), "/b")


def test_inline_files_of_copy() -> None:
    copy = one("COPY <<a.txt <<-'b' x /d/\n$one\na.txt\n\ttwo\n\tb\n")
    assert isinstance(copy, ins.Copy)
    assert copy.inline == (
        ins.Inline(path="a.txt", data="$one\n", expand=True),
        ins.Inline(path="b", data="two\n", expand=False),
    )
    assert copy.sources == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUM x", "unknown instruction: RUM \\(did you mean RUN\\?\\)"),
        ("XYZZY x", "unknown instruction: XYZZY$"),
        ("COPY --form=a b c", "unknown flag: form \\(did you mean from\\?\\)"),
        ("COPY --from=a --from=b c d", "duplicate flag specified: from"),
        ("COPY --link=maybe a b", "expecting boolean value for flag link, not: maybe"),
        ("COPY --from a b", "missing a value on flag: from"),
        ("COPY a", "COPY requires at least two arguments"),
        ("COPY a <<E\nE", "COPY cannot accept a heredoc as a destination"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a AS 1b", "invalid name for build stage"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("SHELL a", "SHELL requires the arguments to be in JSON form"),
        ("HEALTHCHECK --interval=1us CMD x", "cannot be less than 1ms"),
        ("HEALTHCHECK FOO x", "Unknown type \"FOO\" in HEALTHCHECK"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative"),
        ("RUN --network=moon x", "invalid network mode \"moon\""),
        ("RUN --security=none x", "security \"none\" is not valid"),
        ("RUN --mount=type=bnd,target=/x y", "unsupported mount type \"bnd\" \\(did you mean bind\\?\\)"),
        ("RUN --mount=taget=/x y", "unexpected key 'taget' in 'taget=/x' \\(did you mean target\\?\\)"),
        ("RUN --mount=type=bind,target=/x,uid=1 y", "uid not allowed for \"bind\""),
        ("RUN --mount=type=secret y", "one of source, target required"),
        ("RUN --mount=from=$x,target=/a y", "'from' doesn't support variable expansion"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("ENV =x", "names can not be blank"),
        ("VOLUME [\"\"]", "can not be an empty string"),
    ],
)  # fmt: skip
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        one(text)


def test_refusal_of_a_program_says_the_line() -> None:
    with pytest.raises(
        DockerfileError, match="dockerfile parse error on line 2: unknown instruction: RU"
    ):
        program("FROM a\nRU x")
    with pytest.raises(DockerfileError, match="no build stage in current context"):
        program("RUN x\nFROM a")


def test_mounts_have_defaults_by_type() -> None:
    def mount(text: str) -> Mount:
        run = one(f"RUN --mount={text} x")
        assert isinstance(run, ins.Run)
        return mount_of(run.mounts[0], lambda value: value.replace("$U", "7"))

    assert mount("target=/a") == Mount(target="/a")
    assert mount("type=cache,target=/a,sharing=locked,uid=$U").uid == 7
    assert not mount("type=cache,target=/a").read_only
    assert not mount("type=bind,target=/a,rw").read_only
    assert mount("type=tmpfs,target=/a,size=1k").size_bytes == 1024
    assert mount("type=secret,id=a,mode=0440,required").mode == 0o440
    assert mount("'type=bind,\"target=/a,b\"'").target == "/a,b"


def test_health_check() -> None:
    check = one("HEALTHCHECK --interval=5s --retries=3 CMD curl x")
    assert isinstance(check, ins.Healthcheck)
    expected = ins.Health(test=("CMD-SHELL", "curl x"), interval_ns=5_000_000_000, retries=3)
    assert check.health == expected


def test_trigger_keeps_its_here_document() -> None:
    onbuild = one("ONBUILD RUN <<E\na\nE\n")
    assert isinstance(onbuild, ins.Onbuild)
    run = ins.trigger_of(onbuild.expression)
    assert isinstance(run, ins.Run)
    assert run.files[0].content == "a\n"
