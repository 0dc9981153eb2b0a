"""Engine API bodies about containers: what creates one, what describes it, what runs inside it.

A create request is a `ContainerConfig` (what the image's author could have said) with two additions:
`HostConfig` (what only the host's user may say) and `NetworkingConfig`. Inspect gives all three back.
How zero values, nulls and names behave: wire.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sampan.spec.engine.wire import Body, Empty, Int64, StrSlice, names, null, sent

# Go's time.Time{}: what Docker says for "never".
NEVER = "0001-01-01T00:00:00Z"


# --- what creates a container -------------------------------------------------------------------


class HealthConfig(Body, frozen=True, kw_only=True):
    """How to probe a container's health. Durations are nanoseconds; 0 means the default."""

    test: list[str] | None = None  # [] inherit, ["NONE"], ["CMD", ...], ["CMD-SHELL", text]
    interval: Int64 = 0
    timeout: Int64 = 0
    start_period: Int64 = 0
    start_interval: Int64 = 0
    retries: Int64 = 0


class ContainerConfig(Body, frozen=True, kw_only=True):
    """The portable part of a container, which an image's config has too."""

    hostname: str = sent(str)
    domainname: str = sent(str)
    user: str = sent(str)
    attach_stdin: bool = sent(bool)
    attach_stdout: bool = sent(bool)
    attach_stderr: bool = sent(bool)
    exposed_ports: dict[str, Empty] = {}  # "80/tcp"
    tty: bool = sent(bool)
    open_stdin: bool = sent(bool)
    stdin_once: bool = sent(bool)
    env: list[str] | None = null()
    cmd: StrSlice | None = null()
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = sent(str)
    volumes: dict[str, Empty] | None = null()
    working_dir: str = sent(str)
    entrypoint: StrSlice | None = null()  # [""] takes the image's away
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = null()
    labels: dict[str, str] = sent(dict)
    stop_signal: str = ""
    stop_timeout: Int64 | None = None
    shell: StrSlice | None = None


class PortBinding(Body, frozen=True, kw_only=True):
    host_ip: str = sent(str)
    host_port: str = sent(str)  # "", "8080" or "8000-8010"


class LogConfig(Body, frozen=True, kw_only=True):
    type: str = sent(str)
    config: dict[str, str] = sent(dict)


class RestartPolicy(Body, frozen=True, kw_only=True):
    name: str = sent(str)  # "", no, always, unless-stopped, on-failure
    maximum_retry_count: Int64 = sent(int)


class WeightDevice(Body, frozen=True, kw_only=True):
    path: str = sent(str)
    weight: Int64 = sent(int)


class ThrottleDevice(Body, frozen=True, kw_only=True):
    path: str = sent(str)
    rate: Int64 = sent(int)


class DeviceMapping(Body, frozen=True, kw_only=True):
    path_on_host: str = sent(str)
    path_in_container: str = sent(str)
    cgroup_permissions: str = sent(str)


class DeviceRequest(Body, frozen=True, kw_only=True, rename=names(device_ids="DeviceIDs")):
    driver: str = sent(str)
    count: Int64 = sent(int)  # -1 for all
    device_ids: list[str] | None = null()
    capabilities: list[list[str]] | None = null()
    options: dict[str, str] | None = null()


class Ulimit(Body, frozen=True, kw_only=True):
    name: str = sent(str)
    hard: Int64 = sent(int)
    soft: Int64 = sent(int)


