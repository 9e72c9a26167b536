"""Plans of the CPU convolution: chunk sizes, ranks and the error bound of the block low-rank form.

A plan turns a filter into its values at a few lags: every lag of the first chunk, and for each chunk distance the
Chebyshev nodes of the window of lags that the distance covers. Inside a window the filter is replaced by the polynomial
through its nodes and written in the local polynomial basis of the two chunks, of which a few entries are kept. What is
dropped is computed here entry by entry, in float64, before anything runs: the bound holds for every filter of the
basis.

A window ``exp(-a lag)`` is no part of this: it splits into factors of the two chunks' rows and of the chunks between
them (csrc/cpu/tables.h), none of them above 1, so that the error of a windowed filter has the same bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from hyenarec_kernels.backends.compiled import INTERFACE
from hyenarec_kernels.lowrank.blocks import Array, blocks_from_nodes, entries, kept_entries, local_basis
from hyenarec_kernels.lowrank.levels import TOLERANCE, Level, Windows, last_distance, make_levels

ROWS = 8  # of a register tile of the direct part: chunks are whole tiles
CHUNKS = (16, 32, 64)  # of the lowest level
FANS = (4, 8)  # chunks in a parent: whole segments of 4, whose two halves mirror each other
MAX_RANK = 40
# Nanoseconds of a multiply-add of 16 channels in each part, and of a row besides: fitted to 190 plans of 10 shapes on a
# core with AVX-512 (float32; half are within 8%). Taps of whole sequences run near the core's peak, those of chunks in
# short loops; bases pay for folding; blocks of a level without parents, and those above the lowest, come from the
# second-level cache.
NS_TAP, NS_CHUNK_TAP, NS_BASIS, NS_TRANSFER, NS_TABLE, NS_ROW = 0.15, 0.2, 0.4, 0.8, 0.7, 8.6
NS_NEAR_PAIR, NS_TOP_PAIR, NS_PAIR = 0.4, 0.6, 1.0
MANY_ROWS = 1 << 20  # of all sequences together: building tables costs nothing beside them


class WireHead(NamedTuple):
    """A plan's own integers, in the order in which csrc/cpu/wire.h reads and explains them."""

    version: int
    head_fields: int
    level_fields: int
    horizon: int
    length: int
    chunk: int
    near_taps: int
    far_lag: int
    far_taps: int
    far_row: int
    num_samples: int
    lags: int


class WireLevel(NamedTuple):
    """The integers of one level."""

    chunk: int
    fan: int
    rank: int
    degree: int
    nodes: int
    near_pairs: int
    far_first: int
    far_pairs: int
    sample_row: int
    moments: int
    from_nodes: int
    half: int


