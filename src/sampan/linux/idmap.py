"""Writing uid_map and gid_map, by ourselves or by the setuid helpers, and user namespaces made to hold a map.

Sources: user_namespaces(7), newuidmap(1), subuid(5).
"""

from __future__ import annotations

import posix

from . import constants as c
from .paths import write_file
from .process import spawn, wait
from .syscalls import clone3

HELPERS = {
    "uid_map": ("/usr/bin/newuidmap", "/bin/newuidmap"),
    "gid_map": ("/usr/bin/newgidmap", "/bin/newgidmap"),
}


def write_maps(pid: int, uid_map: bytes, gid_map: bytes) -> None:
    """Give a process in a new user namespace its ids.

    Root writes both files. Anybody else may map only itself, after giving up setgroups(2); more goes
    through newuidmap and newgidmap, which know what subuid(5) grants.
    """
    for name, text in (("gid_map", gid_map), ("uid_map", uid_map)):
        if posix.geteuid() == 0:
            _write(pid, name, text)
        elif _is_only_own(name, text):
            if name == "gid_map":
                write_file(f"/proc/{pid}/setgroups", b"deny")
            write_file(f"/proc/{pid}/{name}", text)
        else:
            _by_helper(pid, name, text)


def _write(pid: int, name: str, text: bytes) -> None:
    try:
        write_file(f"/proc/{pid}/{name}", text)
    except PermissionError:
        # root of a user namespace that may not map these ids itself, but may be granted them
        _by_helper(pid, name, text)


def _is_only_own(name: str, text: bytes) -> bool:
    own = posix.geteuid() if name == "uid_map" else posix.getegid()
    rows = text.split()
    return len(rows) == 3 and int(rows[1]) == own and int(rows[2]) == 1


def _by_helper(pid: int, name: str, text: bytes) -> None:
    for path in HELPERS[name]:
        try:
            posix.stat(path)
        except OSError:
            continue
        argv = [path.rpartition("/")[2], str(pid), *text.decode().split()]
        code = wait(spawn(path, argv, {}, stderr=2))
        if code:
            raise OSError(1, f"{argv[0]} failed with exit status {code}")
        return
    raise OSError(1, f"{HELPERS[name][0]} is not installed and the id map needs it")


def namespace_with_maps(uid_map: bytes, gid_map: bytes) -> int:
    """A descriptor of a fresh user namespace that holds these maps and no process."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    pid, _ = clone3(c.CLONE_NEWUSER)
    if pid == 0:
        posix.close(writer)
        posix.read(reader, 1)  # until the parent is done with us
        posix._exit(0)
    try:
        write_maps(pid, uid_map, gid_map)
        return posix.open(f"/proc/{pid}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
    finally:
        posix.close(writer)
        posix.close(reader)
        posix.waitpid(pid, 0)
