"""Engines that are not behind a unix socket: tcp://, tcp:// with TLS, ssh://.

tcp     a plain connection
TLS     a helper thread holds the TLS session and passes bytes to a socket pair, whose other end the callers get:
        so the rest of the client knows one kind of socket, with a half close that works (as close_notify)
ssh     `ssh HOST sampan system dial-stdio` on one end of a socket pair; docker's own client where that is missing
"""

from __future__ import annotations

import _socket
import os
import select
import socket
import ssl
import threading

from sampan.cli.failures import Failure, Unreachable
from sampan.cli.session import getenv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 16
PATIENCE = 30.0


def connect(host: str, tls: dict[str, Any]) -> _socket.socket:
    scheme, _, rest = host.partition("://")
    if scheme == "ssh":
        return _ssh(rest)
    if scheme not in ("tcp", "http", "https"):
        raise Failure(f"protocol not available: {host}")
    name, port = _address(rest.rstrip("/"), 2376 if tls or scheme == "https" else 2375)
    try:
        connection = socket.create_connection((name, port), timeout=PATIENCE)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise Unreachable(
                f"error during connect: dial tcp: lookup {name}: {(error.strerror or '').lower()}"
            ) from None
        raise Unreachable(
            f"Cannot connect to the Docker daemon at {host}. Is the docker daemon running?"
        ) from None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls or scheme == "https":
        return _tls(connection, name, tls)
    return _socket.socket(fileno=connection.detach())


def _address(text: str, default: int) -> tuple[str, int]:
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    if port and not port.isdigit():
        raise Failure(f"invalid bind address format: tcp://{text}")
    return name or "localhost", int(port or default)


# -- TLS ----------------------------------------------------------------------------------------------------------


def _context(tls: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.get("verify", True):
            ca = tls.get("ca") or ""
            if ca and os.path.exists(ca):
                context.load_verify_locations(ca)
            else:
                context.load_default_certs()
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        cert, key = tls.get("cert") or "", tls.get("key") or ""
        if cert and os.path.exists(cert):
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"could not load TLS material: {error}") from None
    return context


def _tls(connection: socket.socket, name: str, tls: dict[str, Any]) -> _socket.socket:
    try:
        session = _context(tls).wrap_socket(
            connection, server_hostname=name, suppress_ragged_eofs=True
        )
    except (OSError, ssl.SSLError) as error:
        raise Unreachable(f"error during connect: tls: {error}") from None
    ours, theirs = socket.socketpair()
    threading.Thread(target=_pump, args=(session, theirs), daemon=True).start()
    return _socket.socket(fileno=ours.detach())


def _pump(session: ssl.SSLSocket, plain: socket.socket) -> None:
    """Bytes both ways until the far side ends; our half close becomes the TLS session's."""
    session.setblocking(False)
    waiting: list[Any] = [session, plain]
    try:
        while True:
            readable = [session] if session.pending() else select.select(waiting, [], [])[0]
            if plain in readable:
                data = plain.recv(CHUNK)
                if data:
                    _send(session, data)
                else:
                    waiting.remove(plain)
                    _close_notify(session)
            if session in readable:
                received = _receive(session)
                if received == b"":
                    return
                if received:
                    plain.sendall(received)
    except OSError:
        pass
    finally:
        plain.close()
        session.close()


def _send(session: ssl.SSLSocket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[session.send(view) :]
        except ssl.SSLWantWriteError:
            select.select([], [session], [])
        except ssl.SSLWantReadError:
            select.select([session], [], [])


def _receive(session: ssl.SSLSocket) -> bytes | None:
    """Decrypted bytes, b'' at the end, None when only part of a record is there."""
    try:
        return session.recv(CHUNK)
    except ssl.SSLWantReadError:
        return None
    except (ssl.SSLZeroReturnError, ssl.SSLEOFError, ConnectionResetError):
        return b""


def _close_notify(session: ssl.SSLSocket) -> None:
    """Say that no more comes from us, and go on reading."""
    try:
        session.unwrap()
    except (OSError, ValueError):
        pass  # the far side's close_notify is still to come; what it sends until then is read as before


# -- ssh ----------------------------------------------------------------------------------------------------------


def _ssh(rest: str) -> _socket.socket:
    """ssh://[user@]host[:port][/path of the socket there]"""
    import subprocess

    where, _, path = rest.partition("/")
    if "@" in where and ":" in where.partition("@")[0]:
        raise Failure("ssh helper: plain-text password is not supported")
    user, _, name = where.rpartition("@")
    name, _, port = name.partition(":")
    if not name:
        raise Failure(f"ssh helper: no host specified: ssh://{rest}")
    if name.startswith("-") or user.startswith("-"):
        raise Failure(f"ssh helper: invalid host: ssh://{rest}")
    words = ["ssh", "-T", *(["-l", user] if user else []), *(["-p", port] if port else [])]
    far = f"-H unix:///{path} " if path.strip("/") else ""
    program = getenv("SAMPAN_SSH_COMMAND") or (
        f"if command -v sampan >/dev/null 2>&1; then exec sampan {far}system dial-stdio; "
        f"else exec docker {far}system dial-stdio; fi"
    )
    ours, theirs = socket.socketpair()
    try:
        subprocess.Popen(
            [*words, "-o", "ConnectTimeout=30", "--", name, program],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
    except OSError as error:
        raise Unreachable(f"error during connect: ssh: {(error.strerror or '').lower()}") from None
    finally:
        theirs.close()
    return _socket.socket(fileno=ours.detach())
