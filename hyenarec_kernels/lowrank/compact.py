"""Levels of a streaming state that is smaller than the horizon: chunks whose events are remembered by a few moments.

A level cuts time into chunks. Of a finished chunk it keeps ``rank`` moments, and each of its ``slots`` distances has a
block that turns them into the polynomial that the chunk adds to a later chunk's outputs. Lower levels serve the chunks
of the present parent, the top level everything before it, up to the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from hyenarec_kernels.lowrank.blocks import Array, blocks_from_nodes, chebyshev_nodes, entries, local_basis
from hyenarec_kernels.lowrank.levels import TOLERANCE, Level, Windows

PAGE = 8  # rows of a page in a ring of the inputs themselves, as csrc/cpu/args.h has it
CHUNKS = (16, 32, 64, 128)  # of the lowest level
FANS = (4, 8)  # chunks in a parent
# The oldest chunk of the top level leaves as a whole, so the horizon is shorter by up to one: at most an eighth.
TOP_SHARE = 8


@dataclass(frozen=True)
class CompactLevel:
    """Chunks of ``chunk`` events, ``rank`` moments each, reached at distances 1 to ``slots``."""

    chunk: int
    rank: int
    slots: int

    @property
    def basis(self) -> Array:
        """The polynomials that moments are taken with, orthonormal on the chunk, (chunk, rank)."""
        return local_basis(self.chunk, self.rank)

    def blocks(self, coefficients: Array, horizon: int) -> Array:
        """Of Legendre filters ``coefficients`` (G, N): from moments to polynomials, (slots, rank, rank, G)."""
        groups, terms = coefficients.shape
        windows = Windows(terms, horizon)
        nodes = windows.exact_nodes
        samples = windows.samples(self.chunk, np.arange(1, self.slots + 1, dtype=np.float64), chebyshev_nodes(nodes))
        values = blocks_from_nodes(self.chunk, nodes) @ (samples @ coefficients.T)  # (slots, entries, G)
        blocks = np.zeros((self.slots, nodes, nodes, groups))
        blocks[:, *entries(nodes)] = values
        return blocks[:, : self.rank, : self.rank]


@lru_cache(maxsize=64)
def compact_levels(terms: int, horizon: int, dtype: torch.dtype) -> tuple[CompactLevel, ...]:
    """The levels of the smallest state whose error is at most the dtype's tolerance (:class:`Windows`, ``bound``); half
    of the lowest chunk, which is what a step reads, counts twice.

    Empty where none is less than half of the ``horizon - 1`` last inputs themselves.
    """
    windows = Windows(terms, horizon)
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
            rank = _rank(windows, chunk, slots, TOLERANCE[dtype] / len(chunks))
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
        if chunk >= windows.exact_nodes:
            extend((chunk,))
    return best


@lru_cache(maxsize=1024)
def _rank(windows: Windows, chunk: int, slots: int, tolerance: float) -> int | None:
    nodes = windows.exact_nodes
    for rank in range(2, nodes + 1):
        level = Level(chunk, 0, rank, min(2 * rank - 1, nodes), nodes, slots, slots + 1, 0)
        if windows.bound(level, slots) <= tolerance:
            return rank
    return None
