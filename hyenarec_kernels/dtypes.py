"""The dtype to compute in, given the dtype of the input: one rule for every backend and module."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute and accumulate in: float64 for float64, float32 for all shorter ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32
