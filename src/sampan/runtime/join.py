"""Running one more process in a container that runs: exec.

    plan = make_join_plan(process, spec=spec, pid=pid, start_time=start)
    child = join(plan, stdio=(0, 1, 2), cgroup=manager)   # returns when the program runs, else LaunchError
    ... wait on child.pidfd; child.console_fd with process.terminal ...

One fork: we enter the container's pid namespace for our children only (setns(pidfd, CLONE_NEWPID)), clone,
and go back; the child is born there as our own child and then joins everything else in one setns. It is
not dumpable and holds nothing of ours from its first line on (rule P3, CVE-2016-9962).
Sources: setns(2), pid_namespaces(7).
"""

from __future__ import annotations

import posix

from sampan.errors import InvalidArgument
from sampan.linux import constants as c
from sampan.linux.fds import close_quietly, socketpair
from sampan.linux.process import open_pidfd, set_dumpable
from sampan.linux.procfs import denies_setgroups
from sampan.linux.syscalls import clone3, prlimit, setns

from . import channel, execution, identity, security, springboard
from .channel import LaunchError, describe_error
from .child import Child, Execution
from .demands import (
    ALL_CAPABILITIES,
    CapabilitySets,
    affinity_steps,
    capability_sets,
    compile_filter,
    every_cpu,
    finish_steps,
    memory_policy_steps,
    personality_steps,
    rlimits,
    scheduling_steps,
    unique,
)
from .init import arrange_stdio, close_except, forbid_imports, report
from .notify import hand_over
from .steps import Stage, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any, NoReturn

    from sampan.cgroups.manager import Manager
    from sampan.spec.runtime import Process, Spec

    from .seccomp_cache import Program

# setns(pidfd) takes them together; the user namespace is first joined by the kernel itself.
JOINABLE = ("user", "mount", "uts", "ipc", "network", "cgroup", "time")


class JoinPlan:
    """One process to run inside: everything decided before it is made."""

    __slots__ = (
        "args", "before", "environ", "finish", "on_console", "pid", "preserve_fds", "rlimits", "springboard", "start_time",
        "state", "terminal", "uid",
    )  # fmt: skip

    def __init__(self) -> None:
        self.pid = 0
        self.start_time = 0
        self.args: tuple[str, ...] = ()
        self.environ: tuple[str, ...] = ()
        self.uid = 0
        self.terminal = False
        self.on_console: Callable[[int], None] | None = (
            None  # gets the master before the program runs
        )
        self.springboard = False
        self.preserve_fds: tuple[int, ...] = ()
        self.rlimits: tuple[tuple[int, int, int], ...] = ()
        self.state: dict[str, Any] = {}
        self.before: tuple[Step, ...] = ()
        self.finish: tuple[Step, ...] = ()

    def describe(self) -> list[str]:
        return [
            f"clone a process into the pid namespace of process {self.pid}",
            *(step.describe() for step in (*self.before, *self.finish)),
            "execute " + " ".join(self.args),
        ]


def make_join_plan(
    process: Process,
    *,
    spec: Spec,
    pid: int,
    start_time: int,
    container_id: str = "",
    bundle: str = "",
    program: Program | None = None,
    all_capabilities: bool = False,
    preserve_fds: tuple[int, ...] = (),
    seccomp_cache: str = "",
) -> JoinPlan:
    """`spec` is the container's: what `process` leaves out (rlimits, oomScoreAdj, seccomp) comes from there.

    program            the container's compiled filter, when the caller has it already
    all_capabilities   exec --privileged
    """
    if not process.get("args"):
        raise InvalidArgument("process.args: must not be empty")
    container: Process = spec.get("process") or {"cwd": "/"}
    plan = JoinPlan()
    plan.pid, plan.start_time = pid, start_time
    plan.state = {
        "ociVersion": spec.get("ociVersion", "1.0.0"),
        "id": container_id,
        "status": "running",
        "pid": pid,
        "bundle": bundle,
    }
    plan.args = tuple(process["args"])
    plan.environ = unique(process.get("env") or ())
    plan.uid = (process.get("user") or {}).get("uid", 0)
    plan.terminal = process.get("terminal", False)
    plan.preserve_fds = preserve_fds
    plan.rlimits = rlimits(process) or rlimits(container)
    if program is None:
        program = compile_filter(
            spec.get("linux", {}).get("seccomp"), extra={"seccomp_cache": seccomp_cache}
        )
    plan.springboard = springboard.is_wanted(process, program)
    plan.before = tuple(_before(process, spec, container_id))
    sets = capability_sets(process.get("capabilities"))
    if all_capabilities:
        every = ALL_CAPABILITIES
        sets = CapabilitySets(bounding=every, effective=every, permitted=every)
    plan.finish = (
        *affinity_steps(process, "final"),
        *finish_steps(process, sets, program, rootless=posix.geteuid() != 0 or denies_setgroups()),
    )
    return plan


