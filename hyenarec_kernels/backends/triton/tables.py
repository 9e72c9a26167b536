"""Turns coefficients and decays into the tables that the kernels read, and the gradients of the tables into those of
coefficients and decays: small matrices, in plain torch.

Every table is linear in the coefficients, so one product with a matrix (rows, N), made once for a plan and a device,
gives all of them. A window then multiplies each row by its own factor ``exp(-a * offset)``. All of this is in float64
and rounded once, to what the kernels read, because `torch.set_float32_matmul_precision` may let float32 products run in
TF32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import Arithmetic
from hyenarec_kernels.backends.triton.configs import CHUNK
from hyenarec_kernels.backends.triton.plan import (
    GpuPlan,
    fast_fit,
    fastest,
    near_fit,
    padded,
    plain_fit,
    toeplitz,
)
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import event_rate
from hyenarec_kernels.lowrank.blocks import Array, local_basis, sampled_basis
from hyenarec_kernels.lowrank.levels import block_map, transfer


@dataclass(frozen=True)
class Constants:
    """What a plan needs on a device, whatever the parameters.

    Attributes:
        toeplitz: (near_rank, C, C) the matrices ``T_m``, in the dtype of matrix products. They are rounded to the
            precision that these products read, and coefficients are fitted to the rounded bases.
        basis: (C, padded rank) the lowest level's ``Q`` with zero columns at the end, rounded likewise; empty without
            levels.
        edges: (edge_rank, 2, C, C) the matrices of the two chunk distances that the filter's end cuts, rounded
            likewise.
        transfers: from each level to the next, (fan, rank, rank above), in the arithmetic dtype.
        rows: (rows, N) maps coefficients to, in this order: the first taps, `near`, `edge`, each level's tables;
            float64, as all that follow.
        aged: as `rows`, for the filter times lag / K.
        taps, offsets: what the rate is multiplied by in the exponents of the first taps (taps, 1) and of the other rows
            (rows - taps, 1).
        fit: (near_rank, taps - 1) maps the taps after lag 0 to `near` if the window is too fast to be divided out.
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
    """The tables that one call's kernels read, (..., D): what a row gets of itself (lag 0's tap and the skip), the
    coefficients of the near and edge bases, and the blocks of each level."""

    own: Tensor
    near: Tensor
    edge: Tensor
    levels: list[Tensor]

    def part(self, channels: slice) -> Tables:
        """The tables of some channels."""
        parts = (self.own, self.near, self.edge, *self.levels)
        own, near, edge, *levels = (t[:, channels].contiguous() for t in parts)
        return Tables(own, near, edge, levels)


