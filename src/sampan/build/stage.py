"""One stage of a Dockerfile on its way: its instructions, in order, change a configuration, a history, a chain of
operations. `plan.py` goes through the stages; here is what each instruction means. Pure.

A value from the request beats a default of ARG; ENV beats ARG. What is predefined (proxies) needs no declaration and
stays out of history and cache keys.

Sources: the Dockerfile reference; wording of history entries as BuildKit writes them, for tools read it.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

import msgspec

from sampan.build import instructions as ins
from sampan.build.expand import Lexer, go_quote, go_quote_rune, split
from sampan.build.graph import (
    ContextSource,
    Copy,
    CopyItem,
    GitSource,
    HttpSource,
    Image,
    InlineSource,
    Label,
    Operation,
    Run,
    RunMount,
    Scratch,
    StageSource,
    Workdir,
)
from sampan.build.lint import tell_undefined, written
from sampan.build.parser import DockerfileError, parse_heredoc
from sampan.build.run_mounts import MountFlag, mount_of
from sampan.build.sources import is_http, parse_git
from sampan.build.stages import At, Base, StageFacts
from sampan.errors import InvalidArgument, PermissionDenied
from sampan.spec.image import Healthcheck, History, Platform, RunConfig
from sampan.units import format_duration

if TYPE_CHECKING:
    from sampan.build.plan import Planner

HISTORY_COMMENT = "buildkit.dockerfile.v0"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
NOT_IN_ENVIRONMENT = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
SIGNALS = (
    frozenset(
        [
            "ABRT",
            "ALRM",
            "BUS",
            "CHLD",
            "CLD",
            "CONT",
            "FPE",
            "HUP",
            "ILL",
            "INT",
            "IO",
            "IOT",
            "KILL",
            "PIPE",
            "POLL",
            "PROF",
            "PWR",
            "QUIT",
            "SEGV",
            "STKFLT",
            "STOP",
            "SYS",
            "TERM",
            "TRAP",
            "TSTP",
            "TTIN",
            "TTOU",
            "URG",
            "USR1",
            "USR2",
            "VTALRM",
            "WINCH",
            "XCPU",
            "XFSZ",
            "RTMIN",
            "RTMAX",
        ]
    )
    | {f"RTMIN+{n}" for n in range(1, 16)}
    | {f"RTMAX-{n}" for n in range(1, 15)}
)


class StageBuilder:
    """The state of one stage while its instructions are gone through."""

    def __init__(self, planner: Planner, facts: StageFacts) -> None:
        self.planner = planner
        self.facts = facts
        self.operation: Operation = Scratch()
        self.config = RunConfig(env=(f"PATH={DEFAULT_PATH}",), working_dir="/")
        self.history: tuple[History, ...] = ()
        self.author = ""
        self.env: dict[str, str] = {}
        self.args: dict[str, str | None] = {}
        self.cmd_is_set = False
        self.number = 0
        self.total = 0
        self.platform: Platform = planner.request.platform
        self.image_label: Label | None = None
        self.current: ins.Instruction | None = None
        self.last: dict[type[ins.Instruction], ins.Instruction] = {}
        self.workdir_is_set = False

    def start_from(self, other: StageBuilder) -> None:
        """FROM a stage."""
        self.operation = other.operation
        self.config = msgspec.structs.replace(other.config, on_build=None)
        self.history = other.history
        self.author = other.author
        self.workdir_is_set = other.workdir_is_set
        self.env = dict(other.env)
        self.platform = other.platform

    def start_from_image(self, base: Base, operation: Image) -> None:
        """FROM an image."""
        document = base.document
        self.operation = operation
        self.config = msgspec.structs.replace(document.config, on_build=None)
        self.history = document.history
        self.author = document.author

    def begin(self) -> None:
        """What the base configuration means for the instructions to come."""
        env = self.config.env or ()
        if not any(text.startswith("PATH=") for text in env):
            env = (*env, f"PATH={DEFAULT_PATH}")
        self.config = msgspec.structs.replace(self.config, env=env)
        for text in env:
            key, _, value = text.partition("=")
            self.env[key] = value

    # -- small helpers

    def expand(self, word: str) -> str:
        made = Lexer(self.env, escape=self.planner.escape).run(word)
        self._tell_undefined(made.unmatched)
        return made.text

    def _tell_undefined(self, names: set[str]) -> None:
        left = names - self.args.keys() - NOT_IN_ENVIRONMENT
        if left and self.current is not None:
            tell_undefined(self.planner.linter, self.current, left, self.env)

    def _only_once(self, instruction: ins.Instruction) -> None:
        """Of these only the last counts."""
        before = self.last.get(type(instruction))
        if before is not None:
            name = written(instruction)
            self.planner.linter.tell(
                "MultipleInstructionsDisallowed", before,
                f"Multiple {name} instructions should not be used in the same stage because only the last one will be used",
            )  # fmt: skip
        self.last[type(instruction)] = instruction

    def _recommend_json(self, instruction: ins.Cmd | ins.Entrypoint) -> None:
        if instruction.shell and not self.config.shell:
            self.planner.linter.tell(
                "JSONArgsRecommended", instruction,
                f"JSON arguments recommended for {written(instruction)} to prevent unintended behavior related to OS signals",
            )  # fmt: skip

    def change(self, **fields: object) -> None:
        self.config = msgspec.structs.replace(self.config, **fields)

    def commit(self, text: str, *, layer: bool = False, marked: bool = False) -> None:
        """One history entry."""
        entry = History(
            created=self.planner.request.epoch or None,
            created_by=text + (" # buildkit" if marked else ""),
            comment=HISTORY_COMMENT,
            empty_layer=not layer,
        )
        self.history = (*self.history, entry)

    def label(self, instruction: ins.Instruction, name: str) -> Label:
        self.number += 1
        return Label(
            name, stage=self.planner.stages.label(self.facts.index), start=instruction.start,
            end=instruction.end, number=self.number, total=self.total,
            platform=self.planner.shown_platform(self),
        )  # fmt: skip

    @property
    def knows_target(self) -> bool:
        """Whether the stage declared what it builds for."""
        return any(name in self.env for name in ("TARGETPLATFORM", "TARGETARCH"))

    @property
    def no_cache(self) -> bool:
        request = self.planner.request
        return request.no_cache or self.facts.stage.name in request.no_cache_stages

    def absolute(self, path: str) -> str:
        """A path in the image, the working directory in front of a relative one; a final slash stays."""
        joined = posixpath.join(self.config.working_dir or "/", path or ".")
        clean = posixpath.normpath("/" + joined)
        clean = "/" + clean.lstrip("/")
        return (
            clean + "/"
            if (path.endswith(("/", "/.")) or path in ("", ".")) and clean != "/"
            else clean
        )

    def shell_form(self, args: tuple[str, ...]) -> tuple[str, ...]:
        return (*(self.config.shell or DEFAULT_SHELL), " ".join(args))

    # -- instructions

    def do(self, instruction: ins.Instruction) -> None:
        method = getattr(self, "_" + type(instruction).__name__.lower())
        self.current = instruction
        with At(instruction):
            method(instruction)

    def _env(self, instruction: ins.Env) -> None:
        text = "ENV"
        env = list(self.config.env or ())
        fresh = dict(self.env)  # every value sees what was set before the line
        for pair in instruction.pairs:
            key, value = self.expand(pair.key), self.expand(pair.value)
            text += f" {key}={value}"
            fresh[key] = value
            place = next((i for i, old in enumerate(env) if old.partition("=")[0] == key), None)
            if place is None:
                env.append(f"{key}={value}")
            else:
                env[place] = f"{key}={value}"
        self.env = fresh
        self.change(env=tuple(env))
        self.commit(text)

    def _label(self, instruction: ins.Label) -> None:
        labels = dict(self.config.labels or {})
        text = "LABEL"
        for pair in instruction.pairs:
            key, value = self.expand(pair.key), self.expand(pair.value)
            labels[key] = value
            text += f" {key}={value}"
        self.change(labels=labels)
        self.commit(text)

    def _arg(self, instruction: ins.Arg) -> None:
        given, shared = self.planner.request.args, self.planner.variables
        texts = []
        for pair in instruction.pairs:
            default = None
            if pair.default is not None:
                default = pair.default if pair.key in given else self.expand(pair.default)
            value = given.get(pair.key, default)
            if value is None:
                value = shared.get(pair.key)
            self.args[pair.key] = value
            if value is not None and pair.key not in NOT_IN_ENVIRONMENT:
                self.env[pair.key] = value
            texts.append(pair.key if pair.default is None else f"{pair.key}={default}")
        self.commit("ARG " + " ".join(texts))

    def _maintainer(self, instruction: ins.Maintainer) -> None:
        self.author = instruction.maintainer
        self.commit(f"MAINTAINER {instruction.maintainer}")

    def _workdir(self, instruction: ins.Workdir) -> None:
        path = self.expand(instruction.path)
        if not self.workdir_is_set and not path.startswith("/"):
            self.planner.linter.tell(
                "WorkdirRelativePath", instruction,
                f"Relative workdir {go_quote(path)} can have unexpected results if the base image changes",
            )  # fmt: skip
        self.workdir_is_set = True
        target = clean_path(posixpath.join(self.config.working_dir or "/", path))
        # An absolute path stays in the configuration as it was written, as for Docker 26.
        shown = path if path.startswith("/") else target
        self.change(working_dir=shown)
        if target != "/":
            self.operation = Workdir(
                parent=self.operation, path=target, user=self.config.user,
                label=self.label(instruction, f"WORKDIR {path}"), epoch_ns=self.planner.request.epoch_ns,
            )  # fmt: skip
        self.commit(f"WORKDIR {shown}", layer=target != "/")

    def _user(self, instruction: ins.User) -> None:
        user = self.expand(instruction.user)
        self.change(user=user)
        self.commit(f"USER {user}")

    def _volume(self, instruction: ins.Volume) -> None:
        volumes = dict(self.config.volumes or {})
        paths = [self.expand(path) for path in instruction.paths]
        if not all(paths):
            raise DockerfileError("VOLUME specified can not be an empty string")
        volumes |= {path: {} for path in paths}
        self.change(volumes=volumes)
        self.commit(f"VOLUME [{' '.join(paths)}]")

    def _expose(self, instruction: ins.Expose) -> None:
        words = [
            port
            for text in instruction.ports
            for port in split(text, self.env, escape=self.planner.escape)
        ]
        ports = [port for word in words for port in exposed_ports(word)]
        self.change(exposed_ports={**(self.config.exposed_ports or {}), **{p: {} for p in ports}})
        self.commit("EXPOSE map[" + " ".join(f"{port}:{{}}" for port in sorted(set(ports))) + "]")

    def _stopsignal(self, instruction: ins.Stopsignal) -> None:
        signal = self.expand(instruction.signal)
        if not is_signal(signal):
            raise DockerfileError(f"invalid signal: {signal}")
        self.change(stop_signal=signal)
        self.commit(f"STOPSIGNAL {signal}")

    def _shell(self, instruction: ins.Shell) -> None:
        self.change(shell=instruction.shell)
        self.commit(f"SHELL [{' '.join(instruction.shell)}]")

    def _onbuild(self, instruction: ins.Onbuild) -> None:
        self.change(on_build=(*(self.config.on_build or ()), instruction.expression))

    def _cmd(self, instruction: ins.Cmd) -> None:
        self._only_once(instruction)
        self._recommend_json(instruction)
        args = self.shell_form(instruction.args) if instruction.shell else instruction.args
        self.cmd_is_set = True
        self.change(cmd=args or None, args_escaped=True)
        self.commit(f"CMD {_quoted(args)}")

    def _entrypoint(self, instruction: ins.Entrypoint) -> None:
        self._only_once(instruction)
        self._recommend_json(instruction)
        args = self.shell_form(instruction.args) if instruction.shell else instruction.args
        self.change(entrypoint=args or None)
        if not self.cmd_is_set:
            self.change(cmd=None)
        self.commit(f"ENTRYPOINT {_quoted(args)}")

    def _healthcheck(self, instruction: ins.Healthcheck) -> None:
        self._only_once(instruction)
        health = instruction.health
        self.change(
            healthcheck=Healthcheck(
                test=health.test, interval=health.interval_ns, timeout=health.timeout_ns,
                start_period=health.start_period_ns, start_interval=health.start_interval_ns,
                retries=health.retries,
            )
        )  # fmt: skip
        self.commit(f"HEALTHCHECK {_shown_health(health)}")

    # -- instructions that make layers

    def _run(self, instruction: ins.Run) -> None:
        self._check_entitlements(instruction)
        args, script, title = instruction.args, None, instruction.source
        if instruction.files:
            args, script, title = _with_documents(instruction)
        if instruction.shell:
            args = self.shell_form(args)
        lexer = Lexer(
            self._shown_environment(instruction),
            escape=self.planner.escape,
            keep_quotes=True,
            keep_unset=True,
        )
        network = instruction.network
        if network == "default":
            network = self.planner.request.network
        self.operation = Run(
            parent=self.operation, args=args, cwd=clean_path(self.config.working_dir), user=self.config.user,
            env=tuple(f"{key}={value}" for key, value in self.env.items()),
            mounts=tuple(self._mount(flag) for flag in instruction.mounts),
            network=network, security=instruction.security, script=script, proxy=self._proxies(),
            hostname=self.planner.request.hostname,
            no_cache=self.no_cache, label=self.label(instruction, _upper(_shown(lexer, title))),
        )  # fmt: skip
        self.commit("RUN " + self._command_text(args), layer=True, marked=True)

    def _check_entitlements(self, instruction: ins.Run) -> None:
        allow = self.planner.request.allow
        if instruction.network == "host" and "network.host" not in allow:
            raise PermissionDenied(
                "failed to load LLB: network.host is not allowed",
                hint="allow it for this build with --allow network.host",
            )
        if instruction.security == "insecure" and "security.insecure" not in allow:
            raise PermissionDenied(
                "failed to load LLB: security.insecure is not allowed",
                hint="allow it for this build with --allow security.insecure",
            )

    def _shown_environment(self, instruction: ins.Run) -> dict[str, str]:
        """The environment for a title: variables that hold secrets are masked."""
        hidden = {}
        for flag in instruction.mounts:
            for field in flag.text.split(","):
                if field.startswith("env="):
                    hidden[field[4:]] = "****"
        return self.env | hidden

    def _proxies(self) -> tuple[str, ...]:
        """What was given for one spelling is set in both."""
        given = {key.upper(): value for key, value in sorted(self.planner.request.args.items())}
        names = [(proxy, spelt) for proxy in PROXIES for spelt in (proxy, proxy.lower())]
        return tuple(f"{spelt}={given[proxy]}" for proxy, spelt in names if proxy in given)

    def _command_text(self, args: tuple[str, ...]) -> str:
        """The command with the build arguments it saw, as history and the cache of older builders have it."""
        seen = {}
        for key, value in self.args.items():
            seen[key] = self.env.get(key, value or "")
        words = [f"{key}={value}" for key, value in seen.items()]
        front = [f"|{len(words)}", *words] if words else []
        return " ".join([*front, *args])

    def _mount(self, flag: MountFlag) -> RunMount:
        mount = mount_of(flag, self.expand)
        target = mount.target
        if mount.type in ("secret", "ssh"):
            return RunMount(
                type=mount.type, target=target, id=mount.source or mount.id or _base(target),
                required=mount.required, env=mount.env, mode=mount.mode, uid=mount.uid, gid=mount.gid,
            )  # fmt: skip
        target = clean_path(posixpath.join(self.config.working_dir, target) if target else "/")
        if target == "/":
            raise DockerfileError('invalid mount target "/"')
        source: ContextSource | StageSource | None = None
        if mount.from_:
            source = self.planner.files_of(mount.from_, self.facts.index, what="mount")
        elif mount.type == "bind":
            source = ContextSource()
        return RunMount(
            type=mount.type, target=target, source=source, path=posixpath.normpath("/" + mount.source),
            read_only=mount.read_only, size_bytes=mount.size_bytes,
            id=mount.id or (posixpath.normpath(target) if mount.type == "cache" else ""),
            sharing=mount.sharing or "shared", mode=mount.mode, uid=mount.uid, gid=mount.gid,
        )  # fmt: skip

    def _copy(self, instruction: ins.Copy) -> None:
        source: ContextSource | StageSource = ContextSource()
        if instruction.from_:
            source = self.planner.files_of(instruction.from_, self.facts.index, what="copy")
        items, shown = [], []
        for word in instruction.sources:
            path = self.expand(word)
            if is_http(path) or parse_git(path) is not None:
                kind = "URL" if is_http(path) else "git ref"
                raise DockerfileError(f"source can't be a {kind} for COPY")
            if not instruction.from_:
                self._check_ignored(instruction, "Copy", path)
            items.append(CopyItem(source=source, path=path, parents=instruction.parents))
            shown.append(path)
        self._copy_like(instruction, items, shown, parents=instruction.parents)

    def _add(self, instruction: ins.Add) -> None:
        items, shown = [], []
        checksum = self.expand(instruction.checksum)
        if checksum and len(instruction.sources) != 1:
            raise DockerfileError("checksum can't be specified for multiple sources")
        for word in instruction.sources:
            path = self.expand(word)
            shown.append(path)
            items.append(self._added(instruction, path, checksum))
        self._copy_like(instruction, items, shown)

    def _added(self, instruction: ins.Add, path: str, checksum: str) -> CopyItem:
        git = parse_git(path)
        if git is not None:
            return CopyItem(
                source=GitSource(
                    url=git.url, ref=git.ref, subdir=git.subdir, checksum=checksum or git.checksum,
                    keep_git_dir=bool(instruction.keep_git_dir or git.keep_git_dir), submodules=git.submodules,
                )
            )  # fmt: skip
        if is_http(path):
            return CopyItem(
                source=HttpSource(url=path, checksum=checksum), unpack=bool(instruction.unpack)
            )
        if checksum:
            raise DockerfileError("checksum requires HTTP(S) or Git sources")
        self._check_ignored(instruction, "Add", path)
        unpack = True if instruction.unpack is None else instruction.unpack
        return CopyItem(source=ContextSource(), path=path, unpack=unpack)

    def _check_ignored(self, instruction: ins.Instruction, verb: str, path: str) -> None:
        ignored = self.planner.ignored
        if ignored is None or ignored.has_negations:
            return
        clean = posixpath.normpath(path).lstrip("/") or "."
        everything = any(p.text in ("*", "**", "**/*") for p in ignored.patterns)
        if everything if clean == "." else ignored.ignores(clean):
            shown = posixpath.normpath(path)
            self.planner.linter.tell(
                "CopyIgnoredFile", instruction,
                f"Attempting to {verb} file {go_quote(shown)} that is excluded by .dockerignore",
            )  # fmt: skip

    def _copy_like(
        self,
        instruction: ins.Copy | ins.Add,
        items: list[CopyItem],
        shown: list[str],
        *,
        parents: bool = False,
    ) -> None:
        chown, chmod = self.expand(instruction.chown), self.expand(instruction.chmod)
        check_mode(chmod)
        destination = self.expand(instruction.destination)
        raw = Lexer(self.env, ignore_quotes=True)
        for inline in instruction.inline:
            data = raw.run(inline.data).text if inline.expand else inline.data
            items.append(CopyItem(source=InlineSource(path=inline.path, data=data)))
            shown.append("<<" + inline.path)
        words = [instruction.name]
        words += ["--parents"] if parents else []
        words += [f"--chown={chown}"] if chown else []
        words += [f"--chmod={chmod}"] if chmod else []
        text = " ".join([*words, *shown, destination])
        self.operation = Copy(
            parent=self.operation, items=tuple(items), destination=self.absolute(destination), chown=chown,
            chmod=chmod, exclude=tuple(self.expand(e) for e in instruction.exclude), link=instruction.link,
            no_cache=self.no_cache,
            label=self.label(instruction, _upper(_shown(Lexer(self.env), instruction.source))),
        )  # fmt: skip
        self.commit(text, layer=True, marked=True)


def clean_path(path: str) -> str:
    """Absolute, without `.`, `..` and doubled slashes."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def _upper(text: str) -> str:
    word, blank, rest = text.partition(" ")
    return word.upper() + blank + rest


