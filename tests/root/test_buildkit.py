"""BuildKit's protocol against a running engine: by a client of our own, and by docker's that has BuildKit's inside."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sampan.buildkit import messages as m
from sampan.buildkit.faults import GrpcError
from sampan.buildkit.wire import decode, encode
from tests.support.buildkit import BRIDGE, CONTROL, BuildClient
from tests.support.engine import EngineProcess

pytestmark = pytest.mark.root

FRONTEND = "dockerfile.v0"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


def run(
    engine: EngineProcess, context: Path, scenario: Callable[[BuildClient], Awaitable[None]]
) -> None:
    """A scenario with a client whose directories are both the context."""

    async def whole() -> None:
        async with BuildClient(
            engine.socket, {"context": context, "dockerfile": context}
        ) as client:
            await asyncio.wait_for(scenario(client), 120)

    asyncio.run(whole())


def test_who_the_engine_is(engine: EngineProcess, context: Path) -> None:
    async def scenario(client: BuildClient) -> None:
        workers = (
            await client.ask(CONTROL + "ListWorkers", m.Empty(), m.ListWorkersResponse)
        ).record
        assert len(workers) == 1
        assert workers[0].platforms[0].os == "linux"
        info = await client.ask(CONTROL + "Info", m.Empty(), m.InfoResponse)
        assert info.version is not None and info.version.version.startswith("v0.")
        with pytest.raises(GrpcError, match="unknown method Nonsense"):
            await client.ask(CONTROL + "Nonsense", m.Empty(), m.Empty)

    run(engine, context, scenario)


def test_a_build_its_progress_and_its_image(engine: EngineProcess, context: Path) -> None:
    (context / "f").write_text("from the context\n")
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY f /f\nRUN --mount=type=secret,id=s cat /run/secrets/s /f; echo err >&2\nCMD cat /f\n"
    )

    async def scenario(client: BuildClient) -> None:
        client.secrets["s"] = b"hush\n"
        request = client.request(
            frontend=FRONTEND,
            frontend_attrs={"label:a": "b"},
            exporters=[m.Exporter(type="moby", attrs={"name": "bk-built:1"})],
        )
        told = asyncio.ensure_future(client.status(request.ref))
        response = (await client.solve(request)).exporter_response
        news = await told
        assert response["image.name"] == "docker.io/library/bk-built:1"
        found = json.loads(engine.docker("image", "inspect", "bk-built:1").stdout)[0]
        assert response["containerimage.config.digest"] == found["Id"]
        assert found["Config"]["Labels"] == {"a": "b"}
        last = {vertex.name: vertex for vertex in news.vertexes}
        step = next(vertex for name, vertex in last.items() if " RUN " in name)
        assert all(vertex.completed and not vertex.error for vertex in last.values())
        output = {n: b"".join(log.data for log in news.logs if log.stream == n) for n in (1, 2)}
        assert output == {1: b"hush\nfrom the context\n", 2: b"err\n"}
        assert {log.vertex for log in news.logs} == {step.digest}
        assert any(s.id.startswith("transferring context") and s.completed for s in news.statuses)

    run(engine, context, scenario)
    assert engine.docker("run", "--rm", "bk-built:1").stdout == "from the context\n"
    engine.docker("rmi", "bk-built:1")


def test_a_build_that_the_client_drives(engine: EngineProcess, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN mkdir /d; echo hello >/d/f; ln -s f /d/l\n"
    )

    async def scenario(client: BuildClient) -> None:
        request = client.request(exporters=[m.Exporter(type="moby", attrs={"name": "bk-driven"})])
        solving = asyncio.ensure_future(client.solve(request))
        pong = await client.ask(BRIDGE + "Ping", m.Empty(), m.PongResponse, request.ref)
        assert "readfile" in {cap.id for cap in pong.frontend_caps if cap.enabled}
        result = (
            await client.ask(
                BRIDGE + "Solve",
                m.GatewaySolveRequest(frontend=FRONTEND, allow_result_return=True),
                m.GatewaySolveResponse,
                request.ref,
            )
        ).result
        assert result is not None and result.ref is not None
        assert json.loads(result.metadata["containerimage.config"])["os"] == "linux"
        ref = result.ref.id

        async def read(path: str, **wanted: int) -> bytes:
            asked = m.ReadFileRequest(ref=ref, path=path, range=m.FileRange(**wanted))
            return (
                await client.ask(BRIDGE + "ReadFile", asked, m.ReadFileResponse, request.ref)
            ).data

        assert await read("/d/l") == b"hello\n"
        assert await read("/d/f", offset=1, length=3) == b"ell"
        for path in ("/d", "/nothing", "/../../../../etc/hostname"):
            with pytest.raises(GrpcError):
                await read(path)
        listed = await client.ask(
            BRIDGE + "ReadDir", m.ReadDirRequest(ref=ref, path="/d"), m.ReadDirResponse, request.ref
        )
        assert [entry.path for entry in listed.entries] == ["f", "l"]
        await client.ask(BRIDGE + "Return", m.ReturnRequest(result=result), m.Empty, request.ref)
        assert (await solving).exporter_response["image.name"] == "docker.io/library/bk-driven"

    run(engine, context, scenario)
    engine.docker("rmi", "bk-driven")


def test_outputs_go_to_the_client(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox AS made\nRUN mkdir -p /o/d; echo x >/o/d/f; chmod 4711 /o/d/f; ln -s f /o/d/l\n"
        "FROM scratch\nCOPY --from=made /o /\n"
    )
    target = tmp_path / "output"
    target.mkdir()

    async def scenario(client: BuildClient) -> None:
        await client.solve(client.request(frontend=FRONTEND, exporters=[m.Exporter(type="tar")]))
        with tarfile.open(fileobj=io.BytesIO(client.archive)) as archive:
            assert sorted(archive.getnames()) == ["d", "d/f", "d/l"]
        client.output = target
        await client.solve(client.request(frontend=FRONTEND, exporters=[m.Exporter(type="local")]))

    run(engine, context, scenario)
    assert (target / "d/f").stat().st_mode & 0o7777 == 0o4711
    assert (target / "d/l").read_text() == "x\n"


def test_an_image_from_a_layout_of_the_client_s(engine: EngineProcess, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCOPY --from=other /f /f\nRUN cat /f\n")
    blobs: dict[str, bytes] = {}

    def put(data: bytes) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("f")
        member.size = 10_000
        archive.addfile(member, io.BytesIO(b"laid out\n" + b"." * 9991))
    layer = put(buffer.getvalue())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = put(
        json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {}}
        ).encode()
    )
    kind = "application/vnd.oci.image."
    manifest = put(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}manifest.v1+json",
                "config": {"mediaType": f"{kind}config.v1+json", **config},
                "layers": [{"mediaType": f"{kind}layer.v1.tar", **layer}],
            }
        ).encode()
    )

    async def scenario(client: BuildClient) -> None:
        client.stores["oci:mine"] = blobs
        attrs = {"context:other": f"oci-layout://mine:latest@{manifest['digest']}"}
        request = client.request(frontend=FRONTEND, frontend_attrs=attrs)
        told = asyncio.ensure_future(client.status(request.ref))
        await client.solve(request)
        assert b"laid out\n" in b"".join(log.data for log in (await told).logs)
        blobs[str(layer["digest"])] = b"x" * int(str(layer["size"]))
        engine.docker("image", "prune", "-f")
        with pytest.raises(GrpcError):
            await client.solve(client.request(frontend=FRONTEND, frontend_attrs=attrs))
        del blobs[str(manifest["digest"])]
        with pytest.raises(GrpcError, match="not found"):
            await client.solve(client.request(frontend=FRONTEND, frontend_attrs=attrs))

    run(engine, context, scenario)


def test_a_cache_in_a_directory_of_the_client_s(engine: EngineProcess, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo step > /f\nRUN cat /f\n")

    async def scenario(client: BuildClient) -> None:
        blobs = client.stores["local:/cache"] = {}
        attrs = {"dest": "/cache", "mode": "max"}
        options = m.CacheOptions(exports=[m.CacheEntry(type="local", attrs=attrs)])
        request = client.request(frontend=FRONTEND, frontend_attrs={"no-cache": ""}, cache=options)
        answer = (await client.solve(request)).exporter_response
        top = json.loads(answer["cache.manifest"])
        assert len(blobs[top["digest"]]) == top["size"]
        assert len(blobs) >= 3
        again = client.request(frontend=FRONTEND, cache=options)  # the client has all blobs
        await client.solve(again)
        engine.docker("builder", "prune", "-af")
        source = {"src": "/cache", "digest": top["digest"]}
        options = m.CacheOptions(imports=[m.CacheEntry(type="local", attrs=source)])
        request = client.request(frontend=FRONTEND, cache=options)
        told = asyncio.ensure_future(client.status(request.ref))
        await client.solve(request)
        last = {vertex.name: vertex.cached for vertex in (await told).vertexes}
        assert [cached for name, cached in last.items() if " RUN " in name] == [True, True]

    run(engine, context, scenario)


def test_an_agent_is_forwarded(engine: EngineProcess, context: Path) -> None:
    """The step sees a socket; whoever connects to it talks to the client's agent."""
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK && echo ready; sleep 1000\n"
    )

    async def scenario(client: BuildClient) -> None:
        client.agent = lambda data: data.upper()
        request = client.request(frontend=FRONTEND)
        solving = asyncio.ensure_future(client.solve(request))
        await until_output(client, request.ref)
        (path,) = (engine.root / "builder/contexts").glob("*/ssh_auth_sock")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"ping")
        assert await reader.read(100) == b"PING"
        writer.close()
        client.session.abort()
        with pytest.raises(GrpcError):
            await solving

    run(engine, context, scenario)
    given_back(engine)


