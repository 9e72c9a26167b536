"""The part of the block low-rank convolution that reads and writes (B, L, D): all gradients in one pass.

With u = pre x, dy = post grad and y as in `legendre_chunks_kernel`:

    dpost = grad y,    dx = pre du,    dpre = x du,    du = the transposed operator on dy
    dnear_m = sum w_i (T_m v)_i,    dedge_m = sum g_i (E_m u)_i

The transposed operator is the same with time reversed, and so are its windows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.chunks import PLAN
from hyenarec_kernels.backends.triton.kernels.gates import gated, rows_of, store_rows
from hyenarec_kernels.backends.triton.kernels.products import flat, from_moments, scaled, tiled, weighed
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, tile_of, written


@triton.jit
def store_sums(out_ptr, sums, first, rank, rows, channels, SLOTS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's share, summed over its slots, to rows from `first` on: sums (SLOTS * CHANNELS, padded), out
    (programs, D, rows)."""
    m = tl.arange(0, sums.shape[1])[None, :]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    total = tl.sum(tl.reshape(sums, (SLOTS, CHANNELS, sums.shape[1])), 0)
    at = (tl.program_id(0).to(tl.int64) * channels + channel) * rows + first + m
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
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of x and the gates, rows out_row apart; the pointer to one that is not wanted is None. A program takes
    every num_programs-th tile, and writes its share of the parameters' gradients: sums (programs, D, near_rank +
    edge_rank). nu (2, slots, D, rank)."""
    operand = toeplitz_ptr.dtype.element_ty
    near_sums = tl.zeros((SLOTS * CHANNELS, NEAR_PADDED), ACC)
    edge_sums = tl.zeros((SLOTS * CHANNELS, EDGE_PADDED), ACC)
    for tile in range(tl.program_id(0), tl.cdiv(slots, SLOTS), tl.num_programs(0)):
        i, slot, channel = tile_of(tile, CHUNK, SLOTS, CHANNELS)
        inside = channel < channels
        sequence, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        position, row = index * CHUNK + i, first + index * CHUNK
        exists, real = (index * CHUNK < length) & inside, (position < length) & inside
        column, number = tile_columns(SLOTS, CHANNELS)
        column += (tile - tl.program_id(0)) * SLOTS
        x = rows_of(x_ptr, x_row, row, i, channel, real, ACC)
        grad = rows_of(grad_ptr, grad_row, row, i, channel, real, ACC)
        v, w = x, grad
        if pre_ptr is not None:
            pre = rows_of(pre_ptr, pre_row, row, i, channel, real, ACC)
            v = x * pre
        if post_ptr is not None:
            w = grad * rows_of(post_ptr, post_row, row, i, channel, real, ACC)
        if rate_ptr is not None:
            a = tl.load(rate_ptr + channel, mask=inside, other=0)
            centred = tl.minimum(a, FASTEST) * (i - CHUNK // 2)
            v, w = v * tl.exp(centred), w * tl.exp(-centred)
        v, w = flat(v, operand), flat(w, operand)
        near, near_sums = weighed(
            toeplitz_ptr, near_ptr, v, w, near_sums, number, channels, near_rank, GROUP, ACC, PRECISION
        )
        near_back = scaled(toeplitz_ptr, near_ptr, w, number, channels, near_rank, True, GROUP, ACC, PRECISION)
        far, back = tl.zeros_like(near), tl.zeros_like(near)
        if nu_ptr is not None:
            if rate_ptr is None:
                far, back = near, near_back
            far = from_moments(
                nu_ptr, basis_ptr, column, slots, number, channels, octets * 8, far, CHUNK, PADDED, ACC, PRECISION
            )
            xi_ptr = nu_ptr + slots.to(tl.int64) * channels * (octets * 8)
            back = from_moments(
                xi_ptr, basis_ptr, column, slots, number, channels, octets * 8, back, CHUNK, PADDED, ACC, PRECISION
            )
        if EDGE:
            if tl.max((exists & (index >= edge_first)).to(tl.int32)) > 0:
                g = gated(grad_ptr, grad_row, post_ptr, post_row, row, i, channel, real, ACC)
                if rate_ptr is not None:
                    g *= tl.exp(-a * i)
                g = flat(g, operand)
                for b in range(2):
                    source = row - (edge_first + b) * CHUNK
                    reached = exists & (index >= edge_first + b) & (i >= 0)
                    before = gated(x_ptr, x_row, pre_ptr, pre_row, source, i, channel, reached, ACC)
                    if rate_ptr is not None:
                        before *= tl.exp(-a * (CHUNK - i + b * CHUNK))
                    cut, edge_sums = weighed(
                        edges_ptr + b * edge_rank * (CHUNK * CHUNK), edge_ptr, flat(before, operand), g, edge_sums, number,
                        channels, edge_rank, GROUP, ACC, PRECISION,
                    )  # fmt: skip
                    far += cut
            if tl.max((exists & ((index + edge_first) * CHUNK < length)).to(tl.int32)) > 0:
                for b in range(2):
                    step = (edge_first + b) * CHUNK
                    reached = (position + step < length) & inside
                    after = gated(grad_ptr, grad_row, post_ptr, post_row, row + step, i, channel, reached, ACC)
                    if rate_ptr is not None:
                        after *= tl.exp(-a * (i + b * CHUNK))
                    back += scaled(
                        edges_ptr + b * edge_rank * (CHUNK * CHUNK), edge_ptr, flat(after, operand), number, channels,
                        edge_rank, True, GROUP, ACC, PRECISION,
                    )  # fmt: skip
        if rate_ptr is not None:
            y = tiled(near, SLOTS) * tl.exp(-centred) + tiled(far, SLOTS) * tl.exp(-a * i)
            du = tiled(near_back, SLOTS) * tl.exp(centred) + tiled(back, SLOTS) * tl.exp(-a * (CHUNK - i))
        elif nu_ptr is not None:
            y, du = tiled(far, SLOTS), tiled(back, SLOTS)
        else:
            y, du = tiled(near + far, SLOTS), tiled(near_back + back, SLOTS)
        to, here = written(position, sequence, first, length, slot, slots, columns, PACKED)
        to, here = to * out_row + channel, here & inside
        if dpost_ptr is not None:
            store_rows(dpost_ptr, grad * y, real, to, here, PACKED)
        if dx_ptr is not None:
            dx = du
            if pre_ptr is not None:
                dx = pre * du
            store_rows(dx_ptr, dx, real, to, here, PACKED)
        if dpre_ptr is not None:
            store_rows(dpre_ptr, x * du, real, to, here, PACKED)
    if sums_ptr is not None:
        rows = near_rank + edge_rank
        store_sums(sums_ptr, near_sums, 0, near_rank, rows, channels, SLOTS, CHANNELS)
        if EDGE:
            store_sums(sums_ptr, edge_sums, near_rank, edge_rank, rows, channels, SLOTS, CHANNELS)
