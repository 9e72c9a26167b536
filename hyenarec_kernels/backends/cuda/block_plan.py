"""Plans of the block low-rank Legendre convolution in CUDA (``csrc/cuda/legendre_blocks.h``), and their constants on a
device.

Rows are cut into tiles, which here are chunks of 256 rows. Inside a tile, and where the filter's end cuts a pair of
tiles, the kernels apply every tap, window included. A plan says how tiles act on each other: the levels of chunks,
their ranks, and the error bound of what is dropped, which holds for any decay. A plan depends on the length of a batch
only through ``beyond``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from hyenarec_kernels.lowrank.blocks import Array, local_basis, sampled_basis
from hyenarec_kernels.lowrank.levels import (
    TOLERANCE,
    BasisFilters,
    Level,
    Shape,
    block_map,
    last_distance,
    make_levels,
    transfer,
)

TILE, COLUMN = 256, 64  # rows
FANS = (4, 8)
MOST_RANK = 32  # of a level: more would not fit into a kernel's registers
# What a level costs besides its products, in multiply-adds per element: the time of two launches. Not measured.
LEVEL = 4.0
# What a pair of chunks costs besides its products, in multiply-adds per channel: to find it, and to read its table and
# moments. Counted in the compiled kernels, forward and backward together, at 15 and 63 distances; not measured.
PAIR = 128


@dataclass(frozen=True)
class BlockPlan:
    """How to convolve sequences of any length up to `horizon` (any length at all if made with `beyond`).

    `bound` has the meaning that it has in :class:`hyenarec_kernels.backends.cpu.plan.Plan`, with or without a window.
    """

    terms: int
    horizon: int
    levels: tuple[Level, ...]
    bound: float

    @property
    def numbers(self) -> list[int]:
        """The levels as the operator takes them: six numbers each."""
        return [
            number
            for level in self.levels
            for number in (level.chunk, level.fan, level.rank, level.near_pairs, level.far_first, level.far_pairs)
        ]

    @property
    def edge_lag(self) -> int:
        """The first of the 2 * TILE lags, applied tap by tap, in which the filter's end lies."""
        return (max(self.horizon // TILE, 1) - 1) * TILE


@lru_cache(maxsize=256)
def plan_for(terms: int, horizon: int, windowed: bool, beyond: bool, dtype: torch.dtype) -> BlockPlan | None:
    """The cheapest plan for filters of `horizon` taps whose bound is within the tolerance of `dtype`, or None.

    `windowed`: the filters have a window. The gradient of its decay is a convolution with ``tau / K`` times the filter,
    which has one more term. `beyond`: sequences may be longer than the horizon.
    """
    filters = BasisFilters(terms + windowed, horizon)
    length = 4 * horizon + 4 * TILE if beyond else horizon
    for share in (TOLERANCE[dtype] / part for part in (2, 4, 8, 16)):  # of one level, as the search estimates it
        levels = _cheapest_levels(filters, length, share)
        if levels is None:
            continue
        bound = sum(filters.bound(level, last_distance(horizon, length, level.chunk)) for level in levels)
        if bound <= TOLERANCE[dtype]:
            return BlockPlan(terms, horizon, levels, bound)
    return None


def _cheapest_levels(filters: BasisFilters, length: int, tolerance: float) -> tuple[Level, ...] | None:
    """The cheapest levels that drop less than `tolerance` each; empty if the horizon is shorter than two tiles, None if
    ranks are too large."""
    horizon = filters.horizon
    if horizon < 2 * TILE:
        return ()
    best: tuple[float, tuple[Level, ...] | None] = (math.inf, None)

    def extend(chunks: tuple[int, ...], shapes: tuple[Shape, ...]) -> None:
        nonlocal best
        chunk = chunks[-1]
        shapes = (*shapes, filters.shape(chunk, last_distance(horizon, length, chunk), tolerance))
        if shapes[-1][0] > MOST_RANK:
            return
        levels = make_levels(horizon, length, chunks, shapes)
        best = min(best, (_cost(levels), levels), key=lambda pair: pair[0])
        for fan in FANS:
            if 2 * fan * chunk <= horizon:
                extend((*chunks, fan * chunk), shapes)

    extend((TILE,), ())
    return best[1]


def _cost(levels: tuple[Level, ...]) -> float:
    """Multiply-adds per element between tiles; other costs are counted as the multiply-adds that take as long."""
    total = 0.0
    for index, level in enumerate(levels):
        pairs = (level.fan - 1) / 2 if level.fan else level.near_pairs / 2
        total += pairs * (level.rank**2 + PAIR) / level.chunk + LEVEL
        if index + 1 < len(levels):
            total += 2 * level.rank * levels[index + 1].rank / level.chunk
    return total


@cache  # never evicts: a captured CUDA graph may read the result as long as the process lives
def constants(plan: BlockPlan, windowed: bool, device: torch.device) -> Tensor:
    """What the kernels need of a plan, whatever the parameters: float32, one part after the other in the order of
    ``legendre_blocks.h``."""
    with torch.inference_mode(False):
        flat = np.concatenate([part.reshape(-1) for part in _parts(plan, windowed)])
        return torch.from_numpy(flat.astype(np.float32)).to(device)


def _parts(plan: BlockPlan, windowed: bool) -> list[Array]:
    near = np.arange(TILE, dtype=np.float64)
    lags = [near, plan.edge_lag + np.arange(2 * TILE, dtype=np.float64)]
    rows, aged, offsets = [], [], list(lags)
    for run in lags:
        inside = (run < plan.horizon)[:, None]
        values = sampled_basis(np.minimum(run, plan.horizon - 1), plan.terms, plan.horizon) * inside
        rows.append(values)
        aged.append(values * (run / plan.horizon)[:, None])
    for level in plan.levels:
        blocks = block_map(level).T  # (rank * rank, nodes)
        values = sampled_basis(level.lags, plan.terms, plan.horizon)
        for target, samples in ((rows, values), (aged, values * (level.lags / plan.horizon)[:, None])):
            target.append((blocks @ samples.reshape(-1, level.nodes, plan.terms)).reshape(-1, plan.terms))
        distances = np.array(level.distances, dtype=np.float64)
        offsets.append(np.repeat((distances - 1) * level.chunk, level.rank**2))
    parts: list[Array] = []
    if plan.levels:
        tile, column = (local_basis(chunk, plan.levels[0].rank) for chunk in (TILE, COLUMN))
        down = np.einsum("is,pir->psr", column, tile.reshape(-1, COLUMN, tile.shape[1]))
        spare = (0, -tile.shape[1] % 16)
        parts += [np.pad(tile, ((0, 0), spare)), np.pad(down, ((0, 0), spare, spare)), np.pad(column, ((0, 0), spare))]
    parts.append(np.concatenate(rows).T)
    parts += [np.concatenate(aged).T] if windowed else []
    parts += offsets
    return parts + [transfer(below, above) for below, above in zip(plan.levels, plan.levels[1:], strict=False)]
