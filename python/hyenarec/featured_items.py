"""Rows of the item table that are sums: of what is learned of each item alone, and of what its features say.

The table is ``E + F W``: ``E`` (V, D) as without features, ``F`` (V, K) the features
(:class:`hyenarec.data.item_features.Features`) and ``W`` (K, D) a projection that starts at zero. So training starts as
it does without features; an item with many events learns its own row, and one with few learns from items like it. A
model is saved and serves with the sum in place of ``E`` (:meth:`hyenarec.model.SequenceModel.folded`), and then needs
no features. New items get rows made from their features alone (:class:`LearnedFeatures`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

from hyenarec.data.item_features import Encoding, Features


class FeatureMatrix(nn.Module):
    """The features of V items as buffers, which move with the model and are in no checkpoint."""

    offsets: Tensor
    places: Tensor
    values: Tensor
    dense: Tensor

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.encodings, self._sparse = features.encodings, features.sparse
        for name in ("offsets", "places", "values", "dense"):
            self.register_buffer(name, torch.from_numpy(getattr(features, name)), persistent=False)

    def times(self, projection: Tensor, items: Tensor | None = None) -> Tensor:
        """The feature rows of ``items`` (n,), or of all items, times ``projection`` (K, D): (n, D).

        For categories, words and numbers, which are sparse, rows of ``projection`` are gathered and summed; vectors are
        multiplied by it.
        """
        offsets, places, values, dense = self.offsets, self.places, self.values, self.dense
        if items is not None:
            starts, counts = offsets[items], offsets[items + 1] - offsets[items]  # (n,)
            ends = counts.cumsum(0)
            own = (starts - ends + counts).repeat_interleave(counts)  # (m,) indices into ``places``
            own += torch.arange(len(own), device=own.device)
            offsets, places, values, dense = nn.functional.pad(ends, (1, 0)), places[own], values[own], dense[items]
        with torch.autocast(projection.device.type, enabled=False):  # in full precision, as in the table that is saved
            found = dense @ projection[self._sparse :]  # (n, D)
            if self._sparse:
                rows = projection[: self._sparse]
                found = found + embedding_bag(
                    places, rows, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
                )
        return found


class FeaturedItems(nn.Embedding):
    """An item table whose rows are those of ``weight`` (V, D) plus the items' features times ``projection`` (K, D)."""

    def __init__(self, features: Features, dim: int) -> None:
        super().__init__(len(features.offsets) - 1, dim)
        self.projection = nn.Parameter(torch.zeros(features.width, dim))
        self.features = FeatureMatrix(features)

    def forward(self, items: Tensor) -> Tensor:
        return self.add_features(embedding(items, self.weight), items)

    def add_features(self, rows: Tensor, items: Tensor | None = None) -> Tensor:
        """``rows`` (n, D) of ``weight``, for ``items`` (n,) or for all, with what their features add."""
        return rows + self.features.times(self.projection, items)


@dataclass(frozen=True)
class LearnedFeatures:
    """What a trained model has learned from features, for rows of items that it does not know.

    Attributes:
        encodings: how a table of items becomes features.
        projection: (K, D) float32.
        base: (D,) float32, the mean over training events of what was learned of their items alone. A mean over items
            would be that of rare ones, which learn to be hardly ever right: new items would score as low.
    """

    encodings: list[Encoding]
    projection: Tensor
    base: Tensor

    @classmethod
    def of(cls, items: nn.Embedding, counts: NDArray[np.int64]) -> LearnedFeatures | None:
        """What a model's ``items``, with ``counts`` (V,) training events, have learned; None if they have no
        features."""
        if not isinstance(items, FeaturedItems):
            return None
        weight, projection = items.weight.detach().cpu(), items.projection.detach().cpu().clone()
        shares = torch.from_numpy(counts / counts.sum()).to(weight.dtype)
        return cls(items.features.encodings, projection, shares @ weight)

    def part(self, features: Features) -> Tensor:
        """What the ``features`` of V items add to their rows, (V, D)."""
        return FeatureMatrix(features).times(self.projection)
