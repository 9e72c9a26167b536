"""Plans of the CPU convolution: chunk sizes, ranks and the guaranteed error of the block low-rank form.

A plan turns a filter into its values at a few lags: every lag of the first chunk, and for each chunk distance the
Chebyshev nodes of the window of lags that the distance covers. Inside a window the filter is replaced by the polynomial
through its nodes, which the local polynomial basis of a chunk represents exactly; so the whole error is that of
interpolation, and it is computed here, in float64, before anything runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

CHUNKS = (16, 20, 24, 28, 32, 40, 48, 64)  # of the lowest level: multiples of the 4 rows of a register tile
FANS = (4, 6, 8, 10, 12, 16)  # chunks in a parent: even, so that the two halves of a parent mirror each other
MAX_RANK = 40
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 2e-4}
# Cycles of a multiply-add in each part, relative to the direct part (measured, AVX-512, two cores): moments and
# reconstruction pay for folding, the blocks between chunks for table loads.
COST_DIRECT, COST_FOLDED, COST_PAIRS, COST_ROW = 1.0, 1.2, 1.2, 8.0


@dataclass(frozen=True)
class Level:
    """Chunks of `chunk` rows, `fan` in a parent, `rank` polynomials each; distances 1..near_pairs inside a parent."""

    chunk: int
    fan: int
    rank: int
    near_pairs: int
    far_first: int
    far_pairs: int

    @property
    def distances(self) -> list[int]:
        near = range(1, self.near_pairs + 1)
        return [*near, *range(self.far_first, self.far_first + self.far_pairs)]

    @cached_property
    def nodes(self) -> Array:
        """Chebyshev nodes of the window of lags around distance 0, (rank,)."""
        return (self.chunk - 1) * chebyshev_nodes(self.rank)

    @property
    def lags(self) -> Array:
        """(distances * rank,)"""
        return (self.chunk * np.array(self.distances, dtype=np.float64)[:, None] + self.nodes).reshape(-1)


@dataclass(frozen=True)
class Plan:
    """How to convolve sequences of up to `length` rows with a filter of `horizon` taps.

    `bound`: for coefficients c of a filter sum_n c_n h_n, any input u and any chunk I of the output,
    ||error_I|| <= bound * sqrt(horizon) * ||c|| * ||u|| (2-norms, per channel), rounding apart; 0 for a direct plan.
    """

    horizon: int
    length: int
    chunk: int
    levels: tuple[Level, ...]
    bound: float

    @property
    def near_taps(self) -> int:
        # Without whole chunks between, the far part starts at the next lag: one run of taps.
        return min(self.horizon, self.length) if self.shares_taps else min(self.chunk, self.horizon)

    @property
    def far_taps(self) -> int:
        """Taps at the filter's end, which lie inside the sequence when a chunk can reach the horizon."""
        if -(-self.length // self.chunk) * self.chunk <= self.horizon:
            return 0
        return self.horizon - self.far_lag

    @property
    def shares_taps(self) -> bool:
        return self.horizon // self.chunk <= 1 and not self.levels

    @property
    def far_lag(self) -> int:
        return 0 if self.shares_taps else (self.horizon // self.chunk - 1) * self.chunk + 1

    @cached_property
    def lags(self) -> Array:
        """The lags at which the filter is sampled, (samples,)."""
        far = [] if self.shares_taps else [self.far_lag + np.arange(self.far_taps)]
        return np.concatenate([np.arange(self.near_taps), *far, *(level.lags for level in self.levels)]).astype(np.float64)

    @cached_property
    def numbers(self) -> list[int]:
        """The integers csrc/register.cpp reads."""
        far_row = self.near_taps if self.far_taps and not self.shares_taps else 0
        numbers = [self.horizon, self.chunk, self.near_taps, self.far_lag, self.far_taps, far_row, len(self.lags)]
        row = self.near_taps + (self.far_taps if far_row else 0)
        offset = 0
        for level, (moments, from_nodes, half) in zip(self.levels, self._tables, strict=True):
            numbers += [level.chunk, level.fan, level.rank, level.near_pairs, level.far_first, level.far_pairs, row]
            numbers += [offset, offset + moments.size, half]
            offset += moments.size + from_nodes.size
            row += len(level.lags)
        return numbers

    def constants(self, dtype: torch.dtype) -> torch.Tensor:
        """Folded bases and node-to-block maps of all levels, one after the other, in the arithmetic type."""
        return self._constants[dtype]

    @cached_property
    def _constants(self) -> dict[torch.dtype, torch.Tensor]:
        parts = [part.reshape(-1) for moments, from_nodes, _ in self._tables for part in (moments, from_nodes)]
        whole = torch.from_numpy(np.concatenate([np.zeros(0), *parts]))
        return {torch.float64: whole, torch.float32: whole.float()}

    @cached_property
    def _tables(self) -> list[tuple[Array, Array, int]]:
        tables, below = [], None
        for level in self.levels:
            basis = local_basis(level.chunk, level.rank)
            if below is None:
                rows = basis[: level.chunk // 2]
            else:
                parts = basis.reshape(-1, below.chunk, level.rank)[: level.chunk // below.chunk // 2]
                inner = local_basis(below.chunk, below.rank)
                rows = np.einsum("jia,ib->jba", parts, inner).reshape(-1, level.rank)
            folded = np.concatenate([rows[:, 0::2].reshape(-1), rows[:, 1::2].reshape(-1)])
            tables.append((folded, blocks_from_nodes(level), len(rows)))
            below = level
        return tables


def chebyshev_nodes(count: int) -> Array:
    return np.cos(np.pi * (np.arange(count) + 0.5) / count)


@lru_cache(maxsize=64)
def local_basis(chunk: int, rank: int) -> Array:
    """Orthonormal polynomials of degree < rank on `chunk` points, even and odd about the middle in turn, (chunk, rank)."""
    vandermonde = np.polynomial.legendre.legvander(np.linspace(-1, 1, chunk), rank - 1)
    return np.linalg.qr(vandermonde)[0]


def blocks_from_nodes(level: Level) -> Array:
    """Maps a window's `rank` filter values to the entries (r, s), r + s < rank, of Q^T T Q, (entries, rank).

    T[i, j] = p(i - j) with p the polynomial through the nodes; p has degree < rank, so the other entries are zero.
    """
    chunk, rank = level.chunk, level.rank
    basis = local_basis(chunk, rank)
    size = 1 << (2 * chunk).bit_length()
    spectrum = np.fft.rfft(basis, size, axis=0)
    shifts = np.arange(-(chunk - 1), chunk)
    # values at the nodes -> values at all shifts, through Chebyshev coefficients
    to_shifts = np.polynomial.chebyshev.chebvander(shifts / (chunk - 1), rank - 1) @ chebyshev_transform(rank)
    rows = []
    for r in range(rank):
        # weight of shift d in entry (r, s): sum over i - j = d of Q[i, r] Q[j, s]
        weights = np.fft.irfft(spectrum[:, r : r + 1] * spectrum.conj()[:, : rank - r], size, axis=0)[shifts]
        rows.append(weights.T @ to_shifts)
    return np.concatenate(rows)


def chebyshev_transform(count: int) -> Array:
    """Values at chebyshev_nodes(count) -> Chebyshev coefficients, (count, count)."""
    transform = 2 / count * np.polynomial.chebyshev.chebvander(chebyshev_nodes(count), count - 1).T
    transform[0] /= 2
    return transform


def legendre_basis(lags: Array, terms: int, horizon: int) -> Array:
    """sqrt(2n+1) P_n(2 lag / (K-1) - 1) by the three-term recurrence, (lags, terms)."""
    x = 2 * lags / max(horizon - 1, 1) - 1
    columns = [np.ones_like(x), x]
    for n in range(2, terms):
        columns.append(((2 * n - 1) * x * columns[-1] - (n - 1) * columns[-2]) / n)
    return np.stack([math.sqrt(2 * n + 1) * columns[n] for n in range(terms)], axis=1)


@dataclass(frozen=True)
class Windows:
    """Interpolation errors of the basis filters, damped by exp(-rate * lag / K) for the slowest to the fastest rate."""

    terms: int
    horizon: int
    rates: tuple[float, ...]

    def tails(self, chunk: int, distances: Array) -> Array:
        """Interpolation error with `rank` nodes of each window and basis filter, (windows, terms, max rank + 1).

        Twice the sum of the dropped Chebyshev coefficients, which bounds the error at every lag of the window. An
        undamped filter is a polynomial, so its coefficients are exact; damping adds ones that vanish beyond 24 more.
        """
        count = max(self.terms, 2) + (24 if self.rates[-1] > 0 else 0)
        lags = chunk * distances[:, None] + (chunk - 1) * chebyshev_nodes(count)  # (windows, count)
        values = legendre_basis(lags.reshape(-1), self.terms, self.horizon).reshape(len(distances), count, self.terms)
        transform, worst = chebyshev_transform(count), np.zeros((len(distances), self.terms, count + 1))
        for rate in self.rates:
            damped = values * np.exp(-rate * lags / self.horizon)[..., None]
            coefficients = np.abs(np.einsum("pc,wcn->wnp", transform, damped))
            tail = np.cumsum(coefficients[..., ::-1], axis=-1)[..., ::-1]
            worst[..., :-1] = np.maximum(worst[..., :-1], 2 * tail)
        return worst

    def bounds(self, chunk: int, last: int, every: bool) -> Array:
        """bound(rank) of a level of these chunks with distances 1..last, (max rank + 1,).

        A window of error e is a block of Frobenius norm at most chunk * e, and by Cauchy-Schwarz over the windows a
        chunk of output is off by at most chunk * sqrt(sum e^2) * ||u||. Polynomials turn fastest at both ends of the
        horizon, so a search looks at the windows there and in the middle; a plan that is kept looks at `every` one.
        """
        distances = np.arange(1, last + 1, dtype=np.float64)
        if not every and last > 24:
            distances = distances[np.unique(np.r_[0:8, np.linspace(8, last - 9, 8).astype(int), last - 8 : last])]
        squares = (self.tails(chunk, distances) ** 2).sum(axis=(0, 1)) * (last / len(distances))
        return chunk * np.sqrt(squares) / math.sqrt(self.horizon)


def direct_plan(horizon: int, length: int) -> Plan:
    """Every tap one by one. Long filters over longer sequences go in chunks of the filter's size."""
    chunk = -(-min(max(horizon, 64), length) // 4) * 4
    return Plan(horizon, length, chunk, (), 0.0)


def make_levels(horizon: int, length: int, chunks: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[Level, ...]:
    levels = []
    for index, (chunk, rank) in enumerate(zip(chunks, ranks, strict=True)):
        reach = min(-(-length // chunk), horizon // chunk) - 1  # largest distance whose window lies below the horizon
        if index + 1 == len(chunks):
            levels.append(Level(chunk, 0, rank, reach, reach + 1, 0))
            continue
        fan = chunks[index + 1] // chunk
        near = min(fan - 1, reach)
        covered = horizon // chunks[index + 1] - 1  # distances of parents that the levels above take
        limited = -(-length // chunks[index + 1]) - 1 > covered
        first = covered * fan + 1
        levels.append(Level(chunk, fan, rank, near, first, max(reach - first + 1, 0) if limited else 0))
    return tuple(levels)


def cost(horizon: int, length: int, levels: tuple[Level, ...]) -> float:
    """Multiply-adds an element, weighted."""
    lowest = levels[0]
    direct = (lowest.chunk + 1) / 2
    if length > horizon:
        direct += lowest.chunk / 2 + horizon % lowest.chunk
    folded, pairs = lowest.rank + 2.0, 0.0
    for index, level in enumerate(levels):
        chunks = -(-length // level.chunk)
        if index:
            folded += level.rank * levels[index - 1].rank / 2 / levels[index - 1].chunk
        group = level.fan or chunks
        near = sum(min(i % group, level.near_pairs) for i in range(chunks))
        far = sum(max(0, min(i, level.far_first + level.far_pairs - 1) - level.far_first - i % group + 1)
                  for i in range(level.far_first, chunks)) if level.far_pairs else 0
        pairs += (near + 2 * far) * level.rank * (level.rank + 1) / 2 / length
    return COST_DIRECT * direct + 2 * COST_FOLDED * folded + COST_PAIRS * pairs + COST_ROW


@lru_cache(maxsize=256)
def block_plan(terms: int, horizon: int, length: int, tolerance: float, rate: float) -> Plan | None:
    """The cheapest block plan whose bound is at most `tolerance`, or None. `rate`: fastest softplus(a) served."""
    windows = Windows(terms, horizon, (0.0,) if rate == 0 else (0.0, *np.geomspace(rate / 64, rate, 13)))
    reach = min(length, horizon)

    @lru_cache(maxsize=None)
    def rank_of(chunk: int, every: bool = False) -> int | None:
        last = min(-(-reach // chunk), horizon // chunk) - 1
        fits = np.flatnonzero(windows.bounds(chunk, max(last, 1), every) <= tolerance / 4)
        return max(int(fits[0]), 2) if len(fits) and fits[0] <= min(MAX_RANK, chunk // 2) else None

    best: tuple[float, tuple[int, ...]] = (math.inf, ())

    def extend(chunks: tuple[int, ...]) -> None:
        nonlocal best
        ranks = tuple(rank_of(chunk) for chunk in chunks)
        if None in ranks:
            return
        total = cost(horizon, length, make_levels(horizon, length, chunks, ranks))  # type: ignore[arg-type]
        best = min(best, (total, chunks))
        for fan in FANS:
            if chunks[-1] * fan * 2 <= reach and len(chunks) < 4:
                extend((*chunks, chunks[-1] * fan))

    for chunk in CHUNKS:
        if 2 * chunk <= reach:
            extend((chunk,))
    chunks = best[1]
    ranks = tuple(rank_of(chunk, True) for chunk in chunks)
    if not chunks or None in ranks:
        return None
    levels = make_levels(horizon, length, chunks, ranks)  # type: ignore[arg-type]
    bound = sum(
        float(windows.bounds(level.chunk, max(min(-(-reach // level.chunk), horizon // level.chunk) - 1, 1), True)[level.rank])
        for level in levels
    )
    return Plan(horizon, length, chunks[0], levels, bound)


@lru_cache(maxsize=1024)
def plan_for(terms: int, horizon: int, length: int, dtype: torch.dtype, rate: float = 0.0) -> Plan:
    """The cheapest plan for sequences of up to `length` rows, among direct and block low-rank."""
    taps = min(horizon, length)
    direct = direct_plan(horizon, length)
    direct_cost = COST_DIRECT * (taps - taps * (taps - 1) / 2 / length) + COST_ROW / 2
    if direct_cost < 40:
        return direct
    block = block_plan(terms, horizon, length, TOLERANCE[dtype], rate)
    return block if block and cost(horizon, length, block.levels) < direct_cost else direct
