"""Which of a name's manifests suits this machine, or the one that the user asked for.

A platform is written `os[/architecture[/variant]]`. Names are normalised (`x86_64` is `amd64`, `aarch64` is
`arm64`), and a machine also runs some older architectures, best first: an amd64 takes 386, an arm64 takes arm
v8 to v5. Sources: OCI image-spec 1.1 image-index.md "platform", GOARCH, containerd's platforms package (facts).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

import msgspec

from sampan.errors import InvalidArgument, NotFound
from sampan.spec.image import Descriptor, Platform
from sampan.spec.reference import quoted

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "386": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
}
_KNOWN_OSES = frozenset(
    {
        "linux",
        "windows",
        "darwin",
        "freebsd",
        "netbsd",
        "openbsd",
        "solaris",
        "wasi",
        "aix",
        "plan9",
    }
)
_KNOWN_ARCHITECTURES = frozenset(
    {
        *("386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le"),
        *("ppc64", "ppc64le", "riscv64", "s390x", "wasm"),
    }
)
_AMD64_LEVELS = (  # of v2, v3, v4
    frozenset(("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")),
    frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")),
    frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
)
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")


def host_platform(machine: str = "") -> Platform:
    """What this kernel runs natively."""
    machine = machine or os.uname().machine
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


@functools.cache
def native_platform() -> Platform:
    """The same with what an amd64 can do beyond the first: `v2` to `v4` (x86-64 psABI, "Microarchitecture levels")."""
    host = host_platform()
    if host.architecture != "amd64":
        return host
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith("flags")), "")
    return msgspec.structs.replace(host, variant=amd64_level(frozenset(line.split())))


def amd64_level(flags: frozenset[str]) -> str:
    """The level of a processor by the kernel's names of its abilities; "" for the first."""
    level = 1
    while level < 4 and _AMD64_LEVELS[level - 1] <= flags:
        level += 1
    return f"v{level}" if level > 1 else ""


def parse_platform(text: str) -> Platform:
    """`linux/arm64/v8`, `linux`, `amd64`: as `--platform` takes it."""
    parts = text.strip().lower().split("/")
    if len(parts) > 3:
        raise InvalidArgument(f"{quoted(text)}: cannot parse platform specifier: invalid argument")
    if not 1 <= len(parts) <= 3 or not all(_is_word(part) for part in parts):
        raise InvalidArgument(
            f"{quoted(text)} is an invalid component of {quoted(text)}: "
            "platform specifier component must be os[/arch[/variant]]"
        )
    if len(parts) == 1:
        return _parse_one_word(text, parts[0])
    architecture, implied = _ARCHITECTURES.get(parts[1], (parts[1], ""))
    variant = parts[2] if len(parts) == 3 else (implied if architecture == "arm" else "")
    if architecture == "arm64" and variant in {"8", "v8"}:
        variant = "v8"
    elif variant.isascii() and variant.isdigit():
        variant = f"v{variant}"
    return Platform(os=parts[0], architecture=architecture, variant=variant)


def _parse_one_word(text: str, word: str) -> Platform:
    if word in _KNOWN_OSES:
        return Platform(
            os=word,
            architecture=host_platform().architecture,
            variant=host_platform().variant,
        )
    architecture, variant = _ARCHITECTURES.get(word, (word, ""))
    if architecture in _KNOWN_ARCHITECTURES:
        return Platform(os="linux", architecture=architecture, variant=variant)
    raise InvalidArgument(
        f"{quoted(text)}: unknown operating system or architecture: invalid argument"
    )


def _is_word(part: str) -> bool:
    return 0 < len(part) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-.") for c in part)


def rank(wanted: Platform, offered: Platform) -> int | None:
    """How well `offered` runs where `wanted` is asked for: 0 is exact, None is not at all."""
    if offered.os != wanted.os:
        return None
    offered_arch, offered_variant = _normal(offered)
    for position, (architecture, variant) in enumerate(_runs(wanted)):
        if offered_arch == architecture and offered_variant == variant:
            return position
    return None


def matches(wanted: Platform, offered: Platform) -> bool:
    return rank(wanted, offered) is not None


def choose(entries: Iterable[Descriptor], wanted: Platform) -> Descriptor:
    """The entry of an index that suits best; entries of one rank keep the index's order."""
    best: Descriptor | None = None
    best_rank = 0
    unnamed: list[Descriptor] = []
    for entry in entries:
        if entry.platform is None or not entry.platform.architecture:
            unnamed.append(entry)
            continue
        found = rank(wanted, entry.platform)
        if found is not None and (best is None or found < best_rank):
            best, best_rank = entry, found
    if best is None and len(unnamed) == 1:
        return unnamed[0]  # an index of one entry that does not say: its configuration will
    if best is None:
        raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")
    return best


def check_offered(reference: str, offered: Platform, wanted: Platform) -> None:
    """Refuse an image that is not of the platform the user named."""
    if not matches(wanted, offered):
        raise NotFound(
            f"image with reference {reference} was found but does not match the specified platform: "
            f"wanted {wanted}, actual: {offered}"
        )


def _normal(platform: Platform) -> tuple[str, str]:
    architecture, implied = _ARCHITECTURES.get(
        platform.architecture, (platform.architecture, platform.variant)
    )
    variant = platform.variant or implied
    if architecture == "arm64":
        return architecture, variant or "v8"
    if architecture == "arm":
        return architecture, variant or "v7"
    if architecture == "amd64":
        return architecture, "" if variant == "v1" else variant
    return architecture, variant


def _runs(wanted: Platform) -> list[tuple[str, str]]:
    architecture, variant = _normal(wanted)
    if architecture == "amd64":
        level = int(variant[1]) if variant in {"v2", "v3", "v4"} else 1
        older = [f"v{n}" if n > 1 else "" for n in range(level, 0, -1)]
        return [("amd64", v) for v in older] + [("386", "")]
    if architecture == "arm64":
        return [("arm64", variant)] + [("arm", v) for v in _ARM_VARIANTS]
    if architecture == "arm" and variant in _ARM_VARIANTS:
        return [("arm", v) for v in _ARM_VARIANTS[_ARM_VARIANTS.index(variant) :]]
    return [(architecture, variant)]
