"""Actions of the steps that mount: each resolves its target inside the root, then attaches by descriptor.

The target is opened with openat2(RESOLVE_IN_ROOT) and what was opened is what gets covered; no path of the
image is looked up twice (CVE-2021-30465). What goes over a procfs is held to a short list (CVE-2015-3631,
CVE-2019-16884, CVE-2019-19921).
Sources: runtime-spec config.md "Mounts"; config-linux.md "Masked Paths", "Readonly Paths".
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
    is_beneath,
    mkdir_all_in_root,
    open_in_root,
    verify_proc,
)
from sampan.linux.procfs import mounts
from sampan.linux.syscalls import (
    filesystem_type,
    fsconfig_create,
    fsconfig_flag,
    fsconfig_string,
    fsmount,
    fsopen,
)

from .copying import copy_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .options import MountOptions
    from .steps import Stage

EPERM, EBUSY, ENOTDIR, EINVAL = 1, 16, 20, 22
HARMLESS = "/tmp"  # there on every host, open to all, and nothing of ours is read from it

# What may be mounted over inside /proc: files whose answer tools want virtualised (lxcfs), nothing that the
# kernel takes orders from.
PROC_TARGETS = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
        "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip

# Filesystems without a device: "ro" belongs to the mount, not to a superblock that others may share.
_VIRTUAL = frozenset(
    {
        "proc",
        "sysfs",
        "tmpfs",
        "devpts",
        "mqueue",
        "cgroup",
        "cgroup2",
        "bpf",
        "ramfs",
        "debugfs",
        "tracefs",
    }
)


class Target:
    """Where a mount goes and how: decided from the spec before any process exists."""

    __slots__ = ("context", "destination", "fstype", "options", "source", "source_handle")

    def __init__(
        self,
        *,
        destination: str,
        fstype: str,
        source: str,
        options: MountOptions,
        context: str = "",
        source_handle: str = "",
    ) -> None:
        self.destination = destination
        self.fstype = fstype
        self.source = source
        self.options = options
        self.context = context  # the option with SELinux's label, '' without
        self.source_handle = source_handle  # the parent opened the source under this name


# ----------------------------------------------------------------------------------------- targets


def open_target(stage: Stage, target: Target, *, directory: bool) -> int:
    """The mount point inside the root, made where it is missing, and allowed to be covered."""
    path = target.destination
    if target.options.destination_nofollow:
        fd = _open_nofollow(stage.root_fd, path, directory=directory)
    elif directory:
        fd = mkdir_all_in_root(stage.root_fd, path)
    else:
        fd = create_in_root(stage.root_fd, path)
    try:
        _check_allowed(stage, fd, target)
    except BaseException:
        posix.close(fd)
        raise
    return fd


def _open_nofollow(root_fd: int, path: str, *, directory: bool) -> int:
    """The last name itself, even when it is a symlink."""
    parent_path, _, name = clean("/" + path).rpartition("/")
    parent = mkdir_all_in_root(root_fd, parent_path or "/")
    look = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
    try:
        try:
            return posix.open(name, look, dir_fd=parent)
        except FileNotFoundError:
            if directory:
                posix.mkdir(name, 0o755, dir_fd=parent)
            else:
                make = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
                posix.close(posix.open(name, make, 0o644, dir_fd=parent))
            return posix.open(name, look, dir_fd=parent)
    finally:
        posix.close(parent)


def _check_allowed(stage: Stage, fd: int, target: Target) -> None:
    """Refuse the root itself, and everything on a procfs that is not on the short list.

    The question is put to the descriptor (is this on a procfs?), so a symlink to /proc does not evade it.
    """
    here, root = posix.fstat(fd), posix.fstat(stage.root_fd)
    if (here.st_ino, here.st_dev) == (root.st_ino, root.st_dev):
        raise OSError(
            EINVAL, "the container's root cannot be covered by a mount", target.destination
        )
    wanted = clean("/" + target.destination)
    on_proc = filesystem_type(fd) == c.PROC_SUPER_MAGIC
    if on_proc and wanted != "/proc" and wanted not in PROC_TARGETS:
        raise OSError(EPERM, f"{wanted!r} cannot be mounted because it is inside /proc", wanted)
    if (
        not on_proc
        and is_beneath(wanted, "/proc")
        and wanted != "/proc"
        and wanted not in PROC_TARGETS
    ):
        raise OSError(EPERM, f"{wanted!r} cannot be mounted because it is inside /proc", wanted)


def _require_procfs(tree: int, target: Target) -> None:
    """Only a procfs goes on /proc itself: labels and profiles are set through what lies there (CVE-2019-16884)."""
    wanted = clean("/" + target.destination)
    if wanted == "/proc" and filesystem_type(tree) != c.PROC_SUPER_MAGIC:
        raise OSError(EPERM, f"{wanted!r} cannot be mounted because it is not of type proc", wanted)


def make_real_directory(stage: Stage, path: str) -> None:
    """In a root of our own making, a symlink at /proc, /sys or /dev is replaced by a directory.

    Docker does this in a layer above the image; without it a hostile image decides where procfs goes.
    """
    try:
        kind = (
            posix.stat(path.lstrip("/"), dir_fd=stage.root_fd, follow_symlinks=False).st_mode
            & S_IFMT
        )
    except FileNotFoundError:
        posix.mkdir(path.lstrip("/"), 0o755, dir_fd=stage.root_fd)
        return
    if kind != S_IFDIR:
        posix.unlink(path.lstrip("/"), dir_fd=stage.root_fd)
        posix.mkdir(path.lstrip("/"), 0o755, dir_fd=stage.root_fd)


def require_ordinary_directory(stage: Stage, fstype: str, path: str) -> None:
    """proc and sysfs are not mounted through a symlink of somebody's bundle (CVE-2019-19921, CVE-2023-27561)."""
    try:
        fd = posix.open(
            clean("/" + path).lstrip("/") or ".",
            posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC,
            dir_fd=stage.root_fd,
        )
    except FileNotFoundError:
        return
    kind = posix.fstat(fd).st_mode & S_IFMT
    posix.close(fd)
    if kind != S_IFDIR:
        raise OSError(EINVAL, f'filesystem "{fstype}" must be mounted on ordinary directory')


