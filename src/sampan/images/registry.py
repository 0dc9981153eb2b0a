"""The distribution API's client: resolve, fetch, list, upload, mount, referrers.

    Registry      one registry for one operation: its endpoints, our keyring for each
    Repository    one repository there; every method is one or two requests

What comes back is verified here or named as unverified: a manifest's bytes have been compared with their digest,
a blob's stream has not (the reader hashes it while it moves). A failure is a `RegistryFault` with the registry's
own code (faults.py), or `ConnectionFailed` when there was no answer.

Sources: OCI distribution-spec 1.1 (end-1 to end-13), distribution's "HTTP API V2" for what came before.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit, urlunsplit

import msgspec

from sampan.errors import (
    InvalidArgument,
    SampanError,
    Unauthenticated,
    Unavailable,
)
from sampan.images.auth import Credentials, Keyring
from sampan.images.cancel import Cancel
from sampan.images.endpoints import Endpoint, RegistryConfig, endpoints
from sampan.images.faults import RegistryFault, challenges_of, fault_of, printable
from sampan.images.transport import (
    Body,
    ConnectionFailed,
    Response,
    Transport,
)
from sampan.spec.image import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    parse_index,
    parse_manifest_or_index,
)
from sampan.spec.reference import digest_hex, digest_of, is_digest

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
TAG_PAGE_LIMIT = 10_000
TAGS_BYTES_LIMIT = 16 * 1024 * 1024

T = TypeVar("T")


@dataclass
class _Way:
    endpoint: Endpoint
    keyring: Keyring


class Registry:
    """One registry, for one operation of one user."""

    def __init__(
        self,
        config: RegistryConfig,
        domain: str,
        credentials: Credentials | None = None,
        *,
        cancel: Cancel | None = None,
        for_push: bool = False,
    ) -> None:
        self.config = config
        self.domain = domain
        self.credentials = credentials
        self.transport = Transport(config, cancel)
        self._ways = [
            # A mirror is somebody else: the registry's password is not for it.
            _Way(e, Keyring(self.transport.fetch_small, None if e.mirror else credentials))
            for e in endpoints(config, domain, for_push=for_push)
        ]

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def repository(self, path: str) -> Repository:
        return Repository(self, path)

    @property
    def base_url(self) -> str:
        """Where the registry itself is (no mirror), as far as is known."""
        return next(way.endpoint.base for way in self._ways if not way.endpoint.mirror)

    def ask_for_identity_token(self) -> None:
        """The next token is to come with one that can be kept instead of the password."""
        for way in self._ways:
            way.keyring.wants_identity_token = True

    @property
    def identity_token(self) -> str:
        return next((w.keyring.identity_token for w in self._ways if w.keyring.identity_token), "")

    def on_some_endpoint(self, act: Callable[[_Way], T]) -> T:
        """Try the ways in order. A mirror may fail in any manner; the registry's own word is final."""
        first_failure: SampanError | None = None
        for way in list(self._ways):
            try:
                result = act(way)
            except (ConnectionFailed, RegistryFault, InvalidArgument, Unauthenticated) as error:
                if way is self._ways[-1] or not self._may_go_on(way, error):
                    raise _better(first_failure, error) from error.__cause__
                first_failure = first_failure or error
                continue
            if not way.endpoint.mirror:
                # It answered: the other way (plain HTTP, or TLS) is not asked again.
                self._ways = [w for w in self._ways if w.endpoint.mirror or w is way]
            return result
        raise AssertionError("unreachable")

    def _may_go_on(self, way: _Way, error: SampanError) -> bool:
        return way.endpoint.mirror or isinstance(error, ConnectionFailed)

    def send(
        self,
        way: _Way,
        method: str,
        url: str,
        *,
        scopes: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
        body: bytes | Body | None = None,
        retry: bool | None = None,
        ok: tuple[int, ...] = (200,),
    ) -> Response:
        """A request with whatever authorisation it takes; a status outside `ok` is a RegistryFault."""
        endpoint, keyring = way.endpoint, way.keyring
        wanted = dict(headers or {})
        private = same_origin(url, endpoint.base)
        attempts = 2 if endpoint.mirror else None
        for attempt in (1, 2):
            authorization = keyring.header(scopes) if private else ""
            if authorization:
                wanted["Authorization"] = authorization
            try:
                response = self.transport.request(
                    method,
                    url,
                    headers=wanted,
                    body=body,
                    verify=endpoint.verify,
                    retry=retry,
                    attempts=attempts,
                )
            except ConnectionFailed as error:
                if private:  # told as of the registry's front door, where Docker knocks first
                    error.message = f'Get "{endpoint.base}/v2/": {error.why or error.message}'
                raise
            if response.status != 401 or attempt == 2 or not private:
                break
            if not same_origin(response.url, endpoint.base):
                break  # the 401 is of a place that we were sent to, and it gets no secret
            challenges = challenges_of(response)
            try:
                answer = keyring.answer(challenges, scopes, registry_url=endpoint.base)
            except SampanError:
                response.close()
                raise
            if not answer:
                if any(c.scheme == "basic" for c in challenges) and keyring.credentials is None:
                    response.drain()
                    shown = url.partition("?")[0]
                    raise Unauthenticated(
                        f'{method.capitalize()} "{shown}": no basic auth credentials'
                    )
                break
            response.drain()
            wanted["Authorization"] = answer
        if response.status not in ok:
            with response:
                raise fault_of(response)
        return response

    def ping(self) -> None:
        """Is there a registry, and does it know us? (`GET /v2/`, distribution-spec end-1)"""

        def act(way: _Way) -> None:
            with self.send(way, "GET", f"{way.endpoint.base}/v2/") as response:
                response.drain()

        self.on_some_endpoint(act)


