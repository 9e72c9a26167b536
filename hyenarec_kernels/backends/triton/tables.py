"""Turns coefficients and decays into the tables that the kernels read, and the tables' gradients back into theirs:
small matrices, in plain torch.

Every table is linear in the coefficients, so that one product with a matrix (rows, N), made once for a plan and a
device, gives all of them. A window then multiplies each row by its own factor ``exp(-a * offset)``. All of this is
float64 and rounded once, to what the kernels read, because `torch.set_float32_matmul_precision` may let float32
products run in TF32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hyenarec_kernels.backends.triton.configs import CHUNK
from hyenarec_kernels.backends.triton.plan import (
    GpuPlan,
    fastest,
    grouped,
    near_fits,
    padded,
    stored,
    toeplitz,
)
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import event_rate
from hyenarec_kernels.lowrank.blocks import Array, local_basis, sampled_basis
from hyenarec_kernels.lowrank.levels import Level, block_map, transfer


@dataclass(frozen=True)
class Constants:
    """What a plan needs on a device, whatever the parameters.

    Attributes:
        toeplitz: (grouped(near_rank + 1), C, C) the matrices ``T_m``, in the dtype of the matrix products; after the
            near basis the skip's, which is 1, and zeros.
        basis: (C, padded rank) the lowest level's ``Q``, zero columns at the end, likewise; empty without levels.
        edges: (2, grouped(edge_rank), C, C) likewise.
        transfers: between each level and the next, (fan, rank, rank above); the lowest likewise, the others in arithmetic
            type.
        rows: (rows, N) maps coefficients to, in this order: the first taps, `near`, `edge`, each level's tables;
            float64, as all that follow.
        aged: likewise for the filter times lag / K.
        taps, offsets: the exponents' factors of the first taps (taps, 1) and of the other rows (rows - taps, 1).
        fit: (near_rank, taps) for windows too fast to be divided out.
    """

    toeplitz: Tensor
    basis: Tensor
    edges: Tensor
    transfers: tuple[Tensor, ...]
    rows: Tensor
    aged: Tensor
    taps: Tensor
    offsets: Tensor
    fit: Tensor


@dataclass(frozen=True)
class Tables:
    """What one call's kernels read: coefficients of the near and edge bases (D, grouped rank), after the near ones the
    skip; blocks of each level (distances, D, rank, rank)."""

    near: Tensor
    edge: Tensor
    levels: list[Tensor]

    def part(self, channels: slice) -> Tables:
        """Of some channels."""
        near, edge, *levels = (t[:, channels].contiguous() for t in (self.near[None], self.edge[None], *self.levels))
        return Tables(near[0], edge[0], levels)


@cache  # nothing is dropped: a captured CUDA graph may read it as long as the process lives
def constants(plan: GpuPlan, dtype: torch.dtype, operand: torch.dtype, device: torch.device) -> Constants:
    def put(values: Array, to: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(to).to(device)

    def sampled(lags: Array) -> tuple[Array, Array]:
        values = sampled_basis(lags, plan.terms, plan.horizon)
        return values, values * (lags / plan.horizon)[:, None]

    first, cut = np.arange(plan.near_taps, dtype=np.float64), np.arange(plan.edge_lag, plan.horizon, dtype=np.float64)
    exact, fast = near_fits(plan, dtype)
    parts = [
        (first, np.eye(len(first)), [0.0] * len(first)),
        (first, exact, [0.0] * len(exact)),
        (cut, plan.edge_basis.T, [float(plan.edge_lag - 1)] * plan.edge_rank),
    ]
    rows: list[Array] = []
    aged: list[Array] = []
    offsets: list[float] = []
    for lags, fit, offset in parts:
        for target, values in zip((rows, aged), sampled(lags), strict=True):
            target.append(fit @ values)
        offsets += offset
    for level in plan.levels:
        held = stored(level.rank)
        blocks = np.zeros((held, held, level.nodes))
        blocks[: level.rank, : level.rank] = block_map(level).T.reshape(level.rank, level.rank, -1)
        blocks = blocks.reshape(held**2, -1)
        for target, values in zip((rows, aged), sampled(level.lags), strict=True):
            target.append((blocks @ values.reshape(-1, level.nodes, plan.terms)).reshape(-1, plan.terms))
        offsets += [float((distance - 1) * level.chunk) for distance in level.distances for _ in range(held**2)]
    basis = np.zeros((CHUNK, 0))
    if plan.levels:
        basis = np.zeros((CHUNK, padded(plan.levels[0].rank)))
        basis[:, : plan.levels[0].rank] = local_basis(CHUNK, plan.levels[0].rank)
    edge_lags = [(plan.edge_first + b) * CHUNK for b in range(2)]
    with torch.inference_mode(False):
        return Constants(
            toeplitz=put(_grouped(np.append(toeplitz(plan.near_basis, 0, 0), np.eye(CHUNK)[None], 0)), operand),
            basis=put(basis, operand),
            edges=put(np.stack([_grouped(toeplitz(plan.edge_basis, plan.edge_lag, lag)) for lag in edge_lags]), operand),
            transfers=tuple(
                put(_stored(transfer(*pair)), dtype if index else operand)
                for index, pair in enumerate(zip(plan.levels, plan.levels[1:], strict=False))
            ),
            rows=put(np.concatenate(rows), torch.float64),
            aged=put(np.concatenate(aged), torch.float64),
            taps=put(first[:, None], torch.float64),
            offsets=put(np.array(offsets[len(first) :])[:, None], torch.float64),
            fit=put(fast, torch.float64),
        )


def _grouped(matrices: Array) -> Array:
    """(rank, C, C) with zeros up to a multiple of what one product takes."""
    return np.pad(matrices, ((0, grouped(len(matrices)) - len(matrices)), (0, 0), (0, 0)))


def _stored(matrices: Array) -> Array:
    """(..., rank, rank) with zeros up to the ranks that are stored."""
    grown = [stored(rank) - rank for rank in matrices.shape[-2:]]
    return np.pad(matrices, ((0, 0), (0, grown[0]), (0, grown[1])))


@dataclass(frozen=True)
class FilterParameters:
    """One call's parameters in float64: coefficients (G, N), and the decay an event (G,), if any.

    `dtype` is the kernels' arithmetic type, `operand` that of a matrix product.
    """

    plan: GpuPlan
    constants: Constants
    coefficients: Tensor
    rate: Tensor | None
    dtype: torch.dtype
    operand: torch.dtype

    @classmethod
    def of(
        cls, plan: GpuPlan, constants: Constants, coefficients: Tensor, decay: Tensor | None, dtype: torch.dtype
    ) -> FilterParameters:
        rate = None if decay is None else event_rate(decay.double(), plan.horizon)
        return cls(plan, constants, coefficients.double(), rate, wide(dtype), constants.basis.dtype)

    @property
    def sizes(self) -> list[int]:
        plan = self.plan
        blocks = [len(level.distances) * stored(level.rank) ** 2 for level in plan.levels]
        return [plan.near_taps, plan.near_rank, plan.edge_rank, *blocks]

    def values(self) -> tuple[Tensor, Tensor | None]:
        """All rows and their windows, (rows, G)."""
        values = self.constants.rows @ self.coefficients.T
        if self.rate is None:
            return values, None
        beyond = (self.rate - fastest(self.dtype)).clamp(min=0)
        window = torch.exp(-torch.cat([self.constants.taps * beyond, self.constants.offsets * self.rate]))
        return values * window, window

    def too_fast(self) -> Tensor:
        assert self.rate is not None
        return self.rate > fastest(self.dtype)

    def tables(self, skip: Tensor | None, channels: int) -> Tables:
        values = self.values()[0]
        taps, near, edge, *blocks = values.to(self.dtype).split(self.sizes)
        if self.rate is not None:
            near = torch.where(self.too_fast(), (self.constants.fit @ values[: len(taps)]).to(self.dtype), near)
        blocks = [self._by_channel(block, level) for block, level in zip(blocks, self.plan.levels, strict=True)]
        blocks[:1] = (t.to(self.operand) for t in blocks[:1])
        repeat = channels // near.shape[1]
        if repeat > 1:
            near, edge, *blocks = (t.repeat_interleave(repeat, 1) for t in (near, edge, *blocks))
        held = [t.new_zeros(channels, grouped(rank)) for t, rank in ((near, len(near) + 1), (edge, len(edge)))]
        held[0][:, : len(near)], held[1][:, : len(edge)] = near.T, edge.T
        if skip is not None:
            held[0][:, len(near)] = skip
        return Tables(*held, blocks)

    def _by_channel(self, block: Tensor, level: Level) -> Tensor:
        """A level's rows (distances * rank * rank, G) as (distances, G, rank, rank)."""
        rank, groups = stored(level.rank), block.shape[1]
        return block.view(-1, rank**2, groups).transpose(1, 2).contiguous().view(-1, groups, rank, rank)

    def backward(self, near: Tensor, edge: Tensor, blocks: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Gradients of the coefficients (G, N) and of the decay (G,) from those of the tables (without
        the skip and the zeros)."""
        groups = self.coefficients.shape[0]
        near, edge = (t.T.reshape(t.shape[1], groups, -1).sum(2, dtype=torch.float64) for t in (near, edge))
        blocks = [
            t.view(len(t), groups, -1, t[0, 0].numel()).sum(2, dtype=torch.float64).transpose(1, 2).reshape(-1, groups)
            for t in blocks
        ]
        taps = near.new_zeros(self.plan.near_taps, groups)
        if self.rate is not None:
            fast = self.too_fast()
            taps = self.constants.fit.T @ torch.where(fast, near, 0)
            near = torch.where(fast, 0, near)
        gradient = torch.cat([taps, near, edge, *blocks])  # (rows, G)
        _, window = self.values()
        if window is None:
            return gradient.T @ self.constants.rows, None
        gradient = gradient * window
        drate = -(gradient * (self.constants.aged @ self.coefficients.T)).sum(0)
        return gradient.T @ self.constants.rows, drate
