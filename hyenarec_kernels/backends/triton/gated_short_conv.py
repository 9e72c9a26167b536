"""The short convolution of a mixer's projection, its split into gates and values, and the first gate, in one pass.

A program takes the same channels of every gate and of the values, so each row is read once and only what the long
convolution needs is written. The table counts the (B, L, D) tensors that a mixer of order 2 reads and writes, including
the passes of its long convolution (moments and chunks; two of each in the backward pass), and the bytes per 16-bit
element:

                short_conv, then gates where they are read        this
    forward     3 in, 3 out, then 5 in, 1 out: 24 bytes           3 in, 2 out, then 3 in, 1 out: 18 bytes
    kept        3 projected, 3 split: 12 bytes                    3 projected, 2 split: 10 bytes
    backward    12 in, 3 out, 6 to join the gradients of the      8 in, 2 out, then 5 in, 3 out: 36 bytes
                parts, 6 in, 3 out: 60 bytes

The backward pass computes the gate and the values again from the projection.
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
from hyenarec_kernels.backends.triton.short_conv import preactivation

# Blocks of D channels are unrolled, each with its taps. Five serve mixers up to order 4; up to four blocks of 4 taps
# spill no registers.
MOST_BLOCKS = 5


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def gated_short_conv_kernel(
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    u_ptr,
    q_ptr,
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
    BLOCKS: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes u (R, D), the product of the first and the last of BLOCKS blocks of D channels, and q (R, (BLOCKS - 2) D),
    the blocks between them."""
    slot, channel = tile_columns(SLOTS, CHANNELS)
    channel = channel[None, :]
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    first, length = first[None, :], length[None, :]
    i = tl.arange(0, CHUNK)[:, None]
    row, position = first + index[None, :] * CHUNK, index[None, :] * CHUNK + i
    to, exists = written(position, sequence[None, :], first, length, slot[None, :], slots, columns, PACKED)
    exists = exists & (channel < channels)
    product = tl.full((CHUNK, SLOTS * CHANNELS), 1, ACC)
    for block in tl.static_range(BLOCKS):
        z = block_of(x_ptr, x_row, weight_ptr, bias_ptr, block, row, i, position, length, channel, channels, TAPS, ACC)
        z = tl.where(position < length, z, 0)
        if block == 0 or block == BLOCKS - 1:
            product *= z
        else:
            at = to * (channels * (BLOCKS - 2)) + (block - 1) * channels + channel
            tl.store(q_ptr + at, z.to(q_ptr.dtype.element_ty), mask=exists)
    tl.store(u_ptr + to * channels + channel, product.to(u_ptr.dtype.element_ty), mask=exists)


@triton.jit
def block_of(
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    block,
    row,
    i,
    position,
    length,
    channel,
    channels,
    TAPS: tl.constexpr,
    ACC: tl.constexpr,
):
    """`preactivation` of a block of channels."""
    if bias_ptr is not None:
        bias_ptr += block * channels
    x_ptr, weight_ptr = x_ptr + block * channels, weight_ptr + block * channels * TAPS
    return preactivation(x_ptr, x_row, weight_ptr, bias_ptr, row, i, position, length, channel, channels, TAPS, ACC)


