"""One HTTP exchange with a registry, done properly: reuse, proxies, TLS, redirects, retries, cancelling.

    Transport.request(...)
        connect (pool, proxy, TLS)  ->  send  ->  status and headers
            2xx..4xx      to the caller, who reads the body as a stream
            3xx           followed by us; credentials stay behind when the origin changes
            429, 5xx      waited for and tried again when repeating is harmless
            broken, idle  the same

The standard library's `http.client` does the protocol: in worker threads it moves a gigabyte a second, because
receiving, hashing and writing all release the interpreter lock. A `Cancel` wakes a thread that waits in `recv` by
shutting its socket down, so a cancelled pull ends at once and not after a timeout.

Sources: RFC 9110 (15.4 redirection, 10.2.3 Retry-After), RFC 9112; distribution-spec 1.1.
"""

from __future__ import annotations

import base64
import errno
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from typing import IO, Any, Protocol
from urllib.parse import urljoin, urlsplit

from sampan.errors import InvalidArgument, SampanError
from sampan.images.cancel import Cancel
from sampan.images.endpoints import RegistryConfig, tls_context

REDIRECT_LIMIT = 10
ERROR_BODY_LIMIT = 64 * 1024
RETRY_AFTER_LIMIT_S = 60.0
_RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_IDLE_PER_HOST = 8


class ConnectionFailed(SampanError):
    """No HTTP answer at all: name, route, TLS or time. The next endpoint may do better.

    `why` is the message without the request that it happened to.
    """

    def __init__(self, message: str, *, hint: str = "", why: str = "") -> None:
        super().__init__(message, hint=hint)
        self.why = why


class Body(Protocol):
    """What is sent. `rewind()` gives the stream again from its start, for a second try."""

    length: int | None

    def rewind(self) -> Iterable[bytes] | IO[bytes]: ...


