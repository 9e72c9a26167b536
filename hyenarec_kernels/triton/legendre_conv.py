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
from hyenarec_kernels.triton import chunks as kernels
from hyenarec_kernels.triton.arithmetic import Arithmetic, as_rows, row_stride, served, tile_channels
from hyenarec_kernels.triton.configs import config
from hyenarec_kernels.triton.far import Far
from hyenarec_kernels.triton.long_conv import DIRECT_TAPS, convolve, convolve_backward, convolve_last
from hyenarec_kernels.triton.plan import CHUNK, GpuPlan, fastest, padded, plan_for
from hyenarec_kernels.triton.rows import Rows, Slots, launch
from hyenarec_kernels.triton.tables import Constants, Filter, constants

# Programs that share the sums over rows in the backward pass; a constant, so that a sum's order is the same anywhere.
PROGRAMS = 1024


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
        run = convolve_last if last_only else convolve
        taps = every_tap(coefficients, decay, min(horizon, rows.columns), horizon, x.dtype)
        return run(x, taps, skip, pre_gate, post_gate, rows)
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
    if last_only or not served(x):
        return reference.legendre_conv_backward(
            grad, x, coefficients, decay, skip, pre_gate, post_gate, starts, ends, horizon, last_only, needs
        )
    rows = Rows.of(x, starts, ends)
