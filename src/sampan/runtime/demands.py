"""What a spec demands of one process, as steps and values: of process 1 (plan.py) and of an exec (join.py) alike.

    before the program is looked for    scheduling, CPUs, memory policy, personality
    finish_steps                        credentials, capabilities, seccomp: the order is security.py's
    compile_filter, capability_sets,    values decided before any process exists
    rlimits, unique

Pure, like plan.py; apart from it so that an exec does not load all that makes a root.
"""

from __future__ import annotations

import posix

from sampan.errors import InvalidArgument
from sampan.linux import constants as c

from . import security
from .steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from sampan.spec.runtime import Capabilities, LinuxSeccomp, Process, Spec

    from .seccomp_cache import Program

ALL_CAPABILITIES = (1 << len(c.CAPS)) - 1
RLIM_INFINITY = (1 << 64) - 1
MAX_CPUS = 1024  # CPU_SETSIZE; those that are not there are left out by the kernel


class CapabilitySets:
    """The five sets as bit masks over constants.CAPS."""

    __slots__ = ("ambient", "bounding", "effective", "inheritable", "permitted")

    def __init__(
        self,
        *,
        bounding: int = 0,
        effective: int = 0,
        inheritable: int = 0,
        permitted: int = 0,
        ambient: int = 0,
    ) -> None:
        self.bounding = bounding
        self.effective = effective
        self.inheritable = inheritable
        self.permitted = permitted
        self.ambient = ambient


def every_cpu() -> Step:
    """After joining the cgroup, which knows what is allowed: to which CPUs our caller was confined is none of the
    container's business, and since Linux 6.2 it would stick."""
    return Step("run on every CPU of the cgroup", security.set_cpu_affinity, range(MAX_CPUS))


def affinity_steps(process: Process, when: str) -> list[Step]:
    """execCPUAffinity, `initial` or `final`: of an exec only, process 1 has none (config.md)."""
    wanted: Mapping[str, Any] = process.get("execCPUAffinity") or {}
    cpus = wanted.get(when)
    if not cpus:
        return []
    from .numberlist import parse_list

    return [Step(f"run on CPUs {cpus}", security.set_cpu_affinity, parse_list(cpus))]


def memory_policy_steps(spec: Spec) -> list[Step]:
    """Of every process of the container: a policy is inherited, but an exec is nobody's child in it."""
    policy = spec.get("linux", {}).get("memoryPolicy")
    if not policy:
        return []
    from .numberlist import memory_policy

    mode, nodes = memory_policy(policy)
    return [Step(f"set memory policy {policy['mode']}", security.set_memory_policy, mode, nodes)]


def personality_steps(spec: Spec) -> list[Step]:
    """Of every process of the container, too."""
    personality = spec.get("linux", {}).get("personality")
    if not personality:
        return []
    persona = lookup(c.PERSONALITIES, personality["domain"], "linux.personality.domain")
    for name in personality.get("flags") or ():
        persona |= lookup(c.PERSONALITY_FLAGS, name, "linux.personality.flags")
    return [Step(f"set personality {personality['domain']}", security.set_personality, persona)]


def scheduling_steps(process: Process, spec: Spec) -> list[Step]:
    """scheduler and ioPriority."""
    steps = []
    scheduler = process.get("scheduler")
    if scheduler:
        blame = "error setting scheduler policy"
        resources: Any = spec.get("linux", {}).get("resources") or {}
        if scheduler["policy"] == "SCHED_DEADLINE" and (resources.get("cpu") or {}).get("cpus"):
            # sched(7); the words are runc's
            blame += ": process scheduler can't be used together with AllowedCPUs"
        flags = 0
        for name in scheduler.get("flags") or ():
            flags |= lookup(c.SCHED_FLAGS, name, "process.scheduler.flags")
        times = (
            scheduler.get("runtime", 0),
            scheduler.get("deadline", 0),
            scheduler.get("period", 0),
        )
        policy = lookup(c.SCHED_POLICIES, scheduler["policy"], "process.scheduler.policy")
        steps.append(
            Step(
                f"schedule by {scheduler['policy']}", security.set_scheduler, policy, flags,
                scheduler.get("nice", 0), scheduler.get("priority", 0), times,
                blame=blame,
            )
        )  # fmt: skip
    priority = process.get("ioPriority")
    if priority:
        io_class = lookup(c.IOPRIO_CLASSES, priority["class"], "process.ioPriority.class")
        level = priority.get("priority", 0)
        steps.append(Step(f"set I/O priority {level}", security.set_io_priority, io_class, level))
    return steps


def lookup(table: Mapping[str, int], name: str, field: str) -> int:
    """A word of a closed set, or an error that names the field."""
    if name not in table:
        raise InvalidArgument(f"{field}: unknown value {name!r}")
    return table[name]