class Response:
    """Status, headers, and a body that is read as a stream. Close it, or read it to its end."""

    def __init__(
        self,
        answer: http.client.HTTPResponse,
        url: str,
        give_back: Callable[[bool], None],
        cancel: Cancel,
    ) -> None:
        self.status = answer.status
        self.reason = answer.reason
        self.headers = answer.headers
        self.url = url
        self._answer = answer
        self._give_back: Callable[[bool], None] | None = give_back
        self._cancel = cancel
        self._when_closed: Callable[[], None] | None = None
        if answer.length == 0:  # HEAD, 204 and the like: there is nothing to wait for
            self._finish(reusable=True)

    def on_close(self, act: Callable[[], None]) -> None:
        """Do this once when the body was read or given up."""
        if self._give_back is None:
            act()
        self._when_closed = act

    def read_some(self, limit: int) -> bytes:
        """What has arrived, at most `limit`; empty at the end. ConnectionFailed when the peer stops early or stalls.

        `read1`, since `readinto` waits until the buffer is full: progress would come in jumps, and a connection
        that breaks would take what had arrived with it.
        """
        self._cancel.check()
        if self._give_back is None:
            return b""
        try:
            data = self._answer.read1(limit)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            self._cancel.check()
            raise ConnectionFailed(f"read {self.url}: {describe(error)}") from error
        left = self._answer.length
        if not data and left:
            self.close()
            raise ConnectionFailed(f"read {self.url}: unexpected EOF")
        if not data or left == 0:
            self._finish(reusable=True)
        return data

    def read(self, limit: int, what: str = "response") -> bytes:
        """The whole body, refused when it is longer than `limit`."""
        chunks: list[bytes] = []
        size = 0
        while size <= limit:
            chunk = self.read_some(64 * 1024)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
            size += len(chunk)
        self.close()
        raise InvalidArgument(f"{what} is too large: more than {limit} bytes")

    def drain(self) -> None:
        """Read a small rest so that the connection can be used again; drop it otherwise."""
        try:
            self.read(ERROR_BODY_LIMIT)
        except SampanError:
            self.close()

    def close(self) -> None:
        self._finish(reusable=False)

    def _finish(self, *, reusable: bool) -> None:
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            self._answer.close()  # with "Connection: close" the answer alone holds the socket
            give_back(reusable and not self._answer.will_close)
            if self._when_closed is not None:
                self._when_closed()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """Connections to registries, kept and reused. Thread-safe; one for each pull or push."""

    def __init__(self, config: RegistryConfig, cancel: Cancel | None = None) -> None:
        self.config = config
        self.cancel = cancel or Cancel.never()
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, bool], list[http.client.HTTPConnection]] = {}
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True  # a download that ends later closes its own
            connections = [c for group in self._idle.values() for c in group]
            self._idle.clear()
        for connection in connections:
            connection.close()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | Body | None = None,
        verify: bool = True,
        retry: bool | None = None,
        attempts: int | None = None,
    ) -> Response:
        """Follow redirects and retry; any final status is an answer, no answer is ConnectionFailed."""
        repeatable = method in {"GET", "HEAD"} if retry is None else retry
        tries = (attempts or self.config.attempts) if repeatable else 1
        stalls = 0
        for attempt in range(1, tries + 1):
            self.cancel.check()
            try:
                response = self._follow(method, url, dict(headers or {}), body, verify)
            except ConnectionFailed as error:
                stalls += isinstance(error.__cause__, TimeoutError)
                if attempt == tries or stalls > 1 or is_final(error.__cause__):
                    raise
                self.cancel.wait(self._backoff(attempt))
                continue
            if response.status not in _RETRIED_STATUSES or attempt == tries:
                return response
            delay = self._retry_after(response, attempt)
            if delay is None:
                return response
            response.drain()
            self.cancel.wait(delay)
        raise AssertionError("unreachable")

    def fetch_small(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """A whole small answer: what a keyring needs of a token service."""
        with self.request(method, url, headers=headers, body=body, retry=True) as response:
            return response.status, response.read(256 * 1024, "token response")

    # --- one attempt -------------------------------------------------------------------------------

    def _follow(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | None,
        verify: bool,
    ) -> Response:
        for _ in range(REDIRECT_LIMIT + 1):
            response = self._once(method, url, headers, body, verify)
            location = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or not location:
                return response
            response.drain()
            target = urljoin(url, location)
            _check_redirect(url, target)
            if _origin(target) != _origin(url):
                # RFC 9110 15.4: what was meant for one origin is not for another. A CDN's URL is signed.
                headers = {k: v for k, v in headers.items() if k.lower() not in _PRIVATE_HEADERS}
            if response.status == 303 and method != "HEAD":
                method, body = "GET", None
            url = target
        raise InvalidArgument(f"{url}: stopped after {REDIRECT_LIMIT} redirects")

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | None,
        verify: bool,
    ) -> Response:
        key = (*_origin(url), verify)
        while True:
            connection, reused = self._take(url, key)
            try:
                return self._exchange(connection, key, method, url, headers, body)
            except ConnectionFailed as error:
                # A kept connection may have been closed while it lay idle: that is no failure of the server's.
                stale = isinstance(
                    error.__cause__, http.client.RemoteDisconnected | ConnectionError
                )
                if not (reused and stale):
                    raise

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        key: tuple[str, str, bool],
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | None,
    ) -> Response:
        parts = urlsplit(url)
        proxy_headers: dict[str, str] | None = getattr(connection, "proxy_headers", None)
        target = _path_of(url) if proxy_headers is None else url
        payload, extra = _payload(body)
        extra |= proxy_headers or {}
        sent = (
            {"User-Agent": self.config.user_agent, "Accept-Encoding": "identity"} | headers | extra
        )
        forget = self.cancel.on_set(lambda: _wake(connection))

        def give_back(reusable: bool) -> None:
            forget()
            self._give_back(key, connection, reusable)

        try:
            if connection.sock is None:
                _connect(connection, self.config.idle_timeout_s)
            chunked = "Transfer-Encoding" in sent
            connection.request(method, target, payload, sent, encode_chunked=chunked)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            give_back(False)
            self.cancel.check()
            shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
            why = describe(error, parts.netloc)
            raise ConnectionFailed(f'{method.capitalize()} "{shown}": {why}', why=why) from error
        return Response(answer, url, give_back, self.cancel)

    # --- connections -------------------------------------------------------------------------------

    def _take(
        self, url: str, key: tuple[str, str, bool]
    ) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop(), True
        return self._new_connection(url, verify=key[2]), False

    def _give_back(
        self, key: tuple[str, str, bool], connection: http.client.HTTPConnection, reusable: bool
    ) -> None:
        if reusable and not self.cancel.is_set():
            with self._lock:
                idle = self._idle.setdefault(key, [])
                if len(idle) < _IDLE_PER_HOST and not self._closed:
                    idle.append(connection)
                    return
        connection.close()

    def _new_connection(self, url: str, *, verify: bool) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise InvalidArgument(f"invalid port in URL {url!r}") from None
        proxy = self.config.proxies.for_url(parts.scheme, host, port)
        timeout = self.config.connect_timeout_s
        where = _Proxy(proxy) if proxy else None
        via_host, via_port = (where.host, where.port) if where else (host, port)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = self._context(parts.netloc.rpartition("@")[2], verify)
            connection = http.client.HTTPSConnection(
                via_host, via_port, timeout=timeout, context=context
            )
            if where:
                connection.set_tunnel(host, port, where.headers)
        else:
            connection = http.client.HTTPConnection(via_host, via_port, timeout=timeout)
            if where:
                connection.proxy_headers = where.headers  # type: ignore[attr-defined]
        return connection

    def _context(self, host: str, verify: bool) -> ssl.SSLContext:
        with self._lock:
            context = self._contexts.get((host, verify))
            if context is None:
                try:
                    context = tls_context(self.config, host, verify=verify)
                except (OSError, ssl.SSLError) as error:
                    raise InvalidArgument(
                        f"cannot use the certificates for {host}: {error}"
                    ) from None
                self._contexts[(host, verify)] = context
            return context

    # --- waiting -----------------------------------------------------------------------------------

    def _backoff(self, attempt: int) -> float:
        base: float = self.config.retry_delay_s * 2 ** (attempt - 1)
        return min(base, 16.0) * random.uniform(0.75, 1.25)

    def _retry_after(self, response: Response, attempt: int) -> float | None:
        """Seconds to wait, None when waiting is not worth it."""
        text = response.headers.get("Retry-After", "").strip()
        if not text:
            # Docker Hub's pull limit lasts hours and says no time: tell the person instead of waiting.
            return None if response.status == 429 else self._backoff(attempt)
        delay = retry_after_seconds(text)
        return None if delay is None or delay > RETRY_AFTER_LIMIT_S else max(delay, 0.0)


