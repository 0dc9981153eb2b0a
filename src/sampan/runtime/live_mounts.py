"""Changing the mounts of a container that runs: the engine's `container mount add`, crun's `mounts add`.

    US     open_tree / fsopen     a detached mount, made with our rights from a source that we opened
    CHILD  setns(mount namespace) resolves the destination as the container sees it, once, to a descriptor
           move_mount             onto that descriptor: no path is looked up twice

The container runs meanwhile and may swap whatever it likes: a destination leads nowhere but into its own mount
namespace, procfs is never covered (CVE-2019-16884), and only what is mounted at the very place that was named is
taken away again, so that a renamed directory cannot turn a removal against a masked path.
Sources: open_tree(2), move_mount(2), setns(2), proc_pid_mountinfo(5), proc_pid_fdinfo(5) (`mnt_id`).
"""

from __future__ import annotations

import posix

from sampan.errors import InvalidArgument
from sampan.linux import constants as c
from sampan.linux import mounts as m
from sampan.linux.fds import close_quietly, socketpair
from sampan.linux.paths import (
    S_IFDIR,
    S_IFMT,
    clean,
    create_in_root,
    is_beneath,
    mkdir_all_in_root,
    open_in_root,
    open_root,
    read_file,
)
from sampan.linux.process import open_pidfd, set_dumpable
from sampan.linux.procfs import parse_mountinfo
from sampan.linux.syscalls import clone3, filesystem_type, setns

from . import channel
from .channel import LaunchError, describe_error
from .init import close_except, forbid_imports
from .options import parse_options
from .validate import SPEC, check_types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from sampan.spec.runtime import Mount

    from .options import MountOptions

EINVAL, EPERM = 22, 1
_PATIENCE_S = (
    20.0  # a destination on a file system that the container itself serves may never answer
)
_KILL = 9
_SYSTEM = ("/proc", "/sys", "/dev")  # where the masks are


def add(pid: int, start_time: int, entries: Any, sources: Sequence[int] = ()) -> None:
    """Mount each entry of a list of OCI mounts, all or none.

    `sources`, where given, are descriptors of what the binds show, one an entry, -1 for those without.
    """
    checked = _checked(entries)
    trees: list[int] = []
    try:
        for index, entry in enumerate(checked):
            trees.append(_detached(entry, sources[index] if sources else -1))
        _inside(pid, start_time, lambda view: _attach_all(view, checked, trees), trees)
    finally:
        close_quietly(*trees)


def remove(pid: int, start_time: int, entries: Any, sources: Sequence[int] = ()) -> None:
    """Unmount each destination, last first.

    Where a destination leads through a symlink, what is mounted there has to be what the descriptor in
    `sources` holds.
    """
    checked = _checked(entries)
    shown = [posix.fstat(fd) if fd >= 0 else None for fd in sources] or [None] * len(checked)

    def work(view: View) -> None:
        for entry, source in zip(reversed(checked), reversed(shown), strict=True):
            view.detach(entry["destination"], source)

    _inside(pid, start_time, work, [])


# ------------------------------------------------------------------------------------------ outside


def _checked(entries: Any) -> list[Mount]:
    if not isinstance(entries, list):
        raise InvalidArgument("mounts: expected a list")
    check_types(entries, SPEC["mounts"], "mounts")
    for index, entry in enumerate(entries):
        if not (entry.get("destination") or "").startswith("/"):
            raise InvalidArgument(
                f"mounts[{index}].destination: {entry.get('destination')!r} is not an absolute path"
            )
    return entries


def _detached(entry: Mount, source_fd: int) -> int:
    options = parse_options(entry)
    source = entry.get("source", "")
    kind = entry.get("type", "")
    if options.bind and source_fd >= 0:
        tree = m.clone_tree("", dirfd=source_fd, recursive=options.recursive)
    elif options.bind:
        tree = m.clone_tree(source, recursive=options.recursive)
    else:
        return m.new_filesystem(
            kind, [*options.superblock, *options.data], options.set, source=source or kind
        )
    try:
        _set_attributes(tree, options)
    except BaseException:
        posix.close(tree)
        raise
    return tree


def _set_attributes(tree: int, options: MountOptions) -> None:
    if options.set or options.clear:
        m.set_attributes(tree, options.set, options.clear)
    if options.recursive_set or options.recursive_clear:
        m.set_attributes(tree, options.recursive_set, options.recursive_clear, recursive=True)
    for flags, recursive in options.propagation:
        m.set_attributes(tree, propagation=flags, recursive=recursive)


# ------------------------------------------------------------------------------------------- inside


