"""The part of the block low-rank convolution that reads and writes (B, L, D), in one kernel for three uses.

    y_i = own u_i                                             lag 0's tap and the skip
        + exp(-a' (i - C/2)) sum_m near_m (T_m v)_i,    v_j = exp(a' (j - C/2)) u_j,    T_m[i, j] = phi_m(i - j), i > j
        + exp(-a i) (Q nu)_i                                  what other chunks contribute
        + the two chunks that the filter's end cuts           (EDGE_RANK > 0)

All channels share the matrices ``T_m`` and ``Q``, so a tile of SLOTS chunks times CHANNELS channels is one operand of a
matrix product; ``near_m`` scales its columns. ``a`` is the decay per event, ``a'`` the smaller of ``a`` and `fastest`.

* forward: u = pre_gate x, out = post_gate y;
* forward again in the backward pass: post_gate's gradient is grad y, and the sums for the gradients of near, edge and
  own are computed too;
* transposed (REVERSE): u = post_gate grad; x's gradient is pre_gate y, and pre_gate's is x y.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated, store_scaled
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, written


@triton.jit
def shared_product(
    matrices_ptr, scales_ptr, v, channel, channels, TRANSPOSED: tl.constexpr, RANK: tl.constexpr, STEP: tl.constexpr,
    CHUNK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m scales[m] (matrices[m] v): matrices (RANK, CHUNK, CHUNK) STEP elements apart, scales (RANK, D)."""
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    at = j * CHUNK + i if TRANSPOSED else i * CHUNK + j
    total = tl.zeros((CHUNK, v.shape[1]), ACC)
    for m in range(RANK):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)
        matrix = tl.load(matrices_ptr + m * STEP + at)
        total += scale[None, :] * tl.dot(matrix, v, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def weighed_product(
    matrices_ptr, scales_ptr, v, g, sums, channel, channels, RANK: tl.constexpr, STEP: tl.constexpr,
    CHUNK: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `shared_product`; also adds the gradient of the scales, sum_i g (matrices[m] v), to row m of `sums`
    (padded, n)."""
    at = tl.arange(0, CHUNK)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    number = tl.arange(0, sums.shape[0])[:, None]
    total = tl.zeros((CHUNK, v.shape[1]), ACC)
    for m in range(RANK):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)
        term = tl.dot(tl.load(matrices_ptr + m * STEP + at), v, input_precision=PRECISION, out_dtype=ACC)
        total += scale[None, :] * term
        sums += tl.where(number == m, tl.sum(g * term, 0)[None, :], 0)
    return total, sums


@triton.jit
def store_sums(out_ptr, sums, channels, RANK: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr):
    """Writes this program's share, summed over its slots: sums (padded, SLOTS * CHANNELS), out (programs, RANK, D)."""
    m = tl.arange(0, sums.shape[0])[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    total = tl.sum(tl.reshape(sums, (sums.shape[0], SLOTS, CHANNELS)), 1)
    at = (tl.program_id(0).to(tl.int64) * RANK + m) * channels + channel
    tl.store(out_ptr + at, total, mask=(m < RANK) & (channel < channels))


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def legendre_chunks_kernel(
    x_ptr,
    x_row,
    gate_ptr,
    gate_row,
    after_ptr,
    after_row,
    out_ptr,
    other_ptr,
    other_row,
    other_out_ptr,
    out_row,
    weigh_ptr,
    weigh_row,
    weigh_gate_ptr,
    weigh_gate_row,
    near_sums_ptr,
    edge_sums_ptr,
    own_sums_ptr,
    toeplitz_ptr,
    near_ptr,
    basis_ptr,
    nu_ptr,
    edges_ptr,
    edge_ptr,
    own_ptr,
    rate_ptr,
    fastest,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    edge_first,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    NEAR_RANK: tl.constexpr,
    NEAR_PADDED: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    EDGE_RANK: tl.constexpr,
    EDGE_PADDED: tl.constexpr,
    PARTED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """With u = gate x: out = after y and other_out = other y, with rows out_row elements apart; an absent factor is 1.

    near_sums, edge_sums, own_sums: shares of the gradients of near, edge and own, (programs, rank, D) each, or all
    None; the gradient of y is weigh_gate times weigh. PARTED: this launch takes only the tiles that the filter's end
    does not reach or, with an EDGE_RANK, only the others.
    """
    slot, channel = tile_columns(SLOTS, CHANNELS)
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    i = tl.arange(0, CHUNK)[:, None]
    position = index[None, :] * CHUNK + i
    exists = inside & (index * CHUNK < length)
    real = (position < length[None, :]) & inside[None, :]
    row = (first + index * CHUNK)[None, :]
    if PARTED:
        within_reach = (index + edge_first) * CHUNK < length if REVERSE else index >= edge_first
        if (tl.max((exists & within_reach).to(tl.int32), 0) > 0) != (EDGE_RANK > 0):
            return
    operand = toeplitz_ptr.dtype.element_ty
    u = gated(x_ptr, x_row, gate_ptr, gate_row, row, i, channel[None, :], real, ACC)
    v = u
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=inside, other=0)[None, :]
        into = i if REVERSE else CHUNK - i  # rows to the chunk's edge, in the convolution's direction
        centred = tl.minimum(a, fastest) * (CHUNK // 2 - into)
        v = u * tl.exp(centred)
    if near_sums_ptr is None:
        y = shared_product(
            toeplitz_ptr,
            near_ptr,
            v.to(operand),
            channel,
            channels,
            REVERSE,
            NEAR_RANK,
            CHUNK * CHUNK,
            CHUNK,
            ACC,
            PRECISION,
        )
    else:
        g = gated(weigh_ptr, weigh_row, weigh_gate_ptr, weigh_gate_row, row, i, channel[None, :], real, ACC)
        store_sums(own_sums_ptr, tl.sum(g * u, 0)[None, :], channels, 1, SLOTS, CHANNELS)
        if rate_ptr is not None:
            g *= tl.exp(-centred)
        sums = tl.zeros((NEAR_PADDED, SLOTS * CHANNELS), ACC)
        y, sums = weighed_product(
            toeplitz_ptr,
            near_ptr,
            v.to(operand),
            g,
            sums,
            channel,
            channels,
            NEAR_RANK,
            CHUNK * CHUNK,
            CHUNK,
            ACC,
            PRECISION,
        )
        store_sums(near_sums_ptr, sums, channels, NEAR_RANK, SLOTS, CHANNELS)
    if rate_ptr is not None:
        y *= tl.exp(-centred)
    if nu_ptr is not None:
        r = tl.arange(0, PADDED)
        q = tl.load(basis_ptr + i * PADDED + r[None, :])  # (CHUNK, PADDED)
        at = (slot.to(tl.int64)[None, :] * RANK + r[:, None]) * channels + channel[None, :]
        values = tl.load(nu_ptr + at, mask=(r < RANK)[:, None] & exists[None, :], other=0)
        far = tl.dot(q, values.to(operand), input_precision=PRECISION, out_dtype=ACC)
        if rate_ptr is not None:
            far *= tl.exp(-a * (CHUNK - into))
        y += far
    if EDGE_RANK > 0:
        sums = tl.zeros((EDGE_PADDED, SLOTS * CHANNELS), ACC)
        cut = tl.zeros_like(y)
        for b in range(2):
            step = (edge_first + b) * CHUNK
            if REVERSE:
                reached, source = (position + step < length[None, :]) & inside[None, :], row + step
            else:
                reached, source = (exists & (index >= edge_first + b))[None, :] & (i >= 0), row - step
            v = gated(x_ptr, x_row, gate_ptr, gate_row, source, i, channel[None, :], reached, ACC)
            if rate_ptr is not None:
                v *= tl.exp(-a * (into + b * CHUNK))
            if near_sums_ptr is None:
                cut += shared_product(
                    edges_ptr + b * CHUNK * CHUNK, edge_ptr, v.to(operand), channel, channels, REVERSE, EDGE_RANK,
                    2 * CHUNK * CHUNK, CHUNK, ACC, PRECISION,
                )  # fmt: skip
            else:
                g = gated(weigh_ptr, weigh_row, weigh_gate_ptr, weigh_gate_row, row, i, channel[None, :], real, ACC)
                if rate_ptr is not None:
                    g *= tl.exp(-a * (CHUNK - into))
                term, sums = weighed_product(
                    edges_ptr + b * CHUNK * CHUNK, edge_ptr, v.to(operand), g, sums, channel, channels, EDGE_RANK,
                    2 * CHUNK * CHUNK, CHUNK, ACC, PRECISION,
                )  # fmt: skip
                cut += term
        if rate_ptr is not None:
            cut *= tl.exp(-a * (CHUNK - into))
        y += cut
        if near_sums_ptr is not None:
            store_sums(edge_sums_ptr, sums, channels, EDGE_RANK, SLOTS, CHANNELS)
    y += tl.load(own_ptr + channel, mask=inside, other=0)[None, :] * u
    to, written_here = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    to, written_here = to * out_row + channel[None, :], written_here & inside[None, :]
    store_scaled(out_ptr, y, after_ptr, after_row, row, i, channel[None, :], real, to, written_here, ACC)
    store_scaled(other_out_ptr, y, other_ptr, other_row, row, i, channel[None, :], real, to, written_here, ACC)
