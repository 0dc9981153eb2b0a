"""A build as it is asked for: one value, whether a query of `POST /build` or BuildKit's frontend attributes said so.

    POST /build?t=..&buildargs=..     api/build.py
    {"build-arg:A": "1", ...}          from_attributes() here

Source of the attributes' names: BuildKit's documentation of the dockerfile.v0 frontend and of its exporters.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sampan.errors import InvalidArgument
from sampan.spec.engine.container import HostConfig, Ulimit
from sampan.units import parse_uint

MAX_NUMBER = (1 << 63) - 1
CALLS = {
    "": "",
    "frontend.lint": "lint",
    "frontend.outline": "outline",
    "frontend.targets": "targets",
    "frontend.subrequests.describe": "describe",
    "frontend.paths": "paths",  # ours: what of the context a build may read
}


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the result: moby or image (the store), docker, oci, tar (an archive), local (a directory)."""

    type: str
    attrs: dict[str, str] = {}
    id: str = ""

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean attribute. Raises InvalidArgument for a word that is none."""
        text = self.attrs.get(name)
        if text is None:
            return default
        return boolean(text, f"non-bool value specified for {name}")


class CacheOption(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cache comes from or goes to: type inline, registry, local, ..."""

    type: str
    attrs: dict[str, str] = {}


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """All that is said beside the files. `args`: None values are dropped before they come here."""

    dockerfile: str = "Dockerfile"
    remote: str = ""
    tags: tuple[str, ...] = ()
    args: dict[str, str] = {}
    labels: dict[str, str] = {}
    target: str = ""
    platforms: tuple[str, ...] = ()
    multi_platform: bool = False
    network: str = ""
    quiet: bool = False
    no_cache: bool = False
    no_cache_stages: tuple[str, ...] = ()
    pull: bool = False
    remove: bool = True
    host: HostConfig = HostConfig()
    hostname: str = ""
    allow: frozenset[str] = frozenset()
    contexts: dict[str, str] = {}
    cache_from: tuple[CacheOption, ...] = ()
    cache_to: tuple[CacheOption, ...] = ()
    exports: tuple[Export, ...] = ()
    attests: dict[str, str] = {}
    call: str = ""
    keep_failed: bool = False  # what a failed RUN left becomes an image, for people to look at


def boolean(text: str, complaint: str) -> bool:
    """Go's strconv.ParseBool. Raises InvalidArgument."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidArgument(f"{complaint}: {text}")


def _prefixed(attrs: dict[str, str], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in attrs.items() if k.startswith(prefix)}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for each in text.split(",") if (name := each.strip()))


def from_attributes(attrs: dict[str, str]) -> BuildRequest:
    """Attributes of the dockerfile.v0 frontend. Raises InvalidArgument naming the one that is wrong."""
    call = attrs.get("requestid", "")
    if call not in CALLS:
        raise InvalidArgument(f"unsupported request {call}")
    no_cache = attrs.get("no-cache")
    platforms = _names(attrs.get("platform", ""))
    args = _prefixed(attrs, "build-arg:")
    multi = attrs.get("multi-platform", args.get("BUILDKIT_MULTI_PLATFORM", ""))
    return BuildRequest(
        dockerfile=attrs.get("filename", "") or "Dockerfile",
        remote=attrs.get("context", ""),
        args=args,
        labels=_prefixed(attrs, "label:"),
        target=attrs.get("target", ""),
        platforms=platforms,
        multi_platform=boolean(multi, "invalid boolean value for multi-platform") if multi else len(platforms) > 1,
        network=_network(attrs.get("force-network-mode", "")),
        no_cache=no_cache == "",
        no_cache_stages=_names(no_cache or ""),
        pull=attrs.get("image-resolve-mode", "") == "pull",
        host=_host(attrs),
        hostname=attrs.get("hostname", "") or args.get("BUILDKIT_SANDBOX_HOSTNAME", ""),
        contexts=_prefixed(attrs, "context:"),
        cache_from=_imports(attrs.get("cache-imports", "")),
        attests=_prefixed(attrs, "attest:"),
        call=CALLS[call],
    )  # fmt: skip


def _network(text: str) -> str:
    if text in ("", "sandbox", "default"):
        return ""
    if text in ("none", "host"):
        return text
    raise InvalidArgument(f'invalid network mode "{text}"')


def _host(attrs: dict[str, str]) -> HostConfig:
    fields: dict[str, Any] = {}
    if text := attrs.get("add-hosts", ""):
        fields["extra_hosts"] = [_host_entry(each) for each in _names(text)]
    if text := attrs.get("shm-size", ""):
        fields["shm_size"] = _number("shm-size", text)
    if text := attrs.get("ulimit", ""):
        fields["ulimits"] = [_ulimit(each) for each in _names(text)]
    if text := attrs.get("cgroup-parent", ""):
        fields["cgroup_parent"] = text
    numbers = {
        "memory": "memory", "memswap": "memory_swap", "cpushares": "cpu_shares", "cpuperiod": "cpu_period",
        "cpuquota": "cpu_quota",
    }  # fmt: skip
    for key, field in numbers.items():
        if text := attrs.get(key, ""):
            fields[field] = _number(key, text)
    for key, field in (("cpusetcpus", "cpuset_cpus"), ("cpusetmems", "cpuset_mems")):
        if text := attrs.get(key, ""):
            fields[field] = text
    return HostConfig(**fields)


def _host_entry(text: str) -> str:
    name, equals, address = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"invalid key-value pair: {text}")
    return f"{name}:{address}"


def _number(key: str, text: str) -> int:
    number = parse_uint(text.removeprefix("-"), highest=MAX_NUMBER)
    if number is None:
        raise InvalidArgument(f"failed to parse {key}: {text}")
    return -number if text.startswith("-") else number


def _ulimit(text: str) -> Ulimit:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    return Ulimit(
        name=name, soft=_number("ulimit", soft), hard=_number("ulimit", hard) if hard else _number("ulimit", soft)
    )  # fmt: skip


class _Import(msgspec.Struct, rename="pascal"):
    type: str = ""
    attrs: dict[str, str] | None = None


def _imports(text: str) -> tuple[CacheOption, ...]:
    if not text:
        return ()
    try:
        found = msgspec.json.decode(text, type=list[_Import])
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"failed to unmarshal cache-imports: {error}") from None
    return tuple(CacheOption(type=each.type, attrs=each.attrs or {}) for each in found)
