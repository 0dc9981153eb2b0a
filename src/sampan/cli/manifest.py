"""`manifest`: look at manifests at registries, put lists together here and push them.

    <config>/manifests/<list>/<image>      one JSON file for each image of a local list

Registries are spoken to directly, as docker's client does, over HTTPS (--insecure: HTTP where that fails).
"""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
from binascii import b2a_base64
from hashlib import sha256

from sampan.cli import names, wire
from sampan.cli.failures import Failure
from sampan.cli.registry import credentials
from sampan.cli.session import out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
ACCEPT = ", ".join((DOCKER_LIST, DOCKER_IMAGE, OCI_INDEX, OCI_IMAGE))
LIMIT = 4 << 20


class Registry:
    """One registry: requests with the token that it asks for."""

    def __init__(self, session: Session, domain: str, *, insecure: bool) -> None:
        self.host = "registry-1.docker.io" if domain == "docker.io" else domain
        self.insecure = insecure
        self.known = credentials(session, domain)
        self.authorization = ""
        self.plain = False

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        status, answered, data = self._once(method, path, body, headers)
        if status == 401 and not self.authorization:
            self._authorize(answered.get("www-authenticate", ""))
            status, answered, data = self._once(method, path, body, headers)
        return status, answered, data

    def _once(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None
    ) -> tuple[int, dict[str, str], bytes]:
        sent = dict(headers or {})
        if self.authorization:
            sent["Authorization"] = self.authorization
        try:
            return _exchange(
                self.host, method, path, body, sent, insecure=self.insecure, plain=self.plain
            )
        except (OSError, http.client.HTTPException) as error:
            if self.insecure and not self.plain:
                self.plain = True
                return self._once(method, path, body, headers)
            raise Failure(f'{method} "https://{self.host}{path}": {error}') from None

    def _authorize(self, challenge: str) -> None:
        kind, _, rest = challenge.partition(" ")
        user, password = self.known.get("username", ""), self.known.get("password", "")
        basic = b2a_base64(f"{user}:{password}".encode(), newline=False).decode() if user else ""
        if kind.lower() == "basic":
            self.authorization = f"Basic {basic}" if basic else ""
            return
        fields = {}
        for part in rest.split('",'):
            key, _, value = part.strip().partition("=")
            fields[key.strip()] = value.strip().strip('"')
        realm = fields.pop("realm", "")
        scheme, _, where = realm.partition("://")
        host, slash, path = where.partition("/")
        if scheme not in ("http", "https") or not host:
            raise Failure(
                f"the registry {self.host} asks for a token in a way not understood: {challenge[:80]}"
            )
        query = "&".join(
            f"{key}={value}" for key, value in fields.items() if key in ("service", "scope")
        )
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        status, _, data = _exchange(
            host,
            "GET",
            f"{slash}{path}?{query}",
            None,
            headers,
            insecure=self.insecure,
            plain=scheme == "http",
        )
        if status != 200:
            raise Failure("unauthorized: authentication required")
        answer = wire.loads(data)
        self.authorization = f"Bearer {answer.get('token') or answer.get('access_token')}"


def _exchange(
    host: str,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    *,
    insecure: bool,
    plain: bool,
) -> tuple[int, dict[str, str], bytes]:
    if plain:
        connection: http.client.HTTPConnection = http.client.HTTPConnection(host, timeout=30)
    else:
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, timeout=30, context=context)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        data = response.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise Failure(f"the answer of {host} is longer than a manifest may be")
        return response.status, {k.lower(): v for k, v in response.getheaders()}, data
    finally:
        connection.close()


class Found:
    """A manifest as the registry has it."""

    __slots__ = ("body", "digest", "media_type", "name")

    def __init__(self, name: names.Name, body: bytes, media_type: str) -> None:
        self.name = name
        self.body = body
        self.media_type = media_type
        self.digest = "sha256:" + sha256(body).hexdigest()

    @property
    def parsed(self) -> dict[str, Any]:
        value = wire.loads(self.body)
        if not isinstance(value, dict):
            raise Failure(f"{self.name.full}: not a manifest")
        return value

    @property
    def is_list(self) -> bool:
        return self.media_type in (DOCKER_LIST, OCI_INDEX) or "manifests" in self.parsed


