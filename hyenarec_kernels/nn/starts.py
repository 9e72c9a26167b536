"""Where parameters start: constants to which modules add what they store.

A module stores *deviations* from a good start, so that a pull towards zero, such as weight decay or somebody's own
initialisation of all matrices, is a pull towards that start. The constants are made when they are needed, and never
held as buffers: a buffer would have to be filled again by whoever builds a model on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVarTuple

import torch
from torch import Tensor

from hyenarec_kernels.tracing import plain

Ts = TypeVarTuple("Ts")


def _constant(make: Callable[[*Ts], Tensor]) -> Callable[[*Ts], Tensor]:
    """``make``, whose results are kept and shared: do not write to them. Programs that are traced make their own."""

    @lru_cache(maxsize=64)
    def kept(*args: *Ts) -> Tensor:
        with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward
            return make(*args)

    @wraps(make)
    def get(*args: *Ts) -> Tensor:
        return kept(*args) if plain() else make(*args)

    return get


@_constant
def first(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size,): 1, then zeros. A short filter that lets its input through; the constant among the terms of a basis."""
    return (torch.arange(size, device=device) == 0).to(dtype)


@_constant
def last_identity(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, columns): zeros, and the identity in the last rows."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return (row[:, None] - (rows - columns) == column).to(dtype)


@_constant
def gate_starts(gates: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """((gates + 1) * dim,): 1 for the channels of the first and the last gate, 0 for those between and the values."""
    gate = torch.arange((gates + 1) * dim, device=device) // dim
    return ((gate < gates) & ((gate == 0) | (gate == gates - 1))).to(dtype)


@_constant
def log_rates(groups: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(groups,): logarithms of window rates, in units of 1/K, evenly from a rate of 1 to one of K/4."""
    return torch.linspace(0, math.log(max(horizon / 4, 1)), groups, dtype=dtype, device=device)
