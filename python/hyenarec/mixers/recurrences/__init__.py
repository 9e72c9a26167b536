"""Recurrences that several mixers share, each with a parallel form; one file per recurrence."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it already is: sums over a whole history must not be in half precision."""
    return x if x.dtype == torch.float64 else x.float()
