"""An engine that dies at the N-th thing it does to the world: `python -m tests.support.crashing COUNTER DAEMON-ARGUMENTS...`

Every step that another process or a later start could see is counted, just before it happens: files opened for
writing, renamed, linked, removed, synced; directories; statements that change the store; mounts and namespaces;
messages with descriptors or to the kernel's network. COUNTER is a file of eight bytes that the test shares with the engine:
0 counts nothing; a positive number goes down by one at each step and at 0 kills the process as `kill -9` would.

`Countdown` is the test's end of it. Sources: docs.python.org/3/library/audit_events.html, PEP 578.
"""

from __future__ import annotations

import mmap
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALWAYS = frozenset({
    "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr", "os.removexattr", "os.posix_spawn", "os.fork", "socket.sendmsg", "socket.sendto",
    "socket.bind", "shutil.rmtree",
})  # fmt: skip
SYSTEM_CALLS = frozenset({
    "mount", "umount2", "fsopen", "fsconfig", "fsmount", "move_mount", "open_tree", "mount_setattr", "unshare", "setns",
    "clone3", "mknodat", "mkdirat", "unlinkat", "renameat2", "linkat", "symlinkat", "fchmodat", "fchownat", "bpf",
})  # fmt: skip
READING = ("select", "pragma", "begin")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Countdown:
    """The eight bytes, from either side."""

    def __init__(self, path: Path | str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, 8)
        self._page = mmap.mmap(fd, 8)
        os.close(fd)

    @property
    def left(self) -> int:
        return int.from_bytes(self._page[:], "little")

    @left.setter
    def left(self, steps: int) -> None:
        self._page[:] = steps.to_bytes(8, "little")


def install(countdown: Countdown) -> None:
    """From now on this process dies when the countdown ends."""
    engine = os.getpid()

    def step() -> None:
        left = countdown.left
        if left:
            countdown.left = left - 1
            if left == 1:
                os.kill(engine, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)  # a process that the engine forked

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ALWAYS:
            step()
        elif event == "open":
            if isinstance(arguments[2], int) and arguments[2] & WRITES:
                step()

    sys.addaudithook(heard)
    _wrap_system_calls(step)
    _wrap_syncs(step)
    _trace_statements(step)


def _wrap_system_calls(step: Callable[[], None]) -> None:
    from sampan.linux import syscalls

    call = syscalls.call

    def counted(name: str, *arguments: Any, **more: Any) -> int:
        if name in SYSTEM_CALLS:
            step()
        return call(name, *arguments, **more)

    syscalls.call = counted


def _wrap_syncs(step: Callable[[], None]) -> None:
    for name in ("fsync", "fdatasync"):
        sync: Callable[[int], None] = getattr(os, name)

        def counted(fd: int, sync: Callable[[int], None] = sync) -> None:
            step()
            sync(fd)

        setattr(os, name, counted)


def _trace_statements(step: Callable[[], None]) -> None:
    connect = sqlite3.connect

    def statement(text: str) -> None:
        if not text.lstrip().lower().startswith(READING):
            step()

    def traced(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **more)
        connection.set_trace_callback(statement)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]


if __name__ == "__main__":
    install(Countdown(sys.argv[1]))
    from sampan.daemon import main

    sys.exit(main(sys.argv[2:]))
