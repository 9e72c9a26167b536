"""Key-value caches: what attention remembers of a history that it reads one event at a time.

A cache holds the keys and values of at most ``room`` events of each sequence. Its policy says which events it keeps:

- ``full``: all of them; the time of a step and the memory of a user grow with the history;
- ``window``: the last ones;
- ``citrus``: the newest, and of the older ones those that the last events attend to most (CItruS, arXiv 2406.12018, and
  its authors' code: it evicts chunk by chunk, in each layer separately, by the attention averaged over heads and over
  the tokens of the instruction).

Ours in ``citrus``: the last events stand for the instruction, which a language model is given and a recommender is not;
their attention is computed over only those events that may be dropped; a chunk is an eighth of the room. A hyena mixer
has no keys and values, so it has no such policy: its state is as large as its horizon.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from hyenarec.config import AttentionConfig
from hyenarec.mixers.base import TensorState, any_true
from hyenarec.packing import Packing


class Cache(ABC):
    """The cache of one mixer. Its states hold ``cache`` (S, room, 2, H, D/H), the keys and values, and ``events`` (S,),
    the number of events read so far."""

    def __init__(self, room: int) -> None:
        self.room = room

    def init_state(self, sequences: int, weight: Tensor, heads: int) -> TensorState:
        """Empty caches with the dtype and device of a mixer's ``weight`` (D, D)."""
        return TensorState(
            cache=weight.new_zeros(sequences, self.room, 2, heads, weight.shape[0] // heads),
            events=torch.zeros(sequences, dtype=torch.int64, device=weight.device),
        )

    @abstractmethod
    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        """Put whole right-padded histories, ``qkv`` (S, M, 3, H, D/H), into a state without events, in place."""

    @abstractmethod
    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        """Put the next event of every sequence, ``qkv`` (S, 3, H, D/H), into its cache. Returns the new state, which
        may be the one given, and how many places of each cache are filled, (S,)."""


def make_cache(options: AttentionConfig, max_length: int) -> Cache:
    """The cache that the options ask for, for a model that reads at most ``max_length`` events."""
    room = min(options.cache_events or max_length, max_length)
    policies: dict[str, Callable[[int], Cache]] = {"full": FullCache, "window": WindowCache, "citrus": CitrusCache}
    return policies[options.cache](room)


class FullCache(Cache):
    """Keeps every event: it has room for as many as the model has positions."""

    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        state["cache"][:, : packing.max_length] = qkv[:, :, 1:]
        state["events"] += packing.lengths

    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        cache, events = state["cache"], state["events"]
        cache[torch.arange(qkv.shape[0], device=qkv.device), events] = qkv[:, 1:].to(cache.dtype)
        return TensorState(state, events=events + 1), events + 1


class WindowCache(Cache):
    """A ring buffer: each new event overwrites the oldest. Attention does not depend on the order of the keys."""

    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        place, lengths = torch.arange(self.room, device=qkv.device), packing.lengths[:, None]
        event = place + (lengths - 1 - place).div(self.room, rounding_mode="floor") * self.room  # (S, room), the newest
        kept = qkv[:, :, 1:].take_along_dim(event.clamp_min(0)[..., None, None, None], 1)
        state["cache"].copy_(kept * (event >= 0)[..., None, None, None])
        state["events"] += packing.lengths

    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        cache, events = state["cache"], state["events"]
        cache[torch.arange(qkv.shape[0], device=qkv.device), events % self.room] = qkv[:, 1:].to(cache.dtype)
        return TensorState(state, events=events + 1), (events + 1).clamp_max(self.room)


class CitrusCache(Cache):
    """Frees one chunk whenever it is full. The newest chunk stays, and of the older events those that the newest attend
    to most."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.chunk = max(1, room // 8)

    def init_state(self, sequences: int, weight: Tensor, heads: int) -> TensorState:
        state = super().init_state(sequences, weight, heads)
        queries = state["cache"].new_zeros(sequences, self.chunk, heads, weight.shape[0] // heads)
        return TensorState(state, queries=queries, held=state["events"].clone())

    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        lengths = packing.lengths
        last = lengths[:, None] - torch.arange(self.chunk, 0, -1, device=qkv.device)  # (S, m) the last events
        rows = last.clamp_min(0)[..., None, None]
        state["queries"].copy_(qkv[:, :, 0].take_along_dim(rows, 1) * (last >= 0)[..., None, None])
        kept, held = self._evict(qkv[:, :, 1:], lengths, state["queries"])
        state["cache"][:, : kept.shape[1]] = kept
        state["events"] += lengths
        state["held"] += held

    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        cache, queries, held = state["cache"], state["queries"], state["held"]
        full = held == self.room
        if any_true(full):
            kept, fewer = self._evict(cache, held, queries)
            cache[:, : kept.shape[1]] = torch.where(full[:, None, None, None, None], kept, cache[:, : kept.shape[1]])
            held = torch.where(full, fewer, held)
        cache[torch.arange(qkv.shape[0], device=qkv.device), held] = qkv[:, 1:].to(cache.dtype)
        queries = torch.cat((queries[:, 1:], qkv[:, :1].to(queries.dtype)), 1)
        held = held + 1
        return TensorState(state, queries=queries, held=held, events=state["events"] + 1), held

    def _evict(self, keys_values: Tensor, held: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Selects the events that stay in each cache: all of them if there is room for one more.

        ``keys_values`` (S, M, 2, H, D/H) has the events in order of time, of which the first ``held`` (S,) are real;
        ``queries`` (S, m, H, D/H) are those of the last events. Returns the keys and values that stay, in order of
        time, (S, at most room - 1, 2, H, D/H), and their number (S,).
        """
        place = torch.arange(keys_values.shape[1], device=held.device)
        most = max(1, self.room - self.chunk)
        newest = min(self.chunk, most)
        older = place < held[:, None] - newest  # (S, M)
        scores = torch.einsum("smhd,skhd->shmk", queries, keys_values[:, :, 0].to(queries.dtype))
        scores = (scores * queries.shape[-1] ** -0.5).masked_fill(~older[:, None, None], -torch.inf)
        attention = scores.softmax(-1).nan_to_num(0).mean((1, 2))  # (S, M)
        stays = (place < held[:, None]) & (~older | (held < self.room)[:, None])
        best = attention.masked_fill(~older, -1).topk(min(most - newest, place.shape[0]), 1)
        stays = stays.scatter(1, best.indices, stays.gather(1, best.indices) | (best.values >= 0))
        order = stays.int().argsort(dim=1, descending=True, stable=True)[:, : self.room - 1]  # those that stay first
        rows = torch.arange(keys_values.shape[0], device=held.device)[:, None]
        return keys_values[rows, order], stays.sum(1)  # take_along_dim does not support symbolic sizes
