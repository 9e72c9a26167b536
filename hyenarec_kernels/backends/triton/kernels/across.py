"""The far part of the block low-rank convolution, on moments: from chunk to chunk, and back to the chunks below.

    nu = sum_k M^(k) mu[-k] + w_j S_j nu above   across: from the earlier nodes under one parent, and the parent's nu
    dM^(k) = sum eta (x) mu[-k]                  the tables' gradients

A table is a matrix for each channel, so channels are the batch of the matrix products. Time runs backwards for the
transposed operator, the second of two arrays: across then looks at later nodes, and transposes ``M``. What differs from
level to level is an argument, so that a plan's levels share one compiled kernel, or two where the lowest has 16 bits.

Which nodes meet under one parent is in reach (2, slots), made with the moments: a node's moments go to the next
``reach[1]`` nodes, and it gets those of the ``reach[0]`` before it. Where the filter's end keeps parents from meeting
(FAR), their children meet at the distances of `cut_short` besides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, first_slot, locate

LEVEL = [*LENGTHS, "near_pairs", "far_first", "far_pairs", "chunk", "fan", "octets"]
STEP = tl.constexpr(16)  # ranks that a product takes at a time


@triton.jit
def store_reach(reach_ptr, slot, slots, index, length, chunk, near_pairs, fan):
    """Writes how many nodes before and after each meet it under one parent; without a fan there are no parents."""
    place, after = index, tl.cdiv(length, chunk) - 1 - index
    if fan > 0:
        place = index % fan
        after = tl.minimum(after, fan - 1 - place)
    tl.store(reach_ptr + slot, tl.where(after < 0, 0, tl.minimum(place, near_pairs)), mask=slot < slots)
    tl.store(reach_ptr + slots + slot, tl.minimum(after, near_pairs), mask=slot < slots)


@triton.jit
def cut_short(later, distance, far_first, far_pairs, fan):
    """Whether node number `later` of its sequence meets the one `distance` before it though their parents do not meet.
    """
    place = tl.where(fan > 0, later % tl.maximum(fan, 1), later)
    return (distance >= far_first + place) & (distance < far_first + far_pairs) & (distance <= later)


@triton.jit
def distance_of(number, near_pairs, far_first):
    """The distance of a level's table: the near ones from 1 on, then the far ones."""
    return tl.where(number < near_pairs, number + 1, far_first + number - near_pairs)


