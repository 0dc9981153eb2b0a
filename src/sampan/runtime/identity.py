"""Actions of the steps by which a new process becomes a member of cgroups and namespaces.

Order matters and is fixed in plan.py: cgroup first (while the host's cgroup mounts are visible and before
a cgroup namespace takes its root from where we are), then namespaces by path, then those unshared late.
Sources: namespaces(7), cgroup_namespaces(7), time_namespaces(7), user_namespaces(7).
"""

from __future__ import annotations

import _socket
import posix

from sampan.linux import constants as c
from sampan.linux.paths import write_file
from sampan.linux.process import set_dumpable
from sampan.linux.syscalls import ioctl, setns, setresgid, setresuid, unshare
from sampan.linux.syscalls import setdomainname as set_domain_name
from sampan.linux.syscalls import sethostname as set_host_name

from . import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .steps import Stage

EPERM, EINVAL = 1, 22
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def join_cgroup(stage: Stage) -> None:
    """By writing "0" to `tasks` ourselves: no lock to wait for (performance 0.1); under v2 we were born there."""
    if stage.manager is not None:
        stage.manager.attach_self(born_inside=stage.born_inside)


def allow_nobody(stage: Stage) -> None:
    """From here on nobody in the namespaces that we are about to enter may look into this process (rule P3)."""
    set_dumpable(False)


def join_namespaces(stage: Stage, namespaces: tuple[tuple[str, str], ...]) -> None:
    """Enter namespaces that exist: (kind, handle name) of what the parent opened.

    A user namespace comes last, because root outside may enter what belongs to others; what root-in-name
    only (rootless) may not enter before, it enters after.
    """
    later: list[tuple[str, str]] = []
    for kind, handle in namespaces:
        if kind == "user":
            continue
        try:
            setns(stage.handles[handle], c.NAMESPACE_FLAGS[kind])
        except PermissionError:
            later.append((kind, handle))
    users = [(kind, handle) for kind, handle in namespaces if kind == "user"]
    if later and not users:
        kind, _ = later[0]
        raise PermissionError(EPERM, f"cannot join the {kind} namespace: operation not permitted")
    for kind, handle in users + later:
        setns(stage.handles[handle], c.NAMESPACE_FLAGS[kind])


def unshare_namespaces(stage: Stage, flags: int) -> None:
    """What clone3 could not make: a cgroup namespace is rooted where its maker is, so it comes after joining."""
    unshare(flags)


def wait_for_id_maps(stage: Stage) -> None:
    """The parent writes our uid_map and gid_map; it has the right and we do not."""
    channel.send(stage.channel, channel.MAP_IDS)
    expect_go(stage)


def expect_go(stage: Stage) -> None:
    kind, _, _ = channel.receive(stage.channel)
    if kind != channel.GO:
        posix._exit(1)  # the parent gave up or died: nobody is left to tell


def become_root(stage: Stage) -> None:
    """Root of the new user namespace, where ids map; supplementary groups cannot be kept there."""
    try:
        setresgid(0)
        setresuid(0)
    except OSError as error:
        if error.errno != EINVAL:  # root is not mapped: go on as who we are, with all capabilities
            raise


def make_time_namespace(stage: Stage, offsets: bytes) -> None:
    """Offsets can be set only before anybody is in the namespace, so: make it, set them, enter it."""
    unshare(c.CLONE_NEWTIME)
    if offsets:
        write_file("/proc/self/timens_offsets", offsets)
    fd = posix.open("/proc/self/ns/time_for_children", posix.O_RDONLY | posix.O_CLOEXEC)
    setns(fd, c.CLONE_NEWTIME)
    posix.close(fd)


def set_hostname(stage: Stage, name: str) -> None:
    set_host_name(name)


def set_domainname(stage: Stage, name: str) -> None:
    set_domain_name(name)


def bring_up_loopback(stage: Stage) -> None:
    """A new network namespace has `lo`, down. ioctl, because a netlink socket would cost more to import."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
    try:
        # struct ifreq { char ifr_name[16]; short ifr_flags; ... } -- netdevice(7)
        request = b"lo".ljust(16, b"\0") + IFF_UP.to_bytes(2, "little") + bytes(22)
        ioctl(sock.fileno(), SIOCSIFFLAGS, request)
    finally:
        sock.close()


def enter_root_of(stage: Stage, handle: str) -> None:
    """Without a mount namespace to join, the container's root is another process's."""
    posix.fchdir(stage.handles[handle])
    posix.chroot(".")


def use_current_root(stage: Stage) -> None:
    stage.root_fd = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
