"""What using a trained model needs, in one checkpoint: weights, id maps, configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyenarec import checkpoint
from hyenarec.config import ModelConfig, TrainingConfig, from_json
from hyenarec.data.ids import Ids
from hyenarec.data.item_features import from_header, to_json
from hyenarec.errors import DamagedError, UserError
from hyenarec.featured_items import LearnedFeatures
from hyenarec.model import SequenceModel
from hyenarec.source import Source
from hyenarec.tensor_file import Arrays, digest

BEST = "best.safetensors"  # its name in a run's folder
NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Trained:
    """A model, the ids of the log that it was trained on, and its configuration."""

    model: SequenceModel
    user_ids: Ids
    item_ids: Ids
    config: dict[str, Any]  # model, training, source, data
    trained_until: NDArray[np.int64] | None = None
    """The time of each user's last event that the model was trained on, (U,) int64 seconds, ``NEVER`` for users without
    one; None where the log has no times."""
    features: LearnedFeatures | None = None
    """What the model has learned from features, for rows of new items; known items' rows already include theirs."""

    def digest(self) -> str:
        """Identifies the weights, together with the items that they belong to."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        return digest(weights | self.item_ids.to_arrays())


def save_trained(path: Path, trained: Trained, epoch: int) -> None:
    """Write ``trained``, as it was after ``epoch`` epochs, to ``path``."""
    tensors = checkpoint.with_prefix("model", trained.model.state_dict())
    for role, ids in (("user_ids", trained.user_ids), ("item_ids", trained.item_ids)):
        arrays = {name: torch.from_numpy(array.copy()) for name, array in ids.to_arrays().items()}
        tensors |= checkpoint.with_prefix(role, arrays)
    if trained.trained_until is not None:
        tensors["trained_until"] = torch.from_numpy(trained.trained_until)
    header = {"config": trained.config, "epoch": epoch}
    if trained.features is not None:
        tensors |= {"features.projection": trained.features.projection, "features.base": trained.features.base}
        header["features"] = to_json(trained.features.encodings)
    checkpoint.save(path, tensors, header, trained.model.shard)


def load_trained(path: Path, *, shard_items: bool = False) -> Trained:
    """Load the model of a run's folder (its best epoch) or of one checkpoint file, onto the CPU; with ``shard_items``
    only this process's part of it.

    Raises :class:`UserError` where there is none, or it is damaged, foreign or of another version. It allocates no more
    than the sizes of the file's own tensors justify.
    """
    in_folder = os.path.isdir(path)  # Path.is_dir() raises where it may not look
    try:
        return _load(path / BEST if in_folder else path, shard_items)
    except DamagedError as error:
        if not in_folder:
            raise
        raise DamagedError(f"{error}; remove it, and the command that trained this run makes it again") from error


def _load(path: Path, shard_items: bool) -> Trained:
    arrays, header = checkpoint.load_mapped(path)
    config = header.get("config")
    if not isinstance(config, dict):
        raise UserError(f"{path}: no configuration in this checkpoint")
    options = from_json(ModelConfig, config.get("model"), f"{path}: model")
    if options.repeats == "auto":  # of a time before there was this option
        options = replace(options, repeats="off")
    from_json(TrainingConfig, config.get("training"), f"{path}: training")
    from_json(Source, config.get("source"), f"{path}: source")
    try:
        user_ids, item_ids = (
            Ids.from_arrays({name: array.copy() for name, array in checkpoint.without_prefix(role, arrays).items()})
            for role in ("user_ids", "item_ids")
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    _check_size(checkpoint.without_prefix("model", arrays), options, len(item_ids), path)
    model = SequenceModel(options, len(item_ids), shard_items=shard_items)
    checkpoint.fill(model, checkpoint.without_prefix("model", checkpoint.copied(arrays, path, model.shard)), path)
    until = arrays.get("trained_until")
    if until is not None and (until.shape, until.dtype.type) != ((len(user_ids),), np.int64):
        raise DamagedError(f"{path}: trained_until is not one int64 for each of {len(user_ids)} users")
    features = None
    if "features" in header:
        features = _features(header["features"], checkpoint.without_prefix("features", arrays), options, path)
    return Trained(model, user_ids, item_ids, config, None if until is None else until.copy(), features)


def _features(columns: object, arrays: Arrays, options: ModelConfig, path: Path) -> LearnedFeatures:
    encodings = from_header(columns, f"{path}: features")
    width = sum(encoding.width for encoding in encodings)
    shapes = {"projection": (width, options.dim), "base": (options.dim,)}
    checkpoint.check_names(arrays.keys(), shapes.keys(), path)
    for name, shape in shapes.items():
        found = arrays[name]
        if (found.shape, found.dtype.type) != (shape, np.float32) or not np.isfinite(found).all():
            raise DamagedError(f"{path}: features.{name} is not {shape} finite float32 numbers, as its columns need")
    projection, base = (torch.from_numpy(arrays[name].copy()) for name in shapes)
    return LearnedFeatures(encodings, projection, base)


def _check_size(weights: Arrays, options: ModelConfig, n_items: int, path: Path) -> None:
    """Raises :class:`UserError` unless the options' sizes are those of the file's tensors: else a few bytes of JSON
    could ask for any amount of memory."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    expected = {"items.weight": (n_items, options.dim)}
    wide = (8 if options.block == "ligr" else 4) * options.dim  # a SwiGLU's first layer makes both factors
    expected |= {f"blocks.{block}.ffn.0.weight": (wide, options.dim) for block in blocks}
    for name, shape in expected.items():
        found = tuple(weights[name].shape) if name in weights else None
        if found != shape:
            raise UserError(f"{path}: {name} should be {shape} by the checkpoint's own options and ids, but is {found}")
    if len(blocks) != options.blocks:
        raise UserError(f"{path}: {options.blocks} blocks by the checkpoint's own options, but it has {len(blocks)}")
