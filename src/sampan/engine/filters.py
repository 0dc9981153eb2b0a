"""The `filters` parameter of lists, prunes and events: key -> alternatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sampan.errors import InvalidArgument
from sampan.units import parse_timestamp

Filters = Mapping[str, list[str]]


def check_filters(filters: Filters, allowed: Iterable[str]) -> None:
    """Refuse a key that this list does not know: a filter ignored is more than was asked for."""
    known = frozenset(allowed)
    for key in filters:
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'")


def matches_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """`k` (present) or `k=v` (exactly); all of them must hold."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def accepts_labels(labels: Mapping[str, str], filters: Filters) -> bool:
    """The `label` and `label!` keys of prune and ls together."""
    if "label" in filters and not matches_labels(labels, filters["label"]):
        return False
    return not any(matches_labels(labels, [text]) for text in filters.get("label!", []))


def one_bool(filters: Filters, key: str) -> bool | None:
    """A true/false filter, or None where it was not given."""
    values = filters.get(key)
    if not values:
        return None
    truths = set()
    for value in values:
        word = value.lower()
        if word in ("1", "t", "true"):
            truths.add(True)
        elif word in ("0", "f", "false"):
            truths.add(False)
        else:
            raise InvalidArgument(f"invalid filter '{key}=[{value}]'")
    if len(truths) > 1:
        raise InvalidArgument(f"invalid filter '{key}={values}'")
    return truths.pop()


def until_ns(filters: Filters) -> int | None:
    """The `until` key of prunes: one timestamp or duration before now."""
    values = filters.get("until")
    if not values:
        return None
    if len(values) > 1:
        raise InvalidArgument("more than one until filter specified")
    return parse_timestamp(values[0])
