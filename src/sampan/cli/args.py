"""Command tables and the reading of argv against them, with pflag's rules and words.

A command is a `Command` value in `tables/`; everything said about it comes from there: parsing, usage errors, `--help`,
shell completion and man pages.

    Flag = (name, shorthand, kind, default, help)      help '' hides the flag

Rules (pflag, as docker's users know them): `--flag value`, `--flag=value`, `-f value`, `-fvalue`, `-f=value`, `-it`,
booleans take a value only after `=`, `--` ends flags, flags may stand between arguments except for commands that
run something (`interspersed=False`), where the first argument ends them.

Hot: every daily command passes through here, so it imports nothing but small modules of ours.
"""

from __future__ import annotations

from sampan.cli.failures import Failure, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

Flag = tuple[str, str, str, "object", str]

# kind -> (the word in --help, repeatable). Kinds without an entry are checked by cli/values.py, loaded when met.
PLAIN_KINDS = {
    "bool": ("", False),
    "string": ("string", False),
    "list": ("list", True),
    "strings": ("strings", True),
    "pairs": ("map", True),
    "int": ("int", False),
}
CHECKED_KINDS = {
    "uint16": ("uint16", False),
    "float": ("float", False),
    "duration": ("duration", False),
    "bytes": ("bytes", False),
    "swap": ("bytes", False),
    "decimal": ("decimal", False),
    "tag": ("list", True),
    "env": ("list", True),
    "label": ("list", True),
    "sysctl": ("map", True),
    "filter": ("filter", True),
    "attach": ("list", True),
    "mount": ("mount", True),
    "network": ("network", True),
    "ulimit": ("ulimit", True),
    "gpus": ("gpu-request", True),
    "address": ("list", True),
    "ip": ("string", False),
    "host": ("list", True),
    "search": ("list", True),
    "device-rule": ("list", True),
    "link": ("list", True),
    "weight": ("list", True),
    "bps": ("list", True),
    "iops": ("list", True),
    "subnet": ("ipNet", False),
}
KINDS = PLAIN_KINDS | CHECKED_KINDS

TRUE = {"1", "t", "T", "TRUE", "true", "True"}
FALSE = {"0", "f", "F", "FALSE", "false", "False"}


class Command:
    """One command: its words, its flags and the function that does it, named as `module:function` under `cli/`."""

    __slots__ = (
        "aliases",
        "arity",
        "flags",
        "help",
        "hidden",
        "interspersed",
        "own",
        "path",
        "raw",
        "run",
        "usage",
    )

    def __init__(
        self,
        path: str,
        usage: str,
        arity: tuple[int, int],
        run: str,
        help: str,
        flags: Sequence[Flag] = (),
        *,
        aliases: Sequence[str] = (),
        interspersed: bool = True,
        hidden: bool = False,
        own: bool = False,
        raw: bool = False,
    ) -> None:
        self.path = path  # 'container ls'
        self.usage = usage  # what follows the name in the usage line
        self.arity = arity  # fewest and most arguments; -1: no upper bound
        self.run = run
        self.help = help
        self.flags = flags
        self.aliases = aliases  # every other full path: 'ps', 'container list'
        self.interspersed = interspersed
        self.hidden = hidden
        self.own = own  # a verb that docker does not have
        self.raw = raw  # reads its own flags


