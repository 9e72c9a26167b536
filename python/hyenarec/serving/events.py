"""The events of all users, on disk before they are acknowledged; the one thing that a service must not lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hyenarec.errors import UserError

Item = int | str


class Unavailable(UserError):
    """The service cannot do now what it was asked for, through no fault of the client's."""


@dataclass(frozen=True)
class Event:
    """Something that a user did. ``time`` is in seconds; ``id`` is the client's own id for the event, or None."""

    user: str
    item: Item
    time: int
    id: str | None = None


@dataclass(frozen=True)
class Added:
    """What became of an event: its ``number`` among the user's events, and whether it is ``new``. With ``conflict`` it
    was not added, because an event of another user or item has its id."""

    number: int
    new: bool
    conflict: bool = False


class Events(Protocol):
    """A store of events. Several processes may use it at once.

    Within a process one thread calls :meth:`add` and another one :meth:`since`, at the same time. Both raise
    :class:`Unavailable` if the store cannot be written or read.
    """

    def add(self, events: Sequence[Event]) -> list[Added]:
        """Adds events in their order, all or none. When this returns they are stored, and :meth:`since` finds them."""
        ...

    def since(self, users: Sequence[tuple[str, int]]) -> list[tuple[list[Item], list[int]]]:
        """For each user and number: items and times of the user's events from that number on, oldest first."""
        ...

    def close(self) -> None: ...
