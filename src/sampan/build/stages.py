"""Which stages a Dockerfile's target needs, from which images they start, and what FROM lines see. Pure.

Source: the Dockerfile reference, "FROM" and "Understand how ARG and FROM interact".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from sampan.build import instructions as ins
from sampan.build.expand import expand, go_quote
from sampan.build.parser import DockerfileError
from sampan.build.suggest import suggestion
from sampan.errors import InvalidArgument
from sampan.spec.image import ImageDocument, Platform
from sampan.spec.reference import parse_normalized


class NamedContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a name stands for instead of a stage or an image: another image, or files (a directory, a repository)."""

    key: str  # as it was given: the solver finds the files by it
    image: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller says beside the Dockerfile. `args`: build arguments with their values."""

    args: dict[str, str] = {}
    target: str = ""
    labels: dict[str, str] = {}
    platform: Platform
    build_platform: Platform
    network: str = "default"
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()
    contexts: dict[str, NamedContext] = {}  # by familiar name, without ":latest"
    allow: frozenset[str] = frozenset()  # entitlements: network.host, security.insecure
    epoch: str = ""  # SOURCE_DATE_EPOCH as RFC 3339, '' for now
    epoch_ns: int = -1  # the same in nanoseconds, -1 for now
    hostname: str = ""  # of what RUN runs
    multi_platform: bool = False  # one of several: step names say for which


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base image as it was found in the store. `shown`: its name as build logs have it."""

    image_id: str
    reference: str
    document: ImageDocument
    shown: str = ""


class ImageName(NamedTuple):
    """An image that a build needs: as the Dockerfile or a named context calls it, for a platform."""

    name: str
    platform: str
    context: str = ""  # the named context that brought it in


def format_platform(platform: Platform) -> str:
    """os/architecture[/variant]"""
    parts = (platform.os, platform.architecture, platform.variant)
    return "/".join(part for part in parts if part)


def familiar(name: str) -> str:
    """The name by which a named context is looked up: short, and without the tag that everybody means."""
    try:
        return parse_normalized(name).familiar().removesuffix(":latest")
    except InvalidArgument:
        return name


def with_tag(name: str) -> str:
    """A short name with the tag that it means; as it is where it is no name of an image."""
    try:
        return parse_normalized(name).with_default_tag().familiar()
    except InvalidArgument:
        return name


def global_variables(program: ins.Program, request: Request) -> dict[str, str]:
    """What FROM lines see: platforms, and the ARGs before the first FROM."""
    stages = program.stages
    target = request.target or stages[-1].name or "default"
    build, wanted = request.build_platform, request.platform
    variables = {
        "BUILDPLATFORM": format_platform(build), "BUILDOS": build.os, "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture, "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": format_platform(wanted), "TARGETOS": wanted.os,
        "TARGETOSVERSION": wanted.os_version, "TARGETARCH": wanted.architecture,
        "TARGETVARIANT": wanted.variant, "TARGETSTAGE": target,
    }  # fmt: skip
    variables |= {name: request.args[name] for name in variables if name in request.args}
    for instruction in program.arguments:
        for pair in instruction.pairs:
            if pair.key in request.args:
                variables[pair.key] = request.args[pair.key]
            elif pair.default is not None:
                with At(instruction):
                    variables[pair.key] = expand(pair.default, variables)
    return variables


class At:
    """Give an error the instruction's lines."""

    def __init__(self, instruction: ins.Instruction) -> None:
        self.instruction = instruction

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidArgument) and not getattr(error, "line", 0):
            raise DockerfileError(
                error.message,
                line=self.instruction.start,
                end=self.instruction.end,
                hint=error.hint,
            ) from error


# --- stages


class StageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A stage with its FROM expanded. `base_stage`: index of the stage it starts from, or -1.

    `replaced`: a named context of the stage's own name, which it is instead of what the file says.
    """

    index: int
    stage: ins.Stage
    base: str
    base_stage: int
    platform: Platform | None
    replaced: NamedContext | None = None


class Stages:
    """All stages, by index and name; which the target needs."""

    def __init__(
        self,
        program: ins.Program,
        request: Request,
        variables: Mapping[str, str],
        parse_platform: Callable[[str], Platform],
    ) -> None:
        self.request = request
        self.variables = variables
        self.facts: list[StageFacts] = []
        self.by_name: dict[str, int] = {}
        self.places: dict[ImageName, tuple[int, int]] = {}  # the lines that need an image
        for index, stage in enumerate(program.stages):
            with At(stage.origin):
                facts = self._facts_of(index, stage, parse_platform)
            self.facts.append(facts)
            if stage.name:
                self.by_name[stage.name] = index
        self.target = self._find_target(request.target)

    def _facts_of(
        self, index: int, stage: ins.Stage, parse_platform: Callable[[str], Platform]
    ) -> StageFacts:
        base = expand(stage.origin.base, self.variables)
        if not base:
            raise DockerfileError(f"base name ({stage.origin.base}) should not be blank")
        platform = None
        if stage.origin.platform:
            text = expand(stage.origin.platform, self.variables)
            if not text:
                raise DockerfileError(
                    f"empty platform value from expression {stage.origin.platform}"
                )
            try:
                platform = parse_platform(text)
            except InvalidArgument as error:
                raise DockerfileError(
                    f"failed to parse platform {stage.origin.platform}: {error.message}"
                ) from None
        replaced = self.request.contexts.get(familiar(stage.name)) if stage.name else None
        return StageFacts(
            index=index, stage=stage, base=base, base_stage=-1 if replaced else self.by_name.get(base, -1),
            platform=platform, replaced=replaced,
        )  # fmt: skip

    def context_named(self, name: str) -> NamedContext | None:
        """The named context that stands in for an image of this name."""
        if name.lower() in ("scratch", "context"):
            return None
        return self.request.contexts.get(familiar(name))

    def image_of(self, name: str, platform: Platform | None) -> ImageName | None:
        """The image that a name means, a named context's where there is one; None where it means files or nothing."""
        context = self.context_named(name)
        if context is not None:
            name = context.image
        if not name or name == "scratch":
            return None
        shown = format_platform(platform or self.request.platform)
        return ImageName(name, shown, context.key if context else "")

    def _find_target(self, name: str) -> int:
        if not name:
            return len(self.facts) - 1
        found = self.by_name.get(name.lower())
        if found is None and name.isascii() and name.isdigit() and int(name) < len(self.facts):
            found = int(name)
        if found is None:
            names = [n for n in self.by_name if n]
            raise InvalidArgument(
                f"target stage {go_quote(name)} could not be found"
                + suggestion(name, names, exact_case=True)
            )
        return found

    def find(self, name: str) -> int | None:
        """A stage by name or by number; None where it is an image."""
        if name.isascii() and name.isdigit():
            number = int(name)
            if number >= len(self.facts):
                raise DockerfileError(f"invalid stage index {number}")
            return number
        return self.by_name.get(name.lower())

    def label(self, index: int) -> str:
        """How build logs call it."""
        if len(self.facts) == 1 and not self._copies_from_images():
            return ""
        return self.facts[index].stage.name or f"stage-{index}"

    def _refuse_circles(self, triggers: Mapping[int, tuple[ins.Instruction, ...]]) -> None:
        """Stages that copy from each other, also where the target does not need them."""
        done: set[int] = set()

        def visit(index: int, path: tuple[int, ...]) -> None:
            if index in path:
                first = self.facts[path[0]].stage
                raise DockerfileError(
                    f"circular dependency detected on stage: {first.name or f'stage-{path[0]}'}",
                    line=first.origin.start,
                )
            if index not in done:
                for name, _ in self.needs(index, triggers):
                    other = self.find(name)
                    if other is not None:
                        visit(other, (*path, index))
                done.add(index)

        for facts in self.facts:
            visit(facts.index, ())

    def _copies_from_images(self) -> bool:
        """BuildKit counts what --from= and --mount name as a stage, so a single one has a name in its logs then."""
        return any(
            (isinstance(each, ins.Run) and each.mounts)
            or (isinstance(each, ins.Copy) and each.from_ and self.find(each.from_) is None)
            for facts in self.facts
            for each in facts.stage.instructions
        )

    def needs(
        self, index: int, triggers: Mapping[int, tuple[ins.Instruction, ...]]
    ) -> list[tuple[str, ins.Instruction]]:
        """Names after --from= of a stage's instructions."""
        found: list[tuple[str, ins.Instruction]] = []
        for instruction in (*triggers.get(index, ()), *self.facts[index].stage.instructions):
            if isinstance(instruction, ins.Copy) and instruction.from_:
                if "$" in instruction.from_:
                    with At(instruction):
                        raise DockerfileError(
                            "variable expansion is not supported for --from, define a new stage with "
                            "FROM using ARG from global scope as a workaround"
                        )
                with At(instruction):
                    self.find(instruction.from_)
                found.append((instruction.from_, instruction))
            elif isinstance(instruction, ins.Run):
                found += [(mount.from_, instruction) for mount in instruction.mounts if mount.from_]
        return found

    def reachable(
        self, triggers: Mapping[int, tuple[ins.Instruction, ...]], *, every_stage: bool = False
    ) -> tuple[list[int], list[ImageName]]:
        """(stages that the target needs, in the file's order; images that they start or copy from, each once)."""
        seen: set[int] = set()
        wanted: dict[ImageName, None] = {}

        def need(name: ImageName | None, by: ins.Instruction) -> None:
            if name is not None:
                wanted[name] = None
                self.places.setdefault(name, (by.start, by.end))

        def visit(index: int) -> None:
            if index in seen:
                return
            seen.add(index)
            facts = self.facts[index]
            if facts.replaced is not None:
                need(self.image_of(facts.stage.name, facts.platform), facts.stage.origin)
            elif facts.base_stage >= 0:
                visit(facts.base_stage)
            else:
                need(self.image_of(facts.base, facts.platform), facts.stage.origin)
            for name, by in () if facts.replaced else self.needs(index, triggers):
                other = self.find(name)
                if other is not None:
                    visit(other)
                else:
                    need(self.image_of(name, None), by)

        self._refuse_circles(triggers)
        visit(self.target)
        for facts in self.facts if every_stage else ():
            visit(facts.index)
        return sorted(seen), list(wanted)
