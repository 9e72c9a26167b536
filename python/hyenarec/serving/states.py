"""Users' states in memory, made from stored events: a cache, which may forget anybody at any time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.batches import pack_histories
from hyenarec.model import ModelState
from hyenarec.recommendation import Recommender
from hyenarec.serving.events import EventStore
from hyenarec.session import part_kept

READ_ANEW = 16  # new events beyond which a whole history is read at once: a step each would take longer
TOGETHER = 64  # histories in one batch


@dataclass
class User:
    """What the service knows of one user.

    Attributes:
        read: how many stored events this reflects.
        items, times: those of them whose items the model knows, by its numbers, and their seconds.
        state, hidden: the model's, after as many of them as ``done`` says; None before the first.
    """

    read: int = 0
    items: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    done: int = 0
    state: ModelState | None = None
    hidden: Tensor | None = None  # (1, D)


class States:
    """Brings users up to date with the store, in batches."""

    def __init__(self, recommender: Recommender, events: EventStore, most: int) -> None:
        self.recommender, self.events, self.most = recommender, events, most
        self._users: OrderedDict[str, User] = OrderedDict()

    def __len__(self) -> int:
        return len(self._users)

    @torch.inference_mode()
    def of(self, names: Sequence[str]) -> list[User]:
        """These users (each once) as of now; those without events that the model knows have no state."""
        users = [self._users.pop(name) if name in self._users else User() for name in names]
        self._users.update(zip(names, users, strict=True))  # the last ones to be forgotten
        for name, user in zip(names, users, strict=True):
            self._take(name, user)
        anew = [user for user in users if self._reads_anew(user)]
        for first in range(0, len(anew), TOGETHER):
            self._read(anew[first : first + TOGETHER])
        while behind := [user for user in users if user.done < len(user.items)]:
            self._step(behind)
        while len(self._users) > self.most:
            self._users.popitem(last=False)
        return users

    def _reads_anew(self, user: User) -> bool:
        """Whether its events are read from the beginning, rather than the new ones alone."""
        new, most = len(user.items) - user.done, self.recommender.model.most_events
        if not new or user.state is None or new > READ_ANEW:
            return new > 0
        return most is not None and int(user.state.events) + new > most

    def _take(self, name: str, user: User) -> None:
        """Adds what is new in the store."""
        items, times = self.events.since(name, user.read)
        user.read += len(items)
        if not items:
            return
        for place, time in zip(self.recommender.item_ids.find(items).tolist(), times, strict=True):
            if place >= 0:
                user.items.append(place)
                user.times.append(max(time, user.times[-1]) if user.times else time)  # clocks of clients differ

    def _read(self, users: Sequence[User]) -> None:
        """Whole histories at once, the last part of each where the model has positions and they end."""
        model = self.recommender.model
        most = model.config.max_length
        kept = most if model.most_events is None else max(part_kept(most), 1)
        parts = [user.items[-kept:] if len(user.items) > most else user.items for user in users]
        items = [np.array(part, dtype=np.int32) for part in parts]
        times = [np.array(user.times[-len(part) :]) for user, part in zip(users, parts, strict=True)]
        batch = pack_histories(items, most, times if self.recommender.knows_time else None)
        with self.recommender.autocast():
            hidden, state = model.prefill(batch.to(self.recommender.device), compact=True)
        self._put(users, hidden, state)
        for user in users:
            user.done = len(user.items)

    def _step(self, users: Sequence[User]) -> None:
        """One more event of each."""
        device = self.recommender.device
        items = torch.tensor([user.items[user.done] for user in users], device=device)
        times = torch.tensor([user.times[user.done] for user in users], device=device)
        state = ModelState.cat([user.state for user in users if user.state is not None])
        with self.recommender.autocast():
            hidden, state = self.recommender.model.step(items, state, times if self.recommender.knows_time else None)
        self._put(users, hidden, state)
        for user in users:
            user.done += 1

    def _put(self, users: Sequence[User], hidden: Tensor, state: ModelState) -> None:
        for row, user in enumerate(users):
            user.state = state.index(torch.tensor([row], device=hidden.device))
            user.hidden = hidden[row : row + 1].float()
