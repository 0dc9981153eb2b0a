"""With a real registry and with other tools: what they push we pull, what we push, save and store they read."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sampan.errors import SampanError, Unauthenticated
from sampan.images import remote
from sampan.images import save as saving
from sampan.images.archive import load
from sampan.images.auth import Credentials
from sampan.images.catalog import Catalog
from sampan.images.endpoints import Proxies, RegistryConfig
from sampan.images.pull import Puller
from sampan.images.push import push
from sampan.images.transport import ConnectionFailed, Transport
from tests.conftest import require
from tests.support.oci import TestImage, docker_archive, tar_bytes
from tests.support.realregistry import RealRegistry, SigningTokenServer, make_certificate
from tests.support.stores import open_catalog

IMAGE = TestImage(
    layers=[tar_bytes({"bin/": b"", "bin/a": b"1" * 100_000}), tar_bytes({"b": b"2"})],
    config={"Cmd": ["/bin/a"], "Labels": {"made": "by a test"}},
)
BOB = Credentials(username="bob", password="s3cr3t")


def tool(*command: str | Path) -> str:
    """Run another engine's tool; skipped where it is not installed."""
    require(shutil.which(str(command[0])) is not None, f"needs {command[0]}")
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(tmp_path / "ours")


@pytest.fixture
def config() -> RegistryConfig:
    return RegistryConfig(certs_dirs=(), proxies=Proxies())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    require(shutil.which("docker-registry") is not None, "needs Debian's docker-registry")
    with RealRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def have_image(catalog: Catalog, *names: str) -> None:
    load(catalog, io.BytesIO(docker_archive((IMAGE, list(names)))))


# --- the registry -----------------------------------------------------------------------------------------------


def test_what_we_push_we_pull(
    plain: RealRegistry, catalog: Catalog, config: RegistryConfig, tmp_path: Path
) -> None:
    name = f"{plain.host}/round/trip:v1"
    have_image(catalog, name)
    (pushed,) = push(catalog, config, name)
    other = open_catalog(tmp_path / "other")
    (pulled,) = Puller(other, config).pull(name)
    assert pulled.id == IMAGE.id
    assert other.resolve(name).manifest.digest == pushed.digest
    assert other.resolve(name).repo_digests == (f"{plain.host}/round/trip@{pushed.digest}",)
    (again,) = push(other, config, name)
    assert again == pushed
    found = remote.inspect_distribution(config, other.resolve(name).references[0])
    assert found.descriptor.digest == pushed.digest


def test_layers_are_mounted_from_a_neighbour(
    plain: RealRegistry, catalog: Catalog, config: RegistryConfig
) -> None:
    have_image(catalog, f"{plain.host}/first:v1", f"{plain.host}/second:v1")
    push(catalog, config, f"{plain.host}/first:v1")
    said: list[str] = []
    push(
        catalog,
        config,
        f"{plain.host}/second:v1",
        progress=lambda d: said.append(str(d.get("status"))),
    )
    assert said.count("Mounted from first") == len(IMAGE.layers)


def test_passwords(tmp_path: Path, catalog: Catalog, config: RegistryConfig) -> None:
    require(shutil.which("docker-registry") is not None, "needs Debian's docker-registry")
    passwords = tmp_path / "htpasswd"
    passwords.write_text(tool("htpasswd", "-nbB", "-C", "4", "bob", "s3cr3t"))
    auth = f"auth: {{htpasswd: {{realm: tests, path: {passwords}}}}}\n"
    with RealRegistry(tmp_path / "registry", auth=auth) as registry:
        name = f"{registry.host}/private:v1"
        have_image(catalog, name)
        with pytest.raises(Unauthenticated, match="no basic auth credentials"):
            push(catalog, config, name)
        push(catalog, config, name, auth=BOB)
        with pytest.raises(SampanError, match="unauthorized"):
            Puller(catalog, config).pull(name, auth=msgspec.structs.replace(BOB, password="no"))
        Puller(open_catalog(tmp_path / "other"), config).pull(name, auth=BOB)
        login = msgspec.structs.replace(BOB, server_address=registry.host)
        assert remote.check_login(config, login)[0] == "Login Succeeded"


def test_private_authorities(tmp_path: Path, catalog: Catalog) -> None:
    require(shutil.which("docker-registry") is not None, "needs Debian's docker-registry")
    certificate, key = make_certificate(tmp_path / "tls")
    with RealRegistry(tmp_path / "registry", tls=(certificate, key)) as registry:
        name = f"{registry.host}/app:v1"
        have_image(catalog, name)
        trusting = RegistryConfig(certs_dirs=(str(tmp_path / "certs.d"),), proxies=Proxies())
        folder = tmp_path / "certs.d" / registry.host
        folder.mkdir(parents=True)
        shutil.copy(certificate, folder / "ca.crt")
        push(
            catalog, trusting, name
        )  # loopback is insecure anyway: no verification, and TLS all the same
        direct = f"https://{registry.host}/v2/"
        with Transport(trusting).request("GET", direct) as answer:
            assert answer.status == 200
        with pytest.raises(ConnectionFailed, match="failed to verify certificate"):
            Transport(RegistryConfig(certs_dirs=(), proxies=Proxies())).request("GET", direct)