def _before(process: Process, spec: Spec, container_id: str) -> list[Step]:
    container: Process = spec.get("process") or {"cwd": "/"}
    steps = []
    adjustment = process.get("oomScoreAdj", container.get("oomScoreAdj"))
    if adjustment is not None:
        steps.append(Step(f"set oom_score_adj to {adjustment}", security.set_oom_score, adjustment))
    steps.append(
        Step("join the cgroup", identity.join_cgroup, blame="unable to apply cgroup configuration")
    )
    steps += affinity_steps(process, "initial") or [every_cpu()]
    steps.append(Step("join the container's namespaces", join_namespaces))
    steps.append(Step("become root of the user namespace", identity.become_root))
    steps.append(Step("find the root", identity.use_current_root))
    steps += scheduling_steps(process, spec)
    steps += [*memory_policy_steps(spec), *personality_steps(spec)]
    steps.append(
        Step(
            "join a session keyring",
            security.new_keyring,
            f"_ses.{container_id}" if container_id else None,
            process.get("selinuxLabel", ""),
        )
    )
    cwd = process.get("cwd") or "/"
    if process.get("terminal"):
        from . import devices

        size = process.get("consoleSize")
        window = (size["height"], size["width"]) if size else None
        owner = (process.get("user") or {}).get("uid", 0)
        steps.append(Step("make the console", devices.make_console, window, owner, False))
    if process.get("selinuxLabel") or process.get("apparmorProfile"):
        from . import mounting

        steps.append(Step("have a verified procfs", mounting.have_proc))
    blame = f'chdir to cwd ("{cwd}") set in config.json failed'
    steps.append(Step(f"go to {cwd}", security.enter_directory, cwd, blame=blame))
    return steps


def differing_namespaces(pid: int) -> int:
    """CLONE_NEW* flags of the namespaces in which a process is and we are not."""
    flags = 0
    for kind in JOINABLE:
        name = c.NAMESPACE_FILES[kind]
        try:
            theirs = posix.stat(f"/proc/{pid}/ns/{name}")
            ours = posix.stat(f"/proc/self/ns/{name}")
        except FileNotFoundError:
            continue  # this kernel has no such namespace
        if (theirs.st_ino, theirs.st_dev) != (ours.st_ino, ours.st_dev):
            flags |= c.NAMESPACE_FLAGS[kind]
    return flags


def join_namespaces(stage: Stage) -> None:
    """All in one call. A container that shares our mount tree has its root by chroot: follow it there."""
    flags = stage.handles["flags"]
    if "joined" in stage.handles:
        return  # by the first stage
    if not flags & c.CLONE_NEWNS:
        identity.enter_root_of(stage, "root")
    if flags:
        setns(stage.handles["pidfd"], flags)


def join(
    plan: JoinPlan,
    *,
    stdio: tuple[int, ...] = (0, 1, 2),
    cgroup: Manager | None = None,
    console_socket: int = -1,
) -> Child:
    """Make the process and see it through execve; LaunchError, and nothing left, when that fails."""
    handles: dict[str, int] = {}
    try:
        pidfd = open_pidfd(plan.pid, plan.start_time)
    except ProcessLookupError:
        raise LaunchError("cannot exec in a stopped container", errno=3) from None
    handles["pidfd"] = pidfd
    try:
        flags = differing_namespaces(plan.pid)
        root = (
            -1
            if flags & c.CLONE_NEWNS
            else posix.open(f"/proc/{plan.pid}/root", posix.O_PATH | posix.O_CLOEXEC)
        )
        handles["root"] = root
        return _join(plan, stdio, cgroup, handles, flags, console_socket)
    except OSError as error:
        number, text = describe_error(error)
        raise LaunchError(text, errno=number) from error
    finally:
        close_quietly(pidfd, handles.get("root", -1))


