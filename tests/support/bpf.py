"""A classic BPF machine, and the plain meaning of a seccomp profile: two ways to one answer.

`run` obeys the instructions; `expected` reads the profile's rules one by one, as the specification words
them, and knows nothing of trees and jumps.
"""

from __future__ import annotations

from struct import iter_unpack, pack, unpack_from
from typing import Any

from sampan.linux.syscall_table import ARCHITECTURES, numbers
from sampan.runtime import seccomp

ALL_ONES = 0xFFFFFFFF
X32 = 0x40000000
KILL_PROCESS = 0x80000000


def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(iter_unpack("=HBBI", program))


def check(code: list[tuple[int, int, int, int]]) -> None:
    """What the kernel's verifier asks: jumps stay inside, the end is a return."""
    known = {0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06}
    assert 0 < len(code) <= 4096
    for at, (op, jt, jf, k) in enumerate(code):
        assert op in known
        if op == 0x05:
            assert at + 1 + k < len(code)
        elif op in (0x15, 0x25, 0x35, 0x45):
            assert at + 1 + max(jt, jf) < len(code)
        elif op == 0x20:
            assert k % 4 == 0
            assert k < 64
    assert code[-1][0] == 0x06


def run(
    code: list[tuple[int, int, int, int]],
    architecture: str,
    number: int,
    args: tuple[int, ...] = (0,) * 6,
) -> tuple[int, int]:
    """(answer, instructions executed) for one call."""
    arch = ARCHITECTURES[architecture]
    order = ">" if arch.big_endian else "<"
    data = pack(order + "IIQ6Q", number & ALL_ONES, arch.audit, 0, *args)
    accumulator, at, steps = 0, 0, 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        steps += 1
        if op == 0x20:
            accumulator = unpack_from(order + "I", data, k)[0]
        elif op == 0x05:
            at += k
        elif op == 0x15:
            at += jt if accumulator == k else jf
        elif op == 0x25:
            at += jt if accumulator > k else jf
        elif op == 0x35:
            at += jt if accumulator >= k else jf
        elif op == 0x54:
            accumulator &= k
        elif op == 0x06:
            return k, steps
        else:
            raise AssertionError(f"unknown instruction {op:#x}")


COMPARE = {
    "SCMP_CMP_NE": lambda arg, a, b: arg != a,
    "SCMP_CMP_LT": lambda arg, a, b: arg < a,
    "SCMP_CMP_LE": lambda arg, a, b: arg <= a,
    "SCMP_CMP_EQ": lambda arg, a, b: arg == a,
    "SCMP_CMP_GE": lambda arg, a, b: arg >= a,
    "SCMP_CMP_GT": lambda arg, a, b: arg > a,
    "SCMP_CMP_MASKED_EQ": lambda arg, a, b: arg & a == b,
}


def holds(arg_rows: list[dict[str, Any]], args: tuple[int, ...], bits: int) -> bool:
    def one(row: dict[str, Any]) -> bool:
        mask = (1 << bits) - 1
        value, two = row.get("value", 0) & mask, row.get("valueTwo", 0) & mask
        return bool(COMPARE[row["op"]](args[row["index"]] & mask, value, two))

    indexes = [row["index"] for row in arg_rows]
    if len(set(indexes)) < len(indexes):
        return any(one(row) for row in arg_rows)
    return all(one(row) for row in arg_rows)


def expected(
    profile: dict[str, Any], architecture: str, number: int, args: tuple[int, ...] = (0,) * 6
) -> int:
    """The answer that the profile's words give, with the native machine being `architecture`'s."""
    native = ARCHITECTURES[architecture].native
    listed = {name.removeprefix("SCMP_ARCH_").lower() for name in profile.get("architectures", ())}
    listed.add(native)
    default, strictness = seccomp.read_action(
        profile["defaultAction"], profile.get("defaultErrnoRet"), "defaultErrnoRet"
    )
    newer = 0x00050026 if strictness in (0, 1, 3) else default
    convention = architecture
    if architecture == "x86_64" and "x32" in listed:
        number &= ~X32
        convention = "x32" if number >= 500 else "x86_64"
    elif architecture == "x86_64" and number >= X32:
        return newer if number == ALL_ONES else KILL_PROCESS
    if convention not in listed:
        return KILL_PROCESS
    bits = ARCHITECTURES[convention].bits
    table = numbers(convention)
    name = next((name for name, value in table.items() if value == number), None)
    answers = []
    named = []
    for rule in profile.get("syscalls", ()):
        answer, rank = seccomp.read_action(rule["action"], rule.get("errnoRet"))
        if answer == default:
            continue
        named += [table[each] for each in rule["names"] if each in table and table[each] < 500]
        if name in rule["names"] and holds(rule.get("args") or [], args, bits):
            answers.append((rank, answer))
        for carrier, calls in (("socketcall", seccomp.SOCKETCALL), ("ipc", seccomp.IPC)):
            if name == carrier and not rule.get("args"):
                mask = (1 << bits) - 1
                if any(calls.get(each) == args[0] & mask for each in rule["names"]):
                    answers.append((rank, answer))
    if answers:
        return min(answers, key=lambda row: row[0])[1]
    if native == "s390x" and number == 0:
        return newer
    if number > max([423, *named]) and not (name and number >= 500):
        return newer
    return default
