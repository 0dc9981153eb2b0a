"""The head of an HTTP/1 request: bytes up to the blank line -> Head, or BadRequest. No I/O.

httptools (llhttp in C) reads the grammar. It is given exactly one head at a time, never a body, so
that we always know which byte follows it: a hijacked stream, a pipelined request, or a body that
http_body.py counts. What llhttp lets through and we do not, because two readers might disagree on it
(request smuggling): bare line feeds, folded lines, a length together with chunking, a second length
or host, more headers or bytes than the limits.

Sources: RFC 9112 (sections 2.2, 3, 5, 6), RFC 9110 (section 7.8 for Upgrade).
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import httptools
import msgspec

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
CHUNKED = -1

_END = b"\r\n\r\n"
_HEX = frozenset(b"0123456789abcdefABCDEF")
_ONCE = frozenset({"content-length", "host", "transfer-encoding", "content-type", "authorization"})


class BadRequest(Exception):
    """The connection cannot go on: answer with the status, then close."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the request line and the headers say; header names are lower-case."""

    method: str
    path: str  # decoded, without the query
    query: str  # as sent
    headers: dict[str, str]
    body_length: int  # bytes, or CHUNKED
    keep_alive: bool
    minor: int  # of HTTP/1.x
    expects_continue: bool

    @property
    def upgrade(self) -> str:
        """The protocol asked for (`tcp`, `h2c`, `websocket`), or ""."""
        wants = "upgrade" in tokens(self.headers.get("connection", ""))
        return self.headers.get("upgrade", "").lower() if wants else ""


def find_end(buffer: bytearray, start: int) -> int:
    """Where the head ends (after its blank line), or -1 while it is incomplete."""
    at = buffer.find(_END, max(start - 3, 0))
    if at >= 0:
        end = at + len(_END)
        if end > MAX_HEAD_BYTES:
            raise BadRequest("request header fields too large", 431)
        return end
    if b"\n\n" in buffer:
        raise BadRequest("bare line feed in request head")
    if len(buffer) > MAX_HEAD_BYTES:
        raise BadRequest("request header fields too large", 431)
    return -1


class _Collector:
    """httptools' callbacks; plain attributes because each call crosses from C."""

    def __init__(self) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


def parse(raw: bytes) -> Head:
    """A complete head."""
    if raw.count(b"\n") != raw.count(b"\r\n") or b"\r\n " in raw or b"\r\n\t" in raw:
        raise BadRequest("malformed line ending in request head")
    if b"\0" in raw:
        raise BadRequest("NUL in request head")
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # the head was complete; who upgrades is for the handler to say
    except httptools.HttpParserError as error:
        raise BadRequest(f"malformed request: {error}") from None
    method = parser.get_method().decode("latin-1")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadRequest(f"unsupported protocol version HTTP/{version}", 505)
    headers = _headers(collector.pairs)
    if version == "1.1" and "host" not in headers:
        raise BadRequest("missing required Host header")
    path, query = _target(method, collector.url)
    return Head(
        method=method,
        path=path,
        query=query,
        headers=headers,
        body_length=_body_length(headers),
        keep_alive=_keep_alive(version, headers),
        minor=int(version[-1]),
        expects_continue=_expectation(headers),
    )


def tokens(value: str) -> list[str]:
    """A comma-separated header as lower-case words."""
    return [word.strip().lower() for word in value.split(",")]


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    if len(pairs) > MAX_HEADERS:
        raise BadRequest("too many request header fields", 431)
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            raise BadRequest(f"duplicate {name} header")
        else:
            headers[name] += ", " + value
    return headers


def _body_length(headers: dict[str, str]) -> int:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None:
            raise BadRequest("both transfer-encoding and content-length")
        if coding.lower() != "chunked":
            raise BadRequest(f"unsupported transfer encoding: {coding!r}", 501)
        return CHUNKED
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit() and len(length) <= 18):
        raise BadRequest("invalid content-length")
    return int(length)


def _keep_alive(version: str, headers: dict[str, str]) -> bool:
    said = tokens(headers.get("connection", ""))
    return "close" not in said if version == "1.1" else "keep-alive" in said


def _expectation(headers: dict[str, str]) -> bool:
    value = headers.get("expect", "").lower()
    if value not in ("", "100-continue"):
        raise BadRequest("unsupported expectation", 417)
    return value != ""


def _target(method: str, url: bytes) -> tuple[str, str]:
    """Path and query. An absolute form (`GET http://docker/_ping`) loses its scheme and host."""
    if method == "CONNECT":
        raise BadRequest("CONNECT is not supported", 405)
    raw_path, _, query = url.partition(b"?")
    if raw_path == b"*":
        return "*", ""
    if not raw_path.startswith(b"/"):
        _, separator, rest = raw_path.partition(b"://")
        if not separator:
            raise BadRequest("malformed request target")
        raw_path = b"/" + rest.partition(b"/")[2]
    return unescape(raw_path, "path"), query.partition(b"#")[0].decode("latin-1")


def unescape(raw: bytes, what: str) -> str:
    """%XX decoded, as UTF-8; bytes that are no UTF-8 become U+FFFD, so that they can be shown."""
    if b"%" in raw:
        for piece in raw.split(b"%")[1:]:
            if len(piece) < 2 or piece[0] not in _HEX or piece[1] not in _HEX:
                shown = piece[:2].decode("ascii", "replace")
                raise BadRequest(f'invalid URL escape "%{shown}" in {what}')
        raw = unquote_to_bytes(raw)
    return raw.decode("utf-8", "replace")


def parse_query(query: str) -> list[tuple[str, str]]:
    """The pairs of a query string, as Go's ParseQuery reads them."""
    pairs = []
    for part in query.split("&"):
        if ";" in part:
            raise BadRequest("invalid semicolon separator in query")
        if part:
            key, _, value = part.partition("=")
            pairs.append((_form_value(key), _form_value(value)))
    return pairs


def _form_value(text: str) -> str:
    return unescape(text.replace("+", " ").encode("latin-1"), "query")
