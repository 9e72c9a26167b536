"""How kernels are launched: every launch of this backend goes through `launch`, and from there through `run`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Runs a kernel on the device of its first tensor, on that device's current stream.

    Arguments are passed by name: kernels have up to 49, and two pointers in each other's place would go unnoticed.
    """
    device = next(a for a in arguments.values() if isinstance(a, Tensor)).device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        run(kernel, grid, arguments)


def run(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Apart from `launch` so that a test can replace it and see what would be launched."""
    kernel[grid](**arguments)


def with_strides(**tensors: Tensor | None) -> dict[str, Any]:
    """Arguments for each tensor (..., D): the tensor as rows (R, D) with adjacent channels, a view unless its strides
    forbid that, and its row stride. `x` becomes the arguments `x_ptr` and `x_row`; None becomes None and 0."""
    arguments: dict[str, Any] = {}
    for name, tensor in tensors.items():
        rows = None if tensor is None else _rows(tensor)
        arguments[f"{name}_ptr"], arguments[f"{name}_row"] = rows, 0 if rows is None else rows.stride(0)
    return arguments


def _rows(t: Tensor) -> Tensor:
    rows = t.reshape(-1, t.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