def same_origin(url: str, other: str) -> bool:
    one, two = urlsplit(url), urlsplit(other)
    return (one.scheme, one.netloc.lower()) == (two.scheme, two.netloc.lower())


def _better(first: SampanError | None, last: SampanError) -> SampanError:
    """Which of two failures to report: an answer says more than no answer, TLS more than a refused port."""
    if first is None or not isinstance(last, ConnectionFailed):
        return last
    return first if isinstance(first.__cause__, ssl.SSLError) else last


@dataclass(frozen=True)
class Fetched:
    """A manifest or index as it came: verified bytes, the type that was said, the digest."""

    raw: bytes
    media_type: str
    digest: str

    def parse(self) -> Manifest | Index:
        return parse_manifest_or_index(self.raw, self.media_type)


class Repository:
    """One repository of a registry."""

    def __init__(self, registry: Registry, path: str) -> None:
        self.registry = registry
        self.path = path

    @property
    def pull_scopes(self) -> tuple[str, ...]:
        return (f"repository:{self.path}:pull",)

    @property
    def push_scopes(self) -> tuple[str, ...]:
        return (f"repository:{self.path}:pull,push",)

    def _url(self, way: _Way, rest: str) -> str:
        return f"{way.endpoint.base}/v2/{self.path}/{rest}"

    # --- reading -------------------------------------------------------------------------------------

    def resolve(self, name: str) -> Descriptor | None:
        """HEAD of a tag: what it is now, without the body (Docker Hub counts bodies). None when not told."""

        def act(way: _Way) -> Descriptor | None:
            try:
                response = self.registry.send(
                    way,
                    "HEAD",
                    self._url(way, f"manifests/{name}"),
                    scopes=self.pull_scopes,
                    headers={"Accept": ACCEPT},
                )
            except RegistryFault as fault:
                if fault.status == 429 or way.endpoint.mirror:
                    raise
                return None  # an answer to HEAD has no body: the GET that follows says why
            with response:
                return _descriptor_of(response)

        return self.registry.on_some_endpoint(act)

    def fetch_manifest(self, name: str) -> Fetched:
        """By tag or digest. The bytes are those that the digest says, or this raises."""

        def act(way: _Way) -> Fetched:
            with self.registry.send(
                way,
                "GET",
                self._url(way, f"manifests/{name}"),
                scopes=self.pull_scopes,
                headers={"Accept": ACCEPT},
            ) as response:
                raw = response.read(MANIFEST_LIMIT, "manifest")
                said = response.headers.get("Docker-Content-Digest", "").strip()
                media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
                return _verified(name, raw, media_type, said)

        return self.registry.on_some_endpoint(act)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> tuple[Response, int]:
        """A blob's stream, unverified, and the offset at which it really starts (0 when Range was ignored)."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}

        def act(way: _Way) -> tuple[Response, int]:
            response = self.registry.send(
                way,
                "GET",
                self._url(way, f"blobs/{descriptor.digest}"),
                scopes=self.pull_scopes,
                headers=headers,
                ok=(200, 206),
            )
            try:
                return response, _check_range(response, descriptor, offset)
            except SampanError:
                response.close()
                raise

        return self.registry.on_some_endpoint(act)

    def open_foreign(
        self, url: str, descriptor: Descriptor, offset: int = 0
    ) -> tuple[Response, int]:
        """A blob that lives elsewhere. Nobody there is told who we are, whatever they ask."""
        if urlsplit(url).scheme not in {"http", "https"}:
            raise InvalidArgument(f"unsupported URL of foreign layer {descriptor.digest}")
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self.registry.transport.request("GET", url, headers=headers)
        try:
            if response.status not in {200, 206}:
                raise fault_of(response)
            return response, _check_range(response, descriptor, offset)
        except SampanError:
            response.close()
            raise

    def fetch_blob(self, descriptor: Descriptor, limit: int, what: str) -> bytes:
        """A small blob, whole and verified."""
        if descriptor.size > limit:
            raise InvalidArgument(f"{what} is too large: {descriptor.size} bytes, at most {limit}")
        response, _ = self.open_blob(descriptor)
        with response:
            raw = response.read(descriptor.size, what)
        check_content(raw, descriptor, what)
        return raw

    def tags(self) -> list[str]:
        """All tags, following pages (distribution-spec end-8)."""

        def act(way: _Way) -> list[str]:
            found: list[str] = []
            url = self._url(way, "tags/list")
            for _ in range(TAG_PAGE_LIMIT):
                with self.registry.send(way, "GET", url, scopes=self.pull_scopes) as response:
                    body = response.read(TAGS_BYTES_LIMIT, "tag list")
                    link = response.headers.get("Link", "")
                try:
                    found += _decode_tags.decode(body).tags or ()
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    raise InvalidArgument("invalid tag list from the registry") from None
                following = _next_page(url, link)
                if not following or len(found) > 1_000_000:
                    return found
                url = following
            return found

        return self.registry.on_some_endpoint(act)

    def referrers(self, digest: str, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """What refers to a manifest: signatures, bills of material (end-12; the tag schema where that is 404)."""

        def act(way: _Way) -> bytes:
            query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
            with self.registry.send(
                way, "GET", self._url(way, f"referrers/{digest}{query}"), scopes=self.pull_scopes
            ) as response:
                return response.read(MANIFEST_LIMIT, "referrers")

        try:
            found = parse_index(self.registry.on_some_endpoint(act)).manifests
        except RegistryFault as fault:
            if fault.status not in {404, 400, 405, 501}:
                raise
            try:
                fallback = self.fetch_manifest(digest.replace(":", "-", 1))
            except RegistryFault as missing:
                if missing.status == 404:
                    return ()
                raise
            found = parse_index(fallback.raw, fallback.media_type).manifests
        return tuple(d for d in found if not artifact_type or d.artifact_type == artifact_type)

    # --- writing -------------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        def act(way: _Way) -> bool:
            try:
                response = self.registry.send(
                    way, "HEAD", self._url(way, f"blobs/{digest}"), scopes=self.push_scopes
                )
            except RegistryFault as fault:
                if fault.status == 404:
                    return False
                raise
            with response:
                return True

        return self.registry.on_some_endpoint(act)

    def mount(self, digest: str, source: str) -> str | None:
        """Take a blob over from another repository: None when done, else the upload that was begun instead."""
        query = urlencode({"mount": digest, "from": source})
        scopes = (*self.push_scopes, f"repository:{source}:pull")
        status, location = self._begin(f"blobs/uploads/?{query}", scopes)
        return None if status == 201 else location

    def begin_upload(self) -> str:
        return self._begin("blobs/uploads/", self.push_scopes)[1]

    def _begin(self, rest: str, scopes: tuple[str, ...]) -> tuple[int, str]:
        def act(way: _Way) -> tuple[int, str]:
            with self.registry.send(
                way,
                "POST",
                self._url(way, rest),
                scopes=scopes,
                headers={"Content-Length": "0"},
                retry=True,
                ok=(201, 202),
            ) as response:
                response.drain()
                return response.status, _location(response, required=response.status == 202)

        return self.registry.on_some_endpoint(act)

    def upload_whole(self, location: str, body: Body, digest: str) -> None:
        """One PUT with everything: a known size and digest (end-4b)."""
        self._put(_with_digest(location, digest), body)

    def upload_stream(self, location: str, body: Body) -> str:
        """One PATCH with a stream of any length (end-5); returns where to finish."""
        return self._patch(location, body, {})

    def upload_chunk(self, location: str, body: Body, start: int) -> str:
        """A PATCH of a part that starts at `start` (end-5 with Content-Range)."""
        assert body.length is not None
        return self._patch(location, body, {"Content-Range": f"{start}-{start + body.length - 1}"})

    def _patch(self, location: str, body: Body, headers: dict[str, str]) -> str:
        def act(way: _Way) -> str:
            with self.registry.send(
                way,
                "PATCH",
                location,
                scopes=self.push_scopes,
                headers={"Content-Type": "application/octet-stream"} | headers,
                body=body,
                ok=(202, 204),
            ) as response:
                response.drain()
                return _location(response, required=False) or location

        return self.registry.on_some_endpoint(act)

    def upload_status(self, location: str) -> tuple[str, int]:
        """After a broken upload: where to go on, and from which byte (end-13)."""

        def act(way: _Way) -> tuple[str, int]:
            with self.registry.send(
                way, "GET", location, scopes=self.push_scopes, ok=(202, 204)
            ) as response:
                response.drain()
                match = re.fullmatch(
                    r"(?:bytes=)?0-([0-9]{1,18})", response.headers.get("Range", ""), re.ASCII
                )
                done = int(match[1]) + 1 if match and match[1] != "0" else 0
                return _location(response, required=False) or location, done

        return self.registry.on_some_endpoint(act)

    def finish_upload(self, location: str, digest: str) -> None:
        self._put(_with_digest(location, digest), b"")

    def _put(self, url: str, body: bytes | Body) -> None:
        def act(way: _Way) -> None:
            with self.registry.send(
                way,
                "PUT",
                url,
                scopes=self.push_scopes,
                headers={"Content-Type": "application/octet-stream"},
                body=body,
                ok=(201, 204),
            ) as response:
                response.drain()

        self.registry.on_some_endpoint(act)

    def put_manifest(self, name: str, raw: bytes, media_type: str) -> None:
        """Publish under a tag or digest (end-7)."""

        def act(way: _Way) -> None:
            with self.registry.send(
                way,
                "PUT",
                self._url(way, f"manifests/{name}"),
                scopes=self.push_scopes,
                headers={"Content-Type": media_type},
                body=raw,
                retry=True,
                ok=(201, 202),
            ) as response:
                said = response.headers.get("Docker-Content-Digest", "").strip()
                response.drain()
            if said and said.startswith("sha256:") and said != digest_of(raw):
                raise Unavailable(
                    f"the registry stored manifest {name} as {said}, it was {digest_of(raw)}"
                )

        self.registry.on_some_endpoint(act)


class _Tags(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    tags: tuple[str, ...] | None = None


_decode_tags = msgspec.json.Decoder(_Tags)


def check_content(raw: bytes, descriptor: Descriptor, what: str) -> None:
    """Bytes against the descriptor that promised them."""
    if len(raw) != descriptor.size:
        raise InvalidArgument(
            f"{what} verification failed for digest {descriptor.digest}: "
            f"unexpected size {len(raw)}, expected {descriptor.size}"
        )
    if not matches_digest(raw, descriptor.digest):
        raise InvalidArgument(f"{what} verification failed for digest {descriptor.digest}")


def matches_digest(raw: bytes, digest: str) -> bool:
    algorithm = digest.partition(":")[0]
    found: str = hashlib.new(algorithm, raw).hexdigest()
    return found == digest_hex(digest)


def _descriptor_of(response: Response) -> Descriptor | None:
    digest = response.headers.get("Docker-Content-Digest", "").strip()
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    length = response.headers.get("Content-Length", "")
    if not is_digest(digest) or media_type not in MANIFEST_TYPES | INDEX_TYPES:
        return None
    if not (length.isascii() and length.isdigit() and 0 < int(length[:12]) <= MANIFEST_LIMIT):
        return None
    return Descriptor(media_type=media_type, digest=digest, size=int(length))


def _verified(name: str, raw: bytes, media_type: str, said: str) -> Fetched:
    wanted = name if is_digest(name) else said
    if wanted and not is_digest(wanted):
        raise InvalidArgument(f"the registry sent an invalid digest for manifest {name}")
    if wanted and not matches_digest(raw, wanted):
        raise InvalidArgument(f"manifest verification failed for digest {wanted}")
    known = MANIFEST_TYPES | INDEX_TYPES
    if media_type in {"application/json", "text/plain", "application/octet-stream", ""}:
        media_type = ""  # some registries serve files: then the document says what it is
    elif media_type not in known and "manifest.v1+" not in media_type:
        raise InvalidArgument(f"unsupported manifest media type {printable(media_type)!r}")
    return Fetched(raw=raw, media_type=media_type, digest=wanted or digest_of(raw))


def _check_range(response: Response, descriptor: Descriptor, offset: int) -> int:
    """The offset at which the body starts; a length that contradicts the descriptor is refused at once."""
    start = 0
    if response.status == 206:
        match = re.match(
            r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""), re.ASCII
        )
        start = int(match[1]) if match else -1
        if start != offset:
            raise ConnectionFailed(f"the registry sent another range of {descriptor.digest}")
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and start + int(length[:18]) != descriptor.size:
        raise InvalidArgument(
            f"unexpected size of blob {descriptor.digest}: the registry has "
            f"{start + int(length[:18])} bytes, the manifest says {descriptor.size}"
        )
    return start


def _location(response: Response, *, required: bool) -> str:
    location = response.headers.get("Location", "")
    if not location:
        if required:
            raise Unavailable("the registry named no place for the upload")
        return ""
    target = urljoin(response.url, location)
    if urlsplit(target).scheme not in {"http", "https"}:
        raise InvalidArgument("the registry named an invalid place for the upload")
    return target


def _with_digest(location: str, digest: str) -> str:
    parts = urlsplit(location)
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}digest={quote(digest, safe='')}"))


def _next_page(url: str, link: str) -> str:
    """RFC 5988 `<...>; rel="next"`, on the same registry only."""
    match = re.match(r'\s*<([^>]{1,4096})>\s*;\s*rel="?next"?', link, re.ASCII)
    if match is None:
        return ""
    target: str = urljoin(url, match[1])
    if not same_origin(target, url) or parse_qs(urlsplit(target).query) == parse_qs(
        urlsplit(url).query
    ):
        return ""
    return target