@triton.jit(do_not_specialize=[*LENGTHS, "width"], do_not_specialize_on_alignment=WHERE)
def gated_short_conv_backward_kernel(
    du_ptr,
    du_row,
    dq_ptr,
    dq_row,
    x_ptr,
    x_row,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    sums_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    width,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    TAPS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes dx, and this program's share of the gradients of taps and bias to sums (programs, BLOCKS, TAPS + 1, D)."""
    column = tl.arange(0, SLOTS * CHANNELS)
    channel = (tl.program_id(1) * CHANNELS + column % CHANNELS)[None, :]
    inside = channel < channels
    i, number = tl.arange(0, CHUNK)[:, None], tl.arange(0, PADDED)[:, None]
    total = tl.zeros((PADDED, SLOTS * CHANNELS), ACC)
    for tile in range(tl.program_id(0), tl.cdiv(slots, SLOTS), tl.num_programs(0)):
        slot = tile * SLOTS + column // CHANNELS
        sequence, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        first, length = first[None, :], length[None, :]
        position = index[None, :] * CHUNK + i
        to, exists = written(position, sequence[None, :], first, length, slot[None, :], slots, columns, PACKED)
        for block in tl.static_range(BLOCKS):
            own, taps = x_ptr + block * channels, weight_ptr + block * channels * TAPS
            gradient = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
            # This loop is not unrolled: with the taps of all rows in flight at once, registers were spilled.
            for step in tl.range(0, width, num_stages=1):
                j = width - 1 - step
                row, at = first + index[None, :] * CHUNK + j, position + j
                real = (at < length) & inside
                if block == 0 or block == BLOCKS - 1:
                    factor = block_of(
                        x_ptr,
                        x_row,
                        weight_ptr,
                        bias_ptr,
                        BLOCKS - 1 - block,
                        row,
                        i,
                        at,
                        length,
                        channel,
                        channels,
                        TAPS,
                        ACC,
                    )
                    dz = tl.where(real, factor * gated(du_ptr, du_row, None, 0, row, i, channel, real, ACC), 0)
                else:
                    dz = gated(dq_ptr + (block - 1) * channels, dq_row, None, 0, row, i, channel, real, ACC)
                gradient += dz * tl.load(taps + channel * TAPS + j, mask=inside, other=0)
                if sums_ptr is not None and j == 0:
                    total += tl.where(number == block * (TAPS + 1) + TAPS, tl.sum(dz, 0)[None, :], 0)
                    for lag in tl.static_range(TAPS):
                        before = gated(own, x_row, None, 0, row - lag, i, channel, real & (position >= lag), ACC)
                        total += tl.where(number == block * (TAPS + 1) + lag, tl.sum(dz * before, 0)[None, :], 0)
            if dx_ptr is not None:
                gradient = tl.where(position < length, gradient, 0).to(dx_ptr.dtype.element_ty)
                tl.store(dx_ptr + to * (channels * BLOCKS) + block * channels + channel, gradient, mask=exists & inside)
    if sums_ptr is not None:
        channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
        total = tl.sum(tl.reshape(total, (PADDED, SLOTS, CHANNELS)), 1)
        at = (tl.program_id(0).to(tl.int64) * (BLOCKS * (TAPS + 1)) + number) * channels + channel
        tl.store(sums_ptr + at, total, mask=(number < BLOCKS * (TAPS + 1)) & (channel < channels))


def gated_short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, ends: Tensor | None, dim: int
) -> tuple[Tensor, Tensor]:
    blocks, taps = x.shape[-1] // dim, weight.shape[1]
    u, q = (torch.empty(*x.shape[:-1], n * dim, dtype=x.dtype, device=x.device) for n in (1, blocks - 2))
    grid, tile = tiles("short", x, dim, ChunkedRows.of(x, starts, ends))
    launch(
        gated_short_conv_kernel,
        grid,
        **with_strides(x=x),
        weight_ptr=wide_parameter(weight, x),
        bias_ptr=wide_parameter(bias, x),
        u_ptr=u,
        q_ptr=q,
        TAPS=taps,
        BLOCKS=blocks,
        **tile,
    )
    return u, q


def gated_short_conv_backward(
    grad_u: Tensor,
    grad_q: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Tensor | None,
    ends: Tensor | None,
    dim: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    blocks, taps = x.shape[-1] // dim, weight.shape[1]
    grid, tile = tiles("gated_short_backward", x, dim, ChunkedRows.of(x, starts, ends))
    tile["SLOTS"] = 1  # programs loop over slots; two at a time spilled registers in narrow tiles
    grid = (min(grid[0], max(PROGRAMS // grid[1], 1)), grid[1])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if need_x else None
    shape = (grid[0], blocks, taps + 1, dim)
    sums = torch.empty(shape, dtype=Arithmetic(x.dtype).wide, device=x.device) if need_weight or need_bias else None
    launch(
        gated_short_conv_backward_kernel,
        grid,
        **with_strides(du=grad_u, dq=grad_q if blocks > 2 else None, x=x),
        weight_ptr=wide_parameter(weight, x),
        bias_ptr=wide_parameter(bias, x),
        dx_ptr=dx,
        sums_ptr=sums,
        width=taps,
        TAPS=taps,
        PADDED=triton.next_power_of_2(blocks * (taps + 1)),
        BLOCKS=blocks,
        **tile,
    )
    dweight, dbias = x.new_empty(0), x.new_empty(0)
    if sums is not None:
        total = sums.sum(0).transpose(1, 2).reshape(-1, taps + 1)  # (C, W + 1)
        dweight = total[:, :taps].to(weight.dtype).contiguous() if need_weight else dweight
        dbias = total[:, taps].to(bias.dtype).contiguous() if need_bias and bias is not None else dbias
    return x.new_empty(0) if dx is None else dx, dweight, dbias
