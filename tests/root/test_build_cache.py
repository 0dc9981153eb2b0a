"""Caches that travel by our own command line, and several platforms in one archive."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess

TEXT = "FROM busybox AS a\nRUN echo one > /one\nFROM busybox\nCOPY --from=a /one /1\nRUN echo two > /two\n"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(TEXT)
    return folder


def cached(text: str) -> list[str]:
    """Titles of the steps that came from a cache."""
    lines = text.splitlines()
    titles = {line.split()[0]: line for line in lines if "[" in line}
    return [titles[line.split()[0]] for line in lines if line.endswith(" CACHED")]


@pytest.mark.parametrize(("mode", "count"), [("min", 2), ("max", 3)])
def test_a_cache_in_a_directory(
    engine: EngineProcess,
    fresh_engine: EngineProcess,
    context: Path,
    tmp_path: Path,
    mode: str,
    count: int,
) -> None:
    """One engine gives it away, another, which never saw the build, is spared the steps."""
    place = tmp_path / "cache"
    engine.sampan("build", "--cache-to", f"type=local,dest={place},mode={mode}", str(context))
    assert (place / "oci-layout").exists()
    index = json.loads((place / "index.json").read_text())
    manifest = json.loads(
        (place / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text()
    )
    assert len(manifest["layers"]) == count
    fresh_engine.start()
    engine.docker("save", "-o", str(tmp_path / "busybox.tar"), "busybox")
    fresh_engine.docker("load", "-i", str(tmp_path / "busybox.tar"))
    done = fresh_engine.sampan(
        "build", "--progress=plain", "--cache-from", f"type=local,src={place}", str(context)
    )
    assert "importing cache manifest from" in done.stderr
    spared = [title for title in cached(done.stderr) if "RUN" in title or "COPY" in title]
    assert len(spared) == count


def test_a_damaged_cache_is_passed_over(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    (place / "index.json").write_text('{"schemaVersion":2,"manifests":[]')
    done = engine.sampan(
        "build", "--progress=plain", "--cache-from", f"type=local,src={place}", str(context)
    )
    assert "importing cache manifest" in done.stderr


def test_a_note_inside_an_image(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    engine.sampan("build", "--cache-to", "type=inline", "-t", "inline:1", str(context))
    engine.docker("save", "-o", str(tmp_path / "image.tar"), "inline:1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        listed = archive.extractfile("manifest.json")
        assert listed is not None
        document = archive.extractfile(json.load(listed)[0]["Config"])
        assert document is not None
        notes = json.load(document)["moby.buildkit.cache.v0"]
    assert sorted(note["layer"] for note in notes) == [1, 2]
    done = engine.sampan("build", "--progress=plain", "--cache-from", "inline:1", str(context))
    assert "importing cache manifest from inline:1" in done.stderr


def test_several_platforms_in_one_archive(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    (context / "Dockerfile").write_text("FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n")
    for name in ("amd64", "arm64"):
        (context / f"f-{name}").write_text(name)
    engine.sampan(
        "build",
        "--platform",
        "linux/amd64,linux/arm64",
        "-o",
        f"type=oci,dest={tmp_path / 'oci.tar'}",
        str(context),
    )
    with tarfile.open(tmp_path / "oci.tar") as archive:
        top = archive.extractfile("index.json")
        assert top is not None
        digest = json.load(top)["manifests"][0]["digest"]
        index = archive.extractfile(f"blobs/sha256/{digest[7:]}")
        assert index is not None
        found = [line["platform"]["architecture"] for line in json.load(index)["manifests"]]
    assert found == ["amd64", "arm64"]
    engine.sampan(
        "build", "--platform", "linux/amd64,linux/arm64", "-o", str(tmp_path / "out"), str(context)
    )
    assert (tmp_path / "out/linux_arm64/f").read_text() == "arm64"


def test_cache_mounts_are_things_of_their_own(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=cache,target=/keep/this echo kept > /keep/this/f\n"
    )
    engine.sampan("build", "--no-cache", str(context))
    assert "/keep/this" in engine.sampan("builder", "cache", "ls").stdout
    packed = tmp_path / "mount.tar"
    engine.sampan("builder", "cache", "export", "-o", str(packed), "/keep/this")
    with tarfile.open(packed) as archive:
        assert archive.extractfile("f").read() == b"kept\n"  # type: ignore[union-attr]
    engine.sampan("builder", "cache", "import", "another", str(packed))
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=cache,id=another,target=/c cat /c/f\n"
    )
    done = engine.sampan("build", "--no-cache", "--progress=plain", str(context))
    assert " kept\n" in done.stderr
    removed = engine.sampan("builder", "cache", "rm", "another", "/keep/this")
    assert removed.stdout == "another\n/keep/this\n"
    gone = engine.sampan("builder", "cache", "rm", "another", check=False)
    assert (gone.returncode, gone.stderr) == (
        1,
        "Error response from daemon: no such cache mount: another\n",
    )


def test_pruning_by_what_a_step_was(engine: EngineProcess, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox\nRUN echo prune-me > /a\nRUN echo keep-me > /b\n"
    )
    engine.sampan("build", "-q", "-t", "pruned", str(context))
    engine.docker("rmi", "pruned")
    found = engine.sampan("builder", "prune", "-f", "-a", "--filter", "description=keep-me").stdout
    assert "Total reclaimed space: 8B" in found
    done = engine.sampan("build", "--progress=plain", str(context))
    assert [title[-5:] for title in cached(done.stderr)][-1].endswith("> /a")
    wrong = engine.sampan("builder", "prune", "-f", "--filter", "nonsense=1", check=False)
    assert "invalid filter 'nonsense'" in wrong.stderr
