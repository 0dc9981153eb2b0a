"""Listeners: who may connect, and what is refused to be opened at all."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sampan.api.server import ApiServer, passed_sockets
from sampan.config import Config, TlsConfig
from sampan.errors import Conflict, InvalidArgument


def server(*hosts: str, **settings: Any) -> ApiServer:
    engine = SimpleNamespace(config=Config(hosts=hosts, **settings))
    return ApiServer(cast("Any", engine), cast("Any", None))


async def ping(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    data = await reader.read()
    writer.close()
    return data


def test_a_unix_socket_is_for_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "s.sock"

    async def main() -> None:
        api = server(f"unix://{path}")
        await api.listen()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        answer = await ping(path)
        assert answer.endswith(b"\r\n\r\nOK")
        for line in (
            b"Api-Version: 1.51",
            b"Ostype: linux",
            b"Docker-Experimental: false",
            b"Server: Docker/",
        ):
            assert line in answer
        await api.close(grace_seconds=0)
        assert not path.exists()

    asyncio.run(main())


def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def main() -> None:
        first = server(f"unix://{path}")
        await first.listen()
        with pytest.raises(Conflict, match="in use by another engine"):
            await server(f"unix://{path}").listen()
        assert (await ping(path)).endswith(b"OK")
        await first.close(grace_seconds=0)

    asyncio.run(main())


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(InvalidArgument):
        asyncio.run(server(f"unix://{path}").listen())
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    "host",
    [
        "tcp://0.0.0.0:0",
        "tcp://[::]:0",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "nosuch://x",
        "plain",
        "unix://relative",
        "fd://",
    ],
)
def test_hosts_that_are_refused(host: str) -> None:
    with pytest.raises(InvalidArgument):
        asyncio.run(server(host).listen())


def test_tls_without_client_certificates_stays_on_loopback() -> None:
    with pytest.raises(InvalidArgument, match="without client certificates"):
        asyncio.run(server("tcp://0.0.0.0:0", tls=TlsConfig(enabled=True)).listen())


def test_all_hosts_or_none(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with pytest.raises(InvalidArgument):
        asyncio.run(server(f"unix://{path}", "nosuch://x").listen())
    assert not path.exists()


def test_sockets_from_systemd_are_for_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(InvalidArgument, match="socket activation"):
        passed_sockets()
    assert "LISTEN_FDS" not in os.environ
