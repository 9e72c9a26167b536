"""Dropout of the ``cpu`` backend."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout(x: Tensor, seed: Tensor, dropped: int, gelu: bool) -> Tensor:
    out: Tensor = torch.ops.hyenarec_cpu.dropout(x, seed, dropped, gelu)
    return out


def dropout_backward(grad: Tensor, x: Tensor, seed: Tensor, dropped: int, gelu: bool, needs: list[bool]) -> Tensor:
    dx: Tensor = torch.ops.hyenarec_cpu.dropout_backward(grad, x, seed, dropped, gelu)
    return dx
