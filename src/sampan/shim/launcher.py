"""The LAUNCHER: a warm, tiny, single-threaded process that does one thing: fork shims.

    engine --Spawn + control socket--> launcher --clone3--> shim (main.py) on that socket

It holds no state and no secrets: its environment is empty, its memory is not dumpable, what it reads is an op and a
descriptor. Killing it loses nothing: shims go on (they lead their own sessions and take orders on their own
sockets), and the next engine that finds nobody listening starts another one.

Everything that a shim or an init will ever import is imported here, once; then importing is switched off for
good, so that no process of ours can be made to load a module from a container's root (CVE-2019-14271), and the heap is
frozen, so that children share its pages instead of copying them.
"""

from __future__ import annotations

import gc
import posix
import sys

from sampan.linux import constants as c
from sampan.linux.fds import close_quietly
from sampan.linux.process import fork, set_dumpable, set_name
from sampan.linux.syscalls import clone3, close_range
from sampan.shim import main as shim_main
from sampan.shim import protocol
from sampan.shim.channel import Channel, accept, listen
from sampan.shim.failure import complain
from sampan.shim.loop import POLLIN, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn
else:
    import _signal

READY_FD = 3  # starting.py dup'ed the write end of its pipe there
FORSAKEN_CHECK_S = 30.0


def main(run_dir: str, identity: str) -> NoReturn:
    """Detach, listen, say so, serve. Called by the command line that starting.py makes."""
    if fork():
        posix._exit(0)  # the starter waits for this one; the launcher is nobody's child
    set_dumpable(False)
    set_name("sampan-launcher")
    posix.chdir("/")
    posix.umask(0o077)
    close_range(READY_FD + 1)
    settle()
    launcher = Launcher(run_dir, identity)
    posix.write(READY_FD, b"ready")
    posix.close(READY_FD)
    launcher.loop.run()
    posix._exit(0)


def settle() -> None:
    """No import, no garbage collection, no page of the heap written by bookkeeping from here on."""
    shim_main.warm_up()
    gc.collect()
    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    gc.disable()
    gc.freeze()


class Launcher:
    """The listening socket and the engines that are connected."""

    def __init__(self, run_dir: str, identity: str) -> None:
        self._identity = identity
        self.loop = Loop()
        self._path = f"{run_dir}/{protocol.LAUNCHER_SOCKET}"
        self._listener = listen(self._path)
        self._listener.setblocking(False)
        self._place = _inode(self._path)
        self._engines: dict[int, Channel] = {}
        # Ended shims vanish by themselves: nobody asks for their status (waitpid(2), SA_NOCLDWAIT).
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        self.loop.watch(self._listener.fileno(), POLLIN, self._accept)
        self.loop.later(FORSAKEN_CHECK_S, self._look_around)

    def close(self) -> None:
        """Let go of the listening socket; its file stays."""
        self._listener.close()

    def _accept(self, _revents: int) -> None:
        try:
            engine = accept(self._listener)
        except OSError:  # it went away again, or we are out of descriptors for a moment
            return
        fd = engine.fileno()
        self._engines[fd] = engine
        self.loop.watch(fd, POLLIN, lambda _revents: self._serve(engine))

    def _serve(self, engine: Channel) -> None:
        try:
            received = engine.receive(wait=False)
        except BlockingIOError:
            return
        except OSError:
            received = None
        if received is None:
            self._leave(engine)
            return
        message, fds = received
        try:
            op = message.get("op")
            if op == "spawn" and len(fds) == 1 and message.get("v") == protocol.VERSION:
                self._spawn(fds[0])
            elif op == "identify":
                engine.send({"identity": self._identity}, wait=False)
            elif op == "stop":
                self._stop()
        finally:
            close_quietly(*fds)

    def _leave(self, engine: Channel) -> None:
        fd = engine.fileno()
        self.loop.unwatch(fd)
        self._engines.pop(fd, None)
        engine.close()
        self._end_if_forsaken()

    def _look_around(self) -> None:
        self.loop.later(FORSAKEN_CHECK_S, self._look_around)
        self._end_if_forsaken()

    def _end_if_forsaken(self) -> None:
        """No engine is connected and none can come: the socket's file is gone, or another launcher's."""
        if not self._engines and _inode(self._path) != self._place:
            self.loop.stop()

    def _spawn(self, control: int) -> None:
        """The engine learns of a failure by end of file on the control socket."""
        try:
            pid, _ = clone3(0, exit_signal=c.SIGNALS["SIGCHLD"])
        except OSError:  # EAGAIN, ENOMEM
            return
        if pid == 0:
            self._become_shim(control)

    def _become_shim(self, control: int) -> NoReturn:
        status = 1
        try:
            close_range(3, control - 1) if control > 3 else None
            close_range(control + 1)
            shim_main.run(control)
            status = 0
        except BaseException as error:  # noqa: BLE001 - the last place to say it
            complain(error)
        finally:
            posix._exit(status)

    def _stop(self) -> None:
        try:
            posix.unlink(self._path)
        except FileNotFoundError:
            pass
        self.loop.stop()


def _inode(path: str) -> tuple[int, int]:
    """Which file this is; (0, 0) where there is none."""
    try:
        stat = posix.stat(path)
    except OSError:
        return 0, 0
    return stat.st_dev, stat.st_ino
