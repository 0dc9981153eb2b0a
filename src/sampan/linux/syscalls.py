"""The only handle to C: one function per system call that Python's `posix` lacks.

Everything goes through libc's `syscall(2)` by number, so one prototype serves for all and a C library
that lacks a wrapper does not matter. `_ctypes` is used without `ctypes` around it: that package costs
2.6 ms to import and gives nothing needed here. Paths are str or bytes; a failure raises
`OSError(errno, text, path)` with the note "syscall: NAME". No policy lives here.

Two pointers to `syscall` exist: `_release` gives up the interpreter lock while it waits, `_hold` keeps it.
`clone3` must use the one that keeps it: the child is a copy of a thread that owns the lock, so it simply
goes on, without any of what `os.fork` does before and after (0.34 ms against 0.47).
"""

from __future__ import annotations

import posix
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    addressof,
    dlopen,
    dlsym,
    get_errno,
)
from _struct import pack, unpack_from

from . import constants as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Path = str | bytes
    _Value = _SimpleCData[Any]
else:
    _Value = _SimpleCData  # not subscriptable at run time


class _Long(_Value):
    _type_ = "l"


class _Pointer(_Value):
    """Any word: an int, or the address of bytes or of an array."""

    _type_ = "P"


class _Byte(_Value):
    _type_ = "B"


_WORDS = (_Pointer,) * 7


