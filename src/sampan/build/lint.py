"""Checks of a Dockerfile: what works but should not be written so. BuildKit's rules, names and words. Pure.

    Program ──static checks here──┐
    plan.py, stage.py ──what only shows while a stage is gone through──► Linter ──► Finding, in the file's order

Which rules count: `# check=skip=Rule,Rule;error=true` on top of the file, the build argument BUILDKIT_DOCKERFILE_CHECK
instead of it, and `# check=skip=Rule` above an instruction for that one.

Source: Docker's "Build checks" reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from sampan.build import instructions as ins
from sampan.build.expand import Lexer, go_quote
from sampan.build.parser import Dockerfile
from sampan.build.suggest import nearest
from sampan.errors import InvalidArgument
from sampan.spec.reference import parse_normalized

ADDRESS = "https://docs.docker.com/go/dockerfile/rule/"
RESERVED = frozenset({"context", "scratch"})
SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)",
    re.IGNORECASE,
)
HARMLESS = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)


class Rule(msgspec.Struct, frozen=True):
    """A rule: its name, what it says in general, the last part of its address."""

    name: str
    description: str
    page: str
    experimental: bool = False

    @property
    def url(self) -> str:
        return ADDRESS + self.page + "/" if self.page else ""


RULES = {
    rule.name: rule
    for rule in (
        Rule("StageNameCasing", "Stage names should be lowercase", "stage-name-casing"),
        Rule("FromAsCasing", "The 'as' keyword should match the case of the 'from' keyword", "from-as-casing"),
        Rule("NoEmptyContinuation", "Empty continuation lines will become errors in a future release", "no-empty-continuation"),
        Rule("ConsistentInstructionCasing", "All commands within the Dockerfile should use the same casing (either upper or lower)", "consistent-instruction-casing"),
        Rule("DuplicateStageName", "Stage names should be unique", "duplicate-stage-name"),
        Rule("ReservedStageName", "Reserved words should not be used as stage names", "reserved-stage-name"),
        Rule("JSONArgsRecommended", "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals", "json-args-recommended"),
        Rule("MaintainerDeprecated", "The MAINTAINER instruction is deprecated, use a label instead to define an image author", "maintainer-deprecated"),
        Rule("UndefinedArgInFrom", "FROM command must use declared ARGs", "undefined-arg-in-from"),
        Rule("WorkdirRelativePath", "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes", "workdir-relative-path"),
        Rule("UndefinedVar", "Variables should be defined before their use", "undefined-var"),
        Rule("MultipleInstructionsDisallowed", "Multiple instructions of the same type should not be used in the same stage", "multiple-instructions-disallowed"),
        Rule("LegacyKeyValueFormat", "Legacy key/value format with whitespace separator should not be used", "legacy-key-value-format"),
        Rule("InvalidBaseImagePlatform", "Base image platform does not match expected target platform", ""),
        Rule("RedundantTargetPlatform", "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior", "redundant-target-platform"),
        Rule("SecretsUsedInArgOrEnv", "Sensitive data should not be used in the ARG or ENV commands", "secrets-used-in-arg-or-env"),
        Rule("InvalidDefaultArgInFrom", "Default value for global ARG results in an empty or invalid base image name", "invalid-default-arg-in-from"),
        Rule("FromPlatformFlagConstDisallowed", "FROM --platform flag should not use a constant value", "from-platform-flag-const-disallowed"),
        Rule("CopyIgnoredFile", "Attempting to Copy file that is excluded by .dockerignore", "copy-ignored-file"),
        Rule(
            "InvalidDefinitionDescription",
            "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this "
            "is not intended to be a description comment, add an empty line or comment between the instruction and the "
            "comment.",
            "invalid-definition-description",
            experimental=True,
        ),
        Rule("ExposeProtoCasing", "Protocol in EXPOSE instruction should be lowercase", "expose-proto-casing"),
        Rule("ExposeInvalidFormat", "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release", "expose-invalid-format"),
    )
}  # fmt: skip


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding; lines from 1."""

    rule: Rule
    text: str
    start: int
    end: int


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Which rules count, and whether a finding is an error."""

    skip: frozenset[str] = frozenset()
    skip_all: bool = False
    experimental: frozenset[str] = frozenset()
    experimental_all: bool = False
    is_error: bool = False

    def counts(self, rule: Rule) -> bool:
        if rule.experimental:
            return self.experimental_all or rule.name in self.experimental
        return not self.skip_all and rule.name not in self.skip

    def merged(self, other: Options) -> Options:
        """With what stands above an instruction."""
        return Options(
            skip=self.skip | other.skip, skip_all=self.skip_all or other.skip_all,
            experimental=self.experimental | other.experimental,
            experimental_all=self.experimental_all or other.experimental_all, is_error=self.is_error,
        )  # fmt: skip


def options_of(text: str) -> Options:
    """`skip=A,B;error=true;experimental=all`. Raises InvalidArgument."""
    fields: dict[str, object] = {}
    for part in text.strip().split(";") if text.strip() else ():
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise InvalidArgument(
                f"failed to parse check options: invalid check option {go_quote(part)}"
            )
        if key in ("skip", "experimental"):
            if value == "all":
                fields[f"{key}_all"] = True
            else:
                fields[key] = frozenset(name.strip() for name in value.split(","))
        elif key == "error":
            fields["is_error"] = value.lower() in ("1", "t", "true")
        else:
            raise InvalidArgument(
                f"failed to parse check options: invalid check option {go_quote(key)}"
            )
    return msgspec.convert(fields, Options)


class Linter:
    """Collects findings."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.found: list[Finding] = []

    def tell(self, rule: str, at: ins.Instruction, text: str) -> None:
        """A finding about an instruction, unless the comment above it says that it is meant."""
        options = self.options
        for comment in at.comments:
            if match := re.fullmatch(r"check\s*=\s*(\S+).*", comment):
                try:
                    options = options.merged(options_of(match[1]))
                except InvalidArgument:
                    pass  # a comment that only looks like one
        warning = Finding(rule=RULES[rule], text=text, start=at.start, end=at.end)
        if options.counts(warning.rule) and warning not in self.found:
            self.found.append(warning)

    def sorted(self) -> list[Finding]:
        """In the file's order."""
        return sorted(self.found, key=lambda warning: warning.start)

    def check(self) -> None:
        """Raises InvalidArgument where findings are errors and there are some."""
        if self.options.is_error and self.found:
            names = dict.fromkeys(warning.rule.name for warning in self.found)
            raise InvalidArgument(f"lint violation found for rules: {', '.join(names)}")


