"""Sources from the network, into a directory of ours: a file by URL, a checkout by git. Blocking.

Git runs as a program of the host with nothing of the caller's environment, no hooks, no credentials helper, and only
the protocols named; what comes from a Dockerfile is never an option (CVE-2019-13139). Secrets GIT_AUTH_TOKEN and
HTTP_AUTH_TOKEN_<host> go into headers, never into URLs, records or logs.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import http.client
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

from sampan.build.context import Context
from sampan.build.graph import GitSource, HttpSource
from sampan.build.sources import without_credentials
from sampan.errors import InvalidArgument, NotFound, Unavailable
from sampan.storage.copying import copy_tree
from sampan.storage.tree import open_directory

TIMEOUT_S = 60.0
GIT_TIMEOUT_S = 600.0
MAX_BYTES = 16 << 30
CHUNK = 1 << 20
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)


def fetch(source: HttpSource | GitSource, into: Context, secrets: dict[str, bytes]) -> None:
    """Fill the directory. Raises NotFound, Unavailable, InvalidArgument (checksum)."""
    if isinstance(source, HttpSource):
        _http(source, into, secrets)
    else:
        _git(source, into, secrets)


def file_name(url: str) -> str:
    """The last component of a URL's path, safe as a name."""
    name = posixpath.basename(unquote(urlsplit(url).path))
    if name in ("", ".", "..") or "\0" in name or "/" in name:
        return "__unnamed__"
    return name[:255]


def _names(kind: str, what: str, host: str) -> tuple[str, ...]:
    return f"{kind}_AUTH_{what}_{host}", f"{kind}_AUTH_{what}.{host}", f"{kind}_AUTH_{what}"


def secret_names(source: HttpSource | GitSource) -> tuple[str, ...]:
    """The secrets that may open a source, the most particular first."""
    kind = "HTTP" if isinstance(source, HttpSource) else "GIT"
    host = urlsplit(source.url).hostname or ""
    return (*_names(kind, "HEADER", host), *_names(kind, "TOKEN", host))


def _token(secrets: dict[str, bytes], kind: str, host: str) -> str:
    for name in _names(kind, "HEADER", host):
        if name in secrets:
            return secrets[name].decode().strip()
    for name in _names(kind, "TOKEN", host):
        if name in secrets:
            token = secrets[name].decode().strip()
            if kind == "HTTP":
                return f"Bearer {token}"
            return "basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return ""


class _NoCredentialsElsewhere(urllib.request.HTTPRedirectHandler):
    """A redirect to another host does not get the header."""

    def redirect_request(  # type: ignore[no-untyped-def]
        self, request, fp, code, message, headers, new_url
    ) -> urllib.request.Request | None:
        made = super().redirect_request(request, fp, code, message, headers, new_url)
        if made is not None and urlsplit(new_url).netloc != urlsplit(request.full_url).netloc:
            made.remove_header("Authorization")
        return made


def _http(source: HttpSource, into: Context, secrets: dict[str, bytes]) -> None:
    shown = without_credentials(source.url)
    request = urllib.request.Request(source.url, headers={"User-Agent": "sampan"})
    header = _token(secrets, "HTTP", urlsplit(source.url).hostname or "")
    if header:
        request.add_header("Authorization", header)
    opener = urllib.request.build_opener(_NoCredentialsElsewhere)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            _store(response, into, file_name(source.url), source.checksum, shown)
    except urllib.error.HTTPError as error:
        kind = NotFound if error.code == 404 else Unavailable
        raise kind(
            f"failed to load remote source {shown}: status {error.code} {error.reason}"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"failed to load remote source {shown}: {reason}") from None


