"""Approximate recommending: an index of the catalogue that finds most of the best items without scoring all of them.

A score is ``h e + bias``, so the best items are those with the largest inner product of ``(h, 1)`` and ``(e, bias)``. A
graph of neighbours (HNSW, arXiv 1603.09320) finds them by looking at a few thousand items. The index is built by faiss,
in the extra ``hyenarec[ann]``, and lives in memory. The items that it finds get their exact scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.errors import UserError
from hyenarec.model import SequenceModel
from hyenarec.repeats import Recent

NEIGHBOURS = 32  # links of an item in the graph
BUILT_WITH, CANDIDATES = 80, 128  # candidates kept while an item is inserted, and while items are searched for


class NearestItems:
    """An index of a model's catalogue."""

    def __init__(self, model: SequenceModel) -> None:
        """Raises :class:`UserError` where faiss is not installed."""
        try:
            import faiss
        except ImportError as error:
            raise UserError("an approximate index needs faiss: install hyenarec[ann]") from error
        weight, bias = model.items.weight.detach().float().cpu(), model.bias.detach().float().cpu()
        self._weight, self._bias, self._repeats = weight, bias, copy.deepcopy(model.repeats)
        if self._repeats is not None:
            self._repeats.float().cpu()
        self._index: Any = faiss.IndexHNSWFlat(weight.shape[1] + 1, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = BUILT_WITH
        self._index.add(torch.cat((weight, bias[:, None]), 1).numpy())

    def search(
        self,
        hidden: Tensor,
        k: int,
        seen: Sequence[NDArray[np.int32]] | None = None,
        recent: Recent | None = None,
        *,
        candidates: int = CANDIDATES,
    ) -> tuple[Tensor, Tensor]:
        """Approximately the best ``k`` items after hidden states (S, D), without those that are ``seen`` where these
        are given: their scores, descending, and places in the catalogue, both (S, k). Where fewer are found, the scores
        end in -inf. More ``candidates`` find more of the best items and take longer. Items that are ``recent``, for a
        model with a repeat head, are all scored."""
        hidden = hidden.float().cpu()
        if recent is not None:
            return self._with_repeats(hidden, k, recent, candidates)
        most = max((len(np.unique(items)) for items in seen), default=0) if seen else 0
        wanted = min(k + most, len(self._weight))
        self._index.hnsw.efSearch = max(candidates, wanted)
        query = torch.cat((hidden, torch.ones(len(hidden), 1)), 1).numpy()
        places = torch.from_numpy(self._index.search(query, wanted)[1])  # (S, k + most), -1 where fewer were found
        rows = self._weight[places.clamp(min=0)]  # (S, k + most, D)
        scores = (rows @ hidden[:, :, None])[:, :, 0] + self._bias[places.clamp(min=0)]
        scores.masked_fill_(places < 0, float("-inf"))
        for row, items in enumerate(seen or ()):
            scores[row, torch.isin(places[row], torch.from_numpy(items.astype(np.int64)))] = float("-inf")
        best = scores.topk(min(k, wanted))
        return best.values, places.gather(1, best.indices)

    def _with_repeats(self, hidden: Tensor, k: int, recent: Recent, candidates: int) -> tuple[Tensor, Tensor]:
        """What :meth:`search` finds, of the other items and of the ``recent`` ones."""
        assert self._repeats is not None
        items, lags = (part.cpu() for part in recent)
        real = lags >= 0  # (S, M)
        others = [row[there].numpy().astype(np.int32) for row, there in zip(items, real, strict=True)]
        values, places = self.search(hidden, k, others, candidates=candidates)
        own, where = torch.unique(items, return_inverse=True)  # (R,), (S, M)
        scores = torch.addmm(self._bias[own], hidden, self._weight[own].T)
        scores = self._repeats.add_to(scores, hidden, Recent(where, lags))
        theirs = torch.zeros_like(scores, dtype=torch.bool)
        theirs[torch.nonzero(real)[:, 0], where[real]] = True
        values = torch.cat((values, scores.masked_fill(~theirs, float("-inf"))), 1)
        places = torch.cat((places, own.expand(len(places), -1)), 1)
        best = values.topk(min(k, len(self._weight)))
        return best.values, places.gather(1, best.indices)
