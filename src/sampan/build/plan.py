"""From a Dockerfile's program to the graph of operations: which stages, in which order, on which images. Pure.

    Program ──Stages──► which stages the target needs, which images they start from   (ask for these first)
            ──plan()──► Outcome: the last operation, the configuration, the history, every line on the way

Scopes of ARG: those before the first FROM are global and serve FROM lines only; a stage sees one when it declares it
again. What instructions do within a stage is `stage.py`'s.

Sources: the Dockerfile reference ("Understand how ARG and FROM interact", "ONBUILD").
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sampan.build import instructions as ins
from sampan.build.expand import go_quote
from sampan.build.graph import (
    ContextSource,
    Copy,
    CopyItem,
    Image,
    Label,
    Line,
    Outcome,
    Scratch,
    StageSource,
)
from sampan.build.ignore import Matcher
from sampan.build.lint import Linter, Options
from sampan.build.parser import DockerfileError
from sampan.build.stage import StageBuilder
from sampan.build.stages import (
    At,
    Base,
    ImageName,
    NamedContext,
    Request,
    StageFacts,
    Stages,
    format_platform,
    with_tag,
)


class Planner:
    """Goes through the stages that the target needs, in the file's order."""

    def __init__(
        self,
        stages: Stages,
        request: Request,
        variables: Mapping[str, str],
        bases: Mapping[ImageName, Base],
        escape: str,
        linter: Linter,
        ignored: Matcher | None,
    ) -> None:
        self.stages = stages
        self.request = request
        self.variables = variables
        self.bases = bases
        self.escape = escape
        self.linter = linter
        self.ignored = ignored
        self.built: dict[int, StageBuilder] = {}
        self.lines: list[Line] = []

    def files_of(self, name: str, asker: int, *, what: str) -> ContextSource | StageSource:
        """What --from= names: a stage above, a named context, or an image."""
        index = self.stages.find(name)
        if index is not None:
            if index not in self.built or index == asker:
                here = self.stages.label(asker)
                if what == "mount":
                    raise DockerfileError(
                        f"cannot mount from stage {go_quote(name)}, stage needs to be defined before current command"
                    )
                raise DockerfileError(
                    f"cannot copy from stage {go_quote(name)}, it needs to be defined before current stage {go_quote(here)}"
                )
            return StageSource(operation=self.built[index].operation)
        image = self.stages.image_of(name, None)
        if image is not None:
            return StageSource(operation=self._image(self.bases[image], Label()))
        context = self.stages.context_named(name)
        return ContextSource(name=context.key) if context else StageSource(operation=Scratch())

    @staticmethod
    def _image(base: Base, label: Label) -> Image:
        label.name = label.name or f"FROM {base.shown or base.reference}"
        return Image(image_id=base.image_id, reference=base.reference, label=label)

    def build(self, index: int, triggers: tuple[ins.Instruction, ...]) -> None:
        facts = self.stages.facts[index]
        builder = StageBuilder(self, facts)
        body = () if facts.replaced else facts.stage.instructions
        if facts.base_stage >= 0:
            builder.start_from(self.built[facts.base_stage])
        else:
            self._start(builder, facts)
        builder.begin()
        own = () if facts.replaced else triggers
        builder.total += sum(
            isinstance(i, (ins.Run, ins.Copy, ins.Add, ins.Workdir)) for i in (*own, *body)
        )
        if builder.image_label is not None:
            builder.image_label.total = builder.total
        self._line(builder, facts.stage.origin, is_from=True)
        for instruction in (*own, *body):
            builder.do(instruction)
            self._line(builder, instruction)
        self.built[index] = builder

    def _start(self, builder: StageBuilder, facts: StageFacts) -> None:
        """From an image, from the files of a named context, or from nothing."""
        name = facts.stage.name if facts.replaced else facts.base
        image = self.stages.image_of(name, facts.platform)
        context = self.stages.context_named(name)
        builder.platform = facts.platform or self.request.platform
        if image is None and context is None:
            return
        builder.total = 1
        place = Label(
            stage=self.stages.label(facts.index), number=1, start=facts.stage.origin.start,
            platform=self.shown_platform(builder), end=facts.stage.origin.end,
        )  # fmt: skip
        if context is not None:
            place.name = f"[context {context.key}] {with_tag(context.image)}".rstrip()
        else:
            builder.number = 1
            builder.image_label = place
        if image is not None:
            base = self.bases[image]
            builder.start_from_image(base, self._image(base, place))
            self._check_platform(builder, base, name)
        elif context is not None:
            builder.operation = _files_of_context(context, place)

    def _check_platform(self, builder: StageBuilder, base: Base, name: str) -> None:
        have, want = base.document.platform, builder.platform
        if (have.os, have.architecture) != (want.os, want.architecture) and have.architecture:
            self.linter.tell(
                "InvalidBaseImagePlatform", builder.facts.stage.origin,
                f"Base image {name} was pulled with platform {go_quote(format_platform(have))}, expected "
                f"{go_quote(format_platform(want))} for current build",
            )  # fmt: skip

    def shown_platform(self, builder: StageBuilder) -> str:
        """What stands in front of a step's name where a build is for several platforms: `linux/arm64`,
        `linux/amd64->arm64` for a step of one that works for the other."""
        if not self.request.multi_platform:
            return ""
        own, target = builder.platform, self.request.platform
        if own.os == target.os and own.architecture != target.architecture and builder.knows_target:
            variant = f"/{target.variant}" if target.variant else ""
            return f"{format_platform(own)}->{target.architecture}{variant}"
        return format_platform(own)

    def _line(
        self, builder: StageBuilder, instruction: ins.Instruction, *, is_from: bool = False
    ) -> None:
        self.lines.append(
            Line(
                source=instruction.source, operation=builder.operation, config=builder.config,
                history=builder.history, author=builder.author, start=instruction.start,
                end=instruction.end, stage=self.stages.label(builder.facts.index), is_from=is_from,
            )
        )  # fmt: skip


