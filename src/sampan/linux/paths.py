"""Paths inside a root that may be hostile: resolved by the kernel, beneath a descriptor, never by joining strings.

    open_in_root        any object: symlinks are followed, but inside the root (openat2 RESOLVE_IN_ROOT)
    mkdir_all_in_root   a directory, made with its parents where missing; the O_PATH descriptor of it
    create_in_root      a file likewise (a mount point for a file)
    read_regular_in_root  a small regular file, whatever lies there instead (FIFO, device, endless file)
    open_proc, open_in_proc  the real procfs and nothing mounted over it

Why: CVE-2021-30465, CVE-2024-45310, CVE-2025-31133, CVE-2025-52881 and a dozen more are one mistake, a
path that was checked and then used again. Here what was opened is what is used.
Sources: openat2(2); Documentation/filesystems/path-lookup.rst.
"""

from __future__ import annotations

import posix

from . import constants as c
from .syscalls import filesystem_type, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | bytes

IN_ROOT = c.RESOLVE_IN_ROOT | c.RESOLVE_NO_MAGICLINKS
IN_PROC = c.RESOLVE_BENEATH | c.RESOLVE_NO_XDEV | c.RESOLVE_NO_MAGICLINKS
_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY
_MAX_LINKS = 40  # as the kernel's MAXSYMLINKS
_PROC_ROOT_INODE = 1  # include/linux/proc_ns.h: PROC_ROOT_INO
S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR = 0o170000, 0o100000, 0o040000, 0o120000, 0o020000

ENOENT, EEXIST, ENOTDIR, ELOOP = 2, 17, 20, 40


def _text(path: Path) -> str:
    return path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path


def _error(number: int, path: str) -> OSError:
    return OSError(number, posix.strerror(number), path)


def open_root(path: Path) -> int:
    """The descriptor of a trusted directory, to resolve untrusted paths beneath."""
    return posix.open(path, _DIRECTORY | posix.O_CLOEXEC)


def open_in_root(root_fd: int, path: Path, flags: int, mode: int = 0) -> int:
    """Open `path` as a process chrooted to `root_fd` would, magic links refused."""
    return openat2(root_fd, path if path else ".", flags, mode, IN_ROOT)


def mkdir_all_in_root(root_fd: int, path: Path, mode: int = 0o755) -> int:
    """An O_PATH descriptor of the directory, which is made with its parents where it is missing.

    A dangling symlink on the way (`/var/run -> /run` without `/run`) leads to its target inside the
    root, and that is made: images rely on it.
    """
    try:
        return open_in_root(root_fd, path, _DIRECTORY)
    except FileNotFoundError:
        return _walk(root_fd, _text(path), mode, None)


def create_in_root(root_fd: int, path: Path, mode: int = 0o644, directory_mode: int = 0o755) -> int:
    """An O_PATH descriptor of the file, which is made empty, with its parents, where it is missing."""
    try:
        return open_in_root(root_fd, path, posix.O_PATH)
    except FileNotFoundError:
        return _walk(root_fd, _text(path), directory_mode, mode)


def _walk(root_fd: int, path: str, directory_mode: int, file_mode: int | None) -> int:
    """Go down name by name, holding each directory, so that `..` is the one we came from."""
    held = [posix.dup(root_fd)]
    todo = path.split("/")[::-1]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(held) > 1:
                    posix.close(held.pop())
                continue
            is_file = file_mode is not None and not any(todo)
            child = _open_or_make(held[-1], name, file_mode if is_file else None, directory_mode)
            kind = posix.fstat(child).st_mode & S_IFMT
            if kind == S_IFLNK:
                links += 1
                target = posix.readlink(b"", dir_fd=child)
                posix.close(child)
                if links > _MAX_LINKS:
                    raise _error(ELOOP, path)
                if target.startswith(b"/"):
                    while len(held) > 1:
                        posix.close(held.pop())
                todo += _text(target).split("/")[::-1]
                continue
            held.append(child)
            if kind != S_IFDIR and (any(todo) or file_mode is None):
                raise _error(ENOTDIR, path)
        return held.pop()
    finally:
        for fd in held:
            posix.close(fd)


def _open_or_make(parent: int, name: str, file_mode: int | None, directory_mode: int) -> int:
    look = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
    for _ in range(64):  # somebody may remove between our two calls; not for ever
        try:
            return posix.open(name, look, dir_fd=parent)
        except FileNotFoundError:
            pass
        try:
            if file_mode is None:
                posix.mkdir(name, directory_mode, dir_fd=parent)
            else:
                make = posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
                posix.close(posix.open(name, make | posix.O_WRONLY, file_mode, dir_fd=parent))
        except FileExistsError:
            pass
    raise _error(ENOENT, name)


