"""Image references and digests: the grammar, Docker's short forms, and nothing that touches a disk or a wire.

What the words mean:

    reference   docker.io/library/busybox:1.36@sha256:...    what identifies an image for a person
    domain      docker.io                                     the registry
    path        library/busybox                               the repository inside it
    name        docker.io/library/busybox                     domain/path
    familiar    busybox                                       the name without what Docker's habits imply
    digest      sha256:<64 hex>                               the content itself

A person's text becomes a `Reference` once, at the door (`parse_normalized`); after it nothing looks at
the text again. The grammar is distribution's (`reference` package, `regexp.go`, also OCI distribution-spec
1.1 "Pulling manifests"); the short forms are Docker's (`normalize.go`).
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from sampan.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
LEGACY_DEFAULT_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
NAME_LIMIT = 255
# Longest text worth looking at: name, tag, the longest digest and the separators (C39: no regex on more).
REFERENCE_LIMIT = NAME_LIMIT + 128 + 160

_DOMAIN_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_PART}(?:/{_PATH_PART})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_domain_re = re.compile(_DOMAIN, re.ASCII)
_path_re = re.compile(_PATH, re.ASCII)
_tag_re = re.compile(_TAG, re.ASCII)
_split_re = re.compile(rf"([^@]+?)(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)
_hex64_re = re.compile(r"[a-f0-9]{64}", re.ASCII)
_short_id_re = re.compile(r"(?:sha256:)?[a-f0-9]{1,64}", re.ASCII)

# Digest algorithms that we verify; OCI image-spec 1.1, descriptor.md "Registered Algorithms".
DIGEST_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_digest_re = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A normalised reference: the domain is always there; tag and digest are empty when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The name as Docker shows it: `busybox`, `me/tool`, `quay.io/me/tool`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        if self.path.startswith(OFFICIAL_PREFIX) and "/" not in self.path[len(OFFICIAL_PREFIX) :]:
            return self.path[len(OFFICIAL_PREFIX) :]
        return self.path

    def familiar(self) -> str:
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def is_name_only(self) -> bool:
        return not self.tag and not self.digest

    def with_default_tag(self) -> Reference:
        """`busybox` means `busybox:latest`; a digest needs no tag."""
        return self.with_tag(DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Reference:
        if not _tag_re.fullmatch(tag):
            raise InvalidArgument(f"invalid tag format: {quoted(tag)}")
        return Reference(domain=self.domain, path=self.path, tag=tag)

    def with_digest(self, digest: str) -> Reference:
        return Reference(domain=self.domain, path=self.path, digest=parse_digest(digest))

    def name_only(self) -> Reference:
        return Reference(domain=self.domain, path=self.path)


def parse_normalized(text: str) -> Reference:
    """A person's text to a Reference, without adding a tag. Raises InvalidArgument in Docker's words."""
    if len(text) > REFERENCE_LIMIT:
        raise InvalidArgument("invalid reference format")
    if _hex64_re.fullmatch(text):
        raise InvalidArgument(
            f"invalid reference format: invalid repository name ({text}), "
            "cannot specify 64-byte hexadecimal strings"
        )
    name = split_domain(text)[1].partition(":")[0]
    if name != name.lower() and name.isprintable():
        raise InvalidArgument(
            f"invalid reference format: repository name ({name}) must be lowercase"
        )
    match = _split_re.fullmatch(text)
    if match is None:
        raise InvalidArgument("invalid reference format")
    domain, path = split_domain(match[1])
    if not _domain_re.fullmatch(domain):
        raise InvalidArgument("invalid reference format")
    if not _path_re.fullmatch(path):
        raise InvalidArgument("invalid reference format")
    if len(domain) + 1 + len(path) > NAME_LIMIT:
        raise InvalidArgument(
            f"invalid reference format: repository name must not be more than {NAME_LIMIT} characters"
        )
    digest = match[3] or ""
    return Reference(
        domain=domain,
        path=path,
        tag=match[2] or "",
        digest=parse_digest(digest) if digest else "",
    )


def parse_tagged(text: str) -> Reference:
    """As `parse_normalized`, with `:latest` where nothing was said."""
    return parse_normalized(text).with_default_tag()


def split_domain(name: str) -> tuple[str, str]:
    """Docker's rule: the first part is a registry when it has a dot, a colon or a capital, or is `localhost`."""
    first, slash, rest = name.partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost")
    if slash and not is_registry and first != first.lower():
        is_registry = True
    domain, path = (first, rest) if is_registry else (DEFAULT_DOMAIN, name)
    if domain == LEGACY_DEFAULT_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return domain, path


def quoted(text: str) -> str:
    """Text of a stranger's in a message: bounded and without control characters."""
    shown = text if len(text) <= 128 else text[:128] + "..."
    return '"' + "".join(c if c.isprintable() else "?" for c in shown) + '"'


# --- digests ---------------------------------------------------------------------------------------


def is_digest(text: str) -> bool:
    """A whole, canonical digest of an algorithm that we can verify. Only such text may become a path."""
    return _digest_re.fullmatch(text) is not None


def parse_digest(text: str) -> str:
    """The text itself when it is a digest; InvalidArgument that says what is wrong with it otherwise."""
    if is_digest(text):
        return text
    algorithm, colon, encoded = text.partition(":")
    if not colon:
        raise InvalidArgument(f"invalid checksum digest format: {quoted(text)}")
    if algorithm not in DIGEST_HEX_LENGTHS:
        raise InvalidArgument(f"unsupported digest algorithm: {quoted(algorithm)}")
    if len(encoded) != DIGEST_HEX_LENGTHS[algorithm]:
        raise InvalidArgument(f"invalid checksum digest length: {quoted(text)}")
    raise InvalidArgument(f"invalid checksum digest format: {quoted(text)}")


def digest_of(data: bytes | memoryview) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_hex(digest: str) -> str:
    """The part behind the colon, of a digest already parsed."""
    return digest.partition(":")[2]


def is_id_prefix(text: str) -> bool:
    """Could this be (the beginning of) an image id? `busybox` could not, `beef` could."""
    return _short_id_re.fullmatch(text) is not None


def is_full_id(text: str) -> bool:
    return _hex64_re.fullmatch(text.removeprefix("sha256:")) is not None
