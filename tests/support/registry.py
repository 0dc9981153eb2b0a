"""A registry of the tests' own: small, in this process, and able to misbehave in every way that a real one has.

    with FakeRegistry() as registry:
        registry.add("app", "v1", image)
        registry.faults.append(Truncate("/blobs/", after=100))

A fault looks at each request and either answers it or lets it pass. Requests are kept, with their headers.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.oci import TestImage, digest

Headers = dict[str, str]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Headers
    body: bytes


@dataclass
class Answer:
    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None  # close the connection after so many bytes of the body
    stall_after: int | None = (
        None  # send nothing more after so many bytes, until the registry closes
    )
    slow_chunk: int = 0  # send so many bytes at a time, a hundredth of a second apart


Fault = Callable[[Request, Answer], Answer | None]


def only_times(times: int, fault: Fault) -> Fault:
    """The first so many requests that the fault would answer, then no more."""
    left = [times]
    lock = threading.Lock()

    def limited(request: Request, answer: Answer) -> Answer | None:
        with lock:
            if left[0] == 0:
                return None
            found = fault(request, answer)
            if found is not None:
                left[0] -= 1
            return found

    return limited


def matching(part: str, change: Callable[[Request, Answer], Answer], method: str = "GET") -> Fault:
    def fault(request: Request, answer: Answer) -> Answer | None:
        if part not in request.path or request.method != method:
            return None
        return change(request, answer)

    return fault


def with_status(part: str, status: int, *, method: str = "GET", **headers: str) -> Fault:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return matching(part, lambda _, __: Answer(status=status, headers=named), method)


def truncated(part: str, after: int) -> Fault:
    return matching(part, lambda _, a: Answer(a.status, a.headers, a.body, cut_after=after))


def stalled(part: str, after: int) -> Fault:
    return matching(part, lambda _, a: Answer(a.status, a.headers, a.body, stall_after=after))


def replaced(part: str, body: bytes) -> Fault:
    return matching(part, lambda _, a: Answer(a.status, a.headers, body))


def slow(part: str, chunk: int) -> Fault:
    return matching(part, lambda _, a: Answer(a.status, a.headers, a.body, slow_chunk=chunk))


class FakeRegistry:
    """Serves one registry on loopback."""

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        realm: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.blobs: dict[str, bytes] = {}
        self.repositories: dict[str, set[str]] = {}  # repository -> digests of its blobs
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.users = users or {}
        self.tokens: set[str] = set()
        self.realm = realm
        self.closing = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repository: str, tag: str, image: TestImage) -> None:
        self.add_blobs(repository, (*image.blobs, image.config_raw))
        self.add_manifest(repository, tag, image.manifest_type, image.manifest_raw)

    def add_blobs(self, repository: str, blobs: Iterable[bytes]) -> None:
        for blob in blobs:
            self.blobs[digest(blob)] = blob
            self.repositories.setdefault(repository, set()).add(digest(blob))

    def add_manifest(self, repository: str, tag: str, media_type: str, raw: bytes) -> None:
        self.manifests[(repository, tag)] = (media_type, raw)
        self.manifests[(repository, digest(raw))] = (media_type, raw)

    def count(self, method: str, part: str) -> int:
        return sum(r.method == method and part in r.path for r in self.requests)

    # --- answering -----------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        refused = self._refuse(request)
        found = refused or self._route(request)
        for fault in self.faults:
            changed = fault(request, found)
            if changed is not None:
                return changed
        return found

    def _refuse(self, request: Request) -> Answer | None:
        if not self.users and not self.realm:
            return None
        given = request.headers.get("authorization", "")
        if self.realm:
            if given.removeprefix("Bearer ") in self.tokens:
                return None
            scope = _scope_of(request)
            challenge = f'Bearer realm="{self.realm}",service="tests"' + (
                f',scope="{scope}"' if scope else ""
            )
        else:
            pair = base64.b64decode(given.removeprefix("Basic ") or b"").decode()
            name, _, password = pair.partition(":")
            if name in self.users and self.users[name] == password:
                return None
            challenge = 'Basic realm="tests"'
        return _error(
            401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge}
        )

    def _route(self, request: Request) -> Answer:
        path = request.path
        if path == "/v2/":
            return Answer(body=b"{}")
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags|referrers)/(.+)", path)
        if match is None:
            return _error(404, "NOT_FOUND", "page not found")
        repository, kind, rest = match.groups()
        if kind == "manifests":
            return self._manifest(request, repository, rest)
        if kind == "tags":
            return self._tags(request, repository)
        if rest.startswith("uploads/"):
            return self._upload(request, repository, rest.removeprefix("uploads/"))
        return self._blob(request, repository, rest)

    def _manifest(self, request: Request, repository: str, name: str) -> Answer:
        if request.method == "PUT":
            media_type = request.headers["content-type"]
            self.add_manifest(repository, name, media_type, request.body)
            return Answer(201, {"Docker-Content-Digest": digest(request.body)})
        found = self.manifests.get((repository, name))
        if found is None:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        media_type, raw = found
        return Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": digest(raw)}, raw)

    def _tags(self, request: Request, repository: str) -> Answer:
        tags = sorted(tag for repo, tag in self.manifests if repo == repository and ":" not in tag)
        size = 2  # small pages, so that following them is always tried
        last = request.query.get("last", [""])[0]
        rest = [tag for tag in tags if tag > last]
        headers = {}
        if len(rest) > size:
            headers["Link"] = (
                f'</v2/{repository}/tags/list?last={rest[size - 1]}&n={size}>; rel="next"'
            )
        return Answer(200, headers, json.dumps({"name": repository, "tags": rest[:size]}).encode())

    def _blob(self, request: Request, repository: str, name: str) -> Answer:
        if name not in self.blobs or name not in self.repositories.get(repository, set()):
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        data = self.blobs[name]
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if match and int(match[1]) < len(data):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return Answer(206, headers, data[start:])
        return Answer(200, headers, data)

    def _upload(self, request: Request, repository: str, name: str) -> Answer:
        if request.method == "POST":
            source = request.query.get("from", [""])[0]
            wanted = request.query.get("mount", [""])[0]
            if wanted and wanted in self.repositories.get(source, set()):
                self.repositories.setdefault(repository, set()).add(wanted)
                return Answer(201, {"Location": f"/v2/{repository}/blobs/{wanted}"})
            name = f"u{len(self.uploads)}"
            self.uploads[name] = bytearray()
            return Answer(202, {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=1"})
        if name not in self.uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown")
        data = self.uploads[name]
        place = {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=2"}
        if request.method == "GET":
            return Answer(204, place | {"Range": f"0-{max(len(data) - 1, 0)}"})
        match = re.fullmatch(r"(\d+)-(\d+)", request.headers.get("content-range", ""))
        if match and int(match[1]) != len(data):
            return _error(416, "RANGE_INVALID", "range invalid")
        data += request.body
        if request.method == "PATCH":
            return Answer(202, place | {"Range": f"0-{max(len(data) - 1, 0)}"})
        wanted = request.query["digest"][0]
        if digest(bytes(data)) != wanted:
            return _error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.add_blobs(repository, [bytes(data)])
        return Answer(
            201, {"Location": f"/v2/{repository}/blobs/{wanted}", "Docker-Content-Digest": wanted}
        )


class TokenServer:
    """A token service: gives tokens that `registry` takes, to the users it knows (and to nobody, for reading)."""

    def __init__(self, registry: FakeRegistry | None, users: dict[str, str] | None = None) -> None:
        self.asked: list[Request] = []
        self.users = users or {}
        self.registry = registry
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._answer(self, b"")

            def do_POST(self) -> None:
                owner._answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> TokenServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        request = _request_of(handler, body)
        self.asked.append(request)
        given = request.headers.get("authorization", "")
        form = parse_qs(body.decode())
        name = ""
        if given:
            name, _, password = (
                base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
            )
            if self.users.get(name) != password:
                _send(handler, Answer(401, {}, b"{}"), threading.Event())
                return
        elif form.get("refresh_token", [""])[0] == "idtoken":
            name = "refreshed"
        token = f"token{len(self.asked)}"
        if self.registry is not None:
            self.registry.tokens.add(token)
        answer: dict[str, Any] = {"token": token, "expires_in": 300}
        if "offline_token" in request.query:
            answer["refresh_token"] = "idtoken"
        _send(handler, Answer(200, {}, json.dumps(answer).encode()), threading.Event())


class _Handler(BaseHTTPRequestHandler):
    registry: FakeRegistry
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = _read_body(self)
        request = _request_of(self, body)
        with self.registry.lock:
            self.registry.requests.append(request)
            answer = self.registry.answer(request)
        _send(self, answer, self.registry.closing)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _serve

    def log_message(self, *_: object) -> None:
        pass


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") == "chunked":
        out = b""
        while size := int(handler.rfile.readline().strip() or b"0", 16):
            out += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return out
    return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))


def _request_of(handler: BaseHTTPRequestHandler, body: bytes) -> Request:
    parts = urlsplit(handler.path)
    headers = {key.lower(): value for key, value in handler.headers.items()}
    return Request(handler.command, parts.path, parse_qs(parts.query), headers, body)


def _send(handler: BaseHTTPRequestHandler, answer: Answer, closing: threading.Event) -> None:
    headers = {"Content-Length": str(len(answer.body))} | answer.headers
    try:
        handler.send_response(answer.status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        end = len(answer.body)
        for limit in (answer.cut_after, answer.stall_after):
            end = min(end, limit) if limit is not None else end
        step = answer.slow_chunk or max(end, 1)
        for start in range(0, end, step):
            handler.wfile.write(answer.body[start : min(start + step, end)])
            handler.wfile.flush()
            if answer.slow_chunk:
                time.sleep(0.01)
        if answer.stall_after is not None:
            closing.wait(30)
        if end < len(answer.body):
            handler.close_connection = True
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True


def _error(status: int, code: str, message: str, headers: Headers | None = None) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, {"Content-Type": "application/json"} | (headers or {}), body)


def _scope_of(request: Request) -> str:
    match = re.match(r"/v2/(.+)/(manifests|blobs|tags)/", request.path)
    if match is None:
        return ""
    return f"repository:{match[1]}:{'pull' if request.method in {'GET', 'HEAD'} else 'pull,push'}"
