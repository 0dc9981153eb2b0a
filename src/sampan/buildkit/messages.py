"""BuildKit's messages, as far as clients of Docker's engine use them: names, field numbers, meanings. Values only.

    control      Solve, Status, DiskUsage, Prune, ListWorkers, Info, build history     moby.buildkit.v1.Control
    gateway      what a client that drives a build asks of it                          moby.buildkit.v1.frontend.LLBBridge
    session      what the engine asks of the client: files, credentials, secrets, ssh  moby.filesync.v1, ...
    errors       details of a failure                                                  google.rpc.Status

Facts (numbers and names) are those of the protocol files in moby/buildkit (api/, frontend/gateway/pb, session/, solver/)
and tonistiigi/fsutil (types/). Fields that nobody here reads or writes are left out: a reader passes them over.
"""

from __future__ import annotations

from typing import Annotated

from sampan.buildkit.wire import Message

# --- common


class Empty(Message):
    """A message without content."""


class Bytes(Message):
    """A piece of a byte stream."""

    data: Annotated[bytes, 1] = b""


class Health(Message):
    """grpc.health.v1: 1 for serving."""

    status: Annotated[int, 1] = 0


class Timestamp(Message):
    """google.protobuf.Timestamp: seconds since 1970, and nanoseconds."""

    seconds: Annotated[int, 1] = 0
    nanos: Annotated[int, 2] = 0


class Any(Message):
    """google.protobuf.Any: a message with the name of its kind."""

    type_url: Annotated[str, 1] = ""
    value: Annotated[bytes, 2] = b""


class Status(Message):
    """google.rpc.Status: a failure with details."""

    code: Annotated[int, 1] = 0
    message: Annotated[str, 2] = ""
    details: Annotated[list[Any], 3] = []


class Platform(Message):
    """What an image runs on."""

    architecture: Annotated[str, 1] = ""
    os: Annotated[str, 2] = ""
    variant: Annotated[str, 3] = ""
    os_version: Annotated[str, 4] = ""


class Descriptor(Message):
    """A blob's kind, digest and size in bytes."""

    media_type: Annotated[str, 1] = ""
    digest: Annotated[str, 2] = ""
    size: Annotated[int, 3] = 0
    annotations: Annotated[dict[str, str], 5] = {}


# --- where in a Dockerfile


class Position(Message):
    """A line from 1, a character from 0."""

    line: Annotated[int, 1] = 0
    character: Annotated[int, 2] = 0


class Range(Message):
    """From a position to another, the last line included."""

    start: Annotated[Position | None, 1] = None
    end: Annotated[Position | None, 2] = None


class SourceInfo(Message):
    """A Dockerfile."""

    filename: Annotated[str, 1] = ""
    data: Annotated[bytes, 2] = b""
    language: Annotated[str, 4] = ""


class Source(Message):
    """Lines of a Dockerfile that a failure is about."""

    info: Annotated[SourceInfo | None, 1] = None
    ranges: Annotated[list[Range], 2] = []


class Subrequest(Message):
    """A request that a frontend does not know."""

    name: Annotated[str, 1] = ""


class VertexRef(Message):
    """The step that a failure is about."""

    digest: Annotated[str, 1] = ""


# --- low-level build definitions, as far as they are looked at


class OpMetadata(Message):
    """What is said about an operation beside it."""

    description: Annotated[dict[str, str], 2] = {}


class Definition(Message):
    """A graph of marshalled operations; metadata by their digests."""

    ops: Annotated[list[bytes], 1] = []
    metadata: Annotated[dict[str, OpMetadata], 2] = {}


class Input(Message):
    """An operation whose output another one reads."""

    digest: Annotated[str, 1] = ""
    index: Annotated[int, 2] = 0


class SourceOp(Message):
    """Where files come from: `docker-image://...`, `local://...`, `git://...`, `https://...`."""

    identifier: Annotated[str, 1] = ""
    attrs: Annotated[dict[str, str], 2] = {}


class Op(Message):
    """One operation of a definition."""

    inputs: Annotated[list[Input], 1] = []
    source: Annotated[SourceOp | None, 3] = None


# --- control


class BuildkitVersion(Message):
    """Which program, in Go's terms."""

    package: Annotated[str, 1] = ""
    version: Annotated[str, 2] = ""
    revision: Annotated[str, 3] = ""


class GCPolicy(Message):
    """What the cache may hold: times in nanoseconds, sizes in bytes."""

    all: Annotated[bool, 1] = False
    keep_duration: Annotated[int, 2] = 0
    reserved_space: Annotated[int, 3] = 0
    filters: Annotated[list[str], 4] = []


