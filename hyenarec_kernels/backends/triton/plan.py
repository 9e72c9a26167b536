"""Plans of the GPU convolution: the block low-rank form of :mod:`hyenarec_kernels.lowrank` on shared bases.

What differs from the CPU's plan:

* A window ``exp(-a tau)`` is not part of the filter: it scales the input before a block and the output after it. So
  every table below is that of a polynomial, the bound holds for any decay, and no plan depends on a value that is on
  the device.
* The first chunk too is written in a shared basis, ``h[tau] = sum_m near[m] phi_m(tau)``: ``sum_m diag(near_m) T_m u``
  is a matrix product with matrices that all channels share. Lag 0 is left out and is applied like the skip: the
  gradient of a fast window's decay comes from lags whose weight is at most 1e-2 of lag 0's, and lag 0 adds nothing to
  it.
* Where the filter ends inside a sequence, the two chunk distances that the end cuts are written the same way.

A plan depends on the length of a batch only through ``beyond``: levels that a batch does not reach are not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hyenarec_kernels.backends.triton.configs import CHUNK
from hyenarec_kernels.lowrank.blocks import Array, local_basis, sampled_basis
from hyenarec_kernels.lowrank.levels import TOLERANCE, BasisFilters, Level, Shape, last_distance, make_levels

FANS = (4, 8)
# Rates per picosecond, from an H200's data sheet and not measured: SCALAR multiply-adds outside tensor cores, and
# MEMORY bytes from memory. A level costs LEVEL picoseconds per element besides.
SCALAR, MEMORY, LEVEL = 15.0, 4.3, 0.1
# The largest exponent, positive or negative, of the factors that a window scales the first chunk by; for faster windows
# a fit takes over (`fast_fit`).
EXPONENT = {torch.float64: 300.0, torch.float32: 60.0}


@dataclass(frozen=True)
class GpuPlan:
    """How to convolve sequences of any length up to `horizon` (any length at all if made with `beyond`).

    `bound` has the meaning that it has in :class:`hyenarec_kernels.backends.cpu.plan.Plan`, with or without a window,
    for decays up to `fastest`.
    """

    terms: int
    horizon: int
    levels: tuple[Level, ...]
    near_rank: int
    edge_rank: int
    bound: float

    @property
    def near_taps(self) -> int:
        return min(CHUNK, self.horizon)

    @property
    def edge_first(self) -> int:
        """The first chunk distance of the two that the filter's end cuts."""
        return max(self.horizon // CHUNK, 1)

    @property
    def edge_lag(self) -> int:
        """The first lag that the levels do not cover for every row of a chunk."""
        return (self.edge_first - 1) * CHUNK + 1

    def reached(self, length: int) -> tuple[Level, ...]:
        """The levels that sequences of up to `length` rows use: those with chunks shorter than that."""
        return tuple(level for level in self.levels if level.chunk < length)

    def has_edge(self, length: int) -> bool:
        return -(-length // CHUNK) > self.edge_first and self.horizon > self.edge_lag

    @cached_property
    def near_basis(self) -> Array:
        """The basis on the lags from 1 on."""
        return local_basis(self.near_taps - 1, self.near_rank)

    @cached_property
    def edge_basis(self) -> Array:
        return local_basis(self.horizon - self.edge_lag, self.edge_rank)


def toeplitz(values: Array, first: int, offset: int) -> Array:
    """out[m, i, j] = values[offset + i - j - first, m], 0 outside: (lags, rank) to (rank, CHUNK, CHUNK)."""
    at = offset + np.arange(CHUNK)[:, None] - np.arange(CHUNK) - first
    inside = (at >= 0) & (at < len(values))
    return np.where(inside, values.T[:, np.clip(at, 0, len(values) - 1)], 0.0)


def fastest(dtype: torch.dtype) -> float:
    """The decay per event up to which a window is divided out of the first chunk exactly."""
    return 2 * EXPONENT[dtype] / CHUNK


def near_fit(basis: Array) -> Array:
    """The matrix from the taps after lag 0, with the window divided out, to coefficients of the near basis: for a
    basis (taps - 1, near_rank), a matrix (near_rank, taps - 1).

    These taps are a polynomial. The basis represents it except for an error: from the basis's own rounding, and from
    the polynomials of higher degree that it lacks. The fit moves the error to long lags, because a window multiplies
    short lags by most, and the gradient of its decay multiplies them by least. A projection onto the basis as it was
    before rounding to bfloat16 leaves an error of 2e-2 of that gradient at rates of 2 and more per event; this fit
    leaves 3e-4 to 2e-3.
    """
    weight: Array = np.arange(1, len(basis) + 1, dtype=np.float64) ** -0.5
    return weighed_fit(basis, weight)


def fast_fit(basis: Array, dtype: torch.dtype) -> Array:
    """As `near_fit`, for decays faster than `fastest`: from the taps with the window of decay `fastest` divided out.

    What is left of their window is not a polynomial. But under the window of `fastest` only a few taps matter, and the
    fit weighs each tap by that window.
    """
    return weighed_fit(basis, np.exp(-fastest(dtype) * np.arange(len(basis))), float(torch.finfo(dtype).eps))


def weighed_fit(basis: Array, weight: Array, least: float = 1e-15) -> Array:
    """The matrix (rank, values) that maps values to the coefficients of the basis (values, rank) with the least squares
    of weight * error. Directions in which the weighed basis is below `least` of its largest are left out."""
    fit: Array = np.linalg.pinv(weight[:, None] * basis, rcond=least) * weight
    return fit


def plain_fit(basis: Array) -> Array:
    return weighed_fit(basis, np.ones(len(basis)))


def padded(rank: int) -> int:
    """The size of a kernel's tile that holds `rank` rows: a power of 2, at least 16."""
    return max(1 << (rank - 1).bit_length(), 16)


@lru_cache(maxsize=256)
def plan_for(terms: int, horizon: int, windowed: bool, beyond: bool, dtype: torch.dtype) -> GpuPlan | None:
    """The cheapest plan for filters of `horizon` taps whose bound is within the tolerance of `dtype`, or None.

    `windowed`: the filters have a window. The gradient of its decay is a convolution with ``tau / K`` times the filter,
    which has one more term. `beyond`: sequences may be longer than the horizon.
    """
    filters = BasisFilters(terms + windowed, horizon)
    length = 4 * horizon + 4 * CHUNK if beyond else horizon
    least = 1
    if windowed:  # fewer polynomials could not represent the fastest decays (`fast_fit`)
        least = 6 if dtype in (torch.bfloat16, torch.float16) else 8
    near_lags = np.arange(1, min(CHUNK, horizon))
    edge_lags = np.arange((max(horizon // CHUNK, 1) - 1) * CHUNK + 1, horizon)
    for share in (TOLERANCE[dtype] / part for part in (4, 8, 16)):  # of one part, as the search estimates it
        levels = _cheapest_levels(filters, length, share)
        near_rank, near_error = _run(filters, near_lags, share, least, near_fit)
        edge_rank, edge_error = _run(filters, edge_lags, share, 1, plain_fit)
        bound = sum(filters.bound(level, last_distance(horizon, length, level.chunk)) for level in levels)
        bound += near_error + edge_error
        if bound <= TOLERANCE[dtype]:
            return GpuPlan(terms, horizon, levels, near_rank, edge_rank, bound)
    return None


def _cheapest_levels(filters: BasisFilters, length: int, tolerance: float) -> tuple[Level, ...]:
    """The cheapest levels that drop less than `tolerance` each; empty if the horizon is shorter than two chunks."""
    horizon = filters.horizon
    best: tuple[float, tuple[Level, ...]] = (math.inf, ())

    def extend(chunks: tuple[int, ...], shapes: tuple[Shape, ...]) -> None:
        nonlocal best
        chunk = chunks[-1]
        shapes = (*shapes, filters.shape(chunk, last_distance(horizon, length, chunk), tolerance))
        levels = make_levels(horizon, length, chunks, shapes)
        best = min(best, (_cost(levels), levels), key=lambda pair: pair[0])
        for fan in FANS:
            if 2 * fan * chunk <= horizon:
                extend((*chunks, fan * chunk), shapes)

    if horizon >= 2 * CHUNK:
        extend((CHUNK,), ())
    return best[1]


def _run(
    filters: BasisFilters, lags: npt.NDArray[Any], tolerance: float, least: int, fit: Callable[[Array], Array]
) -> tuple[int, float]:
    """The rank that a run of taps needs, at least `least` if it has that many taps, and its error bound."""
    if not len(lags):
        return 0, 0.0
    samples = sampled_basis(lags.astype(np.float64), filters.terms, filters.horizon)
    # A lag occurs at most once in each of the CHUNK rows of a chunk: a bound of the Frobenius norm.
    scale = math.sqrt(CHUNK / filters.horizon)
    parts = np.square(local_basis(len(lags), len(lags)).T @ samples).sum(1)
    left = scale * np.sqrt(np.append(parts[::-1].cumsum()[::-1], 0))  # error with each number of polynomials
    rank = max(int(np.argmax(left <= tolerance)), min(least, len(lags)))
    basis = local_basis(len(lags), rank)
    return rank, scale * float(np.linalg.norm(samples - basis @ (fit(basis) @ samples)))


def _cost(levels: tuple[Level, ...]) -> float:
    """Picoseconds per element, without the first chunk, which costs the same whatever the levels."""
    total = 4 * 4 * levels[0].rank / CHUNK / MEMORY  # moments are written and read twice
    for index, level in enumerate(levels):
        pairs = (level.fan - 1) / 2 if level.fan else level.near_pairs / 2
        total += pairs * level.rank * padded(level.rank) / level.chunk / SCALAR + LEVEL
        if index + 1 < len(levels):
            total += 2 * level.rank * padded(levels[index + 1].rank) / level.chunk / SCALAR
    return total
