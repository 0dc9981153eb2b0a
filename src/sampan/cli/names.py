"""Image names as far as the client needs them: is it well formed, what does it mean in full, how is it shown.

The engine's own is spec/reference.py; this one needs no `re` and no third-party package, so that a thin client can
say `Unable to find image 'x:latest' locally` on a machine where nothing is installed.
"""

from __future__ import annotations

from sampan.cli.failures import Failure

HEX = "0123456789abcdef"
LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
TAG = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"


class Name:
    """A reference taken apart: domain, path, tag and digest (the last two may be empty)."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def full(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """'busybox' for docker.io/library/busybox."""
        if self.domain != "docker.io":
            return self.full
        rest = self.path.removeprefix("library/")
        return rest if "/" not in rest else self.path

    @property
    def suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def tagged(self) -> Name:
        """With `latest` where neither tag nor digest was given."""
        if self.tag or self.digest:
            return self
        return Name(self.domain, self.path, "latest", "")


def invalid() -> Failure:
    return Failure("invalid reference format")


def parse(text: str) -> Name:
    """The person's text; Failure with distribution's words where it is no reference."""
    rest, at, digest = text.partition("@")
    if at and not _is_digest(digest):
        raise invalid()
    if len(rest) == 64 and not rest.strip(HEX):
        raise Failure(
            f"invalid repository name ({rest}), cannot specify 64-byte hexadecimal strings"
        )
    slash = rest.rfind("/")
    colon = rest.rfind(":")
    name, tag = (rest[:colon], rest[colon + 1 :]) if colon > slash else (rest, "")
    if colon > slash and not _is_tag(tag):
        raise invalid()
    first, has_slash, path = name.partition("/")
    if has_slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    ):
        domain = first
        if not _is_domain(domain):
            raise invalid()
    else:
        domain, path = "docker.io", name
    if domain in ("docker.io", "index.docker.io"):
        domain = "docker.io"
        path = path if "/" in path else f"library/{path}"
    if path != path.lower():
        raise Failure(f"invalid reference format: repository name ({path}) must be lowercase")
    if not path.removeprefix("library/") or not all(
        _is_component(part) for part in path.split("/")
    ):
        raise invalid()
    if len(domain) + len(path) > 254:
        raise Failure("repository name must not be more than 255 characters")
    return Name(domain, path, tag, digest)


def _is_domain(domain: str) -> bool:
    """host[:port], the host in labels of letters, digits and dashes, or an IPv6 address in brackets."""
    if domain.startswith("["):
        host, _, port = domain[1:].partition("]")
        port = port.removeprefix(":")
        fits = bool(host) and not host.strip(HEX + "ABCDEF:")
    else:
        host, colon, port = domain.partition(":")
        fits = not (colon and not port)
        for label in host.split("."):
            letters = label.replace("-", "a")
            fits = fits and letters.isascii() and letters.isalnum()
            fits = fits and label[0] != "-" and label[-1] != "-"
    return fits and (not port or port.isdigit())


def _is_tag(tag: str) -> bool:
    return 0 < len(tag) <= 128 and not tag.strip(TAG) and tag[0] not in ".-"


def _is_digest(digest: str) -> bool:
    kind, colon, code = digest.partition(":")
    return bool(colon and kind) and len(code) >= 32 and not code.lower().strip(HEX)


def _is_component(part: str) -> bool:
    """Letters and digits, separated by one dot, one or two underscores, or dashes."""
    if not part or part[0] not in LOWER or part[-1] not in LOWER:
        return False
    run = ""
    for char in part:
        if char in LOWER:
            if run and run not in (".", "_", "__") and run.strip("-"):
                return False
            run = ""
        elif char in "._-":
            run += char
        else:
            return False
    return True


def truncated(identity: str) -> str:
    """The twelve characters that stand for an ID."""
    return identity.removeprefix("sha256:")[:12]
