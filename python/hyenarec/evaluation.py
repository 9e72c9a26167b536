"""Exact full-catalogue ranking: the rank of each target among all items, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.data.batches import Batch, evaluation_batches
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError

LENGTH_BUCKETS = (10, 20, 50, 100, 200, 500, 1000)  # upper bounds of history length, the last bucket is open
DEFAULT_KS = (5, 10, 20)
SCORES_AT_A_TIME = 1 << 26  # 256 MiB of float32


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
    is
    -inf (excluded) ranks last.
    """
    own = scores.gather(1, targets[:, None])  # (S, 1)
    if scores.isnan().any() or own.isposinf().any():
        raise ValueError("scores: NaN or +inf found; ranks would be meaningless")
    return (scores >= own).sum(1) - 1


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
    device: torch.device | None = None,
) -> Ranking:
    """Rank every target event among all items, given the history before it cut to ``max_length`` events.

    ``targets`` (n,) absolute event indices of ``store``. With ``exclude_seen`` items in the scorer's input are never
    recommended; a target that is one of them counts as missed.
    """
    if not len(targets):
        raise UserError("nothing to evaluate: the split has no targets (every user has too few events)")
    ranks = np.empty(len(targets), dtype=np.int64)
    batch_size = max(1, min(256, SCORES_AT_A_TIME // store.n_items))
    with torch.inference_mode():
        for places, batch in evaluation_batches(store, targets, max_length, batch_size):
            moved = batch if device is None else batch.to(device)
            assert moved.targets is not None
            scores = scorer.scores(moved)
            if exclude_seen:
                scores = exclude_history(scores, moved)
            ranks[places] = target_ranks(scores, moved.targets).cpu().numpy()
    return Ranking(ranks, targets - store.offsets[store.users_of(targets)])
