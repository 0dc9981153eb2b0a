"""System call names and numbers of every architecture that a seccomp filter may name.

    numbers("x86_64")["openat2"] == 437

An architecture is named as seccomp profiles name it, without SCMP_ARCH_ and in lower case. Tables are read when
first asked for: a filter for x86_64, x86 and x32 touches one module.

`Architecture` is what a filter must know besides: the kernel's audit number (what seccomp_data.arch holds),
byte order, word size, and x32's bit.

Source: linux/audit.h, linux/elf-em.h; seccomp(2); the tables name theirs.
"""

from __future__ import annotations

# linux/audit.h
_64BIT = 0x80000000
_LITTLE = 0x40000000
X32_BIT = 0x40000000
# From this number on the numbers are old exceptions (x32's moved calls, arm's private ones), not the latest.
SPECIAL_FROM = 500


class Architecture:
    """How seccomp sees one calling convention. `native` is the one whose kernel can run it."""

    __slots__ = ("audit", "big_endian", "bits", "name", "native", "number_bit")

    def __init__(
        self, name: str, machine: int, *, bits: int = 64, big_endian: bool = False, native: str = ""
    ) -> None:
        self.name = name
        self.bits = bits
        self.big_endian = big_endian
        self.audit = machine | (_64BIT if bits == 64 else 0) | (0 if big_endian else _LITTLE)
        self.number_bit = X32_BIT if name == "x32" else 0
        self.native = native or name


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("x86_64", 62),
        Architecture("x86", 3, bits=32, native="x86_64"),
        Architecture("x32", 62, native="x86_64"),
        Architecture("aarch64", 183),
        Architecture("arm", 40, bits=32, native="aarch64"),
        Architecture("riscv64", 243),
        Architecture("loongarch64", 258),
        Architecture("s390x", 22, big_endian=True),
        Architecture("s390", 22, bits=32, big_endian=True, native="s390x"),
        Architecture("ppc64le", 21),
        Architecture("ppc64", 21, big_endian=True),
    )
}
# Named by profiles, never run by a machine that we support: accepted, and without effect.
ELSEWHERE = frozenset(
    (
        "ppc", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32", "parisc", "parisc64",
        "m68k", "sh", "sheb", "riscv32",
    )
)  # fmt: skip

MACHINES = {
    "amd64": "x86_64",
    "i386": "x86",
    "i686": "x86",
    "arm64": "aarch64",
    "armv7l": "arm",
    "armv8l": "arm",
}

_TABLES: dict[str, dict[str, int]] = {}


def native_architecture(machine: str) -> str:
    """uname's machine as an architecture name here."""
    return MACHINES.get(machine, machine)


def numbers(architecture: str) -> dict[str, int]:
    """Name -> number, without x32's bit."""
    table = _TABLES.get(architecture)
    if table is None:
        table = _TABLES[architecture] = _read_table(architecture)
    return table


def _read_table(architecture: str) -> dict[str, int]:
    if architecture in ("x86_64", "x86", "x32"):
        from . import syscall_table_x86 as x86

        if architecture == "x32":
            lacking = x86.X32_LACKS.split()
            table = {
                name: number for name, number in numbers("x86_64").items() if name not in lacking
            }
            table.update(parse(x86.X32_MOVED))
            return table
        return parse(x86.X86_64 if architecture == "x86_64" else x86.I386)
    if architecture in ("aarch64", "arm", "riscv64", "loongarch64"):
        from . import syscall_table_arm as arm

        if architecture == "arm":
            return parse(arm.ARM)
        table = parse(arm.AARCH64)
        if architecture == "riscv64":
            del table["renameat"]
            table.update(riscv_hwprobe=258, riscv_flush_icache=259)
        elif architecture == "loongarch64":
            for name in ("renameat", "getrlimit", "setrlimit", "memfd_secret"):
                del table[name]
        return table
    if architecture in ("s390x", "s390"):
        from . import syscall_table_s390 as s390

        return parse(s390.S390X if architecture == "s390x" else s390.S390)
    if architecture in ("ppc64", "ppc64le"):
        from .syscall_table_ppc import PPC64

        return parse(PPC64)
    raise KeyError(architecture)


def parse(text: str) -> dict[str, int]:
    """A table's words: names count up by one, '@N' sets the number of the next."""
    table: dict[str, int] = {}
    number = 0
    for word in text.split():
        if word[0] == "@":
            number = int(word[1:])
        else:
            table[word] = number
            number += 1
    return table


def newest(architecture: str) -> int:
    """The highest number in use when our tables were written, exceptions aside."""
    return max(number for number in numbers(architecture).values() if number < SPECIAL_FROM)
