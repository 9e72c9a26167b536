"""Convolution with a few explicit taps, one after the other: no chunk depends on another.

A tile is SLOTS chunks of CHUNK rows times CHANNELS channels; each tap reads the rows it needs again, from cache. Taps
are (K, D), lag 0 first; another K does not recompile the kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated, store_scaled
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, written


@triton.jit(do_not_specialize=[*LENGTHS, "count"], do_not_specialize_on_alignment=WHERE)
def long_conv_direct_kernel(
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    taps_ptr,
    count,
    skip_ptr,
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
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    slot, channel = tile_columns(SLOTS, CHANNELS)
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    i = tl.arange(0, CHUNK)[:, None]
    position = index[None, :] * CHUNK + i
    real = (position < length[None, :]) & inside[None, :]
    row = (first + index * CHUNK)[None, :]
    y = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
    for lag in range(count):
        weight = tl.load(taps_ptr + lag * channels + channel, mask=inside, other=0)
        reached = real & (position >= lag)
        y += weight[None, :] * gated(x_ptr, x_row, pre_ptr, pre_row, row - lag, i, channel[None, :], reached, ACC)
    if skip_ptr is not None:
        weight = tl.load(skip_ptr + channel, mask=inside, other=0)
        y += weight[None, :] * gated(x_ptr, x_row, pre_ptr, pre_row, row, i, channel[None, :], real, ACC)
    to, here = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    to, here = to * channels + channel[None, :], here & inside[None, :]
    store_scaled(out_ptr, y, post_ptr, post_row, row, i, channel[None, :], real, to, here, ACC)


@triton.jit(do_not_specialize=[*LENGTHS, "count"], do_not_specialize_on_alignment=WHERE)
def long_conv_direct_backward_kernel(
    grad_ptr,
    grad_row,
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    taps_ptr,
    count,
    skip_ptr,
    dx_ptr,
    dpre_ptr,
    dpost_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of x and the gates; the pointer to an output that is not wanted is None."""
    slot, channel = tile_columns(SLOTS, CHANNELS)
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    i = tl.arange(0, CHUNK)[:, None]
    position = index[None, :] * CHUNK + i
    real = (position < length[None, :]) & inside[None, :]
    row = (first + index * CHUNK)[None, :]
    y, du = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC), tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
    for lag in range(count):
        weight = tl.load(taps_ptr + lag * channels + channel, mask=inside, other=0)[None, :]
        if dpost_ptr is not None:
            reached = real & (position >= lag)
            y += weight * gated(x_ptr, x_row, pre_ptr, pre_row, row - lag, i, channel[None, :], reached, ACC)
        if dx_ptr is not None or dpre_ptr is not None:
            reached = (position + lag < length[None, :]) & inside[None, :]
            du += weight * gated(grad_ptr, grad_row, post_ptr, post_row, row + lag, i, channel[None, :], reached, ACC)
    if skip_ptr is not None:
        weight = tl.load(skip_ptr + channel, mask=inside, other=0)[None, :]
        y += weight * gated(x_ptr, x_row, pre_ptr, pre_row, row, i, channel[None, :], real, ACC)
        du += weight * gated(grad_ptr, grad_row, post_ptr, post_row, row, i, channel[None, :], real, ACC)
    to, here = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    to, here = to * channels + channel[None, :], here & inside[None, :]
    store_scaled(dpost_ptr, y, grad_ptr, grad_row, row, i, channel[None, :], real, to, here, ACC)
    store_scaled(dx_ptr, du, pre_ptr, pre_row, row, i, channel[None, :], real, to, here, ACC)
    store_scaled(dpre_ptr, du, x_ptr, x_row, row, i, channel[None, :], real, to, here, ACC)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def long_conv_tap_gradient_kernel(
    grad_ptr,
    grad_row,
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    dtaps_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of one tap (axis 0), of which each program of axis 2 adds up a share: dtaps (shares, K, D)."""
    lag, share = tl.program_id(0), tl.program_id(2)
    column = tl.arange(0, SLOTS * CHANNELS)
    channel = tl.program_id(1) * CHANNELS + column % CHANNELS
    inside = channel < channels
    i = tl.arange(0, CHUNK)[:, None]
    total = tl.zeros((SLOTS * CHANNELS,), ACC)
    for tile in range(share, tl.cdiv(slots, SLOTS), tl.num_programs(2)):
        slot = tile * SLOTS + column // CHANNELS
        _, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        position = index[None, :] * CHUNK + i
        real = (position < length[None, :]) & (position >= lag) & inside[None, :]
        row = (first + index * CHUNK)[None, :]
        dy = gated(grad_ptr, grad_row, post_ptr, post_row, row, i, channel[None, :], real, ACC)
        u = gated(x_ptr, x_row, pre_ptr, pre_row, row - lag, i, channel[None, :], real, ACC)
        total += tl.sum(dy * u, 0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = (share * tl.num_programs(0) + lag).to(tl.int64) * channels + channel
    tl.store(dtaps_ptr + at, tl.sum(tl.reshape(total, (SLOTS, CHANNELS)), 0), mask=channel < channels)
