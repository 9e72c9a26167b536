"""Initial values of parameters, as constants to which modules add what they store.

A module stores *deviations* from a good start. So whatever pulls parameters towards zero, such as weight decay or a
host library that initialises all matrices itself, pulls them towards that start. The constants are computed when they
are needed and are not buffers: whoever builds a model on the meta device would have to fill a buffer again.
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
    """``make`` with its results cached and shared: do not write to them. Code that is traced makes its own."""

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
    """(size,): 1, then zeros. As a short filter it lets its input through; as coefficients it is a basis's constant
    term."""
    return (torch.arange(size, device=device) == 0).to(dtype)


@_constant
def last_identity(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(rows, columns): zeros, and the identity in the last rows."""
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return (row[:, None] - (rows - columns) == column).to(dtype)


@_constant
def gate_starts(num_gates: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """((num_gates + 1) * dim,): 1 for the first and the last gate, 0 for those between and for the values."""
    gate = torch.arange((num_gates + 1) * dim, device=device) // dim
    return ((gate < num_gates) & ((gate == 0) | (gate == num_gates - 1))).to(dtype)


@_constant
def log_rates(groups: int, horizon: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(groups,): logarithms of initial window rates, in units of 1/K, evenly spaced from a rate of 1 to one of K/4."""
    return torch.linspace(0, math.log(max(horizon / 4, 1)), groups, dtype=dtype, device=device)
