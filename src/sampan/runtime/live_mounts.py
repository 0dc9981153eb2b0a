"""crun's `mounts add` and `mounts remove`: changing the mounts of a container that runs.

A mount is made detached by us, outside, with our rights; a child that has joined the container's mount
namespace attaches it, by descriptor and inside the container's root.
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
    create_in_root,
    mkdir_all_in_root,
    open_in_root,
    open_root,
)
from sampan.linux.process import open_pidfd, set_dumpable
from sampan.linux.syscalls import clone3, setns

from . import channel
from .channel import LaunchError, describe_error
from .init import close_except, forbid_imports
from .options import parse_options
from .validate import SPEC, check_types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.spec.runtime import Mount

    from .container import Container


def add(container: Container, entries: Any) -> None:
    """Mount each entry of a list of OCI mounts."""
    checked = _checked(entries)
    trees = [_detached(entry) for entry in checked]

    def work() -> None:
        root = open_root("/")
        for entry, tree in zip(checked, trees, strict=True):
            directory = posix.fstat(tree).st_mode & S_IFMT == S_IFDIR
            make = mkdir_all_in_root if directory else create_in_root
            place = make(root, entry["destination"])
            m.attach(tree, place)
            posix.close(place)

    try:
        _inside(container, work, trees)
    finally:
        close_quietly(*trees)


def remove(container: Container, entries: Any) -> None:
    """Unmount each destination, last first."""
    checked = _checked(entries)

    def work() -> None:
        root = open_root("/")
        for entry in reversed(checked):
            place = open_in_root(root, entry["destination"], posix.O_PATH)
            m.detach(f"/proc/self/fd/{place}")
            posix.close(place)

    _inside(container, work, [])


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


def _detached(entry: Mount) -> int:
    options = parse_options(entry)
    source = entry.get("source", "")
    if options.bind:
        tree = m.clone_tree(source, recursive=options.recursive)
        if options.set or options.clear:
            m.set_attributes(tree, options.set, options.clear)
        return tree
    kind = entry.get("type", "")
    return m.new_filesystem(
        kind, [*options.superblock, *options.data], options.set, source=source or kind
    )


def _inside(container: Container, work: Callable[[], None], keep: list[int]) -> None:
    """Do something in the container's mount namespace, in a child that ends afterwards."""
    state = container.state
    pidfd = open_pidfd(state.pid, state.start_time)
    ours, theirs = socketpair()
    pid, _ = clone3(0)
    if pid == 0:
        try:
            forbid_imports()
            set_dumpable(False)
            close_except({0, 1, 2, pidfd, theirs.fileno(), *keep})
            setns(pidfd, c.CLONE_NEWNS)
            work()
            channel.send(theirs, channel.READY)
        except BaseException as error:  # noqa: BLE001 - the boundary of the process
            number, text = describe_error(error)
            channel.send_failure(theirs, number=number, step="change mounts", text=text)
        posix._exit(0)
    theirs.close()
    posix.close(pidfd)
    kind, text, _ = channel.receive(ours)
    ours.close()
    posix.waitpid(pid, 0)
    if kind == channel.FAILED:
        raise channel.parse_failure(text)
    if kind != channel.READY:
        raise LaunchError("the process that changes the mounts ended unexpectedly")
