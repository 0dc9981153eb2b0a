"""Engine API bodies about the engine itself: version, info, events, disk usage, login. Wire rules: wire.py."""

from __future__ import annotations

from typing import Any

from sampan.spec.engine.container import ContainerSummary
from sampan.spec.engine.image import BuildCacheRecord, ImageSummary
from sampan.spec.engine.volume import Volume
from sampan.spec.engine.wire import Body, names, null, sent


class VersionComponent(Body, frozen=True, kw_only=True):
    name: str
    version: str
    details: dict[str, str] = {}


class VersionPlatform(Body, frozen=True, kw_only=True):
    name: str = sent(str)


class Version(Body, frozen=True, kw_only=True, rename=names(min_api_version="MinAPIVersion")):
    """GET /version. The flat fields repeat the component "Engine" for clients older than components."""

    platform: VersionPlatform = sent(VersionPlatform)
    components: list[VersionComponent] = sent(list)
    version: str = sent(str)
    api_version: str = sent(str)
    min_api_version: str = sent(str)
    git_commit: str = sent(str)
    go_version: str = sent(str)
    os: str = sent(lambda: "linux")
    arch: str = sent(str)
    kernel_version: str = sent(str)
    build_time: str = ""


class PluginsInfo(Body, frozen=True, kw_only=True):
    volume: list[str] = sent(lambda: ["local"])
    network: list[str] = sent(list)
    authorization: list[str] | None = null()
    log: list[str] = sent(list)


class IndexInfo(Body, frozen=True, kw_only=True):
    name: str = sent(str)
    mirrors: list[str] = sent(list)
    secure: bool = sent(bool)
    official: bool = sent(bool)


class RegistryConfig(Body, frozen=True, kw_only=True, rename=names(
    insecure_registry_cidrs="InsecureRegistryCIDRs",
)):  # fmt: skip
    insecure_registry_cidrs: list[str] = sent(list)
    index_configs: dict[str, IndexInfo] = sent(dict)
    mirrors: list[str] | None = null()


class RuntimeInfo(
    Body, frozen=True, kw_only=True, rename=names(runtime_args="runtimeArgs", path="path")
):
    path: str = ""
    runtime_args: list[str] | None = None


class SwarmInfo(Body, frozen=True, kw_only=True, rename=names(node_id="NodeID")):
    """We are never a member."""

    node_id: str = sent(str)
    node_addr: str = sent(str)
    local_node_state: str = sent(lambda: "inactive")
    control_available: bool = sent(bool)
    error: str = sent(str)
    remote_managers: list[Any] | None = null()


class Commit(Body, frozen=True, kw_only=True, rename=names(id="ID")):
    id: str = sent(str)
    expected: str = ""  # API < 1.49


class AddressPool(Body, frozen=True, kw_only=True):
    base: str
    size: int


class Info(Body, frozen=True, kw_only=True, rename=names(
    id="ID", ncpu="NCPU", ipv4_forwarding="IPv4Forwarding", bridge_nf_iptables="BridgeNfIptables",
    bridge_nf_ip6tables="BridgeNfIp6tables", n_fd="NFd", n_goroutines="NGoroutines", os_type="OSType",
    os_version="OSVersion", cpu_cfs_period="CpuCfsPeriod", cpu_cfs_quota="CpuCfsQuota",
    cpu_shares="CPUShares", cpu_set="CPUSet", cdi_spec_dirs="CDISpecDirs",
)):  # fmt: skip
    """GET /info."""

    id: str = sent(str)
    containers: int = sent(int)
    containers_running: int = sent(int)
    containers_paused: int = sent(int)
    containers_stopped: int = sent(int)
    images: int = sent(int)
    driver: str = sent(str)
    driver_status: list[list[str]] = sent(list)
    system_status: list[list[str]] | None = None
    plugins: PluginsInfo = sent(PluginsInfo)
    memory_limit: bool = sent(bool)
    swap_limit: bool = sent(bool)
    cpu_cfs_period: bool = sent(bool)
    cpu_cfs_quota: bool = sent(bool)
    cpu_shares: bool = sent(bool)
    cpu_set: bool = sent(bool)
    pids_limit: bool = sent(bool)
    ipv4_forwarding: bool = sent(bool)
    bridge_nf_iptables: bool | None = None  # API < 1.50
    bridge_nf_ip6tables: bool | None = None  # API < 1.50
    debug: bool = sent(bool)
    n_fd: int = sent(int)
    oom_kill_disable: bool = sent(bool)
    n_goroutines: int = sent(int)
    system_time: str = sent(str)
    logging_driver: str = sent(lambda: "json-file")
    cgroup_driver: str = sent(str)
    cgroup_version: str = ""
    n_events_listener: int = sent(int)
    kernel_version: str = sent(str)
    operating_system: str = sent(str)
    os_version: str = sent(str)
    os_type: str = sent(lambda: "linux")
    architecture: str = sent(str)
    index_server_address: str = sent(lambda: "https://index.docker.io/v1/")
    registry_config: RegistryConfig = sent(RegistryConfig)
    ncpu: int = sent(int)
    mem_total: int = sent(int)
    generic_resources: list[Any] | None = null()
    docker_root_dir: str = sent(str)
    http_proxy: str = sent(str)
    https_proxy: str = sent(str)
    no_proxy: str = sent(str)
    name: str = sent(str)
    labels: list[str] = sent(list)
    experimental_build: bool = sent(bool)
    server_version: str = sent(str)
    runtimes: dict[str, RuntimeInfo] = sent(dict)
    default_runtime: str = sent(str)
    swarm: SwarmInfo = sent(SwarmInfo)
    live_restore_enabled: bool = sent(bool)
    isolation: str = sent(str)
    init_binary: str = sent(str)
    containerd_commit: Commit = sent(Commit)
    runc_commit: Commit = sent(Commit)
    init_commit: Commit = sent(Commit)
    security_options: list[str] = sent(list)
    product_license: str = ""
    execution_driver: str = ""  # API < 1.25
    default_address_pools: list[AddressPool] | None = None
    cdi_spec_dirs: list[str] = sent(list)
    warnings: list[str] | None = null()


class Actor(Body, frozen=True, kw_only=True, rename=names(id="ID")):
    id: str = sent(str)
    attributes: dict[str, str] = sent(dict)


class EventMessage(Body, frozen=True, kw_only=True, rename=names(
    status="status", id="id", from_="from", scope="scope", time="time", time_nano="timeNano",
)):  # fmt: skip
    """A line of GET /events. `status`, `id` and `from` repeat the rest for API < 1.52 (containers and images)."""

    status: str = ""
    id: str = ""
    from_: str = ""
    type: str = sent(str)
    action: str = sent(str)
    actor: Actor = sent(Actor)
    scope: str = ""
    time: int = 0
    time_nano: int = 0


class DiskUsage(Body, frozen=True, kw_only=True):
    """GET /system/df; a list not asked for is null."""

    layers_size: int | None = None
    images: list[ImageSummary] | None = null()
    containers: list[ContainerSummary] | None = null()
    volumes: list[Volume] | None = null()
    build_cache: list[BuildCacheRecord] | None = null()
    builder_size: int = 0


class AuthRequest(Body, frozen=True, kw_only=True, rename=None):
    """POST /auth, and the decoded X-Registry-Auth header."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class AuthResponse(Body, frozen=True, kw_only=True):
    status: str = sent(str)
    identity_token: str = sent(str)


class ErrorBody(Body, frozen=True, kw_only=True, rename=None):
    """Every refusal. `hint` is ours: what to do next, apart, so that the message stays Docker's to the letter."""

    message: str
    hint: str = ""
