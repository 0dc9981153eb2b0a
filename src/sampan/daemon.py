"""`sampan daemon`: put the services together, serve, and leave containers running when told to stop.

    1 flock on <root>        one engine for each root; never a question of pids
    2 services               store, images, snapshots, volumes, networks, launcher
    3 restore                containers found again: store (wishes), run directory (facts), kernel (what lives)
    4 listen                 unix, tcp, fd:// (API); ready is told to systemd
    TERM, INT                no new requests, verbs under way finish, containers stay (as with Docker's live-restore)
    HUP                      debug level is read again from daemon.json

Whatever is killed with -9 at any point is repaired by the next start: sweeping is part of restore.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import msgspec

from sampan import config as configuration
from sampan import ids, rootless
from sampan.api.server import ApiServer
from sampan.build.builder import Builder
from sampan.cgroups import manager as cgroups
from sampan.config import Config
from sampan.engine import orphans, supervise, volumes
from sampan.engine.context import Engine
from sampan.engine.live import Containers
from sampan.engine.records import (
    CONTAINER,
    STATE,
    ContainerRecord,
    ContainerState,
    SharedFacts,
)
from sampan.errors import Conflict, SampanError
from sampan.images.catalog import Catalog
from sampan.images.endpoints import Proxies, RegistryConfig, proxies_from_environment
from sampan.images.pull import Puller
from sampan.network import ports
from sampan.network.manager import NetworkManager, Settings
from sampan.rootless import Rootless
from sampan.shim.client import LauncherClient
from sampan.shim.logwatch import LogWatch
from sampan.storage.blobs import BlobStore
from sampan.storage.drivers import open_snapshotter
from sampan.storage.tar import Limits
from sampan.storage.volumes import Volumes
from sampan.store import Store

log = logging.getLogger("sampan.daemon")

POOL_SIZE = 32
RESERVE_BYTES = 2 << 20
GOARCH = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "riscv64": "riscv64",
    "s390x": "s390x",
}


def main(arguments: list[str] | None = None) -> int:
    """The process's whole life; its exit code."""
    try:
        config = configuration.load(sys.argv[1:] if arguments is None else arguments, os.environ)
        start_logging(config)
        os.umask(0o022)
        inside = rootless.enter(config) if config.rootless and os.geteuid() != 0 else None
        if inside is not None:
            config = with_lent_cgroup(config)
        with Lock(config):
            asyncio.run(serve(config, inside))
    except SampanError as error:
        hint = f"\n({error.hint})" if error.hint else ""
        print(f"sampan daemon: {error.message}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def with_lent_cgroup(config: Config) -> Config:
    """Without root there are cgroups only where somebody lent us a part of the unified hierarchy: the directory beside
    our own cgroup, in which systemd lets a user's services make more (systemd.resource-control(5), Delegate=)."""
    host = cgroups.detect()
    parent = cgroups.own_directory(host)
    directory = host.unified + parent
    needed = ("", "cgroup.procs", "cgroup.subtree_control")
    is_ours = all(os.access(f"{directory}/{name}", os.W_OK) for name in needed)
    if host.mode != "v2" or not parent or not is_ours:
        return msgspec.structs.replace(config, cgroup_driver="none")
    return msgspec.structs.replace(config, cgroup_parent=f"{parent}/{config.instance}")


def detect_cgroups(config: Config) -> cgroups.CgroupHost:
    """What this host has, and of a lent part only the controllers that came with it."""
    host = cgroups.detect()
    if not config.rootless or config.cgroup_driver == "none":
        return host
    lent = f"{host.unified}{cgroups.own_directory(host)}/cgroup.controllers"
    return cgroups.detect(unified_controllers=_read(lent))


def start_logging(config: Config) -> None:
    level = "debug" if config.debug else config.log_level
    names = {"warn": logging.WARNING, "fatal": logging.CRITICAL}
    logging.basicConfig(
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=names.get(level, level.upper()),
    )


class Lock:
    """The root belongs to one engine while this is held: a flock ends with its process, however that ends."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._fd = -1

    def __enter__(self) -> Lock:
        config = self._config
        make_directories(config)
        self._fd = os.open(config.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Conflict(
                f"another engine already uses {config.root}",
                hint="stop it, or choose another --root",
            ) from None
        if config.pidfile:
            Path(config.pidfile).write_text(f"{os.getpid()}\n")
        (config.run / "sampan.pid").write_text(f"{os.getpid()}\n")
        return self

    def __exit__(self, *exc: object) -> None:
        config = self._config
        (config.run / "sampan.pid").unlink(missing_ok=True)
        if config.pidfile:
            Path(config.pidfile).unlink(missing_ok=True)
        os.close(self._fd)


def make_directories(config: Config) -> None:
    """State is closed to other users; 0711 lets them through to the socket, and containers to their root.

    An ordinary user's engine is his alone: whoever reaches its socket may do what he may.
    """
    mode = 0o700 if config.rootless else 0o711
    for path in (config.root, config.run):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    for path in (config.containers_dir, config.run / "containers"):
        path.mkdir(mode=mode, exist_ok=True)


# -- the services ----------------------------------------------------------------------------------


def registry_proxies(config: Config) -> Proxies:
    """daemon.json's `proxies`, each falling back to the environment's."""
    environment = proxies_from_environment()
    return Proxies(
        http=config.http_proxy or environment.http,
        https=config.https_proxy or environment.https,
        no_proxy=config.no_proxy or environment.no_proxy,
    )


def build_engine(config: Config, inside: Rootless | None = None) -> Engine:
    """Everything but what needs a running loop."""
    (config.root / "reserve").unlink(missing_ok=True)  # made again once we are ready
    store = Store(config.store_path)
    if store.damage:
        log.error("the store was damaged: %s", store.damage)
    host = detect_cgroups(config)
    snapshots = open_snapshotter(config.root / "snapshots", config.storage_driver)
    snapshots.sweep()
    blobs = BlobStore(config.root / "images")
    blobs.sweep(partials_older_than_s=7 * 86400)
    catalog = Catalog(blobs, snapshots)
    for trouble in filter(None, (catalog.table.damage, *catalog.broken.values())):
        log.error("the image store was damaged: %s", trouble)
    registries = RegistryConfig(
        mirrors=config.registry_mirrors,
        insecure=config.insecure_registries,
        concurrent_downloads=config.max_concurrent_downloads,
        concurrent_uploads=config.max_concurrent_uploads,
        attempts=config.max_download_attempts,
        proxies=registry_proxies(config),
    )
    if config.max_layer_size:
        catalog.limits = Limits(bytes=config.max_layer_size)
    return Engine(
        id=engine_id(store),
        config=config,
        facts=probe_host(config, host, raise_open_files()),
        cgroup_host=host,
        store=store,
        blobs=blobs,
        snapshots=snapshots,
        catalog=catalog,
        puller=Puller(catalog, registries),
        registries=registries,
        volumes=Volumes(config.root / "volumes"),
        networks=network_manager(config, store, inside),
        launcher=LauncherClient(str(config.run)),
        log_watch=LogWatch(),
        pool=ThreadPoolExecutor(POOL_SIZE, thread_name_prefix="work"),
        containers=Containers(store),
    )


def engine_id(store: Store) -> str:
    """A name for this engine that survives restarts."""
    found = store.meta("engine-id")
    if found is None:
        found = ids.new_id()[:32]
        found = f"{found[:8]}-{found[8:12]}-{found[12:16]}-{found[16:20]}-{found[20:]}"
        store.set_meta("engine-id", found)
    return found


def network_manager(config: Config, store: Store, inside: Rootless | None) -> NetworkManager:
    """Without root, links and rules are in a namespace of the engine's, and published ports on the host."""
    settings = network_settings(config)
    if inside is None:
        return NetworkManager(settings, store)
    settings = msgspec.structs.replace(settings, dns=settings.dns or inside.name_servers)
    manager = NetworkManager(settings, store)
    manager.services.allocator.bind = lambda port: inside.host.call(lambda: ports.bind(port))
    return cast("NetworkManager", rootless.Inside(manager, inside.netns_fd))


def network_settings(config: Config) -> Settings:
    return Settings(
        instance=config.instance,
        run=config.run,
        default_bridge=config.bridge,
        bip=config.bip,
        fixed_cidr=config.fixed_cidr,
        fixed_cidr_v6=config.fixed_cidr_v6,
        default_gateway=config.default_gateway,
        ipv6=config.ipv6,
        pools=tuple((pool.base, pool.size) for pool in config.address_pools),
        mtu=config.mtu,
        icc=config.icc,
        masquerade=config.ip_masq,
        firewall=config.iptables,
        forward=config.ip_forward,
        publish_ip=config.ip,
        dns=config.dns,
    )


def raise_open_files() -> tuple[int, int] | None:
    """Take as many descriptors as we may have: thousands of clients, logs and containers want them.

    What it was before is returned where that differs: containers get it, as Docker's do, since programs exist that
    close or allocate for every number below the limit.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    if soft == hard:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return before


def probe_host(
    config: Config, host: cgroups.CgroupHost, open_files: tuple[int, int] | None = None
) -> SharedFacts:
    """What this machine is and can, for the parts that only decide."""
    uname = os.uname()
    version = 2 if host.mode == "v2" else 1
    if config.cgroup_driver == "none":
        host = cgroups.detect("", "", "")  # whatever there is, it is not ours
    memory = host.mounts.get("memory", "")
    return SharedFacts(
        kernel=uname.release,
        architecture=GOARCH.get(uname.machine, uname.machine),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cgroup_version=version,
        has_memory_limit=host.has("memory"),
        has_swap_limit=host.mode == "v2" or os.path.exists(f"{memory}/memory.memsw.limit_in_bytes"),
        has_cpu_cfs=host.has("cpu"),
        has_cpu_shares=host.has("cpu"),
        has_cpuset=host.has("cpuset"),
        has_pids_limit=host.has("pids"),
        has_blkio_weight=_has_blkio_weight(host),
        has_oom_kill_disable=bool(memory) and os.path.exists(f"{memory}/memory.oom_control"),
        has_apparmor=_read("/sys/module/apparmor/parameters/enabled") == "Y",
        has_selinux=os.path.exists("/sys/fs/selinux/enforce"),
        rootless=config.rootless,
        one_id=config.rootless and not rootless.has_several_ids(),
        cpuset_cpus=_cpuset(host, "cpus"),
        cpuset_mems=_cpuset(host, "mems"),
        open_files=open_files,
    )


def _has_blkio_weight(host: cgroups.CgroupHost) -> bool:
    directory = host.mounts.get("blkio", "")
    if directory:
        return any(os.path.exists(f"{directory}/blkio.{name}") for name in ("weight", "bfq.weight"))
    return host.has("blkio")


def _cpuset(host: cgroups.CgroupHost, what: str) -> str:
    directory = host.mounts.get("cpuset", "")
    names = (
        (f"{directory}/cpuset.{what}",)
        if directory
        else (f"{host.unified}/cpuset.{what}.effective",)
    )
    return next((text for name in names if (text := _read(name))), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


# -- restore ---------------------------------------------------------------------------------------


def load_containers(engine: Engine) -> None:
    """The store's containers into the index; what is damaged is kept, named, and never starts."""
    states: dict[str, ContainerState] = {}
    for key, raw in engine.store.items_raw(STATE):
        try:
            states[key] = msgspec.json.decode(raw, type=ContainerState)
        except msgspec.MsgspecError as error:
            log.error("the state of container %s is damaged: %s", key[:12], error)
    known = dict(engine.store.items_raw(CONTAINER))
    for directory in sorted(engine.config.containers_dir.iterdir()):
        if engine.store.damage and ids.is_hex(directory.name) and directory.name not in known:
            _recover(engine, directory, known)
    for key, raw in known.items():
        record, trouble = _decode_record(engine, key, raw)
        if record is None:
            log.error("container %s is lost: %s", key[:12], trouble)
            continue
        container = engine.containers.adopt(record, states.get(key, ContainerState()))
        container.broken = trouble
        volumes.hold_volumes(engine, record)


def _decode_record(engine: Engine, key: str, raw: bytes) -> tuple[ContainerRecord | None, str]:
    try:
        return msgspec.json.decode(raw, type=ContainerRecord), ""
    except msgspec.MsgspecError as error:
        trouble = str(error)
    copy = engine.container_dir(key) / "record.json"
    try:
        record = msgspec.json.decode(copy.read_bytes(), type=ContainerRecord)
    except (OSError, msgspec.MsgspecError) as error:
        return None, f"{trouble}; its copy: {error}"
    engine.store.put(CONTAINER, key, record)
    return record, ""


def _recover(engine: Engine, directory: Path, known: dict[str, bytes]) -> None:
    """The store was damaged: what it knew stands once more in the container's directory."""
    copy = directory / "record.json"
    try:
        raw = copy.read_bytes()
        record = msgspec.json.decode(raw, type=ContainerRecord)
        engine.containers.reserve(record.name, record.id)
    except (OSError, msgspec.MsgspecError, Conflict) as error:
        log.error("container %s cannot be rebuilt: %s", directory.name[:12], error)
        return
    engine.store.put(CONTAINER, record.id, raw)
    known[record.id] = raw
    log.warning("container %s was rebuilt from its own copy", record.name)


async def restore(engine: Engine) -> None:
    """From the files to living containers, then networks, then what policies want started."""
    load_containers(engine)
    left = await engine.run_blocking(orphans.find, engine)
    for container in engine.containers:
        await supervise.adopt_unrecorded(engine, container)

    def namespaces() -> dict[str, str]:
        return {
            c.id: f"/proc/{c.state.pid}/ns/net"
            for c in list(engine.containers)
            if c.is_running and os.path.exists(f"/proc/{c.state.pid}/ns/net")
        }

    await engine.run_blocking(engine.networks.start, namespaces)
    await supervise.restore(engine)
    engine.catalog.keepers.append(engine.containers.chain_ids)
    if left:
        engine.background.spawn(engine.run_blocking(orphans.take_away, engine, left), "orphans")


# -- serving ---------------------------------------------------------------------------------------


async def serve(config: Config, inside: Rootless | None = None) -> None:
    engine = build_engine(config, inside)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, config)
    loop.add_reader(engine.log_watch.fileno(), engine.log_watch.dispatch)
    if inside is not None and inside.is_new:
        await engine.run_blocking(engine.launcher.stop)  # one of namespaces that are gone
    await engine.run_blocking(engine.launcher.ensure)
    await restore(engine)
    unwatch = _watch_rules(engine)
    builder = await engine.run_blocking(Builder, engine)
    server = ApiServer(engine, builder)
    await server.listen()
    keep_reserve(engine)
    gc.freeze()
    notify("READY=1")
    log.info("engine %s is ready: %s containers", engine.id, len(engine.containers))
    await stop.wait()
    log.info("stopping; containers stay")
    notify("STOPPING=1")
    await server.close(grace_seconds=min(5, config.shutdown_timeout))
    unwatch()
    is_idle = not any(container.is_running for container in engine.containers)
    if inside is not None and is_idle:
        await engine.run_blocking(engine.launcher.stop)
    await shut_down(engine)
    if inside is not None and is_idle:
        inside.leave()
        with suppress(OSError):  # there may be none
            os.rmdir(engine.cgroup_host.unified + config.cgroup_parent)


