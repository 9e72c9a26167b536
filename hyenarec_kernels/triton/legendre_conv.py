"""The gated Legendre convolution as block low-rank: three groups of launches.

    moments    of each chunk of 32, then up the levels; reads x and pre_gate
    across     between the chunks of each level, from the top down; on moments alone
    chunks     the rest: inside chunks, what came from others, gates and skip; reads all inputs, writes the output

Two passes over the inputs, so that every chunk of every sequence runs at once, whatever the lengths. A single pass
would have to carry the moments through a sequence and leave most of a GPU idle with few or long sequences. A sequence
of one chunk needs the third group alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from hyenarec_kernels import reference
from hyenarec_kernels.legendre import legendre_filter
from hyenarec_kernels.reference.legendre_conv import filter_gradients
from hyenarec_kernels.reference.rows import wide
from hyenarec_kernels.triton import chunks as kernels
from hyenarec_kernels.triton.arithmetic import Arithmetic, served, tile_channels, wide_parameter, with_strides
from hyenarec_kernels.triton.configs import config
from hyenarec_kernels.triton.far import Far
from hyenarec_kernels.triton.long_conv import (
    DIRECT_TAPS,
    convolve,
    convolve_backward,
    convolve_last,
    convolve_last_backward,
    row_gradients,
)
from hyenarec_kernels.triton.plan import CHUNK, GpuPlan, fastest, padded, plan_for
from hyenarec_kernels.triton.rows import Rows, Slots, launch
from hyenarec_kernels.triton.tables import Constants, Filter, Tables, constants


def legendre_conv(
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
) -> Tensor:
    if not served(x):
        return reference.legendre_conv(
            x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only
        )
    rows = Rows.of(x, starts, ends)
    if last_only or horizon <= DIRECT_TAPS:
        taps = legendre_filter(coefficients.to(wide(x.dtype)), horizon, decay, taps=rows.columns)
        return (convolve_last if last_only else convolve)(x, taps, skip, pre_gate, post_gate, rows)
    return BlockLowRank.of(x, coefficients, decay, rows, horizon).forward(x, skip, pre_gate, post_gate)


def legendre_conv_backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    decay: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    horizon: int,
    last_only: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not served(x):
        return reference.legendre_conv_backward(
            grad, x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only, needs
        )
    rows = Rows.of(x, starts, ends)
    if last_only or horizon <= DIRECT_TAPS:
        taps = legendre_filter(coefficients.to(wide(x.dtype)), horizon, decay, taps=rows.columns)
        wanted = [needs[0], needs[1] or needs[2], *needs[3:]]
        backward = convolve_last_backward if last_only else convolve_backward
        dx, dtaps, dskip, dpre, dpost = backward(grad, x, taps, skip, pre_gate, post_gate, rows, wanted)
        dcoefficients, ddecay = x.new_empty(0), x.new_empty(0)
        if wanted[1]:
            both = filter_gradients(dtaps, taps, coefficients, decay, horizon)
            dcoefficients = both[0] if needs[1] else dcoefficients
            ddecay = both[1] if needs[2] and both[1] is not None else ddecay
        return dx, dcoefficients, ddecay, dskip, dpre, dpost
    return BlockLowRank.of(x, coefficients, decay, rows, horizon).backward(
        grad, x, coefficients, decay, skip, pre_gate, post_gate, needs
    )


@dataclass(frozen=True)
class BlockLowRank:
    """One call: its plan, tables and where its chunks lie."""

    plan: GpuPlan
    constants: Constants
    filter: Filter
    tables: Tables
    rate: Tensor | None  # (D,) decay an event
    rows: Rows
    chunks: Slots
    far: Far | None
    edge_rank: int
    arithmetic: Arithmetic

    @classmethod
    def of(cls, x: Tensor, coefficients: Tensor, decay: Tensor | None, rows: Rows, horizon: int) -> BlockLowRank:
        plan = plan_for(coefficients.shape[1], horizon, decay is not None, rows.columns > horizon, x.dtype)
        return cls.planned(plan, x, coefficients, decay, rows)

    @classmethod
    def planned(cls, plan: GpuPlan, x: Tensor, coefficients: Tensor, decay: Tensor | None, rows: Rows) -> BlockLowRank:
        arithmetic, channels = Arithmetic(x.dtype), x.shape[-1]
        held = constants(plan, arithmetic.wide, arithmetic.operand, x.device)
        filter = Filter.of(plan, held, coefficients, decay, x.dtype)
        rate = filter.rate
        if rate is not None:
            rate = rate.repeat_interleave(channels // rate.shape[0])
        levels = plan.reached(rows.columns)
        chunks, *above = rows.slots([CHUNK, *(level.chunk for level in levels[1:])])
        far = Far(levels, [chunks, *above], rows, held, rate, channels, arithmetic) if levels else None
        edge_rank = plan.edge_rank if plan.has_edge(rows.columns) else 0
        return cls(plan, held, filter, filter.tables(channels), rate, rows, chunks, far, edge_rank, arithmetic)

    def forward(self, x: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None) -> Tensor:
        nu = None
        if self.far:
            moments = self.far.moments(x, pre_gate, reverse=False)
            nu = self.far.across(moments, self.tables.levels, reverse=False)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._chunks((x, pre_gate), [(post_gate, out)], nu, skip)
        return out

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        coefficients: Tensor,
        decay: Tensor | None,
        skip: Tensor | None,
        pre_gate: Tensor | None,
        post_gate: Tensor | None,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        need_x, need_coefficients, need_decay, need_skip, need_pre, need_post = needs
        need_filter = need_coefficients or need_decay
        dx, dpre, dpost = row_gradients(x, [need_x, need_pre, need_post], pre_gate, post_gate)
        need_input, need_output = dx.numel() or dpre.numel(), dpost.numel() or need_filter or need_skip
        nu, xi, dlevels = None, None, []
        if self.far:
            mu = self.far.moments(x, pre_gate, reverse=False)
            eta = self.far.moments(grad, post_gate, reverse=True)
            nu = self.far.across(mu, self.tables.levels, reverse=False) if dpost.numel() else None
            xi = self.far.across(eta, self.tables.levels, reverse=True) if need_input else None
            dlevels = self.far.tables_gradient(mu, eta) if need_filter else []
        if need_input:
            self._chunks((grad, post_gate), [(pre_gate, dx), (x, dpre)], xi, skip, reverse=True)
        dcoefficients, ddecay, dskip = (x.new_empty(0) for _ in range(3))
        if need_output:
            sums = self._chunks((x, pre_gate), [(grad, dpost)], nu, skip, weigh=(grad, post_gate))
            near, edge, totals = (t.sum(0) for t in sums)
            if need_filter:
                unreached = self.tables.levels[len(dlevels) :]
                dc, drate = self.filter.backward(
                    near,
                    edge if self.edge_rank else torch.zeros_like(self.tables.edge),
                    [*dlevels, *map(torch.zeros_like, unreached)],
                )
                dcoefficients = dc.to(coefficients.dtype) if need_coefficients else dcoefficients
                if need_decay and decay is not None and drate is not None:
                    ddecay = (drate * decay.to(drate.dtype).sigmoid()).to(decay.dtype)
            if need_skip and skip is not None:
                dskip = totals[0].to(skip.dtype)
        return dx, dcoefficients, ddecay, dskip, dpre, dpost

    def _chunks(
        self,
        source: tuple[Tensor, Tensor | None],
        outputs: list[tuple[Tensor | None, Tensor]],
        nu: Tensor | None,
        skip: Tensor | None,
        *,
        weigh: tuple[Tensor, Tensor | None] | None = None,
        reverse: bool = False,
    ) -> list[Tensor]:
        """One pass of the kernel: each output is its factor times the convolution of the source's product.

        An empty output is not wanted. With ``weigh``, the factors of the output's gradient, returns the programs'
        shares of the gradients of near, edge and skip, (programs, rank, D) each.
        """
        x, channels = source[0], source[0].shape[-1]
        variant = "_wide" if x.element_size() > 2 else "_edge" if self.edge_rank else ""
        tuned, tile = config(f"chunks{variant}", x.device), tile_channels(channels)
        wide = max(tuned.columns // tile, 1)
        grid = (triton.cdiv(self.chunks.count, wide), triton.cdiv(channels, tile))
        ranks = (self.plan.near_rank, self.edge_rank, 1) if weigh else ()
        sums = [torch.empty(grid[0], rank, channels, dtype=self.arithmetic.wide, device=x.device) for rank in ranks]
        (after, out), (other, other_out) = [*outputs, (None, x.new_empty(0))][:2]
        rank = self.plan.levels[0].rank if self.far else 1
        located = self.chunks
        launch(
            kernels.chunks,
            grid,
            *with_strides(*source),
            *with_strides(after if out.numel() else None),
            out if out.numel() else None,
            *with_strides(other if other_out.numel() else None),
            other_out if other_out.numel() else None,
            *with_strides(*(weigh or (None, None))),
            *(sums or (None, None, None)),
            self.constants.toeplitz,
            self.tables.near,
            self.constants.basis,
            nu,
            self.constants.edges,
            self.tables.edge,
            wide_parameter(skip, x),
            self.rate,
            fastest(self.arithmetic.wide),
            located.sequences,
            self.rows.starts,
            self.rows.ends,
            located.count,
            self.rows.columns,
            located.per_row,
            channels,
            self.plan.edge_first,
            REVERSE=reverse,
            PACKED=self.rows.packed,
            CHUNK=CHUNK,
            NEAR_RANK=self.plan.near_rank,
            NEAR_PADDED=triton.next_power_of_2(self.plan.near_rank),
            RANK=rank,
            PADDED=padded(rank),
            EDGE_RANK=self.edge_rank,
            EDGE_PADDED=triton.next_power_of_2(max(self.edge_rank, 1)),
            ACC=self.arithmetic.kernel_dtype,
            PRECISION=self.arithmetic.precision,
            SLOTS=wide,
            CHANNELS=tile,
            **tuned.options,
        )
        return sums
