"""Docker's own Python client against the engine: the calls that applications and test frameworks make."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import require
from tests.support.engine import EngineProcess

docker = pytest.importorskip("docker")


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[Any]:
    require(docker is not None, "needs docker-py")
    client = docker.DockerClient(base_url=engine.host, timeout=60)
    yield client
    client.close()


def test_run_and_its_errors(client: Any) -> None:
    assert client.containers.run("busybox", "echo hello", remove=True) == b"hello\n"
    with pytest.raises(docker.errors.ContainerError) as caught:
        client.containers.run("busybox", "sh -c 'echo bad >&2; exit 3'", remove=True)
    assert caught.value.exit_status == 3
    assert caught.value.stderr == b"bad\n"


def test_names_that_do_not_exist(client: Any) -> None:
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("nosuchimage")
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("nosuch")
    with pytest.raises(docker.errors.NotFound):
        client.volumes.get("nosuch")
    with pytest.raises(docker.errors.NotFound):
        client.networks.get("nosuch")


def test_logs_right_after_start(client: Any) -> None:
    """docker-py's users do not wait: Docker's start is slow enough for a short program to have ended."""
    for _ in range(5):
        container = client.containers.create("busybox", ["echo", "said"])
        container.start()
        assert container.logs() == b"said\n"
        container.remove(force=True)


def test_exec_never_loses_its_output(client: Any) -> None:
    """The client reads head and stream through different doors: nothing may come together with the head."""
    container = client.containers.run("busybox", "sleep 100", detach=True)
    for _ in range(30):
        code, output = container.exec_run(["echo", "hi"])
        assert (code, output) == (0, b"hi\n")
    code, (out, err) = container.exec_run("sh -c 'echo o; echo e >&2; exit 5'", demux=True)
    assert (code, out, err) == (5, b"o\n", b"e\n")
    container.remove(force=True)


def test_attach_before_start_sees_everything(client: Any) -> None:
    container = client.containers.create("busybox", ["seq", "1", "5000"])
    stream = container.attach(stream=True, logs=False)
    container.start()
    assert b"".join(stream) == b"".join(b"%d\n" % n for n in range(1, 5001))
    assert container.wait()["StatusCode"] == 0
    container.remove()


def test_archives(client: Any) -> None:
    container = client.containers.run("busybox", "sleep 100", detach=True)
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
    assert container.put_archive("/tmp", buffer.getvalue())
    chunks, stat = container.get_archive("/tmp/file")
    assert stat["name"] == "file" and stat["size"] == 4
    with tarfile.TarFile(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        extracted = tar.extractfile("file")
        assert extracted is not None and extracted.read() == b"data"
    assert {"Path": "/tmp/file", "Kind": 1} in container.diff()
    container.remove(force=True)


def test_networks_and_names(client: Any) -> None:
    network = client.networks.create("dockerpy", labels={"a": "b"})
    server = client.containers.run(
        "busybox", "sleep 100", name="server", detach=True, network="dockerpy"
    )
    answer = client.containers.run(
        "busybox", "ping -c1 -W2 server", remove=True, network="dockerpy"
    )
    assert b"1 packets received" in answer
    network.reload()
    assert [c.name for c in network.containers] == ["server"]
    server.remove(force=True)
    network.remove()


def test_volumes_stats_top_and_events(client: Any) -> None:
    volume = client.volumes.create("dockerpy")
    container = client.containers.run(
        "busybox", "sleep 100", detach=True, mem_limit="64m", volumes={"dockerpy": {"bind": "/v", "mode": "rw"}}
    )  # fmt: skip
    sample = container.stats(stream=False)
    assert sample["memory_stats"]["limit"] == 64 << 20
    assert sample["pids_stats"]["current"] == 1
    assert any("sleep 100" in row[-1] for row in container.top()["Processes"])
    with pytest.raises(docker.errors.APIError) as caught:
        volume.remove()
    assert caught.value.status_code == 409
    container.remove(force=True)
    volume.remove()
    assert client.ping()
    assert client.version()["ApiVersion"] == "1.51"


def test_load_error_is_told(client: Any) -> None:
    with pytest.raises(docker.errors.ImageLoadError):
        client.images.load(b"nonsense")


def test_a_cache_from_an_image_that_is_absent_is_no_cache(client: Any) -> None:
    def steps_from_cache(**options: Any) -> int:
        context = io.BytesIO(b"FROM busybox\nENV FOO=bar\nRUN touch baz\n")
        lines = client.api.build(fileobj=context, tag="cachefrom", decode=True, **options)
        return sum("Using cache" in line.get("stream", "") for line in lines)

    steps_from_cache()
    assert steps_from_cache(cache_from=["cachefrom"]) == 2
    assert steps_from_cache(cache_from=["nosuchtag"]) == 0
    client.images.remove("cachefrom")
