"""The default seccomp profile: which system calls a container may make, by subject and with the reason.

    default_profile(capabilities, machine, kernel) -> an OCI LinuxSeccomp

What is not listed answers EPERM. The set is Docker's (moby's profile of 2026, no call more), arranged by what the calls are
for, so that a reader can see what is missing and why:

    keyctl, add_key, request_key      the kernel's keyrings are not namespaced
    io_uring_*                        a second system call interface that filters cannot see into
    userfaultfd                       lets a process hold the kernel in the middle of a copy
    unshare, clone(CLONE_NEW*)        namespaces widen the kernel's reachable surface
    mount, pivot_root, fsopen, ...    a container arranges no file systems
    bpf, perf_event_open, kexec_*     the kernel itself
    socket(AF_ALG), socket(AF_VSOCK)  old crypto code; the channel to the hypervisor
    uselib, ustat, sysfs, vm86, ...   dead code that still runs

Some come back with the capability that stands for them: whoever was given CAP_SYS_ADMIN may mount.

Source: Docker Engine documentation, "Seccomp security profiles for Docker"; capabilities(7).
"""

from __future__ import annotations

from sampan.linux.syscall_table import native_architecture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EPERM = 1
ENOSYS = 38
ALLOW = "SCMP_ACT_ALLOW"
ERRNO = "SCMP_ACT_ERRNO"

FILES = """
access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd
getdents getdents64 ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat
name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs
statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime
utimensat utimensat_time64 utimes vmsplice write writev
"""
# What a mount is can be looked at; making one cannot.
MOUNTS_SEEN = "listmount statmount"
ATTRIBUTES = """
fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect poll ppoll
ppoll_time64 pselect6 pselect6_time64 select
"""
ASYNCHRONOUS_IO = (
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit"
)
MEMORY = """
brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
PROCESSES = """
capget capset execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrusage getsid
gettid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open
pidfd_send_signal prctl process_mrelease restart_syscall rseq seccomp setpgid setpriority setsid set_tid_address
tgkill tkill vfork wait4 waitid waitpid
"""
IDENTITY = """
getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid
setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
"""
LIMITS = "getrlimit prlimit64 setrlimit ugetrlimit"
SCHEDULING = """
getcpu membarrier sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield
"""
THREADS = """
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area set_robust_list
set_thread_area
"""
SIGNALS = """
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn
"""
TIME = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times
"""
NETWORK = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
IPC = """
ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
SYSTEM = "getrandom riscv_hwprobe sysinfo uname uretprobe"

# An unpatched ptrace was a way around filters before Linux 4.8 (ptrace(2), "seccomp").
TRACING = "process_vm_readv process_vm_writev ptrace"
TRACING_SINCE = (4, 8)

BY_ARCHITECTURE = {
    "x86_64": "arch_prctl modify_ldt",
    "x86": "modify_ldt",
    "x32": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "arm": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "ppc64le": "sync_file_range2 swapcontext",
    "riscv64": "riscv_flush_icache",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "s390": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}

BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

# Calling conventions that one kernel serves: the profile holds for all of them.
COMPANIONS = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "ppc64": ("SCMP_ARCH_PPC64",),
}

# sched.h: CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
CLONE_NEW_NAMESPACES = 0x7E020000
AF_ALG, AF_VSOCK = 38, 40
# sys/personality.h: PER_LINUX, PER_LINUX32, both with UNAME26, and the question for the present one
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


def unconditional() -> list[str]:
    """The calls that every container may make whatever their arguments."""
    groups = (
        FILES, MOUNTS_SEEN, ATTRIBUTES, WAITING, ASYNCHRONOUS_IO, MEMORY, PROCESSES, IDENTITY, LIMITS,
        SCHEDULING, THREADS, SIGNALS, TIME, NETWORK, IPC, SYSTEM,
    )  # fmt: skip
    return " ".join(groups).split()


def default_profile(
    capabilities: Iterable[str], machine: str, kernel: str, *, compat: bool = True
) -> dict[str, Any]:
    """The profile for a container with these capabilities (its bounding set, CAP_ names).

    `compat=False` leaves out the 32-bit conventions, whose socketcall(2) no filter can look into.
    """
    held = set(capabilities)
    native = native_architecture(machine)
    names = unconditional()
    if version(kernel) >= TRACING_SINCE:
        names += TRACING.split()
    names += BY_ARCHITECTURE.get(native, "").split()
    for capability, granted in BY_CAPABILITY.items():
        if capability in held:
            names += granted.split()
    rules = [{"names": sorted(set(names)), "action": ALLOW}, *socket_rules(), *personality_rules()]
    if "CAP_SYS_ADMIN" not in held:
        rules += clone_rules(native)
    companions = COMPANIONS.get(native, ())
    return {
        "defaultAction": ERRNO,
        "defaultErrnoRet": EPERM,
        "architectures": list(companions if compat else companions[:1]),
        "syscalls": rules,
    }


def allow_if(
    name: str, index: int, operator: str, value: int, value_two: int = 0
) -> dict[str, Any]:
    args = [{"index": index, "value": value, "valueTwo": value_two, "op": operator}]
    return {"names": [name], "action": ALLOW, "args": args}


def socket_rules() -> list[dict[str, Any]]:
    """All families but two."""
    return [
        allow_if("socket", 0, "SCMP_CMP_LT", AF_ALG),
        allow_if("socket", 0, "SCMP_CMP_EQ", AF_ALG + 1),
        allow_if("socket", 0, "SCMP_CMP_GT", AF_VSOCK),
    ]


def personality_rules() -> list[dict[str, Any]]:
    """Not ADDR_NO_RANDOMIZE or READ_IMPLIES_EXEC, which undo protections."""
    return [allow_if("personality", 0, "SCMP_CMP_EQ", value) for value in PERSONALITIES]


def clone_rules(native: str) -> list[dict[str, Any]]:
    """Threads and children, but no namespaces. clone3 has its flags in memory: ENOSYS makes libc use clone."""
    flags = 1 if native == "s390x" else 0
    return [
        allow_if("clone", flags, "SCMP_CMP_MASKED_EQ", CLONE_NEW_NAMESPACES, 0),
        {"names": ["clone3"], "action": ERRNO, "errnoRet": ENOSYS},
    ]


def version(kernel: str) -> tuple[int, int]:
    """uname's release as (major, minor)."""
    numbers = []
    for part in kernel.split(".")[:2]:
        digits = ""
        for letter in part:
            if letter not in "0123456789":
                break
            digits += letter
        numbers.append(int(digits or "0"))
    return (numbers[0], numbers[1] if len(numbers) > 1 else 0)
