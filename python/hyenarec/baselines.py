"""Baselines without parameters, to print beside every model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.batches import Batch
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.evaluation import Scorer

DAY = 86_400  # seconds
RECENT_DAYS = 7


class Popularity:
    """Scores an item by its count among the training events, the same for everyone.

    ``days`` counts only the last days before the newest training event, which on time splits is a strong rival.
    """

    def __init__(self, store: SequenceStore, split: Split, days: float | None = None) -> None:
        event = np.arange(store.n_events)
        user = np.repeat(np.arange(store.n_users), np.diff(store.offsets))
        training = event < split.train_ends[user]
        if days is not None:
            assert store.timestamps is not None
            training &= store.timestamps >= store.timestamps[training].max() - days * DAY
        self.counts = torch.from_numpy(np.bincount(store.items[training], minlength=store.n_items)).float()  # (V,)

    def scores(self, batch: Batch) -> Tensor:
        return self.counts.to(batch.items.device).repeat(batch.packing.sequences, 1)


class RepeatLast:
    """Recommends the items of the history, the latest first, then the rest by popularity."""

    def __init__(self, popularity: Popularity) -> None:
        counts = popularity.counts
        self.fallback = counts / (counts.max() + 1)  # (V,), below 1

    def scores(self, batch: Batch) -> Tensor:
        scores = self.fallback.to(batch.items.device).repeat(batch.packing.sequences, 1)
        # Position 0 scores 1, above every popularity; amax keeps an item's latest position.
        flat = batch.packing.rows * scores.shape[1] + batch.items
        latest = (batch.packing.positions + 1).to(scores.dtype)
        scores.view(-1).scatter_reduce_(0, flat, latest, "amax")
        return scores


def baselines(store: SequenceStore, split: Split) -> dict[str, Scorer]:
    """Every baseline that this log allows, by the name to print."""
    popularity = Popularity(store, split)
    found: dict[str, Scorer] = {"popularity": popularity, "repeat-last": RepeatLast(popularity)}
    if (
        store.timestamps is not None and np.ptp(store.timestamps) >= 2 * RECENT_DAYS * DAY
    ):  # else no times, only an order
        found[f"popularity, {RECENT_DAYS} days"] = Popularity(store, split, days=RECENT_DAYS)
    return found
