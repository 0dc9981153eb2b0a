"""`--help` in docker's layout, from the tables."""

from __future__ import annotations

import posix

from sampan.cli import args
from sampan.cli.args import KINDS, Command, Flag
from sampan.cli.failures import Failure
from sampan.cli.session import emit, warn
from sampan.cli.tables.index import COMMON, GROUP_HELP, GROUPS, TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options
    from sampan.cli.session import Session

NARROWEST = 80


def show(options: Options) -> int:
    """`COMMAND --help`."""
    if options.given["help"] == "shorthand":
        warn("Flag shorthand -h has been deprecated, use --help")
    emit(text(options.command, options.name))
    return 0


def help_(session: Session, options: Options) -> int:
    """`help [COMMAND [SUBCOMMAND]]`, and no command at all."""
    words = options.args
    if not words:
        emit(root())
        return 0
    path, name = _named(words)
    if path in GROUPS:
        emit(group(path))
    else:
        from sampan.cli.main import command_at

        emit(text(command_at(path), name))
    return 0


def _named(words: list[str]) -> tuple[str, str]:
    first = words[0]
    if first in GROUPS:
        path = first
        name = first
        for word in words[1:]:
            deeper = GROUPS.get(path, {}).get(word)
            if deeper is None:
                break
            path, name = deeper, f"{name} {word}"
        return path, name
    if first in TOP:
        return TOP[first], first
    raise Failure(f"unknown help topic: {' '.join(words)}")


def width() -> int:
    try:
        return max(posix.get_terminal_size(1).columns, NARROWEST)
    except OSError:
        return NARROWEST


def text(command: Command, name: str) -> str:
    """The whole help of one command."""
    parts = [f"Usage:  {args.usage_line(command, name)}\n\n{command.help}\n"]
    if command.aliases:
        every = [command.path, *command.aliases]
        parts.append("Aliases:\n  " + ", ".join(f"sampan {path}" for path in every) + "\n")
    flags = [flag for flag in command.flags if flag[4]]
    if flags:
        parts.append("Options:\n" + flag_lines(flags))
    return "\n".join(parts)


def flag_lines(flags: list[Flag]) -> str:
    """Flags in columns: names and kinds on the left, help on the right, wrapped."""
    names_of = [left(flag) for flag in flags]
    column = max(len(text) for text in names_of) + 3
    room = width() - column
    out = []
    for flag, names in zip(flags, names_of, strict=True):
        lines = wrap(flag[4] + default(flag), room)
        out.append(f"{names.ljust(column)}{lines[0]}")
        out += [" " * column + line for line in lines[1:]]
    return "".join(f"{line}\n" for line in out)


def left(flag: Flag) -> str:
    name, short, kind = flag[0], flag[1], flag[2]
    word = KINDS[kind][0]
    return (f"  -{short}, --{name}" if short else f"      --{name}") + (f" {word}" if word else "")


def default(flag: Flag) -> str:
    kind, value = flag[2], flag[3]
    if kind == "duration":
        return " (default 0s)"
    if not value:
        return ""
    if kind == "bool":
        return " (default true)"
    return f' (default "{value}")' if kind == "string" else f" (default {value})"


def wrap(sentence: str, room: int) -> list[str]:
    room = max(room, 24)
    lines, line = [], ""
    for word in sentence.split(" "):
        if line and len(line) + 1 + len(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _listed(title: str, entries: dict[str, str]) -> str:
    if not entries:
        return ""
    column = max(10, *(len(name) for name in entries)) + 2
    return (
        f"{title}:\n"
        + "".join(f"  {name.ljust(column)}{entries[name]}\n" for name in entries)
        + "\n"
    )


def group(path: str) -> str:
    """The help of a group: its commands."""
    entries: dict[str, str] = {}
    for word, target in sorted(GROUPS[path].items()):
        last = target.rsplit(" ", 1)[-1]
        if word != last:
            continue  # an alias
        if target in GROUPS:
            entries[word] = GROUP_HELP[target]
        elif not _command(target).hidden:
            entries[word] = _command(target).help
    return (
        f"Usage:  sampan {path} COMMAND\n\n{GROUP_HELP[path]}\n\n{_listed('Commands', entries)}"
        f"Run 'sampan {path} COMMAND --help' for more information on a command.\n"
    )


def _command(path: str) -> Command:
    from sampan.cli.main import command_at

    return command_at(path)


def root() -> str:
    common = {name: _command(TOP[name]).help for name in COMMON}
    groups = {
        name: GROUP_HELP[name] for name in sorted(GROUPS) if " " not in name and name != "swarm"
    }
    rest = {
        name: _command(path).help
        for name, path in sorted(TOP.items())
        if name not in COMMON and not _command(path).hidden
    }
    own = {name: text for name, text in rest.items() if _command(TOP[name]).own}
    plain = {name: text for name, text in rest.items() if name not in own}
    from sampan.cli.main import GLOBAL_FLAGS

    return (
        "Usage:  sampan [OPTIONS] COMMAND\n\nContainers, images and builds\n\n"
        + _listed("Common Commands", common)
        + _listed("Management Commands", groups)
        + _listed("Commands", plain)
        + _listed("Sampan's own Commands", own)
        + "Global Options:\n"
        + flag_lines(list(GLOBAL_FLAGS))
        + "\nRun 'sampan COMMAND --help' for more information on a command.\n"
    )
