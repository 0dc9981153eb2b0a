r"""An OCI seccomp profile as the classic BPF program that the kernel runs at each system call.

    compile_profile(profile, machine) -> Program(instructions, flags, listener_path, ...)

        load arch
        is it x86_64?  no -> next architecture      A wrong architecture ends in KILL_PROCESS.
        load number
        balanced tree of "number >= k?"             9 tests for 470 numbers, not 350: neighbours with
           /            \                           the same answer are one interval
        answer       answer or argument tests

What a profile leaves open, and how peers' users expect it:

 * Rules of one call are asked strictest first (kill, trap, errno, notify, trace, log, allow); a rule that
   only repeats the default is left out, as runc does. So an allow-list may carry exceptions.
 * Conditions of one rule must all hold. When two of them name the same argument, each becomes
   a rule of its own (runc, crun and youki agree on that, and profiles rely on it).
 * A number newer than all that the profile names gets ENOSYS where the default would be an error or a kill: C libraries
   probe new calls and fall back on ENOSYS only. Numbers below 424, where the tables of
   all architectures met, are never "newer".
 * socketcall(2) and ipc(2) carry other calls by number: an unconditional rule for `connect` holds for
   socketcall(3) too. Their arguments lie in memory, out of a filter's reach.

Source: seccomp(2); runtime-spec config-linux.md "Seccomp"; linux/seccomp.h, linux/net.h, linux/ipc.h.
"""

from __future__ import annotations

from sampan.linux import constants as c
from sampan.linux.bpf import (
    ALU_AND_K,
    JMP_JA,
    JMP_JEQ_K,
    JMP_JGE_K,
    JMP_JGT_K,
    LD_W_ABS,
    RET_K,
    assemble_classic,
)
from sampan.linux.syscall_table import (
    ARCHITECTURES,
    ELSEWHERE,
    SPECIAL_FROM,
    X32_BIT,
    native_architecture,
    numbers,
)

from . import springboard
from .seccomp_cache import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sampan.linux.bpf import Instruction
    from sampan.linux.syscall_table import Architecture

    Code = list[Instruction]
    Rows = list[tuple[int, Code]]  # (first number, what to do from there on), ascending
    Target = Code | int  # an answer, or the address of code that is there

EPERM = 1
ENOSYS = 38
MAX_ERRNO = 4095
LAST_OF_OLD_NUMBERS = 423
ALL_ONES = 0xFFFFFFFF

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
OFFSET_NUMBER = 0
OFFSET_ARCH = 4
OFFSET_ARGS = 16
REACH = 253  # of a conditional jump's 255, less room for a long jump in between

# action -> (value for the kernel, strictness: the order in which rules are asked, carries an errno)
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": (c.SECCOMP_RET_KILL_PROCESS, 0, False),
    "SCMP_ACT_KILL_THREAD": (c.SECCOMP_RET_KILL_THREAD, 1, False),
    "SCMP_ACT_KILL": (c.SECCOMP_RET_KILL_THREAD, 1, False),
    "SCMP_ACT_TRAP": (c.SECCOMP_RET_TRAP, 2, False),
    "SCMP_ACT_ERRNO": (c.SECCOMP_RET_ERRNO, 3, True),
    "SCMP_ACT_NOTIFY": (c.SECCOMP_RET_USER_NOTIF, 4, False),
    "SCMP_ACT_TRACE": (c.SECCOMP_RET_TRACE, 5, True),
    "SCMP_ACT_LOG": (c.SECCOMP_RET_LOG, 6, False),
    "SCMP_ACT_ALLOW": (c.SECCOMP_RET_ALLOW, 7, False),
}
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # the filter goes to a process with one thread: nothing to do
    "SECCOMP_FILTER_FLAG_LOG": c.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": c.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": c.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}
OPERATORS = frozenset(
    (
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    )
)
# linux/net.h SYS_*; linux/ipc.h
SOCKETCALL = {
    "socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7,
    "socketpair": 8, "send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13,
    "setsockopt": 14, "getsockopt": 15, "sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19,
    "sendmmsg": 20,
}  # fmt: skip
IPC = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13,
    "msgctl": 14, "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip


class Condition:
    """One comparison of one argument."""

    __slots__ = ("index", "operator", "value", "value_two")

    def __init__(self, index: int, operator: str, value: int, value_two: int = 0) -> None:
        self.index = index
        self.operator = operator
        self.value = value
        self.value_two = value_two


class Rule:
    """An answer for some calls, under conditions that must all hold (none: always)."""

    __slots__ = ("answer", "conditions", "names", "strictness")

    def __init__(
        self,
        names: tuple[str, ...],
        answer: int,
        strictness: int,
        conditions: tuple[Condition, ...],
    ) -> None:
        self.names = names
        self.answer = answer
        self.strictness = strictness
        self.conditions = conditions


# ------------------------------------------------------------------------------- reading a profile


def compile_profile(profile: Mapping[str, Any], machine: str) -> Program:
    """The program for a machine (uname -m). Raises ValueError naming what is wrong with the profile."""
    default, default_strictness = read_action(
        profile.get("defaultAction"), profile.get("defaultErrnoRet"), "defaultErrnoRet"
    )
    if default == c.SECCOMP_RET_USER_NOTIF:
        raise ValueError("SCMP_ACT_NOTIFY cannot be used as default action")
    rules = read_rules(profile.get("syscalls") or (), default)
    uses_notify = any(rule.answer == c.SECCOMP_RET_USER_NOTIF for rule in rules)
    listener_path = profile.get("listenerPath") or ""
    if uses_notify and not listener_path:
        raise ValueError("SCMP_ACT_NOTIFY needs a listenerPath")
    newer = c.SECCOMP_RET_ERRNO | ENOSYS if default_strictness in (0, 1, 3) else default
    architectures = read_architectures(
        profile.get("architectures") or (), native_architecture(machine)
    )
    return Program(
        instructions=assemble_classic(whole_program(architectures, rules, default, newer)),
        flags=read_flags(profile.get("flags") or ()),
        uses_notify=uses_notify,
        listener_path=listener_path,
        listener_metadata=profile.get("listenerMetadata") or "",
        unknown=unknown_names(architectures, rules),
        lets_springboard=lets_through(springboard.CALLS, rules, default),
    )


def lets_through(calls: tuple[str, ...], rules: list[Rule], default: int) -> bool:
    """Are these calls allowed whatever their arguments? `rules` are those that differ from the default."""
    free = (c.SECCOMP_RET_ALLOW, c.SECCOMP_RET_LOG)
    for call in calls:
        own = [rule for rule in rules if call in rule.names]
        if any(rule.answer not in free for rule in own):
            return False
        if default not in free and all(rule.conditions for rule in own):
            return False
    return True


def read_action(action: Any, errno: Any, field: str = "errnoRet") -> tuple[int, int]:
    """(kernel's value, strictness). An errno where the action has none is an error, by the specification."""
    if action not in ACTIONS:
        raise ValueError(f"invalid seccomp action: {action!r}")
    value, strictness, carries_errno = ACTIONS[action]
    if errno is None:
        return value | (EPERM if carries_errno else 0), strictness
    if not carries_errno:
        raise ValueError(f"seccomp action {action} does not take an {field}")
    if isinstance(errno, bool) or not isinstance(errno, int) or not 0 <= errno <= MAX_ERRNO:
        raise ValueError(f"invalid seccomp {field}: {errno!r}")
    return value | errno, strictness


def read_rules(rows: Any, default: int) -> list[Rule]:
    rules = []
    for row in rows:
        answer, strictness = read_action(row.get("action"), row.get("errnoRet"))
        names = row.get("names") or ()
        if not names:
            raise ValueError("a seccomp rule names no system call")
        for name in names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"{name!r} is not a valid syscall")
        if answer == c.SECCOMP_RET_USER_NOTIF and "write" in names:
            raise ValueError("SCMP_ACT_NOTIFY cannot be used for the write syscall")
        conditions = tuple(read_condition(arg) for arg in row.get("args") or ())
        if answer == default:
            continue
        split = len({condition.index for condition in conditions}) < len(conditions)
        alternatives = [(condition,) for condition in conditions] if split else [conditions]
        rules += [
            Rule(tuple(names), answer, strictness, alternative) for alternative in alternatives
        ]
    return rules


