"""argv to one command: global flags, the command's table, its module, and at the end an exit status.

    sampan [GLOBAL FLAGS] COMMAND [SUBCOMMAND] [FLAGS] [ARGS]

A command's module is imported when it is named, and no other. Failures end here: the message to stderr, the status to
the shell (see cli/failures.py).
"""

from __future__ import annotations

import posix
import sys

from sampan.cli import args
from sampan.cli.failures import Failure, Unreachable, Usage
from sampan.cli.session import Session, getenv, warn
from sampan.cli.tables.index import GROUPS, TOP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from sampan.cli.args import Command, Options

GLOBAL_FLAGS: tuple[args.Flag, ...] = (
    ("config", "", "string", "", "Directory of the client's configuration files"),
    ("context", "c", "string", "", "Context to use (goes before DOCKER_HOST and the current context)"),
    ("debug", "D", "bool", False, "Say more when something fails"),
    ("host", "H", "list", "", "Engine to talk to (unix://, tcp:// or ssh://)"),
    ("log-level", "l", "string", "info", 'How much to log ("debug", "info", "warn", "error", "fatal")'),
    ("tls", "", "bool", False, "Use TLS (implied by --tlsverify)"),
    ("tlscacert", "", "string", "", "Trust only certificates signed by this authority"),
    ("tlscert", "", "string", "", "Certificate to show"),
    ("tlskey", "", "string", "", "Key of the certificate"),
    ("tlsverify", "", "bool", False, "Use TLS and verify the engine"),
    ("version", "v", "bool", False, "Print the version and quit"),
)  # fmt: skip
ROOT = args.Command(
    "", "[OPTIONS] COMMAND [ARG...]", (0, -1), "", "", GLOBAL_FLAGS, interspersed=False
)


def run() -> NoReturn:
    """The program: leaves by _exit, since tearing the interpreter down costs a millisecond and nobody looks."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 141
    posix._exit(status & 0xFF)


def main(argv: list[str]) -> int:
    """Do what `argv` says; the exit status."""
    where = None
    debug = False
    try:
        options = args.parse(ROOT, "", argv)
        debug = options.flag("debug")
        session = session_of(options)
        where, options = resolve(options)
        if options.has("help"):
            from sampan.cli.help import show

            return show(options)
        return args.load(where.run)(session, options)
    except Failure as failure:
        return report(failure, where)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        warn(f"sampan: {_described(error)}")
        return 125 if _runs(where) else 1
    except Exception as error:
        if debug:
            raise
        warn(
            f"sampan: internal error: {type(error).__name__}: {error}\n(sampan --debug shows where)"
        )
        return 125


def _described(error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    return f"{error.filename!s}: {text}" if error.filename else text


def _runs(command: Command | None) -> bool:
    return command is not None and command.path in ("container run", "container create")


def report(failure: Failure, command: Command | None) -> int:
    """The message; `run` puts its name before what the engine said and points to its help."""
    message, status = failure.message, failure.status
    if message and isinstance(failure, Unreachable) and command is not None and _runs(command):
        name = command.path.removeprefix("container ")
        if name == "run":
            message = f"sampan: {message}\n\nRun 'sampan {name} --help' for more information"
            status = 125
    if message:
        warn(message)
        if failure.hint and posix.isatty(2):
            warn(f"({failure.hint})")
    return status


def session_of(options: Options) -> Session:
    verify = options.flag("tlsverify") or bool(getenv("DOCKER_TLS_VERIFY"))
    tls = None
    if verify or options.flag("tls"):
        directory = (
            getenv("DOCKER_CERT_PATH") or options.text("config") or f"{getenv('HOME')}/.docker"
        )
        tls = {
            "verify": verify,
            "ca": options.text("tlscacert") or f"{directory}/ca.pem",
            "cert": options.text("tlscert") or f"{directory}/cert.pem",
            "key": options.text("tlskey") or f"{directory}/key.pem",
        }
    return Session(
        hosts=options.list("host"),
        context=options.text("context"),
        config=options.text("config"),
        debug=options.flag("debug"),
        tls=tls,
    )


def resolve(options: Options) -> tuple[Command, Options]:
    """The command that the words name, and its own options; help and version are commands too."""
    words = options.args
    if options.flag("version"):
        return _parsed("version-line", "--version", [])
    if not words or options.has("help"):
        return _parsed("help", "help", [])
    name = words[0]
    if name in GROUPS:
        return _resolve_group(name, words[1:])
    if name not in TOP:
        raise Failure(
            f"sampan: unknown command: sampan {name}\n\nRun 'sampan --help' for more information"
        )
    return _parsed(TOP[name], name, words[1:])


def _resolve_group(name: str, words: list[str]) -> tuple[Command, Options]:
    group = GROUPS[name]
    if not words or words[0] in ("--help", "-h"):
        return _parsed("help", "help", [name])
    path = group.get(words[0])
    if path is None:
        if words[0].startswith("-"):
            raise Usage(
                args.Options(args.Command(name, "", (0, 0), "", ""), name, {}), _unknown(words[0])
            )
        raise Failure(
            f"sampan: unknown command: sampan {name} {words[0]}\n\nUsage:  sampan {name}\n\n"
            f"Run 'sampan {name} --help' for more information"
        )
    if path in GROUPS:  # container mount add, network port add
        return _resolve_group(path, words[1:])
    return _parsed(path, f"{name} {words[0]}", words[1:])


def _unknown(word: str) -> str:
    if word.startswith("--"):
        return f"unknown flag: {word.partition('=')[0]}"
    return f"unknown shorthand flag: '{word[1:2]}' in {word}"


def _parsed(path: str, name: str, words: list[str]) -> tuple[Command, Options]:
    command = command_at(path)
    return command, args.parse(command, name, words)


def command_at(path: str) -> Command:
    """The table entry of a command's full path."""
    from sampan.cli.tables.index import module_of

    module = f"sampan.cli.tables.{module_of(path)}"
    __import__(module)
    commands: dict[str, Command] = sys.modules[module].COMMANDS
    return commands[path]
