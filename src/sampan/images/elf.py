"""The program in the `hello` image: a static ELF executable that Python writes, for x86_64 and aarch64.

    ┌ ELF header 64 │ one program header 56 │ code │ texts ┐      one read+execute segment, 1 to 2 KiB
    └──────────────────────────────────────────────────────┘      buffers are on the stack

A greeting is a sequence of steps: write a text, write a field of uname(2), write a number that a system call
gave. Each architecture knows how to encode these steps and nothing else; so a fresh machine without a network
has something to run, and no binary file lies in the repository.

Sources: System V ABI, "Object Files" and the AMD64 supplement; Intel SDM vol. 2; Arm ARM (DDI 0487) C6;
syscall numbers from the kernel's asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

import msgspec

BASE = 0x400000
HEADERS = 64 + 56
STACK = 1024
_DIGITS_END = 768  # digits are written backwards from here
NODENAME, RELEASE = 65, 130  # offsets in struct utsname, uname(2)
PR_GET_SECCOMP, PR_CAPBSET_READ = 21, 23
LAST_CAPABILITY = 63


class Text(msgspec.Struct, frozen=True):
    text: str


class UnameField(msgspec.Struct, frozen=True):
    offset: int


class Pid(msgspec.Struct, frozen=True):
    """getpid(2)."""


class SeccompMode(msgspec.Struct, frozen=True):
    """prctl(PR_GET_SECCOMP): 0 is none, 2 is a filter."""


class Capabilities(msgspec.Struct, frozen=True):
    """How many prctl(PR_CAPBSET_READ, n) say yes."""


Step = Text | UnameField | Pid | SeccompMode | Capabilities


class Machine(Protocol):
    """Encodes the steps for one architecture. `write_text` is told where the text will be."""

    elf_number: int

    def start(self) -> bytes: ...
    def write_text(self, here: int, text_at: int, length: int) -> bytes: ...
    def write_uname_field(self, offset: int) -> bytes: ...
    def write_pid(self) -> bytes: ...
    def write_seccomp_mode(self) -> bytes: ...
    def write_capabilities(self) -> bytes: ...
    def exit(self) -> bytes: ...


class X86_64:
    """Buffers are at rsp: struct utsname at +0, digits before +768."""

    elf_number = 62
    _WRITE = bytes.fromhex("b801000000bf010000000f05")  # mov eax,1; mov edi,1; syscall

    def start(self) -> bytes:
        # sub rsp,1024; mov eax,63 (uname); mov rdi,rsp; syscall
        return bytes.fromhex("4881ec00040000b83f0000004889e70f05")

    def write_text(self, here: int, text_at: int, length: int) -> bytes:
        # lea rsi,[rip+distance]; mov edx,length; write
        distance = text_at - (here + 7)
        return (
            b"\x48\x8d\x35" + struct.pack("<i", distance) + b"\xba" + struct.pack("<I", length)
        ) + self._WRITE

    def write_uname_field(self, offset: int) -> bytes:
        # lea rsi,[rsp+offset]; xor edx,edx; L: cmp byte [rsi+rdx],0; je D; inc edx; jmp L; D: write
        head = b"\x48\x8d\xb4\x24" + struct.pack("<I", offset) + b"\x31\xd2"
        loop = bytes.fromhex("803c16007404ffc2ebf6")
        return head + loop + self._WRITE

    def write_pid(self) -> bytes:
        return bytes.fromhex("b8270000000f05") + self._write_number()  # mov eax,39; syscall

    def write_seccomp_mode(self) -> bytes:
        # mov eax,157; mov edi,PR_GET_SECCOMP; syscall; test eax,eax; jns S; xor eax,eax; S:
        call = bytes.fromhex("b89d000000bf150000000f0585c0790231c0")
        return call + self._write_number()

    def write_capabilities(self) -> bytes:
        # xor ebx,ebx; xor ebp,ebp;
        # L: mov eax,157; mov edi,23; mov esi,ebp; syscall; cmp eax,1; jne S; inc ebx; S: inc ebp;
        # cmp ebp,63; jle L; mov eax,ebx
        loop = bytes.fromhex("b89d000000bf1700000089ee0f0583f8017502ffc3ffc583fd3f")
        back = b"\x7e" + struct.pack("<b", -(len(loop) + 2))
        return bytes.fromhex("31db31ed") + loop + back + b"\x89\xd8" + self._write_number()

    def exit(self) -> bytes:
        return bytes.fromhex("b83c00000031ff0f05")  # mov eax,60; xor edi,edi; syscall

    def _write_number(self) -> bytes:
        # lea rsi,[rsp+768]; mov ecx,10;
        # L: xor edx,edx; div ecx; add dl,'0'; dec rsi; mov [rsi],dl; test eax,eax; jnz L
        # lea rdx,[rsp+768]; sub rdx,rsi; write
        end = struct.pack("<I", _DIGITS_END)
        loop = bytes.fromhex("31d2f7f180c23048ffce881685c0")
        back = b"\x75" + struct.pack("<b", -(len(loop) + 2))
        head = b"\x48\x8d\xb4\x24" + end + b"\xb9\x0a\x00\x00\x00"
        return head + loop + back + b"\x48\x8d\x94\x24" + end + b"\x48\x29\xf2" + self._WRITE


def _arm(*words: int) -> bytes:
    return b"".join(struct.pack("<I", word) for word in words)


def _movz(register: int, value: int) -> int:
    return 0xD2800000 | (value << 5) | register


def _add_sp(register: int, value: int) -> int:
    return 0x91000000 | (value << 10) | (31 << 5) | register


_SVC = 0xD4000001


class AArch64:
    """x0 to x2 are a call's arguments, x8 its number; buffers are at sp as above."""

    elf_number = 183
    _WRITE = _arm(_movz(0, 1), _movz(8, 64), _SVC)

    def start(self) -> bytes:
        # sub sp,sp,#1024; mov x0,sp; mov x8,#160 (uname); svc
        return _arm(0xD11003FF, _add_sp(0, 0), _movz(8, 160), _SVC)

    def write_text(self, here: int, text_at: int, length: int) -> bytes:
        # adr x1,text; mov x2,#length; write
        distance = text_at - here
        adr = 0x10000001 | ((distance & 3) << 29) | (((distance >> 2) & 0x7FFFF) << 5)
        return _arm(adr, _movz(2, length)) + self._WRITE

    def write_uname_field(self, offset: int) -> bytes:
        # add x1,sp,#offset; mov x2,#0; L: ldrb w3,[x1,x2]; cbz w3,D; add x2,x2,#1; b L; D: write
        return (
            _arm(
                _add_sp(1, offset),
                _movz(2, 0),
                0x38626823,
                0x34000000 | (3 << 5) | 3,
                0x91000442,
                0x14000000 | (-3 & 0x3FFFFFF),
            )
            + self._WRITE
        )

    def write_pid(self) -> bytes:
        return _arm(_movz(8, 172), _SVC) + self._write_number()

    def write_seccomp_mode(self) -> bytes:
        # ...; cmp x0,#0; csel x0,xzr,x0,lt: a kernel without seccomp answers EINVAL
        call = _arm(_movz(0, PR_GET_SECCOMP), _movz(8, 167), _SVC, 0xF100001F, 0x9A80B3E0)
        return call + self._write_number()

    def write_capabilities(self) -> bytes:
        # x19 counts, x20 is the capability;
        # L: mov x0,#23; mov x1,x20; mov x8,#167; svc; cmp x0,#1; cinc x19,x19,eq; add x20,x20,#1;
        # cmp x20,#63; b.le L; mov x0,x19
        return (
            _arm(
                _movz(19, 0),
                _movz(20, 0),
                _movz(0, PR_CAPBSET_READ),
                0xAA1403E1,
                _movz(8, 167),
                _SVC,
                0xF100041F,
                0x9A931673,
                0x91000694,
                0xF100FE9F,
                0x54000000 | ((-8 & 0x7FFFF) << 5) | 0xD,
                0xAA1303E0,
            )
            + self._write_number()
        )

    def exit(self) -> bytes:
        return _arm(_movz(0, 0), _movz(8, 93), _SVC)

    def _write_number(self) -> bytes:
        # add x1,sp,#768; mov x4,#10;
        # L: udiv x5,x0,x4; msub x6,x5,x4,x0; add x6,x6,#'0'; sub x1,x1,#1; strb w6,[x1]; mov x0,x5; cbnz x0,L
        # add x2,sp,#768; sub x2,x2,x1; write
        return (
            _arm(
                _add_sp(1, _DIGITS_END),
                _movz(4, 10),
                0x9AC40805,
                0x9B0480A6,
                0x9100C0C6,
                0xD1000421,
                0x39000026,
                0xAA0503E0,
                0xB5000000 | ((-6 & 0x7FFFF) << 5),
                _add_sp(2, _DIGITS_END),
                0xCB010042,
            )
            + self._WRITE
        )


