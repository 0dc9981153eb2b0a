"""Starting the launcher: from the engine, which has threads, so by posix_spawn and not by fork.

The launcher runs from a sealed copy of the interpreter in a memfd. Its /proc/self/exe, and that of every shim and
of every init before its execve, is then a file that nobody can write, whatever a container does with it
(CVE-2019-5736; the interpreter on disk would be the host's /usr/bin/python3). The copy finds its library by argv[0].
"""

from __future__ import annotations

import fcntl
import os
import select
import time

from sampan import errors
from sampan.shim import protocol

_BOOT = "import sys; sys.path.insert(0, sys.argv[2]); from sampan.shim.launcher import main; main(sys.argv[1], sys.argv[3])"
_READY_FD = 3

# linux/fcntl.h and linux/memfd.h; fcntl has the seals only from Python 3.13 or so on
_F_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
_SEAL_EXEC = 0x20  # since Linux 6.3: the mode may not change either
_MFD_EXEC = 0x10  # since Linux 6.3: wanted where vm.memfd_noexec is 1


def start_launcher(run_dir: str, python: str, source: str, timeout: float) -> None:
    """A launcher listens on `<run_dir>/launcher.sock` afterwards. Of several engines starting one, one does it."""
    os.makedirs(run_dir, mode=0o700, exist_ok=True)
    deadline = time.monotonic() + timeout
    lock = os.open(
        f"{run_dir}/{protocol.LAUNCHER_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        _lock(lock, deadline)
        if not _answers(run_dir):
            _spawn(run_dir, python, source, deadline)
    finally:
        os.close(lock)


def identity(python: str, source: str) -> str:
    """Which code a launcher runs: another one than the engine's is replaced, so that an upgrade reaches it."""
    newest = 0
    for room in ("cgroups", "linux", "runtime", "shim"):
        with os.scandir(f"{source}/sampan/{room}") as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    newest = max(newest, entry.stat().st_mtime_ns)
    return f"{protocol.VERSION} {os.path.realpath(python)} {source} {newest}"


def _answers(run_dir: str) -> bool:
    from sampan.shim.channel import Channel

    try:
        Channel.connect(f"{run_dir}/{protocol.LAUNCHER_SOCKET}").close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _lock(fd: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise errors.Unavailable(
                    "another engine is starting the launcher of this run directory"
                ) from None
            time.sleep(0.01)


def _spawn(run_dir: str, python: str, source: str, deadline: float) -> None:
    executable = os.path.realpath(python)
    sealed = sealed_copy(executable)
    ready, told = os.pipe2(os.O_CLOEXEC)
    log = os.open(
        f"{run_dir}/launcher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        actions.append((os.POSIX_SPAWN_DUP2, told, _READY_FD))
        argv = [executable, "-I", "-S", "-c", _BOOT, run_dir, source, identity(python, source)]
        pid = os.posix_spawn(
            f"/proc/self/fd/{sealed}", argv, {}, file_actions=actions, setsid=True, setsigmask=[]
        )
        os.close(told)
        told = -1
        _await_ready(ready, pid, run_dir, deadline)
    finally:
        for fd in (sealed, ready, told, log, null):
            if fd >= 0:
                os.close(fd)


def _await_ready(ready: int, pid: int, run_dir: str, deadline: float) -> None:
    """The first child forks the launcher and ends, so that nobody has to wait for the launcher as a child."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
        raise errors.Internal(
            "the launcher did not start in time", hint=f"see {run_dir}/launcher.log"
        )
    word = os.read(ready, 16)
    os.waitpid(pid, 0)
    if word != b"ready":
        raise errors.Internal("the launcher did not start", hint=f"see {run_dir}/launcher.log")


def sealed_copy(path: str) -> int:
    """A memfd with the bytes of an executable that can never change again."""
    try:
        fd = os.memfd_create("sampan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError:  # EINVAL before Linux 6.3
        fd = os.memfd_create("sampan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb", buffering=0) as source:
            while os.sendfile(fd, source.fileno(), None, 1 << 24):
                pass
        os.fchmod(fd, 0o500)
        try:
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS | _SEAL_EXEC)
        except OSError:
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
