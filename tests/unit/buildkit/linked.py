"""Two ends of a link joined by a socket pair: what tests of streams stand on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sampan.buildkit.link import Link, Serve


async def run_here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In place of Engine.run_blocking."""
    return function(*args, **kwargs)


async def attach(link: Link, sock: socket.socket) -> None:
    sock.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)


@asynccontextmanager
async def joined(serve: Serve) -> AsyncIterator[tuple[Link, Link]]:
    """(the end that calls, the end that serves)."""
    left, right = socket.socketpair()
    caller, server = Link(), Link(serve)
    await attach(caller, left)
    await attach(server, right)
    try:
        yield caller, server
    finally:
        caller.abort()
        server.abort()
        await caller.wait_closed()
        await server.wait_closed()
