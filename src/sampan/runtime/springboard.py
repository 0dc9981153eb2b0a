"""The last step to a container's program, taken by a static ELF of some 250 bytes instead of by Python.

    Python    finds the program and checks that no magic link leads to it (execution.py)
      | execveat: this ELF, in a sealed memfd
    ELF       execve(program); where that fails, writes the errno to a pipe and exits

Between the check and execve a hostile container may put a link to /proc/self/exe where the program, the interpreter of
a script or the loader of an ELF file was (CVE-2019-5736). The link then leads to what runs at that moment: to
the memfd, sealed against every change, and not to the host's interpreter. The launcher needs none of this: it
runs from a sealed copy already.

Not used where the intermediate execve would change the outcome: with an AppArmor profile or SELinux label, which take
effect at the first one, and with a seccomp filter that does not let the calls of the ELF through.
Source: System V ABI AMD64 supplement 3.4.1 (the stack at process entry).
"""

from __future__ import annotations

import posix

from sampan.linux import constants as c
from sampan.linux.syscalls import fcntl, memfd

from .elf import static_elf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.spec.runtime import Process

    from .seccomp_cache import Program
    from .steps import Stage

CALLS = ("execveat", "execve", "fcntl", "write", "exit_group")  # what the ELF and its start need
_REPORT = bytes.fromhex("44332211")  # stands for the pipe's number

# fmt: off
_X86_64 = bytes.fromhex(
    "bf44332211"      # mov edi,REPORT           fcntl(report, F_SETFD, FD_CLOEXEC)
    "be02000000"      # mov esi,0x2
    "ba01000000"      # mov edx,0x1
    "b848000000"      # mov eax,0x48
    "0f05"            # syscall
    "488b0c24"        # mov rcx,[rsp]            execve(path, argv, envp)
    "488d742408"      # lea rsi,[rsp+0x8]
    "488d54cc10"      # lea rdx,[rsp+rcx*8+0x10]
    "488d3d2a000000"  # lea rdi,[rip+0x2a]       the path follows the code
    "b83b000000"      # mov eax,0x3b
    "0f05"            # syscall
    "f7d8"            # neg eax                  write(report, &errno, 4)
    "50"              # push rax
    "bf44332211"      # mov edi,REPORT
    "4889e6"          # mov rsi,rsp
    "ba04000000"      # mov edx,0x4
    "b801000000"      # mov eax,0x1
    "0f05"            # syscall
    "bf01000000"      # mov edi,0x1              exit_group(1)
    "b8e7000000"      # mov eax,0xe7
    "0f05"            # syscall
)
# fmt: on


def is_wanted(process: Process, program: Program | None) -> bool:
    """Decided with the plan: is there an interpreter of the host's to be kept from the container, and may we."""
    if process.get("apparmorProfile") or process.get("selinuxLabel"):
        return False
    if program is not None and not program.lets_springboard:
        return False
    if posix.uname().machine != "x86_64":
        return False
    return not posix.readlink("/proc/self/exe").startswith("/memfd:")


def prepare(stage: Stage) -> int:
    """In the child, when the program is found: the ELF goes to `stage.springboard_fd`; returns the reading end of
    the pipe, for the parent. 0 bytes in it mean that the program runs, 4 are the errno."""
    reader, writer = posix.pipe2(posix.O_CLOEXEC)
    code = _X86_64.replace(_REPORT, writer.to_bytes(4, "little"))
    path = stage.executable.encode("utf-8", "surrogateescape") + b"\0"
    try:
        stage.springboard_fd = memfd("program", static_elf(62, code + path), executable=True)
    except OSError:  # memory that is executable may be forbidden (vm.memfd_noexec)
        posix.close(reader)
        posix.close(writer)
        return -1
    stage.report_fd = writer
    return reader


def let_report(stage: Stage) -> None:
    """Right before the execve: a startContainer hook must not inherit the pipe. One of CALLS, for there is a filter."""
    if stage.report_fd >= 0:
        fcntl(stage.report_fd, c.F_SETFD, 0)


def outcome(reader: int) -> int:
    """In the parent, when the child has let go of its channel: 0, or why the program could not be executed."""
    try:
        return int.from_bytes(posix.read(reader, 4), "little")
    finally:
        posix.close(reader)
