"""Lists of CPUs and of memory nodes as the kernel writes them, and the memory policy that is made of one.

Sources: cpuset(7) "List format"; set_mempolicy(2); runtime-spec config-linux.md "Memory policy".
"""

from __future__ import annotations

from sampan.errors import InvalidArgument
from sampan.linux import constants as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_NUMBER = 65535
_NO_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
_SOME_NODES = ("MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED_MANY")


def parse_list(text: str, what: str = "invalid CPU list") -> frozenset[int]:
    """`0-3,7` as numbers; bounded, so that 0-2147483647 costs nothing. `what` begins the refusal."""
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        if not part:
            continue
        first, dash, last = part.partition("-")
        if not (
            first.isascii()
            and first.isdigit()
            and (not dash or (last.isascii() and last.isdigit()))
        ):
            raise InvalidArgument(f"{what} {text!r}")
        low, high = int(first[:10]), int((last or first)[:10])
        if low > high or high > MAX_NUMBER:
            raise InvalidArgument(f"{what} {text!r}")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def memory_policy(policy: Mapping[str, Any]) -> tuple[int, int]:
    """(mode with its flags, bit mask of nodes) for set_mempolicy(2); InvalidArgument in runc's words."""
    field = "linux.memoryPolicy"
    name = policy.get("mode") or ""
    if name not in c.MPOL_MODES:
        raise InvalidArgument(f"{field}.mode: invalid memory policy mode {name!r}")
    mode = c.MPOL_MODES[name]
    for flag in policy.get("flags") or ():
        if flag not in c.MPOL_FLAGS:
            raise InvalidArgument(f"{field}.flags: invalid memory policy flag {flag!r}")
        mode |= c.MPOL_FLAGS[flag]
    nodes = parse_list(policy.get("nodes") or "", f"{field}.nodes: invalid memory policy nodes")
    if name in _NO_NODES and nodes:
        raise InvalidArgument(f"{field}.nodes: {name} mode requires 0 nodes but got {len(nodes)}")
    if name in _SOME_NODES and not nodes:
        raise InvalidArgument(f"{field}.nodes: {name} mode requires at least one node")
    return mode, sum(1 << node for node in nodes)