class View:
    """The container's mounts as the child that joined them sees them, and its own /proc from outside.

    A procfs inside belongs to another pid namespace and knows nothing of the child, and it is the container's.
    """

    def __init__(self, proc: int) -> None:
        self.proc = proc
        self.root = open_root("/")

    def place(self, path: str, *, directory: bool) -> int:
        """The mount point, made where it is missing, and allowed to be covered."""
        make = mkdir_all_in_root if directory else create_in_root
        fd = make(self.root, path)
        is_directory = posix.fstat(fd).st_mode & S_IFMT == S_IFDIR
        if is_directory != directory:
            raise OSError(EINVAL, "a directory and a file do not go on each other", path)
        here, root = posix.fstat(fd), posix.fstat(self.root)
        if (here.st_dev, here.st_ino) == (root.st_dev, root.st_ino):
            raise OSError(EINVAL, "the container's root cannot be covered by a mount", path)
        if filesystem_type(fd) == c.PROC_SUPER_MAGIC or is_beneath(clean(path), "/proc"):
            raise OSError(EPERM, "cannot be mounted because it is inside /proc", path)
        return fd

    def detach(self, path: str, source: posix.stat_result | None = None) -> None:
        """Unmount what is mounted at this path: if the kernel too calls its place so, or if it shows `source`."""
        place = open_in_root(self.root, path, posix.O_PATH)
        point = self._mount_point(place)
        if point != clean(path):
            here = posix.fstat(place)
            same = source and (here.st_dev, here.st_ino) == (source.st_dev, source.st_ino)
            if not point or not same or any(is_beneath(point, top) for top in _SYSTEM):
                raise OSError(EINVAL, "nothing is mounted there", path)
        posix.fchdir(posix.open("fd", posix.O_PATH | posix.O_DIRECTORY, dir_fd=self.proc))
        m.detach(str(place))
        posix.close(place)

    def _mount_point(self, fd: int) -> str:
        """The path of the mount that a descriptor is the root of; '' where it lies deeper in one."""
        facts = read_file(f"fdinfo/{fd}", dir_fd=self.proc).decode()
        number = next(
            int(line.split()[1]) for line in facts.splitlines() if line.startswith("mnt_id:")
        )
        text = read_file("mountinfo", dir_fd=self.proc).decode("utf-8", "surrogateescape")
        for entry in parse_mountinfo(text):
            if entry.mount_id == number:
                named = posix.readlink(f"fd/{fd}", dir_fd=self.proc)
                return entry.path if named == entry.path else ""
        return ""


def _attach_all(view: View, entries: list[Mount], trees: list[int]) -> None:
    done: list[str] = []
    try:
        for entry, tree in zip(entries, trees, strict=True):
            directory = posix.fstat(tree).st_mode & S_IFMT == S_IFDIR
            place = view.place(entry["destination"], directory=directory)
            m.attach(tree, place)
            posix.close(place)
            done.append(entry["destination"])
    except BaseException:
        for path in reversed(done):
            view.detach(path)
        raise


def _inside(pid: int, start_time: int, work: Callable[[View], None], keep: list[int]) -> None:
    """Do something in a container's mount namespace, in a child that ends afterwards."""
    pidfd = open_pidfd(pid, start_time)
    ours, theirs = socketpair()
    child, _ = clone3(0)
    if child == 0:
        try:
            forbid_imports()
            set_dumpable(False)
            posix.umask(0)
            proc = posix.open("/proc/self", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
            close_except({0, 1, 2, pidfd, proc, theirs.fileno(), *keep})
            setns(pidfd, c.CLONE_NEWNS)
            work(View(proc))
            channel.send(theirs, channel.READY)
        except BaseException as error:  # noqa: BLE001 - the boundary of the process
            number, text = describe_error(error)
            path = getattr(error, "filename", None)
            channel.send_failure(
                theirs,
                number=number,
                step="change mounts",
                text=f"{path}: {text}" if isinstance(path, str) else text,
            )
        posix._exit(0)
    theirs.close()
    posix.close(pidfd)
    ours.settimeout(_PATIENCE_S)
    try:
        kind, text, _ = channel.receive(ours)
    except TimeoutError:
        posix.kill(child, _KILL)
        raise LaunchError("the container's file system does not answer") from None
    finally:
        ours.close()
    posix.waitpid(child, 0)
    if kind == channel.FAILED:
        raise channel.parse_failure(text)
    if kind != channel.READY:
        raise LaunchError("the process that changes the mounts ended unexpectedly")


__all__ = ["add", "remove"]
