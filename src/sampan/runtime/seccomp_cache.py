"""Compiled filters, kept: a profile is turned into a program once, not once per container.

    default_program(bounding, ...)     the default profile for a bounding set; remembered in this process (the
                                       launcher: one compilation for all its containers)
    program_for(profile, machine, directory)   a profile out of a config.json; remembered in this process, and
                                       in `directory` for the next one (sampan-oci: a process per container)

A file is named by the hash of profile, machine and compiler version, so it can never be stale; a directory that others
can write to is not used. Programs with a listener are not kept in files: they carry more than bytes. The compiler is
imported at a miss only, it and its tables being the larger part of the cost.
"""

from __future__ import annotations

import posix

from sampan.linux.constants import CAPS
from sampan.linux.fastjson import dumps
from sampan.linux.paths import make_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Changes whenever the compiler or the tables do: old files are then simply not found.
COMPILER = b"sampan seccomp 2\n"
MAGIC = b"BPFc"
HEADER = len(MAGIC) + 4
_LETS_SPRINGBOARD = 1 << 31  # beside the flags, which end at bit 5
MAX_FILE = HEADER + 8 * 4096

_default_programs: dict[tuple[int, str, str, bool], Program] = {}
_programs: dict[str, Program] = {}
MAX_REMEMBERED = 64


class Program:
    """A compiled filter, ready for seccomp(2), and what its installer must know."""

    __slots__ = (
        "flags",
        "instructions",
        "lets_springboard",
        "listener_metadata",
        "listener_path",
        "unknown",
        "uses_notify",
    )

    def __init__(
        self,
        *,
        instructions: bytes,
        flags: int,
        uses_notify: bool,
        listener_path: str,
        listener_metadata: str,
        unknown: tuple[str, ...],
        lets_springboard: bool = False,
    ) -> None:
        self.instructions = instructions
        self.flags = flags
        self.uses_notify = (
            uses_notify  # install with NEW_LISTENER, send the descriptor to listener_path
        )
        self.listener_path = listener_path
        self.listener_metadata = listener_metadata
        self.unknown = unknown  # names that no architecture of the profile has
        self.lets_springboard = lets_springboard  # the calls of springboard.py are allowed


def default_program(bounding: int, *, machine: str, kernel: str, compat: bool = True) -> Program:
    """The default profile's program; `bounding` is a mask of capability numbers."""
    key = (bounding, machine, kernel, compat)
    program = _default_programs.get(key)
    if program is None:
        from .seccomp import compile_profile
        from .seccomp_default import default_profile

        names = [name for number, name in enumerate(CAPS) if bounding >> number & 1]
        program = compile_profile(default_profile(names, machine, kernel, compat=compat), machine)
        _default_programs[key] = program
    return program


def program_for(profile: Mapping[str, Any], machine: str, directory: str = "") -> Program:
    """The program of any profile. Raises ValueError where the profile is wrong."""
    text = dumps(profile)
    key = machine + text
    program = _programs.get(key)
    if program is not None:
        return program
    path = file_name(directory, key) if directory else ""
    program = read_program(path) if path else None
    if program is None:
        from .seccomp import compile_profile

        program = compile_profile(profile, machine)
        if path and not program.listener_path:
            write_program(path, program)
    if len(_programs) < MAX_REMEMBERED:
        _programs[key] = program
    return program


def file_name(directory: str, key: str) -> str:
    from _blake2 import blake2b  # hashlib would import OpenSSL: 2 ms

    digest = blake2b(COMPILER + key.encode("utf-8", "replace"), digest_size=32)
    return f"{directory}/{digest.hexdigest()}.bpf"


def read_program(path: str) -> Program | None:
    """The stored program, or None where there is none that can be trusted."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if not ours_alone(posix.fstat(fd)):
            return None
        data = posix.read(fd, MAX_FILE + 1)
    except OSError:
        return None
    finally:
        posix.close(fd)
    body = data[HEADER:]
    if data[: len(MAGIC)] != MAGIC or not body or len(body) % 8 or len(data) > MAX_FILE:
        return None
    word = int.from_bytes(data[len(MAGIC) : HEADER], "little")
    return Program(
        instructions=body,
        flags=word & ~_LETS_SPRINGBOARD,
        lets_springboard=bool(word & _LETS_SPRINGBOARD),
        uses_notify=False,
        listener_path="",
        listener_metadata="",
        unknown=(),
    )


def ours_alone(status: posix.stat_result) -> bool:
    return status.st_uid == posix.geteuid() and not status.st_mode & 0o022


def write_program(path: str, program: Program) -> None:
    """Best effort: a full disk or a read-only directory costs the next process a millisecond."""
    directory = path.rpartition("/")[0]
    temporary = f"{path}.{posix.getpid()}"
    word = program.flags | (_LETS_SPRINGBOARD if program.lets_springboard else 0)
    data = MAGIC + word.to_bytes(4, "little") + program.instructions
    try:
        make_directories(directory, 0o700)
        if not ours_alone(posix.stat(directory)):
            return
        fd = posix.open(
            temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600
        )
        try:
            complete = posix.write(fd, data) == len(data)
        finally:
            posix.close(fd)
        if complete:
            posix.rename(temporary, path)
        else:
            posix.unlink(temporary)
    except OSError:
        return
