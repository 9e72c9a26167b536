"""Products with the matrices that all channels share, one tile of chunks at a time: inside a chunk, at the filter's
end, and from moments back to rows.

A sum over the terms m of a filter is ``sum_m s_m (T_m v)``, where ``s_m`` differs from channel to channel. It scales v,
so that tensor cores add up the whole sum. Its gradient to ``s_m`` is ``sum_i g_i (T_m v)_i``.

Operands and results are (n, CHUNK), a row for each channel of each chunk: then a channel's sums over the rows of a
chunk stay within four lanes of a warp.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scaled(
    matrices_ptr, scales_ptr, v, channel, channels, rank, STEP: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m scales[m] (matrices[m] v): matrices (rank, CHUNK, CHUNK) STEP elements apart, scales (rank, D), channel
    (n,)."""
    CHUNK: tl.constexpr = v.shape[1]
    j, i = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    at = j * CHUNK + i if TRANSPOSED else i * CHUNK + j
    total = tl.zeros(v.shape, ACC)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0).to(v.dtype)
        matrix = tl.load(matrices_ptr + m * STEP + at)
        total = tl.dot(v * scale[:, None], matrix, total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def both_ways(
    matrices_ptr, scales_ptr, v, w, sums, channel, channels, rank, STEP: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`scaled` of v, the transposed operator on w, and the scales' gradient sum_i w_i (matrices[m] v)_i added to column
    m of `sums` (n, padded)."""
    CHUNK: tl.constexpr = v.shape[1]
    at = tl.arange(0, CHUNK)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    number = tl.arange(0, sums.shape[1])[None, :]
    total, back = tl.zeros(v.shape, ACC), tl.zeros(v.shape, ACC)
    g = w.to(ACC)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)[:, None]
        matrix = tl.load(matrices_ptr + m * STEP + at)
        term = tl.dot(v, tl.trans(matrix), input_precision=PRECISION, out_dtype=ACC)
        total += scale * term
        sums += tl.where(number == m, tl.sum(g * term, 1)[:, None], 0)
        back = tl.dot(w * scale.to(w.dtype), matrix, back, input_precision=PRECISION, out_dtype=ACC)
    return total, back, sums


@triton.jit
def weighed(
    matrices_ptr, scales_ptr, v, g, sums, channel, channels, rank, STEP: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`scaled` of v, and the scales' gradient for the output's gradient g, as `both_ways`."""
    CHUNK: tl.constexpr = v.shape[1]
    at = tl.arange(0, CHUNK)[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    number = tl.arange(0, sums.shape[1])[None, :]
    total, g = tl.zeros(v.shape, ACC), g.to(ACC)
    for m in range(rank):
        scale = tl.load(scales_ptr + m * channels + channel, mask=channel < channels, other=0)[:, None]
        term = tl.dot(v, tl.load(matrices_ptr + m * STEP + at), input_precision=PRECISION, out_dtype=ACC)
        total += scale * term
        sums += tl.where(number == m, tl.sum(g * term, 1)[:, None], 0)
    return total, sums


@triton.jit
def from_moments(
    nu_ptr, basis_ptr, slot, slots, channel, channels, rank, total, CHUNK: tl.constexpr, PADDED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Added to `total`: Q nu with basis (CHUNK, PADDED), nu (slots, D, rank); slot and channel (n,)."""
    r = tl.arange(0, PADDED)
    q = tl.load(basis_ptr + tl.arange(0, CHUNK)[None, :] * PADDED + r[:, None])  # (PADDED, CHUNK)
    at = (slot.to(tl.int64) * channels + channel)[:, None] * rank + r[None, :]
    inside = (slot < slots) & (channel < channels)
    values = tl.load(nu_ptr + at, mask=inside[:, None] & (r < rank)[None, :], other=0).to(q.dtype)
    return tl.dot(values, q, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def flat(t, operand):
    """A tile (CHUNK, SLOTS, CHANNELS) as an operand (n, CHUNK)."""
    return tl.trans(tl.reshape(t.to(operand), (t.shape[0], t.shape[1] * t.shape[2])))


@triton.jit
def tiled(y, SLOTS: tl.constexpr):
    """A result (n, CHUNK) as a tile (CHUNK, SLOTS, CHANNELS)."""
    return tl.reshape(tl.trans(y), (y.shape[1], SLOTS, y.shape[0] // SLOTS))
