"""The best items of a catalogue by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hyenarec import distributed
from hyenarec.catalogue import finite_rows
from hyenarec.data.batches import pack_histories
from hyenarec.evaluation import exclude_history
from hyenarec.item_shards import ItemShard

NOT_FINITE = "the model's scores are NaN or infinite: damaged weights, or times too large"


@dataclass(frozen=True)
class Top:
    """The best items of each of S histories: ``places`` in the catalogue and ``scores``, both (S, k), of which only the
    first ``left`` (S,) may be recommended. Where the model's scores are not ``finite`` (S,), they mean nothing."""

    places: NDArray[np.int64]
    scores: NDArray[np.float32]
    left: NDArray[np.int64]
    finite: NDArray[np.bool_]


def best_items(
    scores: Tensor,
    seen: Sequence[NDArray[np.int32]] | None,
    k: int,
    allowed: Tensor | None = None,
    shard: ItemShard | None = None,
) -> Top:
    """The best ``k`` items by ``scores`` (S, V), or as many as are left without those ``seen`` in each of the S
    histories and those not ``allowed``, (S, V) or (V,) bool. It overwrites ``scores``. If they are those of a ``shard``
    of the items alone, all processes must call this, and get the same result: the best of each one's best."""
    finite = finite_rows(scores)
    if seen is not None:
        histories = pack_histories(seen, max(map(len, seen))).to(scores.device)
        (shard.exclude if shard else exclude_history)(scores, histories)
    if allowed is not None:
        scores.masked_fill_(~(shard.of_own(allowed, -1) if shard else allowed), float("-inf"))
    values, places = scores.topk(min(k, scores.shape[1]))
    if shard:
        values, places = shard.best(values, places, min(k, shard.n_items))
        finite = distributed.add_up((~finite).long()) == 0
    left = (values > float("-inf")).sum(1)
    return Top(*(found.cpu().numpy() for found in (places, values, left, finite)))