def read_condition(arg: Mapping[str, Any]) -> Condition:
    index, operator = arg.get("index", 0), arg.get("op")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= 5:
        raise ValueError(f"invalid seccomp argument index: {index!r} (0 to 5)")
    if operator not in OPERATORS:
        raise ValueError(f"invalid seccomp operator: {operator!r}")
    numbers_given = []
    for key in ("value", "valueTwo"):
        number = arg.get(key, 0)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 64:
            raise ValueError(f"invalid seccomp {key}: {number!r}")
        numbers_given.append(number)
    return Condition(index, operator, *numbers_given)


def read_architectures(names: Any, native: str) -> list[Architecture]:
    """The profile's architectures that this machine can run; its native one always."""
    if native not in ARCHITECTURES:
        raise ValueError(f"seccomp filters are not supported on {native}")
    wanted = {native}
    for name in names:
        short = str(name).removeprefix("SCMP_ARCH_").lower()
        if short == "native" or short in ELSEWHERE:
            continue
        if short not in ARCHITECTURES or not str(name).startswith("SCMP_ARCH_"):
            raise ValueError(f"invalid seccomp architecture: {name!r}")
        wanted.add(short)
    return [
        arch for arch in ARCHITECTURES.values() if arch.name in wanted and arch.native == native
    ]


def read_flags(names: Any) -> int:
    flags = 0
    for name in names:
        if name not in FLAGS:
            raise ValueError(f"seccomp flag {name!r} is not known")
        flags |= FLAGS[name]
    return flags


def unknown_names(architectures: list[Architecture], rules: list[Rule]) -> tuple[str, ...]:
    """Names that mean nothing here: no error, since profiles name the calls of many machines."""
    tables = [numbers(arch.name) for arch in architectures]
    names = {name for rule in rules for name in rule.names}
    return tuple(sorted(name for name in names if not any(name in table for table in tables)))


# --------------------------------------------------------------------------- rules by call number


def rules_by_number(arch: Architecture, rules: list[Rule]) -> dict[int, list[Rule]]:
    """Number -> its rules, strictest first; what an unconditional rule hides is left out."""
    table = numbers(arch.name)
    found: dict[int, list[Rule]] = {}
    for rule in rules:
        for name in rule.names:
            number = table.get(name)
            if number is not None:
                found.setdefault(number, []).append(rule)
            if not rule.conditions:
                add_multiplexed(found, table, name, rule)
    return {number: in_order(rows) for number, rows in found.items()}


def add_multiplexed(
    found: dict[int, list[Rule]], table: dict[str, int], name: str, rule: Rule
) -> None:
    for carrier, calls in (("socketcall", SOCKETCALL), ("ipc", IPC)):
        number = table.get(carrier)
        if number is not None and name in calls:
            condition = Condition(0, "SCMP_CMP_EQ", calls[name])
            found.setdefault(number, []).append(
                Rule((name,), rule.answer, rule.strictness, (condition,))
            )


def in_order(rows: list[Rule]) -> list[Rule]:
    if len(rows) == 1:
        return rows
    kept = []
    for rule in sorted(rows, key=lambda row: row.strictness):
        kept.append(rule)
        if not rule.conditions:
            break
    if (
        len(kept) > 1
        and all(rule.answer == kept[-1].answer for rule in kept)
        and not kept[-1].conditions
    ):
        return kept[-1:]
    return kept


def intervals(arch: Architecture, rules: list[Rule], default: int, newer: int) -> Rows:
    """(first number, code) rows that cover all numbers of one calling convention, ascending."""
    by_number = rules_by_number(arch, rules)
    table = numbers(arch.name)
    named = [table[name] for rule in rules for name in rule.names if name in table]
    newest = max((number for number in named if number < SPECIAL_FROM), default=0)
    newest = max(newest, LAST_OF_OLD_NUMBERS)
    default_code, newer_code = [ret(default)], [ret(newer)]
    codes: dict[int, Code] = {
        number: call_code(arch, rows, default) for number, rows in by_number.items()
    }
    for number in table.values():
        if number >= SPECIAL_FROM:
            codes.setdefault(number, default_code)
    if arch.native == "s390x":
        # Large numbers arrive through a call 0 that stays 0 when the kernel does not know them.
        codes.setdefault(0, newer_code)
    rows: Rows = []
    expected = 0
    for number in [*sorted(codes), 1 << 32]:
        if expected < number:
            add_gap(rows, expected, number, newest, default_code, newer_code)
        if number < 1 << 32:
            rows.append((number, codes[number]))
            expected = number + 1
    return merged(rows)