@dataclass(frozen=True, eq=False)  # caches find a plan by itself, not by its fields
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
        return self.horizon if self.shares_taps and self.far_taps else min(self.chunk, self.horizon)

    @property
    def far_taps(self) -> int:
        """Taps at the filter's end, which lie inside the sequence when a chunk can reach the horizon."""
        if -(-self.length // self.chunk) <= max(self.horizon // self.chunk, 1):
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
        parts = [np.arange(self.near_taps), *far, *(level.lags for level in self.levels)]
        lags: Array = np.concatenate(parts).astype(np.float64)
        return lags

    @cached_property
    def numbers(self) -> torch.Tensor:
        """A WireHead, then a WireLevel for each level: int64."""
        far_row = self.near_taps if self.far_taps and not self.shares_taps else 0
        numbers: list[int] = []
        numbers += WireHead(
            version=INTERFACE,
            head_fields=len(WireHead._fields),
            level_fields=len(WireLevel._fields),
            horizon=self.horizon,
            length=self.length,
            chunk=self.chunk,
            near_taps=self.near_taps,
            far_lag=self.far_lag,
            far_taps=self.far_taps,
            far_row=far_row,
            num_samples=len(self.lags),
            lags=0,
        )
        row = self.near_taps + (self.far_taps if far_row else 0)
        offset = len(self.lags)
        for level, (moments, from_nodes, half) in zip(self.levels, self._tables, strict=True):
            numbers += WireLevel(
                chunk=level.chunk,
                fan=level.fan,
                rank=level.rank,
                degree=level.degree,
                nodes=level.nodes,
                near_pairs=level.near_pairs,
                far_first=level.far_first,
                far_pairs=level.far_pairs,
                sample_row=row,
                moments=offset,
                from_nodes=offset + moments.size,
                half=half,
            )
            offset += moments.size + from_nodes.size
            row += len(level.lags)
        return torch.from_numpy(np.array(numbers, dtype=np.int64))

    def constants(self, dtype: torch.dtype) -> torch.Tensor:
        """Lags, then folded bases and node-to-block maps of all levels, in the arithmetic type."""
        return self._constants[dtype]

    @cached_property
    def _constants(self) -> dict[torch.dtype, torch.Tensor]:
        parts = [part.reshape(-1) for moments, from_nodes, _ in self._tables for part in (moments, from_nodes)]
        whole = torch.from_numpy(np.concatenate([self.lags, *parts]))
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
            tables.append((folded, folded_map(level), len(rows)))
            below = level
        return tables


def folded_map(level: Level) -> Array:
    """The map of blocks_from_nodes for what a level keeps of r <= s, applied to sums (entries with even r + s, first)
    and differences (odd) of values at mirrored nodes: half the multiply-adds, (entries, (nodes + 1) // 2)."""
    r, s = entries(level.nodes)
    kept = kept_entries(level.nodes, level.rank, level.degree) & (r <= s)
    parity = (r + s)[kept] % 2
    order = np.argsort(parity, kind="stable")
    folded: Array = blocks_from_nodes(level.chunk, level.nodes)[kept][order, : (level.nodes + 1) // 2].copy()
    if level.nodes % 2:  # the middle node is its own mirror image
        folded[:, -1] /= 2
    return folded


def direct_plan(horizon: int, length: int) -> Plan:
    """Every tap one by one. Long filters over longer sequences go in chunks of the filter's size."""
    chunk = -(-min(max(horizon, 64), length) // ROWS) * ROWS
    return Plan(horizon, length, chunk, (), 0.0)


def cost(horizon: int, length: int, rows: int, levels: tuple[Level, ...]) -> float:
    """Nanoseconds a row and 16 channels, of `rows` in all, by the weights above."""
    lowest = levels[0]
    taps = (lowest.chunk + 1) / 2
    if length > horizon:
        taps += lowest.chunk / 2 + horizon % lowest.chunk
    padded = -(-length // lowest.chunk) * lowest.chunk / length  # the last chunk is computed whole
    total = NS_ROW + NS_CHUNK_TAP * taps + NS_BASIS * lowest.rank * padded
    for index, level in enumerate(levels):
        if index:
            total += NS_TRANSFER * level.rank * levels[index - 1].rank / levels[index - 1].chunk
        position = np.arange(-(-length // level.chunk))
        within = position % level.fan if level.fan else position
        near, far = np.minimum(within, level.near_pairs).sum(), 0
        if level.far_pairs:
            reach = np.minimum(position, level.far_first + level.far_pairs - 1)
            far = np.maximum(reach - level.far_first - within + 1, 0).sum()
        kept = int(kept_entries(level.nodes, level.rank, level.degree).sum())
        pair = NS_PAIR if index else NS_NEAR_PAIR if level.fan else NS_TOP_PAIR
        total += (pair * near + 2 * NS_PAIR * far) * kept / length
        total += NS_TABLE * kept * ((level.nodes + 1) // 2) * (level.near_pairs + level.far_pairs) / rows
    return total


@lru_cache(maxsize=1024)
def cheapest_shape(windows: Windows, chunk: int, last: int, tolerance: float) -> tuple[int, int, int] | None:
    """Cheapest (rank, degree, nodes) that drop less than `tolerance`, or None."""
    count = min(windows.exact_nodes, chunk)  # enough for ranks up to half a chunk
    energy = windows.energy(chunk, last, count)
    best, cheapest = None, math.inf
    for rank in range(2, min(MAX_RANK, count, chunk // 2) + 1):
        for degree in range(rank, min(2 * rank, count + 1)):
            kept = kept_entries(count, rank, degree)
            weight = NS_BASIS * rank + NS_PAIR * 3 * kept.sum() / chunk
            if weight < cheapest and energy[~kept].sum() <= tolerance**2 * windows.horizon:
                best, cheapest = (rank, degree, min(degree + 3, count)), weight
    return best


@lru_cache(maxsize=256)
def block_plan(terms: int, horizon: int, length: int, tolerance: float, rows: int = MANY_ROWS) -> Plan | None:
    """The cheapest block plan whose bound is at most `tolerance`, or None."""
    windows = Windows(terms, horizon)
    for share in (tolerance / 4, tolerance / 8, tolerance / 16):  # of one level, as far as the search can tell
        levels = cheapest_levels(windows, length, rows, share)
        bound = sum(windows.bound(level, last_distance(horizon, length, level.chunk)) for level in levels)
        if levels and bound <= tolerance:
            return Plan(horizon, length, levels[0].chunk, levels, bound)
    return None


def cheapest_levels(windows: Windows, length: int, rows: int, share: float) -> tuple[Level, ...]:
    """The cheapest whose levels drop less than `share` each; empty where there are none."""
    horizon = windows.horizon
    reach = min(length, horizon)

    def levels_of(chunks: tuple[int, ...]) -> tuple[Level, ...] | None:
        shapes = []
        for chunk in chunks:
            shape = cheapest_shape(windows, chunk, last_distance(horizon, length, chunk), share)
            if shape is None:
                return None
            shapes.append(shape)
        return make_levels(horizon, length, chunks, tuple(shapes))

    best: tuple[float, tuple[Level, ...]] = (math.inf, ())

    def extend(chunks: tuple[int, ...]) -> None:
        nonlocal best
        levels = levels_of(chunks)
        if levels is None:
            return
        best = min(best, (cost(horizon, length, rows, levels), levels), key=lambda pair: pair[0])
        for fan in FANS:
            if chunks[-1] * fan * 2 <= reach and len(chunks) < 4:
                extend((*chunks, chunks[-1] * fan))

    for chunk in CHUNKS:
        if 2 * chunk <= reach:
            extend((chunk,))
    return best[1]


@lru_cache(maxsize=1024)
def plan_for(terms: int, horizon: int, length: int, dtype: torch.dtype, rows: int = MANY_ROWS) -> Plan:
    """The cheapest plan, direct or block low-rank, for sequences of up to `length` rows, `rows` in all."""
    taps = min(horizon, length)
    direct_cost = NS_ROW + NS_TAP * (taps - taps * (taps - 1) / 2 / length)
    block = None
    if direct_cost > 2 * NS_ROW:
        block = block_plan(terms, horizon, length, TOLERANCE[dtype], rows)
    return block if block and cost(horizon, length, rows, block.levels) < direct_cost else direct_plan(horizon, length)
