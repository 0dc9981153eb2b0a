"""TLS below the connection: plain answers, and half-close in a hijacked stream, with Python's own ssl as client."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from sampan.api.exchange import Reply, Request
from sampan.api.http import Connection, HttpServer
from sampan.api.tls import TlsProtocol
from tests.conftest import require


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(shutil.which("openssl") is not None, "needs openssl to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", path, "-out", path.with_suffix(".crt"), "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


async def handler(request: Request, reply: Reply) -> None:
    """`/hijack` answers with all that it reads, after the client's end; everything else is an echo."""
    if request.head.path != "/hijack":
        await reply.send(200, await request.body.read_all(), "text/plain")
        return
    raw = await reply.hijack("application/vnd.docker.raw-stream")
    with socket.socket(fileno=raw.fd) as sock:
        sock.setblocking(True)
        await asyncio.to_thread(_until_end_then_answer, sock, raw.preread)


def _until_end_then_answer(sock: socket.socket, data: bytes) -> None:
    while piece := sock.recv(65536):
        data += piece
    sock.sendall(b"%d bytes\n" % len(data) + data)


def talk(certificate: Path, conversation: object) -> object:
    """Run `conversation(ssl_socket)` in a thread against a TLS listener."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))

    async def main() -> object:
        http = HttpServer(handler, ())
        server = await asyncio.get_running_loop().create_server(
            lambda: TlsProtocol(context, lambda: Connection(http, secure=True)), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()

        def run() -> object:
            with (
                socket.create_connection(address, 5) as plain,
                client.wrap_socket(
                    plain, server_hostname="localhost", suppress_ragged_eofs=False
                ) as secure,
            ):
                return conversation(secure)  # type: ignore[operator]

        try:
            return await asyncio.to_thread(run)
        finally:
            server.close()
            for connection in list(http.connections):
                connection.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    return asyncio.run(main())


def test_requests_and_keep_alive(certificate: Path) -> None:
    def conversation(sock: ssl.SSLSocket) -> bytes:
        answers = b""
        for n in range(2):
            sock.sendall(
                b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab%d" % n
            )
            while b"ab%d" % n not in answers:
                answers += sock.recv(65536)
        return answers

    assert talk(certificate, conversation).count(b"HTTP/1.1 200") == 2  # type: ignore[attr-defined]


def test_half_close_ends_input_and_keeps_output(certificate: Path) -> None:
    payload = bytes(range(256)) * 4096

    def conversation(sock: ssl.SSLSocket) -> bytes:
        sock.sendall(
            b"POST /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        assert head.startswith(b"HTTP/1.1 101 UPGRADED")
        sock.sendall(payload)
        return head + _close_notify_then_read(sock)

    answer = talk(certificate, conversation)
    assert answer.endswith(b"%d bytes\n" % len(payload) + payload)  # type: ignore[attr-defined]


def _close_notify_then_read(sock: ssl.SSLSocket) -> bytes:
    """Python's SSLSocket cannot half-close; one over memory buffers, taking over the same session, cannot
    either. So end the TCP direction: the server sees the end of input all the same."""
    plain = socket.socket(fileno=socket.dup(sock.fileno()))
    plain.shutdown(socket.SHUT_WR)
    plain.close()
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ssl.SSLError:
            break
        if not piece:
            break
        data += piece
    return data


def test_close_notify_alone_is_half_a_close(certificate: Path) -> None:
    """A client over memory buffers, as Go's is: it sends close_notify, then reads on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))

    def client(address: tuple[str, int]) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(address, 5) as plain:
            _pump_until(tls.do_handshake, plain, incoming, outgoing)
            tls.write(b"POST /hijack HTTP/1.1\r\nHost: x\r\n\r\nhello")
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
            plain.sendall(outgoing.read())
            data = b""
            while b"5 bytes\nhello" not in data:
                piece = _pump_until(lambda: tls.read(65536), plain, incoming, outgoing)
                assert piece, data
                data += piece
            return data

    async def main() -> bytes:
        http = HttpServer(handler, ())
        server = await asyncio.get_running_loop().create_server(
            lambda: TlsProtocol(context, lambda: Connection(http, secure=True)), "127.0.0.1", 0
        )
        try:
            return await asyncio.to_thread(client, server.sockets[0].getsockname())
        finally:
            server.close()
            await asyncio.sleep(0)

    assert asyncio.run(main()).startswith(b"HTTP/1.1 200 OK")


def _pump_until(
    step: object, plain: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> bytes:
    while True:
        try:
            result = step()  # type: ignore[operator]
        except ssl.SSLWantReadError:
            result = None
        if data := outgoing.read():
            plain.sendall(data)
        if (
            result is not None
            or step.__name__ == "do_handshake"
            and result is None
            and not _wants(step)
        ):
            return result or b""
        piece = plain.recv(65536)
        if not piece:
            return b""
        incoming.write(piece)


def _wants(step: object) -> bool:
    try:
        step()  # type: ignore[operator]
    except ssl.SSLWantReadError:
        return True
    return False


def test_a_silent_client_does_not_block_others(certificate: Path) -> None:
    def conversation(sock: ssl.SSLSocket) -> bytes:
        silent = socket.create_connection(sock.getpeername(), 5)
        threading.Event()
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = sock.recv(65536)
        silent.close()
        return answer

    assert talk(certificate, conversation).startswith(b"HTTP/1.1 200")  # type: ignore[attr-defined]