def add_gap(
    rows: Rows,
    start: int,
    end: int,
    newest: int,
    default_code: Code,
    newer_code: Code,
) -> None:
    """Numbers without a rule: the default up to the newest that the profile knows, ENOSYS above."""
    if start <= newest:
        rows.append((start, default_code))
    if end > newest + 1:
        rows.append((max(start, newest + 1), newer_code))


def merged(rows: Rows) -> Rows:
    kept: Rows = []
    for start, code in rows:
        if not kept or kept[-1][1] != code:
            kept.append((start, code))
    return kept


# ------------------------------------------------------------------------------------ code


def whole_program(
    architectures: list[Architecture], rules: list[Rule], default: int, newer: int
) -> Code:
    by_name = {arch.name: arch for arch in architectures}
    out = Emitter()
    kill = [ret(c.SECCOMP_RET_KILL_PROCESS)]
    entries: list[tuple[int, int]] = []
    for arch in architectures:
        if arch.name == "x32":
            continue  # shares x86_64's audit number, so it is part of that block
        rows = intervals(arch, rules, default, newer)
        mask = 0
        if arch.name == "x86_64":
            if "x32" in by_name:
                rows = overlaid(rows, intervals(by_name["x32"], rules, default, newer))
                mask = ALL_ONES ^ X32_BIT
            else:
                rows = without_x32(rows, newer)
        entries.append((arch.audit, out.block(rows, mask)))
    wrong: Target = kill
    for audit, entry in reversed(entries):
        wrong = out.branch(JMP_JEQ_K, audit, entry, wrong)
    out.append(load(OFFSET_ARCH))
    return out.program()


def overlaid(rows: Rows, x32_rows: Rows) -> Rows:
    """x86_64's and x32's answers in one search, x32's bit being masked off before it.

    Both conventions number the same calls alike, but for x32's moved ones, which lie where x86_64 has none.
    """
    below = [row for row in rows if row[0] < SPECIAL_FROM]
    at_border = [code for start, code in x32_rows if start <= SPECIAL_FROM][-1]
    above = [row for row in x32_rows if row[0] > SPECIAL_FROM]
    return merged([*below, (SPECIAL_FROM, at_border), *above])


def without_x32(rows: Rows, newer: int) -> Rows:
    """A kill from x32's bit on. -1 is what a tracer writes to skip a call: no convention, so no kill."""
    killed = [ret(c.SECCOMP_RET_KILL_PROCESS)]
    return merged([*rows, (X32_BIT, killed), (ALL_ONES, [ret(newer)])])


class Emitter:
    """Writes a program from its end to its beginning: all jumps go forward, so each target is known.

    An instruction is addressed by its distance from the end. A jump reaches 255 instructions; an answer
    further off is written again nearby, and a piece of code further off is reached by a long jump.
    """

    __slots__ = ("answers", "reversed")

    def __init__(self) -> None:
        self.reversed: Code = []
        self.answers: dict[tuple[Instruction, ...], int] = {}

    def append(self, instruction: Instruction) -> int:
        self.reversed.append(instruction)
        return len(self.reversed) - 1

    def program(self) -> Code:
        return self.reversed[::-1]

    def block(self, rows: Rows, mask: int) -> int:
        """The search of one architecture; returns where it begins."""
        first = self.place(self.search(rows))
        if first != len(self.reversed) - 1:
            self.append((JMP_JA, 0, 0, len(self.reversed) - 1 - first))
        if mask:
            self.append((ALU_AND_K, 0, 0, mask))
        return self.append(load(OFFSET_NUMBER))

    def search(self, rows: Rows) -> Target:
        """A balanced search for the row that the loaded number lies in."""
        if len(rows) == 1:
            return rows[0][1]
        middle = len(rows) // 2
        above = self.search(rows[middle:])
        below = self.search(rows[:middle])
        return self.branch(JMP_JGE_K, rows[middle][0], above, below)

    def branch(self, jump: int, value: int, true: Target, false: Target) -> int:
        true_at = self.place(true)
        false_at = self.place(false)
        if len(self.reversed) - true_at > REACH:
            true_at = self.place(true)  # the false side was long; this adds one instruction at most
        here = len(self.reversed)
        return self.append((jump, here - true_at - 1, here - false_at - 1, value))

    def place(self, target: Target) -> int:
        """The target's address, near enough for a jump from the next instructions."""
        here = len(self.reversed)
        if isinstance(target, int):
            at = target
        else:
            at = self.answers.get(tuple(target), -1)
            if at < 0 or (len(target) == 1 and here - at > REACH):
                self.reversed += target[::-1]
                at = self.answers[tuple(target)] = len(self.reversed) - 1
                return at
        if here - at <= REACH:
            return at
        return self.append((JMP_JA, 0, 0, here - at - 1))


