"""Checkpoints: one file each (:mod:`hyenarec.tensor_file`), with everything needed to use or resume a model.

Tensors carry their role as a prefix (``model.``, ``optimizer.``, ``user_ids.``, ``item_ids.``); the JSON half
(configuration, progress) travels in the file's own header, so weights, configuration and id maps cannot part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyenarec import tensor_file
from hyenarec.errors import DamagedError

KIND = tensor_file.Kind("checkpoint", version=2)


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-serialisable ``header`` to ``path`` atomically."""
    tensor_file.save(path, KIND, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}, header)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote, onto the CPU. Raises as :func:`hyenarec.tensor_file.load` does."""
    arrays, header = tensor_file.load(path, KIND)
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, header


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the weights of ``module`` from the file ``path``.

    Raises :class:`DamagedError` unless the tensors have its names, shapes and dtypes, and no NaN or infinity.
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
    """Raises :class:`DamagedError` with the first of the names that are in one of the two sets only."""
    for name in sorted(found ^ expected):
        what = "is missing" if name in expected else "does not belong to such a model"
        raise DamagedError(f"{path}: tensor {name!r:.80} {what}")


def _kind(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'a single'} {str(tensor.dtype).removeprefix('torch.')}"


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under ``prefix``, with it taken off."""
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
    """The inverse of :func:`optimizer_tensors`. Raises ValueError for what is no state of this model."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or key not in ("step", "exp_avg", "exp_avg_sq") or value.dtype != torch.float32:
            raise ValueError(f"optimizer state {full!r:.80} does not belong to such a model")
        if value.shape != (() if key == "step" else parameter.shape):
            raise ValueError(f"optimizer state {full!r:.80} has another shape than its parameter")
        # AdamW keeps its step counter beside the parameter when fused, and so do we.
        optimizer.state[parameter][key] = value.to(parameter.device)