def keep_reserve(engine: Engine) -> None:
    """Space that is given up when the disk is full, so that stop, rm and start still work then."""
    path = engine.config.root / "reserve"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        log.warning("no space could be kept in reserve: %s", error)
        path.unlink(missing_ok=True)
        return
    engine.store.spare_file = path


def _watch_rules(engine: Engine) -> Callable[[], None]:
    """Somebody flushed the firewall: our rules come back."""
    loop = asyncio.get_running_loop()
    watch = engine.networks.watch()
    if watch is None:
        return lambda: None

    def changed() -> None:
        if watch.something_changed():
            engine.background.spawn(_repair(engine), "repair rules")

    loop.add_reader(watch.fileno(), changed)

    def end() -> None:
        loop.remove_reader(watch.fileno())
        watch.close()

    return end


async def _repair(engine: Engine) -> None:
    if await engine.run_blocking(engine.networks.repair):
        log.warning("the rules of the firewall were gone and have been put back")


async def shut_down(engine: Engine) -> None:
    """Leave everything that runs; close what is ours."""
    for container in engine.containers:
        for task in (container.health_task, container.restart_task):
            if task is not None:
                task.cancel()
    await engine.background.settle(timeout_s=5)
    for container in engine.containers:
        if container.shim is not None:
            container.shim.close()
        for waiting in container.pending:
            waiting.close()
    asyncio.get_running_loop().remove_reader(engine.log_watch.fileno())
    engine.log_watch.close()
    await engine.run_blocking(engine.networks.stop)
    await engine.run_blocking(engine.snapshots.close)  # containers that run keep their mounts
    engine.launcher.close()
    engine.pool.shutdown(wait=True, cancel_futures=True)
    engine.store.close()


def _reload(config: Config) -> None:
    """Docker re-reads a few keys on SIGHUP; here it is the one that operators turn at run time."""
    try:
        fresh = configuration.load(sys.argv[1:], os.environ)
    except SampanError as error:
        log.error("the configuration was not read again: %s", error)
        return
    level = logging.DEBUG if fresh.debug else logging.INFO
    logging.getLogger().setLevel(level)
    log.info("configuration read again from %s", config.config_file)


def notify(state: str) -> None:
    """sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sock.sendall(state.encode())
        except OSError as error:
            log.debug("nobody takes notifications on %s: %s", address, error)


if __name__ == "__main__":
    sys.exit(main())
