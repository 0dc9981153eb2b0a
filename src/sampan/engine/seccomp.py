"""Docker's seccomp profile format (what `--security-opt seccomp=FILE` sends) to an OCI LinuxSeccomp. Pure.

Docker's format adds conditions to OCI's: `includes`/`excludes` by capability, architecture and kernel, and
`archMap`. Whatever the profile says that is not understood is an error: a filter with a rule left out is weaker.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sampan.errors import InvalidArgument
from sampan.spec.runtime import LinuxSeccomp, SyscallArg, SyscallRule
from sampan.units import parse_uint

MAX_BYTES = 4 << 20


class _Filter(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str = ""


class _Arg(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    index: int
    value: int
    value_two: int = 0
    op: str


class _Rule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str = ""
    names: list[str] | None = None
    action: str
    errno_ret: int | None = None
    args: list[_Arg] | None = None
    comment: str = ""
    includes: _Filter = _Filter()
    excludes: _Filter = _Filter()


class _ArchMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_ArchMap] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: list[_Rule] | None = None


_NATIVE = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}


def from_profile(
    text: str, *, capabilities: list[str], architecture: str, kernel: str
) -> LinuxSeccomp:
    """The rules of a profile that hold for this container on this host."""
    if len(text) > MAX_BYTES:
        raise InvalidArgument("Decoding seccomp profile failed: it is too large")
    try:
        profile = msgspec.json.decode(text.encode(), type=_Profile)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}") from None
    result: LinuxSeccomp = {
        "defaultAction": profile.default_action,
        "architectures": _architectures(profile, architecture),
        "syscalls": [
            _rule(rule)
            for rule in profile.syscalls or ()
            if _applies(rule, capabilities, architecture, kernel)
        ],
    }
    if profile.default_errno_ret is not None:
        result["defaultErrnoRet"] = profile.default_errno_ret
    if profile.flags:
        result["flags"] = profile.flags
    if profile.listener_path:
        raise InvalidArgument("seccomp listeners are not supported in a profile")
    return result


def _architectures(profile: _Profile, architecture: str) -> list[str]:
    if profile.architectures and profile.arch_map:
        raise InvalidArgument(
            "use either 'architectures' or 'archMap' in the seccomp profile, not both"
        )
    if profile.architectures:
        return profile.architectures
    native = _NATIVE.get(architecture, "")
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            return [native, *(entry.sub_architectures or [])]
    return [native] if native else []


def _applies(rule: _Rule, capabilities: list[str], architecture: str, kernel: str) -> bool:
    if rule.includes.caps and not set(rule.includes.caps) <= set(capabilities):
        return False
    if rule.excludes.caps and set(rule.excludes.caps) & set(capabilities):
        return False
    if rule.includes.arches and architecture not in rule.includes.arches:
        return False
    if rule.excludes.arches and architecture in rule.excludes.arches:
        return False
    if rule.includes.min_kernel and not _at_least(kernel, rule.includes.min_kernel):
        return False
    return not (rule.excludes.min_kernel and _at_least(kernel, rule.excludes.min_kernel))


def _at_least(kernel: str, wanted: str) -> bool:
    return _version(kernel) >= _version(wanted)


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = ""
    for character in rest:
        if character not in "0123456789":
            break
        minor += character
    return parse_uint(major) or 0, parse_uint(minor) or 0


def _rule(rule: _Rule) -> SyscallRule:
    names = rule.names or ([rule.name] if rule.name else [])
    if not names or (rule.name and rule.names):
        raise InvalidArgument("use either 'name' or 'names' in a rule of the seccomp profile")
    result: SyscallRule = {"names": names, "action": rule.action}
    if rule.errno_ret is not None:
        result["errnoRet"] = rule.errno_ret
    if rule.args:
        result["args"] = [_arg(arg) for arg in rule.args]
    return result


def _arg(arg: _Arg) -> SyscallArg:
    value: dict[str, Any] = {"index": arg.index, "value": arg.value, "op": arg.op}
    if arg.value_two:
        value["valueTwo"] = arg.value_two
    return value  # type: ignore[return-value]