def _fetch(session: Session, name: names.Name, reference: str, *, insecure: bool) -> Found:
    registry = Registry(session, name.domain, insecure=insecure)
    status, headers, body = registry.ask(
        "GET", f"/v2/{name.path}/manifests/{reference}", headers={"Accept": ACCEPT}
    )
    if status in (401, 403, 404):
        raise Failure(f"no such manifest: {name.full}{name.suffix}")
    if status != 200:
        raise Failure(f"the registry answered {status} for {name.full}{name.suffix}")
    if reference.startswith("sha256:") and sha256(body).hexdigest() != reference[7:]:
        raise Failure(f"the registry's manifest does not have the digest {reference}")
    return Found(name, body, headers.get("content-type", "").split(";")[0])


def _config(session: Session, found: Found, *, insecure: bool) -> dict[str, Any]:
    digest = (found.parsed.get("config") or {}).get("digest", "")
    registry = Registry(session, found.name.domain, insecure=insecure)
    status, headers, body = registry.ask("GET", f"/v2/{found.name.path}/blobs/{digest}")
    if status in (301, 302, 303, 307, 308):
        scheme, _, rest = headers.get("location", "").partition("://")
        host, slash, path = rest.partition("/")
        status, _, body = _exchange(
            host, "GET", slash + path, None, {}, insecure=insecure, plain=scheme == "http"
        )
    if status != 200 or "sha256:" + sha256(body).hexdigest() != digest:
        raise Failure(f"cannot read the configuration {digest} of {found.name.full}")
    value: dict[str, Any] = wire.loads(body)
    return value


def _platform(config: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "architecture": "architecture",
        "os": "os",
        "variant": "variant",
        "os.version": "os.version",
    }
    return {key: config[source] for key, source in fields.items() if config.get(source)}


# -- commands -----------------------------------------------------------------------------------------------------


def inspect(session: Session, options: Options) -> int:
    insecure, verbose = options.flag("insecure"), options.flag("verbose")
    if len(options.args) == 2:
        entries = {e["Ref"]: e for e in _entries(session, options.args[0])}
        wanted = _text(names.parse(options.args[1]).tagged())
        if wanted not in entries:
            raise Failure(f"No such manifest: {options.args[1]}")
        out(wire.indent(wire.dumps(entries[wanted]), "\t"))
        return 0
    if _is_local(session, options.args[0]):
        out(wire.indent(wire.dumps(_assembled(_entries(session, options.args[0]))), "   "))
        return 0
    name = names.parse(options.args[0]).tagged()
    found = _fetch(session, name, name.digest or name.tag, insecure=insecure)
    if not verbose:
        out(wire.indent(found.body.decode("utf-8", "replace"), "\t").rstrip())
        return 0
    every = [_described(session, image, insecure) for image in _images(session, found, insecure)]
    out(wire.indent(wire.dumps(every if found.is_list else every[0]), "\t"))
    return 0


def _images(session: Session, found: Found, insecure: bool) -> list[Found]:
    if not found.is_list:
        return [found]
    return [
        _fetch(session, found.name, entry["digest"], insecure=insecure)
        for entry in found.parsed["manifests"]
    ]


def _described(session: Session, found: Found, insecure: bool) -> dict[str, Any]:
    key = "OCIManifest" if found.media_type == OCI_IMAGE else "SchemaV2Manifest"
    return {
        "Ref": _text(found.name),
        "Descriptor": {
            "mediaType": found.media_type,
            "digest": found.digest,
            "size": len(found.body),
            "platform": _platform(_config(session, found, insecure=insecure)),
        },
        "Raw": b2a_base64(found.body, newline=False).decode(),
        key: found.parsed,
    }


def _text(name: names.Name) -> str:
    return f"{name.full}{name.suffix}"


def _directory(session: Session, list_name: str) -> str:
    safe = _text(names.parse(list_name).tagged()).replace("/", "_").replace(":", "-")
    return f"{session.config_directory}/manifests/{safe}"


def _is_local(session: Session, list_name: str) -> bool:
    return os.path.isdir(_directory(session, list_name))


def _entries(session: Session, list_name: str) -> list[dict[str, Any]]:
    directory = _directory(session, list_name)
    if not os.path.isdir(directory):
        raise Failure(f"No such manifest: {list_name}")
    found = []
    for file_name in sorted(os.listdir(directory)):
        with open(f"{directory}/{file_name}", encoding="utf-8") as file:
            found.append(wire.loads(file.read()))
    return found


def _assembled(entries: list[dict[str, Any]]) -> dict[str, Any]:
    media_types = {entry["Descriptor"]["mediaType"] for entry in entries}
    kind = OCI_INDEX if media_types == {OCI_IMAGE} else DOCKER_LIST
    fields = ("mediaType", "size", "digest", "platform")
    return {
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [{key: entry["Descriptor"][key] for key in fields} for entry in entries],
    }


