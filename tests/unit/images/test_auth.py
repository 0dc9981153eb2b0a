"""Credentials: where they come from, whom they are given to, and above all whom not."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import msgspec
import pytest

from sampan.errors import NotFound, SampanError, Unauthenticated
from sampan.images import auth, remote
from sampan.images.auth import Credentials, decode_auth_header, parse_challenges
from sampan.images.catalog import Catalog
from sampan.images.endpoints import RegistryConfig
from sampan.images.pull import Puller
from sampan.images.push import push
from tests.support.oci import simple_image
from tests.support.registry import Answer, FakeRegistry, TokenServer, matching

BOB = Credentials(username="bob", password="s3cr3t")
USERS = {"bob": "s3cr3t"}


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


# --- headers and files ---------------------------------------------------------------------------------------


def test_the_auth_header_is_read_in_all_its_forms() -> None:
    header = encoded({"username": "bob", "password": "s3cr3t", "serveraddress": "r.example"})
    found = decode_auth_header(header)
    assert found is not None
    assert (found.username, found.password, found.server_address) == ("bob", "s3cr3t", "r.example")
    assert decode_auth_header(encoded({"identitytoken": "tok"})) == Credentials(
        identity_token="tok"
    )
    pair = base64.b64encode(b"bob:s3:cr3t").decode()
    found = decode_auth_header(encoded({"auth": pair}).rstrip("="))
    assert found is not None
    assert found.password == "s3:cr3t"


@pytest.mark.parametrize(
    "header",
    ["", "e30=", "!!!", encoded([]), encoded({"username": 5}), "A" * 100_000, encoded("x"), "éé"],
)
def test_an_invalid_auth_header_is_nobody(header: str) -> None:
    assert decode_auth_header(header) is None


def test_config_header_names_registries_by_host() -> None:
    header = encoded(
        {"https://index.docker.io/v1/": {"username": "a"}, "r.example:5000": {"username": "b"}}
    )
    found = auth.decode_config_header(header)
    assert {key: value.username for key, value in found.items()} == {
        "docker.io": "a",
        "r.example:5000": "b",
    }
    assert auth.decode_config_header("nonsense") == {}


def test_stored_credentials_come_from_file_and_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        "#!/bin/sh\nread address\n"
        'case "$address" in\n'
        '  helped.example) echo \'{"Username":"helped","Secret":"h"}\';;\n'
        '  token.example) echo \'{"Username":"<token>","Secret":"t"}\';;\n'
        "  *) echo 'credentials not found'; exit 1;;\nesac\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = {
        "auths": {
            "https://index.docker.io/v1/": {"auth": base64.b64encode(b"hub:pw").decode()},
            "plain.example": {"auth": base64.b64encode(b"plain:pw").decode()},
        },
        "credHelpers": {"helped.example": "test", "token.example": "test", "none.example": "test"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    def found(domain: str) -> Credentials | None:
        return auth.stored_credentials(domain, config_dir=str(tmp_path))

    hub = found("docker.io")
    assert hub is not None
    assert hub.username == "hub"
    helped, token = found("helped.example"), found("token.example")
    assert helped is not None
    assert (helped.username, helped.password) == ("helped", "h")
    assert token is not None
    assert token.identity_token == "t"
    assert found("none.example") is None
    assert found("other.example") is None
    assert auth.stored_credentials("x", config_dir=str(tmp_path / "nowhere")) is None


def test_secrets_are_not_printed() -> None:
    assert "s3cr3t" not in repr(BOB)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/token",service="s",scope="repository:x:pull,push"',
            [
                (
                    "bearer",
                    {"realm": "https://a/token", "service": "s", "scope": "repository:x:pull,push"},
                )
            ],
        ),
        ("Basic realm=test", [("basic", {"realm": "test"})]),
        (
            'Basic realm="a, b", Bearer realm="c"',
            [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})],
        ),
        ('Bearer realm="a\\"b"', [("bearer", {"realm": 'a"b'})]),
        ("", []),
        (",,,", []),
        ('"' * 10_000, []),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, c.parameters) for c in parse_challenges([header])] == expected


# --- with a registry -------------------------------------------------------------------------------------------


def test_basic_auth(catalog: Catalog, registries: RegistryConfig) -> None:
    with FakeRegistry(users=USERS) as registry:
        image = simple_image()
        registry.add("app", "latest", image)
        puller = Puller(catalog, registries)
        with pytest.raises(Unauthenticated, match="no basic auth credentials"):
            puller.pull(f"{registry.host}/app")
        with pytest.raises(SampanError, match="unauthorized"):
            puller.pull(f"{registry.host}/app", auth=Credentials(username="bob", password="no"))
        assert puller.pull(f"{registry.host}/app", auth=BOB)[0].id == image.id


def test_tokens_are_fetched_once_for_each_scope(
    catalog: Catalog, registries: RegistryConfig
) -> None:
    with TokenServer(None, USERS) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        tokens.registry = registry
        registry.add("app", "latest", simple_image())
        Puller(catalog, registries).pull(f"{registry.host}/app", auth=BOB)
        asked = [request.query for request in tokens.asked]
        # One for the manifest, one for the flight's own connection: both for the same scope.
        assert 1 <= len(asked) <= 2
        assert all(
            q["scope"] == ["repository:app:pull"] and q["service"] == ["tests"] for q in asked
        )
        assert all(q["account"] == ["bob"] for q in asked)


def test_an_identity_token_is_exchanged(catalog: Catalog, registries: RegistryConfig) -> None:
    with TokenServer(None) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        tokens.registry = registry
        registry.add("app", "latest", simple_image())
        Puller(catalog, registries).pull(
            f"{registry.host}/app", auth=Credentials(identity_token="idtoken")
        )
        assert {request.method for request in tokens.asked} == {"POST"}


def test_a_registry_token_is_used_as_it_is(catalog: Catalog, registries: RegistryConfig) -> None:
    with TokenServer(None) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        registry.tokens.add("given")
        registry.add("app", "latest", simple_image())
        Puller(catalog, registries).pull(
            f"{registry.host}/app", auth=Credentials(registry_token="given")
        )
        assert tokens.asked == []


def test_a_wrong_password_for_the_token_service(
    catalog: Catalog, registries: RegistryConfig
) -> None:
    with TokenServer(None, USERS) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        tokens.registry = registry
        registry.add("app", "latest", simple_image())
        with pytest.raises(Unauthenticated, match="incorrect username or password"):
            Puller(catalog, registries).pull(
                f"{registry.host}/app", auth=Credentials(username="bob", password="no")
            )


def test_push_asks_for_the_right_to_push(catalog: Catalog, registries: RegistryConfig) -> None:
    with TokenServer(None, USERS) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        tokens.registry = registry
        registry.add("app", "latest", simple_image())
        Puller(catalog, registries).pull(f"{registry.host}/app", auth=BOB)
        catalog.tag(f"{registry.host}/app", f"{registry.host}/other")
        push(catalog, registries, f"{registry.host}/other", auth=BOB)
        scopes = {tuple(r.query["scope"]) for r in tokens.asked}
        assert ("repository:other:pull,push",) in scopes


def test_insufficient_scope_is_access_denied(catalog: Catalog, registries: RegistryConfig) -> None:
    with FakeRegistry() as registry:
        headers = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
        for method in ("GET", "HEAD"):
            registry.faults.append(
                matching("/manifests/", lambda _, __: Answer(401, headers), method)
            )
        with pytest.raises(NotFound) as caught:
            Puller(catalog, registries).pull(f"{registry.host}/app")
        assert str(caught.value) == (
            f"pull access denied for {registry.host}/app, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied"
        )


# --- whom a secret is not given to ----------------------------------------------------------------------------


def test_a_redirect_to_another_host_takes_no_credentials(
    catalog: Catalog, registries: RegistryConfig
) -> None:
    with FakeRegistry(users=USERS) as registry, FakeRegistry() as cdn:
        image = simple_image()
        registry.add("app", "latest", image)
        cdn.add("app", "latest", image)
        registry.faults.append(
            matching(
                "/blobs/",
                lambda r, a: Answer(307, {"Location": cdn.url + r.path}) if a.status == 200 else a,
            )
        )
        Puller(catalog, registries).pull(f"{registry.host}/app", auth=BOB)
        assert cdn.requests
        assert all("authorization" not in request.headers for request in cdn.requests)


def test_who_we_are_sent_to_may_ask_in_vain(catalog: Catalog, registries: RegistryConfig) -> None:
    """A redirect target that answers 401 gets neither a password nor a visit to its token service."""
    with (
        TokenServer(None) as thief,
        FakeRegistry(users=USERS) as registry,
        FakeRegistry(realm=thief.realm) as cdn,
    ):
        image = simple_image()
        registry.add("app", "latest", image)
        registry.faults.append(
            matching(
                "/blobs/",
                lambda r, a: Answer(307, {"Location": cdn.url + r.path}) if a.status == 200 else a,
            )
        )
        with pytest.raises(SampanError):
            Puller(catalog, registries).pull(f"{registry.host}/app", auth=BOB)
        assert thief.asked == []
        assert all("authorization" not in request.headers for request in cdn.requests)


def test_a_foreign_layer_takes_no_credentials(catalog: Catalog, registries: RegistryConfig) -> None:
    """CVE-2020-15157."""
    with FakeRegistry(users=USERS) as registry, FakeRegistry() as elsewhere:
        image = simple_image()
        blob = image.blobs[0]
        elsewhere.add("x", "latest", image)
        layer = image.manifest["layers"][0] | {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "urls": [f"{elsewhere.url}/v2/x/blobs/{image.manifest['layers'][0]['digest']}"],
        }
        image.changed = {"layers": [layer]}
        registry.add("app", "latest", image)
        del registry.blobs[layer["digest"]]
        assert Puller(catalog, registries).pull(f"{registry.host}/app", auth=BOB)[0].id == image.id
        assert blob
        assert all("authorization" not in request.headers for request in elsewhere.requests)


def test_a_mirror_takes_no_credentials(catalog: Catalog, registries: RegistryConfig) -> None:
    with FakeRegistry(users=USERS) as mirror:
        mirror.add("library/app", "latest", simple_image())
        config = msgspec.structs.replace(registries, mirrors=(mirror.url,))
        with pytest.raises(SampanError):
            Puller(catalog, config).pull("app", auth=BOB)
        assert all("authorization" not in request.headers for request in mirror.requests)


# --- login ------------------------------------------------------------------------------------------------------


def test_login_with_basic_auth(registries: RegistryConfig) -> None:
    with FakeRegistry(users=USERS) as registry:
        good = Credentials(username="bob", password="s3cr3t", server_address=registry.host)
        assert remote.check_login(registries, good) == ("Login Succeeded", "")
        bad = Credentials(
            username="bob", password="no", server_address=f"http://{registry.host}/v1/"
        )
        with pytest.raises(Unauthenticated, match="401 Unauthorized"):
            remote.check_login(registries, bad)


def test_login_gives_an_identity_token(registries: RegistryConfig) -> None:
    with TokenServer(None, USERS) as tokens, FakeRegistry(realm=tokens.realm) as registry:
        tokens.registry = registry
        good = Credentials(username="bob", password="s3cr3t", server_address=registry.host)
        assert remote.check_login(registries, good) == ("Login Succeeded", "idtoken")
        bad = Credentials(username="bob", password="no", server_address=registry.host)
        with pytest.raises(Unauthenticated, match="incorrect username or password"):
            remote.check_login(registries, bad)


def test_login_to_an_open_registry_succeeds(registries: RegistryConfig) -> None:
    with FakeRegistry() as registry:
        anyone = Credentials(username="a", password="b", server_address=registry.host)
        assert remote.check_login(registries, anyone)[0] == "Login Succeeded"
