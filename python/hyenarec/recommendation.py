"""Serving: from the log's own item ids to the log's own item ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.data.batches import Batch, pack_histories
from hyenarec.data.ids import Ids
from hyenarec.environment import check_backend
from hyenarec.errors import UserError
from hyenarec.evaluation import exclude_history
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.trained import load_trained

HISTORIES_AT_A_TIME = 256

Item = int | str


@dataclass(frozen=True)
class Recommendation:
    """An item by the log's own id, and its score (a logit: higher is better, comparable within one history)."""

    item: Item
    score: float


class Recommender:
    """A trained model with its id maps.

    >>> recommender = Recommender.load("runs/ml")
    >>> recommender.recommend([[318, 527, 2858]], k=10)
    """

    def __init__(
        self, model: SequenceModel, user_ids: Ids, item_ids: Ids, config: dict[str, Any], device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.user_ids, self.item_ids, self.config, self.device = user_ids, item_ids, config, device

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Recommender:
        """From a run's folder (its best checkpoint) or one checkpoint file.

        Raises :class:`UserError` where there is none, or it is damaged or of another version.
        """
        trained = load_trained(Path(path))
        check_backend(torch.device(device))
        return cls(trained.model, trained.user_ids, trained.item_ids, trained.config, torch.device(device))

    def scores(self, batch: Batch) -> Tensor:
        """Scores of every item as the next one after each packed history, (S, V)."""
        return self.model.scores(batch)

    @torch.inference_mode()
    def recommend(
        self,
        histories: Sequence[Sequence[Item]],
        k: int = 10,
        *,
        timestamps: Sequence[Sequence[int]] | None = None,
        exclude_seen: bool = True,
    ) -> list[list[Recommendation]]:
        """The best ``k`` next items for each history, oldest event first, of users known or new.

        ``timestamps``, one for each event in the log's own unit, are for models that know time (hytrec, fuxi_linear);
        without them such a model takes positions in their place and a warning says so. With ``exclude_seen`` no item of
        the history (its whole length, not only what the model reads) is recommended.
        Raises :class:`UserError` for an empty history, an unknown item, timestamps that are not as many as the events,
        or ``k`` larger than what the catalogue leaves.
        """
        if k < 1:
            raise UserError(f"option k: {k} is below 1")
        times = self._times(histories, timestamps)
        encoded = []
        for number, history in enumerate(histories, 1):
            if not len(history):
                raise UserError(f"history {number}: empty; at least one item is needed")
            try:
                encoded.append(self.item_ids.encode(history, "item"))
            except UserError as error:
                raise UserError(f"history {number}: {error}") from error
            left = len(self.item_ids) - (len(set(encoded[-1].tolist())) if exclude_seen else 0)
            if k > left:
                raise UserError(f"option k: {k} items asked for, but history {number} leaves {left} of the catalogue")
        found: list[list[Recommendation]] = []
        for first in range(0, len(encoded), HISTORIES_AT_A_TIME):
            part = encoded[first : first + HISTORIES_AT_A_TIME]
            part_times = None if times is None else times[first : first + HISTORIES_AT_A_TIME]
            batch = pack_histories(part, self.model.config.max_length, part_times)
            scores = self.scores(batch.to(self.device))  # (S, V)
            if exclude_seen:
                exclude_history(scores, pack_histories(part, max(map(len, part))).to(self.device))
            best = scores.topk(k)
            for values, indices in zip(best.values.tolist(), best.indices.cpu().numpy(), strict=True):
                items = self.item_ids.decode(indices)
                found.append([Recommendation(item, value) for item, value in zip(items, values, strict=True)])
        return found

    def _times(
        self, histories: Sequence[Sequence[Item]], timestamps: Sequence[Sequence[int]] | None
    ) -> list[NDArray[np.int64]] | None:
        mixer = self.model.config.mixer
        if not MIXERS[mixer].knows_time:
            return None
        if timestamps is None:
            warnings.warn(f"{mixer}: no timestamps given; positions take their place", stacklevel=3)
            return None
        if [len(row) for row in timestamps] != [len(history) for history in histories]:
            raise UserError("timestamps: one is needed for each event of each history")
        return [np.asarray(row, dtype=np.int64) for row in timestamps]
