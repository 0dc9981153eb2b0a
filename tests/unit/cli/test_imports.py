"""A daily command loads next to nothing: each import is a millisecond of everybody's `run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sampan.cli import help as helping
from sampan.cli.main import command_at
from sampan.cli.tables.index import all_paths

SRC = Path(__file__).resolve().parents[3] / "src"
FORBIDDEN = {
    "argparse", "asyncio", "collections", "ctypes", "dataclasses", "enum", "functools", "json", "logging", "msgspec", "os",
    "pathlib", "re", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "typing", "urllib",
}  # fmt: skip
PROBE = """
import sys
sys.path.insert(0, {src!r})
sys.argv = ["sampan", "-H", "unix:///nonexistent/sampan.sock", *{argv!r}]
from sampan.cli.main import main
status = main(sys.argv[1:])
sys.stdout.write(" ".join(sorted(sys.modules)))
"""


def modules(*argv: str) -> set[str]:
    program = PROBE.format(src=str(SRC), argv=list(argv))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert "Cannot connect to the Docker daemon at unix:///nonexistent" in done.stderr, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "argv",
    [
        [
            "run",
            "--rm",
            "-it",
            "-m",
            "64m",
            "-e",
            "A=1",
            "-v",
            "/a:/b",
            "-p",
            "80:80",
            "busybox",
            "true",
        ],
        ["exec", "c", "true"],
        ["ps", "-a"],
        ["start", "c"],
        ["stop", "-t", "1", "c"],
        ["logs", "-f", "c"],
        ["rm", "-f", "c"],
    ],
    ids=lambda argv: argv[0],
)
def test_daily_commands_stay_on_their_diet(argv: list[str]) -> None:
    if argv[0] == "run":
        argv = [word for word in argv if word != "-it"]
    loaded = modules(*argv)
    assert loaded & FORBIDDEN == set()
    own = {name for name in loaded if name.startswith("sampan.cli")}
    assert len(own) <= 16, sorted(own)
    assert {name for name in loaded if name.startswith("sampan.")} - own == set(), (
        "the client needs no other room"
    )


def test_help_exists_for_every_command() -> None:
    for path in all_paths():
        command = command_at(path)
        text = helping.text(command, path)
        assert text.startswith(f"Usage:  sampan {path}")
        assert command.hidden or command.help
        assert all(len(line) <= 100 for line in text.splitlines())
