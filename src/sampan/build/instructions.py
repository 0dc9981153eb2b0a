"""Nodes to typed instructions: what each word and flag of a Dockerfile's line means, and what is wrong with it. Pure.

Every instruction is a frozen value. `Instruction` carries what all have: its source, where it stands, the comments
above it. Variables are expanded later, when the stage's environment is known (`graph.py`): fields hold texts as
written. A Dockerfile is global ARGs and then stages, each a FROM with its instructions. RUN's --mount has a module of
its own, `run_mounts.py`.

Source: the Dockerfile reference; wording of errors as Docker's builder has it, for people search for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from sampan.build.expand import go_quote
from sampan.build.parser import Dockerfile, DockerfileError, Heredoc, Node, parse_heredoc
from sampan.build.run_mounts import MountError, MountFlag, mount_flag
from sampan.build.suggest import suggestion
from sampan.errors import InvalidArgument
from sampan.units import parse_duration

STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*", re.ASCII)


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """What all instructions have."""

    name: str
    source: str
    start: int = 0
    end: int = 0
    comments: tuple[str, ...] = ()


class Pair(msgspec.Struct, frozen=True):
    """NAME=value; `legacy` where it was written with a blank instead of '='."""

    key: str
    value: str
    legacy: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


class ArgPair(msgspec.Struct, frozen=True):
    """A build argument, perhaps with a default."""

    key: str
    default: str | None = None
    description: str = ""


class Command(Instruction, frozen=True, kw_only=True):
    """RUN, CMD, ENTRYPOINT: a list to execute, or one text for the shell (`shell`)."""

    args: tuple[str, ...] = ()
    shell: bool = True
    files: tuple[Heredoc, ...] = ()


class Env(Instruction, frozen=True, kw_only=True):
    pairs: tuple[Pair, ...]


class Label(Instruction, frozen=True, kw_only=True):
    pairs: tuple[Pair, ...]


class Arg(Instruction, frozen=True, kw_only=True):
    pairs: tuple[ArgPair, ...]


class Maintainer(Instruction, frozen=True, kw_only=True):
    maintainer: str


class Inline(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose content stands in the Dockerfile."""

    path: str
    data: str
    expand: bool


class CopyLike(Instruction, frozen=True, kw_only=True):
    """What COPY and ADD share."""

    sources: tuple[str, ...]
    inline: tuple[Inline, ...] = ()
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


class Copy(CopyLike, frozen=True, kw_only=True):
    from_: str = ""
    parents: bool = False


class Add(CopyLike, frozen=True, kw_only=True):
    keep_git_dir: bool | None = None
    checksum: str = ""
    unpack: bool | None = None


