"""Questions to a registry that move no image: may I log in, what is there by that name, what matches these words.

Sources: distribution's token specification (`offline_token`), Docker Hub's v1 search, Engine API
`/auth`, `/images/search`, `/distribution/{name}/json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from sampan import units
from sampan.errors import InvalidArgument, NotFound, SampanError, Unauthenticated
from sampan.images.auth import Credentials, registry_key
from sampan.images.builtin import offline_hint
from sampan.images.endpoints import RegistryConfig, split_host
from sampan.images.faults import RegistryFault, as_failure, as_plain_failure, fault_of
from sampan.images.registry import Registry, Repository
from sampan.images.transport import ConnectionFailed, Transport
from sampan.spec.image import (
    CONFIG_LIMIT,
    Descriptor,
    Manifest,
    Platform,
    decode_json,
    parse_image_document,
)
from sampan.spec.reference import DEFAULT_DOMAIN, Reference, quoted, split_domain

SEARCH_HOST = "index.docker.io"
SEARCH_BODY_LIMIT = 8 * 1024 * 1024


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """What a name is in its registry."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]


def inspect_distribution(
    config: RegistryConfig, reference: Reference, auth: Credentials | None = None
) -> Distribution:
    """`GET /distribution/{name}/json`."""
    try:
        with Registry(config, reference.domain, auth) as registry:
            repository = registry.repository(reference.path)
            fetched = repository.fetch_manifest(reference.digest or reference.tag or "latest")
            found = fetched.parse()
            descriptor = Descriptor(
                media_type=found.media_type, digest=fetched.digest, size=len(fetched.raw)
            )
            if isinstance(found, Manifest):
                platforms = _platform_of(repository, found)
            else:
                platforms = tuple(e.platform for e in found.manifests if e.platform is not None)
            return Distribution(descriptor=descriptor, platforms=platforms)
    except ConnectionFailed:
        raise
    except RegistryFault as fault:
        if fault.status == 401:
            raise Unauthenticated(fault.message) from None
        raise as_failure(fault, reference) from None


def _platform_of(repository: Repository, manifest: Manifest) -> tuple[Platform, ...]:
    if manifest.config.size > CONFIG_LIMIT:
        return ()
    raw = repository.fetch_blob(manifest.config, CONFIG_LIMIT, "image configuration")
    try:
        return (parse_image_document(raw).platform,)
    except InvalidArgument:
        return ()  # an artifact, not an image


# --- login ---------------------------------------------------------------------------------------------


def check_login(config: RegistryConfig, credentials: Credentials) -> tuple[str, str]:
    """`POST /auth`: (status, identity token). Unauthenticated when the registry does not know these."""
    domain = registry_key(credentials.server_address or DEFAULT_DOMAIN)
    split_host(domain)
    try:
        with Registry(config, domain, credentials) as registry:
            registry.ask_for_identity_token()
            registry.ping()
            return "Login Succeeded", registry.identity_token
    except ConnectionFailed as error:
        error.hint = error.hint or offline_hint()
        raise
    except RegistryFault as fault:
        if fault.status in {401, 403}:
            raise Unauthenticated(
                f"login attempt to https://{domain}/v2/ failed with status: "
                f"{fault.status} {'Unauthorized' if fault.status == 401 else 'Forbidden'}"
            ) from None
        raise as_plain_failure(fault) from None


# --- search ----------------------------------------------------------------------------------------------


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str | None = ""
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Results(msgspec.Struct, frozen=True, kw_only=True):
    results: tuple[_Result, ...] = ()


_decode_results = msgspec.json.Decoder(_Results)


def search(
    config: RegistryConfig,
    term: str,
    limit: int = 25,
    filters: Mapping[str, Sequence[str]] | None = None,
    auth: Credentials | None = None,
) -> list[dict[str, Any]]:
    """`GET /images/search`: Docker Hub, or the registry that the term begins with, where it has the v1 search."""
    if "://" in term:
        raise InvalidArgument(
            f"invalid repository name: repository name ({term[:64]}) should not have a scheme"
        )
    wanted = _wanted(filters or {})
    domain, words = split_domain(term)
    if domain == DEFAULT_DOMAIN:
        host, words = SEARCH_HOST, words.removeprefix("library/")
    else:
        host = domain
    query = urlencode({"q": words, "n": str(limit)})
    where = f"{host}/v1/search?{query}"
    transport = Transport(config)
    headers = {"Authorization": auth.basic} if auth is not None and auth.username else {}
    failure: SampanError | None = None
    schemes = ("https", "http") if config.is_insecure(host) else ("https",)
    for scheme in schemes:
        try:
            with transport.request(
                "GET",
                f"{scheme}://{where}",
                headers=headers,
                verify=not config.is_insecure(host),
            ) as response:
                if response.status != 200:
                    raise _search_failure(fault_of(response))
                body = response.read(SEARCH_BODY_LIMIT, "search result")
        except ConnectionFailed as error:
            error.message = f'Get "{scheme}://{where}": {error.why or error.message}'
            failure = failure or error
            continue
        finally:
            transport.close()
        found = decode_json(_decode_results, body, "search result").results
        return [_row(result, domain) for result in found if wanted.accepts(result)][:limit]
    assert failure is not None
    if isinstance(failure, ConnectionFailed):
        failure.hint = offline_hint()
    raise failure


def _search_failure(fault: RegistryFault) -> SampanError:
    if fault.status == 404:
        return NotFound("Unexpected status code 404", hint="the registry has no search")
    return as_plain_failure(fault)


def _row(result: _Result, domain: str) -> dict[str, Any]:
    name = result.name if domain == DEFAULT_DOMAIN else f"{domain}/{result.name}"
    return {
        "name": name,
        "description": result.description or "",
        "star_count": result.star_count,
        "is_official": result.is_official,
        "is_automated": result.is_automated,
    }


class _Wanted(NamedTuple):
    """The filters, read before anybody is asked."""

    official: bool | None
    automated: bool | None
    stars: int  # at least

    def accepts(self, result: _Result) -> bool:
        return (
            self.official in (None, result.is_official)
            and self.automated in (None, result.is_automated)
            and result.star_count >= self.stars
        )


def _wanted(filters: Mapping[str, Sequence[str]]) -> _Wanted:
    stars = 0
    for text in filters.get("stars", ()):
        least = units.parse_uint(text)
        if least is None:
            raise InvalidArgument(
                f"invalid filter 'stars={text[:64]}': "
                f"strconv.Atoi: parsing {quoted(text[:64])}: invalid syntax"
            )
        stars = max(stars, least)
    return _Wanted(_boolean("is-official", filters), _boolean("is-automated", filters), stars)


def _boolean(name: str, filters: Mapping[str, Sequence[str]]) -> bool | None:
    """None where it was not asked for."""
    values = filters.get(name, ())
    truths = {value in ("1", "true") for value in values if value in ("0", "1", "false", "true")}
    if values and len(truths) != 1:
        raise InvalidArgument(f"invalid filter '{name}=[{' '.join(values)[:64]}]'")
    return truths.pop() if truths else None