MACHINES: dict[str, Callable[[], Machine]] = {"amd64": X86_64, "arm64": AArch64}


def program(steps: tuple[Step, ...], architecture: str) -> bytes:
    """A whole executable that performs the steps and exits with 0."""
    machine = MACHINES[architecture]()
    draft = _code(machine, steps, texts_at=0)
    code = _code(machine, steps, texts_at=BASE + HEADERS + len(draft))
    texts = b"".join(step.text.encode() for step in steps if isinstance(step, Text))
    return _elf(machine.elf_number, code + texts)


def _code(machine: Machine, steps: tuple[Step, ...], *, texts_at: int) -> bytes:
    code = machine.start()
    for step in steps:
        if isinstance(step, Text):
            length = len(step.text.encode())
            code += machine.write_text(BASE + HEADERS + len(code), texts_at, length)
            texts_at += length
        elif isinstance(step, UnameField):
            code += machine.write_uname_field(step.offset)
        elif isinstance(step, Pid):
            code += machine.write_pid()
        elif isinstance(step, SeccompMode):
            code += machine.write_seccomp_mode()
        else:
            code += machine.write_capabilities()
    return code + machine.exit()


def _elf(machine_number: int, content: bytes) -> bytes:
    """Headers for one loadable segment that is the whole file (ELF-64, little endian, ET_EXEC)."""
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    entry = BASE + HEADERS
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, machine_number, 1, entry, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    size = HEADERS + len(content)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, size, size, 0x10000)
    return ident + header + segment + content


GREETING: tuple[Step, ...] = (
    Text(
        "\nHello from Sampan!\n\n"
        "You read this because the engine made an image, unpacked it, and started this program\n"
        "in a container of its own. What isolates it, as it sees it from the inside:\n\n"
        "  process id      "
    ),
    Pid(),
    Text("\n  host name       "),
    UnameField(NODENAME),
    Text("\n  kernel          "),
    UnameField(RELEASE),
    Text("  (the host's: a container is processes, not a machine)\n  capabilities    "),
    Capabilities(),
    Text("  (root on the host has all that its kernel knows)\n  seccomp mode    "),
    SeccompMode(),
    Text(
        "  (2: a filter decides which system calls it may make)\n\n"
        "The program is an ELF executable of less than 2 KiB that Python wrote a moment ago;\n"
        "nothing was downloaded.\n\n"
        "Try next:\n"
        "  sampan run -it host sh              a shell over this machine's own programs\n"
        "  sampan run -it --rm busybox         an image from a registry\n\n"
    ),
)
