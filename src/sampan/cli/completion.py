"""Shell completion and man pages, both from the command tables.

The scripts for bash, zsh and fish are a few lines: they hand the words to `sampan __complete` and take what it prints.
Names of containers, images, networks and volumes are asked of a running engine; none is started for it.
"""

from __future__ import annotations

import os

from sampan.cli import help as helping
from sampan.cli.args import Command, Flag
from sampan.cli.failures import Failure
from sampan.cli.session import dial, out
from sampan.cli.tables.index import GROUP_HELP, GROUPS, TOP, all_paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options
    from sampan.cli.session import Session

BASH = r"""# bash completion for sampan: source <(sampan completion bash)
_sampan() {
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDBREAKS= sampan __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
    [ ${#COMPREPLY[@]} -gt 0 ] || compopt -o default
}
complete -F _sampan sampan
"""
ZSH = r"""#compdef sampan
# zsh completion for sampan: source <(sampan completion zsh)
_sampan() {
    local -a found
    local line
    while IFS= read -r line; do
        found+=("${line%%$'\t'*}:${line#*$'\t'}")
    done < <(sampan __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then _describe sampan found; else _files; fi
}
compdef _sampan sampan
"""
FISH = r"""# fish completion for sampan: sampan completion fish | source
complete -c sampan -f -a '(set -l w (commandline -opc) (commandline -ct); sampan __complete $w[2..] 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(session: Session, options: Options) -> int:
    shell = options.args[0]
    if shell not in SCRIPTS:
        raise Failure(f"no completion for {shell}: there is one for {', '.join(SCRIPTS)}")
    out(SCRIPTS[shell].rstrip("\n"))
    return 0


# -- candidates ---------------------------------------------------------------------------------------------------


def complete(session: Session, options: Options) -> int:
    """Candidates for the last of the words, with a tab and what each means."""
    for word, meaning in candidates(session, options.args or [""]):
        out(f"{word}\t{meaning}")
    return 0


def candidates(session: Session, words: list[str]) -> list[tuple[str, str]]:
    *before, current = words
    path, command, rest = _walk(before)
    if command is None:
        if current.startswith("-") and not path:
            from sampan.cli.main import GLOBAL_FLAGS

            return _flags(GLOBAL_FLAGS, current)
        known = _words(path)
        return [(word, text) for word, text in known if word.startswith(current)]
    if rest and _takes_value(command, rest[-1]):
        return []  # a value of a flag: the shell's own guess, file names
    if current.startswith("-") and (command.interspersed or not _arguments(command, rest)):
        return _flags(command.flags, current)
    return [
        (name, kind)
        for name, kind in _objects(session, command, _arguments(command, rest))
        if name.startswith(current)
    ]


def _walk(words: list[str]) -> tuple[str, Command | None, list[str]]:
    """(group so far, command if the words name one, what stands behind it)."""
    from sampan.cli.main import command_at

    words = list(words)
    while words and words[0].startswith("-"):
        taken = words.pop(0)
        if taken in ("-H", "--host", "-c", "--context", "--config", "-l", "--log-level") and words:
            words.pop(0)
    path = ""
    for number, word in enumerate(words):
        table = (
            GROUPS[path] if path else {**TOP, **{name: name for name in GROUPS if " " not in name}}
        )
        target = table.get(word)
        if target is None:
            return path, None, []
        if target in GROUPS:
            path = target
            continue
        return path, command_at(target), words[number + 1 :]
    return path, None, []


def _words(path: str) -> list[tuple[str, str]]:
    from sampan.cli.main import command_at

    if path:
        table = {
            word: target
            for word, target in GROUPS[path].items()
            if target.rsplit(" ", 1)[-1] == word
        }
    else:
        table = {**TOP, **{name: name for name in GROUPS if " " not in name}}
    known = []
    for word, target in sorted(table.items()):
        if target in GROUPS:
            known.append((word, GROUP_HELP[target]))
        elif not command_at(target).hidden:
            known.append((word, command_at(target).help))
    return known


def _flags(flags: tuple[Flag, ...] | list[Flag] | object, current: str) -> list[tuple[str, str]]:
    assert isinstance(flags, (tuple, list))
    return [(f"--{f[0]}", f[4]) for f in flags if f[4] and f"--{f[0]}".startswith(current)]


def _takes_value(command: Command, word: str) -> bool:
    if not word.startswith("-") or "=" in word:
        return False
    for name, short, kind, _, _ in command.flags:
        if word == f"--{name}" or (short and not word.startswith("--") and word.endswith(short)):
            return kind != "bool"
    return False


def _arguments(command: Command, words: list[str]) -> list[str]:
    """The words that are neither flags nor their values."""
    found: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-") and not (found and not command.interspersed):
            skip = _takes_value(command, word)
        else:
            found.append(word)
    return found


def _objects(session: Session, command: Command, arguments: list[str]) -> list[tuple[str, str]]:
    """What the usage line asks for next, by name."""
    slots = [
        w.strip("[]")
        for w in command.usage.split("\n")[0].split()
        if w.isupper() or w[1:-1].isupper()
    ]
    slots = [s for s in slots if s != "OPTIONS"]
    if not slots:
        return []
    slot = slots[min(len(arguments), len(slots) - 1)]
    if slot.startswith("CONTAINER"):
        every = command.path not in (
            "container exec",
            "container stop",
            "container kill",
            "container attach",
        )
        return _named(session, "/containers/json", {"all": every}, "container")
    if slot.startswith(("IMAGE", "SOURCE_IMAGE", "NAME")) and len(arguments) <= slots.index(slot):
        return _named(session, "/images/json", {}, "image")
    if slot.startswith("NETWORK"):
        return _named(session, "/networks", {}, "network")
    if slot.startswith("VOLUME"):
        return _named(session, "/volumes", {}, "volume")
    return []


def _named(
    session: Session, path: str, query: dict[str, object], kind: str
) -> list[tuple[str, str]]:
    try:
        if session.host.startswith("unix://"):
            dial(session.host.removeprefix("unix://")).close()  # completion starts no engine
        found = session.client.json(path, query=query)
    except (Failure, OSError):
        return []
    if kind == "container":
        return [(name.lstrip("/"), c["Image"]) for c in found for name in c["Names"]]
    if kind == "image":
        return [(tag, "image") for image in found for tag in image["RepoTags"] or []]
    listed = found["Volumes"] or [] if kind == "volume" else found
    return [(item["Name"], item["Driver"]) for item in listed]


# -- man pages ----------------------------------------------------------------------------------------------------


def man(session: Session, options: Options) -> int:
    """A page for every command: sampan-container-run.1 ..."""
    from sampan.cli.main import command_at

    directory = options.args[0] if options.args else "."
    os.makedirs(directory, exist_ok=True)
    written = 0
    for path in all_paths():
        command = command_at(path)
        if command.hidden:
            continue
        with open(f"{directory}/sampan-{path.replace(' ', '-')}.1", "w", encoding="utf-8") as file:
            file.write(page(command))
        written += 1
    with open(f"{directory}/sampan.1", "w", encoding="utf-8") as file:
        file.write(root_page())
    out(f"{written + 1} pages in {directory}")
    return 0


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n")
    )


def page(command: Command) -> str:
    name = command.path
    lines = [
        f'.TH "SAMPAN-{name.replace(" ", "-").upper()}" "1" "" "sampan" "Sampan commands"',
        ".SH NAME",
        f"sampan\\-{_roff(name.replace(' ', '-'))} \\- {_roff(command.help)}",
        ".SH SYNOPSIS",
    ]
    lines += [f".B sampan {_roff(name)}\n{_roff(form)}\n.br" for form in command.usage.split("\n")]
    shown = [flag for flag in command.flags if flag[4]]
    if shown:
        lines.append(".SH OPTIONS")
    for flag in shown:
        lines += [
            ".TP",
            f".B {_roff(helping.left(flag).strip())}",
            _roff(flag[4] + helping.default(flag)),
        ]
    if command.aliases:
        lines += [".SH ALIASES", _roff(", ".join(f"sampan {alias}" for alias in command.aliases))]
    return "\n".join(lines) + "\n"


def root_page() -> str:
    from sampan.cli.main import command_at

    lines = [
        '.TH "SAMPAN" "1" "" "sampan" "Sampan commands"',
        ".SH NAME",
        "sampan \\- containers, images and builds",
        ".SH SYNOPSIS",
        ".B sampan\n[OPTIONS] COMMAND [ARG...]",
        ".SH COMMANDS",
    ]
    for path in all_paths():
        if not command_at(path).hidden:
            lines += [
                ".TP",
                f".BR sampan\\-{_roff(path.replace(' ', '-'))} (1)",
                _roff(command_at(path).help),
            ]
    return "\n".join(lines) + "\n"
