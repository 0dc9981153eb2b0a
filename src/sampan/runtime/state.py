"""What is remembered of a container between two runs of sampan-oci, and the states it goes through.

    <root>/<id>/state.json   facts: pid and start time, bundle, cgroup; written by rename
    <root>/<id>/config.json  the spec as it was at create; the bundle's may change
    <root>/<id>/start.sock   there while the state is `created`: init listens on it
    <root>/<id>/lock         held (flock) by whoever changes the state

    creating --> created --> running <--> paused
                    |           |
                    `-----------'--> stopped

The status is never stored: it follows from the facts (does the process live, is start.sock there, is the
cgroup frozen). Source: runtime-spec runtime.md "State".
"""

from __future__ import annotations

from sampan.errors import Conflict, Internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE_VERSION = 1

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"

# verb -> statuses in which it may be done; the message of a refusal comes from `refuse`.
MAY: dict[str, frozenset[str]] = {
    "start": frozenset({CREATED}),
    "exec": frozenset({CREATED, RUNNING}),
    "kill": frozenset({CREATED, RUNNING, PAUSED}),
    "pause": frozenset({CREATED, RUNNING}),
    "resume": frozenset({PAUSED}),
    "update": frozenset({CREATED, RUNNING, PAUSED}),
    "events": frozenset({CREATED, RUNNING, PAUSED}),
}


class ContainerState:
    """The facts of one container."""

    __slots__ = (
        "annotations", "bundle", "cgroup_driver", "cgroup_path", "created", "id", "oci_version", "pid", "rootfs",
        "rootless", "start_time",
    )  # fmt: skip

    def __init__(
        self,
        *,
        id: str,
        oci_version: str,
        bundle: str,
        rootfs: str,
        created: str,
        pid: int = 0,
        start_time: int = 0,
        cgroup_path: str = "",
        cgroup_driver: str = "cgroupfs",
        rootless: bool = False,
        annotations: dict[str, str] | None = None,
    ) -> None:
        self.id = id
        self.oci_version = oci_version
        self.bundle = bundle
        self.rootfs = rootfs
        self.created = created
        self.pid = pid
        self.start_time = start_time
        self.cgroup_path = cgroup_path
        self.cgroup_driver = cgroup_driver
        self.rootless = rootless
        self.annotations = annotations or {}

    def encode(self) -> dict[str, Any]:
        """As JSON object; fields of newer versions are ignored by `decode`."""
        return {"version": STATE_VERSION, **{name: getattr(self, name) for name in self.__slots__}}

    def document(self, status: str) -> dict[str, Any]:
        """What `state` prints: the specification's fields, then runc's."""
        document: dict[str, Any] = {
            "ociVersion": self.oci_version,
            "id": self.id,
            "pid": 0 if status == STOPPED else self.pid,
            "status": status,
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
        }
        if self.annotations:
            document["annotations"] = self.annotations
        return document


def decode(data: Any) -> ContainerState:
    """From `encode`'s form, leniently: unknown keys are ignored, missing ones have their defaults."""
    if not isinstance(data, dict) or data.get("version") != STATE_VERSION:
        raise Internal(
            "state.json is of another version of this program; delete the container with --force"
        )
    known = {name: data[name] for name in ContainerState.__slots__ if name in data}
    return ContainerState(**known)


def refuse(verb: str, status: str) -> Conflict:
    """The words runc refuses with."""
    if verb == "start":
        if status == STOPPED:
            return Conflict("cannot start a container that has stopped")
        if status == RUNNING:
            return Conflict("cannot start an already running container")
        return Conflict(f"cannot start a container in the {status} state")
    if verb == "exec":
        if status == STOPPED:
            return Conflict("cannot exec in a stopped container")
        return Conflict("cannot exec in a paused container (use --ignore-paused to override)")
    if verb == "resume":
        return Conflict("container not paused")
    if verb == "pause" and status == PAUSED:
        return Conflict("container paused")
    return Conflict("container not running")


def require(verb: str, status: str) -> None:
    """Conflict unless the verb may be done now."""
    if status not in MAY[verb]:
        raise refuse(verb, status)
