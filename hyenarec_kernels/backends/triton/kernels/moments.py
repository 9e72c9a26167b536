"""The far part of the block low-rank convolution, from rows to moments: arrays (2, slots, D, rank), or (1, ...).

    mu = Q^T (alpha u)                           moments of each chunk of 32 rows; reads the input once
    mu above = sum_j w_j S_j^T mu_j              up: a node's moments from those of its children j

``alpha_j = exp(-a (C - j))`` and, where the result is used, ``beta_i = exp(-a i)``: with ``exp(-a (k-1) C)`` inside
``M^(k)`` they make up the window of lag ``k C + i - j``, and none is above 1.

The second of two arrays holds eta, the same of the output's gradient for the transposed operator, where time runs
backwards: ``alpha`` and ``beta`` change places. One launch makes both. A channel's moments are adjacent in memory and
as many as a multiple of 8, the last ones 0, so that products load them 16 bytes at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.across import store_reach
from hyenarec_kernels.backends.triton.kernels.gates import gated
from hyenarec_kernels.backends.triton.kernels.products import flat
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, first_slot, locate, tile_columns, tile_of


@triton.jit(do_not_specialize=[*LENGTHS, "octets", "near_pairs", "fan"], do_not_specialize_on_alignment=WHERE)
def legendre_moments_kernel(
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    grad_ptr,
    grad_row,
    post_ptr,
    post_row,
    basis_ptr,
    rate_ptr,
    out_ptr,
    reach_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    octets,
    near_pairs,
    fan,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """mu of pre x and, where there is a gradient, eta of post grad, in SLOTS chunks: basis (CHUNK, PADDED), out
    (1 or 2, slots, D, rank)."""
    rank = octets * 8
    j, slot, channel = tile_of(tl.program_id(0), CHUNK, SLOTS, CHANNELS)
    _, first, length, index = locate(slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED)
    if tl.program_id(1) == 0:
        store_reach(reach_ptr, slot, slots, index, length, CHUNK, near_pairs, fan)
    real = (index * CHUNK + j < length) & (channel < channels)
    row = first + index * CHUNK
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=channel < channels, other=0)
    u = gated(x_ptr, x_row, pre_ptr, pre_row, row, j, channel, real, ACC)
    if rate_ptr is not None:
        u *= tl.exp(-a * (CHUNK - j))
    to_moments(u, basis_ptr, out_ptr, slots, channels, rank, PADDED, ACC, PRECISION)
    if grad_ptr is not None:
        dy = gated(grad_ptr, grad_row, post_ptr, post_row, row, j, channel, real, ACC)
        if rate_ptr is not None:
            dy *= tl.exp(-a * j)
        out_ptr += rank * channels * slots.to(tl.int64)
        to_moments(dy, basis_ptr, out_ptr, slots, channels, rank, PADDED, ACC, PRECISION)


@triton.jit
def to_moments(
    u, basis_ptr, out_ptr, slots, channels, rank, PADDED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr
):
    """Writes Q^T u of a tile (CHUNK, SLOTS, CHANNELS)."""
    j, r = tl.arange(0, u.shape[0])[:, None], tl.arange(0, PADDED)[None, :]
    basis = tl.load(basis_ptr + j * PADDED + r)  # (CHUNK, PADDED)
    mu = tl.dot(flat(u, basis.dtype), basis, input_precision=PRECISION, out_dtype=ACC)  # (n, PADDED)
    slot, channel = tile_columns(u.shape[1], u.shape[2])
    at = (slot.to(tl.int64) * channels + channel)[:, None] * rank + r
    mask = (r < rank) & ((slot < slots) & (channel < channels))[:, None]
    tl.store(out_ptr + at, mu.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[*LENGTHS, "per_row_below", "slots_below", "chunk", "fan_below", "octets_below", "octets", "near_pairs", "fan"],
    do_not_specialize_on_alignment=WHERE,
)
def legendre_up_kernel(
    below_ptr,
    transfer_ptr,
    rate_ptr,
    above_ptr,
    reach_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    per_row_below,
    slots_below,
    channels,
    chunk,
    fan_below,
    octets_below,
    octets,
    near_pairs,
    fan,
    PACKED: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_BELOW: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Moments of nodes of `chunk` rows from those of their `fan_below` children: transfer (fan_below, rank_below, rank); axis 2 is
    mu or eta."""
    rank_below, rank = octets_below * 8, octets * 8
    slot, channel = tile_columns(SLOTS, CHANNELS)
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, chunk, PACKED
    )
    reverse, child_rows = tl.program_id(2), chunk // fan_below
    if (tl.program_id(1) == 0) & (reverse == 0):
        store_reach(reach_ptr, slot, slots, index, length, chunk, near_pairs, fan)
    channel, inside = channel[None, :], (channel < channels)[None, :]
    child = first_slot(sequence, first, per_row_below, child_rows, PACKED) + index * fan_below
    child = child.to(tl.int64) + reverse * slots_below.to(tl.int64)
    r, s = tl.arange(0, PADDED)[:, None], tl.arange(0, PADDED_BELOW)
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=inside, other=0) * child_rows
    total = tl.zeros((PADDED, SLOTS * CHANNELS), ACC)
    for j in range(fan_below):
        real = (index * chunk + j * child_rows < length)[None, :] & inside
        at = ((child + j)[None, :] * channels + channel) * rank_below + s[:, None]
        values = tl.load(below_ptr + at, mask=(s < rank_below)[:, None] & real, other=0)
        weights = tl.load(
            transfer_ptr + (j * rank_below + s[None, :]) * rank + r, mask=(r < rank) & (s < rank_below)[None, :], other=0
        )
        part = tl.dot(weights, values, input_precision=PRECISION, out_dtype=ACC)
        if rate_ptr is not None:
            part *= tl.exp(-a * tl.where(reverse > 0, j, fan_below - 1 - j))
        total += part
    at = ((slot.to(tl.int64) + reverse * slots.to(tl.int64))[None, :] * channels + channel) * rank + r
    tl.store(above_ptr + at, total, mask=(r < rank) & (index * chunk < length)[None, :] & inside)
