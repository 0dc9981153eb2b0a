"""Containers in memory: for each the record and state as stored, and what only a living engine has.

The store is the truth; this is its index and the place of locks, waiters, timers and connections. A verb finds its
container with `Containers.find(ref)`, takes `container.lock` for its whole length, changes record or state by
`save_*` (store first, memory second), and tells the event. Loop thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from sampan import ids
from sampan.engine.records import CONTAINER, STATE, ContainerRecord, ContainerState, Status
from sampan.errors import Conflict, Internal, InvalidArgument, NotFound
from sampan.store import NameTaken, Store

if TYPE_CHECKING:
    from sampan.engine.shims import Shim
    from sampan.engine.streams import PendingAttach

log = logging.getLogger("sampan.engine")


class Container:
    """One container's live half."""

    def __init__(self, store: Store, record: ContainerRecord, state: ContainerState) -> None:
        self._store = store
        self.record = record
        self.state = state
        self.lock = asyncio.Lock()
        self.shim: Shim | None = None
        self.pending: list[PendingAttach] = []  # clients that attached before start
        self.exit_waiters: list[asyncio.Future[int]] = []  # answered at each exit
        self.removal_waiters: list[asyncio.Future[int]] = []  # answered once gone
        self.gone = asyncio.Event()  # nothing holds the root filesystem
        self.gone.set()
        self.settled = (
            asyncio.Event()
        )  # what the last run held of network and volumes was given back
        self.settled.set()
        self.stopping = False  # a stop or kill is under way: no restart
        self.restart_task: asyncio.Task[None] | None = None
        self.restart_delay_s = 0.0
        self.started_monotonic = 0.0
        self.health_task: asyncio.Task[None] | None = None
        self.execs: set[str] = set()
        self.removed = False
        self.broken = ""  # why it cannot be started: its record was damaged

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def status(self) -> Status:
        return self.state.status

    @property
    def is_running(self) -> bool:
        return self.state.is_running

    def save_record(self, **changes: Any) -> None:
        if self.removed:  # whoever waited for the lock meanwhile must not bring it back
            raise NotFound(f"No such container: {self.id}")
        record = msgspec.structs.replace(self.record, **changes) if changes else self.record
        self._store.put(CONTAINER, record.id, record)
        self.record = record

    def save_state(self, **changes: Any) -> None:
        """Facts are facts: memory has them even where the disk is full, and verbs go on. The store catches up at the
        next change; an engine that starts before that finds the same facts in the run directory."""
        self.state = msgspec.structs.replace(self.state, **changes)
        if self.removed:
            return
        try:
            self._store.put(STATE, self.id, self.state)
        except Internal as error:
            log.error("the state of container %s could not be stored: %s", self.id[:12], error)

    def answer_exit(self, exit_code: int) -> None:
        waiters, self.exit_waiters = self.exit_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(exit_code)

    def answer_removal(self) -> None:
        waiters, self.removal_waiters = self.removal_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(self.state.exit_code)

    def attributes(self, **more: str) -> dict[str, str]:
        """What every event about this container carries."""
        record = self.record
        return {**record.config.labels, "image": record.config.image, "name": record.name, **more}


class Containers:
    """All containers, by id, name and prefix."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, Container] = {}
        self._leaving: dict[str, Container] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Container]:
        return iter(tuple(self._by_id.values()))

    def get(self, container_id: str) -> Container | None:
        return self._by_id.get(container_id)

    def named(self, name: str) -> Container | None:
        return self._by_name.get(name)

    def find(self, ref: str) -> Container:
        """By full id, else by name (with or without "/"), else by a unique prefix of an id."""
        if not ref:
            raise InvalidArgument('invalid name or ID supplied: ""')
        found = self._by_id.get(ref) or self._by_name.get(ref.removeprefix("/"))
        if found is None:
            full = ids.by_prefix(ref, self._by_id)
            found = self._by_id.get(full) if full else None
        if found is None:
            raise NotFound(f"No such container: {ref}")
        return found

    def add(self, record: ContainerRecord) -> Container:
        """Reserve the name and store the record, both or neither."""
        state = ContainerState()
        with self._store.transaction():
            self.reserve(record.name, record.id)
            self._store.put(CONTAINER, record.id, record)
            self._store.put(STATE, record.id, state)
        return self.adopt(record, state)

    def adopt(self, record: ContainerRecord, state: ContainerState) -> Container:
        """Put a stored container into the index."""
        container = Container(self._store, record, state)
        self._by_id[record.id] = container
        if not state.removing or record.name not in self._by_name:
            self._by_name[record.name] = container
        return container

    def reserve(self, name: str, container_id: str) -> None:
        try:
            self._store.reserve(CONTAINER, name, container_id)
        except NameTaken as taken:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{taken.key}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            ) from None

    def rename(self, container: Container, name: str) -> None:
        old = container.name
        with self._store.transaction():
            self.reserve(name, container.id)
            self._release_name(container)
            container.save_record(name=name)
        if self._by_name.get(old) is container:
            del self._by_name[old]
        self._by_name[name] = container

    def leave(self, container: Container) -> None:
        """Nobody finds it any more and its name is free, but its files and its record are still there: `forget` follows."""
        with self._store.transaction():
            container.save_state(removing=True)
            self._release_name(container)
        container.removed = True
        self._leaving[container.id] = container
        self._drop(container)

    def come_back(self, container: Container) -> None:
        """What left could not be taken away: it is found again, by its name only where nobody took that meanwhile."""
        if self._leaving.pop(container.id, None) is None:
            return
        container.removed = False
        self._by_id[container.id] = container
        try:
            self.reserve(container.name, container.id)
        except (Conflict, Internal):
            return
        self._by_name[container.name] = container

    def forget(self, container: Container) -> None:
        with self._store.transaction():
            self._store.delete(STATE, container.id)
            self._store.delete(CONTAINER, container.id)
        container.removed = True
        self._leaving.pop(container.id, None)
        self._drop(container)

    def _release_name(self, container: Container) -> None:
        """One on its way out lost its name already, and another may have it by now."""
        if self._store.holder(CONTAINER, container.name) == container.id:
            self._store.release(CONTAINER, container.name)

    def _drop(self, container: Container) -> None:
        self._by_id.pop(container.id, None)
        if self._by_name.get(container.name) is container:
            del self._by_name[container.name]

    def chain_ids(self) -> list[str]:
        """The layers that containers stand on, those on their way out included."""
        return [c.record.chain_id for c in (*self, *self._leaving.values())]

    def is_name_taken(self, name: str) -> bool:
        return name in self._by_name or self._store.holder(CONTAINER, name) is not None
