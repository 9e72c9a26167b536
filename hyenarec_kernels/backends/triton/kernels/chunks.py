"""The part of the block low-rank convolution that reads and writes (B, L, D): forward.

    y_i = exp(-a' (i - C/2)) sum_m near_m (T_m v)_i,    v_j = exp(a' (j - C/2)) u_j,    T_m[i, j] = phi_m(i - j)
        + exp(-a i) (Q nu)_i                                  what other chunks contribute
        + the two chunks that the filter's end cuts           (EDGE)

The matrices ``T_m`` and ``Q`` are shared by all channels, so a tile of SLOTS chunks times CHANNELS channels is one
operand of a matrix product; ``near_m`` scales its columns. The skip is one ``near_m`` more, whose ``T_m`` is 1. ``a'`` is the decay an event, or `fastest` if that is less.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated, rows_of, store_rows
from hyenarec_kernels.backends.triton.kernels.products import flat, from_moments, scaled, tiled
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, tile_of, written

PLAN = ["octets", "near_rank", "edge_rank", "edge_first"]  # another plan does not compile the kernels again


@triton.jit(do_not_specialize=[*LENGTHS, *PLAN], do_not_specialize_on_alignment=WHERE)
def legendre_chunks_kernel(
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    out_ptr,
    out_row,
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
    EDGE: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out = post y of u = pre x: rows of out out_row apart; EDGE: whether the filter's end lies within a sequence."""
    i, slot, channel = tile_of(tl.program_id(0), CHUNK, SLOTS, CHANNELS)
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    position, row = index * CHUNK + i, first + index * CHUNK
    exists, real = (index * CHUNK < length) & inside, (position < length) & inside
    operand = toeplitz_ptr.dtype.element_ty
    column, number = tile_columns(SLOTS, CHANNELS)
    v = gated(x_ptr, x_row, pre_ptr, pre_row, row, i, channel, real, ACC)
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=inside, other=0)
        centred = tl.minimum(a, FASTEST) * (i - CHUNK // 2)
        v *= tl.exp(centred)
    near = scaled(
        toeplitz_ptr, near_ptr, flat(v, operand), number, channels, near_rank, False, GROUP, ACC, PRECISION
    )
    far = tl.zeros_like(near)
    if nu_ptr is not None:
        if rate_ptr is None:
            far = near
        far = from_moments(
            nu_ptr, basis_ptr, column, slots, number, channels, octets * 8, far, CHUNK, PADDED, ACC, PRECISION
        )
    if EDGE:
        if tl.max((exists & (index >= edge_first)).to(tl.int32)) > 0:
            for b in range(2):
                source = row - (edge_first + b) * CHUNK
                reached = exists & (index >= edge_first + b) & (i >= 0)
                v = gated(x_ptr, x_row, pre_ptr, pre_row, source, i, channel, reached, ACC)
                if rate_ptr is not None:
                    v *= tl.exp(-a * (CHUNK - i + b * CHUNK))
                far += scaled(
                    edges_ptr + b * edge_rank * (CHUNK * CHUNK), edge_ptr, flat(v, operand), number, channels,
                    edge_rank, False, GROUP, ACC, PRECISION,
                )  # fmt: skip
    if rate_ptr is not None:
        y = tiled(near, SLOTS) * tl.exp(-centred) + tiled(far, SLOTS) * tl.exp(-a * i)
    elif nu_ptr is not None:
        y = tiled(far, SLOTS)
    else:
        y = tiled(near + far, SLOTS)
    to, here = written(position, sequence, first, length, slot, slots, columns, PACKED)
    to, here = to * out_row + channel, here & inside
    if post_ptr is not None:
        y *= rows_of(post_ptr, post_row, row, i, channel, real, ACC)
    store_rows(out_ptr, y, real, to, here, PACKED)
