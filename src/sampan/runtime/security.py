"""Actions of the steps that give up what the process may not keep, in the order of `finish` in plan.py.

    capabilities bounded -> groups, gid, uid -> capability sets -> no_new_privs -> seccomp -> execve

Without no_new_privs a seccomp filter may be installed only with CAP_SYS_ADMIN, so it then comes before the
capability sets; with it, it is the last thing before execve.
Sources: capabilities(7), prctl(2), seccomp(2); runtime-spec config.md "Linux Process".
"""

from __future__ import annotations

import posix

from sampan.linux import constants as c
from sampan.linux.paths import S_IFCHR, S_IFMT, open_in_proc, write_file, write_in_proc
from sampan.linux.process import reset_signals, set_parent_death_signal
from sampan.linux.syscalls import (
    capget,
    capset,
    getcwd_raw,
    ioprio_set,
    keyctl_describe,
    keyctl_join_session,
    keyctl_set_permissions,
    openat2,
    personality,
    prctl,
    prlimit,
    sched_setattr,
    seccomp_filter,
    set_mempolicy,
    setgroups,
    setresgid,
    setresuid,
)

from .notify import install_with_listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .demands import CapabilitySets
    from .seccomp_cache import Program
    from .steps import Stage

EPERM, EINVAL, ENOSYS, EACCES, EDQUOT, EBADF, EROFS = 1, 22, 38, 13, 122, 9, 30
S_IFBLK = 0o060000


def set_rlimits(stage: Stage, limits: tuple[tuple[int, int, int], ...]) -> None:
    """(resource, soft, hard). Raising a hard limit needs CAP_SYS_RESOURCE, which we still have if ever."""
    for resource, soft, hard in limits:
        prlimit(0, resource, (soft, hard))


def set_oom_score(stage: Stage, value: int) -> None:
    try:
        write_file("/proc/self/oom_score_adj", b"%d" % value)
    except PermissionError:
        stage.warnings.append(f"cannot set oom_score_adj to {value}")
        raise


def set_scheduler(
    stage: Stage, policy: int, flags: int, nice: int, priority: int, times: tuple[int, int, int]
) -> None:
    runtime, deadline, period = times
    sched_setattr(
        0, policy=policy, flags=flags, nice=nice, priority=priority,
        runtime_ns=runtime, deadline_ns=deadline, period_ns=period,
    )  # fmt: skip


def set_io_priority(stage: Stage, io_class: int, level: int) -> None:
    ioprio_set(io_class, level)


def set_cpu_affinity(stage: Stage, cpus: Iterable[int]) -> None:
    posix.sched_setaffinity(0, cpus)


def set_memory_policy(stage: Stage, mode: int, nodes: int) -> None:
    set_mempolicy(mode, nodes)


def set_personality(stage: Stage, persona: int) -> None:
    personality(persona)


def new_keyring(stage: Stage, name: str | None, label: str) -> None:
    """A session keyring of the container's own; the one we inherited holds the host session's keys."""
    if label:
        write_file("/proc/thread-self/attr/keycreate", label.encode())
    try:
        key = keyctl_join_session(name)
    except OSError as error:
        if error.errno in (ENOSYS, EACCES, EDQUOT):
            return
        raise
    if label:
        write_file("/proc/thread-self/attr/keycreate", b"")
    if not key:
        return  # it is the one we have
    fields = keyctl_describe(key).split(b";")
    if len(fields) >= 4:
        # runc's choice: let the possessor's searches reach it from the user's side too
        keyctl_set_permissions(key, int(fields[3], 16) | 0x00080000)


def write_sysctls(stage: Stage, values: tuple[tuple[str, str], ...]) -> None:
    """Through the verified procfs of the container, so a forged /proc/sys gets nothing (CVE-2025-52881)."""
    for name, value in values:
        path = "sys/" + sysctl_path(name)
        try:
            write_in_proc(stage.proc_fd, path, value.encode())
        except OSError as error:
            error.filename = "/proc/" + path
            raise


def sysctl_path(name: str) -> str:
    """`net.ipv4.conf.eth0/1.x` or `net/ipv4/conf/eth0.1/x`: the first separator decides, as in sysctl(8)."""
    slash, dot = name.find("/"), name.find(".")
    if slash >= 0 and (dot < 0 or slash < dot):
        return name
    return name.translate({ord("."): "/", ord("/"): "."})


def set_exec_label(stage: Stage, attribute: str, label: str) -> None:
    """The LSM context that execve will give: `exec` (SELinux) or `apparmor/exec`, on a verified procfs."""
    fd = open_in_proc(stage.proc_fd, f"thread-self/attr/{attribute}", posix.O_WRONLY)
    try:
        posix.write(fd, label.encode())
    finally:
        posix.close(fd)