def linter_for(dockerfile: Dockerfile, argument: str | None) -> Linter:
    """By the directive of the file, or by the build argument instead."""
    if argument is None:
        argument = next((d.value for d in dockerfile.directives if d.name == "check"), "")
    return Linter(options_of(argument))


# --- what shows without going through stages


def check_form(linter: Linter, dockerfile: Dockerfile, program: ins.Program) -> None:
    """Continuation lines, casing, names of stages, words of a single instruction."""
    for warning in dockerfile.warnings:
        at = ins.Instruction(name="", source="", start=warning.line, end=warning.line)
        linter.tell("NoEmptyContinuation", at, "Empty continuation line")
    for argument in program.arguments:
        _one(linter, argument)
    for stage in program.stages:
        _from(linter, stage.origin)
        for instruction in stage.instructions:
            _one(linter, instruction)
    _names(linter, program)
    _casing(linter, program)


def _from(linter: Linter, origin: ins.From) -> None:
    if origin.written_stage != origin.written_stage.lower():
        linter.tell(
            "StageNameCasing", origin, f"Stage name '{origin.written_stage}' should be lowercase"
        )
    word = written(origin)
    if origin.as_word and (
        (word.islower() and not origin.as_word.islower())
        or (word.isupper() and not origin.as_word.isupper())
    ):
        linter.tell(
            "FromAsCasing", origin, f"'{origin.as_word}' and '{word}' keywords' casing do not match"
        )
    if origin.stage:
        _description(linter, origin, "FROM", [origin.stage])


def _description(linter: Linter, at: ins.Instruction, kind: str, keys: Sequence[str]) -> None:
    if not at.comments or at.comments[-1].partition(" ")[0] in keys:
        return
    shown = keys[0] if len(keys) == 1 else "<arg_key>"
    text = f"Comment for {kind} should follow the format: `# {shown} <description>`"
    linter.tell("InvalidDefinitionDescription", at, text)


def _one(linter: Linter, instruction: ins.Instruction) -> None:
    name = written(instruction)
    if isinstance(instruction, ins.Maintainer):
        linter.tell(
            "MaintainerDeprecated",
            instruction,
            "Maintainer instruction is deprecated in favor of using label",
        )
    elif isinstance(instruction, ins.Arg):
        _description(linter, instruction, "ARG", [pair.key for pair in instruction.pairs])
        for pair in instruction.pairs:
            _secret(linter, instruction, "ARG", pair.key)
    elif isinstance(instruction, (ins.Env, ins.Label)):
        for each in instruction.pairs:
            if each.legacy:
                text = (
                    f'"{name} key=value" should be used instead of legacy "{name} key value" format'
                )
                linter.tell("LegacyKeyValueFormat", instruction, text)
            if isinstance(instruction, ins.Env):
                _secret(linter, instruction, "ENV", each.key)
    elif isinstance(instruction, ins.Expose):
        for port in instruction.ports:
            _port(linter, instruction, port)


