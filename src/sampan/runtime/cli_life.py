"""start, state, kill, delete, pause, resume of sampan-oci."""

from __future__ import annotations

import sys

from sampan.errors import Conflict, InvalidArgument
from sampan.linux.fastjson import indented
from sampan.linux.process import signal_number

from . import container as verbs
from .channel import LaunchError
from .cli import environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cli import Context
    from .cli_flags import Parsed
    from .container import Container
    from .readiness import Readiness


def readiness_of(container: Container) -> Readiness | None:
    """Where the program will say that it is ready, when we run under a service manager that asks for it."""
    manager = environment("NOTIFY_SOCKET")
    if not manager:
        return None
    from .readiness import listen

    return listen(container.directory, manager)


def start(context: Context, parsed: Parsed) -> int:
    container = context.store().load(parsed.operands[0])
    readiness = readiness_of(container)
    try:
        pidfd = verbs.start(container)
    except LaunchError as error:
        context.log.debug(error.message)
        raise
    if readiness is not None:
        readiness.wait(pidfd)
    return 0


def state(context: Context, parsed: Parsed) -> int:
    container = context.store().load(parsed.operands[0])
    document = container.state.document(container.status())
    sys.stdout.write(indented({**document, "owner": ""}, "  ") + "\n")
    return 0


def kill(context: Context, parsed: Parsed) -> int:
    text = parsed.operands[1] if len(parsed.operands) > 1 else "SIGTERM"
    try:
        number = signal_number(text)
    except ValueError:
        raise InvalidArgument(f'unknown signal "{text}"') from None
    for container_id in _named(context, parsed):
        try:
            verbs.kill(context.store().load(container_id), number, everything=parsed.flag("all"))
        except Conflict:
            if not parsed.flag("all"):
                raise
    return 0


def delete(context: Context, parsed: Parsed) -> int:
    for container_id in _named(context, parsed):
        for warning in verbs.delete(context.store(), container_id, force=parsed.flag("force")):
            context.log.warning(warning)
    return 0


def _named(context: Context, parsed: Parsed) -> list[str]:
    """The one container, or with --regex (crun's) all whose id matches."""
    pattern = parsed.operands[0]
    if not parsed.flag("regex"):
        return [pattern]
    import re

    return [name for name in context.store().ids() if re.search(pattern, name)]


def pause(context: Context, parsed: Parsed) -> int:
    verbs.pause(context.store().load(parsed.operands[0]))
    return 0


def resume(context: Context, parsed: Parsed) -> int:
    verbs.resume(context.store().load(parsed.operands[0]))
    return 0


HANDLERS = {
    "start": start,
    "state": state,
    "kill": kill,
    "delete": delete,
    "pause": pause,
    "resume": resume,
}
