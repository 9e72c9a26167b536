"""Levels of the block low-rank form: chunks, ranks and what they drop, computed entry by entry in float64.

Inside the window of lags that a chunk distance covers the filter is replaced by the polynomial through its values at
Chebyshev nodes and written in the local polynomial basis of the two chunks, of which a few entries are kept. The bound
of what is dropped holds for every filter of the basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from hyenarec_kernels.lowrank.blocks import (
    Array,
    blocks_from_nodes,
    chebyshev_nodes,
    entries,
    kept_entries,
    local_basis,
    sampled_basis,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-3, torch.float16: 2e-4}


@dataclass(frozen=True)
class Level:
    """Chunks of `chunk` rows, `fan` in a parent; distances 1..near_pairs inside a parent.

    `rank` local polynomials a chunk; a block keeps entries (r, s) with r, s < rank and r + s < degree; each window of
    lags is sampled at `nodes` lags.
    """

    chunk: int
    fan: int
    rank: int
    degree: int
    nodes: int
    near_pairs: int
    far_first: int
    far_pairs: int

    @property
    def distances(self) -> list[int]:
        near = range(1, self.near_pairs + 1)
        return [*near, *range(self.far_first, self.far_first + self.far_pairs)]

    @property
    def lags(self) -> Array:
        """(distances * nodes,)"""
        window = (self.chunk - 1) * chebyshev_nodes(self.nodes)
        lags: Array = (self.chunk * np.array(self.distances, dtype=np.float64)[:, None] + window).reshape(-1)
        return lags


Shape = tuple[int, int, int]


def make_levels(horizon: int, length: int, chunks: tuple[int, ...], shapes: tuple[Shape, ...]) -> tuple[Level, ...]:
    levels = []
    for index, (chunk, shape) in enumerate(zip(chunks, shapes, strict=True)):
        reach = last_distance(horizon, length, chunk)
        if index + 1 == len(chunks):
            levels.append(Level(chunk, 0, *shape, reach, reach + 1, 0))
            continue
        fan = chunks[index + 1] // chunk
        near = min(fan - 1, reach)
        covered = horizon // chunks[index + 1] - 1  # distances of parents that the levels above take
        limited = -(-length // chunks[index + 1]) - 1 > covered
        first = covered * fan + 1
        levels.append(Level(chunk, fan, *shape, near, first, max(reach - first + 1, 0) if limited else 0))
    return tuple(levels)


def last_distance(horizon: int, length: int, chunk: int) -> int:
    """The largest chunk distance inside the sequence whose window of lags lies below the horizon."""
    return min(-(-length // chunk), horizon // chunk) - 1


@dataclass(frozen=True)
class Windows:
    """The windows of lags of the basis filters that chunks at one distance cover, on chunks of any size."""

    terms: int
    horizon: int

    @property
    def exact_nodes(self) -> int:
        """Nodes that determine a window: a filter is a polynomial of degree < terms."""
        return max(self.terms, 2)

    def samples(self, chunk: int, distances: Array, nodes: Array) -> Array:
        """The basis filters at `nodes` in [-1, 1] of every window, (windows, nodes, terms)."""
        lags = chunk * distances[:, None] + (chunk - 1) * nodes  # (windows, nodes)
        return sampled_basis(lags.reshape(-1), self.terms, self.horizon).reshape(*lags.shape, self.terms)

    @lru_cache(maxsize=256)  # noqa: B019 (windows live as long as the search that made them)
    def energy(self, chunk: int, last: int, nodes: int) -> Array:
        """Squares of the entries (r, s) summed over basis filters and distances 1..last, from windows sampled at
        `nodes` lags: (entries,).

        Polynomials turn fastest at both ends of the horizon: beyond 24 windows, 8 at either end and 8 between stand
        for the rest. This ranks candidates; the bound of a plan that is kept looks at every window.
        """
        distances = np.arange(1, last + 1, dtype=np.float64)
        if last > 24:
            distances = distances[np.r_[0:8, np.linspace(8, last - 9, 8).astype(int), last - 8 : last]]
        blocks = blocks_from_nodes(chunk, nodes) @ self.samples(chunk, distances, chebyshev_nodes(nodes))
        energy: Array = np.square(blocks).sum(axis=(0, 2)) * (last / len(distances))
        return energy

    def shape(self, chunk: int, last: int, tolerance: float) -> Shape:
        """The smallest (rank, degree, nodes) that drops less than `tolerance`, or the largest, which drops nothing.

        A window of lags may need more nodes than a chunk has rows: it is nearly twice as long.
        """
        count = self.exact_nodes
        energy, most = self.energy(chunk, last, count), min(count, chunk)
        for rank in range(1, most):
            degree = min(2 * rank - 1, count)
            if energy[~kept_entries(count, rank, degree)].sum() <= tolerance**2 * self.horizon:
                return rank, degree, min(degree + 3, count)
        return most, min(2 * most - 1, count), count

    def bound(self, level: Level, last: int) -> float:
        """The largest error of the level's blocks: of the entries that are dropped and of sampling together.

        For coefficients of norm 1 the error of one window is at most its Frobenius norm over all basis filters. A chunk
        of the output sums over windows, so by Cauchy-Schwarz its error is at most the root of the sum of the squares of
        these norms, times ||u||.
        """
        nodes = np.concatenate([chebyshev_nodes(self.exact_nodes), chebyshev_nodes(level.nodes)])
        off, squares = error_map(level, self.exact_nodes), 0.0
        for first in range(1, last + 1, 64):
            distances = np.arange(first, min(first + 64, last + 1), dtype=np.float64)
            squares += float(np.square(off @ self.samples(level.chunk, distances, nodes)).sum())
        return math.sqrt(squares / self.horizon)


def error_map(level: Level, exact: int) -> Array:
    """Maps a window's values at `exact` nodes that determine it, then at its own, to what a level's block is off by.

    Only its Frobenius norm is kept: the triangle of the map's QR, (at most exact + nodes, exact + nodes).
    """
    kept = kept_entries(exact, level.rank, level.degree)
    sampled = np.zeros((len(kept), level.nodes))
    from_nodes = blocks_from_nodes(level.chunk, level.nodes)
    sampled[kept] = from_nodes[kept_entries(level.nodes, level.rank, level.degree)]
    return np.linalg.qr(np.hstack([blocks_from_nodes(level.chunk, exact), -sampled]))[1].astype(np.float64)


def block_map(level: Level) -> Array:
    """From a polynomial's values at a window's nodes to its block, (nodes, rank * rank)."""
    kept = kept_entries(level.nodes, level.rank, level.degree)
    r, s = (index[kept] for index in entries(level.nodes))
    out = np.zeros((level.nodes, level.rank, level.rank))
    out[:, r, s] = blocks_from_nodes(level.chunk, level.nodes)[kept].T
    return out.reshape(level.nodes, -1)


def transfer(below: Level, above: Level) -> Array:
    """The basis of a chunk's parent in that of its children, (fan, rank below, rank above)."""
    parts = local_basis(above.chunk, above.rank).reshape(-1, below.chunk, above.rank)
    moved: Array = np.einsum("ib,jia->jba", local_basis(below.chunk, below.rank), parts)
    return moved