def _secret(linter: Linter, at: ins.Instruction, kind: str, key: str) -> None:
    if SECRET.search(key) and not HARMLESS.search(key):
        text = f"Do not use ARG or ENV instructions for sensitive data ({kind} {go_quote(key)})"
        linter.tell("SecretsUsedInArgOrEnv", at, text)


def _port(linter: Linter, at: ins.Instruction, port: str) -> None:
    front, colon, _ = port.rpartition(":")
    protocol = port.rpartition("/")[2] if "/" in port else ""
    if protocol != protocol.lower():
        text = f"Defined protocol '{port}' in EXPOSE instruction should be lowercase"
        linter.tell("ExposeProtoCasing", at, text)
    if colon and front:
        text = f"EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        linter.tell("ExposeInvalidFormat", at, text)


def _names(linter: Linter, program: ins.Program) -> None:
    seen: set[str] = set()
    for stage in program.stages:
        name = stage.name
        if name in RESERVED:
            text = f"Stage name should not use the same name as reserved stage {go_quote(name)}"
            linter.tell("ReservedStageName", stage.origin, text)
        if name and name in seen:
            text = f"Duplicate stage name {go_quote(name)}, stage names should be unique"
            linter.tell("DuplicateStageName", stage.origin, text)
        seen.add(name)


def _casing(linter: Linter, program: ins.Program) -> None:
    everything = [each for stage in program.stages for each in (stage.origin, *stage.instructions)]
    words = [written(each) for each in everything]
    is_lower = sum(word.islower() for word in words) > sum(word.isupper() for word in words)
    for each, word in zip(everything, words, strict=True):
        right = "lowercase" if is_lower else "uppercase"
        if not (word.islower() if is_lower else word.isupper()):
            text = f"Command '{word}' should match the case of the command majority ({right})"
            linter.tell("ConsistentInstructionCasing", each, text)


def written(instruction: ins.Instruction) -> str:
    """The instruction's word as it stands in the file."""
    return instruction.source.split(maxsplit=1)[0] if instruction.source else instruction.name


# --- what shows with the variables


def check_from(
    linter: Linter,
    program: ins.Program,
    variables: dict[str, str],
    defaults: dict[str, str],
    target_platform: str,
) -> None:
    """FROM lines: undeclared arguments, platforms, names that are nothing without build arguments."""
    declared = {pair.key for argument in program.arguments for pair in argument.pairs} | set(
        variables
    )
    for stage in program.stages:
        origin = stage.origin
        for word in (origin.base, origin.platform):
            for name in sorted(_unset(word, variables) - declared):
                hint = nearest(name, declared)
                text = f"FROM argument '{name}' is not declared" + (
                    f" (did you mean {hint}?)" if hint else ""
                )
                linter.tell("UndefinedArgInFrom", origin, text)
        if origin.platform:
            _platform(linter, origin, variables, target_platform)
        try:
            parse_normalized(Lexer(defaults).run(origin.base).text)
        except InvalidArgument:
            text = (
                f"Default value for ARG {origin.base} results in empty or invalid base image name"
            )
            linter.tell("InvalidDefaultArgInFrom", origin, text)


def _unset(word: str, variables: dict[str, str]) -> set[str]:
    try:
        return Lexer(variables).run(word).unmatched
    except InvalidArgument:
        return set()


def _platform(linter: Linter, origin: ins.From, variables: dict[str, str], target: str) -> None:
    try:
        made = Lexer(variables).run(origin.platform)
    except InvalidArgument:
        return
    if made.matched == {"TARGETPLATFORM"} and not made.unmatched and made.text == target:
        text = f"Setting platform to predefined {origin.platform} in FROM is redundant as this is the default behavior"
        linter.tell("RedundantTargetPlatform", origin, text)
    if not made.matched and not made.unmatched:
        parts = [part for part in made.text.split("/")[:2] if part]
        if not any(part in origin.stage for part in parts):
            text = f"FROM --platform flag should not use constant value {go_quote(made.text)}"
            linter.tell("FromPlatformFlagConstDisallowed", origin, text)


def tell_undefined(
    linter: Linter, at: ins.Instruction, names: Iterable[str], known: Iterable[str]
) -> None:
    """Variables that an instruction uses and nobody set."""
    options = list(known)
    for name in sorted(names):
        hint = nearest(name, options)
        text = f"Usage of undefined variable '${name}'" + (
            f" (did you mean ${hint}?)" if hint else ""
        )
        linter.tell("UndefinedVar", at, text)
