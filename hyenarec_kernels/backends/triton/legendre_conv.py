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
from hyenarec_kernels.backends.triton.configs import CHUNK, GROUP, PROGRAMS, TABLE
from hyenarec_kernels.backends.triton.far import Factors, Far
from hyenarec_kernels.backends.triton.kernels import chunks as kernels
from hyenarec_kernels.backends.triton.kernels import chunks_backward as backward_kernels
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.long_conv import (
    convolve,
    convolve_backward,
    convolve_last,
    convolve_last_backward,
    row_gradients,
)
from hyenarec_kernels.backends.triton.plan import GpuPlan, fastest, grouped, octets, padded, plan_for
from hyenarec_kernels.backends.triton.rows import ChunkedRows, Slots
from hyenarec_kernels.backends.triton.tables import Constants, FilterParameters, Tables, constants
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import filter_gradients, taps_of

# Moments and partial sums live for one call. They take 0.5 to 2 times the memory of an output of 16 bits (more where
# levels have few rows and high ranks). A large batch is therefore cut into several runs, which use the same memory one
# after the other: runs of sequences, or runs of channels where sequences are few, or packed, so that only the device
# knows where they end. How small a run may be before its 3 to 9 launches take longer than its work was not measured.
SHARE = 0.14  # of the outputs' bytes; together with the tables of a call that is less than 15%
RUN = 1 << 24  # elements of a run, at least
SLICE = 64  # a run takes a multiple of so many channels: what a tile reads of a row, a cache line of 16-bit values


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
    """The plan of a call, or None where its taps are taken one by one: they are few, or no plan is precise enough."""
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
        held = constants(plan, arithmetic.wide, arithmetic.operand, x.device)
        filter = FilterParameters.of(plan, held, coefficients, decay, x.dtype)
        rate = filter.rate
        if rate is not None:
            rate = rate.to(arithmetic.wide).repeat_interleave(channels // rate.shape[0])
        edge_rank = grouped(plan.edge_rank) if plan.has_edge(rows.columns) else 0
        return cls(plan, held, filter, filter.tables(skip, channels), rate, rows, edge_rank, arithmetic)

    @cached_property
    def slots(self) -> list[Slots]:
        """The slots of the chunks, and of each level above them."""
        return self.rows.slots([CHUNK, *(level.chunk for level in self.plan.reached(self.rows.columns)[1:])])

    @cached_property
    def far(self) -> Far | None:
        levels, channels = self.plan.reached(self.rows.columns), len(self.tables.near)
        return (
            Far(levels, self.slots, self.rows, self.constants, self.rate, channels, self.arithmetic) if levels else None
        )

    def runs(self, x: Tensor, outputs: int, *, training: bool) -> Iterator[tuple[Part, BlockLowRank]]:
        """Cuts the call into runs, and gives each with the call for this part alone.

        There are as many as bring the scratch memory down to SHARE of `outputs`, the outputs' bytes, unless runs would
        become smaller than RUN or narrower than SLICE.
        """
        sequences = 1 if self.rows.packed else self.rows.batch
        channels, count = x.shape[-1], 1
        if self.far:
            sums = math.prod(self.sums_shape(channels)) * self.arithmetic.wide.itemsize
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
            part._forward((run(x), run(pre_gate)), run(post_gate), run(out))
        return out

    def _forward(self, u: Factors, post_gate: Tensor | None, out: Tensor) -> None:
        nu = self.far.across(self.far.moments(u), self.tables.levels) if self.far else None
        grid, tile = self.chunk_tiles("chunks")
        launch(
            kernels.legendre_chunks_kernel,
            grid,
            **with_strides(x=u[0], pre=u[1], post=post_gate),
            out_ptr=out,
            **self._chunk_arguments(nu, out),
            **tile,
        )

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
        totals: dict[int, list[Tensor]] = {}  # by the first channel
        for run, part in self.runs(x, sum(t.nbytes for t in outputs), training=True):
            u, dy = (run(x), run(pre_gate)), (run(grad), run(post_gate))
            shares = part._backward(u, dy, (run(dx), run(dpre), run(dpost)), need_filter, need_skip)
            before = totals.get(run.columns.start)
            totals[run.columns.start] = [a + b for a, b in zip(before, shares, strict=True)] if before else shares
        total = [torch.cat(parts, 1) for parts in zip(*totals.values(), strict=True)]
        dcoefficients, ddecay, dskip = (x.new_empty(0) for _ in range(3))
        if need_filter:
            sums, *dlevels = total
            near, edge = sums[0].split([self.tables.near.shape[1], self.edge_rank], 1)
            edge = edge if self.edge_rank else torch.zeros_like(self.tables.edge)
            unreached = self.tables.levels[len(dlevels) :]
            dc, drate = self.filter.backward(
                near[:, : self.plan.near_rank],
                edge[:, : self.plan.edge_rank],
                [*dlevels, *map(torch.zeros_like, unreached)],
            )
            dcoefficients = dc.to(coefficients.dtype) if need_coefficients else dcoefficients
            if need_decay and decay is not None and drate is not None:
                ddecay = drate.to(decay.dtype)
        if need_skip and skip is not None:
            dskip = total[0][0, :, self.plan.near_rank].to(skip.dtype)
        return dx, dcoefficients, ddecay, dskip, dpre, dpost

    def _backward(
        self,
        u: Factors,
        dy: Factors,
        outputs: tuple[Tensor, Tensor, Tensor],
        need_filter: bool,
        need_skip: bool,
    ) -> list[Tensor]:
        """Writes the gradients of x and the gates to those of the `outputs` that are not empty.

        Returns the gradients of the tables of near and edge together, (1, D, ranks), and, where the filter's gradient
        is wanted, of each level's tables.
        """
        wanted = [out if out.numel() else None for out in outputs]
        rows = next((out for out in wanted if out is not None), None)
        nu, dlevels, sums = None, [], None
        if self.far and (rows is not None or need_filter):
            mu = self.far.moments(u, dy)
            dlevels = self.far.tables_gradient(mu) if need_filter else []
            nu = self.far.across(mu, self.tables.levels) if rows is not None else None
        if need_filter or need_skip:
            shape = self.sums_shape(u[0].shape[-1])
            sums = torch.empty(shape, dtype=self.arithmetic.wide, device=u[0].device)
        elif rows is None:
            return []
        grid, tile = self.chunk_tiles("chunks_backward")
        launch(
            backward_kernels.legendre_chunks_backward_kernel,
            (min(grid[0], self.programs), grid[1]),
            **with_strides(x=u[0], pre=u[1], grad=dy[0], post=dy[1]),
            **dict(zip(("dx_ptr", "dpre_ptr", "dpost_ptr"), wanted, strict=True)),
            sums_ptr=sums,
            **self._chunk_arguments(nu, rows),
            NEAR_PADDED=triton.next_power_of_2(self.tables.near.shape[1]),
            EDGE_PADDED=triton.next_power_of_2(max(self.edge_rank, GROUP)),
            **tile,
        )
        return [] if sums is None else [sums.sum(0, keepdim=True), *dlevels]

    @property
    def programs(self) -> int:
        """The most programs along the slots that add up a sum over all rows."""
        return max(PROGRAMS // self.chunk_tiles("chunks_backward")[0][1], 1)

    def sums_shape(self, channels: int) -> tuple[int, int, int]:
        """Of what the programs of the backward pass add to the gradients of the tables of near and edge."""
        programs = min(self.chunk_tiles("chunks_backward")[0][0], self.programs)
        return programs, channels, self.tables.near.shape[1] + self.edge_rank

    def chunk_tiles(self, config: str) -> tuple[tuple[int, int], dict[str, Any]]:
        """Grid, tile and launch options of a kernel on rows."""
        channels = len(self.tables.near)
        tuned = TABLE[config + ("_wide" if self.arithmetic.dtype.itemsize > 2 else "")]
        tile = min(tile_channels(channels), tuned.columns)
        wide = tuned.columns // tile
        grid = (triton.cdiv(self.slots[0].count, wide), triton.cdiv(channels, tile))
        return grid, {"SLOTS": wide, "CHANNELS": tile, "GROUP": tuned.group} | tuned.options

    def _chunk_arguments(self, nu: Tensor | None, out: Tensor | None) -> dict[str, Any]:
        """The arguments that both kernels on rows have."""
        rank = self.plan.levels[0].rank if self.far else 0
        return self.rows.located(self.slots[0]) | {
            "out_row": 0 if out is None else out.stride(-2),
            "toeplitz_ptr": self.constants.toeplitz,
            "near_ptr": self.tables.near,
            "basis_ptr": self.constants.basis,
            "nu_ptr": nu,
            "edges_ptr": self.constants.edges,
            "edge_ptr": self.tables.edge,
            "rate_ptr": self.rate,
            "channels": len(self.tables.near),
            "octets": octets(rank),
            "near_rank": self.tables.near.shape[1],
            "edge_rank": self.edge_rank,
            "edge_first": self.plan.edge_first,
            "FASTEST": fastest(self.arithmetic.wide),
            "CHUNK": CHUNK,
            "PADDED": padded(max(rank, 1)),
            "EDGE": self.edge_rank > 0,
            "ACC": self.arithmetic.kernel_dtype,
            "PRECISION": self.arithmetic.precision,
        }
