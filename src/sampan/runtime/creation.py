"""The verb `create` (and the first half of `run`): from a bundle to a container that waits, or to nothing at all.

Source: runtime-spec runtime.md "Create"; bundle.md.
"""

from __future__ import annotations

import _socket
import posix
import time

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.linux import constants as c
from sampan.linux.fastjson import dump_bytes, loads
from sampan.linux.fds import close_quietly
from sampan.linux.paths import (
    S_IFDIR,
    S_IFMT,
    clean,
    make_directories,
    read_file,
    remove_tree,
    replace_file,
)
from sampan.linux.syscalls import ioctl

from . import channel
from .container import Container, Store
from .launch import Launch
from .plan import make_plan
from .state import ContainerState
from .validate import validate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sampan.spec.runtime import Spec

    from .child import Child


class CreateOptions:
    """What the command line adds to a bundle."""

    __slots__ = (
        "cgroup_driver", "console_socket", "new_keyring", "no_cgroup", "no_pivot", "notify_socket", "pid_file",
        "pidfd_socket", "preserve_fds", "rootless", "seccomp_cache", "tell",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cgroup_driver = "cgroupfs"
        self.console_socket = ""
        self.new_keyring = True
        self.no_cgroup = False
        self.no_pivot = False
        self.notify_socket = (
            ""  # the service manager's, when the program may tell it that it is ready
        )
        self.pid_file = ""
        self.pidfd_socket = ""
        self.preserve_fds: tuple[int, ...] = ()
        self.rootless = False
        self.seccomp_cache = ""
        self.tell: Callable[[str], None] | None = (
            None  # gets the plan's lines before they are carried out
        )


def load_spec(bundle: str, config: str = "config.json") -> tuple[Spec, bytes]:
    """(spec, its bytes), checked; the message names the file or the field."""
    path = config if config.startswith("/") else f"{bundle}/{config}"
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise NotFound(f"JSON specification file {config} not found") from None
    except IsADirectoryError:
        raise InvalidArgument(f"{config}: is a directory") from None
    try:
        spec = loads(data)
    except ValueError as error:
        raise InvalidArgument(f"{config}: {error}") from None
    return validate(spec), data


def create(
    store: Store,
    container_id: str,
    bundle: str,
    spec: Spec,
    text: bytes,
    options: CreateOptions,
    *,
    wait: bool,
) -> tuple[Container, Launch, Child]:
    """Make a container. With `wait`, init stays behind on start.sock (state `created`); without, the caller
    goes on with launch.start(). After any failure nothing is left."""
    directory = store.directory(container_id)
    rootfs = _checked_rootfs(bundle, spec)
    _check_namespace_files(spec)
    cgroup_path = "" if options.no_cgroup else _cgroup_path(spec, container_id, options)
    if options.notify_socket:
        from . import readiness

        readiness.add_to_spec(spec, directory, options.notify_socket)
    plan = make_plan(
        spec,
        container_id=container_id,
        bundle=bundle,
        rootfs=rootfs,
        cgroup_path=cgroup_path,
        cgroup_driver=options.cgroup_driver,
        rootless=options.rootless,
        no_pivot=options.no_pivot,
        new_keyring=options.new_keyring,
        preserve_fds=options.preserve_fds,
        extra={"seccomp_cache": options.seccomp_cache},
    )
    if options.tell is not None:
        for line in plan.describe():
            options.tell(line)
    make_directories(store.root, 0o711)
    try:
        posix.mkdir(directory, 0o711)
    except FileExistsError:
        raise Conflict("container with given ID already exists") from None
    launch = None
    try:
        if options.notify_socket:
            readiness.make_directory(directory)
        listener = _listen(directory) if wait else -1
        console = channel.connect(options.console_socket) if options.console_socket else -1
        launch = Launch(plan, console_socket=console, start_listener=listener)
        child = launch.create()
        close_quietly(listener, console)
        state = ContainerState(
            id=container_id,
            oci_version=spec["ociVersion"],
            bundle=bundle,
            rootfs=rootfs,
            created=now(),
            pid=child.pid,
            start_time=child.start_time,
            cgroup_path=cgroup_path,
            cgroup_driver=options.cgroup_driver,
            rootless=options.rootless,
            annotations=dict(spec.get("annotations") or {}),
        )
        container = Container(directory, state)
        _write(directory + "/config.json", text)
        _write(directory + "/state.json", dump_bytes(state.encode()))
        if options.pid_file:
            replace_file(options.pid_file, b"%d" % child.pid)
        if options.pidfd_socket:
            channel.send_pidfd(options.pidfd_socket, child.pidfd)
    except BaseException:
        if launch is not None:
            launch.undo()
        remove_tree(directory)
        raise
    if wait:
        launch.release()
    return container, launch, child


def _checked_rootfs(bundle: str, spec: Spec) -> str:
    path = spec["root"]["path"]
    rootfs = clean(path if path.startswith("/") else f"{bundle}/{path}")
    try:
        # Resolved once, here: everything later uses the descriptor or this path without links.
        fd = posix.open(rootfs, posix.O_PATH | posix.O_CLOEXEC)
    except OSError as error:
        text = posix.strerror(error.errno or 0).lower()
        raise NotFound(f"root.path: invalid rootfs: {rootfs}: {text}") from None
    try:
        if posix.fstat(fd).st_mode & S_IFMT != S_IFDIR:
            raise InvalidArgument(f"root.path: invalid rootfs: {rootfs}: not a directory")
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def _check_namespace_files(spec: Spec) -> None:
    """A path of the wrong kind must not be entered by another flag's name."""
    for index, entry in enumerate(spec.get("linux", {}).get("namespaces") or ()):
        path = entry.get("path")
        if not path:
            continue
        field = f"linux.namespaces[{index}].path"
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(
                f"{field}: {path}: {posix.strerror(error.errno or 0).lower()}"
            ) from None
        try:
            kind = ioctl(fd, c.NS_GET_NSTYPE)
        except OSError:
            raise InvalidArgument(f"{field}: {path} is not a namespace") from None
        finally:
            posix.close(fd)
        if kind != c.NAMESPACE_FLAGS[entry["type"]]:
            raise InvalidArgument(f"{field}: {path} is not a {entry['type']} namespace")


def _cgroup_path(spec: Spec, container_id: str, options: CreateOptions) -> str:
    path = spec.get("linux", {}).get("cgroupsPath") or ""
    if path:
        if options.cgroup_driver == "systemd" and path.count(":") != 2:
            raise InvalidArgument(
                f'linux.cgroupsPath: expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}" instead'
            )
        return path
    if options.cgroup_driver == "systemd":
        return f":sampan-oci:{container_id}"
    return f"/{container_id}"


def _listen(directory: str) -> int:
    """A socket on which `start` will call, bound by a short name: sun_path holds 107 bytes."""
    fd = posix.open(directory, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{fd}/start.sock")
        sock.listen(1)
        return sock.detach()
    finally:
        posix.close(fd)


def _write(path: str, data: bytes) -> None:
    fd = posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[posix.write(fd, view) :]
    finally:
        posix.close(fd)


def now() -> str:
    """RFC 3339 with nanoseconds, UTC, as Go prints a time."""
    nanoseconds = time.time_ns()
    day = time.gmtime(nanoseconds // 1_000_000_000)
    fraction = f"{nanoseconds % 1_000_000_000:09}".rstrip("0")
    text = f"{day.tm_year:04}-{day.tm_mon:02}-{day.tm_mday:02}T{day.tm_hour:02}:{day.tm_min:02}:{day.tm_sec:02}"
    return f"{text}.{fraction}Z" if fraction else text + "Z"
