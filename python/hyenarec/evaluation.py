"""Exact full-catalogue ranking: the rank of each target among all items, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

LENGTH_BUCKETS = (10, 20, 50, 100, 200, 500, 1000)  # upper bounds of history length, the last bucket is open
DEFAULT_KS = (5, 10, 20)
SCORES_AT_A_TIME = 1 << 26  # 256 MiB of float32

Seen = Literal["history", "input"]
"""Which items count as seen: all of the user's history before the target, as recommending has it, or only the part of
it that the model reads, as published results have it (then the model's ``max_length`` changes what is ranked)."""


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
    """Ranks of the targets (0-based) and the full lengths of the histories before them, both (n,)."""

    ranks: NDArray[np.int64]
    history_lengths: NDArray[np.int64]

    def metrics(self, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
        """NDCG, Recall and HR at each k, and MRR over the whole catalogue.

        One target a user, so Recall@k and HR@k are the same number, NDCG@k is the mean of ``1 / log2(rank + 2)`` over
        ranks below k, and MRR is the mean of ``1 / (rank + 1)``. NaN where there is no target.
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
        """The same metrics for users of each length bucket that has any; each entry also has ``history`` and
        ``targets``."""
        bucket = np.searchsorted(LENGTH_BUCKETS, self.history_lengths)
        rows: list[dict[str, Any]] = []
        for index in range(len(LENGTH_BUCKETS) + 1):
            chosen = bucket == index
            if chosen.any():
                low = LENGTH_BUCKETS[index - 1] + 1 if index else 1
                name = f"{low}-{LENGTH_BUCKETS[index]}" if index < len(LENGTH_BUCKETS) else f"{low}+"
                part = Ranking(self.ranks[chosen], self.history_lengths[chosen])
                rows.append({"history": name, "targets": int(chosen.sum()), **part.metrics(ks)})
        return rows


def rank_targets(
    scorer: Scorer,
    store: SequenceStore,
    targets: NDArray[np.int64],
    *,
    max_length: int,
    exclude_seen: bool = True,
    seen: Seen = "history",
    device: torch.device | None = None,
) -> Ranking:
    """Rank every target event among all items, given the history before it cut to ``max_length`` events.

    ``targets`` (n,) absolute event indices of ``store``. With ``exclude_seen`` the items that ``seen`` names are never
    recommended; a target that is one of them counts as missed. Raises :class:`UserError` where there are no targets
    and :class:`ScoreError` for scores that rank nothing.
    """
    if not len(targets):
        raise UserError("nothing to evaluate: the split has no targets (every user has too few events)")
    ranks = np.zeros(len(targets), dtype=np.int64)
    starts = store.offsets[store.users_of(targets)]
    lengths = targets - starts
    with torch.inference_mode():
        batches = evaluation_batches(store, targets, max_length, scored_at_a_time(store.n_items))
        for number, (places, batch) in enumerate(batches):
            if not distributed.mine(number):
                continue
            moved = batch if device is None else batch.to(device)
            assert moved.targets is not None
            scores = scorer.scores(moved)
            if exclude_seen:
                read = moved
                longest = int(lengths[places].max())
                if seen == "history" and longest > max_length:
                    rows = [store.items[start:end] for start, end in zip(starts[places], targets[places], strict=True)]
                    read = pack_histories(rows, longest).to(scores.device)
                scores = exclude_history(scores, read)
            ranks[places] = target_ranks(scores, moved.targets).cpu().numpy()
    distributed.add_up_ranks(ranks)
    return Ranking(ranks, lengths)


def repeats(store: SequenceStore, targets: NDArray[np.int64]) -> int:
    """How many of the target events are of an item that their user has had before."""
    starts = store.offsets[store.users_of(targets)]
    pairs = zip(starts.tolist(), targets.tolist(), strict=True)
    return sum(bool((store.items[start:target] == store.items[target]).any()) for start, target in pairs)


def repeats_line(store: SequenceStore, targets: NDArray[np.int64], exclude_seen: bool) -> str | None:
    """One line for people where targets count as missed because their user has seen them; None where none does."""
    found = repeats(store, targets) if exclude_seen else 0
    if not found:
        return None
    return (
        f"{found:,} of {len(targets):,} targets are in their own history: items already seen are not recommended, so "
        "these may count as missed; --no-exclude-seen ranks them too, and where rows stand twice --drop-duplicates"
    )


@dataclass(frozen=True)
class KnownPart:
    """What a model can be asked of a log that has grown since: the log without events of items that are new to it."""

    store: SequenceStore
    """The log's users, with the model's items."""
    targets: NDArray[np.int64]
    """The targets that are left, as event indices of ``store``, (m,)."""
    lost_history_lengths: NDArray[np.int64]
    """History lengths of the targets that are new items, or have nothing but new items before them, (n - m,)."""
    new_items: int
    """Items of the log that the model does not know."""

    def describe(self) -> str | None:
        """One line for people where the log has new items; None where it has none."""
        if not self.new_items:
            return None
        lost, total = len(self.lost_history_lengths), len(self.lost_history_lengths) + len(self.targets)
        return (
            f"{self.new_items:,} of the log's items are newer than the model and left out of histories; {lost:,} of "
            f"{total:,} targets are new, or have nothing else before them, and count as missed"
        )

    def with_lost(self, ranking: Ranking) -> Ranking:
        """``ranking`` of ``targets``, and the lost ones as missed."""
        missed = np.full(len(self.lost_history_lengths), self.store.n_items, dtype=np.int64)
        return Ranking(
            np.concatenate((ranking.ranks, missed)),
            np.concatenate((ranking.history_lengths, self.lost_history_lengths)),
        )


def known_part(store: SequenceStore, item_ids: Ids, targets: NDArray[np.int64], absent: int = 0) -> KnownPart | None:
    """``store`` as a model of ``item_ids`` sees it; None where the log lacks more items of the model than the
    ``absent`` ones that the log of its training lacked, so is another one."""
    nothing = np.empty(0, dtype=np.int64)
    mine, theirs = item_ids.to_arrays(), store.item_ids.to_arrays()
    if mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine):
        return KnownPart(store, targets, nothing, 0)
    places = item_ids.find(store.item_ids.decode(np.arange(store.n_items)))  # (V,), -1 for a new item
    if len(np.unique(places[places >= 0])) < len(item_ids) - absent:
        return None
    kept = places[store.items] >= 0  # (E,)
    before = np.zeros(len(kept) + 1, dtype=np.int64)  # (E+1,) kept events before each
    np.cumsum(kept, out=before[1:])
    known = SequenceStore(
        before[store.offsets],
        places[store.items[kept]],
        None if store.timestamps is None else store.timestamps[kept],
        store.user_ids,
        item_ids,
    )
    starts = store.offsets[store.users_of(targets)]
    rankable = kept[targets] & (before[targets] > before[starts])
    return KnownPart(known, before[targets[rankable]], (targets - starts)[~rankable], int((places < 0).sum()))
