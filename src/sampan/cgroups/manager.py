"""Choosing the way to a container's cgroup: which hierarchies this host has, which driver the user wants.

    manager = open_manager("/sampan/<id>")        # looks at the mount table
    warnings = manager.create(resources)           # directories and limits
    fd = manager.clone_fd()                        # clone3(..., cgroup_fd=fd), or -1
        in the child:  manager.attach_self(born_inside=fd >= 0)
    manager.freeze() / thaw() / kill_all() / stats() / oom_watch()
    manager.destroy()

Five managers keep this promise (`Manager`): `NoManager`, `V1Manager` (v1 and hybrid), `V2Manager`, and each of
the last two inside a `SystemdManager`, which lets systemd make the directories. The systemd one says `needs_pid`: a scope
cannot be empty, so the child is cloned first, held, and given to create(resources, pid=...).

Source: runtime-spec config-linux.md "Control groups"; systemd.resource-control(5).
"""

from __future__ import annotations

from .host import MODE_NONE, MODE_V2, CgroupHost, detect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from .stats import Stats
    from .watch import OomWatch

    class Manager(Protocol):
        """What every cgroup manager can do. All of it may block for milliseconds, none of it for long."""

        path: str
        needs_pid: bool

        def create(
            self, resources: dict[str, Any], *, pid: int = 0, strict: bool = False
        ) -> list[str]:
            """Make the cgroup with its limits (an OCI LinuxResources); returns warnings in Docker's words.

            `strict` makes an error of a limit that this host cannot hold. Takes back what it made
            when it fails.
            """

        def clone_fd(self) -> int:
            """A directory descriptor for CLONE_INTO_CGROUP, owned by the caller, or -1."""

        def attach_self(self, *, born_inside: bool = False) -> None:
            """Join with the calling single-threaded process."""

        def attach(self, pid: int) -> None:
            """Move another process in."""

        def apply(self, resources: dict[str, Any], *, strict: bool = False) -> list[str]:
            """Change the limits that `resources` names; returns warnings."""

        def freeze(self) -> None: ...
        def thaw(self) -> None: ...
        def frozen(self) -> bool: ...
        def pids(self, *, recursive: bool = True) -> list[int]: ...
        def kill_all(self, signal: int = 9) -> None: ...
        def stats(self) -> Stats: ...
        def oom_watch(self) -> OomWatch: ...
        def oom_kills(self) -> int: ...
        def exists(self) -> bool: ...
        def paths(self) -> dict[str, str]:
            """Controller -> directory; '' names the unified hierarchy."""

        def destroy(self) -> None:
            """Remove the cgroup and all below it; it must hold no process. Gone already is success."""


__all__ = ["CgroupHost", "detect", "open_manager", "own_directory", "resolve_path"]


def open_manager(
    cgroups_path: str,
    *,
    driver: str = "cgroupfs",
    host: CgroupHost | None = None,
    rootless: bool = False,
    annotations: Mapping[str, str] | None = None,
    pid: int = 0,
) -> Manager:
    """The manager for `cgroups_path` (OCI linux.cgroupsPath, already completed with the id).

    Makes nothing yet: a manager is also the handle to a cgroup that exists. `annotations` are the
    container's; the systemd driver takes its org.systemd.property.* from them. Driver `none` makes no cgroup and
    goes by `pid`, the container's process 1.
    """
    if driver == "none":
        from .none import NoManager

        return NoManager(pid)
    if host is None:
        host = detect()
    if driver == "systemd":
        from .systemd import SystemdManager

        return SystemdManager(host, cgroups_path, rootless=rootless, annotations=annotations)
    if driver != "cgroupfs":
        raise ValueError(f"unknown cgroup driver: {driver!r} (cgroupfs or systemd)")
    return direct_manager(host, resolve_path(cgroups_path, host), rootless=rootless)


def direct_manager(host: CgroupHost, path: str, *, rootless: bool = False) -> Manager:
    """The manager that makes the directories itself."""
    if host.mode in (MODE_V2, MODE_NONE):
        from .v2 import V2Manager

        return V2Manager(host, path, rootless=rootless)
    from .v1 import V1Manager

    return V1Manager(host, path, rootless=rootless)


def resolve_path(cgroups_path: str, host: CgroupHost) -> str:
    """An absolute path as it is, a relative one below `own_directory`. No '..' leads out of the mount."""
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    clean: list[str] = []
    for part in parts:
        if part == "..":
            clean = clean[:-1]
        else:
            clean.append(part)
    if not clean:
        raise ValueError(f"invalid cgroup path: {cgroups_path!r}")
    if cgroups_path.startswith("/"):
        return "/" + "/".join(clean)
    return own_directory(host) + "/" + "/".join(clean)


def own_directory(host: CgroupHost) -> str:
    """Where a relative path begins: beside ourselves under v2 (a cgroup with processes in it cannot pass
    controllers on), at the root of every hierarchy under v1, where we may be in a different one in each."""
    if host.mode != MODE_V2:
        return ""
    own = host.own.get("", "/")
    root = host.roots.get(host.unified, "/")
    if root != "/" and own.startswith(root):
        own = own[len(root) :] or "/"
    return own.rpartition("/")[0]
