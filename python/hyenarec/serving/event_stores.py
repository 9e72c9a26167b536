"""Where events are kept, by its name."""

from __future__ import annotations

from pathlib import Path

from hyenarec.errors import UserError
from hyenarec.serving.events import Events
from hyenarec.serving.redis_events import RedisEvents
from hyenarec.serving.sqlite_events import SqliteEvents


def open_events(where: str) -> Events:
    """The events of an SQLite file, which is made if there is none, or of a Redis server by its URL.

    Raises :class:`UserError` where they cannot be had.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisEvents(where)
    if "://" in where:
        raise UserError(f"option events: {where!r} is neither a file nor a URL of Redis (redis://HOST:PORT/NUMBER)")
    return SqliteEvents(Path(where))