@triton.jit(do_not_specialize=[*LEVEL, "per_row_above", "slots_above", "octets_above"], do_not_specialize_on_alignment=WHERE)
def legendre_across_kernel(
    mu_ptr,
    reach_ptr,
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
    slots_above,
    channels,
    near_pairs,
    far_first,
    far_pairs,
    chunk,
    fan,
    octets,
    octets_above,
    FAR: tl.constexpr,
    PACKED: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """nu of nodes from their neighbours' mu and their parent's nu: tables (distances, D, rank, rank), transfer (fan,
    rank, rank_above); axis 2 is nu of mu or, with time reversed, of eta."""
    rank, rank_above = octets * 8, octets_above * 8
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside, reverse = channel < channels, tl.program_id(2)
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, chunk, PACKED
    )
    count, r = tl.cdiv(length, chunk), tl.arange(0, PADDED)[None, :, None]
    in_row, in_column = tl.where(reverse > 0, 1, rank), tl.where(reverse > 0, rank, 1)
    here = slot.to(tl.int64) + reverse * slots.to(tl.int64)
    reach = tl.load(reach_ptr + here, mask=slot < slots, other=0)
    total = tl.zeros((CHANNELS, PADDED, SLOTS), ACC)
    for begin in range(0, rank, STEP):
        q = begin + tl.arange(0, STEP)
        entry = channel[:, None, None] * rank * rank + r * in_row + q[None, None, :] * in_column
        at = (here[None, None, :] * channels + channel[:, None, None]) * rank + q[None, :, None]
        entries, values_at = tables_ptr + entry, mu_ptr + at
        held = (r < rank) & (q < rank)[None, None, :] & inside[:, None, None]
        mine = (q < rank)[None, :, None] & inside[:, None, None]
        step = tl.where(reverse > 0, channels * rank, -channels * rank)
        for number in range(near_pairs + far_pairs):
            distance = distance_of(number, near_pairs, far_first)
            meets = distance <= tl.where(number < near_pairs, reach, 0)
            if FAR:
                later = tl.where(reverse > 0, index + distance, index)
                meets = meets | (cut_short(later, distance, far_first, far_pairs, fan) & (later < count))
            weights = tl.load(entries + number * (channels * rank * rank), mask=held, other=0)
            values = tl.load(values_at + distance * step, mask=meets[None, None, :] & mine, other=0)
            # (CHANNELS, PADDED, STEP) times (CHANNELS, STEP, SLOTS)
            total += tl.dot(weights, values, input_precision=PRECISION, out_dtype=ACC)
    nu = tl.permute(total, (2, 1, 0))  # (SLOTS, PADDED, CHANNELS)
    real = (index < count)[:, None, None] & inside[None, None, :]
    channel = channel[None, None, :]
    if above_ptr is not None:
        place = index % fan
        parent = first_slot(sequence, first, per_row_above, chunk * fan, PACKED) + index // fan
        parent = parent.to(tl.int64) + reverse * slots_above.to(tl.int64)
        part = tl.zeros((SLOTS, PADDED, CHANNELS), ACC)
        for begin in range(0, rank_above, STEP):
            q = begin + tl.arange(0, STEP)
            weights = tl.load(
                transfer_ptr + (place[:, None, None] * rank + r) * rank_above + q[None, None, :],
                mask=(r < rank) & (q < rank_above)[None, None, :],
                other=0,
            )  # (SLOTS, PADDED, STEP)
            at = (parent[:, None, None] * channels + channel) * rank_above + q[None, :, None]
            values = tl.load(above_ptr + at, mask=real & (q < rank_above)[None, :, None], other=0)
            values = values.to(transfer_ptr.dtype.element_ty)  # (SLOTS, STEP, CHANNELS)
            part += tl.dot(weights, values, input_precision=PRECISION, out_dtype=ACC)
        if rate_ptr is not None:
            a = tl.load(rate_ptr + channel, mask=channel < channels, other=0) * chunk
            part *= tl.exp(-a * tl.where(reverse > 0, fan - 1 - place, place)[:, None, None])
        nu += part
    at = (here[:, None, None] * channels + channel) * rank + r
    mask = (r < rank) & (slot < slots)[:, None, None] & inside[None, None, :]  # 0 in slots that hold no rows
    tl.store(nu_ptr + at, nu.to(nu_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=LEVEL, do_not_specialize_on_alignment=WHERE)
def legendre_across_gradient_kernel(
    mu_ptr,
    reach_ptr,
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
    chunk,
    fan,
    octets,
    FAR: tl.constexpr,
    PACKED: tl.constexpr,
    PADDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of one distance's table, sum of eta (x) mu over its pairs: a share of it for each program of axis 2.

    mu and after it eta, the moments of the output's gradient: (2, slots, D, rank); out (shares, distances, D, rank,
    rank).
    """
    rank, number, share = octets * 8, tl.program_id(0), tl.program_id(2)
    distance = distance_of(number, near_pairs, far_first)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[:, None, None]
    inside = channel < channels
    r, s = tl.arange(0, PADDED)[None, :, None], tl.arange(0, PADDED)[None, None, :]
    total = tl.zeros((CHANNELS, PADDED, PADDED), ACC)
    eta_ptr = mu_ptr + rank * channels * slots.to(tl.int64)
    for begin in range(share * SLOTS, slots, tl.num_programs(2) * SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        meets = distance <= tl.where(number < near_pairs, tl.load(reach_ptr + slot, mask=slot < slots, other=0), 0)
        if FAR:
            _, _, length, index = locate(
                slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, chunk, PACKED
            )
            meets = meets | (cut_short(index, distance, far_first, far_pairs, fan) & (index * chunk < length))
        at = slot.to(tl.int64) * channels
        here = (at[None, None, :] + channel) * rank + r  # (CHANNELS, PADDED, SLOTS)
        left = tl.load(eta_ptr + here, mask=(r < rank) & inside & meets[None, None, :], other=0)
        there = ((at - distance * channels)[None, :, None] + channel) * rank + s  # (CHANNELS, SLOTS, PADDED)
        right = tl.load(mu_ptr + there, mask=(s < rank) & inside & meets[None, :, None], other=0)
        total += tl.dot(left, right, input_precision=PRECISION, out_dtype=ACC)
    entry = (((share * tl.num_programs(0) + number).to(tl.int64) * channels + channel) * rank + r) * rank + s
    tl.store(out_ptr + entry, total, mask=(r < rank) & (s < rank) & inside)
