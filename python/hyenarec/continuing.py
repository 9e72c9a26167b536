"""Continuing from a trained model with later events, new users and new items, instead of training from scratch.

The new model's catalogue is the union of the old one and that of the new log. Rows of known items are kept. Rows of new
items begin at the mean of the old catalogue's rows, as nothing better is known of an item without events; but if the
old model has learned from features, new rows begin as what these give. Training uses the slices that hold something new
to predict: where the log has times, what is later than the user's last event that the old model was trained on, and all
events of new users. Old events in these slices are predicted again, which keeps the model from forgetting them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyenarec.config import ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.data.item_features import Features, encode, read_item_table
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.featured_items import FeaturedItems
from hyenarec.model import SequenceModel
from hyenarec.trained import NEVER, Trained, load_trained

ROWS_OF_ITEMS = {"items.weight", "bias", "small.items.weight"}  # tensors of a model with one row per item
FREE_OPTIONS = {"dropout"}  # options of a model that change no shape


@dataclass(frozen=True)
class Start:
    """A trained model to continue from, how many users and items of the new log it lacks, and how many of its items
    that log lacks."""

    trained: Trained
    new_users: int
    new_items: int
    absent_items: int

    @classmethod
    def of(cls, trained: Trained, store: SequenceStore) -> tuple[Start, SequenceStore]:
        """``trained``, for continuing with ``store``; and ``store`` with the items of both."""
        joined = with_items_of(store, trained.item_ids)
        new_users = int((_find_all(trained.user_ids, store.user_ids) < 0).sum())
        new_items = joined.n_items - len(trained.item_ids)
        return cls(trained, new_users, new_items, joined.n_items - store.n_items), joined

    def describe(self) -> dict[str, Any]:
        """What a run that continues from this records of it, as JSON."""
        return {"model": self.trained.digest(), "new_items": self.new_items, "absent_items": self.absent_items}


def load_start(path: Path, model: ModelConfig) -> Trained:
    """The model of the run at ``path``. Raises :class:`UserError` where there is none, or where ``model`` asks for
    another shape."""
    trained = load_trained(path)
    ours, theirs = dict(_leaves(model)), dict(_leaves(trained.model.config))
    for name, value in ours.items():
        if name not in FREE_OPTIONS and value != theirs[name] and (name, value) != ("repeats", "auto"):
            raise UserError(f"option {name}: {value}, but {path} has {theirs[name]}, and its shape stays")
    return trained


def _leaves(config: Any, prefix: str = "") -> Any:
    for name, value in vars(config).items():
        if hasattr(value, "__dataclass_fields__"):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def with_items_of(store: SequenceStore, item_ids: Ids) -> SequenceStore:
    """``store`` with a catalogue that also has ``item_ids``. Its ids are strings if either's are."""
    joined = _joined(store.item_ids, item_ids)
    return replace(store, items=_find_all(joined, store.item_ids)[store.items], item_ids=joined)


def _joined(one: Ids, other: Ids) -> Ids:
    values = [*one.decode(np.arange(len(one))), *other.decode(np.arange(len(other)))]
    return Ids.from_values(values if one.integers and other.integers else [str(value) for value in values])


def with_new_items(trained: Trained, path: Path) -> Trained:
    """``trained`` with the new items of the table of features at ``path``, whose rows come from their features alone.

    Raises :class:`UserError` where ``trained`` knows no features, and for what is wrong with the table.
    """
    if trained.features is None:
        raise UserError("option item-features: the model was trained without, so it has learned nothing of features")
    table = read_item_table(path, trained.item_ids, trained.config["source"]["item"])
    item_ids = _joined(trained.item_ids, table.ids)
    model = SequenceModel(trained.model.config, len(item_ids))
    take_over(model, trained, item_ids, encode(table, trained.features.encodings, item_ids))
    return replace(trained, model=model, item_ids=item_ids)


def take_over(model: SequenceModel, start: Trained, item_ids: Ids, features: Features | None = None) -> None:
    """Fill ``model``, whose items have the ids ``item_ids``, with the weights of ``start``. Rows of new items get the
    mean row, or if ``start`` has learned from features, what it makes of theirs; their biases get the mean bias.
    """
    places = torch.from_numpy(_find_all(start.item_ids, item_ids).astype(np.int64))  # (V,), -1 for new items
    weights = {name: tensor.detach().cpu() for name, tensor in start.model.state_dict().items()}
    for name in ROWS_OF_ITEMS & weights.keys():
        mean = weights[name].mean(0, keepdim=True)
        own = places if model.shard is None else model.shard.of_own(places)
        weights[name] = torch.cat([weights[name], mean])[own]  # index -1 is the mean
    if features is not None and start.features is not None:
        if features.encodings != start.features.encodings:
            raise UserError("item features: encoded otherwise than those of the model to go on from")
        part = start.features.part(features)  # (V, D)
        rows = torch.where(places[:, None] < 0, start.features.base + part, weights["items.weight"])
        weights["items.weight"] = rows
        if isinstance(model.items, FeaturedItems):
            weights |= {"items.weight": rows - part, "items.projection": start.features.projection}
    elif isinstance(model.items, FeaturedItems):
        weights["items.projection"] = torch.zeros_like(model.items.projection, device="cpu")
    model.load_state_dict(weights)


def trained_until(store: SequenceStore, split: Split) -> NDArray[np.int64] | None:
    """The time of each user's last training event, (U,) int64 seconds, ``NEVER`` without one; None without times."""
    if store.timestamps is None:
        return None
    has_any = split.train_ends > store.offsets[:-1]
    last = np.asarray(store.timestamps[np.maximum(split.train_ends - 1, 0)])
    return np.where(has_any, last, NEVER)


def known_until(start: Trained, store: SequenceStore) -> NDArray[np.int64] | None:
    """The same of the users of ``store``, for the training of ``start``, (U,); None where either has no times."""
    if start.trained_until is None or store.timestamps is None:
        return None
    places = _find_all(start.user_ids, store.user_ids)
    return np.append(start.trained_until, NEVER)[places]  # index -1 is NEVER


def _find_all(known: Ids, ids: Ids) -> NDArray[np.int32]:
    """The index in ``known`` of each of ``ids``, (n,), -1 where it is not there."""
    return known.find(ids.decode(np.arange(len(ids))))
