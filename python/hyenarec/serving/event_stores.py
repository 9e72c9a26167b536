"""Opens a store of events by its name."""

from __future__ import annotations

from pathlib import Path

from hyenarec.errors import UserError
from hyenarec.serving.events import Events
from hyenarec.serving.redis_events import RedisEvents
from hyenarec.serving.sqlite_events import SqliteEvents


def open_events(where: str) -> Events:
    """The events in an SQLite file, which is created if there is none, or in a Redis server, given by its URL.

    Raises :class:`UserError` if they cannot be opened.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisEvents(where)
    if "://" in where:
        raise UserError(f"option events: {where!r} is neither a file nor a URL of Redis (redis://HOST:PORT/NUMBER)")
    return SqliteEvents(Path(where))
