"""Exact full-catalogue ranking: the rank of each target among all items, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec import distributed
from hyenarec.catalogue import count_reaching
from hyenarec.data.batches import Batch, evaluation_batches, pack_histories
from hyenarec.data.ids import Ids
from hyenarec.data.store import SequenceStore
from hyenarec.errors import ScoreError, UserError
from hyenarec.item_shards import ItemShard

# Upper bounds of buckets; one more bucket, without a bound, follows.
LENGTH_BUCKETS = (10, 20, 50, 100, 200, 500, 1000)  # events in a history
SHOWN = 10  # best items per target from which coverage and novelty are computed
DEFAULT_KS = (5, 10, 20)
SCORES_AT_A_TIME = 1 << 26  # 256 MiB of float32

Seen = Literal["history", "input"]
"""Which items count as seen: those of the user's whole history before the target, as in recommending, or only those of
the part that the model reads, as in published results (then the model's ``max_length`` changes what is ranked)."""


def scored_at_a_time(n_items: int, most: int = 256) -> int:
    """How many histories to score together, so that the scores of ``n_items`` items stay small."""
    return max(1, min(most, SCORES_AT_A_TIME // n_items))


class Scorer(Protocol):
    """What can be evaluated: models and baselines alike."""

    def scores(self, batch: Batch) -> Tensor:
        """Scores of every item as the next one after each sequence of the batch, (S, V)."""
        ...


def exclude_history(scores: Tensor, batch: Batch) -> Tensor:
    """Set the score of every item of each sequence's own history to -inf, in place; (S, V)."""
    scores[batch.packing.rows, batch.items] = float("-inf")
    return scores


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """The 0-based rank of each row's target, (S,) int64, from ``scores`` (S, V) without sorting.

    Ties count against the target, so a scorer that gives every item the same score gains nothing. A target whose score
    is -inf (excluded) ranks last. Raises :class:`ScoreError` where a score is NaN or a target's is +inf.
    """
    own = scores.gather(1, targets[:, None])  # (S, 1)
    if scores.amax(1).isnan().any() or own.isposinf().any():
        raise ScoreError("scores: NaN or +inf found; ranks would be meaningless")
    return count_reaching(scores, own) - 1


@dataclass(frozen=True)
class Ranking:
    """Ranks of the targets (0-based) and the full lengths of the histories before them, both (n,); and if it was asked
    for, ``shown`` (V,): how often each item was among the best ten."""

    ranks: NDArray[np.int64]
    history_lengths: NDArray[np.int64]
    shown: NDArray[np.int64] | None = None

    def metrics(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
        """NDCG, Recall and HR at each k, and MRR over the whole catalogue.

        There is one target per user, so Recall@k and HR@k are the same number, NDCG@k is the mean of
        ``1 / log2(rank + 2)`` over ranks below k (else 0), and MRR is the mean of ``1 / (rank + 1)``. NaN where
        there is no target.
        """
        if not len(self.ranks):
            return {f"{name}@{k}": float("nan") for k in ks for name in ("NDCG", "Recall", "HR")} | {
                "MRR": float("nan")
            }
        gains = 1 / np.log2(self.ranks + 2)
        found: dict[str, float] = {}
        for k in ks:
            hit = self.ranks < k
            found[f"NDCG@{k}"] = float((gains * hit).mean())
            found[f"Recall@{k}"] = found[f"HR@{k}"] = float(hit.mean())
        found["MRR"] = float((1 / (self.ranks + 1)).mean())
        return found

    def by_history_length(self, ks: Sequence[int] = DEFAULT_KS) -> list[dict[str, Any]]:
        """The same metrics for each length bucket that has any users; each entry also has ``history`` and
        ``targets``."""
        return self.by("history", self.history_lengths, LENGTH_BUCKETS, ks)

    def by(
        self, name: str, values: NDArray[np.int64], bounds: Sequence[int], ks: Sequence[int] = DEFAULT_KS
    ) -> list[dict[str, Any]]:
        """The same metrics for the targets in each bucket of ``values`` (n,) that has any, ascending.

        Bucket ``i`` holds values with ``bounds[i-1] < value <= bounds[i]``; the last has no upper bound. Each entry
        also has ``targets``, their number, and under ``name`` the values that its bucket holds.
        """
        bucket = np.searchsorted(bounds, values)
        rows: list[dict[str, Any]] = []
        for index in np.unique(bucket).tolist():
            chosen = bucket == index
            part = Ranking(self.ranks[chosen], self.history_lengths[chosen])
            rows.append({name: _bucket_name(bounds, index), "targets": int(chosen.sum()), **part.metrics(ks)})
        return rows


def _bucket_name(bounds: Sequence[int], index: int) -> str:
    low = bounds[index - 1] + 1 if index else min(1, bounds[0])
    if index == len(bounds):
        return f"{low}+"
    return f"{low}-{bounds[index]}" if low < bounds[index] else f"{low}"


def rank_targets(
    scorer: Scorer,
    store: SequenceStore,
    targets: NDArray[np.int64],
    *,
    max_length: int,
    exclude_seen: bool = True,
    seen: Seen = "history",
    device: torch.device | None = None,
    count_shown: bool = False,
    shard: ItemShard | None = None,
) -> Ranking:
    """Rank every target event among all items, given the history before it cut to ``max_length`` events.

    ``targets`` (n,) are indices of events in ``store``. With ``exclude_seen``, items that are seen in the sense of
    ``seen`` are never recommended, and a target that is one of them counts as missed. ``count_shown`` asks for the
    ranking's ``shown``. With a ``shard`` of the item table, scores are those of own items alone, and all processes rank
    the same targets. Raises :class:`UserError` where there are no targets, and :class:`ScoreError` where a score is NaN
    or a target's is +inf.
    """
    if not len(targets):
        raise UserError("nothing to evaluate: the split has no targets (every user has too few events)")
    ranks = np.zeros(len(targets), dtype=np.int64)
    shown = np.zeros(store.n_items if count_shown else 0, dtype=np.int64)
    with store.unchanged():
        starts = store.offsets[store.users_of(targets)]
    lengths = targets - starts
    with torch.inference_mode():
        batches = evaluation_batches(store, targets, max_length, scored_at_a_time(store.n_items))
        for number, (places, batch) in enumerate(batches):
            if shard is None and not distributed.mine(number):
                continue
            moved = batch if device is None else batch.to(device)
            assert moved.targets is not None
            scores = scorer.scores(moved)
            if exclude_seen:
                read = moved
                longest = int(lengths[places].max())
                if seen == "history" and longest > max_length:
                    bounds = zip(starts[places], targets[places], strict=True)
                    with store.unchanged():
                        read = pack_histories([store.items[start:end] for start, end in bounds], longest)
                    read = read.to(scores.device)
                scores = (shard.exclude if shard else exclude_history)(scores, read)
            found = (shard.target_ranks if shard else target_ranks)(scores, moved.targets)
            ranks[places] = found.cpu().numpy()
            if count_shown:
                values, best = scores.topk(min(SHOWN, scores.shape[1]))
                if shard:
                    values, best = shard.best(values, best, min(SHOWN, store.n_items))
                np.add.at(shown, best[values > float("-inf")].cpu().numpy(), 1)
    for counts in (ranks, shown)[: 1 + count_shown] if shard is None else ():
        distributed.add_up_ranks(counts)
    return Ranking(ranks, lengths, shown if count_shown else None)


def ages(store: SequenceStore, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many events ago each target's item last occurred in its user's history, (n,): 1 is the event just before, 0
    means never."""
    starts = store.offsets[store.users_of(targets)]
    found = np.zeros(len(targets), dtype=np.int64)
    for place, (start, target) in enumerate(zip(starts.tolist(), targets.tolist(), strict=True)):
        same = np.flatnonzero(store.items[start:target] == store.items[target])
        if len(same):
            found[place] = target - start - same[-1]
    return found


def repeats(store: SequenceStore, targets: NDArray[np.int64]) -> int:
    """How many of the target events have an item that their user has had before."""
    return int((ages(store, targets) > 0).sum())


def repeats_line(store: SequenceStore, targets: NDArray[np.int64], exclude_seen: bool) -> str | None:
    """One line for people if targets count as missed because their user has seen them; None if none does."""
    found = repeats(store, targets) if exclude_seen else 0
    if not found:
        return None
    return (
        f"{found:,} of {len(targets):,} targets are in their own history: items already seen are not recommended, so "
        "these may count as missed; --no-exclude-seen ranks them too, and --drop-duplicates keeps one of repeated rows"
    )


@dataclass(frozen=True)
class KnownPart:
    """What a model can be asked about a log that has grown since its training: the log without items new to it."""

    store: SequenceStore
    """The log's users, with the model's items."""
    targets: NDArray[np.int64]
    """The targets that are left, as event indices of ``store``, (m,)."""
    kept: NDArray[np.bool_]
    """Which of all targets these are, (n,): the others are new items, or have only new items before them."""
    history_lengths: NDArray[np.int64]
    """The number of events before each of all targets, (n,)."""
    places: NDArray[np.int64]
    """The model's index of each of the log's items, (V,), -1 for a new one."""

    @property
    def new_items(self) -> int:
        """Items of the log that the model does not know."""
        return int((self.places < 0).sum())

    def counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of the log's items, (V,), as counts of the model's items."""
        found = np.zeros(self.store.n_items, dtype=np.int64)
        found[self.places[self.places >= 0]] = counts[self.places >= 0]
        return found

    def describe(self) -> str | None:
        """One line for people if the log has new items; None if it has none."""
        if not self.new_items:
            return None
        lost, total = int((~self.kept).sum()), len(self.kept)
        return (
            f"{self.new_items:,} of the log's items are newer than the model and left out of histories; {lost:,} of "
            f"{total:,} targets are new, or have nothing else before them, and count as missed"
        )

    def with_lost(self, ranking: Ranking) -> Ranking:
        """``ranking``, which is of ``targets``, as one of all targets: the lost ones count as missed."""
        ranks, lengths = np.full(len(self.kept), self.store.n_items, dtype=np.int64), self.history_lengths.copy()
        ranks[self.kept], lengths[self.kept] = ranking.ranks, ranking.history_lengths
        return replace(ranking, ranks=ranks, history_lengths=lengths)


def known_part(store: SequenceStore, item_ids: Ids, targets: NDArray[np.int64], absent: int = 0) -> KnownPart | None:
    """``store`` as a model of ``item_ids`` sees it. None where the log lacks more of the model's items than ``absent``,
    the number that the log of its training lacked: then it is another log."""
    lengths = targets - store.offsets[store.users_of(targets)]
    mine, theirs = item_ids.to_arrays(), store.item_ids.to_arrays()
    if mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine):
        return KnownPart(store, targets, np.ones(len(targets), dtype=np.bool_), lengths, np.arange(store.n_items))
    found = item_ids.find(store.item_ids.decode(np.arange(store.n_items)))
    places = found.astype(np.int64)  # (V,), -1 for a new item
    if len(np.unique(places[places >= 0])) < len(item_ids) - absent:
        return None
    kept = places[store.items] >= 0  # (E,)
    before = np.zeros(len(kept) + 1, dtype=np.int64)  # (E+1,) kept events before each
    np.cumsum(kept, out=before[1:])
    known = SequenceStore(
        before[store.offsets],
        places[store.items[kept]].astype(np.int32),
        None if store.timestamps is None else store.timestamps[kept],
        store.user_ids,
        item_ids,
    )
    rankable = kept[targets] & (before[targets] > before[targets - lengths])
    return KnownPart(known, before[targets[rankable]], rankable, lengths, places)
