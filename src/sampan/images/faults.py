"""What a registry says when it says no, in Docker's words and with a kind that the API knows.

{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}   distribution-spec 1.1 "Error Codes"
    ──► RegistryFault(status 404, code MANIFEST_UNKNOWN, "manifest unknown: manifest unknown")
    ──► as_failure: NotFound "manifest for busybox:nope not found: manifest unknown: manifest unknown"
"""

from __future__ import annotations

import msgspec

from sampan.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SampanError,
    Unauthenticated,
    Unavailable,
)
from sampan.images.auth import Challenge, parse_challenges
from sampan.images.transport import ERROR_BODY_LIMIT, ConnectionFailed, Response
from sampan.spec.reference import Reference


class RegistryFault(SampanError):
    """The registry answered, and said no. `code` is its own word for why, '' when it gave none."""

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Fault(msgspec.Struct, frozen=True, kw_only=True):
    code: str = ""
    message: str = ""


class _Faults(msgspec.Struct, frozen=True, kw_only=True):
    errors: tuple[_Fault, ...] = ()
    details: str = ""


_decode_faults = msgspec.json.Decoder(_Faults)
_PLAIN_STATUS_MESSAGES = {
    401: "unauthorized: authentication required",
    403: "denied: requested access to the resource is denied",
    429: "toomanyrequests: too many requests",
}


def fault_of(response: Response) -> RegistryFault:
    """An error answer to a fault, in the form `code: message` that Docker's users know."""
    try:
        body = response.read(ERROR_BODY_LIMIT)
    except SampanError:
        body = b""
    denied = _denied_by_challenge(response)
    if denied is not None:
        return denied
    try:
        faults = _decode_faults.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        faults = _Faults()
    if faults.errors:
        first = faults.errors[0]
        words = first.code.lower().replace("_", " ") or "unknown"
        message = f"{words}: {first.message or words}"
        return RegistryFault(printable(message), status=response.status, code=first.code.upper())
    plain = _PLAIN_STATUS_MESSAGES.get(response.status)
    code = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}.get(response.status, "")
    if plain and faults.details:
        plain = f"{plain.partition(':')[0]}: {faults.details}"
    return RegistryFault(
        printable(plain)
        if plain
        else f"received unexpected HTTP status: {response.status} {printable(response.reason)}",
        status=response.status,
        code=code,
    )


def _denied_by_challenge(response: Response) -> RegistryFault | None:
    """RFC 6750: a bearer challenge may say that the token was fine and the right was missing."""
    if response.status != 401:
        return None
    for challenge in challenges_of(response):
        if challenge.scheme == "bearer":
            if challenge.parameters.get("error") == "insufficient_scope":
                return RegistryFault(
                    "denied: requested access to the resource is denied", status=401, code="DENIED"
                )
            if challenge.parameters.get("error") == "invalid_token":
                return RegistryFault(
                    "unauthorized: authentication required", status=401, code="UNAUTHORIZED"
                )
    return None


def challenges_of(response: Response) -> list[Challenge]:
    return parse_challenges(response.headers.get_all("WWW-Authenticate") or [])


def printable(text: str) -> str:
    """A registry's words may not draw on a person's terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:1024])


def as_failure(error: SampanError, reference: Reference) -> SampanError:
    """A fault of a pull in the words and of the kind that clients match."""
    if isinstance(error, ConnectionFailed) or not isinstance(error, RegistryFault):
        return error
    name = reference.familiar_name
    if error.code == "DENIED" or (error.code == "UNAUTHORIZED" and reference.domain == "docker.io"):
        text = error.message
        if error.code == "UNAUTHORIZED":
            text = "denied: requested access to the resource is denied"
        return NotFound(
            f"pull access denied for {name}, repository does not exist or may require "
            f"'docker login': {text}"
        )
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {name} not found: {error.message}")
    if error.code == "MANIFEST_UNKNOWN" or (error.status == 404 and not error.code):
        why = error.message if error.code else "manifest unknown: manifest unknown"
        return NotFound(f"manifest for {reference.familiar()} not found: {why}")
    return as_plain_failure(error)


def as_plain_failure(error: SampanError) -> SampanError:
    """A fault of any other operation: its own words, and a kind."""
    if not isinstance(error, RegistryFault):
        return error
    kinds: dict[int, type[SampanError]] = {
        400: InvalidArgument,
        401: Unauthenticated,
        403: PermissionDenied,
        404: NotFound,
    }
    return kinds.get(error.status, Unavailable)(error.message)