# ------------------------------------------------------------------------------- root filesystem


def set_tree_propagation(stage: Stage, flags: int) -> None:
    """Decouple our copy of the mount tree from the host's before anything is mounted."""
    m.set_propagation("/", flags)


def make_parent_private(stage: Stage, rootfs: str) -> None:
    """The mount below the root must not be shared: pivot_root refuses, and our mounts would show outside."""
    path = rootfs
    while True:
        try:
            m.set_propagation(path, c.MS_PRIVATE)
            return
        except PermissionError:
            return  # not reachable as root of a user namespace: bind_root finds another place
        except OSError as error:
            # EINVAL: not a mount point itself, so its parent directory may be
            if error.errno != EINVAL or path == "/":
                raise
        path = path.rpartition("/")[0] or "/"


def bind_root(stage: Stage, rootfs: str) -> None:
    """Make the root directory a mount of its own, as pivot_root needs it."""
    tree = stage.handles.get("rootfs", -1)
    if tree < 0:
        tree = m.clone_tree(rootfs, recursive=True)
    try:
        attach_root(stage, rootfs, tree)
    except PermissionError:
        # Root of a user namespace may not reach the directory. Where in our own tree the root lies does
        # not matter: pivot_root takes the rest away.
        make_parent_private(stage, HARMLESS)
        attach_root(stage, HARMLESS, tree)