class WorkerRecord(Message):
    """Who performs builds."""

    id: Annotated[str, 1] = ""
    labels: Annotated[dict[str, str], 2] = {}
    platforms: Annotated[list[Platform], 3] = []
    gc_policy: Annotated[list[GCPolicy], 4] = []
    version: Annotated[BuildkitVersion | None, 5] = None


class ListWorkersResponse(Message):
    """All of them."""

    record: Annotated[list[WorkerRecord], 1] = []


class InfoResponse(Message):
    """Who answers."""

    version: Annotated[BuildkitVersion | None, 1] = None


class DiskUsageRequest(Message):
    """Which records."""

    filter: Annotated[list[str], 1] = []


class UsageRecord(Message):
    """One entry of the build cache; size in bytes."""

    id: Annotated[str, 1] = ""
    mutable: Annotated[bool, 2] = False
    in_use: Annotated[bool, 3] = False
    size: Annotated[int, 4] = 0
    parent: Annotated[str, 5] = ""
    created_at: Annotated[Timestamp | None, 6] = None
    last_used_at: Annotated[Timestamp | None, 7] = None
    usage_count: Annotated[int, 8] = 0
    description: Annotated[str, 9] = ""
    record_type: Annotated[str, 10] = ""
    shared: Annotated[bool, 11] = False
    parents: Annotated[list[str], 12] = []


class DiskUsageResponse(Message):
    """What the cache holds."""

    record: Annotated[list[UsageRecord], 1] = []


class PruneRequest(Message):
    """What may go: duration in nanoseconds, space in bytes."""

    filter: Annotated[list[str], 1] = []
    all: Annotated[bool, 2] = False
    keep_duration: Annotated[int, 3] = 0
    reserved_space: Annotated[int, 4] = 0
    max_used_space: Annotated[int, 5] = 0
    min_free_space: Annotated[int, 6] = 0


class CacheEntry(Message):
    """A cache to read or write: `registry`, `local`, `inline`, with its options."""

    type: Annotated[str, 1] = ""
    attrs: Annotated[dict[str, str], 2] = {}


class CacheOptions(Message):
    """Caches beside our own."""

    exports: Annotated[list[CacheEntry], 4] = []
    imports: Annotated[list[CacheEntry], 5] = []


class Exporter(Message):
    """Where a result goes: `moby`, `image`, `docker`, `oci`, `local`, `tar`."""

    type: Annotated[str, 1] = ""
    attrs: Annotated[dict[str, str], 2] = {}


class SolveRequest(Message):
    """A build. `ref` names it to Status and to the gateway; without frontend and definition a client drives it."""

    ref: Annotated[str, 1] = ""
    definition: Annotated[Definition | None, 2] = None
    exporter: Annotated[str, 3] = ""
    exporter_attrs: Annotated[dict[str, str], 4] = {}
    session: Annotated[str, 5] = ""
    frontend: Annotated[str, 6] = ""
    frontend_attrs: Annotated[dict[str, str], 7] = {}
    cache: Annotated[CacheOptions | None, 8] = None
    entitlements: Annotated[list[str], 9] = []
    frontend_inputs: Annotated[dict[str, Definition], 10] = {}
    internal: Annotated[bool, 11] = False
    exporters: Annotated[list[Exporter], 13] = []


class SolveResponse(Message):
    """What the exporters say: `containerimage.digest`, ..."""

    exporter_response: Annotated[dict[str, str], 1] = {}


class StatusRequest(Message):
    """Of which build."""

    ref: Annotated[str, 1] = ""


class ProgressGroup(Message):
    """Steps that are shown as one."""

    id: Annotated[str, 1] = ""
    name: Annotated[str, 2] = ""
    weak: Annotated[bool, 3] = False


class Vertex(Message):
    """A step as progress shows it."""

    digest: Annotated[str, 1] = ""
    inputs: Annotated[list[str], 2] = []
    name: Annotated[str, 3] = ""
    cached: Annotated[bool, 4] = False
    started: Annotated[Timestamp | None, 5] = None
    completed: Annotated[Timestamp | None, 6] = None
    error: Annotated[str, 7] = ""
    progress_group: Annotated[ProgressGroup | None, 8] = None


class VertexStatus(Message):
    """A count within a step: bytes so far, and in all."""

    id: Annotated[str, 1] = ""
    vertex: Annotated[str, 2] = ""
    name: Annotated[str, 3] = ""
    current: Annotated[int, 4] = 0
    total: Annotated[int, 5] = 0
    timestamp: Annotated[Timestamp | None, 6] = None
    started: Annotated[Timestamp | None, 7] = None
    completed: Annotated[Timestamp | None, 8] = None


