"""What a source's text means: a URL, a git repository with its reference, or a path. Pure.

    https://host/file                                    a file
    https://host/path.git[#ref[:subdir]]                  a repository, as are git://, ssh://, git@host:path
    https://host/path.git?ref=..&subdir=..&checksum=..&keep-git-dir=..&submodules=..

Source: the Dockerfile reference, "ADD" (remote sources) and "Build context: Git repositories".
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

import msgspec

from sampan.build.expand import go_quote
from sampan.build.parser import DockerfileError

SCP_LIKE = re.compile(r"[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:.+", re.ASCII)
OPTION_LIKE = re.compile(
    r"^-|://-|^[^/]*@-|://[^/]*@-", re.ASCII
)  # git, ssh would take a host for one
QUERY_KEYS = (
    "ref",
    "tag",
    "branch",
    "subdir",
    "checksum",
    "commit",
    "keep-git-dir",
    "submodules",
    "fetch-by-commit",
    "mtime",
)


class GitReference(msgspec.Struct, frozen=True, kw_only=True):
    """A repository and what of it."""

    url: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    submodules: bool = True


def is_http(text: str) -> bool:
    """A URL of a file, not of a repository."""
    return text.startswith(("http://", "https://")) and parse_git(text) is None


def parse_git(text: str) -> GitReference | None:
    """None where it is not a repository. Raises DockerfileError for a malformed one."""
    if SCP_LIKE.fullmatch(text) and "://" not in text:
        url, _, fragment = text.partition("#")
        return _with_fragment(url, fragment, {})
    parts = _split(text) if "://" in text else None
    if parts is None or parts.scheme not in ("http", "https", "git", "ssh"):
        return None
    if parts.scheme in ("http", "https") and not parts.path.rstrip("/").endswith(".git"):
        return None
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [key for key in query if key not in QUERY_KEYS]
    if unknown:
        raise DockerfileError(f"unexpected query {go_quote(unknown[0])}")
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    return _with_fragment(url, parts.fragment, query)


def _with_fragment(url: str, fragment: str, query: dict[str, str]) -> GitReference:
    ref, _, subdir = fragment.partition(":")
    named = [query[key] for key in ("ref", "tag", "branch") if query.get(key)]
    if ref and named:
        raise DockerfileError("ref conflicts between the fragment and the query")
    if len(named) > 1:
        raise DockerfileError("only one of ref, tag and branch can be given")
    ref = ref or (named[0] if named else "")
    if ref.startswith("-") or OPTION_LIKE.search(url):
        raise DockerfileError(f"invalid git reference {go_quote(ref or url)}")
    subdir = subdir or query.get("subdir", "")
    return GitReference(
        url=url, ref=ref, subdir=posixpath.normpath("/" + subdir).strip("/"),
        checksum=query.get("checksum") or query.get("commit") or "",
        keep_git_dir=_flag(query.get("keep-git-dir"), default=False),
        submodules=_flag(query.get("submodules"), default=True),
    )  # fmt: skip


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise DockerfileError(f"invalid URL {go_quote(text)}: {error}") from None


def _flag(text: str | None, *, default: bool) -> bool:
    if text is None:
        return default
    return text.lower() in ("", "1", "t", "true")


def without_credentials(url: str) -> str:
    """The URL for people and records: user and password are nobody's business (CVE-2023-26054)."""
    try:
        parts = urlsplit(url) if "://" in url else None
    except ValueError:
        return "(a malformed URL)"
    if parts is None or "@" not in parts.netloc:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
