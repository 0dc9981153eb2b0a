"""sampan-oci: runc's command line over container.py, for podman, containerd, cri-o and dockerd.

Exit codes: the process's own for `run` and `exec`; 1 for an error, 255 for an exec that could not be made.
Errors are one line on stderr, and one line in the --log file in the format asked for, because containerd
and podman read it there.
"""

from __future__ import annotations

import posix
import sys

from sampan import __version__
from sampan.errors import InvalidArgument, SampanError
from sampan.log import Log, open_log

from .channel import LaunchError, describe_error
from .cli_flags import COMMANDS, GLOBAL, Command, Parsed, parse, usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from .container import Store

PROGRAM = "sampan-oci"
EXEC_FAILED = 255


class Context:
    """What the global flags decided."""

    __slots__ = (
        "cgroup_driver",
        "debug",
        "log",
        "no_cgroup",
        "program",
        "root",
        "root_given",
        "rootless",
    )

    def __init__(self, flags: Parsed, program: str) -> None:
        self.program = program
        self.root = flags.text("root") or default_root()
        self.root_given = bool(flags.text("root"))
        if not self.root.startswith("/"):
            self.root = f"{posix.getcwd()}/{self.root}"
        self.rootless = is_rootless(flags.text("rootless", "auto"))
        manager = flags.text("cgroup-manager", "cgroupfs")
        if manager not in ("cgroupfs", "systemd", "disabled"):
            raise InvalidArgument(f"unknown cgroup manager: {manager}")
        self.no_cgroup = manager == "disabled"
        self.cgroup_driver = (
            "systemd" if flags.flag("systemd-cgroup") or manager == "systemd" else "cgroupfs"
        )
        shape = flags.text("log-format", "text")
        if shape not in ("text", "json", ""):
            raise InvalidArgument(f"invalid log-format: {shape}")
        self.debug = flags.flag("debug")
        level = "debug" if self.debug else "info"
        path = flags.text("log")
        for prefix in ("file:",):
            path = path.removeprefix(prefix)
        self.log = open_log(path, as_json=shape == "json", level=level)

    def store(self) -> Store:
        from .container import Store

        return Store(self.root)


def default_root() -> str:
    """/run/sampan-oci, or the user's runtime directory for who is not root."""
    runtime = environment("XDG_RUNTIME_DIR")
    if runtime and posix.geteuid() != 0:
        return runtime + "/sampan-oci"
    return "/run/sampan-oci"


def environment(name: str) -> str:
    value: bytes = posix.environ.get(name.encode(), b"")
    return value.decode("utf-8", "surrogateescape")


def is_rootless(word: str) -> bool:
    """May cgroup errors be ignored: yes when we cannot have the right to make cgroups."""
    if word in ("true", "1", "yes"):
        return True
    if word in ("false", "0", "no"):
        return False
    if word not in ("auto", ""):
        raise InvalidArgument(f"invalid value for --rootless: {word}")
    return posix.geteuid() != 0 or _in_user_namespace()


def _in_user_namespace() -> bool:
    from sampan.linux.paths import read_file

    try:
        return read_file("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def main(argv: list[str] | None = None) -> int:
    """The whole program; returns the exit code."""
    arguments = sys.argv if argv is None else argv
    program = arguments[0].rpartition("/")[2] or PROGRAM
    log = Log()
    running = ""  # the command that has begun: before, it is the command line that is wrong
    try:
        flags = parse(arguments[1:], GLOBAL, stops=True)
        if flags.flag("version"):
            return _print(version_text(program))
        if flags.flag("help") or not flags.operands:
            return _print(usage(program))
        name = flags.operands[0]
        if name == "help":
            return _print(usage(program))
        command = COMMANDS.get(name)
        if command is None:
            raise InvalidArgument(f"No help topic for '{name}': unknown command")
        context = Context(flags, program)
        log = context.log
        parsed = parse(flags.operands[1:], command.flags, stops=command.stops)
        if parsed.flag("help"):
            return _print(usage(program, name))
        _check_count(program, name, command, parsed)
        running = name
        return handler(name)(context, parsed)
    except (SampanError, OSError, ValueError) as error:
        return _fail(log, running, message_of(error, running))
    except Exception as error:  # noqa: BLE001 - a defect of ours is one line too, not a page for an engine's log
        return _fail(log, running, f"internal error: {type(error).__name__}: {error}")


def handler(name: str) -> Callable[[Context, Parsed], int]:
    """The function of a command; rarely used ones are imported only when named."""
    if name in ("create", "run"):
        from . import cli_run

        return cli_run.HANDLERS[name]
    if name == "exec":
        from . import cli_exec

        return cli_exec.HANDLERS[name]
    if name in ("start", "state", "kill", "delete", "pause", "resume"):
        from . import cli_life

        return cli_life.HANDLERS[name]
    from . import cli_info

    return cli_info.HANDLERS[name]


def _print(text: str) -> int:
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def version_text(program: str) -> str:
    return f"{program} version {__version__}\nspec: 1.3.0\n+SECCOMP +CAP +EBPF +CGROUPV1 +CGROUPV2 +SYSTEMD\n"


def _check_count(program: str, name: str, command: Command, parsed: Parsed) -> None:
    count = len(parsed.operands)
    if command.minimum == command.maximum and count != command.minimum:
        raise InvalidArgument(f'{program}: "{name}" requires exactly {command.minimum} argument(s)')
    if count < command.minimum:
        raise InvalidArgument(
            f'{program}: "{name}" requires a minimum of {command.minimum} argument(s)'
        )
    if count > command.maximum:
        raise InvalidArgument(
            f'{program}: "{name}" requires a maximum of {command.maximum} argument(s)'
        )


def message_of(error: BaseException, name: str) -> str:
    """One line for a person; failures of a launch get runc's prefix, which engines look for."""
    if name == "exec":
        where = "unable to start container process: " if isinstance(error, LaunchError) else ""
        return f"exec failed: {where}{message_of(error, '')}"
    if isinstance(error, LaunchError):
        if name in ("create", "run"):
            where = "error during container init: " if error.step else ""
            return f"{PROGRAM} {name} failed: unable to start container process: {where}{error.message}"
        return error.message
    if isinstance(error, OSError):
        _, text = describe_error(error)
        return f"{error.filename}: {text}" if error.filename else text
    return str(error)


def _fail(log: Log, name: str, message: str) -> int:
    line = message.replace("\n", " ").strip()
    log.error(line)
    if log.fd != 2:
        sys.stderr.write(line + "\n")
    return EXEC_FAILED if name == "exec" else 1


def run() -> NoReturn:
    """The entry point: no teardown of the interpreter, it would cost 2 ms and tell nobody anything."""
    code = main()
    sys.stdout.flush()
    posix._exit(code & 0xFF)
