"""`run`'s and `create`'s flags to the body of POST /containers/create. Pure: nothing is asked of an engine here.

Every field that docker's client sends is sent, with the same empty values, so that an engine stores the same wish
whichever client spoke. tests/unit/cli/test_create.py holds the field names equal to spec/engine/container.py.
Hot: no imports beyond ours.
"""

from __future__ import annotations

from sampan.cli.failures import Failure
from sampan.cli.values import absolute, clean, go_uint, is_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options

PROPAGATIONS = ("private", "rprivate", "rshared", "rslave", "shared", "slave")


EGRESS = "sampan.egress"  # network/egress.py's annotation


class Wrong(ValueError):
    """The flags contradict each other or hold what cannot be read."""


def request(options: Options) -> dict[str, Any]:
    """The whole body: Config's fields at the top, HostConfig and NetworkingConfig inside."""
    streams = _streams(options)
    volumes, binds = _volumes(options.list("volume"))
    exposed, bindings = _ports(options)
    host = _host_config(options)
    host["Binds"] = binds or None
    host["PortBindings"] = bindings
    if options.flag("rm") and host["RestartPolicy"]["Name"] not in ("no", ""):
        raise Wrong("conflicting options: cannot specify both --restart and --rm")
    body = _config(options, streams)
    body["ExposedPorts"] = exposed
    body["Volumes"] = volumes
    body["HostConfig"] = host
    body["NetworkingConfig"] = {"EndpointsConfig": _endpoints(options)}
    return body


def _streams(options: Options) -> dict[str, bool]:
    named = options.list("attach")
    return {
        "AttachStdin": "stdin" in named or options.flag("interactive"),
        "AttachStdout": "stdout" in named or not named,
        "AttachStderr": "stderr" in named or not named,
    }


def _config(options: Options, streams: dict[str, bool]) -> dict[str, Any]:
    entrypoint: list[str] | None = None
    if options.has("entrypoint"):
        entrypoint = [options.text("entrypoint")]
    config: dict[str, Any] = {
        "Hostname": options.text("hostname"),
        "Domainname": options.text("domainname"),
        "User": options.text("user"),
        **streams,
        "Tty": options.flag("tty"),
        "OpenStdin": options.flag("interactive"),
        "StdinOnce": options.flag("interactive") and streams["AttachStdin"],
        "Env": key_values(options.list("env-file"), options.list("env"), from_environment=True),
        "Cmd": options.args[1:] or None,
        "Image": options.args[0],
        "WorkingDir": options.text("workdir"),
        "Entrypoint": entrypoint,
        "OnBuild": None,
        "Labels": pairs(key_values(options.list("label-file"), options.list("label"))),
    }
    health = _health(options)
    if health is not None:
        config["Healthcheck"] = health
    if options.text("stop-signal"):
        config["StopSignal"] = options.text("stop-signal")
    if options.has("stop-timeout"):
        config["StopTimeout"] = options.number("stop-timeout")
    return config