class _ReleasingFunction(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Long
    _argtypes_ = _WORDS


class _HoldingFunction(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI
    _restype_ = _Long
    _argtypes_ = _WORDS


# long syscall(long number, ...); -- syscall(2)
_open_library: Any = dlopen  # typeshed does not know that None names the program itself
_address = dlsym(_open_library(None, 0), "syscall")
_release: Any = _ReleasingFunction(_address)
_hold: Any = _HoldingFunction(_address)

# name -> (x86_64, generic table: aarch64, riscv64, loongarch64). From asm/unistd_64.h and
# asm-generic/unistd.h; numbers from 424 on are the same everywhere.
_COLUMN = 0 if posix.uname().machine == "x86_64" else 1
_NUMBERS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "prctl": (157, 167),
    "capget": (125, 90),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "keyctl": (250, 219),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "set_mempolicy": (238, 237),
    "bpf": (321, 280),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "flock": (73, 32),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "syncfs": (306, 267),
    "waitid": (247, 95),
    "rt_sigprocmask": (14, 135),
    "rt_sigaction": (13, 134),
    "prlimit64": (302, 261),
    "getcwd": (79, 17),
    "setgroups": (116, 159),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "exit_group": (231, 94),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "inotify_rm_watch": (255, 28),
    "memfd_create": (319, 279),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "name_to_handle_at": (303, 264),
    "pidfd_send_signal": (424, 424),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "faccessat2": (439, 439),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
}
NUMBER = {name: row[_COLUMN] for name, row in _NUMBERS.items()}

EINTR = 4
ENOSYS = 38


def raise_errno(number: int, syscall: str, path: Path | None = None) -> NoReturn:
    """Raise what a failed call left behind, naming the call."""
    shown = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    error = OSError(number, posix.strerror(number), shown)
    error.add_note("syscall: " + syscall)
    raise error


def call(name: str, *args: int | bytes | Any | None, path: Path | None = None) -> int:
    """Any system call of the table by name, retried on EINTR."""
    number = NUMBER[name]
    padding = (0,) * (6 - len(args))
    while True:
        result: int = _release(number, *args, *padding)
        if result != -1:
            return result
        error = get_errno()
        if error != EINTR:
            raise_errno(error, name, path)


def encode(text: Path) -> bytes:
    """A path or name as the bytes a C string holds; refuses an embedded NUL, which C would cut at."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data


def _encode_or_null(text: Path | None) -> bytes | None:
    return None if text is None else encode(text)


def buffer(data: bytearray) -> Any:
    """The bytes of `data` as something a call can write into."""
    return (_Byte * len(data)).from_buffer(data)


# ---------------------------------------------------------------------------------------- mounting


# int mount(const char *source, const char *target, const char *fstype, unsigned long flags,
#           const void *data); -- mount(2)
def mount(
    source: Path | None, target: Path, fstype: Path | None, flags: int = 0, data: Path | None = None
) -> None:
    call(
        "mount",
        _encode_or_null(source),
        encode(target),
        _encode_or_null(fstype),
        flags,
        _encode_or_null(data),
        path=target,
    )


# int umount2(const char *target, int flags); -- umount2(2)
def umount2(target: Path, flags: int = 0) -> None:
    call("umount2", encode(target), flags, path=target)


# int pivot_root(const char *new_root, const char *put_old); -- pivot_root(2)
def pivot_root(new_root: Path, put_old: Path) -> None:
    call("pivot_root", encode(new_root), encode(put_old), path=new_root)


# int fsopen(const char *fsname, unsigned int flags); -- fsopen(2)
def fsopen(fstype: Path, flags: int = c.FSOPEN_CLOEXEC) -> int:
    return call("fsopen", encode(fstype), flags, path=fstype)


# int fspick(int dirfd, const char *path, unsigned int flags); -- fspick(2)
def fspick(dirfd: int, path: Path, flags: int = c.FSPICK_CLOEXEC) -> int:
    return call("fspick", dirfd, encode(path), flags, path=path)


# int fsconfig(int fd, unsigned int cmd, const char *key, const void *value, int aux); -- fsconfig(2)
def fsconfig_flag(fd: int, key: Path) -> None:
    call("fsconfig", fd, c.FSCONFIG_SET_FLAG, encode(key), None, 0, path=key)


def fsconfig_string(fd: int, key: Path, value: Path) -> None:
    call("fsconfig", fd, c.FSCONFIG_SET_STRING, encode(key), encode(value), 0, path=key)


def fsconfig_fd(fd: int, key: Path, value_fd: int) -> None:
    call("fsconfig", fd, c.FSCONFIG_SET_FD, encode(key), None, value_fd, path=key)


def fsconfig_create(fd: int) -> None:
    call("fsconfig", fd, c.FSCONFIG_CMD_CREATE, None, None, 0)


def fsconfig_reconfigure(fd: int) -> None:
    call("fsconfig", fd, c.FSCONFIG_CMD_RECONFIGURE, None, None, 0)


# int fsmount(int fsfd, unsigned int flags, unsigned int attr_flags); -- fsmount(2)
def fsmount(fd: int, attributes: int = 0, flags: int = c.FSMOUNT_CLOEXEC) -> int:
    return call("fsmount", fd, flags, attributes)


# int open_tree(int dirfd, const char *path, unsigned int flags); -- open_tree(2)
def open_tree(dirfd: int, path: Path, flags: int) -> int:
    return call("open_tree", dirfd, encode(path), flags | c.OPEN_TREE_CLOEXEC, path=path)


# int move_mount(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
#   -- move_mount(2)
def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int) -> None:
    call("move_mount", from_fd, encode(from_path), to_fd, encode(to_path), flags, path=to_path)


def move_mount_fd(mount_fd: int, target_fd: int) -> None:
    """Put a detached mount on the directory or file that `target_fd` holds; no path is looked up."""
    move_mount(mount_fd, b"", target_fd, b"", c.MOVE_MOUNT_F_EMPTY_PATH | c.MOVE_MOUNT_T_EMPTY_PATH)


# int mount_setattr(int dirfd, const char *path, unsigned flags, struct mount_attr *attr, size_t size);
#   -- mount_setattr(2)
def mount_setattr(
    dirfd: int,
    path: Path,
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = False,
) -> None:
    attributes = pack("=QQQQ", set_attributes, clear_attributes, propagation, userns_fd)
    flags = c.AT_EMPTY_PATH if not path else 0
    if recursive:
        flags |= c.AT_RECURSIVE
    call("mount_setattr", dirfd, encode(path), flags, attributes, len(attributes), path=path)


# int statfs(const char *path, struct statfs *buf); int fstatfs(int fd, ...); -- statfs(2)
def filesystem_type(target: Path | int) -> int:
    """f_type of the filesystem that a path or descriptor lies on (a *_MAGIC of constants)."""
    room = bytearray(120)
    if isinstance(target, int):
        call("fstatfs", target, buffer(room))
    else:
        call("statfs", encode(target), buffer(room), path=target)
    magic: int = unpack_from("=q", room)[0]
    return magic


# int syncfs(int fd); -- syncfs(2)
def syncfs(fd: int) -> None:
    call("syncfs", fd)


# ------------------------------------------------------------------------------ processes, namespaces


# long clone3(struct clone_args *cl_args, size_t size); -- clone3(2)
def clone3(
    flags: int, *, cgroup_fd: int = -1, exit_signal: int = 17, pidfd: bool = False
) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child. Only from a single-threaded process.

    No memory is shared and no stack given, so the child returns from here as after fork(2).
    """
    room = bytearray(4)
    fd_address = 0
    if pidfd:
        flags |= c.CLONE_PIDFD
        array = buffer(room)
        fd_address = _address_of(array)
    if cgroup_fd >= 0:
        flags |= c.CLONE_INTO_CGROUP
    # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, size, cgroup
    arguments = pack("=11Q", flags, fd_address, 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup_fd, 0))
    result = _hold(NUMBER["clone3"], arguments, len(arguments), 0, 0, 0, 0)
    if result == -1:
        raise_errno(get_errno(), "clone3")
    if result == 0:
        return 0, -1
    return result, unpack_from("=i", room)[0] if pidfd else -1


