"""Who we are for a registry: credentials from the API's headers, from `config.json`, from helpers; and tokens.

    X-Registry-Auth      base64url JSON of one registry's credentials      pull, push, search
    X-Registry-Config    base64url JSON, host -> credentials               build
    ~/.docker/config.json                                                  when used as a library, without a client
    docker-credential-*  a program that answers `get` on its standard input

A `Keyring` answers the challenges of one registry for one operation. It remembers tokens by scope, and it
hands a secret only to the registry that it belongs to or to the token service which that registry named
(CVE-2020-15157: a blob's foreign URL is nobody's registry). Secrets never enter a message or a log.

Sources: distribution "Token Authentication Specification", "OAuth2 Token Authentication"; RFC 7235, 7617;
docker-credential-helpers' protocol.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from sampan.errors import InvalidArgument, PermissionDenied, Unauthenticated

HEADER_LIMIT = 64 * 1024
TOKEN_LIMIT = 256 * 1024
HUB_KEY = "https://index.docker.io/v1/"  # the name under which clients keep Docker Hub's password
_HUB_HOSTS = frozenset(
    {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)
_HELPER_RE = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_PARAMETER_RE = re.compile(
    r'([A-Za-z0-9!#$&^_.+-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^",\s]+))\s*,?\s*', re.ASCII
)
_DEFAULT_TOKEN_LIFE_S = 60


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """One registry's secret, in any of the three forms that Docker's clients send."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return (
            f"Credentials(username={self.username!r}, server_address={self.server_address!r}, ...)"
        )

    @property
    def is_empty(self) -> bool:
        return not (self.username or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


class _AuthBody(msgspec.Struct, frozen=True, kw_only=True, rename="lower"):
    username: str = ""
    password: str = ""
    auth: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def credentials(self) -> Credentials:
        username, password = self.username, self.password
        if self.auth and not username:
            username, password = _split_basic(self.auth)
        return Credentials(
            username=username,
            password=password,
            identity_token=self.identitytoken,
            registry_token=self.registrytoken,
            server_address=self.serveraddress,
        )


_decode_auth = msgspec.json.Decoder(_AuthBody)
_decode_auths = msgspec.json.Decoder(dict[str, _AuthBody])


def decode_auth_header(text: str) -> Credentials | None:
    """X-Registry-Auth. Docker ignores an invalid one on pull and push, and so do we."""
    try:
        found = _decode_auth.decode(_unbase64(text)).credentials()
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
    return None if found.is_empty else found


def decode_config_header(text: str) -> dict[str, Credentials]:
    """X-Registry-Config: host -> credentials."""
    try:
        bodies = _decode_auths.decode(_unbase64(text) or b"{}")
    except (ValueError, msgspec.DecodeError, RecursionError):
        return {}
    return {registry_key(host): body.credentials() for host, body in bodies.items()}


def registry_key(address: str) -> str:
    """The registry a credential is for, whatever form its address was written in."""
    host = address.split("://", 1)[-1].split("/", 1)[0].lower()
    return "docker.io" if host in _HUB_HOSTS else host


def _unbase64(text: str) -> bytes:
    if len(text) > HEADER_LIMIT:
        raise ValueError("too long")
    text = text.strip().replace("+", "-").replace("/", "_").rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _split_basic(text: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode(text).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return (username, password.rstrip("\0")) if colon else ("", "")


# --- ~/.docker/config.json and helpers ----------------------------------------------------------------


class _ConfigFile(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    auths: dict[str, _AuthBody] = msgspec.field(default_factory=dict)
    creds_store: str = ""
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict)


_decode_config_file = msgspec.json.Decoder(_ConfigFile)


def stored_credentials(domain: str, *, config_dir: str = "") -> Credentials | None:
    """What this user's `docker login` or `sampan login` left for a registry; None when nothing fits."""
    directory = config_dir or os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(directory, "config.json"), "rb") as file:
            config = _decode_config_file.decode(file.read(1 << 20))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"cannot read {directory}/config.json: {error}") from None
    key = registry_key(domain)
    for host, helper in config.cred_helpers.items():
        if registry_key(host) == key:
            return ask_helper(helper, _helper_address(domain, host))
    if config.creds_store:
        found = ask_helper(config.creds_store, _helper_address(domain, domain))
        if found is not None:
            return found
    for host, body in config.auths.items():
        if registry_key(host) == key:
            found = body.credentials()
            return None if found.is_empty else found
    return None


def _helper_address(domain: str, written: str) -> str:
    return HUB_KEY if registry_key(domain) == "docker.io" else written


class _HelperAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    username: str = ""
    secret: str = ""


_decode_helper = msgspec.json.Decoder(_HelperAnswer)


def ask_helper(name: str, address: str) -> Credentials | None:
    """Run `docker-credential-<name> get`; None where it knows nothing."""
    if not _HELPER_RE.fullmatch(name):
        raise InvalidArgument(f"invalid credential helper name {name[:64]!r}")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=address.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise InvalidArgument(f"credential helper {program!r} not found in $PATH") from None
    except subprocess.TimeoutExpired:
        raise InvalidArgument(f"credential helper {program!r} gave no answer in 60 s") from None
    if done.returncode != 0:
        return None  # its way to say "credentials not found"
    try:
        answer = _decode_helper.decode(done.stdout[:TOKEN_LIMIT])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidArgument(f"credential helper {program!r} answered no JSON") from None
    if answer.username == "<token>":
        return Credentials(identity_token=answer.secret, server_address=address)
    return Credentials(username=answer.username, password=answer.secret, server_address=address)


