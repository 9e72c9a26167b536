"""The events of all users, on disk before they are acknowledged; the one thing that a service must not lose."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyenarec.errors import UserError

VERSION = 1
SCHEMA = """
CREATE TABLE events (
    user TEXT NOT NULL,
    number INTEGER NOT NULL,  -- of the user's events, from 0
    item NOT NULL,  -- integer or text, as the log's own ids are
    time INTEGER NOT NULL,  -- seconds
    id TEXT UNIQUE,  -- the client's name for the event, so that a retry adds nothing
    PRIMARY KEY (user, number)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Event:
    """Something that a user did. ``time`` is in seconds; ``id`` is the client's name for it, or None."""

    user: str
    item: int | str
    time: int
    id: str | None = None


@dataclass(frozen=True)
class Added:
    """What became of an event: its ``number`` among the user's, and whether it is ``new``. ``conflict``: its id names
    another event, so that it was not added."""

    number: int
    new: bool
    conflict: bool = False


class EventStore:
    """An SQLite file. One process writes it at a time, from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a commit outlives a power cut, not only the process
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.execute(SCHEMA)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise UserError(f"{path}: events of version {version}; this is version {VERSION}")
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be used as a store of events: {error}") from error

    def add(self, events: Sequence[Event]) -> list[Added]:
        """Adds events in their order, all in one transaction; when this returns they are on disk."""
        found = []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            found = [self._add(event) for event in events]
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return found

    def _add(self, event: Event) -> Added:
        if event.id is not None:
            query = "SELECT user, item, number FROM events WHERE id = ?"
            known = self._db.execute(query, (event.id,)).fetchone()
            if known is not None:
                user, item, number = known
                return Added(number, new=False, conflict=(user, item) != (event.user, event.item))
        number = self.count(event.user)
        row = (event.user, number, event.item, event.time, event.id)
        self._db.execute("INSERT INTO events (user, number, item, time, id) VALUES (?, ?, ?, ?, ?)", row)
        return Added(number, new=True)

    def count(self, user: str) -> int:
        """How many events a user has."""
        query = "SELECT number FROM events WHERE user = ? ORDER BY number DESC LIMIT 1"
        row = self._db.execute(query, (user,)).fetchone()
        return 0 if row is None else int(row[0]) + 1

    def since(self, user: str, number: int) -> tuple[list[int | str], list[int]]:
        """Items and times of a user's events from ``number`` on, oldest first."""
        query = "SELECT item, time FROM events WHERE user = ? AND number >= ? ORDER BY number"
        rows = self._db.execute(query, (user, number)).fetchall()
        return [row[0] for row in rows], [row[1] for row in rows]

    def close(self) -> None:
        self._db.close()
