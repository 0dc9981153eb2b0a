"""What pulls, pushes, loads and builds report, shown: bars that move on a terminal, plain lines elsewhere.

The engine sends JSON values: `stream` text, or `status` with `id` and `progressDetail`, or `errorDetail`.
"""

from __future__ import annotations

import posix

from sampan.cli import human
from sampan.cli.failures import Failure
from sampan.cli.session import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def show(
    messages: Iterable[dict[str, Any]],
    *,
    to: int = 1,
    quiet: bool = False,
    aux: Callable[[Any], None] | None = None,
    plain: bool = False,
    codes: bool = False,
) -> None:
    """Show all messages on descriptor `to`; Failure with the engine's words where one carries an error.

    `codes`: the error's own code becomes the exit status, as a failed build step's does.
    """
    bars = Bars(to) if posix.isatty(to) and not plain else None
    for message in messages:
        error = message.get("errorDetail") or {}
        text = error.get("message") or message.get("error")
        if text:
            raise Failure(str(text), status=(error.get("code") or 1) if codes else 1)
        if message.get("aux") is not None:
            if aux is not None:
                aux(message["aux"])
            continue
        if quiet:
            continue
        if bars is not None:
            bars.show(message)
        else:
            _line(message, to)


def _write(to: int, text: str) -> None:
    write_all(to, text.encode("utf-8", "surrogateescape"))


def _line(message: dict[str, Any], to: int) -> None:
    detail = message.get("progressDetail") or {}
    if detail.get("current") or detail.get("total"):
        return  # a number that will have changed: no line of its own
    _write(to, _prefix(message) + _text(message))


def _prefix(message: dict[str, Any]) -> str:
    return f"{message['id']}: " if message.get("id") else ""


def _text(message: dict[str, Any]) -> str:
    if message.get("stream"):
        return str(message["stream"])
    return f"{message.get('status', '')}\n"


class Bars:
    """One line of the terminal for each id, written over as it moves on."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._rows: dict[str, int] = {}

    def show(self, message: dict[str, Any]) -> None:
        identity = message.get("id")
        detail = message.get("progressDetail")
        if identity and (detail is not None or message.get("progress")):
            self._over(str(identity), message, detail or {})
            return
        self._rows.clear()
        text = _prefix(message) + _text(message)
        _write(self._to, text)

    def _over(self, identity: str, message: dict[str, Any], detail: dict[str, Any]) -> None:
        if identity not in self._rows:
            self._rows[identity] = len(self._rows)
            _write(self._to, "\n")
        up = len(self._rows) - self._rows[identity]
        line = f"{identity}: {message.get('status', '')} {bar(detail, self._width())}".rstrip()
        _write(self._to, f"\x1b[{up}A\x1b[2K\r{line}\r\x1b[{up}B")

    def _width(self) -> int:
        try:
            return posix.get_terminal_size(self._to).columns
        except OSError:
            return 80


def bar(detail: dict[str, Any], width: int) -> str:
    """'[=====>     ]  1.2MB/3.4MB', the bar only where it fits."""
    current, total = detail.get("current") or 0, detail.get("total") or 0
    if current <= 0 and total <= 0:
        return ""
    if detail.get("units") == "s":
        return f"{current}s"
    if total <= 0:
        return human.size(current)
    if current > total:
        return human.size(current)
    done = int(current / total * 100) // 2
    drawn = "=" * done + (">" if done < 50 else "")
    drawn = f"[{drawn[:50].ljust(50)}]  " if width > 110 else ""
    return f"{drawn}{human.size(current):>8}/{human.size(total)}"