def _shown(lexer: Lexer, text: str) -> str:
    try:
        return lexer.run(text).text
    except InvalidArgument:
        return text


def _quoted(args: tuple[str, ...]) -> str:
    return "[" + " ".join(go_quote(arg) for arg in args) + "]"


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _shown_health(health: ins.Health) -> str:
    """As Go prints the structure with its texts quoted, the number of retries being a character to it."""
    times = (
        health.interval_ns,
        health.timeout_ns,
        health.start_period_ns,
        health.start_interval_ns,
    )
    shown = " ".join(go_quote(format_duration(value)) for value in times)
    tests = " ".join(go_quote(word) for word in health.test)
    return f"&{{[{tests}] {shown} {go_quote_rune(health.retries)}}}"


def _with_documents(instruction: ins.Run) -> tuple[tuple[str, ...], tuple[str, str] | None, str]:
    """(arguments, a script to run by itself, the title) of a RUN with here-documents."""
    if len(instruction.args) != 1 or not instruction.shell:
        raise DockerfileError(f"parsing produced an invalid run command: {list(instruction.args)}")
    first = instruction.files[0]
    if parse_heredoc(instruction.args[0]) is None:
        whole = instruction.args[0]
        for document in instruction.files:
            whole += f"\n{document.content}{document.name}"
        return (whole,), None, instruction.source
    summary = first.content.strip().replace("\r\n", "\n").split("\n")
    title = f"{instruction.source} ({summary[0]}{'...' if len(summary) > 1 else ''})"
    if first.text.startswith("#!"):
        return (f"/dev/pipes/{first.name}",), (first.name, first.text), title
    return (first.text,), None, title


