"""The far part of the block low-rank convolution, on moments: small arrays (slots, rank, D) of the arithmetic dtype.

    mu = Q^T (alpha u)                           moments of each chunk of 32 rows; reads the input once
    mu above = sum_j w_j S_j^T mu_j              up: a chunk's moments from those of its children j
    nu = sum_k M^(k) mu[-k] + w_j S_j nu above   across: from earlier chunks under the same parent, and the parent's nu

``alpha_j = exp(-a (C - j))`` and, where the result is used, ``beta_i = exp(-a i)``: with ``exp(-a (k-1) C)`` inside
``M^(k)`` they make up the window of lag ``k C + i - j``, and none is above 1. The transposed operator is the same with
time reversed: ``alpha`` and ``beta`` change places, and across looks at later chunks and transposes ``M``.

The levels above the lowest hold few numbers, so their kernels do not use tensor cores and lose no digits to them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, first_slot, locate, tile_columns

PAIRS = ["near_pairs", "far_first", "far_pairs"]  # of chunks that act on each other; they differ from level to level


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def legendre_moments_kernel(
    x_ptr,
    x_row,
    gate_ptr,
    gate_row,
    basis_ptr,
    rate_ptr,
    out_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """mu of SLOTS chunks: basis (CHUNK, PADDED), out (slots, RANK, D)."""
    slot, channel = tile_columns(SLOTS, CHANNELS)
    _, first, length, index = locate(slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED)
    j = tl.arange(0, CHUNK)[:, None]
    real = (index[None, :] * CHUNK + j < length[None, :]) & (channel < channels)[None, :]
    row = (first + index * CHUNK)[None, :]
    u = gated(x_ptr, x_row, gate_ptr, gate_row, row, j, channel[None, :], real, ACC)
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=channel < channels, other=0)
        u *= tl.exp(-a[None, :] * (j if REVERSE else CHUNK - j))
    r = tl.arange(0, PADDED)[:, None]
    transposed = tl.load(basis_ptr + tl.arange(0, CHUNK)[None, :] * PADDED + r)  # (PADDED, CHUNK)
    mu = tl.dot(transposed, u.to(basis_ptr.dtype.element_ty), input_precision=PRECISION, out_dtype=ACC)
    at = (slot.to(tl.int64)[None, :] * RANK + r) * channels + channel[None, :]
    tl.store(out_ptr + at, mu, mask=(r < RANK) & ((index * CHUNK < length) & (channel < channels))[None, :])


@triton.jit(do_not_specialize=[*LENGTHS, "per_row_below"], do_not_specialize_on_alignment=WHERE)
def legendre_up_kernel(
    below_ptr,
    transfer_ptr,
    rate_ptr,
    above_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    per_row_below,
    channels,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    FAN: tl.constexpr,
    RANK_BELOW: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Moments of chunks of CHUNK rows from those of their FAN children: transfer (FAN, RANK_BELOW, RANK)."""
    r = tl.arange(0, PADDED)[:, None, None]
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, None, :]
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    child = first_slot(sequence, first, per_row_below, CHUNK // FAN, PACKED) + index * FAN
    if rate_ptr is not None:
        a = tl.load(rate_ptr + channel, mask=channel < channels, other=0) * (CHUNK // FAN)
    total = tl.zeros((PADDED, SLOTS, CHANNELS), ACC)
    for j in range(FAN):
        real = (index * CHUNK + j * (CHUNK // FAN) < length)[None, :, None] & (channel < channels)
        part = tl.zeros((PADDED, SLOTS, CHANNELS), ACC)
        for s in tl.range(0, RANK_BELOW, loop_unroll_factor=2):
            weight = tl.load(transfer_ptr + (j * RANK_BELOW + s) * RANK + r, mask=r < RANK, other=0)
            at = ((child + j).to(tl.int64)[None, :, None] * RANK_BELOW + s) * channels + channel
            part += weight * tl.load(below_ptr + at, mask=real, other=0)
        if rate_ptr is not None:
            part *= tl.exp(-a * (j if REVERSE else FAN - 1 - j))
        total += part
    at = (slot.to(tl.int64)[None, :, None] * RANK + r) * channels + channel
    tl.store(above_ptr + at, total, mask=(r < RANK) & (index * CHUNK < length)[None, :, None] & (channel < channels))


@triton.jit
def paired(later, distance, near_pairs, far_first, far_pairs, FAN: tl.constexpr):
    """Whether a chunk and the one `distance` before it act on each other at this level: if they have the same parent,
    or if the filter's end keeps their parents from doing so."""
    place = later % FAN if FAN else later
    near = (distance <= near_pairs) & (distance <= place)
    return near | ((distance >= far_first + place) & (distance < far_first + far_pairs) & (distance <= later))


@triton.jit
def distance_of(number, near_pairs, far_first):
    """The distance that a level's table is for: first the near ones, from 1 on, then the far ones."""
    return tl.where(number < near_pairs, number + 1, far_first + number - near_pairs)


@triton.jit(do_not_specialize=[*LENGTHS, "per_row_above", *PAIRS], do_not_specialize_on_alignment=WHERE)
def legendre_across_kernel(
    mu_ptr,
    tables_ptr,
    above_ptr,
    transfer_ptr,
    rate_ptr,
    nu_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    per_row_above,
    channels,
    near_pairs,
    far_first,
    far_pairs,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    FAN: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    RANK_ABOVE: tl.constexpr,
    ACC: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """nu of chunks from their neighbours' mu and their parent's nu: tables (distances, RANK, RANK, D)."""
    r = tl.arange(0, PADDED)[:, None, None]
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, None, :]
    inside = channel < channels
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    count = tl.cdiv(length, CHUNK)
    total = tl.zeros((PADDED, SLOTS, CHANNELS), ACC)
    for number in range(near_pairs + far_pairs):
        distance = distance_of(number, near_pairs, far_first)
        later = index + distance if REVERSE else index
        source = slot + distance if REVERSE else slot - distance
        meets = paired(later, distance, near_pairs, far_first, far_pairs, FAN) & (later < count)
        if tl.max(meets.to(tl.int32), 0) > 0:
            for s in tl.range(0, RANK, loop_unroll_factor=2):
                entry = (number * RANK * RANK + (s * RANK + r if REVERSE else r * RANK + s)) * channels
                weight = tl.load(tables_ptr + entry + channel, mask=(r < RANK) & inside, other=0)
                at = (source.to(tl.int64)[None, :, None] * RANK + s) * channels + channel
                total += weight * tl.load(mu_ptr + at, mask=meets[None, :, None] & inside, other=0)
    real = (index < count)[None, :, None] & inside
    if above_ptr is not None:
        place = index % FAN
        parent = first_slot(sequence, first, per_row_above, CHUNK * FAN, PACKED) + index // FAN
        part = tl.zeros((PADDED, SLOTS, CHANNELS), ACC)
        for s in tl.range(0, RANK_ABOVE, loop_unroll_factor=2):
            weight = tl.load(transfer_ptr + (place[None, :, None] * RANK + r) * RANK_ABOVE + s, mask=r < RANK, other=0)
            at = (parent.to(tl.int64)[None, :, None] * RANK_ABOVE + s) * channels + channel
            part += weight * tl.load(above_ptr + at, mask=real, other=0)
        if rate_ptr is not None:
            a = tl.load(rate_ptr + channel, mask=inside, other=0) * CHUNK
            part *= tl.exp(-a * (FAN - 1 - place if REVERSE else place)[None, :, None])
        total += part
    at = (slot.to(tl.int64)[None, :, None] * RANK + r) * channels + channel
    tl.store(nu_ptr + at, total.to(nu_ptr.dtype.element_ty), mask=(r < RANK) & real)


@triton.jit(do_not_specialize=[*LENGTHS, *PAIRS], do_not_specialize_on_alignment=WHERE)
def legendre_across_gradient_kernel(
    mu_ptr,
    eta_ptr,
    out_ptr,
    sequences_ptr,
    starts_ptr,
    ends_ptr,
    slots,
    columns,
    per_row,
    channels,
    near_pairs,
    far_first,
    far_pairs,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    FAN: tl.constexpr,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of one distance's table (axis 0): the sum of eta (x) mu over its pairs of chunks, of which each program
    of axis 2 adds up a share.

    mu, eta (slots, RANK, D), eta the moments of the output's gradient; out (shares, distances, RANK, RANK, D).
    """
    number, share = tl.program_id(0), tl.program_id(2)
    distance = distance_of(number, near_pairs, far_first)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[:, None, None]
    inside = channel < channels
    r, s = tl.arange(0, PADDED)[None, :, None], tl.arange(0, PADDED)[None, None, :]
    total = tl.zeros((CHANNELS, PADDED, PADDED), ACC)
    for begin in range(share * SLOTS, slots, tl.num_programs(2) * SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        _, _, length, index = locate(slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED)
        meets = paired(index, distance, near_pairs, far_first, far_pairs, FAN) & (index * CHUNK < length)
        if tl.max(meets.to(tl.int32), 0) > 0:
            at = slot.to(tl.int64) * RANK
            here = (at[None, None, :] + r) * channels + channel  # (CHANNELS, PADDED, SLOTS)
            left = tl.load(eta_ptr + here, mask=(r < RANK) & inside & meets[None, None, :], other=0)
            there = ((at - distance * RANK)[None, :, None] + s) * channels + channel  # (CHANNELS, SLOTS, PADDED)
            right = tl.load(mu_ptr + there, mask=(s < RANK) & inside & meets[None, :, None], other=0)
            total += tl.dot(left, right, input_precision=PRECISION, out_dtype=ACC)
    entry = ((share * tl.num_programs(0) + number).to(tl.int64) * RANK + r) * RANK + s
    tl.store(out_ptr + entry * channels + channel, total, mask=(r < RANK) & (s < RANK) & inside)
