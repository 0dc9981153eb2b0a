"""What a build tells, shown: plain lines that can be kept, or a picture of the running steps on a terminal.

Plain      #5 [2/3] RUN make          a block a step, in the order in which they began, its output with the time
           #5 0.213 cc -c x.c
           #5 DONE 0.4s
Screen     [+] Building 3.2s (4/7)    drawn over while it runs; of a running step the last lines of output
            => [2/3] RUN make   0.4s
Quiet      nothing, until it fails: then the output of the step that failed
"""

from __future__ import annotations

import base64
import posix
import time

from sampan.cli import human
from sampan.cli.session import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAIL = 6  # lines of a running step that are shown on a screen
KEPT = 200  # lines of a step that are kept for its failure
SECOND = 1_000_000_000


class Step:
    """A vertex as far as it is known."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.number = 0
        self.name = ""
        self.started = self.completed = 0
        self.cached = False
        self.error = ""
        self.partial = b""
        self.lines: list[str] = []
        self.counts: dict[str, tuple[int, int, int, int]] = {}

    def update(self, line: dict[str, Any]) -> None:
        self.name = line.get("name") or self.name
        self.started = line.get("started") or self.started
        self.completed = line.get("completed") or 0
        self.cached = bool(line.get("cached"))
        self.error = line.get("error") or ""

    def add_output(self, data: bytes) -> list[str]:
        """Whole lines that came to be."""
        *whole, self.partial = (self.partial + data).split(b"\n")
        lines = [
            line.decode("utf-8", "replace").rpartition("\r")[2]
            for line in (each.rstrip(b"\r") for each in whole)
        ]
        self.lines = [*self.lines, *lines][-KEPT:]
        return lines

    @property
    def seconds(self) -> float:
        end = self.completed or time.time_ns()
        return max(0, end - self.started) / SECOND if self.started else 0.0


class Log:
    """The steps of one build. `take` each line of the engine's answer; `end` when there are no more."""

    def __init__(self, to: int = 2) -> None:
        self.to = to
        self.steps: dict[str, Step] = {}
        self.warnings: list[tuple[str, int]] = []

    def take(self, line: dict[str, Any]) -> None:
        if "vertex" in line:
            step = self.steps.setdefault(line["vertex"], Step(line["vertex"]))
            step.update(line)
            self.changed(step)
            return
        if "warning" in line:
            self.warnings.append((line["warning"], line.get("line") or 0))
            return
        step = self.steps.setdefault(line["of"], Step(line["of"]))
        if "log" in line:
            lines = step.add_output(base64.b64decode(line["log"]))
            self.printed(step, lines, line.get("at") or 0)
        elif "count" in line:
            step.counts[line["count"]] = (
                line["current"],
                line["total"],
                line["started"],
                line["completed"],
            )
            self.counted(step, line["count"])

    def changed(self, step: Step) -> None:
        """A step began, ended, or became known."""

    def printed(self, step: Step, lines: list[str], at: int) -> None:
        """Whole lines of output."""

    def counted(self, step: Step, name: str) -> None:
        """A count of a step moved on."""

    def end(self) -> None:
        """The last of the picture."""

    def failure(self) -> None:
        """The output of the step that failed."""
        for step in self.steps.values():
            if step.error and step.name and step.error != "context canceled":
                lines = [
                    *step.lines,
                    *([step.partial.decode("utf-8", "replace")] if step.partial else []),
                ]
                text = "".join(f"{line}\n" for line in (f" > {step.name}:", *lines))
                self.write(f"------\n{text}------\n")

    def write(self, text: str) -> None:
        write_all(self.to, text.encode("utf-8", "surrogateescape"))