class Options:
    """What argv said: flags by their long name, and the arguments."""

    __slots__ = ("args", "command", "given", "name", "table")

    def __init__(self, command: Command, name: str, table: dict[str, Flag]) -> None:
        self.command = command
        self.name = name  # as typed: 'ps' or 'container ls'
        self.table = table
        self.given: dict[str, Any] = {}
        self.args: list[str] = []

    def has(self, name: str) -> bool:
        """The flag stood on the command line, whatever its value."""
        return name in self.given

    def flag(self, name: str) -> bool:
        return bool(self.value(name))

    def text(self, name: str) -> str:
        value: str = self.value(name)
        return value

    def number(self, name: str) -> int:
        value: int = self.value(name)
        return value

    def list(self, name: str) -> list[Any]:
        value: list[Any] = self.given.get(name) or []
        return value

    def value(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        return self.table[name][3]


def quote(text: str) -> str:
    """Go's %q for what stands in messages."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        else:
            code = ord(char)
            known = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}
            out.append("\\" + known[code] if code in known else _escape(code))
    return '"' + "".join(out) + '"'


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def go_int(text: str) -> int:
    """strconv.ParseInt with base 0: prefixes 0x 0o 0b and a leading 0 for octal."""
    body = text.lstrip("+-") if text[:1] in "+-" and text[1:2] not in ("+", "-") else text
    number = None
    if body and body.isascii() and not body.startswith("_") and body == body.strip():
        try:
            if len(body) > 1 and body[0] == "0" and body[1].isdigit():
                number = int(body, 8)
            else:
                number = int(body, 0)
        except ValueError:
            number = None
    if number is None or body[:1] in "+-":
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    if text.startswith("-"):
        number = -number
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return number


def go_bool(text: str) -> bool:
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {quote(text)}: invalid syntax")


def parse(command: Command, name: str, argv: list[str]) -> Options:
    """Read `argv` (after the command's own words) against its table; raise Usage where it does not fit."""
    table: dict[str, Flag] = {}
    shorts: dict[str, Flag] = {}
    for flag in command.flags:
        table[flag[0]] = flag
        if flag[1]:
            shorts[flag[1]] = flag
    options = Options(command, name, table)
    if command.raw:
        options.args = argv
        if "--help" in argv and not command.own:
            options.given["help"] = True
        return options
    position, end = 0, len(argv)
    while position < end:
        word = argv[position]
        position += 1
        if len(word) < 2 or word[0] != "-":
            options.args.append(word)
            if not command.interspersed:
                options.args += argv[position:]
                break
        elif word == "--":
            options.args += argv[position:]
            break
        elif word[1] == "-":
            position = _long(options, word, argv, position)
        else:
            position = _shorts(options, shorts, word, argv, position)
    if not options.has("help"):
        check_arity(options)
    return options


def _long(options: Options, word: str, argv: list[str], position: int) -> int:
    name, equals, value = word[2:].partition("=")
    if not name or name[0] == "-":
        raise Usage(options, f"bad flag syntax: {word}")
    flag = options.table.get(name)
    if flag is None:
        if name == "help":
            options.given["help"] = True
            return position
        raise Usage(options, f"unknown flag: --{name}")
    if equals:
        pass
    elif flag[2] == "bool":
        value = "true"
    elif position < len(argv):
        value = argv[position]
        position += 1
    else:
        raise Usage(options, f"flag needs an argument: --{name}")
    store(options, flag, value)
    return position


def _shorts(
    options: Options, shorts: dict[str, Flag], word: str, argv: list[str], position: int
) -> int:
    letters = word[1:]
    while letters:
        letter, rest = letters[0], letters[1:]
        flag = shorts.get(letter)
        if flag is None:
            if letter == "h":
                options.given["help"] = "shorthand"
                return position
            raise Usage(options, f"unknown shorthand flag: {_char(letter)} in -{letters}")
        if rest.startswith("="):
            value, letters = rest[1:], ""
        elif flag[2] == "bool":
            value, letters = "true", rest
        elif rest:
            value, letters = rest, ""
        elif position < len(argv):
            value, letters = argv[position], ""
            position += 1
        else:
            raise Usage(options, f"flag needs an argument: {_char(letter)} in -{letters}")
        store(options, flag, value)
    return position


def _char(letter: str) -> str:
    return "'\\''" if letter == "'" else f"'{letter}'"


def store(options: Options, flag: Flag, text: str) -> None:
    """Check `text` as the flag's kind demands and keep it."""
    name, short, kind = flag[0], flag[1], flag[2]
    given = options.given
    try:
        if kind == "bool":
            given[name] = go_bool(text)
        elif kind == "string":
            given[name] = text
        elif kind == "int":
            given[name] = go_int(text)
        elif kind in ("list", "pairs"):
            given.setdefault(name, []).append(text)
        elif kind == "strings":
            given.setdefault(name, []).extend(text.split(","))
        else:
            from sampan.cli import values

            values.store(given, name, kind, text)
    except ValueError as error:
        spelled = f"-{short}, --{name}" if short else f"--{name}"
        raise Usage(
            options, f"invalid argument {quote(text)} for {quote(spelled)} flag: {error}"
        ) from None


def check_arity(options: Options) -> None:
    """The number of arguments, refused with cobra's words and docker's status 1."""
    fewest, most = options.command.arity
    count = len(options.args)
    if count >= fewest and (most < 0 or count <= most):
        return
    if most == 0:
        demand, lead = "accepts no arguments", "Run"
    elif fewest == most:
        demand, lead = f"requires {fewest} argument{_s(fewest)}", "Run"
    elif most < 0:
        demand, lead = f"requires at least {fewest} argument{_s(fewest)}", "See"
    elif fewest == 0:
        demand, lead = f"requires at most {most} argument{_s(most)}", "Run"
    else:
        demand, lead = f"requires at least {fewest} and at most {most} arguments", "Run"
    name = f"sampan {options.name}"
    raise Failure(
        f"sampan: '{name}' {demand}\n\nUsage:  {usage_line(options.command, options.name)}\n\n"
        f"{lead} '{name} --help' for more information",
        status=1,
    )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def usage_line(command: Command, name: str) -> str:
    """'sampan run [OPTIONS] IMAGE ...'; further forms stand on lines of their own."""
    forms = command.usage.split("\n")
    return "\n\t".join(f"sampan {name} {form}".rstrip() for form in forms)


def load(where: str) -> Callable[..., int]:
    """The function that a table names as 'module:function'."""
    module, _, function = where.partition(":")
    __import__(f"sampan.cli.{module}")
    import sys

    loaded: Callable[..., int] = getattr(sys.modules[f"sampan.cli.{module}"], function)
    return loaded
