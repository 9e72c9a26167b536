"""What attention remembers of a history that it reads event by event: all of it, the last part, or what matters.

A cache has room for so many events of each sequence, as keys and values. Which of them stay is its policy:

- ``full``: all; a step's time and a user's memory grow with the history;
- ``window``: the last ones;
- ``citrus``: the newest, and of the others those that the last events attend to most (CItruS, arXiv 2406.12018, and its
  authors' code: chunk by chunk, in every layer by itself, by the mean over heads and over the instruction's tokens).

Ours in ``citrus``: the last events stand for the instruction, which a language model is given and a recommender is not;
their attention is taken over those events alone that may be dropped; the size of a chunk, an eighth of the room. A
hyena mixer has no keys and values, so no policy either: its state is as large as its horizon.
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
    """Of one mixer. Its states hold ``cache`` (S, room, 2, H, D/H), keys and values, and ``events`` (S,), all read."""

    def __init__(self, room: int) -> None:
        self.room = room

    def init_state(self, sequences: int, weight: Tensor, heads: int) -> TensorState:
        """Empty caches, of the dtype and on the device of a mixer's ``weight`` (D, D)."""
        return TensorState(
            cache=weight.new_zeros(sequences, self.room, 2, heads, weight.shape[0] // heads),
            events=torch.zeros(sequences, dtype=torch.int64, device=weight.device),
        )

    @abstractmethod
    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        """Put whole histories, (S, M, 3, H, D/H), right-padded, into a state without events."""

    @abstractmethod
    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        """Put the next event of every sequence, (S, 3, H, D/H), into its cache; the state, which may be the one given,
        and how many places of each cache are taken, (S,)."""


def make_cache(options: AttentionConfig, max_length: int) -> Cache:
    """The cache that the options ask for, of a model that reads ``max_length`` events."""
    room = min(options.cache_events or max_length, max_length)
    policies: dict[str, Callable[[int], Cache]] = {"full": FullCache, "window": WindowCache, "citrus": CitrusCache}
    return policies[options.cache](room)


class FullCache(Cache):
    """Room for as many events as there are positions."""

    def fill(self, state: TensorState, qkv: Tensor, packing: Packing) -> None:
        state["cache"][:, : packing.max_length] = qkv[:, :, 1:]
        state["events"] += packing.lengths

    def add(self, state: TensorState, qkv: Tensor) -> tuple[TensorState, Tensor]:
        cache, events = state["cache"], state["events"]
        cache[torch.arange(qkv.shape[0], device=qkv.device), events] = qkv[:, 1:].to(cache.dtype)
        return TensorState(state, events=events + 1), events + 1


class WindowCache(Cache):
    """Each event in the place of the one that it drives out: attention does not ask where a key stands."""

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
    """Whenever all room is taken, a chunk of it is freed: the last chunk stays, and the best of what is older."""

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
        """Of ``held`` (S,) events in the order of their age, (S, M, 2, H, D/H), those that stay, in that order (S, up
        to room - 1, ..), and how many they are: all where there is room for one more. ``queries`` (S, m, H, D/H) are
        of the last events."""
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
        return keys_values[rows, order], stays.sum(1)  # take_along_dim knows no symbols of sizes
