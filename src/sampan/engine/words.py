"""Names of signals and capabilities, and the list of capabilities that a container has by default.

Facts of signal(7) and capabilities(7), on x86-64 and arm64. The engine names them; only the runtime uses numbers
of capabilities, so here is just what validation needs.
"""

from __future__ import annotations

import re
import signal
from typing import Any

from sampan.errors import InvalidArgument, SampanError
from sampan.units import parse_uint

NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
    "to connect this node to swarm and try again."
)
SIGRTMIN = 34
SIGRTMAX = 64

_SIGNALS = {item.name.removeprefix("SIG"): int(item) for item in signal.Signals} | {"STKFLT": 16}
_SIGNALS["CLD"] = int(signal.SIGCHLD)
_SIGNALS["IOT"] = int(signal.SIGABRT)
_SIGNALS["POLL"] = int(signal.SIGIO)
_SIGNALS["UNUSED"] = int(signal.SIGSYS)

_CAPABILITY_NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
    SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
    PERFMON BPF CHECKPOINT_RESTORE
    """
CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())

_DEFAULT_NAMES = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
    SYS_CHROOT KILL AUDIT_WRITE
    """
DEFAULT_CAPABILITIES = tuple(f"CAP_{name}" for name in _DEFAULT_NAMES.split())


# A working directory that is none, as the runtime tells it.
_NO_DIRECTORY = re.compile(r'chdir to cwd \("(.*)"\) set in config.json failed: not a directory')


def as_runtime_error(error: SampanError, prefix: str) -> SampanError:
    """A process that could not be started, told in the words that clients of Docker look for."""
    code = getattr(error, "exit_code", 0)
    if not code:
        return error
    if (wrong := _NO_DIRECTORY.match(error.message)) is not None:
        return InvalidArgument(f"Cannot mkdir: {wrong[1]} is not a directory")
    message = f"{prefix}unable to start container process: {error.message}: unknown"
    if "is a directory" in message:
        message += ": permission denied"  # the command line takes 126 from these words
    elif "not a directory" in message:
        message += (
            ": Are you trying to mount a directory onto a file (or vice-versa)? "
            "Check if the specified host path exists and is the expected type"
        )
    wrapped: Any = type(error)(message, hint=error.hint)
    wrapped.exit_code = code
    wrapped.step = getattr(error, "step", "")
    wrapped.errno = getattr(error, "errno", 0)
    result: SampanError = wrapped
    return result


def parse_signal(text: str) -> int:
    """'TERM', 'SIGTERM', 'term', '15', 'SIGRTMIN+3' to its number."""
    number = parse_uint(text)
    if number is not None:
        if 0 < number <= SIGRTMAX:
            return number
        raise InvalidArgument(f"invalid signal: {text}")
    name = text.upper().removeprefix("SIG")
    if name in _SIGNALS:
        return _SIGNALS[name]
    for base, start, sign in (("RTMIN", SIGRTMIN, 1), ("RTMAX", SIGRTMAX, -1)):
        if name == base:
            return start
        if name.startswith(base) and name[len(base)] == ("+" if sign == 1 else "-"):
            offset = parse_uint(name[len(base) + 1 :], highest=SIGRTMAX - SIGRTMIN)
            if offset is not None:
                return start + sign * offset
    raise InvalidArgument(f"invalid signal: {text}")


def normal_capability(text: str) -> str:
    """'net_admin' and 'CAP_NET_ADMIN' to the latter; ALL stays ALL."""
    name = text.upper()
    if name in ("ALL", "CAP_ALL"):
        return "ALL"
    return name if name.startswith("CAP_") else f"CAP_{name}"


def check_capabilities(names: list[str] | None, field: str) -> None:
    for text in names or ():
        name = normal_capability(text)
        if name != "ALL" and name not in CAPABILITIES:
            raise InvalidArgument(f'invalid {field}: unknown capability: "{name}"')


def granted_capabilities(
    add: list[str] | None, drop: list[str] | None, *, privileged: bool
) -> list[str]:
    """The container's set. ALL is taken literally in either list, and single names correct it."""
    if privileged:
        return list(CAPABILITIES)
    adding = [normal_capability(name) for name in add or ()]
    dropping = {normal_capability(name) for name in drop or ()}
    if "ALL" in adding:
        base = set(CAPABILITIES) - dropping
    elif "ALL" in dropping:
        base = set(adding)
    else:
        base = (set(DEFAULT_CAPABILITIES) - dropping) | set(adding)
    return [name for name in CAPABILITIES if name in base]
