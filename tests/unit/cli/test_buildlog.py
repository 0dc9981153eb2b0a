"""A build's events as people see them: plain lines, a picture on a terminal, the output of a failed step."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest

from sampan.cli import buildlog

S = 1_000_000_000


def vertex(
    digest: str, name: str, started: int = 0, completed: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "vertex": digest,
        "name": name,
        "started": started,
        "completed": completed,
        "cached": False,
        "error": "",
        **more,
    }


def log(digest: str, data: bytes, at: int) -> dict[str, Any]:
    return {"log": base64.b64encode(data).decode(), "of": digest, "stream": 1, "at": at}


def shown(made: buildlog.Log, *lines: dict[str, Any]) -> str:
    """What it writes, through a pipe that is its own."""
    reading, writing = os.pipe()
    made.to = writing
    for line in lines:
        made.take(line)
    made.end()
    made.failure()
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read()


def test_plain_lines_take_turns_and_keep_numbers() -> None:
    text = shown(
        buildlog.Plain(),
        vertex("a", "[a 1/1] RUN one"),
        vertex("b", "[b 1/1] RUN two"),
        vertex("b", "[b 1/1] RUN two", S),
        log("b", b"half a li", S + S // 2),
        vertex("a", "[a 1/1] RUN one", S),
        log("a", b"whole\n", 2 * S),
        log("b", b"ne\nrest", 3 * S),
        vertex("b", "[b 1/1] RUN two", S, 4 * S),
        vertex("a", "[a 1/1] RUN one", S, 5 * S, cached=True),
        {
            "count": "transferring context:",
            "of": "a",
            "current": 2000,
            "total": 0,
            "started": S,
            "completed": 6 * S,
        },
    )
    assert text == (
        "#1 [b 1/1] RUN two\n#1 ...\n\n"
        "#2 [a 1/1] RUN one\n#2 1.000 whole\n#2 ...\n\n"
        "#1 [b 1/1] RUN two\n#1 2.000 half a line\n#1 3.000 rest\n#1 DONE 3.0s\n\n"
        "#2 [a 1/1] RUN one\n#2 CACHED\n#2 transferring context: 2kB done\n"
    )


def test_a_failure_shows_what_the_step_said() -> None:
    text = shown(
        buildlog.Log(),
        vertex("a", "RUN x", S),
        log("a", b"one\ntwo", S),
        vertex("a", "RUN x", S, 2 * S, error="it failed"),
        vertex("b", "RUN y", S, 2 * S, error="context canceled"),
    )
    assert text == "------\n > RUN x:\none\ntwo\n------\n"


def test_raw_lines_are_the_engines() -> None:
    assert shown(buildlog.Raw(), vertex("a", "n", 1)).startswith('{"vertex":"a","name":"n"')


def test_a_screen_shows_running_steps_with_their_last_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buildlog.Screen, "INTERVAL_S", 0)
    text = shown(
        buildlog.Screen(colour=False),
        vertex("a", "RUN one", S),
        log("a", b"\x1b[31mred\x1b[0m\n", S),
        vertex("a", "RUN one", S, 3 * S),
    )
    last = text.rsplit("[+] Building", 1)[1].splitlines()
    assert last[0].endswith("(1/1) FINISHED")
    assert last[1].endswith("2.0s")
    assert "\x1b[31m" not in text, "what a step prints does not steer the terminal"