def read_regular_in_root(root_fd: int, path: Path, limit: int = 10 << 20) -> bytes:
    """The bytes of a regular file of an image; OSError when it is anything else or over the limit.

    O_NONBLOCK so that a FIFO named /etc/passwd does not stop us for ever (both dockerd 20.10 and
    HEAD hang there), S_ISREG so that /dev/zero is refused, the limit for CVE-2024-9676.
    """
    flags = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY
    fd = open_in_root(root_fd, path, flags)
    try:
        status = posix.fstat(fd)
        if status.st_mode & S_IFMT != S_IFREG:
            raise OSError(22, "not a regular file", _text(path))
        parts: list[bytes] = []
        left = limit + 1
        while left > 0 and (chunk := posix.read(fd, min(left, 65536))):
            parts.append(chunk)
            left -= len(chunk)
        if left <= 0:
            raise OSError(27, f"file is larger than {limit} bytes", _text(path))
        return b"".join(parts)
    finally:
        posix.close(fd)


def is_beneath(path: str, parent: str) -> bool:
    """Lexically: is the clean absolute `path` the clean absolute `parent` or below it?"""
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def clean(path: str) -> str:
    """`path` without `.`, `..`, doubled and trailing slashes, as Go's filepath.Clean does it."""
    rooted = path.startswith("/")
    names: list[str] = []
    for name in path.split("/"):
        if name in ("", "."):
            continue
        if name != "..":
            names.append(name)
        elif names and names[-1] != "..":
            names.pop()
        elif not rooted:
            names.append(name)
    text = "/".join(names)
    return "/" + text if rooted else text or "."


# ------------------------------------------------------------------------------------------- procfs


def open_proc() -> int:
    """A descriptor of /proc that is verified to be the root of a procfs (CVE-2019-16884, -2025-52881)."""
    fd = posix.open("/proc", _DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    try:
        verify_proc(fd)
    except BaseException:
        posix.close(fd)
        raise
    return fd


def verify_proc(fd: int) -> None:
    """OSError unless `fd` is the root directory of a procfs."""
    if filesystem_type(fd) != c.PROC_SUPER_MAGIC or posix.fstat(fd).st_ino != _PROC_ROOT_INODE:
        raise OSError(18, "not a procfs", "/proc")


def open_in_proc(proc_fd: int, path: str, flags: int) -> int:
    """Open beneath a verified procfs; a mount on the way (a forged file) is refused with EXDEV."""
    return openat2(proc_fd, path.lstrip("/"), flags, 0, IN_PROC)


def write_in_proc(proc_fd: int, path: str, data: bytes) -> None:
    """Write once, as kernel files want it."""
    fd = open_in_proc(proc_fd, path, posix.O_WRONLY)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


def write_file(
    path: Path, data: bytes, flags: int = 0, mode: int = 0o644, dir_fd: int | None = None
) -> None:
    """Write a kernel file (or a file of our own) in one write(2)."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC | flags, mode, dir_fd=dir_fd)
    try:
        posix.write(fd, data)
    except OSError as error:
        error.filename = _text(path)
        raise
    finally:
        posix.close(fd)


def read_file(path: Path, limit: int = 16 << 20, dir_fd: int | None = None) -> bytes:
    """The bytes of a trusted file (a kernel file, or one of ours)."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=dir_fd)
    try:
        parts: list[bytes] = []
        total = 0
        while chunk := posix.read(fd, 65536):
            parts.append(chunk)
            total += len(chunk)
            if total > limit:
                raise OSError(27, f"file is larger than {limit} bytes", _text(path))
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        posix.close(fd)


def replace_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one, whole."""
    temporary = f"{path}.{posix.getpid()}.tmp"
    fd = posix.open(
        temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, mode
    )
    try:
        view = memoryview(data)
        while view:
            view = view[posix.write(fd, view) :]
    finally:
        posix.close(fd)
    posix.rename(temporary, path)


def make_directories(path: str, mode: int = 0o755) -> None:
    """A trusted directory with its parents, each made where missing."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        make_directories(parent, mode)
        try:
            posix.mkdir(path, mode)
        except FileExistsError:
            return


def exists(path: Path) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def remove_tree(path: str) -> None:
    """Remove a trusted directory of ours with all that is in it; gone already is fine."""
    try:
        names = posix.listdir(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        posix.unlink(path)
        return
    for name in names:
        child = f"{path}/{name}"
        try:
            if posix.lstat(child).st_mode & S_IFMT == S_IFDIR:
                remove_tree(child)
            else:
                posix.unlink(child)
        except FileNotFoundError:
            pass
    try:
        posix.rmdir(path)
    except FileNotFoundError:
        pass
