"""Being told when a log grows: one inotify descriptor for any number of followers.

    watch = LogWatch()
    loop.add_reader(watch.fileno(), watch.dispatch)
    token = watch.add(path, callback)      # callback() after every change of the file or its directory
    watch.remove(token)

The kernel allows a user 128 inotify instances, so a process shares one. The directory is watched, not the file:
a new file after rotation, or one that does not exist yet, reports through it too. Writes that come while a callback is
due are one callback; a follower reads until there is nothing and waits again, so no change is missed.
"""

from __future__ import annotations

import posix
import struct

from sampan.linux import constants as c
from sampan.linux.syscalls import inotify_add_watch, inotify_init, inotify_remove_watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MASK = c.IN_MODIFY | c.IN_CREATE | c.IN_MOVED_TO
_EVENT = struct.Struct("iIII")


class LogWatch:
    """Callbacks by directory."""

    def __init__(self) -> None:
        self._fd = inotify_init()
        self._callbacks: dict[
            int, dict[object, Callable[[], None]]
        ] = {}  # watch -> token -> callback

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, callback: Callable[[], None]) -> object:
        """Call back when the log at `path` may have grown. FileNotFoundError without its directory."""
        directory = path.rpartition("/")[0] or "/"
        watch = inotify_add_watch(self._fd, directory, _MASK)
        token = (watch, object())
        self._callbacks.setdefault(watch, {})[token] = callback
        return token

    def remove(self, token: object) -> None:
        """No more calls for this token; twice is nothing."""
        for watch, callbacks in self._callbacks.items():
            if callbacks.pop(token, None) is not None:
                if not callbacks:
                    self._forget(watch)
                return

    def _forget(self, watch: int) -> None:
        del self._callbacks[watch]
        try:
            inotify_remove_watch(self._fd, watch)
        except OSError:  # the directory was deleted, and the watch with it
            pass

    def dispatch(self) -> None:
        """Read what happened and call back, each follower once."""
        changed: dict[int, None] = {}
        while True:
            try:
                data = posix.read(self._fd, 64 * 1024)
            except BlockingIOError:
                break
            position = 0
            while position < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size + length
                if mask & c.IN_Q_OVERFLOW:
                    changed.update(dict.fromkeys(self._callbacks))
                changed[watch] = None
        for watch in changed:
            for callback in list(self._callbacks.get(watch, {}).values()):
                callback()

    def close(self) -> None:
        posix.close(self._fd)
        self._callbacks.clear()
