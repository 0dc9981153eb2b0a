"""start, stop, restart, kill, pause, unpause, rename, rm, wait: one verb over several containers.

Several containers are asked for at once, each on a connection of its own, and answered in the order they were named.
"""

from __future__ import annotations

from sampan.cli.client import escape
from sampan.cli.failures import Failure, Refused
from sampan.cli.session import out, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.client import Reply
    from sampan.cli.session import Session

AT_ONCE = 50


def each(
    session: Session, names: list[str], ask: Callable[[Session, str], Reply]
) -> list[Failure | None]:
    """`ask` for every name; what went wrong with each, in order."""
    if len(names) == 1:
        return [_tried(session, names[0], ask)]
    import _thread
    from queue import SimpleQueue

    todo: list[int] = list(range(len(names)))
    todo.reverse()
    done: SimpleQueue[tuple[int, Failure | None]] = SimpleQueue()

    def work() -> None:
        from sampan.cli.session import Session as Own

        own = Own(hosts=[session.host])
        own.tls = session.tls
        while True:
            try:
                number = todo.pop()
            except IndexError:
                return
            try:
                done.put((number, _tried(own, names[number], ask)))
            except Exception as error:  # noqa: BLE001 - a thread must not end without its answer
                done.put((number, Failure(f"sampan: {error}")))

    session.connect().close()  # starts the engine where it must be, before many ask at once
    for _ in range(min(AT_ONCE, len(names))):
        _thread.start_new_thread(work, ())
    results: dict[int, Failure | None] = {}
    while len(results) < len(names):
        number, failure = done.get()
        results[number] = failure
    return [results[number] for number in range(len(names))]


def _tried(session: Session, name: str, ask: Callable[[Session, str], Reply]) -> Failure | None:
    try:
        ask(session, name).read()
    except Failure as failure:
        return failure
    return None


def report(names: list[str], failures: list[Failure | None]) -> int:
    """The names that went well to stdout, the rest's messages to stderr at the end."""
    wrong = []
    for name, failure in zip(names, failures, strict=True):
        if failure is None:
            out(name)
        else:
            wrong.append(failure)
    for failure in wrong:
        warn(failure.message)
    return max((failure.status for failure in wrong), default=0)


def _post(verb: str, query: dict[str, Any] | None = None) -> Callable[[Session, str], Reply]:
    def ask(session: Session, name: str) -> Reply:
        return session.client.call("POST", f"/containers/{escape(name)}/{verb}", query=query)

    return ask


def _all(session: Session, options: Options, verb: str, query: dict[str, Any] | None = None) -> int:
    return report(options.args, each(session, options.args, _post(verb, query)))


def stop(session: Session, options: Options) -> int:
    return _all(session, options, "stop", _stop_query(options))


def restart(session: Session, options: Options) -> int:
    return _all(session, options, "restart", _stop_query(options))


def _stop_query(options: Options) -> dict[str, Any]:
    if options.has("time") and options.has("timeout"):
        raise Failure("conflicting options: cannot specify both --timeout and --time")
    query: dict[str, Any] = {"signal": options.text("signal")}
    for name in ("time", "timeout"):
        if options.has(name):
            query["t"] = str(options.number(name))
    return query


def kill(session: Session, options: Options) -> int:
    return _all(session, options, "kill", {"signal": options.text("signal")})


def pause(session: Session, options: Options) -> int:
    return _all(session, options, "pause")


def unpause(session: Session, options: Options) -> int:
    return _all(session, options, "unpause")


def rename(session: Session, options: Options) -> int:
    old, new = options.args[0].strip(), options.args[1].strip()
    if not old or not new:
        raise Failure("Error: Neither old nor new names may be empty")
    try:
        session.client.call("POST", f"/containers/{escape(old)}/rename", query={"name": new}).read()
    except Refused as refused:
        warn(refused.message)
        raise Failure(f"Error: failed to rename container named {old}") from None
    return 0


def rm(session: Session, options: Options) -> int:
    query = {
        "v": options.flag("volumes"),
        "link": options.flag("link"),
        "force": options.flag("force"),
    }

    def ask(own: Session, name: str) -> Reply:
        name = name.strip("/")
        if not name:
            raise Failure("container name cannot be empty")
        return own.client.call("DELETE", f"/containers/{escape(name)}", query=query)

    failures = each(session, options.args, ask)
    if not options.flag("force"):
        return report(options.args, failures)
    names, kept = [], []
    for name, failure in zip(options.args, failures, strict=True):
        if isinstance(failure, Refused) and failure.code == 404:
            warn(failure.message)  # --force is content that it is gone
        else:
            names.append(name)
            kept.append(failure)
    return report(names, kept)


def wait(session: Session, options: Options) -> int:
    status = 0
    for name in options.args:
        try:
            answer = session.client.post(
                f"/containers/{escape(name)}/wait", query={"condition": options.text("condition")}
            )
            out(str(answer["StatusCode"]))
        except Failure as failure:
            warn(failure.message)
            status = failure.status
    return status


def start(session: Session, options: Options) -> int:
    if options.flag("attach") or options.flag("interactive"):
        from sampan.cli import attach

        return attach.start_attached(session, options)
    failed = []
    query = {
        "checkpoint": options.text("checkpoint"),
        "checkpoint-dir": options.text("checkpoint-dir"),
    }
    for name in options.args:
        failure = _tried(session, name, _post("start", query))
        if failure is None:
            out(name)
        else:
            warn(failure.message)
            failed.append(name)
    if failed:
        raise Failure(f"Error: failed to start containers: {', '.join(failed)}")
    return 0