# --- challenges and tokens ------------------------------------------------------------------------------


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """One scheme of a WWW-Authenticate header, names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """WWW-Authenticate values to challenges; what does not parse is left out (RFC 7235, 4.1)."""
    found = []
    for header in headers:
        text = header.strip()[:8192]
        while text:
            match = re.match(r"([A-Za-z][A-Za-z0-9!#$&^_.+-]*)(?:\s+|$)", text, re.ASCII)
            if match is None:
                break
            scheme, text = match[1].lower(), text[match.end() :]
            parameters: dict[str, str] = {}
            while (pair := _PARAMETER_RE.match(text)) is not None:
                value = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
                parameters.setdefault(pair[1].lower(), value)
                text = text[pair.end() :]
            found.append(Challenge(scheme=scheme, parameters=parameters))
            text = text.lstrip(", ")
    return found


class TokenFetcher(Protocol):
    """How a keyring reaches the token service: `transport.Transport` gives one."""

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes]: ...


class _TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    token: str = ""
    access_token: str = ""
    expires_in: int = 0
    refresh_token: str = ""


_decode_token = msgspec.json.Decoder(_TokenAnswer)


@dataclass
class Keyring:
    """Answers one registry's challenges. Thread-safe: layers are fetched side by side."""

    fetch: TokenFetcher
    credentials: Credentials | None = None
    client_id: str = "sampan"
    wants_identity_token: bool = False  # `login`: a token to keep instead of the password
    identity_token: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _challenge: Challenge | None = None
    _tokens: dict[str, tuple[str, float]] = field(default_factory=dict)

    def header(self, scopes: tuple[str, ...]) -> str:
        """The Authorization value to send at once, or nothing while no challenge was seen."""
        if self.credentials is not None and self.credentials.registry_token:
            return f"Bearer {self.credentials.registry_token}"
        with self._lock:
            challenge = self._challenge
            if challenge is None:
                return ""
            if challenge.scheme == "basic":
                return self._basic()
            token, until = self._tokens.get(" ".join(scopes), ("", 0.0))
            return f"Bearer {token}" if token and time.monotonic() < until else ""

    def answer(
        self, challenges: list[Challenge], scopes: tuple[str, ...], *, registry_url: str
    ) -> str:
        """A 401 came: the Authorization value to try again with, or nothing when we have no answer."""
        if self.credentials is not None and self.credentials.registry_token:
            return ""
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                with self._lock:
                    self._challenge = challenge
                    return f"Bearer {self._token(challenge, scopes, registry_url)}"
        for challenge in challenges:
            if challenge.scheme == "basic":
                with self._lock:
                    self._challenge = challenge
                    return self._basic()
        return ""

    def _basic(self) -> str:
        if self.credentials is None or not self.credentials.username:
            return ""
        return self.credentials.basic

    def _token(self, challenge: Challenge, scopes: tuple[str, ...], registry_url: str) -> str:
        realm = challenge.parameters["realm"]
        _check_realm(realm, registry_url)
        wanted = scopes or tuple(challenge.parameters.get("scope", "").split())
        service = challenge.parameters.get("service", "")
        if self.credentials is not None and self.credentials.identity_token:
            status, body = self._ask_oauth(realm, service, wanted)
        else:
            status, body = self._ask(realm, service, wanted)
        if status == 401:
            raise Unauthenticated("unauthorized: incorrect username or password")
        if status == 403:
            raise PermissionDenied("denied: requested access to the resource is denied")
        if not 200 <= status < 300:
            raise Unauthenticated(
                f"failed to authorize: the token service answered with HTTP status {status}"
            )
        try:
            answer = _decode_token.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unauthenticated("failed to authorize: the token service sent no token") from None
        token = answer.token or answer.access_token
        if not token or not token.isascii() or any(c.isspace() for c in token):
            raise Unauthenticated("authorization server did not include a token in the response")
        self.identity_token = answer.refresh_token
        life = min(max(answer.expires_in, _DEFAULT_TOKEN_LIFE_S), 86400)
        self._tokens[" ".join(scopes)] = (token, time.monotonic() + life * 0.9)
        return token

    def _ask(self, realm: str, service: str, scopes: tuple[str, ...]) -> tuple[int, bytes]:
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if self.wants_identity_token:
            query += [("offline_token", "true"), ("client_id", self.client_id)]
        if self.credentials is not None and self.credentials.username:
            query.append(("account", self.credentials.username))
            headers["Authorization"] = self.credentials.basic
        joint = "&" if urlsplit(realm).query else "?"
        url = realm + (joint + urlencode(query, quote_via=quote) if query else "")
        return self.fetch("GET", url, headers, None)

    def _ask_oauth(self, realm: str, service: str, scopes: tuple[str, ...]) -> tuple[int, bytes]:
        assert self.credentials is not None
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": self.client_id,
            "scope": " ".join(scopes),
            "refresh_token": self.credentials.identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.fetch("POST", realm, headers, urlencode(form).encode())


def _check_realm(realm: str, registry_url: str) -> None:
    """A registry reached by TLS may not send us, and our password, to a token service without."""
    parts = urlsplit(realm)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unauthenticated("failed to authorize: the registry named an invalid token service")
    if parts.scheme == "http" and urlsplit(registry_url).scheme == "https":
        raise Unauthenticated(
            "failed to authorize: the registry uses TLS, the token service that it named does not"
        )
