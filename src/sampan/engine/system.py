"""What the engine says of itself and its host: info, version, disk use; and checking a login."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from sampan import __version__
from sampan.engine import image_views, log_checks, views, volumes
from sampan.errors import Internal
from sampan.images import remote
from sampan.images import verify as audit
from sampan.images.auth import Credentials
from sampan.spec.engine.container import ContainerSummary
from sampan.spec.engine.system import (
    AddressPool,
    AuthRequest,
    AuthResponse,
    Commit,
    DiskUsage,
    IndexInfo,
    Info,
    PluginsInfo,
    RegistryConfig,
    RuntimeInfo,
    Version,
    VersionComponent,
    VersionPlatform,
)
from sampan.units import rfc3339nano

if TYPE_CHECKING:
    from sampan.engine.context import Engine

API_VERSION = "1.51"
NO_CGROUPS = "WARNING: Running in rootless-mode without cgroups. Nothing limits or counts what containers use."
NETWORK_DRIVERS = ["bridge", "host", "ipvlan", "macvlan", "null"]
RUNTIMES = ("io.containerd.runc.v2", "runc", "sampan")
DEFAULT_INDEX = "docker.io"


# -- version ---------------------------------------------------------------------------------------


async def version(engine: Engine) -> Version:
    facts = engine.facts
    oldest = engine.config.min_api_version
    python = platform.python_version()
    details = {
        "ApiVersion": API_VERSION,
        "Arch": facts.architecture,
        "BuildTime": "",
        "Experimental": str(engine.config.experimental).lower(),
        "GitCommit": __version__,
        "GoVersion": f"python{python}",
        "KernelVersion": facts.kernel,
        "MinAPIVersion": oldest,
        "Os": "linux",
    }
    return Version(
        platform=VersionPlatform(name="Sampan Engine"),
        components=[
            VersionComponent(name="Engine", version=__version__, details=details),
            VersionComponent(name="sampan-oci", version=__version__, details={"GitCommit": ""}),
        ],
        version=__version__,
        api_version=API_VERSION,
        min_api_version=oldest,
        git_commit=__version__,
        go_version=f"python{python}",
        arch=facts.architecture,
        kernel_version=facts.kernel,
    )


# -- info ------------------------------------------------------------------------------------------


async def info(engine: Engine, *, version: tuple[int, int] = (1, 51)) -> Info:
    config, facts = engine.config, engine.facts
    running = sum(c.is_running and not c.state.paused for c in engine.containers)
    paused = sum(c.state.paused for c in engine.containers)
    operating_system, os_version = read_os_release()
    return Info(
        id=engine.id,
        containers=len(engine.containers),
        containers_running=running,
        containers_paused=paused,
        containers_stopped=len(engine.containers) - running - paused,
        images=len(engine.catalog.images()),
        driver=engine.snapshots.name,
        driver_status=_driver_status(engine),
        plugins=PluginsInfo(network=NETWORK_DRIVERS, log=list(log_checks.DRIVERS)),
        memory_limit=facts.has_memory_limit,
        swap_limit=facts.has_swap_limit,
        cpu_cfs_period=facts.has_cpu_cfs,
        cpu_cfs_quota=facts.has_cpu_cfs,
        cpu_shares=facts.has_cpu_shares,
        cpu_set=facts.has_cpuset,
        pids_limit=facts.has_pids_limit,
        ipv4_forwarding=_sysctl("net/ipv4/ip_forward") == "1",
        bridge_nf_iptables=_sysctl("net/bridge/bridge-nf-call-iptables") == "1",
        bridge_nf_ip6tables=_sysctl("net/bridge/bridge-nf-call-ip6tables") == "1",
        debug=config.debug,
        n_fd=len(os.listdir("/proc/self/fd")),
        oom_kill_disable=facts.has_oom_kill_disable,
        n_goroutines=len(engine.background),
        system_time=rfc3339nano(time.time_ns()),
        logging_driver=config.log.driver,
        cgroup_driver=config.cgroup_driver,
        cgroup_version=str(facts.cgroup_version),
        n_events_listener=engine.events.listeners,
        kernel_version=facts.kernel,
        operating_system=operating_system,
        os_version=os_version,
        architecture=os.uname().machine,
        registry_config=_registry_config(engine),
        ncpu=facts.cpus,
        mem_total=facts.memory_bytes,
        docker_root_dir=str(config.root),
        http_proxy=config.http_proxy,
        https_proxy=config.https_proxy,
        no_proxy=config.no_proxy,
        name=os.uname().nodename,
        labels=list(config.labels),
        experimental_build=config.experimental,
        server_version=__version__,
        runtimes={name: RuntimeInfo(path="sampan-oci") for name in RUNTIMES},
        default_runtime=engine.config.default_runtime,
        live_restore_enabled=True,
        init_binary="sampan-init",
        containerd_commit=_commit(version),
        runc_commit=_commit(version),
        init_commit=_commit(version),
        security_options=_security_options(engine, version),
        execution_driver="<not supported>" if version < (1, 25) else "",
        default_address_pools=[
            AddressPool(base=pool.base, size=pool.size) for pool in config.address_pools
        ]
        or None,
        warnings=_warnings(engine),
    )


def read_os_release() -> tuple[str, str]:
    """(pretty name, version) of os-release(5)."""
    found: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    key, equals, value = line.strip().partition("=")
                    if equals:
                        found.setdefault(key, value.strip("\"'"))
            break
        except OSError:
            continue
    return found.get("PRETTY_NAME", "Linux"), found.get("VERSION_ID", "")


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _driver_status(engine: Engine) -> list[list[str]]:
    status = [["Backing Filesystem", _filesystem(str(engine.config.root))]]
    if engine.snapshots.name.startswith("overlay"):
        status += [["Supports d_type", "true"], ["userxattr", str(engine.facts.rootless).lower()]]
    return status


def _filesystem(path: str) -> str:
    """The type of the mount that holds a path."""
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
            for line in file:
                _, point, name, *_ = line.split()
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, name
    except OSError:
        pass
    return {"ext4": "extfs", "ext3": "extfs", "ext2": "extfs"}.get(kind, kind)


def _registry_config(engine: Engine) -> RegistryConfig:
    config = engine.config
    mirrors = [url if url.endswith("/") else url + "/" for url in config.registry_mirrors]
    hub = IndexInfo(name=DEFAULT_INDEX, mirrors=mirrors, secure=True, official=True)
    others = {
        host: IndexInfo(name=host, secure=False)
        for host in config.insecure_registries
        if "/" not in host
    }
    cidrs = [text for text in config.insecure_registries if "/" in text]
    return RegistryConfig(
        insecure_registry_cidrs=["::1/128", "127.0.0.0/8", *cidrs],
        index_configs={DEFAULT_INDEX: hub, **others},
        mirrors=mirrors or None,
    )


def _commit(version: tuple[int, int]) -> Commit:
    """Before 1.49 with the commit that was expected: the same, since it is all one program."""
    return Commit(id=__version__, expected=__version__ if version < (1, 49) else "")


def _security_options(engine: Engine, version: tuple[int, int]) -> list[str]:
    options = []
    if engine.facts.has_apparmor:
        options.append("name=apparmor")
    profile = engine.config.seccomp_profile or "builtin"
    if profile != "unconfined":
        options.append(f"name=seccomp,profile={profile}")
    if engine.facts.rootless:
        options.append("name=rootless")
    if engine.config.no_new_privileges:
        options.append("name=no-new-privileges")
    if engine.facts.cgroup_version == 2 or engine.config.default_cgroupns_mode == "private":
        options.append("name=cgroupns")
    if version < (1, 25):  # names alone
        return [text.removeprefix("name=").partition(",")[0] for text in options]
    return options


def _warnings(engine: Engine) -> list[str] | None:
    facts = engine.facts
    if engine.config.cgroup_driver == "none":
        return [NO_CGROUPS]
    table = (
        (facts.has_memory_limit, "WARNING: No memory limit support"),
        (facts.has_swap_limit, "WARNING: No swap limit support"),
        (facts.has_cpu_cfs, "WARNING: No cpu cfs quota support"),
        (facts.has_cpu_shares, "WARNING: No cpu shares support"),
        (facts.has_cpuset, "WARNING: No cpuset support"),
        (facts.has_pids_limit, "WARNING: No pids limit support"),
    )
    return [text for has, text in table if not has] or None


# -- disk use --------------------------------------------------------------------------------------


async def disk_usage(
    engine: Engine,
    *,
    types: Collection[str],
    verbose: bool = False,
    version: tuple[int, int] = (1, 51),
) -> DiskUsage:
    """Images with what they share, containers, volumes."""
    del verbose
    rows: list[ContainerSummary] | None = None
    images: list[Any] | None = None
    layers_size: int | None = None
    if "container" in types:
        rows = await views.list_containers(engine, everything=True, size=True, version=version)
    if "image" in types:
        images = await engine.run_blocking(
            image_views.rows,
            engine.catalog,
            {},
            everything=False,
            shared_size=True,
            manifests=False,
            version=version,
            uses=image_views.uses(engine),
        )
        layers_size = await engine.run_blocking(_layers_size, engine)
    volume_rows = None
    if "volume" in types:
        users = volumes.users_by_volume(engine)
        volume_rows = await engine.run_blocking(volumes.usage_rows, engine, users)
    cache = None
    if "build-cache" in types:
        tellers = engine.build_cache_rows
        cache = [row for tell in tellers for row in await engine.run_blocking(tell)]
    return DiskUsage(
        layers_size=layers_size or 0,
        images=images,
        containers=rows,
        volumes=volume_rows,
        build_cache=cache,
    )


def _layers_size(engine: Engine) -> int:
    """Every layer once, however many images have it."""
    chain_ids = {c for image in engine.catalog.images() for c in image.chain_ids}
    return sum(engine.catalog.layer_size(chain_id) for chain_id in chain_ids)


# -- login -----------------------------------------------------------------------------------------


async def verify(engine: Engine, progress: Callable[[dict[str, Any]], None]) -> None:
    """Read the whole image store again; what is not what its name says is moved out of the way."""
    found = await engine.run_blocking(audit.verify, engine.catalog)
    for what in found.damaged:
        progress({"stream": f"Damaged: {what}\n"})
    progress({"stream": f"{found.blobs} blobs and {found.layers} unpacked layers are intact\n"})
    if found.damaged:
        raise Internal(f"{len(found.damaged)} things in the image store are damaged")


async def auth(engine: Engine, request: AuthRequest) -> AuthResponse:
    """Try a login at the registry itself."""
    credentials = Credentials(
        username=request.username,
        password=request.password,
        identity_token=request.identitytoken,
        registry_token=request.registrytoken,
        server_address=request.serveraddress,
    )
    status, token = await engine.run_blocking(remote.check_login, engine.registries, credentials)
    return AuthResponse(status=status, identity_token=token)