class Plain(Log):
    """Lines that stay."""

    def __init__(self, to: int = 2) -> None:
        super().__init__(to)
        self._last: Step | None = None
        self._numbered = 0

    def _turn_to(self, step: Step) -> None:
        if not step.number:
            self._numbered += 1
            step.number = self._numbered
        if self._last is step:
            return
        if self._last is not None:
            self.write("\n" if self._last.completed else f"#{self._last.number} ...\n\n")
        self._last = step
        self.write(f"#{step.number} {step.name}\n")

    def changed(self, step: Step) -> None:
        if not step.started:
            return
        self._turn_to(step)
        if not step.completed:
            return
        if step.partial:
            self.printed(step, step.add_output(b"\n"), step.completed)
        if step.error:
            word = "CANCELED" if step.error == "context canceled" else f"ERROR: {step.error}"
        else:
            word = "CACHED" if step.cached else f"DONE {step.seconds:.1f}s"
        self.write(f"#{step.number} {word}\n")

    def printed(self, step: Step, lines: list[str], at: int) -> None:
        if lines:
            self._turn_to(step)
        since = max(0, at - step.started) / SECOND
        for line in lines:
            self.write(f"#{step.number} {since:.3f} {line}\n")

    def counted(self, step: Step, name: str) -> None:
        current, total, _, completed = step.counts[name]
        if not completed:
            return  # a number that will have changed
        self._turn_to(step)
        self.write(f"#{step.number} {name}{_amount(current, total)} done\n")


def _amount(current: int, total: int) -> str:
    if total:
        return f" {human.size(current)} / {human.size(total)}"
    return f" {human.size(current)}" if current else ""


class Raw(Log):
    """The engine's lines as they are, for programs."""

    def take(self, line: dict[str, Any]) -> None:
        from sampan.cli import wire

        super().take(line)
        self.write(wire.dumps(line) + "\n")


class Screen(Log):
    """A picture that is drawn over."""

    INTERVAL_S = 0.1

    def __init__(self, to: int = 2, *, colour: bool = True) -> None:
        super().__init__(to)
        self._drawn = 0
        self._began = time.monotonic()
        self._due = 0.0
        self._colour = colour

    def changed(self, step: Step) -> None:
        self._draw()

    def printed(self, step: Step, lines: list[str], at: int) -> None:
        self._draw()

    def counted(self, step: Step, name: str) -> None:
        self._draw()

    def end(self) -> None:
        self._draw(last=True)

    def _size(self) -> tuple[int, int]:
        try:
            size = posix.get_terminal_size(self.to)
        except OSError:
            return 80, 24
        return size.columns, size.lines

    def _draw(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self._due:
            return
        self._due = now + self.INTERVAL_S
        columns, rows = self._size()
        lines = self._picture(columns, running_only=False)
        if len(lines) > rows - 1 and not last:
            lines = [lines[0], *lines[-(rows - 2) :]]
        out = f"\x1b[{self._drawn}A" if self._drawn else ""
        out += "".join(f"\x1b[2K{line}\n" for line in lines)
        extra = self._drawn - len(lines)
        if extra > 0:
            out += "\x1b[2K\n" * extra + f"\x1b[{extra}A"
        self._drawn = len(lines)
        self.write(out)

    def _picture(self, columns: int, *, running_only: bool) -> list[str]:
        shown = [step for step in self.steps.values() if step.started and step.name]
        shown.sort(key=lambda step: step.started)
        done = sum(bool(step.completed) for step in shown)
        state = " FINISHED" if done == len(shown) and shown else ""
        elapsed = time.monotonic() - self._began
        lines = [
            self._painted(
                f"[+] Building {elapsed:.1f}s ({done}/{len(self.steps)}){state}", "1", columns
            )
        ]
        for step in shown:
            lines.append(self._row(step, columns))
            if not step.completed:
                lines += [
                    self._painted(f" => => # {line}", "2", columns)
                    for line in [name + _amount(c[0], c[1]) for name, c in step.counts.items()][-2:]
                ]
                lines += [
                    self._painted(f" => => # {line}", "2", columns) for line in step.lines[-TAIL:]
                ]
        return lines

    def _row(self, step: Step, columns: int) -> str:
        front = " => CACHED " if step.cached else " => ERROR " if step.error else " => "
        time_text = f"{step.seconds:.1f}s"
        room = max(10, columns - len(time_text) - 2)
        text = (front + step.name)[:room].ljust(room) + " " + time_text
        colour = "31" if step.error else "36" if step.completed else ""
        return self._painted(text, colour, columns)

    def _painted(self, text: str, code: str, columns: int) -> str:
        clean = "".join(c if c.isprintable() else " " for c in text)[: columns - 1]
        return f"\x1b[{code}m{clean}\x1b[0m" if code and self._colour else clean
