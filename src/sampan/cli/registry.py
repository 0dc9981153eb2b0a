"""pull, push, login, logout, search: what the engine does at registries, and the passwords it needs for that.

Passwords lie where docker keeps them: in config.json (`auths`, base64, not encrypted) or with a helper program
(`credsStore`, `credHelpers`: docker-credential-NAME get/store/erase).
"""

from __future__ import annotations

import posix
import sys

from sampan.cli import names, wire
from sampan.cli.client import escape, filters
from sampan.cli.failures import Failure
from sampan.cli.progress import show
from sampan.cli.session import out, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sampan.cli.args import Options
    from sampan.cli.session import Session

HUB = "https://index.docker.io/v1/"


# -- pull and push ------------------------------------------------------------------------------------------------


def pull(session: Session, options: Options) -> int:
    name = names.parse(options.args[0])
    every, quiet = options.flag("all-tags"), options.flag("quiet")
    if every and (name.tag or name.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not every and not (name.tag or name.digest):
        name = name.tagged()
        if not quiet:
            out("Using default tag: latest")
    _create(
        session, name, "" if every else name.digest or name.tag, options.text("platform"), quiet, 1
    )
    out(f"{name.full}{name.suffix}")
    return 0


def fetch(session: Session, reference: str, *, platform: str, quiet: bool, to: int) -> None:
    """`run`'s pull of a missing image; progress on descriptor `to`."""
    name = names.parse(reference).tagged()
    _create(session, name, name.digest or name.tag, platform, quiet, to)


def _create(
    session: Session, name: names.Name, tag: str, platform: str, quiet: bool, to: int
) -> None:
    reply = session.client.call(
        "POST",
        "/images/create",
        query={"fromImage": name.full, "tag": tag, "platform": platform or _default_platform()},
        headers={"X-Registry-Auth": encoded(credentials(session, name.domain))},
    )
    show(reply.lines(), to=to, quiet=quiet)


def _default_platform() -> str:
    from sampan.cli.session import getenv

    return getenv("DOCKER_DEFAULT_PLATFORM")


def push(session: Session, options: Options) -> int:
    from sampan.cli.inspect import platform

    name = names.parse(options.args[0])
    every, quiet = options.flag("all-tags"), options.flag("quiet")
    if every and (name.tag or name.digest):
        raise Failure("tag can't be used with --all-tags/-a")
    if not every and not (name.tag or name.digest):
        name = name.tagged()
        if not quiet:
            out("Using default tag: latest")
    reply = session.client.call(
        "POST",
        f"/images/{escape(name.familiar if name.domain == 'docker.io' else name.full)}/push",
        query={"tag": "" if every else name.tag, "platform": platform(options.text("platform"))},
        headers={"X-Registry-Auth": encoded(credentials(session, name.domain))},
    )
    show(reply.lines(), quiet=quiet)
    if quiet:
        out(f"{name.full}{name.suffix}")
    return 0


# -- credentials --------------------------------------------------------------------------------------------------


def encoded(credentials: dict[str, str]) -> str:
    """The X-Registry-Auth header: URL-safe base64 of JSON."""
    from binascii import b2a_base64

    text = b2a_base64(wire.dumps(credentials).encode(), newline=False).decode()
    return text.replace("+", "-").replace("/", "_")


def key_of(domain: str) -> str:
    """The registry's name in config.json."""
    return HUB if domain in ("docker.io", "index.docker.io", "registry-1.docker.io") else domain


def credentials(session: Session, domain: str) -> dict[str, str]:
    """What is known for a registry, in the API's AuthConfig form; {} where nothing is."""
    key = key_of(domain)
    helper = _helper(session, key)
    if helper:
        return _from_helper(helper, key)
    auths = session.config.get("auths")
    entry = _entry(auths if isinstance(auths, dict) else {}, key)
    if not entry:
        return {}
    found = {k: entry[k] for k in ("identitytoken", "registrytoken") if entry.get(k)}
    if entry.get("auth"):
        found["username"], found["password"] = _decoded(str(entry["auth"]))
    return {**found, "serveraddress": key}


def _entry(auths: dict[str, Any], key: str) -> dict[str, Any]:
    """The entry of a registry, which older clients wrote as a URL."""
    if key in auths:
        entry: dict[str, Any] = auths[key]
        return entry
    for written, entry in auths.items():
        if written.removeprefix("https://").removeprefix("http://").split("/")[0] == key:
            return dict(entry)
    return {}


def _decoded(auth: str) -> tuple[str, str]:
    from binascii import Error, a2b_base64

    try:
        user, _, password = a2b_base64(auth).decode("utf-8", "surrogateescape").partition(":")
    except (Error, ValueError):
        raise Failure("invalid auth configuration file") from None
    return user, password.rstrip("\0")


def _helper(session: Session, key: str) -> str:
    helpers = session.config.get("credHelpers")
    if isinstance(helpers, dict) and key in helpers:
        return str(helpers[key])
    return session.setting("credsStore")


def _ask_helper(helper: str, verb: str, given: str) -> tuple[int, str]:
    import subprocess

    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", verb],
            input=given.encode(),
            stdout=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise Failure(
            f'error getting credentials - err: exec: "docker-credential-{helper}": '
            f"{(error.strerror or '').lower()}"
        ) from None
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def _from_helper(helper: str, key: str) -> dict[str, str]:
    status, text = _ask_helper(helper, "get", key)
    if status:
        return {}
    found = wire.loads(text)
    if found.get("Username") == "<token>":
        return {"identitytoken": found["Secret"], "serveraddress": key}
    return {"username": found["Username"], "password": found["Secret"], "serveraddress": key}


# -- login and logout ---------------------------------------------------------------------------------------------


def login(session: Session, options: Options) -> int:
    user, password = options.text("username"), options.text("password")
    if options.has("password") and not password:
        raise Failure("password is empty")
    if password:
        if options.flag("password-stdin"):
            raise Failure("--password and --password-stdin are mutually exclusive")
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if options.flag("password-stdin"):
        if not user:
            raise Failure("Must provide --username with --password-stdin")
        password = sys.stdin.read().rstrip("\r\n")
    server = options.args[0] if options.args else ""
    key = key_of(_hostname(server)) if server else HUB
    known = credentials(session, _hostname(server) if server else "docker.io")
    if not user and not password and known.get("password"):
        out("Authenticating with existing credentials...")
        user, password = known["username"], known["password"]
    user = user or _asked(session, "Username: ")
    password = password or _asked(session, "Password: ", hidden=True)
    if not user or not password:
        raise Failure(
            "Error: Non-null Username required" if not user else "Error: Password Required"
        )
    answer = session.client.post(
        "/auth", body={"username": user, "password": password, "serveraddress": key}
    )
    _keep(session, key, user, password, (answer or {}).get("IdentityToken", ""))
    out((answer or {}).get("Status") or "Login Succeeded")
    return 0


def _hostname(server: str) -> str:
    return server.removeprefix("https://").removeprefix("http://").split("/")[0]


def _asked(session: Session, question: str, *, hidden: bool = False) -> str:
    if not posix.isatty(0):
        raise Failure("Error: Cannot perform an interactive login from a non TTY device")
    if hidden:
        from getpass import getpass

        return getpass(question)
    return input(question).strip()


def _keep(session: Session, key: str, user: str, password: str, token: str) -> None:
    helper = _helper(session, key)
    if helper:
        secret = {
            "ServerURL": key,
            "Username": "<token>" if token else user,
            "Secret": token or password,
        }
        status, text = _ask_helper(helper, "store", wire.dumps(secret))
        if status:
            raise Failure(f"Error saving credentials: error storing credentials - {text}")
        return
    from binascii import b2a_base64

    auth = b2a_base64(f"{user}:{'' if token else password}".encode(), newline=False).decode()
    entry = {"auth": auth} | ({"identitytoken": token} if token else {})
    session.config.setdefault("auths", {})[key] = entry
    path = write_config(session)
    warn(
        f"\nWARNING! Your credentials are stored unencrypted in '{path}'.\n"
        "Configure a credential helper to remove this warning. See\n"
        "https://docs.docker.com/go/credential-store/\n"
    )


def write_config(session: Session) -> str:
    """config.json anew: written beside and renamed, for its owner only."""
    path = f"{session.config_directory}/config.json"
    try:
        posix.mkdir(session.config_directory, 0o700)
    except FileExistsError:
        pass
    fresh = f"{path}.{posix.getpid()}"
    descriptor = posix.open(
        fresh, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600
    )
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(wire.indent(wire.dumps(session.config), "\t") + "\n")
    posix.rename(fresh, path)
    return path


def logout(session: Session, options: Options) -> int:
    server = _hostname(options.args[0]) if options.args else ""
    key = key_of(server) if server else HUB
    auths = session.config.get("auths")
    known = isinstance(auths, dict) and bool(_entry(auths, key))
    helper = _helper(session, key)
    out(f"Removing login credentials for {server or key}")
    if not known and not helper:
        return 0
    if helper:
        status, text = _ask_helper(helper, "erase", key)
        if status:
            raise Failure(f"WARNING: could not erase credentials:\n{key}: {text}")
        return 0
    assert isinstance(auths, dict)
    for written in [w for w in auths if w == key or _hostname(w) == key]:
        del auths[written]
    write_config(session)
    return 0


# -- search -------------------------------------------------------------------------------------------------------

SEARCH_HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
}


