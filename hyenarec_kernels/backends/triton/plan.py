"""Plans of the GPU convolution: the block low-rank form of :mod:`hyenarec_kernels.lowrank` on shared bases.

What differs from the CPU's plan:

* A window ``exp(-a tau)`` is not part of the filter but scales the input before a block and the output after it: every
  table below is a polynomial's, the bound holds for any decay, and no plan depends on a value that lies on the device.
* The first chunk too is written in a shared basis, ``h[tau] = sum_m near[m] phi_m(tau)``: ``sum_m diag(near_m) T_m u``
  is a matrix product with matrices that all channels share. Lag 0 is not in it, but taken like the skip: the gradient
  of a fast window's decay comes from lags whose weight is 1e-2 of lag 0's and less, and has nothing of lag 0.
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
from hyenarec_kernels.lowrank.levels import TOLERANCE, Level, Shape, Windows, last_distance, make_levels

FANS = (4, 8)
# What happens in a picosecond, from the rates of an H200's data sheet and not measured: 15 multiply-adds outside tensor
# cores, and 4.3 bytes from memory. A level costs LEVEL picoseconds per element besides.
SCALAR, MEMORY, LEVEL = 15.0, 4.3, 0.1
# The largest exponent, in either direction, of a window's scale in the first chunk; beyond it a fit takes over
# (`fast_fit`).
EXPONENT = {torch.float64: 300.0, torch.float32: 60.0}


@dataclass(frozen=True)
class GpuPlan:
    """How to convolve sequences of any length up to `horizon` (any length at all if `beyond`).

    `bound` means what it means in :class:`hyenarec_kernels.backends.cpu.plan.Plan`, with a window or without one, for
    decays up to `fastest`.
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
        """The first lag that no level covers from every row."""
        return (self.edge_first - 1) * CHUNK + 1

    def reached(self, length: int) -> tuple[Level, ...]:
        """The levels that sequences of up to `length` rows use: those below the first node that holds all of one."""
        return tuple(level for level in self.levels if level.chunk < length)

    def has_edge(self, length: int) -> bool:
        return -(-length // CHUNK) > self.edge_first and self.horizon > self.edge_lag

    @cached_property
    def near_basis(self) -> Array:
        """Of the lags from 1 on."""
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
    """From the taps after lag 0, the window divided out, to coefficients of the near basis: (taps - 1, near_rank) to
    (near_rank, taps - 1).

    The taps are polynomials, which the basis meets but for what its own rounding and the missing polynomials of higher
    degree leave. The fit puts that where lags are long: a window multiplies short ones by most, and the gradient of its
    decay multiplies them by least. A projection on the basis before it was rounded to bfloat16 leaves 2e-2 of that
    gradient at a rate of 2 and more an event, and this fit 3e-4 to 2e-3.
    """
    weight: Array = np.arange(1, len(basis) + 1, dtype=np.float64) ** -0.5
    return weighed_fit(basis, weight)


def fast_fit(basis: Array, dtype: torch.dtype) -> Array:
    """As `near_fit`, from the taps with the window of decay `fastest` divided out of them, for faster decays.

    What is left of their window is not a polynomial, but the window of `fastest` leaves only a few taps that matter,
    and the fit weighs each tap by that window.
    """
    return weighed_fit(basis, np.exp(-fastest(dtype) * np.arange(len(basis))), float(torch.finfo(dtype).eps))


def weighed_fit(basis: Array, weight: Array, least: float = 1e-15) -> Array:
    """From values to the coefficients of the basis (values, rank) that leave the least squares of weight * error:
    (rank, values). Directions that the weighed basis holds less than `least` of are left out."""
    fit: Array = np.linalg.pinv(weight[:, None] * basis, rcond=least) * weight
    return fit


def plain_fit(basis: Array) -> Array:
    return weighed_fit(basis, np.ones(len(basis)))


def padded(rank: int) -> int:
    """The size of a kernel's tile that holds `rank` rows."""
    return max(1 << (rank - 1).bit_length(), 16)


@lru_cache(maxsize=256)
def plan_for(terms: int, horizon: int, windowed: bool, beyond: bool, dtype: torch.dtype) -> GpuPlan | None:
    """The cheapest plan for filters of `horizon` taps whose bound is within the tolerance of `dtype`, or None.

    `windowed`: they have a window; the gradient of its decay is a filter too, ``tau / K`` times the first and thus of
    one more term. `beyond`: sequences may be longer than the horizon.
    """
    windows = Windows(terms + windowed, horizon)
    length = 4 * horizon + 4 * CHUNK if beyond else horizon
    least = 1
    if windowed:  # fewer polynomials could not stand in for the fastest decays (`fast_fit`)
        least = 6 if dtype in (torch.bfloat16, torch.float16) else 8
    near_lags = np.arange(1, min(CHUNK, horizon))
    edge_lags = np.arange((max(horizon // CHUNK, 1) - 1) * CHUNK + 1, horizon)
    for share in (TOLERANCE[dtype] / part for part in (4, 8, 16)):  # of one part, as far as the search can tell
        levels = _cheapest_levels(windows, length, share)
        near_rank, near_error = _run(windows, near_lags, share, least, near_fit)
        edge_rank, edge_error = _run(windows, edge_lags, share, 1, plain_fit)
        bound = sum(windows.bound(level, last_distance(horizon, length, level.chunk)) for level in levels)
        bound += near_error + edge_error
        if bound <= TOLERANCE[dtype]:
            return GpuPlan(terms, horizon, levels, near_rank, edge_rank, bound)
    return None


def _cheapest_levels(windows: Windows, length: int, tolerance: float) -> tuple[Level, ...]:
    """The levels that cost least of those that drop less than `tolerance` each; none for less than two chunks."""
    horizon = windows.horizon
    best: tuple[float, tuple[Level, ...]] = (math.inf, ())

    def extend(chunks: tuple[int, ...], shapes: tuple[Shape, ...]) -> None:
        nonlocal best
        chunk = chunks[-1]
        shapes = (*shapes, windows.shape(chunk, last_distance(horizon, length, chunk), tolerance))
        levels = make_levels(horizon, length, chunks, shapes)
        best = min(best, (_cost(levels), levels), key=lambda pair: pair[0])
        for fan in FANS:
            if 2 * fan * chunk <= horizon:
                extend((*chunks, fan * chunk), shapes)

    if horizon >= 2 * CHUNK:
        extend((CHUNK,), ())
    return best[1]


def _run(
    windows: Windows, lags: npt.NDArray[Any], tolerance: float, least: int, fit: Callable[[Array], Array]
) -> tuple[int, float]:
    """The rank that a run of taps needs, at least `least` where there are so many taps, and its error bound."""
    if not len(lags):
        return 0, 0.0
    samples = sampled_basis(lags.astype(np.float64), windows.terms, windows.horizon)
    # A lag stands in at most CHUNK entries of a chunk's rows: a bound of the Frobenius norm.
    scale = math.sqrt(CHUNK / windows.horizon)
    parts = np.square(local_basis(len(lags), len(lags)).T @ samples).sum(1)
    left = scale * np.sqrt(np.append(parts[::-1].cumsum()[::-1], 0))  # of each number of polynomials
    rank = max(int(np.argmax(left <= tolerance)), min(least, len(lags)))
    basis = local_basis(len(lags), rank)
    return rank, scale * float(np.linalg.norm(samples - basis @ (fit(basis) @ samples)))


def _cost(levels: tuple[Level, ...]) -> float:
    """Picoseconds per element; the first chunk costs the same whatever the levels."""
    total = 4 * 4 * levels[0].rank / CHUNK / MEMORY  # moments are written and read twice
    for index, level in enumerate(levels):
        pairs = (level.fan - 1) / 2 if level.fan else level.near_pairs / 2
        total += pairs * level.rank * padded(level.rank) / level.chunk / SCALAR + LEVEL
        if index + 1 < len(levels):
            total += 2 * level.rank * padded(levels[index + 1].rank) / level.chunk / SCALAR
    return total
