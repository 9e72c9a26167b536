"""Users whose events arrive one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hyenarec.answers import Item, Recommendation, Request
from hyenarec.data.batches import pack_histories
from hyenarec.errors import UserError, expect, is_iterable, shortened
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState


def part_kept(most: int) -> int:
    """How many of the last events are read again when ``most`` events fill all positions of a model: three quarters."""
    return 3 * most // 4


class Reader(Protocol):
    """What a session needs of its recommender."""

    model: SequenceModel

    @property
    def knows_time(self) -> bool: ...
    def autocast(self) -> AbstractContextManager[Any]: ...
    def step(
        self, items: torch.Tensor, state: ModelState, timestamps: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ModelState]: ...
    def requests(
        self, histories: Iterable[Sequence[Item]], timestamps: Iterable[Sequence[int]] | None
    ) -> list[Request]: ...
    def best(
        self,
        scores: torch.Tensor,
        histories: Sequence[NDArray[np.int32]],
        k: int,
        exclude_seen: bool | None,
        names: Sequence[str],
    ) -> list[list[Recommendation]]: ...


class Session:
    """The states of some users, which :meth:`append` advances by one event each.

    :meth:`hyenarec.Recommender.session` makes it.

    >>> session = recommender.session([["jazz-001", "jazz-002"], []])  # a known history, and someone new
    >>> session.append(["soul-002", "jazz-001"])
    >>> session.recommend(k=10)

    A new event costs one step of the model, however long the history is. The model has then read the last
    ``max_length`` events of the history given at first, which is all that :meth:`hyenarec.Recommender.recommend` ever
    reads, and every event since. A model with positions
    (attention, hydra, elastic, hytrec, fuxi_linear, hstu, dman, sparsek, gems) cannot count more than ``max_length``
    events: when they are full, it reads the last three quarters of them again.

    With ``compact`` the hyena mixer remembers long horizons in a few hundred numbers per channel
    (:class:`hyenarec_kernels.nn.CompactState`).
    """

    def __init__(self, recommender: Reader, requests: Sequence[Request], *, compact: bool = False) -> None:
        self._recommender, self._compact = recommender, compact
        self._items: list[list[int]] = []
        self._times: list[list[int]] = []
        model = recommender.model
        self._state = self._empty(0)
        self._hidden = model.bias.new_zeros(0, model.config.dim)
        self._join(requests)

    def __len__(self) -> int:
        """The number of users."""
        return len(self._items)

    def join(self, histories: Iterable[Sequence[Item]], *, timestamps: Iterable[Sequence[int]] | None = None) -> range:
        """Add users, and return their numbers. A history may be empty: someone new.

        Raises :class:`UserError`, and adds nobody, for unknown items and wrong timestamps.
        """
        before = len(self)
        self._join(self._recommender.requests(histories, timestamps))
        return range(before, len(self))

    def leave(self, users: Iterable[int]) -> None:
        """Forget users by their numbers. Those who stay are numbered anew, in the same order."""
        gone = set(self._numbers(users))
        stay = [user for user in range(len(self)) if user not in gone]
        rows = torch.tensor(stay, dtype=torch.int64, device=self._hidden.device)
        self._state, self._hidden = self._state.index(rows), self._hidden[rows]
        self._items, self._times = ([kept[user] for user in stay] for kept in (self._items, self._times))

    @torch.inference_mode()
    def append(
        self, items: Sequence[Item], *, users: Iterable[int] | None = None, timestamps: Sequence[int] | None = None
    ) -> None:
        """Read the next event of every user, or of those whose numbers are given; each at most once.

        ``timestamps``, in the log's own unit, are for models that know time; they are needed with every event if the
        histories had them. Raises :class:`UserError`, and changes nothing, for an event that it cannot read.
        """
        chosen = list(range(len(self))) if users is None else self._numbers(users)
        if not is_iterable(items) or isinstance(items, str | bytes) or len(items) != len(chosen):
            raise UserError(f"items: one is needed for each of {len(chosen)} users, got {shortened(items)}")
        if not chosen:
            return
        recommender = self._recommender
        rows = None if timestamps is None else [[time] for time in timestamps]
        requests = recommender.requests([[item] for item in items], rows)
        times = [request.times for request in requests]
        for user, now in zip(chosen, times, strict=True):
            if self._items[user] and (now is None) != (not self._times[user]) and recommender.knows_time:
                raise UserError(f"user {user}: timestamps are needed with every event or with none")
            if now is not None and self._times[user] and now[0] < self._times[user][-1]:
                raise UserError(f"user {user}: the new event is older than the last one")
        self._make_room(chosen)
        for user, request in zip(chosen, requests, strict=True):
            self._items[user].append(int(request.items[0]))
            if request.times is not None:
                self._times[user].append(int(request.times[0]))
        device = self._hidden.device
        new = torch.tensor([int(request.items[0]) for request in requests], device=device)
        when = None if times[0] is None else torch.tensor([self._times[user][-1] for user in chosen], device=device)
        everyone = chosen == list(range(len(self)))
        where = torch.tensor(chosen, device=device)
        state = self._state if everyone else self._state.index(where)
        hidden, state = recommender.step(new, state, when)
        if everyone:
            self._state, self._hidden = state, hidden.to(self._hidden.dtype)
        else:
            self._put(where, hidden, state)

    @torch.inference_mode()
    def recommend(
        self, k: int = 10, *, users: Iterable[int] | None = None, exclude_seen: bool | None = None
    ) -> list[list[Recommendation]]:
        """The best ``k`` next items of every user, or of those whose numbers are given, as
        :meth:`hyenarec.Recommender.recommend` gives them.

        Raises :class:`UserError` for a wrong ``k``, a user without events, and one who leaves fewer than ``k`` items.
        """
        chosen = list(range(len(self))) if users is None else self._numbers(users)
        for user in chosen:
            if not self._items[user]:
                raise UserError(f"user {user}: no events yet; at least one is needed")
        where = torch.tensor(chosen, dtype=torch.int64, device=self._hidden.device)
        with self._recommender.autocast():
            scores = self._recommender.model.scores_of(self._hidden[where], self._state.recent(where))
        histories = [np.array(self._items[user], dtype=np.int32) for user in chosen]
        return self._recommender.best(scores, histories, k, exclude_seen, [f"user {user}" for user in chosen])

    def state(self, user: int) -> ModelState:
        """A copy of a user's state; to store it, keep its ``tensors()``."""
        return self._state.index(torch.tensor(self._numbers([user]), device=self._hidden.device))

    @torch.inference_mode()
    def _join(self, requests: Sequence[Request]) -> None:
        model, device = self._recommender.model, self._hidden.device
        count = len(requests)
        most = model.config.max_length
        state, hidden = self._empty(count), self._hidden.new_zeros(count, model.config.dim)
        known = [place for place, request in enumerate(requests) if len(request.items)]
        if known:
            read, reached = self._read([requests[p].items[-most:] for p in known], [requests[p].times for p in known])
            new = [place for place in range(count) if place not in set(known)]
            order = torch.tensor([*known, *new], device=device).argsort()
            state = ModelState.cat([read, self._empty(len(new))]).index(order) if new else read
            hidden[torch.tensor(known, device=device)] = reached
        self._state = ModelState.cat([self._state, state]) if len(self) else state
        self._hidden = torch.cat([self._hidden, hidden])
        self._items += [request.items.tolist() for request in requests]
        self._times += [[] if request.times is None else request.times.tolist() for request in requests]

    def _empty(self, users: int) -> ModelState:
        return self._recommender.model.init_state(users, compact=self._compact)

    def _read(
        self, items: Sequence[NDArray[np.int32]], times: Sequence[NDArray[np.int64] | None]
    ) -> tuple[ModelState, torch.Tensor]:
        """The state and the hidden states after whole histories."""
        given = None if times[0] is None else [time for time in times if time is not None]
        batch = pack_histories(items, self._recommender.model.config.max_length, given).to(self._hidden.device)
        with self._recommender.autocast():
            hidden, state = self._recommender.model.prefill(batch, compact=self._compact)
        return state, hidden.to(self._hidden.dtype)

    def _make_room(self, users: Sequence[int]) -> None:
        """Reads the last part of those histories again that fill all positions."""
        most = self._recommender.model.most_events
        if most is None:
            return
        events = self._state.events.tolist()
        full = [user for user in users if events[user] >= most]
        if not full:
            return
        kept = part_kept(most)
        state, hidden = self._empty(len(full)), torch.zeros_like(self._hidden[: len(full)])
        if kept:
            items = [np.array(self._items[user][-kept:], dtype=np.int32) for user in full]
            times = [np.array(self._times[user][-kept:]) if self._times[user] else None for user in full]
            state, hidden = self._read(items, times)
        self._put(torch.tensor(full, device=self._hidden.device), hidden, state)

    def _put(self, where: torch.Tensor, hidden: torch.Tensor, state: ModelState) -> None:
        self._hidden[where] = hidden.to(self._hidden.dtype)
        new = state.tensors()
        for name, values in self._state.tensors().items():
            values[where] = new[name]

    def _numbers(self, users: Iterable[int]) -> list[int]:
        if not is_iterable(users):
            raise UserError(f"users: expected numbers from 0 to {len(self) - 1}, got {shortened(users)}")
        numbers = list(users)
        for user in numbers:
            expect(user, (int, np.integer), "users", "whole numbers")
            if not 0 <= user < len(self):
                raise UserError(f"users: {user} is none of the {len(self)} users, numbered from 0")
        if len(set(numbers)) < len(numbers):
            raise UserError("users: each at most once")
        return [int(user) for user in numbers]
