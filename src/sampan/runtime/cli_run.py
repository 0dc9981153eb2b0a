"""create, run, start, exec of sampan-oci."""

from __future__ import annotations

import posix

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.linux.fastjson import loads
from sampan.linux.fds import close_quietly
from sampan.linux.paths import clean, exists, read_file, replace_file, write_file

from . import container as verbs
from . import foreground
from .channel import LaunchError
from .cli import environment
from .cli_flags import integer
from .state import CREATED, PAUSED, RUNNING, STOPPED, refuse
from .validate import validate_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime import Process, Spec

    from .cli import Context
    from .cli_flags import Parsed
    from .container import Container, CreateOptions
    from .launch import Child
    from .readiness import Readiness

MAX_PRESERVED = 65536


def create(context: Context, parsed: Parsed) -> int:
    container_id = parsed.operands[0]
    verbs.check_id(container_id)
    bundle, spec, text = _bundle(parsed)
    options = _options(context, parsed, spec)
    _check_terminal(spec["process"], parsed, detach=True)
    _, launch, _ = verbs.create(
        context.store(), container_id, bundle, spec, text, options, wait=True
    )
    _warn(context, launch.warnings)
    return 0


def run(context: Context, parsed: Parsed) -> int:
    container_id = parsed.operands[0]
    verbs.check_id(container_id)
    detach = parsed.flag("detach")
    bundle, spec, text = _bundle(parsed)
    options = _options(context, parsed, spec)
    _check_terminal(spec["process"], parsed, detach=detach)
    if not detach:
        foreground.block_signals()
        if not parsed.flag("no-subreaper"):
            _become_subreaper()
    store = context.store()
    container, launch, child = verbs.create(
        store, container_id, bundle, spec, text, options, wait=False
    )
    _warn(context, launch.warnings)
    readiness = _readiness(container)
    try:
        launch.start()
    except LaunchError:
        verbs.destroy(container)
        raise
    verbs.run_poststart(container)
    if detach:
        if readiness is not None:
            readiness.main_pid = child.pid
            readiness.wait(child.pidfd)
        return 0
    code = _stay(child, readiness)
    if not parsed.flag("keep"):
        _warn(context, verbs.destroy(container))
    return code


def _become_subreaper() -> None:
    from sampan.linux.process import set_subreaper

    set_subreaper()


def _stay(child: Child, readiness: Readiness | None = None) -> int:
    if child.console_fd >= 0:
        return foreground.wait_on_terminal(child, readiness)
    return foreground.wait(child, readiness)


def _readiness(container: Container) -> Readiness | None:
    """Where the program will say that it is ready, when we run under a service manager that asks for it."""
    manager = environment("NOTIFY_SOCKET")
    if not manager:
        return None
    from .readiness import listen

    return listen(container.directory, manager)


def start(context: Context, parsed: Parsed) -> int:
    container = context.store().load(parsed.operands[0])
    readiness = _readiness(container)
    try:
        pidfd = verbs.start(container)
    except LaunchError as error:
        context.log.debug(error.message)
        raise
    if readiness is not None:
        readiness.wait(pidfd)
    return 0


# ------------------------------------------------------------------------------------ bundle, options


def _bundle(parsed: Parsed) -> tuple[str, Spec, bytes]:
    bundle = parsed.text("bundle") or posix.getcwd()
    if not bundle.startswith("/"):
        bundle = clean(f"{posix.getcwd()}/{bundle}")
    config = parsed.text("config", "config.json")
    try:
        posix.stat(bundle)
    except OSError as error:
        raise NotFound(f"{bundle}: {posix.strerror(error.errno or 0).lower()}") from None
    if "config" in parsed.values and not config.startswith("/"):
        # crun: relative to where we are, and the bundle is where we are
        config = clean(f"{posix.getcwd()}/{config}")
    spec, text = verbs.load_spec(bundle, config)
    return bundle, spec, text


def _options(context: Context, parsed: Parsed, spec: Spec) -> CreateOptions:
    options = verbs.CreateOptions()
    options.cgroup_driver = context.cgroup_driver
    options.no_cgroup = context.no_cgroup
    options.rootless = context.rootless
    options.console_socket = parsed.text("console-socket")
    receiver = (spec.get("annotations") or {}).get("run.oci.pidfd_receiver", "")  # crun's way
    options.pidfd_socket = parsed.text("pidfd-socket") or receiver
    options.new_keyring = not parsed.flag("no-new-keyring")
    options.no_pivot = parsed.flag("no-pivot")
    options.pid_file = parsed.text("pid-file")
    options.preserve_fds = _preserved(parsed.number("preserve-fds") + _listen_fds(spec))
    options.seccomp_cache = context.root + "/.seccomp"
    options.notify_socket = environment("NOTIFY_SOCKET")
    if context.debug:
        options.tell = context.log.debug
    return options


def _preserved(count: int) -> tuple[int, ...]:
    """Which of the descriptors from 3 on are there. The holes are filled, so that nothing of ours falls in."""
    if not 0 <= count <= MAX_PRESERVED:
        raise InvalidArgument(f"--preserve-fds: {count} is out of range, 0 to {MAX_PRESERVED}")
    there = []
    for number in range(3, 3 + count):
        try:
            posix.fstat(number)
            there.append(number)
        except OSError:
            posix.open(
                "/", posix.O_PATH | posix.O_CLOEXEC
            )  # takes the lowest free number: this one
    return tuple(there)


def _listen_fds(spec: Spec) -> int:
    """Socket activation: descriptors that systemd opened for us are the container's (sd_listen_fds(3))."""
    count, pid = environment("LISTEN_FDS"), environment("LISTEN_PID")
    if not count or (pid and pid != str(posix.getpid())):
        return 0
    spec["process"].setdefault("env", [])
    spec["process"]["env"] += [f"LISTEN_FDS={count}", "LISTEN_PID=1"]
    return integer(count, "LISTEN_FDS")


def _check_terminal(process: Process, parsed: Parsed, *, detach: bool) -> None:
    socket = parsed.text("console-socket")
    terminal = process.get("terminal", False)
    if detach and terminal and not socket:
        raise InvalidArgument(
            "cannot allocate tty if runtime will detach without setting console socket"
        )
    if (not detach or not terminal) and socket:
        raise InvalidArgument(
            "cannot use console socket if runtime will not detach or allocate tty"
        )


def _warn(context: Context, warnings: list[str]) -> None:
    for warning in warnings:
        context.log.warning(warning)


# --------------------------------------------------------------------------------------------- exec


def execute(context: Context, parsed: Parsed) -> int:
    from .join import join, make_join_plan

    container = context.store().load(parsed.operands[0])
    status = container.status()
    if status == STOPPED or (status == PAUSED and not parsed.flag("ignore-paused")):
        raise refuse("exec", status)
    if status not in (CREATED, RUNNING, PAUSED):
        raise Conflict(f"cannot exec in a container in the {status} state")
    spec = container.spec()
    process = _process(parsed, spec)
    detach = parsed.flag("detach")
    _check_terminal(process, parsed, detach=detach)
    if not detach:
        foreground.block_signals()
    plan = make_join_plan(
        process,
        spec=spec,
        pid=container.state.pid,
        start_time=container.state.start_time,
        container_id=container.state.id,
        bundle=container.state.bundle,
        preserve_fds=_preserved(parsed.number("preserve-fds")),
        seccomp_cache=context.root + "/.seccomp",
    )
    if context.debug:
        for line in plan.describe():
            context.log.debug(line)
    socket = parsed.text("console-socket")
    console = verbs._connect(socket) if socket else -1
    child = join(plan, cgroup=_cgroup_of(container, parsed), console_socket=console)
    close_quietly(console)
    if parsed.text("pid-file"):
        replace_file(parsed.text("pid-file"), b"%d" % child.pid)
    if parsed.text("pidfd-socket"):
        verbs._send_pidfd(parsed.text("pidfd-socket"), child.pidfd)
    return 0 if detach else _stay(child)


def _cgroup_of(container: Container, parsed: Parsed) -> Any:
    """The container's cgroup, or the one below it that --cgroup names ("[controllers:]path")."""
    if not container.state.cgroup_path:
        return None
    manager = container.cgroup()
    if container.state.rootless and not manager.exists():
        return None  # it could not be made, and that was fine
    below = parsed.many("cgroup")
    if not below:
        return manager
    return SubCgroup(manager.paths(), below)


