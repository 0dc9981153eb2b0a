"""Debian's docker-registry, started for a test: plain, with passwords, with TLS, or with tokens."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}/blobs}}, delete: {{enabled: true}}}}
http:
  addr: {host}
{more}
"""


class RealRegistry:
    """One registry process on a free port of loopback."""

    def __init__(self, root: Path, *, auth: str = "", tls: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        self.scheme = "https" if tls else "http"
        more = f"  tls: {{certificate: {tls[0]}, key: {tls[1]}}}\n" if tls else ""
        root.mkdir(parents=True, exist_ok=True)
        self._config = root / "config.yml"
        self._config.write_text(CONFIG.format(root=root, host=self.host, more=more + auth))
        self._log = root / "log"

    def __enter__(self) -> RealRegistry:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self._config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(self._log.read_text())
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        host, _, port = self.host.partition(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return False
        if self.scheme == "http":
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                return False
        return True


def make_certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
    ]
    command += [
        "-addext",
        f"subjectAltName=IP:{name}",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class SigningTokenServer:
    """Gives the signed tokens that a real registry believes (RFC 7519, RS256, certificate in `x5c`)."""

    def __init__(self, certificate: Path, key: Path, users: dict[str, str]) -> None:
        self.users = users
        self.scopes: list[str] = []
        self._certificate, self._key = certificate, key
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> SigningTokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        given = base64.b64decode(
            handler.headers.get("Authorization", "").removeprefix("Basic ")
        ).decode()
        name, _, password = given.partition(":")
        known = self.users.get(name) == password if name else False
        if name and not known:
            handler.send_response(401)
            handler.end_headers()
            return
        access: list[dict[str, object]] = []
        for scope in query.get("scope", []):
            self.scopes.append(scope)
            kind, repository, actions = scope.split(":")
            allowed = [a for a in actions.split(",") if known or a == "pull"]
            access.append({"type": kind, "name": repository, "actions": allowed})
        body = json.dumps({"token": self._token(name, access), "expires_in": 300}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _token(self, subject: str, access: list[dict[str, object]]) -> str:
        pem = self._certificate.read_text().splitlines()
        header = {
            "alg": "RS256",
            "typ": "JWT",
            "x5c": ["".join(line for line in pem if "-" * 5 not in line)],
        }
        now = int(time.time())
        claims = {"iss": "tests", "sub": subject, "aud": "tests", "exp": now + 300, "nbf": now - 10, "iat": now,
                  "jti": str(now), "access": access}  # fmt: skip
        signed = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=signed,
            capture_output=True,
            check=True,
        ).stdout
        return (signed + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
