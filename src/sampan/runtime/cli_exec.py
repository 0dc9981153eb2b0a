"""exec of sampan-oci."""

from __future__ import annotations

from sampan.errors import Conflict, InvalidArgument, NotFound
from sampan.linux.fastjson import loads
from sampan.linux.fds import close_quietly
from sampan.linux.paths import clean, exists, read_file, replace_file, write_file

from . import channel, foreground
from .cli_flags import check_terminal, integer, preserved
from .join import join, make_join_plan
from .state import CREATED, PAUSED, RUNNING, STOPPED, refuse
from .validate import validate_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.spec.runtime import Process, Spec

    from .cli import Context
    from .cli_flags import Parsed
    from .container import Container


def execute(context: Context, parsed: Parsed) -> int:
    container = context.store().load(parsed.operands[0])
    status = container.status()
    if status == STOPPED or (status == PAUSED and not parsed.flag("ignore-paused")):
        raise refuse("exec", status)
    if status not in (CREATED, RUNNING, PAUSED):
        raise Conflict(f"cannot exec in a container in the {status} state")
    spec = container.spec()
    process = _process(parsed, spec)
    detach = parsed.flag("detach")
    check_terminal(process, parsed, detach=detach)
    if not detach:
        foreground.block_signals()
    plan = make_join_plan(
        process,
        spec=spec,
        pid=container.state.pid,
        start_time=container.state.start_time,
        container_id=container.state.id,
        bundle=container.state.bundle,
        preserve_fds=preserved(parsed.number("preserve-fds")),
        seccomp_cache=context.root + "/.seccomp",
    )
    if not detach:
        plan.on_console = foreground.keep_line_ends
    if context.debug:
        for line in plan.describe():
            context.log.debug(line)
    socket = parsed.text("console-socket")
    console = channel.connect(socket) if socket else -1
    child = join(plan, cgroup=_cgroup_of(container, parsed), console_socket=console)
    close_quietly(console)
    if parsed.text("pid-file"):
        replace_file(parsed.text("pid-file"), b"%d" % child.pid)
    if parsed.text("pidfd-socket"):
        channel.send_pidfd(parsed.text("pidfd-socket"), child.pidfd)
    return 0 if detach else foreground.stay(child)


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
        # One path for all of v1's hierarchies need not be in each of them, but somewhere it must be.
        anywhere = any(exists(directory + below[""]) for directory in paths.values())
        for controller, directory in paths.items():
            place = directory + below.get(controller, below[""])
            if controller not in below and anywhere and not exists(place):
                place = directory
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
        raise InvalidArgument(f"bad sub cgroup path: {path}: `..` components are not allowed")
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


HANDLERS = {"exec": execute}
