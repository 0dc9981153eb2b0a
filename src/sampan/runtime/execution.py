"""Which file process.args[0] names inside the container, and replacing ourselves by it.

The search and its messages are those of Go's exec.LookPath, which engines match on. Links that leave the
container's root are refused: /proc/self/exe, /proc/self/fd/N and their like would run, and hand to the
container, the interpreter we run in (rule P6, CVE-2019-5736). That holds for the program, for the
interpreter of a script, for the loader an ELF file names.
"""

from __future__ import annotations

import posix
from _struct import unpack_from

from sampan.linux import constants as c
from sampan.linux.paths import S_IFDIR, S_IFMT, read_regular_in_root
from sampan.linux.syscalls import memfd, openat2, prepare_execve, run_prepared

from . import channel, springboard
from .channel import LaunchError, describe_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .steps import Stage

ENOENT, EACCES, ENOTDIR, ELOOP, EISDIR = 2, 13, 20, 40, 21
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_INTERPRETERS = 4  # fs/binfmt_script.c gives up at five
_PT_INTERP = 3


def variable(environ: list[str], name: str) -> str | None:
    """The last value of a variable in a list of NAME=value."""
    found = None
    prefix = name + "="
    for entry in environ:
        if entry.startswith(prefix):
            found = entry[len(prefix) :]
    return found


def find_executable(stage: Stage, name: str, environ: list[str]) -> None:
    """Set `stage.executable`; LaunchError in Go's words when there is none."""
    stage.executable = _search(name, environ)
    _refuse_magic_links(name, stage.executable, 0)


def _search(name: str, environ: list[str]) -> str:
    if "/" in name:
        try:
            number = _why_not(name)
        except OSError as error:
            number, text = describe_error(error)
            raise LaunchError(f'exec: "{name}": stat {name}: {text}', errno=number) from None
        if number:
            raise LaunchError(f'exec: "{name}": {_small(number)}', errno=number)
        return name
    path = variable(environ, "PATH")
    denied = 0
    for directory in (DEFAULT_PATH if path is None else path).split(":"):
        candidate = f"{directory or '.'}/{name}"
        try:
            number = _why_not(candidate)
        except OSError:
            continue
        if not number and name:
            return candidate
        if number == EACCES:
            denied = number
    if denied:
        raise LaunchError(f'exec: "{name}": {_small(denied)}', errno=denied)
    raise LaunchError(f'exec: "{name}": executable file not found in $PATH', errno=ENOENT)


def _small(number: int) -> str:
    text = posix.strerror(number)
    return text[:1].lower() + text[1:]


def _why_not(path: str) -> int:
    """0 for what could be executed, else an errno; OSError when it is not there."""
    mode = posix.stat(path).st_mode
    if mode & S_IFMT == S_IFDIR:
        return EISDIR
    return 0 if mode & 0o111 else EACCES


def _refuse_magic_links(name: str, path: str, depth: int) -> None:
    """Open without magic links: what opens only with them lies outside the container."""
    try:
        fd = openat2(
            c.AT_FDCWD, path, posix.O_RDONLY | posix.O_NONBLOCK, 0, c.RESOLVE_NO_MAGICLINKS
        )
    except OSError as error:
        if error.errno == ELOOP:
            raise LaunchError(f'exec: "{name}": {_small(EACCES)}', errno=EACCES) from None
        return  # not readable for us, or gone: execve will say
    try:
        following = _interpreter(fd)
    except OSError:
        following = ""
    finally:
        posix.close(fd)
    if following and depth < _MAX_INTERPRETERS:
        _refuse_magic_links(name, following, depth + 1)


def _interpreter(fd: int) -> str:
    """What the kernel will open besides: the `#!` line's program or the ELF file's loader."""
    head = posix.pread(fd, 256, 0)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n")[0].split()
        return words[0].decode("utf-8", "surrogateescape") if words else ""
    if not head.startswith(b"\x7fELF") or len(head) < 64 or head[4:6] != b"\x02\x01":
        return ""
    start, size, count = unpack_from("<Q", head, 32)[0], *unpack_from("<HH", head, 54)
    if size != 56 or count > 64:
        return ""
    table = posix.pread(fd, size * count, start)
    for offset in range(0, len(table) - size + 1, size):
        if unpack_from("<I", table, offset)[0] == _PT_INTERP:
            where, length = (
                unpack_from("<Q", table, offset + 8)[0],
                unpack_from("<Q", table, offset + 32)[0],
            )
            text = posix.pread(fd, min(length, 4096), where)
            return text.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return ""


def set_home(stage: Stage, environ: list[str], uid: int) -> None:
    """HOME from the container's /etc/passwd where the spec gives none, as runc does."""
    if not variable(environ, "HOME"):
        environ[:] = [entry for entry in environ if not entry.startswith("HOME=")]
        environ.append("HOME=" + home_of(stage.root_fd, uid))


def home_of(root_fd: int, uid: int) -> str:
    """The home of a user by the image's own passwd file, read as data (rule P2), "/" when it has none."""
    try:
        text = read_regular_in_root(root_fd, "/etc/passwd", 1 << 20)
    except OSError:
        return "/"
    wanted = str(uid).encode()
    for line in text.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == wanted:
            return fields[5].decode("utf-8", "replace") or "/"
    return "/"


def put_reaper_in_front(stage: Stage, argv: list[str]) -> None:
    """With --init: process 1 is our reaper, which runs the program that was found."""
    # Loaded by plan.py where it is wanted: here nothing can be looked for any more.
    from .reaper import ARGV0, reaper_elf

    program = reaper_elf(stage.executable, posix.uname().machine)
    stage.reaper_fd = memfd("docker-init", program, executable=True)
    argv[:0] = [ARGV0, "--"]


def put_springboard_under(stage: Stage) -> None:
    """Python does not execute the program itself: see springboard.py."""
    reader = springboard.prepare(stage)
    if reader >= 0:
        channel.send(stage.channel, channel.EXECUTING, stage.executable, (reader,))
        posix.close(reader)


def prepare(stage: Stage, argv: list[str], environ: list[str]) -> Any:
    """Everything execve needs as C arrays, so that after seccomp nothing is left but the call."""
    program = stage.reaper_fd if stage.reaper_fd >= 0 else stage.springboard_fd
    return prepare_execve(stage.executable, argv, environ, program)


def execute(stage: Stage, prepared: Any) -> NoReturn:
    try:
        springboard.let_report(stage)
        run_prepared(prepared)
    except OSError as error:
        number, text = describe_error(error)
        raise LaunchError(f"exec {stage.executable}: {text}", errno=number) from None
