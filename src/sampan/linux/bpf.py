"""BPF programs as bytes, and the few bpf(2) requests that cgroups need.

Classic BPF (seccomp filters): eight bytes an instruction, {u16 code, u8 jump-true, u8 jump-false, u32 k}.
Extended BPF (device programs): eight bytes too, {u8 code, u8 registers, s16 offset, s32 immediate}.

Both assemblers take symbolic instructions; jumps are forward only and counted from the next
instruction. This module knows the machine, not the policy: `runtime/seccomp.py` and `cgroups/devices.py`
write the programs.

Source: linux/filter.h, linux/bpf_common.h, linux/bpf.h; bpf(2); Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

from _struct import Struct, pack, pack_into, unpack_from
from errno import ENOENT

from . import syscalls

# ------------------------------------------------------------------------------------ classic BPF

# linux/bpf_common.h: class | size or operation | mode or source
LD_W_ABS = 0x20
JMP_JA = 0x05
JMP_JEQ_K = 0x15
JMP_JGT_K = 0x25
JMP_JGE_K = 0x35
JMP_JSET_K = 0x45
ALU_AND_K = 0x54
RET_K = 0x06

CLASSIC = Struct("=HBBI")
MAX_CLASSIC = 4096  # BPF_MAXINSNS, the kernel's limit for one filter

Instruction = tuple[int, int, int, int]  # code, jump-true, jump-false, k


def assemble_classic(instructions: list[Instruction]) -> bytes:
    """The program as struct sock_filter[]; refuses what the kernel would refuse without a reason."""
    if not 0 < len(instructions) <= MAX_CLASSIC:
        raise ValueError(
            f"BPF program of {len(instructions)} instructions (1 to {MAX_CLASSIC} allowed)"
        )
    return b"".join([CLASSIC.pack(*row) for row in instructions])


# ----------------------------------------------------------------------------------- extended BPF

# linux/bpf.h and bpf_common.h
LDX_W = 0x61  # dst = *(u32 *)(src + offset)
ALU32_AND = 0x54
ALU32_RSH = 0x74
ALU32_MOV_X = 0xBC
ALU64_MOV_K = 0xB7
JNE = 0x55
JEQ = 0x15
JSET = 0x45
JA = 0x05
EXIT = 0x95
EXTENDED = Struct("=BBhi")

PROG_LOAD = 5
PROG_ATTACH = 8
PROG_DETACH = 9
PROG_GET_FD_BY_ID = 13
PROG_QUERY = 16
PROG_TYPE_CGROUP_DEVICE = 15
ATTACH_CGROUP_DEVICE = 6
F_ALLOW_MULTI = 2
F_REPLACE = 4
LICENSE = b"Apache-2.0\0"
MAX_ATTACHED = 64


def extended(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One instruction. `immediate` may be written as u32: the machine's is the same bits, signed."""
    if immediate > 0x7FFFFFFF:
        immediate -= 1 << 32
    return EXTENDED.pack(code, dst | src << 4, offset, immediate)


def load_device_program(program: bytes, name: bytes = b"sampan_devices") -> int:
    """The descriptor of a loaded BPF_PROG_TYPE_CGROUP_DEVICE program."""
    address, keep_program = syscalls.address(program)
    license_address, keep_license = syscalls.address(LICENSE)
    # union bpf_attr, BPF_PROG_LOAD: type, count, instructions, license, log_level, log_size, log_buf,
    # kern_version, flags, name[16]
    attributes = pack(
        "=IIQQIIQII16s",
        PROG_TYPE_CGROUP_DEVICE,
        len(program) // EXTENDED.size,
        address,
        license_address,
        0,
        0,
        0,
        0,
        0,
        name,
    )
    fd = syscalls.bpf(PROG_LOAD, attributes)
    del keep_program, keep_license
    return fd


def attach_device_program(cgroup_fd: int, program_fd: int, *, replace_fd: int = -1) -> None:
    """Add to the cgroup's device programs (all must agree), or take the place of one of them."""
    flags = F_ALLOW_MULTI | (F_REPLACE if replace_fd >= 0 else 0)
    attributes = pack(
        "=IIIII", cgroup_fd, program_fd, ATTACH_CGROUP_DEVICE, flags, max(replace_fd, 0)
    )
    syscalls.bpf(PROG_ATTACH, attributes)


def detach_device_program(cgroup_fd: int, program_fd: int) -> None:
    attributes = pack("=IIIII", cgroup_fd, program_fd, ATTACH_CGROUP_DEVICE, F_ALLOW_MULTI, 0)
    syscalls.bpf(PROG_DETACH, attributes)


def attached_device_programs(cgroup_fd: int) -> list[int]:
    """Descriptors of the programs attached to this very cgroup, owned by the caller."""
    address, ids = syscalls.address(bytes(4 * MAX_ATTACHED))
    attributes = bytearray(32)
    # union bpf_attr, BPF_PROG_QUERY: target_fd, attach_type, query_flags, attach_flags, prog_ids, count
    pack_into(
        "=IIIIQI", attributes, 0, cgroup_fd, ATTACH_CGROUP_DEVICE, 0, 0, address, MAX_ATTACHED
    )
    syscalls.bpf(PROG_QUERY, attributes)
    count = unpack_from("=I", attributes, 24)[0]
    descriptors = []
    for position in range(count):
        number = unpack_from("=I", bytes(ids), 4 * position)[0]
        try:
            descriptors.append(syscalls.bpf(PROG_GET_FD_BY_ID, pack("=III", number, 0, 0)))
        except OSError as error:
            if error.errno != ENOENT:
                raise
    return descriptors