def _join(
    plan: JoinPlan,
    stdio: tuple[int, ...],
    cgroup: Manager | None,
    handles: dict[str, int],
    flags: int,
    console_socket: int,
) -> Child:
    ours, theirs = socketpair()
    cgroup_fd = cgroup.clone_fd() if cgroup is not None else -1
    back = posix.open("/proc/self/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC)
    staged = False
    try:
        try:
            setns(
                back, c.CLONE_NEWPID
            )  # could we come back? Not where it is the host's and we are not
            setns(handles["pidfd"], c.CLONE_NEWPID)
        except PermissionError:
            staged = True  # not root: the right to the pid namespace comes with the user namespace
        pid, pidfd = clone3(0, cgroup_fd=cgroup_fd, pidfd=True)
        if pid == 0:
            stage = Stage(theirs)
            stage.stdio = () if plan.terminal else stdio
            stage.manager = cgroup
            stage.born_inside = cgroup_fd >= 0
            stage.console_socket = console_socket
            stage.handles = handles
            if staged:
                _first_stage(stage, flags)
            _run_joining(plan, stage, flags)
    finally:
        if not staged:
            setns(back, c.CLONE_NEWPID)
        close_quietly(back, cgroup_fd)
        theirs.close()
    child = Child(pid, pidfd)
    try:
        _see_through(plan, child, ours)
    except BaseException:
        child.kill()
        close_quietly(child.pidfd, child.console_fd)
        raise
    finally:
        ours.close()
    return child


def _first_stage(stage: Stage, flags: int) -> None:
    """Without root: join the user namespace and with it all others, then make the process in the pid namespace,
    as our sibling; this one only says its number and leaves."""
    try:
        set_dumpable(False)
        setns(stage.handles["pidfd"], flags)
        setns(stage.handles["pidfd"], c.CLONE_NEWPID)
        stage.handles["joined"] = -1
        pid, _ = clone3(c.CLONE_PARENT, exit_signal=0)
        if not pid:
            return
        channel.send(stage.channel, channel.INIT_PID, str(pid))
        posix._exit(0)
    except BaseException as error:  # noqa: BLE001 - this process may only leave by _exit
        number, text = describe_error(error)
        channel.send_failure(
            stage.channel,
            number=number,
            step="join",
            text=f"join the container's namespaces: {text}",
        )
        posix._exit(1)


def _run_joining(plan: JoinPlan, stage: Stage, flags: int) -> NoReturn:
    """The child's whole life. Never returns, never raises."""
    try:
        stage.now = "become a process of our own"
        forbid_imports()
        set_dumpable(False)
        posix.setsid()
        arrange_stdio(stage)
        keep = {0, 1, 2, stage.channel.fileno(), stage.console_socket, *stage.handles.values()}
        close_except(keep.union(plan.preserve_fds))
        stage.handles["flags"] = flags
        stage.run(plan.before)
        stage.now = "find the executable"
        environ = list(plan.environ)
        execution.set_home(stage, environ, plan.uid)
        execution.find_executable(stage, plan.args[0], environ)
        for warning in stage.warnings:
            channel.send(stage.channel, channel.WARNING, warning)
        channel.send(stage.channel, channel.READY)
        stage.now = "wait for start"
        identity.expect_go(stage)
        if plan.springboard:
            execution.put_springboard_under(stage)
        prepared = execution.prepare(stage, list(plan.args), environ)
        keep = {0, 1, 2, *plan.preserve_fds, stage.channel.fileno(), stage.proc_fd}
        close_except(keep | {stage.springboard_fd, stage.report_fd})
        for number in plan.preserve_fds:
            posix.set_inheritable(number, True)
        stage.run(plan.finish)
        execution.execute(stage, prepared)
    except BaseException as error:  # noqa: BLE001 - the boundary of the process
        report(stage, error)
    posix._exit(1)


def _see_through(plan: JoinPlan, child: Child, sock: socket) -> None:
    watch = Execution()
    while True:
        kind, text, fds = channel.receive(sock)
        if kind == channel.READY:
            for resource, soft, hard in plan.rlimits:
                prlimit(child.pid, resource, (soft, hard))
            channel.send(sock, channel.GO)
        elif kind == channel.INIT_PID:
            child.replace(int(text))
        elif kind == channel.CONSOLE:
            child.console_fd = fds[0]
            if plan.on_console is not None:
                plan.on_console(fds[0])
        elif kind == channel.LISTENER:
            state = {**plan.state, "pid": child.pid}
            hand_over(sock, child.pidfd, text, fds, state)
        elif kind == channel.FAILED:
            raise channel.parse_failure(text)
        elif kind == channel.EXECUTING:
            watch.expect(text, fds[0])
        elif kind == b"":
            watch.check()
            break
