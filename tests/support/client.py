"""A plain HTTP client on an engine's unix socket: quick, and honest about connections that break."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote


class UnixConnection(http.client.HTTPConnection):
    """A connection to a socket of the file system."""

    def __init__(self, path: Path | str, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class EngineGone(Exception):
    """The connection broke before the answer was complete."""


class Answer:
    """Status and body of one request."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection a request."""

    def __init__(self, path: Path | str, *, timeout_s: float = 60) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def ask(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        **query: object,
    ) -> Answer:
        """Any answer, whatever its status; EngineGone when there is none."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        if query:
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in query.items()}
            target += "?" + "&".join(f"{key}={quote(text)}" for key, text in texts.items())
        connection = UnixConnection(self._path, self._timeout_s)
        try:
            headers = {"Content-Type": content_type, "Connection": "close"}
            connection.request(method, target, data, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise EngineGone(f"{method} {target}: {error!r}") from error
        finally:
            connection.close()

    def do(self, method: str, target: str, body: object = None, **more: Any) -> Any:
        """The decoded answer of a request that must succeed (None where there is no JSON)."""
        answer = self.ask(method, target, body, **more)
        assert answer.status < 400, f"{method} {target}: {answer.status} {answer.body!r}"
        assert b'"errorDetail"' not in answer.body, f"{method} {target}: {answer.body[-500:]!r}"
        return (
            answer.json
            if answer.body[:1] in (b"{", b"[") and answer.body.count(b"\n") < 2
            else None
        )
