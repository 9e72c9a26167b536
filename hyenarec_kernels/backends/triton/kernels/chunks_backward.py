"""The part of the block low-rank convolution that reads and writes (B, L, D): all gradients in one pass.

With u = pre x, dy = post grad and y as in `legendre_chunks_kernel`:

    dpost = grad y,    dx = pre du,    dpre = x du,    du = the transposed operator on dy
    dnear_m = sum w_i (T_m v)_i,    dedge_m = sum g_i (E_m u)_i,    dskip = sum dy_i u_i

The transposed operator is the same with time reversed, and so are its windows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.chunks import PLAN
from hyenarec_kernels.backends.triton.kernels.gates import rows_of
from hyenarec_kernels.backends.triton.kernels.products import both_ways, from_moments, scaled, weighed
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, slots_of, written


@triton.jit
def store_sums(out_ptr, sums, first, rank, rows, channels, SLOTS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's share, summed over its slots, to rows from `first` on: sums (padded, SLOTS * CHANNELS), out
    (programs, rows, D)."""
    m = tl.arange(0, sums.shape[0])[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    total = tl.sum(tl.reshape(sums, (sums.shape[0], SLOTS, CHANNELS)), 1)
    at = (tl.program_id(0).to(tl.int64) * rows + first + m) * channels + channel
    tl.store(out_ptr + at, total, mask=(m < rank) & (channel < channels))


@triton.jit(do_not_specialize=[*LENGTHS, *PLAN], do_not_specialize_on_alignment=WHERE)
def legendre_chunks_backward_kernel(
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    grad_ptr,
    grad_row,
    post_ptr,
    post_row,
    dx_ptr,
    dpre_ptr,
    dpost_ptr,
    out_row,
    sums_ptr,
    toeplitz_ptr,
    near_ptr,
    basis_ptr,
    nu_ptr,
    edges_ptr,
    edge_ptr,
    skip_ptr,
    rate_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    octets,
    near_rank,
    edge_rank,
    edge_first,
    FASTEST: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
    NEAR_PADDED: tl.constexpr,
    EDGE_PADDED: tl.constexpr,
    EDGE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of x and the gates, rows out_row apart; the pointer to one that is not wanted is None. A program takes
    every num_programs-th tile, and writes its share of the parameters' gradients: sums (programs, near_rank + edge_rank
    + 1, D), the last row the skip's. nu (2, slots, D, rank)."""
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, SLOTS * CHANNELS) % CHANNELS)[None, :]
    inside = channel < channels
    i = tl.arange(0, CHUNK)[:, None]
    operand = toeplitz_ptr.dtype.element_ty
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=inside, other=0)
        centred = tl.minimum(a, FASTEST) * (i - CHUNK // 2)
    near_sums = tl.zeros((NEAR_PADDED, SLOTS * CHANNELS), ACC)
    edge_sums = tl.zeros((EDGE_PADDED, SLOTS * CHANNELS), ACC)
    skip_sums = tl.zeros((1, SLOTS * CHANNELS), ACC)
    for tile in range(tl.program_id(0), tl.cdiv(slots, SLOTS), tl.num_programs(0)):
        slot = slots_of(tile, SLOTS, CHANNELS)
        sequence, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        sequence, first, length, index = sequence[None, :], first[None, :], length[None, :], index[None, :]
        position = index * CHUNK + i
        exists, real = (index * CHUNK < length) & inside, (position < length) & inside
        row = first + index * CHUNK
        x = rows_of(x_ptr, x_row, row, i, channel, real, ACC)
        grad = rows_of(grad_ptr, grad_row, row, i, channel, real, ACC)
        u, dy = x, grad
        if pre_ptr is not None:
            pre = rows_of(pre_ptr, pre_row, row, i, channel, real, ACC)
            u = x * pre
        if post_ptr is not None:
            dy = grad * rows_of(post_ptr, post_row, row, i, channel, real, ACC)
        skip_sums += tl.sum(dy * u, 0)[None, :]
        v, w = u, dy
        if rate_ptr is not None:
            v, w = u * tl.exp(centred), dy * tl.exp(-centred)
        y, du, near_sums = both_ways(
            toeplitz_ptr, near_ptr, v, w, near_sums, channel, channels, near_rank, CHUNK * CHUNK, CHUNK, ACC, PRECISION
        )
        if rate_ptr is not None:
            y, du = y * tl.exp(-centred), du * tl.exp(centred)
        if nu_ptr is not None:
            at = (slot.to(tl.int64)[None, :] * channels + channel) * (octets * 8) + tl.arange(0, PADDED)[:, None]
            far = from_moments(basis_ptr, nu_ptr, at, exists, octets * 8, PADDED, CHUNK, ACC, PRECISION)
            at += slots.to(tl.int64) * (octets * 8) * channels
            back = from_moments(basis_ptr, nu_ptr, at, exists, octets * 8, PADDED, CHUNK, ACC, PRECISION)
            if rate_ptr is not None:
                far, back = far * tl.exp(-a * i), back * tl.exp(-a * (CHUNK - i))
            y, du = y + far, du + back
        if EDGE:
            if tl.max((exists & (index >= edge_first)).to(tl.int32)) > 0:
                g = dy
                if rate_ptr is not None:
                    g = dy * tl.exp(-a * i)
                for b in range(2):
                    source = row - (edge_first + b) * CHUNK
                    reached = exists & (index >= edge_first + b) & (i >= 0)
                    v = rows_of(x_ptr, x_row, source, i, channel, reached, ACC)
                    if pre_ptr is not None:
                        v *= rows_of(pre_ptr, pre_row, source, i, channel, reached, ACC)
                    if rate_ptr is not None:
                        v *= tl.exp(-a * (CHUNK - i + b * CHUNK))
                    cut, edge_sums = weighed(
                        edges_ptr + b * CHUNK * CHUNK, edge_ptr, v.to(operand), g, edge_sums, channel, channels,
                        edge_rank, 2 * CHUNK * CHUNK, CHUNK, ACC, PRECISION,
                    )  # fmt: skip
                    if rate_ptr is not None:
                        cut *= tl.exp(-a * i)
                    y += cut
            if tl.max((exists & ((index + edge_first) * CHUNK < length)).to(tl.int32)) > 0:
                for b in range(2):
                    step = (edge_first + b) * CHUNK
                    reached = (position + step < length) & inside
                    w = rows_of(grad_ptr, grad_row, row + step, i, channel, reached, ACC)
                    if post_ptr is not None:
                        w *= rows_of(post_ptr, post_row, row + step, i, channel, reached, ACC)
                    if rate_ptr is not None:
                        w *= tl.exp(-a * (i + b * CHUNK))
                    cut = scaled(
                        edges_ptr + b * CHUNK * CHUNK, edge_ptr, w.to(operand), channel, channels, edge_rank,
                        2 * CHUNK * CHUNK, True, CHUNK, ACC, PRECISION,
                    )  # fmt: skip
                    if rate_ptr is not None:
                        cut *= tl.exp(-a * (CHUNK - i))
                    du += cut
        if skip_ptr is not None:
            skip = tl.load(skip_ptr + channel, mask=inside, other=0)
            y, du = y + skip * u, du + skip * dy
        to, here = written(position, sequence, first, length, slot[None, :], slots, columns, PACKED)
        to, here = to * out_row + channel, here & inside
        if dpost_ptr is not None:
            tl.store(dpost_ptr + to, tl.where(real, grad * y, 0).to(dpost_ptr.dtype.element_ty), mask=here)
        if dx_ptr is not None:
            dx = du
            if pre_ptr is not None:
                dx = pre * du
            tl.store(dx_ptr + to, tl.where(real, dx, 0).to(dx_ptr.dtype.element_ty), mask=here)
        if dpre_ptr is not None:
            tl.store(dpre_ptr + to, tl.where(real, x * du, 0).to(dpre_ptr.dtype.element_ty), mask=here)
    if sums_ptr is not None:
        rows = near_rank + edge_rank + 1
        store_sums(sums_ptr, near_sums, 0, near_rank, rows, channels, SLOTS, CHANNELS)
        if EDGE:
            store_sums(sums_ptr, edge_sums, near_rank, edge_rank, rows, channels, SLOTS, CHANNELS)
        store_sums(sums_ptr, skip_sums, rows - 1, 1, rows, channels, SLOTS, CHANNELS)