def search(session: Session, options: Options) -> int:
    from sampan.cli.table import listing

    limit = options.number("limit")
    query = {
        "term": options.args[0],
        "limit": str(limit) if limit else "",
        "filters": filters(options.list("filter")) or None,
    }
    domain = options.args[0].split("/")[0] if "." in options.args[0].split("/")[0] else "docker.io"
    headers = {"X-Registry-Auth": encoded(credentials(session, domain))}
    found: list[dict[str, Any]] = session.client.json(
        "/images/search", query=query, headers=headers
    )
    form = options.text("format") or "table"
    as_json = form in ("json", "{{json .}}")
    if form == "table":
        form = "table {{.Name}}\\t{{.Description}}\\t{{.StarCount}}\\t{{.IsOfficial}}"
    rows = [_search_row(result, not options.flag("no-trunc"), as_json) for result in found]
    listing(form, rows, SEARCH_HEADERS)
    return 0


def _search_row(result: dict[str, Any], truncate: bool, as_json: bool) -> Any:
    from sampan.cli.govalues import Row
    from sampan.cli.ps import ellipsis

    def description() -> str:
        text = result.get("description", "").replace("\n", " ").replace("\r", " ")
        return ellipsis(text, 45) if truncate else text

    def official() -> str:
        if as_json:
            return "true" if result.get("is_official") else "false"
        return "[OK]" if result.get("is_official") else ""

    return Row(
        "*registry.searchContext",
        {
            "Description": description,
            "IsOfficial": official,
            "Name": lambda: result.get("name", ""),
            "StarCount": lambda: str(result.get("star_count", 0)),
        },
    )
