"""Builds and sessions as they are found, told of and forgotten."""

from __future__ import annotations

import asyncio

import pytest

from sampan.build.failures import CommandFailed
from sampan.build.graph import Label, Run, Scratch
from sampan.build.progress import Vertex, VertexLog, VertexStatus, VertexWarning
from sampan.buildkit import builds, session
from sampan.buildkit.borrow import header_values
from sampan.buildkit.builds import Build, Builds, timestamp, told
from sampan.buildkit.faults import Code, GrpcError
from sampan.buildkit.link import Link
from sampan.buildkit.messages import Timestamp
from sampan.buildkit.session import Session, Sessions
from sampan.buildkit.telling import as_grpc
from sampan.errors import Cancelled, Internal


def test_a_step_that_prints_without_end_is_clipped() -> None:
    async def scenario() -> list[bytes]:
        build = Build("ref")
        for _ in range(100):
            build.tell(VertexLog(vertex="noisy", stream=1, data=b"y" * 100_000))
        build.tell(VertexLog(vertex="quiet", stream=1, data=b"heard"))
        return [event.data for event in build.events if isinstance(event, VertexLog)]

    data = asyncio.run(scenario())
    assert sum(map(len, data)) < builds.STEP_LOG + 200_000
    assert data[-2:] == [builds.CLIPPED, b"heard"]


def test_steps_keep_their_digests_and_a_build_s_own_matters_get_others() -> None:
    async def digests(ref: str) -> list[str]:
        build = Build(ref)
        build.tell(Vertex(digest="sha256:1", name="[internal] load .dockerignore"))
        build.tell(Vertex(digest="sha256:2", name="[1/2] RUN true", inputs=("sha256:1",)))
        build.tell(Vertex(digest="sha256:3", name="exporting to image"))
        build.tell(VertexStatus(id="x", vertex="sha256:1"))
        answer = told(build, build.events)
        assert answer.vertexes[1].inputs == [answer.vertexes[0].digest]
        assert answer.statuses[0].vertex == answer.vertexes[0].digest
        return [vertex.digest for vertex in answer.vertexes]

    one, other = asyncio.run(digests("one")), asyncio.run(digests("other"))
    assert one[1] == other[1] == "sha256:2"
    assert not {one[0], one[2]} & {other[0], other[2]}


def test_a_warning_carries_the_dockerfile() -> None:
    async def scenario() -> None:
        build = Build("ref")
        build.sources["Dockerfile"] = b"FROM x\n"
        event = VertexWarning(
            vertex="v", short="s", detail=("d",), url="u", source="Dockerfile", start=1, end=1
        )
        (warning,) = told(build, [event]).warnings
        assert (warning.short, warning.detail, warning.url) == (b"s", [b"d"], "u")
        assert warning.info is not None and warning.info.data == b"FROM x\n"
        assert [r.start.line for r in warning.ranges if r.start] == [1]

    asyncio.run(scenario())


def test_times_are_seconds_and_nanoseconds() -> None:
    assert timestamp(1_500_000_000) == Timestamp(seconds=1, nanos=500_000_000)
    assert timestamp(0) is None


def test_a_build_is_found_when_it_comes_and_a_second_of_its_name_is_refused() -> None:
    async def scenario() -> None:
        known = Builds()
        finding = asyncio.ensure_future(known.find("ref"))
        await asyncio.sleep(0)
        build = known.begin("ref")
        assert await finding is build
        with pytest.raises(GrpcError, match="exists"):
            known.begin("ref")
        known.end(build)
        assert await known.find("ref") is build
        for number in range(builds.KEPT):
            known.end(known.begin(str(number)))
        assert build not in known.all()
        assert len(known.all()) == builds.KEPT

    asyncio.run(scenario())


def test_a_build_that_ends_wakes_and_cancels_who_works_for_it() -> None:
    async def scenario() -> None:
        known = Builds()
        build = known.begin("ref")
        working = asyncio.ensure_future(asyncio.Event().wait())
        waiting = asyncio.ensure_future(build.news())
        build.tasks.add(working)
        await asyncio.sleep(0)
        known.end(build)
        await waiting
        with pytest.raises(asyncio.CancelledError):
            await working
        assert build.returned.cancelled()

    asyncio.run(scenario())


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "ARRIVAL_SECONDS", 0.01)
    monkeypatch.setattr(session, "ARRIVAL_SECONDS", 0.01)

    async def scenario() -> None:
        with pytest.raises(GrpcError, match="no such job nobody"):
            await Builds().find("nobody")
        with pytest.raises(GrpcError, match="no active session for nobody"):
            await Sessions().get("nobody")
        with pytest.raises(GrpcError, match="names no session"):
            await Sessions().get("")

    asyncio.run(scenario())


def test_a_session_is_waited_for_and_found_behind_a_prefix() -> None:
    async def scenario() -> None:
        known = Sessions()
        finding = asyncio.ensure_future(known.get("main:id"))
        await asyncio.sleep(0)
        here = Session("id", Link(), ["/A/b"])
        known.add(here)
        assert await finding is here
        assert here.supports("/a/B") and not here.supports("/a/c")
        with pytest.raises(GrpcError) as caught:
            here.open("/a/c")
        assert caught.value.code == Code.UNIMPLEMENTED
        assert await here.secret("s") is None and await here.credentials("h") == ("", "")
        known.remove(here)
        assert "id" not in known

    asyncio.run(scenario())


def test_header_values_that_are_not_plain_are_escaped_all_together() -> None:
    assert header_values("n", ["a", "b c"]) == [("n", "a"), ("n", "b c")]
    assert header_values("n", ["a b", "ö"]) == [("n", "a+b"), ("n", "%C3%B6"), ("n-encoded", "1")]
    assert header_values("n", [" x"]) == [("n", "+x"), ("n-encoded", "1")]
    assert header_values("n", ["a\nb"])[0] == ("n", "a%0Ab")


def test_failures_as_clients_are_told() -> None:
    async def scenario() -> None:
        build = Build("ref")
        step = Run(
            parent=Scratch(), args=("/bin/sh", "-c", "false"), env=(), cwd="/", user="",
            label=Label("RUN false", start=2, end=3),
        )  # fmt: skip
        failed = as_grpc(CommandFailed(step, 3, oom_killed=False), build)
        assert failed.code == Code.UNKNOWN
        assert [d.type_url.rpartition(".")[2] for d in failed.details] == ["ExitMessage+json"]
        assert as_grpc(Cancelled("x"), build).code == Code.CANCELLED
        assert as_grpc(Internal("why"), build).message == "why"
        assert (
            as_grpc(FileNotFoundError(2, "No such file", "/x"), build).message == "/x: No such file"
        )
        said = GrpcError("said", Code.NOT_FOUND)
        assert as_grpc(said, build) is said
        with pytest.raises(ZeroDivisionError):
            as_grpc(ZeroDivisionError(), build)

    asyncio.run(scenario())