def is_signal(text: str) -> bool:
    """A number that is not 0, or a name with or without SIG."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
        return int(text) != 0
    return text.upper().removeprefix("SIG") in SIGNALS


MODE_WORDS = re.compile(
    r"[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*", re.ASCII
)


def check_mode(text: str) -> None:
    """--chmod: octal up to 07777, or symbolic. Raises DockerfileError."""
    if not text or MODE_WORDS.fullmatch(text):
        return
    if re.fullmatch(r"[0-7]{1,6}", text, re.ASCII) and int(text, 8) <= 0o7777:
        return
    raise DockerfileError(
        f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
    )


def exposed_ports(word: str) -> list[str]:
    """`80`, `80/UDP`, `80-82/tcp` as the configuration keeps them. Raises DockerfileError."""
    numbers, _, protocol = word.rpartition(":")[2].partition("/")
    if not numbers:
        raise DockerfileError(f"No port specified: {word}<empty>")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise DockerfileError(f"Invalid proto: {protocol}")
    first, dash, last = numbers.partition("-")
    found = []
    for text in (first, last if dash else first):
        if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > 65535:
            raise DockerfileError(f"Invalid containerPort: {numbers}")
        found.append(int(text))
    if found[1] < found[0]:
        raise DockerfileError(f"Invalid containerPort: {numbers}")
    return [f"{number}/{protocol}" for number in range(found[0], found[1] + 1)]
