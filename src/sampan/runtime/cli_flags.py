"""Flags of sampan-oci: one table per command, and the parser that reads argv by it.

The command line is runc's; what crun adds (`--config`, `--cgroup-manager`, `--regex`, `mounts`) is
understood too. Parsing follows Go's flag package: `--name value`, `--name=value`, `-n value`; a boolean takes
a value only with `=`. Flags may come before or after the container's id, except where a command line of
somebody else follows it (exec, ps).
"""

from __future__ import annotations

import posix

from sampan.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime import Process

# A flag: "name[,short]" -> kind. "b" boolean, "s" string, "i" integer, "l" list (may be repeated).
FlagTable = dict[str, str]

GLOBAL: FlagTable = {
    "debug": "b",
    "log": "s",
    "log-format": "s",
    "log-level": "s",
    "root": "s",
    "criu": "s",
    "systemd-cgroup": "b",
    "cgroup-manager": "s",
    "rootless": "s",
    "help,h": "b",
    "version,v": "b",
}
_CREATE: FlagTable = {
    "bundle,b": "s",
    "config,f": "s",
    "console-socket": "s",
    "pidfd-socket": "s",
    "pid-file": "s",
    "no-pivot": "b",
    "no-new-keyring": "b",
    "no-subreaper": "b",
    "preserve-fds": "i",
}


class Command:
    """A command's flags, its operands and the sentence that --help shows."""

    __slots__ = ("flags", "maximum", "minimum", "operands", "stops", "summary")

    def __init__(
        self,
        summary: str,
        operands: str,
        flags: FlagTable,
        minimum: int,
        maximum: int,
        *,
        stops: bool = False,
    ) -> None:
        self.summary = summary
        self.operands = operands
        self.flags = flags
        self.minimum = minimum
        self.maximum = maximum
        self.stops = stops  # what follows the id is not for us


ANY = 1 << 30
COMMANDS = {
    "create": Command("create a container", "CONTAINER", _CREATE, 1, 1),
    "run": Command(
        "create and run a container", "CONTAINER", {**_CREATE, "detach,d": "b", "keep": "b"}, 1, 1
    ),
    "start": Command("run the process of a created container", "CONTAINER", {}, 1, 1),
    "state": Command("print the state of a container", "CONTAINER", {"all,a": "b"}, 1, 1),
    "kill": Command("send a signal to a container", "CONTAINER [SIGNAL]", {"all,a": "b", "regex,r": "b"}, 1, 2),
    "delete": Command(
        "delete what a container holds", "CONTAINER", {"force,f": "b", "regex,r": "b"}, 1, 1
    ),
    "exec": Command(
        "run one more process in a container",
        "CONTAINER cmd",
        {
            "console-socket": "s", "pidfd-socket": "s", "cwd": "s", "env,e": "l", "tty,t": "b", "user,u": "s",
            "additional-gids,g": "l", "process,p": "s", "detach,d": "b", "pid-file": "s",
            "process-label": "s", "apparmor": "s", "no-new-privs": "b", "cap,c": "l", "preserve-fds": "i",
            "cgroup": "l", "ignore-paused": "b", "no-subreaper": "b",
        },
        1,
        ANY,
        stops=True,
    ),
    "ps": Command("list the processes of a container", "CONTAINER [ps options]", {"format,f": "s"}, 1, ANY, stops=True),
    "pause": Command("freeze a container", "CONTAINER", {}, 1, 1),
    "resume": Command("let a frozen container run again", "CONTAINER", {}, 1, 1),
    "update": Command(
        "change a container's limits",
        "CONTAINER",
        {
            "resources,r": "s", "blkio-weight": "i", "cpu-period": "s", "cpu-quota": "s", "cpu-burst": "s",
            "cpu-share": "s", "cpu-rt-period": "s", "cpu-rt-runtime": "s", "cpuset-cpus": "s",
            "cpuset-mems": "s", "kernel-memory": "s", "kernel-memory-tcp": "s", "memory": "s", "cpu-idle": "s",
            "memory-reservation": "s", "memory-swap": "s", "pids-limit": "i", "l3-cache-schema": "s",
            "mem-bw-schema": "s",
        },
        1,
        1,
    ),
    "events": Command("show statistics and OOM events", "CONTAINER", {"interval": "s", "stats": "b"}, 1, 1),
    "list": Command("list containers", "", {"format,f": "s", "quiet,q": "b"}, 0, 0),
    "spec": Command("write a config.json to start from", "", {"bundle,b": "s", "rootless": "b"}, 0, 0),
    "features": Command("show what this runtime supports", "", {}, 0, 0),
    "mounts": Command("add mounts to a running container, or remove them", "[add|remove] CONTAINER FILE", {}, 3, 3),
    "checkpoint": Command("not supported", "CONTAINER", {}, 0, ANY),
    "restore": Command("not supported", "CONTAINER", {}, 0, ANY),
}  # fmt: skip
HELP: FlagTable = {"help,h": "b"}


