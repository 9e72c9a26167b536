"""Events in an SQLite file. Processes on one machine may share it, and it can be copied while they run."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from hyenarec.errors import UserError
from hyenarec.serving.events import Added, Event, Item, Unavailable

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
PATIENCE = 10  # seconds to wait for another process's transaction


class SqliteEvents:
    """Writes on one connection and reads on another, so that reading never waits for a write to reach the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._writing, self._reading = (
                sqlite3.connect(path, PATIENCE, check_same_thread=False, isolation_level=None) for _ in range(2)
            )
            # One statement, so that it sees another process's store either empty or whole; and before any change.
            query = "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version"
            version, tables = self._writing.execute(query).fetchone()
            if version == 0 and tables:
                raise UserError(f"{path}: a database of something else, not a store of events")
            self._writing.execute("PRAGMA journal_mode = WAL")
            self._writing.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, not only a crash
            self._writing.execute("BEGIN IMMEDIATE")
            (version,) = self._writing.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._writing.execute(SCHEMA)
                self._writing.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise UserError(f"{path}: events of version {version}; this is version {VERSION}")
            self._writing.execute("COMMIT")
            self._file = path.stat().st_ino
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path}: cannot be used as a store of events: {error}") from error

    def add(self, events: Sequence[Event]) -> list[Added]:
        try:
            if self.path.stat().st_ino != self._file:
                raise FileNotFoundError("the file was removed or replaced while the service used it")
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                found = [self._add(event) for event in events]
                self._writing.execute("COMMIT")
            except BaseException:
                if self._writing.in_transaction:  # a full disk may have ended the transaction
                    self._writing.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"{self.path}: events cannot be written: {error}") from error
        return found

    def _add(self, event: Event) -> Added:
        if event.id is not None:
            query = "SELECT user, item, number FROM events WHERE id = ?"
            known = self._writing.execute(query, (event.id,)).fetchone()
            if known is not None:
                user, item, number = known
                return Added(number, new=False, conflict=(user, item) != (event.user, event.item))
        query = "SELECT number FROM events WHERE user = ? ORDER BY number DESC LIMIT 1"
        last = self._writing.execute(query, (event.user,)).fetchone()
        number = 0 if last is None else last[0] + 1
        row = (event.user, number, event.item, event.time, event.id)
        self._writing.execute("INSERT INTO events (user, number, item, time, id) VALUES (?, ?, ?, ?, ?)", row)
        return Added(number, new=True)

    def since(self, users: Sequence[tuple[str, int]]) -> list[tuple[list[Item], list[int]]]:
        query = "SELECT item, time FROM events WHERE user = ? AND number >= ? ORDER BY number"
        try:
            found = [self._reading.execute(query, user).fetchall() for user in users]
        except sqlite3.Error as error:
            raise Unavailable(f"{self.path}: events cannot be read: {error}") from error
        return [([item for item, _ in rows], [time for _, time in rows]) for rows in found]

    def close(self) -> None:
        self._reading.close()
        self._writing.close()
