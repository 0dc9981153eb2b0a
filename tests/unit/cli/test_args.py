"""argv is read with pflag's rules, and refused with its words."""

from __future__ import annotations

import pytest

from sampan.cli import args
from sampan.cli.failures import Failure, Usage
from sampan.cli.main import GLOBAL_FLAGS, command_at
from sampan.cli.tables.index import GROUPS, TOP, all_paths


def parse(path: str, *argv: str) -> args.Options:
    return args.parse(command_at(path), path, list(argv))


def message(path: str, *argv: str) -> str:
    with pytest.raises(Failure) as caught:
        parse(path, *argv)
    return caught.value.message


def test_short_flags_may_stand_together_and_the_last_may_take_a_value() -> None:
    options = parse(
        "container run", "-itm", "64m", "-e", "A=1", "-eB=2", "--name=x", "busybox", "sh"
    )
    assert options.flag("interactive") and options.flag("tty")
    assert options.number("memory") == 64 << 20
    assert options.list("env") == ["A=1", "B=2"]
    assert options.args == ["busybox", "sh"]


def test_what_follows_the_image_belongs_to_the_container() -> None:
    options = parse("container run", "--rm", "busybox", "ls", "-l", "--rm")
    assert options.args == ["busybox", "ls", "-l", "--rm"]


def test_flags_may_stand_between_arguments_elsewhere() -> None:
    options = parse("container rm", "a", "-f", "b")
    assert options.args == ["a", "b"] and options.flag("force")


def test_two_dashes_end_the_flags() -> None:
    assert parse("container rm", "--", "-f").args == ["-f"]


def test_booleans_take_a_value_only_after_equals() -> None:
    assert not parse("container run", "--rm=false", "x").flag("rm")
    assert parse("container run", "--rm", "false").args == ["false"]


@pytest.mark.parametrize(
    ("argv", "begin"),
    [
        (["--nosuch", "x"], "unknown flag: --nosuch"),
        (["-z"], "unknown shorthand flag: 'z' in -z"),
        (["-itz", "x"], "unknown shorthand flag: 'z' in -z"),
        (["--memory"], "flag needs an argument: --memory"),
        (["-m"], "flag needs an argument: 'm' in -m"),
        (["-m", "abc", "x"], "invalid argument \"abc\" for \"-m, --memory\" flag: invalid size: 'abc'"),
        (["--rm=foo"], 'invalid argument "foo" for "--rm" flag: strconv.ParseBool: parsing "foo": invalid syntax'),
        (["-c", "x"], 'invalid argument "x" for "-c, --cpu-shares" flag: strconv.ParseInt: parsing "x": invalid syntax'),
        (["---"], "bad flag syntax: ---"),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused_in_pflags_words(argv: list[str], begin: str) -> None:
    with pytest.raises(Usage) as caught:
        parse("container run", *argv)
    assert caught.value.status == 125
    assert caught.value.message.startswith(
        begin + "\n\nUsage:  sampan container run [OPTIONS] IMAGE"
    )


@pytest.mark.parametrize(
    ("path", "argv", "demand"),
    [
        ("container run", [], "requires at least 1 argument"),
        ("container exec", ["a"], "requires at least 2 arguments"),
        ("container ls", ["x"], "accepts no arguments"),
        ("container rename", ["a"], "requires 2 arguments"),
        ("image ls", ["a", "b"], "requires at most 1 argument"),
        ("container commit", [], "requires at least 1 and at most 2 arguments"),
    ],
)
def test_the_number_of_arguments_is_checked_with_status_1(
    path: str, argv: list[str], demand: str
) -> None:
    with pytest.raises(Failure) as caught:
        parse(path, *argv)
    assert caught.value.status == 1
    assert f"sampan: 'sampan {path}' {demand}\n" in caught.value.message


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10), ("-1", -1), ("+5", 5), ("0x10", 16), ("010", 8), ("0b11", 3), ("1_000", 1000)],
)
def test_integers_are_read_as_go_reads_them(text: str, number: int) -> None:
    assert args.go_int(text) == number


@pytest.mark.parametrize(
    "text", ["", "x", "1.5", "--1", " 1", "1 ", "0x", "٣", "9223372036854775808"]
)
def test_what_go_does_not_read_as_an_integer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="strconv.ParseInt"):
        args.go_int(text)


def test_every_command_has_a_function_help_and_known_kinds() -> None:
    for path in all_paths():
        command = command_at(path)
        assert command.path == path
        assert callable(args.load(command.run)), path
        names = [flag[0] for flag in command.flags]
        shorts = [flag[1] for flag in command.flags if flag[1]]
        assert len(set(names)) == len(names) and len(set(shorts)) == len(shorts), path
        assert all(flag[2] in args.KINDS for flag in command.flags), path
        assert list(names) == sorted(names), f"{path}: --help lists flags in order"
    assert all(flag[2] in args.KINDS for flag in GLOBAL_FLAGS)


def test_every_alias_that_help_names_leads_to_its_command() -> None:
    for path in all_paths():
        for alias in command_at(path).aliases:
            *group, word = alias.split(" ")
            table = GROUPS[" ".join(group)] if group else TOP
            assert table[word] == path


def test_quote_is_gos() -> None:
    assert args.quote('a"b\\\n\x01é\udcff') == '"a\\"b\\\\\\n\\x01é\\xff"'


def test_a_command_that_reads_its_own_flags_still_has_help() -> None:
    assert parse("service create", "--name", "x", "--help").has("help")
    assert parse("service create", "--name", "x").args == ["--name", "x"]