def _address_of(array: Any) -> int:
    return addressof(array)


# int madvise(void *addr, size_t length, int advice); -- madvise(2)
def madvise(address: int, length: int, advice: int) -> None:
    call("madvise", address, length, advice)


# int unshare(int flags); -- unshare(2)
def unshare(flags: int) -> None:
    call("unshare", flags)


# int setns(int fd, int nstype); -- setns(2)
def setns(fd: int, flags: int) -> None:
    call("setns", fd, flags)


# int pidfd_open(pid_t pid, unsigned int flags); -- pidfd_open(2)
def pidfd_open(pid: int, flags: int = 0) -> int:
    return call("pidfd_open", pid, flags)


# int pidfd_send_signal(int pidfd, int sig, siginfo_t *info, unsigned int flags);
#   -- pidfd_send_signal(2)
def pidfd_send_signal(pidfd: int, signal: int) -> None:
    call("pidfd_send_signal", pidfd, signal, None, 0)


# int pidfd_getfd(int pidfd, int targetfd, unsigned int flags); -- pidfd_getfd(2)
def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    return call("pidfd_getfd", pidfd, target_fd, 0)


# int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags);
#   -- execveat(2)
def fexec(fd: int, argv: list[bytes], environ: list[bytes]) -> NoReturn:
    """Replace this process by the program that `fd` holds; raises when that fails."""
    arg_array, environ_array = _pointers(argv), _pointers(environ)
    call("execveat", fd, b"", arg_array, environ_array, c.AT_EMPTY_PATH)
    raise AssertionError("execveat returned")


# int execve(const char *path, char *const argv[], char *const envp[]); -- execve(2)
def prepare_execve(path: Path, argv: list[str], environ: list[str], fd: int = -1) -> Any:
    """The arrays of an execve, made now so that later there is nothing to allocate. With `fd` that file is
    executed, and `path` is only its name in a failure."""
    return (
        fd,
        encode(path),
        _pointers([encode(text) for text in argv]),
        _pointers([encode(text) for text in environ]),
    )


def run_prepared(prepared: Any) -> NoReturn:
    fd, path, argv, environ = prepared
    if fd < 0:
        call("execve", path, argv, environ, path=path)
    else:
        call("execveat", fd, b"", argv, environ, c.AT_EMPTY_PATH, path=path)
    raise AssertionError("execve returned")


def _pointers(strings: list[bytes]) -> Any:
    """A NULL-terminated char *[]; the array keeps its strings alive."""
    array = (_CharPointer * (len(strings) + 1))()
    for index, text in enumerate(strings):
        array[index] = encode(text)
    return array


class _CharPointer(_Value):
    _type_ = "z"


# int close_range(unsigned int first, unsigned int last, unsigned int flags); -- close_range(2)
def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    if first <= last:
        call("close_range", first, last, flags)


