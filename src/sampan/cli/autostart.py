"""No engine answers at the default address: start one in the background, wait until it listens, say so once.

Two commands that find none at once are kept apart by a lock beside the socket; the second one then finds the first
one's engine. SAMPAN_AUTOSTART=0 turns all this off.
"""

from __future__ import annotations

import fcntl
import os
import time

from sampan.cli.failures import Failure
from sampan.cli.session import dial, getenv, warn

PATIENCE = 20.0


def wanted() -> bool:
    return getenv("SAMPAN_AUTOSTART").lower() not in ("0", "no", "false", "off")


def start(socket: str) -> None:
    """Start an engine that listens on `socket`, unless somebody else just did."""
    directory = os.path.dirname(socket)
    try:
        os.makedirs(directory, mode=0o711 if os.geteuid() == 0 else 0o700, exist_ok=True)
        lock = os.open(f"{directory}/autostart.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(
            f"cannot start an engine: {error.filename}: {(error.strerror or '').lower()}\n"
            "(name one with -H or SAMPAN_HOST, or start `sampan daemon` as a user who may)",
            status=125,
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(socket):
            return
        log = f"{directory}/daemon.log"
        process = _spawn(log)
        _wait(process, socket, log)
        warn(f"sampan: no engine was running, started one in the background (log: {log})")
    finally:
        os.close(lock)


def _answers(socket: str) -> bool:
    try:
        dial(socket).close()
    except OSError:
        return False
    return True


def _spawn(log: str) -> int:
    """The engine's pid: in a session of its own, with nothing of ours but the log."""
    from sampan.cli.daemon import command

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = command([])
        return os.posix_spawn(
            words[0],
            words,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(output)
        os.close(nothing)


def _wait(process: int, socket: str, log: str) -> None:
    end = time.monotonic() + PATIENCE
    pause = 0.005
    while not _answers(socket):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            raise Failure(
                f"the engine ended at once with status {code}; the end of {log}:\n{_tail(log)}",
                status=125,
            )
        if time.monotonic() > end:
            raise Failure(
                f"the engine does not listen on {socket} after {PATIENCE:g} s (log: {log})",
                status=125,
            )
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
