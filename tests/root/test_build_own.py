"""Builds by our own command line: outputs, secrets, agents, named contexts, questions, progress, failures."""

from __future__ import annotations

import json
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


def build(
    engine: EngineProcess, context: Path, dockerfile: str, *flags: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    (context / "Dockerfile").write_text(dockerfile)
    return engine.sampan("build", *flags, str(context), check=check)


def test_progress_ids_and_facts(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    (context / "f").write_text("x")
    facts, ident = tmp_path / "facts", tmp_path / "id"
    done = build(
        engine, context, "FROM busybox\nCOPY f /f\nRUN echo said\n", "--progress=plain", "-t", "own:1",
        "--metadata-file", str(facts), "--iidfile", str(ident), "--no-cache",
    )  # fmt: skip
    assert done.stdout == ""
    for words in (
        "[internal] load build definition from Dockerfile",
        "[3/3] RUN echo said",
        " said\n",
        "naming to docker.io/library/own:1",
    ):
        assert words in done.stderr
    found = engine.docker("image", "inspect", "-f", "{{.Id}}", "own:1").stdout.strip()
    assert ident.read_text() == found
    assert json.loads(facts.read_text())["containerimage.config.digest"] == found
    again = build(engine, context, "FROM busybox\nCOPY f /f\nRUN echo said\n", "-q", "-t", "own:1")
    assert again.stdout.strip() == found, "what is cached makes the same image"


def test_outputs_for_this_disk(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    (context / "f").write_text("content")
    text = "FROM scratch\nCOPY --chmod=640 f /d/f\n"
    build(engine, context, text, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out/d/f").read_text() == "content"
    build(engine, context, text, "-o", f"type=tar,dest={tmp_path / 'files.tar'}")
    with tarfile.open(tmp_path / "files.tar") as archive:
        assert {m.name: m.mode for m in archive if m.isfile()} == {"d/f": 0o640}
    build(engine, context, text, "-t", "own:oci", "-o", f"type=oci,dest={tmp_path / 'oci.tar'}")
    with tarfile.open(tmp_path / "oci.tar") as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        line = json.load(index)["manifests"][0]
        assert line["annotations"]["org.opencontainers.image.ref.name"] == "oci"
    build(
        engine,
        context,
        text,
        "-t",
        "own:docker",
        "-o",
        f"type=docker,dest={tmp_path / 'docker.tar'}",
    )
    assert "own:docker" in engine.docker("load", "-i", str(tmp_path / "docker.tar")).stdout


def test_secrets_reach_their_step_and_nothing_else(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hush-4711")
    done = build(
        engine,
        context,
        "FROM busybox\nRUN --mount=type=secret,id=s wc -c < /run/secrets/s > /size; stat -c %a /run/secrets/s > /mode\n"
        "RUN --mount=type=secret,id=s,env=S echo ${#S} > /length\n",
        *("--secret", f"id=s,src={tmp_path / 'secret'}", "-t", "own:secret", "--no-cache"),
    )
    assert "hush" not in done.stderr
    script = "cat /size /mode /length; ls /run 2>/dev/null; env | grep -c hush"
    left = engine.docker("run", "--rm", "own:secret", "sh", "-c", script, check=False).stdout
    assert left == "9\n400\n9\n0\n"
    grep = ["grep", "-rl", "hush-4711", str(engine.root / "builder"), str(engine.root / "store.db")]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""
    assert "hush" not in engine.docker("history", "--no-trunc", "own:secret").stdout


def test_an_agent_is_lent_to_the_user_of_a_step(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        done = build(
            engine,
            context,
            "FROM busybox\nRUN --mount=type=ssh,uid=7,mode=0620 stat -c 'agent %F %u %a' $SSH_AUTH_SOCK\n",
            *("--ssh", f"default={path}", "--progress=plain", "--no-cache"),
        )
    assert "agent socket 7 620" in done.stderr
    assert path.stat().st_uid == 0, "the caller's own socket is as it was"


def test_named_contexts(engine: EngineProcess, context: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "f").write_text("from the other")
    (other / "left").write_text("out")
    (other / ".dockerignore").write_text("left\n")
    done = build(
        engine, context, "FROM base\nCOPY --from=other . /o\nRUN ls /o && cat /o/f\n", "--progress=plain", "--no-cache",
        "--build-context", f"other={other}", "--build-context", "base=docker-image://busybox",
    )  # fmt: skip
    assert "from the other" in done.stderr
    assert " left\n" not in done.stderr


def test_questions(engine: EngineProcess, context: Path) -> None:
    text = "ARG V=1\n# one the first\nFROM busybox AS one\nCMD x\n"
    checked = build(engine, context, text, "--check", check=False)
    assert checked.returncode == 1
    assert "JSONArgsRecommended" in checked.stdout
    assert (
        build(engine, context, text, "--call=targets").stdout
        == "TARGET        DESCRIPTION\none (default) the first\n"
    )
    assert (
        build(engine, context, text, "--call=outline").stdout
        == "TARGET:      one\nDESCRIPTION: the first\n\n"
    )
    clean = build(engine, context, "FROM busybox\n", "--check")
    assert clean.stdout == "Check complete, no warnings found.\n"


def test_a_failure_shows_lines_and_output(engine: EngineProcess, context: Path) -> None:
    done = build(engine, context, "FROM busybox\nRUN echo why; exit 3\n", check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "Dockerfile:2\n--------------------\n   1 |     FROM busybox\n   2 | >>> RUN echo why; exit 3\n   3 |     \n"
        '--------------------\nERROR: failed to solve: process "/bin/sh -c echo why; exit 3" did not complete '
        "successfully: exit code: 3\n"
    )
    assert " > [2/2] RUN echo why; exit 3:\nwhy\n------\n" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--secret", "src=x"), 'secret missing "id"'),
        (("--output", "type=local"), "dest is required for local exporter"),
        (("--output", "type=nonsense"), 'exporter "nonsense" could not be found'),
        (("--call", "nonsense"), "invalid call nonsense"),
        (("--build-context", "a=/nowhere/at/all"), "failed to get build context path"),
        (("-f", "nowhere"), "failed to read dockerfile: open nowhere: no such file or directory"),
    ],
)
def test_refusals(engine: EngineProcess, context: Path, flags: tuple[str, ...], words: str) -> None:
    done = build(engine, context, "FROM busybox\n", *flags, check=False)
    assert done.returncode == 1
    assert words in done.stderr


def test_a_link_layer_is_kept_when_what_is_below_changes(
    engine: EngineProcess, context: Path
) -> None:
    (context / "f").write_text("linked")
    text = "FROM busybox\nARG V\nRUN echo $V > /v\nCOPY --link --chmod= f /deep/f\nRUN chmod 1777 /tmp\nCOPY --link f /tmp/\n"

    def layers(value: str) -> list[str]:
        build(engine, context, text, "-t", "own:link", "--build-arg", f"V={value}")
        found = json.loads(engine.docker("image", "inspect", "own:link").stdout)
        return list(found[0]["RootFS"]["Layers"])

    one, two = layers("1"), layers("2")
    assert one[1] != two[1]
    assert one[2] == two[2], "made once, laid onto both"
    looks = engine.docker(
        "run", "--rm", "own:link", "sh", "-c", "cat /deep/f /v; stat -c %a /tmp"
    ).stdout
    assert looks == "linked2\n1777\n"


def test_a_context_from_standard_input(engine: EngineProcess, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCOPY . /all\nRUN ls /all\n")
    (context / ".dockerignore").write_text("left\n")
    (context / "left").write_text("out")
    (context / "named").symlink_to("/etc")
    (context / "dockerfile").symlink_to("/etc")
    packed = subprocess.run(
        ["tar", "-C", str(context), "-cz", "."], capture_output=True, check=True
    ).stdout
    done = engine.sampan("build", "--progress=plain", "--no-cache", "-", input=packed)
    lines = done.stderr.splitlines()
    assert [line.split()[-1] for line in lines if " named" in line] == ["named"]
    assert not any(line.endswith(" left") for line in lines)


def test_a_dockerfile_from_standard_input(engine: EngineProcess) -> None:
    done = engine.sampan("build", "-q", "-", input="FROM busybox\nENV A=1\n")
    assert done.stdout.startswith("sha256:")
