"""The store: what was wished and what was observed, as JSON records in one SQLite file.

    <root>/store.db      WAL; one writer (this process; `daemon.py` holds a flock on <root>)
      records(kind, key, body)         body is JSON; each record carries its own version
      names(kind, name, key)           UNIQUE(kind, name): who wins a name is decided here, atomically
      meta(key, value)                 schema number, and whatever a room keeps one of

A `kind` is one room's word ('container', 'network', 'image', ...). The store knows no types: rooms hand
in bytes or msgspec Structs and get bytes or decoded Structs back.

Durability: WAL with synchronous=NORMAL never corrupts and survives kill -9 of the process whole; `sync()`
forces what was committed to the disk. On a full disk `spare_file` is given up once. A damaged file is set aside as store.db.damaged-<n>, a new one is
begun, and `Store.damage` says so: rooms that keep per-object copies rebuild from them.

Sources: sqlite.org/wal.html, sqlite.org/pragma.html (quick_check, synchronous), sqlite.org/threadsafe.html.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from sampan.errors import Conflict, Internal

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()
_PUT = "INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body"

# Each entry takes the file from schema n to n + 1. Never edit one that was released: append.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
                          PRIMARY KEY (kind, key)) WITHOUT ROWID;
    CREATE TABLE names (kind TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
                        PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE INDEX names_by_key ON names (kind, key);
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class NameTaken(Conflict):
    """Somebody has this name already; `.key` says who."""

    def __init__(self, kind: str, name: str, key: str) -> None:
        super().__init__(f"{kind} name {name!r} is already in use by {key}")
        self.key = key


@contextmanager
def _told() -> Iterator[None]:
    """A full disk or a failing one, in words; the transaction was rolled back by SQLite."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Internal(
            f"the store cannot be written: {error}", hint="is there space left on the device?"
        ) from error


class Store:
    """Records by (kind, key). Safe to call from any thread; every call is one transaction
    unless it runs inside `with store.transaction():`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.damage = ""
        self.spare_file: Path | None = None  # a file whose space is given up when the disk is full
        self._lock = threading.RLock()
        self._depth = 0
        self._db = self._open_or_set_aside()

    # -- opening -----------------------------------------------------------------------------------

    def _open_or_set_aside(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _means_damage(error):
                raise Internal(f"cannot open {self.path}: {error}") from error
            self.damage = f"{error}; the file was kept as {self._set_aside().name}"
            return self._open()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA trusted_schema=OFF")
            row = db.execute("PRAGMA quick_check(1)").fetchone()
            if row is None or row[0] != "ok":
                raise sqlite3.DatabaseError(f"quick_check: {row[0] if row else 'no answer'}")
            _migrate(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self) -> Path:
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.path.rename(target)
        for tail in ("-wal", "-shm"):
            self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
        return target

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # -- transactions ------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nests (the outermost commits)."""
        with self._lock, _told():
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0 and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                self._commit()

    def _commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:  # a full disk leaves the transaction open
                self._db.execute("ROLLBACK")
            raise

    def sync(self) -> None:
        """Everything committed so far is on the disk when this returns."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    # -- records -----------------------------------------------------------------------------------

    def put(self, kind: str, key: str, record: object) -> None:
        body = record if isinstance(record, bytes) else _ENCODER.encode(record)
        with self._lock, _told():
            try:
                self._db.execute(_PUT, (kind, key, body))
            except sqlite3.OperationalError as error:
                # SQLite has rolled a transaction back by now, so only a lone write can be tried again.
                if "full" not in str(error) or not self._give_up_reserve() or self._depth:
                    raise
                self._db.execute(_PUT, (kind, key, body))

    def _give_up_reserve(self) -> bool:
        """What must be written to stop, remove and restart containers is little: the spare file is for that."""
        spare, self.spare_file = self.spare_file, None
        if spare is None:
            return False
        spare.unlink(missing_ok=True)
        return True

    def get_raw(self, kind: str, key: str) -> bytes | None:
        with self._lock:
            row = self._db.execute(
                "SELECT body FROM records WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
        return None if row is None else bytes(row[0])

    def get(self, kind: str, key: str, as_type: type[T]) -> T | None:
        """The decoded record, or None where there is none. Unknown keys are ignored."""
        body = self.get_raw(kind, key)
        return None if body is None else msgspec.json.decode(body, type=as_type)

    def items_raw(self, kind: str) -> list[tuple[str, bytes]]:
        with self._lock:
            rows = self._db.execute(
                "SELECT key, body FROM records WHERE kind = ? ORDER BY key", (kind,)
            ).fetchall()
        return [(key, bytes(body)) for key, body in rows]

    def items(
        self,
        kind: str,
        as_type: type[T],
        *,
        on_damage: Callable[[str, bytes, Exception], None] | None = None,
    ) -> list[tuple[str, T]]:
        """All records of a kind. One that does not decode goes to `on_damage` (or raises)."""
        found = []
        for key, body in self.items_raw(kind):
            try:
                found.append((key, msgspec.json.decode(body, type=as_type)))
            except msgspec.MsgspecError as error:
                if on_damage is None:
                    raise Internal(f"{kind} record {key} is damaged: {error}") from error
                on_damage(key, body, error)
        return found

    def delete(self, kind: str, key: str) -> bool:
        """Forget the record and every name that points to it."""
        with self.transaction():
            gone = self._db.execute(
                "DELETE FROM records WHERE kind = ? AND key = ?", (kind, key)
            ).rowcount
            self._db.execute("DELETE FROM names WHERE kind = ? AND key = ?", (kind, key))
        return gone > 0

    # -- names -------------------------------------------------------------------------------------

    def reserve(self, kind: str, name: str, key: str) -> None:
        """Give `name` to `key`; raises NameTaken where another holds it."""
        with self._lock, _told():
            try:
                self._db.execute("INSERT INTO names VALUES (?, ?, ?)", (kind, name, key))
            except sqlite3.IntegrityError:
                holder = self.holder(kind, name)
                if holder != key:
                    raise NameTaken(kind, name, holder or "?") from None

    def release(self, kind: str, name: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM names WHERE kind = ? AND name = ?", (kind, name))

    def holder(self, kind: str, name: str) -> str | None:
        with self._lock:
            row = self._db.execute(
                "SELECT key FROM names WHERE kind = ? AND name = ?", (kind, name)
            ).fetchone()
        return None if row is None else str(row[0])

    def names(self, kind: str) -> dict[str, str]:
        """name -> key."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, key FROM names WHERE kind = ?", (kind,)
            ).fetchall()
        return {str(name): str(key) for name, key in rows}

    # -- single values -----------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _means_damage(error: sqlite3.OperationalError) -> bool:
    """Some kinds of damage arrive as OperationalError: a torn schema, an unreadable page."""
    text = str(error)
    return any(
        word in text for word in ("malformed", "not a database", "no such table", "disk I/O")
    )


def _migrate(db: sqlite3.Connection) -> None:
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise Internal(
            f"the store was written by a newer version (schema {version}, this one knows {len(MIGRATIONS)})",
            hint="start the newer version, or move the store away",
        )
    for number in range(version, len(MIGRATIONS)):
        db.executescript(f"BEGIN;{MIGRATIONS[number]};PRAGMA user_version={number + 1};COMMIT;")
