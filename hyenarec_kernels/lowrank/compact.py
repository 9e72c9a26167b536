"""The levels of a compact streaming state, which remembers finished chunks by a few moments instead of their events.

A level cuts time into chunks and keeps ``rank`` moments of each finished one. For each distance from 1 to ``slots`` it
has a block, which turns the moments of a chunk into the polynomial that this chunk adds to the outputs of a later one.
A lower level covers only the current parent chunk; the top level covers everything before, up to the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from hyenarec_kernels.lowrank.blocks import Array, blocks_from_nodes, chebyshev_nodes, entries, local_basis
from hyenarec_kernels.lowrank.levels import TOLERANCE, BasisFilters, Level

PAGE = 8  # rows per page in the ring of inputs of an exact state; kRingPage in csrc/cpu/args.h
CHUNKS = (16, 32, 64, 128)  # events per chunk of the lowest level, to choose from
FANS = (4, 8)  # chunks per parent, to choose from
# The top level drops its oldest chunk as a whole, so filters may end up to one such chunk before the horizon. Therefore
# its chunks are at most an eighth of the horizon.
TOP_SHARE = 8


@dataclass(frozen=True)
class CompactLevel:
    """Chunks of ``chunk`` events, ``rank`` moments each, reached at distances 1 to ``slots``."""

    chunk: int
    rank: int
    slots: int

    @property
    def basis(self) -> Array:
        """The polynomials that give the moments, orthonormal on the chunk: (chunk, rank)."""
        return local_basis(self.chunk, self.rank)

    def blocks(self, coefficients: Array, horizon: int) -> Array:
        """The blocks of Legendre filters with ``coefficients`` (G, N), without windows: (slots, rank, rank, G). They
        map a chunk's moments to the coefficients of what it adds to a later chunk."""
        groups, terms = coefficients.shape
        filters = BasisFilters(terms, horizon)
        nodes = filters.exact_nodes
        samples = filters.samples(self.chunk, np.arange(1, self.slots + 1, dtype=np.float64), chebyshev_nodes(nodes))
        values = blocks_from_nodes(self.chunk, nodes) @ (samples @ coefficients.T)  # (slots, entries, G)
        blocks = np.zeros((self.slots, nodes, nodes, groups))
        blocks[:, *entries(nodes)] = values
        return blocks[:, : self.rank, : self.rank]


@lru_cache(maxsize=64)
def compact_levels(terms: int, horizon: int, dtype: torch.dtype) -> tuple[CompactLevel, ...]:
    """The levels of the smallest state whose error bound (:class:`BasisFilters`, ``bound``) is at most the dtype's
    tolerance. In the size that is minimised, half of the lowest chunk counts twice, because a step reads that much.

    Empty if no state is less than half as large as the exact one, the last ``horizon - 1`` inputs.
    """
    filters = BasisFilters(terms, horizon)
    best: tuple[CompactLevel, ...] = ()
    smallest = (horizon - 1) // 2

    def extend(chunks: tuple[int, ...]) -> None:
        nonlocal best, smallest
        if chunks[-1] * TOP_SHARE > horizon:
            return
        levels = []
        for index, chunk in enumerate(chunks):
            top = index + 1 == len(chunks)
            slots = horizon // chunk - 1 if top else chunks[index + 1] // chunk - 1
            rank = _rank(filters, chunk, slots, TOLERANCE[dtype] / len(chunks))
            if rank is None:
                return
            levels.append(CompactLevel(chunk, rank, slots))
        page, lowest, *above = chunks[0], *levels
        size = page + page // 2 + lowest.rank * lowest.slots + sum(level.rank * (level.slots + 2) for level in above)
        if size < smallest:
            best, smallest = tuple(levels), size
        for fan in FANS:
            if len(chunks) < 4:
                extend((*chunks, chunks[-1] * fan))

    for chunk in CHUNKS:
        if chunk >= filters.exact_nodes:
            extend((chunk,))
    return best


@lru_cache(maxsize=1024)
def _rank(filters: BasisFilters, chunk: int, slots: int, tolerance: float) -> int | None:
    nodes = filters.exact_nodes
    for rank in range(2, nodes + 1):
        level = Level(chunk, 0, rank, min(2 * rank - 1, nodes), nodes, slots, slots + 1, 0)
        if filters.bound(level, slots) <= tolerance:
            return rank
    return None