def _host_config(options: Options) -> dict[str, Any]:
    swappiness = options.number("memory-swappiness")
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise Wrong(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    security, masked, readonly = _security(options.list("security-opt"))
    added, dropped = _capabilities(options.list("cap-add"), options.list("cap-drop"))
    networks = networks_of(options)
    host: dict[str, Any] = {
        "ContainerIDFile": options.text("cidfile"),
        "LogConfig": _log_config(options),
        "NetworkMode": networks[0]["Target"] if networks else "default",
        "RestartPolicy": restart_policy(options.text("restart")),
        "AutoRemove": options.flag("rm"),
        "VolumeDriver": options.text("volume-driver"),
        "VolumesFrom": _some(options, "volumes-from"),
        "ConsoleSize": [0, 0],
        "CapAdd": added,
        "CapDrop": dropped,
        "CgroupnsMode": _mode(options, "cgroupns", "CGROUP", ("", "host", "private")),
        "Dns": options.list("dns"),
        "DnsOptions": options.list("dns-option") + options.list("dns-opt"),
        "DnsSearch": options.list("dns-search"),
        "ExtraHosts": _some(options, "add-host"),
        "GroupAdd": _some(options, "group-add"),
        "IpcMode": options.text("ipc"),
        "Cgroup": "",
        "Links": _some(options, "link"),
        "OomScoreAdj": options.number("oom-score-adj"),
        "PidMode": _mode(options, "pid", "PID", ("", "host")),
        "Privileged": options.flag("privileged"),
        "PublishAllPorts": options.flag("publish-all"),
        "ReadonlyRootfs": options.flag("read-only"),
        "SecurityOpt": security,
        "UTSMode": _mode(options, "uts", "UTS", ("", "host")),
        "UsernsMode": _mode(options, "userns", "USER", ("", "host")),
        "ShmSize": options.number("shm-size"),
        "Isolation": options.text("isolation"),
        **resources(options),
        "MaskedPaths": masked,
        "ReadonlyPaths": readonly,
    }
    # Left out when empty, as Go's omitempty does.
    optional: dict[str, Any] = {
        "Annotations": _annotations(options),
        "StorageOpt": _storage(options.list("storage-opt")),
        "Tmpfs": {
            path: rest for path, _, rest in (t.partition(":") for t in options.list("tmpfs"))
        },
        "Sysctls": pairs(options.list("sysctl")),
        "Runtime": options.text("runtime"),
        "Mounts": options.list("mount"),
    }
    host.update({key: value for key, value in optional.items() if value})
    if options.has("init"):
        host["Init"] = options.flag("init")
    return host


def resources(options: Options) -> dict[str, Any]:
    """Limits, as `update` sends them too."""
    devices, cdi = _devices(options.list("device"))
    requests = list(options.list("gpus"))
    if cdi:
        requests.append({"Driver": "cdi", "DeviceIDs": cdi})
    return {
        "CpuShares": options.number("cpu-shares"),
        "Memory": options.number("memory"),
        "NanoCpus": options.number("cpus"),
        "CgroupParent": options.text("cgroup-parent"),
        "BlkioWeight": options.number("blkio-weight"),
        "BlkioWeightDevice": options.list("blkio-weight-device"),
        "BlkioDeviceReadBps": options.list("device-read-bps"),
        "BlkioDeviceWriteBps": options.list("device-write-bps"),
        "BlkioDeviceReadIOps": options.list("device-read-iops"),
        "BlkioDeviceWriteIOps": options.list("device-write-iops"),
        "CpuPeriod": options.number("cpu-period"),
        "CpuQuota": options.number("cpu-quota"),
        "CpuRealtimePeriod": options.number("cpu-rt-period"),
        "CpuRealtimeRuntime": options.number("cpu-rt-runtime"),
        "CpusetCpus": options.text("cpuset-cpus"),
        "CpusetMems": options.text("cpuset-mems"),
        "Devices": devices,
        "DeviceCgroupRules": _some(options, "device-cgroup-rule"),
        "DeviceRequests": requests or None,
        "MemoryReservation": options.number("memory-reservation"),
        "MemorySwap": options.number("memory-swap"),
        "MemorySwappiness": options.number("memory-swappiness"),
        "OomKillDisable": options.flag("oom-kill-disable"),
        "PidsLimit": options.number("pids-limit"),
        "Ulimits": _ulimits(options.list("ulimit")),
        "CpuCount": options.number("cpu-count"),
        "CpuPercent": options.number("cpu-percent"),
        "IOMaximumIOps": options.number("io-maxiops"),
        "IOMaximumBandwidth": options.number("io-maxbandwidth"),
    }


def _some(options: Options, name: str) -> list[Any] | None:
    return options.list(name) or None


def _capabilities(add: list[str], drop: list[str]) -> tuple[list[str] | None, list[str] | None]:
    """Names in full and in order; what is added is not dropped, and ALL stands for the rest."""

    def named(given: list[str]) -> set[str]:
        names = {name.strip().upper() for name in given}
        names = {n if n in ("ALL", "RESET") or n.startswith("CAP_") else f"CAP_{n}" for n in names}
        return {"ALL"} if "ALL" in names else names

    added = named(add)
    dropped = named(drop) - added
    return sorted(added - {"RESET"}) or None, sorted(dropped - {"RESET"}) or None


def _ulimits(limits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of a name wins; sorted by name."""
    by_name = {limit["Name"]: limit for limit in limits}
    return [by_name[name] for name in sorted(by_name)]


def _annotations(options: Options) -> dict[str, str]:
    """The limit of where it may connect is an annotation of ours."""
    found = pairs(options.list("annotation"))
    if options.has("egress"):
        found[EGRESS] = options.text("egress")
    return found


def _mode(options: Options, flag: str, word: str, allowed: tuple[str, ...]) -> str:
    value = options.text(flag)
    joins = flag == "pid" and value.startswith("container:") and len(value) > 10
    if value not in allowed and not joins:
        raise Wrong(f"--{flag}: invalid {word} mode")
    return value


def restart_policy(text: str) -> dict[str, Any]:
    name, colon, count = text.partition(":")
    if colon and not name:
        raise Wrong("invalid restart policy format: no policy provided before colon")
    try:
        retries = int(count) if count else 0
    except ValueError:
        raise Wrong(
            "invalid restart policy format: maximum retry count must be an integer"
        ) from None
    return {"Name": name, "MaximumRetryCount": retries}


def _log_config(options: Options) -> dict[str, Any]:
    driver, given = options.text("log-driver"), options.list("log-opt")
    if driver == "none" and given:
        raise Wrong(f"invalid logging opts for driver {driver}")
    return {"Type": driver, "Config": pairs(given)}


def _storage(given: list[str]) -> dict[str, str]:
    for option in given:
        if "=" not in option:
            raise Wrong("invalid storage option")
    return pairs(given)


def _security(given: list[str]) -> tuple[list[str] | None, list[str] | None, list[str] | None]:
    """Seccomp profiles are read here and sent by content; systempaths=unconfined becomes two empty lists."""
    sent: list[str] = []
    masked: list[str] | None = None
    readonly: list[str] | None = None
    for option in given:
        key, found, value = option.partition("=")
        if not found and key != "no-new-privileges":
            key, found, value = option.partition(":")
        if (not found or not value) and key != "no-new-privileges":
            raise Wrong(f'Invalid --security-opt: "{option}"')
        if key == "seccomp" and value not in ("builtin", "unconfined"):
            sent.append("seccomp=" + _profile(value))
        elif option == "systempaths=unconfined":
            masked, readonly = [], []
        else:
            sent.append(option)
    return sent if given else None, masked, readonly


def _profile(path: str) -> str:
    from sampan.cli import wire

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Wrong(f"opening seccomp profile ({path}) failed: open {path}: {reason}") from None
    try:
        return wire.dumps(wire.loads(text))
    except ValueError as error:
        raise Wrong(f"compacting json for seccomp profile ({path}) failed: {error}") from None


def _health(options: Options) -> dict[str, Any] | None:
    names = ("interval", "timeout", "start-period", "retries", "start-interval")
    values = {name: options.number(f"health-{name}") for name in names}
    command = options.text("health-cmd")
    wanted = bool(command) or any(values.values())
    if options.flag("no-healthcheck"):
        if wanted:
            raise Wrong("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    for name, value in values.items():
        if value < 0:
            raise Wrong(f"--health-{name} cannot be negative")
    fields = {
        "Test": ["CMD-SHELL", command] if command else None,
        "Interval": values["interval"],
        "Timeout": values["timeout"],
        "StartPeriod": values["start-period"],
        "StartInterval": values["start-interval"],
        "Retries": values["retries"],
    }
    return {key: value for key, value in fields.items() if value}


# -- volumes ------------------------------------------------------------------------------------------------------


def _volumes(given: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """`-v` values: anonymous ones become volumes of the config, the rest binds of the host config."""
    volumes: dict[str, Any] = {}
    binds: list[str] = []
    for spec in dict.fromkeys(given):
        if _sections(spec) > 1:
            binds.append(absolute_source(spec))
        else:
            volumes[spec] = {}
    return volumes, binds


def _sections(spec: str) -> int:
    """How many parts it has. A single letter before a colon is a drive, in docker also where there are none."""
    count, buffer = 0, ""
    for char in spec if len(spec) > 2 else "":
        if char != ":" or (len(buffer) == 1 and buffer.isalpha()):
            buffer += char
            continue
        count += 1
        if not buffer:
            raise Wrong(f"invalid spec: {spec}: empty section between colons")
        if count > 2:
            raise Wrong(f"invalid spec: {spec}: too many colons")
        buffer = ""
    if count and not buffer:
        raise Wrong(f"invalid spec: {spec}: empty section between colons")
    return count + 1


def absolute_source(spec: str) -> str:
    """'./dir:/dst' as the engine, which stands elsewhere, has to see it. What is wrong in it, the engine says."""
    source, colon, rest = spec.partition(":")
    return f"{absolute(source)}:{rest}" if colon else spec


# -- devices ------------------------------------------------------------------------------------------------------


def _devices(given: list[str]) -> tuple[list[dict[str, str]], list[str]]:
    devices: list[dict[str, str]] = []
    cdi: list[str] = []
    for spec in given:
        if _is_cdi(spec):
            cdi.append(spec)
        else:
            devices.append(_device(spec))
    return devices, cdi


def _is_cdi(spec: str) -> bool:
    """vendor.com/class=name"""
    kind, equals, name = spec.partition("=")
    vendor, slash, device_class = kind.partition("/")
    return bool(equals and slash and vendor and device_class and name and not spec.startswith("/"))


def _is_access(text: str) -> bool:
    return bool(text) and not text.strip("rwm") and len(set(text)) == len(text)


def _device(spec: str) -> dict[str, str]:
    parts = spec.split(":")
    if len(parts) > 3 or not parts[0]:
        raise Wrong(f"bad format for path: {spec}")
    source, access = parts[0], "rwm"
    inside = parts[1] if len(parts) == 3 else ""
    if len(parts) == 3:
        access = parts[2]
        if not _is_access(access):
            raise Wrong(f"bad mode specified: {access}")
    elif len(parts) == 2:
        if _is_access(parts[1]):
            access = parts[1]
        else:
            inside = clean(parts[1])
    else:
        source = clean(source)
    if not (inside or source).startswith("/"):
        raise Wrong(f"{inside or source} is not an absolute path")
    return {
        "PathOnHost": source,
        "PathInContainer": inside or source,
        "CgroupPermissions": access,
    }


# -- ports --------------------------------------------------------------------------------------------------------


def _ports(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ExposedPorts, PortBindings) of -p and --expose."""
    exposed: dict[str, Any] = {}
    bindings: dict[str, Any] = {}
    for spec in options.list("publish"):
        for port, binding in port_mappings(_plain_notation(spec)):
            exposed[port] = {}
            bindings.setdefault(port, []).append(binding)
    for spec in options.list("expose"):
        if ":" in spec:
            raise Wrong(f"invalid port format for --expose: {spec}")
        ports, protocol = _split_protocol(spec)
        try:
            first, last = port_range(ports)
        except ValueError as error:
            raise Wrong(f"invalid range format for --expose: {spec}, error: {error}") from None
        for number in range(first, last + 1):
            exposed[f"{number}/{protocol}"] = {}
    return exposed, bindings


def _plain_notation(spec: str) -> str:
    """'target=80,published=8080,protocol=udp' as '8080:80/udp'."""
    if "=" not in spec:
        return spec
    fields = {"protocol": "tcp", "published": "", "target": ""}
    for field in spec.split(","):
        key, equals, value = field.partition("=")
        if not equals or not key:
            raise Wrong(f"invalid publish opts format (should be name=value but got '{field}')")
        fields[key] = value
    return f"{fields['published']}:{fields['target']}/{fields['protocol']}"


def _split_protocol(text: str) -> tuple[str, str]:
    number, _, protocol = text.partition("/")
    if not number:
        return "", ""
    return number, protocol or "tcp"


def port_range(text: str) -> tuple[int, int]:
    if not text:
        raise ValueError("empty string specified for ports")
    first, dash, last = text.partition("-")
    start = go_uint(first, 16, 10)
    end = go_uint(last, 16, 10) if dash else start
    if end < start:
        raise ValueError(f"invalid range specified for port: {text}")
    return start, end


def port_mappings(spec: str) -> list[tuple[str, dict[str, str]]]:
    """'[ip:][host[-host]:]port[-port][/protocol]' as (port/protocol, binding) pairs."""
    parts = spec.split(":")
    inside, protocol = _split_protocol(parts[-1])
    host_port = parts[-2] if len(parts) > 1 else ""
    ip = ":".join(parts[:-2])
    if ip.startswith("["):
        ip = ip[1:-1] if ip.endswith("]") else ip
    if ip and not is_address(ip):
        raise Wrong(f"invalid IP address: {ip}")
    if not inside:
        raise Wrong(f"no port specified: {spec}<empty>")
    try:
        start, end = port_range(inside)
    except ValueError:
        raise Wrong(f"invalid containerPort: {inside}") from None
    host_start = host_end = 0
    if host_port:
        try:
            host_start, host_end = port_range(host_port)
        except ValueError:
            raise Wrong(f"invalid hostPort: {host_port}") from None
        if end - start != host_end - host_start and start != end:
            raise Wrong(
                f"invalid ranges specified for container and host Ports: {inside} and {host_port}"
            )
    if protocol.lower() not in ("tcp", "udp", "sctp"):
        raise Wrong(f"invalid proto: {protocol}")
    mappings = []
    for offset in range(end - start + 1):
        published = str(host_start + offset) if host_port else ""
        if start == end and host_start != host_end:
            published = f"{host_start}-{host_end}"
        binding = {"HostIp": ip, "HostPort": published}
        mappings.append((f"{start + offset}/{protocol.lower()}", binding))
    return mappings


# -- networks -----------------------------------------------------------------------------------------------------


def networks_of(options: Options) -> list[dict[str, Any]]:
    given: list[dict[str, Any]] = options.list("network") + options.list("net")
    return given


def is_user_defined(name: str) -> bool:
    return name not in ("default", "bridge", "host", "none", "nat") and not name.startswith(
        "container:"
    )


def _endpoints(options: Options) -> dict[str, Any]:
    """One endpoint's settings for each network; the plain flags (--ip, --network-alias...) speak of the first."""
    networks = networks_of(options)
    if not networks:
        first: dict[str, Any] = {"Target": "default"}
        _apply_plain_flags(first, options)
        return {"default": _endpoint(first)}
    endpoints: dict[str, Any] = {}
    kinds = {is_user_defined(network["Target"]) for network in networks}
    for number, given in enumerate(networks):
        network = dict(given)
        if number == 0:
            _apply_plain_flags(network, options)
        settings = _endpoint(network)
        if network["Target"] in endpoints:
            raise Wrong(f'network "{network["Target"]}" is specified multiple times')
        if len(networks) == 1 and not any(settings.values()):
            continue  # the engine makes it from NetworkMode
        endpoints[network["Target"]] = settings
    if len(kinds) > 1:
        raise Wrong(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    return endpoints


def _apply_plain_flags(network: dict[str, Any], options: Options) -> None:
    aliases = options.list("network-alias") + options.list("net-alias")
    clashes = (
        ("Aliases", aliases, "--network-alias and per-network alias"),
        ("Links", options.list("link"), "--link and per-network links"),
        ("IPv4Address", options.text("ip"), "--ip and per-network IPv4 address"),
        ("IPv6Address", options.text("ip6"), "--ip6 and per-network IPv6 address"),
        ("MacAddress", options.text("mac-address"), "--mac-address and per-network MAC address"),
        (
            "LinkLocalIPs",
            options.list("link-local-ip"),
            "--link-local-ip and per-network link-local IP addresses",
        ),
    )
    for field, plain, words in clashes:
        if not plain:
            continue
        if network.get(field):
            raise Wrong(f"conflicting options: cannot specify both {words}")
        if field != "Links" or is_user_defined(network["Target"]):
            network[field] = plain


def _is_mac(text: str) -> bool:
    parts = text.replace("-", ":").split(":")
    hexdigits = "0123456789abcdefABCDEF"
    return len(parts) == 6 and all(len(p) == 2 and not p.strip(hexdigits) for p in parts)


def _endpoint(network: dict[str, Any]) -> dict[str, Any]:
    target = network["Target"]
    if not target.strip():
        raise Wrong("no name set for network")
    if not is_user_defined(target):
        if network.get("Aliases"):
            raise Wrong("network-scoped aliases are only supported for user-defined networks")
        if network.get("Links"):
            raise Wrong("links are only supported for user-defined networks")
    mac = network.get("MacAddress", "").strip()
    if mac and not _is_mac(mac):
        raise Wrong(f"{network['MacAddress']} is not a valid mac address")
    ipam = {
        key: network[key]
        for key in ("IPv4Address", "IPv6Address", "LinkLocalIPs")
        if network.get(key)
    }
    return {
        "IPAMConfig": ipam or None,
        "Links": network.get("Links") or None,
        "Aliases": network.get("Aliases") or None,
        "MacAddress": mac,
        "DriverOpts": network.get("DriverOpts") or None,
        "GwPriority": network.get("GwPriority", 0),
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


# -- key=value files ----------------------------------------------------------------------------------------------


def pairs(given: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def key_values(files: list[str], given: list[str], *, from_environment: bool = False) -> list[str]:
    """Lines of the files, then what stood on the command line, which goes last to win."""
    found: list[str] = []
    for path in files:
        found += _file_lines(path, from_environment)
    return found + given


def _file_lines(path: str, from_environment: bool) -> list[str]:
    from sampan.cli.values import env

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Wrong(f"open {path}: {(error.strerror or '').lower()}") from None
    lines: list[str] = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        try:
            text = raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            numbers = " ".join(str(b) for b in raw.removesuffix(b"\r"))
            raise Wrong(f"invalid utf8 bytes at line {number}: [{numbers}]") from None
        text = (text.removeprefix("\ufeff") if number == 1 else text).lstrip()
        if not text or text.startswith("#"):
            continue
        key, equals, _ = text.partition("=")
        if not key:
            raise Wrong(f"no variable name on line '{text}'")
        if " " in key or "\t" in key:
            raise Wrong(f"variable '{key}' contains whitespaces")
        if equals:
            lines.append(text)
        elif from_environment and "=" in (filled := env(key)):
            lines.append(filled)
    return lines


def proxy_environment(config: dict[str, Any], host: str, given: list[str]) -> list[str]:
    """config.json's proxies as variables, in both spellings, unless the command line named them."""
    proxies = config.get("proxies")
    if not isinstance(proxies, dict):
        return []
    chosen = proxies.get(host) or proxies.get("default")
    if not isinstance(chosen, dict):
        return []
    named = {text.partition("=")[0] for text in given}
    made: list[str] = []
    keys = (
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    )
    for key, name in keys:
        value = chosen.get(key)
        if value:
            made += [f"{n}={value}" for n in (name, name.lower()) if n not in named]
    return made


def check_pull(options: Options) -> None:
    value = options.text("pull")
    if value not in ("always", "missing", "never", ""):
        raise Wrong(
            f'invalid pull option: \'{value}\': must be one of "always", "missing" or "never"'
        )


def failed(error: Exception | str, name: str) -> Failure:
    """`run`'s way of saying no: its name in front, its help behind, status 125."""
    return Failure(
        f"sampan: {error}\n\nRun 'sampan {name} --help' for more information", status=125
    )
