"""Device rules: which device nodes a container may make, read and write.

OCI gives a list where the last matching rule wins, and nothing matches -> denied. v1 takes the same list, line by
line ("c 1:3 rwm" into devices.allow or devices.deny), starting from "deny everything"; v2 has no files for
it, so the list becomes a small eBPF program (`linux/bpf.py`) that the kernel asks at each open and mknod.

`DEFAULT_RULES` are the nodes that every container has whatever its rules say (config-linux.md "Default
Devices" asks for the nodes; a node that cannot be opened would be no use): mknod of anything, since making a node
harms nobody who may not open it, and the pseudo devices.

Source: runtime-spec config-linux.md "Allowed Device list"; cgroup-v1/devices.rst; bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

ANY = -1


class Rule:
    """Allow or deny `access` (of r, w, m) to devices of `kind` ('a' all, 'b', 'c'); -1 is any number."""

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, allow: bool, kind: str, major: int, minor: int, access: str) -> None:
        self.allow = allow
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    def describe(self) -> str:
        """The line as devices.allow and devices.deny take it, and devices.list shows it."""
        if self.is_everything():
            return "a *:* rwm"
        major = "*" if self.major == ANY else str(self.major)
        minor = "*" if self.minor == ANY else str(self.minor)
        return f"{self.kind} {major}:{minor} {self.access}"

    def is_everything(self) -> bool:
        return self.kind == "a"

    def __repr__(self) -> str:
        return f"Rule({'allow' if self.allow else 'deny'} {self.describe()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and (self.allow, self.describe()) == (
            other.allow,
            other.describe(),
        )

    def __hash__(self) -> int:
        return hash((self.allow, self.describe()))


DEFAULT_RULES = (
    Rule(True, "c", ANY, ANY, "m"),
    Rule(True, "b", ANY, ANY, "m"),
    Rule(True, "c", 1, 3, "rwm"),  # null
    Rule(True, "c", 1, 5, "rwm"),  # zero
    Rule(True, "c", 1, 7, "rwm"),  # full
    Rule(True, "c", 1, 8, "rwm"),  # random
    Rule(True, "c", 1, 9, "rwm"),  # urandom
    Rule(True, "c", 5, 0, "rwm"),  # tty
    Rule(True, "c", 5, 1, "rwm"),  # console
    Rule(True, "c", 5, 2, "rwm"),  # ptmx
    Rule(True, "c", 136, ANY, "rwm"),  # pts/*
)
DENY_ALL = Rule(False, "a", ANY, ANY, "rwm")


def parse_rule(row: dict[str, Any]) -> Rule:
    """One OCI LinuxDeviceCgroup. Raises ValueError naming what is wrong with it."""
    kind = row.get("type") or "a"
    access = row.get("access") or "rwm"
    if kind not in ("a", "b", "c"):
        raise ValueError(f"invalid device cgroup rule type: {kind!r} (a, b or c)")
    if not set(access) <= set("rwm"):
        raise ValueError(f"invalid device cgroup rule access: {access!r} (letters of rwm)")
    access = "".join(letter for letter in "rwm" if letter in access)
    numbers = []
    for key in ("major", "minor"):
        number = row.get(key)
        if number is not None and (
            isinstance(number, bool) or not isinstance(number, int) or number < ANY
        ):
            raise ValueError(f"invalid device cgroup rule {key}: {number!r}")
        numbers.append(ANY if number is None else number)
    if kind == "a":
        # The kernel and runc read 'a' as everything, whatever numbers stand beside it.
        return Rule(bool(row.get("allow")), "a", ANY, ANY, "rwm")
    return Rule(bool(row.get("allow")), kind, numbers[0], numbers[1], access)


def effective(rows: Sequence[dict[str, Any]] | None) -> list[Rule]:
    """The container's whole list: deny all, its own rules in order, the default devices last.

    Rules before the last "everything" rule cannot matter and are dropped. After "allow everything"
    the defaults add nothing.
    """
    rules = [DENY_ALL, *(parse_rule(row) for row in rows or ())]
    start = max(at for at, rule in enumerate(rules) if rule.is_everything())
    rules = rules[start:]
    if not rules[0].allow:
        rules += DEFAULT_RULES
    return rules


def v1_writes(rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """(file, text) rows for a devices cgroup."""
    rows: list[tuple[str, str]] = []
    for rule in rules:
        file = "devices.allow" if rule.allow else "devices.deny"
        row = (file, "a" if rule.is_everything() else rule.describe())
        if row not in rows:
            rows.append(row)
    return rows


def v1_listing(rules: Sequence[Rule]) -> set[str] | None:
    """What devices.list will show after these rules, or None where that cannot be told simply."""
    if len(rules) == 1 and rules[0].allow:
        return {"a *:* rwm"}
    if any(not rule.allow for rule in rules[1:]) or rules[0].allow:
        return None
    return {rule.describe() for rule in rules[1:]}