async def until_output(client: BuildClient, ref: str) -> None:
    """Until a step of a build has printed something."""
    status = client.control.open(CONTROL + "Status")
    await status.send(encode(m.StatusRequest(ref=ref)))
    while (message := await status.receive()) is not None:
        if decode(m.StatusResponse, message).logs:
            status.cancel()
            return
    raise AssertionError("the build ended without output")


def given_back(engine: EngineProcess) -> None:
    """Wait until nothing that a build borrowed is here any more."""

    async def wait() -> None:
        while os.listdir(engine.root / "builder/contexts"):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(wait(), 30))


def test_a_failure_names_the_lines_and_the_exit_status(
    engine: EngineProcess, context: Path
) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN exit 7\n")

    async def scenario(client: BuildClient) -> None:
        with pytest.raises(GrpcError, match="exit code: 7") as caught:
            await client.solve(client.request(frontend=FRONTEND))
        details = {d.type_url.rpartition("/")[2]: json.loads(d.value) for d in caught.value.details}
        assert details["errdefs.Source+json"]["ranges"] == [
            {"start": {"line": 2}, "end": {"line": 2}}
        ]
        assert details["gatewayapi.ExitMessage+json"] == {"Code": 7}

    run(engine, context, scenario)


def test_what_is_not_served_is_refused_with_the_reason(
    engine: EngineProcess, context: Path
) -> None:
    (context / "Dockerfile").write_text("FROM scratch\n")

    async def scenario(client: BuildClient) -> None:
        refused = {
            "LLB": client.request(definition=m.Definition(ops=[b"\x0a\x00"])),
            "frontend nonsense": client.request(frontend="nonsense"),
            "is not run": client.request(
                frontend="gateway.v0", frontend_attrs={"source": "some/image"}
            ),
        }
        for words, request in refused.items():
            with pytest.raises(GrpcError, match=words):
                await client.solve(request)
        client.id = ""
        with pytest.raises(GrpcError, match="names no session"):
            await client.solve(client.request(frontend=FRONTEND))
        with pytest.raises(GrpcError, match="no such job"):
            await client.ask(CONTROL + "Status", m.StatusRequest(ref="nobody"), m.Empty)

    run(engine, context, scenario)


