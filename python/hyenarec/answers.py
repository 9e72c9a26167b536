"""What a recommender is asked, in the form that its model reads, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyenarec.errors import UserError

NOTHING = np.empty(0, dtype=np.int32)

Item = int | str


@dataclass(frozen=True)
class Recommendation:
    """An item by the log's own id, and its score (a logit: higher is better, comparable within one history)."""

    item: Item
    score: float


@dataclass(frozen=True)
class Neighbour:
    """An item by the log's own id, and the cosine of its embedding with that of the item asked about, from -1 to 1."""

    item: Item
    cosine: float


@dataclass(frozen=True)
class Answer:
    """What one history gets: the best items, at most as many as asked for, or the reason why there are none."""

    recommendations: list[Recommendation]
    unknown: list[Item]
    """Items of the history that the model does not know, and that were left out of it."""
    error: str | None

    def all_of(self, k: int, name: str) -> list[Recommendation]:
        """All ``k`` recommendations. Raises :class:`UserError`, which calls the history ``name``, where there are
        fewer."""
        if self.error:
            raise UserError(f"{name}: {self.error}")
        left = len(self.recommendations)
        if left < k:
            raise UserError(f"option k: {k} items asked for, but {name} leaves {left} of the catalogue")
        return self.recommendations


@dataclass(frozen=True)
class Request:
    """A history as the model reads it: items (L,) and, if it knows time, times (L,) in seconds; or why it cannot."""

    items: NDArray[np.int32]
    times: NDArray[np.int64] | None
    unknown: list[Item]
    error: str | None


def item_cells(item: Item, names: Mapping[Item, str] | None) -> dict[str, Item | None]:
    """An item and, where there are ``names``, its name or None: the cells for an item in every output."""
    return {"item": item} if names is None else {"item": item, "name": names.get(item)}
