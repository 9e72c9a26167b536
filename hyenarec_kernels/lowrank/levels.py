"""Levels of the block low-rank form: chunk sizes, ranks, and the error they cause, computed entry by entry in float64.

On the run of lags that one chunk distance covers, the filter is replaced by the polynomial through its values at
Chebyshev nodes. Its block is written in the local bases of the two chunks, and only some of the entries are kept. The
bound of the error holds for every filter that the basis spans.
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
    """Chunks of `chunk` rows, `fan` of them per parent (0 at the top level, which has no parents).

    A chunk has `rank` local polynomials, and a block keeps entries (r, s) with r, s < rank and r + s < degree. For each
    distance the filter is sampled at `nodes` lags. The level has blocks for distances 1 to near_pairs, inside a parent,
    and for far_pairs distances from far_first on.
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
        """The lags at which the filter is sampled for all distances: (distances * nodes,)."""
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
        covered = horizon // chunks[index + 1] - 1  # distances of parents, which the levels above serve
        limited = -(-length // chunks[index + 1]) - 1 > covered
        first = covered * fan + 1
        levels.append(Level(chunk, fan, *shape, near, first, max(reach - first + 1, 0) if limited else 0))
    return tuple(levels)


def last_distance(horizon: int, length: int, chunk: int) -> int:
    """The largest chunk distance inside the sequence whose lags all lie below the horizon."""
    return min(-(-length // chunk), horizon // chunk) - 1


@dataclass(frozen=True)
class BasisFilters:
    """The filters of single terms on the runs of lags that chunk distances cover, for chunks of any size."""

    terms: int
    horizon: int

    @property
    def exact_nodes(self) -> int:
        """The number of nodes that determine a filter on a run of lags: it is a polynomial of degree < terms."""
        return max(self.terms, 2)

    def samples(self, chunk: int, distances: Array, nodes: Array) -> Array:
        """The basis filters at `nodes`, in [-1, 1], of the lags of every distance: (distances, nodes, terms)."""
        lags = chunk * distances[:, None] + (chunk - 1) * nodes  # (distances, nodes)
        return sampled_basis(lags.reshape(-1), self.terms, self.horizon).reshape(*lags.shape, self.terms)

    @lru_cache(maxsize=256)  # noqa: B019 (an instance lives as long as the search that made it)
    def energy(self, chunk: int, last: int, nodes: int) -> Array:
        """The squares of the blocks' entries (r, s), summed over the basis filters and the distances 1..last:
        (entries,). Filters are sampled at `nodes` lags per distance.

        Polynomials oscillate fastest at both ends of the horizon. So beyond 24 distances, 8 at either end and 8 in
        between stand for all. This ranks candidates only; the bound of the plan that is kept looks at every distance.
        """
        distances = np.arange(1, last + 1, dtype=np.float64)
        if last > 24:
            distances = distances[np.r_[0:8, np.linspace(8, last - 9, 8).astype(int), last - 8 : last]]
        blocks = blocks_from_nodes(chunk, nodes) @ self.samples(chunk, distances, chebyshev_nodes(nodes))
        energy: Array = np.square(blocks).sum(axis=(0, 2)) * (last / len(distances))
        return energy

    def shape(self, chunk: int, last: int, tolerance: float) -> Shape:
        """The smallest (rank, degree, nodes) that drops less than `tolerance`, or the largest, which drops nothing.

        There may be more nodes than a chunk has rows, because a run of lags is nearly twice as long as a chunk.
        """
        count = self.exact_nodes
        energy, most = self.energy(chunk, last, count), min(count, chunk)
        for rank in range(1, most):
            degree = min(2 * rank - 1, count)
            if energy[~kept_entries(count, rank, degree)].sum() <= tolerance**2 * self.horizon:
                return rank, degree, min(degree + 3, count)
        return most, min(2 * most - 1, count), count

    def bound(self, level: Level, last: int) -> float:
        """An upper bound of the error of the level's blocks, through dropped entries and sampling together, relative to
        sqrt(horizon) times the norm of the coefficients.

        For coefficients of norm 1, the error at one distance is at most the Frobenius norm of the errors of all basis
        filters. A chunk of the output sums over distances, so by Cauchy-Schwarz its error is at most the root of the
        sum of the squares of these norms, times ||u||.
        """
        nodes = np.concatenate([chebyshev_nodes(self.exact_nodes), chebyshev_nodes(level.nodes)])
        off, squares = error_map(level, self.exact_nodes), 0.0
        for first in range(1, last + 1, 64):
            distances = np.arange(first, min(first + 64, last + 1), dtype=np.float64)
            squares += float(np.square(off @ self.samples(level.chunk, distances, nodes)).sum())
        return math.sqrt(squares / self.horizon)


def error_map(level: Level, exact: int) -> Array:
    """Maps a filter's values on a run of lags to the error of a level's block. The values are those at `exact` nodes,
    which determine the filter there, then those at the level's own nodes.

    Only the Frobenius norm of the result matters, so the map is replaced by the triangular factor of its QR
    decomposition: (at most exact + nodes, exact + nodes).
    """
    kept = kept_entries(exact, level.rank, level.degree)
    sampled = np.zeros((len(kept), level.nodes))
    from_nodes = blocks_from_nodes(level.chunk, level.nodes)
    sampled[kept] = from_nodes[kept_entries(level.nodes, level.rank, level.degree)]
    return np.linalg.qr(np.hstack([blocks_from_nodes(level.chunk, exact), -sampled]))[1].astype(np.float64)


def block_map(level: Level) -> Array:
    """Maps a polynomial's values at the nodes of a run of lags to its block: (nodes, rank * rank)."""
    kept = kept_entries(level.nodes, level.rank, level.degree)
    r, s = (index[kept] for index in entries(level.nodes))
    out = np.zeros((level.nodes, level.rank, level.rank))
    out[:, r, s] = blocks_from_nodes(level.chunk, level.nodes)[kept].T
    return out.reshape(level.nodes, -1)


def transfer(below: Level, above: Level) -> Array:
    """The local basis of a parent chunk, expressed in those of its children: (fan, rank below, rank above)."""
    parts = local_basis(above.chunk, above.rank).reshape(-1, below.chunk, above.rank)
    moved: Array = np.einsum("ib,jia->jba", local_basis(below.chunk, below.rank), parts)
    return moved
