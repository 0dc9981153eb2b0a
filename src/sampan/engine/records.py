"""What the engine keeps about a container: the wish, made once at create, and the facts, only ever observed.

    ContainerRecord   what was asked for; frozen. Fields that a verb may change say which verb.
    ContainerState    what was seen: pid, times, exit code. Status is derived from it, never stored beside it.
    ExecRecord        one more process in a container: asked for, then observed.

All are stored as JSON (kinds CONTAINER and STATE of `store.py`; execs live only as long as the engine). Each
carries a version; readers ignore keys they do not know and give missing ones the default below.

    Status:   created ──start──> running <──pause/unpause──> paused
                                   │  ▲
                              exit │  │ start, restart policy
                                   ▼  │
                     exited <── restarting          removing, dead: on the way out, or stuck there
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from sampan.spec.engine.container import (
    ContainerConfig,
    EndpointSettings,
    ExecConfig,
    HostConfig,
)

CONTAINER = "container"
STATE = "container-state"
RECORD_VERSION = 1


class Status(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class MountRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One mount of a container, resolved: a volume has a name, a bind an absolute source."""

    type: str  # bind, volume, tmpfs, image
    destination: str
    source: str = ""  # bind: host path; volume: its mount point once known; image: reference
    name: str = ""  # volume
    driver: str = ""  # volume
    mode: str = ""  # as the user wrote it: "z", "ro,rshared"
    writable: bool = True
    propagation: str = ""
    non_recursive: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False
    create_source: bool = False  # -v makes a missing host directory, --mount does not
    no_copy: bool = False
    map_owner: bool = (
        False  # `:U`: what the source's owner has there is the container's user's inside
    )
    owners: tuple[
        tuple[int, int], ...
    ] = ()  # with map_owner: (uid there, inside), (gid there, inside)
    subpath: str = ""
    anonymous: bool = False  # made for this container: `rm -v` takes it away
    from_mounts: bool = False  # came by HostConfig.Mounts: shown there
    options: tuple[str, ...] = ()  # tmpfs mount data
    volume_options: dict[str, str] = {}
    volume_labels: dict[str, str] = {}


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. Mutable by verb: name (rename), host_config limits and restart policy (update),
    networks (connect, disconnect), mounts[].source (first start of a volume)."""

    version: int = RECORD_VERSION
    id: str
    name: str
    created_ns: int
    image_id: str
    chain_id: str  # the committed snapshot below the container's own
    driver: str  # storage driver
    path: str  # argv[0]
    args: list[str] = []
    config: ContainerConfig
    host_config: HostConfig
    networks: dict[str, EndpointSettings] = {}
    mounts: tuple[MountRecord, ...] = ()
    platform: str = "linux"
    architecture: str = ""


class HealthProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a health check."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


class HealthState(msgspec.Struct, frozen=True, kw_only=True):
    status: str = "starting"
    failing_streak: int = 0
    log: tuple[HealthProbe, ...] = ()


class ContainerState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was seen. Times are nanoseconds since 1970, 0 for never. A pid goes with its start time."""

    version: int = RECORD_VERSION
    pid: int = 0
    start_time: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    paused: bool = False
    restarting: bool = False
    restart_count: int = 0
    manually_stopped: bool = False
    removing: bool = False
    dead: bool = False
    health: HealthState | None = None
    endpoints: dict[str, EndpointSettings] = {}  # facts of the networks while running
    ports: dict[str, list[tuple[str, str]]] = {}  # "80/tcp" -> [(host ip, host port)]
    sandbox_id: str = ""
    sandbox_key: str = ""

    @property
    def is_running(self) -> bool:
        """Has a living process 1 (paused counts; waiting for its restart does not)."""
        return self.pid > 0

    @property
    def status(self) -> Status:
        if self.is_running:
            return Status.PAUSED if self.paused else Status.RUNNING
        if self.restarting:
            return Status.RESTARTING
        if self.removing:
            return Status.REMOVING
        if self.dead:
            return Status.DEAD
        return Status.EXITED if self.started_ns or self.finished_ns else Status.CREATED


class ExecRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One more process in a container."""

    id: str
    container_id: str
    config: ExecConfig
    running: bool = False
    started: bool = False
    exit_code: int | None = None
    pid: int = 0
    finished_at: float = 0.0  # monotonic: ended ones are forgotten after a while


class SharedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the pure parts need to know about this host; probed once by daemon.py."""

    kernel: str
    architecture: str  # GOARCH: amd64, arm64
    cpus: int
    memory_bytes: int
    cgroup_version: int
    has_swap_limit: bool = True
    has_memory_limit: bool = True
    has_cpu_cfs: bool = True
    has_cpu_shares: bool = True
    has_cpuset: bool = True
    has_pids_limit: bool = True
    has_blkio_weight: bool = True
    has_oom_kill_disable: bool = False
    has_apparmor: bool = False
    has_selinux: bool = False
    rootless: bool = False
    one_id: bool = False  # rootless without subordinate ids
    cpuset_cpus: str = ""  # what there is, as the kernel writes it: "0-1"
    cpuset_mems: str = ""
    open_files: tuple[int, int] | None = (
        None  # a container's limit, where it is not the engine's own
    )