def _store(session: Session, list_name: str, entry: dict[str, Any]) -> None:
    directory = _directory(session, list_name)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    file_name = entry["Ref"].replace("/", "_").replace(":", "-")
    with open(f"{directory}/{file_name}", "w", encoding="utf-8") as file:
        file.write(wire.dumps(entry))


def create(session: Session, options: Options) -> int:
    list_name, *images = options.args
    if _is_local(session, list_name) and not options.flag("amend"):
        raise Failure(
            f"refusing to amend an existing manifest list with no --amend flag: {list_name}"
        )
    for image in images:
        name = names.parse(image).tagged()
        found = _fetch(session, name, name.digest or name.tag, insecure=options.flag("insecure"))
        if found.is_list:
            raise Failure(f"{image} is a manifest list")
        _store(session, list_name, _described(session, found, options.flag("insecure")))
    out(f"Created manifest list {_text(names.parse(list_name).tagged())}")
    return 0


def annotate(session: Session, options: Options) -> int:
    list_name, image = options.args
    wanted = _text(names.parse(image).tagged())
    entry = next((e for e in _entries(session, list_name) if e["Ref"] == wanted), None)
    if entry is None:
        raise Failure(f"manifest for image {image} does not exist in {list_name}")
    platform = entry["Descriptor"].setdefault("platform", {})
    for flag, key in (
        ("os", "os"),
        ("arch", "architecture"),
        ("variant", "variant"),
        ("os-version", "os.version"),
    ):
        if options.text(flag):
            platform[key] = options.text(flag)
    if options.list("os-features"):
        platform["os.features"] = options.list("os-features")
    _store(session, list_name, entry)
    return 0


def rm(session: Session, options: Options) -> int:
    wrong = []
    for list_name in options.args:
        if not _is_local(session, list_name):
            wrong.append(f"No such manifest: {list_name}")
            continue
        shutil.rmtree(_directory(session, list_name))
    if wrong:
        raise Failure("\n".join(wrong))
    return 0


def push(session: Session, options: Options) -> int:
    list_name, insecure = options.args[0], options.flag("insecure")
    entries = _entries(session, list_name)
    target = names.parse(list_name).tagged()
    registry = Registry(session, target.domain, insecure=insecure)
    for entry in entries:
        source = names.parse(entry["Ref"])
        if source.domain != target.domain:
            raise Failure(
                f"cannot use source images from a different registry than the target image: {source.domain} != {target.domain}"
            )
        if source.path != target.path:
            _mount_blobs(registry, entry, source, target)
        body = _raw(entry)
        _put(
            registry, target, entry["Descriptor"]["digest"], body, entry["Descriptor"]["mediaType"]
        )
    whole = _assembled(entries)
    body = wire.indent(wire.dumps(whole), "   ").encode()
    out(_put(registry, target, target.tag, body, whole["mediaType"]))
    if options.flag("purge"):
        shutil.rmtree(_directory(session, list_name))
    return 0


def _raw(entry: dict[str, Any]) -> bytes:
    from binascii import a2b_base64

    return a2b_base64(entry["Raw"])


def _mount_blobs(
    registry: Registry, entry: dict[str, Any], source: names.Name, target: names.Name
) -> None:
    """The registry takes the blobs over from the repository that has them."""
    manifest = entry.get("SchemaV2Manifest") or entry.get("OCIManifest") or {}
    for blob in [manifest.get("config") or {}, *(manifest.get("layers") or [])]:
        path = f"/v2/{target.path}/blobs/uploads/?mount={blob['digest']}&from={source.path}"
        status, _, _ = registry.ask("POST", path, body=b"", headers={"Content-Length": "0"})
        if status != 201:
            raise Failure(
                f"cannot mount the blob {blob['digest']} from {source.full}: the registry answered {status}"
            )


def _put(
    registry: Registry, target: names.Name, reference: str, body: bytes, media_type: str
) -> str:
    path = f"/v2/{target.path}/manifests/{reference}"
    status, _, said = registry.ask("PUT", path, body=body, headers={"Content-Type": media_type})
    if status not in (200, 201, 202):
        raise Failure(
            f"cannot put {target.full}:{reference}: the registry answered {status}: {said[:200]!r}"
        )
    return "sha256:" + sha256(body).hexdigest()
