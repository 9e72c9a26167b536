"""Plans of the CPU convolution: chunk sizes, ranks and the error bound of the block low-rank form.

A plan evaluates a filter at a few lags only: at every lag of the first chunk and, for each chunk distance, at the
Chebyshev nodes of the lags that this distance covers. On these lags the filter is replaced by the polynomial through
its values at the nodes, written in the local polynomial basis of the two chunks, of which a few entries are kept. What
is dropped is computed here entry by entry, in float64, before anything runs: the bound holds for every filter of the
basis.

A filter's window ``exp(-a lag)`` is not part of the plan: it splits into factors of the two chunks' rows and of the
chunks between them (csrc/cpu/tables.h). None of the factors is above 1, so the error of a windowed filter has the same
bound.
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
from hyenarec_kernels.lowrank.levels import TOLERANCE, BasisFilters, Level, last_distance, make_levels

ROWS = 8  # rows of a register tile of the direct part: chunks are whole tiles
CHUNKS = (16, 32, 64)  # chunk sizes of the lowest level
FANS = (4, 8)  # chunks in a parent: multiples of 4 (kLanes), whose two halves mirror each other
MAX_RANK = 40
# Nanoseconds of a multiply-add of 16 channels in each part, and of each row besides (NS_ROW). Fitted to 190 plans of 10
# shapes on a core with AVX-512 (float32; half of them are within 8%). Taps of whole sequences (NS_TAP) run near the
# core's peak, those of chunks (NS_CHUNK_TAP) in short loops. NS_BASIS includes folding. The blocks of a lowest level
# without parents (NS_TOP_PAIR) and of all levels above the lowest (NS_PAIR) come from the second-level cache.
NS_TAP, NS_CHUNK_TAP, NS_BASIS, NS_TRANSFER, NS_TABLE, NS_ROW = 0.15, 0.2, 0.4, 0.8, 0.7, 8.6
NS_NEAR_PAIR, NS_TOP_PAIR, NS_PAIR = 0.4, 0.6, 1.0
MANY_ROWS = 1 << 20  # of all sequences together: with so many rows the cost of building tables is negligible


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


@dataclass(frozen=True, eq=False)  # caches compare plans by identity, not by their fields
class Plan:
    """How to convolve sequences of up to `length` rows with a filter of `horizon` taps.

    `bound`: for coefficients c of a filter sum_n c_n h_n, any input u and any chunk I of the output,
    ||error_I|| <= bound * sqrt(horizon) * ||c|| * ||u|| (2-norms, per channel), apart from rounding; 0 for a direct
    plan.
    """

    horizon: int
    length: int
    chunk: int
    levels: tuple[Level, ...]
    bound: float

    @property
    def near_taps(self) -> int:
        # If there are no whole chunks between them, the far part starts at the lag after the near part: one run of
        # taps.
        return self.horizon if self.shares_taps and self.far_taps else min(self.chunk, self.horizon)

    @property
    def far_taps(self) -> int:
        """How many taps at the filter's end are applied one by one; 0 if no chunk of the sequences reaches back that
        far."""
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
        """The lags, then the folded bases and the node-to-block maps of all levels, in the arithmetic dtype."""
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
    """The part of blocks_from_nodes for the entries r <= s that a level keeps, those with even r + s first. It is
    applied to sums (even r + s) and differences (odd) of values at mirrored nodes, which halves the multiply-adds:
    (entries, (nodes + 1) // 2)."""
    r, s = entries(level.nodes)
    kept = kept_entries(level.nodes, level.rank, level.degree) & (r <= s)
    parity = (r + s)[kept] % 2
    order = np.argsort(parity, kind="stable")
    folded: Array = blocks_from_nodes(level.chunk, level.nodes)[kept][order, : (level.nodes + 1) // 2].copy()
    if level.nodes % 2:  # the middle node is its own mirror image
        folded[:, -1] /= 2
    return folded


def direct_plan(horizon: int, length: int) -> Plan:
    """The plan that applies every tap one by one. Sequences longer than the filter are cut into chunks of its size, at
    least 64 rows."""
    chunk = -(-min(max(horizon, 64), length) // ROWS) * ROWS
    return Plan(horizon, length, chunk, (), 0.0)


def cost(horizon: int, length: int, rows: int, levels: tuple[Level, ...]) -> float:
    """Nanoseconds per row and 16 channels, by the constants above. `rows` are those of all sequences: they share the
    cost of building tables."""
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
def cheapest_shape(filters: BasisFilters, chunk: int, last: int, tolerance: float) -> tuple[int, int, int] | None:
    """The cheapest (rank, degree, nodes) that drops less than `tolerance`, or None."""
    count = min(filters.exact_nodes, chunk)  # enough for ranks up to half a chunk
    energy = filters.energy(chunk, last, count)
    best, cheapest = None, math.inf
    for rank in range(2, min(MAX_RANK, count, chunk // 2) + 1):
        for degree in range(rank, min(2 * rank, count + 1)):
            kept = kept_entries(count, rank, degree)
            weight = NS_BASIS * rank + NS_PAIR * 3 * kept.sum() / chunk
            if weight < cheapest and energy[~kept].sum() <= tolerance**2 * filters.horizon:
                best, cheapest = (rank, degree, min(degree + 3, count)), weight
    return best


@lru_cache(maxsize=256)
def block_plan(terms: int, horizon: int, length: int, tolerance: float, rows: int = MANY_ROWS) -> Plan | None:
    """The cheapest block plan whose bound is at most `tolerance`, or None."""
    filters = BasisFilters(terms, horizon)
    for share in (tolerance / 4, tolerance / 8, tolerance / 16):  # of one level, as the search estimates it
        levels = cheapest_levels(filters, length, rows, share)
        bound = sum(filters.bound(level, last_distance(horizon, length, level.chunk)) for level in levels)
        if levels and bound <= tolerance:
            return Plan(horizon, length, levels[0].chunk, levels, bound)
    return None


def cheapest_levels(filters: BasisFilters, length: int, rows: int, share: float) -> tuple[Level, ...]:
    """The cheapest levels that drop less than `share` each; empty if there are none."""
    horizon = filters.horizon
    reach = min(length, horizon)

    def levels_of(chunks: tuple[int, ...]) -> tuple[Level, ...] | None:
        shapes = []
        for chunk in chunks:
            shape = cheapest_shape(filters, chunk, last_distance(horizon, length, chunk), share)
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
    """The cheapest plan, direct or block low-rank, for sequences of up to `length` rows, and `rows` rows in all."""
    taps = min(horizon, length)
    direct_cost = NS_ROW + NS_TAP * (taps - taps * (taps - 1) / 2 / length)
    block = None
    if direct_cost > 2 * NS_ROW:
        block = block_plan(terms, horizon, length, TOLERANCE[dtype], rows)
    return block if block and cost(horizon, length, rows, block.levels) < direct_cost else direct_plan(horizon, length)