@cache  # never evicts: a captured CUDA graph may read the result as long as the process lives
def constants(plan: GpuPlan, arithmetic: Arithmetic, device: torch.device) -> Constants:
    dtype, operand = arithmetic.wide, arithmetic.operand

    def put(values: Array, to: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(to).to(device)

    def sampled(lags: Array) -> tuple[Array, Array]:
        values = sampled_basis(lags, plan.terms, plan.horizon)
        return values, values * (lags / plan.horizon)[:, None]

    first, cut = np.arange(plan.near_taps, dtype=np.float64), np.arange(plan.edge_lag, plan.horizon, dtype=np.float64)
    near_basis, edge_basis = (arithmetic.rounded(basis) for basis in (plan.near_basis, plan.edge_basis))
    fast = fast_fit(near_basis, dtype)
    parts = [
        (first, np.eye(len(first)), [0.0] * len(first)),
        (first[1:], near_fit(near_basis), [0.0] * plan.near_rank),
        (cut, plain_fit(edge_basis), [float(plan.edge_lag - 1)] * plan.edge_rank),
    ]
    rows: list[Array] = []
    aged: list[Array] = []
    offsets: list[float] = []
    for lags, fit, offset in parts:
        for target, values in zip((rows, aged), sampled(lags), strict=True):
            target.append(fit @ values)
        offsets += offset
    steps = [transfer(below, above) for below, above in zip(plan.levels, plan.levels[1:], strict=False)]
    basis, seen = np.zeros((CHUNK, 0)), np.zeros((0, 0))
    if plan.levels:
        rank = plan.levels[0].rank
        exact = local_basis(CHUNK, rank)
        basis = arithmetic.rounded(np.pad(exact, ((0, 0), (0, padded(rank) - rank))))
        seen = plain_fit(basis[:, :rank]) @ exact  # the exact basis, expressed in the rounded one
    for index, level in enumerate(plan.levels):
        blocks = block_map(level).T  # (rank * rank, nodes)
        if index == 0:
            blocks = np.kron(seen, seen) @ blocks
        for target, values in zip((rows, aged), sampled(level.lags), strict=True):
            target.append((blocks @ values.reshape(-1, level.nodes, plan.terms)).reshape(-1, plan.terms))
        offsets += [float((distance - 1) * level.chunk) for distance in level.distances for _ in range(level.rank**2)]
    edge_lags = [(plan.edge_first + b) * CHUNK for b in range(2)]
    with torch.inference_mode(False):
        return Constants(
            toeplitz=put(toeplitz(near_basis, 1, 0), operand),
            basis=put(basis, operand),
            edges=put(np.stack([toeplitz(edge_basis, plan.edge_lag, lag) for lag in edge_lags], 1), operand),
            transfers=tuple(put(seen @ step if index == 0 else step, dtype) for index, step in enumerate(steps)),
            rows=put(np.concatenate(rows), torch.float64),
            aged=put(np.concatenate(aged), torch.float64),
            taps=put(first[:, None], torch.float64),
            offsets=put(np.array(offsets[len(first) :])[:, None], torch.float64),
            fit=put(fast, torch.float64),
        )


@dataclass(frozen=True)
class FilterParameters:
    """One call's parameters in float64: coefficients (G, N), and the decay per event (G,), if there is one.

    `dtype` is the kernels' arithmetic dtype.
    """

    plan: GpuPlan
    constants: Constants
    coefficients: Tensor
    rate: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(
        cls, plan: GpuPlan, constants: Constants, coefficients: Tensor, decay: Tensor | None, dtype: torch.dtype
    ) -> FilterParameters:
        rate = None if decay is None else event_rate(decay.double(), plan.horizon)
        return cls(plan, constants, coefficients.double(), rate, wide(dtype))

    @property
    def sizes(self) -> list[int]:
        plan = self.plan
        blocks = [len(level.distances) * level.rank**2 for level in plan.levels]
        return [plan.near_taps, plan.near_rank, plan.edge_rank, *blocks]

    def values(self) -> tuple[Tensor, Tensor | None]:
        """The rows of all tables, times their windows, and the windows (None without a decay): (rows, G) each."""
        values = self.constants.rows @ self.coefficients.T
        if self.rate is None:
            return values, None
        beyond = (self.rate - fastest(self.dtype)).clamp(min=0)
        window = torch.exp(-torch.cat([self.constants.taps * beyond, self.constants.offsets * self.rate]))
        return values * window, window

    def too_fast(self) -> Tensor:
        assert self.rate is not None
        return self.rate > fastest(self.dtype)

    def tables(self, channels: int, skip: Tensor | None) -> Tables:
        values = self.values()[0]
        taps, near, edge, *blocks = values.to(self.dtype).split(self.sizes)
        if self.rate is not None:
            near = torch.where(self.too_fast(), (self.constants.fit @ values[1 : len(taps)]).to(self.dtype), near)
        own, repeat = taps[:1], channels // near.shape[1]
        if repeat > 1:
            own, near, edge, *blocks = (t.repeat_interleave(repeat, 1) for t in (own, near, edge, *blocks))
        return Tables(own if skip is None else own + skip, near, edge, blocks)

    def backward(self, own: Tensor, near: Tensor, edge: Tensor, blocks: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Gradients of the coefficients (G, N) and of the decay (G,) from those of the tables, (rows, D)."""
        groups = self.coefficients.shape[0]
        own, near, edge, *blocks = (
            t.reshape(t.shape[0], groups, -1).sum(2, dtype=torch.float64) for t in (own, near, edge, *blocks)
        )
        taps = near.new_zeros(self.plan.near_taps - 1, groups)
        if self.rate is not None:
            fast = self.too_fast()
            taps = self.constants.fit.T @ torch.where(fast, near, 0)
            near = torch.where(fast, 0, near)
        gradient = torch.cat([own, taps, near, edge, *blocks])  # (rows, G)
        _, window = self.values()
        if window is None:
            return gradient.T @ self.constants.rows, None
        gradient = gradient * window
        drate = -(gradient * (self.constants.aged @ self.coefficients.T)).sum(0)
        return gradient.T @ self.constants.rows, drate
