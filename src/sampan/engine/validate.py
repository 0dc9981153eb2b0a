"""What a create or update request may not say: a list of checks, each with Docker's words. Pure.

CHECKS run in order and the first complaint wins; `settle` then fills in defaults and collects the warnings about
limits that this host cannot hold. Texts: clients and people match them (docs/compatibility.md).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from sampan.engine.log_checks import check_log
from sampan.engine.records import SharedFacts
from sampan.engine.words import check_capabilities, parse_signal
from sampan.errors import InvalidArgument
from sampan.spec.engine.container import (
    ContainerConfig,
    CreateRequest,
    HealthConfig,
    HostConfig,
    Resources,
    RestartPolicy,
)
from sampan.units import parse_size, parse_uint

MIN_MEMORY = 6 << 20
MILLISECOND = 1_000_000
KNOWN_RUNTIMES = ("", "sampan", "runc", "crun", "io.containerd.runc.v2")


def check_create(request: CreateRequest, facts: SharedFacts) -> None:
    """Raise InvalidArgument for the first thing wrong with the request itself (its image not considered)."""
    for check in CHECKS:
        check(request)
    check_resources(request.host_config, facts)


# -- the portable part -----------------------------------------------------------------------------


def _working_dir(request: CreateRequest) -> None:
    check_working_dir(request.working_dir)


def check_working_dir(path: str) -> None:
    if path and not path.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{path}' is invalid, it needs to be an absolute path"
        )
    if "\0" in path:
        raise InvalidArgument("the working directory must not contain NUL")


def _environment(request: CreateRequest) -> None:
    check_environment(request.env)


def check_environment(env: list[str] | None) -> None:
    for text in env or ():
        if not text or text.startswith("="):
            raise InvalidArgument(f"invalid environment variable: {text}")
        if "\0" in text:
            raise InvalidArgument("invalid environment variable: it contains a NUL byte")


def _arguments(request: CreateRequest) -> None:
    for text in [*(request.entrypoint or []), *(request.cmd or [])]:
        if "\0" in text:
            raise InvalidArgument("the command must not contain NUL")


def _hostname(request: CreateRequest) -> None:
    for text in (request.hostname, request.domainname):
        if "\0" in text or "\n" in text:
            raise InvalidArgument(f"invalid hostname: {text!r}")
    if len(request.hostname.encode()) > 64:
        raise InvalidArgument(f"invalid hostname: {request.hostname}")


def _healthcheck(request: CreateRequest) -> None:
    check_healthcheck(request.healthcheck)


def check_healthcheck(health: HealthConfig | None) -> None:
    if health is None:
        return
    spans = (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    )
    for name, span in spans:
        if span != 0 and span < MILLISECOND:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")


def _stop_signal(request: CreateRequest) -> None:
    if request.stop_signal:
        parse_signal(request.stop_signal)


# -- the host's part -------------------------------------------------------------------------------


def _auto_remove(request: CreateRequest) -> None:
    host = request.host_config
    if host.auto_remove and host.restart_policy.name not in ("", "no"):
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")


def _restart_policy(request: CreateRequest) -> None:
    check_restart_policy(request.host_config.restart_policy)


def check_restart_policy(policy: RestartPolicy) -> None:
    count = policy.maximum_retry_count
    if policy.name in ("", "no", "always", "unless-stopped"):
        if count != 0:
            text = "maximum retry count can only be used with 'on-failure'"
            if count < 0:
                text += " and cannot be negative"
            raise InvalidArgument(f"invalid restart policy: {text}")
    elif policy.name == "on-failure":
        if count < 0:
            raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    else:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{policy.name}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )


def _capabilities(request: CreateRequest) -> None:
    check_capabilities(request.host_config.cap_add, "CapAdd")
    check_capabilities(request.host_config.cap_drop, "CapDrop")


def _shm_size(request: CreateRequest) -> None:
    if request.host_config.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")


def _extra_hosts(request: CreateRequest) -> None:
    for text in request.host_config.extra_hosts or ():
        name, colon, address = text.partition(":")
        if not (name and colon and address) or "\n" in text:
            raise InvalidArgument(f'bad format for add-host: "{text}"')


def _namespaces(request: CreateRequest) -> None:
    host = request.host_config
    modes = (
        ("IPC", host.ipc_mode, ("", "none", "private", "shareable", "host")),
        ("PID", host.pid_mode, ("", "host")),
    )
    for name, mode, known in modes:
        if mode not in known and not (mode.startswith("container:") and len(mode) > 10):
            raise InvalidArgument(f"invalid {name} mode: {mode}")
    if host.uts_mode not in ("", "host"):
        raise InvalidArgument(f"invalid UTS mode: {host.uts_mode}")
    if host.uts_mode == "host" and request.hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    if host.cgroupns_mode not in ("", "private", "host"):
        raise InvalidArgument(f"invalid cgroup namespace mode: {host.cgroupns_mode}")
    if host.userns_mode not in ("", "host"):
        raise InvalidArgument(f"invalid user namespace mode: {host.userns_mode}")
    if host.isolation not in ("", "default"):
        raise InvalidArgument(
            f"Invalid isolation: \"{host.isolation}\" - linux only supports 'default'"
        )


def _network_mode(request: CreateRequest) -> None:
    host, mode = request.host_config, request.host_config.network_mode
    if mode == "container:":
        raise InvalidArgument("Invalid network mode: invalid container format container:<name|id>")
    if mode == "host" and host.links:
        raise InvalidArgument(
            "conflicting options: host type networking can't be used with links. "
            "This would result in undefined behavior"
        )
    if not mode.startswith("container:"):
        return
    refusals = (
        (request.hostname, "hostname and the network mode"),
        (host.links, "container type network can't be used with links. This would result in undefined behavior"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (request.mac_address, "mac-address and the network mode"),
        (host.port_bindings or host.publish_all_ports, "port publishing and the container type network mode"),
        (request.exposed_ports, "port exposing and the container type network mode"),
    )  # fmt: skip
    for given, text in refusals:
        if given:
            raise InvalidArgument(f"conflicting options: {text}")


def check_port(text: str) -> None:
    """'80', '80/tcp', '8000-8010/udp'."""
    numbers, slash, protocol = text.partition("/")
    low, dash, high = numbers.partition("-")
    first = parse_uint(low, highest=65535)
    last = parse_uint(high, highest=65535) if dash else first
    if first is None or last is None or last < first or (slash and not protocol):
        raise InvalidArgument(f'invalid port specification: "{text}"')
    if slash and protocol.lower() not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f"invalid proto: {protocol}")


def _ports(request: CreateRequest) -> None:
    for text in request.exposed_ports:
        check_port(text)
    for text, bindings in (request.host_config.port_bindings or {}).items():
        check_port(text)
        if parse_uint(text.partition("/")[0].partition("-")[0]) == 0:
            raise InvalidArgument(f'invalid port specification: "{text}"')
        for binding in bindings or ():
            if binding.host_port:
                low, dash, high = binding.host_port.partition("-")
                first = parse_uint(low, highest=65535)
                last = parse_uint(high, highest=65535) if dash else first
                if first is None or last is None or last < first:
                    raise InvalidArgument(f'invalid port specification: "{binding.host_port}"')


def _runtime(request: CreateRequest) -> None:
    runtime = request.host_config.runtime
    if runtime not in KNOWN_RUNTIMES:
        raise InvalidArgument(f"unknown or invalid runtime name: {runtime}")


def _log_driver(request: CreateRequest) -> None:
    log = request.host_config.log_config
    if log.type:
        check_log(log.type, log.config)


def _security(request: CreateRequest) -> None:
    for text in request.host_config.security_opt or ():
        check_security_option(text)


def check_security_option(text: str) -> None:
    """Unknown or misspelt options are errors, never weaker settings."""
    if text in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
        return
    if text in ("no-new-privileges:false", "no-new-privileges=false"):
        return
    key, separator, value = text.partition("=")
    if not separator:
        key, separator, value = text.partition(":")
    if not separator:
        raise InvalidArgument(f'invalid --security-opt 1: "{text}"')
    if key in ("label", "apparmor", "seccomp") and value:
        return
    if key == "no-new-privileges":
        raise InvalidArgument(f'invalid --security-opt 2: "{text}"')
    if key == "systempaths" and value == "unconfined":
        return
    if key == "writable-cgroups" and value in ("true", "false"):
        return
    raise InvalidArgument(f'invalid --security-opt 2: "{text}"')


def _device_requests(request: CreateRequest) -> None:
    for wanted in request.host_config.device_requests or ():
        words = " ".join("[" + " ".join(group) + "]" for group in wanted.capabilities or [])
        raise InvalidArgument(
            f'could not select device driver "{wanted.driver}" with capabilities: [{words}]'
        )


def _storage_options(request: CreateRequest) -> None:
    for name, value in (request.host_config.storage_opt or {}).items():
        if name != "size":
            raise InvalidArgument(f"Unknown option {name}")
        if parse_size(value) <= 0:
            raise InvalidArgument(f"invalid storage size: '{value}'")


def _sysctls(request: CreateRequest) -> None:
    for name, value in request.host_config.sysctls.items():
        if not name or "\0" in name + value:
            raise InvalidArgument(f"invalid sysctl: {name}")


CHECKS: tuple[Callable[[CreateRequest], None], ...] = (
    _working_dir, _environment, _arguments, _hostname, _healthcheck, _stop_signal, _auto_remove, _restart_policy,
    _capabilities, _shm_size, _extra_hosts, _namespaces, _network_mode, _ports, _runtime, _log_driver, _security,
    _device_requests, _storage_options, _sysctls,
)  # fmt: skip


# -- limits ----------------------------------------------------------------------------------------


def check_resources(wanted: Resources, facts: SharedFacts) -> None:
    _check_memory(wanted)
    _check_cpu(wanted, facts)
    _check_cpuset(wanted, facts)
    if facts.has_blkio_weight and wanted.blkio_weight and not 10 <= wanted.blkio_weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    if isinstance(wanted, HostConfig) and not -1000 <= wanted.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"Invalid value {wanted.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    for rule in wanted.device_cgroup_rules or ():
        parse_device_rule(rule)
    for device in wanted.devices or ():
        access = device.cgroup_permissions
        if not set(access) <= set("rwm") or len(set(access)) != len(access):
            raise InvalidArgument(f"invalid device mode: {access}")


def _check_memory(wanted: Resources) -> None:
    memory, swap, soft = wanted.memory, wanted.memory_swap, wanted.memory_reservation
    if memory != 0 and memory < MIN_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if memory > 0 and 0 < swap < memory:
        raise InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if memory == 0 and swap > 0:
        raise InvalidArgument(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if swap < -1:
        raise InvalidArgument(f"invalid memory swap limit: {swap}")
    swappiness = wanted.memory_swappiness
    if swappiness is not None and swappiness != -1 and not 0 <= swappiness <= 100:
        raise InvalidArgument(
            f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )
    if soft != 0 and soft < MIN_MEMORY:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if 0 < memory < soft:
        raise InvalidArgument(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )


def _check_cpu(wanted: Resources, facts: SharedFacts) -> None:
    if wanted.nano_cpus > 0 and wanted.cpu_period > 0:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if wanted.nano_cpus > 0 and wanted.cpu_quota > 0:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if wanted.nano_cpus < 0 or wanted.nano_cpus > facts.cpus * 10**9:
        raise InvalidArgument(
            f"Range of CPUs is from 0.01 to {facts.cpus}.00, as there are only {facts.cpus} CPUs available"
        )
    if wanted.cpu_shares < 0:
        raise InvalidArgument("shares: invalid argument")
    if wanted.cpu_period != 0 and not 1000 <= wanted.cpu_period <= 1_000_000:
        raise InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < wanted.cpu_quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    period, runtime = wanted.cpu_realtime_period, wanted.cpu_realtime_runtime
    if period and runtime and runtime > period:
        raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")


def parse_cpu_list(text: str) -> set[int] | None:
    """'0-2,4' as a set; None where it is not such a list. Ranges are bounded: '0-2147483647' is an attack."""
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        first = parse_uint(low, highest=8191)
        last = parse_uint(high, highest=8191) if dash else first
        if first is None or last is None or last < first:
            return None
        found.update(range(first, last + 1))
    return found


def _check_cpuset(wanted: Resources, facts: SharedFacts) -> None:
    pairs = (
        ("CPUs", "cpus", wanted.cpuset_cpus, facts.cpuset_cpus),
        ("memory nodes", "mems", wanted.cpuset_mems, facts.cpuset_mems),
    )
    for noun, word, text, available in pairs:
        if not text:
            continue
        asked = parse_cpu_list(text)
        if asked is None:
            raise InvalidArgument(f"Invalid value {text} for cpuset {word}: invalid format: {text}")
        there = parse_cpu_list(available) if available else None
        if there is not None and not asked <= there:
            raise InvalidArgument(
                f"Requested {noun} are not available - requested {text}, available: {available}"
            )


def parse_device_rule(rule: str) -> tuple[str, int | None, int | None, str]:
    """'c 1:3 rwm', with * for a number, to (type, major, minor, access)."""
    bad = InvalidArgument(f"invalid device cgroup rule format: '{rule}'")
    parts = rule.split(" ")
    if len(parts) != 3 or parts[0] not in ("a", "b", "c"):
        raise bad
    major, colon, minor = parts[1].partition(":")
    access = parts[2]
    if not colon or not 1 <= len(access) <= 3 or not set(access) <= set("rwm"):
        raise bad
    numbers: list[int | None] = []
    for text in (major, minor):
        number = None if text == "*" else parse_uint(text, highest=(1 << 32) - 1)
        if number is None and text != "*":
            raise bad
        numbers.append(number)
    return parts[0], numbers[0], numbers[1], access


# -- what the host cannot do -----------------------------------------------------------------------

_DISCARDED = "or the cgroup is not mounted. Limitation discarded."


def settle_resources(wanted: HostConfig, facts: SharedFacts) -> tuple[HostConfig, list[str]]:
    """Defaults that depend on other limits, and limits this host lacks taken out with a warning."""
    warnings: list[str] = []
    changes: dict[str, object] = {}
    if wanted.cpu_shares and not facts.has_cpu_shares:
        warnings.append(
            "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded."
        )
        changes["cpu_shares"] = 0
    elif wanted.cpu_shares:
        least, most = 2, 262144
        if wanted.cpu_shares < least or wanted.cpu_shares > most:
            bound = least if wanted.cpu_shares < least else most
            changes["cpu_shares"] = bound
    if wanted.memory > 0 and not facts.has_memory_limit:
        warnings.append(f"Your kernel does not support memory limit capabilities {_DISCARDED}")
        changes |= {"memory": 0, "memory_swap": 0}
    elif wanted.memory > 0 and wanted.memory_swap != -1 and not facts.has_swap_limit:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap."
        )
        changes["memory_swap"] = -1
    elif wanted.memory > 0 and wanted.memory_swap == 0:
        changes["memory_swap"] = wanted.memory * 2
    if (wanted.pids_limit or 0) > 0 and not facts.has_pids_limit:
        warnings.append(f"Your kernel does not support PIDs limit capabilities {_DISCARDED}")
        changes["pids_limit"] = None
    if wanted.blkio_weight and not facts.has_blkio_weight:
        warnings.append(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        )
        changes["blkio_weight"] = 0
    if (wanted.cpuset_cpus or wanted.cpuset_mems) and not facts.has_cpuset:
        warnings.append(
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded."
        )
        changes |= {"cpuset_cpus": "", "cpuset_mems": ""}
    if wanted.oom_kill_disable:
        if not facts.has_oom_kill_disable:
            warnings.append(
                "Your kernel does not support OomKillDisable. OomKillDisable discarded."
            )
            changes["oom_kill_disable"] = None
        elif wanted.memory == 0:
            warnings.append(
                "OOM killer is disabled for the container, but no memory limit is set, "
                "this can result in the system running out of resources."
            )
    return msgspec.structs.replace(wanted, **changes), warnings


def check_merged(config: ContainerConfig) -> None:
    """What only shows once the image's part is there."""
    if not (config.entrypoint or config.cmd):
        raise InvalidArgument("no command specified")
    check_working_dir(config.working_dir)
    check_healthcheck(config.healthcheck)
    if config.stop_signal:
        parse_signal(config.stop_signal)
    for text in config.exposed_ports:
        check_port(text)
