"""What this runtime supports, as the specification's features document (features.md of runtime-spec 1.3)."""

from __future__ import annotations

from sampan import __version__
from sampan.linux import constants as c
from sampan.linux.syscall_table import ARCHITECTURES

from .options import KNOWN_OPTIONS
from .seccomp import ACTIONS, FLAGS, OPERATORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]


def document() -> dict[str, Any]:
    """Key order as in the specification's example."""
    flags = list(FLAGS)
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": HOOKS,
        "mountOptions": sorted(set(KNOWN_OPTIONS)),
        "linux": {
            "namespaces": sorted(c.NAMESPACE_FLAGS),
            "capabilities": list(c.CAPS),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": list(ACTIONS),
                "operators": sorted(OPERATORS),
                "archs": ["SCMP_ARCH_" + name.upper() for name in sorted(ARCHITECTURES)],
                "knownFlags": flags,
                "supportedFlags": flags,
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(c.MPOL_MODES), "flags": sorted(c.MPOL_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {
            "org.opencontainers.runc.checkpoint.enabled": "false",
            "sampan.version": __version__,
        },
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property.", "run.oci."],
    }
