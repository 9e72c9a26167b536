"""Checkpoints: one file each (:mod:`hyenarec.tensor_file`), with everything needed to use or resume a model.

Tensors carry their role as a prefix (``model.``, ``optimizer.``, ``user_ids.``, ``item_ids.``); the JSON half
(configuration, progress) is in the file's own header, so weights, configuration and id maps cannot be separated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hyenarec import distributed, tensor_file
from hyenarec.errors import DamagedError
from hyenarec.item_shards import ItemShard

T = TypeVar("T")

KIND = tensor_file.Kind("checkpoint", version=2)


# Tensors with one row per item.
OF_ITEMS = {
    *("model.items.weight", "model.bias", "rows.rows/read"),
    *(f"rows.{table}/{key}" for table in ("items.weight", "bias") for key in ("exp_avg", "exp_avg_sq")),
}


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], shard: ItemShard | None = None) -> None:
    """Write ``tensors`` and the JSON-serialisable ``header`` to ``path`` atomically.

    With a ``shard`` of the items all processes call this, and process 0 writes; the file is the same as without shards.
    """
    if shard is None:
        arrays: dict[str, Any] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        tensor_file.save(path, KIND, arrays, header)
    elif distributed.is_main():
        arrays = {
            name: shard.streamed(tensor) if name in OF_ITEMS else tensor.detach().cpu().numpy()
            for name, tensor in tensors.items()
        }
        tensor_file.save(path, KIND, arrays, header)
    else:
        for name in sorted(tensors.keys() & OF_ITEMS):  # in the order in which process 0 writes them
            shard.send(tensors[name])


def load(path: Path, shard: ItemShard | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote, onto the CPU; with a ``shard`` only its rows of tensors with one row per item.
    Raises as :func:`hyenarec.tensor_file.load` does."""
    arrays, header = load_mapped(path)
    return copied(arrays, path, shard), header


def load_mapped(path: Path) -> tuple[tensor_file.Arrays, dict[str, Any]]:
    """The same, verified, but with the arrays still on disk (memory-mapped), for :func:`copied`."""
    return tensor_file.load(path, KIND)


def copied(arrays: tensor_file.Arrays, path: Path, shard: ItemShard | None = None) -> dict[str, Tensor]:
    """The arrays of the file ``path`` as tensors; with a ``shard`` only its rows of those with one row per item.

    Raises :class:`DamagedError` where these do not have ``shard.n_items`` rows.
    """
    found = {}
    for name, array in arrays.items():
        if shard is not None and name in OF_ITEMS:
            if len(array) != shard.n_items:
                raise DamagedError(f"{path}: {name} has {len(array):,} rows, but there are {shard.n_items:,} items")
            array = array[shard.first : shard.last]
        found[name] = torch.from_numpy(array.copy())
    return found


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load ``tensors``, which come from the file ``path``, into ``module``.

    Raises :class:`DamagedError` unless they have the module's names, shapes and dtypes, and no NaN or infinity.
    """
    expected = module.state_dict()
    check_names(tensors.keys(), expected.keys(), path)
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise DamagedError(
                f"{path}: {name} is {_kind(tensor)}, but the checkpoint's own options make it {_kind(expected[name])}"
            )
        if not tensor.isfinite().all():
            raise DamagedError(f"{path}: {name} holds NaN or infinity; nothing can be scored with these weights")
    module.load_state_dict(tensors)


def check_names(found: Any, expected: Any, path: Path) -> None:
    """Raises :class:`DamagedError` with the first name that is in only one of the two sets."""
    for name in sorted(found ^ expected):
        what = "is missing" if name in expected else "does not belong to such a model"
        raise DamagedError(f"{path}: tensor {name!r:.80} {what}")


def _kind(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'a single'} {str(tensor.dtype).removeprefix('torch.')}"


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors under ``prefix``, by their names without it."""
    start = len(prefix) + 1
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state under the parameters' names: ``NAME/STATE``."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`. Raises ValueError for tensors that are not of this model."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or key not in ("step", "exp_avg", "exp_avg_sq") or value.dtype != torch.float32:
            raise ValueError(f"optimizer state {full!r:.80} does not belong to such a model")
        if value.shape != (() if key == "step" else parameter.shape):
            raise ValueError(f"optimizer state {full!r:.80} has another shape than its parameter")
        # A fused AdamW keeps its step counter on the parameter's device, and so do we.
        optimizer.state[parameter][key] = value.to(parameter.device)
