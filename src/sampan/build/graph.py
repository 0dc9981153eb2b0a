"""The graph that a Dockerfile becomes: operations named by what they do to what, and the images that stages end as.

    Program + request + configurations of base images  ──plan.py──►  Outcome(operation, configuration, history)

    Scratch    nothing                             Image      the layers of an image in the store
    Run        a command in a root filesystem      Copy       files from sources into one
    Workdir    a directory made in one

An operation holds its inputs, so the last one is the whole graph; equal operations are equal values and are performed
once, whichever stage asks (`solve.py`). What only people see of a step (its text, its place in the file) stands in
`Label`, which takes no part in equality. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from sampan.spec.image import History, Platform, RunConfig

RULES = 2  # raised when the same operation comes to mean other files: what was cached before is then not used


class Label:
    """What people see of a step. All labels are equal, so that they do not tell equal operations apart."""

    __slots__ = ("end", "name", "number", "platform", "stage", "start", "total")

    def __init__(
        self,
        name: str = "",
        *,
        stage: str = "",
        platform: str = "",
        start: int = 0,
        end: int = 0,
        number: int = 0,
        total: int = 0,
    ) -> None:
        self.name = name
        self.stage = stage
        self.platform = platform
        self.start = start
        self.end = end
        self.number = number
        self.total = total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Label)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"Label({self.name!r})"

    @property
    def title(self) -> str:
        """`[build 2/5] RUN make`, as build logs show it."""
        if not self.total:
            return self.name
        width = len(str(self.total))
        front = f"{self.platform} " if self.platform else ""
        front += f"{self.stage} " if self.stage else ""
        return f"[{front}{self.number:>{width}}/{self.total}] {self.name}"


class Scratch(msgspec.Struct, frozen=True, tag=True):
    """The empty root filesystem."""


class Image(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An image's root filesystem; `image_id` names it exactly."""

    image_id: str
    reference: str
    label: Label = msgspec.field(default_factory=Label)


class ContextSource(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Files of a build context; `name` is '' for the main one."""

    name: str = ""


class StageSource(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Files of another root filesystem."""

    operation: Operation


class InlineSource(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A file whose content stands in the Dockerfile."""

    path: str
    data: str


class HttpSource(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A file fetched by URL."""

    url: str
    checksum: str = ""


class GitSource(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A checkout; `url` without credentials where it is shown."""

    url: str
    ref: str = ""
    subdir: str = ""
    keep_git_dir: bool = False
    checksum: str = ""
    submodules: bool = True


Source = ContextSource | StageSource | InlineSource | HttpSource | GitSource


class CopyItem(msgspec.Struct, frozen=True, kw_only=True):
    """One source of a COPY or ADD: a path or pattern within it."""

    source: Source
    path: str = ""
    unpack: bool = False
    parents: bool = False


class RunMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount of a RUN, resolved."""

    type: str
    target: str
    source: ContextSource | StageSource | None = None
    path: str = "/"
    read_only: bool = True
    size_bytes: int = 0
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A command in a root filesystem."""

    parent: Operation
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    script: tuple[str, str] | None = None  # a here-document that is run by itself: name, content
    hostname: str = ""
    proxy: tuple[str, ...] = ()  # set while it runs, no part of the cache key
    no_cache: bool = False
    label: Label = msgspec.field(default_factory=Label)


class Copy(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Files into a root filesystem. `link`: as a layer of its own that follows no link of the parent."""

    parent: Operation
    items: tuple[CopyItem, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    exclude: tuple[str, ...] = ()
    link: bool = False
    no_cache: bool = False
    label: Label = msgspec.field(default_factory=Label)


class Workdir(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A directory, with those above it, owned by the user. `epoch_ns`: its time, where one was given."""

    parent: Operation
    path: str
    user: str = ""
    epoch_ns: int = -1
    label: Label = msgspec.field(default_factory=Label)


Step = Run | Copy | Workdir
Operation = Scratch | Image | Run | Copy | Workdir


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction of a stage on its way: what it says, the operation after it, and the image it would be."""

    source: str
    operation: Operation
    config: RunConfig
    history: tuple[History, ...]
    author: str = ""
    start: int = 0
    end: int = 0
    stage: str = ""
    is_from: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage ends as, and the lines that led there in the file's order (those of other stages too)."""

    operation: Operation
    config: RunConfig
    history: tuple[History, ...]
    author: str
    lines: tuple[Line, ...]
    platform: Platform


def parent_of(operation: Operation) -> Operation | None:
    """What it stands on."""
    return None if isinstance(operation, (Scratch, Image)) else operation.parent


def sources_of(operation: Operation) -> list[Source]:
    """What else it reads."""
    if isinstance(operation, Copy):
        return [item.source for item in operation.items]
    if isinstance(operation, Run):
        return [mount.source for mount in operation.mounts if mount.source is not None]
    return []


def definition(operation: Step) -> bytes:
    """The operation's own part of a cache key: all that decides its result but its parent and its sources' content.

    Labels, proxies and secrets' values are no part of it.
    """
    skipped = ("parent", "label", "proxy", "no_cache")
    fields: dict[str, Any] = {
        name: getattr(operation, name)
        for name in operation.__struct_fields__
        if name not in skipped
    }
    if isinstance(operation, Copy):
        fields["items"] = [_without_stage(item) for item in operation.items]
    if isinstance(operation, Run):
        fields["mounts"] = [_without_stage(mount) for mount in operation.mounts]
    return msgspec.json.encode([RULES, type(operation).__name__, fields], order="sorted")


def _without_stage(holder: CopyItem | RunMount) -> dict[str, Any]:
    fields = {name: getattr(holder, name) for name in holder.__struct_fields__}
    if isinstance(holder.source, StageSource):
        fields["source"] = "stage"
    return fields


def digest(*parts: bytes) -> str:
    """A name for values in this order; lengths are part of it, so that no two lists of parts share one."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return "sha256:" + total.hexdigest()
