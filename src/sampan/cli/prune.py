"""The prune commands: ask, remove, tell what went and how much room that made."""

from __future__ import annotations

import sys

from sampan.cli import human
from sampan.cli.client import filters
from sampan.cli.failures import Failure
from sampan.cli.networks import natural
from sampan.cli.session import emit, out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session


def confirmed(question: str) -> bool:
    """Ask; no answer is 'no'."""
    emit(f"{question} [y/N] ")
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")


def _ask(options: Options, warning: str) -> None:
    if not options.flag("force") and not confirmed(
        f"{warning}\nAre you sure you want to continue?"
    ):
        raise Failure(status=0)  # cancelled as asked: nothing failed


def _given(session: Session, options: Options) -> list[tuple[str, str]]:
    """--filter, and config.json's pruneFilters where they do not contradict it."""
    given: list[tuple[str, str]] = list(options.list("filter"))
    standing = session.config.get("pruneFilters")
    for text in standing if isinstance(standing, list) else []:
        name, _, value = str(text).partition("=")
        opposite = "label!" if name == "label" else "label"
        if (opposite, value) not in given:
            given.append((name, value))
    return given


def _reclaimed(space: int) -> None:
    out(f"Total reclaimed space: {human.size(space)}")


# -- one kind each: (space, what to print) ------------------------------------------------------------------------


def prune_containers(session: Session, given: list[tuple[str, str]]) -> tuple[int, str]:
    answer = session.client.post("/containers/prune", query={"filters": filters(given) or None})
    gone = answer.get("ContainersDeleted") or []
    text = "Deleted Containers:\n" + "".join(f"{identity}\n" for identity in gone)
    return (answer.get("SpaceReclaimed", 0), text) if gone else (0, "")


def prune_networks(session: Session, given: list[tuple[str, str]]) -> tuple[int, str]:
    answer = session.client.post("/networks/prune", query={"filters": filters(given) or None})
    gone = answer.get("NetworksDeleted") or []
    return 0, ("Deleted Networks:\n" + "".join(f"{name}\n" for name in gone) if gone else "")


def prune_volumes(session: Session, given: list[tuple[str, str]]) -> tuple[int, str]:
    answer = session.client.post("/volumes/prune", query={"filters": filters(given) or None})
    gone = answer.get("VolumesDeleted") or []
    text = "Deleted Volumes:\n" + "".join(f"{name}\n" for name in gone)
    return (answer.get("SpaceReclaimed", 0), text) if gone else (0, "")


def prune_images(session: Session, given: list[tuple[str, str]], every: bool) -> tuple[int, str]:
    wanted = [*given, ("dangling", "false" if every else "true")]
    answer = session.client.post("/images/prune", query={"filters": filters(wanted)})
    gone: list[dict[str, Any]] = answer.get("ImagesDeleted") or []
    lines = [
        f"untagged: {item['Untagged']}\n"
        if item.get("Untagged")
        else f"deleted: {item.get('Deleted')}\n"
        for item in gone
    ]
    return (
        (answer.get("SpaceReclaimed", 0), "Deleted Images:\n" + "".join(lines)) if gone else (0, "")
    )


def prune_build_cache(
    session: Session, given: list[tuple[str, str]], every: bool, keep: int = 0
) -> tuple[int, str]:
    query = {
        "all": every,
        "keep-storage": str(keep) if keep else "",
        "filters": filters(given) or None,
    }
    answer = session.client.post("/build/prune", query=query)
    gone = answer.get("CachesDeleted") or []
    text = "Deleted build cache objects:\n" + "".join(f"{identity}\n" for identity in gone)
    return answer.get("SpaceReclaimed", 0), text if gone else ""


# -- commands -----------------------------------------------------------------------------------------------------


def _finish(result: tuple[int, str], *, total: bool = True) -> int:
    space, text = result
    if text:
        out(text)
    if total:
        _reclaimed(space)
    return 0


def containers(session: Session, options: Options) -> int:
    _ask(options, "WARNING! This will remove all stopped containers.")
    return _finish(prune_containers(session, _given(session, options)))


def networks(session: Session, options: Options) -> int:
    _ask(
        options, "WARNING! This will remove all custom networks not used by at least one container."
    )
    return _finish(prune_networks(session, _given(session, options)), total=False)


def volumes(session: Session, options: Options) -> int:
    given = _given(session, options)
    warning = (
        "WARNING! This will remove anonymous local volumes not used by at least one container."
    )
    if options.flag("all"):
        if any(name == "all" for name, _ in given):
            raise Failure("conflicting options: cannot specify both --all and --filter all=1")
        given.append(("all", "true"))
        warning = "WARNING! This will remove all local volumes not used by at least one container."
    _ask(options, warning)
    return _finish(prune_volumes(session, given))


def images(session: Session, options: Options) -> int:
    every = options.flag("all")
    which = (
        "all images without at least one container associated to them"
        if every
        else "all dangling images"
    )
    _ask(options, f"WARNING! This will remove {which}.")
    return _finish(prune_images(session, _given(session, options), every))


def builder(session: Session, options: Options) -> int:
    every = options.flag("all")
    which = "all build cache" if every else "all dangling build cache"
    _ask(options, f"WARNING! This will remove {which}.")
    keep = options.number("keep-storage")
    return _finish(prune_build_cache(session, _given(session, options), every, keep))


def system(session: Session, options: Options) -> int:
    given, every = _given(session, options), options.flag("all")
    with_volumes = options.flag("volumes")
    if with_volumes and any(name == "until" for name, _ in given):
        raise Failure('ERROR: The "until" filter is not supported with "--volumes"')
    if not options.flag("force") and not confirmed(_system_warning(given, every, with_volumes)):
        raise Failure(status=0)
    total = 0
    steps: list[Callable[[], tuple[int, str]]] = [
        lambda: prune_containers(session, given),
        lambda: prune_networks(session, given),
        *([lambda: prune_volumes(session, given)] if with_volumes else []),
        lambda: prune_images(session, given, every),
        lambda: prune_build_cache(session, given, every),
    ]
    for step in steps:
        space, text = step()
        total += space
        if text:
            out(text)
    _reclaimed(total)
    return 0


def _system_warning(given: list[tuple[str, str]], every: bool, with_volumes: bool) -> str:
    warnings = ["all stopped containers", "all networks not used by at least one container"]
    if with_volumes:
        warnings.append("all anonymous volumes not used by at least one container")
    warnings.append(
        "all images without at least one container associated to them"
        if every
        else "all dangling images"
    )
    warnings.append("all build cache" if every else "unused build cache")
    text = "WARNING! This will remove:\n" + "".join(f"  - {warning}\n" for warning in warnings)
    shown = sorted((f"{n}={v}" for n, v in given if n in ("label", "label!", "until")), key=natural)
    if shown:
        text += "\n  Items to be pruned will be filtered with:\n" + "".join(
            f"  - {f}\n" for f in shown
        )
    return text + "\nAre you sure you want to continue?"
