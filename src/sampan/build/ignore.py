""".dockerignore and --exclude: patterns that say which paths of a tree are left out. Pure.

Each line is a pattern; the last one that matches a path, or any directory above it, decides; `!` takes back in.
`**` stands for any number of directories. Lines are trimmed and cleaned, a leading slash means nothing, `#` in the
first column starts a comment.

Source: the Dockerfile reference, ".dockerignore file"; Go's path/filepath.Match for one component.
"""

from __future__ import annotations

import posixpath
import re

from sampan.errors import InvalidArgument
from sampan.storage.globs import character_class


class Pattern:
    """One line."""

    __slots__ = ("expression", "negated", "text")

    def __init__(self, text: str, *, negated: bool) -> None:
        self.text = text
        self.negated = negated
        self.expression = compile_pattern(text)


def read_patterns(data: bytes) -> list[str]:
    """The lines of an ignore file that say something, cleaned; `!` stays in front."""
    found = []
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        if not pattern:
            continue
        bang = pattern.startswith("!")
        if bang:
            pattern = pattern[1:].strip()
        if pattern:
            pattern = posixpath.normpath(pattern).lstrip("/") or "."
            found.append("!" + pattern if bang else pattern)
        elif bang:
            raise InvalidArgument('illegal exclusion pattern: "!"')
    return found


def compile_pattern(text: str) -> re.Pattern[str]:
    """A pattern of slash-separated components. Raises InvalidArgument for a malformed one."""
    out, at, end = "", 0, len(text)
    while at < end:
        character = text[at]
        at += 1
        if character == "*":
            if at < end and text[at] == "*":
                at += 1
                while text.startswith("/", at) or text.startswith("**/", at):
                    at += (
                        3 if text[at] == "*" else 1
                    )  # a row of them says no more than one, and costs more
                out += ".*" if at == end else "(.*/)?"
            else:
                out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "\\":
            if at < end:
                out += re.escape(text[at])
                at += 1
            else:
                out += "\\\\"
        elif character == "[":
            part, at = character_class(text, at)
            out += part
        else:
            out += re.escape(character)
    return re.compile(out, re.DOTALL)


class Matcher:
    """All patterns together."""

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = [
            Pattern(posixpath.normpath(p.removeprefix("!")).lstrip("/"), negated=p.startswith("!"))
            for p in patterns
        ]
        self.has_negations = any(pattern.negated for pattern in self.patterns)
        self._known: dict[str, tuple[bool, ...]] = {"": tuple(False for _ in self.patterns)}

    def _matches(self, path: str) -> tuple[bool, ...]:
        """Which patterns match the path or a directory above it."""
        missing = []
        while path not in self._known:
            missing.append(path)
            path = path.rpartition("/")[0]
        known = self._known[path]
        if len(self._known) > 20_000:
            self._known = {"": self._known[""]}
        for each in reversed(missing):
            known = tuple(
                hit or pattern.expression.fullmatch(each) is not None
                for hit, pattern in zip(known, self.patterns, strict=True)
            )
            self._known[each] = known
        return known

    def ignores(self, path: str) -> bool:
        """Whether a path (from the root of the tree, no slash in front) is left out."""
        ignored = False
        for hit, pattern in zip(self._matches(path), self.patterns, strict=True):
            if hit:
                ignored = not pattern.negated
        return ignored

    def ignores_all_below(self, path: str) -> bool:
        """Whether a directory need not be looked into: it is left out and nothing below can come back in."""
        return self.ignores(path) and not self.has_negations
