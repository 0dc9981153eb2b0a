"""The OCI verbs over a bundle and a directory of states: start, kill, delete, pause, update (create: creation.py).

Each verb is one function. `Store` knows where states are; `Container` is one of them with what can be asked
of it. Printing, flags and exit codes are cli.py's.
Source: runtime-spec runtime.md "Operations" and "Lifecycle".
"""

from __future__ import annotations

import _socket
import posix
import time

from sampan.cgroups.manager import open_manager
from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.linux import procfs
from sampan.linux.fastjson import dump_bytes, loads
from sampan.linux.paths import (
    exists,
    read_file,
    remove_tree,
    replace_file,
    write_file,
)
from sampan.linux.process import open_pidfd, pidfd_send_signal
from sampan.linux.syscalls import LOCK_EX, flock

from . import channel
from .state import CREATED, CREATING, PAUSED, RUNNING, STOPPED, ContainerState, decode, require

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cgroups.manager import Manager
    from sampan.spec.runtime import Hook, LinuxResources, Spec


SIGKILL = 9
KILL_TRIES, KILL_PAUSE = 1000, 0.01
_ID_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def check_id(container_id: str) -> None:
    """Names a directory of ours: runc's letters, and no way up."""
    if not container_id:
        raise InvalidArgument("container id cannot be empty")
    for letter in container_id:
        if letter not in _ID_LETTERS:
            raise InvalidArgument(
                f'invalid container ID format: invalid character "{letter}" in container ID'
            )
    if container_id.startswith(".") or len(container_id) > 255:  # dot names are files of our own
        raise InvalidArgument("invalid container ID format")


class Store:
    """The directory of states."""

    def __init__(self, root: str) -> None:
        self.root = root

    def directory(self, container_id: str) -> str:
        check_id(container_id)
        return f"{self.root}/{container_id}"

    def load(self, container_id: str) -> Container:
        """NotFound in runc's words when there is none."""
        directory = self.directory(container_id)
        try:
            data = loads(read_file(directory + "/state.json"))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("container does not exist") from None
        return Container(directory, decode(data))

    def ids(self) -> list[str]:
        try:
            names = posix.listdir(self.root)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if exists(f"{self.root}/{name}/state.json"))


class Container:
    """One container's facts and what follows from them."""

    def __init__(self, directory: str, state: ContainerState) -> None:
        self.directory = directory
        self.state = state

    @property
    def start_socket(self) -> str:
        return self.directory + "/start.sock"

    def status(self) -> str:
        """See state.py: derived, never stored."""
        state = self.state
        if not state.pid:
            return CREATING
        if not procfs.is_alive(state.pid, state.start_time):
            return STOPPED
        if exists(self.start_socket):
            return CREATED
        return PAUSED if self.is_frozen() else RUNNING

    def is_frozen(self) -> bool:
        try:
            return self.state.cgroup_path != "" and self.cgroup().frozen()
        except OSError:
            return False

    def cgroup(self) -> Manager:
        state = self.state
        if not state.cgroup_path:
            raise Conflict("the container has no cgroup")
        return open_manager(state.cgroup_path, driver=state.cgroup_driver, rootless=state.rootless)

    def spec(self) -> Spec:
        return loads(read_file(self.directory + "/config.json"))  # type: ignore[no-any-return]

    def save(self) -> None:
        replace_file(self.directory + "/state.json", dump_bytes(self.state.encode()), 0o600)


class Lock:
    """Whoever changes a container's state holds its directory's lock; the kernel lets go when we die."""

    def __init__(self, directory: str) -> None:
        self.fd = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)

    def __enter__(self) -> None:
        flock(self.fd, LOCK_EX)

    def __exit__(self, *_: object) -> None:
        posix.close(self.fd)


# ------------------------------------------------------------------------------------- start, kill


def start(container: Container) -> int:
    """Tell the waiting init to go on; returns its pidfd when its program runs, raises when it cannot."""
    with Lock(container.directory):
        require("start", container.status())
        sock = _socket.socket(
            fileno=channel.connect(container.start_socket, _socket.SOCK_SEQPACKET)
        )
        # Before it starts: a short program may be gone a moment later.
        pidfd = open_pidfd(container.state.pid, container.state.start_time)
        posix.unlink(container.start_socket)
        channel.send(sock, channel.START)
        from .child import await_execution

        await_execution(sock, pidfd, state_document(container, CREATING))
        sock.close()
    run_poststart(container)
    return pidfd


def run_poststart(container: Container) -> None:
    """runtime.md "Lifecycle" 9: a poststart hook that fails stops the container and deletes it."""
    try:
        run_hooks(container, "poststart", RUNNING)
    except channel.LaunchError:
        kill_for_good(container)
        destroy(container)
        raise


def run_poststop(container: Container) -> list[str]:
    """ "Lifecycle" 13: one that fails is a warning, and the others run all the same."""
    wanted = wanted_hooks(container, "poststop")
    if not wanted:
        return []
    from .hooks import HookFailed

    warnings = []
    for hook in wanted:
        try:
            run_hooks(container, "poststop", STOPPED, [hook])
        except HookFailed as error:
            warnings.append(f"poststop hook failed with exit code {error.code}: {error.message}")
        except channel.LaunchError as error:
            warnings.append(error.message)
    return warnings


def wanted_hooks(container: Container, kind: str) -> list[Hook]:
    found: Any = container.spec().get("hooks") or {}
    return found.get(kind) or []


