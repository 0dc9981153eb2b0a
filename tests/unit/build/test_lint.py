"""Checks of Dockerfiles: every rule, what switches it off, and the answers that are made of findings."""

from __future__ import annotations

import json

import pytest

from sampan.build import calls
from sampan.build.frontend import Source
from sampan.build.ignore import Matcher
from sampan.build.instructions import program_of
from sampan.build.lint import Linter, Options, check_form, check_from, linter_for, options_of
from sampan.build.parser import parse
from sampan.build.plan import plan, triggers_of
from sampan.build.stages import ImageName, Request, Stages, global_variables
from sampan.errors import InvalidArgument
from sampan.images.platform import parse_platform

from .test_plan import AMD64, base


def findings(text: str, argument: str | None = None, ignored: tuple[str, ...] = ()) -> list[str]:
    dockerfile = parse(text.encode())
    program = program_of(dockerfile)
    asked = Request(platform=AMD64, build_platform=AMD64)
    variables = global_variables(program, asked)
    linter = linter_for(dockerfile, argument)
    check_form(linter, dockerfile, program)
    check_from(linter, program, variables, variables, "linux/amd64")
    stages = Stages(program, asked, variables, parse_platform)
    found = base(Env=["PATH=/bin", "LANG=C"])
    names = ("base", "arm")
    bases = {ImageName(n, p): found for n in names for p in ("linux/amd64", "linux/arm64")}
    plan(
        stages, asked, variables, bases, escape=dockerfile.escape, linter=linter,
        ignored=Matcher(list(ignored)) if ignored else None, every_stage=True,
    )  # fmt: skip
    linter.check()
    assert triggers_of(stages, bases) == {}
    return [f"{each.start}: {each.rule.name}: {each.text}" for each in linter.sorted()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM base AS Up", "1: StageNameCasing: Stage name 'Up' should be lowercase"),
        ("FROM base as a", "1: FromAsCasing: 'as' and 'FROM' keywords' casing do not match"),
        ("FROM base\nRUN a \\\n\n b", "4: NoEmptyContinuation: Empty continuation line"),
        (
            "FROM base\nRUN a\nrun b",
            "3: ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase)",
        ),
        (
            "FROM base AS a\nFROM base AS a",
            '2: DuplicateStageName: Duplicate stage name "a", stage names should be unique',
        ),
        (
            "FROM base AS scratch",
            '1: ReservedStageName: Stage name should not use the same name as reserved stage "scratch"',
        ),
        (
            "FROM base\nCMD a",
            "2: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS "
            "signals",
        ),
        ("FROM base\nMAINTAINER m", "2: MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"),
        ("ARG V=1\nFROM base$W", "2: UndefinedArgInFrom: FROM argument 'W' is not declared (did you mean V?)"),
        (
            "FROM base\nWORKDIR a\nWORKDIR b",
            '2: WorkdirRelativePath: Relative workdir "a" can have unexpected results if the base image changes',
        ),
        ("FROM base\nENV A=$PAHT", "2: UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?)"),
        (
            'FROM base\nCMD ["a"]\nCMD ["b"]',
            "2: MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because "
            "only the last one will be used",
        ),
        (
            "FROM base\nENV a b",
            '2: LegacyKeyValueFormat: "ENV key=value" should be used instead of legacy "ENV key value" format',
        ),
        (
            "FROM --platform=$TARGETPLATFORM base",
            "1: RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is "
            "the default behavior",
        ),
        (
            "FROM base\nARG API_TOKEN",
            '2: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG "API_TOKEN")',
        ),
        (
            "FROM --platform=linux/amd64 base",
            '1: FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value "linux/amd64"',
        ),
        ("FROM base\nEXPOSE 80/TCP", "2: ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"),
        (
            "FROM base\nEXPOSE 1:80",
            "2: ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found "
            "'1:80'",
        ),
    ],
)  # fmt: skip
def test_rules(text: str, expected: str) -> None:
    assert findings(text) == [expected]


def test_a_platform_that_is_not_the_images() -> None:
    found = findings("FROM --platform=linux/arm64 arm AS arm64")
    assert found == [
        '1: InvalidBaseImagePlatform: Base image arm was pulled with platform "linux/amd64", expected "linux/arm64" '
        "for current build"
    ]