@pytest.mark.parametrize("how", ["the call is reset", "the session is lost", "both are lost"])
def test_a_build_ends_with_its_client(engine: EngineProcess, context: Path, how: str) -> None:
    (context / "Dockerfile").write_text(f"FROM busybox\nRUN echo {how}; sleep 1000\n")

    async def scenario(client: BuildClient) -> None:
        request = client.request(frontend=FRONTEND)
        solving = asyncio.ensure_future(client.solve(request))
        await until_output(client, request.ref)
        assert os.listdir(engine.root / "builder/contexts")
        if how == "the call is reset":
            solving.cancel()
        elif how == "the session is lost":
            client.session.abort()
        else:
            client.session.abort()
            client.control.abort()
        with pytest.raises((GrpcError, asyncio.CancelledError)):
            await solving

    run(engine, context, scenario)
    given_back(engine)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_build_is_cancelled_by_its_id(engine: EngineProcess, context: Path, version: str) -> None:
    """By either route: `POST /build/cancel` ends it, and its own request with it."""
    (context / "Dockerfile").write_text(f"FROM busybox\nRUN echo begin{version}; sleep 1000\n")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(context, ".")

    async def scenario(client: BuildClient) -> None:
        query = f"version={version}&buildid=mine&session={client.id}"
        body = buffer.getvalue()
        reader, writer = await asyncio.open_unix_connection(engine.socket)
        writer.write(
            f"POST /build?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        said = b""
        while b"begin1\\n" not in said and b"begin2\n" not in traces(said):
            piece = await reader.read(65536)
            assert piece, said
            said += piece
        other, sender = await asyncio.open_unix_connection(engine.socket)
        sender.write(b"POST /build/cancel?id=mine HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await other.read()).startswith(b"HTTP/1.1 200 ")
        while await reader.read(65536):
            continue
        for each in (writer, sender):
            each.close()

    run(engine, context, scenario)
    given_back(engine)


def traces(text: bytes) -> list[bytes]:
    """What steps printed, of an answer to `POST /build?version=2` as far as it has come."""
    found = []
    for line in text.split(b"\r\n"):
        if line.startswith(b'{"id":"moby.buildkit.trace"') and line.endswith(b"}"):
            news = decode(m.StatusResponse, base64.b64decode(json.loads(line)["aux"]))
            found += [log.data for log in news.logs]
    return found


def with_buildkit(
    engine: EngineProcess, *arguments: str, input: bytes | None = None
) -> tuple[int, str]:
    """Debian's docker in its BuildKit mode; a newer one on the path may have no buildx beside it."""
    program = "/usr/bin/docker"
    done = subprocess.run(
        [program, *arguments], input=input, capture_output=True, timeout=120,
        env=engine.environment | {"DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


def test_docker_s_own_client_builds(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    (context / "f").write_text("f\n")
    (context / "junk.log").touch()
    (context / ".dockerignore").write_text("*.log\n")
    (context / "Dockerfile").write_text(
        "FROM busybox\nCOPY . /c/\nRUN --mount=type=secret,id=s ls /c; cat /run/secrets/s\n"
    )
    (tmp_path / "s").write_text("hush\n")
    code, text = with_buildkit(
        engine, "build", "--progress", "plain", "--secret", f"id=s,src={tmp_path / 's'}",
        "-t", "bk-docker", str(context),
    )  # fmt: skip
    assert code == 0, text
    assert "COPY . /c/" in text and "hush" in text and "junk" not in text
    code, text = with_buildkit(engine, "build", "-q", "-t", "bk-docker", str(context))
    assert engine.docker("image", "inspect", "-f", "{{.Id}}", "bk-docker").stdout == text
    engine.docker("rmi", "bk-docker")
    code, text = with_buildkit(engine, "build", "-o", str(tmp_path / "out"), str(context))
    assert code == 0, text
    assert (tmp_path / "out/c/f").read_text() == "f\n"


def test_a_tar_on_docker_s_standard_input(engine: EngineProcess, context: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in (
            ("Dockerfile", b"FROM busybox\nCOPY f /f\nRUN cat /f\n"),
            ("f", b"sent\n"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    code, text = with_buildkit(
        engine, "build", "--progress", "plain", "--no-cache", "-", input=buffer.getvalue()
    )
    assert code == 0 and "sent" in text, text
