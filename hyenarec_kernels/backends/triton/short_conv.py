"""The short depthwise convolution: a few taps, bias and activation in one pass, and all its gradients in another.

For a mixer's projection, :mod:`hyenarec_kernels.backends.triton.gated_short_conv` does more in as many passes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyenarec_kernels.backends.triton.arithmetic import Arithmetic, tiles, wide_parameter
from hyenarec_kernels.backends.triton.configs import PROGRAMS
from hyenarec_kernels.backends.triton.kernels.gates import gated
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, written
from hyenarec_kernels.backends.triton.launching import launch, with_strides
from hyenarec_kernels.backends.triton.rows import ChunkedRows

WIDTH = 8  # the most taps that are served: they are unrolled, in the backward pass twice over


@triton.jit
def preactivation(
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    row,
    i,
    position,
    length,
    channel,
    channels,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
):
    """sum_j weight[j] x[row + i - j] + bias: x (R, D), weight (D, TAPS)."""
    inside = channel < channels
    z = tl.zeros(position.shape, ACC)
    for j in tl.static_range(TAPS):
        real = (position >= j) & (position - j < length) & inside
        tap = tl.load(weight_ptr + channel * TAPS + j, mask=inside, other=0)
        z += tap * gated(x_ptr, x_row, None, 0, row - j, i, channel, real, ACC)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channel, mask=inside, other=0)
    return z


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def short_conv_kernel(
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    out_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    slot, channel = tile_columns(SLOTS, CHANNELS)
    channel = channel[None, :]
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    first, length = first[None, :], length[None, :]
    i = tl.arange(0, CHUNK)[:, None]
    row, position = first + index[None, :] * CHUNK, index[None, :] * CHUNK + i
    z = preactivation(x_ptr, x_row, weight_ptr, bias_ptr, row, i, position, length, channel, channels, TAPS, ACC)
    if SILU:
        z = z / (1 + tl.exp(-z))
    to, exists = written(position, sequence[None, :], first, length, slot[None, :], slots, columns, PACKED)
    z = tl.where(position < length, z, 0)
    tl.store(out_ptr + to * channels + channel, z.to(out_ptr.dtype.element_ty), mask=exists & (channel < channels))


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def short_conv_backward_kernel(
    grad_ptr,
    grad_row,
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    TAPS: tl.constexpr,
    PADDED: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes dx, and this program's share of dweight (programs, TAPS, D) and dbias (programs, D); the pointer to an
    output that is not wanted is None."""
    column = tl.arange(0, SLOTS * CHANNELS)
    channel = (tl.program_id(1) * CHANNELS + column % CHANNELS)[None, :]
    inside = channel < channels
    i, taps = tl.arange(0, CHUNK)[:, None], tl.arange(0, PADDED)[:, None]
    weight_total = tl.zeros((PADDED, SLOTS * CHANNELS), ACC)
    bias_total = tl.zeros((1, SLOTS * CHANNELS), ACC)
    for tile in range(tl.program_id(0), tl.cdiv(slots, SLOTS), tl.num_programs(0)):
        slot = tile * SLOTS + column // CHANNELS
        sequence, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        first, length = first[None, :], length[None, :]
        position = index[None, :] * CHUNK + i
        total = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
        for j in tl.static_range(TAPS):
            row, at = first + index[None, :] * CHUNK + j, position + j
            real = (at < length) & inside
            dz = gated(grad_ptr, grad_row, None, 0, row, i, channel, real, ACC)
            if SILU:
                z = preactivation(x_ptr, x_row, weight_ptr, bias_ptr, row, i, at, length, channel, channels, TAPS, ACC)
                gate = 1 / (1 + tl.exp(-z))
                dz *= gate * (1 + z * (1 - gate))
                dz = tl.where(real, dz, 0)
            total += dz * tl.load(weight_ptr + channel * TAPS + j, mask=inside, other=0)
            if j == 0:
                if dbias_ptr is not None:
                    bias_total += tl.sum(dz, 0)[None, :]
                if dweight_ptr is not None:
                    for lag in tl.static_range(TAPS):
                        before = gated(x_ptr, x_row, None, 0, row - lag, i, channel, real & (position >= lag), ACC)
                        weight_total += tl.where(taps == lag, tl.sum(dz * before, 0)[None, :], 0)
        if dx_ptr is not None:
            to, exists = written(position, sequence[None, :], first, length, slot[None, :], slots, columns, PACKED)
            total = tl.where(position < length, total, 0)
            tl.store(dx_ptr + to * channels + channel, total.to(dx_ptr.dtype.element_ty), mask=exists & inside)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    share = tl.program_id(0).to(tl.int64)
    if dweight_ptr is not None:
        total = tl.sum(tl.reshape(weight_total, (PADDED, SLOTS, CHANNELS)), 1)
        at = (share * TAPS + taps) * channels + channel
        tl.store(dweight_ptr + at, total, mask=(taps < TAPS) & (channel < channels))
    if dbias_ptr is not None:
        total = tl.sum(tl.reshape(bias_total, (SLOTS, CHANNELS)), 0)[None, :]
        tl.store(dbias_ptr + share * channels + channel, total, mask=channel < channels)


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, activation: str
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, tile = tiles("short", x, x.shape[-1], ChunkedRows.of(x, starts, ends))
    launch(
        short_conv_kernel,
        grid,
        **with_strides(x=x),
        weight_ptr=wide_parameter(weight, x),
        bias_ptr=wide_parameter(bias, x),
        out_ptr=out,
        TAPS=weight.shape[1],
        SILU=activation == "silu",
        **tile,
    )
    return out


def short_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    activation: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grid, tile = tiles("short", x, x.shape[-1], ChunkedRows.of(x, starts, ends))
    grid = (min(grid[0], max(PROGRAMS // grid[1], 1)), grid[1])

    def room(wanted: bool, *shape: int, dtype: torch.dtype) -> Tensor | None:
        return torch.empty(shape, dtype=dtype, device=x.device) if wanted else None

    wide, channels = Arithmetic(x.dtype).wide, x.shape[-1]
    dx = room(needs[0], *x.shape, dtype=x.dtype)
    dweight = room(needs[1], grid[0], weight.shape[1], channels, dtype=wide)
    dbias = room(needs[2] and bias is not None, grid[0], channels, dtype=wide)
    launch(
        short_conv_backward_kernel,
        grid,
        **with_strides(grad=grad, x=x),
        weight_ptr=wide_parameter(weight, x),
        bias_ptr=wide_parameter(bias, x),
        dx_ptr=dx,
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        TAPS=weight.shape[1],
        PADDED=triton.next_power_of_2(weight.shape[1]),
        SILU=activation == "silu",
        **tile,
    )
    return (
        x.new_empty(0) if dx is None else dx,
        x.new_empty(0) if dweight is None else dweight.sum(0).T.to(weight.dtype).contiguous(),
        x.new_empty(0) if dbias is None or bias is None else dbias.sum(0).to(bias.dtype),
    )
