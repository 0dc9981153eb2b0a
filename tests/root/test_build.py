"""Builds through the engine, with the stock client: what the image is, the cache, mounts, failures, hostile input."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import pytest

from tests.support.engine import EngineProcess
from tests.support.images import add_bytes


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


def build(
    engine: EngineProcess, context: Path, dockerfile: str, *flags: str, check: bool = True
) -> tuple[int, str, str]:
    (context / "Dockerfile").write_text(dockerfile)
    done = engine.docker("build", "-t", "built", *flags, str(context), check=check, timeout=120)
    return done.returncode, done.stdout, done.stderr


def in_built(engine: EngineProcess, script: str) -> str:
    return engine.docker("run", "--rm", "built", "sh", "-c", script).stdout


def config(engine: EngineProcess) -> dict[str, object]:
    found = json.loads(engine.docker("image", "inspect", "built").stdout)
    return found[0]["Config"]  # type: ignore[no-any-return]


def test_stages_files_and_configuration(engine: EngineProcess, context: Path) -> None:
    (context / "a.txt").write_text("hello\n")
    (context / "sub").mkdir()
    (context / "sub/b.txt").write_text("b\n")
    (context / "junk.log").write_text("x")
    (context / ".dockerignore").write_text("*.log\n")
    _, out, _ = build(
        engine,
        context,
        "ARG BASE=busybox\nFROM $BASE AS one\nRUN echo one > /one\nCOPY . /data/\nFROM busybox\nWORKDIR /srv\n"
        'COPY --from=one --chown=1000:users --chmod=u=rwX,g=rX,o= /one /data ./\nENV A=b\nLABEL l="x y"\nEXPOSE 80\n'
        'USER user\nCMD ["cat", "a.txt"]\n',
    )
    assert "Successfully tagged built:latest" in out
    assert engine.docker("run", "--rm", "built").stdout == "hello\n"
    assert in_built(engine, "cat one sub/b.txt; ls; stat -c '%a %u %g' one; pwd; id -un") == (
        "one\nb\nDockerfile\na.txt\none\nsub\n640 1000 100\n/srv\nuser\n"
    )
    made = config(engine)
    assert made["Labels"] == {"l": "x y"}
    assert made["ExposedPorts"] == {"80/tcp": {}}
    assert "A=b" in made["Env"]  # type: ignore[operator]


def test_second_build_is_all_cache_and_the_same_image(engine: EngineProcess, context: Path) -> None:
    (context / "f").write_text("1")
    text = "FROM busybox\nCOPY f /f\nRUN cat /f > /g\nENV A=1\n"
    _, first, _ = build(engine, context, text)
    _, second, _ = build(engine, context, text)
    assert second.count("Using cache") == 3
    assert first.splitlines()[-2] == second.splitlines()[-2]
    (context / "f").touch()
    assert build(engine, context, text)[1].count("Using cache") == 3, "times are no content"
    (context / "f").write_text("2")
    assert build(engine, context, text)[1].count("Using cache") == 0
    assert in_built(engine, "cat /g") == "2"


def test_a_stage_built_anew_with_the_same_files_costs_nothing(
    engine: EngineProcess, context: Path
) -> None:
    text = "FROM busybox AS a\nARG SEED\nRUN echo same > /f; echo $SEED > /other\nFROM busybox\nCOPY --from=a /f /f\nRUN cat /f\n"
    build(engine, context, text, "--build-arg", "SEED=1")
    _, out, _ = build(engine, context, text, "--build-arg", "SEED=2")
    assert out.count("Using cache") >= 2


def test_independent_stages_run_at_the_same_time(engine: EngineProcess, context: Path) -> None:
    """Each waits for the other's sign in a shared directory: one after the other, the first would give up."""

    def stage(own: str, other: str) -> str:
        meet = (
            f"touch /m/{own}; for i in $(seq 300); do [ -e /m/{other} ] && break; sleep 0.1; done"
        )
        return (
            f"FROM busybox AS {own}\nRUN --mount=type=cache,id={context.name}-meet,target=/m "
            f"{meet}; [ -e /m/{other} ] && echo {own} > /{own}\n"
        )

    last = "FROM busybox\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
    build(engine, context, stage("a", "b") + stage("b", "a") + last, "--no-cache")
    assert in_built(engine, "cat /a /b") == "a\nb\n"


def test_mounts_of_run_leave_no_trace(engine: EngineProcess, context: Path) -> None:
    (context / "f").write_text("from the context")
    text = (
        "FROM busybox AS other\nRUN echo other > /o\nFROM busybox\n"
        "RUN --mount=type=cache,target=/cache echo kept > /cache/x\n"
        "RUN --mount=type=cache,target=/cache --mount=type=bind,target=/ctx --mount=type=tmpfs,target=/t "
        "--mount=type=bind,from=other,source=/o,target=/from/o cat /cache/x /ctx/f /from/o > /out; touch /t/x\n"
    )
    build(engine, context, text)
    assert in_built(engine, "cat /out; ls -d /cache /ctx /t /from 2>/dev/null; echo") == (
        "kept\nfrom the contextother\n\n"
    )


def test_here_documents(engine: EngineProcess, context: Path) -> None:
    text = (
        "FROM busybox\nENV W=world\nRUN <<E\necho hello > /a\necho $W >> /a\nE\n"
        "COPY <<one <<'two' /d/\nx $W\none\nx $W\ntwo\nRUN <<S\n#!/bin/sh\necho script > /s\nS\n"
    )
    build(engine, context, text)
    assert in_built(engine, "cat /a /d/one /d/two /s") == "hello\nworld\nx world\nx $W\nscript\n"


