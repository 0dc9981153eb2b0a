"""`.dockerignore`: which files of a context are left out.

A line is a pattern from the context's root: `*` and `?` stay within a name, `[...]` is a class, `**` crosses
directories, `!` takes back. The last line that matches decides; a directory that matches takes all below it along.
"""

from __future__ import annotations

import os
import re

from sampan.cli.failures import Failure


def read(path: str) -> list[str]:
    """The patterns of a file, cleaned as docker does; none where there is no file."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}") from None
    patterns = []
    for line in lines:
        if line.startswith("#"):
            continue
        text = line.strip()
        if not text:
            continue
        inverted = text.startswith("!")
        if inverted:
            text = text[1:].strip()
        if text:
            text = os.path.normpath(text)
            if len(text) > 1 and text.startswith("/"):
                text = text.lstrip("/")
        patterns.append(f"!{text}" if inverted else text)
    return patterns


def expression(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression over a whole path."""
    out, position = "", 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if pattern[position : position + 1] == "*":
                position += 1
                if pattern[position : position + 1] == "/":
                    position += 1
                out += ".*" if position >= len(pattern) else "(.*/)?"
            else:
                out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "\\" and position < len(pattern):
            out += re.escape(pattern[position])
            position += 1
        elif char == "[":
            close = pattern.find("]", position + 1)
            if close < 0:
                raise Failure(f"syntax error in pattern: {pattern}")
            body = pattern[position:close].replace("\\", "\\\\")
            out += f"[{body}]"
            position = close + 1
        else:
            out += re.escape(char)
    return re.compile(out, re.DOTALL)


class Ignore:
    """Patterns, asked about paths below the context."""

    def __init__(self, patterns: list[str]) -> None:
        self._rules = [
            (expression(text.removeprefix("!")), text.startswith("!"), text.removeprefix("!"))
            for text in patterns
        ]

    def matches(self, path: str) -> bool:
        """The path is left out: the last rule that fits it, or a directory above it, says so."""
        parents = [path]
        while "/" in parents[-1]:
            parents.append(parents[-1].rpartition("/")[0])
        left_out = False
        for pattern, inverted, _ in self._rules:
            if left_out != inverted:
                continue  # it could not change the answer
            if any(pattern.fullmatch(parent) for parent in parents):
                left_out = not inverted
        return left_out

    def skip(self, path: str, directory: bool) -> bool:
        """Leave the path out of the walk; a directory is walked if something below it may be taken back."""
        if not self.matches(path):
            return False
        if not directory:
            return True
        return not any(
            inverted and self._may_be_below(text, path) for _, inverted, text in self._rules
        )

    @staticmethod
    def _may_be_below(pattern: str, directory: str) -> bool:
        fixed = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        return (
            f"{directory}/".startswith(fixed)
            or fixed.startswith(f"{directory}/")
            or f"{directory}/".startswith(f"{pattern}/")
        )
