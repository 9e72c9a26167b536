"""The gated Legendre convolution in block low-rank form, as three groups of launches.

    moments    reduce each chunk of 32 rows to a few numbers, then go up the levels; they read x and pre_gate
    across     takes the moments from chunk to chunk at each level, from the top down; it reads moments alone
    chunks     does the rest: inside chunks, what came from other chunks, gates and skip; it reads all inputs and writes
               the output

The inputs are read twice, so that all chunks of all sequences can run at once, whatever the lengths. A single pass
would have to carry the moments through each sequence, and with few or long sequences most of a GPU would be idle.
Sequences of one chunk need the third group alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from hyenarec_kernels.backends.crossovers import TRITON_DIRECT
from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tile_channels
from hyenarec_kernels.backends.triton.configs import CHUNK, TABLE, Config
from hyenarec_kernels.backends.triton.far import Far
from hyenarec_kernels.backends.triton.kernels import chunks as kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.long_conv import (
    convolve,
    convolve_backward,
    convolve_last,
    convolve_last_backward,
    row_gradients,
)
from hyenarec_kernels.backends.triton.plan import GpuPlan, fastest, padded, plan_for
from hyenarec_kernels.backends.triton.rows import ChunkedRows, Slots
from hyenarec_kernels.backends.triton.tables import Constants, FilterParameters, Tables, constants
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import filter_gradients, taps_of

# Moments and partial sums live for one call. They take 0.5 to 2 times the memory of a 16-bit output (more where levels
# have few rows and high ranks). So a large batch is cut into several runs, which use the same memory one after the
# other: runs of sequences, or runs of channels if sequences are few, or packed, when only the device knows where they
# end. It was not measured how small a run may be before its 3 to 9 launches take longer than its work.
SHARE = 0.14  # of the outputs' bytes; with the tables of a call it is less than 15% of them
RUN = 1 << 24  # elements of a run, at least
SLICE = 64  # a run has a multiple of so many channels: a tile reads them of a row, a cache line of 16-bit values


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
    rows = ChunkedRows.of(x, starts, ends)
    plan = None if last_only else block_plan(x, coefficients, decay, horizon)
    if plan is None:
        taps = taps_of(coefficients.to(wide(x.dtype)), horizon, decay, taps=rows.columns)
        return (convolve_last if last_only else convolve)(x, taps, skip, pre_gate, post_gate, rows)
    return BlockLowRank.of(plan, x, coefficients, decay, skip, rows).forward(x, pre_gate, post_gate)


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
    rows = ChunkedRows.of(x, starts, ends)
    plan = None if last_only else block_plan(x, coefficients, decay, horizon)
    if plan is None:
        taps = taps_of(coefficients.to(wide(x.dtype)), horizon, decay, taps=rows.columns)
        wanted = [needs[0], needs[1] or needs[2], *needs[3:]]
        backward = convolve_last_backward if last_only else convolve_backward
        dx, dtaps, dskip, dpre, dpost = backward(grad, x, taps, skip, pre_gate, post_gate, rows, wanted)
        dcoefficients, ddecay = x.new_empty(0), x.new_empty(0)
        if wanted[1]:
            both = filter_gradients(dtaps, taps, coefficients, decay, horizon)
            dcoefficients = both[0] if needs[1] else dcoefficients
            ddecay = both[1] if needs[2] and both[1] is not None else ddecay
        return dx, dcoefficients, ddecay, dskip, dpre, dpost
    return BlockLowRank.of(plan, x, coefficients, decay, skip, rows).backward(
        grad, x, coefficients, decay, skip, pre_gate, post_gate, needs
    )


def block_plan(x: Tensor, coefficients: Tensor, decay: Tensor | None, horizon: int) -> GpuPlan | None:
    """The plan of a call, or None if explicit taps are used: they are few, or no plan is precise enough."""
    if horizon <= TRITON_DIRECT:
        return None
    return plan_for(coefficients.shape[1], horizon, decay is not None, x.shape[-2] > horizon, x.dtype)


@dataclass(frozen=True)
class Part:
    """A part of a call: some channels of some sequences of padded input, or of all rows of packed input."""

    rows: slice
    columns: slice

    def __call__(self, t: Any) -> Any:
        """This part of a tensor (..., D) or (D,), as a view.

        None, and an empty tensor, which stands for a gradient that is not wanted, come back as they are.
        """
        if t is None or not t.numel():
            return t
        return (t[self.rows] if t.dim() > 2 else t)[..., self.columns]


@dataclass(frozen=True)
class BlockLowRank:
    """One call: its plan, its tables, and where its chunks lie."""

    plan: GpuPlan
    constants: Constants
    filter: FilterParameters
    tables: Tables
    rate: Tensor | None  # (D,) decay per event
    rows: ChunkedRows
    edge_rank: int
    arithmetic: Arithmetic

    @classmethod
    def of(
        cls,
        plan: GpuPlan,
        x: Tensor,
        coefficients: Tensor,
        decay: Tensor | None,
        skip: Tensor | None,
        rows: ChunkedRows,
    ) -> BlockLowRank:
        arithmetic, channels = Arithmetic(x.dtype), x.shape[-1]
        held = constants(plan, arithmetic, x.device)
        filter = FilterParameters.of(plan, held, coefficients, decay, x.dtype)
        rate = filter.rate
        if rate is not None:
            rate = rate.to(arithmetic.wide).repeat_interleave(channels // rate.shape[0])
        edge_rank = plan.edge_rank if plan.has_edge(rows.columns) else 0
        return cls(plan, held, filter, filter.tables(channels, skip), rate, rows, edge_rank, arithmetic)

    @cached_property
    def slots(self) -> list[Slots]:
        """The slots of the chunks, and those of each level above them."""
        return self.rows.slots([CHUNK, *(level.chunk for level in self.plan.reached(self.rows.columns)[1:])])

    @cached_property
    def far(self) -> Far | None:
        levels, channels = self.plan.reached(self.rows.columns), self.tables.near.shape[1]
        return (
            Far(levels, self.slots, self.rows, self.constants, self.rate, channels, self.arithmetic) if levels else None
        )

    def runs(self, x: Tensor, outputs: int, *, training: bool) -> Iterator[tuple[Part, BlockLowRank]]:
        """Cuts the call into runs, and yields each run's part with the call for this part alone.

        There are as many runs as it takes to bring the scratch memory down to SHARE of `outputs`, the outputs' bytes,
        unless runs would become smaller than RUN or narrower than SLICE.
        """
        sequences = 1 if self.rows.packed else self.rows.batch
        channels, count = x.shape[-1], 1
        if self.far:
            sums = self.chunk_tile[0] * sum(self.sum_ranks) * channels * self.arithmetic.wide.itemsize
            scratch = self.far.scratch(sums if training else None)
            count = max(min(math.ceil(scratch / (SHARE * outputs)), x.numel() // RUN), 1)
        size = math.ceil(sequences / count)
        parts = math.ceil(sequences / size)
        width = max(channels * parts // count // SLICE, 1) * SLICE if parts < count else channels
        for start in range(0, channels, width):
            columns = slice(start, min(start + width, channels))
            whole = self
            if columns != slice(0, channels):
                rate = None if self.rate is None else self.rate[columns]
                whole = replace(self, tables=self.tables.part(columns), rate=rate)
            for first in range(0, sequences, size):
                rows = slice(first, first + size)
                yield Part(rows, columns), whole if parts == 1 else replace(whole, rows=self.rows.part(rows))

    def forward(self, x: Tensor, pre_gate: Tensor | None, post_gate: Tensor | None) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for run, part in self.runs(x, out.nbytes, training=False):
            part._forward((run(x), run(pre_gate)), (run(post_gate), run(out)))
        return out

    def _forward(self, u: tuple[Tensor, Tensor | None], out: tuple[Tensor | None, Tensor]) -> None:
        nu = None
        if self.far:
            nu = self.far.across(self.far.moments(*u, reverse=False), self.tables.levels, reverse=False)
        self._chunks(u, [out], nu)

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
        dx, dpre, dpost = outputs = row_gradients(x, [need_x, need_pre, need_post], pre_gate, post_gate)
        totals: dict[int, list[Tensor]] = {}  # by the run's first channel
        for run, part in self.runs(x, sum(t.nbytes for t in outputs), training=True):
            u, dy = (run(x), run(pre_gate)), (run(grad), run(post_gate))
            shares = part._backward(u, dy, (run(dx), run(dpre), run(dpost)), need_filter, need_skip)
            before = totals.get(run.columns.start)
            totals[run.columns.start] = [a + b for a, b in zip(before, shares, strict=True)] if before else shares
        total = [torch.cat(parts, 1) for parts in zip(*totals.values(), strict=True)]
        dcoefficients, ddecay, dskip = (x.new_empty(0) for _ in range(3))
        if need_filter:
            near, edge, own, *dlevels = total
            unreached = self.tables.levels[len(dlevels) :]
            dc, drate = self.filter.backward(
                own,
                near,
                edge if self.edge_rank else torch.zeros_like(self.tables.edge),
                [*dlevels, *map(torch.zeros_like, unreached)],
            )
            dcoefficients = dc.to(coefficients.dtype) if need_coefficients else dcoefficients
            if need_decay and decay is not None and drate is not None:
                ddecay = drate.to(decay.dtype)
        if need_skip and skip is not None:
            dskip = total[2][0].to(skip.dtype)
        return dx, dcoefficients, ddecay, dskip, dpre, dpost

    def _backward(
        self,
        u: tuple[Tensor, Tensor | None],
        dy: tuple[Tensor, Tensor | None],
        outputs: tuple[Tensor, Tensor, Tensor],
        need_filter: bool,
        need_skip: bool,
    ) -> list[Tensor]:
        """Writes the gradients of x and the gates to those of the `outputs` that are not empty.

        Returns the gradients of near, edge and own and, if the filter's gradient is wanted, of each level's tables.
        """
        (x, pre_gate), grad, (dx, dpre, dpost) = u, dy[0], outputs
        need_input = dx.numel() or dpre.numel()
        mu, eta, nu, dlevels = [], [], None, []
        # This order keeps few moments in memory at a time.
        if self.far and (need_filter or need_input):
            eta = self.far.moments(*dy, reverse=True)
        if need_input:
            xi = self.far.across([*eta] if need_filter else eta, self.tables.levels, reverse=True) if self.far else None
            self._chunks(dy, [(pre_gate, dx), (x, dpre)], xi, reverse=True)
            del xi
        if not (dpost.numel() or need_filter or need_skip):
            return []
        if self.far and need_filter:
            mu = self.far.moments(*u, reverse=False)
            dlevels = self.far.tables_gradient(mu, eta)
        del eta
        if self.far and dpost.numel():
            nu = self.far.across(mu or self.far.moments(*u, reverse=False), self.tables.levels, reverse=False)
        del mu
        sums = self._chunks(u, [(grad, dpost)], nu, weigh=dy)
        return [*(t.sum(0) for t in sums), *dlevels]

    @property
    def sum_ranks(self) -> tuple[int, int, int]:
        """How many rows a program of the chunks kernel adds to the gradients of near, edge and own."""
        return self.plan.near_rank, self.edge_rank, 1

    @property
    def chunk_tile(self) -> tuple[int, int, int]:
        """Of the chunks kernel: the number of programs along the slots, and the slots and channels of a tile."""
        tile = tile_channels(self.tables.near.shape[1])
        wide = max(self.chunk_config(self.edge_rank).columns // tile, 1)
        return triton.cdiv(self.slots[0].count, wide), wide, tile

    def chunk_config(self, edge_rank: int) -> Config:
        variant = "_wide" if self.arithmetic.dtype.itemsize > 2 else "_edge" if edge_rank else ""
        return TABLE[f"chunks{variant}"]

    def _chunks(
        self,
        source: tuple[Tensor, Tensor | None],
        outputs: list[tuple[Tensor | None, Tensor]],
        nu: Tensor | None,
        *,
        weigh: tuple[Tensor, Tensor | None] | None = None,
        reverse: bool = False,
    ) -> list[Tensor]:
        """One pass of the chunks kernel, which convolves the product of the two tensors in `source`.

        `outputs` are pairs of a factor and a tensor. The factor times the convolution is written to the tensor, unless
        that is empty. With ``weigh``, two factors whose product is the gradient of the convolution's output, returns
        each program's share of the gradients of near, edge and own, (programs, rank, D).

        Usually nearly all chunks are out of reach of the filter's end. They go to a launch without the code for that
        end, which would take half as many registers again and three times the products; the other chunks go to a second
        launch.
        """
        x, channels = source[0], source[0].shape[-1]
        programs, wide, tile = self.chunk_tile
        grid = (programs, triton.cdiv(channels, tile))
        ranks = self.sum_ranks if weigh else ()
        sums = [torch.empty(grid[0], rank, channels, dtype=self.arithmetic.wide, device=x.device) for rank in ranks]
        edge_ranks = [0, self.edge_rank] if self.edge_rank else [0]
        if weigh and self.edge_rank:
            sums[1].zero_()
        near_sums, edge_sums, own_sums = sums or (None, None, None)
        (after, out), (other, other_out) = [*outputs, (None, x.new_empty(0))][:2]
        out_row = next((t.stride(-2) for t in (out, other_out) if t.numel()), 0)
        rank = self.plan.levels[0].rank if self.far else 1
        for edge_rank in edge_ranks:
            launch(
                kernels.legendre_chunks_kernel,
                grid,
                **with_strides(
                    x=x,
                    gate=source[1],
                    after=after if out.numel() else None,
                    other=other if other_out.numel() else None,
                    weigh=weigh[0] if weigh else None,
                    weigh_gate=weigh[1] if weigh else None,
                ),
                out_ptr=out if out.numel() else None,
                other_out_ptr=other_out if other_out.numel() else None,
                out_row=out_row,
                near_sums_ptr=near_sums,
                edge_sums_ptr=edge_sums,
                own_sums_ptr=own_sums,
                toeplitz_ptr=self.constants.toeplitz,
                near_ptr=self.tables.near,
                basis_ptr=self.constants.basis,
                nu_ptr=nu,
                edges_ptr=self.constants.edges,
                edge_ptr=self.tables.edge,
                own_ptr=self.tables.own,
                rate_ptr=self.rate,
                fastest=fastest(self.arithmetic.wide),
                **self.rows.located(self.slots[0]),
                channels=channels,
                edge_first=self.plan.edge_first,
                REVERSE=reverse,
                CHUNK=CHUNK,
                NEAR_RANK=self.plan.near_rank,
                NEAR_PADDED=triton.next_power_of_2(self.plan.near_rank),
                RANK=rank,
                PADDED=padded(rank),
                EDGE_RANK=edge_rank,
                EDGE_PADDED=triton.next_power_of_2(max(edge_rank, 1)),
                PARTED=self.edge_rank > 0,
                ACC=self.arithmetic.kernel_dtype,
                PRECISION=self.arithmetic.precision,
                SLOTS=wide,
                CHANNELS=tile,
                **self.chunk_config(edge_rank).options,
            )
        return sums