def run_hooks(
    container: Container, kind: str, status: str, wanted: list[Hook] | None = None
) -> None:
    """poststart and poststop of the stored spec. LaunchError when one fails."""
    wanted = wanted_hooks(container, kind) if wanted is None else wanted
    if not wanted:
        return
    from . import hooks

    hooks.run_all(wanted, kind, state_document(container, status))


def state_document(container: Container, status: str) -> dict[str, Any]:
    """The specification's State, without runc's additions."""
    document = container.state.document(status)
    return {name: value for name, value in document.items() if name not in ("rootfs", "created")}


def kill(container: Container, signal: int, *, everything: bool = False) -> None:
    """Signal process 1, or with `everything` all processes of the container."""
    status = container.status()
    if everything:
        if status == STOPPED and not _left_over(container):
            raise Conflict("container not running")
        _signal_all(container, signal)
        return
    alive = status != STOPPED or _left_over(container)
    if signal == SIGKILL and alive and not _dies_with_init(container):
        # Process 1 is one of many here; SIGKILL means the container (runc, and Docker counts on it).
        _signal_all(container, signal)
        return
    require("kill", status)
    _signal_init(container, signal)
    if signal == SIGKILL and status == PAUSED:
        container.cgroup().thaw()  # a frozen process dies only when it runs again


def _dies_with_init(container: Container) -> bool:
    """The kernel kills all of a pid namespace with its process 1; so only where the namespace is the container's."""
    try:
        namespaces = container.spec().get("linux", {}).get("namespaces") or ()
    except FileNotFoundError:
        return True  # a delete is under way
    return any(entry["type"] == "pid" and not entry.get("path") for entry in namespaces)


def _left_over(container: Container) -> list[int]:
    try:
        return container.cgroup().pids() if container.state.cgroup_path else []
    except OSError:
        return []


def _signal_init(container: Container, signal: int) -> None:
    state = container.state
    try:
        fd = open_pidfd(state.pid, state.start_time)
    except ProcessLookupError:
        raise Conflict("container not running") from None
    try:
        pidfd_send_signal(fd, signal)
    except ProcessLookupError:
        raise Conflict("container not running") from None
    finally:
        posix.close(fd)


def _signal_all(container: Container, signal: int) -> None:
    if container.state.cgroup_path:
        try:
            container.cgroup().kill_all(signal)
            return
        except OSError:
            if not container.state.rootless:
                raise
    _signal_init(container, signal)


# -------------------------------------------------------------------------------------------- delete


def delete(store: Store, container_id: str, *, force: bool = False) -> list[str]:
    """Remove what is left of a container; returns warnings of poststop hooks.

    A running one only with `force`; one that only waits for start is killed, as runc does.
    """
    try:
        container = store.load(container_id)
    except NotFound:
        # A create that was killed may have left a directory without a state.
        remove_tree(store.directory(container_id))
        if force:
            return []
        raise
    status = container.status()
    if status not in (STOPPED, CREATED, CREATING) and not force:
        raise Conflict(f"cannot delete container {container_id} that is not stopped: {status}")
    if status != STOPPED or force:
        kill_for_good(container)
    return destroy(container)


def kill_for_good(container: Container) -> None:
    """SIGKILL for all, and wait until process 1 is gone."""
    state = container.state
    for attempt in range(KILL_TRIES):
        if state.cgroup_path:
            try:
                manager = container.cgroup()
                manager.kill_all()
                if manager.frozen():
                    manager.thaw()
            except OSError:
                pass
        try:
            _signal_init(container, SIGKILL)
        except Conflict:
            return
        if not procfs.is_alive(state.pid, state.start_time):
            return
        if attempt:
            _thaw_where_it_is(state.pid)
        time.sleep(KILL_PAUSE if attempt else 0.001)
    raise Conflict("container init still running")


def _thaw_where_it_is(pid: int) -> None:
    """Somebody may have moved it into a frozen cgroup of theirs; frozen processes do not die (v1)."""
    from sampan.cgroups.host import detect

    try:
        path = procfs.cgroup_paths(pid).get("freezer", "")
        mount = detect().mounts.get("freezer", "")
        if mount and path:
            write_file(f"{mount}{path}/freezer.state", b"THAWED")
    except OSError:
        pass


def destroy(container: Container) -> list[str]:
    """cgroup, poststop hooks, state directory, in this order (runtime.md "Lifecycle" 10 to 13)."""
    warnings: list[str] = []
    if container.state.cgroup_path:
        destroy_cgroup(container.cgroup(), container.state.rootless)
    try:
        warnings = run_poststop(container)
    except FileNotFoundError:
        pass  # the spec's copy is gone: a delete was interrupted after this point
    remove_tree(container.directory)
    return warnings


def destroy_cgroup(manager: Manager, rootless: bool) -> None:
    """Everything in it dies with the container: without a pid namespace there may be leftovers."""
    try:
        if manager.pids():
            manager.kill_all()
        manager.destroy()
    except OSError:
        if not rootless:
            raise


# ------------------------------------------------------------------------------------ while it runs


def pause(container: Container) -> None:
    require("pause", container.status())
    container.cgroup().freeze()


def resume(container: Container) -> None:
    require("resume", container.status())
    container.cgroup().thaw()


def update(container: Container, resources: LinuxResources) -> list[str]:
    """Change limits while it runs; returns warnings."""
    require("update", container.status())
    values: Any = resources
    return container.cgroup().apply(values, strict=True)


def processes(container: Container) -> list[int]:
    """Every process of the container as the host numbers them."""
    return sorted(container.cgroup().pids())
