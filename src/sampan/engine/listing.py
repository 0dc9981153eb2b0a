"""Which containers a list shows: the filters of `ps`, all of which must accept, values of one being alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sampan.engine.filters import Filters, check_filters, matches_labels, one_bool
from sampan.engine.records import Status
from sampan.errors import InvalidArgument, NotFound
from sampan.images import removal
from sampan.units import parse_int, parse_uint

if TYPE_CHECKING:
    from sampan.engine.context import Engine
    from sampan.engine.live import Container

FILTER_KEYS = frozenset(
    {
        "ancestor",
        "before",
        "exited",
        "expose",
        "health",
        "id",
        "is-task",
        "isolation",
        "label",
        "name",
    }
    | {"network", "publish", "since", "status", "volume"}
)
HEALTH_WORDS = ("none", "starting", "healthy", "unhealthy")


async def select(
    engine: Engine, filters: Filters, *, everything: bool, limit: int
) -> list[Container]:
    """The containers to show, newest first."""
    check_filters(filters, FILTER_KEYS)
    _check_values(filters)
    if limit > 0 or {"before", "since", "status", "exited"} & set(filters):
        everything = True
    bounds = _bounds(engine, filters)
    ancestors = await _ancestors(engine, filters)
    chosen = [
        container
        for container in engine.containers
        if (everything or container.is_running)
        and _accepts(engine, container, filters)
        and _within(container, bounds)
        and (ancestors is None or container.record.image_id in ancestors)
    ]
    chosen.sort(key=lambda c: c.record.created_ns, reverse=True)
    return chosen[:limit] if limit > 0 else chosen


def _check_values(filters: Filters) -> None:
    for word in filters.get("status", ()):
        if word not in tuple(Status):
            raise InvalidArgument(f"invalid filter 'status={word}'")
    for word in filters.get("health", ()):
        if word not in HEALTH_WORDS:
            raise InvalidArgument(f"unrecognized filter value for health: {word}")
    for word in filters.get("exited", ()):
        if parse_int(word) is None:
            raise InvalidArgument(
                f"invalid filter 'exited={word}': strconv.Atoi: parsing \"{word}\": invalid syntax"
            )
    one_bool(filters, "is-task")


def _bounds(engine: Engine, filters: Filters) -> tuple[int, int]:
    """(newer than, older than), as creation times."""
    newest, oldest = (1 << 63) - 1, -1
    for ref in filters.get("before", ()):
        newest = _created(engine, ref)
    for ref in filters.get("since", ()):
        oldest = _created(engine, ref)
    return oldest, newest


def _created(engine: Engine, ref: str) -> int:
    try:
        return engine.containers.find(ref).record.created_ns
    except NotFound:
        raise NotFound(f"No such container: {ref}") from None


def _within(container: Container, bounds: tuple[int, int]) -> bool:
    return bounds[0] < container.record.created_ns < bounds[1]


async def _ancestors(engine: Engine, filters: Filters) -> set[str] | None:
    """The ids of the named images and of all that were made from them."""
    if "ancestor" not in filters:
        return None
    found: set[str] = set()
    for ref in filters["ancestor"]:
        try:
            image = await engine.run_blocking(engine.catalog.resolve, ref)
        except (NotFound, InvalidArgument):
            continue
        todo = [image.id]
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo += removal.children(engine.catalog, current)
    return found


def _accepts(engine: Engine, container: Container, filters: Filters) -> bool:
    record, state = container.record, container.state
    for key, wanted in filters.items():
        if key == "label":
            accepted = matches_labels(record.config.labels, wanted)
        elif key == "name":
            accepted = any(_name_matches(record.name, text) for text in wanted)
        elif key == "id":
            accepted = any(record.id.startswith(text) for text in wanted)
        elif key == "status":
            accepted = state.status in wanted
        elif key == "exited":
            accepted = (
                bool(state.finished_ns)
                and not state.is_running
                and any(parse_int(text) == state.exit_code for text in wanted)
            )
        elif key == "health":
            accepted = (state.health.status if state.health else "none") in wanted
        elif key == "network":
            accepted = _in_network(engine, container, wanted)
        elif key == "volume":
            accepted = any(
                m.name in wanted or m.source in wanted or m.destination in wanted
                for m in record.mounts
            )
        elif key in ("publish", "expose"):
            accepted = _has_port(container, wanted, is_publish=key == "publish")
        elif key == "is-task":
            accepted = one_bool(filters, key) is not True
        else:
            accepted = True
        if not accepted:
            return False
    return True


def _name_matches(name: str, pattern: str) -> bool:
    """A regular expression, searched in the name with and without its slash."""
    import re

    if len(pattern) > 256:
        return False
    try:
        return re.search(pattern, name) is not None or re.search(pattern, f"/{name}") is not None
    except re.error:
        return pattern in name


def _in_network(engine: Engine, container: Container, wanted: list[str]) -> bool:
    names = set(container.record.networks) | set(container.state.endpoints)
    identities = {e.network_id for e in container.state.endpoints.values() if e.network_id}
    for name in names:
        try:
            identities.add(engine.networks.find(name).id)
        except (NotFound, InvalidArgument):
            continue
    return any(w in names or any(i.startswith(w) for i in identities if w) for w in wanted)


def _has_port(container: Container, wanted: list[str], *, is_publish: bool) -> bool:
    if is_publish:
        have = {
            (int(number), text.partition("/")[2] or "tcp")
            for text, pairs in container.state.ports.items()
            for _, number in pairs
        }
    else:
        have = {_number_and_protocol(text) for text in container.record.config.exposed_ports}
    for text in wanted:
        numbers, _, protocol = text.partition("/")
        low, dash, high = numbers.partition("-")
        first = parse_uint(low, highest=65535)
        last = parse_uint(high, highest=65535) if dash else first
        if first is None or last is None:
            wrong = high if first is not None else low
            raise InvalidArgument(
                f"error while looking up for {'publish' if is_publish else 'expose'} {text}: "
                f'strconv.ParseUint: parsing "{wrong}": invalid syntax'
            )
        if any(first <= port <= last and proto == (protocol or "tcp") for port, proto in have):
            return True
    return False


def _number_and_protocol(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return int(number.partition("-")[0]), protocol or "tcp"
