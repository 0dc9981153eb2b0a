"""BuildKit's part of an engine: serves a connection that was taken over, as `/grpc` or as `/session`.

    api/buildkit.py ── a socket ── Server.control(fd, preread)        we answer: Control, LLBBridge
                                   Server.session(fd, preread, ...)   the client answers: its files, secrets, ...

Loaded when the first client comes: an engine that nobody builds with has neither HTTP/2 nor this in memory.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from sampan.buildkit import messages as m
from sampan.buildkit.builds import Builds
from sampan.buildkit.control import Control
from sampan.buildkit.gateway import Gateway
from sampan.buildkit.link import Link, Stream
from sampan.buildkit.older import Older
from sampan.buildkit.service import Perform, dispatcher, many, one
from sampan.buildkit.session import Session, Sessions

if TYPE_CHECKING:
    from sampan.build.builder import Builder

CONTROL = "/moby.buildkit.v1.Control/"
BRIDGE = "/moby.buildkit.v1.frontend.LLBBridge/"
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
HEALTH = "/grpc.health.v1.Health/Check"


class Server:
    """All sessions and builds of an engine."""

    def __init__(self, builder: Builder) -> None:
        self.sessions = Sessions()
        self.builds = Builds()
        self._links: set[Link] = set()
        control = Control(builder, self.sessions, self.builds)
        gateway = Gateway(control)
        self.contexts = control.contexts
        self.older = Older(control)
        self._serve = dispatcher(_methods(control, gateway))

    async def control(self, fd: int, preread: bytes) -> None:
        """Answer calls until the connection ends."""
        await self._live(Link(self._serve), fd, preread)

    async def session(
        self, fd: int, preread: bytes, *, ident: str, shared_key: str, methods: list[str]
    ) -> None:
        """Keep a session until the connection ends."""
        link = Link()
        session = Session(ident, link, methods, shared_key)
        self.sessions.add(session)
        try:
            await self._live(link, fd, preread)
        finally:
            self.sessions.remove(session)

    async def _live(self, link: Link, fd: int, preread: bytes) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._links.add(link)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: link, sock)
            if preread:
                link.data_received(preread)
            await link.wait_closed()
        finally:
            self._links.discard(link)
            if not link.is_lost:
                link.abort()

    async def close(self) -> None:
        """End every connection, and with it what it asked for."""
        links = list(self._links)
        for link in links:
            link.close()
        if links:
            await asyncio.wait([asyncio.ensure_future(link.wait_closed()) for link in links])


def _methods(control: Control, gateway: Gateway) -> dict[str, Perform]:
    return {
        CONTROL + "Info": one(m.Empty, control.info),
        CONTROL + "ListWorkers": one(m.Empty, control.list_workers),
        CONTROL + "Solve": one(m.SolveRequest, control.solve),
        CONTROL + "Status": many(m.StatusRequest, control.status),
        CONTROL + "DiskUsage": one(m.DiskUsageRequest, control.disk_usage),
        CONTROL + "Prune": many(m.PruneRequest, control.prune),
        CONTROL + "ListenBuildHistory": many(m.HistoryRequest, control.listen_history),
        CONTROL + "UpdateBuildHistory": one(m.UpdateHistoryRequest, control.update_history),
        BRIDGE + "Ping": one(m.Empty, gateway.ping),
        BRIDGE + "Solve": one(m.GatewaySolveRequest, gateway.solve),
        BRIDGE + "Return": one(m.ReturnRequest, gateway.return_),
        BRIDGE + "Evaluate": one(m.EvaluateRequest, gateway.evaluate),
        BRIDGE + "Inputs": one(m.Empty, gateway.inputs),
        BRIDGE + "Warn": one(m.WarnRequest, gateway.warn),
        BRIDGE + "ReadFile": one(m.ReadFileRequest, gateway.read_file),
        BRIDGE + "ReadDir": one(m.ReadDirRequest, gateway.read_dir),
        BRIDGE + "StatFile": one(m.StatFileRequest, gateway.stat_file),
        TRACES: one(m.Empty, _take_traces),
        HEALTH: one(m.Empty, _healthy),
    }


async def _take_traces(_stream: Stream, _request: m.Empty) -> m.Empty:
    """A client's own trace of its work: taken and dropped, for we keep none."""
    return m.Empty()


async def _healthy(_stream: Stream, _request: m.Empty) -> m.Health:
    return m.Health(status=1)