def call_code(arch: Architecture, rules: list[Rule], default: int) -> Code:
    """Each rule's tests in turn; the first whose conditions all hold answers."""
    code: Code = []
    for rule in rules:
        if not rule.conditions:
            return [*code, ret(rule.answer)]
        code += rule_code(arch, rule)
    return [*code, ret(default)]


def rule_code(arch: Architecture, rule: Rule) -> Code:
    """Tests that fall through to the answer while they hold, and jump past it when one does not."""
    code: Code = [ret(rule.answer)]
    for condition in reversed(rule.conditions):
        code = [*condition_code(arch, condition, len(code)), *code]
    return code


def condition_code(arch: Architecture, condition: Condition, miss: int) -> Code:
    """Code that goes on behind itself where the condition holds, and `miss` further where not.

    Arguments are 64 bits and the machine has 32, so both halves are compared, the high one first; a 32-bit
    architecture has no high half. At most six conditions of six instructions: short jumps do.
    """
    low_at, high_at = halves(arch, condition.index)
    low, high = condition.value & ALL_ONES, condition.value >> 32
    operator = condition.operator
    if operator == "SCMP_CMP_MASKED_EQ":
        return masked_code(arch, condition, miss)
    if operator in ("SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_NE"):
        # the opposite of GE, GT, EQ: hit and miss change places
        hit, fail = miss, 0
    else:
        hit, fail = 0, miss
    if operator in ("SCMP_CMP_EQ", "SCMP_CMP_NE"):
        last = (JMP_JEQ_K, hit, fail, low)
        if arch.bits == 32:
            return [load(low_at), last]
        return [load(high_at), (JMP_JEQ_K, 0, 2 + fail, high), load(low_at), last]
    jump = JMP_JGE_K if operator in ("SCMP_CMP_GE", "SCMP_CMP_LT") else JMP_JGT_K
    last = (jump, hit, fail, low)
    if arch.bits == 32:
        return [load(low_at), last]
    return [
        load(high_at),
        (JMP_JGT_K, 3 + hit, 0, high),
        (JMP_JEQ_K, 0, 2 + fail, high),
        load(low_at),
        last,
    ]


def masked_code(arch: Architecture, condition: Condition, miss: int) -> Code:
    """(argument & value) == valueTwo, half by half; a half with an empty mask and value is no test."""
    low_at, high_at = halves(arch, condition.index)
    mask, wanted = condition.value, condition.value_two
    low_tests = [
        load(low_at),
        (ALU_AND_K, 0, 0, mask & ALL_ONES),
        (JMP_JEQ_K, 0, miss, wanted & ALL_ONES),
    ]
    if arch.bits == 32 or (mask >> 32 == 0 and wanted >> 32 == 0):
        return low_tests
    high_miss = len(low_tests) + miss
    return [
        load(high_at),
        (ALU_AND_K, 0, 0, mask >> 32),
        (JMP_JEQ_K, 0, high_miss, wanted >> 32),
        *low_tests,
    ]


def halves(arch: Architecture, index: int) -> tuple[int, int]:
    """Offsets of an argument's low and high half in struct seccomp_data."""
    start = OFFSET_ARGS + 8 * index
    return (start + 4, start) if arch.big_endian else (start, start + 4)


def load(offset: int) -> Instruction:
    return (LD_W_ABS, 0, 0, offset)


def ret(answer: int) -> Instruction:
    return (RET_K, 0, 0, answer)