# int prctl(int option, unsigned long arg2, ... arg5); -- prctl(2)
def prctl(option: int, arg2: int | bytes = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return call("prctl", option, arg2, arg3, arg4, arg5)


# int sethostname(const char *name, size_t len); -- sethostname(2)
def sethostname(name: Path) -> None:
    data = encode(name)
    call("sethostname", data, len(data))


# int setdomainname(const char *name, size_t len); -- setdomainname(2)
def setdomainname(name: Path) -> None:
    data = encode(name)
    call("setdomainname", data, len(data))


# int personality(unsigned long persona); -- personality(2)
def personality(persona: int) -> int:
    return call("personality", persona)


# int sched_setattr(pid_t pid, struct sched_attr *attr, unsigned int flags); -- sched_setattr(2)
def sched_setattr(
    pid: int,
    *,
    policy: int,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    runtime_ns: int = 0,
    deadline_ns: int = 0,
    period_ns: int = 0,
) -> None:
    size = 48
    attributes = pack(
        "=IIQiIQQQ", size, policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns
    )
    call("sched_setattr", pid, attributes, 0)


# int ioprio_set(int which, int who, int ioprio); -- ioprio_set(2)
def ioprio_set(io_class: int, level: int, pid: int = 0) -> None:
    call("ioprio_set", c.IOPRIO_WHO_PROCESS, pid, io_class << c.IOPRIO_CLASS_SHIFT | level)


# long set_mempolicy(int mode, const unsigned long *nodemask, unsigned long maxnode);
#   -- set_mempolicy(2)
def set_mempolicy(mode: int, nodes: int) -> None:
    """`nodes` is a bit mask of NUMA nodes; 0 passes none."""
    if not nodes:
        call("set_mempolicy", mode, None, 0)
        return
    length = (nodes.bit_length() + 63) // 64 * 8
    # The kernel reads maxnode - 1 bits.
    call("set_mempolicy", mode, nodes.to_bytes(length, "little"), length * 8 + 1)


# long keyctl(KEYCTL_JOIN_SESSION_KEYRING, char *name); -- keyctl(2)
def keyctl_join_session(name: Path | None) -> int:
    return call("keyctl", c.KEYCTL_JOIN_SESSION_KEYRING, _encode_or_null(name))


def keyctl_set_permissions(key: int, permissions: int) -> None:
    call("keyctl", c.KEYCTL_SETPERM, key, permissions)


def keyctl_describe(key: int) -> bytes:
    """The key's "type;uid;gid;permissions;description"."""
    room = bytearray(512)
    length = call("keyctl", c.KEYCTL_DESCRIBE, key, buffer(room), len(room))
    return bytes(room[: max(length - 1, 0)])


# ------------------------------------------------------------------------------------- credentials

_CAPABILITY_VERSION_3 = 0x20080522


# int capset(cap_user_header_t hdrp, const cap_user_data_t datap); -- capset(2)
def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Each set as a bit mask over constants.CAPS."""
    low = 0xFFFFFFFF
    sets = (effective, permitted, inheritable)
    data = pack("=6I", *(mask & low for mask in sets), *(mask >> 32 for mask in sets))
    call("capset", pack("=Ii", _CAPABILITY_VERSION_3, 0), data)


# int capget(cap_user_header_t hdrp, cap_user_data_t datap); -- capset(2)
def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this thread."""
    room = bytearray(24)
    call("capget", pack("=Ii", _CAPABILITY_VERSION_3, 0), buffer(room))
    e0, p0, i0, e1, p1, i1 = unpack_from("=6I", room)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


# void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset); -- mmap(2)
def memfd_page() -> tuple[int, Any]:
    """(descriptor, its first page as memory of ours): whoever has the descriptor shares the memory."""
    fd = call("memfd_create", b"page", c.MFD_CLOEXEC)
    posix.ftruncate(fd, 4096)
    where = call("mmap", 0, 4096, 3, 1, fd, 0)  # PROT_READ | PROT_WRITE, MAP_SHARED
    return fd, (_Byte * 4096).from_address(where)


# int seccomp(unsigned int operation, unsigned int flags, void *args); -- seccomp(2)
def seccomp_filter(instructions: bytes, flags: int = 0) -> int:
    """Install a classic BPF program (8 bytes an instruction). The listener when asked for, else 0."""
    program = (_Byte * len(instructions)).from_buffer_copy(instructions)
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    header = pack("=H6xQ", len(instructions) // 8, _address_of(program))
    return call("seccomp", c.SECCOMP_SET_MODE_FILTER, flags, header)


def seccomp_action_available(action: int) -> bool:
    try:
        call("seccomp", c.SECCOMP_GET_ACTION_AVAIL, 0, pack("=I", action))
    except OSError:
        return False
    return True


# The raw calls change this thread alone. glibc's wrappers signal every thread it knows of, which in a
# child made by a raw clone is bookkeeping about threads that are not there.
# int setgroups(size_t size, const gid_t *list); -- setgroups(2)
def setgroups(groups: tuple[int, ...] | list[int]) -> None:
    call("setgroups", len(groups), pack(f"={len(groups)}I", *groups) if groups else None)


# int setresgid(gid_t rgid, gid_t egid, gid_t sgid); -- setresuid(2)
def setresgid(gid: int) -> None:
    call("setresgid", gid, gid, gid)


# int setresuid(uid_t ruid, uid_t euid, uid_t suid); -- setresuid(2)
def setresuid(uid: int) -> None:
    call("setresuid", uid, uid, uid)


# int prlimit(pid_t pid, int resource, const struct rlimit *new, struct rlimit *old); -- getrlimit(2)
def prlimit(pid: int, resource: int, limits: tuple[int, int] | None = None) -> tuple[int, int]:
    """Set (soft, hard) when given; the limits before. RLIM_INFINITY is 2**64 - 1."""
    room = bytearray(16)
    new = None if limits is None else pack("=QQ", *limits)
    call("prlimit64", pid, resource, new, buffer(room))
    soft, hard = unpack_from("=QQ", room)
    return soft, hard


# int rt_sigprocmask(int how, const kernel_sigset_t *set, kernel_sigset_t *old, size_t size);
#   -- sigprocmask(2)
def unblock_all_signals() -> None:
    call("rt_sigprocmask", 2, bytes(8), None, 8)


# int sigaction(int signum, const struct sigaction *act, ...); -- sigaction(2)
def default_signal(number: int) -> None:
    """SIG_DFL for one signal, below Python's own handler table."""
    call("rt_sigaction", number, bytes(32), None, 8)


# ------------------------------------------------------------------------------------------- files


# long openat2(int dirfd, const char *path, struct open_how *how, size_t size); -- openat2(2)
def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """O_CLOEXEC is always added. EAGAIN (a rename raced with RESOLVE_IN_ROOT) is tried again."""
    how = pack("=QQQ", flags | posix.O_CLOEXEC, mode, resolve)
    name = encode(path)
    for _ in range(128):
        try:
            return call("openat2", dirfd, name, how, len(how), path=path)
        except BlockingIOError:
            continue
    return call("openat2", dirfd, name, how, len(how), path=path)


# int fcntl(int fd, int op, long arg); -- fcntl(2)
def fcntl(fd: int, operation: int, argument: int = 0) -> int:
    return call("fcntl", fd, operation, argument)


# int flock(int fd, int op); -- flock(2)
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8


def flock(fd: int, operation: int) -> None:
    call("flock", fd, operation)


# int ioctl(int fd, unsigned long op, ...); -- ioctl(2)
def ioctl(fd: int, request: int, argument: int | bytes | Any = 0) -> int:
    return call("ioctl", fd, request, argument)


# char *getcwd(char *buf, size_t size); -- getcwd(2)
def getcwd_raw() -> bytes:
    """The kernel's own answer: "(unreachable)..." when the directory is outside this root."""
    room = bytearray(4097)
    length = call("getcwd", buffer(room), len(room))
    return bytes(room[: max(length - 1, 0)])


# int bpf(int cmd, union bpf_attr *attr, unsigned int size); -- bpf(2)
def bpf(command: int, attributes: bytes | bytearray) -> int:
    if isinstance(attributes, bytearray):
        return call("bpf", command, buffer(attributes), len(attributes))
    return call("bpf", command, attributes, len(attributes))


def address(data: bytes | bytearray) -> tuple[int, Any]:
    """(address, owner) of a copy of `data` for structures that hold pointers; keep the owner alive."""
    array = (_Byte * len(data)).from_buffer_copy(bytes(data))
    return _address_of(array), array


def memfd(name: str, data: bytes, *, executable: bool = False) -> int:
    """A sealed anonymous file that holds `data`."""
    flags = c.MFD_CLOEXEC | c.MFD_ALLOW_SEALING
    label = encode(name)
    try:
        fd = call("memfd_create", label, flags | (c.MFD_EXEC if executable else 0))
    except OSError:
        fd = call("memfd_create", label, flags)  # before Linux 6.3 MFD_EXEC is unknown
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]
    posix.lseek(fd, 0, 0)
    fcntl(fd, c.F_ADD_SEALS, c.F_SEAL_WRITE | c.F_SEAL_GROW | c.F_SEAL_SHRINK | c.F_SEAL_SEAL)
    return fd


# int inotify_add_watch(int fd, const char *pathname, uint32_t mask); -- inotify(7)
def inotify_init() -> int:
    """A descriptor that reports what happens to watched files; non-blocking, close-on-exec."""
    return call("inotify_init1", c.IN_NONBLOCK | c.IN_CLOEXEC)


def inotify_add_watch(fd: int, path: Path, mask: int) -> int:
    """Watch a path; the watch descriptor, the same one again for the same inode."""
    return call("inotify_add_watch", fd, encode(path), mask, path=path)


def inotify_remove_watch(fd: int, watch: int) -> None:
    call("inotify_rm_watch", fd, watch)
