"""Who performs builds, as clients are told: this engine, its platforms, the host's address for containers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sampan import __version__
from sampan.buildkit.messages import BuildkitVersion, Platform, WorkerRecord
from sampan.errors import SampanError
from sampan.images.platform import host_platform

if TYPE_CHECKING:
    from sampan.engine.context import Engine

HOST_GATEWAY = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
# By this label buildx knows whom it may ask for several platforms at once, OCI archives and exports of the cache.
SNAPSHOTTER = "org.mobyproject.buildkit.worker.snapshotter"
BINFMT = Path("/proc/sys/fs/binfmt_misc")

# What a processor runs besides its own, best first; the flags of /proc/cpuinfo that a level of amd64 stands for.
AMD64_LEVELS = (
    ("v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    ("v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
# Emulators as Debian and others register them: qemu-NAME.
EMULATED = {
    "aarch64": ("arm64", ""), "arm": ("arm", "v7"), "i386": ("386", ""), "x86_64": ("amd64", ""),
    "ppc64le": ("ppc64le", ""), "riscv64": ("riscv64", ""), "s390x": ("s390x", ""), "mips64el": ("mips64le", ""),
    "mips64": ("mips64", ""), "loongarch64": ("loong64", ""),
}  # fmt: skip


def version() -> BuildkitVersion:
    """The protocol's version that we speak, in BuildKit's terms."""
    return BuildkitVersion(
        package="github.com/moby/buildkit", version="v0.13.2", revision=f"sampan-{__version__}"
    )


def platforms(cpu_flags: set[str], binfmt: Path = BINFMT) -> list[Platform]:
    """What steps can run on: this machine's own first, then what the kernel hands to an emulator."""
    own = host_platform()
    found = [Platform(os=own.os, architecture=own.architecture, variant=own.variant or "")]
    if own.architecture == "amd64":
        for variant, needed in AMD64_LEVELS:
            if not needed <= cpu_flags:
                break
            found.append(Platform(os="linux", architecture="amd64", variant=variant))
        found.append(Platform(os="linux", architecture="386"))
    for name, (architecture, variant) in EMULATED.items():
        platform = Platform(os="linux", architecture=architecture, variant=variant)
        if (binfmt / f"qemu-{name}").exists() and platform not in found:
            found.append(platform)
    return found


def cpu_flags(text: str) -> set[str]:
    """The first processor's flags in /proc/cpuinfo's text."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return set(value.split())
    return set()


def worker(engine: Engine) -> WorkerRecord:
    """Blocking: this engine."""
    flags = cpu_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    gateway = engine.config.host_gateway_ip or _bridge_gateway(engine)
    labels = {SNAPSHOTTER: engine.snapshots.name}
    if gateway:
        labels[HOST_GATEWAY] = gateway
    return WorkerRecord(
        id=engine.id,
        labels=labels,
        platforms=platforms(flags),
        version=version(),
    )


def _bridge_gateway(engine: Engine) -> str:
    """The host's address on the default bridge, for `--add-host NAME:host-gateway`."""
    try:
        network = engine.networks.find("bridge")
    except SampanError:
        return ""  # this engine has none
    return next((pool.gateway for pool in network.pools if ":" not in (pool.gateway or ":")), "")
