"""What the engine was told: daemon.json and the flags of `sampan daemon`, as one frozen Config.

    --root DIR   /var/lib/sampan        what must survive: store.db, images/, snapshots, containers/, volumes/
    --run DIR    /run/sampan            facts of this boot: launcher.sock, containers/<id>/, the pid file
    rootless     $XDG_DATA_HOME/sampan, $XDG_RUNTIME_DIR/sampan, $XDG_CONFIG_HOME/sampan/daemon.json

Keys of daemon.json are Docker's. An unknown key, a wrong type, or a key given both as a flag and in the file
with different values is refused: a setting that is silently ignored is a weaker setting.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sampan.errors import InvalidArgument
from sampan.units import parse_size

DEFAULT_ROOT = Path("/var/lib/sampan")
DEFAULT_RUN = Path("/run/sampan")
DEFAULT_CONFIG = Path("/etc/sampan/daemon.json")
DEFAULT_SHM_SIZE = 64 << 20
MAX_CONFIG_BYTES = 1 << 20


class AddressPool(msgspec.Struct, frozen=True, kw_only=True):
    """One of `default-address-pools`: subnets of `size` bits are cut from `base`."""

    base: str
    size: int


class Ulimit(msgspec.Struct, frozen=True, rename="pascal"):
    """A default limit for every container's processes."""

    name: str
    hard: int = -1
    soft: int = -1


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    driver: str = "json-file"
    options: dict[str, str] = {}


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """TLS of the tcp:// listeners; `verify` asks clients for a certificate of `ca`."""

    enabled: bool = False
    verify: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `daemon.py` and the services it builds need to know."""

    root: Path = DEFAULT_ROOT
    run: Path = DEFAULT_RUN
    config_file: Path = DEFAULT_CONFIG
    hosts: tuple[str, ...] = ()
    group: str = ""
    pidfile: str = ""
    debug: bool = False
    log_level: str = "info"
    log_format: str = "text"
    rootless: bool = False
    tls: TlsConfig = TlsConfig()

    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    max_download_attempts: int = 5
    max_layer_size: int = 0  # bytes of one layer, unpacked; 0 is as much as the disk holds

    storage_driver: str = ""
    storage_opts: tuple[str, ...] = ()

    cgroup_driver: str = "cgroupfs"
    cgroup_parent: str = "/sampan"
    default_cgroupns_mode: str = ""
    default_ipc_mode: str = "private"
    default_shm_size: int = DEFAULT_SHM_SIZE
    default_ulimits: dict[str, Ulimit] = {}
    default_runtime: str = (
        "runc"  # the name by which clients know a runtime of runc's command line: sampan-oci
    )
    log: LogConfig = LogConfig()
    init: bool = False
    init_path: str = ""
    no_new_privileges: bool = False
    seccomp_profile: str = "builtin"
    labels: tuple[str, ...] = ()
    experimental: bool = False
    shutdown_timeout: int = 15
    min_api_version: str = "1.24"

    bridge: str = ""
    bip: str = ""
    fixed_cidr: str = ""
    default_gateway: str = ""
    address_pools: tuple[AddressPool, ...] = ()
    mtu: int = 0
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    host_gateway_ip: str = ""
    icc: bool = True
    ip: str = "0.0.0.0"
    ip_forward: bool = True
    ip_masq: bool = True
    iptables: bool = True
    ip6tables: bool = True
    ipv6: bool = False
    fixed_cidr_v6: str = ""
    userland_proxy: bool = True
    userland_proxy_path: str = ""
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""

    # -- derived -----------------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        """Distinguishes the bridges, rule tables and pools of engines that share one host."""
        if self.root == DEFAULT_ROOT:
            return "sampan"
        return "sampan-" + hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def store_path(self) -> Path:
        return self.root / "store.db"

    @property
    def containers_dir(self) -> Path:
        return self.root / "containers"

    @property
    def socket_path(self) -> Path:
        return self.run / "sampan.sock"

    def container_dir(self, container_id: str) -> Path:
        """What a container keeps on disk: logs, its hosts, hostname and resolv.conf files."""
        return self.root / "containers" / container_id

    def run_dir(self, container_id: str) -> Path:
        """Facts of a running container, written by its shim."""
        return self.run / "containers" / container_id


# -- daemon.json -----------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a number")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of strings")
    return tuple(value)


def _words(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("expected an object of strings")
    return dict(value)


def _size(value: object) -> int:
    return parse_size(value) if isinstance(value, str) else _number(value)


def _pools(value: object) -> tuple[AddressPool, ...]:
    return tuple(msgspec.convert(value, list[AddressPool]))


def _ulimits(value: object) -> dict[str, Ulimit]:
    return msgspec.convert(value, dict[str, Ulimit])


def _path(value: object) -> Path:
    return Path(_text(value))


# daemon.json key -> (field of Config, reader)
_KEYS: dict[str, tuple[str, Any]] = {
    "data-root": ("root", _path),
    "graph": ("root", _path),
    "exec-root": ("run", _path),
    "hosts": ("hosts", _texts),
    "group": ("group", _text),
    "pidfile": ("pidfile", _text),
    "debug": ("debug", _flag),
    "log-level": ("log_level", _text),
    "log-format": ("log_format", _text),
    "registry-mirrors": ("registry_mirrors", _texts),
    "insecure-registries": ("insecure_registries", _texts),
    "max-concurrent-downloads": ("max_concurrent_downloads", _number),
    "max-concurrent-uploads": ("max_concurrent_uploads", _number),
    "max-download-attempts": ("max_download_attempts", _number),
    "max-layer-size": ("max_layer_size", _size),
    "storage-driver": ("storage_driver", _text),
    "storage-opts": ("storage_opts", _texts),
    "cgroup-parent": ("cgroup_parent", _text),
    "default-cgroupns-mode": ("default_cgroupns_mode", _text),
    "default-ipc-mode": ("default_ipc_mode", _text),
    "default-shm-size": ("default_shm_size", _size),
    "default-ulimits": ("default_ulimits", _ulimits),
    "default-runtime": ("default_runtime", _text),
    "init": ("init", _flag),
    "init-path": ("init_path", _text),
    "no-new-privileges": ("no_new_privileges", _flag),
    "seccomp-profile": ("seccomp_profile", _text),
    "labels": ("labels", _texts),
    "experimental": ("experimental", _flag),
    "shutdown-timeout": ("shutdown_timeout", _number),
    "min-api-version": ("min_api_version", _text),
    "bridge": ("bridge", _text),
    "bip": ("bip", _text),
    "fixed-cidr": ("fixed_cidr", _text),
    "fixed-cidr-v6": ("fixed_cidr_v6", _text),
    "default-gateway": ("default_gateway", _text),
    "default-address-pools": ("address_pools", _pools),
    "mtu": ("mtu", _number),
    "dns": ("dns", _texts),
    "dns-opts": ("dns_opts", _texts),
    "dns-search": ("dns_search", _texts),
    "host-gateway-ip": ("host_gateway_ip", _text),
    "icc": ("icc", _flag),
    "ip": ("ip", _text),
    "ip-forward": ("ip_forward", _flag),
    "ip-masq": ("ip_masq", _flag),
    "iptables": ("iptables", _flag),
    "ip6tables": ("ip6tables", _flag),
    "ipv6": ("ipv6", _flag),
    "userland-proxy": ("userland_proxy", _flag),
    "userland-proxy-path": ("userland_proxy_path", _text),
}

# Keys that Docker knows and that change nothing here: what they ask for is always so, or has no meaning.
# live-restore is the standing behaviour; the others tune components that Sampan does not have.
_WITHOUT_EFFECT = """
    live-restore features containerd containerd-namespace containerd-plugin-namespace cri-containerd
    api-cors-header allow-nondistributable-artifacts bridge-accept-fwmark builder cdi-spec-dirs
    cluster-advertise cluster-store cpu-rt-period cpu-rt-runtime default-network-opts
    firewall-backend ip-forward-no-drop metrics-addr network-control-plane-mtu network-diagnostic-port
    node-generic-resources oom-score-adjust raw-logs runtimes selinux-enabled swarm-default-advertise-addr
    tlscacert tlscert tlskey tls tlsverify log-driver log-opts exec-opts proxies authorization-plugins
    """


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Flags and file to one Config; raises InvalidArgument with Docker's words."""
    flags = vars(_parser().parse_args(list(arguments)))
    rootless = bool(flags.pop("rootless")) or os.geteuid() != 0
    base = rootless_defaults(environ) if rootless else Config()
    named = flags.pop("config")
    path = Path(named) if named else base.config_file
    file = _read(path, must_exist=bool(named))
    given = _from_flags(flags)
    _refuse_doubles(given, file)
    values = {"config_file": path, "rootless": rootless, **_from_file(file, path), **given}
    config = msgspec.structs.replace(base, **values)
    return _checked(config)


