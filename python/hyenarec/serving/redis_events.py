"""Events in Redis, for processes on several machines that serve the same users."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hyenarec.display import complain
from hyenarec.errors import UserError
from hyenarec.serving.events import Added, Event, Item, Unavailable

VERSION = 1
PATIENCE = 10  # seconds to wait for an answer
USER, ID, THE_VERSION = "hyenarec:user:", "hyenarec:event:", "hyenarec:version"

# A user's events are a list of [item, time]. In addition, each event with an id has a key of its own, whose value is
# the event's number and [user, item]. Redis runs a script atomically and logs it as a whole.
ADD = """
local found = {}
for i = 1, #KEYS / 2 do
    local user, id = KEYS[2 * i - 1], KEYS[2 * i]
    local known = id ~= '' and redis.call('GET', id)
    if not known then
        local number = redis.call('RPUSH', user, ARGV[2 * i - 1]) - 1
        if id ~= '' then redis.call('SET', id, number .. ' ' .. ARGV[2 * i]) end
        found[i] = number
    else
        found[i] = known
    end
end
return found
"""


class RedisEvents:
    """Uses one connection per thread. Lost connections are reopened, but no command is retried automatically, because
    an event without an id would then count twice."""

    def __init__(self, url: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError as error:
            raise UserError(f"option events: Redis needs {error.name}: pip install 'hyenarec[redis]'") from error
        self._failures = (redis.RedisError, OSError)
        self.where = url.rpartition("@")[2].partition("?")[0]  # without passwords
        try:
            self._redis: Any = redis.Redis.from_url(
                url, decode_responses=True, socket_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)
            )
            self._redis.set(THE_VERSION, VERSION, nx=True)
            version: Any = self._redis.get(THE_VERSION)
            info: Any = self._redis.info()
        except (*self._failures, ValueError) as error:
            raise UserError(f"option events: {self.where}: Redis cannot be used: {error}") from error
        if version != str(VERSION):
            raise UserError(f"{self.where}: events of version {version}; this is version {VERSION}")
        if not info.get("aof_enabled"):
            complain(f"{self.where}: keeps events in memory alone between snapshots; set appendonly yes")
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            complain(f"{self.where}: may forget events when its memory is full; set maxmemory-policy noeviction")
        self._add = self._redis.register_script(ADD)

    def add(self, events: Sequence[Event]) -> list[Added]:
        keys, values = [], []
        for event in events:
            keys += [USER + event.user, "" if event.id is None else ID + event.id]
            values += [json.dumps([event.item, event.time]), json.dumps([event.user, event.item])]
        try:
            answers = self._add(keys, values)
        except self._failures as error:
            raise Unavailable(f"{self.where}: events cannot be written: {error}") from error
        return [_added(answer, same) for answer, same in zip(answers, values[1::2], strict=True)]

    def since(self, users: Sequence[tuple[str, int]]) -> list[tuple[list[Item], list[int]]]:
        try:
            with self._redis.pipeline(transaction=False) as asked:
                for user, number in users:
                    asked.lrange(USER + user, number, -1)
                found = asked.execute()
        except self._failures as error:
            raise Unavailable(f"{self.where}: events cannot be read: {error}") from error
        rows = [[json.loads(event) for event in events] for events in found]
        return [([item for item, _ in events], [time for _, time in events]) for events in rows]

    def close(self) -> None:
        self._redis.close()


def _added(answer: int | str, same: str) -> Added:
    """Decodes the script's answer for one event: its new number, or what is stored for its id, which is ``same`` if
    that is the same event."""
    if isinstance(answer, int):
        return Added(answer, new=True)
    number, _, known = answer.partition(" ")
    return Added(int(number), new=False, conflict=known != same)