class VertexLog(Message):
    """What a step printed; stream 1 or 2."""

    vertex: Annotated[str, 1] = ""
    timestamp: Annotated[Timestamp | None, 2] = None
    stream: Annotated[int, 3] = 0
    data: Annotated[bytes, 4] = b""


class VertexWarning(Message):
    """What a linter found."""

    vertex: Annotated[str, 1] = ""
    level: Annotated[int, 2] = 0
    short: Annotated[bytes, 3] = b""
    detail: Annotated[list[bytes], 4] = []
    url: Annotated[str, 5] = ""
    info: Annotated[SourceInfo | None, 6] = None
    ranges: Annotated[list[Range], 7] = []


class StatusResponse(Message):
    """News of a build."""

    vertexes: Annotated[list[Vertex], 1] = []
    statuses: Annotated[list[VertexStatus], 2] = []
    logs: Annotated[list[VertexLog], 3] = []
    warnings: Annotated[list[VertexWarning], 4] = []


class HistoryRequest(Message):
    """Which builds of the past."""

    active_only: Annotated[bool, 1] = False
    ref: Annotated[str, 2] = ""
    early_exit: Annotated[bool, 3] = False


class ResultInfo(Message):
    """What a build made."""

    result: Annotated[Descriptor | None, 1] = None


class HistoryRecord(Message):
    """A build of the past."""

    ref: Annotated[str, 1] = ""
    frontend: Annotated[str, 2] = ""
    frontend_attrs: Annotated[dict[str, str], 3] = {}
    exporters: Annotated[list[Exporter], 4] = []
    error: Annotated[Status | None, 5] = None
    created_at: Annotated[Timestamp | None, 6] = None
    completed_at: Annotated[Timestamp | None, 7] = None
    logs: Annotated[Descriptor | None, 8] = None
    exporter_response: Annotated[dict[str, str], 9] = {}
    result: Annotated[ResultInfo | None, 10] = None
    generation: Annotated[int, 12] = 0
    pinned: Annotated[bool, 14] = False
    cached_steps: Annotated[int, 15] = 0
    total_steps: Annotated[int, 16] = 0
    completed_steps: Annotated[int, 17] = 0


HISTORY_STARTED, HISTORY_COMPLETE, HISTORY_DELETED = range(3)


class HistoryEvent(Message):
    """A record that is new, complete or gone."""

    type: Annotated[int, 1] = 0
    record: Annotated[HistoryRecord | None, 2] = None


class UpdateHistoryRequest(Message):
    """Keep a record, or drop it."""

    ref: Annotated[str, 1] = ""
    pinned: Annotated[bool, 2] = False
    delete: Annotated[bool, 3] = False
    finalize: Annotated[bool, 4] = False


# --- gateway


class Capability(Message):
    """One thing that a server can do."""

    id: Annotated[str, 1] = ""
    enabled: Annotated[bool, 2] = False
    deprecated: Annotated[bool, 3] = False


class PongResponse(Message):
    """What a build's frontend and definitions may use."""

    frontend_caps: Annotated[list[Capability], 1] = []
    llb_caps: Annotated[list[Capability], 2] = []
    workers: Annotated[list[WorkerRecord], 3] = []


class Ref(Message):
    """A result within a build."""

    id: Annotated[str, 1] = ""
    definition: Annotated[Definition | None, 2] = None


class RefMap(Message):
    """Results by platform."""

    refs: Annotated[dict[str, Ref], 1] = {}


class OldRefMap(Message):
    """The same, from before definitions came along."""

    refs: Annotated[dict[str, str], 1] = {}


class Result(Message):
    """What a frontend gives: one result or one for each platform, with metadata."""

    old_ref: Annotated[str, 1] = ""
    old_refs: Annotated[OldRefMap | None, 2] = None
    ref: Annotated[Ref | None, 3] = None
    refs: Annotated[RefMap | None, 4] = None
    metadata: Annotated[dict[str, bytes], 10] = {}


class GatewaySolveRequest(Message):
    """Run a frontend, or a definition, inside a build."""

    definition: Annotated[Definition | None, 1] = None
    frontend: Annotated[str, 2] = ""
    frontend_opt: Annotated[dict[str, str], 3] = {}
    allow_result_return: Annotated[bool, 5] = False
    allow_result_array_ref: Annotated[bool, 6] = False
    cache_imports: Annotated[list[CacheEntry], 12] = []
    frontend_inputs: Annotated[dict[str, Definition], 13] = {}
    evaluate: Annotated[bool, 14] = False


class GatewaySolveResponse(Message):
    """Its result."""

    ref: Annotated[str, 1] = ""
    result: Annotated[Result | None, 3] = None


class ReturnRequest(Message):
    """How the client's part of a build ended."""

    result: Annotated[Result | None, 1] = None
    error: Annotated[Status | None, 2] = None


