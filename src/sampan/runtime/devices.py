"""What the runtime itself puts into /dev: nodes, the well-known links, ptmx, the console.

Made by descriptor below the container's own /dev, which is opened once, without following a link at the
end (runc CVE-2026-41579, crun CVE-2026-47766: a /dev that is a symlink made host nodes).
Sources: runtime-spec config-linux.md "Default Devices" and "Devices"; pts(4).
"""

from __future__ import annotations

import posix

from sampan.linux import constants as c
from sampan.linux import mounts as m
from sampan.linux.fds import close_quietly
from sampan.linux.paths import (
    S_IFCHR,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
    clean,
    create_in_root,
    exists,
    mkdir_all_in_root,
    open_in_root,
)
from sampan.linux.syscalls import buffer, filesystem_type, ioctl

from . import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .steps import Stage

EPERM, EINVAL = 1, 22
S_IFBLK, S_IFIFO = 0o060000, 0o010000
KINDS = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}

# name, major, minor: runtime-spec "Default Devices"
DEFAULT_DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)
# Rules that every container's device cgroup has besides the config's own: make any node, use these.
DEFAULT_RULES: tuple[dict[str, object], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for _, major, minor in DEFAULT_DEVICES
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},  # /dev/pts/*
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},  # ptmx
)

BOUND = c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NOEXEC  # of a node that is a mount

Node = tuple[str, int, int, int, int, int]  # path, mode with type, major, minor, uid, gid


def make_nodes(stage: Stage, nodes: tuple[Node, ...], bind: bool) -> None:
    """The device nodes, by mknod; in a user namespace, where mknod is refused, as binds of the host's."""
    posix.close(open_dev(stage))
    for path, mode, major, minor, uid, gid in nodes:
        if path == "/dev/ptmx":
            continue  # the container's own devpts has it: make_links
        if bind:
            _bind_node(stage, path)
            continue
        parent, name = _parent(stage, path)
        try:
            _make_node(stage, parent, name, path, mode, posix.makedev(major, minor), uid, gid)
        finally:
            posix.close(parent)


def premade(nodes: tuple[Node, ...], uid_map: bytes, gid_map: bytes) -> dict[str, int]:
    """For a user namespace, by its parent: nodes on a small tmpfs of our making, each as a detached mount.

    Inside the namespace mknod is refused, and the host's own nodes may lack what the spec asks for.
    """
    flags = BOUND
    tree = m.new_filesystem("tmpfs", ["mode=755", "size=4k", "nr_inodes=256"], flags, source="dev")
    made: dict[str, int] = {}
    try:
        for number, (path, mode, major, minor, uid, gid) in enumerate(nodes):
            name = str(number)
            posix.mknod(name, mode, posix.makedev(major, minor), dir_fd=tree)
            posix.chmod(name, mode & 0o7777, dir_fd=tree)
            owner, group = outside(uid_map, uid), outside(gid_map, gid)
            posix.chown(name, owner, group, dir_fd=tree, follow_symlinks=False)
            made["device:" + path] = m.clone_tree(name, dirfd=tree)
    except OSError:
        close_quietly(*made.values())
        return {}  # before Linux 6.15 a detached mount cannot be copied: init binds the host's nodes
    finally:
        posix.close(tree)
    return made


def outside(id_map: bytes, inside: int) -> int:
    """The host's number of an id of the namespace; root's when it has none."""
    for line in id_map.splitlines():
        first, host, count = map(int, line.split())
        if first <= inside < first + count:
            return host + inside - first
    return 0


def _parent(stage: Stage, path: str) -> tuple[int, str]:
    directory, _, name = clean("/" + path).rpartition("/")
    return mkdir_all_in_root(stage.root_fd, directory or "/"), name


def _make_node(
    stage: Stage, parent: int, name: str, path: str, mode: int, device: int, uid: int, gid: int
) -> None:
    try:
        posix.mknod(name, mode, device, dir_fd=parent)
    except FileExistsError:
        there = posix.stat(name, dir_fd=parent, follow_symlinks=False)
        if there.st_mode & S_IFMT == mode & S_IFMT and there.st_rdev == device:
            return
        if there.st_mode & S_IFMT == S_IFDIR:
            raise
        posix.unlink(name, dir_fd=parent)
        posix.mknod(name, mode, device, dir_fd=parent)
    except PermissionError:
        _bind_node(stage, path)
        return
    posix.chmod(name, mode & 0o7777, dir_fd=parent)
    if uid or gid:
        posix.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)


def _bind_node(stage: Stage, path: str) -> None:
    """The host's node of the same name (runc and crun do so too)."""
    handle = stage.handles.get("device:" + path, -1)
    tree = handle if handle >= 0 else m.clone_tree(path)
    if handle < 0:
        m.set_attributes(tree, BOUND)
    place = create_in_root(stage.root_fd, path, 0o666)
    m.attach(tree, place)
    posix.close(place)
    if handle < 0:
        posix.close(tree)


