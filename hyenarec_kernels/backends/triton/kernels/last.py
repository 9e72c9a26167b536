"""The output at the last position of every sequence, for any number of taps, and its gradients.

    o[s] = post[s] sum_lag taps[lag] u[s, last - lag],    u = pre x

Taps are (K, D), lag 0 first; another K does not recompile the kernels. Only `long_conv_last_backward_kernel`, which
fills gradients of the input's shape, touches more rows than the taps reach.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated, store_scaled
from hyenarec_kernels.backends.triton.kernels.slots import ENDS, LENGTHS, WHERE, locate, span, tile_columns, written


@triton.jit
def end_of(sequence, starts_ptr, ends_ptr, columns, PACKED: tl.constexpr):
    """The row after a sequence's last one (int64), and its length."""
    one = sequence + tl.zeros((1,), tl.int32)
    first, length = span(one, one >= 0, starts_ptr, ends_ptr, columns, PACKED)
    first, length = tl.sum(first, 0), tl.sum(length, 0)
    return first + length, length


@triton.jit
def at_end(grad_ptr, grad_row, post_ptr, post_row, sequence, channel, real, ACC: tl.constexpr):
    """post * grad (S, D) of sequences, 0 where not `real`."""
    dy = tl.load(grad_ptr + sequence * grad_row + channel, mask=real, other=0).to(ACC)
    if post_ptr is not None:
        dy *= tl.load(post_ptr + sequence * post_row + channel, mask=real, other=0).to(ACC)
    return dy


@triton.jit(do_not_specialize=["columns", "count"], do_not_specialize_on_alignment=ENDS)
def long_conv_last_kernel(
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
    starts_ptr,
    ends_ptr,
    columns,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The last position of one sequence (axis 0), any number of taps: out (S, D)."""
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = channel < channels
    end, length = end_of(tl.program_id(0), starts_ptr, ends_ptr, columns, PACKED)
    total = tl.zeros((CHUNK, CHANNELS), ACC)
    for begin in range(0, tl.minimum(count, length), CHUNK):
        lag = (begin + tl.arange(0, CHUNK)[:, None]).to(tl.int64)
        real = (lag < count) & (lag < length) & inside
        weight = tl.load(taps_ptr + lag * channels + channel, mask=real, other=0)
        total += weight * gated(x_ptr, x_row, pre_ptr, pre_row, end - 1, -lag, channel, real, ACC)
    y = tl.sum(total, 0)[None, :]
    real = inside & (length > 0)
    if skip_ptr is not None:
        weight = tl.load(skip_ptr + channel, mask=inside, other=0)
        y += weight * gated(x_ptr, x_row, pre_ptr, pre_row, end - 1, 0, channel, real, ACC)
    at = tl.program_id(0).to(tl.int64)
    if post_ptr is not None:
        y *= tl.load(post_ptr + at * post_row + channel, mask=real, other=0).to(ACC)
    tl.store(out_ptr + at * channels + channel, tl.where(real, y, 0).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=[*LENGTHS, "count"], do_not_specialize_on_alignment=WHERE)
def long_conv_last_backward_kernel(
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
    """Gradients of x and its gate, 0 where the taps do not reach; the pointer to an output that is not wanted is
    None."""
    slot, channel = tile_columns(SLOTS, CHANNELS)
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    i = tl.arange(0, CHUNK)[:, None]
    position = index[None, :] * CHUNK + i
    real = (position < length[None, :]) & inside[None, :]
    lag = length[None, :] - 1 - position
    reached = real & (lag < count)
    weight = tl.load(taps_ptr + lag * channels + channel[None, :], mask=reached, other=0)
    if skip_ptr is not None:
        weight += tl.load(skip_ptr + channel[None, :] + 0 * lag, mask=real & (lag == 0), other=0)
    dy = at_end(grad_ptr, grad_row, post_ptr, post_row, sequence.to(tl.int64), channel, inside & (length > 0), ACC)
    du = tl.where(reached, weight * dy[None, :], 0)
    row = (first + index * CHUNK)[None, :]
    to, here = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    to, here = to * channels + channel[None, :], here & inside[None, :]
    store_scaled(dx_ptr, du, pre_ptr, pre_row, row, i, channel[None, :], real, to, here, ACC)
    store_scaled(dpre_ptr, du, x_ptr, x_row, row, i, channel[None, :], real, to, here, ACC)


@triton.jit(do_not_specialize=["columns", "count", "batch"], do_not_specialize_on_alignment=ENDS)
def long_conv_last_tap_gradient_kernel(
    grad_ptr,
    grad_row,
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    dtaps_ptr,
    count,
    starts_ptr,
    ends_ptr,
    columns,
    batch,
    channels,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of CHUNK taps (axis 0), of which each program of axis 2 adds up a share: dtaps (shares, count, D)."""
    lag = (tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)[:, None]).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = channel < channels
    total = tl.zeros((CHUNK, CHANNELS), ACC)
    for sequence in range(tl.program_id(2), batch, tl.num_programs(2)):
        end, length = end_of(sequence, starts_ptr, ends_ptr, columns, PACKED)
        at = sequence + tl.zeros((1, 1), tl.int64)
        dy = at_end(grad_ptr, grad_row, post_ptr, post_row, at, channel, inside & (length > 0), ACC)
        real = (lag < count) & (lag < length) & inside
        total += dy * gated(x_ptr, x_row, pre_ptr, pre_row, end - 1, -lag, channel, real, ACC)
    at = (tl.program_id(2).to(tl.int64) * count + lag) * channels + channel
    tl.store(dtaps_ptr + at, total, mask=(lag < count) & inside)
