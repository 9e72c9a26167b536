"""Products of Toeplitz blocks with tiles of channels (:mod:`hyenarec_kernels.backends.triton.toeplitz`)."""

from __future__ import annotations

import triton
import triton.language as tl

from hyenarec_kernels.backends.triton.kernels.gates import gated, store_scaled
from hyenarec_kernels.backends.triton.kernels.slots import LENGTHS, WHERE, locate, tile_columns, written


@triton.jit(do_not_specialize=[*LENGTHS, "blocks"], do_not_specialize_on_alignment=WHERE)
def long_conv_toeplitz_kernel(
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
    matrices_ptr,
    blocks,
    group,
    skip_ptr,
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
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """With u = gate x and y its convolution: out = after y and other_out = other y; the convolution is transposed if
    REVERSE. matrices (G, blocks, C, C)."""
    slot, channel = tile_columns(SLOTS, CHANNELS)
    sequence, first, length, index = locate(
        slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
    )
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    position = index[None, :] * CHUNK + i
    real = position < length[None, :]
    row = (first + index * CHUNK)[None, :]
    operand = matrices_ptr.dtype.element_ty
    at = matrices_ptr + (tl.program_id(1) * CHANNELS // group) * blocks * CHUNK * CHUNK
    at += j * CHUNK + i if REVERSE else i * CHUNK + j
    count = tl.cdiv(length, CHUNK)
    reach = tl.max(tl.where(index < count, count - index if REVERSE else index + 1, 0), 0)
    y = tl.zeros((CHUNK, SLOTS * CHANNELS), ACC)
    for b in range(tl.minimum(blocks, reach)):
        step = -b * CHUNK if REVERSE else b * CHUNK
        reached = (position >= step) & (position - step < length[None, :])
        v = gated(x_ptr, x_row, gate_ptr, gate_row, row - step, i, channel[None, :], reached, ACC)
        matrix = tl.load(at + b * CHUNK * CHUNK)
        y += tl.dot(matrix, v.to(operand), input_precision=PRECISION, out_dtype=ACC)
    if skip_ptr is not None:
        u = gated(x_ptr, x_row, gate_ptr, gate_row, row, i, channel[None, :], real, ACC)
        y += tl.load(skip_ptr + channel)[None, :] * u
    to, here = written(
        position, sequence[None, :], first[None, :], length[None, :], slot[None, :], slots, columns, PACKED
    )
    to = to * channels + channel[None, :]
    store_scaled(out_ptr, y, after_ptr, after_row, row, i, channel[None, :], real, to, here, ACC)
    store_scaled(other_out_ptr, y, other_ptr, other_row, row, i, channel[None, :], real, to, here, ACC)


@triton.jit(do_not_specialize=LENGTHS, do_not_specialize_on_alignment=WHERE)
def long_conv_toeplitz_gradient_kernel(
    grad_ptr,
    grad_row,
    x_ptr,
    x_row,
    pre_ptr,
    pre_row,
    post_ptr,
    post_row,
    out_ptr,
    skip_out_ptr,
    operand_ptr,
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
    PRECISION: tl.constexpr,
    SLOTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of one block (axis 0) from one tile of channels (axis 1), of which each program of axis 2 adds up a
    share: out (shares, tiles, blocks, C, C). The programs of block 0 also add up dy u for the skip, skip_out
    (shares, D). Products are taken in the dtype of `operand_ptr`, which is not read."""
    b, share = tl.program_id(0), tl.program_id(2)
    column = tl.arange(0, SLOTS * CHANNELS)
    channel = (tl.program_id(1) * CHANNELS + column % CHANNELS)[None, :]
    i = tl.arange(0, CHUNK)[:, None]
    total = tl.zeros((CHUNK, CHUNK), ACC)
    own = tl.zeros((SLOTS * CHANNELS,), ACC)
    for tile in range(share, tl.cdiv(slots, SLOTS), tl.num_programs(2)):
        slot = tile * SLOTS + column // CHANNELS
        _, first, length, index = locate(
            slot, slots, sequences_ptr, starts_ptr, ends_ptr, columns, per_row, CHUNK, PACKED
        )
        position = index[None, :] * CHUNK + i
        real = (position < length[None, :]) & (position >= b * CHUNK)
        if tl.max(real.to(tl.int32)) > 0:
            row = (first + index * CHUNK)[None, :]
            dy = gated(grad_ptr, grad_row, post_ptr, post_row, row, i, channel, real, ACC)
            # `source` may include rows that are not `real`; the gradients that they meet are 0.
            source = (position >= b * CHUNK) & (position - b * CHUNK < length[None, :])
            u = gated(x_ptr, x_row, pre_ptr, pre_row, row - b * CHUNK, i, channel, source, ACC)
            own += tl.sum(dy * u, 0)
            kind = operand_ptr.dtype.element_ty
            total += tl.dot(dy.to(kind), tl.trans(u.to(kind)), input_precision=PRECISION, out_dtype=ACC)
    at = ((share * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + b).to(tl.int64) * (CHUNK * CHUNK)
    tl.store(out_ptr + at + i * CHUNK + tl.arange(0, CHUNK)[None, :], total)
    if b == 0:
        skipped = share * channels + tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        tl.store(skip_out_ptr + skipped, tl.sum(tl.reshape(own, (SLOTS, CHANNELS)), 0))