def test_add_unpacks_archives_and_copy_does_not(engine: EngineProcess, context: Path) -> None:
    with tarfile.open(context / "a.tar.gz", "w:gz") as archive:
        add_bytes(archive, "in/f", b"packed\n")
    build(engine, context, "FROM busybox\nADD a.tar.gz /x/\nCOPY a.tar.gz /y/\n")
    assert in_built(engine, "cat /x/in/f; ls /y") == "packed\na.tar.gz\n"


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        ("FROM busybox\nRUN exit 3\n", "returned a non-zero code: 3"),
        ("FROM busybox\nRUM x\n", "unknown instruction: RUM (did you mean RUN?)"),
        ("FROM busybox\nCOPY nope /\n", "COPY failed: file not found in build context"),
        ("FROM busybox\nCOPY --from=nosuch / /\n", "nosuch"),
        ("FROM busybox AS a\nCOPY --from=a /x /y\n", "circular dependency"),
        ("FROM busybox\nRUN --security=insecure x\n", "security.insecure is not allowed"),
        (
            "FROM busybox\nRUN --mount=type=secret,id=s,required cat /run/secrets/s\n",
            "secret s: not found",
        ),
        ("", "cannot be empty"),
    ],
)
def test_refusals_and_failures(
    engine: EngineProcess, context: Path, dockerfile: str, words: str
) -> None:
    status, out, err = build(engine, context, dockerfile, check=False)
    assert status != 0
    assert words in out + err


def test_copy_cannot_leave_context_or_image(
    engine: EngineProcess, context: Path, tmp_path: Path
) -> None:
    """Links on both sides: the host's files are neither read nor written (CVE-2024-1753 and its kin)."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "secret").write_text("host")
    (context / "link").symlink_to(canary)
    status, out, err = build(engine, context, "FROM busybox\nCOPY link/secret /x\n", check=False)
    assert status == 1, out + err
    (context / "f").write_text("x")
    build(engine, context, f"FROM busybox\nRUN ln -s {canary} /out\nCOPY f /out/f\n")
    assert sorted(p.name for p in canary.iterdir()) == ["secret"]


def test_hostile_context_is_refused(engine: EngineProcess, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        add_bytes(archive, "Dockerfile", b"FROM busybox\n")
        add_bytes(archive, "../../../../../../tmp/sampan-escape", b"x")
    done = engine.docker("build", "-", input=data.getvalue(), check=False)
    assert not Path("/tmp/sampan-escape").exists()
    assert done.returncode in (0, 1)


def test_loaded_image_with_the_right_history_is_no_cache(
    engine: EngineProcess, context: Path
) -> None:
    """CVE-2024-24557: only our own builds' records count."""
    build(engine, context, "FROM busybox\nRUN echo good > /f\n")
    _, out, _ = build(engine, context, "FROM busybox\nRUN echo good > /f\n")
    assert "Using cache" in out
    engine.docker("import", "-c", "CMD sh", "-", "poison", input=b"\0" * 1024)
    _, out, _ = build(engine, context, "FROM poison\nCOPY Dockerfile /f\n")
    assert "Using cache" not in out


def test_secrets_are_in_no_layer_history_or_log(engine: EngineProcess, context: Path) -> None:
    import http.client
    import socket
    from base64 import urlsafe_b64encode

    data = io.BytesIO()
    dockerfile = b"FROM busybox\nRUN --mount=type=secret,id=s cat /run/secrets/s | wc -c > /n; ls /run > /r || true\n"
    with tarfile.open(fileobj=data, mode="w") as archive:
        add_bytes(archive, "Dockerfile", dockerfile)
    secret = b"s3cret-value"
    packed = urlsafe_b64encode(
        json.dumps({"s": urlsafe_b64encode(secret).decode()}).encode()
    ).decode()
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine.socket))
    headers = {"Content-Type": "application/x-tar", "X-Build-Secrets": packed}
    connection.request("POST", "/build?t=built", body=data.getvalue(), headers=headers)
    answer = connection.getresponse().read()
    connection.close()
    assert b"Successfully built" in answer
    assert secret not in answer
    assert in_built(engine, "cat /n").strip() == str(len(secret))
    assert secret.decode() not in engine.docker("history", "--no-trunc", "built").stdout
    assert secret.decode() not in engine.log_tail()
    assert in_built(engine, "ls /run/secrets 2>/dev/null; echo") == "\n"


def test_a_build_whose_client_leaves_is_ended(engine: EngineProcess, context: Path) -> None:
    import subprocess

    (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 300\n")
    client = subprocess.Popen(
        ["docker", "build", "--no-cache", str(context)], env=engine.environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert client.stdout is not None
    for line in client.stdout:
        if b"Running in" in line:
            break
    client.kill()
    client.wait()
    client.stdout.close()
    end = time.monotonic() + 10
    while list((engine.run / "containers").glob("*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list((engine.run / "containers").glob("*"))


def test_the_cache_is_shown_and_pruned(engine: EngineProcess, context: Path) -> None:
    build(
        engine,
        context,
        "FROM busybox\nRUN --mount=type=cache,target=/prune-me echo x > /prune-me/f\n",
    )
    listed = engine.docker("system", "df", "-v").stdout
    assert "exec.cachemount" in listed
    engine.docker("rmi", "built")
    assert "Total reclaimed space" in engine.docker("builder", "prune", "-af").stdout
    assert "exec.cachemount" not in engine.docker("system", "df", "-v").stdout
    _, out, _ = build(engine, context, "FROM busybox\nRUN echo after\n")
    assert "Successfully built" in out
