"""Baselines that need no training, to print beside every model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.batches import Batch
from hyenarec.data.splits import Split, training_events
from hyenarec.data.store import SequenceStore
from hyenarec.evaluation import Scorer
from hyenarec.repeats import EXPONENT

DAY = 86_400  # seconds
RECENT_DAYS = 7
# Settings of item-to-item. Of six tried, these are within .002 of the best validation NDCG@10 on ml-100k (.106;
# popularity has .034) and within .007 on online-retail (.192; repeat-last has .028) and email-eu-core (.471; .497).
FOLLOWING = 10  # events after an item that count as following it
NEIGHBOURS = 100  # items that are kept as an item's followers
LAST = 20  # events of a history from which the next item is predicted
FOLLOWERS_AT_A_TIME = 1 << 18
MOST_EVENTS = 2_000_000  # counted at most; of larger logs, those of every second, third, ... user


class Popularity:
    """Scores an item by its number of training events, the same for everyone.

    With ``days`` only those of the last days before the newest training event count: a strong rival on time splits.
    """

    def __init__(self, store: SequenceStore, split: Split, days: float | None = None) -> None:
        training = training_events(store, split)
        if days is not None:
            assert store.timestamps is not None
            training &= store.timestamps >= store.timestamps[training].max() - days * DAY
        self.counts = torch.from_numpy(np.bincount(store.items[training], minlength=store.n_items)).float()  # (V,)

    def below_one(self) -> Tensor:
        """The counts (V,), scaled to below 1."""
        return self.counts / (self.counts.max() + 1)

    def scores(self, batch: Batch) -> Tensor:
        return self.counts.to(batch.items.device).repeat(batch.packing.sequences, 1)


class RepeatLast:
    """Recommends the items of the history, the latest first, then the rest by popularity."""

    def __init__(self, popularity: Popularity) -> None:
        self.fallback = popularity.below_one()  # (V,)

    def scores(self, batch: Batch) -> Tensor:
        scores = self.fallback.to(batch.items.device).repeat(batch.packing.sequences, 1)
        # Position 0 scores 1, above every popularity; amax keeps an item's latest position.
        flat = batch.packing.rows * scores.shape[1] + batch.items
        latest = (batch.packing.positions + 1).to(scores.dtype)
        scores.view(-1).scatter_reduce_(0, flat, latest, "amax")
        return scores


class RepeatOften:
    """Recommends the items of the history by how often and how lately they came, then the rest by popularity: an event
    counts ``lag^-EXPONENT``, which is where a repeat head begins."""

    def __init__(self, popularity: Popularity) -> None:
        self.fallback = popularity.below_one()  # (V,)

    def scores(self, batch: Batch) -> Tensor:
        packing = batch.packing
        scores = torch.zeros(packing.sequences, len(self.fallback), device=batch.items.device)
        lags = packing.lengths[packing.rows] - packing.positions  # (T,), 1 for the last event
        flat = packing.rows * scores.shape[1] + batch.items
        scores.view(-1).index_add_(0, flat, lags.to(scores.dtype) ** -EXPONENT)
        fallback = self.fallback.to(scores.device)
        return torch.where(scores > 0, scores, fallback - 1)  # below every item of the history


class ItemToItem:
    """Recommends what usually follows the last events of the history, the latest counting most: "people who had this
    went on with that".

    ``C[i, j]`` adds up ``1 / lag`` over all training events of ``j`` that come ``lag`` events after one of ``i``, up to
    ten, and is divided by ``sqrt(n_i n_j)``, so that items do not win by being popular. The score of ``j`` adds up
    ``C[i, j] / age`` over the last 20 events ``i`` of a history. Items that follow none of these come last, by
    popularity. Of more than two million training events, only those of every second, third, ... user count.
    """

    def __init__(self, store: SequenceStore, split: Split, popularity: Popularity) -> None:
        training = np.flatnonzero(training_events(store, split))
        users = store.users_of(training)
        counted = users % max(1, -(-len(training) // MOST_EVENTS)) == 0
        users, items = users[counted], store.items[training[counted]].astype(np.int64)
        pairs, parts = [], []  # item before x V + item after, and 1 / lag, of every pair
        for lag in range(1, FOLLOWING + 1):
            same = users[lag:] == users[:-lag]
            pairs.append(items[:-lag][same] * store.n_items + items[lag:][same])
            parts.append(np.full(len(pairs[-1]), 1 / lag, dtype=np.float32))
        keys, places = np.unique(np.concatenate(pairs), return_inverse=True)
        weights = np.bincount(places, np.concatenate(parts))
        before, after = np.divmod(keys, store.n_items)
        counts = np.maximum(popularity.counts.numpy(), 1)
        weights = weights / np.sqrt(counts[before] * counts[after])
        order = np.lexsort((-weights, before))
        starts = np.searchsorted(before[order], np.arange(store.n_items))
        kept = np.arange(len(order)) - starts[before[order]] < NEIGHBOURS
        order = order[kept]
        self.starts = torch.from_numpy(np.searchsorted(before[order], np.arange(store.n_items + 1)))  # (V+1,)
        self.after, self.weights = torch.from_numpy(after[order]), torch.from_numpy(weights[order]).float()
        # Scaled to stay below the least score that a follower can have.
        least = float(self.weights.min()) / LAST if len(order) else 1.0
        self.fallback = popularity.below_one() * least  # (V,)

    def scores(self, batch: Batch) -> Tensor:
        device, packing = batch.items.device, batch.packing
        starts, after, weights = (table.to(device) for table in (self.starts, self.after, self.weights))
        scores = torch.zeros(packing.sequences, len(self.fallback), device=device)
        ages = packing.lengths[packing.rows] - packing.positions  # (T,), 1 for the last event
        for event in torch.split(torch.nonzero(ages <= LAST)[:, 0], FOLLOWERS_AT_A_TIME // NEIGHBOURS):
            first = starts[batch.items[event]]
            many = starts[batch.items[event] + 1] - first  # (t,)
            of = torch.repeat_interleave(torch.arange(len(event), device=device), many)
            place = first[of] + torch.arange(len(of), device=device) - (many.cumsum(0) - many)[of]
            flat = packing.rows[event][of] * scores.shape[1] + after[place]
            scores.view(-1).index_add_(0, flat, weights[place] / ages[event][of])
        return torch.maximum(scores, self.fallback.to(device))


def baselines(store: SequenceStore, split: Split) -> dict[str, Scorer]:
    """Every baseline that this log allows, by the name to print."""
    popularity = Popularity(store, split)
    found: dict[str, Scorer] = {
        "popularity": popularity,
        "repeat-last": RepeatLast(popularity),
        "repeat-often": RepeatOften(popularity),
        "item-to-item": ItemToItem(store, split, popularity),
    }
    if (
        store.timestamps is not None and np.ptp(store.timestamps) >= 2 * RECENT_DAYS * DAY
    ):  # a shorter range may be an order and no times
        found[f"popularity, {RECENT_DAYS} days"] = Popularity(store, split, days=RECENT_DAYS)
    return found