def attach_root(stage: Stage, rootfs: str, tree: int) -> None:
    target = posix.open(rootfs, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    m.attach(tree, target)
    posix.close(target)
    stage.root_fd = tree


def mount_root(stage: Stage, rootfs: str, target: Target) -> None:
    """A mount that storage gave us for the root: overlay, erofs, or a bind. Trusted paths."""
    options = target.options
    path = clean(rootfs + "/" + target.destination)
    if options.bind:
        tree = m.clone_tree(target.source, recursive=options.recursive)
        if options.set or options.clear:
            m.set_attributes(tree, options.set, options.clear)
    else:
        tree = m.new_filesystem(
            target.fstype,
            [*options.superblock, *options.data],
            options.set,
            source=target.source or target.fstype,
            read_only=options.read_only and target.fstype not in _VIRTUAL,
        )
    place = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    m.attach(tree, place)
    posix.close(place)
    if path == clean(rootfs):
        if stage.root_fd >= 0:
            posix.close(stage.root_fd)
        stage.root_fd = tree
    else:
        posix.close(tree)


def pivot(stage: Stage) -> None:
    """Make the root ours and let go of the host's tree, by descriptor: the old root lands on the new one."""
    from_root = posix.open("/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    posix.fchdir(stage.root_fd)
    m.pivot_here()
    posix.fchdir(from_root)
    posix.close(from_root)
    # Slave first, so that unmounting does not travel to the host where the tree was shared.
    m.set_propagation(".", c.MS_SLAVE | c.MS_REC)
    m.detach(".")
    posix.chdir("/")


def move_root(stage: Stage, rootfs: str) -> None:
    """--no-pivot (a root on the initramfs, which pivot_root cannot leave): unmount what is visible, move, chroot."""
    prefix = clean(rootfs)
    hidden = [
        x.path for x in mounts() if x.fstype in ("proc", "sysfs") and not is_beneath(x.path, prefix)
    ]
    for path in hidden:
        try:
            m.set_propagation(path, c.MS_SLAVE | c.MS_REC)
            m.detach(path)
        except OSError as error:
            if error.errno not in (EINVAL, EPERM):
                raise
            m.cover(path)
    posix.fchdir(stage.root_fd)
    m.move_to_root()
    posix.chroot(".")
    posix.chdir("/")


def change_root(stage: Stage) -> None:
    """Without a mount namespace of our own: chroot."""
    posix.fchdir(stage.root_fd)
    posix.chroot(".")
    posix.chdir("/")


def set_root_propagation(stage: Stage, flags: int) -> None:
    m.set_propagation("/", flags)


def set_root_read_only(stage: Stage) -> None:
    m.set_attributes(stage.root_fd, c.MOUNT_ATTR_RDONLY)


# ---------------------------------------------------------------------------------- spec's mounts


def mount_filesystem(stage: Stage, target: Target) -> None:
    """A new filesystem of any type at its place."""
    options = target.options
    if target.fstype in ("proc", "sysfs"):
        require_ordinary_directory(stage, target.fstype, target.destination)
    is_new = target.fstype == "tmpfs" and not _exists(stage.root_fd, target.destination)
    place = open_target(stage, target, directory=True)
    try:
        tree = _new_filesystem(target, place, takes_mode=not is_new)
        if options.copy_up:
            copy_tree(place, tree)
        _finish(tree, options, place)
        if is_sealed_late(target):
            stage.unsealed.append(tree)
        else:
            posix.close(tree)
    finally:
        posix.close(place)


def is_sealed_late(target: Target) -> bool:
    """A read-only tmpfs is empty: what the spec mounts inside it, /dev/pts or a volume, needs its directory first."""
    return target.fstype == "tmpfs" and bool(target.options.set & c.MOUNT_ATTR_RDONLY)


def seal(stage: Stage) -> None:
    """Now that everything is in them: the tmpfs mounts that are to be read-only."""
    for tree in stage.unsealed:
        m.set_attributes(tree, c.MOUNT_ATTR_RDONLY)
        posix.close(tree)
    stage.unsealed.clear()


def _exists(root_fd: int, path: str) -> bool:
    try:
        posix.close(open_in_root(root_fd, path, posix.O_PATH))
    except OSError:
        return False
    return True


def _new_filesystem(target: Target, place: int, *, takes_mode: bool = True) -> int:
    options = target.options
    data = [*options.superblock, *options.data]
    attributes = options.set
    if target.fstype == "tmpfs":
        if takes_mode and not any(word.startswith("mode=") for word in data):
            # A tmpfs takes the mode of what it covers; over a mount point made just now it has its own, 1777.
            data.insert(0, f"mode={posix.fstat(place).st_mode & 0o7777:o}")
        attributes &= ~c.MOUNT_ATTR_RDONLY
    if target.context and target.fstype not in ("proc", "sysfs", "mqueue", "cgroup", "cgroup2"):
        data.append(target.context)
    return m.new_filesystem(
        target.fstype,
        data,
        attributes,
        source=target.source or target.fstype,
        read_only=options.read_only and target.fstype not in _VIRTUAL,
    )


def mount_proc_or_sys(stage: Stage, target: Target) -> None:
    """proc or sysfs; in a user namespace that may not make its own, the host's view of it instead.

    The kernel refuses a new sysfs to who does not own the network namespace, and a new proc to who does
    not own the pid namespace; the tree already visible gives away nothing more.
    """
    try:
        mount_filesystem(stage, target)
    except PermissionError:
        source = "/proc" if target.fstype == "proc" else "/sys"
        place = open_target(stage, target, directory=True)
        tree = m.clone_tree(source, recursive=True)
        if target.options.set:
            m.set_attributes(tree, target.options.set, recursive=True)
        m.attach(tree, place)
        posix.close(tree)
        posix.close(place)


def keep_proc(stage: Stage, destination: str) -> None:
    """Remember the procfs that was just mounted: later writes to /proc go through it, not through a path."""
    fd = open_in_root(stage.root_fd, destination, posix.O_PATH | posix.O_DIRECTORY)
    verify_proc(fd)
    stage.proc_fd = fd


def bind(stage: Stage, target: Target) -> None:
    """A host directory or file at its place."""
    options = target.options
    tree = stage.handles.get(target.source_handle, -1) if target.source_handle else -1
    if tree < 0:
        if options.copy_symlink and _copied_symlink(stage, target):
            return
        tree = m.clone_tree(
            target.source, recursive=options.recursive, follow=not options.source_nofollow
        )
    kind = posix.fstat(tree).st_mode & S_IFMT
    _require_procfs(tree, target)
    place = open_target(stage, target, directory=kind == S_IFDIR)
    try:
        if kind != S_IFDIR and posix.fstat(place).st_mode & S_IFMT == S_IFDIR:
            raise OSError(ENOTDIR, "not a directory", target.destination)
        if options.set or options.clear:
            m.set_attributes(
                tree, options.set, options.clear & ~options.set | _atime_clear(options.clear)
            )
        _finish(tree, options, place)
        posix.close(tree)
    finally:
        posix.close(place)


def _atime_clear(clear: int) -> int:
    """Access-time words replace each other: the whole field is cleared before one is set."""
    return clear & c.MOUNT_ATTR__ATIME


def _copied_symlink(stage: Stage, target: Target) -> bool:
    """copy-symlink: a source that is a symlink is made anew inside the container."""
    if posix.lstat(target.source).st_mode & S_IFMT != S_IFLNK:
        return False
    text = posix.readlink(target.source)
    parent_path, _, name = clean("/" + target.destination).rpartition("/")
    parent = mkdir_all_in_root(stage.root_fd, parent_path or "/")
    try:
        posix.symlink(text, name, dir_fd=parent)
    except FileExistsError:
        if posix.readlink(name, dir_fd=parent) != text:
            raise
    finally:
        posix.close(parent)
    return True


def remount(stage: Stage, target: Target) -> None:
    """Change the attributes of what is mounted at a place already."""
    fd = open_in_root(stage.root_fd, target.destination, posix.O_PATH)
    m.set_attributes(fd, target.options.set, target.options.clear)
    posix.close(fd)


def _finish(tree: int, options: MountOptions, place: int) -> None:
    """Recursive attributes while nobody sees the mount, then attach, then propagation."""
    if options.recursive_set or options.recursive_clear:
        m.set_attributes(tree, options.recursive_set, options.recursive_clear, recursive=True)
    m.attach(tree, place)
    for flags, recursive in options.propagation:
        m.set_attributes(tree, propagation=flags, recursive=recursive)


# ----------------------------------------------------------------------------------------- cgroups


def mount_cgroup2(
    stage: Stage, target: Target, mountpoint: str, own_path: str, private: bool
) -> None:
    """The unified hierarchy; where a new mount is refused, the host's directory of this container."""
    place = open_target(stage, target, directory=True)
    try:
        try:
            tree = m.new_filesystem(
                "cgroup2", target.options.data, target.options.set, source="cgroup2"
            )
        except OSError as error:
            if error.errno not in (EPERM, EBUSY):
                raise
            tree = m.clone_tree(mountpoint + own_path if private else mountpoint)
            m.set_attributes(tree, target.options.set)
        _finish(tree, target.options, place)
        posix.close(tree)
    finally:
        posix.close(place)


def mount_cgroup1(
    stage: Stage, target: Target, hierarchies: tuple[tuple[str, str, str], ...], private: bool
) -> None:
    """A tmpfs with one directory per v1 hierarchy: (name, mount data, the container's directory on the host).

    With a cgroup namespace each is a mount of its own, whose root the kernel makes the container's cgroup;
    without, it is a bind of that directory.
    """
    flags = c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NODEV | c.MOUNT_ATTR_NOEXEC
    read_only = target.options.set & c.MOUNT_ATTR_RDONLY
    place = open_target(stage, target, directory=True)
    root = m.new_filesystem("tmpfs", ["mode=755"], flags, source="tmpfs")
    m.attach(root, place)
    for name, data, directory in hierarchies:
        posix.mkdir(name, 0o755, dir_fd=root)
        where = posix.open(name, posix.O_PATH | posix.O_CLOEXEC, dir_fd=root)
        tree = _cgroup1_tree(data, directory, flags | read_only, private)
        if tree >= 0:
            m.attach(tree, where)
            posix.close(tree)
        posix.close(where)
        for alias in name.split(",") if "," in name else ():
            posix.symlink(name, alias, dir_fd=root)
    if read_only:
        m.set_attributes(root, c.MOUNT_ATTR_RDONLY)
    for propagation, recursive in target.options.propagation:
        m.set_attributes(root, propagation=propagation, recursive=recursive)
    posix.close(root)
    posix.close(place)


def _cgroup1_tree(data: str, directory: str, flags: int, private: bool) -> int:
    if private:
        try:
            if data == "cgroup2":
                return m.new_filesystem("cgroup2", (), flags, source="cgroup2")
            return m.new_filesystem("cgroup", data.split(","), flags, source="cgroup")
        except OSError as error:
            if error.errno not in (EPERM, EBUSY, EINVAL):
                raise
    try:
        tree = m.clone_tree(directory)
    except (FileNotFoundError, PermissionError):
        return (
            -1
        )  # this container has no cgroup in that hierarchy, or we without root may not see it
    m.set_attributes(tree, flags)
    return tree


# ----------------------------------------------------------------------------- masked and read-only


def open_null(stage: Stage) -> None:
    """The host's /dev/null, checked to be it (CVE-2025-31133: the container's may be anything)."""
    fd = posix.open("/dev/null", posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    status = posix.fstat(fd)
    if status.st_mode & S_IFMT != S_IFCHR or status.st_rdev != posix.makedev(1, 3):
        raise OSError(EINVAL, "the host's /dev/null is not the null device", "/dev/null")
    stage.null_fd = fd


# What covers a masked file. Not MS_NODEV: it is a device, and reading it must give end of file.
_MASK = c.MOUNT_ATTR_RDONLY | c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NOEXEC


def mask(stage: Stage, paths: tuple[str, ...], label: str) -> None:
    """Hide files under the null device and directories under one empty read-only tmpfs."""
    empty = -1
    for path in paths:
        try:
            place = open_in_root(stage.root_fd, path, posix.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if posix.fstat(place).st_mode & S_IFMT != S_IFDIR:
            tree = m.clone_tree("", dirfd=stage.null_fd)
            m.set_attributes(tree, _MASK)
        elif empty < 0:
            # Attached first and copied later: kernels before 6.15 copy only what is in our mount tree.
            empty = _empty_directory(label)
            m.attach(empty, place)
            posix.close(place)
            continue
        else:
            tree = m.clone_tree("", dirfd=empty)
        m.attach(tree, place)
        posix.close(tree)
        posix.close(place)
    close_quietly(empty, stage.null_fd)
    stage.null_fd = -1


def _empty_directory(label: str) -> int:
    attributes = (
        c.MOUNT_ATTR_RDONLY | c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NODEV | c.MOUNT_ATTR_NOEXEC
    )
    fs = fsopen("tmpfs")
    try:
        fsconfig_string(fs, "source", "tmpfs")
        fsconfig_string(fs, "nr_inodes", "2")
        if label:
            fsconfig_string(fs, "context", label)
        fsconfig_flag(fs, "ro")
        fsconfig_create(fs)
        return fsmount(fs, attributes)
    finally:
        posix.close(fs)


def make_read_only(stage: Stage, paths: tuple[str, ...]) -> None:
    """Cover each path with a read-only copy of itself."""
    for path in paths:
        try:
            place = open_in_root(stage.root_fd, path, posix.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        tree = m.clone_tree("", dirfd=place, recursive=True)
        m.set_attributes(tree, c.MOUNT_ATTR_RDONLY, recursive=True)
        m.attach(tree, place)
        posix.close(tree)
        posix.close(place)


# --------------------------------------------------------------------------------- procfs, other roots


def have_proc(stage: Stage) -> None:
    """A procfs to write to: the one just mounted, or, without one in the spec, a detached one nobody sees."""
    if stage.proc_fd < 0:
        stage.proc_fd = m.new_filesystem("proc")
        verify_proc(stage.proc_fd)
