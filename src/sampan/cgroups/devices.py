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

import posix

from sampan.linux import bpf

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
    Rule(
        True, "c", 10, 200, "rwm"
    ),  # net/tun: of use only with CAP_NET_ADMIN, and VPN images make it themselves
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


# ---------------------------------------------------------------------------------- v2's program

# linux/bpf.h: struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor}, access_type being
# access << 16 | type
TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}
R0, R1, R_WANTED, R_TYPE, R_MAJOR, R_MINOR = 0, 1, 2, 3, 4, 5
ALL_ACCESS = 7


def program(rules: Sequence[Rule]) -> bytes:
    """The list as eBPF: the last rule is asked first, and each settles the access bits that it names.

    wanted = access bits of the request
    for each rule, last first, that matches type, major and minor:
        deny    any wanted bit in it -> 0
        allow   takes its bits off `wanted`; nothing left -> 1
    -> 0, or 1 where the list begins with "allow everything"
    """
    first, rest = rules[0], rules[1:]
    out = [
        bpf.extended(bpf.LDX_W, R_WANTED, R1, 0),
        bpf.extended(bpf.ALU32_MOV_X, R_TYPE, R_WANTED),
        bpf.extended(bpf.ALU32_AND, R_TYPE, immediate=0xFFFF),
        bpf.extended(bpf.ALU32_RSH, R_WANTED, immediate=16),
        bpf.extended(bpf.LDX_W, R_MAJOR, R1, 4),
        bpf.extended(bpf.LDX_W, R_MINOR, R1, 8),
    ]
    for rule in reversed(rest):
        out += rule_block(rule)
    out += answer(first.allow)
    return b"".join(out)


def answer(allow: bool) -> list[bytes]:
    return [bpf.extended(bpf.ALU64_MOV_K, R0, immediate=int(allow)), bpf.extended(bpf.EXIT)]


def rule_block(rule: Rule) -> list[bytes]:
    """Tests that jump past the block where the rule does not match, then what the rule says."""
    bits = sum(ACCESS[letter] for letter in rule.access)
    if rule.allow:
        action = [
            bpf.extended(bpf.ALU32_AND, R_WANTED, immediate=ALL_ACCESS & ~bits),
            bpf.extended(bpf.JNE, R_WANTED, offset=2, immediate=0),
            *answer(True),
        ]
    else:
        action = [
            bpf.extended(bpf.JSET, R_WANTED, offset=1, immediate=bits),
            bpf.extended(bpf.JA, offset=2),
            *answer(False),
        ]
    tests = [(R_TYPE, TYPES[rule.kind])]
    if rule.major != ANY:
        tests.append((R_MAJOR, rule.major))
    if rule.minor != ANY:
        tests.append((R_MINOR, rule.minor))
    block = []
    for position, (register, value) in enumerate(tests):
        past = len(tests) - position - 1 + len(action)
        block.append(bpf.extended(bpf.JNE, register, offset=past, immediate=value))
    return block + action


def attach_program(directory: str, rules: Sequence[Rule]) -> None:
    """Make `rules` the cgroup's device program, in one step where another is there already.

    Programs of parents stay in force: the kernel asks all of them, and all must agree.
    """
    cgroup = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    old: list[int] = []
    new = -1
    try:
        old = bpf.attached_device_programs(cgroup)
        new = bpf.load_device_program(program(rules))
        replaced = len(old) == 1 and replace(cgroup, new, old[0])
        if not replaced:
            bpf.attach_device_program(cgroup, new)
            for program_fd in old:
                bpf.detach_device_program(cgroup, program_fd)
    finally:
        for fd in (cgroup, new, *old):
            if fd >= 0:
                posix.close(fd)


def replace(cgroup: int, new: int, old: int) -> bool:
    """BPF_F_REPLACE came with Linux 5.6; before it the new one is added and the old one taken off."""
    try:
        bpf.attach_device_program(cgroup, new, replace_fd=old)
    except OSError:
        return False
    return True
