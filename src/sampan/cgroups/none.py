"""No cgroup at all: an engine without root on a host that lends it none.

Nothing is limited, counted or frozen. Which processes a container has is then read from /proc: the shim is a
subreaper, so that whatever a container leaves behind, in or out of a pid namespace of its own, stays below it.
"""

from __future__ import annotations

import posix

from sampan.linux.procfs import children, stat

from .stats import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

ENOTSUP = 95
SHIM = "sampan-shim"


class NoManager:
    """`Manager` without a cgroup. `pid` is the container's process 1, 0 while there is none."""

    needs_pid = False
    path = ""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def create(self, resources: dict[str, Any], *, pid: int = 0, strict: bool = False) -> list[str]:
        self.pid = pid
        return []

    def clone_fd(self) -> int:
        return -1

    def attach_self(self, *, born_inside: bool = False) -> None:
        """Nothing to join."""

    def attach(self, pid: int) -> None:
        """Nothing to join."""

    def apply(self, resources: dict[str, Any], *, strict: bool = False) -> list[str]:
        return []

    def freeze(self) -> None:
        self._refuse("freeze")

    def thaw(self) -> None:
        self._refuse("thaw")

    def frozen(self) -> bool:
        return False

    def pids(self, *, recursive: bool = True) -> list[int]:
        """Process 1, the execs beside it, and whatever came of them: all that the shim has below it."""
        try:
            shim = stat(self.pid).parent if self.pid else 0
            is_shim = shim > 1 and stat(shim).comm == SHIM
        except (OSError, ValueError):
            return []
        tops = children(shim) if is_shim else [self.pid] * bool(self.pid)
        return sorted(found for top in tops for found in _with_descendants(top))

    def kill_all(self, signal: int = 9) -> None:
        for pid in self.pids():
            try:
                posix.kill(pid, signal)
            except ProcessLookupError:
                pass

    def stats(self) -> Stats:
        found = Stats(version=2)
        found.pids = len(self.pids())
        return found

    def oom_watch(self) -> NoReturn:
        raise ValueError("no cgroup, no memory controller")

    def oom_kills(self) -> int:
        return 0

    def exists(self) -> bool:
        return False

    def paths(self) -> dict[str, str]:
        return {}

    def destroy(self) -> None:
        """Nothing to remove."""

    def _refuse(self, what: str) -> NoReturn:
        raise OSError(ENOTSUP, f"cannot {what}: this engine has no cgroups (it runs without root)")


def _with_descendants(pid: int) -> list[int]:
    found = [pid]
    for child in children(pid):
        found += _with_descendants(child)
    return found
