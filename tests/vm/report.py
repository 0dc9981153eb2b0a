"""A pytest plugin for the guest: one line per test on the console, which `machine.parse` reads."""

from __future__ import annotations

import pytest

MARK = "@@vm@@"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        if report.outcome != "passed":
            say(f"{MARK} why {report.nodeid}\n{why(report)}")
        say(f"{MARK} {outcome} {report.nodeid}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        say(f"{MARK} why {report.nodeid}\n{report.longrepr}")
        say(f"{MARK} error {report.nodeid}")


def why(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    captured = [f"--- {title}\n{text}" for title, text in report.sections if text.strip()]
    return "\n".join([str(report.longrepr), *captured])


def say(text: str) -> None:
    with open("/dev/console", "w") as console:
        console.write("\n" + text + "\n")
