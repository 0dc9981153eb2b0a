"""What a misspelt word of a Dockerfile was meant to be: the nearest known one by edit distance. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str], *, exact_case: bool) -> str:
    """' (did you mean x?)' where something known is at most two edits away, in the case that was written."""
    wanted = word if exact_case else word.lower()
    best, least = "", 3
    for each in sorted(known):
        candidate = each if exact_case else each.lower()
        if candidate == wanted:
            return ""
        distance = edit_distance(wanted, candidate)
        if distance < least:
            best, least = candidate, distance
    if not best:
        return ""
    if not exact_case and word == word.upper():
        best = best.upper()
    return f" (did you mean {best}?)"


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word at most two edits away; '' where there is none, or where the word itself is known."""
    found = suggestion(word, known, exact_case=True)
    return found.removeprefix(" (did you mean ").removesuffix("?)")


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: insertions, deletions, replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
