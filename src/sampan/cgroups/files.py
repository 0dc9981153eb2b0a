"""Reading and writing the little text files of a cgroup, and making and removing its directories.

Everything here is a raw system call on a string path: a container's start touches some thirty of these
files, and each layer of convenience (text mode, pathlib, generators) would cost as much as the kernel does.
Failures are `OSError` with the file's path, and with the text that the kernel refused.

Source: cgroups(7), Documentation/admin-guide/cgroup-v1/cgroups.rst, cgroup-v2.rst.
"""

from __future__ import annotations

import posix
from errno import EBUSY, EINTR, ENODEV, ENOENT, ESRCH
from time import sleep

READ_CHUNK = 65536
# A cgroup whose last task has just died stays busy until the kernel has unhooked it: a few milliseconds as
# a rule. Both figures are generous; the wait ends at the first try that succeeds.
REMOVE_TRIES = 40
REMOVE_PAUSE = 0.001


def write(path: str, text: str) -> None:
    """Write `text` in one write(2): a cgroup file takes exactly one value per call."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        while True:
            try:
                posix.write(fd, text.encode())
                return
            except OSError as error:
                if error.errno != EINTR:
                    raise OSError(
                        error.errno, f"write {text!r}: {posix.strerror(error.errno or 0)}", path
                    ) from None
    finally:
        posix.close(fd)


def read(path: str) -> str:
    """The whole file as text."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        chunks = []
        while chunk := posix.read(fd, READ_CHUNK):
            chunks.append(chunk)
    except OSError as error:
        raise OSError(error.errno, posix.strerror(error.errno or 0), path) from None
    finally:
        posix.close(fd)
    return b"".join(chunks).decode(errors="replace")


def read_or(path: str, default: str = "") -> str:
    """The file's text, or `default` where the kernel or the mount does not have it."""
    try:
        return read(path)
    except OSError:
        return default


def exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def make_directories(root: str, path: str) -> list[str]:
    """Make root + path with its parents; return the directories that are new, outermost first.

    The leaf is tried first: its parent nearly always exists. Anybody may read a cgroup, whatever the
    caller's umask, as everywhere else: a container's own user looks at its limits.
    """
    full = root + path
    umask = posix.umask(0o022)
    try:
        posix.mkdir(full, 0o755)
        return [full]
    except FileExistsError:
        return []
    except FileNotFoundError:
        return make_from_the_top(root, path)
    finally:
        posix.umask(umask)


def make_from_the_top(root: str, path: str) -> list[str]:
    made = []
    here = root
    for part in path.split("/"):
        if not part:
            continue
        here = f"{here}/{part}"
        try:
            posix.mkdir(here, 0o755)
            made.append(here)
        except FileExistsError:
            continue
    return made


def children(path: str) -> list[str]:
    """The child cgroups of `path`; none where it is gone."""
    try:
        with posix.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def walk(path: str) -> list[str]:
    """`path` and all cgroups below it, parents first."""
    found = [path]
    for child in children(path):
        found += walk(child)
    return found


def remove_tree(path: str, tries: int = REMOVE_TRIES) -> None:
    """Remove the cgroup and all below it; wait shortly for dying tasks. Gone already is success."""
    for attempt in range(tries):
        busy: OSError | None = None
        for directory in (path,) if not attempt else reversed(walk(path)):
            try:
                posix.rmdir(directory)
            except OSError as error:
                if error.errno in (ENOENT, ENODEV):
                    continue
                if error.errno != EBUSY:
                    raise
                busy = error
        if busy is None:
            return
        if attempt + 1 < tries:
            sleep(REMOVE_PAUSE * min(attempt + 1, 20))
    assert busy is not None
    raise busy


def pids_of(path: str, listing: str = "cgroup.procs") -> list[int]:
    """The processes in this very cgroup; zero (a process of another pid namespace) is left out."""
    try:
        text = read(f"{path}/{listing}")
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):
            return []
        raise
    return [int(line) for line in text.split() if line.isascii() and line.isdigit() and line != "0"]


def signal_each(pids: list[int], signal: int) -> None:
    """Signal every process; those that have ended meanwhile do not matter."""
    for pid in pids:
        try:
            posix.kill(pid, signal)
        except OSError as error:
            if error.errno != ESRCH:
                raise