class FileRange(Message):
    """Bytes of a file."""

    offset: Annotated[int, 1] = 0
    length: Annotated[int, 2] = 0


class ReadFileRequest(Message):
    """A file of a result."""

    ref: Annotated[str, 1] = ""
    path: Annotated[str, 2] = ""
    range: Annotated[FileRange | None, 3] = None


class ReadDirRequest(Message):
    """A directory of a result."""

    ref: Annotated[str, 1] = ""
    path: Annotated[str, 2] = ""
    include: Annotated[str, 3] = ""


class StatFileRequest(Message):
    """A path of a result."""

    ref: Annotated[str, 1] = ""
    path: Annotated[str, 2] = ""


class EvaluateRequest(Message):
    """Perform a result's steps now."""

    ref: Annotated[str, 1] = ""


class ResolveImageRequest(Message):
    """An image's configuration by name."""

    ref: Annotated[str, 1] = ""
    platform: Annotated[Platform | None, 2] = None
    resolve_mode: Annotated[str, 3] = ""
    log_name: Annotated[str, 4] = ""


class ResolveImageResponse(Message):
    """Its digest and its configuration as JSON."""

    digest: Annotated[str, 1] = ""
    config: Annotated[bytes, 2] = b""
    ref: Annotated[str, 3] = ""


class InputsResponse(Message):
    """Definitions that a frontend was given."""

    definitions: Annotated[dict[str, Definition], 1] = {}


class WarnRequest(Message):
    """A warning of the frontend, to be shown with a vertex."""

    digest: Annotated[str, 1] = ""
    level: Annotated[int, 2] = 0
    short: Annotated[bytes, 3] = b""
    detail: Annotated[list[bytes], 4] = []
    url: Annotated[str, 5] = ""
    info: Annotated[SourceInfo | None, 6] = None
    ranges: Annotated[list[Range], 7] = []


# --- session: files


class Stat(Message):
    """A file as fsutil tells it: Go's mode bits, nanoseconds since 1970."""

    path: Annotated[str, 1] = ""
    mode: Annotated[int, 2] = 0
    uid: Annotated[int, 3] = 0
    gid: Annotated[int, 4] = 0
    size: Annotated[int, 5] = 0
    mtime_ns: Annotated[int, 6] = 0
    link: Annotated[str, 7] = ""
    major: Annotated[int, 8] = 0
    minor: Annotated[int, 9] = 0
    xattrs: Annotated[dict[str, bytes], 10] = {}


PACKET_STAT, PACKET_REQUEST, PACKET_DATA, PACKET_FIN, PACKET_ERROR = range(5)


class Packet(Message):
    """One message of a directory transfer."""

    type: Annotated[int, 1] = 0
    stat: Annotated[Stat | None, 2] = None
    id: Annotated[int, 3] = 0
    data: Annotated[bytes, 4] = b""


class ReadDirResponse(Message):
    """A directory's entries."""

    entries: Annotated[list[Stat], 1] = []


class ReadFileResponse(Message):
    """A file's bytes."""

    data: Annotated[bytes, 1] = b""


class StatFileResponse(Message):
    """A path's facts."""

    stat: Annotated[Stat | None, 1] = None


# --- session: credentials, secrets, ssh


class CredentialsRequest(Message):
    """For which registry."""

    host: Annotated[str, 1] = ""


class CredentialsResponse(Message):
    """User and password; an identity token has no user."""

    username: Annotated[str, 1] = ""
    secret: Annotated[str, 2] = ""


class SecretRequest(Message):
    """Which secret."""

    id: Annotated[str, 1] = ""


class SecretResponse(Message):
    """Its bytes."""

    data: Annotated[bytes, 1] = b""


class ReadContentRequest(Message):
    """A blob, or a range of it."""

    digest: Annotated[str, 1] = ""
    offset: Annotated[int, 2] = 0
    size: Annotated[int, 3] = 0


class ReadContentResponse(Message):
    """Its bytes, in pieces."""

    offset: Annotated[int, 1] = 0
    data: Annotated[bytes, 2] = b""


CONTENT_STAT, CONTENT_WRITE, CONTENT_COMMIT = range(3)


class WriteContentRequest(Message):
    """A step in writing a blob: what it is to be, a piece of it, or its end."""

    action: Annotated[int, 1] = 0
    ref: Annotated[str, 2] = ""
    total: Annotated[int, 3] = 0
    expected: Annotated[str, 4] = ""
    offset: Annotated[int, 5] = 0
    data: Annotated[bytes, 6] = b""


class AgentRequest(Message):
    """Which ssh agent."""

    id: Annotated[str, 1] = ""
