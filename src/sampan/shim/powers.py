"""What a shim may do while its container runs: little, and everything only for the length of an exec or an update.

    adopted     effective set = KEPT; the permitted set stays, since an exec with --privileged is given all of it
    exec        effective set = permitted, until the child is forked
    update      the same: the v1 device controller asks for CAP_SYS_ADMIN

A defect in what a shim does all day (streams, log files, requests) then meets a kernel that refuses to mount, to trace,
to load, to change owners. Sources: capabilities(7), "Effect of user ID changes on capabilities", "Capability bounding set".
"""

from __future__ import annotations

from sampan.linux.constants import CAPS
from sampan.linux.syscalls import capget, capset

# Signals to processes of other users; files of other owners where root is mapped; pipes beyond a user's share of pages.
KEPT = sum(1 << CAPS.index(f"CAP_{name}") for name in ("KILL", "DAC_OVERRIDE", "SYS_RESOURCE"))


class Powers:
    """The effective capabilities of this process. `with powers:` raises all that is permitted."""

    __slots__ = ("_inheritable", "_permitted", "dropped")

    def __init__(self) -> None:
        self._permitted = self._inheritable = 0
        self.dropped = False

    def drop(self) -> None:
        """From now on KEPT is all there is outside of `with`."""
        _, self._permitted, self._inheritable = capget()
        self.dropped = True
        self._lower()

    def _lower(self) -> None:
        capset(self._permitted & KEPT, self._permitted, self._inheritable)

    def __enter__(self) -> None:
        if self.dropped:
            capset(self._permitted, self._permitted, self._inheritable)

    def __exit__(self, *_: object) -> None:
        if self.dropped:
            self._lower()
