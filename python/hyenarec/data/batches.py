"""From a sequence store to packed batches: training slices and evaluation histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.packing import Packing

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Packed sequences of dense item indices.

    ``items`` (T,) int64. ``targets`` int64: in training the next item after every event, (T,); in evaluation the one
    item to rank for each sequence, (S,). ``timestamps`` (T,) int64 where the log has them. ``masked`` (P,) int64: the
    rows of hidden events, whose items a bidirectional model does not see (:mod:`hyenarec.cloze`).
    """

    items: Tensor
    packing: Packing
    timestamps: Tensor | None = None
    targets: Tensor | None = None
    masked: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            items=self.items.to(device, non_blocking=True),
            packing=self.packing.to(device),
            timestamps=move(self.timestamps),
            targets=move(self.targets),
            masked=move(self.masked),
        )


def pack_histories(
    histories: Sequence[NDArray[np.int32]], max_length: int, timestamps: Sequence[NDArray[np.int64]] | None = None
) -> Batch:
    """Pack the last ``max_length`` events of each history, and their times; for histories that come from no store."""

    def pack(rows: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.asarray(row[-max_length:], dtype=np.int64) for row in rows]))

    lengths = torch.tensor([min(len(history), max_length) for history in histories], dtype=torch.int64)
    return Batch(
        pack(histories), Packing.from_lengths(lengths), timestamps=None if timestamps is None else pack(timestamps)
    )


def _gather(store: SequenceStore, starts: IntArray, ends: IntArray) -> tuple[IntArray, Batch]:
    """Pack the events ``starts[s]:ends[s]`` of each sequence: their indices in the store, (T,), and the batch."""
    lengths = ends - starts
    packing = Packing.from_lengths(torch.from_numpy(lengths))
    first = np.repeat(starts - np.concatenate(([0], lengths.cumsum()[:-1])), lengths)
    events = first + np.arange(lengths.sum())
    timestamps = None if store.timestamps is None else torch.from_numpy(store.timestamps[events].astype(np.int64))
    return events, Batch(torch.from_numpy(store.items[events].astype(np.int64)), packing, timestamps)


class TrainingSlices:
    """Slices of at most ``max_length`` input events, cut from the end of every user's training events backwards.

    Consecutive slices of a user share no targets, so that an epoch predicts every training event but each user's first
    exactly once. A slice is only a start and an end in the store, (slices,) each: no prefix is ever expanded.
    """

    def __init__(
        self,
        store: SequenceStore,
        split: Split,
        max_length: int,
        batch_size: int,
        since: NDArray[np.int64] | None = None,
    ) -> None:
        """``since`` (U,) int64 seconds leaves out slices whose targets are all at or before their user's entry."""
        self.store = store
        self.batch_size = batch_size
        begins, ends = store.offsets[:-1].astype(np.int64), split.train_ends.astype(np.int64)
        inputs = np.maximum(ends - begins - 1, 0)  # events that have a next event to predict
        counts = -(-inputs // max_length)
        user = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)  # 0 = the user's latest slice
        self.ends = ends[user] - 1 - nth * max_length  # (slices,) one past the last input event
        self.starts = np.maximum(self.ends - max_length, begins[user])  # (slices,)
        if since is not None and store.timestamps is not None:
            later = store.timestamps[self.ends] > since[user]  # the time of the last event to predict
            self.starts, self.ends = self.starts[later], self.ends[later]

    @property
    def tokens(self) -> int:
        """Predictions in an epoch."""
        return int((self.ends - self.starts).sum())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.starts) // self.batch_size)

    def epoch(self, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in an order fixed by ``(seed, epoch)``, from batch ``skip`` on."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.starts))
        for first in range(skip * self.batch_size, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            with self.store.unchanged():
                events, batch = _gather(self.store, self.starts[chosen], self.ends[chosen])
                targets = torch.from_numpy(self.store.items[events + 1].astype(np.int64))
            yield replace(batch, targets=targets)


def evaluation_batches(
    store: SequenceStore, targets: IntArray, max_length: int, batch_size: int
) -> Iterator[tuple[IntArray, Batch]]:
    """The histories before the target events, each cut to its last ``max_length`` events, in batches of similar length.

    Yields the positions in ``targets`` that a batch covers, (S,), and the batch.
    """
    with store.unchanged():
        starts = np.maximum(store.offsets[store.users_of(targets)], targets - max_length)
    by_length = np.argsort(targets - starts, kind="stable")
    for first in range(0, len(by_length), batch_size):
        places = by_length[first : first + batch_size]
        with store.unchanged():
            _, batch = _gather(store, starts[places], targets[places])
            wanted = torch.from_numpy(store.items[targets[places]].astype(np.int64))
        yield places, replace(batch, targets=wanted)