class Run(Command, frozen=True, kw_only=True):
    mounts: tuple[MountFlag, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[str, ...] = ()


class Cmd(Command, frozen=True, kw_only=True):
    pass


class Entrypoint(Command, frozen=True, kw_only=True):
    pass


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """A health check; durations in nanoseconds, 0 for the default."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


class Healthcheck(Instruction, frozen=True, kw_only=True):
    health: Health


class Expose(Instruction, frozen=True, kw_only=True):
    ports: tuple[str, ...]


class User(Instruction, frozen=True, kw_only=True):
    user: str


class Workdir(Instruction, frozen=True, kw_only=True):
    path: str


class Volume(Instruction, frozen=True, kw_only=True):
    paths: tuple[str, ...]


class Stopsignal(Instruction, frozen=True, kw_only=True):
    signal: str


class Shell(Instruction, frozen=True, kw_only=True):
    shell: tuple[str, ...]


class Onbuild(Instruction, frozen=True, kw_only=True):
    expression: str


class From(Instruction, frozen=True, kw_only=True):
    base: str
    stage: str = ""
    written_stage: str = ""
    as_word: str = ""
    platform: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A FROM and what follows it."""

    origin: From
    instructions: tuple[Instruction, ...] = ()

    @property
    def name(self) -> str:
        return self.origin.stage

    @property
    def description(self) -> str:
        return description_of(self.origin.comments, self.origin.stage)


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A whole Dockerfile."""

    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]


# --- flags


class Flags:
    """The --flags of one line against those that its instruction has."""

    def __init__(self, node: Node, *, texts: str = "", booleans: str = "", lists: str = "") -> None:
        self._kinds = dict.fromkeys(texts.split(), "text")
        self._kinds |= dict.fromkeys(booleans.split(), "boolean")
        self._kinds |= dict.fromkeys(lists.split(), "list")
        self._texts: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        for flag in node.flags:
            if flag == "--":
                break
            self._take(flag)

    def _take(self, flag: str) -> None:
        written, equals, value = flag.partition("=")
        name = written[2:]
        kind = self._kinds.get(name)
        if kind is None:
            raise DockerfileError(
                f"unknown flag: {name}{suggestion(name, self._kinds, exact_case=True)}"
            )
        if kind != "list" and name in self._texts:
            raise DockerfileError(f"duplicate flag specified: {name}")
        if kind == "boolean":
            value = self._boolean(name, equals, value)
        elif not equals:
            raise DockerfileError(f"missing a value on flag: {name}")
        if kind == "list":
            self._lists.setdefault(name, []).append(value)
        else:
            self._texts[name] = value

    @staticmethod
    def _boolean(name: str, equals: str, value: str) -> str:
        if equals and not value:
            raise DockerfileError(f"missing a value on flag: {name}")
        word = value.lower() or "true"
        if word not in ("true", "false"):
            raise DockerfileError(f"expecting boolean value for flag {name}, not: {value}")
        return word

    def text(self, name: str, default: str = "") -> str:
        return self._texts.get(name, default)

    def flag(self, name: str) -> bool:
        return self._texts.get(name) == "true"

    def maybe(self, name: str) -> bool | None:
        return self._texts[name] == "true" if name in self._texts else None

    def list(self, name: str) -> tuple[str, ...]:
        return tuple(self._lists.get(name, ()))


# --- one instruction


def instruction_of(node: Node) -> Instruction:
    """Raises DockerfileError with the node's lines."""
    name = node.command.lower()
    make = MAKERS.get(name)
    try:
        if make is None:
            hint = suggestion(node.command, MAKERS, exact_case=False)
            raise DockerfileError(f"unknown instruction: {node.command}{hint}")
        return make(node)
    except DockerfileError as error:
        raise type(error)(
            error.message, line=error.line or node.start, end=error.end or node.end
        ) from None
    except InvalidArgument as error:
        raise DockerfileError(error.message, line=node.start, end=node.end) from None


def program_of(dockerfile: Dockerfile) -> Program:
    """Global arguments and stages. Raises DockerfileError, its message with the line as Docker says it."""
    arguments: list[Arg] = []
    stages: list[tuple[From, list[Instruction]]] = []
    for node in dockerfile.nodes:
        try:
            instruction = instruction_of(node)
        except MountError:
            raise
        except DockerfileError as error:
            raise DockerfileError(
                f"dockerfile parse error on line {node.start}: {error.message}",
                line=error.line, end=error.end,
            ) from None  # fmt: skip
        if isinstance(instruction, From):
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif isinstance(instruction, Arg):
            arguments.append(instruction)
        else:
            raise DockerfileError(
                "no build stage in current context", line=node.start, end=node.end
            )
    if not stages:
        raise DockerfileError("dockerfile contains no stages to build")
    made = (Stage(origin=origin, instructions=tuple(rest)) for origin, rest in stages)
    return Program(arguments=tuple(arguments), stages=tuple(made))


def trigger_of(expression: str) -> Instruction:
    """The instruction that an image's ONBUILD stored. Raises DockerfileError."""
    from sampan.build.parser import parse

    dockerfile = parse(expression.encode("utf-8", "surrogateescape"))
    if len(dockerfile.nodes) != 1:
        raise DockerfileError("onbuild trigger should be a single expression")
    instruction = instruction_of(dockerfile.nodes[0])
    if isinstance(instruction, From):
        raise DockerfileError("FROM isn't allowed as an ONBUILD trigger")
    return instruction


def description_of(comments: tuple[str, ...], name: str) -> str:
    """The comment `# name text` above a definition."""
    if name:
        for comment in comments:
            if comment.startswith(name + " "):
                return comment[len(name) + 1 :]
    return ""


def _common(node: Node) -> dict[str, object]:
    return {
        "name": node.command.upper(),
        "source": node.original.strip(),
        "start": node.start,
        "end": node.end,
        "comments": node.comments,
    }


def _at_least_one(name: str) -> DockerfileError:
    return DockerfileError(f"{name} requires at least one argument")


def _exactly_one(node: Node) -> str:
    if len(node.args) != 1:
        raise DockerfileError(f"{node.command.upper()} requires exactly one argument")
    return node.args[0]


def _key_values(node: Node) -> tuple[Pair, ...]:
    Flags(node)
    name = node.command.upper()
    if not node.args:
        raise _at_least_one(name)
    triples = zip(node.args[::3], node.args[1::3], node.args[2::3], strict=True)
    pairs = tuple(Pair(key, value, separator == "") for key, value, separator in triples)
    if any(not pair.key for pair in pairs):
        raise DockerfileError(f"{name} names can not be blank")
    return pairs


def _env(node: Node) -> Env:
    return msgspec.convert(_common(node) | {"pairs": _key_values(node)}, Env)


def _label(node: Node) -> Label:
    return msgspec.convert(_common(node) | {"pairs": _key_values(node)}, Label)


def _maintainer(node: Node) -> Maintainer:
    Flags(node)
    return msgspec.convert(_common(node) | {"maintainer": _exactly_one(node)}, Maintainer)


def _arg(node: Node) -> Arg:
    Flags(node)
    if not node.args:
        raise _at_least_one("ARG")
    pairs = []
    for word in node.args:
        key, equals, value = word.partition("=")
        if not key:
            raise DockerfileError("ARG names can not be blank")
        described = description_of(node.comments, key)
        pairs.append(ArgPair(key, value if equals else None, described))
    return msgspec.convert(_common(node) | {"pairs": tuple(pairs)}, Arg)


def _sources(node: Node) -> dict[str, object]:
    name = node.command.upper()
    if len(node.args) < 2:
        raise DockerfileError(
            f"{name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    *words, destination = node.args
    if not node.json and parse_heredoc(destination) is not None:
        raise DockerfileError(f"{name} cannot accept a heredoc as a destination")
    documents = {heredoc.name: heredoc for heredoc in node.heredocs}
    sources: list[str] = []
    inline: list[Inline] = []
    for word in words:
        heredoc = None if node.json else parse_heredoc(word)
        if heredoc is None:
            sources.append(word)
            continue
        found = documents.get(heredoc.name, heredoc)
        inline.append(Inline(path=heredoc.name, data=found.text, expand=heredoc.expand))
    return _common(node) | {
        "sources": tuple(sources),
        "inline": tuple(inline),
        "destination": destination,
    }


def _add(node: Node) -> Add:
    flags = Flags(
        node, texts="chown chmod checksum", booleans="link keep-git-dir unpack", lists="exclude"
    )
    fields = _sources(node) | {
        "chown": flags.text("chown"), "chmod": flags.text("chmod"), "checksum": flags.text("checksum"),
        "link": flags.flag("link"), "keep_git_dir": flags.maybe("keep-git-dir"),
        "unpack": flags.maybe("unpack"), "exclude": flags.list("exclude"),
    }  # fmt: skip
    return msgspec.convert(fields, Add)


def _copy(node: Node) -> Copy:
    flags = Flags(node, texts="chown chmod from", booleans="link parents", lists="exclude")
    fields = _sources(node) | {
        "chown": flags.text("chown"), "chmod": flags.text("chmod"), "from_": flags.text("from"),
        "link": flags.flag("link"), "parents": flags.flag("parents"), "exclude": flags.list("exclude"),
    }  # fmt: skip
    return msgspec.convert(fields, Copy)


def _from(node: Node) -> From:
    args = node.args
    stage = written = as_word = ""
    if len(args) == 3 and args[1].lower() == "as":
        written, as_word = args[2], args[1]
        stage = written.lower()
        if not STAGE_NAME.fullmatch(stage):
            raise DockerfileError(
                f"invalid name for build stage: {go_quote(written)}, "
                "name can't start with a number or contain symbols"
            )
    elif len(args) != 1:
        raise DockerfileError("FROM requires either one or three arguments")
    flags = Flags(node, texts="platform")
    fields = _common(node) | {
        "base": args[0], "stage": stage, "written_stage": written, "as_word": as_word,
        "platform": flags.text("platform"),
    }  # fmt: skip
    return msgspec.convert(fields, From)


def _onbuild(node: Node) -> Onbuild:
    if node.child is None:
        raise _at_least_one("ONBUILD")
    Flags(node)
    trigger = node.child.command.upper()
    if trigger == "ONBUILD":
        raise DockerfileError("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise DockerfileError(f"{trigger} isn't allowed as an ONBUILD trigger")
    expression = re.sub(r"(?i)^\s*ONBUILD\s*", "", node.original)
    for heredoc in node.heredocs:
        expression += f"\n{heredoc.content}{heredoc.name}"
    return msgspec.convert(_common(node) | {"expression": expression}, Onbuild)


def _command_fields(node: Node) -> dict[str, object]:
    return _common(node) | {"args": node.args, "shell": not node.json, "files": node.heredocs}


def _run(node: Node) -> Run:
    flags = Flags(node, texts="network security", lists="mount device")
    network = flags.text("network", "default")
    if network not in ("default", "none", "host"):
        raise DockerfileError(f"invalid network mode {go_quote(network)}")
    security = flags.text("security", "sandbox")
    if security not in ("sandbox", "insecure"):
        raise DockerfileError(f"security {go_quote(security)} is not valid")
    fields = _command_fields(node) | {
        "mounts": tuple(mount_flag(text) for text in flags.list("mount")),
        "network": network, "security": security, "devices": flags.list("device"),
    }  # fmt: skip
    return msgspec.convert(fields, Run)


def _cmd(node: Node) -> Cmd:
    Flags(node)
    return msgspec.convert(_command_fields(node), Cmd)


def _entrypoint(node: Node) -> Entrypoint:
    Flags(node)
    return msgspec.convert(_command_fields(node), Entrypoint)


def _interval(name: str, text: str) -> int:
    if not text:
        return 0
    nanoseconds = parse_duration(text)
    if nanoseconds and nanoseconds < 1_000_000:
        raise DockerfileError(f"Interval {go_quote(name)} cannot be less than 1ms")
    return nanoseconds


def _healthcheck(node: Node) -> Healthcheck:
    if not node.args:
        raise _at_least_one("HEALTHCHECK")
    kind, rest = node.args[0].upper(), node.args[1:]
    if kind == "NONE":
        if rest:
            raise DockerfileError("HEALTHCHECK NONE takes no arguments")
        return msgspec.convert(_common(node) | {"health": Health(test=("NONE",))}, Healthcheck)
    durations = ("interval", "timeout", "start-period", "start-interval")
    flags = Flags(node, texts="retries " + " ".join(durations))
    if kind != "CMD":
        raise DockerfileError(f"Unknown type {go_quote(kind)} in HEALTHCHECK (try CMD)")
    if not rest:
        raise DockerfileError("Missing command after HEALTHCHECK CMD")
    retries = flags.text("retries", "0")
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", retries, re.ASCII):
        raise DockerfileError(f"strconv.ParseInt: parsing {go_quote(retries)}: invalid syntax")
    if int(retries) < 0:
        raise DockerfileError(f"--retries cannot be negative ({int(retries)})")
    times = {f"{d.replace('-', '_')}_ns": _interval(d, flags.text(d)) for d in durations}
    health = Health(
        test=("CMD" if node.json else "CMD-SHELL", *rest), retries=int(retries), **times
    )
    return msgspec.convert(_common(node) | {"health": health}, Healthcheck)


def _expose(node: Node) -> Expose:
    if not node.args:
        raise _at_least_one("EXPOSE")
    Flags(node)
    return msgspec.convert(_common(node) | {"ports": tuple(sorted(node.args))}, Expose)


def _user(node: Node) -> User:
    user = _exactly_one(node)
    Flags(node)
    return msgspec.convert(_common(node) | {"user": user}, User)


def _workdir(node: Node) -> Workdir:
    path = _exactly_one(node)
    Flags(node)
    return msgspec.convert(_common(node) | {"path": path}, Workdir)


def _volume(node: Node) -> Volume:
    if not node.args:
        raise _at_least_one("VOLUME")
    Flags(node)
    paths = tuple(path.strip() for path in node.args)
    if not all(paths):
        raise DockerfileError("VOLUME specified can not be an empty string")
    return msgspec.convert(_common(node) | {"paths": paths}, Volume)


def _stopsignal(node: Node) -> Stopsignal:
    signal = _exactly_one(node)
    Flags(node)
    return msgspec.convert(_common(node) | {"signal": signal}, Stopsignal)


def _shell(node: Node) -> Shell:
    Flags(node)
    if not node.args:
        raise _at_least_one("SHELL")
    if not node.json:
        raise DockerfileError("SHELL requires the arguments to be in JSON form")
    return msgspec.convert(_common(node) | {"shell": node.args}, Shell)


MAKERS: dict[str, Callable[[Node], Instruction]] = {
    "add": _add,
    "arg": _arg,
    "cmd": _cmd,
    "copy": _copy,
    "entrypoint": _entrypoint,
    "env": _env,
    "expose": _expose,
    "from": _from,
    "healthcheck": _healthcheck,
    "label": _label,
    "maintainer": _maintainer,
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": _stopsignal,
    "user": _user,
    "volume": _volume,
    "workdir": _workdir,
}