class BindOptions(Body, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(Body, frozen=True, kw_only=True):
    name: str = ""
    options: dict[str, str] = {}


class VolumeOptions(Body, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] = {}
    subpath: str = ""
    driver_config: DriverConfig | None = None


class ImageOptions(Body, frozen=True, kw_only=True):
    subpath: str = ""


class TmpfsOptions(Body, frozen=True, kw_only=True):
    size_bytes: Int64 = 0
    mode: Int64 = 0
    options: list[list[str]] | None = None


class MountRequest(Body, frozen=True, kw_only=True):
    """One entry of HostConfig.Mounts (`--mount`)."""

    type: str = ""  # bind, volume, tmpfs, image; npipe and cluster are refused
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class Resources(Body, frozen=True, kw_only=True, rename=names(
    blkio_device_read_iops="BlkioDeviceReadIOps", blkio_device_write_iops="BlkioDeviceWriteIOps",
)):  # fmt: skip
    """Limits: the part of HostConfig that `update` may change. Zero means "no wish"."""

    cpu_shares: Int64 = sent(int)
    memory: Int64 = sent(int)
    nano_cpus: Int64 = sent(int)
    cgroup_parent: str = sent(str)
    blkio_weight: Int64 = sent(int)
    blkio_weight_device: list[WeightDevice] | None = null()
    blkio_device_read_bps: list[ThrottleDevice] | None = null()
    blkio_device_write_bps: list[ThrottleDevice] | None = null()
    blkio_device_read_iops: list[ThrottleDevice] | None = null()
    blkio_device_write_iops: list[ThrottleDevice] | None = null()
    cpu_period: Int64 = sent(int)
    cpu_quota: Int64 = sent(int)
    cpu_realtime_period: Int64 = sent(int)
    cpu_realtime_runtime: Int64 = sent(int)
    cpuset_cpus: str = sent(str)
    cpuset_mems: str = sent(str)
    devices: list[DeviceMapping] | None = null()
    device_cgroup_rules: list[str] | None = null()
    device_requests: list[DeviceRequest] | None = null()
    memory_reservation: Int64 = sent(int)
    memory_swap: Int64 = sent(int)
    memory_swappiness: Int64 | None = null()
    oom_kill_disable: bool | None = null()
    pids_limit: Int64 | None = null()
    ulimits: list[Ulimit] | None = null()


HOST_NAMES = {
    "blkio_device_read_iops": "BlkioDeviceReadIOps",
    "blkio_device_write_iops": "BlkioDeviceWriteIOps",
    "container_id_file": "ContainerIDFile",
    "uts_mode": "UTSMode",
    "io_maximum_iops": "IOMaximumIOps",
    "io_maximum_bandwidth": "IOMaximumBandwidth",
}


class HostConfig(Resources, frozen=True, kw_only=True, rename=names(**HOST_NAMES)):
    """What a container asks of this host."""

    binds: list[str] | None = null()
    container_id_file: str = sent(str)
    log_config: LogConfig = sent(LogConfig)
    network_mode: str = sent(str)
    port_bindings: dict[str, list[PortBinding]] | None = null()
    restart_policy: RestartPolicy = sent(RestartPolicy)
    auto_remove: bool = sent(bool)
    volume_driver: str = sent(str)
    volumes_from: list[str] | None = null()
    console_size: list[int] = sent(lambda: [0, 0])  # height, width
    annotations: dict[str, str] = {}
    cap_add: StrSlice | None = null()
    cap_drop: StrSlice | None = null()
    cgroupns_mode: str = sent(str)
    dns: list[str] | None = null()
    dns_options: list[str] | None = null()
    dns_search: list[str] | None = null()
    extra_hosts: list[str] | None = null()
    group_add: list[str] | None = null()
    ipc_mode: str = sent(str)
    cgroup: str = sent(str)
    links: list[str] | None = null()
    oom_score_adj: Int64 = sent(int)
    pid_mode: str = sent(str)
    privileged: bool = sent(bool)
    publish_all_ports: bool = sent(bool)
    readonly_rootfs: bool = sent(bool)
    security_opt: list[str] | None = null()
    storage_opt: dict[str, str] = {}
    tmpfs: dict[str, str] = {}
    uts_mode: str = sent(str)
    userns_mode: str = sent(str)
    shm_size: Int64 = sent(int)
    sysctls: dict[str, str] = {}
    runtime: str = ""
    isolation: str = sent(str)
    cpu_count: Int64 = sent(int)
    cpu_percent: Int64 = sent(int)
    io_maximum_iops: Int64 = sent(int)
    io_maximum_bandwidth: Int64 = sent(int)
    mounts: list[MountRequest] | None = None
    masked_paths: list[str] | None = null()
    readonly_paths: list[str] | None = null()
    init: bool | None = None


ENDPOINT_NAMES = {
    "ipam_config": "IPAMConfig",
    "network_id": "NetworkID",
    "endpoint_id": "EndpointID",
    "ip_address": "IPAddress",
    "ip_prefix_len": "IPPrefixLen",
    "ipv6_gateway": "IPv6Gateway",
    "global_ipv6_address": "GlobalIPv6Address",
    "global_ipv6_prefix_len": "GlobalIPv6PrefixLen",
    "dns_names": "DNSNames",
}


class EndpointIpam(Body, frozen=True, kw_only=True, rename=names(
    ipv4_address="IPv4Address", ipv6_address="IPv6Address", link_local_ips="LinkLocalIPs",
)):  # fmt: skip
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: list[str] | None = None


class EndpointSettings(Body, frozen=True, kw_only=True, rename=names(**ENDPOINT_NAMES)):
    """A container's place in one network: the first six are wishes, the rest are facts."""

    ipam_config: EndpointIpam | None = null()
    links: list[str] | None = null()
    aliases: list[str] | None = null()
    mac_address: str = sent(str)
    driver_opts: dict[str, str] | None = null()
    gw_priority: Int64 | msgspec.UnsetType = sent(int)  # API >= 1.48; unset is not sent
    network_id: str = sent(str)
    endpoint_id: str = sent(str)
    gateway: str = sent(str)
    ip_address: str = sent(str)
    ip_prefix_len: int = sent(int)
    ipv6_gateway: str = sent(str)
    global_ipv6_address: str = sent(str)
    global_ipv6_prefix_len: int = sent(int)
    dns_names: list[str] | None = null()


class NetworkingConfig(Body, frozen=True, kw_only=True):
    endpoints_config: dict[str, EndpointSettings] = sent(dict)


class CreateRequest(ContainerConfig, frozen=True, kw_only=True):
    """POST /containers/create. `config()` is the portable part alone."""

    host_config: HostConfig = sent(HostConfig)
    networking_config: NetworkingConfig = sent(NetworkingConfig)
    runtime: str = ""  # where docker-py puts what belongs into HostConfig

    def config(self) -> ContainerConfig:
        fields = ContainerConfig.__struct_fields__
        return ContainerConfig(**{name: getattr(self, name) for name in fields})


class CreateResponse(Body, frozen=True, kw_only=True):
    id: str
    warnings: list[str] = sent(list)


class UpdateRequest(Resources, frozen=True, kw_only=True):
    """POST /containers/{id}/update. None of the policy means "leave it"."""

    restart_policy: RestartPolicy | None = None


class UpdateResponse(Body, frozen=True, kw_only=True):
    warnings: list[str] | None = null()


# --- what describes a container -----------------------------------------------------------------


class HealthcheckResult(Body, frozen=True, kw_only=True):
    start: str = sent(str)
    end: str = sent(str)
    exit_code: int = sent(int)
    output: str = sent(str)


class Health(Body, frozen=True, kw_only=True):
    status: str = sent(str)  # starting, healthy, unhealthy
    failing_streak: int = sent(int)
    log: list[HealthcheckResult] = sent(list)


class State(Body, frozen=True, kw_only=True, rename=names(oom_killed="OOMKilled")):
    status: str = sent(str)  # created running paused restarting removing exited dead
    running: bool = sent(bool)
    paused: bool = sent(bool)
    restarting: bool = sent(bool)
    oom_killed: bool = sent(bool)
    dead: bool = sent(bool)
    pid: int = sent(int)
    exit_code: int = sent(int)
    error: str = sent(str)
    started_at: str = sent(lambda: NEVER)
    finished_at: str = sent(lambda: NEVER)
    health: Health | None = None


class GraphDriver(Body, frozen=True, kw_only=True):
    data: dict[str, str] | None = null()
    name: str = sent(str)


class MountPoint(Body, frozen=True, kw_only=True, rename=names(rw="RW")):
    """A mount as inspect shows it."""

    type: str = ""
    name: str = ""
    source: str = sent(str)
    destination: str = sent(str)
    driver: str = ""
    mode: str = sent(str)
    rw: bool = sent(bool)
    propagation: str = sent(str)


class NetworkSettings(Body, frozen=True, kw_only=True, rename=names(
    **ENDPOINT_NAMES,
    sandbox_id="SandboxID",
    link_local_ipv6_address="LinkLocalIPv6Address",
    link_local_ipv6_prefix_len="LinkLocalIPv6PrefixLen",
    secondary_ip_addresses="SecondaryIPAddresses",
    secondary_ipv6_addresses="SecondaryIPv6Addresses",
)):  # fmt: skip
    """Inspect's view of the network. The address fields repeat the default bridge's endpoint (API < 1.52)."""

    bridge: str = sent(str)
    sandbox_id: str = sent(str)
    sandbox_key: str = sent(str)
    ports: dict[str, list[PortBinding] | None] | None = sent(dict)
    hairpin_mode: bool = sent(bool)
    link_local_ipv6_address: str = sent(str)
    link_local_ipv6_prefix_len: int = sent(int)
    secondary_ip_addresses: list[str] | None = null()
    secondary_ipv6_addresses: list[str] | None = null()
    endpoint_id: str = sent(str)
    gateway: str = sent(str)
    global_ipv6_address: str = sent(str)
    global_ipv6_prefix_len: int = sent(int)
    ip_address: str = sent(str)
    ip_prefix_len: int = sent(int)
    ipv6_gateway: str = sent(str)
    mac_address: str = sent(str)
    networks: dict[str, EndpointSettings] = sent(dict)


class ContainerInspect(Body, frozen=True, kw_only=True, rename=names(exec_ids="ExecIDs")):
    """GET /containers/{id}/json."""

    id: str = sent(str)
    created: str = sent(str)
    path: str = sent(str)
    args: list[str] = sent(list)
    state: State = sent(State)
    image: str = sent(str)  # the image's id, "sha256:..."
    resolv_conf_path: str = sent(str)
    hostname_path: str = sent(str)
    hosts_path: str = sent(str)
    log_path: str = sent(str)
    name: str = sent(str)  # with its leading slash
    restart_count: int = sent(int)
    driver: str = sent(str)
    platform: str = sent(lambda: "linux")
    image_manifest_descriptor: dict[str, Any] | None = None  # API >= 1.48
    mount_label: str = sent(str)
    process_label: str = sent(str)
    app_armor_profile: str = sent(str)
    exec_ids: list[str] | None = null()
    host_config: HostConfig = sent(HostConfig)
    graph_driver: GraphDriver = sent(GraphDriver)
    size_rw: int | None = None
    size_root_fs: int | None = None
    mounts: list[MountPoint] = sent(list)
    config: ContainerConfig = sent(ContainerConfig)
    network_settings: NetworkSettings = sent(NetworkSettings)


class Port(Body, frozen=True, kw_only=True, rename=names(ip="IP")):
    ip: str = ""
    private_port: int = sent(int)
    public_port: int = 0
    type: str = sent(str)


class SummaryHostConfig(Body, frozen=True, kw_only=True):
    network_mode: str = ""
    annotations: dict[str, str] = {}


class SummaryNetworkSettings(Body, frozen=True, kw_only=True):
    networks: dict[str, EndpointSettings] = sent(dict)


class ContainerSummary(Body, frozen=True, kw_only=True, rename=names(image_id="ImageID")):
    """One row of GET /containers/json."""

    id: str = sent(str)
    names: list[str] = sent(list)
    image: str = sent(str)
    image_id: str = sent(str)
    image_manifest_descriptor: dict[str, Any] | None = None  # API >= 1.48
    command: str = sent(str)
    created: int = sent(int)
    ports: list[Port] = sent(list)
    size_rw: int | None = None
    size_root_fs: int | None = None
    labels: dict[str, str] = sent(dict)
    state: str = sent(str)
    status: str = sent(str)
    host_config: SummaryHostConfig = sent(SummaryHostConfig)
    network_settings: SummaryNetworkSettings = sent(SummaryNetworkSettings)
    mounts: list[MountPoint] = sent(list)


class TopResponse(Body, frozen=True, kw_only=True):
    titles: list[str] = sent(list)
    processes: list[list[str]] = sent(list)


class FilesystemChange(Body, frozen=True, kw_only=True):
    path: str
    kind: int  # 0 modified, 1 added, 2 deleted


class WaitError(Body, frozen=True, kw_only=True):
    message: str = sent(str)


class WaitResponse(Body, frozen=True, kw_only=True):
    status_code: int = sent(int)
    error: WaitError | None = None


class ContainersPruned(Body, frozen=True, kw_only=True):
    containers_deleted: list[str] | None = null()
    space_reclaimed: int = sent(int)


class PathStat(Body, frozen=True, kw_only=True, rename={"link_target": "linkTarget"}):
    """The X-Docker-Container-Path-Stat header, base64 of this as JSON."""

    name: str
    size: int
    mode: int  # Go's os.FileMode bits, not the kernel's
    mtime: str
    link_target: str = sent(str)


# --- what runs inside one -----------------------------------------------------------------------


class ExecConfig(Body, frozen=True, kw_only=True):
    """POST /containers/{id}/exec."""

    user: str = sent(str)
    privileged: bool = sent(bool)
    tty: bool = sent(bool)
    console_size: list[int] | None = None  # height, width
    attach_stdin: bool = sent(bool)
    attach_stderr: bool = sent(bool)
    attach_stdout: bool = sent(bool)
    detach: bool = sent(bool)
    detach_keys: str = sent(str)
    env: list[str] | None = null()
    working_dir: str = sent(str)
    cmd: StrSlice | None = null()


class ExecStart(Body, frozen=True, kw_only=True):
    """POST /exec/{id}/start."""

    detach: bool = sent(bool)
    tty: bool = sent(bool)
    console_size: list[int] | None = None


class IdResponse(Body, frozen=True, kw_only=True):
    id: str


class ExecProcess(Body, frozen=True, kw_only=True, rename=None):
    tty: bool
    entrypoint: str
    arguments: list[str]
    privileged: bool | None = None
    user: str = ""


class ExecInspect(
    Body, frozen=True, kw_only=True, rename=names(id="ID", container_id="ContainerID")
):
    """GET /exec/{id}/json."""

    id: str
    running: bool
    exit_code: int | None
    process_config: ExecProcess
    open_stdin: bool
    open_stderr: bool
    open_stdout: bool
    can_remove: bool
    container_id: str
    detach_keys: str  # base64, as Go writes []byte
    pid: int


# --- what measures one --------------------------------------------------------------------------


class PidsStats(Body, frozen=True, kw_only=True, rename=None):
    current: int = 0
    limit: int = 0


class BlkioEntry(Body, frozen=True, kw_only=True, rename=None):
    major: int = sent(int)
    minor: int = sent(int)
    op: str = sent(str)
    value: int = sent(int)


class BlkioStats(Body, frozen=True, kw_only=True, rename=None):
    io_service_bytes_recursive: list[BlkioEntry] | None = null()
    io_serviced_recursive: list[BlkioEntry] | None = null()
    io_queue_recursive: list[BlkioEntry] | None = null()
    io_service_time_recursive: list[BlkioEntry] | None = null()
    io_wait_time_recursive: list[BlkioEntry] | None = null()
    io_merged_recursive: list[BlkioEntry] | None = null()
    io_time_recursive: list[BlkioEntry] | None = null()
    sectors_recursive: list[BlkioEntry] | None = null()


class CpuUsage(Body, frozen=True, kw_only=True, rename=None):
    """Nanoseconds."""

    total_usage: int = sent(int)
    percpu_usage: list[int] | None = None  # cgroup v1 only
    usage_in_kernelmode: int = sent(int)
    usage_in_usermode: int = sent(int)


class ThrottlingData(Body, frozen=True, kw_only=True, rename=None):
    periods: int = sent(int)
    throttled_periods: int = sent(int)
    throttled_time: int = sent(int)


class CpuStats(Body, frozen=True, kw_only=True, rename=None):
    cpu_usage: CpuUsage = sent(CpuUsage)
    system_cpu_usage: int = 0  # nanoseconds of the whole host since boot
    online_cpus: int = 0
    throttling_data: ThrottlingData = sent(ThrottlingData)


class MemoryStats(Body, frozen=True, kw_only=True, rename=None):
    usage: int = 0
    max_usage: int = 0  # cgroup v1 only
    stats: dict[str, int] = {}  # memory.stat
    failcnt: int = 0
    limit: int = 0


class InterfaceStats(Body, frozen=True, kw_only=True, rename=None):
    rx_bytes: int = sent(int)
    rx_packets: int = sent(int)
    rx_errors: int = sent(int)
    rx_dropped: int = sent(int)
    tx_bytes: int = sent(int)
    tx_packets: int = sent(int)
    tx_errors: int = sent(int)
    tx_dropped: int = sent(int)


class ContainerStats(Body, frozen=True, kw_only=True, rename=None):
    """One sample of GET /containers/{id}/stats."""

    name: str = ""
    id: str = ""
    read: str = sent(lambda: NEVER)
    preread: str = sent(lambda: NEVER)
    pids_stats: PidsStats = sent(PidsStats)
    blkio_stats: BlkioStats = sent(BlkioStats)
    num_procs: int = sent(int)
    storage_stats: Empty = sent(Empty)
    cpu_stats: CpuStats = sent(CpuStats)
    precpu_stats: CpuStats = sent(CpuStats)
    memory_stats: MemoryStats = sent(MemoryStats)
    networks: dict[str, InterfaceStats] = {}