def rootless_defaults(environ: Mapping[str, str]) -> Config:
    """Everything under the XDG directories (basedir-spec 0.8)."""
    home = Path(environ.get("HOME") or "/")
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local/share")
    settings = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return Config(
        root=data / "sampan",
        run=Path(runtime_directory(environ, os.getuid())) / "sampan",
        config_file=settings / "sampan/daemon.json",
        rootless=True,
    )


def runtime_directory(environ: Mapping[str, str], uid: int) -> str:
    """$XDG_RUNTIME_DIR, or what logind would have made of it, or a directory in /tmp that nobody else may own.

    The command line looks for the engine in the same places (cli/session.py).
    """
    if named := environ.get("XDG_RUNTIME_DIR"):
        return named
    if os.path.isdir(f"/run/user/{uid}"):
        return f"/run/user/{uid}"
    made = f"/tmp/sampan-run-{uid}"
    try:
        os.mkdir(made, 0o700)
    except FileExistsError:
        facts = os.lstat(made)
        if facts.st_uid != uid or not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o022:
            raise InvalidArgument(
                f"{made} is not ours alone", hint="set XDG_RUNTIME_DIR to a directory of yours"
            ) from None
    return made


def _read(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        if must_exist:
            raise InvalidArgument(f"open {path}: no such file or directory") from None
        return {}
    except OSError as error:
        raise InvalidArgument(f"open {path}: {error.strerror}") from error
    if not raw.strip():
        return {}
    try:
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError("the file is too large")
        decoded = msgspec.json.decode(raw, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"unable to configure the daemon with file {path}: {error}"
        ) from error
    return decoded


def _from_file(file: Mapping[str, Any], path: Path) -> dict[str, Any]:
    ignored = _WITHOUT_EFFECT.split()
    unknown = sorted(key for key in file if key not in _KEYS and key not in ignored)
    if unknown:
        raise InvalidArgument(
            f"unable to configure the daemon with file {path}: "
            f"the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    values: dict[str, Any] = {}
    for key, value in file.items():
        if key not in _KEYS:
            continue
        field, read = _KEYS[key]
        try:
            values[field] = read(value)
        except (ValueError, InvalidArgument) as error:
            raise InvalidArgument(
                f"unable to configure the daemon with file {path}: {key}: {error}"
            ) from error
    values |= _grouped_from_file(file, path)
    return values


def _grouped_from_file(file: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Keys that several of daemon.json's make up together."""
    values: dict[str, Any] = {}
    try:
        if "log-driver" in file or "log-opts" in file:
            values["log"] = LogConfig(
                driver=_text(file.get("log-driver", "json-file")),
                options=_words(file.get("log-opts", {})),
            )
        for option in _texts(file.get("exec-opts", [])):
            values |= _exec_option(option)
        if any(key.startswith("tls") for key in file):
            verify = _flag(file.get("tlsverify", False))
            values["tls"] = TlsConfig(
                enabled=_flag(file.get("tls", verify)) or verify,
                verify=verify,
                ca=_text(file.get("tlscacert", "")),
                cert=_text(file.get("tlscert", "")),
                key=_text(file.get("tlskey", "")),
            )
        proxies = _words(file.get("proxies", {}))
    except ValueError as error:
        raise InvalidArgument(
            f"unable to configure the daemon with file {path}: {error}"
        ) from error
    for key in ("http-proxy", "https-proxy", "no-proxy"):
        if key in proxies:
            values[key.replace("-", "_")] = proxies[key]
    return values


def _exec_option(option: str) -> dict[str, str]:
    key, _, value = option.partition("=")
    if key == "native.cgroupdriver" and value in ("cgroupfs", "systemd"):
        return {"cgroup_driver": value}
    raise InvalidArgument(f'invalid option "{option}" in exec-opts')


# -- flags -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InvalidArgument(message, hint="see 'sampan daemon --help'")


def _parser() -> argparse.ArgumentParser:
    """None means: not given. Names are dockerd's, with --root and --run for the two directories."""
    parser = _Parser(prog="sampan daemon", description="Serve containers until told to stop.")
    add = parser.add_argument
    add("--config", "--config-file", dest="config", metavar="FILE", help="daemon.json to read")
    add("--root", "--data-root", dest="root", metavar="DIR", help="what must survive a reboot")
    add("--run", "--exec-root", dest="run", metavar="DIR", help="facts of this boot")
    add(
        "-H",
        "--host",
        dest="hosts",
        action="append",
        metavar="URL",
        help="unix://, tcp:// or fd://",
    )
    add("-G", "--group", dest="group", help="group of the unix socket")
    add("-p", "--pidfile", dest="pidfile", metavar="FILE")
    add("-D", "--debug", dest="debug", action="store_true", default=None)
    add("-l", "--log-level", dest="log_level", choices=["debug", "info", "warn", "error", "fatal"])
    add("--rootless", action="store_true", help="run without root privileges")
    add("--registry-mirror", dest="registry_mirrors", action="append", metavar="URL")
    add("--insecure-registry", dest="insecure_registries", action="append", metavar="HOST")
    add("-s", "--storage-driver", dest="storage_driver", metavar="NAME")
    add("--storage-opt", dest="storage_opts", action="append", metavar="K=V")
    add("--cgroup-parent", dest="cgroup_parent", metavar="PATH")
    add("--exec-opt", dest="exec_opts", action="append", metavar="K=V")
    add("--default-cgroupns-mode", dest="default_cgroupns_mode", choices=["host", "private"])
    add("--default-ipc-mode", dest="default_ipc_mode", choices=["shareable", "private"])
    add("--default-shm-size", dest="default_shm_size", metavar="BYTES")
    add("--default-ulimit", dest="default_ulimits", action="append", metavar="NAME=SOFT[:HARD]")
    add("--log-driver", dest="log_driver")
    add("--log-opt", dest="log_opts", action="append", metavar="K=V")
    add("--init", dest="init", action="store_true", default=None)
    add("--no-new-privileges", dest="no_new_privileges", action="store_true", default=None)
    add("--seccomp-profile", dest="seccomp_profile", metavar="FILE")
    add("--label", dest="labels", action="append", metavar="K=V")
    add("--experimental", dest="experimental", action="store_true", default=None)
    add("--live-restore", dest="live_restore", action="store_true", help="always so")
    add("--shutdown-timeout", dest="shutdown_timeout", type=int, metavar="SECONDS")
    add("--tls", dest="tls", action="store_true", default=None)
    add("--tlsverify", dest="tlsverify", action="store_true", default=None)
    add("--tlscacert", dest="tlscacert", metavar="FILE")
    add("--tlscert", dest="tlscert", metavar="FILE")
    add("--tlskey", dest="tlskey", metavar="FILE")
    _network_flags(parser)
    return parser


def _network_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-b", "--bridge", dest="bridge", metavar="NAME")
    for name in ("bip", "fixed-cidr", "fixed-cidr-v6", "default-gateway", "host-gateway-ip", "ip"):
        add(f"--{name}", dest=name.replace("-", "_"))
    add("--default-address-pool", dest="address_pools", action="append", metavar="base=NET,size=N")
    add("--mtu", dest="mtu", type=int)
    add("--dns", dest="dns", action="append", metavar="IP")
    add("--dns-opt", dest="dns_opts", action="append")
    add("--dns-search", dest="dns_search", action="append")
    for name in ("icc", "ip-forward", "ip-masq", "iptables", "ip6tables", "ipv6", "userland-proxy"):
        add(f"--{name}", dest=name.replace("-", "_"), nargs="?", const="true", metavar="BOOL")


_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_BOOLEAN_FLAGS = ("icc", "ip_forward", "ip_masq", "iptables", "ip6tables", "ipv6", "userland_proxy")


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in flags.items() if value is not None}
    given.pop("live_restore", None)
    for key in ("root", "run"):
        if key in given:
            given[key] = Path(os.path.abspath(given[key]))
    for key in _BOOLEAN_FLAGS:
        if key in given:
            word = str(given[key]).lower()
            if word not in _BOOLEANS:
                raise InvalidArgument(f'invalid argument "{word}" for --{key.replace("_", "-")}')
            given[key] = _BOOLEANS[word]
    if "default_shm_size" in given:
        given["default_shm_size"] = parse_size(given["default_shm_size"])
    if "default_ulimits" in given:
        limits = (_ulimit_flag(text) for text in given["default_ulimits"])
        given["default_ulimits"] = {limit.name: limit for limit in limits}
    if "address_pools" in given:
        given["address_pools"] = [_pool_flag(text) for text in given["address_pools"]]
    for option in given.pop("exec_opts", []):
        given |= _exec_option(option)
    given |= _grouped_from_flags(given)
    return {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}


def _grouped_from_flags(given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    driver, options = given.pop("log_driver", None), given.pop("log_opts", None)
    if driver or options:
        pairs = dict(text.partition("=")[::2] for text in options or [])
        values["log"] = LogConfig(driver=driver or "json-file", options=pairs)
    tls = {
        key: given.pop(key, None) for key in ("tls", "tlsverify", "tlscacert", "tlscert", "tlskey")
    }
    if any(tls.values()):
        values["tls"] = TlsConfig(
            enabled=bool(tls["tls"] or tls["tlsverify"]),
            verify=bool(tls["tlsverify"]),
            ca=tls["tlscacert"] or "",
            cert=tls["tlscert"] or "",
            key=tls["tlskey"] or "",
        )
    return values


def _ulimit_flag(text: str) -> Ulimit:
    name, _, numbers = text.partition("=")
    soft, _, hard = numbers.partition(":")
    try:
        low = int(soft)
        return Ulimit(name, hard=int(hard) if hard else low, soft=low)
    except ValueError:
        raise InvalidArgument(f"invalid ulimit argument: {text}") from None


def _pool_flag(text: str) -> AddressPool:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        return AddressPool(base=fields["base"], size=int(fields["size"]))
    except (KeyError, ValueError):
        raise InvalidArgument(f"invalid address pool: {text}") from None


def _refuse_doubles(flags: Mapping[str, Any], file: Mapping[str, Any]) -> None:
    """A list in both places has no obvious winner, so dockerd refuses it; so do we, for every key."""
    doubles = [
        f"{key}: (from flag: {_shown(flags[_KEYS[key][0]])}, from file: {_shown(value)})"
        for key, value in file.items()
        if key in _KEYS and _KEYS[key][0] in flags
    ]
    if doubles:
        raise InvalidArgument(
            "unable to configure the daemon: the following directives are specified both as a flag "
            f"and in the configuration file: {', '.join(doubles)}"
        )


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked(config: Config) -> Config:
    for name in ("root", "run"):
        if not getattr(config, name).is_absolute():
            raise InvalidArgument(f"--{name} must be an absolute path")
    for label in config.labels:
        if "=" not in label:
            raise InvalidArgument(f"bad attribute format: {label}")
    if config.hosts:
        return config
    return msgspec.structs.replace(config, hosts=(f"unix://{config.socket_path}",))