class SubCgroup:
    """Cgroups below the container's, as --cgroup names them: one path for all, or `controllers:path`, repeated."""

    needs_pid = False

    def __init__(self, paths: dict[str, str], wanted: list[str]) -> None:
        below = {"": ""}
        for argument in wanted:
            controllers, colon, path = argument.rpartition(":")
            if not colon and len(wanted) > 1:
                raise InvalidArgument(
                    f"invalid --cgroup argument: {argument} (missing <controller>: prefix)"
                )
            for controller in controllers.split(","):
                if controller not in paths and controller:
                    raise InvalidArgument(f"unknown controller {controller} in --cgroup")
                if controller in below and controller:
                    raise InvalidArgument(
                        f"invalid --cgroup argument(s): controller {controller} specified multiple times"
                    )
                below[controller] = _sub_path(path)
        places = {}
        for controller, directory in paths.items():
            place = directory + below.get(controller, below[""])
            if not controller and len(paths) > 1 and not exists(place):
                place = directory  # the unified hierarchy beside those of v1 holds no limits
            if not exists(place):
                raise NotFound(
                    f"error adding pid to cgroups: open {place}/cgroup.procs: no such file or directory"
                )
            places[place] = True
        self.directories = list(places)

    def clone_fd(self) -> int:
        return -1

    def attach_self(self, *, born_inside: bool = False) -> None:
        for directory in self.directories:
            name = "tasks" if exists(directory + "/tasks") else "cgroup.procs"
            write_file(f"{directory}/{name}", b"0")


def _sub_path(path: str) -> str:
    if ".." in path.split("/"):
        raise InvalidArgument(f"bad sub cgroup path: {path}")
    inside = clean("/" + path)
    return "" if inside == "/" else inside


def _process(parsed: Parsed, spec: Spec) -> Process:
    """What to run: a process.json, or the container's own process with the flags laid over it."""
    path = parsed.text("process")
    if path:
        try:
            process: Any = loads(read_file(path))
        except ValueError as error:
            raise InvalidArgument(f"{path}: {error}") from None
        validate_process(process)
        return process  # type: ignore[no-any-return]
    if len(parsed.operands) < 2:
        raise InvalidArgument("exec args cannot be empty")
    process = dict(spec["process"])
    process["args"] = parsed.operands[1:]
    process["terminal"] = parsed.flag("tty")
    process.pop("consoleSize", None)
    if parsed.text("cwd"):
        process["cwd"] = parsed.text("cwd")
    if parsed.text("apparmor"):
        process["apparmorProfile"] = parsed.text("apparmor")
    if parsed.text("process-label"):
        process["selinuxLabel"] = parsed.text("process-label")
    if "no-new-privs" in parsed.values:
        process["noNewPrivileges"] = parsed.flag("no-new-privs")
    process["env"] = [*(process.get("env") or ()), *parsed.many("env")]
    _add_capabilities(process, parsed.many("cap"))
    _set_user(process, parsed)
    validate_process(process)
    return process  # type: ignore[no-any-return]


def _add_capabilities(process: dict[str, Any], names: list[str]) -> None:
    if not names:
        return
    sets = {key: list(value or ()) for key, value in (process.get("capabilities") or {}).items()}
    wanted = [
        name.upper() if name.upper().startswith("CAP_") else "CAP_" + name.upper() for name in names
    ]
    for which in ("bounding", "effective", "permitted"):
        sets[which] = [*sets.get(which, ()), *wanted]
    if sets.get("inheritable"):
        # ambient ones need inheritable ones, and --cap gives none of those
        sets["ambient"] = [*sets.get("ambient", ()), *wanted]
    process["capabilities"] = sets


def _set_user(process: dict[str, Any], parsed: Parsed) -> None:
    user = dict(process.get("user") or {})
    text = parsed.text("user")
    if text:
        uid, colon, gid = text.partition(":")
        user["uid"] = integer(uid, "--user")
        if colon:
            user["gid"] = integer(gid, "--user")
    more = [integer(gid, "--additional-gids") for gid in parsed.many("additional-gids")]
    if more:
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *more]
    process["user"] = user


HANDLERS = {"create": create, "run": run, "start": start, "exec": execute}