def open_dev(stage: Stage) -> int:
    """The container's /dev itself, made when missing. A symlink is refused: nodes belong in one place."""
    fd = mkdir_all_in_root(stage.root_fd, "/dev")
    there = posix.stat("dev", dir_fd=stage.root_fd, follow_symlinks=False)
    if there.st_mode & S_IFMT == S_IFLNK:
        posix.close(fd)
        raise OSError(EINVAL, "is a symbolic link", "/dev")
    return fd


def make_links(stage: Stage) -> None:
    """/dev/fd, stdin, stdout, stderr, core and ptmx; what is there already stays, but for ptmx."""
    dev = open_dev(stage)
    try:
        links = (*LINKS, ("/proc/kcore", "core")) if exists("/proc/kcore") else LINKS
        for text, name in links:
            try:
                posix.symlink(text, name, dir_fd=dev)
            except FileExistsError:
                pass
        try:
            there = posix.stat("ptmx", dir_fd=dev, follow_symlinks=False)
            if (
                there.st_mode & S_IFMT == S_IFLNK
                and posix.readlink("ptmx", dir_fd=dev) == "pts/ptmx"
            ):
                return
            posix.unlink("ptmx", dir_fd=dev)
        except FileNotFoundError:
            pass
        posix.symlink("pts/ptmx", "ptmx", dir_fd=dev)
    finally:
        posix.close(dev)


# ----------------------------------------------------------------------------------------- console


def open_pty(root_fd: int) -> tuple[int, int]:
    """(master, slave) of the container's own devpts; the slave by TIOCGPTPEER, not by a path (CVE-2025-52565)."""
    flags = posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC
    master = open_in_root(root_fd, "/dev/pts/ptmx", flags)
    if filesystem_type(master) != c.DEVPTS_SUPER_MAGIC:
        posix.close(master)
        raise OSError(EINVAL, "/dev/pts is not a devpts filesystem", "/dev/pts/ptmx")
    return master, open_peer(master)


def open_host_pty() -> tuple[int, int]:
    """(master, slave) of the host's devpts, for a container without one."""
    master = posix.open("/dev/ptmx", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
    return master, open_peer(master)


def open_peer(master: int) -> int:
    """Unlock a pty and open its other side."""
    ioctl(master, c.TIOCSPTLCK, bytes(4))
    return ioctl(master, c.TIOCGPTPEER, posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)


def pty_name(master: int) -> str:
    room = bytearray(4)
    ioctl(master, c.TIOCGPTN, buffer(room))
    return f"/dev/pts/{int.from_bytes(room, 'little')}"


def set_window(fd: int, height: int, width: int) -> None:
    size = height.to_bytes(2, "little") + width.to_bytes(2, "little") + bytes(4)
    ioctl(fd, c.TIOCSWINSZ, size)


def make_console(stage: Stage, size: tuple[int, int] | None, owner: int, mount: bool) -> None:
    """A pty for this process: master to whoever attaches, slave as our stdio and, mounted, as /dev/console."""
    try:
        master, slave = open_pty(stage.root_fd)
    except FileNotFoundError:
        master, slave = open_host_pty()
    if size:
        set_window(master, *size)
    if owner:
        try:
            posix.chown(slave, owner, -1)
        except OSError as error:
            if error.errno not in (
                EPERM,
                EINVAL,
            ):  # EINVAL: the user is not mapped in this namespace
                raise
    if mount:
        _mount_console(stage, slave)
    _hand_over(stage, master)
    posix.close(master)
    for number in (0, 1, 2):
        posix.dup2(slave, number, True)
    if slave > 2:
        posix.close(slave)
    ioctl(0, c.TIOCSCTTY, 0)


def _mount_console(stage: Stage, slave: int) -> None:
    dev = open_dev(stage)
    try:
        make = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        try:
            posix.close(posix.open("console", make, 0o600, dir_fd=dev))
        except FileExistsError:
            pass
        place = posix.open("console", posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=dev)
    finally:
        posix.close(dev)
    if posix.fstat(place).st_mode & S_IFMT == S_IFLNK:
        raise OSError(EINVAL, "is a symbolic link", "/dev/console")
    try:
        tree = m.clone_tree("", dirfd=slave)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return  # the host's pty, from outside this mount namespace: there is no console file then
    m.attach(tree, place)
    posix.close(tree)
    posix.close(place)


def _hand_over(stage: Stage, master: int) -> None:
    if stage.console_socket >= 0:
        channel.send_descriptor(stage.console_socket, pty_name(master), master)
        posix.close(stage.console_socket)
        stage.console_socket = -1
    else:
        channel.send(stage.channel, channel.CONSOLE, "", (master,))
