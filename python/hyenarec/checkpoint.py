"""Checkpoints: one safetensors file each, written atomically, with everything needed to use or resume it.

Tensors carry their role as a prefix (``model.``, ``optimizer.``, ``user_ids.``, ``item_ids.``); the JSON half (format
version, configuration, progress) travels in the file's own header, so weights, configuration and id maps cannot part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyenarec.errors import UserError
from hyenarec.files import write_atomically

FORMAT = "hyenarec-checkpoint"
VERSION = 1


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-serialisable ``header`` to ``path`` atomically."""
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote, onto the CPU.

    Raises :class:`UserError` for a missing, truncated or foreign file, or another format version.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path}: not a hyenarec checkpoint")
            if metadata.get("version") != str(VERSION):
                raise UserError(
                    f"{path}: checkpoint format {metadata.get('version')}, but this hyenarec reads format {VERSION}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["header"])  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: truncated or damaged checkpoint ({error})") from error


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
    """The inverse of :func:`optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit("/", 1)
        parameter = parameters[name]
        # AdamW keeps its step counter beside the parameter when fused, and so do we.
        optimizer.state[parameter][key] = value.to(parameter.device)
