"""Images through a running engine: the two that need no network, archives, a registry, removal; a crash in between."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest

from tests.support.client import Client
from tests.support.engine import EngineProcess
from tests.support.oci import TestImage, digest, docker_archive, simple_image, tar_bytes
from tests.support.registry import FakeRegistry, slow, stalled


@pytest.fixture
def registry() -> FakeRegistry:  # type: ignore[misc]
    with FakeRegistry() as one:
        yield one


def test_hello_runs_offline_and_tells_what_isolates_it(engine: EngineProcess) -> None:
    said = engine.docker("run", "--rm", "hello").stdout
    assert "Hello from Sampan!" in said
    assert re.search(r"process id +1\n", said)
    assert re.search(r"seccomp mode +2 ", said)
    assert engine.docker("images", "-q", "hello").stdout.strip()


def test_host_has_the_programs_and_not_the_secrets(engine: EngineProcess) -> None:
    marker = Path("/usr/sampan-test-marker")
    script = (
        "command -v tar && ls -A /root /home && cat /etc/shadow;"
        f" echo x > {marker} && cat {marker} && id -u"
    )
    said = engine.docker("run", "--rm", "host", "sh", "-c", script)
    assert "/tar" in said.stdout
    assert ":99999:" not in said.stdout  # no line of a shadow file
    assert "No such file" in said.stderr
    assert said.stdout.endswith("x\n0\n")
    assert not marker.exists()


def test_an_unreachable_registry_names_what_there_is(engine: EngineProcess) -> None:
    said = engine.docker("pull", "127.0.0.1:1/nope", check=False)
    assert said.returncode == 1
    assert "connection refused" in said.stderr
    answer = Client(engine.socket).ask("POST", "/images/create?fromImage=127.0.0.1:1/nope&tag=1")
    assert answer.status == 500
    assert "sampan run --rm hello" in answer.json["hint"]


def test_a_push_of_another_platform_than_is_here_is_refused(
    engine: EngineProcess, registry: FakeRegistry
) -> None:
    engine.docker("load", input=docker_archive((simple_image("p"), ["p:1"])))
    name = f"{registry.host}/p:1"
    engine.docker("tag", "p:1", name)
    said = engine.docker("push", "--platform", "linux/s390x", name, check=False)
    assert said.returncode == 1
    assert "wanted linux/s390x, actual: linux/amd64" in said.stderr
    engine.docker("push", "-q", "--platform", "linux/amd64", name)
    engine.docker("rmi", name, "p:1")


def test_load_tag_inspect_history_save_and_remove(engine: EngineProcess, tmp_path: Path) -> None:
    image = TestImage(
        layers=[tar_bytes({"a": b"1"}), tar_bytes({"b": b"22"})],
        config={"Cmd": ["/a"], "Env": ["A=b"]},
    )
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive((image, ["loaded:v1"])))
    assert engine.docker("load", "-i", str(archive)).stdout == "Loaded image: loaded:v1\n"
    engine.docker("tag", "loaded:v1", "quay.io/me/other:v2")
    (found,) = json.loads(engine.docker("inspect", "loaded:v1").stdout)
    assert found["Id"] == image.id
    assert found["RepoTags"] == ["loaded:v1", "quay.io/me/other:v2"]
    assert found["RootFS"]["Layers"] == [digest(layer) for layer in image.layers]
    assert found["Config"]["Env"] == ["A=b"]
    assert found["Size"] == 3
    steps = engine.docker("history", "--format", "{{.CreatedBy}} {{.Size}}", "loaded:v1").stdout
    assert steps.splitlines() == ["step 1 2B", "step 0 1B"]
    saved = tmp_path / "saved.tar"
    engine.docker("save", "-o", str(saved), "loaded:v1")
    removed = engine.docker("rmi", "loaded:v1", "quay.io/me/other:v2").stdout.splitlines()
    assert removed[:3] == [
        "Untagged: loaded:v1",
        "Untagged: quay.io/me/other:v2",
        f"Deleted: {image.id}",
    ]
    assert engine.docker("load", "-q", "-i", str(saved)).stdout == "Loaded image: loaded:v1\n"
    engine.docker("rmi", "loaded:v1")
    missing = engine.docker("inspect", "loaded:v1", check=False)
    assert "No such" in missing.stderr


def test_an_image_in_use_stays(engine: EngineProcess) -> None:
    engine.docker("tag", "busybox", "used:v1")
    engine.docker("create", "--name", "user-of-it", "used:v1", "true")
    engine.docker("rmi", "busybox:latest", check=False)
    refused = engine.docker("rmi", "used:v1", check=False)
    engine.docker("tag", "used:v1", "busybox:latest", check=False)
    engine.docker("rm", "user-of-it")
    assert refused.returncode == 1
    assert "is using its referenced image" in refused.stderr
    engine.docker("rmi", "used:v1")


def test_pull_run_and_push(
    engine: EngineProcess, registry: FakeRegistry, busybox_tar: Path
) -> None:
    image = TestImage(
        layers=[busybox_tar.read_bytes()],
        config={"Cmd": ["echo", "from afar"], "Env": ["PATH=/bin"]},
    )
    registry.add("team/app", "v1", image)
    name = f"{registry.host}/team/app"
    said = engine.docker("pull", f"{name}:v1").stdout
    assert f"Status: Downloaded newer image for {name}:v1\n" in said
    assert engine.docker("run", "--rm", f"{name}:v1").stdout == "from afar\n"
    engine.docker("tag", f"{name}:v1", f"{name}:v2")
    assert "v2: digest: sha256:" in engine.docker("push", f"{name}:v2").stdout
    assert registry.manifests[("team/app", "v2")][1] == image.manifest_raw
    engine.docker("rmi", f"{name}:v1", f"{name}:v2")


def test_a_hostile_archive_is_refused_with_the_entry(engine: EngineProcess, tmp_path: Path) -> None:
    bad = TestImage(layers=[tar_bytes({"fine": b"", "../../escape": b"x"})])
    archive = tmp_path / "bad.tar"
    archive.write_bytes(docker_archive((bad, ["bad:v1"])))
    before = engine.docker("images", "-aq", "--no-trunc").stdout
    said = engine.docker("load", "-i", str(archive), check=False)
    assert said.returncode != 0
    assert "escape" in said.stderr + said.stdout
    assert engine.docker("images", "-aq", "--no-trunc").stdout == before


def test_a_client_that_leaves_stops_its_pull(engine: EngineProcess, registry: FakeRegistry) -> None:
    import subprocess

    big = TestImage(layers=[bytes(range(256)) * 8192], compress=False)
    registry.add("big", "latest", big)
    registry.faults.append(stalled("/blobs/" + digest(big.blobs[0]), 100_000))
    client = subprocess.Popen(
        ["docker", "pull", f"{registry.host}/big"],
        stdout=subprocess.PIPE,
        env=engine.environment,
        text=True,
    )
    assert client.stdout is not None
    for line in client.stdout:
        if "Pulling fs layer" in line:
            break
    client.terminate()
    client.wait(10)
    client.stdout.close()
    good = simple_image("good")
    registry.add("good", "latest", good)
    engine.docker("pull", "-q", f"{registry.host}/good")
    engine.docker("rmi", f"{registry.host}/good")


@pytest.mark.slow
def test_a_crash_during_pulls_leaves_a_right_store(
    fresh_engine: EngineProcess, registry: FakeRegistry
) -> None:
    """kill -9 at several moments: no half image, verified bytes are kept, and the next pull ends well."""
    import subprocess

    base, top = (
        tar_bytes({"base": bytes(range(256)) * 4000}),
        tar_bytes({"top": bytes(range(251)) * 4000}),
    )
    image = TestImage(layers=[base, top], compress=False)
    registry.add("app", "latest", image)
    name = f"{registry.host}/app"
    for after in (1, 5, 20, 60):
        registry.faults[:] = [slow("/blobs/", len(base) // 30)]
        fresh_engine.start()
        assert fresh_engine.docker("images", "-q").stdout == ""
        client = subprocess.Popen(
            ["docker", "pull", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=fresh_engine.environment,
        )
        threading.Event().wait(after / 100)
        fresh_engine.kill()
        client.wait(20)
    registry.faults.clear()
    fresh_engine.start()
    fresh_engine.docker("pull", "-q", name)
    (found,) = json.loads(fresh_engine.docker("inspect", name).stdout)
    assert found["Id"] == image.id
    assert not list((fresh_engine.root / "images/ingest").glob("*"))


def test_layers_of_a_forced_away_image_go_with_its_last_container(
    engine: EngineProcess, tmp_path: Path
) -> None:
    image = simple_image("only for this test")
    archive = tmp_path / "image.tar"
    archive.write_bytes(docker_archive((image, ["forced:v1"])))
    engine.docker("load", "-q", "-i", str(archive))
    layers = engine.root / "snapshots/overlay/layers"
    name = digest(image.layers[0])[7:]
    engine.docker("create", "--name", "last", "forced:v1", "x")
    assert name in {path.name for path in layers.iterdir()}
    engine.docker("rmi", "-f", image.id)
    assert name in {path.name for path in layers.iterdir()}
    engine.docker("rm", "last")
    assert name not in {path.name for path in layers.iterdir()}
