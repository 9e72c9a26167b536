"""Checkpoints: one safetensors file each, written atomically, with everything needed to use or resume it.

Tensors carry their role as a prefix (``model.``, ``optimizer.``, ``user_ids.``, ``item_ids.``); the JSON half
(configuration, progress) travels in the file's own header, so weights, configuration and id maps cannot part. One entry
of that header holds format, version, checksum and JSON, in this order: of several entries safetensors would shuffle the
order, and equal checkpoints would have unequal bytes.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyenarec.errors import UserError
from hyenarec.files import write_atomically

FORMAT = "hyenarec-checkpoint"
VERSION = 2


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write ``tensors`` and the JSON-serialisable ``header`` to ``path`` atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    metadata = {"format": f"{FORMAT} {VERSION} {_checksum(contiguous, text):08x} {text}"}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote, onto the CPU.

    Raises :class:`UserError` for a file that is missing, may not be read, is truncated, damaged (a changed bit is
    enough) or foreign, or has another format version.
    """
    try:
        with path.open("rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this checkpoint: {error.strerror or error}") from error
    try:
        with safe_open(path, framework="pt") as file:
            checksum, text = _header(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: truncated or damaged checkpoint ({error})") from error
    if f"{_checksum(tensors, text):08x}" != checksum or not isinstance(header, dict):
        raise UserError(f"{path}: damaged checkpoint: its contents do not match its checksum")
    return tensors, header


def _header(path: Path, metadata: dict[str, str]) -> tuple[str, str]:
    """Checksum and JSON of a checkpoint of this version."""
    name, _, rest = metadata.get("format", "").partition(" ")
    if name != FORMAT:
        raise UserError(f"{path}: not a hyenarec checkpoint")
    version, _, rest = rest.partition(" ")
    if version != str(VERSION):
        found = version or metadata.get("version", "1")  # version 1 had an entry of its own
        raise UserError(f"{path}: checkpoint format {found:.20}, but this hyenarec reads format {VERSION}")
    checksum, _, text = rest.partition(" ")
    return checksum, text


def _checksum(tensors: dict[str, Tensor], text: str) -> int:
    """CRC-32 of the JSON and of every tensor's name, dtype, shape and bytes."""
    found = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return found


def fill(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the weights of ``module`` from the file ``path``.

    Raises :class:`UserError` unless the tensors have its names, shapes and dtypes, and no NaN or infinity.
    """
    expected = module.state_dict()
    check_names(tensors.keys(), expected.keys(), path)
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            raise UserError(
                f"{path}: {name} is {_kind(tensor)}, but the checkpoint's own options make it {_kind(expected[name])}"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity; nothing can be scored with these weights")
    module.load_state_dict(tensors)


def check_names(found: Any, expected: Any, path: Path) -> None:
    """Raises :class:`UserError` with the first of the names that are in one of the two sets only."""
    for name in sorted(found ^ expected):
        what = "is missing" if name in expected else "does not belong to such a model"
        raise UserError(f"{path}: tensor {name!r:.80} {what}")


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