def _store(
    response: http.client.HTTPResponse, into: Context, name: str, checksum: str, shown: str
) -> None:
    total = hashlib.sha256()
    size = 0
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=into.fd)
    with os.fdopen(target, "wb") as file:
        while chunk := response.read(CHUNK):
            size += len(chunk)
            if size > MAX_BYTES:
                raise InvalidArgument(f"remote source {shown} is larger than {MAX_BYTES} bytes")
            total.update(chunk)
            file.write(chunk)
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        modified = email.utils.parsedate_to_datetime(
            response.headers.get("Last-Modified") or email.utils.formatdate(0)
        )
        stamp = modified.timestamp()
        os.utime(file.fileno(), (time.time(), stamp))
    found = "sha256:" + total.hexdigest()
    if checksum and checksum != found:
        raise InvalidArgument(f"digest mismatch {found}: {checksum}")


GIT_SETTINGS = (
    "protocol.allow=never", "protocol.https.allow=always", "protocol.http.allow=always",
    "protocol.ssh.allow=always", "protocol.git.allow=always", "core.hooksPath=/dev/null",
    "credential.helper=", "core.fsmonitor=false", "core.symlinks=true", "transfer.fsckObjects=false",
)  # fmt: skip


def _git(source: GitSource, into: Context, secrets: dict[str, bytes]) -> None:
    program = shutil.which("git", path="/usr/bin:/bin:/usr/local/bin")
    if program is None:
        raise Unavailable("git sources need the program git on this host", hint="install git")
    with tempfile.TemporaryDirectory(prefix="git-", dir=into.path.parent) as work:
        run = _Git(program, work, _token(secrets, "GIT", urlsplit(source.url).hostname or ""))
        run("init", "--quiet", "checkout", where=work)
        where = os.path.join(work, "checkout")
        run("remote", "add", "--", "origin", source.url, where=where)
        shown = without_credentials(source.url)
        ref = source.ref or "HEAD"
        try:
            run("fetch", "--quiet", "--depth=1", "--no-tags", "--", "origin", ref, where=where)
        except InvalidArgument:
            if not COMMIT.fullmatch(ref):
                raise InvalidArgument(
                    f"failed to fetch remote {shown}: repository or ref {ref} not found"
                ) from None
            run("fetch", "--quiet", "--", "origin", where=where)
        wanted = ref if COMMIT.fullmatch(ref) else "FETCH_HEAD"
        run("checkout", "--quiet", "--detach", wanted, where=where)
        commit = run("rev-parse", "HEAD", where=where).strip()
        if source.checksum and not commit.startswith(source.checksum):
            raise InvalidArgument(f"expected checksum to match {source.checksum}, got {commit}")
        if source.submodules and os.path.exists(os.path.join(where, ".gitmodules")):
            run("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", where=where)
        if not source.keep_git_dir:
            shutil.rmtree(os.path.join(where, ".git"))
        _take(where, source.subdir, into)


def _take(where: str, subdir: str, into: Context) -> None:
    """The chosen directory's files; no component of the choice may be a link (CVE-2026-33748)."""
    held = open_directory(where)
    try:
        for part in subdir.split("/"):
            if not part:
                continue
            if part == "..":
                raise NotFound(f"subdir {subdir!r} is not a directory of the repository")
            try:
                following = open_directory(part, held)
            except OSError:
                raise NotFound(f"subdir {subdir!r} is not a directory of the repository") from None
            os.close(held)
            held = following
        copy_tree(held, into.fd, with_root=False)
    finally:
        os.close(held)


class _Git:
    """Runs git with an environment of ours."""

    def __init__(self, program: str, home: str, header: str) -> None:
        self.program = program
        self.environment = {
            "PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": home, "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new",
        }  # fmt: skip
        if header:
            # By environment, not by argument: arguments can be read by every process of the host.
            self.environment |= {
                "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "http.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: {header}",
            }  # fmt: skip

    def __call__(self, *words: str, where: str) -> str:
        settings = [word for setting in GIT_SETTINGS for word in ("-c", setting)]
        try:
            done = subprocess.run(
                [self.program, *settings, *words], cwd=where, env=self.environment, check=False,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIT_TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unavailable(f"git {words[0]} did not end within {GIT_TIMEOUT_S:g} s") from None
        if done.returncode:
            raise InvalidArgument(f"git {words[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout
