"""Commands of Swarm, plugins and checkpoints. The engine has none of them and says so; its words are shown."""

from __future__ import annotations

from sampan.cli.client import escape
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sampan.cli.args import Options
    from sampan.cli.session import Session

# What a group's commands ask the engine for, whichever they are.
ROUTES = {
    "config": "/configs",
    "node": "/nodes",
    "secret": "/secrets",
    "service": "/services",
    "stack": "/services",
    "swarm": "/swarm",
}


def refused(session: Session, options: Options) -> int:
    """Ask what docker would ask first."""
    group, _, verb = options.command.path.partition(" ")
    if verb == "inspect":
        out("[]")
    try:
        session.client.call("GET", ROUTES[group]).read()
    except Refused as error:
        if verb == "unlock-key":
            raise Failure(f"could not fetch unlock key: {error.message}") from None
        raise
    raise Failure(f"sampan {options.name} is not part of Sampan")


def swarm(session: Session, options: Options) -> int:
    verb = options.command.path.removeprefix("swarm ")
    session.client.call("POST", f"/swarm/{verb}", body={}).read()
    return 0


def plugin(session: Session, options: Options) -> int:
    verb = options.command.path.removeprefix("plugin ")
    name = next((word for word in options.args if not word.startswith("-")), "")
    if not name:
        raise Failure(f"sampan {options.name} requires at least 1 argument", status=1)
    if verb == "install":
        session.client.call("GET", "/plugins/privileges", query={"remote": name}).read()
    elif verb == "rm":
        session.client.call("DELETE", f"/plugins/{escape(name)}").read()
    else:
        session.client.call("POST", f"/plugins/{escape(name)}/{verb}").read()
    return 0


def checkpoint(session: Session, options: Options) -> int:
    del session
    raise Failure(
        f"sampan {options.name} is only supported on a Docker daemon with experimental features enabled"
    )
