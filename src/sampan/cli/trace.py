"""`run --trace`: every request to the engine on stderr, with what it took; at the end the engine's own steps, where it
tells them (the header Sampan-Trace of an answer, a line a step)."""

from __future__ import annotations

import time

from sampan.cli.session import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.client import Reply
    from sampan.cli.session import Session


def watch(session: Session) -> None:
    """Wrap the session's client: every request is announced with its time."""
    client = session.client
    plain = client.send
    begin = time.perf_counter()

    def send(method: str, path: str, **request: Any) -> Reply:
        start = time.perf_counter()
        reply = plain(method, path, **request)
        now = time.perf_counter()
        took, since = (now - start) * 1000, (now - begin) * 1000
        warn(f"trace: {since:8.1f} ms  {method:6} {path}  {reply.status}  ({took:.1f} ms)")
        for step in reply.headers.get("sampan-trace", "").split(";"):
            if step.strip():
                warn(f"trace:              {step.strip()}")
        return reply

    client.send = send  # type: ignore[method-assign]