def triggers_of(
    stages: Stages, bases: Mapping[ImageName, Base]
) -> dict[int, tuple[ins.Instruction, ...]]:
    """ONBUILD instructions that each stage takes over from its base image or base stage."""
    found: dict[int, tuple[ins.Instruction, ...]] = {}
    for facts in stages.facts:
        if facts.base_stage >= 0:
            above = stages.facts[facts.base_stage].stage.instructions
            texts = [i.expression for i in above if isinstance(i, ins.Onbuild)]
        else:
            name = facts.stage.name if facts.replaced else facts.base
            image = stages.image_of(name, facts.platform)
            base = bases.get(image) if image else None
            texts = list(base.document.config.on_build or ()) if base else []
        made = []
        for text in texts:
            with At(facts.stage.origin):
                trigger = ins.trigger_of(text)
            place = {"start": facts.stage.origin.start, "end": facts.stage.origin.end}
            made.append(msgspec.structs.replace(trigger, **place))
        if made:
            found[facts.index] = tuple(made)
    return found


def plan(
    stages: Stages,
    request: Request,
    variables: Mapping[str, str],
    bases: Mapping[ImageName, Base],
    *,
    escape: str,
    linter: Linter | None = None,
    ignored: Matcher | None = None,
    every_stage: bool = False,
) -> Outcome:
    """The graph of the target stage. `bases` must hold every image that `stages.reachable` named.

    `every_stage`: go through all of them, for what the linter has to say.

    Raises DockerfileError with the lines that are wrong.
    """
    triggers = triggers_of(stages, bases)
    wanted, _ = stages.reachable(triggers, every_stage=every_stage)
    planner = Planner(
        stages, request, variables, bases, escape, linter or Linter(Options()), ignored
    )
    for index in wanted:
        planner.build(index, triggers.get(index, ()))
    target = planner.built[stages.target]
    config = target.config
    if request.labels:
        labels = {**(config.labels or {}), **request.labels}
        config = msgspec.structs.replace(config, labels=labels)
    return Outcome(
        operation=target.operation, config=config, history=target.history, author=target.author,
        lines=tuple(planner.lines), platform=target.platform,
    )  # fmt: skip


def _files_of_context(context: NamedContext, label: Label) -> Copy:
    """A root filesystem that is a named context's files."""
    item = CopyItem(source=ContextSource(name=context.key), path="/")
    return Copy(parent=Scratch(), items=(item,), destination="/", label=label)
