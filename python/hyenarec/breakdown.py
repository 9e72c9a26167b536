"""What a ranking says beyond its averages: metrics by kind of target, and what the items shown are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.splits import Split, training_counts, training_events
from hyenarec.data.store import SequenceStore
from hyenarec.evaluation import Ranking, ages

# Upper bounds of buckets; one more bucket, without a bound, follows.
AGE_BUCKETS = (0, 1, 5, 20, 100, 500)  # events since a target's last occurrence; 0 is none
POPULARITY_BUCKETS = (0, 5, 20, 100, 500)  # training events of a target's item
TRANSITION_BUCKETS = (0, 1, 2, 5, 20)  # training events of a target's item right after the item before it
CHUNK = 1 << 24  # events at a time; temporary arrays take 24 bytes for each
# The breakdowns, and the column that says which bucket a row is of.
KINDS = {
    "by_history_length": "history",
    "by_age": "age",
    "by_popularity": "popularity",
    "by_transition": "transition",
}
MEANING = {
    "by_history_length": "events in the user's history",
    "by_age": "events since the item occurred last (0: never)",
    "by_popularity": "training events of the item",
    "by_transition": "training events of the item right after the one before it",
}


def metrics_of(ranking: Ranking, counts: NDArray[np.int64]) -> dict[str, float]:
    """A ranking's metrics and, where it has counted the items that it shows, what its best ten are like.

    ``counts`` (V,) are the training events of each item. ``coverage@10`` is the share of the catalogue that is among
    the best ten for any target. ``novelty@10`` is the mean over all items shown of ``log2(N / (count + 1))`` bits,
    where N is the sum of ``counts`` and one more per item: how surprising it is that a random event is of this item.
    """
    found = ranking.metrics()
    if ranking.shown is not None:
        bits = np.log2((counts.sum() + len(counts)) / (counts + 1))
        found["coverage@10"] = float((ranking.shown > 0).mean())
        found["novelty@10"] = float((bits * ranking.shown).sum() / max(1, ranking.shown.sum()))
    return found


def transitions(store: SequenceStore, split: Split, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often in training each target's item came right after the item that precedes the target, (n,); 0 for a user's
    first event."""

    def pair(events: NDArray[np.int64]) -> NDArray[np.int64]:  # one number for each event's item and the one before it
        return store.items[events - 1].astype(np.int64) * store.n_items + store.items[events]

    has_one = targets > store.offsets[store.users_of(targets)]
    asked = np.full(len(targets), -1, dtype=np.int64)
    asked[has_one] = pair(targets[has_one])
    pairs, which = np.unique(asked, return_inverse=True)
    found = np.zeros(len(pairs), dtype=np.int64)
    follows = training_events(store, split)  # (E,), the training events that have an event of the same user before them
    follows[store.offsets[:-1][np.diff(store.offsets) > 0]] = False
    for first in range(0, len(follows), CHUNK):
        keys = pair(first + np.flatnonzero(follows[first : first + CHUNK]))
        places = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        found += np.bincount(places[pairs[places] == keys], minlength=len(pairs))
    return found[which]


@dataclass(frozen=True)
class TargetKinds:
    """What kind of target each of n targets is. ``ages`` (n,): how many events ago its item last occurred (0: never);
    ``popularity`` (n,): the training events of its item; ``transitions`` (n,): how many of these come right after the
    item that precedes the target. ``counts`` (V,) are the training events of all items."""

    ages: NDArray[np.int64]
    popularity: NDArray[np.int64]
    transitions: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, store: SequenceStore, split: Split, targets: NDArray[np.int64]) -> TargetKinds:
        with store.unchanged():
            counts = training_counts(store, split)
            kinds = counts[store.items[targets]], transitions(store, split, targets)
            return cls(ages(store, targets), *kinds, counts)

    def breakdown(self, ranking: Ranking) -> dict[str, list[dict[str, Any]]]:
        """Metrics by each of ``KINDS``: rows as :meth:`Ranking.by` gives them."""
        return {
            "by_history_length": ranking.by_history_length(),
            "by_age": ranking.by("age", self.ages, AGE_BUCKETS),
            "by_popularity": ranking.by("popularity", self.popularity, POPULARITY_BUCKETS),
            "by_transition": ranking.by("transition", self.transitions, TRANSITION_BUCKETS),
        }

    def report(self, ranking: Ranking) -> dict[str, Any]:
        """What a result reports of a ranking of the test targets: the metrics as ``test``, and each breakdown by its
        name."""
        parts = self.breakdown(ranking)
        return {"test": metrics_of(ranking, self.counts)} | {f"test_{name}": rows for name, rows in parts.items()}


def averaged(reports: Sequence[Mapping[str, Any]], kind: str, metric: str = "NDCG@10") -> dict[str, float]:
    """For each bucket of a breakdown, the mean of ``metric`` over results of several seeds, which share their
    targets."""
    same = zip(*(report[f"test_{kind}"] for report in reports), strict=True)
    return {rows[0][KINDS[kind]]: mean(row[metric] for row in rows) for rows in same}


def seen_and_unseen(report: Mapping[str, Any], metric: str = "NDCG@10") -> dict[str, float | None]:
    """``metric`` for targets whose item the user has had before, and for the others; None where there are none."""
    found: dict[str, float | None] = {}
    for name, is_new in (("seen before", False), ("new to the user", True)):
        rows = [row for row in report["test_by_age"] if (row["age"] == "0") == is_new]
        many = sum(row["targets"] for row in rows)
        found[name] = sum(row[metric] * row["targets"] for row in rows) / many if many else None
    return found
