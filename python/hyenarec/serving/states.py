"""A cache of users' states in memory. States are computed from the stored events, so any may be dropped at any time."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.data.batches import pack_histories
from hyenarec.model_state import ModelState
from hyenarec.recommendation import Recommender
from hyenarec.repeats import Recent
from hyenarec.serving.events import Events, Item
from hyenarec.session import part_kept

READ_ANEW = 16  # with more new events than this, reading the whole history at once is faster than a step for each
TOGETHER = 64  # histories in one batch
ROOM = 256  # rows that the table of states begins with, and has for a batch's users besides those that are kept


@dataclass(eq=False)
class User:
    """What the service knows of one user.

    Attributes:
        row: the user's row in the tables of states and hidden states.
        read: how many stored events have been read into ``items`` and ``times``.
        items, times: of the events whose items the model knows, the model's item numbers, and the times in seconds if
            the model uses time.
        done: how many of ``items`` the row in the tables reflects.
        counted: how many events the state has read; fewer than ``done`` if the history is longer than the model reads.
    """

    row: int
    read: int = 0
    items: array[int] = field(default_factory=lambda: array("i"))
    times: array[int] = field(default_factory=lambda: array("q"))
    done: int = 0
    counted: int = 0

    def history(self, last: int | None = None) -> NDArray[np.int32]:
        return np.array(self.items if last is None else self.items[-last:], dtype=np.int32)


class States:
    """Brings users up to date with the store, in batches, and keeps at most ``most`` of them between calls. All states
    are rows of one table, which grows by doubling."""

    def __init__(self, recommender: Recommender, events: Events, most: int) -> None:
        self.recommender, self.events, self.most = recommender, events, most
        self._users: OrderedDict[str, User] = OrderedDict()
        self._free: list[int] = []
        self._state = recommender.model.init_state(0, compact=True)
        self._hidden = recommender.model.bias.new_zeros(0, recommender.model.config.dim, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._users)

    @torch.inference_mode()
    def of(self, names: Sequence[str]) -> list[User]:
        """The users of ``names``, which must differ, up to date with the store. Users without events that the model
        knows have ``done`` 0."""
        known = [self._users.get(name) for name in names]
        found = self.events.since([(name, user.read if user else 0) for name, user in zip(names, known, strict=True)])
        self._make_room(known.count(None))
        users = [self._enter(name) for name in names]
        try:
            for user, (items, times) in zip(users, found, strict=True):
                self._take(user, items, times)
            anew = [user for user in users if self._reads_anew(user)]
            for first in range(0, len(anew), TOGETHER):
                self._read(anew[first : first + TOGETHER])
            while behind := [user for user in users if user.done < len(user.items)]:
                self._step(behind)
        except BaseException:  # their rows may be half written
            for name in names:
                self._forget(name)
            raise
        while len(self._users) > self.most:  # the rows of these users stay unchanged until the next call
            self._forget(next(iter(self._users)))
        return users

    def reached(self, users: Sequence[User]) -> tuple[Tensor, Recent | None]:
        """The hidden states (n, D) of users that the last call of :meth:`of` returned, and their recent items if the
        model has a repeat head."""
        rows = self._rows(users)
        return self._hidden[rows], self._state.recent(rows)

    def _make_room(self, new: int) -> None:
        """Makes sure that at least ``new`` rows are free."""
        before = len(self._hidden)
        if len(self._free) >= new:
            return
        rows = max(before + new - len(self._free), min(2 * before, self.most + ROOM), ROOM)
        state, hidden = (
            self.recommender.model.init_state(rows, compact=True),
            self._hidden.new_zeros(rows, self._hidden.shape[1]),
        )
        for name, values in self._state.tensors().items():
            state.tensors()[name][:before] = values
        hidden[:before] = self._hidden
        self._state, self._hidden = state, hidden
        self._free += range(before, rows)

    def _enter(self, name: str) -> User:
        """The user of this name, made if there is none, and now the last one to be forgotten."""
        user = self._users.pop(name, None) or User(self._free.pop())
        self._users[name] = user
        return user

    def _forget(self, name: str) -> None:
        self._free.append(self._users.pop(name).row)

    def _reads_anew(self, user: User) -> bool:
        """Whether to read the user's whole history again, rather than only the new events."""
        new, most = len(user.items) - user.done, self.recommender.model.most_events
        if not new or not user.done or new > READ_ANEW:
            return new > 0
        return most is not None and user.counted + new > most

    def _take(self, user: User, items: Sequence[Item], times: Sequence[int]) -> None:
        """Adds new events of the store to the user."""
        user.read += len(items)
        if not items:
            return
        for place, time in zip(self.recommender.item_ids.find(items).tolist(), times, strict=True):
            if place >= 0:
                user.items.append(place)
                if self.recommender.knows_time:
                    user.times.append(max(time, user.times[-1]) if user.times else time)  # clients' clocks differ

    def _read(self, users: Sequence[User]) -> None:
        """Reads whole histories at once. Longer ones are cut to their last ``max_length`` events, or, if the model has
        that many positions and no more, to :func:`part_kept` of them."""
        model = self.recommender.model
        most = model.config.max_length
        kept = most if model.most_events is None else max(part_kept(most), 1)
        items = [user.history(kept if len(user.items) > most else None) for user in users]
        times = [np.array(user.times[-len(part) :]) for user, part in zip(users, items, strict=True)]
        batch = pack_histories(items, most, times if self.recommender.knows_time else None)
        with self.recommender.autocast():
            hidden, state = model.prefill(batch.to(self.recommender.device), compact=True)
        self._put(users, hidden, state)
        for user, part in zip(users, items, strict=True):
            user.done, user.counted = len(user.items), len(part)

    def _step(self, users: Sequence[User]) -> None:
        """Reads one more event of each user."""
        device = self.recommender.device
        items = torch.tensor([user.items[user.done] for user in users], device=device)
        times = None
        if self.recommender.knows_time:
            times = torch.tensor([user.times[user.done] for user in users], device=device)
        hidden, state = self.recommender.step(items, self._state.index(self._rows(users)), times)
        self._put(users, hidden, state)
        for user in users:
            user.done += 1
            user.counted += 1

    def _put(self, users: Sequence[User], hidden: Tensor, state: ModelState) -> None:
        rows, new = self._rows(users), state.tensors()
        for name, values in self._state.tensors().items():
            values[rows] = new[name]
        self._hidden[rows] = hidden.float()

    def _rows(self, users: Sequence[User]) -> Tensor:
        return torch.tensor([user.row for user in users], device=self._hidden.device)
