"""Process 1 of a container that asked for --init: a static ELF program of a few hundred bytes, written here.

    argv: /sbin/docker-init -- PROGRAM ARG...        the path that it executes is appended to the file itself

    process 1   every signal blocked; takes them one by one: SIGCHLD reaps whatever ended, others are passed to the
                child; ends when the child ends, with its exit code (128 + signal where a signal ended it)
    child       a process group of its own, in the foreground of the terminal if there is one; executes PROGRAM

Why not a Python loop: it would keep five megabytes and the engine's interpreter inside the container for its whole
life. Why not a file in the image, as Docker has /sbin/docker-init: init writes this into a sealed memfd of its own when
the program has been found, so nothing is mounted, nothing can be replaced, and a program that is not there
is reported as ever, before anything runs.

Sources: System V ABI AMD64 supplement 3.4.1 (the stack at process entry); Intel SDM vol. 2; signal(7), wait4(2);
behaviour as of tini, which Docker uses.
"""

from __future__ import annotations

from sampan.errors import Unsupported

from .elf import static_elf

ARGV0 = "/sbin/docker-init"

# fmt: off
_X86_64 = bytes.fromhex(
    # _start:  name the process; keep argv+2 and envp; block every signal; fork
    "bf0f000000"  # mov edi,0xf
    "488d3559010000"  # lea rsi,[rip+0x159] # 165 name
    "b89d000000"  # mov eax,0x9d
    "0f05"  # syscall
    "488b0c24"  # mov rcx,QWORD PTR [rsp]
    "4c8d642418"  # lea r12,[rsp+0x18]
    "4c8d6ccc10"  # lea r13,[rsp+rcx*8+0x10]
    "4881ec00020000"  # sub rsp,0x200
    "48c70424ffffffff"  # mov QWORD PTR [rsp],0xffffffffffffffff
    "31ff"  # xor edi,edi
    "4889e6"  # mov rsi,rsp
    "31d2"  # xor edx,edx
    "41ba08000000"  # mov r10d,0x8
    "b80e000000"  # mov eax,0xe
    "0f05"  # syscall
    "b839000000"  # mov eax,0x39
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "0f849c000000"  # je ef child
    "0f888f000000"  # js e8 fail
    "4189c6"  # mov r14d,eax
    "41bfffffffff"  # mov r15d,0xffffffff
    # wait_signal:  take the next signal (rt_sigtimedwait); SIGCHLD reaps, others go to the child
    "4889e7"  # mov rdi,rsp
    "488d742410"  # lea rsi,[rsp+0x10]
    "31d2"  # xor edx,edx
    "41ba08000000"  # mov r10d,0x8
    "b880000000"  # mov eax,0x80
    "0f05"  # syscall
    "83f811"  # cmp eax,0x11
    "7412"  # je 90 reap
    "85c0"  # test eax,eax
    "7ee0"  # jle 62 wait_signal
    "89c6"  # mov esi,eax
    "4489f7"  # mov edi,r14d
    "b83e000000"  # mov eax,0x3e
    "0f05"  # syscall
    "ebd2"  # jmp 62 wait_signal
    # reap:  wait4(-1, WNOHANG) until there is none; remember the child's status
    "bfffffffff"  # mov edi,0xffffffff
    "488db42400010000"  # lea rsi,[rsp+0x100]
    "ba01000000"  # mov edx,0x1
    "4531d2"  # xor r10d,r10d
    "b83d000000"  # mov eax,0x3d
    "0f05"  # syscall
    "85c0"  # test eax,eax
    "7e0f"  # jle bf reaped
    "4439f0"  # cmp eax,r14d
    "75db"  # jne 90 reap
    "448bbc2400010000"  # mov r15d,DWORD PTR [rsp+0x100]
    "ebd1"  # jmp 90 reap
    # reaped:  go on while the child lives
    "4183ffff"  # cmp r15d,0xffffffff
    "749d"  # je 62 wait_signal
    "4489ff"  # mov edi,r15d
    "83e77f"  # and edi,0x7f
    "7408"  # je d5 exited
    "81c780000000"  # add edi,0x80
    "eb0c"  # jmp e1 exit
    # exited:  the code is the child's, or 128 + its signal
    "4489ff"  # mov edi,r15d
    "c1ef08"  # shr edi,0x8
    "81e7ff000000"  # and edi,0xff
    # exit:  exit_group
    "b8e7000000"  # mov eax,0xe7
    "0f05"  # syscall
    # fail:
    "bf7e000000"  # mov edi,0x7e
    "ebf2"  # jmp e1 exit
    # child:  own process group, foreground of the terminal if there is one; unblock; execve
    "31ff"  # xor edi,edi
    "31f6"  # xor esi,esi
    "b86d000000"  # mov eax,0x6d
    "0f05"  # syscall
    "b827000000"  # mov eax,0x27
    "0f05"  # syscall
    "89842400010000"  # mov DWORD PTR [rsp+0x100],eax
    "31ff"  # xor edi,edi
    "be10540000"  # mov esi,0x5410
    "488d942400010000"  # lea rdx,[rsp+0x100]
    "b810000000"  # mov eax,0x10
    "0f05"  # syscall
    "48c7042400000000"  # mov QWORD PTR [rsp],0x0
    "bf02000000"  # mov edi,0x2
    "4889e6"  # mov rsi,rsp
    "31d2"  # xor edx,edx
    "41ba08000000"  # mov r10d,0x8
    "b80e000000"  # mov eax,0xe
    "0f05"  # syscall
    "488d3d2d000000"  # lea rdi,[rip+0x2d] # 171 path
    "4c89e6"  # mov rsi,r12
    "4c89ea"  # mov rdx,r13
    "b83b000000"  # mov eax,0x3b
    "0f05"  # syscall
    "bf7e000000"  # mov edi,0x7e
    "83f8fe"  # cmp eax,0xfffffffe
    "7586"  # jne e1 exit
    "bf7f000000"  # mov edi,0x7f
    "e97cffffff"  # jmp e1 exit
    # name:
    "646f636b65722d696e697400"  # "docker-init"
)
# fmt: on
_CODE = {"x86_64": (62, _X86_64)}  # machine -> (e_machine, code that ends where the path begins)


def reaper_elf(program: str, machine: str) -> bytes:
    """The executable that runs `program` (a path inside the container)."""
    if machine not in _CODE:
        raise Unsupported(f"--init is not available on {machine}")
    number, code = _CODE[machine]
    return static_elf(number, code + program.encode("utf-8", "surrogateescape") + b"\0")
