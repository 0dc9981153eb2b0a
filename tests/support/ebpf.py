"""An eBPF machine for device programs: the few instructions that they use."""

from __future__ import annotations

from struct import iter_unpack, pack, unpack_from

TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}
MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Whether the program lets `access` to the device through."""
    code = list(iter_unpack("<BBhi", program))
    bits = sum(ACCESS[letter] for letter in access)
    context = pack("<III", bits << 16 | TYPES[kind], major, minor)
    registers: list[int | None] = [None] * 11
    registers[1] = 0  # the context's address

    def register(number: int) -> int:
        value = registers[number]
        assert value is not None, f"r{number} is read before it is written"
        return value

    at = 0
    for _ in range(100_000):
        op, regs, offset, immediate = code[at]
        dst, src = regs & 15, regs >> 4
        at += 1
        if op == 0x61:
            assert register(src) == 0
            registers[dst] = unpack_from("<I", context, offset)[0]
        elif op == 0x54:
            registers[dst] = register(dst) & immediate & MASK32
        elif op == 0x74:
            registers[dst] = (register(dst) & MASK32) >> immediate
        elif op == 0xBC:
            registers[dst] = register(src) & MASK32
        elif op == 0xB7:
            registers[dst] = immediate & MASK64
        elif op == 0x05:
            at += offset
        elif op == 0x55:
            at += offset if register(dst) != immediate & MASK64 else 0
        elif op == 0x45:
            at += offset if register(dst) & immediate & MASK64 else 0
        elif op == 0x95:
            assert registers[0] in (0, 1)
            return registers[0] == 1
        else:
            raise AssertionError(f"unknown instruction {op:#x}")
    raise AssertionError("the program does not end")