def unique(environ: Iterable[str]) -> tuple[str, ...]:
    """One entry a name, the last one given: getenv(3) would take the first."""
    found = {entry.partition("=")[0]: entry for entry in environ}
    return tuple(found.values())


def rlimits(process: Process) -> tuple[tuple[int, int, int], ...]:
    found = []
    for entry in process.get("rlimits") or ():
        if entry["type"] not in c.RLIMITS:
            raise InvalidArgument(f"process.rlimits: unknown limit {entry['type']!r}")
        number = c.RLIMITS.index(entry["type"])
        found.append((number, entry["soft"] & RLIM_INFINITY, entry["hard"] & RLIM_INFINITY))
    return tuple(found)


def capability_sets(capabilities: Capabilities | None) -> CapabilitySets:
    """Names to masks. Without the field a process has none at all."""
    names: Any = capabilities or {}
    masks = {}
    for which in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        mask = 0
        for name in names.get(which) or ():
            if name not in c.CAPS:
                raise InvalidArgument(f"process.capabilities.{which}: unknown capability {name!r}")
            mask |= 1 << c.CAPS.index(name)
        masks[which] = mask
    return CapabilitySets(**masks)


def not_ambient(sets: CapabilitySets) -> list[str]:
    """Ambient ones must be permitted and inheritable too (capabilities(7)); the others are left out, and said."""
    missing = sets.ambient & ~(sets.inheritable & sets.permitted)
    return [
        f"can't raise ambient capability {name}: operation not permitted"
        for number, name in enumerate(c.CAPS)
        if missing >> number & 1
    ]


def compile_filter(
    seccomp: LinuxSeccomp | None,
    bounding: int = 0,
    extra: Mapping[str, Any] | None = None,
    *,
    strict: bool = False,
) -> Program | None:
    """The spec's seccomp section as a program, or the default profile's when `extra` asks; None without either.
    `strict`: a system call that nobody knows is an error, and not a rule for another machine."""
    wanted = (extra or {}).get("seccomp")
    if not seccomp and wanted != "default":
        return None
    from .seccomp_cache import default_program, program_for

    host = posix.uname()
    if not seccomp:
        return default_program(bounding, machine=host.machine, kernel=host.release)
    directory = "" if strict else (extra or {}).get("seccomp_cache", "")
    try:
        program = program_for(seccomp, host.machine, directory)
    except ValueError as error:
        raise InvalidArgument(f"linux.seccomp: {error}") from None
    if strict and program.unknown:
        raise InvalidArgument(f"linux.seccomp: unknown system calls: {', '.join(program.unknown)}")
    return program


def finish_steps(
    process: Process,
    sets: CapabilitySets,
    program: Program | None,
    *,
    rootless: bool = False,
    die_with_parent: bool = False,
    keep_groups: bool = False,
) -> list[Step]:
    """From the last Python decision to execve: see security.py for the order and its reasons."""
    user = process.get("user") or {}
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    groups = tuple(user.get("additionalGids") or ())
    steps = [
        Step(
            f"set the umask to {user.get('umask', 0o22):04o}",
            security.set_umask,
            user.get("umask", 0o22),
        )
    ]
    if process.get("apparmorProfile"):
        profile = process["apparmorProfile"]
        steps.append(
            Step(
                f"AppArmor profile {profile}",
                security.set_apparmor,
                profile,
                blame="unable to apply apparmor profile",
            )
        )
    if process.get("selinuxLabel"):
        label = process["selinuxLabel"]
        steps.append(Step(f"SELinux label {label}", security.set_exec_label, "exec", label))
    last = len(c.CAPS) - 1
    no_new_privileges = process.get("noNewPrivileges", False)
    filter_step = (
        []
        if program is None
        else [Step("install the seccomp filter", security.install_filter, program)]
    )
    steps.append(Step("bound the capabilities", security.bound_capabilities, sets.bounding, last))
    if uid or gid:
        steps.append(Step("give the user its standard streams", security.give_stdio, uid, gid))
    steps.append(
        Step(
            f"become user {uid}:{gid}",
            security.become_user,
            uid,
            gid,
            groups,
            not keep_groups and not (rootless and not groups),
        )
    )
    steps.append(Step("check the working directory", security.check_directory))
    steps.append(Step("restore signals", security.restore_signals))
    if (
        die_with_parent
    ):  # after the last change of user, which takes it back (prctl(2)); before seccomp
        steps.append(Step("die with the supervisor", security.die_with_parent))
    if no_new_privileges:
        steps.append(Step("forbid new privileges", security.set_no_new_privileges))
    else:
        steps += filter_step
    steps.append(
        Step("set the capabilities", security.set_capabilities, sets, blame="unable to apply caps")
    )
    if no_new_privileges:
        steps += filter_step
    return steps
