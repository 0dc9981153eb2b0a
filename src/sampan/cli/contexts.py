"""Contexts: addresses of engines under names, in docker's own files, so that either client can use them.

<config>/contexts/meta/<sha256 of the name>/meta.json      name, description, address
<config>/contexts/tls/<sha256 of the name>/docker/*.pem    certificates
"""

from __future__ import annotations

import os
import shutil
import sys
from hashlib import sha256

from sampan.cli import wire
from sampan.cli.failures import Failure
from sampan.cli.session import default_socket, getenv, out, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

PEMS = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "DockerEndpoint": "DOCKER ENDPOINT",
    "Error": "ERROR",
}


class Endpoint:
    """Where a context leads, and the certificates for it."""

    __slots__ = ("host", "tls")

    def __init__(self, host: str, tls: dict[str, Any] | None) -> None:
        self.host = host
        self.tls = tls


def _key(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def _meta_directory(session: Session, name: str) -> str:
    return f"{session.config_directory}/contexts/meta/{_key(name)}"


def _tls_directory(session: Session, name: str) -> str:
    return f"{session.config_directory}/contexts/tls/{_key(name)}"


def read(session: Session, name: str) -> dict[str, Any]:
    """The context's meta.json; 'default' is made up from the environment."""
    if name == "default":
        host = getenv("SAMPAN_HOST") or getenv("DOCKER_HOST") or f"unix://{default_socket()}"
        return {
            "Name": "default",
            "Metadata": {"Description": "Current DOCKER_HOST based configuration"},
            "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}},
        }
    path = f"{_meta_directory(session, name)}/meta.json"
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = wire.loads(file.read())
    except FileNotFoundError:
        raise Failure(
            f'context "{name}": context not found: open {path}: no such file or directory'
        ) from None
    except (OSError, ValueError) as error:
        raise Failure(f'context "{name}": cannot be read: {error}') from None
    return found


def endpoint(session: Session, name: str) -> Endpoint:
    try:
        docker = read(session, name)["Endpoints"]["docker"]
    except KeyError:
        raise Failure(f'docker endpoint for "{name}" not found') from None
    directory = f"{_tls_directory(session, name)}/docker"
    files = {key: f"{directory}/{pem}" for key, pem in PEMS.items()}
    present = {key: path for key, path in files.items() if os.path.exists(path)}
    tls = None
    if present or docker.get("SkipTLSVerify"):
        tls = {
            "verify": not docker.get("SkipTLSVerify"),
            "ca": "",
            "cert": "",
            "key": "",
            **present,
        }
    return Endpoint(docker.get("Host") or "", tls)


def _check_name(name: str) -> None:
    if name == "default":
        raise Failure('"default" is a reserved context name')
    letters = name.replace("_", "a").replace(".", "a").replace("+", "a").replace("-", "a")
    if (
        not name
        or not name[0].isalnum()
        or not letters.isalnum()
        or not name.isascii()
        or len(name) < 2
    ):
        raise Failure(
            f'context name "{name}" is invalid, names are validated against regexp "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"'
        )


def _names(session: Session) -> list[str]:
    directory = f"{session.config_directory}/contexts/meta"
    try:
        keys = os.listdir(directory)
    except OSError:
        return []
    names = []
    for key in keys:
        try:
            with open(f"{directory}/{key}/meta.json", encoding="utf-8") as file:
                names.append(str(wire.loads(file.read())["Name"]))
        except (OSError, ValueError, KeyError):
            continue
    return sorted(names)


def _write(session: Session, meta: dict[str, Any]) -> None:
    directory = _meta_directory(session, meta["Name"])
    os.makedirs(directory, mode=0o755, exist_ok=True)
    fresh = f"{directory}/meta.json.{os.getpid()}"
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(wire.dumps(meta))
    os.replace(fresh, f"{directory}/meta.json")


def _settings(options: Options) -> dict[str, str]:
    settings: dict[str, str] = {}
    for text in options.list("docker"):
        for field in text.split(","):
            key, equals, value = field.partition("=")
            if not equals:
                raise Failure(f"{field} must be formatted as key=value")
            if key not in ("from", "host", "ca", "cert", "key", "skip-tls-verify"):
                raise Failure(f"{key}: unrecognized config key")
            settings[key] = value
    return settings


def _apply(session: Session, meta: dict[str, Any], settings: dict[str, str]) -> None:
    """The --docker settings into the meta data and the certificate files."""
    if settings.get("from"):
        meta["Endpoints"]["docker"] = dict(read(session, settings["from"])["Endpoints"]["docker"])
        return
    skip = settings.get("skip-tls-verify", "false").lower() in ("1", "t", "true")
    meta["Endpoints"]["docker"] = {"Host": settings.get("host", ""), "SkipTLSVerify": skip}
    given = {key: settings[key] for key in PEMS if settings.get(key)}
    if given:
        directory = f"{_tls_directory(session, meta['Name'])}/docker"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for key, path in given.items():
            try:
                shutil.copyfile(path, f"{directory}/{PEMS[key]}")
            except OSError as error:
                raise Failure(
                    f"invalid docker endpoint options: open {path}: {(error.strerror or '').lower()}"
                ) from None
            os.chmod(f"{directory}/{PEMS[key]}", 0o600)


def create(session: Session, options: Options) -> int:
    name = options.args[0]
    _check_name(name)
    if name in _names(session):
        raise Failure(f'context "{name}" already exists')
    source = options.text("from")
    settings = _settings(options)
    meta: dict[str, Any] = {"Name": name, "Metadata": {}, "Endpoints": {}}
    if source or not settings:
        copied = read(session, source or current(session))
        meta["Endpoints"] = copied["Endpoints"]
        meta["Metadata"] = dict(copied["Metadata"]) if source else {}
        if source and os.path.isdir(_tls_directory(session, source)):
            shutil.copytree(_tls_directory(session, source), _tls_directory(session, name))
    if settings:
        _apply(session, meta, settings)
    if options.text("description"):
        meta["Metadata"]["Description"] = options.text("description")
    _write(session, meta)
    out(name)
    warn(f'Successfully created context "{name}"')
    return 0


def update(session: Session, options: Options) -> int:
    name = options.args[0]
    _check_name(name)
    meta = read(session, name)
    if options.text("description"):
        meta["Metadata"]["Description"] = options.text("description")
    settings = _settings(options)
    if settings:
        _apply(session, meta, settings)
    _write(session, meta)
    out(name)
    warn(f'Successfully updated context "{name}"')
    return 0


def current(session: Session) -> str:
    return session.endpoint[1]


def show(session: Session, options: Options) -> int:
    out(current(session))
    return 0


def use(session: Session, options: Options) -> int:
    from sampan.cli.registry import write_config

    name = options.args[0]
    read(session, name)
    if name == "default":
        session.config.pop("currentContext", None)
    else:
        session.config["currentContext"] = name
    write_config(session)
    out(name)
    warn(f'Current context is now "{name}"')
    named = (
        "SAMPAN_HOST" if getenv("SAMPAN_HOST") else "DOCKER_HOST" if getenv("DOCKER_HOST") else ""
    )
    if name != "default" and named:
        warn(
            f'Warning: {named} environment variable overrides the active context. To use "{name}", '
            f"either set the global --context flag, or unset {named} environment variable."
        )
    return 0


def rm(session: Session, options: Options) -> int:
    wrong: list[str] = []
    active = session.setting("currentContext")
    for name in options.args:
        try:
            if name == "default":
                raise Failure('context "default" cannot be removed')
            if name == active and not options.flag("force"):
                raise Failure(f'context "{name}" is in use, set -f flag to force remove')
            if not options.flag("force") and name not in _names(session):
                raise Failure(f'context "{name}" does not exist')
        except Failure as failure:
            wrong.append(failure.message)
            continue
        shutil.rmtree(_meta_directory(session, name), ignore_errors=True)
        shutil.rmtree(_tls_directory(session, name), ignore_errors=True)
        out(name)
    for message in wrong:
        warn(message)
    return 1 if wrong else 0


def ls(session: Session, options: Options) -> int:
    from sampan.cli.govalues import Row
    from sampan.cli.table import listing

    in_use = current(session)

    def row(name: str) -> Row:
        meta = read(session, name)
        host = (meta["Endpoints"].get("docker") or {}).get("Host", "")
        return Row(
            "*formatter.clientContextContext",
            {
                "Current": lambda: name == in_use,
                "Description": lambda: meta["Metadata"].get("Description", ""),
                "DockerEndpoint": lambda: host,
                "Error": lambda: "",
                "Name": lambda: name,
            },
        )

    form = options.text("format") or "table"
    if options.flag("quiet"):
        form = "{{.Name}}"
    elif form == "table":
        form = "table {{.Name}}{{if .Current}} *{{end}}\\t{{.Description}}\\t{{.DockerEndpoint}}\\t{{.Error}}"
    from sampan.cli.networks import natural

    listing(
        form, [row(name) for name in sorted(["default", *_names(session)], key=natural)], HEADERS
    )
    named = (
        "SAMPAN_HOST" if getenv("SAMPAN_HOST") else "DOCKER_HOST" if getenv("DOCKER_HOST") else ""
    )
    if named and not session.context_flag and not options.flag("quiet"):
        warn(
            f"Warning: {named} environment variable overrides the active context. To use a context, "
            f"either set the global --context flag, or unset {named} environment variable."
        )
    return 0


def inspect(session: Session, options: Options) -> int:
    from sampan.cli.inspect import show as show_objects

    def find(name: str) -> tuple[str, str]:
        meta = read(session, name)
        directory = _tls_directory(session, name)
        files = {}
        if name != "default" and os.path.isdir(directory):
            files = {
                part: sorted(os.listdir(f"{directory}/{part}"))
                for part in sorted(os.listdir(directory))
            }
        made_up = name == "default"
        storage = {
            "MetadataPath": "<IN MEMORY>" if made_up else _meta_directory(session, name),
            "TLSPath": "<IN MEMORY>" if made_up else directory,
        }
        made = {
            "Name": name,
            "Metadata": meta["Metadata"] if not made_up else {},
            "Endpoints": meta["Endpoints"],
            "TLSMaterial": files,
            "Storage": storage,
        }
        text = wire.dumps(made)
        return "any", text.replace("<", "\\u003c").replace(">", "\\u003e")

    return show_objects(options, find, options.args or [current(session)])


def export(session: Session, options: Options) -> int:
    from sampan.cli import tarball

    name = options.args[0]
    target = options.args[1] if len(options.args) > 1 else f"{name}.dockercontext"
    meta = read(session, name)
    data = tarball.single("meta.json", wire.dumps(meta).encode())
    directory = f"{_tls_directory(session, name)}/docker"
    for pem in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        with open(f"{directory}/{pem}", "rb") as file:
            data += tarball.single(f"tls/docker/{pem}", file.read(), 0o600)
    data += b"\0" * 1024
    if target == "-":
        if os.isatty(1):
            raise Failure("cowardly refusing to export to a terminal, specify a file path")
        sys.stdout.buffer.write(data)
        return 0
    try:
        with open(target, "xb") as file:
            file.write(data)
    except OSError as error:
        raise Failure(f"open {target}: {(error.strerror or '').lower()}") from None
    os.chmod(target, 0o600)
    warn(f'Written file "{target}"')
    return 0


def import_(session: Session, options: Options) -> int:
    from sampan.cli import tarball

    name, source = options.args
    _check_name(name)
    if name in _names(session):
        raise Failure(f'context "{name}" already exists')
    try:
        data = sys.stdin.buffer.read() if source == "-" else open(source, "rb").read()
    except OSError as error:
        raise Failure(f"open {source}: {(error.strerror or '').lower()}") from None
    meta: dict[str, Any] = {}
    pems: dict[str, bytes] = {}
    reader = tarball.Reader([data])
    for entry in reader:
        content = b"".join(reader.data())
        if entry.name == "meta.json":
            meta = wire.loads(content)
        elif entry.name.startswith("tls/docker/") and entry.name[11:] in PEMS.values():
            pems[entry.name[11:]] = content
    if not isinstance(meta, dict) or "Endpoints" not in meta:
        raise Failure("invalid context: no metadata found")
    meta["Name"] = name
    _write(session, meta)
    for pem, content in pems.items():
        directory = f"{_tls_directory(session, name)}/docker"
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(
            os.open(f"{directory}/{pem}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as file:
            file.write(content)
    out(name)
    warn(f'Successfully imported context "{name}"')
    return 0