def set_apparmor(stage: Stage, profile: str) -> None:
    try:
        set_exec_label(stage, "apparmor/exec", f"exec {profile}")
    except FileNotFoundError:
        set_exec_label(stage, "exec", f"exec {profile}")


# --------------------------------------------------------------------------------------- credentials


def set_umask(stage: Stage, mask: int) -> None:
    posix.umask(mask)


def bound_capabilities(stage: Stage, keep: int, last: int) -> None:
    """Drop from the bounding set all that the container must never gain, by file capabilities either."""
    for number in range(last + 1):
        if not keep >> number & 1:
            try:
                prctl(c.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != EINVAL:  # EINVAL: this kernel ends earlier
                    raise


def give_stdio(stage: Stage, uid: int, gid: int) -> None:
    """The user may open /dev/stdout again: pipes, sockets and files on 0, 1, 2 become theirs (runc, crun).

    Devices stay as they are: they are the host's, /dev/null above all.
    """
    for fd in (0, 1, 2):
        try:
            status = posix.fstat(fd)
            if status.st_mode & S_IFMT not in (S_IFCHR, S_IFBLK) and status.st_uid != uid:
                posix.chown(fd, uid, gid)
        except OSError as error:
            # closed, of a filesystem without owners, read-only, or not ours to give
            if error.errno not in (EBADF, EPERM, EINVAL, EROFS):
                raise


def become_user(
    stage: Stage, uid: int, gid: int, groups: tuple[int, ...], may_set_groups: bool
) -> None:
    """Groups, then gid, then uid, keeping the permitted capabilities for the steps that follow."""
    prctl(c.PR_SET_KEEPCAPS, 1)
    if may_set_groups:
        setgroups(groups)
    setresgid(gid)
    setresuid(uid)
    prctl(c.PR_SET_KEEPCAPS, 0)
    if uid:
        _, permitted, inheritable = capget()
        capset(permitted, permitted, inheritable)  # setuid cleared the effective set


def set_capabilities(stage: Stage, sets: CapabilitySets) -> None:
    """The four sets, cut to what we have: an engine inside a container must not fail for one it lacks."""
    _, permitted, _ = capget()
    ambient = sets.ambient & permitted & sets.inheritable & sets.permitted
    capset(
        sets.effective & sets.permitted & permitted,
        sets.permitted & permitted,
        sets.inheritable & permitted,
    )
    try:
        prctl(c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return
    number = 0
    while ambient >> number:
        if ambient >> number & 1:
            prctl(c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_RAISE, number)
        number += 1


def set_no_new_privileges(stage: Stage) -> None:
    prctl(c.PR_SET_NO_NEW_PRIVS, 1)


def install_filter(stage: Stage, program: Program) -> None:
    """The seccomp program. With a listener the parent takes part: see notify.py."""
    if program.listener_path:
        install_with_listener(stage, program)
    else:
        seccomp_filter(program.instructions, program.flags)


def die_with_parent(stage: Stage) -> None:
    """A container without its supervisor has nobody to read its output or report its exit."""
    set_parent_death_signal(9)


def restore_signals(stage: Stage) -> None:
    reset_signals()


# ----------------------------------------------------------------------------------- working directory


def change_directory(stage: Stage, path: str) -> None:
    """Into process.cwd, made when missing, and then asked the kernel where that is.

    /proc/self/fd/N of a leaked descriptor would be outside the root (CVE-2024-21626): getcwd(2) then says
    "(unreachable)". All descriptors but stdio and the preserved ones are closed before.
    """
    try:
        _go(path)
    except FileNotFoundError:
        _make_directories(path)
        _go(path)


def _go(path: str) -> None:
    """Without magic links: whatever descriptor of ours /proc/self/fd/N would be, nobody gets there."""
    fd = openat2(c.AT_FDCWD, path, posix.O_PATH | posix.O_DIRECTORY, 0, c.RESOLVE_NO_MAGICLINKS)
    posix.fchdir(fd)
    posix.close(fd)


def enter_directory(stage: Stage, path: str) -> None:
    """Into the cwd of one more process: what is missing there stays missing."""
    posix.chdir(path)


def _make_directories(path: str) -> None:
    """Inside our own root now, so by plain path."""
    parent = path.rstrip("/").rpartition("/")[0]
    if parent:
        try:
            posix.stat(parent)
        except FileNotFoundError:
            _make_directories(parent)
    try:
        posix.mkdir(path, 0o755)
    except FileExistsError:
        pass


def check_directory(stage: Stage) -> None:
    if not getcwd_raw().startswith(b"/"):
        raise OSError(
            2,
            "current working directory is outside of container mount namespace root -- possible container breakout detected",
        )