class Parsed:
    """Flags that were given, by long name, and the operands."""

    __slots__ = ("operands", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.operands: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        value: str = self.values.get(name, default)
        return value

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name, False))

    def number(self, name: str, default: int = 0) -> int:
        value: int = self.values.get(name, default)
        return value

    def many(self, name: str) -> list[str]:
        value: list[str] = self.values.get(name, [])
        return value


def parse(argv: list[str], table: FlagTable, *, stops: bool) -> Parsed:
    """Read argv by a table. `stops`: the first operand ends the flags, all the rest are operands."""
    kinds: dict[str, tuple[str, str]] = {}
    for names, kind in {**table, **HELP}.items():
        long, _, short = names.partition(",")
        kinds[long] = (long, kind)
        if short:
            kinds[short] = (long, kind)
    parsed = Parsed()
    rest = argv[::-1]
    while rest:
        word = rest.pop()
        if word == "--":
            parsed.operands += rest[::-1]
            break
        if not word.startswith("-") or word == "-":
            parsed.operands.append(word)
            if stops:
                parsed.operands += rest[::-1]
                break
            continue
        _take_flag(parsed, kinds, word, rest)
    return parsed


def _take_flag(
    parsed: Parsed, kinds: dict[str, tuple[str, str]], word: str, rest: list[str]
) -> None:
    name, equals, value = word.lstrip("-").partition("=")
    if name not in kinds:
        if (
            not word.startswith("--")
            and len(name) > 1
            and not equals
            and _all_switches(name, kinds)
        ):
            for letter in name:
                parsed.values[kinds[letter][0]] = True
            return
        raise InvalidArgument(f"flag provided but not defined: -{name}")
    long, kind = kinds[name]
    if kind == "b":
        parsed.values[long] = _boolean(long, value) if equals else True
        return
    if not equals:
        if not rest:
            raise InvalidArgument(f"flag needs an argument: -{name}")
        value = rest.pop()
    if kind == "l":
        parsed.values.setdefault(long, []).append(value)
    elif kind == "i":
        parsed.values[long] = integer(value, "--" + long)
    else:
        parsed.values[long] = value


def _all_switches(letters: str, kinds: dict[str, tuple[str, str]]) -> bool:
    return all(letter in kinds and kinds[letter][1] == "b" for letter in letters)


def _boolean(name: str, value: str) -> bool:
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidArgument(f'invalid boolean value "{value}" for -{name}')


def integer(text: str, what: str) -> int:
    """A decimal number, as strict as Go's (rule P5: int() would take "1_0", " 7 " and other alphabets)."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not digits or len(digits) > 20 or any(letter not in "0123456789" for letter in digits):
        raise InvalidArgument(f'invalid value "{text}" for {what}: not an integer')
    return int(text)


def usage(program: str, name: str = "") -> str:
    """The text of --help: runc's heading, crun's line of usage."""
    if not name:
        width = max(map(len, COMMANDS))
        rows = "".join(
            f"    {key:{width}}  {command.summary}\n" for key, command in COMMANDS.items()
        )
        name = f"NAME:\n   {program} - Open Container Initiative runtime\n\n"
        return f"{name}Usage: {program} [OPTION...] COMMAND [OPTION...]\n\nCommands:\n{rows}\nOptions:\n{_rows(GLOBAL)}"
    command = COMMANDS[name]
    line = f"Usage: {program} [OPTION...] {name} {command.operands}".rstrip()
    return f"NAME:\n   {program} {name} - {command.summary}\n\n{line}\n\nOptions:\n{_rows({**command.flags, **HELP})}"


def _rows(table: FlagTable) -> str:
    values = {"b": "", "s": " VALUE", "i": " N", "l": " VALUE (may be repeated)"}
    rows = []
    for names, kind in table.items():
        long, _, short = names.partition(",")
        rows.append(f"    --{long}{', -' + short if short else ''}{values[kind]}\n")
    return "".join(rows)


MAX_PRESERVED = 65536


def preserved(count: int) -> tuple[int, ...]:
    """--preserve-fds: which of the descriptors from 3 on are there. The holes are filled, so that nothing of ours falls in."""
    if not 0 <= count <= MAX_PRESERVED:
        raise InvalidArgument(f"--preserve-fds: {count} is out of range, 0 to {MAX_PRESERVED}")
    there = []
    for number in range(3, 3 + count):
        try:
            posix.fstat(number)
            there.append(number)
        except OSError:
            posix.open(
                "/", posix.O_PATH | posix.O_CLOEXEC
            )  # takes the lowest free number: this one
    return tuple(there)


def check_terminal(process: Process, parsed: Parsed, *, detach: bool) -> None:
    """A terminal that nobody would serve, or a socket for a terminal that is not made."""
    socket = parsed.text("console-socket")
    terminal = process.get("terminal", False)
    if detach and terminal and not socket:
        raise InvalidArgument(
            "cannot allocate tty if runtime will detach without setting console socket"
        )
    if (not detach or not terminal) and socket:
        raise InvalidArgument(
            "cannot use console socket if runtime will not detach or allocate tty"
        )