def test_files_that_the_ignore_file_leaves_out() -> None:
    text = "FROM base\nCOPY a /\nADD b/c /\nCOPY d /\n"
    assert findings(text, ignored=("a", "b")) == [
        '2: CopyIgnoredFile: Attempting to Copy file "a" that is excluded by .dockerignore',
        '3: CopyIgnoredFile: Attempting to Add file "b/c" that is excluded by .dockerignore',
    ]
    assert findings(text, ignored=("a", "!a/x")) == [], (
        "what comes back in cannot be told from here"
    )


def test_clean_files_have_no_findings() -> None:
    assert (
        findings(
            'FROM base AS one\nARG V=1\nENV A=$V\nWORKDIR /w\nRUN x\nCMD ["a"]\nFROM one\nSHELL ["s"]\nCMD a'
        )
        == []
    )


@pytest.mark.parametrize("skip", ["skip=all", "skip=StageNameCasing,FromAsCasing"])
def test_the_directive_and_the_argument_switch_rules_off(skip: str) -> None:
    text = "FROM base as Up"
    assert len(findings(text)) == 2
    assert findings(f"# check={skip}\n{text}") == []
    assert findings(text, argument=skip) == []
    assert len(findings(f"# check={skip}\n{text}", argument="")) == 2


def test_a_comment_switches_a_rule_off_for_one_instruction() -> None:
    text = "FROM base\n# check=skip=LegacyKeyValueFormat\nENV a b\nENV c d"
    assert [each[:2] for each in findings(text)] == ["4:"]


def test_experimental_rules_are_asked_for() -> None:
    text = "# stage that does things\nFROM base AS one"
    assert findings(text) == []
    assert len(findings(text, argument="experimental=all")) == 1
    assert len(findings(text, argument="experimental=InvalidDefinitionDescription")) == 1


def test_findings_can_be_errors() -> None:
    with pytest.raises(InvalidArgument, match="lint violation found for rules: StageNameCasing"):
        findings("# check=error=true\nFROM base AS Up")


@pytest.mark.parametrize("text", ["skip", "nonsense=1"])
def test_options_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid check option"):
        options_of(text)


def test_the_answer_shows_the_lines() -> None:
    source = Source(name="Dockerfile", data=b"FROM base\nCMD a\n")
    linter = Linter(Options())
    check_form(
        linter, parse(b"FROM base\nMAINTAINER m"), program_of(parse(b"FROM base\nMAINTAINER m"))
    )
    answer = calls.lint(source, linter.sorted(), None)
    assert answer["result.statuscode"] == b"1"
    assert json.loads(answer["result.json"])["warnings"][0]["location"]["ranges"][0]["start"] == {
        "line": 2
    }
    assert answer["result.txt"].decode().splitlines() == [
        "",
        "WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/",
        "Maintainer instruction is deprecated in favor of using label",
        "Dockerfile:2",
        "--------------------",
        "   1 |     FROM base",
        "   2 | >>> CMD a",
        "   3 |     ",
        "--------------------",
    ]


def test_targets_and_outline() -> None:
    text = (
        "ARG V=1\nFROM base:$V AS one\n# A the first\nARG A=2\nRUN --mount=type=secret,id=s,required x\n"
        "# two the second\nFROM one AS two\nRUN --mount=type=ssh x\n"
    )
    program = program_of(parse(text.encode()))
    source = Source(name="Dockerfile", data=text.encode())
    assert calls.targets(source, program)["result.txt"] == (
        b"TARGET        DESCRIPTION\none           \ntwo (default) the second\n"
    )
    asked = Request(platform=AMD64, build_platform=AMD64, args={"A": "given"})
    variables = global_variables(program, asked)
    stages = Stages(program, asked, variables, parse_platform)
    answer = calls.outline(source, program, stages, variables)
    assert answer["result.txt"].decode() == (
        "TARGET:      two\nDESCRIPTION: the second\n\n"
        "BUILD ARG   VALUE   DESCRIPTION\nV           1       \nA           given   the first\n\n"
        "SECRET   REQUIRED\ns        true\n\nSSH       REQUIRED\ndefault   \n\n"
    )
