"""Endpoints as records: who is in which network, with which address. Guarded by the lock that the manager shares.

kind 'endpoint'   network id / container id -> EndpointRecord, while the container runs
"""

from __future__ import annotations

import threading

from sampan.network.records import EndpointRecord
from sampan.store import Store

KIND = "endpoint"
Key = tuple[str, str]


class EndpointTable:
    """See the module."""

    def __init__(self, store: Store, lock: threading.RLock) -> None:
        self._store = store
        self._lock = lock
        self._records: dict[Key, EndpointRecord] = {}

    def load(self) -> None:
        """What the store has."""
        stored = self._store.items(KIND, EndpointRecord)
        self._records = {(e.network_id, e.container_id): e for _, e in stored}

    def all(self) -> list[EndpointRecord]:
        """Every endpoint."""
        with self._lock:
            return list(self._records.values())

    def get(self, network_id: str, container_id: str) -> EndpointRecord | None:
        """One container's place in one network."""
        return self._records.get((network_id, container_id))

    def of_network(self, network_id: str) -> list[EndpointRecord]:
        """Who is in a network."""
        with self._lock:
            return [e for key, e in self._records.items() if key[0] == network_id]

    def of_container(self, container_id: str) -> list[EndpointRecord]:
        """Where a container is."""
        with self._lock:
            return [e for key, e in self._records.items() if key[1] == container_id]

    def put(self, record: EndpointRecord) -> None:
        """Remember, or replace."""
        with self._lock:
            self._records[(record.network_id, record.container_id)] = record
            self._store.put(KIND, f"{record.network_id}/{record.container_id}", record)

    def forget(self, record: EndpointRecord) -> None:
        """Idempotent."""
        with self._lock:
            self._records.pop((record.network_id, record.container_id), None)
            self._store.delete(KIND, f"{record.network_id}/{record.container_id}")

    def addresses(self, network_id: str) -> list[str]:
        """Every address given away in a network."""
        members = self.of_network(network_id)
        return [address for e in members for address in (e.ipv4, e.ipv6) if address]