_PRIVATE_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


class _Proxy:
    """Host, port and credentials of a proxy's URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidArgument(
                f"unsupported proxy {parts.scheme}://{parts.hostname}: only http proxies"
            )
        self.host = parts.hostname
        self.port = parts.port or 80
        self.headers: dict[str, str] = {}
        if parts.username:
            pair = f"{parts.username}:{parts.password or ''}".encode()
            self.headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()


def retry_after_seconds(text: str) -> float | None:
    """A Retry-After value, seconds or a date (RFC 9110, 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None


def is_final(error: BaseException | None) -> bool:
    """Trying again will not help: a name that does not exist, a certificate that is not trusted."""
    return isinstance(error, ssl.SSLError | socket.gaierror | ConnectionRefusedError)


def describe(error: BaseException, host: str = "") -> str:
    """The failure in the words of Docker's users."""
    if isinstance(error, socket.gaierror):
        return f"dial tcp: lookup {_host_name(host)}{_asked_server()}: no such host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
            return "http: server gave HTTP response to HTTPS client"
        return f"tls: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "net/http: timeout awaiting response"
    if isinstance(error, ConnectionRefusedError):
        return f"dial tcp {_first_address(host)}: connect: connection refused"
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return "unexpected EOF"
    if isinstance(error, OSError) and error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
        return f"dial tcp {_first_address(host)}: connect: network is unreachable"
    return str(error) or type(error).__name__


def _host_name(netloc: str) -> str:
    return urlsplit(f"//{netloc}").hostname or netloc


def _asked_server() -> str:
    """' on SERVER:53', as far as resolv.conf(5) names one."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return ""
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return f" on {_with_port(servers[0], 53)}" if servers else ""


def _first_address(netloc: str) -> str:
    """Address and port that were dialled first; the name itself where it cannot be looked up."""
    parts = urlsplit(f"//{netloc}")
    try:
        port = parts.port or 443
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return netloc
    return _with_port(str(found[0][4][0]), port)


def _with_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _connect(connection: http.client.HTTPConnection, idle_timeout_s: float) -> None:
    connection.connect()
    sock: socket.socket = connection.sock
    sock.settimeout(idle_timeout_s)


def _wake(connection: http.client.HTTPConnection) -> None:
    """End a recv or send in another thread. The unbound method leaves an SSL object's state to its thread."""
    sock: Any = connection.sock
    if sock is not None:
        try:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass


def _payload(body: bytes | Body | None) -> tuple[Any, dict[str, str]]:
    if body is None or isinstance(body, bytes):
        return body, {}
    if body.length is None:
        return body.rewind(), {"Transfer-Encoding": "chunked"}
    return body.rewind(), {"Content-Length": str(body.length)}


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2].lower()
    default = ":443" if parts.scheme == "https" else ":80"
    return parts.scheme, netloc.removesuffix(default)


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _check_redirect(url: str, target: str) -> None:
    old, new = urlsplit(url), urlsplit(target)
    if new.scheme not in {"http", "https"} or not new.hostname:
        raise InvalidArgument(f"refused a redirect from {old.netloc} to {new.scheme}:")
    if old.scheme == "https" and new.scheme == "http":
        raise InvalidArgument(f"refused a redirect from {old.netloc} to {new.netloc} without TLS")
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in target):
        raise InvalidArgument(f"refused a malformed redirect from {old.netloc}")