def test_tokens(tmp_path: Path, catalog: Catalog, config: RegistryConfig) -> None:
    require(shutil.which("docker-registry") is not None, "needs Debian's docker-registry")
    certificate, key = make_certificate(tmp_path / "signer")
    with SigningTokenServer(certificate, key, {"bob": "s3cr3t"}) as tokens:
        auth = (
            f"auth: {{token: {{realm: '{tokens.realm}', service: tests, issuer: tests, "
            f"rootcertbundle: {certificate}}}}}\n"
        )
        with RealRegistry(tmp_path / "registry", auth=auth) as registry:
            name = f"{registry.host}/app:v1"
            have_image(catalog, name)
            with pytest.raises(SampanError, match="denied|unauthorized"):
                push(catalog, config, name)
            push(catalog, config, name, auth=BOB)
            Puller(open_catalog(tmp_path / "other"), config).pull(name)
            assert set(tokens.scopes) >= {"repository:app:pull", "repository:app:pull,push"}


# --- other tools --------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_what_skopeo_pushes_we_pull(
    plain: RealRegistry, catalog: Catalog, config: RegistryConfig, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive((IMAGE, ["x:v1"])))
    for form in ("v2s2", "oci"):
        name = f"{plain.host}/skopeo/{form}:v1"
        tool("skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--format", form,
             f"docker-archive:{archive}", f"docker://{name}")  # fmt: skip
        (pulled,) = Puller(catalog, config).pull(name)
        assert pulled.diff_ids == catalog.document(pulled.id).diff_ids
        assert pulled.size == 100_001
        digest = tool(
            "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{name}"
        )
        assert catalog.resolve(name).manifest.digest == digest.strip()


@pytest.mark.peer
def test_what_we_push_save_and_store_skopeo_reads(
    plain: RealRegistry, catalog: Catalog, config: RegistryConfig, tmp_path: Path
) -> None:
    name = f"{plain.host}/ours:v1"
    have_image(catalog, name)
    (pushed,) = push(catalog, config, name)
    archive = tmp_path / "saved.tar"
    with archive.open("wb") as file:
        saving.save(catalog, saving.select(catalog, [name]), file.write)
    sources = {
        f"docker://{name}": pushed.digest,
        f"oci:{tmp_path / 'ours/images'}:{name}": catalog.resolve(name).manifest.digest,
        f"oci-archive:{archive}": catalog.resolve(name).manifest.digest,
    }
    for source, digest in sources.items():
        found = json.loads(tool("skopeo", "inspect", "--tls-verify=false", source))
        assert found["Digest"] == digest, source
        assert found["Labels"] == {"made": "by a test"}
    target = tmp_path / "copied"
    tool("skopeo", "copy", "-q", "--insecure-policy", f"docker-archive:{archive}", f"dir:{target}")
    manifest = json.loads((target / "manifest.json").read_bytes())
    assert manifest["config"]["digest"] == IMAGE.id


@pytest.mark.peer
def test_podman_loads_what_we_save_and_we_load_what_it_saves(
    catalog: Catalog, tmp_path: Path
) -> None:
    have_image(catalog, "app:v1")
    archive = tmp_path / "saved.tar"
    with archive.open("wb") as file:
        saving.save(catalog, saving.select(catalog, ["app:v1"]), file.write)
    run = tempfile.mkdtemp(prefix="pod")  # podman takes no longer path
    podman = ("podman", "--root", tmp_path / "podman", "--runroot", run, "--storage-driver", "vfs")
    assert "app:v1" in tool(*podman, "load", "-q", "-i", archive)
    for form in ("docker-archive", "oci-archive"):
        saved = tmp_path / f"{form}.tar"
        tool(*podman, "save", "-q", "--format", form, "-o", saved, "app:v1")
        other = open_catalog(tmp_path / form)
        with saved.open("rb") as file:
            (loaded,) = load(other, file)
        assert loaded.diff_ids == catalog.resolve("app:v1").diff_ids
        assert any("app:v1" in tag for tag in other.get(loaded.id).repo_tags)
    shutil.rmtree(run)


@pytest.mark.peer
def test_umoci_unpacks_our_store(catalog: Catalog, tmp_path: Path) -> None:
    have_image(catalog, "app:v1")
    layout = tmp_path / "layout"
    tool("skopeo", "copy", "-q", "--insecure-policy", f"oci:{tmp_path / 'ours/images'}:docker.io/library/app:v1",
         f"oci:{layout}:app")  # fmt: skip
    tool("umoci", "unpack", "--image", f"{layout}:app", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/a").read_bytes() == b"1" * 100_000
